//! Damaged and odd files are described, never fatal to the program.

use std::path::Path;

use corpus::{Format, ImportError, ImportReport, detect, import_passages, import_questions};
use gym::{LabelledQuestion, Passage};
use proptest::prelude::*;

fn write(folder: &tempfile::TempDir, name: &str, content: impl AsRef<[u8]>) -> std::path::PathBuf {
    let path = folder.path().join(name);
    std::fs::create_dir_all(path.parent().expect("a parent")).expect("a folder");
    std::fs::write(&path, content).expect("a written file");
    path
}

fn questions(path: &Path) -> Result<(ImportReport, Vec<LabelledQuestion>), ImportError> {
    let mut kept = Vec::new();
    let mut keep = |q| {
        kept.push(q);
        Ok(())
    };
    let report = import_questions(path, None, &mut keep, &mut |_| {}, &|| false)?;
    Ok((report, kept))
}

fn passages(path: &Path) -> Result<(ImportReport, Vec<Passage>), ImportError> {
    let mut kept = Vec::new();
    let mut keep = |p| {
        kept.push(p);
        Ok(())
    };
    let report = import_passages(path, None, &mut keep, &mut |_| {}, &|| false)?;
    Ok((report, kept))
}

fn lines_rejected(report: &ImportReport) -> Vec<(u64, &str)> {
    report.rejected.iter().map(|r| (r.line, r.reason.as_str())).collect()
}

#[test]
fn bad_lines_are_rejected_by_line_and_field() {
    let dir = tempfile::tempdir().expect("temp dir");
    let mut content = b"\xef\xbb\xbf{\"id\":1,\"question\":\"q\",\"answer\":true}\r\n\r\n".to_vec();
    content.extend(b"{\"id\":2,\"question\":\"q\"}\r\n{\"id\":3,\"question\":[],\"answer\":\"a\"}\r\n");
    content.extend(b"{\"id\":\"\xff\"}\n{\"id\":4,\n{\"id\":1,\"question\":\"q\",\"answer\":\"a\"}\n[]\n");
    content.extend(b"{\"_id\":\"x\",\"query\":\"q\",\"golden_answers\":[\"a\",\"b\"]}");
    let (report, kept) = questions(&write(&dir, "q.jsonl", content)).expect("an import");
    assert_eq!((report.read, report.kept, report.rejected_count), (8, 2, 6));
    assert_eq!(kept[0].gold.answers, ["yes"]);
    assert_eq!(kept[1].gold.answers, ["a", "b"]);
    let rejected = lines_rejected(&report);
    assert_eq!(rejected.iter().map(|r| r.0).collect::<Vec<_>>(), [3, 4, 5, 6, 7, 8]);
    for (n, word) in ["`answer`", "`question`", "UTF-8", "JSON", "id `1`", "object"]
        .iter()
        .enumerate()
    {
        assert!(rejected[n].1.contains(word), "{:?}", rejected[n]);
    }
}

#[test]
fn array_elements_carry_their_own_line() {
    let dir = tempfile::tempdir().expect("temp dir");
    let content = "\n[\n {\"id\":\"a\",\n  \"text\":\"t\"},\n {\"id\":\"b\"}\n ,\n\n 7, {\"id\":\"c\",\"text\":\"t\"}]";
    let (report, kept) = passages(&write(&dir, "p.json", content)).expect("an import");
    assert_eq!(kept.len(), 2);
    assert_eq!(lines_rejected(&report).iter().map(|r| r.0).collect::<Vec<_>>(), [5, 8]);
    let cut = write(&dir, "cut.json", &content[..content.len() - 3]);
    match passages(&cut) {
        Err(ImportError::Broken { line: 8, .. }) => {}
        other => panic!("{other:?}"),
    }
}

#[test]
fn csv_lines_are_right_after_multi_line_cells() {
    let dir = tempfile::tempdir().expect("temp dir");
    let content = "index,question,options,answer\r\n1,\"two\r\nlines\",\"{'A': 'it\\'s', 'B': \"\"x\"\"}\",x\r\n2,q,,\r\n3,q,\"{'A': 1\",A\r\n4,q,,a,b\r\n";
    let (report, kept) = questions(&write(&dir, "q.csv", content)).expect("an import");
    assert_eq!(kept[0].gold.answers, ["B"]);
    assert_eq!(kept[0].question.options[0].text, "it's");
    assert_eq!(
        lines_rejected(&report).iter().map(|r| r.0).collect::<Vec<_>>(),
        [4, 5, 6]
    );
    let wrong = write(&dir, "wrong.csv", "a,b\n1,2\n");
    assert!(matches!(questions(&wrong), Err(ImportError::MissingColumn { .. })));
}

#[test]
fn the_wrong_file_is_a_clear_error() {
    let dir = tempfile::tempdir().expect("temp dir");
    for name in ["e.jsonl", "e.csv", "e.json"] {
        let empty = write(&dir, name, "");
        assert!(matches!(questions(&empty), Err(ImportError::Empty { .. })), "{name}");
    }
    let text = write(&dir, "t.txt", "hello\n");
    assert!(matches!(detect(&text), Err(ImportError::Unrecognised { .. })));
    let corpus = write(&dir, "c.jsonl", "{\"id\":\"a\",\"title\":\"t\",\"contents\":\"c\"}\n");
    match questions(&corpus) {
        Err(error @ ImportError::NothingKept { .. }) => {
            assert!(error.to_string().contains("question"))
        }
        other => panic!("{other:?}"),
    }
    let utf16 = write(&dir, "u.jsonl", b"\xff\xfe{\0");
    assert!(questions(&utf16).expect_err("UTF-16").to_string().contains("UTF-8"));
    assert!(matches!(
        questions(&dir.path().join("none")),
        Err(ImportError::Read { .. })
    ));
}

#[test]
fn a_huge_line_is_rejected_and_the_next_is_read() {
    let dir = tempfile::tempdir().expect("temp dir");
    let mut content = b"{\"id\":\"a\",\"text\":\"t\"}\n".to_vec();
    content.extend(std::iter::repeat_n(b'x', 17 << 20));
    content.extend(b"\n{\"id\":\"b\",\"text\":\"t\"}\n");
    let (report, kept) = passages(&write(&dir, "p.jsonl", content)).expect("an import");
    assert_eq!(kept.iter().map(|p| p.id.as_str()).collect::<Vec<_>>(), ["a", "b"]);
    assert_eq!(lines_rejected(&report)[0].0, 2);
}

#[test]
fn folders_are_read_as_beir_medrag_and_text() {
    let dir = tempfile::tempdir().expect("temp dir");
    write(
        &dir,
        "beir/corpus.jsonl",
        "{\"_id\":\"d1\",\"title\":\"T\",\"text\":\"x\"}\n",
    );
    write(&dir, "beir/queries.jsonl", "{\"_id\":\"q1\",\"text\":\"why?\"}\n");
    write(&dir, "beir/qrels/test.tsv", "query-id\tcorpus-id\tscore\nq1\td1\t1\n");
    let beir = dir.path().join("beir");
    assert_eq!(passages(&beir).expect("a corpus").0.format, Format::Beir);
    let (_, kept) = questions(&beir).expect("questions");
    assert_eq!(kept[0].gold.passages[0].title, "T");
    assert_eq!(kept[0].split.as_deref(), Some("test"));

    let chunk = "{\"id\":\"a_0\",\"title\":\"T\",\"content\":\"x\",\"contents\":\"T. x\"}\n";
    write(&dir, "med/chunk/a.jsonl", chunk);
    let (report, kept) = passages(&dir.path().join("med")).expect("a corpus");
    assert_eq!((report.format, kept[0].text.as_str()), (Format::Medrag, "x"));

    write(
        &dir,
        "text/a/one.md",
        format!("# One\n\n{}\n\nend", "word ".repeat(300)),
    );
    write(&dir, "text/b.txt", b"\xff");
    let (report, kept) = passages(&dir.path().join("text")).expect("a corpus");
    assert_eq!(
        (report.format, report.read, report.rejected_count),
        (Format::TextFolder, 2, 1)
    );
    assert_eq!((kept[0].title.as_str(), kept[0].id.as_str()), ("One", "a/one.md#0"));
    assert!(kept.iter().all(|p| p.text.split_whitespace().count() <= 120));
}

#[test]
fn cancelling_and_consumer_errors_stop_the_import() {
    let dir = tempfile::tempdir().expect("temp dir");
    let path = write(&dir, "p.jsonl", "{\"id\":\"a\",\"text\":\"t\"}\n");
    let stopped = import_passages(&path, None, &mut |_| Ok(()), &mut |_| {}, &|| true);
    assert!(matches!(stopped, Err(ImportError::Cancelled)));
    let failed = import_passages(&path, None, &mut |_| Err("full".into()), &mut |_| {}, &|| false);
    assert!(matches!(failed, Err(ImportError::Consumer { line: 1, .. })));
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(128))]
    #[test]
    fn arbitrary_bytes_never_panic(
        bytes in prop::collection::vec(any::<u8>(), 0..300),
        start in prop::sample::select(vec!["", "[", "{\"id\":", "question,answer,options\n", "{\"id\":1,\"options\":\""]),
        name in prop::sample::select(vec!["f.jsonl", "f.csv", "f.tsv", "f.json"]),
    ) {
        let dir = tempfile::tempdir().expect("temp dir");
        let path = write(&dir, name, [start.as_bytes(), &bytes].concat());
        let _ = questions(&path);
        let _ = passages(&path);
    }
}

#[test]
fn a_question_that_comes_twice_brings_its_other_paragraphs_too() {
    let dir = tempfile::tempdir().expect("temp dir");
    let asked = |second: &str| {
        format!(
            r#"{{"id":"2hop__1","question":"q","paragraphs":[{{"title":"A","paragraph_text":"a"}},{{"title":"B","paragraph_text":"{second}"}}]}}"#
        )
    };
    let content = [asked("b"), asked("c"), asked("d"), asked("d")].join("\n");
    let (report, kept) = passages(&write(&dir, "musique.jsonl", content)).expect("an import");
    assert_eq!((report.kept, report.rejected_count), (4, 0));
    let ids: Vec<&str> = kept.iter().map(|passage| passage.id.as_str()).collect();
    assert_eq!(ids, ["2hop__1#0", "2hop__1#1", "2hop__1#1-2", "2hop__1#1-3"]);
}
