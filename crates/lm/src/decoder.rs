//! The transformer of llama, qwen2 and qwen3 models: reads new tokens of many sequences at once.
//!
//! Prompts and candidates go through the same arithmetic, so a token's numbers do not depend on how
//! a text was cut into batches, nor on what else was in them.

use std::sync::Arc;

use crate::LmError;
use crate::cache::PrefixCache;
use crate::gguf::Gguf;
use crate::kernels::attention::{BLOCK, Heads, MOST_DIM, Plan, Rotary, Shapes, Span};
use crate::kernels::{
    Activations, Arena, Into, LowRank, Machine, Packed, Part, down_project, gated, normalise, product,
};

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Architecture {
    Llama,
    Qwen2,
    Qwen3,
}

impl Architecture {
    /// All there are, by the names that files have for them.
    const NAMES: [(&str, Architecture); 3] = [
        ("llama", Architecture::Llama),
        ("qwen2", Architecture::Qwen2),
        ("qwen3", Architecture::Qwen3),
    ];

    pub fn name(self) -> &'static str {
        let known = |(_, architecture): &&(_, Architecture)| *architecture == self;
        Architecture::NAMES.iter().find(known).expect("all have names").0
    }
}

#[derive(Clone, Debug)]
pub struct Config {
    pub architecture: Architecture,
    pub layers: usize,
    pub hidden: usize,
    pub feed_forward: usize,
    pub heads: Heads,
    pub context_tokens: usize,
    pub vocabulary: usize,
    pub norm_epsilon: f32,
    pub rope_base: f32,
}

/// A matrix of the model, with what is added to its product.
#[derive(Clone)]
pub struct Linear {
    weight: Arc<Packed>,
    /// Empty for none.
    bias: Arc<Vec<f32>>,
    pub low: Option<Arc<LowRank>>,
}

#[derive(Clone)]
pub struct Layer {
    attention_norm: Arc<Vec<f32>>,
    pub q: Linear,
    pub k: Linear,
    pub v: Linear,
    pub o: Linear,
    /// Of each head of the queries and the keys; empty for none.
    head_norms: Arc<[Vec<f32>; 2]>,
    feed_forward_norm: Arc<Vec<f32>>,
    pub gate: Linear,
    pub up: Linear,
    pub down: Linear,
}

/// Weights, shared between copies.
#[derive(Clone)]
pub struct Decoder {
    pub config: Config,
    pub layers: Vec<Layer>,
    embedding: Arc<Packed>,
    norm: Arc<Vec<f32>>,
    output: Arc<Packed>,
    rotary: Rotary,
    pub machine: Machine,
}

/// Buffers of a batch, kept from one to the next.
#[derive(Default)]
pub struct Scratch {
    plan: Plan,
    /// (tokens, hidden): after [`Decoder::forward`], what the last layer left.
    x: Vec<f32>,
    normed: Vec<f32>,
    activations: Activations,
    qkv: Vec<f32>,
    attended: Vec<f32>,
    inner: Vec<f32>,
    /// Adapter activations of up to three matrices with the same input.
    low: [Vec<f32>; 3],
    picked: Vec<f32>,
    logits: Vec<f32>,
}

impl Config {
    pub fn from_gguf(gguf: &Gguf, vocabulary: usize) -> Result<Config, LmError> {
        let name = gguf.string("general.architecture").unwrap_or("").to_string();
        let known = Architecture::NAMES.iter().find(|(known, _)| *known == name);
        let Some(&(_, architecture)) = known else {
            return Err(LmError::Unsupported(format!("architecture `{name}`")));
        };
        let size = |key: &str, most| gguf.size(&format!("{name}.{key}"), most);
        let heads = size("attention.head_count", 1024)?;
        let hidden = size("embedding_length", 1 << 16)?;
        let kv_heads = match gguf.integer(&format!("{name}.attention.head_count_kv")) {
            Some(_) => size("attention.head_count_kv", 1024)?,
            None => heads,
        };
        // Older architectures share the hidden numbers out among the heads.
        let dim = match gguf.integer(&format!("{name}.attention.key_length")) {
            Some(_) => size("attention.key_length", MOST_DIM as u64)?,
            None if hidden.is_multiple_of(heads) => hidden / heads,
            None => 0,
        };
        if !heads.is_multiple_of(kv_heads) || dim == 0 {
            let message = format!("{heads} heads, {kv_heads} of them for keys, over {hidden} numbers");
            return Err(LmError::corrupt("model file", message));
        }
        let values = gguf.integer(&format!("{name}.attention.value_length"));
        if values.is_some_and(|values| values != dim as u64) {
            return Err(LmError::Unsupported("values as wide as no key".into()));
        }
        let rotated = gguf
            .integer(&format!("{name}.rope.dimension_count"))
            .unwrap_or(dim as u64);
        if rotated != dim as u64 || !dim.is_multiple_of(2) || dim > MOST_DIM {
            return Err(LmError::Unsupported(format!(
                "rotating {rotated} of {dim} numbers per head"
            )));
        }
        if gguf.integer(&format!("{name}.expert_count")).is_some_and(|n| n > 1) {
            return Err(LmError::Unsupported("a mixture of experts".into()));
        }
        if gguf
            .string(&format!("{name}.rope.scaling.type"))
            .is_some_and(|kind| kind != "none")
            || gguf.has_tensor("rope_freqs.weight")
        {
            return Err(LmError::Unsupported("scaled rotary positions".into()));
        }
        let rope_base = gguf.float(&format!("{name}.rope.freq_base")).unwrap_or(10_000.0);
        let norm_epsilon = gguf
            .float(&format!("{name}.attention.layer_norm_rms_epsilon"))
            .ok_or_else(|| LmError::corrupt("model file", "the norm's epsilon is missing"))?;
        Ok(Config {
            architecture,
            layers: size("block_count", 1024)?,
            hidden,
            feed_forward: size("feed_forward_length", 1 << 20)?,
            heads: Heads { heads, kv_heads, dim },
            context_tokens: size("context_length", 1 << 20)?,
            vocabulary,
            norm_epsilon,
            rope_base,
        })
    }
}

impl Linear {
    /// (out, in).
    pub fn dims(&self) -> (usize, usize) {
        (self.weight.rows, self.weight.columns)
    }

    /// Its part of a product with activations whose adapter activations go to `hidden`.
    fn part<'a>(&'a self, machine: &Machine, x: &[f32], hidden: &'a mut Vec<f32>, column: usize) -> Part<'a> {
        if let Some(low) = &self.low {
            down_project(machine, x, low, hidden);
        }
        Part {
            bias: &self.bias,
            low: self.low.as_deref().map(|low| (low, &hidden[..])),
            column,
            ..Part::new(&self.weight)
        }
    }
}

impl Decoder {
    pub fn load(gguf: &mut Gguf, config: Config, machine: Machine) -> Result<Decoder, LmError> {
        let Config {
            hidden,
            feed_forward,
            heads,
            vocabulary,
            ..
        } = config;
        let (width, kv) = (heads.heads * heads.dim, heads.kv_heads * heads.dim);
        let pool = machine.pool.clone();
        let mut arena = Arena::default();
        let mut packed = |gguf: &mut Gguf, name: &str, rows, columns| {
            Packed::new(&gguf.tensor(name, &[rows, columns])?, |row| row, &pool, &mut arena).map(Arc::new)
        };
        let embedding = packed(gguf, "token_embd.weight", vocabulary, hidden)?;
        let output = match gguf.has_tensor("output.weight") {
            true => packed(gguf, "output.weight", vocabulary, hidden)?,
            false => embedding.clone(),
        };
        // llama files have the two numbers that turn together side by side; here they are half a head apart.
        let (dim, half) = (heads.dim, heads.dim / 2);
        let halves = |row: usize| match config.architecture {
            Architecture::Llama => row / dim * dim + row % half * 2 + row % dim / half,
            Architecture::Qwen2 | Architecture::Qwen3 => row,
        };
        let mut layers = Vec::new();
        for idx in 0..config.layers {
            let mut linear = |part: &str, rows: usize, columns: usize| -> Result<Linear, LmError> {
                let name = format!("blk.{idx}.{part}");
                let turns = matches!(part, "attn_q" | "attn_k");
                let order = |row: usize| if turns { halves(row) } else { row };
                let tensor = gguf.tensor(&format!("{name}.weight"), &[rows, columns])?;
                let weight = Packed::new(&tensor, order, &pool, &mut arena)?;
                let bias = match gguf.has_tensor(&format!("{name}.bias")) {
                    true => {
                        let bias = gguf.vector(&format!("{name}.bias"), rows)?;
                        (0..rows).map(|row| bias[order(row)]).collect()
                    }
                    false => Vec::new(),
                };
                Ok(Linear {
                    weight: weight.into(),
                    bias: bias.into(),
                    low: None,
                })
            };
            let (q, k, v) = (
                linear("attn_q", width, hidden)?,
                linear("attn_k", kv, hidden)?,
                linear("attn_v", kv, hidden)?,
            );
            let o = linear("attn_output", hidden, width)?;
            let gate = linear("ffn_gate", feed_forward, hidden)?;
            let up = linear("ffn_up", feed_forward, hidden)?;
            let down = linear("ffn_down", hidden, feed_forward)?;
            let mut norm = |part: &str, len| gguf.vector(&format!("blk.{idx}.{part}.weight"), len);
            let head_norms = match config.architecture {
                Architecture::Qwen3 => [norm("attn_q_norm", dim)?, norm("attn_k_norm", dim)?],
                _ => [Vec::new(), Vec::new()],
            };
            layers.push(Layer {
                attention_norm: norm("attn_norm", hidden)?.into(),
                head_norms: head_norms.into(),
                q,
                k,
                v,
                o,
                feed_forward_norm: norm("ffn_norm", hidden)?.into(),
                gate,
                up,
                down,
            });
        }
        let frequencies = (0..dim)
            .step_by(2)
            .map(|i| 1.0 / config.rope_base.powf(i as f32 / dim as f32))
            .collect();
        let norm = gguf.vector("output_norm.weight", hidden)?.into();
        Ok(Decoder {
            config,
            layers,
            embedding,
            norm,
            output,
            rotary: Rotary { frequencies },
            machine,
        })
    }

    /// An empty cache for the keys and values of so many tokens.
    pub fn cache(&self, kept_tokens: usize) -> PrefixCache {
        PrefixCache::new(self.config.layers, self.config.heads, kept_tokens.div_ceil(BLOCK))
    }

    /// Bytes of weights that decoding one token reads.
    pub fn bytes_per_token(&self) -> usize {
        let of = |linear: &Linear| linear.weight.bytes();
        let layer = |l: &Layer| {
            [&l.q, &l.k, &l.v, &l.o, &l.gate, &l.up, &l.down]
                .into_iter()
                .map(of)
                .sum::<usize>()
        };
        self.layers.iter().map(layer).sum::<usize>() + self.output.bytes()
    }

    /// Weights of the layers' matrices: a token takes a multiplication and an addition for each.
    pub fn layer_weights(&self) -> u64 {
        let of = |linear: &Linear| (linear.dims().0 * linear.dims().1) as u64;
        let layer = |l: &Layer| {
            [&l.q, &l.k, &l.v, &l.o, &l.gate, &l.up, &l.down]
                .into_iter()
                .map(of)
                .sum::<u64>()
        };
        self.layers.iter().map(layer).sum()
    }

    /// Reads `tokens`, which belong to the spans one after the other. Their keys and values are written; the last
    /// layer's results stay in `scratch`, one row for each token.
    pub fn forward(&self, scratch: &mut Scratch, spans: &mut [Span], tokens: &[u32]) -> Result<(), LmError> {
        let Config {
            hidden,
            feed_forward,
            heads,
            norm_epsilon,
            vocabulary,
            ..
        } = self.config;
        let (n, machine) = (tokens.len(), &self.machine);
        if let Some(token) = tokens.iter().find(|&&token| token as usize >= vocabulary) {
            return Err(LmError::Tokenizer(format!("token {token} is not in the vocabulary")));
        }
        let Scratch {
            plan,
            x,
            normed,
            activations,
            qkv,
            attended,
            inner,
            low: [a, b, c],
            ..
        } = scratch;
        plan.set(spans, &self.rotary);
        x.resize(n * hidden, 0.0);
        for (row, &token) in x.chunks_exact_mut(hidden).zip(tokens) {
            self.embedding.row(token as usize, row);
        }
        let (width, kv) = (heads.heads * heads.dim, heads.kv_heads * heads.dim);
        normed.resize(n * hidden, 0.0);
        qkv.resize(n * heads.stride(), 0.0);
        attended.resize(n * width, 0.0);
        inner.resize(n * feed_forward, 0.0);
        for (idx, layer) in self.layers.iter().enumerate() {
            activations.set_normed(machine, x, &layer.attention_norm, norm_epsilon, normed);
            let parts = [
                layer.q.part(machine, normed, a, 0),
                layer.k.part(machine, normed, b, width),
                layer.v.part(machine, normed, c, width + kv),
            ];
            product(machine, activations, &parts, qkv, heads.stride(), Into::Replace);
            let shapes = Shapes {
                heads,
                layer: idx,
                qkv,
                norms: layer.head_norms.each_ref().map(Vec::as_slice),
                norm_epsilon,
            };
            plan.write(machine, spans, shapes);
            plan.attend(machine, spans, shapes, attended);

            activations.set(machine, attended, width);
            let part = layer.o.part(machine, attended, a, 0);
            product(machine, activations, &[part], x, hidden, Into::Add);

            activations.set_normed(machine, x, &layer.feed_forward_norm, norm_epsilon, normed);
            let (gate, up) = (
                layer.gate.part(machine, normed, a, 0),
                layer.up.part(machine, normed, b, 0),
            );
            gated(machine, activations, &gate, &up, inner);
            activations.set(machine, inner, feed_forward);
            let part = layer.down.part(machine, inner, a, 0);
            product(machine, activations, &[part], x, hidden, Into::Add);
        }
        Ok(())
    }

    /// Normalised results of some rows of the last batch: (rows.len(), hidden).
    pub fn hidden<'a>(&self, scratch: &'a mut Scratch, rows: &[usize]) -> &'a [f32] {
        let hidden = self.config.hidden;
        scratch.picked.resize(rows.len() * hidden, 0.0);
        for (out, &row) in scratch.picked.chunks_exact_mut(hidden).zip(rows) {
            let x = &scratch.x[row * hidden..][..hidden];
            normalise(self.machine.level, x, &self.norm, self.config.norm_epsilon, out);
        }
        &scratch.picked
    }

    /// Logits of what follows some rows of the last batch: (rows.len(), vocabulary).
    pub fn logits<'a>(&self, scratch: &'a mut Scratch, rows: &[usize]) -> &'a [f32] {
        self.hidden(scratch, rows);
        let Scratch {
            picked,
            activations,
            logits,
            ..
        } = scratch;
        activations.set(&self.machine, picked, self.config.hidden);
        logits.resize(rows.len() * self.config.vocabulary, 0.0);
        let part = [Part::new(&self.output)];
        product(
            &self.machine,
            activations,
            &part,
            logits,
            self.config.vocabulary,
            Into::Replace,
        );
        logits
    }

    /// Logits after each of `tokens`, read at once and without any cache: (tokens, vocabulary).
    pub fn logits_of(&self, tokens: &[u32]) -> Result<Vec<f32>, LmError> {
        let (mut cache, mut scratch) = (self.cache(0), Scratch::default());
        let mut sequence = crate::cache::Sequence::default();
        cache.grow(&mut sequence, tokens.len());
        let span = Span {
            blocks: &mut sequence.blocks,
            base: 0,
            tokens: tokens.len(),
        };
        self.forward(&mut scratch, &mut [span], tokens)?;
        let rows: Vec<usize> = (0..tokens.len()).collect();
        Ok(self.logits(&mut scratch, &rows).to_vec())
    }
}
