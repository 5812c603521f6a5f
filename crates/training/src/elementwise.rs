//! Norms, rotations and activations with their derivatives. Each row by itself, rows in parallel.

use pulp::{Arch, Simd, WithSimd};
use rayon::prelude::*;

/// Rows of a task.
const TASK_ROWS: usize = 16;

/// Runs a closure, which must be `#[inline(always)]`, compiled for the best vectors of this processor.
#[inline(always)]
pub fn vectorised<R>(work: impl FnMut() -> R) -> R {
    Arch::new().dispatch(Vectorised(work))
}

struct Vectorised<F>(F);

impl<R, F: FnMut() -> R> WithSimd for Vectorised<F> {
    type Output = R;

    // Called as `FnMut`: the shim around `FnOnce` would not be inlined, and so not be compiled for it.
    #[inline(always)]
    fn with_simd<S: Simd>(mut self, _: S) -> R {
        (self.0)()
    }
}

/// `e^x` to about one unit in the last place, for loops that the compiler turns into vectors.
///
/// Cephes' `expf`: `x = n ln 2 + f`, a polynomial for `e^f`, and `n` added to the exponent. Clamped to
/// the normal numbers.
#[inline(always)]
pub fn exp(x: f32) -> f32 {
    // Adding 1.5 * 2^23 rounds to an integer and leaves it in the low bits.
    const ROUND: f32 = 12_582_912.0;
    let x = x.clamp(-87.0, 88.0);
    let shifted = x.mul_add(std::f32::consts::LOG2_E, ROUND);
    let n = shifted - ROUND;
    let f = n.mul_add(2.121_944_4e-4, n.mul_add(-0.693_359_4, x));
    let mut p = 1.987_569_2e-4_f32;
    for coefficient in [1.398_199_9e-3, 8.333_452e-3, 4.166_579_6e-2, 1.666_666_5e-1, 0.5] {
        p = p.mul_add(f, coefficient);
    }
    let y = p.mul_add(f * f, f + 1.0);
    f32::from_bits(y.to_bits().wrapping_add(shifted.to_bits() << 23))
}

/// `Σ f(i)` in sixteen sums that the compiler can keep in vectors.
#[inline(always)]
pub fn sum(len: usize, f: impl Fn(usize) -> f32) -> f32 {
    let mut sums = [0.0; 16];
    let whole = len / 16 * 16;
    for at in (0..whole).step_by(16) {
        for (i, sum) in sums.iter_mut().enumerate() {
            *sum += f(at + i);
        }
    }
    let rest: f32 = (whole..len).map(f).sum();
    sums.iter().sum::<f32>() + rest
}

#[inline(always)]
pub fn dot(a: &[f32], b: &[f32]) -> f32 {
    let b = &b[..a.len()];
    sum(a.len(), |i| a[i] * b[i])
}

/// Root-mean-square norm of each row of `x`: `y = x w / rms`.
pub fn normalise(x: &[f32], weight: &[f32], epsilon: f32) -> Vec<f32> {
    let width = weight.len();
    let mut y = vec![0.0; x.len()];
    let tasks = y.par_chunks_mut(TASK_ROWS * width).zip(x.par_chunks(TASK_ROWS * width));
    tasks.for_each(|(y, x)| {
        vectorised(
            #[inline(always)]
            || {
                for (y, x) in y.chunks_exact_mut(width).zip(x.chunks_exact(width)) {
                    let scale = 1.0 / (dot(x, x) / width as f32 + epsilon).sqrt();
                    for ((y, x), w) in y.iter_mut().zip(x).zip(weight) {
                        *y = x * scale * w;
                    }
                }
            },
        );
    });
    y
}

/// Adds the gradient of [`normalise`] to `dx`: with `g = dy w`, `g / rms - x (g·x) / (width rms³)`.
pub fn normalise_backward(x: &[f32], weight: &[f32], epsilon: f32, dy: &[f32], dx: &mut [f32]) {
    let width = weight.len();
    let step = TASK_ROWS * width;
    let tasks = dx.par_chunks_mut(step).zip(x.par_chunks(step)).zip(dy.par_chunks(step));
    tasks.for_each(|((dx, x), dy)| {
        vectorised(
            #[inline(always)]
            || {
                let rows = dx.chunks_exact_mut(width).zip(x.chunks_exact(width));
                for ((dx, x), dy) in rows.zip(dy.chunks_exact(width)) {
                    let scale = 1.0 / (dot(x, x) / width as f32 + epsilon).sqrt();
                    let along = sum(width, |i| dy[i] * weight[i] * x[i]) * scale * scale * scale / width as f32;
                    for i in 0..width {
                        dx[i] += dy[i] * weight[i] * scale - x[i] * along;
                    }
                }
            },
        );
    });
}

/// `silu(gate) up`.
pub fn gated(gate: &[f32], up: &[f32]) -> Vec<f32> {
    let mut out = vec![0.0; gate.len()];
    let step = 1 << 13;
    let tasks = out
        .par_chunks_mut(step)
        .zip(gate.par_chunks(step))
        .zip(up.par_chunks(step));
    tasks.for_each(|((out, gate), up)| {
        vectorised(
            #[inline(always)]
            || {
                for ((out, g), u) in out.iter_mut().zip(gate).zip(up) {
                    *out = g / (1.0 + exp(-g)) * u;
                }
            },
        );
    });
    out
}

/// Gradients of [`gated`]: overwrites `gate` with its own, `dy` with that of `up`.
pub fn gated_backward(gate: &mut [f32], up: &[f32], dy: &mut [f32]) {
    let step = 1 << 13;
    let tasks = gate
        .par_chunks_mut(step)
        .zip(up.par_chunks(step))
        .zip(dy.par_chunks_mut(step));
    tasks.for_each(|((gate, up), dy)| {
        vectorised(
            #[inline(always)]
            || {
                for ((g, u), dy) in gate.iter_mut().zip(up).zip(dy.iter_mut()) {
                    let sigmoid = 1.0 / (1.0 + exp(-*g));
                    let d_gate = *dy * u * sigmoid * (1.0 + *g * (1.0 - sigmoid));
                    *dy *= *g * sigmoid;
                    *g = d_gate;
                }
            },
        );
    });
}

/// Which numbers of a head turn together.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Pairing {
    /// `2i` and `2i + 1`: llama files.
    Neighbours,
    /// `i` and `i + dim / 2`: qwen2's.
    Halves,
}

/// Angles of rotary positions, computed once for a batch.
pub struct Rotation {
    /// (rows, dim / 2): sine and cosine.
    turns: Vec<(f32, f32)>,
    dim: usize,
    pairing: Pairing,
}

impl Rotation {
    /// Heads twice as wide as there are frequencies.
    pub fn new(positions: &[u32], frequencies: &[f32], pairing: Pairing) -> Rotation {
        let dim = 2 * frequencies.len();
        let turns = positions
            .iter()
            .flat_map(|&position| frequencies.iter().map(move |f| (position as f32 * f).sin_cos()))
            .collect();
        Rotation { turns, dim, pairing }
    }

    /// Turns each head of each row forward (`direction` 1), or back (-1), which is also its gradient.
    pub fn apply(&self, rows: &mut [f32], direction: f32) {
        let half = self.dim / 2;
        let width = rows.len() / (self.turns.len() / half);
        let tasks = rows
            .par_chunks_mut(TASK_ROWS * width)
            .zip(self.turns.par_chunks(TASK_ROWS * half));
        tasks.for_each(|(rows, turns)| {
            for (row, turns) in rows.chunks_exact_mut(width).zip(turns.chunks_exact(half)) {
                for head in row.chunks_exact_mut(self.dim) {
                    for (i, &(sin, cos)) in turns.iter().enumerate() {
                        let (a, b) = match self.pairing {
                            Pairing::Neighbours => (2 * i, 2 * i + 1),
                            Pairing::Halves => (i, i + half),
                        };
                        let (x, y, sin) = (head[a], head[b], sin * direction);
                        head[a] = x * cos - y * sin;
                        head[b] = x * sin + y * cos;
                    }
                }
            }
        });
    }
}

pub fn add(x: &mut [f32], y: &[f32]) {
    x.iter_mut().zip(y).for_each(|(x, y)| *x += y);
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn exp_is_right_to_a_few_units_in_the_last_place() {
        for i in -8600..8700 {
            let x = i as f32 / 100.0;
            let right = f64::from(x).exp();
            let error = (f64::from(exp(x)) - right).abs() / right;
            assert!(error < 3e-7, "e^{x}: relative error {error}");
        }
        assert!(exp(-1e30) < 2e-38 && exp(f32::NEG_INFINITY) < 2e-38);
    }
}
