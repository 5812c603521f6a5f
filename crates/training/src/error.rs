//! What can go wrong in training.

use std::path::{Path, PathBuf};

#[derive(Debug, thiserror::Error)]
pub enum TrainingError {
    #[error("the base model cannot be trained")]
    Base(#[from] lm::LmError),
    #[error("cannot {action} `{}`", path.display())]
    File {
        action: &'static str,
        path: PathBuf,
        source: std::io::Error,
    },
    #[error("`{}` is damaged: {message}", path.display())]
    Corrupt { path: PathBuf, message: String },
    /// A setting outside its range, or data that the method cannot use.
    #[error("{0}")]
    Invalid(String),
    #[error("example {example}: {message}")]
    Example { example: usize, message: String },
    /// The loss or a gradient is no longer a number.
    #[error("step {step} gave {what}, which is not a finite number: lower the learning rate")]
    Diverged { step: u64, what: String },
    /// A reward model at work.
    #[error("the reward model gives no rewards")]
    Engine(#[from] gym::EngineError),
    #[error("cancelled")]
    Cancelled,
}

impl TrainingError {
    /// What went wrong with a file or folder: "cannot {action} {path}".
    pub(crate) fn file(action: &'static str, path: &Path) -> impl FnOnce(std::io::Error) -> TrainingError {
        let path = path.to_path_buf();
        move |source| TrainingError::File { action, path, source }
    }
}

impl From<candle_core::Error> for TrainingError {
    fn from(error: candle_core::Error) -> TrainingError {
        TrainingError::Base(error.into())
    }
}
