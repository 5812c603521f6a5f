//! Runs an import: opens the files of a format, reads each record, counts and reports.

use std::collections::{HashMap, HashSet};
use std::hash::{DefaultHasher, Hash, Hasher};
use std::path::{Path, PathBuf};

use gym::{GoldPassage, LabelledQuestion, Passage};
use serde_json::Value;

use crate::error::{ConsumerError, ImportError, ImportReport, Progress, Rejection};
use crate::format::{Format, detect, extension, files_under, read_error};
use crate::source::{self, MAX_RECORD_BYTES, Next, Place};
use crate::{passage, question, text_folder};

const REJECTIONS_SHOWN: usize = 20;
const PROGRESS_EVERY: u64 = 256;

/// Streams the passages of `path` to `on_record`; `None` detects the format.
///
/// The paragraphs of HotpotQA, 2Wiki and MuSiQue questions are pooled, each (title, text) once.
/// `on_progress` is called every few hundred records and at the end.
pub fn import_passages(
    path: &Path,
    format: Option<Format>,
    on_record: &mut dyn FnMut(Passage) -> Result<(), ConsumerError>,
    on_progress: &mut dyn FnMut(Progress),
    cancelled: &dyn Fn() -> bool,
) -> Result<ImportReport, ImportError> {
    let format = format.map_or_else(|| detect(path), Ok)?;
    let files = match format {
        Format::Beir => vec![path.join("corpus.jsonl")],
        Format::Medrag if path.is_dir() => files_with(path, &["jsonl"])?,
        Format::TextFolder => files_with(path, &["txt", "md"])?,
        _ => vec![path.to_owned()],
    };
    let mut run = Run::new(path, format, "passage", &files, on_progress, cancelled)?;
    let mut ids = Seen::default();
    let mut paragraphs = Seen::default();
    for file in &files {
        if format == Format::TextFolder {
            let name = file
                .strip_prefix(path)
                .unwrap_or(file)
                .to_string_lossy()
                .replace('\\', "/");
            let text = read_text(file)?;
            let place = Place {
                line: 1,
                bytes: text.as_ref().map_or(0, |t| t.len() as u64),
            };
            run.record(
                file,
                place,
                text,
                |text| {
                    let found = text_folder::passages(&name, &text);
                    if found.is_empty() {
                        Err("the file is blank".to_owned())
                    } else {
                        Ok(found)
                    }
                },
                on_record,
            )?;
        } else {
            run.records(
                file,
                &["text", "contents", "content"],
                |record, fallback| {
                    let found = passage::read(record, fallback)?;
                    if record.get("context").is_some() || record.get("paragraphs").is_some() {
                        let mut new: Vec<Passage> = found;
                        new.retain(|p| !p.text.is_empty() && paragraphs.insert(&(&p.title, &p.text)));
                        // A question may come twice, with other paragraphs; their ids are ours to choose.
                        for passage in &mut new {
                            let first = passage.id.clone();
                            let mut twins = 2..;
                            while !ids.insert(&passage.id) {
                                passage.id = format!("{first}-{}", twins.next().unwrap_or(0));
                            }
                        }
                        return Ok(new);
                    }
                    for passage in &found {
                        fresh(&mut ids, &passage.id)?;
                    }
                    Ok(found)
                },
                on_record,
            )?;
        }
        run.close_file(file);
    }
    run.finish()
}

/// Streams the labelled questions of `path` to `on_record`; `None` detects the format.
///
/// A multiple-choice answer becomes the option's label. BEIR questions may have no answer: their
/// gold passages come from `qrels/*.tsv`, whose file name is the split.
pub fn import_questions(
    path: &Path,
    format: Option<Format>,
    on_record: &mut dyn FnMut(LabelledQuestion) -> Result<(), ConsumerError>,
    on_progress: &mut dyn FnMut(Progress),
    cancelled: &dyn Fn() -> bool,
) -> Result<ImportReport, ImportError> {
    let format = format.map_or_else(|| detect(path), Ok)?;
    let mut judged = HashMap::new();
    let file = match format {
        Format::TextFolder | Format::Medrag => {
            return Err(ImportError::WrongContent {
                format,
                wanted: "questions",
            });
        }
        Format::Beir => {
            judged = relevant(path, cancelled)?;
            path.join("queries.jsonl")
        }
        _ => path.to_owned(),
    };
    let files = [file.clone()];
    let mut run = Run::new(path, format, "question", &files, on_progress, cancelled)?;
    let mut ids = Seen::default();
    run.records(
        &file,
        &["question", "query", "text"],
        |record, fallback| {
            let mut read = question::read(record, fallback, format == Format::Beir)?;
            if let Some((split, titles)) = judged.remove(&read.question.id.0) {
                read.split.get_or_insert(split);
                if read.gold.passages.is_empty() {
                    let gold = |title| GoldPassage { title, sentence: None };
                    read.gold.passages = titles.into_iter().map(gold).collect();
                }
            }
            fresh(&mut ids, &read.question.id.0)?;
            Ok(vec![read])
        },
        on_record,
    )?;
    run.close_file(&file);
    run.finish()
}

fn fresh(ids: &mut Seen, id: &str) -> Result<(), String> {
    if ids.insert(id) {
        Ok(())
    } else {
        Err(format!("the id `{id}` occurs before: ids must differ"))
    }
}

/// Keys seen so far, as 128-bit hashes: a corpus of millions stays small.
#[derive(Default)]
struct Seen(HashSet<(u64, u64)>);

impl Seen {
    /// Whether the key is new.
    fn insert<K: Hash + ?Sized>(&mut self, key: &K) -> bool {
        let half = |salt: u8| {
            let mut hasher = DefaultHasher::new();
            salt.hash(&mut hasher);
            key.hash(&mut hasher);
            hasher.finish()
        };
        self.0.insert((half(0), half(1)))
    }
}

/// One import under way.
struct Run<'a> {
    path: PathBuf,
    wanted: &'static str,
    report: ImportReport,
    closed_bytes: u64,
    total_bytes: u64,
    on_progress: &'a mut dyn FnMut(Progress),
    cancelled: &'a dyn Fn() -> bool,
}

impl<'a> Run<'a> {
    fn new(
        path: &Path,
        format: Format,
        wanted: &'static str,
        files: &[PathBuf],
        on_progress: &'a mut dyn FnMut(Progress),
        cancelled: &'a dyn Fn() -> bool,
    ) -> Result<Run<'a>, ImportError> {
        let mut total_bytes = 0;
        for file in files {
            total_bytes += std::fs::metadata(file).map_err(|e| read_error(file, e))?.len();
        }
        let report = ImportReport {
            format,
            read: 0,
            kept: 0,
            rejected: Vec::new(),
            rejected_count: 0,
        };
        Ok(Run {
            path: path.to_owned(),
            wanted,
            report,
            closed_bytes: 0,
            total_bytes,
            on_progress,
            cancelled,
        })
    }

    /// Reads every record of a JSON or table file.
    fn records<T>(
        &mut self,
        file: &Path,
        columns: &'static [&'static str],
        mut parse: impl FnMut(&Value, Option<String>) -> Result<Vec<T>, String>,
        on_item: &mut dyn FnMut(T) -> Result<(), ConsumerError>,
    ) -> Result<(), ImportError> {
        if self.report.format != Format::Csv {
            return source::json_records(file, &mut |place, record| {
                self.record(file, place, record, |value| parse(&value, None), on_item)?;
                Ok(Next::Continue)
            });
        }
        let stem = file.file_stem().unwrap_or_default().to_string_lossy().into_owned();
        let own_ids = std::cell::Cell::new(true);
        let mut check = |names: &[String]| {
            let has = |wanted: &&str| names.iter().any(|name| name == wanted);
            own_ids.set(["id", "_id", "qid", "docid", "index"].iter().any(has));
            if columns.iter().any(has) {
                return Ok(());
            }
            let found = names.iter().filter(|name| !name.is_empty());
            let found = found.map(|name| format!("`{name}`")).collect::<Vec<_>>().join(", ");
            Err(ImportError::MissingColumn {
                path: file.to_owned(),
                wanted: columns[0],
                found,
            })
        };
        source::csv_records(file, &mut check, &mut |place, record| {
            let fallback = (!own_ids.get()).then(|| format!("{stem}-{}", self.report.read + 1));
            self.record(file, place, record, |value| parse(&value, fallback), on_item)?;
            Ok(Next::Continue)
        })
    }

    fn record<R, T>(
        &mut self,
        file: &Path,
        place: Place,
        record: Result<R, String>,
        parse: impl FnOnce(R) -> Result<Vec<T>, String>,
        on_item: &mut dyn FnMut(T) -> Result<(), ConsumerError>,
    ) -> Result<(), ImportError> {
        if (self.cancelled)() {
            return Err(ImportError::Cancelled);
        }
        self.report.read += 1;
        match record.and_then(parse) {
            Ok(items) => {
                for item in items {
                    on_item(item).map_err(|source| ImportError::Consumer {
                        path: file.to_owned(),
                        line: place.line,
                        source,
                    })?;
                    self.report.kept += 1;
                }
            }
            Err(reason) => {
                self.report.rejected_count += 1;
                if self.report.rejected.len() < REJECTIONS_SHOWN {
                    let file = file.to_owned();
                    self.report.rejected.push(Rejection {
                        file,
                        line: place.line,
                        reason,
                    });
                }
            }
        }
        if self.report.read.is_multiple_of(PROGRESS_EVERY) {
            self.progress(self.closed_bytes + place.bytes);
        }
        Ok(())
    }

    fn progress(&mut self, bytes_read: u64) {
        let bytes_read = bytes_read.min(self.total_bytes);
        let records = self.report.read;
        (self.on_progress)(Progress {
            bytes_read,
            bytes_total: self.total_bytes,
            records,
        });
    }

    fn close_file(&mut self, file: &Path) {
        self.closed_bytes += std::fs::metadata(file).map_or(0, |m| m.len());
        self.progress(self.closed_bytes);
    }

    fn finish(self) -> Result<ImportReport, ImportError> {
        if self.report.read == 0 {
            return Err(ImportError::Empty { path: self.path });
        }
        if self.report.kept == 0 {
            let first = self
                .report
                .rejected
                .first()
                .map(Rejection::to_string)
                .unwrap_or_default();
            let (path, wanted, read) = (self.path, self.wanted, self.report.read);
            return Err(ImportError::NothingKept {
                path,
                wanted,
                read,
                first,
            });
        }
        Ok(self.report)
    }
}

fn files_with(folder: &Path, extensions: &[&str]) -> Result<Vec<PathBuf>, ImportError> {
    let mut files = files_under(folder)?;
    files.retain(|f| extension(f).is_some_and(|e| extensions.contains(&e.as_str())));
    if files.is_empty() {
        return Err(ImportError::Empty {
            path: folder.to_owned(),
        });
    }
    Ok(files)
}

/// A text file's content, or why it is rejected.
fn read_text(file: &Path) -> Result<Result<String, String>, ImportError> {
    let bytes = std::fs::metadata(file).map_err(|e| read_error(file, e))?.len();
    if bytes > MAX_RECORD_BYTES as u64 {
        return Ok(Err(format!(
            "the file has more than {MAX_RECORD_BYTES} bytes: split it"
        )));
    }
    let content = std::fs::read(file).map_err(|e| read_error(file, e))?;
    Ok(String::from_utf8(content).map_err(|_| "not UTF-8: save the file as UTF-8".to_owned()))
}

type Judged = HashMap<String, (String, Vec<String>)>;

/// BEIR: each judged question's split and the titles of its relevant passages.
fn relevant(folder: &Path, cancelled: &dyn Fn() -> bool) -> Result<Judged, ImportError> {
    let mut judged = Judged::new();
    let qrels = folder.join("qrels");
    if !qrels.is_dir() {
        return Ok(judged);
    }
    for file in files_with(&qrels, &["tsv"])? {
        let split = file.file_stem().unwrap_or_default().to_string_lossy().into_owned();
        source::csv_records(&file, &mut |_| Ok(()), &mut |_, row| {
            let cell = |key: &str| row.as_ref().ok().and_then(|r| r.get(key)).and_then(Value::as_str);
            let score = cell("score").and_then(|s| s.trim().parse::<i64>().ok()).unwrap_or(0);
            if let (Some(query), Some(doc), true) = (cell("query-id"), cell("corpus-id"), score > 0) {
                let entry = judged
                    .entry(query.to_owned())
                    .or_insert_with(|| (split.clone(), Vec::new()));
                entry.1.push(doc.to_owned());
            }
            Ok(Next::Continue)
        })?;
    }
    let wanted: HashSet<&String> = judged.values().flat_map(|(_, docs)| docs).collect();
    let mut titles: HashMap<String, String> = HashMap::new();
    let corpus = folder.join("corpus.jsonl");
    if corpus.is_file() {
        source::json_records(&corpus, &mut |_, record| {
            if cancelled() {
                return Err(ImportError::Cancelled);
            }
            let found = record.ok().and_then(|record| passage::read(&record, None).ok());
            for passage in found.unwrap_or_default() {
                if wanted.contains(&passage.id) {
                    titles.insert(passage.id, passage.title);
                }
            }
            Ok(Next::Continue)
        })?;
    }
    for (_, docs) in judged.values_mut() {
        *docs = docs.iter().filter_map(|doc| titles.get(doc).cloned()).collect();
    }
    Ok(judged)
}
