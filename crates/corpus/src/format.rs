//! The formats, their names, and how one is told from another.

use std::fmt;
use std::fs;
use std::path::{Path, PathBuf};
use std::str::FromStr;

use serde_json::Value;

use crate::error::ImportError;
use crate::source::{self, Next};

/// A publisher's format.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Format {
    /// One JSON object a line (or an array of them); FlashRAG's and this program's own fields.
    Jsonl,
    /// A folder of `corpus.jsonl`, `queries.jsonl` and `qrels/*.tsv`.
    Beir,
    /// An array of questions with `context: [[title, [sentence]]]`.
    Hotpotqa,
    /// HotpotQA's shape with `evidences`.
    TwoWiki,
    /// Questions with `paragraphs` and `question_decomposition`.
    Musique,
    /// A file or folder of chunks: `{id, title, content, contents}`.
    Medrag,
    /// Comma- or tab-separated cells under a header line.
    Csv,
    /// A folder of `.txt` and `.md` files.
    TextFolder,
}

const NAMES: [(Format, &str); 8] = [
    (Format::Jsonl, "jsonl"),
    (Format::Beir, "beir"),
    (Format::Hotpotqa, "hotpotqa"),
    (Format::TwoWiki, "2wiki"),
    (Format::Musique, "musique"),
    (Format::Medrag, "medrag"),
    (Format::Csv, "csv"),
    (Format::TextFolder, "text-folder"),
];

/// The name is none of the formats'.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("`{0}` is no format: use jsonl, beir, hotpotqa, 2wiki, musique, medrag, csv or text-folder")]
pub struct UnknownFormat(pub String);

impl Format {
    /// Reads a choice that may be `auto`, which is `None`.
    pub fn parse_choice(name: &str) -> Result<Option<Format>, UnknownFormat> {
        if name == "auto" {
            Ok(None)
        } else {
            name.parse().map(Some)
        }
    }
}

impl FromStr for Format {
    type Err = UnknownFormat;

    fn from_str(name: &str) -> Result<Format, UnknownFormat> {
        let found = NAMES.iter().find(|(_, n)| *n == name);
        found
            .map(|(format, _)| *format)
            .ok_or_else(|| UnknownFormat(name.to_owned()))
    }
}

impl fmt::Display for Format {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let found = NAMES.iter().find(|(format, _)| format == self);
        f.pad(found.map_or("?", |(_, name)| name))
    }
}

/// Tells the format from the path's kind, its extension and its first record.
pub fn detect(path: &Path) -> Result<Format, ImportError> {
    let meta = fs::metadata(path).map_err(|source| read_error(path, source))?;
    if meta.is_dir() {
        return detect_folder(path);
    }
    if extension(path).is_some_and(|e| e == "csv" || e == "tsv") {
        return Ok(Format::Csv);
    }
    let mut first = None;
    let outcome = source::json_records(path, &mut |_, record| {
        first = Some(record);
        Ok(Next::Stop)
    });
    match (first, outcome) {
        (Some(Ok(record)), _) => Ok(of_record(&record)),
        (Some(Err(reason)), _) => Err(ImportError::Unrecognised {
            path: path.to_owned(),
            reason: format!(
                "its first record is not a JSON object ({reason}); choose a .jsonl, .json, .csv or .tsv file, or a folder of text files"
            ),
        }),
        (None, Err(error)) => Err(error),
        (None, Ok(())) => Err(ImportError::Empty { path: path.to_owned() }),
    }
}

fn detect_folder(path: &Path) -> Result<Format, ImportError> {
    if path.join("corpus.jsonl").is_file() || path.join("queries.jsonl").is_file() {
        return Ok(Format::Beir);
    }
    let files = files_under(path)?;
    let any = |wanted: &[&str]| {
        files
            .iter()
            .any(|f| extension(f).is_some_and(|e| wanted.contains(&e.as_str())))
    };
    if any(&["jsonl"]) {
        Ok(Format::Medrag)
    } else if any(&["txt", "md"]) {
        Ok(Format::TextFolder)
    } else {
        Err(ImportError::Unrecognised {
            path: path.to_owned(),
            reason: "the folder holds no .jsonl, .txt or .md file; choose one that does".to_owned(),
        })
    }
}

fn of_record(record: &Value) -> Format {
    let has = |key: &str| record.get(key).is_some();
    if has("paragraphs") {
        Format::Musique
    } else if has("context") && (has("evidences") || has("qa_pairs")) {
        Format::TwoWiki
    } else if has("context") && has("supporting_facts") {
        Format::Hotpotqa
    } else if has("content") && has("contents") {
        Format::Medrag
    } else {
        Format::Jsonl
    }
}

/// Every plain file below a folder, sorted by path; links are not followed.
pub(crate) fn files_under(folder: &Path) -> Result<Vec<PathBuf>, ImportError> {
    let mut found = Vec::new();
    let mut folders = vec![folder.to_owned()];
    while let Some(current) = folders.pop() {
        for entry in fs::read_dir(&current).map_err(|source| read_error(&current, source))? {
            let entry = entry.map_err(|source| read_error(&current, source))?;
            let kind = entry.file_type().map_err(|source| read_error(&entry.path(), source))?;
            if kind.is_dir() {
                folders.push(entry.path());
            } else if kind.is_file() {
                found.push(entry.path());
            }
        }
    }
    found.sort();
    Ok(found)
}

pub(crate) fn extension(path: &Path) -> Option<String> {
    Some(path.extension()?.to_str()?.to_ascii_lowercase())
}

pub(crate) fn read_error(path: &Path, source: std::io::Error) -> ImportError {
    ImportError::Read {
        path: path.to_owned(),
        source,
    }
}
