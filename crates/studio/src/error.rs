//! What can go wrong in a use case, with a code to branch on and a message to show.

use std::path::{Path, PathBuf};

use crate::view::ErrorView;

#[derive(Debug, thiserror::Error)]
pub enum StudioError {
    #[error("cancelled; what was done so far is kept, and can be resumed")]
    Cancelled,
    #[error("there is no {kind} `{name}`{hint}")]
    NotFound {
        kind: &'static str,
        name: String,
        hint: String,
    },
    #[error("{0}")]
    Invalid(String),
    #[error("`{name}` is at work in {whom}")]
    Busy { name: String, whom: String },
    #[error("cannot {action} {path}")]
    File {
        action: &'static str,
        path: PathBuf,
        source: std::io::Error,
    },
    #[error("set-up: {0}")]
    Setup(String),
    #[error(transparent)]
    Store(#[from] store::Error),
    #[error(transparent)]
    Import(corpus::ImportError),
    #[error(transparent)]
    Retrieval(retrieval::RetrievalError),
    #[error(transparent)]
    Model(#[from] lm::LmError),
    #[error(transparent)]
    Training(training::TrainingError),
    #[error(transparent)]
    Engine(gym::EngineError),
}

impl From<gym::EngineError> for StudioError {
    fn from(error: gym::EngineError) -> Self {
        match error {
            gym::EngineError::Cancelled => StudioError::Cancelled,
            other => StudioError::Engine(other),
        }
    }
}

impl From<corpus::ImportError> for StudioError {
    fn from(error: corpus::ImportError) -> Self {
        match error {
            corpus::ImportError::Cancelled => StudioError::Cancelled,
            other => StudioError::Import(other),
        }
    }
}

impl From<retrieval::RetrievalError> for StudioError {
    fn from(error: retrieval::RetrievalError) -> Self {
        match error {
            retrieval::RetrievalError::Cancelled => StudioError::Cancelled,
            other => StudioError::Retrieval(other),
        }
    }
}

impl StudioError {
    /// What went wrong with a file or folder: "cannot {action} {path}".
    pub(crate) fn file(action: &'static str, path: &Path) -> impl FnOnce(std::io::Error) -> StudioError {
        let path = path.to_path_buf();
        move |source| StudioError::File { action, path, source }
    }

    pub(crate) fn busy_here(name: &str) -> StudioError {
        StudioError::Busy {
            name: name.into(),
            whom: "this process already".into(),
        }
    }

    /// `process`: its number, if known.
    pub(crate) fn busy_elsewhere(name: &str, process: &str) -> StudioError {
        let process = match process {
            "" => String::new(),
            number => format!(" (process {number})"),
        };
        StudioError::Busy {
            name: name.into(),
            whom: format!("another process{process}: wait until that ends, or stop it with Ctrl-C there"),
        }
    }

    /// What a host branches on; messages are for people only.
    pub fn code(&self) -> &'static str {
        match self {
            StudioError::Cancelled => "cancelled",
            StudioError::NotFound { .. } => "not_found",
            StudioError::Invalid(_) => "invalid",
            StudioError::Busy { .. } => "busy",
            StudioError::File { .. } => "file",
            StudioError::Setup(_) => "setup",
            StudioError::Store(_) => "store",
            StudioError::Import(_) => "import",
            StudioError::Retrieval(_) => "retrieval",
            StudioError::Model(_) => "model",
            StudioError::Training(_) => "training",
            StudioError::Engine(_) => "engine",
        }
    }

    /// The error and its causes in one line.
    pub fn chain(&self) -> String {
        gym::chain(self)
    }

    pub fn view(&self) -> ErrorView {
        ErrorView {
            code: self.code().into(),
            message: self.chain(),
        }
    }
}
