//! The transformer of all architectures: reads new tokens of many sequences at once.
//!
//! Prompts and candidates go through the same arithmetic, so a token's numbers do not depend on how
//! a text was cut into batches, nor on what else was in them.

use std::ops::Range;
use std::sync::Arc;

use candle_core::{Device, Tensor};

use crate::LmError;
use crate::accelerator::Accelerator;
use crate::cache::PrefixCache;
use crate::config::Config;
use crate::gguf::{Gguf, some_rows};
use crate::kernels::attention::{BLOCK, Plan, Shapes, Span, Store};
use crate::kernels::{
    Activations, Arena, Into, LowRank, Machine, Packed, Part, add_normalised, down_project, gated, normalise, product,
};

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
    pub attention_norm: Arc<Vec<f32>>,
    pub q: Linear,
    pub k: Linear,
    pub v: Linear,
    pub o: Linear,
    /// Of each head of the queries and the keys; empty for none.
    pub head_norms: Arc<[Vec<f32>; 2]>,
    pub feed_forward_norm: Arc<Vec<f32>>,
    /// Of what the attention and the feed-forward network add; empty for none.
    pub post_norms: Arc<[Vec<f32>; 2]>,
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
    pub norm: Arc<Vec<f32>>,
    output: Arc<Packed>,
    pub machine: Machine,
    /// Computes in the machine's place.
    accelerator: Option<Arc<Accelerator>>,
}

/// Buffers of a batch, kept from one to the next.
#[derive(Default)]
pub struct Scratch {
    plan: Plan,
    /// (tokens, hidden): after [`Decoder::forward`], what the last layer left.
    x: Vec<f32>,
    /// The same on an accelerator.
    x_there: Option<Tensor>,
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

/// Which of a file's rows becomes a row.
type Order<'a> = dyn Fn(usize) -> usize + Sync + 'a;

impl Linear {
    /// (out, in).
    pub fn dims(&self) -> (usize, usize) {
        (self.weight.rows, self.weight.columns)
    }

    pub fn bias(&self) -> &[f32] {
        &self.bias
    }

    /// Row by row, with its adapter.
    pub fn unpacked(&self) -> Vec<f32> {
        let mut numbers = unpacked(&self.weight);
        if let Some(low) = &self.low {
            for (idx, row) in numbers.chunks_exact_mut(self.weight.columns).enumerate() {
                low.add_to_row(idx, row);
            }
        }
        numbers
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
            architecture,
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
        // Here the two numbers of a head that turn together are half a head apart.
        let (dim, half) = (heads.dim, heads.dim / 2);
        let turning = |row: usize| match architecture.turns_neighbours() {
            true => row / dim * dim + row % half * 2 + row % dim / half,
            false => row,
        };
        let as_is = |row: usize| row;
        let mut layers = Vec::new();
        for idx in 0..config.layers {
            // `rows` of one of the file's matrices, which has `all`.
            let mut linear = |part: &str, all: usize, rows: Range<usize>, columns: usize, order: &Order| {
                let name = format!("blk.{idx}.{part}");
                let bias = match gguf.has_tensor(&format!("{name}.bias")) {
                    true => {
                        let bias = gguf.vector(&format!("{name}.bias"), all)?;
                        rows.clone()
                            .map(|row| bias[rows.start + order(row - rows.start)])
                            .collect()
                    }
                    false => Vec::new(),
                };
                let tensor = gguf.tensor(&format!("{name}.weight"), &[all, columns])?;
                let weight = Packed::new(&some_rows(tensor, rows)?, order, &pool, &mut arena)?;
                Ok::<_, LmError>(Linear {
                    weight: weight.into(),
                    bias: bias.into(),
                    low: None,
                })
            };
            let (keys, values) = (width..width + kv, width + kv..width + 2 * kv);
            let [q, k, v] = match architecture.joins() {
                true => [
                    linear("attn_qkv", values.end, 0..width, hidden, &turning)?,
                    linear("attn_qkv", values.end, keys, hidden, &turning)?,
                    linear("attn_qkv", values.end, values, hidden, &as_is)?,
                ],
                false => [
                    linear("attn_q", width, 0..width, hidden, &turning)?,
                    linear("attn_k", kv, 0..kv, hidden, &turning)?,
                    linear("attn_v", kv, 0..kv, hidden, &as_is)?,
                ],
            };
            let o = linear("attn_output", hidden, 0..hidden, width, &as_is)?;
            let inner = 0..feed_forward;
            let [gate, up] = match architecture.joins() {
                true => [
                    linear("ffn_up", 2 * feed_forward, inner.clone(), hidden, &as_is)?,
                    linear(
                        "ffn_up",
                        2 * feed_forward,
                        feed_forward..2 * feed_forward,
                        hidden,
                        &as_is,
                    )?,
                ],
                false => [
                    linear("ffn_gate", feed_forward, inner.clone(), hidden, &as_is)?,
                    linear("ffn_up", feed_forward, inner, hidden, &as_is)?,
                ],
            };
            let down = linear("ffn_down", hidden, 0..hidden, feed_forward, &as_is)?;
            let mut norm = |part: &str, len| gguf.vector(&format!("blk.{idx}.{part}.weight"), len);
            let head_norms = match architecture.head_norms() {
                true => [norm("attn_q_norm", dim)?, norm("attn_k_norm", dim)?],
                false => Default::default(),
            };
            let post_norms = match architecture.post_norms() {
                true => [norm("post_attention_norm", hidden)?, norm("post_ffw_norm", hidden)?],
                false => Default::default(),
            };
            layers.push(Layer {
                attention_norm: norm("attn_norm", hidden)?.into(),
                head_norms: head_norms.into(),
                q,
                k,
                v,
                o,
                feed_forward_norm: norm("ffn_norm", hidden)?.into(),
                post_norms: post_norms.into(),
                gate,
                up,
                down,
            });
        }
        let norm = gguf.vector("output_norm.weight", hidden)?.into();
        Ok(Decoder {
            config,
            layers,
            embedding,
            norm,
            output,
            machine,
            accelerator: None,
        })
    }

    /// The same, computed by this device: its weights are unpacked and brought there.
    pub fn on(mut self, device: &Device) -> Result<Decoder, LmError> {
        self.accelerator = Some(Accelerator::new(&self, device)?.into());
        Ok(self)
    }

    /// The device that computes in the machine's place.
    pub fn device(&self) -> Option<&Device> {
        self.accelerator.as_deref().map(Accelerator::device)
    }

    /// Row by row: the embedding, and what makes logits if that is another matrix.
    pub fn unpacked_vocabulary(&self) -> (Vec<f32>, Option<Vec<f32>>) {
        let apart = !Arc::ptr_eq(&self.embedding, &self.output);
        (unpacked(&self.embedding), apart.then(|| unpacked(&self.output)))
    }

    /// An empty cache for the keys and values of so many tokens.
    pub fn cache(&self, kept_tokens: usize) -> PrefixCache {
        let store = match &self.accelerator {
            Some(accelerator) => Store::Pages(accelerator.pages()),
            None => Store::Memory {
                layers: self.config.layers,
                heads: self.config.heads,
            },
        };
        PrefixCache::new(store, kept_tokens.div_ceil(BLOCK))
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
            embedding_scale,
            query_scale,
            curve,
            ..
        } = self.config;
        let (n, machine) = (tokens.len(), &self.machine);
        if let Some(token) = tokens.iter().find(|&&token| token as usize >= vocabulary) {
            return Err(LmError::Tokenizer(format!("token {token} is not in the vocabulary")));
        }
        if let Some(accelerator) = &self.accelerator {
            scratch.x_there = Some(accelerator.forward(spans, tokens)?);
            return Ok(());
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
        plan.set(spans, &self.config.rotaries);
        x.resize(n * hidden, 0.0);
        for (row, &token) in x.chunks_exact_mut(hidden).zip(tokens) {
            self.embedding.row(token as usize, row);
            row.iter_mut().for_each(|x| *x *= embedding_scale);
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
                view: self.config.views[idx],
                query_scale,
                qkv,
                norms: layer.head_norms.each_ref().map(Vec::as_slice),
                norm_epsilon,
            };
            plan.write(machine, spans, shapes);
            plan.attend(machine, spans, shapes, attended);

            activations.set(machine, attended, width);
            let part = layer.o.part(machine, attended, a, 0);
            self.add(activations, part, &layer.post_norms[0], x, normed);

            activations.set_normed(machine, x, &layer.feed_forward_norm, norm_epsilon, normed);
            let (gate, up) = (
                layer.gate.part(machine, normed, a, 0),
                layer.up.part(machine, normed, b, 0),
            );
            gated(machine, activations, curve, &gate, &up, inner);
            activations.set(machine, inner, feed_forward);
            let part = layer.down.part(machine, inner, a, 0);
            self.add(activations, part, &layer.post_norms[1], x, normed);
        }
        Ok(())
    }

    /// Adds a product to `x`, normalised by `norm` if that is not empty. `room`: as long as `x`.
    fn add(&self, activations: &Activations, part: Part, norm: &[f32], x: &mut [f32], room: &mut [f32]) {
        let (machine, hidden) = (&self.machine, self.config.hidden);
        if norm.is_empty() {
            return product(machine, activations, &[part], x, hidden, Into::Add);
        }
        product(machine, activations, &[part], room, hidden, Into::Replace);
        add_normalised(machine, room, norm, self.config.norm_epsilon, x);
    }

    /// Normalised results of some rows of the last batch: (rows.len(), hidden).
    pub fn hidden<'a>(&self, scratch: &'a mut Scratch, rows: &[usize]) -> Result<&'a [f32], LmError> {
        let hidden = self.config.hidden;
        if let (Some(accelerator), Some(x)) = (&self.accelerator, &scratch.x_there) {
            scratch.picked = accelerator.hidden(x, rows)?.flatten_all()?.to_vec1()?;
            return Ok(&scratch.picked);
        }
        scratch.picked.resize(rows.len() * hidden, 0.0);
        for (out, &row) in scratch.picked.chunks_exact_mut(hidden).zip(rows) {
            let x = &scratch.x[row * hidden..][..hidden];
            normalise(self.machine.level, x, &self.norm, self.config.norm_epsilon, out);
        }
        Ok(&scratch.picked)
    }

    /// Logits of what follows some rows of the last batch: (rows.len(), vocabulary).
    pub fn logits<'a>(&self, scratch: &'a mut Scratch, rows: &[usize]) -> Result<&'a [f32], LmError> {
        if let (Some(accelerator), Some(x)) = (&self.accelerator, &scratch.x_there) {
            scratch.logits = accelerator.logits(x, rows)?.flatten_all()?.to_vec1()?;
            return Ok(&scratch.logits);
        }
        self.hidden(scratch, rows)?;
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
        Ok(logits)
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
        Ok(self.logits(&mut scratch, &rows)?.to_vec())
    }
}

/// All rows of a matrix.
fn unpacked(matrix: &Packed) -> Vec<f32> {
    let mut numbers = vec![0.0; matrix.rows * matrix.columns];
    for (idx, row) in numbers.chunks_exact_mut(matrix.columns).enumerate() {
        matrix.row(idx, row);
    }
    numbers
}
