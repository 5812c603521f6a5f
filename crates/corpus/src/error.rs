//! What an import reports: its progress, its rejected records, and why it could not go on.

use std::path::PathBuf;

use crate::Format;

/// Whatever the caller's record callback failed with.
pub type ConsumerError = Box<dyn std::error::Error + Send + Sync>;

/// Why an import stopped. Bad single records are [`Rejection`]s instead.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum ImportError {
    #[error("could not read {}", path.display())]
    Read {
        path: PathBuf,
        #[source]
        source: std::io::Error,
    },
    #[error("{} is empty: choose a file with at least one record", path.display())]
    Empty { path: PathBuf },
    #[error("could not recognise the format of {}: {reason}", path.display())]
    Unrecognised { path: PathBuf, reason: String },
    #[error("{} line {line}: {reason}; the rest of the file cannot be read: repair or download it again", path.display())]
    Broken { path: PathBuf, line: u64, reason: String },
    #[error("{} has no column {wanted} (it has: {found}): name the columns in the first line", path.display())]
    MissingColumn {
        path: PathBuf,
        wanted: &'static str,
        found: String,
    },
    #[error("the format {format} holds no {wanted}: choose another file or format")]
    WrongContent { format: Format, wanted: &'static str },
    #[error("{} has no usable {wanted}: all {read} records were rejected, the first at {first}", path.display())]
    NothingKept {
        path: PathBuf,
        wanted: &'static str,
        read: u64,
        first: String,
    },
    #[error("could not take in the record of {} line {line}", path.display())]
    Consumer {
        path: PathBuf,
        line: u64,
        #[source]
        source: ConsumerError,
    },
    #[error("the import was cancelled")]
    Cancelled,
}

/// A record that was left out.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Rejection {
    pub file: PathBuf,
    /// From 1: the line where the record starts.
    pub line: u64,
    /// Names the field and says what to change.
    pub reason: String,
}

impl std::fmt::Display for Rejection {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "{} line {}: {}", self.file.display(), self.line, self.reason)
    }
}

/// What an import did.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ImportReport {
    pub format: Format,
    /// Records seen. A HotpotQA record holds several passages, so `kept` may exceed it.
    pub read: u64,
    /// Questions or passages handed to the caller.
    pub kept: u64,
    /// The first twenty.
    pub rejected: Vec<Rejection>,
    pub rejected_count: u64,
}

/// How far an import is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Progress {
    pub bytes_read: u64,
    pub bytes_total: u64,
    pub records: u64,
}
