//! What a model may be expected to do on a machine: the floor that measured peaks set, and the share of it that is
//! reached.

use std::path::Path;

use serde::Serialize;

use crate::LmError;
use crate::config::Config;
use crate::decoder::Decoder;
use crate::gguf::Gguf;
use crate::kernels::Packed;
use crate::kernels::attention::{BLOCK, Store};
use crate::kernels::measure::Peaks;
use crate::model::KEPT_TOKENS;
use crate::tokenizer::Tokenizer;

/// What a model computes and reads. Operations are multiplications and additions.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
pub struct Work {
    /// Weights that a decoding step reads.
    pub bytes_per_step: usize,
    /// In the layers' matrices.
    pub layer_operations_per_token: u64,
    /// For the logits, where they are wanted.
    pub output_operations_per_token: u64,
    /// For each token and each token that it sees, in all layers.
    pub attention_operations_per_pair: u64,
}

impl Work {
    pub fn of(decoder: &Decoder) -> Work {
        Work::new(&decoder.config, decoder.bytes_per_token(), decoder.layer_weights())
    }

    fn new(config: &Config, bytes_per_step: usize, layer_weights: u64) -> Work {
        Work {
            bytes_per_step,
            layer_operations_per_token: 2 * layer_weights,
            output_operations_per_token: 2 * (config.vocabulary * config.hidden) as u64,
            attention_operations_per_pair: 4 * (config.layers * config.heads.heads * config.heads.dim) as u64,
        }
    }

    /// Fewest seconds for the `tokens` of a prompt that follow `cached` ones: 16-bit integers for the matrices, f32 for
    /// the attention.
    pub fn prompt_seconds(&self, peaks: &Peaks, cached: f64, tokens: f64) -> f64 {
        let pairs = tokens * (cached + tokens / 2.0);
        tokens * self.layer_operations_per_token as f64 / (peaks.int16_gops * 1e9) + self.attention(peaks, pairs)
    }

    /// Fewest seconds for one more token of each of `sequences`, which see `context` tokens: as above, and no faster
    /// than the weights can be read.
    pub fn step_seconds(&self, peaks: &Peaks, sequences: f64, context: f64) -> f64 {
        let reading = self.bytes_per_step as f64 / (peaks.read_gb_per_second * 1e9);
        let operations = self.layer_operations_per_token + self.output_operations_per_token;
        let matrices = sequences * operations as f64 / (peaks.int16_gops * 1e9);
        reading.max(matrices) + self.attention(peaks, sequences * context)
    }

    /// Fewest seconds for `candidates` of `new_tokens` each from one prompt. Their first tokens come with the prompt.
    pub fn candidates_seconds(&self, peaks: &Peaks, prompt_tokens: f64, candidates: f64, new_tokens: f64) -> f64 {
        let step = self.step_seconds(peaks, candidates, prompt_tokens + new_tokens / 2.0);
        self.prompt_seconds(peaks, 0.0, prompt_tokens) + (new_tokens - 1.0) * step
    }

    fn attention(&self, peaks: &Peaks, pairs: f64) -> f64 {
        pairs * self.attention_operations_per_pair as f64 / (peaks.f32_gflops * 1e9)
    }
}

/// Shares of the floors that the decoder reaches: the column "floor reached" of docs/benchmarks.md, rows of 512 prompt
/// tokens, of one sequence, and of ten candidates after 256 tokens. Larger models reach more, busy machines less.
const PREFILL_REACHES: f64 = 0.73;
const DECODE_REACHES: f64 = 0.89;
const CANDIDATES_REACH: f64 = 0.64;

/// Speeds on the work of `rag-gym bench generate`, and the memory that the model takes.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Estimate {
    /// A prompt of 512 tokens.
    pub prefill_tokens_per_second: f64,
    /// One sequence after 256 tokens.
    pub decode_tokens_per_second: f64,
    /// Ten candidates of 64 tokens from a prompt of 256, all together, over the whole time.
    pub candidates_tokens_per_second: f64,
    /// Weights, and keys and values of the tokens that are kept.
    pub memory_bytes: usize,
    pub work: Work,
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
                    layer_weights += (rows * columns) as u64;
                    layer_bytes += bytes;
                }
                _ => {}
            }
        }
        let work = Work::new(&config, layer_bytes + output.unwrap_or(embedding), layer_weights);
        let store = Store::Memory {
            layers: config.layers,
            heads: config.heads,
        };
        let kept = KEPT_TOKENS.div_ceil(BLOCK) * store.bytes_per_block();
        Ok(Estimate {
            prefill_tokens_per_second: PREFILL_REACHES * 512.0 / work.prompt_seconds(peaks, 0.0, 512.0),
            decode_tokens_per_second: DECODE_REACHES / work.step_seconds(peaks, 1.0, 288.0),
            candidates_tokens_per_second: CANDIDATES_REACH * 640.0 / work.candidates_seconds(peaks, 256.0, 10.0, 64.0),
            memory_bytes: work.bytes_per_step + output.map_or(0, |_| embedding) + kept,
            work,
        })
    }
}
