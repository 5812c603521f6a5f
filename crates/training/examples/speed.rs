//! One JSON line, as `shared/bench/peft_train.py` prints: `speed MODEL TOKENS sft|pair [STEPS]`.

#![expect(clippy::print_stdout, reason = "it prints its result")]

use std::path::Path;
use std::time::Instant;

use training::base::Base;
use training::workload::Workload;

fn main() -> Result<(), Box<dyn std::error::Error>> {
    let arguments: Vec<String> = std::env::args().skip(1).collect();
    let [model, tokens, objective, rest @ ..] = &arguments[..] else {
        return Err("usage: speed MODEL TOKENS sft|pair [STEPS]".into());
    };
    let (tokens, pair): (usize, bool) = (tokens.parse()?, objective == "pair");
    let steps = rest.first().map_or(Ok(4), |steps| steps.parse())?;
    let mut workload = Workload::new(Base::open(Path::new(model))?, pair)?;
    let mut seconds = Vec::new();
    for step in 0..=steps {
        let start = Instant::now();
        workload.step(tokens)?;
        if step > 0 {
            seconds.push(start.elapsed().as_secs_f64());
        }
    }
    seconds.sort_by(f64::total_cmp);
    let median = seconds[seconds.len() / 2];
    let status = std::fs::read_to_string("/proc/self/status").unwrap_or_default();
    let peak = status
        .lines()
        .find_map(|line| line.strip_prefix("VmHWM:"))
        .unwrap_or("")
        .trim();
    let (rate, unit) = if pair {
        (1.0 / median, "pairs")
    } else {
        (tokens as f64 / median, "tokens")
    };
    println!(
        r#"{{"objective": "{objective}", "sequence_tokens": {tokens}, "{unit}_per_second": {rate:.3}, "peak": "{peak}"}}"#
    );
    Ok(())
}
