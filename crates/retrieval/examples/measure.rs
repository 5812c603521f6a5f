//! Recall, indexing speed and query latency on question files:
//! `measure FOLDER SPLIT [K1 B TITLE_BOOST]`, for FOLDER/{hotpotqa,2wiki,musique}_{corpus,SPLIT}.jsonl.
#![expect(clippy::print_stdout, reason = "a measurement program reports on standard output")]
#![allow(clippy::unwrap_used)]

use std::collections::BTreeSet;
use std::fs;
use std::path::Path;
use std::time::Instant;

use gym::{Cancel, Passage};
use retrieval::{Bm25Index, Bm25Parameters, IndexBuilder};
use serde_json::Value;

fn lines(path: &Path) -> Vec<Value> {
    fs::read_to_string(path)
        .unwrap()
        .lines()
        .map(|line| serde_json::from_str(line).unwrap())
        .collect()
}

fn string(value: &Value) -> String {
    value.as_str().unwrap().to_owned()
}

fn main() {
    let args: Vec<String> = std::env::args().collect();
    let folder = Path::new(&args[1]);
    let split = &args[2];
    let grid: Vec<Bm25Parameters> = if args.get(3).is_some_and(|a| a == "grid") {
        let mut grid = Vec::new();
        for k1 in [0.6, 0.9, 1.2, 1.6, 2.0, 3.0] {
            for b in [0.2, 0.3, 0.4, 0.55, 0.75] {
                for title_boost in [0.0, 0.2, 0.4, 0.7, 1.0] {
                    grid.push(Bm25Parameters { k1, b, title_boost });
                }
            }
        }
        grid
    } else if args.len() > 5 {
        vec![Bm25Parameters {
            k1: args[3].parse().unwrap(),
            b: args[4].parse().unwrap(),
            title_boost: args[5].parse().unwrap(),
        }]
    } else {
        vec![Bm25Parameters::default()]
    };
    let mut means = vec![0.0; grid.len()];
    let mut details = vec![String::new(); grid.len()];
    for name in ["hotpotqa", "2wiki", "musique"] {
        let passages: Vec<Passage> = lines(&folder.join(format!("{name}_corpus.jsonl")))
            .iter()
            .map(|p| Passage {
                id: string(&p["id"]),
                title: string(&p["title"]),
                text: string(&p["text"]),
            })
            .collect();
        let temp = tempfile::tempdir().unwrap();
        let start = Instant::now();
        let mut builder = IndexBuilder::create(&temp.path().join("index"), &Cancel::default()).unwrap();
        for passage in &passages {
            builder.add(passage).unwrap();
        }
        builder.commit().unwrap();
        let per_second = passages.len() as f64 / start.elapsed().as_secs_f64();
        let mut index = Bm25Index::open(&temp.path().join("index")).unwrap();
        let questions = lines(&folder.join(format!("{name}_{split}.jsonl")));
        println!("{name} {split}: {} passages, {per_second:.0} indexed/s", passages.len());
        for (at, &parameters) in grid.iter().enumerate() {
            index = index.with_parameters(parameters).unwrap();
            let mut recall = [0.0; 3];
            let (mut n, mut times) = (0.0, Vec::new());
            for q in &questions {
                let gold: BTreeSet<&str> = q["gold"]
                    .as_array()
                    .into_iter()
                    .flatten()
                    .filter_map(|g| g["title"].as_str())
                    .collect();
                if gold.is_empty() {
                    continue;
                }
                let start = Instant::now();
                let hits = index.search(q["question"].as_str().unwrap(), 10).unwrap();
                times.push(start.elapsed().as_secs_f64() * 1000.0);
                n += 1.0;
                for (sum, k) in recall.iter_mut().zip([2, 5, 10]) {
                    let titles: BTreeSet<&str> = hits.iter().take(k).map(|hit| hit.passage.title.as_str()).collect();
                    *sum += gold.intersection(&titles).count() as f64 / gold.len() as f64;
                }
            }
            times.sort_by(f64::total_cmp);
            let [r2, r5, r10] = recall.map(|sum| sum / n);
            means[at] += r5 / 3.0;
            details[at] += &format!(" {r5:.4}");
            if grid.len() == 1 {
                let percentile = |p: f64| times[(times.len() as f64 * p) as usize];
                println!(
                    "  recall@2 {r2:.4} @5 {r5:.4} @10 {r10:.4} (n = {n}); query p50 {:.3} ms, p99 {:.3} ms",
                    percentile(0.5),
                    percentile(0.99)
                );
            }
        }
    }
    let mut order: Vec<usize> = (0..grid.len()).collect();
    order.sort_by(|&a, &b| means[b].total_cmp(&means[a]));
    for at in order.into_iter().take(25) {
        println!("{:.4} {:?} {}", means[at], grid[at], details[at]);
    }
}
