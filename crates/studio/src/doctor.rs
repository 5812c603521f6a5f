//! Is everything well? Each check names its thing, what was found, and what to do.

use serde::{Deserialize, Serialize};
use specta::Type;

use crate::library::weights_of;
use crate::{Result, Studio, endpoints, setup};

#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, Type)]
pub struct Check {
    pub name: String,
    pub ok: bool,
    /// What was found; for a failed check also the remedy.
    pub detail: String,
}

impl Studio {
    /// Measures the machine anew; checks the database, every index and every model file (its bytes are hashed).
    pub fn doctor(&self) -> Result<Vec<Check>> {
        let measured = self.machine(true).map(|machine| {
            format!(
                "{:.0} GFLOP/s f32, {:.0} GOP/s int16, {:.0} GB/s read from memory, with {} threads",
                machine.f32_gflops, machine.int16_gops, machine.read_gb_per_second, machine.threads
            )
        });
        let mut checks = vec![
            check("machine", measured, "make the home's folder writable"),
            check("graphics", Ok(lm::accelerator::described()), ""),
            check("database", self.integrity(), "restore a backup of rag-gym.db"),
        ];
        for corpus in self.corpora()? {
            let searched = self
                .search(&corpus.name, "the", 1)
                .map(|_| format!("{} passages can be searched", corpus.passages));
            checks.push(check(
                &format!("corpus {}", corpus.name),
                searched,
                "remove and import it again",
            ));
        }
        let models = self.store().models()?.into_iter();
        for model in models.filter(|model| model.kind != endpoints::KIND) {
            checks.push(check_model(&model));
        }
        Ok(checks)
    }
}

fn check_model(model: &store::Model) -> Check {
    let name = format!("model {}", model.name);
    let file = weights_of(model);
    match setup::sha256(&file) {
        Ok(found) if found == model.sha256 => Check {
            name,
            ok: true,
            detail: format!("its bytes are the ones registered, SHA-256 {found}"),
        },
        Ok(found) => Check {
            name,
            ok: false,
            detail: format!(
                "{} has SHA-256 {found}, registered was {}: put the file back, or remove the model and add it again",
                file.display(),
                model.sha256
            ),
        },
        Err(error) => check(&name, Err(error), "put the file back, or remove the model"),
    }
}

fn check(name: &str, outcome: Result<String>, remedy: &str) -> Check {
    Check {
        name: name.into(),
        ok: outcome.is_ok(),
        detail: outcome.unwrap_or_else(|error| format!("{}; {remedy}", error.chain())),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_changed_file_is_named_with_both_hashes() {
        let dir = tempfile::tempdir().unwrap();
        let studio = Studio::open(Some(dir.path().join("home"))).unwrap();
        let file = dir.path().join("base.gguf");
        std::fs::write(&file, "weights").unwrap();
        std::fs::write(dir.path().join("adapter_model.safetensors"), "pairs").unwrap();
        let base = store::Model {
            name: "base".into(),
            kind: "language".into(),
            path: file.display().to_string(),
            sha256: setup::sha256(&file).unwrap(),
            architecture: "llama".into(),
            parameters: 1,
            adapter_of: None,
        };
        let adapter = store::Model {
            name: "adapter".into(),
            path: dir.path().display().to_string(),
            sha256: setup::sha256(&dir.path().join("adapter_model.safetensors")).unwrap(),
            adapter_of: Some("base".into()),
            ..base.clone()
        };
        studio.store().put_model(&base).unwrap();
        studio.store().put_model(&adapter).unwrap();
        assert!(studio.doctor().unwrap().iter().all(|check| check.ok));

        std::fs::write(&file, "others").unwrap();
        let found = setup::sha256(&file).unwrap();
        let checks = studio.doctor().unwrap();
        let ill: Vec<&Check> = checks.iter().filter(|check| !check.ok).collect();
        assert_eq!((ill.len(), ill[0].name.as_str()), (1, "model base"));
        assert!(ill[0].detail.contains(&found) && ill[0].detail.contains(&base.sha256));
    }
}
