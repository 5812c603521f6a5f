//! What can go wrong with the database, in words a person can act on.

use std::path::PathBuf;

pub type Result<T> = std::result::Result<T, Error>;

#[derive(Debug, thiserror::Error)]
pub enum Error {
    #[error("opening the database {path}", path = path.display())]
    Open { path: PathBuf, source: rusqlite::Error },
    #[error(
        "{path} has schema version {found}, this program knows up to {known}: open it with a newer program",
        path = path.display()
    )]
    Newer { path: PathBuf, found: u32, known: u32 },
    #[error("upgrading the database to schema version {version}")]
    Migrate { version: u32, source: rusqlite::Error },
    #[error("the database is damaged: {}", problems.join("; "))]
    Damaged { problems: Vec<String> },
    #[error("{attempted}: the disk is full; nothing of it was stored")]
    DiskFull { attempted: String, source: rusqlite::Error },
    #[error("{attempted}: the database is read-only")]
    ReadOnly { attempted: String, source: rusqlite::Error },
    #[error("{attempted}: another program is writing to the database")]
    Busy { attempted: String, source: rusqlite::Error },
    #[error("{attempted}")]
    Sql { attempted: String, source: rusqlite::Error },
    #[error("no {what} `{name}`")]
    NotFound { what: &'static str, name: String },
    #[error("{what} `{name}` already exists")]
    Exists { what: &'static str, name: String },
    #[error("{what} `{name}` is used by {}: remove them first", by.join(", "))]
    InUse {
        what: &'static str,
        name: String,
        by: Vec<String>,
    },
    #[error("importing `{name}`: record {record}")]
    Import {
        name: String,
        record: u64,
        source: Box<dyn std::error::Error + Send + Sync>,
    },
    #[error("importing `{name}`: two records have the id `{id}`")]
    DuplicateId { name: String, id: String },
    #[error("run `{run_id}`, question `{question_id}`: step {step_idx} is stored with other content")]
    StepConflict {
        run_id: String,
        question_id: String,
        step_idx: u32,
    },
    #[error("run `{run_id}`, question `{question_id}`: step {step_idx} follows {stored} stored steps")]
    StepGap {
        run_id: String,
        question_id: String,
        step_idx: u32,
        stored: u32,
    },
    #[error("run `{run_id}`, question `{question_id}`, step {step_idx}: {what} is not a finite number")]
    NotFinite {
        run_id: String,
        question_id: String,
        step_idx: u32,
        what: &'static str,
    },
    #[error("merging {path}: {what} `{name}` differs here and there ({difference})", path = path.display())]
    MergeConflict {
        path: PathBuf,
        what: &'static str,
        name: String,
        difference: String,
    },
}

/// Says what was attempted when SQLite fails.
pub(crate) trait Attempt<T> {
    fn attempt(self, attempted: impl Into<String>) -> Result<T>;
}

impl<T> Attempt<T> for rusqlite::Result<T> {
    fn attempt(self, attempted: impl Into<String>) -> Result<T> {
        use rusqlite::ErrorCode as Code;
        self.map_err(|source| {
            let attempted = attempted.into();
            match source.sqlite_error_code() {
                Some(Code::DiskFull) => Error::DiskFull { attempted, source },
                Some(Code::ReadOnly) => Error::ReadOnly { attempted, source },
                Some(Code::DatabaseBusy | Code::DatabaseLocked) => Error::Busy { attempted, source },
                _ => Error::Sql { attempted, source },
            }
        })
    }
}

/// Whether the failure is a second row under a unique key.
pub(crate) fn is_duplicate(error: &rusqlite::Error) -> bool {
    use rusqlite::ffi;
    error.sqlite_error().is_some_and(|error| {
        [ffi::SQLITE_CONSTRAINT_UNIQUE, ffi::SQLITE_CONSTRAINT_PRIMARYKEY].contains(&error.extended_code)
    })
}
