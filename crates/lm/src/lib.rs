//! Local language models: GGUF files, tokenizer, chat template, decoder, sampling, grammars, LoRA.
//!
//! Everything runs on the processor and blocks; the caller brings threads and seeds. This crate
//! downloads nothing and knows nothing about agents: it turns a [`gym::Generation`] into samples.

pub mod cache;
pub mod chat;
pub mod decoder;
pub mod error;
pub mod gguf;
pub mod grammar;
pub mod kernels;
pub mod lora;
pub mod model;
pub mod sampler;
pub mod scheduler;
pub mod stream;
pub mod tokenizer;

pub use error::LmError;
pub use model::{LocalModel, ModelInfo, Options};
