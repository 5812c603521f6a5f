//! Question sets and passage corpora: the publishers' formats as they are downloaded, and a world
//! that comes with the program, so that everything can be tried without a download.
//!
//! Importers stream: they hold one record at a time and hand it to the caller. They neither store
//! nor index. A bad record is counted and described, never fatal; a file that holds no usable
//! record is an error that says what to do about it.

mod error;
mod format;
mod import;
mod literal;
mod passage;
mod question;
mod source;
mod text_folder;
mod world;

pub use error::{ConsumerError, ImportError, ImportReport, Progress, Rejection};
pub use format::{Format, UnknownFormat, detect};
pub use import::{import_passages, import_questions};
pub use world::{Split, world_passages, world_questions};
