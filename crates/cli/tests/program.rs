//! The real program on the built-in world and model: the contract's JSON fields, exit codes, and a run
//! that is killed again and again. Needs the model that `cargo xtask test` brings; says so without it.

#![expect(clippy::unwrap_used, reason = "a test that cannot go on fails")]

use std::path::{Path, PathBuf};
use std::process::{Command, Output, Stdio};
use std::time::{Duration, Instant};

use serde_json::Value;

const PROGRAM: &str = env!("CARGO_BIN_EXE_rag-gym");

fn rag_gym(home: &Path, arguments: &[&str]) -> Command {
    let mut command = Command::new(PROGRAM);
    command.arg("--home").arg(home).args(arguments).stdin(Stdio::null());
    command
}

fn output(home: &Path, arguments: &[&str]) -> Output {
    rag_gym(home, arguments).output().unwrap()
}

fn json(home: &Path, arguments: &[&str]) -> Value {
    let output = output(home, &[arguments, &["--json"]].concat());
    assert!(
        output.status.success(),
        "{arguments:?}: {}",
        String::from_utf8_lossy(&output.stderr)
    );
    serde_json::from_slice(&output.stdout).unwrap()
}

/// A home after set-up, or `None` (with a note) where the model is not to be had.
fn home() -> Option<tempfile::TempDir> {
    if std::env::var_os("RAG_GYM_BUNDLE").is_none() {
        eprintln!("RAG_GYM_BUNDLE names no folder with the built-in model: run `cargo xtask test`");
        return None;
    }
    let home = tempfile::tempdir().unwrap();
    json(home.path(), &["setup"]);
    Some(home)
}

/// Another home with the same world and model, and nothing else.
fn copy_of(home: &Path) -> tempfile::TempDir {
    let copy = tempfile::tempdir().unwrap();
    copy_folder(home, copy.path());
    copy
}

fn copy_folder(from: &Path, to: &Path) {
    for entry in std::fs::read_dir(from).unwrap() {
        let path: PathBuf = entry.unwrap().path();
        let target = to.join(path.file_name().unwrap());
        if path.is_file() {
            std::fs::copy(&path, &target).unwrap();
        } else if path.file_name().unwrap() != "models" {
            // The model stays where the first home registered it.
            std::fs::create_dir(&target).unwrap();
            copy_folder(&path, &target);
        }
    }
}

/// A run over the built-in dev questions; `options` as typed.
fn dev_run(options: &str) -> Vec<&str> {
    let run = "run --questions factbook-dev --corpus factbook";
    run.split(' ').chain(options.split_whitespace()).collect()
}

const QUESTION: &str = "What is the capital of the country whose highest point is Grossglockner?";

#[test]
fn ask_prints_the_fields_of_the_contract() {
    let Some(home) = home() else { return };
    let asked = json(
        home.path(),
        &[
            "ask",
            QUESTION,
            "--corpus",
            "factbook",
            "--agent",
            "research",
            "--model",
            "smollm2-135m",
        ],
    );
    for field in ["answer", "steps", "terminated", "tokens", "took_ms"] {
        assert!(asked.get(field).is_some(), "no `{field}` in {asked}");
    }
    for field in ["prompt", "cached", "generated"] {
        assert!(asked["tokens"][field].is_u64());
    }
    let step = &asked["steps"][0];
    assert!(step["state"]["history"].is_array());
    for field in [
        "text",
        "query",
        "answer",
        "malformed",
        "logprob",
        "reward",
        "multiplicity",
    ] {
        assert!(step["candidates"][0].get(field).is_some(), "no `{field}` in {step}");
    }

    let found = json(
        home.path(),
        &[
            "search",
            "highest point Grossglockner",
            "--corpus",
            "factbook",
            "--k",
            "3",
            "--explain",
        ],
    );
    assert!(
        found["hits"][0]["title"].as_str().unwrap().contains("Austria"),
        "{found}"
    );
    let terms = found["hits"][0]["explain"].as_array().unwrap();
    let sum: f64 = terms.iter().map(|term| term["score"].as_f64().unwrap()).sum();
    assert!((sum - found["hits"][0]["score"].as_f64().unwrap()).abs() < 1e-3);
}

#[test]
fn wrong_use_and_unknown_names_have_their_exit_codes() {
    let home = tempfile::tempdir().unwrap();
    assert_eq!(output(home.path(), &["fly"]).status.code(), Some(2));
    let missing = output(home.path(), &["search", "x", "--corpus", "nowhere"]);
    assert_eq!(missing.status.code(), Some(1));
    let message = String::from_utf8(missing.stderr).unwrap();
    assert!(
        message.contains("nowhere") && message.contains("corpus list"),
        "{message}"
    );
    assert!(missing.stdout.is_empty());
}

#[test]
fn a_bad_file_is_reported_by_file_line_and_reason_and_leaves_nothing() {
    let home = tempfile::tempdir().unwrap();
    let file = home.path().join("passages.jsonl");
    std::fs::write(
        &file,
        "{\"id\":\"a\",\"title\":\"A\",\"text\":\"apple\"}\n{\"id\":\"b\",\"title\":\n",
    )
    .unwrap();
    let report = json(
        home.path(),
        &["corpus", "import", file.to_str().unwrap(), "--name", "fruit"],
    );
    assert_eq!(
        (report["kept"].as_u64(), report["rejected_count"].as_u64()),
        (Some(1), Some(1)),
        "{report}"
    );
    assert_eq!(report["rejected"][0]["line"], 2);

    std::fs::write(&file, "").unwrap();
    let empty = output(
        home.path(),
        &["corpus", "import", file.to_str().unwrap(), "--name", "nothing"],
    );
    assert_eq!(empty.status.code(), Some(1));
    assert_eq!(json(home.path(), &["corpus", "list"]).as_array().unwrap().len(), 1);
}

#[test]
fn questions_are_kept_by_split() {
    let home = tempfile::tempdir().unwrap();
    let file = home.path().join("questions.jsonl");
    let line = |id: &str, split: &str| {
        format!("{{\"id\":\"{id}\",\"question\":\"Q {id}?\",\"answer\":\"x\",\"split\":\"{split}\"}}\n")
    };
    std::fs::write(&file, line("1", "train") + &line("2", "dev") + &line("3", "train")).unwrap();
    let import = |name, split| {
        [
            "questions",
            "import",
            file.to_str().unwrap(),
            "--name",
            name,
            "--split",
            split,
        ]
    };
    let report = json(home.path(), &import("q", "train"));
    assert_eq!((report["read"].as_u64(), report["kept"].as_u64()), (Some(3), Some(2)));
    let failed = output(home.path(), &import("none", "test"));
    assert_eq!(failed.status.code(), Some(1));
    assert!(String::from_utf8(failed.stderr).unwrap().contains("dev, train"));
}

#[test]
fn retrieval_is_measured_with_the_fields_of_the_contract() {
    let home = tempfile::tempdir().unwrap();
    let bench = json(home.path(), &["bench", "retrieve"]);
    for field in [
        "documents",
        "index_documents_per_second",
        "query_p50_ms",
        "query_p99_ms",
        "queries_per_second",
    ] {
        assert!(bench[field].as_f64().unwrap() > 0.0, "{bench}");
    }
    assert!(bench["recall"]["10"].as_f64().unwrap() > 0.2, "{bench}");
    assert_eq!(std::fs::read_dir(home.path().join("indexes")).unwrap().count(), 0);
}

#[test]
fn episodes_are_timed_over_steps_that_a_script_says() {
    let Some(home) = home() else { return };
    let bench = json(home.path(), &["bench", "episode", "--episodes", "1"]);
    assert_eq!(
        (&bench["steps"], &bench["candidates"]),
        (&5.into(), &10.into()),
        "{bench}"
    );
    let tokens = |kind: &str| bench["tokens"][kind].as_u64().unwrap();
    assert!(tokens("generated") > 50, "ten candidates a step: {bench}");
    assert!(
        tokens("cached") > 0 && tokens("cached") < tokens("prompt"),
        "a step begins like the one before it: {bench}"
    );
    let per_minute = bench["episodes_per_minute"].as_f64().unwrap();
    assert!((per_minute * bench["took_ms"].as_f64().unwrap() / 60_000.0 - 1.0).abs() < 1e-6);
    let none = output(home.path(), &["bench", "episode", "--episodes", "0"]);
    assert_eq!(none.status.code(), Some(1));
}

#[test]
fn the_machine_and_what_to_expect_of_each_model_are_told() {
    let Some(home) = home() else { return };
    let shown = json(home.path(), &["models", "show", "smollm2-135m"]);
    assert_eq!(shown["kind"], "language");
    let estimate = &shown["estimate"];
    assert!(estimate["memory_bytes"].as_f64().unwrap() > 98_362_432.0, "{shown}");
    assert_eq!(estimate["fits"], true);
    let doctor = json(home.path(), &["doctor"]);
    let found = doctor["models"].as_array().unwrap();
    let found = found.iter().find(|model| model["name"] == "smollm2-135m").unwrap();
    assert_eq!(found["sha256"], shown["sha256"]);
    for speed in [
        "prefill_tokens_per_second",
        "decode_tokens_per_second",
        "candidates_tokens_per_second",
    ] {
        assert!(found["estimate"][speed].as_f64().unwrap() > 0.0, "{found}");
    }
    for peak in ["f32_gflops", "int16_gops", "read_gb_per_second"] {
        assert!(doctor["machine"][peak].as_f64().unwrap() > 0.0, "{doctor}");
    }
}

#[test]
fn set_up_repairs_a_damaged_model() {
    let Some(home) = home() else { return };
    let file = home.path().join("models/smollm2-135m.gguf");
    // The bundle's file is the same one, linked: it is replaced, not written to.
    std::fs::remove_file(&file).unwrap();
    std::fs::write(&file, b"GGUF, but not for long").unwrap();
    let ill = output(home.path(), &["doctor", "--json"]);
    assert_eq!(ill.status.code(), Some(1));
    let message = String::from_utf8(ill.stderr).unwrap();
    assert!(
        message.contains("model smollm2-135m") && message.contains("SHA-256"),
        "{message}"
    );
    json(home.path(), &["setup"]);
    assert_eq!(std::fs::metadata(&file).unwrap().len(), 98_362_432);
}

#[test]
fn scores_are_chosen_exported_and_compared() {
    let Some(home) = home() else { return };
    let run = |options: &str| {
        let options = format!("--limit 3 --max-tokens 12 {options}");
        json(home.path(), &dev_run(&options))["run"]
            .as_str()
            .unwrap()
            .to_owned()
    };
    let (one, two) = (run("--agent direct --seed 1"), run("--agent rag --seed 2"));
    let scores = json(home.path(), &["evaluate", &one, "--against", &two]);
    assert_eq!(
        (scores["n"].as_u64(), scores["against"]["n"].as_u64()),
        (Some(3), Some(3))
    );
    for metric in ["em", "f1", "evidence_recall"] {
        assert!(scores[metric]["low"].is_f64(), "{scores}");
        assert!(scores["against"]["delta"][metric]["p"].is_f64(), "{scores}");
    }
    assert!(scores["accuracy"].is_null());
    let only = json(home.path(), &["evaluate", &one, "--metric", "f1"]);
    assert!(only["f1"]["mean"].is_f64() && only["em"].is_null(), "{only}");
    let none = output(home.path(), &["evaluate", &one, "--metric", "accuracy"]);
    assert_eq!(none.status.code(), Some(1));
    assert_eq!(
        output(home.path(), &["evaluate", &one, "--metric", "bleu"])
            .status
            .code(),
        Some(2)
    );

    let curve = json(
        home.path(),
        &["runs", "curve", &format!("{one},{two}"), "--metric", "em"],
    );
    assert_eq!(
        (curve[1]["candidates"].as_u64(), curve[1]["n"].as_u64()),
        (Some(1), Some(3))
    );

    let export = |format: &str| {
        let folder = home.path().to_str().unwrap();
        json(home.path(), &["runs", "export", &two, "--to", folder, "--as", format])
    };
    let csv = export("csv");
    assert_eq!(csv["records"], 3);
    let text = std::fs::read_to_string(csv["path"].as_str().unwrap()).unwrap();
    assert!(
        text.starts_with("question_id,question,kind,status,answer,gold_answer,"),
        "{text}"
    );
    assert_eq!(text.matches("\r\n").count(), 4, "{text}");
    let parquet = std::fs::read(export("parquet")["path"].as_str().unwrap()).unwrap();
    assert!(parquet.starts_with(b"PAR1") && parquet.ends_with(b"PAR1"));
    let log = std::fs::read(export("inspect")["path"].as_str().unwrap()).unwrap();
    let log: Value = serde_json::from_slice(&log).unwrap();
    assert_eq!(log["samples"][2]["messages"][1]["tool_calls"][0]["function"], "search");
    let unknown = output(home.path(), &["runs", "export", &two, "--to", "x", "--as", "xlsx"]);
    assert_eq!(unknown.status.code(), Some(2));
}

#[cfg(unix)]
#[test]
fn ctrl_c_leaves_a_run_that_goes_on() {
    let Some(home) = home() else { return };
    let mut child = rag_gym(home.path(), &dev_run("--agent search-o1 --limit 40"))
        .stdout(Stdio::null())
        .stderr(Stdio::null())
        .spawn()
        .unwrap();
    // Until the run's row is there, at most.
    let began = Instant::now();
    while json(home.path(), &["runs", "list"])[0]["run"].is_null() && began.elapsed() < Duration::from_secs(60) {
        std::thread::sleep(Duration::from_millis(50));
    }
    std::thread::sleep(Duration::from_millis(500));
    // Two processes do not work on one run.
    let run = json(home.path(), &["runs", "list"])[0]["run"]
        .as_str()
        .unwrap()
        .to_owned();
    for refused in [["resume", &run].as_slice(), &["runs", "remove", &run]] {
        let second = output(home.path(), refused);
        assert_eq!(second.status.code(), Some(1), "{refused:?}");
        let message = String::from_utf8(second.stderr).unwrap();
        assert!(message.contains(&format!("process {}", child.id())), "{message}");
    }
    let kill = Command::new("kill")
        .args(["-INT", &child.id().to_string()])
        .status()
        .unwrap();
    assert!(kill.success());
    assert_eq!(child.wait().unwrap().code(), Some(130));
    let runs = json(home.path(), &["runs", "list"]);
    assert_eq!(runs[0]["status"], "stopped", "{runs}");
}

#[test]
fn a_killed_run_resumes_to_the_same_rows() {
    let Some(prepared) = home() else { return };
    survives(prepared.path(), "evidence", "--limit 2", 50);
}

/// Judges that ask the model: their shuffles, retries and continuations are drawn again as they were.
#[test]
fn a_killed_run_with_a_model_for_judge_resumes_to_the_same_rows() {
    let Some(prepared) = home() else { return };
    for judge in ["llm:smollm2-135m", "rollout:1"] {
        survives(prepared.path(), judge, "--limit 1 --max-tokens 24", 4);
    }
}

/// Kills at random moments, over as many runs as that takes; each run ends with the rows of a run that
/// nobody disturbed.
fn survives(prepared: &Path, judge: &str, options: &str, at_least: u32) {
    let common = "--agent search-o1 --candidates 2 --max-steps 2 --seed 5 --name kill";
    let options = format!("{common} --judge {judge} {options}");
    let start = dev_run(&options);
    let rows = |home: &Path, run: &str| {
        let dump = output(home, &["runs", "dump", run]);
        assert!(dump.status.success(), "{}", String::from_utf8_lossy(&dump.stderr));
        String::from_utf8(dump.stdout).unwrap().replace(run, "RUN")
    };
    let reference = copy_of(prepared);
    let began = Instant::now();
    let finished = json(reference.path(), &start);
    let whole = began.elapsed();
    let expected = rows(reference.path(), finished["run"].as_str().unwrap());
    assert!(expected.len() > 1000, "{expected}");

    let mut rng = gym_seed(42);
    let mut kills = 0;
    while kills < at_least {
        let home = copy_of(prepared);
        let run = loop {
            let runs = json(home.path(), &["runs", "list"]);
            let known = runs[0]["run"].as_str().map(str::to_owned);
            if runs[0]["status"] == "finished" {
                break known.unwrap();
            }
            let mut command = match &known {
                Some(run) => rag_gym(home.path(), &["resume", run]),
                None => rag_gym(home.path(), &start),
            };
            let mut child = command.stdout(Stdio::null()).stderr(Stdio::null()).spawn().unwrap();
            // Most moments fall into the first steps; some let the run get on.
            let share = 0.05 + 0.5 * rng();
            std::thread::sleep(Duration::from_secs_f64(whole.as_secs_f64() * share));
            if child.try_wait().unwrap().is_none() {
                child.kill().unwrap();
                kills += 1;
            }
            child.wait().unwrap();
        };
        assert_eq!(rows(home.path(), &run), expected, "{judge}");
    }
}

#[test]
fn a_second_judge_reads_a_stored_run_and_the_two_are_compared() {
    let Some(home) = home() else { return };
    let arguments = dev_run(
        "--agent react --limit 6 --candidates 3 --max-steps 2 --max-tokens 24 --select random --judge evidence --seed 3",
    );
    let run = json(home.path(), &arguments);
    assert_eq!(run["config"]["select"], "random");
    let run = run["run"].as_str().unwrap();
    let annotate = ["annotate", run, "--judge", "llm:smollm2-135m"];

    let first = json(home.path(), &annotate);
    assert_eq!(first["judged"], first["states"]);
    let again = json(home.path(), &annotate);
    assert_eq!(
        (&again["judged"], &again["states"]),
        (&Value::from(0), &first["states"])
    );

    let same = json(home.path(), &["agreement", run, "--judges", "evidence,evidence"]);
    assert_eq!(same["kendall_tau"]["value"], 1.0, "{same}");
    let two = json(
        home.path(),
        &["agreement", run, "--judges", "evidence,llm:smollm2-135m"],
    );
    for field in [
        "a",
        "b",
        "questions",
        "states",
        "abstained_b",
        "pair_accuracy",
        "kendall_tau",
        "cohen_kappa",
    ] {
        assert!(two.get(field).is_some(), "no `{field}` in {two}");
    }
    assert_eq!(two["states"], first["states"]);

    let export = "runs export RUN --to x.jsonl --as trl-preference --judge human";
    let export: Vec<&str> = export
        .split(' ')
        .map(|word| if word == "RUN" { run } else { word })
        .collect();
    let unjudged = output(home.path(), &export);
    assert!(
        String::from_utf8(unjudged.stderr)
            .unwrap()
            .contains("no verdicts by `human`")
    );
    let train = ["train", "sft", "--from", run, "--judge", "evidence", "--out", "x"];
    assert_eq!(output(home.path(), &train).status.code(), Some(1));

    let unknown = output(home.path(), &["annotate", run, "--judge", "oracle"]);
    assert_eq!(unknown.status.code(), Some(2));
    let language = output(
        home.path(),
        &[&arguments[..], &["--reward-model", "smollm2-135m"]].concat(),
    );
    assert_eq!(language.status.code(), Some(1));
    assert!(
        String::from_utf8(language.stderr)
            .unwrap()
            .contains("of kind `language`")
    );
}

/// From TRL's preference lines to a reward model that gives the rewards of a run.
#[test]
fn a_trained_reward_model_ranks_the_candidates() {
    let Some(home) = home() else { return };
    let file = home.path().join("pairs.jsonl");
    let pair = |place: &str| {
        format!(
            "{{\"prompt\":\"Who borders {place}?\",\"chosen\":\"Search: {place} borders\",\"rejected\":\"Answer: {place}\"}}\n"
        )
    };
    std::fs::write(&file, ["Chad", "Laos", "Peru", "Mali"].map(pair).concat()).unwrap();
    let data = file.to_str().unwrap();
    for (base, adapter_of) in [
        ("smollm2-135m", Value::from("smollm2-135m")),
        ("minilm-l6", Value::Null),
    ] {
        let name = format!("rm-{base}");
        let train = [
            "train", "prm", "--data", data, "--base", base, "--out", &name, "--rank", "4",
        ];
        let trained = output(home.path(), &[&train[..], &["--json"]].concat());
        assert!(trained.status.success(), "{}", String::from_utf8_lossy(&trained.stderr));
        let model = json(home.path(), &["models", "show", &name]);
        assert_eq!(
            (&model["kind"], &model["adapter_of"]),
            (&Value::from("reward"), &adapter_of)
        );
        assert!(model["file_bytes"].as_f64().unwrap() > 10_000.0, "{model}");

        let ask = "--corpus factbook --agent search-o1 --candidates 3 --max-steps 1 --max-tokens 16 --reward-model";
        let arguments: Vec<&str> = ["ask", QUESTION]
            .into_iter()
            .chain(ask.split(' '))
            .chain([&*name])
            .collect();
        let asked = json(home.path(), &arguments);
        let step = &asked["steps"][0];
        let reward = |candidate: &Value| candidate["reward"].as_f64().unwrap();
        let candidates = step["candidates"].as_array().unwrap();
        let chosen = reward(&candidates[step["chosen"].as_u64().unwrap() as usize]);
        // A malformed candidate is taken only where there is no other.
        let well_formed = candidates.iter().filter(|candidate| candidate["malformed"].is_null());
        assert!(well_formed.into_iter().all(|other| reward(other) <= chosen), "{step}");
    }
    assert_eq!(json(home.path(), &["models", "show", "minilm-l6"])["kind"], "encoder");
}

/// Gold evidence alone says what is better than what; what only says what is right teaches no comparison.
#[test]
fn gold_evidence_teaches_a_reward_model() {
    let Some(home) = home() else { return };
    let train = |method: &str, options: &str| {
        let arguments: Vec<&str> = ["train", method, "--out", method, "--expert", "factbook-train", "--json"]
            .into_iter()
            .chain(options.split_whitespace())
            .collect();
        output(home.path(), &arguments)
    };
    for options in ["--readings 5", "--clozes 1"] {
        for method in ["dpo", "prm"] {
            let refused = train(method, options);
            assert_eq!(refused.status.code(), Some(1), "{method} {options}");
            assert!(
                String::from_utf8_lossy(&refused.stderr).contains("sft only"),
                "{refused:?}"
            );
        }
    }
    let trained = train("prm", "--limit 6 --rank 4");
    assert!(trained.status.success(), "{}", String::from_utf8_lossy(&trained.stderr));
    let documents = serde_json::Deserializer::from_slice(&trained.stdout).into_iter::<Value>();
    let report = documents.last().unwrap().unwrap();
    // Each question has at least one search and an answer, each with something worse beside it.
    let examples = report["examples"].as_u64().unwrap() + report["held_out"].as_u64().unwrap();
    assert!(examples >= 12, "{report}");
    assert_eq!(json(home.path(), &["models", "show", "prm"])["kind"], "reward");
}

/// Uniform draws in [0, 1) from a fixed seed (a linear congruential generator is random enough here).
fn gym_seed(mut state: u64) -> impl FnMut() -> f64 {
    move || {
        state = state
            .wrapping_mul(6_364_136_223_846_793_005)
            .wrapping_add(1_442_695_040_888_963_407);
        (state >> 11) as f64 / (1u64 << 53) as f64
    }
}
