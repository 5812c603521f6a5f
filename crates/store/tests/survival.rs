//! What a stored step must outlive: a killed process and a new release.

#![expect(clippy::unwrap_used, reason = "helpers of tests")]

use std::path::Path;
use std::process::Command;

use gym::{Action, Candidate, Hit, Passage, QuestionId, Usage, episode::Step};
use store::{Run, RunStatus, Store};

const HOME: &str = "STORE_TEST_HOME";

fn passage() -> Passage {
    Passage {
        id: "p".into(),
        title: "Ada".into(),
        text: "Ada was first.".into(),
    }
}

fn step() -> Step {
    Step {
        step_idx: 0,
        truncated: false,
        prompt: None,
        dropped: Vec::new(),
        candidates: vec![Candidate {
            text: "ada".into(),
            reasoning: None,
            action: Action::Search {
                query: "ada".into(),
                predicted_answer: None,
            },
            token_ids: vec![1],
            token_logprobs: vec![-0.5],
            multiplicity: 1,
            redundant: false,
            reward: None,
        }],
        chosen: 0,
        verdict: None,
        opinions: Vec::new(),
        hits: vec![Hit {
            passage: passage().into(),
            score: 1.5,
            rank: 1,
        }],
        finding: None,
        usage: Usage::default(),
    }
}

fn fill(path: &Path) -> Store {
    let store = Store::open(path).unwrap();
    store
        .create_corpus("wiki", "jsonl", "t", [Ok::<_, String>(passage())])
        .unwrap();
    let run = Run {
        id: "r".into(),
        name: "Run".into(),
        status: RunStatus::Running,
        question_set: None,
        corpus: Some("wiki".into()),
        config: serde_json::json!({"k": 1}),
        config_hash: "c".into(),
        code_version: "0.1.0".into(),
        shard: None,
        error: None,
        created_at: "t".into(),
        took_ms: 0,
    };
    store.create_run(&run).unwrap();
    store.create_episodes("r", &[QuestionId("q".into())]).unwrap();
    store.append_step("r", &QuestionId("q".into()), &step(), 1).unwrap();
    store
}

fn check(path: &Path) {
    let store = Store::open(path).unwrap();
    store.integrity_check().unwrap();
    assert_eq!(store.steps("r", &QuestionId("q".into())).unwrap(), [step()]);
    assert_eq!(store.run("r").unwrap().config, serde_json::json!({"k": 1}));
}

#[test]
#[ignore = "the child of the test below"]
fn child() {
    let home = std::env::var_os(HOME).expect("set by the parent");
    let _store = fill(&Path::new(&home).join("store.db"));
    std::process::abort();
}

#[test]
fn a_committed_step_survives_a_kill() {
    let dir = tempfile::tempdir().unwrap();
    let status = Command::new(std::env::current_exe().unwrap())
        .args(["--exact", "child", "--ignored"])
        .env(HOME, dir.path())
        .output()
        .unwrap()
        .status;
    assert!(!status.success());
    check(&dir.path().join("store.db"));
}

#[test]
#[ignore = "writes the fixture of the current schema"]
fn write_fixture() {
    let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/fixtures/v1.db");
    assert!(!path.exists(), "a released fixture never changes");
    drop(fill(&path));
}

#[test]
fn the_database_of_schema_1_opens() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("v1.db");
    std::fs::copy(
        Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/fixtures/v1.db"),
        &path,
    )
    .unwrap();
    check(&path);
}
