//! llama.cpp's own server, started for a test; included by path where a test needs it.

use std::io::{BufRead, BufReader};
use std::path::Path;
use std::process::{Child, Command, Stdio};

pub struct Server {
    process: Child,
    pub url: String,
}

impl Drop for Server {
    fn drop(&mut self) {
        let _ = self.process.kill();
        let _ = self.process.wait();
    }
}

/// The server of the test's model and that model's path, or `None` (with a note) where they are not to be had.
pub fn server() -> Option<(Server, String)> {
    let Ok(model) = std::env::var("RAG_GYM_TEST_MODEL") else {
        eprintln!("skipped: RAG_GYM_TEST_MODEL is not set: run `cargo xtask test`");
        return None;
    };
    Some((serve(Path::new(&model))?, model))
}

/// The server of a model, or `None` (with a note) where there is no llama.cpp.
pub fn serve(model: &Path) -> Option<Server> {
    let Ok(python) = std::env::var("RAG_GYM_PEER_PYTHON") else {
        eprintln!("skipped: RAG_GYM_PEER_PYTHON is not set: run `cargo xtask test`");
        return None;
    };
    let script = Path::new(env!("CARGO_MANIFEST_DIR")).join("../lm/tests/support/llama_cpp.py");
    let mut process = Command::new(python)
        .arg(script)
        .arg(model)
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .stderr(Stdio::null())
        .spawn()
        .unwrap();
    let mut url = String::new();
    BufReader::new(process.stdout.take().unwrap())
        .read_line(&mut url)
        .unwrap();
    assert!(url.starts_with("http"), "the server did not start: {url:?}");
    let url = url.trim().into();
    Some(Server { process, url })
}
