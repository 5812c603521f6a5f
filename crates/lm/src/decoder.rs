//! The transformer of llama and qwen2 models: reads prompts, and decodes one token of many sequences.

use candle_core::quantized::QTensor;
use candle_core::{Device, Tensor};

use crate::LmError;
use crate::attention::{Heads, Prefix, Tail, causal, shared};
use crate::gguf::{Gguf, rows};
use crate::linear::{Linear, Route};

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Architecture {
    Llama,
    Qwen2,
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

#[derive(Clone)]
pub struct Layer {
    attention_norm: Vec<f32>,
    pub q: Linear,
    pub k: Linear,
    pub v: Linear,
    pub o: Linear,
    /// Biases of q, k and v; empty for llama.
    biases: [Vec<f32>; 3],
    feed_forward_norm: Vec<f32>,
    pub gate: Linear,
    pub up: Linear,
    pub down: Linear,
}

/// Weights, shared between copies.
#[derive(Clone)]
pub struct Decoder {
    pub config: Config,
    pub layers: Vec<Layer>,
    embedding: std::sync::Arc<QTensor>,
    norm: Vec<f32>,
    output: Linear,
    /// Inverse frequencies, `head_dim / 2`.
    frequencies: Vec<f32>,
}

/// Models of up to so many weights are kept as f32: 1 GiB at most.
const MOST_DENSE_PARAMETERS: u64 = 1 << 28;

impl Config {
    pub fn from_gguf(gguf: &Gguf, vocabulary: usize) -> Result<Config, LmError> {
        let name = gguf.string("general.architecture").unwrap_or("").to_string();
        let architecture = match name.as_str() {
            "llama" => Architecture::Llama,
            "qwen2" => Architecture::Qwen2,
            other => return Err(LmError::Unsupported(format!("architecture `{other}`"))),
        };
        let size = |key: &str, most| gguf.size(&format!("{name}.{key}"), most);
        let heads = size("attention.head_count", 1024)?;
        let hidden = size("embedding_length", 1 << 16)?;
        let kv_heads = match gguf.integer(&format!("{name}.attention.head_count_kv")) {
            Some(_) => size("attention.head_count_kv", 1024)?,
            None => heads,
        };
        if !heads.is_multiple_of(kv_heads) || !hidden.is_multiple_of(heads) {
            let message = format!("{heads} heads, {kv_heads} of them for keys, over {hidden} numbers");
            return Err(LmError::corrupt("model file", message));
        }
        let dim = hidden / heads;
        let rotated = gguf
            .integer(&format!("{name}.rope.dimension_count"))
            .unwrap_or(dim as u64);
        if rotated != dim as u64 || !dim.is_multiple_of(2) {
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

impl Decoder {
    pub fn load(gguf: &mut Gguf, config: Config) -> Result<Decoder, LmError> {
        let Config {
            hidden,
            feed_forward,
            heads,
            vocabulary,
            ..
        } = config;
        let kv = heads.kv_heads * heads.dim;
        let dense = gguf.parameters() <= MOST_DENSE_PARAMETERS;
        let embedding = gguf.tensor("token_embd.weight", &[vocabulary, hidden])?;
        let output = if gguf.has_tensor("output.weight") {
            Linear::new(gguf.tensor("output.weight", &[vocabulary, hidden])?, dense)?
        } else {
            Linear::new(gguf.tensor("token_embd.weight", &[vocabulary, hidden])?, dense)?
        };
        let mut layers = Vec::new();
        for idx in 0..config.layers {
            let name = |part: &str| format!("blk.{idx}.{part}");
            let mut linear = |part: &str, out, inside| Linear::new(gguf.tensor(&name(part), &[out, inside])?, dense);
            let (q, k) = (
                linear("attn_q.weight", hidden, hidden)?,
                linear("attn_k.weight", kv, hidden)?,
            );
            let (v, o) = (
                linear("attn_v.weight", kv, hidden)?,
                linear("attn_output.weight", hidden, hidden)?,
            );
            let gate = linear("ffn_gate.weight", feed_forward, hidden)?;
            let up = linear("ffn_up.weight", feed_forward, hidden)?;
            let down = linear("ffn_down.weight", hidden, feed_forward)?;
            let mut bias = |part: &str, len| match gguf.has_tensor(&name(part)) {
                true => gguf.vector(&name(part), len),
                false => Ok(Vec::new()),
            };
            let biases = [
                bias("attn_q.bias", hidden)?,
                bias("attn_k.bias", kv)?,
                bias("attn_v.bias", kv)?,
            ];
            layers.push(Layer {
                attention_norm: gguf.vector(&name("attn_norm.weight"), hidden)?,
                q,
                k,
                v,
                o,
                biases,
                feed_forward_norm: gguf.vector(&name("ffn_norm.weight"), hidden)?,
                gate,
                up,
                down,
            });
        }
        let dim = heads.dim;
        let frequencies = (0..dim)
            .step_by(2)
            .map(|i| 1.0 / config.rope_base.powf(i as f32 / dim as f32))
            .collect();
        let norm = gguf.vector("output_norm.weight", hidden)?;
        Ok(Decoder {
            config,
            layers,
            embedding: embedding.into(),
            norm,
            output,
            frequencies,
        })
    }

    pub fn empty_prefix(&self) -> Result<Prefix, LmError> {
        let Heads { kv_heads, dim, .. } = self.config.heads;
        let empty = Tensor::zeros((kv_heads, 0, dim), candle_core::DType::F32, &Device::Cpu)?;
        Ok(Prefix {
            tokens: 0,
            layers: vec![(empty.clone(), empty); self.config.layers],
        })
    }

    /// Reads `tokens` after `prefix`. Returns the longer prefix and the last token's logits.
    pub fn prefill(&self, prefix: &Prefix, tokens: &[u32]) -> Result<(Prefix, Vec<f32>), LmError> {
        let Config { hidden, heads, .. } = self.config;
        let (m, base) = (tokens.len(), prefix.tokens);
        let positions: Vec<usize> = (base..base + m).collect();
        let mut x = rows(&self.embedding, tokens)?; // (m, hidden)
        let mut grown = Vec::with_capacity(self.layers.len());
        for (layer, (keys, values)) in self.layers.iter().zip(&prefix.layers) {
            let (q, k, v) = self.project(layer, &x, &positions, Route::Exact)?;
            let per_head = |flat: Vec<f32>| -> Result<Tensor, LmError> {
                let t = Tensor::from_vec(flat, (m, heads.kv_heads, heads.dim), &Device::Cpu)?;
                Ok(t.transpose(0, 1)?.contiguous()?) // (kv_heads, m, dim)
            };
            let (mut k, mut v) = (per_head(k)?, per_head(v)?);
            if base > 0 {
                k = Tensor::cat(&[keys, &k], 1)?;
                v = Tensor::cat(&[values, &v], 1)?;
            }
            let attended = causal(heads, &q, &k, &v, base)?;
            grown.push((k, v));
            self.finish_layer(layer, &mut x, attended, Route::Exact)?;
        }
        let logits = self.logits(&x[(m - 1) * hidden..])?;
        Ok((
            Prefix {
                tokens: base + m,
                layers: grown,
            },
            logits,
        ))
    }

    /// Adds one token to each sequence. Returns their logits, (sequences, vocabulary) flat.
    pub fn decode(&self, prefix: &Prefix, tails: &mut [&mut Tail], tokens: &[u32]) -> Result<Vec<f32>, LmError> {
        let heads = self.config.heads;
        let kv_width = heads.kv_heads * heads.dim;
        let positions: Vec<usize> = tails.iter().map(|tail| prefix.tokens + tail.tokens).collect();
        let mut x = rows(&self.embedding, tokens)?;
        for (idx, layer) in self.layers.iter().enumerate() {
            let (q, k, v) = self.project(layer, &x, &positions, Route::Quantised)?;
            for (seq, tail) in tails.iter_mut().enumerate() {
                let (keys, values) = &mut tail.layers[idx];
                keys.extend_from_slice(&k[seq * kv_width..(seq + 1) * kv_width]);
                values.extend_from_slice(&v[seq * kv_width..(seq + 1) * kv_width]);
            }
            let own: Vec<(&[f32], &[f32])> = tails
                .iter()
                .map(|tail| (&tail.layers[idx].0[..], &tail.layers[idx].1[..]))
                .collect();
            let (keys, values) = &prefix.layers[idx];
            let attended = shared(heads, &q, (prefix.tokens > 0).then_some((keys, values)), &own)?;
            self.finish_layer(layer, &mut x, attended, Route::Quantised)?;
        }
        tails.iter_mut().for_each(|tail| tail.tokens += 1);
        self.logits(&x)
    }

    #[expect(
        clippy::type_complexity,
        reason = "queries, keys and values of one layer, used at one place"
    )]
    /// Normalised, projected, biased and rotated queries, keys and values of each row.
    fn project(
        &self,
        layer: &Layer,
        x: &[f32],
        positions: &[usize],
        route: Route,
    ) -> Result<(Vec<f32>, Vec<f32>, Vec<f32>), LmError> {
        let normed = self.normed(x, &layer.attention_norm)?;
        let run = |linear: &Linear, bias: &[f32]| -> Result<Vec<f32>, LmError> {
            let mut y = flat(&linear.forward(&normed, route)?)?;
            if !bias.is_empty() {
                y.chunks_exact_mut(bias.len())
                    .for_each(|row| row.iter_mut().zip(bias).for_each(|(y, b)| *y += b));
            }
            Ok(y)
        };
        let mut q = run(&layer.q, &layer.biases[0])?;
        let mut k = run(&layer.k, &layer.biases[1])?;
        let v = run(&layer.v, &layer.biases[2])?;
        self.rotate(&mut q, positions);
        self.rotate(&mut k, positions);
        Ok((q, k, v))
    }

    /// Adds the attention's output and the feed-forward block to `x`.
    fn finish_layer(&self, layer: &Layer, x: &mut [f32], attended: Vec<f32>, route: Route) -> Result<(), LmError> {
        let n = x.len() / self.config.hidden;
        let attended = Tensor::from_vec(attended, (n, self.config.hidden), &Device::Cpu)?;
        add(x, &flat(&layer.o.forward(&attended, route)?)?);
        let normed = self.normed(x, &layer.feed_forward_norm)?;
        let gate = layer.gate.forward(&normed, route)?.silu()?;
        let inner = (gate * layer.up.forward(&normed, route)?)?;
        add(x, &flat(&layer.down.forward(&inner, route)?)?);
        Ok(())
    }

    fn logits(&self, x: &[f32]) -> Result<Vec<f32>, LmError> {
        flat(&self.output.forward(&self.normed(x, &self.norm)?, Route::Quantised)?)
    }

    /// Root-mean-square norm of each row.
    fn normed(&self, x: &[f32], weight: &[f32]) -> Result<Tensor, LmError> {
        let hidden = self.config.hidden;
        let mut out = Vec::with_capacity(x.len());
        for row in x.chunks_exact(hidden) {
            let mean = row.iter().map(|x| x * x).sum::<f32>() / hidden as f32;
            let scale = 1.0 / (mean + self.config.norm_epsilon).sqrt();
            out.extend(row.iter().zip(weight).map(|(x, w)| x * scale * w));
        }
        Ok(Tensor::from_vec(out, (x.len() / hidden, hidden), &Device::Cpu)?)
    }

    /// Rotary positions: neighbours turn together in llama files, halves in qwen2's.
    fn rotate(&self, rows: &mut [f32], positions: &[usize]) {
        let (dim, half) = (self.config.heads.dim, self.config.heads.dim / 2);
        let width = rows.len() / positions.len();
        for (row, &position) in rows.chunks_exact_mut(width).zip(positions) {
            let turns: Vec<(f32, f32)> = self
                .frequencies
                .iter()
                .map(|f| (position as f32 * f).sin_cos())
                .collect();
            for head in row.chunks_exact_mut(dim) {
                for (i, &(sin, cos)) in turns.iter().enumerate() {
                    let (a, b) = match self.config.architecture {
                        Architecture::Llama => (2 * i, 2 * i + 1),
                        Architecture::Qwen2 => (i, i + half),
                    };
                    let (x, y) = (head[a], head[b]);
                    head[a] = x * cos - y * sin;
                    head[b] = x * sin + y * cos;
                }
            }
        }
    }
}

fn flat(t: &Tensor) -> Result<Vec<f32>, LmError> {
    Ok(t.flatten_all()?.to_vec1()?)
}

fn add(x: &mut [f32], y: &[f32]) {
    x.iter_mut().zip(y).for_each(|(x, y)| *x += y);
}
