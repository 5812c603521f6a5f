//! Activations of several tokens, normalised and rounded for the products.

use std::ops::Range;

use super::level::Kernel;
use super::packed::COLUMNS;
use super::pool::Parts;
use super::product::Into;
use super::simd::{Simd, total};
use super::{Level, Machine};

/// Tokens whose activations lie side by side.
pub(super) const TILE: usize = 12;
/// Pairs of columns in a run.
pub(super) const PAIRS: usize = COLUMNS / 2;

/// Activations rounded to 16 bits, with one scale for each token.
#[derive(Default)]
pub struct Activations {
    pub(super) tokens: usize,
    pub(super) runs: usize,
    /// Tokens side by side: [`TILE`], or as many as there are, so that few lie close together.
    width: usize,
    /// (tiles, runs, 16, width): two signed numbers each.
    quants: Vec<u32>,
    /// (tiles, runs, width): sums of those numbers, exact.
    sums: Vec<f32>,
    /// (tiles, width).
    scales: Vec<f32>,
}

/// The tokens of one tile, or some of them: numbers of a run lie `width` apart.
#[derive(Clone, Copy)]
pub(super) struct Tokens<'a> {
    pub width: usize,
    /// (runs, 16, width).
    pub quants: &'a [u32],
    /// (runs, width).
    pub sums: &'a [f32],
    pub scales: &'a [f32],
}

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

    /// Rounds `len` numbers, (tokens, columns), which `numbers` tells for the ranges of the tiles.
    fn fill<'a>(
        &mut self,
        machine: &Machine,
        len: usize,
        columns: usize,
        numbers: impl Fn(Range<usize>) -> &'a [f32] + Sync,
    ) {
        (self.tokens, self.runs) = (len / columns, columns.div_ceil(COLUMNS));
        self.width = TILE.min(self.tokens);
        let (tiles, runs, width) = (self.tokens.div_ceil(TILE), self.runs, self.width);
        self.quants.resize(tiles * runs * PAIRS * width, 0);
        self.sums.resize(tiles * runs * width, 0.0);
        self.scales.resize(tiles * width, 0.0);
        let (sums, scales) = (Parts::new(&mut self.sums), Parts::new(&mut self.scales));
        machine
            .pool
            .parts(&mut self.quants, (runs * PAIRS * width).max(1), |tile, quants| {
                let x = numbers(tile * TILE * columns..len.min((tile + 1) * TILE * columns));
                // SAFETY: tiles have so many each, all of them disjoint.
                let (sums, scales) = unsafe {
                    (
                        std::slice::from_raw_parts_mut(sums.at(tile * runs * width), runs * width),
                        std::slice::from_raw_parts_mut(scales.at(tile * width), width),
                    )
                };
                machine.level.run(Round {
                    x,
                    columns,
                    width,
                    quants,
                    sums,
                    scales,
                });
            });
    }

    pub(super) fn tile(&self, tile: usize) -> Tokens<'_> {
        let (runs, width) = (self.runs, self.width);
        Tokens {
            width,
            quants: &self.quants[tile * runs * PAIRS * width..][..runs * PAIRS * width],
            sums: &self.sums[tile * runs * width..][..runs * width],
            scales: &self.scales[tile * width..][..width],
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
    machine.pool.parts(x, TILE * weight.len(), |part, x| {
        let y = &y[part * TILE * weight.len()..][..x.len()];
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
    let sum = unsafe { total::<S>(S::load(sums.as_ptr())) };
    1.0 / (sum / row.len() as f32 + epsilon).sqrt()
}

/// Rounds up to [`TILE`] tokens.
struct Round<'a> {
    x: &'a [f32],
    columns: usize,
    width: usize,
    quants: &'a mut [u32],
    sums: &'a mut [f32],
    scales: &'a mut [f32],
}

impl Kernel for Round<'_> {
    type Output = ();

    #[inline(always)]
    unsafe fn run<S: Simd>(self) {
        const MOST: f32 = 32767.0;
        // 1.5 * 2^23: added to a small number, it leaves the rounded number in the low bits.
        const ROUND: f32 = 12_582_912.0;
        for (token, row) in self.x.chunks_exact(self.columns).enumerate() {
            // SAFETY: the caller vouches for `S`.
            let most = unsafe { greatest_size::<S>(row) };
            // Smaller numbers than any model's are as good as nothing, and their inverse might be infinite.
            let inverse = if most > 1e-30 { MOST / most } else { 0.0 };
            self.scales[token] = most / MOST;
            let quants = self.quants.chunks_exact_mut(PAIRS * self.width);
            let sums = self.sums.chunks_exact_mut(self.width);
            for ((quants, sums), x) in quants.zip(sums).zip(row.chunks(COLUMNS)) {
                let mut filled = [0f32; COLUMNS];
                let x = match x.len() {
                    COLUMNS => x,
                    n => {
                        filled[..n].copy_from_slice(x);
                        &filled[..]
                    }
                };
                let mut halves = [0u16; COLUMNS];
                for at in [0, 16] {
                    // SAFETY: `x` and `halves` hold 32 numbers; the caller vouches for `S`.
                    unsafe {
                        let rounded = S::fma(S::load(x.as_ptr().add(at)), S::splat(inverse), S::splat(ROUND));
                        S::store_halves(halves.as_mut_ptr().add(at), rounded);
                    }
                }
                for (pair, [a, b]) in quants.chunks_exact_mut(self.width).zip(halves.as_chunks().0) {
                    pair[token] = u32::from(*a) | u32::from(*b) << 16;
                }
                sums[token] = halves.iter().map(|&half| i32::from(half as i16)).sum::<i32>() as f32;
            }
        }
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
