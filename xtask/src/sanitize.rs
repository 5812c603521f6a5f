//! The kernels, the only code with `unsafe`, under tools that watch every access to memory. Needs rustup's nightly.

use std::process::Command;

use anyhow::{Context, Result};

use crate::step::{root, run, step};

/// Where the kernels' tests are: in package `lm`.
const TESTS: &str = "kernels";
/// Those that Miri gets through in minutes: memory, threads, and what is not a product of matrices.
const FOR_MIRI: [&str; 5] = [
    "kernels::memory",
    "kernels::pool",
    "kernels::bf16",
    "kernels::tests::normalised",
    "kernels::tests::passes",
];

pub fn run_all() -> Result<()> {
    let host = host()?;
    step("the kernels' tests under the address sanitizer", || {
        // With a target named, build scripts and macros are built without the sanitizer.
        let mut command = nightly(&["test", "--package", "lm", "--lib", "--target", &host, TESTS]);
        run(command.env("RUSTFLAGS", "-Zsanitizer=address"))
    })?;
    // Miri knows few vector instructions, finds none of ours at run time, and so takes the portable path.
    step("the portable kernels' tests in Miri", || {
        let mut command = nightly(&["miri", "test", "--package", "lm", "--lib", "--"]);
        run(command.args(FOR_MIRI).env("MIRIFLAGS", "-Zmiri-disable-isolation"))
    })
}

fn nightly(arguments: &[&str]) -> Command {
    let mut command = Command::new("rustup");
    command
        .args(["run", "nightly", "cargo"])
        .args(arguments)
        .current_dir(root())
        // Of the cargo that started this task.
        .env_remove("CARGO")
        .env("CARGO_TARGET_DIR", root().join("target/sanitize"));
    command
}

/// This machine's target, as the compiler names it.
fn host() -> Result<String> {
    let output = Command::new("rustup").args(["run", "nightly", "rustc", "-vV"]).output();
    let output = output.context("cannot start rustup")?;
    let text = String::from_utf8_lossy(&output.stdout);
    let host = text.lines().find_map(|line| line.strip_prefix("host: "));
    Ok(host
        .context("there is no nightly toolchain: `rustup toolchain install nightly --component miri,rust-src`")?
        .into())
}
