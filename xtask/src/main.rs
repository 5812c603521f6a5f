//! Build tasks: `cargo xtask setup|run|test|models|bench|ladder|sanitize|bundle`.
//!
//! Each step prints what it does and how long it took. Steps that have nothing to do say so, and
//! every task can be stopped and started again.

#![expect(clippy::print_stdout, reason = "a build task talks to a terminal")]

mod bench;
mod bench_episodes;
mod bench_table;
mod bench_training;
mod document;
mod ladder;
mod ladder_table;
mod model;
mod page;
mod peers;
mod sanitize;
mod step;
mod system;

use std::path::Path;
use std::process::{Command, ExitCode};

use anyhow::{Result, bail};
use step::{cargo, root, run, step};

const USAGE: &str = "\
usage: cargo xtask TASK

  setup    system packages, the page's packages, the page, the built-in model files
  run      setup, then open the window (optimised build)
  test     setup, then every test: Rust, page, window
  models   the model files, then `rag-gym setup` into the home folder (RAG_GYM_HOME, or the platform's)
  bench    sets other engines up, times them and this program side by side, and writes the figures into
           docs/benchmarks.md; --model FILE.gguf: the same of another model, into its own place there; with
           other arguments: `rag-gym bench` with these, in an optimised build
  ladder   trains and reports every rung from the untrained model to a guided trained one, and writes the
           tables into docs/results.md; hours, goes on where it was stopped; --quick shows that it works
  sanitize the tests of the code with `unsafe` under the address sanitizer and in Miri (rustup's nightly)
  bundle   an installable package (Debian)";

fn main() -> ExitCode {
    let arguments: Vec<String> = std::env::args().skip(1).collect();
    let Some((task, rest)) = arguments.split_first() else {
        eprintln!("{USAGE}");
        return ExitCode::from(2);
    };
    let result = match task.as_str() {
        "setup" => setup(),
        "run" => open_window(rest),
        "test" => test(rest),
        "models" => models(),
        "bench" => bench::run(rest),
        "ladder" => ladder::run(rest),
        "sanitize" => sanitize::run_all(),
        "bundle" => bundle(),
        "help" | "--help" => {
            println!("{USAGE}");
            Ok(())
        }
        other => {
            eprintln!("no task is called `{other}`\n\n{USAGE}");
            return ExitCode::from(2);
        }
    };
    match result {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("\nxtask {task}: {error:#}");
            ExitCode::FAILURE
        }
    }
}

fn setup() -> Result<()> {
    step("system packages", system::ensure_packages)?;
    step("packages of the page", page::ensure_packages)?;
    step("the page", page::ensure_built)?;
    step("the built-in models", model::ensure)
}

fn open_window(arguments: &[String]) -> Result<()> {
    setup()?;
    step("the window (the first build takes several minutes)", || {
        let mut command = cargo(["run", "--release", "--package", "rag-gym-studio", "--"]);
        run(command.args(arguments).env("RAG_GYM_BUNDLE", model::folder()))
    })
}

/// Extra arguments go to `cargo test`, and then only the Rust tests run.
fn test(arguments: &[String]) -> Result<()> {
    setup()?;
    let mut peer_python = None;
    step("llama.cpp's server, to test against", || {
        peer_python = peers::ensure()?;
        Ok(())
    })?;
    step("Rust tests", || {
        let mut command = cargo(["test", "--workspace"]);
        with_model(&mut command);
        if let Some(python) = &peer_python {
            command.env(peers::VARIABLE, python);
        }
        run(command.args(arguments))
    })?;
    if !arguments.is_empty() {
        return Ok(());
    }
    step("a small ladder", || ladder::run(&["--quick".to_owned()]))?;
    step("types of the page", || page::npm(["run", "check"]))?;
    step("tests of the page", || page::npm(["test"]))?;
    step("window tests", window_tests)
}

fn window_tests() -> Result<()> {
    if !root().join("tests/window.rs").is_file() {
        println!("    skipped: tests/window.rs is not there");
        return Ok(());
    }
    if !cfg!(target_os = "linux") {
        println!("    skipped: they need WebKitWebDriver and a virtual screen, so they run on Linux only");
        return Ok(());
    }
    // The same package selection as above, so that cargo reuses what it has built. The tests bring
    // their own virtual screen.
    let mut command = cargo(["test", "--workspace", "--test", "window"]);
    run(with_model(&mut command).env("RAG_GYM_WINDOW_TESTS", "1"))
}

/// Names the model for code under test: where set-up copies it from, and the file itself.
fn with_model(command: &mut Command) -> &mut Command {
    command
        .env("RAG_GYM_BUNDLE", model::folder())
        .env("RAG_GYM_TEST_MODEL", model::file())
}

fn models() -> Result<()> {
    step("the built-in models", model::ensure)?;
    step("models and world into the home folder", || {
        let mut command = cargo(["run", "--release", "--package", "cli", "--", "setup"]);
        run(command.env("RAG_GYM_BUNDLE", model::folder()))
    })
}

fn bundle() -> Result<()> {
    setup()?;
    let tauri = root().join("ui/node_modules/.bin/tauri");
    if !Path::new(&tauri).exists() {
        step("the optimised program", || {
            run(&mut cargo([
                "build",
                "--release",
                "--package",
                "rag-gym-studio",
                "--package",
                "cli",
            ]))
        })?;
        bail!(
            "the program is built, but packing it needs the Tauri command line: \
             run `npm install --no-save @tauri-apps/cli` in ui/, then `cargo xtask bundle` again"
        );
    }
    step("the Debian package", || {
        run(Command::new(&tauri)
            .args(["build", "--bundles", "deb"])
            .current_dir(root()))
    })?;
    println!("    look in bundle/deb of the release folder; the model is not in the package, set-up fetches it");
    Ok(())
}
