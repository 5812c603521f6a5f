//! Whole episodes: the agent on this program's decoder, and the same agent on llama.cpp's server.

use std::io::{BufRead, BufReader};
use std::path::Path;
use std::process::{Child, Command, Stdio};

use anyhow::{Context, Result, bail};
use serde_json::Value;

use crate::bench::{json, rag_gym};
use crate::step::root;

/// Episodes at once: what each side is fastest with on two threads.
const OUR_WORKERS: &str = "4";
const PEER_REQUESTS: &str = "1";

/// The name under which the model that is timed stands in the bench's home.
const MODEL: &str = "timed";

pub fn ours(model: &Path, episodes: &str) -> Result<Value> {
    json(rag_gym().args(["models", "add", "--json", "--name", MODEL]).arg(model))?;
    play(MODEL, episodes, OUR_WORKERS)
}

/// The server that the tests of the endpoint use, with its grammars, `n` and prompt cache.
pub fn llama_cpp(python: &Path, model: &Path, threads: &str, episodes: &str) -> Result<Value> {
    let server = Server::start(python, model, threads)?;
    let endpoint = [
        "endpoint",
        "add",
        "llama-cpp",
        "--model",
        MODEL,
        "--grammar",
        "--json",
        "--url",
    ];
    json(rag_gym().args(endpoint).arg(&server.url))?;
    play("llama-cpp", episodes, PEER_REQUESTS)
}

fn play(model: &str, episodes: &str, workers: &str) -> Result<Value> {
    let bench = ["bench", "episode", "--json", "--model", model];
    json(
        rag_gym()
            .args(bench)
            .args(["--episodes", episodes, "--workers", workers]),
    )
}

struct Server {
    process: Child,
    url: String,
}

impl Server {
    fn start(python: &Path, model: &Path, threads: &str) -> Result<Server> {
        let mut process = Command::new(python)
            .arg(root().join("crates/lm/tests/support/llama_cpp.py"))
            .arg(model)
            .args([threads, PEER_REQUESTS])
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .stderr(Stdio::null())
            .spawn()
            .context("cannot start llama.cpp's server")?;
        let mut url = String::new();
        BufReader::new(process.stdout.take().expect("it is piped")).read_line(&mut url)?;
        let server = Server {
            process,
            url: url.trim().into(),
        };
        if !server.url.starts_with("http") {
            bail!("llama.cpp's server did not start");
        }
        Ok(server)
    }
}

impl Drop for Server {
    fn drop(&mut self) {
        let _ = self.process.kill();
        let _ = self.process.wait();
    }
}
