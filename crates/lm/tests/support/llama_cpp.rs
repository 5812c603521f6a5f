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

/// The server and the model's path, or `None` (with a note) where they are not to be had.
pub fn server() -> Option<(Server, String)> {
    let (Ok(python), Ok(model)) = (
        std::env::var("RAG_GYM_PEER_PYTHON"),
        std::env::var("RAG_GYM_TEST_MODEL"),
    ) else {
        eprintln!("skipped: RAG_GYM_PEER_PYTHON and RAG_GYM_TEST_MODEL are not set: run `cargo xtask test`");
        return None;
    };
    let script = Path::new(env!("CARGO_MANIFEST_DIR")).join("../lm/tests/support/llama_cpp.py");
    let mut process = Command::new(python)
        .arg(script)
        .arg(&model)
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
    Some((Server { process, url }, model))
}
