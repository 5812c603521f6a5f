//! The dependency table of ARCHITECTURE.md, compared with what cargo reports.

#![expect(clippy::unwrap_used, reason = "a test that cannot go on fails")]

use std::collections::{BTreeMap, BTreeSet};
use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;

use serde_json::Value;

const SHELL: &str = "rag-gym-studio";

/// Each package and the workspace packages that it may know.
const MAY_KNOW: [(&str, &[&str]); 10] = [
    ("gym", &[]),
    ("corpus", &["gym"]),
    ("retrieval", &["gym"]),
    ("lm", &["gym"]),
    ("store", &["gym"]),
    ("training", &["gym", "lm"]),
    ("studio", &["gym", "corpus", "retrieval", "lm", "store", "training"]),
    ("cli", &["studio"]),
    (SHELL, &["studio"]),
    ("xtask", &[]),
];

/// Heavy dependencies, by the start of their name, and the packages that may name them.
const QUARANTINE: [(&str, &[&str]); 5] = [
    ("tantivy", &["retrieval"]),
    ("candle", &["lm", "training"]),
    ("rusqlite", &["store"]),
    ("ureq", &["lm"]),
    ("tauri", &[SHELL]),
];

/// Every package of the workspace with all its dependencies: normal, build and development.
fn packages() -> BTreeMap<String, BTreeSet<String>> {
    let output = Command::new(env!("CARGO"))
        .args(["metadata", "--format-version", "1", "--no-deps", "--manifest-path"])
        .arg(root().join("Cargo.toml"))
        .output()
        .unwrap();
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    let metadata: Value = serde_json::from_slice(&output.stdout).unwrap();
    let name = |value: &Value| value["name"].as_str().unwrap().to_owned();
    let packages = metadata["packages"].as_array().unwrap().iter();
    packages
        .map(|package| {
            (
                name(package),
                package["dependencies"].as_array().unwrap().iter().map(name).collect(),
            )
        })
        .collect()
}

fn root() -> &'static Path {
    Path::new(env!("CARGO_MANIFEST_DIR"))
}

#[test]
fn packages_know_only_those_that_the_table_allows() {
    let packages = packages();
    let listed: BTreeSet<&str> = MAY_KNOW.iter().map(|(package, _)| *package).collect();
    let present: BTreeSet<&str> = packages.keys().map(String::as_str).collect();
    assert_eq!(present, listed, "the table and the workspace list different packages");
    for (package, allowed) in MAY_KNOW {
        for dependency in packages[package].iter().filter(|name| listed.contains(name.as_str())) {
            assert!(
                allowed.contains(&dependency.as_str()),
                "`{package}` must not know `{dependency}`"
            );
        }
    }
}

#[test]
fn heavy_dependencies_stay_in_the_package_that_guards_them() {
    for (package, dependencies) in packages() {
        for (heavy, guards) in QUARANTINE {
            let found = dependencies.iter().find(|name| name.starts_with(heavy));
            assert!(
                found.is_none() || guards.contains(&package.as_str()),
                "only {guards:?} may name {heavy}*, `{package}` names {found:?}"
            );
        }
    }
}

#[test]
fn only_lm_holds_unsafe_code() {
    let mut sources = Vec::new();
    for folder in ["crates", "src-tauri", "xtask", "tests"] {
        rust_sources(&root().join(folder), &mut sources);
    }
    assert!(sources.len() > 10, "the search found {} files", sources.len());
    // Built from two parts, so that this file does not find itself.
    let word = ["uns", "afe "].concat();
    for path in sources
        .iter()
        .filter(|path| !path.starts_with(root().join("crates/lm")))
    {
        let text = fs::read_to_string(path).unwrap();
        let code = text.lines().filter(|line| !line.trim_start().starts_with("//"));
        for (index, line) in code.enumerate() {
            assert!(
                !line.contains(&word),
                "{}, code line {}: {line}",
                path.display(),
                index + 1
            );
        }
    }
}

fn rust_sources(folder: &Path, found: &mut Vec<PathBuf>) {
    for entry in fs::read_dir(folder).unwrap() {
        let path = entry.unwrap().path();
        if path.is_dir() {
            rust_sources(&path, found);
        } else if path.extension().is_some_and(|extension| extension == "rs") {
            found.push(path);
        }
    }
}
