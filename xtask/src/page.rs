//! The window's page in `ui/`: its packages, and the built files that the program embeds.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::time::SystemTime;

use anyhow::{Context, Result};

use crate::step::{root, run};

fn folder() -> PathBuf {
    root().join("ui")
}

pub fn npm<const N: usize>(arguments: [&str; N]) -> Result<()> {
    let program = if cfg!(windows) { "npm.cmd" } else { "npm" };
    run(Command::new(program)
        .args(arguments)
        .current_dir(folder())
        .stdin(Stdio::null()))
}

/// Installs the locked packages when they are missing or older than the lock file.
pub fn ensure_packages() -> Result<()> {
    let installed = modified(&folder().join("node_modules/.package-lock.json"));
    let locked = modified(&folder().join("package-lock.json"));
    if installed.is_some() && installed >= locked {
        println!("    nothing to do");
        return Ok(());
    }
    npm(["ci", "--no-audit", "--no-fund"])
}

/// Builds the page when a source is newer than the built page.
pub fn ensure_built() -> Result<()> {
    // A placeholder that build.rs wrote has an index but no assets.
    let built = folder()
        .join("dist/assets")
        .is_dir()
        .then(|| modified(&folder().join("dist/index.html")))
        .flatten();
    if built.is_some() && built >= newest_source(&folder())? {
        println!("    nothing to do");
        return Ok(());
    }
    npm(["run", "build"])
}

fn newest_source(folder: &Path) -> Result<Option<SystemTime>> {
    let mut newest = None;
    for entry in fs::read_dir(folder).with_context(|| format!("cannot read {}", folder.display()))? {
        let path = entry?.path();
        if path.ends_with("node_modules") || path.ends_with("dist") {
            continue;
        }
        newest = newest.max(if path.is_dir() {
            newest_source(&path)?
        } else {
            modified(&path)
        });
    }
    Ok(newest)
}

fn modified(path: &Path) -> Option<SystemTime> {
    fs::metadata(path).and_then(|meta| meta.modified()).ok()
}
