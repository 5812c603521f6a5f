//! Activations of several tokens, normalised and rounded for the products.

use std::ops::Range;

use super::level::Kernel;
use super::packed::COLUMNS;
use super::pool::Parts;
use super::product::Into;
use super::simd::Simd;
use super::{Level, Machine};

/// Pairs of columns in a run.
pub(super) const PAIRS: usize = COLUMNS / 2;

/// Activations rounded to 16 bits, with one scale for each token.
#[derive(Default)]
pub struct Activations {
    pub(super) tokens: usize,
    pub(super) runs: usize,
    /// (tokens, stride, 16): two signed numbers each. What a token has of a run is one line of the cache.
    quants: Vec<u32>,
    /// (tokens, runs): sums of those numbers, exact.
    sums: Vec<f32>,
    scales: Vec<f32>,
}

/// Some tokens, one after the other.
#[derive(Clone, Copy)]
pub(super) struct Tokens<'a> {
    /// (tokens, stride, 16).
    pub quants: &'a [u32],
    pub stride: usize,
    /// (tokens, runs).
    pub sums: &'a [f32],
    pub scales: &'a [f32],
}

/// Tokens that one task takes of many, or of few, which all threads share.
pub(super) fn share(machine: &Machine, tokens: usize) -> usize {
    tokens.div_ceil(machine.pool.threads()).clamp(1, MOST)
}

/// Enough that a task is worth taking.
const MOST: usize = 12;

impl Activations {
    /// Rounds `x`, (tokens, columns).
    pub fn set(&mut self, machine: &Machine, x: &[f32], columns: usize) {
        self.fill(machine, x.len(), columns, |range| &x[range]);
    }

    /// Normalises each token of `x`, (tokens, columns), by its root mean square into `normed`, and rounds that.
    pub fn set_normed(&mut self, machine: &Machine, x: &[f32], weight: &[f32], epsilon: f32, normed: &mut [f32]) {
        assert_eq!(x.len(), normed.len(), "one normalised number for each");
        let parts = Parts::new(normed);
        self.fill(machine, x.len(), weight.len(), |range| {
            // SAFETY: ranges are disjoint and end inside `normed`, which is as long as `x`.
            let normed = unsafe { std::slice::from_raw_parts_mut(parts.at(range.start), range.len()) };
            normalise(machine.level, &x[range], weight, epsilon, normed);
            normed
        });
    }

    /// Rounds `len` numbers, (tokens, columns), which `numbers` tells for the ranges of some tokens.
    fn fill<'a>(
        &mut self,
        machine: &Machine,
        len: usize,
        columns: usize,
        numbers: impl Fn(Range<usize>) -> &'a [f32] + Sync,
    ) {
        (self.tokens, self.runs) = (len / columns, columns.div_ceil(COLUMNS));
        let (runs, stride) = (self.runs, self.stride());
        self.quants.resize(self.tokens * stride * PAIRS, 0);
        self.sums.resize(self.tokens * runs, 0.0);
        self.scales.resize(self.tokens, 0.0);
        let (sums, scales) = (Parts::new(&mut self.sums), Parts::new(&mut self.scales));
        let share = share(machine, self.tokens);
        machine
            .pool
            .parts(&mut self.quants, share * stride * PAIRS, |part, quants| {
                let (first, n) = (part * share, quants.len() / (stride * PAIRS));
                let x = numbers(first * columns..(first + n) * columns);
                // SAFETY: each token has so many, and tasks have different tokens.
                let (sums, scales) = unsafe {
                    (
                        std::slice::from_raw_parts_mut(sums.at(first * runs), n * runs),
                        std::slice::from_raw_parts_mut(scales.at(first), n),
                    )
                };
                machine.level.run(Round {
                    x,
                    columns,
                    stride,
                    quants,
                    sums,
                    scales,
                });
            });
    }

    /// Lines from one token to the next: an odd number, so that tokens do not fight for the same places of the cache.
    fn stride(&self) -> usize {
        self.runs | 1
    }

    pub(super) fn some(&self, tokens: Range<usize>) -> Tokens<'_> {
        let (runs, stride) = (self.runs, self.stride());
        Tokens {
            quants: &self.quants[tokens.start * stride * PAIRS..tokens.end * stride * PAIRS],
            stride,
            sums: &self.sums[tokens.start * runs..tokens.end * runs],
            scales: &self.scales[tokens],
        }
    }
}

/// Normalises rows by their root mean square. `x`, `out`: (rows, weight.len()).
pub fn normalise(level: Level, x: &[f32], weight: &[f32], epsilon: f32, out: &mut [f32]) {
    assert_eq!(x.len(), out.len(), "one normalised number for each");
    level.run(Norm {
        x,
        weight,
        epsilon,
        out,
        into: Into::Replace,
    });
}

/// Adds the normalised rows of `y` to `x`; both (rows, weight.len()).
pub fn add_normalised(machine: &Machine, y: &[f32], weight: &[f32], epsilon: f32, x: &mut [f32]) {
    assert_eq!(x.len(), y.len(), "a number to add to each");
    let share = share(machine, x.len() / weight.len()) * weight.len();
    machine.pool.parts(x, share, |part, x| {
        let y = &y[part * share..][..x.len()];
        machine.level.run(Norm {
            x: y,
            weight,
            epsilon,
            out: x,
            into: Into::Add,
        });
    });
}

struct Norm<'a> {
    x: &'a [f32],
    weight: &'a [f32],
    epsilon: f32,
    out: &'a mut [f32],
    into: Into,
}

impl Kernel for Norm<'_> {
    type Output = ();

    #[inline(always)]
    unsafe fn run<S: Simd>(self) {
        let columns = self.weight.len();
        for (row, out) in self.x.chunks_exact(columns).zip(self.out.chunks_exact_mut(columns)) {
            // SAFETY: the caller vouches for `S`.
            let scale = unsafe { norm_scale::<S>(row, self.epsilon) };
            for ((out, x), w) in out.iter_mut().zip(row).zip(self.weight) {
                let before = match self.into {
                    Into::Replace => 0.0,
                    Into::Add => *out,
                };
                *out = before + x * scale * w;
            }
        }
    }
}

/// What a row is multiplied by to have a mean square of 1.
///
/// # Safety
///
/// The processor must have the instructions of `S`.
#[inline(always)]
pub(super) unsafe fn norm_scale<S: Simd>(row: &[f32], epsilon: f32) -> f32 {
    let mut sums = [0f32; 16];
    let (whole, rest) = row.as_chunks::<16>();
    for (sum, x) in sums.iter_mut().zip(rest) {
        *sum = x * x;
    }
    for x in whole {
        for (sum, x) in sums.iter_mut().zip(x) {
            *sum += x * x;
        }
    }
    // SAFETY: sixteen sums; the caller vouches for `S`.
    let sum = unsafe { S::total(S::load(sums.as_ptr())) };
    1.0 / (sum / row.len() as f32 + epsilon).sqrt()
}

/// Rounds some tokens.
struct Round<'a> {
    x: &'a [f32],
    columns: usize,
    stride: usize,
    quants: &'a mut [u32],
    sums: &'a mut [f32],
    scales: &'a mut [f32],
}

impl Kernel for Round<'_> {
    type Output = ();

    #[inline(always)]
    unsafe fn run<S: Simd>(self) {
        let rows = self.x.chunks_exact(self.columns).zip(self.scales);
        let quants = self.quants.chunks_exact_mut(self.stride * PAIRS);
        let sums = self.sums.chunks_exact_mut(self.columns.div_ceil(COLUMNS));
        for (((row, scale), quants), sums) in rows.zip(quants).zip(sums) {
            // SAFETY: the caller vouches for `S`.
            let most = unsafe { greatest_size::<S>(row) };
            // Smaller numbers than any model's are as good as nothing, and their inverse might be infinite.
            let inverse = if most > 1e-30 { LARGEST / most } else { 0.0 };
            *scale = most / LARGEST;
            let (whole, rest) = row.as_chunks::<COLUMNS>();
            let (quants, sums) = (quants.as_chunks_mut::<PAIRS>().0.iter_mut(), sums.iter_mut());
            let mut room = quants.zip(sums);
            for (x, (quants, sum)) in whole.iter().zip(&mut room) {
                // SAFETY: the caller vouches for `S`.
                *sum = unsafe { rounded::<S>(x, inverse, quants) };
            }
            if let Some((quants, sum)) = room.next().filter(|_| !rest.is_empty()) {
                let mut filled = [0f32; COLUMNS];
                filled[..rest.len()].copy_from_slice(rest);
                // SAFETY: the caller vouches for `S`.
                *sum = unsafe { rounded::<S>(&filled, inverse, quants) };
            }
        }
    }
}

/// The size of the greatest number of a token, rounded.
const LARGEST: f32 = 32767.0;

/// Rounds a run of a token; returns the sum.
#[inline(always)]
unsafe fn rounded<S: Simd>(x: &[f32; COLUMNS], inverse: f32, quants: &mut [u32; PAIRS]) -> f32 {
    // 1.5 * 2^23: added to a small number, it leaves the rounded number in the low bits.
    const ROUND: f32 = 12_582_912.0;
    // SAFETY: both arrays hold 32 numbers; the caller vouches for `S`.
    unsafe {
        let (inverse, round, minus) = (S::splat(inverse), S::splat(ROUND), S::splat(-ROUND));
        let low = S::fma(S::load(x.as_ptr()), inverse, round);
        let high = S::fma(S::load(x.as_ptr().add(16)), inverse, round);
        S::store_halves(quants.as_mut_ptr().cast(), low, high);
        S::total(S::add(S::add(low, minus), S::add(high, minus)))
    }
}

/// The greatest absolute number; those that are none are passed over.
#[inline(always)]
unsafe fn greatest_size<S: Simd>(x: &[f32]) -> f32 {
    let (whole, rest) = x.as_chunks::<16>();
    // SAFETY: each chunk holds sixteen numbers; the caller vouches for `S`.
    let most = unsafe {
        let mut most = S::splat(0.0);
        for x in whole {
            let x = S::load(x.as_ptr());
            most = S::max(S::max(x, S::mul(x, S::splat(-1.0))), most);
        }
        S::greatest(most)
    };
    rest.iter().fold(most, |most, x| most.max(x.abs()))
}
