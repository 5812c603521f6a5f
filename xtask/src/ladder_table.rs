//! What the ladder found, as tables in docs/results.md.

use std::collections::BTreeMap;
use std::fmt::Write;
use std::fs;
use std::path::Path;

use anyhow::{Context, Result};
use serde_json::{Value, json};

use crate::document::replace;
use crate::ladder::RUNGS;
use crate::step::root;

/// One run of the ladder and its scores, as `rag-gym evaluate --json` gives them.
pub struct Row {
    pub set: String,
    pub agent: String,
    /// Index of [`RUNGS`].
    pub rung: usize,
    pub seed: u32,
    pub evaluation: Value,
    /// Of its reward model with the evidence, as `rag-gym agreement --json` gives it; null for rungs without one.
    pub agreement: Value,
}

/// Writes the rows beside the runs, and with `publish` the tables into docs/results.md.
pub fn write(home: &Path, rows: &[Row], publish: bool) -> Result<()> {
    let list: Vec<Value> = rows
        .iter()
        .map(|row| {
            json!({"set": row.set, "agent": row.agent, "rung": RUNGS[row.rung].name, "seed": row.seed,
                   "evaluation": row.evaluation, "agreement": row.agreement})
        })
        .collect();
    let path = home.join("rows.json");
    fs::write(&path, serde_json::to_string_pretty(&list)?)
        .with_context(|| format!("cannot write {}", path.display()))?;
    let tables = tables(rows);
    println!("{tables}");
    if publish {
        replace(&root().join("docs/results.md"), "ladder", &tables)?;
    }
    Ok(())
}

/// A table for each set and agent, in the order of their first rows.
fn tables(rows: &[Row]) -> String {
    let mut order: Vec<(&str, &str)> = Vec::new();
    let mut groups: BTreeMap<(&str, &str), Vec<&Row>> = BTreeMap::new();
    for row in rows {
        let key = (row.set.as_str(), row.agent.as_str());
        if !order.contains(&key) {
            order.push(key);
        }
        groups.entry(key).or_default().push(row);
    }
    let mut out = String::new();
    for key in order {
        let (set, agent) = key;
        let n = &groups[&key][0].evaluation["n"];
        let _ = writeln!(out, "### {set}, {agent} (n = {n})\n");
        out += "| rung | EM | F1 | p against zero-shot (F1) | evidence recall | searches | malformed | pairs as evidence orders them |\n";
        out += "|---|---|---|---|---|---|---|---|\n";
        for (idx, rung) in RUNGS.iter().enumerate() {
            let rows = || groups[&key].iter().filter(|row| row.rung == idx);
            let of_rung: Vec<&Value> = rows().map(|row| &row.evaluation).collect();
            let agreements: Vec<&Value> = rows().map(|row| &row.agreement).collect();
            if !of_rung.is_empty() {
                let _ = writeln!(
                    out,
                    "| {} | {} | {} | {} | {} | {} | {} | {} |",
                    rung.name,
                    score(&of_rung, "em"),
                    score(&of_rung, "f1"),
                    worst_p(&of_rung),
                    score(&of_rung, "evidence_recall"),
                    mean(&of_rung, "/searches_mean").map_or("-".into(), |x| format!("{x:.1}")),
                    mean(&of_rung, "/malformed_rate").map_or("-".into(), |x| format!("{:.0} %", x * 100.0)),
                    ordered_alike(&agreements),
                );
            }
        }
        out.push('\n');
        let guided = RUNGS.iter().filter(|rung| rung.guides_sft());
        let shares: Vec<String> = guided
            .filter_map(|rung| Some((rung.name, recovered(&groups[&key], rung.id)?)))
            .map(|(name, share)| format!("{name} {:.0} %", share * 100.0))
            .collect();
        if !shares.is_empty() {
            let shares = shares.join(", ");
            let _ = writeln!(
                out,
                "Of the distance in F1 between SFT alone and its upper bound, guidance recovers: {shares}.\n"
            );
        }
    }
    out
}

/// With one seed its interval; with several the mean of their means, and these.
fn score(evaluations: &[&Value], metric: &str) -> String {
    let at = |key: &str| mean(evaluations, &format!("/{metric}/{key}"));
    let Some(all) = at("mean") else { return "-".into() };
    if evaluations.len() == 1 {
        let (low, high) = (at("low").unwrap_or(f64::NAN), at("high").unwrap_or(f64::NAN));
        return format!("{all:.3} [{low:.3}, {high:.3}]");
    }
    let each: Vec<String> = evaluations
        .iter()
        .filter_map(|evaluation| evaluation[metric]["mean"].as_f64())
        .map(|mean| format!("{mean:.3}"))
        .collect();
    format!("{all:.3} ({})", each.join(", "))
}

/// The largest p of the seeds' paired tests.
fn worst_p(evaluations: &[&Value]) -> String {
    let p = |evaluation: &&Value| evaluation.pointer("/against/delta/f1/p")?.as_f64();
    match evaluations.iter().filter_map(p).reduce(f64::max) {
        None => "-".into(),
        Some(p) if p < 0.001 => "< 0.001".into(),
        Some(p) => format!("{p:.3}"),
    }
}

/// Share of pairs that reward models order as the evidence does; one that saw many pairs counts for more.
fn ordered_alike(agreements: &[&Value]) -> String {
    let (mut alike, mut pairs) = (0.0, 0.0);
    for measure in agreements.iter().map(|agreement| &agreement["pair_accuracy"]) {
        if let (Some(share), Some(n)) = (measure["value"].as_f64(), measure["n"].as_f64()) {
            alike += share * n;
            pairs += n;
        }
    }
    match pairs > 0.0 {
        true => format!("{:.0} % of {pairs:.0}", 100.0 * alike / pairs),
        false => "-".into(),
    }
}

fn mean(evaluations: &[&Value], place: &str) -> Option<f64> {
    let found: Vec<f64> = evaluations
        .iter()
        .filter_map(|evaluation| evaluation.pointer(place)?.as_f64())
        .collect();
    (!found.is_empty()).then(|| found.iter().sum::<f64>() / found.len() as f64)
}

/// Share of the way from SFT's greedy row to its upper bound that a reward model goes; `None` where there is no way
/// to go.
fn recovered(rows: &[&Row], rung: &str) -> Option<f64> {
    let f1 = |id: &str| {
        let of_rung: Vec<&Value> = rows
            .iter()
            .filter(|row| RUNGS[row.rung].id == id)
            .map(|row| &row.evaluation)
            .collect();
        mean(&of_rung, "/f1/mean")
    };
    let (greedy, guided, bound) = (f1("sft")?, f1(rung)?, f1("sft-evidence")?);
    (bound > greedy).then(|| (guided - greedy) / (bound - greedy))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn row(id: &str, seed: u32, f1: f64, p: Option<f64>) -> Row {
        let rung = RUNGS.iter().position(|rung| rung.id == id).unwrap();
        let interval = json!({"mean": f1, "low": f1 - 0.1, "high": f1 + 0.1});
        let against = p.map(|p| json!({"delta": {"f1": {"p": p}}}));
        let evaluation = json!({"n": 150, "em": interval, "f1": interval, "evidence_recall": null,
                                "searches_mean": 2.0, "malformed_rate": 0.25, "against": against});
        Row {
            set: "world".into(),
            agent: "react".into(),
            rung,
            seed,
            evaluation,
            agreement: if id == "sft-prm" {
                json!({"pair_accuracy": {"value": 0.9, "n": 40}})
            } else {
                Value::Null
            },
        }
    }

    #[test]
    fn one_seed_shows_its_interval_and_the_share_of_the_way_that_guidance_goes() {
        let rows = [
            row("zero-shot", 0, 0.1, None),
            row("sft", 0, 0.4, Some(0.0001)),
            row("sft-prm", 0, 0.5, Some(0.02)),
            row("sft-evidence", 0, 0.6, Some(0.5)),
        ];
        let shown = tables(&rows);
        assert!(shown.starts_with("### world, react (n = 150)\n"), "{shown}");
        let sft = "| SFT | 0.400 [0.300, 0.500] | 0.400 [0.300, 0.500] | < 0.001 | - | 2.0 | 25 % | - |";
        assert!(shown.contains(sft), "{shown}");
        assert!(shown.contains("| 25 % | 90 % of 40 |"), "{shown}");
        assert!(shown.contains("guidance recovers: SFT + PRM 50 %."), "{shown}");
    }

    #[test]
    fn several_seeds_show_each_mean_and_the_weakest_test() {
        let rows = [
            row("sft", 0, 0.2, Some(0.01)),
            row("sft", 1, 0.4, Some(0.2)),
            row("sft", 2, 0.6, Some(0.03)),
        ];
        let shown = tables(&rows);
        assert!(shown.contains("| 0.400 (0.200, 0.400, 0.600) | 0.200 |"), "{shown}");
    }
}
