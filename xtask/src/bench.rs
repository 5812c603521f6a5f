//! Other engines and this program on the same work, in one sitting, alternating.

use std::collections::BTreeMap;
use std::fs;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

use anyhow::{Context, Result, bail};
use serde_json::Value;

use crate::bench_table::table;
use crate::document::{ensure_place, replace};
use crate::step::{self, cargo, root, step};
use crate::{bench_episodes, bench_training, model};

pub const ROUNDS: usize = 3;
const WINDOW: &str = "512";

/// An environment of Python packages. OpenVINO's keep to themselves: they disagree with the others' versions.
pub struct Environment {
    name: &'static str,
    packages: &'static [&'static str],
}

pub const TORCH: Environment = Environment {
    name: "torch",
    packages: &[
        "xllamacpp",
        "torch",
        "transformers",
        "accelerate",
        "peft",
        "gguf",
        "numpy",
    ],
};
const OPENVINO: Environment = Environment {
    name: "openvino",
    packages: &["openvino-genai", "numpy"],
};

/// Engines beside ours, each as its best settings have it.
pub const PEERS: [(&str, &Environment); 5] = [
    ("openvino", &OPENVINO),
    ("openvino-f32", &OPENVINO),
    (LLAMA_CPP, &TORCH),
    ("transformers-f32", &TORCH),
    ("transformers-bf16", &TORCH),
];

pub const OURS: &str = "rag-gym";
/// The one of them that has a server for whole episodes.
pub const LLAMA_CPP: &str = "llama.cpp";
/// Whole episodes' place in an engine's document.
pub const EPISODES: &str = "episodes";

/// Training's place among a round's engines, and in the document.
pub const TRAINING: &str = "train";

/// A model that is timed, and where its figures go.
pub struct Subject {
    file: PathBuf,
    pub name: String,
    /// Of the document's place for its table.
    marker: String,
    /// As many whole episodes as the slowest engine plays in some minutes.
    episodes: &'static str,
    /// Whether training is timed too: the peer trains a model of the built-in one's shape.
    trains: bool,
}

impl Subject {
    fn built_in() -> Subject {
        Subject {
            file: model::file(),
            name: "SmolLM2-135M-Instruct, Q4_1".into(),
            marker: "generate".into(),
            episodes: "4",
            trains: true,
        }
    }

    fn at(file: &str) -> Result<Subject> {
        let file = fs::canonicalize(file).with_context(|| format!("cannot find {file}"))?;
        let name = file.file_stem().unwrap_or_default().to_string_lossy().into_owned();
        Ok(Subject {
            marker: format!("generate {name}"),
            name,
            file,
            episodes: "1",
            trains: false,
        })
    }
}

/// Everything, of the built-in model or of `--model FILE`; other arguments are `rag-gym bench`'s.
pub fn run(arguments: &[String]) -> Result<()> {
    let subject = match arguments {
        [] => Some(Subject::built_in()),
        [option, file] if option == "--model" => Some(Subject::at(file)?),
        _ => None,
    };
    step("the optimised command line", || {
        step::run(&mut cargo(["build", "--release", "--package", "cli"]))
    })?;
    match subject {
        Some(subject) => compare(&subject),
        None => step("rag-gym bench", || step::run(rag_gym().arg("bench").args(arguments))),
    }
}

fn compare(subject: &Subject) -> Result<()> {
    let document = root().join("docs/benchmarks.md");
    ensure_place(&document, &subject.marker)?;
    if subject.trains {
        ensure_place(&document, TRAINING)?;
    }
    step("the built-in models", model::ensure)?;
    step("the built-in world", || {
        step::run(rag_gym().arg("setup").env("RAG_GYM_BUNDLE", model::folder()))
    })?;
    step("other engines", || {
        [&TORCH, &OPENVINO].into_iter().try_for_each(Environment::ensure)
    })?;
    // Rounds are kept as they end, so that a bench that was stopped goes on where it was.
    let kept = root().join(format!("target/peers/rounds-{}.json", subject.marker));
    let mut rounds: Vec<BTreeMap<String, Value>> = fs::read(&kept)
        .ok()
        .and_then(|text| serde_json::from_slice(&text).ok())
        .unwrap_or_default();
    while rounds.len() < ROUNDS {
        step(&format!("round {} of {ROUNDS}", rounds.len() + 1), || {
            rounds.push(round(subject)?);
            let text = serde_json::to_string(&rounds)?;
            fs::write(&kept, text).with_context(|| format!("cannot write {}", kept.display()))
        })?;
    }
    let mut accuracy = Value::Null;
    step("accuracy", || {
        accuracy = compare_accuracy(&subject.file)?;
        Ok(())
    })?;
    replace(&document, &subject.marker, &table(subject, &rounds, &accuracy))?;
    if subject.trains {
        replace(&document, TRAINING, &bench_training::table(&rounds))?;
    }
    println!("    figures are in docs/benchmarks.md");
    fs::remove_file(&kept).with_context(|| format!("cannot remove {}", kept.display()))
}

/// Every engine once.
fn round(subject: &Subject) -> Result<BTreeMap<String, Value>> {
    let file = &subject.file;
    let mut own = rag_gym();
    let mut ours = json(own.args(["bench", "generate", "--json", "--model"]).arg(file))?;
    ours[EPISODES] = bench_episodes::ours(file, subject.episodes)?;
    let threads = ours["machine"]["threads"].to_string();
    let mut found = BTreeMap::from([(OURS.to_owned(), ours)]);
    for (name, environment) in PEERS {
        let mut command = Command::new(environment.python());
        command
            .arg(root().join("xtask/peers/generate.py"))
            .arg(name)
            .arg("--model")
            .arg(file)
            .args(["--threads", &threads]);
        // What this machine cannot run leaves its place in the table empty.
        let mut figures = match json(&mut command) {
            Ok(figures) => figures,
            Err(error) => {
                println!("    {name}: {error:#}");
                continue;
            }
        };
        if name == LLAMA_CPP {
            match bench_episodes::llama_cpp(&environment.python(), file, &threads, subject.episodes) {
                Ok(episodes) => figures[EPISODES] = episodes,
                Err(error) => println!("    {name}, {EPISODES}: {error:#}"),
            }
        }
        found.insert(name.to_owned(), figures);
    }
    if subject.trains {
        found.insert(TRAINING.to_owned(), bench_training::round(&threads)?);
    }
    Ok(found)
}

impl Environment {
    fn folder(&self) -> PathBuf {
        root().join("target/peers").join(self.name)
    }

    pub fn python(&self) -> PathBuf {
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

/// Where cargo builds.
fn target() -> PathBuf {
    std::env::var_os("CARGO_TARGET_DIR").map_or_else(|| root().join("target"), |dir| root().join(dir))
}

/// The command line as built with a profile: `release` or `debug`.
pub fn program(profile: &str) -> Command {
    let path = target().join(profile).join("rag-gym");
    Command::new(path.with_extension(std::env::consts::EXE_EXTENSION))
}

/// With the bench's own home.
pub fn rag_gym() -> Command {
    let mut command = program("release");
    command.arg("--home").arg(root().join("target/bench-home"));
    command
}

/// What a command prints, or the last line of it, as JSON.
pub fn json(command: &mut Command) -> Result<Value> {
    let output = command
        .stdin(Stdio::null())
        .output()
        .with_context(|| format!("cannot start {command:?}"))?;
    let (text, errors) = (
        String::from_utf8_lossy(&output.stdout),
        String::from_utf8_lossy(&output.stderr),
    );
    let last_line = |text: &str| text.trim_end().lines().last().unwrap_or_default().to_owned();
    if !output.status.success() {
        bail!("{command:?} ended with {}: {}", output.status, last_line(&errors));
    }
    serde_json::from_str(&text)
        .or_else(|_| serde_json::from_str(&last_line(&text)))
        .with_context(|| format!("{command:?} printed no JSON: {}", last_line(&text)))
}

/// Log-probabilities of the program's own English documents: at least 5,000 tokens that nobody chose for this.
fn compare_accuracy(model: &Path) -> Result<Value> {
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
            .arg(model)
            .arg(&words),
    )?;
    fs::write(&ours, logprobs.to_string()).with_context(|| format!("cannot write {}", ours.display()))?;
    let mut command = Command::new(TORCH.python());
    command
        .arg(root().join("xtask/peers/logprobs.py"))
        .arg(&ours)
        .arg("--model")
        .arg(model);
    json(command.args(["--window", WINDOW]))
}
