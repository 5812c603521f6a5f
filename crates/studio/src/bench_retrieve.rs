//! How fast passages are indexed and found, and how many gold titles the queries find.

use std::collections::BTreeSet;
use std::path::Path;
use std::time::Instant;

use gym::{LabelledQuestion, Passage, Retriever};
use serde::Serialize;

use crate::{Cancel, Result, Studio, StudioError};

/// Hits per query; recall is counted at 2, 5 and 10 of them.
const K: usize = 10;

#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct RetrievalBench {
    pub documents: usize,
    pub index_documents_per_second: f64,
    pub query_p50_ms: f64,
    pub query_p99_ms: f64,
    /// One query after another, on one thread.
    pub queries_per_second: f64,
    pub queries: usize,
    /// Share of a question's gold titles among its first hits, averaged; `None` without gold.
    pub recall: Option<Recall>,
}

#[derive(Clone, Copy, Debug, PartialEq, Serialize)]
pub struct Recall {
    /// Questions that have gold titles.
    pub n: usize,
    #[serde(rename = "2")]
    pub at_2: f64,
    #[serde(rename = "5")]
    pub at_5: f64,
    #[serde(rename = "10")]
    pub at_10: f64,
}

impl Studio {
    /// Indexes a file of passages and asks it every question of another; the built-in world and its dev
    /// questions where none is named. Leaves nothing behind.
    pub fn bench_retrieve(
        &self,
        corpus: Option<&Path>,
        questions: Option<&Path>,
        cancel: &Cancel,
    ) -> Result<RetrievalBench> {
        let stop = || cancel.is_cancelled();
        let mut passages: Vec<Passage> = Vec::new();
        match corpus {
            None => passages = corpus::world_passages(),
            Some(path) => {
                let mut keep = |passage| {
                    passages.push(passage);
                    Ok(())
                };
                corpus::import_passages(path, None, &mut keep, &mut |_| {}, &stop)?;
            }
        }
        let mut asked: Vec<LabelledQuestion> = Vec::new();
        match questions {
            None if corpus.is_some() => {
                return Err(StudioError::Invalid("a corpus file needs its questions file".into()));
            }
            None => asked = corpus::world_questions(corpus::Split::Dev),
            Some(path) => {
                let mut keep = |question| {
                    asked.push(question);
                    Ok(())
                };
                corpus::import_questions(path, None, &mut keep, &mut |_| {}, &stop)?;
            }
        }
        let dir = self
            .home()
            .join("indexes")
            .join(format!(".bench-{}", std::process::id()));
        let measured = measure(&dir, &passages, &asked, cancel);
        // Not there where indexing failed.
        let _ = std::fs::remove_dir_all(&dir);
        measured
    }
}

fn measure(dir: &Path, passages: &[Passage], asked: &[LabelledQuestion], cancel: &Cancel) -> Result<RetrievalBench> {
    let started = Instant::now();
    let mut builder = retrieval::IndexBuilder::create(dir, cancel)?;
    for passage in passages {
        builder.add(passage)?;
    }
    builder.commit()?;
    let indexed = started.elapsed().as_secs_f64();
    let index = retrieval::Bm25Index::open(dir)?;
    let mut times_ms = Vec::new();
    let (mut sums, mut n) = ([0.0; 3], 0);
    for labelled in asked {
        cancel.check()?;
        let started = Instant::now();
        let hits = Retriever::search(&index, &labelled.question.text, K)?;
        times_ms.push(started.elapsed().as_secs_f64() * 1000.0);
        let gold: BTreeSet<&str> = labelled.gold.passages.iter().map(|p| p.title.as_str()).collect();
        if gold.is_empty() {
            continue;
        }
        n += 1;
        for (sum, k) in sums.iter_mut().zip([2, 5, 10]) {
            let found: BTreeSet<&str> = hits.iter().take(k).map(|hit| hit.passage.title.as_str()).collect();
            *sum += gold.intersection(&found).count() as f64 / gold.len() as f64;
        }
    }
    times_ms.sort_by(f64::total_cmp);
    let at = |share: f64| times_ms[((times_ms.len() as f64 * share) as usize).min(times_ms.len() - 1)];
    let [at_2, at_5, at_10] = sums.map(|sum| sum / f64::from(n.max(1)));
    Ok(RetrievalBench {
        documents: passages.len(),
        index_documents_per_second: passages.len() as f64 / indexed,
        query_p50_ms: at(0.5),
        query_p99_ms: at(0.99),
        queries_per_second: times_ms.len() as f64 / times_ms.iter().sum::<f64>() * 1000.0,
        queries: times_ms.len(),
        recall: (n > 0).then_some(Recall {
            n: n as usize,
            at_2,
            at_5,
            at_10,
        }),
    })
}
