//! Programs to test against: a Python environment under `target/peers`.

use std::fs;
use std::path::PathBuf;
use std::process::{Command, Stdio};

use anyhow::Result;

use crate::step::{root, run};

/// The Python that has [`PACKAGES`]; set by the user, it is taken as it is.
pub const VARIABLE: &str = "RAG_GYM_PEER_PYTHON";
/// llama.cpp with its OpenAI-compatible server, prebuilt.
const PACKAGES: &str = "xllamacpp==2026.10.11549";

/// Makes the environment if it is missing or holds other versions. `None`, with a note, where the
/// packages are not to be had: there are no wheels for every platform.
pub fn ensure() -> Result<Option<PathBuf>> {
    if let Some(python) = std::env::var_os(VARIABLE) {
        println!("    {VARIABLE} names one");
        return Ok(Some(python.into()));
    }
    let folder = root().join("target/peers");
    let python = folder.join(if cfg!(windows) {
        "Scripts/python.exe"
    } else {
        "bin/python"
    });
    let installed = folder.join("installed");
    if fs::read_to_string(&installed).is_ok_and(|packages| packages == PACKAGES) && python.is_file() {
        println!("    nothing to do");
        return Ok(Some(python));
    }
    let make = || -> Result<()> {
        let base = if cfg!(windows) { "python" } else { "python3" };
        run(Command::new(base)
            .args(["-m", "venv"])
            .arg(&folder)
            .stdin(Stdio::null()))?;
        let install = ["-m", "pip", "install", "--quiet", "--only-binary", ":all:", PACKAGES];
        run(Command::new(&python).args(install).stdin(Stdio::null()))?;
        Ok(fs::write(&installed, PACKAGES)?)
    };
    match make() {
        Ok(()) => Ok(Some(python)),
        // On Linux there are wheels, so a failure there is one.
        Err(error) if cfg!(target_os = "linux") => Err(error),
        Err(error) => {
            println!("    skipped, and with it the tests against it: {error:#}");
            Ok(None)
        }
    }
}
