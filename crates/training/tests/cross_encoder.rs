//! Reward models over an encoder: against candle-transformers and transformers, slopes, resume.
//!
//! all-MiniLM-L6-v2 where it is present: in `RAG_GYM_BUNDLE`, or in `target/models`.

#![expect(clippy::unwrap_used, reason = "a test that cannot go on fails")]

use std::ops::Range;
use std::path::{Path, PathBuf};
use std::time::Instant;

use candle_core::{DType, Device, Tensor};
use candle_nn::VarBuilder;
use candle_transformers::models::bert::{BertModel, Config as TheirConfig};
use gym::{Cancel, Message, Prompt, Role, Seed};
use serde_json::{Value, json};
use training::TrainingError;
use training::bert::Bert;
use training::cross_encoder::{CrossEncoder, Scorer, measure, rewards};
use training::forest::Forest;
use training::lesson::{Completion, Lesson};
use training::objective::{Example, Objective};
use training::train::{StepReport, Trained, TrainingConfig};

const WORDS: [&str; 16] = [
    "[PAD]", "[UNK]", "[CLS]", "[SEP]", "question", "search", "found", "answer", ":", "?", "who", "ada", "bob", "x",
    "##x", "old",
];

/// A folder with a random encoder that has no head, and its tokenizer.
fn tiny(dir: &Path, seed: u64) {
    let from = PathBuf::from(env!("CARGO_MANIFEST_DIR")).join("tests/encoder");
    let config = std::fs::read(from.join("config.json")).unwrap();
    let mut bert = Bert::zeros(serde_json::from_slice(&config).unwrap()).unwrap();
    let mut rng = Seed(seed).rng();
    bert.values.iter_mut().for_each(|x| *x = rng.next_f64() as f32 - 0.5);
    bert.save(dir).unwrap();
    std::fs::copy(from.join("tokenizer.json"), dir.join("tokenizer.json")).unwrap();
}

fn real() -> Option<PathBuf> {
    let models = std::env::var_os("RAG_GYM_BUNDLE")
        .map(PathBuf::from)
        .unwrap_or_else(|| PathBuf::from(env!("CARGO_MANIFEST_DIR")).join("../../target/models"));
    let dir = models.join("minilm-l6");
    if dir.exists() {
        return Some(dir);
    }
    eprintln!("skipped: no encoder at {}", dir.display());
    None
}

fn lesson(state: &str, actions: &[&str]) -> Lesson {
    let message = |role, content: &str| Message {
        role,
        content: content.into(),
    };
    Lesson {
        question: "q".into(),
        prompt: Prompt {
            messages: vec![message(Role::System, "not shown to it"), message(Role::User, state)],
        },
        completions: actions
            .iter()
            .map(|&text| Completion {
                text: text.into(),
                ..Completion::default()
            })
            .collect(),
        pairs: Vec::new(),
    }
}

fn tokens(n: usize, seed: u64) -> Vec<u32> {
    let mut rng = Seed(seed).rng();
    (0..n).map(|_| rng.below(WORDS.len()) as u32).collect()
}

fn examples() -> Vec<Example> {
    let example = |seed: u64, prompt, completions: &[usize]| Example {
        question: format!("q{seed}"),
        prompt: tokens(prompt, seed),
        completions: completions
            .iter()
            .zip(1..)
            .map(|(&n, i)| tokens(n, seed * 10 + i))
            .collect(),
        pairs: vec![(0, 1), (0, 2), (2, 1)],
    };
    vec![
        example(1, 11, &[4, 7, 1]),
        example(2, 60, &[3, 2, 5]),
        example(3, 1, &[1, 2, 3]),
    ]
}

fn close(ours: &[f32], theirs: &[f32], tolerance: f32) {
    assert!(!theirs.is_empty() && ours.len() >= theirs.len());
    for (a, b) in ours.iter().zip(theirs) {
        assert!((a - b).abs() < tolerance, "{ours:?}\n{theirs:?}");
    }
}

/// Means of the last hidden states: of a text, or of the actions behind it if there are any.
fn means(encoder: &CrossEncoder, text: &str, actions: &[&str]) -> Vec<Vec<f32>> {
    let mut forest = Forest {
        both_ways: true,
        ..Forest::default()
    };
    let example = encoder.example(&lesson(text, actions), 256).unwrap();
    let mut wanted = forest.push_family(&example.prompt, &example.completions);
    if wanted.is_empty() {
        wanted.push(0..example.prompt.len());
    }
    let hidden = encoder.bert.config.hidden_size;
    let (last, _) = encoder.bert.forward(&encoder.bert.packed(), &forest, false);
    let mean = |rows: Range<usize>| {
        let n = rows.len() as f32;
        let rows = last[rows.start * hidden..rows.end * hidden].chunks_exact(hidden);
        rows.fold(vec![0.0; hidden], |sum, row| {
            sum.iter().zip(row).map(|(sum, x)| sum + x / n).collect()
        })
    };
    wanted.into_iter().map(mean).collect()
}

/// Mean of the last hidden states as candle-transformers computes them.
fn theirs(dir: &Path, tokens: &[u32]) -> Vec<f32> {
    let config: Value = serde_json::from_slice(&std::fs::read(dir.join("config.json")).unwrap()).unwrap();
    let mut config = config.as_object().unwrap().clone();
    for (key, value) in [
        ("hidden_dropout_prob", json!(0.0)),
        ("initializer_range", json!(0.02)),
        ("pad_token_id", json!(0)),
    ] {
        config.entry(key).or_insert(value);
    }
    let config: TheirConfig = serde_json::from_value(Value::Object(config)).unwrap();
    let file = std::fs::read(dir.join("model.safetensors")).unwrap();
    let weights = VarBuilder::from_buffered_safetensors(file, DType::F32, &Device::Cpu).unwrap();
    let model = BertModel::load(weights, &config).unwrap();
    let tokens = Tensor::new(tokens, &Device::Cpu).unwrap().unsqueeze(0).unwrap();
    let last = model.forward(&tokens, &tokens.zeros_like().unwrap(), None).unwrap();
    last.squeeze(0).unwrap().mean(0).unwrap().to_vec1().unwrap()
}

#[test]
fn hidden_states_are_those_of_candle_transformers() {
    let dir = tempfile::tempdir().unwrap();
    tiny(dir.path(), 4);
    let text = "Question: who? xx ada";
    let ours = &means(&CrossEncoder::open(dir.path()).unwrap(), text, &[])[0];
    // [CLS] question : who ? x ##x ada [SEP]: neither truncated nor padded.
    close(ours, &theirs(dir.path(), &[2, 4, 8, 10, 9, 13, 14, 11, 3]), 2e-5);
    let Some(dir) = real() else { return };
    let ours = &means(&CrossEncoder::open(&dir).unwrap(), "hello world", &[])[0];
    let theirs = theirs(&dir, &[101, 7592, 2088, 102]);
    close(ours, &theirs, 2e-5);
}

#[test]
fn numbers_are_those_of_transformers() {
    let Some(dir) = real() else { return };
    let numbers: Value = serde_json::from_str(include_str!("encoder/numbers.json")).unwrap();
    let list = |value: &Value| -> Vec<f32> { serde_json::from_value(value.clone()).unwrap() };
    let encoder = CrossEncoder::open(&dir).unwrap();
    let texts = |key: &str| -> Vec<&str> {
        numbers[key]
            .as_array()
            .unwrap()
            .iter()
            .map(|t| t.as_str().unwrap())
            .collect()
    };
    for (text, right) in texts("sentences").iter().zip(numbers["embeddings"].as_array().unwrap()) {
        close(&means(&encoder, text, &[])[0], &list(right), 2e-5);
    }
    let pairs = means(&encoder, numbers["state"].as_str().unwrap(), &texts("actions"));
    assert_eq!(pairs.len(), 3);
    for (ours, right) in pairs.iter().zip(numbers["pairs"].as_array().unwrap()) {
        close(ours, &list(right), 2e-5);
    }
}

/// A tiny encoder with a head that no training has made.
fn scored(seed: u64) -> Bert {
    let dir = tempfile::tempdir().unwrap();
    tiny(dir.path(), seed);
    let mut bert = CrossEncoder::open(dir.path()).unwrap().bert;
    bert.scored = true;
    let head = bert.values.len() - bert.config.hidden_size;
    let mut rng = Seed(seed + 1).rng();
    bert.values[head..]
        .iter_mut()
        .for_each(|x| *x = rng.next_f64() as f32 - 0.5);
    bert
}

#[test]
fn gradients_are_slopes() {
    let bert = scored(1);
    let examples = examples();
    let examples: Vec<&Example> = examples.iter().collect();
    let loss = |bert: &Bert| measure(bert, &bert.packed(), 0.3, &examples, None).loss;
    let mut gradient = vec![0.0; bert.values.len()];
    let whole = measure(&bert, &bert.packed(), 0.3, &examples, Some((&mut gradient, 1.0)));
    assert_eq!((whole.loss, whole.n), (loss(&bert), 9));
    for (name, range) in bert.tensors() {
        let norm = gradient[range.clone()].iter().map(|g| g * g).sum::<f32>().sqrt();
        // Adding a number to all scores of a row changes nothing.
        let idle = name.ends_with("key.bias");
        assert_eq!(norm < 1e-4, idle, "`{name}` receives a gradient of {norm}");
        let mut rng = Seed(3).derive_str(name).rng();
        let random: Vec<f32> = range.clone().map(|_| rng.next_f64() as f32 - 0.5).collect();
        for direction in [gradient[range.clone()].to_vec(), random] {
            let length = direction.iter().map(|d| d * d).sum::<f32>().sqrt();
            let at = |step: f32| {
                let mut moved = bert.clone();
                for (x, d) in moved.values[range.clone()].iter_mut().zip(&direction) {
                    *x += step * d / length.max(1e-9);
                }
                loss(&moved)
            };
            let step = 4e-3;
            let slope = (at(step) - at(-step)) / (2.0 * f64::from(step));
            let dot: f32 = gradient[range.clone()].iter().zip(&direction).map(|(g, d)| g * d).sum();
            let ours = f64::from(dot / length.max(1e-9));
            let tolerance = 0.01 * f64::from(norm) + 2e-3;
            assert!((slope - ours).abs() < tolerance, "{name}: {ours}, slope {slope}");
        }
    }
}

#[test]
fn an_action_is_scored_alike_in_any_company() {
    let bert = scored(2);
    let weights = bert.packed();
    let examples = examples();
    for example in &examples {
        let together = rewards(&bert, &weights, example);
        for (idx, reward) in together.iter().enumerate() {
            let alone = Example {
                completions: vec![example.completions[idx].clone()],
                ..example.clone()
            };
            assert_eq!(rewards(&bert, &weights, &alone), [*reward]);
        }
    }
    let losses = examples
        .iter()
        .map(|example| measure(&bert, &weights, 0.01, &[example], None).loss);
    let all: Vec<&Example> = examples.iter().collect();
    assert!((measure(&bert, &weights, 0.01, &all, None).loss - losses.sum::<f64>()).abs() < 1e-9);
}

#[test]
fn the_oldest_history_is_cut_and_the_question_never() {
    let dir = tempfile::tempdir().unwrap();
    tiny(dir.path(), 3);
    let encoder = CrossEncoder::open(dir.path()).unwrap();
    let state = "Question: who ada?\nSearch: old\nFound: bob\nSearch: x\nFound: ada";
    let at = |most, action: &str| {
        let example = encoder.example(&lesson(state, &[action]), most).unwrap();
        let words = |tokens: &[u32]| tokens.iter().map(|&t| WORDS[t as usize]).collect::<Vec<_>>().join(" ");
        (words(&example.prompt), words(&example.completions[0]))
    };
    let action = "answer : ada [SEP]";
    let whole = "[CLS] question : who ada ? search : old found : bob search : x found : ada [SEP]";
    assert_eq!(at(64, "Answer: ada"), (whole.into(), action.into()));
    let cut = "[CLS] question : who ada ? : bob search : x found : ada [SEP]";
    assert_eq!(at(15 + 4, "Answer: ada"), (cut.into(), action.into()));
    // A long action loses its beginning, and never more than its half of the room.
    let long = format!("{} Answer: bob", "x ".repeat(30));
    let (kept, end) = at(20, &long);
    assert!(
        kept.starts_with("[CLS] question : who ada ? ") && kept.ends_with("ada [SEP]"),
        "{kept}"
    );
    assert_eq!(end, "x x x x x x answer : bob [SEP]");
}

const PRM: Objective = Objective::Prm { centre: 0.01 };

fn config() -> TrainingConfig {
    TrainingConfig {
        learning_rate: 1e-2,
        warm_up: 0.0,
        epochs: 20,
        batch: 2,
        pack_tokens: 64,
        checkpoint_every: 4,
        eval_every: 5,
        ..TrainingConfig::new(PRM, None)
    }
}

fn run(
    dir: &Path,
    checkpoint: &Path,
    stop_after: Option<u64>,
) -> (Result<Trained<CrossEncoder>, TrainingError>, Vec<StepReport>) {
    let cancel = Cancel::default();
    let mut reports = Vec::new();
    let trained = CrossEncoder::open(dir).unwrap().train(
        &config(),
        &examples(),
        &examples(),
        checkpoint,
        &cancel,
        &mut |report| {
            reports.push(report.clone());
            if Some(report.step) == stop_after {
                cancel.cancel();
            }
        },
    );
    (trained, reports)
}

#[test]
fn it_learns_and_stopping_anywhere_gives_the_same_bytes() {
    let dir = tempfile::tempdir().unwrap();
    let path = |name: &str| dir.path().join(name);
    let base = path("base");
    std::fs::create_dir(&base).unwrap();
    tiny(&base, 5);
    let (whole, reports) = run(&base, &path("whole"), None);
    let whole = whole.unwrap();
    let (first, last) = (reports[0].measure, whole.evaluation.unwrap());
    assert_eq!((whole.steps, reports.len()), (40, 40));
    assert!(
        last.loss < 0.5 * first.loss && last.accuracy == Some(1.0),
        "{first:?} {last:?}"
    );
    for stop in [1, 6, 17] {
        let checkpoint = path(&format!("stopped {stop}"));
        let (stopped, _) = run(&base, &checkpoint, Some(stop));
        assert!(matches!(stopped, Err(TrainingError::Cancelled)));
        let (resumed, later) = run(&base, &checkpoint, None);
        assert_eq!(resumed.unwrap().model.bert.values, whole.model.bert.values);
        assert_eq!(later[..], reports[stop as usize..]);
    }
    // What is saved scores as what was trained, and goes on being trained from its head.
    let saved = path("saved");
    std::fs::create_dir(&saved).unwrap();
    whole.model.save(&saved).unwrap();
    let scorer = Scorer::open(&saved).unwrap();
    let state = lesson("Question: who?", &["Answer: ada", "Search: bob"]);
    let example = whole.model.example(&state, 256).unwrap();
    let right = rewards(&whole.model.bert, &whole.model.bert.packed(), &example);
    assert_eq!(scorer.score(&state).unwrap(), right);
    assert!(right[0] != right[1] && Scorer::open(&base).is_err());
    let (again, later) = run(&saved, &path("again"), None);
    assert!(later[0].measure.loss < 0.7 * first.loss && again.is_ok());
}

#[test]
fn ten_candidates_of_a_state_are_scored_in_time() {
    let Some(dir) = real() else { return };
    let mut encoder = CrossEncoder::open(&dir).unwrap();
    encoder.bert.scored = true;
    let saved = tempfile::tempdir().unwrap();
    encoder.save(saved.path()).unwrap();
    let scorer = Scorer::open(saved.path()).unwrap();
    let state = "Question: Which of the two countries has the higher highest point, the country whose currency is the \
                 tolar's successor, or the country whose national anthem is \"Land der Berge, Land am Strome\"?\n\
                 Search: country whose national anthem is Land der Berge, Land am Strome\nFound: Austria\n\
                 Search: highest point of Austria\nFound: Grossglockner 3,798 m\n\
                 Search: country whose currency was the tolar\nFound: Slovenia";
    let actions: Vec<String> = (0..10)
        .map(|i| format!("Search: highest point of Slovenia, number {i}"))
        .collect();
    let actions: Vec<&str> = actions.iter().map(String::as_str).collect();
    let lesson = lesson(state, &actions);
    let example = encoder.example(&lesson, 256).unwrap();
    let mut seconds: Vec<f64> = (0..21)
        .map(|_| {
            let started = Instant::now();
            assert_eq!(scorer.score(&lesson).unwrap().len(), 10);
            started.elapsed().as_secs_f64()
        })
        .collect();
    seconds.sort_by(f64::total_cmp);
    let rows: usize = example.completions.iter().map(Vec::len).sum();
    eprintln!(
        "10 candidates, {rows} tokens, behind a state of {}: median {:.1} ms, fastest {:.1} ms",
        example.prompt.len(),
        1e3 * seconds[10],
        1e3 * seconds[0]
    );
}
