//! Lexical retrieval: a BM25 index of passages on disk or in memory, the reasons for a score, and the
//! places in a text that a query matches.
//!
//! Tantivy stores postings and passages. The scoring is ours, because tantivy fixes `k1` and `b` and
//! rounds lengths. Left out: dense retrieval, downloading, and any query syntax: a query is plain text.

mod analysis;
mod error;
mod highlight;
mod index;
mod scoring;
mod search;

pub use analysis::{Word, words};
pub use error::RetrievalError;
pub use highlight::{highlights, snippet};
pub use index::IndexBuilder;
pub use scoring::Bm25Parameters;
pub use search::{Bm25Index, Explanation, IndexedField, TermScore};
