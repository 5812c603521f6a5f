//! Every development file imports whole. Skips where the folder is absent.

use std::path::PathBuf;

use corpus::{Format, import_passages, import_questions};

fn data() -> Option<PathBuf> {
    let folder = PathBuf::from(env!("CARGO_MANIFEST_DIR")).join("../../../shared/data");
    if !folder.is_dir() {
        eprintln!("skipped: {} is not here", folder.display());
        return None;
    }
    Some(folder)
}

#[test]
fn every_question_file_imports_with_its_exact_count() {
    let Some(data) = data() else { return };
    let expected = [
        ("2wiki_dev.jsonl", Format::Jsonl, 603),
        ("2wiki_train.jsonl", Format::Jsonl, 494),
        ("bamboogle.jsonl", Format::Jsonl, 125),
        ("hotpotqa_dev.jsonl", Format::Jsonl, 204),
        ("hotpotqa_train.jsonl", Format::Jsonl, 348),
        ("medqa_dev.jsonl", Format::Jsonl, 400),
        ("medqa_train.jsonl", Format::Jsonl, 1000),
        ("musique_dev.jsonl", Format::Jsonl, 158),
        ("musique_train.jsonl", Format::Jsonl, 100),
        ("raw/2wiki_train_100.json", Format::TwoWiki, 100),
        ("raw/hotpotqa_train_100.json", Format::Hotpotqa, 100),
        ("raw/musique_train_100.json", Format::Musique, 100),
        ("raw/raggym_hotpotqa_dev_1000.csv", Format::Csv, 1000),
        ("raw/raggym_medqa_train_1000.csv", Format::Csv, 1000),
        ("raw/Bamboogle_Prerelease.tsv", Format::Csv, 125),
    ];
    for (name, format, count) in expected {
        let mut kept = Vec::new();
        let report = import_questions(
            &data.join(name),
            None,
            &mut |q| {
                kept.push(q);
                Ok(())
            },
            &mut |_| {},
            &|| false,
        )
        .unwrap_or_else(|e| panic!("{name}: {e}"));
        assert_eq!(report.rejected, [], "{name}");
        assert_eq!(
            (report.format, report.kept, kept.len()),
            (format, count, count as usize),
            "{name}"
        );
        for q in &kept {
            assert!(!q.gold.answers.is_empty(), "{name}: {q:?}");
            if name.to_lowercase().contains("bamboogle") {
                assert!(!format!("{q:?}").to_lowercase().contains("canary"), "{name}");
            }
            if name.contains("medqa") {
                let label = &q.gold.answers[0];
                assert!(q.question.options.iter().any(|o| &o.label == label), "{name}: {q:?}");
            }
            if name.contains("musique") {
                assert!(q.gold.sub_questions.iter().all(|s| s.title.is_some()), "{name}: {q:?}");
                assert!(q.kind.as_ref().is_some_and(|k| k.contains("hop")), "{name}");
            }
            if name.starts_with("raw/hotpot") || name.starts_with("raw/2wiki") || name.contains("musique") {
                assert!(q.gold.passages.len() >= 2, "{name}: {q:?}");
            }
        }
    }
}

#[test]
fn every_corpus_imports_with_its_exact_count() {
    let Some(data) = data() else { return };
    let expected = [
        ("2wiki_corpus.jsonl", 6707),
        ("hotpotqa_corpus.jsonl", 5415),
        ("musique_corpus.jsonl", 4522),
        ("raw/2wiki_train_100.json", 712),
        ("raw/hotpotqa_train_100.json", 994),
        ("raw/musique_train_100.json", 1890),
    ];
    for (name, count) in expected {
        let mut ids = std::collections::HashSet::new();
        let mut last = None;
        let report = import_passages(
            &data.join(name),
            None,
            &mut |p| {
                assert!(!p.text.is_empty() && !p.title.is_empty(), "{name}: {p:?}");
                assert!(ids.insert(p.id), "{name}");
                Ok(())
            },
            &mut |p| last = Some(p),
            &|| false,
        )
        .unwrap_or_else(|e| panic!("{name}: {e}"));
        assert_eq!(report.rejected, [], "{name}");
        assert_eq!((report.kept, ids.len()), (count, count as usize), "{name}");
        let last = last.expect("progress at the end");
        assert_eq!(last.bytes_read, last.bytes_total);
    }
}
