//! Recall of the gold titles among the first five hits, on development questions.

use std::collections::BTreeSet;
use std::fs;
use std::path::{Path, PathBuf};

use gym::Passage;
use retrieval::Bm25Index;
use serde_json::Value;

type Outcome<T> = Result<T, Box<dyn std::error::Error>>;

fn data() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("../../../shared/data")
}

fn lines(name: &str) -> Outcome<Vec<Value>> {
    let text = fs::read_to_string(data().join(name))?;
    Ok(text.lines().map(serde_json::from_str).collect::<Result<_, _>>()?)
}

/// The share of a question's gold titles among its first five hits, averaged over questions with gold.
fn recall_at_5(dataset: &str) -> Outcome<f64> {
    let string = |value: &Value| value.as_str().unwrap_or_default().to_owned();
    let passages = lines(&format!("{dataset}_corpus.jsonl"))?
        .iter()
        .map(|p| Passage {
            id: string(&p["id"]),
            title: string(&p["title"]),
            text: string(&p["text"]),
        })
        .collect::<Vec<_>>();
    let index = Bm25Index::in_memory(passages)?;
    let (mut sum, mut n) = (0.0, 0.0);
    for question in lines(&format!("{dataset}_dev.jsonl"))? {
        let gold: BTreeSet<String> = question["gold"]
            .as_array()
            .into_iter()
            .flatten()
            .map(|gold| string(&gold["title"]))
            .collect();
        if gold.is_empty() {
            continue;
        }
        let hits = index.search(&string(&question["question"]), 5)?;
        let titles: BTreeSet<String> = hits.iter().map(|hit| hit.passage.title.clone()).collect();
        sum += gold.intersection(&titles).count() as f64 / gold.len() as f64;
        n += 1.0;
    }
    Ok(sum / n)
}

/// The thresholds are bm25s 0.2 with k1 0.9, b 0.4 on the same files.
#[test]
fn recall_at_5_is_at_least_that_of_bm25s() -> Outcome<()> {
    if !data().is_dir() {
        eprintln!("skipped: no question files at {}", data().display());
        return Ok(());
    }
    for (dataset, peer) in [("hotpotqa", 0.728), ("2wiki", 0.670), ("musique", 0.574)] {
        let recall = recall_at_5(dataset)?;
        eprintln!("{dataset}: recall@5 {recall:.4}, bm25s {peer}");
        assert!(recall >= peer, "{dataset}: {recall:.4} < {peer}");
    }
    Ok(())
}
