//! The decoder's arithmetic on a graphics card, by candle's tensors.
//!
//! Matrices are unpacked, adapters added to them, and kept there as bfloat16 numbers; what a layer adds to is kept
//! as 32-bit floats. Keys and values lie in pages of 64 tokens of two tensors for each layer; a batch gathers the
//! pages of its sequences, so candidates share those of their prompt. Unlike on the processor, a token's last bits
//! may depend on its company.
//!
//! A small model's step is short enough that a card mostly waits to be told what comes next, so what matters is how
//! many operations a layer has: about thirty.

use std::sync::{Arc, Mutex, MutexGuard, OnceLock, PoisonError};

use candle_core::{DType, Device, DeviceLocation, Result, Tensor};
use candle_nn::ops::{rms_norm, softmax_last_dim};
use candle_nn::rotary_emb::rope_thd;

use crate::config::Config;
use crate::decoder::{Decoder, Linear as Matrix};
use crate::kernels::Curve;
use crate::kernels::attention::{BLOCK, Span};

/// Pages of a new cache; it grows by doubling.
const FIRST_PAGES: usize = 64;

/// The graphics card that this program was built for and that is there.
pub fn found() -> Option<Device> {
    static FOUND: OnceLock<Option<Device>> = OnceLock::new();
    FOUND
        .get_or_init(|| {
            if cfg!(feature = "cuda") {
                Device::new_cuda(0).ok()
            } else if cfg!(feature = "metal") {
                Device::new_metal(0).ok()
            } else {
                None
            }
        })
        .clone()
}

/// In words, which of the two computes.
pub fn described() -> String {
    match (found(), cfg!(any(feature = "cuda", feature = "metal"))) {
        (Some(device), _) => format!("models run on the graphics card {:?}", device.location()),
        (None, true) => "models run on the processor: no graphics card was found".into(),
        (None, false) => "models run on the processor: this program was built without `cuda` and `metal`".into(),
    }
}

/// A network's weights on a device.
pub struct Accelerator {
    device: Device,
    /// Of matrices, keys and values.
    dtype: DType,
    config: Config,
    layers: Vec<Layer>,
    /// (vocabulary, hidden).
    embedding: Tensor,
    /// (hidden, vocabulary).
    output: Tensor,
    norm: Tensor,
}

struct Layer {
    attention_norm: Tensor,
    /// Queries, scaled as attention wants them, keys and values.
    qkv: Linear,
    /// Of each head of the queries and the keys.
    head_norms: Option<[Tensor; 2]>,
    o: Linear,
    feed_forward_norm: Tensor,
    post_norms: Option<[Tensor; 2]>,
    /// Gate and its partner.
    gate_up: Linear,
    down: Linear,
}

struct Linear {
    /// (in, out).
    weight: Tensor,
    bias: Option<Tensor>,
}

/// Keys and values on a device, for the sequences of one cache.
pub struct Pages {
    device: Device,
    dtype: DType,
    layers: usize,
    /// Numbers of one token's keys in a layer, and as many of its values.
    width: usize,
    state: Mutex<State>,
}

/// Changes only under the lock, and never half: pages are taken, freed and copied on paper, and the device follows
/// when the next batch comes, which may say that it failed.
#[derive(Default)]
struct State {
    /// Keys and values of each layer: (pages that there is room for * 64, width) each.
    layers: Vec<[Tensor; 2]>,
    /// Pages that were ever taken.
    pages: u32,
    free: Vec<u32>,
    /// (from, to), in the order they were asked for.
    copies: Vec<(u32, u32)>,
}

/// A page in use; free again when dropped.
pub struct Page {
    idx: u32,
    pages: Arc<Pages>,
}

/// What the layers of one batch have in common.
struct Batch {
    pages: Arc<Pages>,
    /// Where each row's keys and values go: (rows, width).
    slots: Tensor,
    /// For each rotary, cosines and sines of every row: (rows, frequencies) each.
    turns: Vec<[Tensor; 2]>,
    groups: Vec<Group>,
    /// Brings the groups' rows, one group after the other, into the batch's order; of several groups only.
    order: Option<Tensor>,
}

/// Sequences that are attended to at once.
struct Group {
    sequences: usize,
    /// New tokens of each.
    tokens: usize,
    /// The batch's rows of these sequences, if there are others.
    rows: Option<Tensor>,
    /// Tokens of their pages, one sequence after the other, each filled up to the longest.
    seen: Tensor,
    /// For each window that layers have, what a row does not see: (sequences, 1, 1, tokens, seen), 0 or -inf;
    /// nothing where every row sees all.
    masks: Vec<(usize, Option<Tensor>)>,
}

impl Accelerator {
    /// The decoder's weights on this device.
    pub fn new(decoder: &Decoder, device: &Device) -> Result<Accelerator> {
        let device = &connection(device)?;
        let dtype = match device.is_cpu() {
            true => DType::F32,
            false => DType::BF16,
        };
        let upload = |numbers: Vec<f32>, rows: usize| {
            let columns = numbers.len() / rows;
            Tensor::from_vec(numbers, (rows, columns), device)?.to_dtype(dtype)
        };
        let vector = |numbers: &[f32]| Tensor::new(numbers, device);
        let both = |norms: &[Vec<f32>; 2]| match norms[0].is_empty() {
            true => Ok(None),
            false => Ok::<_, candle_core::Error>(Some([vector(&norms[0])?, vector(&norms[1])?])),
        };
        // The first part's results are scaled.
        let scaled = |scale: f32, parts: &[&Matrix]| {
            let rows = parts.iter().map(|part| part.dims().0).sum();
            let mut weight: Vec<f32> = parts.iter().flat_map(|part| part.unpacked()).collect();
            let mut bias: Vec<f32> = parts.iter().flat_map(|part| part.bias().iter().copied()).collect();
            let (first_rows, columns) = parts[0].dims();
            for number in weight[..first_rows * columns]
                .iter_mut()
                .chain(bias.iter_mut().take(first_rows))
            {
                *number *= scale;
            }
            Ok::<_, candle_core::Error>(Linear {
                weight: upload(weight, rows)?.t()?.contiguous()?,
                bias: match bias.len() == rows {
                    true => Some(vector(&bias)?),
                    false => None,
                },
            })
        };
        let linear = |parts: &[&Matrix]| scaled(1.0, parts);
        let query_scale = decoder.config.query_scale;
        let layers = decoder.layers.iter().map(|layer| {
            // Where heads are normalised, the scale goes to what they are multiplied with afterwards.
            let mut head_norms = (*layer.head_norms).clone();
            let normalised = !head_norms[0].is_empty();
            head_norms[0].iter_mut().for_each(|weight| *weight *= query_scale);
            Ok(Layer {
                attention_norm: vector(&layer.attention_norm)?,
                qkv: scaled(
                    if normalised { 1.0 } else { query_scale },
                    &[&layer.q, &layer.k, &layer.v],
                )?,
                head_norms: both(&head_norms)?,
                o: linear(&[&layer.o])?,
                feed_forward_norm: vector(&layer.feed_forward_norm)?,
                post_norms: both(&layer.post_norms)?,
                gate_up: linear(&[&layer.gate, &layer.up])?,
                down: linear(&[&layer.down])?,
            })
        });
        let (embedding, output) = decoder.unpacked_vocabulary();
        let vocabulary = decoder.config.vocabulary;
        let embedding = upload(embedding, vocabulary)?;
        let output = match output {
            Some(output) => upload(output, vocabulary)?,
            None => embedding.clone(),
        };
        let accelerator = Accelerator {
            layers: layers.collect::<Result<_>>()?,
            embedding,
            output: output.t()?,
            norm: vector(&decoder.norm)?,
            device: device.clone(),
            dtype,
            config: decoder.config.clone(),
        };
        // Another thread computes, whose work candle does not order after this one's.
        device.synchronize()?;
        Ok(accelerator)
    }

    pub fn device(&self) -> &Device {
        &self.device
    }

    /// Room for the keys and values of one cache.
    pub fn pages(&self) -> Arc<Pages> {
        let Config { layers, heads, .. } = self.config;
        Arc::new(Pages {
            device: self.device.clone(),
            dtype: self.dtype,
            layers,
            width: heads.kv_heads * heads.dim,
            state: Mutex::default(),
        })
    }

    /// [`Decoder::forward`]: what the last layer leaves, (tokens, hidden).
    pub fn forward(&self, spans: &[Span], tokens: &[u32]) -> Result<Tensor> {
        let batch = self.batch(spans)?;
        batch.pages.settle()?;
        let ids = Tensor::new(tokens, &self.device)?;
        let scale = f64::from(self.config.embedding_scale);
        let mut x = (self.embedding.index_select(&ids, 0)?.to_dtype(DType::F32)? * scale)?;
        for (idx, layer) in self.layers.iter().enumerate() {
            let normed = self.normed(&x, &layer.attention_norm)?;
            let attended = self.attend(idx, layer, &batch, &layer.qkv.apply(&normed)?)?;
            let added = layer.o.apply(&attended)?.to_dtype(DType::F32)?;
            x = (x + self.post(added, layer.post_norms.as_ref().map(|norms| &norms[0]))?)?;

            let normed = self.normed(&x, &layer.feed_forward_norm)?;
            let inner = layer.gate_up.apply(&normed)?.to_dtype(DType::F32)?;
            let (gate, up) = (
                inner.narrow(1, 0, self.config.feed_forward)?,
                inner.narrow(1, self.config.feed_forward, self.config.feed_forward)?,
            );
            let gate = match self.config.curve == Curve::GELU {
                true => gate.gelu()?,
                false => gate.silu()?,
            };
            let added = layer.down.apply(&(gate * up)?)?.to_dtype(DType::F32)?;
            x = (x + self.post(added, layer.post_norms.as_ref().map(|norms| &norms[1]))?)?;
        }
        Ok(x)
    }

    /// [`Decoder::hidden`] of what [`Accelerator::forward`] left.
    pub fn hidden(&self, x: &Tensor, rows: &[usize]) -> Result<Tensor> {
        let rows: Vec<u32> = rows.iter().map(|&row| row as u32).collect();
        self.normed(&x.index_select(&Tensor::new(rows, &self.device)?, 0)?, &self.norm)
    }

    /// [`Decoder::logits`] of what [`Accelerator::forward`] left.
    pub fn logits(&self, x: &Tensor, rows: &[usize]) -> Result<Tensor> {
        let hidden = self.hidden(x, rows)?.to_dtype(self.dtype)?;
        hidden.matmul(&self.output)?.to_dtype(DType::F32)
    }

    fn normed(&self, x: &Tensor, weight: &Tensor) -> Result<Tensor> {
        rms_norm(x, weight, self.config.norm_epsilon)
    }

    fn post(&self, added: Tensor, norm: Option<&Tensor>) -> Result<Tensor> {
        match norm {
            Some(norm) => self.normed(&added, norm),
            None => Ok(added),
        }
    }

    fn batch(&self, spans: &[Span]) -> Result<Batch> {
        let pages = spans
            .first()
            .and_then(|span| span.blocks.first())
            .map(|block| block.page().pages.clone());
        let pages = pages.ok_or_else(|| candle_core::Error::Msg("a batch without pages".into()))?;
        let mut first_row = 0;
        let mut rows_of = Vec::new();
        let (mut slots, mut positions) = (Vec::new(), Vec::new());
        for span in spans {
            rows_of.push(first_row..first_row + span.tokens as u32);
            first_row += span.tokens as u32;
            for position in span.base..span.base + span.tokens {
                slots.push(slot(span, position));
                positions.push(position as f32);
            }
        }
        let turns = self.config.rotaries.iter().map(|rotary| {
            let angles = || {
                positions
                    .iter()
                    .flat_map(|at| rotary.frequencies.iter().map(move |f| at * f))
            };
            let shape = (positions.len(), rotary.frequencies.len());
            let tensor = |numbers: Vec<f32>| Tensor::from_vec(numbers, shape, &self.device);
            Ok([
                tensor(angles().map(|angle| angle.cos() * rotary.scale).collect())?,
                tensor(angles().map(|angle| angle.sin() * rotary.scale).collect())?,
            ])
        });
        let turns = turns.collect::<Result<_>>()?;
        // Samples read a token each, all at once; prompts, which differ in length, one by one.
        let (single, long): (Vec<usize>, Vec<usize>) = (0..spans.len()).partition(|&at| spans[at].tokens == 1);
        let mut members: Vec<Vec<usize>> = long.into_iter().map(|at| vec![at]).collect();
        members.extend((!single.is_empty()).then_some(single));
        let mut order = vec![0u32; slots.len()];
        let in_groups = members.iter().flatten().flat_map(|&at| rows_of[at].clone());
        for (place, row) in in_groups.enumerate() {
            order[row as usize] = place as u32;
        }
        let groups = members.iter().map(|members| self.group(members, spans, &rows_of));
        let groups: Vec<Group> = groups.collect::<Result<_>>()?;
        Ok(Batch {
            order: match groups.len() {
                1 => None,
                _ => Some(Tensor::new(order, &self.device)?),
            },
            groups,
            slots: Tensor::new(&slots[..], &self.device)?
                .unsqueeze(1)?
                .broadcast_as((slots.len(), pages.width))?
                .contiguous()?,
            turns,
            pages,
        })
    }

    fn group(&self, members: &[usize], spans: &[Span], rows_of: &[std::ops::Range<u32>]) -> Result<Group> {
        let ends = members.iter().map(|&at| spans[at].base + spans[at].tokens);
        let (longest, tokens) = (ends.max().unwrap_or(0), spans[members[0]].tokens);
        let mut seen: Vec<u32> = Vec::with_capacity(members.len() * longest);
        for &at in members {
            let end = spans[at].base + spans[at].tokens;
            // Beyond a sequence's end anything will do: nothing sees it.
            seen.extend((0..longest).map(|position| slot(&spans[at], position.min(end - 1))));
        }
        let mut masks: Vec<(usize, Option<Tensor>)> = Vec::new();
        for view in &self.config.views {
            if masks.iter().any(|(window, _)| *window == view.window) {
                continue;
            }
            let owns = || members.iter().flat_map(|&at| spans[at].base..spans[at].base + tokens);
            let all = longest <= view.window && owns().all(|own| own + 1 == longest);
            if all {
                masks.push((view.window, None));
                continue;
            }
            let mut mask = Vec::with_capacity(members.len() * tokens * longest);
            for own in owns() {
                let sees = |position: usize| position <= own && own - position < view.window;
                mask.extend((0..longest).map(|position| if sees(position) { 0.0 } else { f32::NEG_INFINITY }));
            }
            let shape = (members.len(), 1, 1, tokens, longest);
            masks.push((view.window, Some(Tensor::from_vec(mask, shape, &self.device)?)));
        }
        let rows: Vec<u32> = members.iter().flat_map(|&at| rows_of[at].clone()).collect();
        Ok(Group {
            sequences: members.len(),
            tokens,
            rows: match members.len() == spans.len() {
                true => None,
                false => Some(Tensor::new(rows, &self.device)?),
            },
            seen: Tensor::new(seen, &self.device)?,
            masks,
        })
    }

    /// Writes the rows' keys and values and attends to all that their sequences have: (rows, heads * dim).
    fn attend(&self, idx: usize, layer: &Layer, batch: &Batch, qkv: &Tensor) -> Result<Tensor> {
        let heads = self.config.heads;
        let (kv_heads, dim, shared) = (heads.kv_heads, heads.dim, heads.group());
        let (n, view) = (qkv.dim(0)?, self.config.views[idx]);
        let both = qkv.narrow(1, 0, (heads.heads + kv_heads) * dim)?;
        let both = both.to_dtype(DType::F32)?.contiguous()?.reshape((n, (), dim))?;
        let both = match &layer.head_norms {
            Some([query_norm, key_norm]) => {
                let (q, k) = (both.narrow(1, 0, heads.heads)?, both.narrow(1, heads.heads, kv_heads)?);
                let q = self.normed(&q.contiguous()?, query_norm)?;
                Tensor::cat(&[q, self.normed(&k.contiguous()?, key_norm)?], 1)?
            }
            None => both,
        };
        let both = turned(both, &batch.turns[view.rotary])?;
        let q = both.narrow(1, 0, heads.heads)?.contiguous()?;
        let k = both.narrow(1, heads.heads, kv_heads)?.contiguous()?.flatten_from(1)?;
        let v = qkv.narrow(1, (heads.heads + kv_heads) * dim, kv_heads * dim)?;
        let [keys, values] = batch.pages.layer(idx);
        for (page, new) in [(&keys, k), (&values, v)] {
            page.scatter_set(&batch.slots, &new.to_dtype(self.dtype)?.contiguous()?, 0)?;
        }
        let attended = batch.groups.iter().map(|group| {
            let Group { sequences, tokens, .. } = *group;
            // (sequences * kv heads, seen, dim).
            let gathered = |page: &Tensor| {
                page.index_select(&group.seen, 0)?
                    .reshape((sequences, (), kv_heads, dim))?
                    .transpose(1, 2)?
                    .to_dtype(DType::F32)?
                    .contiguous()?
                    .flatten_to(1)
            };
            let queries = match &group.rows {
                Some(rows) => q.index_select(rows, 0)?,
                None => q.clone(),
            };
            let queries = queries
                .reshape((sequences, tokens, kv_heads, shared, dim))?
                .permute((0, 2, 3, 1, 4))?
                .contiguous()?
                .reshape((sequences * kv_heads, shared * tokens, dim))?;
            let scores = queries.matmul(&gathered(&keys)?.t()?)?;
            let mask = group.masks.iter().find(|(window, _)| *window == view.window);
            let (_, mask) = mask.expect("a mask for each layer's window");
            let scores = scores.reshape((sequences, kv_heads, shared, tokens, ()))?;
            let scores = match mask {
                Some(mask) => scores.broadcast_add(mask)?,
                None => scores,
            };
            softmax_last_dim(&scores)?
                .reshape((sequences * kv_heads, shared * tokens, ()))?
                .matmul(&gathered(&values)?)?
                .reshape((sequences, kv_heads, shared, tokens, dim))?
                .permute((0, 3, 1, 2, 4))?
                .contiguous()?
                .reshape((sequences * tokens, heads.heads * dim))
        });
        let attended = attended.collect::<Result<Vec<_>>>()?;
        match &batch.order {
            Some(order) => Tensor::cat(&attended, 0)?.index_select(order, 0),
            None => Ok(attended.into_iter().next().expect("a batch has a group")),
        }
    }
}

impl Pages {
    pub fn take(self: &Arc<Pages>) -> Page {
        let mut state = self.state();
        let idx = state.free.pop().unwrap_or(state.pages);
        state.pages = state.pages.max(idx + 1);
        Page {
            idx,
            pages: self.clone(),
        }
    }

    pub fn bytes_per_page(&self) -> usize {
        2 * self.layers * BLOCK * self.width * self.dtype.size_in_bytes()
    }

    fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn layer(&self, idx: usize) -> [Tensor; 2] {
        self.state().layers[idx].clone()
    }

    /// Makes room for all pages and the copies that were asked for.
    fn settle(&self) -> Result<()> {
        let mut state = self.state();
        let room = match state.layers.first() {
            Some([keys, _]) => keys.dim(0)? / BLOCK,
            None => 0,
        };
        if (state.pages as usize) > room {
            let more = (state.pages as usize - room).max(room).max(FIRST_PAGES);
            let grown = |old: Option<&Tensor>| {
                let new = Tensor::zeros((more * BLOCK, self.width), self.dtype, &self.device)?;
                match old {
                    Some(old) => Tensor::cat(&[old, &new], 0),
                    None => Ok(new),
                }
            };
            let layers = (0..self.layers).map(|idx| {
                let old = state.layers.get(idx);
                Ok([grown(old.map(|[keys, _]| keys))?, grown(old.map(|[_, values]| values))?])
            });
            state.layers = layers.collect::<Result<_>>()?;
        }
        for &(from, to) in &state.copies {
            for layer in state.layers.iter().flatten() {
                // A copy of its own: a tensor cannot be written from itself.
                let page = layer.narrow(0, from as usize * BLOCK, BLOCK)?.copy()?;
                layer.slice_set(&page, 0, to as usize * BLOCK)?;
            }
        }
        state.copies.clear();
        Ok(())
    }
}

impl Page {
    pub fn copy_from(&mut self, other: &Page) {
        self.pages.state().copies.push((other.idx, self.idx));
    }
}

impl Drop for Page {
    fn drop(&mut self) {
        self.pages.state().free.push(self.idx);
    }
}

/// Where a position's keys and values lie.
fn slot(span: &Span, position: usize) -> u32 {
    span.blocks[position / BLOCK].page().idx * BLOCK as u32 + (position % BLOCK) as u32
}

/// Turns the heads of (rows, heads, dim): numbers `i` and `i + frequencies` of each together; what is left stays.
fn turned(x: Tensor, [cosines, sines]: &[Tensor; 2]) -> Result<Tensor> {
    let (turns, dim) = (2 * cosines.dim(1)?, x.dim(2)?);
    if turns == 0 {
        return Ok(x);
    }
    let left = dim - turns;
    let turned = rope_thd(&x.narrow(2, 0, turns)?.contiguous()?.unsqueeze(0)?, cosines, sines)?.squeeze(0)?;
    match left {
        0 => Ok(turned),
        _ => Tensor::cat(&[turned, x.narrow(2, turns, left)?], 2),
    }
}

/// A connection of a model's own. Candle keeps one cuBLAS handle, and with it one workspace, for each, and a model
/// computes on a thread of its own: two models that shared one would write over each other's sums.
fn connection(device: &Device) -> Result<Device> {
    match device.location() {
        DeviceLocation::Cuda { gpu_id } => Device::new_cuda(gpu_id),
        DeviceLocation::Cpu | DeviceLocation::Metal { .. } => Ok(device.clone()),
    }
}

impl Linear {
    /// (rows, out): numbers of the weight's type, or 32-bit floats where a bias was added.
    fn apply(&self, x: &Tensor) -> Result<Tensor> {
        let y = x.to_dtype(self.weight.dtype())?.matmul(&self.weight)?;
        match &self.bias {
            Some(bias) => y.to_dtype(DType::F32)?.broadcast_add(bias),
            None => Ok(y),
        }
    }
}
