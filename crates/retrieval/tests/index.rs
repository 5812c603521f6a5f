//! The public interface on small corpora: scores, order, explanations, files.

use std::collections::{BTreeMap, BTreeSet};

use gym::{Cancel, Passage, Retriever};
use proptest::prelude::*;
use retrieval::{Bm25Index, Bm25Parameters, IndexBuilder, RetrievalError, words};

type Outcome = Result<(), Box<dyn std::error::Error>>;

fn passage(id: &str, title: &str, text: &str) -> Passage {
    Passage {
        id: id.to_owned(),
        title: title.to_owned(),
        text: text.to_owned(),
    }
}

fn three() -> Vec<Passage> {
    vec![
        passage("a", "Neil Peart", "Canadian drummer of the band Rush."),
        passage("b", "Rush (band)", "Rush was a Canadian rock band formed in Toronto."),
        passage("c", "Toronto", "The capital of Ontario."),
    ]
}

fn counts(text: &str) -> BTreeMap<String, u32> {
    let mut counts = BTreeMap::new();
    for word in words(text) {
        *counts.entry(word.term).or_default() += 1;
    }
    counts
}

/// BM25 of one field of every passage, straight from the formula.
fn naive_bm25(fields: &[String], query: &str, k1: f64, b: f64) -> Vec<f64> {
    let fields: Vec<BTreeMap<String, u32>> = fields.iter().map(|text| counts(text)).collect();
    let length = |field: &BTreeMap<String, u32>| field.values().sum::<u32>() as f64;
    let n = fields.len() as f64;
    let average = fields.iter().map(length).sum::<f64>() / n;
    let score = |field: &BTreeMap<String, u32>| {
        counts(query)
            .iter()
            .filter_map(|(term, &times)| {
                let tf = *field.get(term)? as f64;
                let df = fields.iter().filter(|other| other.contains_key(term)).count() as f64;
                let idf = (1.0 + (n - df + 0.5) / (df + 0.5)).ln();
                Some(times as f64 * idf * tf / (tf + k1 * (1.0 - b + b * length(field) / average)))
            })
            .sum()
    };
    fields.iter().map(score).collect()
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(40))]
    #[test]
    fn scores_equal_a_naive_bm25_and_explanations_add_up(
        texts in proptest::collection::vec(("[a-e]( [b-h]){0,3}", "([b-h]{1,2}[ ,.]){0,60}"), 1..30),
        query in "([b-h]{1,2} ){1,6}",
        (k1, b, title_boost) in (0.0f32..3.0, 0.0f32..=1.0, prop_oneof![Just(0.0f32), 0.1f32..2.0]),
        k in 1usize..40,
    ) {
        let passages: Vec<Passage> =
            texts.iter().enumerate().map(|(at, (title, text))| passage(&at.to_string(), title, text)).collect();
        let index = Bm25Index::in_memory(passages.clone()).unwrap()
            .with_parameters(Bm25Parameters { k1, b, title_boost }).unwrap();
        let bodies: Vec<String> = passages.iter().map(|p| format!("{} {}", p.title, p.text)).collect();
        let titles: Vec<String> = passages.iter().map(|p| p.title.clone()).collect();
        let (k1, b) = (f64::from(k1), f64::from(b));
        let titles = naive_bm25(&titles, &query, k1, b);
        let expected: Vec<f64> = naive_bm25(&bodies, &query, k1, b).iter().zip(&titles)
            .map(|(body, title)| body + f64::from(title_boost) * title).collect();

        let hits = index.search(&query, k).unwrap();
        prop_assert_eq!(hits.len(), k.min(expected.iter().filter(|&&score| score > 0.0).count()));
        let found: BTreeSet<&str> = hits.iter().map(|hit| hit.passage.id.as_str()).collect();
        let worst = hits.last().map_or(0.0, |hit| f64::from(hit.score));
        for (at, score) in expected.iter().enumerate() {
            prop_assert!(found.contains(at.to_string().as_str()) || *score <= worst + 1e-4 || hits.is_empty());
        }
        for (hit, rank) in hits.iter().zip(1..) {
            let at: usize = hit.passage.id.parse().unwrap();
            prop_assert_eq!(hit.passage.as_ref(), &passages[at]);
            prop_assert_eq!(hit.rank, rank);
            prop_assert!((f64::from(hit.score) - expected[at]).abs() < 1e-4, "{} != {}", hit.score, expected[at]);
            let explanation = index.explain(&query, &hit.passage.id).unwrap().unwrap();
            prop_assert_eq!(explanation.score, hit.score);
            prop_assert_eq!(explanation.terms.iter().map(|term| term.score).sum::<f32>(), hit.score);
        }
        for pair in hits.windows(2) {
            let order = |at: usize| pair[at].passage.id.parse::<usize>().unwrap();
            prop_assert!(pair[0].score > pair[1].score || (pair[0].score == pair[1].score && order(0) < order(1)));
        }
    }

    #[test]
    fn any_text_is_a_query(query in any::<String>(), title in any::<String>(), text in any::<String>()) {
        let index = Bm25Index::in_memory([passage(&title, &title, &text), passage("x", &text, &query)]).unwrap();
        let hits = index.search(&query, 5).unwrap();
        prop_assert_eq!(hits.is_empty(), words(&query).is_empty());
    }
}

#[test]
fn equal_scores_keep_insertion_order() -> Outcome {
    let index = Bm25Index::in_memory((0..50).map(|at| passage(&at.to_string(), "Rush", "same words")))?;
    let ids: Vec<String> = index
        .search("rush", 10)?
        .iter()
        .map(|hit| hit.passage.id.clone())
        .collect();
    assert_eq!(ids, (0..10).map(|at| at.to_string()).collect::<Vec<_>>());
    Ok(())
}

#[test]
fn hostile_queries_are_plain_text() -> Outcome {
    let mut passages = three();
    passages.push(passage("d", "東京🗼", "東京タワー\u{0} null \u{7} bell"));
    let index = Bm25Index::in_memory(passages)?;
    for query in [
        "",
        "   ",
        "🦀🦀",
        "\u{0}\u{1}\u{2}",
        "the of and",
        "\u{301}\u{301}",
        "\"",
        "((",
        "AND OR NOT",
        "*:*",
    ] {
        assert!(index.search(query, 5)?.is_empty(), "{query:?}");
    }
    for query in [
        "title:rush^9 AND (band",
        "rush\u{0}band",
        "\"rush",
        "rush~2 -canadian",
        "[rush TO band]",
        "rush*",
    ] {
        assert_eq!(index.search(query, 1)?[0].passage.id, "b", "{query:?}");
    }
    assert_eq!(index.search("京", 5)?[0].passage.id, "d");
    assert_eq!(index.search(&"rush 東京🦀 \u{0} ".repeat(5_000), 5)?.len(), 3);
    assert_eq!(index.search(&"x".repeat(100_000), 5)?.len(), 0);
    assert!(index.search("rush", 0)?.is_empty());
    assert_eq!(index.search("rush", usize::MAX)?.len(), 2);
    Ok(())
}

#[test]
fn explaining_needs_a_known_passage() -> Outcome {
    let index = Bm25Index::in_memory(three())?;
    assert_eq!(index.explain("rush", "nobody")?, None);
    let unrelated = index.explain("rush", "c")?.ok_or("passage c is known")?;
    assert_eq!((unrelated.score, unrelated.terms.len()), (0.0, 0));
    let explanation = index.explain("Rush rush", "b")?.ok_or("passage b is known")?;
    let body = &explanation.terms[0];
    assert_eq!(
        (body.term.as_str(), body.query_frequency, body.term_frequency),
        ("rush", 2, 2)
    );
    assert_eq!(body.field_length, 8);
    Ok(())
}

#[test]
fn an_empty_index_answers() -> Outcome {
    let index = Bm25Index::in_memory([])?;
    assert!(index.is_empty());
    assert!(index.search("rush", 5)?.is_empty());
    Ok(())
}

#[test]
fn an_index_on_disk_answers_like_one_in_memory() -> Outcome {
    let temp = tempfile::tempdir()?;
    let dir = temp.path().join("index");
    let mut builder = IndexBuilder::create(&dir, &Cancel::default())?;
    for passage in three() {
        builder.add(&passage)?;
    }
    assert!(!dir.exists(), "nothing is at the final place before the commit");
    assert_eq!(builder.commit()?, 3);
    let (disk, memory) = (Bm25Index::open(&dir)?, Bm25Index::in_memory(three())?);
    assert_eq!(disk.len(), 3);
    for query in ["canadian band", "toronto", "peart"] {
        assert_eq!(
            Retriever::search(&disk, query, 5)?,
            Retriever::search(&memory, query, 5)?
        );
    }
    assert!(matches!(
        IndexBuilder::create(&dir, &Cancel::default()),
        Err(RetrievalError::Exists { .. })
    ));
    let names: Vec<_> = std::fs::read_dir(temp.path())?.collect::<Result<Vec<_>, _>>()?;
    assert_eq!(names.len(), 1);
    Ok(())
}

#[test]
fn a_cancelled_or_killed_build_leaves_no_index() -> Outcome {
    let temp = tempfile::tempdir()?;
    let dir = temp.path().join("index");
    let cancel = Cancel::default();
    let mut builder = IndexBuilder::create(&dir, &cancel)?;
    builder.add(&three()[0])?;
    cancel.cancel();
    assert!(matches!(builder.add(&three()[1]), Err(RetrievalError::Cancelled)));
    assert!(matches!(builder.commit(), Err(RetrievalError::Cancelled)));
    assert_eq!(std::fs::read_dir(temp.path())?.count(), 0);
    assert!(matches!(Bm25Index::open(&dir), Err(RetrievalError::Missing { .. })));

    // What a killed build leaves is cleared by the next.
    std::fs::create_dir(temp.path().join(".index.building"))?;
    std::fs::write(temp.path().join(".index.building/meta.json"), "{")?;
    let mut builder = IndexBuilder::create(&dir, &Cancel::default())?;
    builder.add(&three()[0])?;
    builder.commit()?;
    assert_eq!(Bm25Index::open(&dir)?.len(), 1);
    Ok(())
}

#[test]
fn damaged_files_and_senseless_parameters_are_errors() -> Outcome {
    let temp = tempfile::tempdir()?;
    std::fs::write(temp.path().join("meta.json"), "not json")?;
    assert!(Bm25Index::open(temp.path()).is_err());
    for parameters in [
        Bm25Parameters {
            k1: -1.0,
            ..Bm25Parameters::default()
        },
        Bm25Parameters {
            b: 1.5,
            ..Bm25Parameters::default()
        },
        Bm25Parameters {
            title_boost: f32::NAN,
            ..Bm25Parameters::default()
        },
    ] {
        let index = Bm25Index::in_memory(three())?;
        assert!(matches!(
            index.with_parameters(parameters),
            Err(RetrievalError::Parameters { .. })
        ));
    }
    Ok(())
}
