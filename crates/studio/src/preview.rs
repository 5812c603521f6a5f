//! A look into a file before it is imported.

use std::path::Path;

use serde::{Deserialize, Serialize};
use specta::Type;

use crate::view::Rejected;
use crate::{Result, StudioError};

/// Records shown.
const RECORDS: usize = 3;
/// Characters of a record shown.
const CHARACTERS: usize = 240;

#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, Type)]
pub struct PreviewRecord {
    /// A passage's title, or a question.
    pub heading: String,
    /// The passage's text, or the answer.
    pub text: String,
}

/// What a file seems to be, and its first records.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, Type)]
pub struct PreviewView {
    /// The format guessed or given.
    pub format: String,
    pub bytes: f64,
    pub passages: Vec<PreviewRecord>,
    pub questions: Vec<PreviewRecord>,
    /// Why the first bad record before these was left out.
    pub rejected: Option<Rejected>,
}

/// Ends an import that has shown enough.
#[derive(Debug, thiserror::Error)]
#[error("enough was seen")]
struct Enough;

/// Reads the first records of a file or folder, both as passages and as questions.
pub fn preview(path: &Path, format: Option<&str>) -> Result<PreviewView> {
    let format = match crate::library::parse_format(format)? {
        Some(format) => format,
        None => corpus::detect(path)?,
    };
    let mut failure = None;
    let mut rejected = None;
    let mut passages = Vec::new();
    let outcome = corpus::import_passages(
        path,
        Some(format),
        &mut |passage| take(&mut passages, passage.title, &passage.text),
        &mut |_| {},
        &|| false,
    );
    settle(outcome, &mut rejected, &mut failure);
    let mut questions = Vec::new();
    let outcome = corpus::import_questions(
        path,
        Some(format),
        &mut |labelled| {
            let answer = labelled.gold.answers.join(" / ");
            take(&mut questions, labelled.question.text, &answer)
        },
        &mut |_| {},
        &|| false,
    );
    settle(outcome, &mut rejected, &mut failure);
    match failure {
        Some(error) if passages.is_empty() && questions.is_empty() => Err(error),
        _ => Ok(PreviewView {
            format: format.to_string(),
            bytes: std::fs::metadata(path).map_or(0.0, |meta| if meta.is_file() { meta.len() as f64 } else { 0.0 }),
            passages,
            questions,
            rejected,
        }),
    }
}

fn take(
    records: &mut Vec<PreviewRecord>,
    heading: String,
    text: &str,
) -> std::result::Result<(), corpus::ConsumerError> {
    records.push(PreviewRecord {
        heading,
        text: text.chars().take(CHARACTERS).collect(),
    });
    if records.len() == RECORDS {
        Err(Enough.into())
    } else {
        Ok(())
    }
}

/// Keeps the first failure that is not our own stop, and the first rejection.
fn settle(
    outcome: std::result::Result<corpus::ImportReport, corpus::ImportError>,
    rejected: &mut Option<Rejected>,
    failure: &mut Option<StudioError>,
) {
    match outcome {
        Ok(report) => {
            if let (None, Some(first)) = (&rejected, report.rejected.first()) {
                *rejected = Some(Rejected {
                    file: first.file.display().to_string(),
                    line: first.line as u32,
                    reason: first.reason.clone(),
                });
            }
        }
        Err(corpus::ImportError::Consumer { source, .. }) if source.is::<Enough>() => {}
        Err(error) => {
            failure.get_or_insert(error.into());
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_file_shows_its_format_and_first_records() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("fruit.jsonl");
        let line = |i: usize| format!("{{\"id\":\"{i}\",\"title\":\"Fruit {i}\",\"text\":\"It is sweet.\"}}\n");
        std::fs::write(&path, (0..1000).map(line).collect::<String>()).unwrap();
        let seen = preview(&path, None).unwrap();
        assert_eq!((seen.format.as_str(), seen.passages.len()), ("jsonl", 3));
        assert_eq!(seen.passages[2].heading, "Fruit 2");
    }

    #[test]
    fn a_file_without_records_says_why() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("notes.bin");
        std::fs::write(&path, "no json").unwrap();
        let error = preview(&path, None).unwrap_err();
        assert!(error.to_string().contains("notes.bin"), "{error}");
    }
}
