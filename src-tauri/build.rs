//! Lets the crate build in a fresh clone: without a built page, a placeholder says how to make one.

use std::fs;
use std::path::Path;

const PLACEHOLDER: &str = "<!doctype html><meta charset=\"utf-8\"><title>RAG-Gym Studio</title>\
<p>The page has not been built. Run <code>cargo xtask run</code>.</p>";

fn main() {
    let dist = Path::new("ui/dist");
    if !dist.join("index.html").exists() {
        fs::create_dir_all(dist).expect("ui/dist can be created");
        fs::write(dist.join("index.html"), PLACEHOLDER).expect("ui/dist can be written");
        println!(
            "cargo::warning=ui/dist was missing: the window will show a placeholder; `cargo xtask run` builds the page"
        );
    }
    println!("cargo::rerun-if-changed=src-tauri/capabilities");
    println!("cargo::rerun-if-changed=ui/dist");
    let attributes = tauri_build::Attributes::new().capabilities_path_pattern("./src-tauri/capabilities/**/*");
    tauri_build::try_build(attributes).expect("the window's configuration is valid");
}
