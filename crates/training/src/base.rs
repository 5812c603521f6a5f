//! The frozen weights, as quantised as the file, unpacked one layer at a time.

use std::path::Path;

use candle_core::quantized::QTensor;
use lm::config::{Architecture, Config};
use lm::gguf::{Gguf, rows};
use lm::tokenizer::Tokenizer;
use rayon::prelude::*;

use crate::Result;
use crate::attention::Heads;
use crate::elementwise::Pairing;
use crate::factor::{Arithmetic, Direction, Factor};

/// The projections of a layer, in the order of the computation.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, serde::Serialize, serde::Deserialize)]
pub enum Part {
    #[serde(rename = "q_proj")]
    Query,
    #[serde(rename = "k_proj")]
    Key,
    #[serde(rename = "v_proj")]
    Value,
    #[serde(rename = "o_proj")]
    Output,
    #[serde(rename = "gate_proj")]
    Gate,
    #[serde(rename = "up_proj")]
    Up,
    #[serde(rename = "down_proj")]
    Down,
}

impl Part {
    pub const ALL: [Part; 7] = [
        Part::Query,
        Part::Key,
        Part::Value,
        Part::Output,
        Part::Gate,
        Part::Up,
        Part::Down,
    ];

    /// Where it sits in a layer, in Hugging Face's words.
    pub fn path(self) -> &'static str {
        match self {
            Part::Query => "self_attn.q_proj",
            Part::Key => "self_attn.k_proj",
            Part::Value => "self_attn.v_proj",
            Part::Output => "self_attn.o_proj",
            Part::Gate => "mlp.gate_proj",
            Part::Up => "mlp.up_proj",
            Part::Down => "mlp.down_proj",
        }
    }

    /// Its name among PEFT's `target_modules`.
    pub fn name(self) -> &'static str {
        self.path().rsplit('.').next().expect("a path has a last part")
    }

    /// (out, in).
    pub fn dims(self, config: &Config) -> (usize, usize) {
        let (hidden, inner) = (config.hidden, config.feed_forward);
        let kv = config.heads.kv_heads * config.heads.dim;
        match self {
            Part::Query | Part::Output => (hidden, hidden),
            Part::Key | Part::Value => (kv, hidden),
            Part::Gate | Part::Up => (inner, hidden),
            Part::Down => (hidden, inner),
        }
    }
}

/// A model file's weights. Nothing here is ever changed.
pub struct Base {
    pub config: Config,
    /// The fastest of this processor, unless set to another.
    pub arithmetic: Arithmetic,
    pub(crate) layers: Vec<Layer>,
    embedding: QTensor,
    output: Option<QTensor>,
    pub(crate) norm: Vec<f32>,
}

pub(crate) struct Layer {
    weights: [QTensor; 7],
    /// Biases of queries, keys and values; empty for llama.
    pub biases: [Vec<f32>; 3],
    pub attention_norm: Vec<f32>,
    pub feed_forward_norm: Vec<f32>,
}

/// One layer's weights as right factors, reused from layer to layer.
pub(crate) type Factors = [Factor; 7];

impl Base {
    pub fn open(path: &Path) -> Result<Base> {
        let mut gguf = Gguf::open(path)?;
        let vocabulary = Tokenizer::from_gguf(&gguf)?.vocabulary();
        let config = Config::from_gguf(&mut gguf, vocabulary)?;
        let Config { hidden, .. } = config;
        if !matches!(config.architecture, Architecture::Llama | Architecture::Qwen2) {
            let what = format!("training on `{}`", config.architecture.name());
            return Err(lm::LmError::Unsupported(what).into());
        }
        let mut layers = Vec::with_capacity(config.layers);
        for idx in 0..config.layers {
            let name = |part: &str| format!("blk.{idx}.{part}");
            let mut weight = |part: Part| {
                let file_name = match part {
                    Part::Query => "attn_q",
                    Part::Key => "attn_k",
                    Part::Value => "attn_v",
                    Part::Output => "attn_output",
                    Part::Gate => "ffn_gate",
                    Part::Up => "ffn_up",
                    Part::Down => "ffn_down",
                };
                let (out, inside) = part.dims(&config);
                gguf.tensor(&name(&format!("{file_name}.weight")), &[out, inside])
            };
            let [q, k, v, o, gate, up, down] = Part::ALL.map(&mut weight);
            let weights = [q?, k?, v?, o?, gate?, up?, down?];
            let mut bias = |name: String, part: Part| match gguf.has_tensor(&name) {
                true => gguf.vector(&name, part.dims(&config).0),
                false => Ok(Vec::new()),
            };
            let biases = [
                bias(name("attn_q.bias"), Part::Query)?,
                bias(name("attn_k.bias"), Part::Key)?,
                bias(name("attn_v.bias"), Part::Value)?,
            ];
            layers.push(Layer {
                weights,
                biases,
                attention_norm: gguf.vector(&name("attn_norm.weight"), hidden)?,
                feed_forward_norm: gguf.vector(&name("ffn_norm.weight"), hidden)?,
            });
        }
        let output = match gguf.has_tensor("output.weight") {
            true => Some(gguf.tensor("output.weight", &[vocabulary, hidden])?),
            false => None,
        };
        Ok(Base {
            layers,
            embedding: gguf.tensor("token_embd.weight", &[vocabulary, hidden])?,
            output,
            norm: gguf.vector("output_norm.weight", hidden)?,
            arithmetic: Arithmetic::best(),
            config,
        })
    }

    pub(crate) fn pairing(&self) -> Pairing {
        match self.config.architecture.turns_neighbours() {
            true => Pairing::Neighbours,
            false => Pairing::Halves,
        }
    }

    pub(crate) fn heads(&self) -> Heads {
        let heads = &self.config.heads;
        Heads {
            heads: heads.heads,
            kv_heads: heads.kv_heads,
            dim: heads.dim,
        }
    }

    /// (tokens, hidden).
    pub(crate) fn embed(&self, tokens: &[u32]) -> Result<Vec<f32>> {
        Ok(rows(&self.embedding, tokens)?)
    }

    /// The matrix that turns hidden states into logits, (vocabulary, hidden).
    pub(crate) fn output(&self) -> &QTensor {
        self.output.as_ref().unwrap_or(&self.embedding)
    }

    /// Its rows for these tokens.
    pub(crate) fn output_rows(&self, tokens: &[u32]) -> Result<Vec<f32>> {
        Ok(rows(self.output(), tokens)?)
    }

    pub(crate) fn factors(&self) -> Factors {
        std::array::from_fn(|_| Factor::new(self.arithmetic))
    }

    /// Unpacks one layer.
    pub(crate) fn unpack(&self, layer: usize, direction: Direction, factors: &mut Factors) -> Result<()> {
        // The largest first, so that no thread is left with one at the end.
        let mut work: Vec<(&QTensor, &mut Factor)> = self.layers[layer].weights.iter().zip(factors).collect();
        work.reverse();
        work.into_par_iter()
            .with_max_len(1)
            .try_for_each(|(weights, factor)| factor.fill(weights, 0..weights.shape().dims2()?.0, direction))
    }
}
