//! What can go wrong with an index.

use std::path::PathBuf;

/// A failure to build, open or read an index.
#[derive(Debug, thiserror::Error)]
pub enum RetrievalError {
    #[error("cancelled")]
    Cancelled,
    #[error("cannot build the index `{path}`: something is already there")]
    Exists { path: PathBuf },
    #[error("cannot build an index at `{path}`: the path names no folder")]
    NoName { path: PathBuf },
    #[error("no index at `{path}`")]
    Missing { path: PathBuf },
    /// Built with other analysis rules, or by another program: build it again.
    #[error("index `{path}` has format `{found}`, this program reads `{expected}`")]
    Format {
        path: PathBuf,
        found: String,
        expected: String,
    },
    #[error("k1 = {k1}, b = {b}, title_boost = {title_boost}: k1 and title_boost must be at least 0, b within 0..=1")]
    Parameters { k1: f32, b: f32, title_boost: f32 },
    #[error("{attempted} `{path}`")]
    File {
        attempted: &'static str,
        path: PathBuf,
        #[source]
        source: std::io::Error,
    },
    #[error("{attempted}")]
    Index {
        attempted: &'static str,
        #[source]
        source: tantivy::TantivyError,
    },
    #[error("passage {passage_idx} of the index has no `{field}`")]
    Damaged { passage_idx: u64, field: &'static str },
}

/// Wraps a tantivy or I/O error with what was attempted.
pub(crate) fn attempting<E: Into<tantivy::TantivyError>>(attempted: &'static str) -> impl Fn(E) -> RetrievalError {
    move |error| RetrievalError::Index {
        attempted,
        source: error.into(),
    }
}
