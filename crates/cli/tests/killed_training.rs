//! A training that is killed at random moments and resumed. Needs the model that `cargo xtask test` brings.

#![cfg(unix)]
#![expect(clippy::unwrap_used, reason = "a test that cannot go on fails")]

use std::io::{BufRead, BufReader};
use std::os::unix::process::ExitStatusExt;
use std::path::Path;
use std::process::{Child, Command, Stdio};
use std::time::Duration;

const SIGKILL: i32 = 9;

fn rag_gym(home: &Path, arguments: &str) -> Child {
    let mut command = Command::new(env!("CARGO_BIN_EXE_rag-gym"));
    command.arg("--home").arg(home).args(arguments.split(' '));
    command.stdin(Stdio::null()).stdout(Stdio::piped()).spawn().unwrap()
}

#[test]
fn a_killed_training_resumes_to_the_same_bytes() {
    if std::env::var_os("RAG_GYM_BUNDLE").is_none() {
        eprintln!("RAG_GYM_BUNDLE names no folder with the built-in model: run `cargo xtask test`");
        return;
    }
    let home = tempfile::tempdir().unwrap();
    let home = home.path();
    assert!(
        rag_gym(home, "setup --json")
            .wait_with_output()
            .unwrap()
            .status
            .success()
    );
    let data = home.join("data.jsonl");
    let line = |place| format!("{{\"prompt\":\"Who borders {place}?\",\"completion\":\"Search: {place} borders\"}}\n");
    let places = ["Chad", "Laos", "Peru", "Mali", "Cuba", "Oman", "Togo", "Iran"];
    std::fs::write(&data, places.map(line).concat()).unwrap();
    let train = |out: &str| {
        let options = "--rank 2 --dropout 0.1 --batch 2 --epochs 3 --eval-every 2 --seed 5 --json";
        rag_gym(
            home,
            &format!("train sft --data {} --out {out} {options}", data.display()),
        )
    };
    assert!(train("whole").wait_with_output().unwrap().status.success());

    // Each time a little later after the first step that it reports, 0 to 0.4 s: inside steps, evaluations and saves.
    let mut kills = 0;
    loop {
        let mut child = train("killed");
        let mut lines = BufReader::new(child.stdout.take().unwrap()).lines();
        lines.next();
        if kills < 8 {
            std::thread::sleep(Duration::from_millis(kills * 157 % 400));
            child.kill().unwrap();
        }
        lines.for_each(drop);
        let status = child.wait().unwrap();
        if status.signal() != Some(SIGKILL) {
            assert!(status.success(), "{status}");
            break;
        }
        kills += 1;
    }
    assert!(kills >= 3, "only {kills} kills");
    let file = |model: &str| std::fs::read(home.join("models").join(model).join("adapter_model.safetensors")).unwrap();
    assert!(file("killed") == file("whole"));
    let steps = |model: &str| {
        let log = std::fs::read_to_string(home.join("models").join(model).join("steps.jsonl")).unwrap();
        let losses = log
            .lines()
            .map(|line| line.split("\"learning_rate\"").next().unwrap().to_owned());
        losses.collect::<Vec<_>>()
    };
    assert_eq!(steps("killed"), steps("whole"));
}
