//! Training: LoRA adapters and reward heads over a frozen GGUF base, on the processor.
//!
//! SFT, DPO and PRM (pairwise rewards) share one engine: prompts and their completions are packed into a
//! [`forest`], so that a prompt is computed once for all its completions; forward and backward passes are
//! written out by hand; the base stays quantised and is unpacked one layer at a time. A reward model may also
//! be an encoder ([`cross_encoder`]), all of whose weights are trained. No clock, no ambient randomness, no
//! environment: callers pass them. What leaves is an adapter in PEFT's layout, or an encoder in Hugging Face's.

pub mod adapter;
mod attention;
pub mod base;
pub mod bert;
pub mod cloze;
pub mod counterfactual;
pub mod cross_encoder;
mod dequantise;
mod elementwise;
mod error;
pub mod expert;
pub mod factor;
pub mod forest;
pub mod lesson;
mod matrix;
pub mod network;
pub mod objective;
pub mod optimizer;
pub mod rewarder;
pub mod supporting;
pub mod train;
pub mod trl;
mod vocabulary;
pub mod workload;

pub use error::TrainingError;

pub type Result<T> = std::result::Result<T, TrainingError>;
