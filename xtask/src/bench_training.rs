//! Training beside PyTorch with PEFT: a further part of each round of the bench.

use std::collections::BTreeMap;
use std::fmt::Write;
use std::process::Command;

use anyhow::Result;
use serde_json::{Map, Value};

use crate::bench::{OURS, TORCH, TRAINING, json, rag_gym};
use crate::bench_table::median;
use crate::model;
use crate::step::root;

const TOKENS: [&str; 2] = ["512", "1024"];
/// Beside ours: how PyTorch computes.
const PEERS: [&str; 2] = ["float32", "bfloat16"];

const ROWS: [(&str, &str); 3] = [
    ("SFT, tokens/s", "tokens_per_second"),
    ("preference pairs/s", "pairs_per_second"),
    ("peak memory, MB", "peak_memory_bytes"),
];

/// `{tokens: {engine: figures}}`.
pub fn round(threads: &str) -> Result<Value> {
    let mut found = Map::new();
    for tokens in TOKENS {
        let mut own = rag_gym();
        own.args(["bench", "train", "--json", "--tokens", tokens, "--model"]);
        let mut engines = Map::from_iter([(OURS.to_owned(), json(own.arg(model::file()))?)]);
        for dtype in PEERS {
            let mut peer = Command::new(TORCH.python());
            peer.arg(root().join("xtask/peers/train.py"));
            peer.args([dtype, "--tokens", tokens, "--threads", threads]);
            engines.insert(dtype.to_owned(), json(&mut peer)?);
        }
        found.insert(tokens.to_owned(), Value::Object(engines));
    }
    Ok(Value::Object(found))
}

/// Medians of the rounds.
pub fn table(rounds: &[BTreeMap<String, Value>]) -> String {
    let machine = &rounds[0][OURS]["machine"];
    let mut out = String::from(
        "| training, tokens of a sequence | rag-gym | PEFT, f32 | PEFT, bf16 | ours / f32 | ours / bf16 | floor reached |\n\
         |---|---|---|---|---|---|---|\n",
    );
    for tokens in TOKENS {
        for (name, key) in ROWS {
            let figure = |engine: &str| median(rounds, TRAINING, &format!("/{tokens}/{engine}/{key}"));
            let show = |figure: Option<f64>| match (figure, key) {
                (None, _) => "-".to_owned(),
                (Some(bytes), "peak_memory_bytes") => format!("{:.0}", bytes / 1e6),
                (Some(figure), "pairs_per_second") => format!("{figure:.2}"),
                (Some(figure), _) => format!("{figure:.0}"),
            };
            let (own, f32, bf16) = (figure(OURS), figure(PEERS[0]), figure(PEERS[1]));
            let ratio = |peer: Option<f64>| {
                own.zip(peer)
                    .map_or("-".into(), |(own, peer)| format!("{:.2}", own / peer))
            };
            let reached = own
                .zip(floor(key, tokens.parse().unwrap_or(f64::NAN), machine))
                .map_or("-".into(), |(own, floor)| format!("{:.0} %", own / floor * 100.0));
            let _ = writeln!(
                out,
                "| {tokens}: {name} | {} | {} | {} | {} | {} | {reached} |",
                show(own),
                show(f32),
                show(bf16),
                ratio(f32),
                ratio(bf16),
            );
        }
    }
    out
}

/// What the peaks would allow. The frozen weights are met twice, on the way to the loss and on the way back; in
/// bf16 these products have twice the f32 peak. The output layer is met for the 64 tokens of a completion only.
/// Attention takes three times its forward work, in f32. What the low-rank pairs add is left out.
fn floor(key: &str, tokens: f64, machine: &Value) -> Option<f64> {
    const COMPLETION: f64 = 64.0;
    let number = |key: &str| machine[key].as_f64();
    let f32 = number("f32_gflops")? * 1e9;
    let bf16 = match machine["instructions"].as_str()?.ends_with("bf16") {
        true => 2.0 * f32,
        false => f32,
    };
    let (layers, output) = (
        number("layer_operations_per_token")?,
        number("output_operations_per_token")?,
    );
    let pair = number("attention_operations_per_pair")?;
    let seconds = |computed: f64, pairs: f64, completions: f64| {
        2.0 * (computed * layers + completions * COMPLETION * output) / bf16 + 3.0 * pairs * pair / f32
    };
    match key {
        "tokens_per_second" => Some(tokens / seconds(tokens, tokens * tokens / 2.0, 1.0)),
        // The prompt once, and two completions that see it.
        "pairs_per_second" => {
            let pairs = tokens * tokens / 2.0 + COMPLETION * tokens;
            Some(1.0 / seconds(tokens + COMPLETION, pairs, 2.0))
        }
        _ => None,
    }
}
