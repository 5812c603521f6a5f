//! What can go wrong with a model file, an adapter or a computation.

use std::path::PathBuf;

#[derive(Debug, thiserror::Error)]
pub enum LmError {
    #[error("cannot read `{}`", path.display())]
    Read { path: PathBuf, source: std::io::Error },
    /// The bytes are not a well-formed model or adapter: cut off, overwritten, or something else.
    #[error("`{what}` is damaged: {message}")]
    Corrupt { what: String, message: String },
    /// Well formed, but of a kind that this program cannot run.
    #[error("not supported: {0}")]
    Unsupported(String),
    #[error("tokenizer: {0}")]
    Tokenizer(String),
    #[error("the chat template failed")]
    Template(#[source] minijinja::Error),
    #[error("grammar: {0}")]
    Grammar(String),
    /// A server that cannot be used as it was described. Never names the key.
    #[error("endpoint {url}: {message}")]
    Endpoint { url: String, message: String },
    #[error("cannot start a thread")]
    Thread(#[source] std::io::Error),
    #[error("computation failed")]
    Compute(#[from] candle_core::Error),
}

impl LmError {
    pub(crate) fn corrupt(what: impl Into<String>, message: impl std::fmt::Display) -> LmError {
        LmError::Corrupt {
            what: what.into(),
            // A damaged file may have put anything into it.
            message: message
                .to_string()
                .chars()
                .map(|c| if c.is_control() { ' ' } else { c })
                .take(300)
                .collect(),
        }
    }
}
