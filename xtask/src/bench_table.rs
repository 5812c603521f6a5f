//! The bench's figures as a table of docs/benchmarks.md.

use std::collections::BTreeMap;
use std::fmt::Write;

use serde_json::Value;

use crate::bench::{EPISODES, LLAMA_CPP, OURS, PEERS, ROUNDS, Subject};

/// One figure of the table: its name, its place in an engine's document, and that of its floor in ours (empty for none).
const ROWS: [(&str, &str, &str); 7] = [
    (
        "prefill of 512 tokens, tokens/s",
        "/prefill/0/tokens_per_second",
        "/prefill/0/floor_tokens_per_second",
    ),
    (
        "prefill of 1024 tokens, tokens/s",
        "/prefill/1/tokens_per_second",
        "/prefill/1/floor_tokens_per_second",
    ),
    (
        "decoding one sequence after 256 tokens, tokens/s",
        "/decode_tokens_per_second",
        "/floor_decode_tokens_per_second",
    ),
    (
        "10 candidates x 64 tokens after 256, tokens/s",
        "/candidates/0/tokens_per_second",
        "/candidates/0/floor_tokens_per_second",
    ),
    (
        "10 candidates x 64 tokens after 1024, tokens/s",
        "/candidates/1/tokens_per_second",
        "/candidates/1/floor_tokens_per_second",
    ),
    (
        "ReSearch episodes of 5 steps, 10 candidates, episodes/minute",
        "/episodes/episodes_per_minute",
        "/episodes/floor_episodes_per_minute",
    ),
    (MEMORY, "/peak_memory_bytes", ""),
];

const MEMORY: &str = "peak memory, MB";

pub fn median(rounds: &[BTreeMap<String, Value>], engine: &str, place: &str) -> Option<f64> {
    let mut figures: Vec<f64> = rounds
        .iter()
        .filter_map(|round| round.get(engine)?.pointer(place)?.as_f64())
        .collect();
    figures.sort_by(f64::total_cmp);
    figures.get(figures.len() / 2).copied()
}

pub fn table(subject: &Subject, rounds: &[BTreeMap<String, Value>], accuracy: &Value) -> String {
    let machine = &rounds[0][OURS]["machine"];
    let number = |key: &str| machine[key].as_f64().unwrap_or(f64::NAN);
    let mut out = String::new();
    let _ = writeln!(
        out,
        "Machine: {}, {} threads, `{}` instructions; measured peaks {:.0} GFLOP/s f32, {:.0} GOP/s int16, {:.0} GB/s read.\n\
         Model: {}. Medians of {ROUNDS} alternating rounds.\n",
        machine["processor"].as_str().unwrap_or("?"),
        machine["threads"],
        machine["instructions"].as_str().unwrap_or("?"),
        number("f32_gflops"),
        number("int16_gops"),
        number("read_gb_per_second"),
        subject.name,
    );
    let engines: Vec<&str> = PEERS.iter().map(|(name, _)| *name).collect();
    let _ = writeln!(
        out,
        "| work | {OURS} | {} | ours / best | floor reached |",
        engines.join(" | ")
    );
    let _ = writeln!(out, "|---|{}", "---|".repeat(engines.len() + 3));
    for (name, place, floor) in ROWS {
        let memory = name == MEMORY;
        let show = |figure: Option<f64>| match figure {
            None => "-".to_owned(),
            Some(bytes) if memory => format!("{:.0}", bytes / 1e6),
            Some(figure) if figure < 10.0 => format!("{figure:.1}"),
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
            .zip(median(rounds, OURS, floor))
            .map_or("-".into(), |(own, floor)| format!("{:.0} %", own / floor * 100.0));
        let theirs: Vec<String> = theirs.into_iter().map(show).collect();
        let _ = writeln!(
            out,
            "| {name} | {} | {} | {ratio} | {reached} |",
            show(own),
            theirs.join(" | ")
        );
    }
    let work = |engine: &str| {
        let of = |place: &str| median(rounds, engine, &format!("/{EPISODES}/{place}")).unwrap_or(f64::NAN);
        format!(
            "{engine} {:.0} steps with {:.0} tokens generated and {:.0} of {:.0} prompt tokens cached",
            of("steps"),
            of("tokens/generated"),
            of("tokens/cached"),
            of("tokens/prompt"),
        )
    };
    let _ = writeln!(out, "\nThe episodes took {}, {}.", work(OURS), work(LLAMA_CPP));
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
