//! Language models: local ones (GGUF files, tokenizer, chat template, decoder, sampling, grammars, LoRA)
//! and those behind a server ([`endpoint`]).
//!
//! Everything blocks; the caller brings threads and seeds. This crate downloads nothing, connects only
//! to an endpoint's URL, and knows nothing about agents: it turns a [`gym::Generation`] into samples.

pub mod accelerator;
pub mod cache;
pub mod chat;
pub mod config;
pub mod decoder;
pub mod endpoint;
pub mod error;
pub mod estimate;
pub mod gguf;
pub mod grammar;
pub mod kernels;
pub mod lora;
pub mod model;
mod pieces;
pub mod sampler;
pub mod scheduler;
pub mod stream;
pub mod tokenizer;

pub use error::LmError;
pub use model::{LocalModel, ModelInfo, Options};
