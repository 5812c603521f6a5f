//! Adapters in PEFT's layout: those that come with the program, others' that are brought in, and copies
//! of them and of encoders to take elsewhere.

use std::fs;
use std::path::Path;

use training::adapter::{Adapter, halve};
use training::base::Base;

use crate::export::write_bytes;
use crate::library::{ENCODER, check_name, known};
use crate::view::ModelView;
use crate::{Result, Studio, StudioError, setup};

/// An adapter of the built-in model that the program carries. What made it: `assets/adapters/README.md`.
struct BuiltIn {
    name: &'static str,
    config: &'static [u8],
    tensors: &'static [u8],
}

macro_rules! built_in {
    ($name:literal) => {
        BuiltIn {
            name: $name,
            config: include_bytes!(concat!("../../../assets/adapters/", $name, "/adapter_config.json")),
            tensors: include_bytes!(concat!(
                "../../../assets/adapters/",
                $name,
                "/adapter_model.safetensors"
            )),
        }
    };
}

const BUILT_IN: &[BuiltIn] = &[built_in!("searcher")];

/// What answers unless another model is named: the built-in model, trained to search.
pub const DEFAULT_MODEL: &str = BUILT_IN[0].name;

const CONFIG: &str = "adapter_config.json";
const TENSORS: &str = "adapter_model.safetensors";
const ENCODER_FILES: [&str; 3] = ["config.json", "tokenizer.json", "model.safetensors"];

impl Studio {
    /// Registers a PEFT adapter where it lies. It must fit the base; one with a head is a reward model.
    pub fn add_adapter(&self, dir: &Path, name: &str, base: &str) -> Result<ModelView> {
        check_name(name)?;
        let dir = dir.canonicalize().map_err(StudioError::file("read", dir))?;
        let root = self.model_row(base)?;
        if root.adapter_of.is_some() {
            return Err(StudioError::Invalid(format!(
                "`{base}` is an adapter itself: name the model under it"
            )));
        }
        let head = has_head(&dir, &root)?;
        self.register_adapter(name, &dir, &root, head)?;
        self.model(name)
    }

    pub(crate) fn register_adapter(&self, name: &str, dir: &Path, root: &store::Model, head: bool) -> Result<()> {
        self.store().put_model(&store::Model {
            name: name.into(),
            kind: if head { "reward" } else { "language" }.into(),
            path: dir.display().to_string(),
            sha256: setup::sha256(&dir.join(TENSORS))?,
            architecture: root.architecture.clone(),
            parameters: root.parameters,
            adapter_of: Some(root.name.clone()),
        })?;
        self.forget_loaded(name)
    }

    /// Writes the mean of adapters of one base into the home, as a new model.
    pub fn average_adapters(&self, of: &[String], name: &str) -> Result<ModelView> {
        check_name(name)?;
        let to = self.model_dir(name);
        if known(self.store().model(name))?.is_some() || to.exists() {
            let message = format!("there is a model `{name}` already: choose another name");
            return Err(StudioError::Invalid(message));
        }
        let rows = of.iter().map(|name| self.model_row(name)).collect::<Result<Vec<_>>>()?;
        let bases: Vec<Option<&str>> = rows.iter().map(|row| row.adapter_of.as_deref()).collect();
        let base = match bases[..] {
            [Some(base), ..] if bases.len() > 1 && bases.iter().all(|other| *other == Some(base)) => base,
            _ => {
                let message = format!("{}: a mean takes two or more adapters of one base", of.join(", "));
                return Err(StudioError::Invalid(message));
            }
        };
        let root = self.model_row(base)?;
        let config = Base::open(Path::new(&root.path))?.config;
        let adapters = rows.iter().map(|row| Adapter::load(&config, Path::new(&row.path)));
        let mean = Adapter::mean(&adapters.collect::<std::result::Result<Vec<_>, _>>()?)?;
        let written = mean.save(&config, &to, base);
        if written.is_err() {
            let _ = fs::remove_dir_all(&to);
        }
        written?;
        self.register_adapter(name, &to, &root, mean.config.head)?;
        self.model(name)
    }

    /// Copies an adapter or an encoder into a new folder `to`, with `half` as 16-bit floats.
    pub fn export_adapter(&self, name: &str, to: &Path, half: bool) -> Result<()> {
        let row = self.model_row(name)?;
        let files = match row.adapter_of {
            Some(_) => &[CONFIG, TENSORS][..],
            None if row.architecture == ENCODER => &ENCODER_FILES,
            None => {
                return Err(StudioError::Invalid(format!("`{name}` is one file: copy it instead")));
            }
        };
        let from = Path::new(&row.path);
        fs::create_dir(to).map_err(StudioError::file("create", to))?;
        let copied = copy(files, from, to, half);
        if copied.is_err() {
            let _ = fs::remove_dir_all(to);
        }
        copied
    }

    /// Whether every adapter of the program is registered.
    pub(crate) fn has_built_in_adapters(&self) -> Result<bool> {
        for BuiltIn { name, .. } in BUILT_IN {
            if known(self.store().model(name))?.is_none() {
                return Ok(false);
            }
        }
        Ok(true)
    }

    /// Writes the program's adapters into the home and registers them. One of the user's under such a name stays.
    pub(crate) fn bring_built_in_adapters(&self, base: &str) -> Result<()> {
        let root = self.model_row(base)?;
        for BuiltIn { name, config, tensors } in BUILT_IN {
            let dir = self.model_dir(name);
            let model = known(self.store().model(name))?;
            if model.as_ref().is_some_and(|model| Path::new(&model.path) != dir) {
                continue;
            }
            let files = [(CONFIG, config), (TENSORS, tensors)];
            let whole = |(file, bytes): (&str, &&[u8])| fs::read(dir.join(file)).is_ok_and(|found| found == **bytes);
            if model.is_some() && files.into_iter().all(whole) {
                continue;
            }
            fs::create_dir_all(&dir).map_err(StudioError::file("create", &dir))?;
            for (file, bytes) in files {
                write_bytes(&dir.join(file), bytes)?;
            }
            self.register_adapter(name, &dir, &root, has_head(&dir, &root)?)?;
        }
        Ok(())
    }
}

/// Whether an adapter is a reward model. An error where it does not fit the base.
fn has_head(dir: &Path, root: &store::Model) -> Result<bool> {
    let base = Base::open(Path::new(&root.path))?;
    Ok(Adapter::load(&base.config, dir)?.config.head)
}

fn copy(files: &[&str], from: &Path, to: &Path, half: bool) -> Result<()> {
    for name in files {
        let (from, to) = (from.join(name), to.join(name));
        if half && name.ends_with(".safetensors") {
            halve(&from, &to)?;
        } else {
            let copied = fs::copy(&from, &to);
            copied.map_err(StudioError::file("copy", &from))?;
        }
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    /// A tiny llama and an adapter that PEFT saved for it.
    fn peft() -> std::path::PathBuf {
        Path::new(env!("CARGO_MANIFEST_DIR")).join("../training/tests/peft")
    }

    fn home() -> (tempfile::TempDir, Studio) {
        let dir = tempfile::tempdir().unwrap();
        let studio = Studio::open(Some(dir.path().join("home"))).unwrap();
        studio.add_model(&peft().join("tiny.gguf"), "tiny").unwrap();
        (dir, studio)
    }

    #[test]
    fn an_adapter_of_pefts_is_a_model_and_its_halved_copy_is_one_too() {
        let (dir, studio) = home();
        let theirs = studio.add_adapter(&peft().join("adapter"), "theirs", "tiny").unwrap();
        assert_eq!(
            (theirs.kind.as_str(), theirs.adapter_of.as_deref()),
            ("language", Some("tiny"))
        );
        let to = dir.path().join("half");
        studio.export_adapter("theirs", &to, true).unwrap();
        let size = |dir: &Path| fs::metadata(dir.join(TENSORS)).unwrap().len();
        assert!(size(&to) < size(&peft().join("adapter")));
        studio.add_adapter(&to, "half", "tiny").unwrap();
        let config = Base::open(&peft().join("tiny.gguf")).unwrap().config;
        let load = |dir: &Path| Adapter::load(&config, dir).unwrap().values;
        let (whole, half) = (load(&peft().join("adapter")), load(&to));
        assert_ne!(whole, half);
        assert!(
            whole
                .iter()
                .zip(&half)
                .all(|(a, b)| (a - b).abs() <= 1e-3 * a.abs() + 1e-6)
        );
        // Nothing is overwritten.
        let again = studio.export_adapter("theirs", &to, false).unwrap_err().to_string();
        assert!(again.contains("cannot create"), "{again}");
    }

    #[test]
    fn the_mean_of_two_adapters_lies_between_them() {
        let (dir, studio) = home();
        let (base, theirs) = (peft().join("tiny.gguf"), peft().join("adapter"));
        studio.add_adapter(&theirs, "theirs", "tiny").unwrap();
        let config = Base::open(&base).unwrap().config;
        let mut other = Adapter::load(&config, &theirs).unwrap();
        let ours = other.values.clone();
        other.values.iter_mut().for_each(|value| *value = 3.0 * *value + 1.0);
        let folder = dir.path().join("other");
        other.save(&config, &folder, "tiny").unwrap();
        studio.add_adapter(&folder, "other", "tiny").unwrap();
        let names = |names: &[&str]| names.iter().map(|name| (*name).to_owned()).collect::<Vec<_>>();
        let mean = studio.average_adapters(&names(&["theirs", "other"]), "mean").unwrap();
        assert_eq!(mean.adapter_of.as_deref(), Some("tiny"));
        let mean = Adapter::load(&config, Path::new(&mean.path)).unwrap();
        assert!(
            mean.values
                .iter()
                .zip(&ours)
                .all(|(mean, x)| (mean - (2.0 * x + 0.5)).abs() < 1e-5)
        );
        for (of, name, reason) in [
            (&["theirs", "other"][..], "mean", "already"),
            (&["theirs"], "alone", "two or more"),
            (&["theirs", "tiny"], "mixed", "of one base"),
        ] {
            let error = studio.average_adapters(&names(of), name).unwrap_err().to_string();
            assert!(error.contains(reason), "{error}");
        }
        other.config.rank *= 2;
        let error = Adapter::mean(&[Adapter::load(&config, &theirs).unwrap(), other]).unwrap_err();
        assert!(error.to_string().contains("different shapes"), "{error}");
    }

    #[test]
    fn what_is_no_adapter_of_the_base_is_refused() {
        let (dir, studio) = home();
        let empty = studio.add_adapter(dir.path(), "empty", "tiny").unwrap_err().to_string();
        assert!(empty.contains(CONFIG), "{empty}");
        studio.add_adapter(&peft().join("adapter"), "theirs", "tiny").unwrap();
        let nested = studio
            .add_adapter(&peft().join("adapter"), "more", "theirs")
            .unwrap_err()
            .to_string();
        assert!(nested.contains("name the model under it"), "{nested}");
        let root = dir.path().join("copy");
        assert!(studio.export_adapter("tiny", &root, false).is_err() && !root.exists());
    }
}
