//! The real program on a real model server: llama.cpp's, with SmolLM2-135M. `cargo xtask test` brings
//! both and names them in RAG_GYM_PEER_PYTHON and RAG_GYM_TEST_MODEL.

#![expect(clippy::unwrap_used, reason = "a test that cannot go on fails")]

use std::path::Path;
use std::process::{Command, Output, Stdio};

use serde_json::Value;

#[path = "../../lm/tests/support/llama_cpp.rs"]
mod support;

use support::server;

const KEY: &str = "sk-must-not-be-stored";

fn output(home: &Path, key: Option<&str>, arguments: &[&str]) -> Output {
    let mut command = Command::new(env!("CARGO_BIN_EXE_rag-gym"));
    command
        .arg("--home")
        .arg(home)
        .args(arguments)
        .arg("--json")
        .stdin(Stdio::null())
        .env_remove("TEST_ENDPOINT_KEY");
    if let Some(key) = key {
        command.env("TEST_ENDPOINT_KEY", key);
    }
    command.output().unwrap()
}

fn json(home: &Path, arguments: &[&str]) -> Value {
    let output = output(home, Some(KEY), arguments);
    let error = String::from_utf8_lossy(&output.stderr);
    assert!(output.status.success(), "{arguments:?}: {error}");
    assert!(!error.contains(KEY));
    serde_json::from_slice(&output.stdout).unwrap()
}

/// A home with what set-up makes; `None`, and a word of it, where the built-in model is not at hand.
fn set_up() -> Option<tempfile::TempDir> {
    if std::env::var_os("RAG_GYM_BUNDLE").is_none() {
        eprintln!("skipped: RAG_GYM_BUNDLE names no folder with the built-in model");
        return None;
    }
    let home = tempfile::tempdir().unwrap();
    json(home.path(), &["setup"]);
    Some(home)
}

const QUESTION: &str = "What is the capital of the country whose highest point is Grossglockner?";

#[test]
fn an_agent_works_with_a_server_as_with_a_file_and_the_key_stays_in_the_environment() {
    let Some((server, _)) = server() else { return };
    let Some(dir) = set_up() else { return };
    let home = dir.path();
    let add = [
        "endpoint",
        "add",
        "llama",
        "--url",
        &server.url,
        "--model",
        "smollm2",
        "--key-env",
        "TEST_ENDPOINT_KEY",
    ];
    json(home, &[&add[..], &["--grammar"]].concat());

    let shown = json(home, &["models", "show", "llama"]);
    assert_eq!(shown["kind"], "endpoint");
    assert_eq!(shown["path"], format!("{}/v1", server.url));
    assert_eq!(shown["endpoint"]["context_tokens"], 8192, "the server told it");
    assert_eq!(shown["endpoint"]["key_env"], "TEST_ENDPOINT_KEY");
    assert!(
        shown["parameters"].as_f64().unwrap() > 1e8,
        "small, so compact prompts are chosen: {shown}"
    );

    let agent = [
        "--corpus",
        "factbook",
        "--agent",
        "research",
        "--model",
        "llama",
        "--max-steps",
        "2",
    ];
    let sampled = ["--candidates", "10", "--judge", "evidence", "--max-tokens", "40"];
    let asked = json(home, &[&["ask", QUESTION], &agent[..], &sampled].concat());
    let steps = asked["steps"].as_array().unwrap();
    let candidates = steps[0]["candidates"].as_array().unwrap();
    let drawn: u64 = candidates
        .iter()
        .map(|candidate| candidate["multiplicity"].as_u64().unwrap())
        .sum();
    assert_eq!(drawn, 10, "{asked}");
    assert!(
        candidates
            .iter()
            .all(|candidate| candidate["logprob"].as_f64().unwrap() < 0.0)
    );
    for count in ["prompt", "generated"] {
        assert!(asked["tokens"][count].as_u64().unwrap() > 0, "{asked}");
    }
    assert!(
        asked["tokens"]["cached"].as_u64().unwrap() > 0,
        "the second step begins like the first: {asked}"
    );

    let run = ["run", "--questions", "factbook-dev", "--limit", "2", "--workers", "16"];
    let run = json(home, &[&run[..], &agent[..], &["--max-tokens", "32"]].concat());
    assert_eq!(
        (&run["status"], &run["finished"], &run["failed"]),
        (&"finished".into(), &2.into(), &0.into()),
        "{run}"
    );
    let dump = output(home, None, &["runs", "dump", run["run"].as_str().unwrap()]);
    let dump = String::from_utf8(dump.stdout).unwrap();
    assert!(
        dump.contains(&server.url) && dump.contains("smollm2"),
        "the run says where its model was"
    );

    // Without the key nothing is asked, and the message says which variable is missing.
    let refused = output(home, None, &[&["ask", QUESTION], &agent[..]].concat());
    let error = String::from_utf8(refused.stderr).unwrap();
    assert!(
        !refused.status.success() && error.contains("TEST_ENDPOINT_KEY"),
        "{error}"
    );
    for entry in std::fs::read_dir(home).unwrap() {
        let path = entry.unwrap().path();
        if path.is_file() {
            let bytes = std::fs::read(&path).unwrap();
            assert!(
                !bytes.windows(KEY.len()).any(|window| window == KEY.as_bytes()),
                "{}",
                path.display()
            );
        }
    }

    json(home, &["models", "remove", "llama"]);
    let gone = output(home, Some(KEY), &[&["ask", QUESTION], &agent[..]].concat());
    assert!(
        String::from_utf8(gone.stderr)
            .unwrap()
            .contains("there is no model `llama`")
    );
}

#[test]
fn shards_that_reach_the_same_model_by_different_addresses_merge_into_one_run() {
    let Some((server, _)) = server() else { return };
    let (Some(first), Some(second)) = (set_up(), set_up()) else {
        return;
    };
    let localhost = server.url.replace("127.0.0.1", "localhost");
    let mut runs = Vec::new();
    for (home, url, shard) in [(&first, &server.url, "1/2"), (&second, &localhost, "2/2")] {
        json(
            home.path(),
            &["endpoint", "add", "llama", "--url", url, "--model", "smollm2"],
        );
        let run = [
            "run",
            "--questions",
            "factbook-dev",
            "--limit",
            "2",
            "--shard",
            shard,
            "--workers",
            "2",
        ];
        let agent = [
            "--corpus",
            "factbook",
            "--agent",
            "direct",
            "--model",
            "llama",
            "--max-tokens",
            "16",
        ];
        let run = json(home.path(), &[&run[..], &agent].concat());
        assert_eq!(run["finished"], 1, "{run}");
        runs.push(run["run"].as_str().unwrap().to_owned());
    }
    assert_eq!(runs[0], runs[1]);
    json(first.path(), &["merge", second.path().to_str().unwrap()]);
    let merged = json(first.path(), &["runs", "show", &runs[0]]);
    assert_eq!(
        (&merged["questions"], &merged["finished"]),
        (&2.into(), &2.into()),
        "{merged}"
    );
}

#[test]
fn a_run_whose_server_is_gone_fails_and_says_what_to_do() {
    let Some(dir) = set_up() else { return };
    let home = dir.path();
    // Nobody listens at the discard port.
    let add = [
        "endpoint",
        "add",
        "gone",
        "--url",
        "http://127.0.0.1:9/v1",
        "--model",
        "m",
    ];
    json(home, &[&add[..], &["--context", "2048"]].concat());
    let run = ["run", "--questions", "factbook-dev", "--limit", "2", "--workers", "2"];
    let agent = [
        "--corpus", "factbook", "--agent", "direct", "--model", "gone", "--prompt", "compact",
    ];
    let failed = output(home, None, &[&run[..], &agent].concat());
    let error = String::from_utf8(failed.stderr).unwrap();
    assert_eq!(failed.status.code(), Some(1), "{error}");
    let last = error.trim().lines().last().unwrap();
    assert!(
        last.contains("none of the 2 questions") && last.contains("127.0.0.1:9"),
        "{error}"
    );
    let runs = json(home, &["runs", "list"]);
    assert_eq!(
        (&runs[0]["status"], &runs[0]["failed"]),
        (&"failed".into(), &2.into()),
        "{runs}"
    );
}
