//! Keys and values of what was read, and attention over them.
//!
//! A [`Prefix`] is immutable and shared by every sequence that starts with it; each sequence owns only
//! the [`Tail`] it has decoded since. Nothing is ever written in place through a shared tensor, so two
//! forks cannot overwrite each other.

use candle_core::Tensor;

use crate::LmError;

/// Keys and values of a prompt: per layer two tensors of shape (kv_heads, tokens, head_dim).
#[derive(Clone)]
pub struct Prefix {
    pub tokens: usize,
    pub layers: Vec<(Tensor, Tensor)>,
}

impl Prefix {
    /// The first `tokens` of it; shares memory.
    pub fn truncated(&self, tokens: usize) -> Result<Prefix, LmError> {
        let cut = |t: &Tensor| t.narrow(1, 0, tokens);
        let layers = self
            .layers
            .iter()
            .map(|(k, v)| Ok((cut(k)?, cut(v)?)))
            .collect::<Result<_, candle_core::Error>>()?;
        Ok(Prefix { tokens, layers })
    }
}

/// Keys and values of one sequence's own tokens: per layer (tokens, kv_heads, head_dim), flat.
#[derive(Clone)]
pub struct Tail {
    pub tokens: usize,
    pub layers: Vec<(Vec<f32>, Vec<f32>)>,
}

impl Tail {
    pub fn new(layers: usize) -> Tail {
        Tail {
            tokens: 0,
            layers: vec![(Vec::new(), Vec::new()); layers],
        }
    }
}

/// Head counts and width of the attention.
#[derive(Clone, Copy, Debug)]
pub struct Heads {
    pub heads: usize,
    pub kv_heads: usize,
    pub dim: usize,
}

impl Heads {
    pub fn group(&self) -> usize {
        self.heads / self.kv_heads
    }
}

/// Causal attention of `m` new tokens over `base` earlier ones and themselves.
///
/// `q`: (m, heads, dim) flat. `keys`, `values`: (kv_heads, base + m, dim). Returns (m, heads, dim) flat.
pub fn causal(heads: Heads, q: &[f32], keys: &Tensor, values: &Tensor, base: usize) -> Result<Vec<f32>, LmError> {
    let (group, width) = (heads.group(), heads.heads * heads.dim);
    let m = q.len() / width;
    let scores = grouped(heads, q, m)?.matmul(&keys.t()?)?; // (kv_heads, group * m, base + m)
    let total = base + m;
    let mut scores: Vec<f32> = scores.flatten_all()?.to_vec1()?;
    let scale = 1.0 / (heads.dim as f32).sqrt();
    for (row_idx, row) in scores.chunks_exact_mut(total).enumerate() {
        let seen = base + row_idx % m + 1;
        let (max, sum) = exponentials(&mut row[..seen], scale, f32::NEG_INFINITY);
        debug_assert!(max.is_finite() || sum.is_nan() || sum >= 0.0);
        let inverse = 1.0 / sum;
        row[..seen].iter_mut().for_each(|p| *p *= inverse);
        row[seen..].fill(0.0);
    }
    let scores = Tensor::from_vec(scores, (heads.kv_heads, group * m, total), keys.device())?;
    let out: Vec<f32> = scores.matmul(&values.contiguous()?)?.flatten_all()?.to_vec1()?;
    Ok(ungrouped(heads, &out, m))
}

/// Attention of one new token of each of several sequences over the prefix they share and their own tail.
///
/// `q`: (sequences, heads, dim) flat. `tails`: each sequence's keys and values with the new token's last.
pub fn shared(
    heads: Heads,
    q: &[f32],
    prefix: Option<(&Tensor, &Tensor)>,
    tails: &[(&[f32], &[f32])],
) -> Result<Vec<f32>, LmError> {
    let (group, dim, n) = (heads.group(), heads.dim, tails.len());
    let kv_width = heads.kv_heads * dim;
    let scale = 1.0 / (dim as f32).sqrt();
    let (mut scores, base) = match prefix {
        Some((keys, _)) => {
            let scores = grouped(heads, q, n)?.matmul(&keys.t()?)?;
            (scores.flatten_all()?.to_vec1()?, keys.dim(1)?)
        }
        None => (Vec::new(), 0),
    };
    let mut out = vec![0f32; q.len()]; // (sequences, heads, dim)
    let mut inverse_sums = vec![0f32; n * heads.heads];
    let mut own = Vec::new();
    for (seq, (keys, values)) in tails.iter().enumerate() {
        for head in 0..heads.heads {
            let kv = head / group;
            let at = (seq * heads.heads + head) * dim;
            let query = &q[at..at + dim];
            own.clear();
            own.extend(
                keys.chunks_exact(kv_width)
                    .map(|row| dot(query, &row[kv * dim..(kv + 1) * dim])),
            );
            // Rows of the prefix's scores are ordered (kv_head, head in group, sequence).
            let row = (kv * group + head % group) * n + seq;
            let prefix_row = &mut scores[row * base..(row + 1) * base];
            let own_max = own.iter().copied().fold(f32::NEG_INFINITY, f32::max) * scale;
            let (max, sum) = exponentials(prefix_row, scale, own_max);
            let mut total = sum;
            for (score, row) in own.iter().zip(values.chunks_exact(kv_width)) {
                let p = fast_exp(score * scale - max);
                total += p;
                let value = &row[kv * dim..(kv + 1) * dim];
                out[at..at + dim].iter_mut().zip(value).for_each(|(o, v)| *o += p * v);
            }
            inverse_sums[seq * heads.heads + head] = 1.0 / total;
        }
    }
    if let Some((keys, values)) = prefix {
        let scores = Tensor::from_vec(scores, (heads.kv_heads, group * n, base), keys.device())?;
        let from_prefix: Vec<f32> = scores.matmul(values)?.flatten_all()?.to_vec1()?;
        let from_prefix = ungrouped(heads, &from_prefix, n);
        out.iter_mut().zip(&from_prefix).for_each(|(o, p)| *o += p);
    }
    for (row, inverse) in out.chunks_exact_mut(dim).zip(&inverse_sums) {
        row.iter_mut().for_each(|o| *o *= inverse);
    }
    Ok(out)
}

/// (m, heads, dim) to a tensor of (kv_heads, group * m, dim), so that heads which share keys multiply them together.
fn grouped(heads: Heads, q: &[f32], m: usize) -> Result<Tensor, LmError> {
    let Heads {
        heads: n_heads, dim, ..
    } = heads;
    let mut rows = Vec::with_capacity(q.len());
    for head in 0..n_heads {
        for i in 0..m {
            let at = (i * n_heads + head) * dim;
            rows.extend_from_slice(&q[at..at + dim]);
        }
    }
    Ok(Tensor::from_vec(
        rows,
        (heads.kv_heads, heads.group() * m, dim),
        &candle_core::Device::Cpu,
    )?)
}

fn ungrouped(heads: Heads, rows: &[f32], m: usize) -> Vec<f32> {
    let Heads {
        heads: n_heads, dim, ..
    } = heads;
    let mut out = Vec::with_capacity(rows.len());
    for i in 0..m {
        for head in 0..n_heads {
            let at = (head * m + i) * dim;
            out.extend_from_slice(&rows[at..at + dim]);
        }
    }
    out
}

/// Replaces scores by `exp(score * scale - max)`; returns the maximum (at least `floor`) and their sum.
fn exponentials(row: &mut [f32], scale: f32, floor: f32) -> (f32, f32) {
    let mut lanes = [f32::NEG_INFINITY; 8];
    let chunks = row.chunks_exact(8);
    let rest = chunks.remainder().iter().copied().fold(f32::NEG_INFINITY, f32::max);
    for chunk in chunks {
        lanes
            .iter_mut()
            .zip(chunk)
            .for_each(|(lane, &x)| *lane = if x > *lane { x } else { *lane });
    }
    let max = (lanes.iter().copied().fold(rest, f32::max) * scale).max(floor);
    row.iter_mut().for_each(|x| *x = fast_exp(*x * scale - max));
    let mut sums = [0f32; 8];
    let chunks = row.chunks_exact(8);
    let rest: f32 = chunks.remainder().iter().sum();
    for chunk in chunks {
        sums.iter_mut().zip(chunk).for_each(|(sum, x)| *sum += x);
    }
    (max, sums.iter().sum::<f32>() + rest)
}

/// `exp` for non-positive arguments, within 3e-7 of the true value; written so that it vectorises.
#[inline]
fn fast_exp(x: f32) -> f32 {
    let x = x.max(-87.0);
    let n = (x * std::f32::consts::LOG2_E + 12_582_912.0) - 12_582_912.0; // rounds to nearest
    let r = (x - n * 0.693_359_4) + n * 2.121_944_4e-4;
    let p =
        1.0 + r * (1.0 + r * (0.5 + r * (0.166_666_67 + r * (0.041_666_67 + r * (0.008_333_33 + r * 0.001_388_89)))));
    p * f32::from_bits((((n as i32) + 127) << 23) as u32)
}

fn dot(a: &[f32], b: &[f32]) -> f32 {
    let mut sums = [0f32; 8];
    let (a8, b8) = (a.chunks_exact(8), b.chunks_exact(8));
    let rest: f32 = a8.remainder().iter().zip(b8.remainder()).map(|(x, y)| x * y).sum();
    for (a, b) in a8.zip(b8) {
        sums.iter_mut()
            .zip(a.iter().zip(b))
            .for_each(|(sum, (x, y))| *sum += x * y);
    }
    sums.iter().sum::<f32>() + rest
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn fast_exp_is_close_to_exp() {
        for i in 0..100_000 {
            let x = -(i as f32) * 8e-4;
            let (got, want) = (fast_exp(x), x.exp());
            assert!(
                (got - want).abs() <= 3e-7 * want.max(1e-30) + 1e-37,
                "{x}: {got} {want}"
            );
        }
    }
}
