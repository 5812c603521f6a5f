//! Other engines and this program on the same work, in one sitting, alternating.

use std::collections::BTreeMap;
use std::fmt::Write;
use std::fs;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

use anyhow::{Context, Result, bail};
use serde_json::Value;

use crate::document::replace;
use crate::model;
use crate::step::{self, cargo, root, step};

const ROUNDS: usize = 3;
const WINDOW: &str = "512";

/// An environment of Python packages. OpenVINO's keep to themselves: they disagree with the others' versions.
struct Environment {
    name: &'static str,
    packages: &'static [&'static str],
}

const TORCH: Environment = Environment {
    name: "torch",
    packages: &["xllamacpp", "torch", "transformers", "accelerate", "gguf", "numpy"],
};
const OPENVINO: Environment = Environment {
    name: "openvino",
    packages: &["openvino-genai", "numpy"],
};

/// Engines beside ours, each as its best settings have it.
const PEERS: [(&str, &Environment); 5] = [
    ("openvino", &OPENVINO),
    ("openvino-f32", &OPENVINO),
    ("llama.cpp", &TORCH),
    ("transformers-f32", &TORCH),
    ("transformers-bf16", &TORCH),
];

const OURS: &str = "rag-gym";

/// One figure of the table: its name, its place in an engine's document, and what it is good for.
const ROWS: [(&str, &str); 6] = [
    ("prefill of 512 tokens, tokens/s", "/prefill/0/tokens_per_second"),
    ("prefill of 1024 tokens, tokens/s", "/prefill/1/tokens_per_second"),
    (
        "decoding one sequence after 256 tokens, tokens/s",
        "/decode_tokens_per_second",
    ),
    (
        "10 candidates x 64 tokens after 256, tokens/s",
        "/candidates/0/tokens_per_second",
    ),
    (
        "10 candidates x 64 tokens after 1024, tokens/s",
        "/candidates/1/tokens_per_second",
    ),
    ("peak memory, MB", "/peak_memory_bytes"),
];

/// Without arguments, everything; else `rag-gym bench` with these.
pub fn run(arguments: &[String]) -> Result<()> {
    step("the optimised command line", || {
        step::run(&mut cargo(["build", "--release", "--package", "cli"]))
    })?;
    if !arguments.is_empty() {
        return step("rag-gym bench", || step::run(rag_gym().arg("bench").args(arguments)));
    }
    step("the built-in model", model::ensure)?;
    step("other engines", || {
        [&TORCH, &OPENVINO].into_iter().try_for_each(Environment::ensure)
    })?;
    // Rounds are kept as they end, so that a bench that was stopped goes on where it was.
    let kept = root().join("target/peers/rounds.json");
    let mut rounds: Vec<BTreeMap<String, Value>> = fs::read(&kept)
        .ok()
        .and_then(|text| serde_json::from_slice(&text).ok())
        .unwrap_or_default();
    while rounds.len() < ROUNDS {
        step(&format!("round {} of {ROUNDS}", rounds.len() + 1), || {
            rounds.push(round()?);
            let text = serde_json::to_string(&rounds)?;
            fs::write(&kept, text).with_context(|| format!("cannot write {}", kept.display()))
        })?;
    }
    let mut accuracy = Value::Null;
    step("accuracy", || {
        accuracy = compare_accuracy()?;
        Ok(())
    })?;
    write_table(&rounds, &accuracy)?;
    fs::remove_file(&kept).with_context(|| format!("cannot remove {}", kept.display()))
}

/// Every engine once.
fn round() -> Result<BTreeMap<String, Value>> {
    let mut own = rag_gym();
    let ours = json(own.args(["bench", "generate", "--json", "--model"]).arg(model::file()))?;
    let threads = ours["machine"]["threads"].to_string();
    let mut found = BTreeMap::from([(OURS.to_owned(), ours)]);
    for (name, environment) in PEERS {
        let mut command = Command::new(environment.python());
        command
            .arg(root().join("xtask/peers/generate.py"))
            .arg(name)
            .arg("--model")
            .arg(model::file());
        // An engine that this machine cannot run leaves its column empty.
        match json(command.args(["--threads", &threads])) {
            Ok(figures) => drop(found.insert(name.to_owned(), figures)),
            Err(error) => println!("    {name}: {error:#}"),
        }
    }
    Ok(found)
}

impl Environment {
    fn folder(&self) -> PathBuf {
        root().join("target/peers").join(self.name)
    }

    fn python(&self) -> PathBuf {
        self.folder().join(if cfg!(windows) {
            "Scripts/python.exe"
        } else {
            "bin/python"
        })
    }

    fn ensure(&self) -> Result<()> {
        let done = self.folder().join("installed");
        let wanted = self.packages.join("\n");
        if fs::read_to_string(&done).is_ok_and(|found| found == wanted) {
            println!("    {}: nothing to do", self.name);
            return Ok(());
        }
        step::run(model::python().args(["-m", "venv"]).arg(self.folder()))?;
        let mut pip = Command::new(self.python());
        step::run(pip.args(["-m", "pip", "install", "--quiet"]).args(self.packages))?;
        fs::write(&done, wanted).with_context(|| format!("cannot write {}", done.display()))
    }
}

/// The command line as built with a profile: `release` or `debug`.
pub fn program(profile: &str) -> Command {
    let path = root().join("target").join(profile).join("rag-gym");
    Command::new(path.with_extension(std::env::consts::EXE_EXTENSION))
}

fn rag_gym() -> Command {
    let mut command = program("release");
    command.arg("--home").arg(root().join("target/bench-home"));
    command
}

/// The last line that a command prints, as JSON.
fn json(command: &mut Command) -> Result<Value> {
    let output = command
        .stderr(Stdio::null())
        .output()
        .with_context(|| format!("cannot start {command:?}"))?;
    if !output.status.success() {
        bail!("{command:?} ended with {}", output.status);
    }
    let text = String::from_utf8_lossy(&output.stdout);
    let line = text.lines().last().unwrap_or_default();
    serde_json::from_str(line).with_context(|| format!("{command:?} printed no JSON: {line}"))
}

/// Log-probabilities of the program's own English documents: at least 5,000 tokens that nobody chose for this.
fn compare_accuracy() -> Result<Value> {
    let folder = root().join("target/bench-home");
    let mut text = String::new();
    for file in [
        "README.md",
        "ARCHITECTURE.md",
        "docs/guide.md",
        "docs/sources.md",
        "LICENSE-APACHE",
    ] {
        text += &fs::read_to_string(root().join(file)).unwrap_or_default();
    }
    let (words, ours) = (folder.join("words.txt"), folder.join("logprobs.json"));
    let kept: String = text.chars().take(24_000).collect();
    fs::write(&words, kept).with_context(|| format!("cannot write {}", words.display()))?;
    let logprobs = json(
        rag_gym()
            .args(["bench", "logprobs", "--json", "--window", WINDOW, "--model"])
            .arg(model::file())
            .arg(&words),
    )?;
    fs::write(&ours, logprobs.to_string()).with_context(|| format!("cannot write {}", ours.display()))?;
    let mut command = Command::new(TORCH.python());
    command
        .arg(root().join("xtask/peers/logprobs.py"))
        .arg(&ours)
        .arg("--model")
        .arg(model::file());
    json(command.args(["--window", WINDOW]))
}

fn median(rounds: &[BTreeMap<String, Value>], engine: &str, place: &str) -> Option<f64> {
    let mut figures: Vec<f64> = rounds
        .iter()
        .filter_map(|round| round.get(engine)?.pointer(place)?.as_f64())
        .collect();
    figures.sort_by(f64::total_cmp);
    figures.get(figures.len() / 2).copied()
}

/// Replaces what lies between the two markers of docs/benchmarks.md.
fn write_table(rounds: &[BTreeMap<String, Value>], accuracy: &Value) -> Result<()> {
    replace(&root().join("docs/benchmarks.md"), "generate", &table(rounds, accuracy))?;
    println!("    figures are in {}", Path::new("docs/benchmarks.md").display());
    Ok(())
}

fn table(rounds: &[BTreeMap<String, Value>], accuracy: &Value) -> String {
    let machine = &rounds[0][OURS]["machine"];
    let number = |key: &str| machine[key].as_f64().unwrap_or(f64::NAN);
    let mut out = String::new();
    let _ = writeln!(
        out,
        "Machine: {}, {} threads, `{}` instructions; measured peaks {:.0} GFLOP/s f32, {:.0} GOP/s int16, {:.0} GB/s read.\n\
         Model: SmolLM2-135M-Instruct, Q4_1. Medians of {ROUNDS} alternating rounds.\n",
        machine["processor"].as_str().unwrap_or("?"),
        machine["threads"],
        machine["instructions"].as_str().unwrap_or("?"),
        number("f32_gflops"),
        number("int16_gops"),
        number("read_gb_per_second"),
    );
    let engines: Vec<&str> = PEERS.iter().map(|(name, _)| *name).collect();
    let _ = writeln!(
        out,
        "| work | {OURS} | {} | ours / best | floor reached |",
        engines.join(" | ")
    );
    let _ = writeln!(out, "|---|{}", "---|".repeat(engines.len() + 3));
    for (row, (name, place)) in ROWS.iter().enumerate() {
        let memory = *place == "/peak_memory_bytes";
        let show = |figure: Option<f64>| match figure {
            None => "-".to_owned(),
            Some(bytes) if memory => format!("{:.0}", bytes / 1e6),
            Some(figure) => format!("{figure:.0}"),
        };
        let own = median(rounds, OURS, place);
        let theirs: Vec<Option<f64>> = engines.iter().map(|name| median(rounds, name, place)).collect();
        let best = theirs
            .iter()
            .flatten()
            .copied()
            .reduce(if memory { f64::min } else { f64::max });
        let ratio = own
            .zip(best)
            .map_or("-".into(), |(own, best)| format!("{:.2}", own / best));
        let reached = own
            .zip(floor(row, &number))
            .map_or("-".into(), |(own, floor)| format!("{:.0} %", own / floor * 100.0));
        let theirs: Vec<String> = theirs.into_iter().map(show).collect();
        let _ = writeln!(
            out,
            "| {name} | {} | {} | {ratio} | {reached} |",
            show(own),
            theirs.join(" | ")
        );
    }
    let of = |key: &str| accuracy[key].as_f64().unwrap_or(f64::NAN);
    let _ = writeln!(
        out,
        "\nAccuracy: over {:.0} tokens of the program's documents, the log-probability of the true next token differs from \
         f32 arithmetic on the dequantised weights by {:.4} nats in the mean ({:.4} on the first {:.0} tokens, where \
         llama.cpp differs by {:.4}). The mean log-probability is {:.4}, in f32 {:.4}.",
        of("tokens"),
        of("mean_difference"),
        of("mean_difference_on_the_same"),
        of("llama_cpp_tokens"),
        of("llama_cpp_mean_difference"),
        of("mean_logprob"),
        of("mean_logprob_f32"),
    );
    out
}

/// Tokens a second that the machine's peaks would allow: 16-bit integers for the matrices, f32 for the attention,
/// and, for each decoding step, no faster than the weights can be read.
fn floor(row: usize, number: &dyn Fn(&str) -> f64) -> Option<f64> {
    let (integers, f32, read) = (
        number("int16_gops") * 1e9,
        number("f32_gflops") * 1e9,
        number("read_gb_per_second") * 1e9,
    );
    let (layers, output) = (
        number("layer_operations_per_token"),
        number("output_operations_per_token"),
    );
    let pair = number("attention_operations_per_pair");
    let prefill = |n: f64| n * layers / integers + n * n / 2.0 * pair / f32;
    let step = |sequences: f64, context: f64| {
        let reading = number("bytes_per_step") / read;
        reading.max(sequences * (layers + output) / integers) + sequences * context * pair / f32
    };
    // Candidates: the first token comes with the prompt, 63 steps follow.
    let candidates = |n: f64| 640.0 / (prefill(n) + 63.0 * step(10.0, n + 32.0));
    match row {
        0 => Some(512.0 / prefill(512.0)),
        1 => Some(1024.0 / prefill(1024.0)),
        2 => Some(1.0 / step(1.0, 288.0)),
        3 => Some(candidates(256.0)),
        4 => Some(candidates(1024.0)),
        _ => None,
    }
}
