//! What a model file may be expected to do on a machine, told from its header and the machine's measured peaks.

use std::path::Path;

use serde::Serialize;

use crate::LmError;
use crate::config::Config;
use crate::gguf::Gguf;
use crate::kernels::Packed;
use crate::kernels::attention::{BLOCK, Block};
use crate::kernels::measure::Peaks;
use crate::model::Options;
use crate::tokenizer::Tokenizer;

/// Shares of the peaks that the decoder reaches with SmolLM2-135M: see docs/benchmarks.md.
const PREFILL_REACHES: f64 = 0.55;
const DECODE_REACHES: f64 = 0.65;

/// Speeds of one sequence with a short context, and the memory that the model takes.
#[derive(Clone, Copy, Debug, PartialEq, Serialize)]
pub struct Estimate {
    pub prefill_tokens_per_second: f64,
    pub decode_tokens_per_second: f64,
    /// Weights that a decoding step reads.
    pub bytes_per_step: usize,
    /// Weights, and keys and values of the tokens that are kept.
    pub memory_bytes: usize,
}

impl Estimate {
    /// Reads the header of a model file only. Errors if the file is damaged or no model that can be run.
    pub fn of(path: &Path, peaks: &Peaks) -> Result<Estimate, LmError> {
        let mut gguf = Gguf::open(path)?;
        let vocabulary = Tokenizer::from_gguf(&gguf)?.vocabulary();
        let config = Config::from_gguf(&mut gguf, vocabulary)?;
        let (mut layer_weights, mut layer_bytes, mut embedding, mut output) = (0, 0, 0, None);
        for (name, dtype, dims) in gguf.tensors() {
            let &[rows, columns] = dims else { continue };
            let bytes = Packed::bytes_of(dtype, rows, columns);
            match name {
                "token_embd.weight" => embedding = bytes,
                "output.weight" => output = Some(bytes),
                _ if name.starts_with("blk.") => {
                    layer_weights += rows * columns;
                    layer_bytes += bytes;
                }
                _ => {}
            }
        }
        let bytes_per_step = layer_bytes + output.unwrap_or(embedding);
        let kept = Options::default().kept_tokens.div_ceil(BLOCK) * Block::bytes(config.layers, config.heads);
        Ok(Estimate {
            prefill_tokens_per_second: PREFILL_REACHES * peaks.int16_gops * 1e9 / (2 * layer_weights) as f64,
            decode_tokens_per_second: DECODE_REACHES * peaks.read_gb_per_second * 1e9 / bytes_per_step as f64,
            bytes_per_step,
            memory_bytes: bytes_per_step + output.map_or(0, |_| embedding) + kept,
        })
    }
}
