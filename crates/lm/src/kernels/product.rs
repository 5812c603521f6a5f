//! Products of quantised weights with activations rounded to 16 bits.
//!
//! A token's activations share one scale; the weights have theirs, for 32 columns of a row. A block's products are
//! summed as integers, exactly, and the blocks' sums one after the other as floats. With AVX-512 a tile of sixteen
//! rows by twelve tokens has its 24 sums in registers: each pair of columns then meets twelve pairs of activations,
//! which the instruction itself reads and broadcasts.
//!
//! 16 bits, since rounding to 8 changed a token's log-probability by 0.07 nats on average.

use std::ops::Range;

use super::Machine;
use super::activations::{Activations, PAIRS, Tokens};
use super::level::Kernel;
use super::low_rank::LowRank;
use super::packed::{Blocks, ByteBlock, LANES, NibbleBlock, Packed};
use super::pool::Parts;
use super::simd::{Simd, exp};

/// Weights are asked for so many bytes before they are needed; they lie on in one piece from tile to tile.
/// One or two tokens alone are quick enough for the processor to foresee by itself what comes next.
const AHEAD: usize = 2048;

/// Tokens that a tile is multiplied by at a time.
pub(super) const TILE: usize = 12;

/// Tiles that are multiplied by all tokens in turn: a tile's tokens stay in the first cache, the weights in the
/// second one.
const TILES: usize = 16;

/// So few tokens that weights are not there by the time they are needed, unless they come in long stretches.
const FEW: usize = 4 * TILE;

/// One matrix of a product, and the columns of the result that it fills.
#[derive(Clone, Copy)]
pub struct Part<'a> {
    pub matrix: &'a Packed,
    /// Added to every token; empty for none.
    pub bias: &'a [f32],
    /// The adapter and what [`super::down_project`] made of the same activations.
    pub low: Option<(&'a LowRank, &'a [f32])>,
    /// First column of the result.
    pub column: usize,
}

impl<'a> Part<'a> {
    pub fn new(matrix: &'a Packed) -> Part<'a> {
        Part {
            matrix,
            bias: &[],
            low: None,
            column: 0,
        }
    }

    fn check(&self, x: &Activations) {
        assert_eq!(self.matrix.runs(), x.runs, "activations as wide as the matrix");
        assert!(
            self.bias.is_empty() || self.bias.len() == self.matrix.rows,
            "a bias for each row"
        );
        if let Some((low, hidden)) = self.low {
            assert_eq!(low.rows, self.matrix.rows, "an adapter as high as the matrix");
            assert_eq!(hidden.len(), x.tokens * low.wide(), "adapter activations of each token");
        }
    }

    fn tiles(&self) -> usize {
        self.matrix.rows.div_ceil(LANES)
    }
}

/// What becomes of the result that is there.
#[derive(Clone, Copy, PartialEq, Eq)]
pub enum Into {
    Replace,
    Add,
}

/// Multiplies every token by each part's matrix. `out`: (tokens, stride); parts fill disjoint columns in order.
pub fn product(machine: &Machine, x: &Activations, parts: &[Part], out: &mut [f32], stride: usize, into: Into) {
    let mut filled = 0;
    for part in parts {
        part.check(x);
        assert!(part.column >= filled, "parts in order");
        filled = part.column + part.matrix.rows;
    }
    assert!(
        filled <= stride && out.len() >= x.tokens * stride,
        "room for the result"
    );
    let total: usize = parts.iter().map(Part::tiles).sum();
    let target = Parts::new(out);
    in_groups(machine, x.tokens, total, &|range| {
        let mut first = 0;
        for part in parts {
            let end = first + part.tiles();
            let (from, to) = (range.start.max(first), range.end.min(end));
            if from < to {
                machine.level.run(Rows {
                    part,
                    gate: None,
                    tiles: from - first..to - first,
                    x,
                    out: &target,
                    stride,
                    into,
                });
            }
            first = end;
        }
    });
}

/// What a gate does to a number: `x * sigmoid(x * (linear + cubic * x * x))`.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Curve {
    linear: f32,
    cubic: f32,
}

impl Curve {
    pub const SILU: Curve = Curve {
        linear: 1.0,
        cubic: 0.0,
    };
    /// GELU in its form with the hyperbolic tangent of `sqrt(2 / pi) * (x + 0.044715 x^3)`: `(1 + tanh(y)) / 2` is
    /// the sigmoid of `2 y`.
    pub const GELU: Curve = Curve {
        linear: 1.595_769,
        cubic: 0.071_354_814,
    };
}

/// `curve(gate x) * (up x)` of every token. `out`: (tokens, rows).
pub fn gated(machine: &Machine, x: &Activations, curve: Curve, gate: &Part, up: &Part, out: &mut [f32]) {
    gate.check(x);
    up.check(x);
    let rows = up.matrix.rows;
    assert!(
        gate.matrix.rows == rows && up.column == 0 && out.len() >= x.tokens * rows,
        "room for the result"
    );
    let target = Parts::new(out);
    in_groups(machine, x.tokens, up.tiles(), &|tiles| {
        machine.level.run(Rows {
            part: up,
            gate: Some((curve, gate)),
            tiles,
            x,
            out: &target,
            stride: rows,
            into: Into::Replace,
        });
    });
}

/// Runs tiles in groups that are large enough to be worth taking and small enough to share out evenly.
///
/// The processor reads ahead only as long as addresses go on, so few tokens take two long stretches a thread; with
/// shorter ones, one sequence is decoded a quarter slower.
fn in_groups(machine: &Machine, tokens: usize, tiles: usize, run: &(dyn Fn(Range<usize>) + Sync)) {
    let threads = machine.pool.threads();
    let group = match tokens <= FEW {
        true => tiles.div_ceil(threads * 2).max(1),
        false => (tiles / (threads * 8)).clamp(1, TILES),
    };
    machine.pool.run(tiles.div_ceil(group), &|idx| {
        run(idx * group..tiles.min((idx + 1) * group));
    });
}

/// Tiles of a matrix, or of a gate and its partner, times all tokens.
struct Rows<'a> {
    part: &'a Part<'a>,
    gate: Option<(Curve, &'a Part<'a>)>,
    tiles: Range<usize>,
    x: &'a Activations,
    out: &'a Parts<f32>,
    stride: usize,
    into: Into,
}

impl Kernel for Rows<'_> {
    type Output = ();

    #[inline(always)]
    unsafe fn run<S: Simd>(self) {
        let Rows { part, gate, x, .. } = self;
        let (mut y, mut open) = ([[0f32; LANES]; TILE], [[0f32; LANES]; TILE]);
        for start in self.tiles.clone().step_by(TILES) {
            let tiles = start..self.tiles.end.min(start + TILES);
            for first in (0..x.tokens).step_by(TILE) {
                let n = TILE.min(x.tokens - first);
                let (y, open) = (&mut y[..n], &mut open[..n]);
                for tile in tiles.clone() {
                    // SAFETY: the caller vouches for `S`; `check` compared the shapes; `product` and `gated` checked that
                    // the result has room for every token and column, and no other task has these columns.
                    unsafe {
                        sums::<S>(part, tile, x, first, y);
                        if let Some((curve, gate)) = gate {
                            sums::<S>(gate, tile, x, first, open);
                            for (y, open) in y.iter_mut().zip(&*open) {
                                let g = S::load(open.as_ptr());
                                S::store(y.as_mut_ptr(), S::mul(S::load(y.as_ptr()), bend::<S>(g, curve)));
                            }
                        }
                        self.write::<S>(tile, first, y);
                    }
                }
            }
        }
    }
}

impl Rows<'_> {
    /// Writes or adds what a tile made of the tokens from `first` on.
    ///
    /// # Safety
    ///
    /// The result must have room for these tokens, and nobody else may use a tile's columns; the processor must have
    /// the instructions of `S`.
    #[inline(always)]
    unsafe fn write<S: Simd>(&self, tile: usize, first: usize, y: &[[f32; LANES]]) {
        let width = LANES.min(self.part.matrix.rows - tile * LANES);
        for (t, y) in y.iter().enumerate() {
            // SAFETY: the caller vouches for the room, the columns and `S`.
            unsafe {
                let out = self.out.at((first + t) * self.stride + self.part.column + tile * LANES);
                let y = S::load(y.as_ptr());
                let write = |out| match self.into {
                    Into::Replace => S::store(out, y),
                    Into::Add => S::store(out, S::add(S::load(out), y)),
                };
                if width == LANES {
                    write(out);
                } else {
                    // The last rows: by way of a whole vector.
                    let mut lanes = [0f32; LANES];
                    std::ptr::copy_nonoverlapping(out, lanes.as_mut_ptr(), width);
                    write(lanes.as_mut_ptr());
                    std::ptr::copy_nonoverlapping(lanes.as_ptr(), out, width);
                }
            }
        }
    }
}

/// Each number as the curve has it.
#[inline(always)]
unsafe fn bend<S: Simd>(x: S::F, curve: Curve) -> S::F {
    let (mut lanes, mut powers) = ([0f32; LANES], [0f32; LANES]);
    // SAFETY: the arrays hold sixteen numbers; the caller vouches for `S`.
    unsafe {
        let y = S::mul(x, S::fma(S::mul(x, x), S::splat(curve.cubic), S::splat(curve.linear)));
        // exp takes non-positive numbers: with e = exp(-|y|), the sigmoid is 1 / (1 + e) or e / (1 + e).
        let size = S::max(y, S::mul(y, S::splat(-1.0)));
        S::store(powers.as_mut_ptr(), exp::<S>(S::mul(size, S::splat(-1.0))));
        S::store(lanes.as_mut_ptr(), x);
        for (x, e) in lanes.iter_mut().zip(powers) {
            *x *= if *x >= 0.0 { 1.0 } else { e } / (1.0 + e);
        }
        S::load(lanes.as_ptr())
    }
}

/// Sixteen results of each of `out.len()` tokens from `first` on: product, bias and adapter.
#[inline(always)]
unsafe fn sums<S: Simd>(part: &Part, tile: usize, x: &Activations, first: usize, out: &mut [[f32; LANES]]) {
    let weights = tile * x.runs..(tile + 1) * x.runs;
    let tokens = x.some(first..first + out.len());
    // SAFETY: the caller vouches for `S`.
    unsafe {
        match &part.matrix.blocks {
            Blocks::Nibbles(all) => all_tokens::<S, _>(&all[weights], tokens, out),
            Blocks::Bytes(all) => all_tokens::<S, _>(&all[weights], tokens, out),
        }
    }
    for (out, scale) in out.iter_mut().zip(tokens.scales) {
        let scale = scale * part.matrix.unit;
        out.iter_mut().for_each(|y| *y *= scale);
        for (y, bias) in out.iter_mut().zip(part.bias.iter().skip(tile * LANES)) {
            *y += bias;
        }
    }
    if let Some((low, hidden)) = part.low {
        let hidden = &hidden[first * low.wide()..(first + out.len()) * low.wide()];
        // SAFETY: the caller vouches for `S`.
        unsafe { low.add::<S>(tile, hidden, out) };
    }
}

/// 32 numbers of some tokens, as pairs, and their sums. The next token's lie so many pairs and sums on.
#[derive(Clone, Copy)]
struct Run {
    quants: *const u32,
    next: usize,
    sums: *const f32,
    next_sum: usize,
}

impl Run {
    /// Pair `pair` of all rows times that of `T` tokens.
    #[inline(always)]
    unsafe fn dot<S: Simd, const T: usize>(self, dots: &mut [S::I; T], weights: S::P, pair: usize) {
        // SAFETY: there are sixteen pairs of at least `T` tokens; the caller vouches for `S`.
        unsafe {
            let x = self.quants.add(pair);
            for t in 0..T {
                dots[t] = S::dot(dots[t], weights, x.add(t * self.next));
            }
        }
    }
}

/// Sixteen rows of weights, 32 columns.
trait Weights {
    /// Adds the products with `T` tokens, still to be multiplied by the tokens' scales, to `sums`.
    unsafe fn add<S: Simd, const T: usize>(&self, x: Run, sums: &mut [S::F; T]);
}

impl Weights for NibbleBlock {
    #[inline(always)]
    unsafe fn add<S: Simd, const T: usize>(&self, x: Run, sums: &mut [S::F; T]) {
        // SAFETY: arrays of known size; the caller vouches for `x` and `S`.
        unsafe {
            let mut dots = [S::zero(); T];
            for (at, weights) in self.quants.iter().enumerate() {
                let weights = S::load_pairs(weights.as_ptr().cast());
                x.dot::<S, T>(&mut dots, S::nibbles::<0>(weights), 4 * at);
                x.dot::<S, T>(&mut dots, S::nibbles::<4>(weights), 4 * at + 1);
                x.dot::<S, T>(&mut dots, S::nibbles::<8>(weights), 4 * at + 2);
                x.dot::<S, T>(&mut dots, S::nibbles::<12>(weights), 4 * at + 3);
            }
            let (scale, min) = (S::load_half(self.scale.as_ptr()), S::load_half(self.min.as_ptr()));
            for t in 0..T {
                let sum = S::fma(min, S::splat(*x.sums.add(t * x.next_sum)), sums[t]);
                sums[t] = S::fma(S::floats(dots[t]), scale, sum);
            }
        }
    }
}

impl Weights for ByteBlock {
    #[inline(always)]
    unsafe fn add<S: Simd, const T: usize>(&self, x: Run, sums: &mut [S::F; T]) {
        // SAFETY: arrays of known size; the caller vouches for `x` and `S`.
        unsafe {
            let mut dots = [S::zero(); T];
            for (at, weights) in self.quants.iter().enumerate() {
                let weights = S::load_pairs(weights.as_ptr().cast());
                x.dot::<S, T>(&mut dots, S::low_bytes(weights), 2 * at);
                x.dot::<S, T>(&mut dots, S::high_bytes(weights), 2 * at + 1);
            }
            let scale = S::load_half(self.scale.as_ptr());
            for t in 0..T {
                sums[t] = S::fma(S::floats(dots[t]), scale, sums[t]);
            }
        }
    }
}

#[inline(always)]
unsafe fn all_tokens<S: Simd, W: Weights>(w: &[W], x: Tokens, out: &mut [[f32; LANES]]) {
    let mut first = 0;
    while first < out.len() {
        // SAFETY: `first + T <= out.len()`; the caller vouches for `S`.
        unsafe {
            first += match (out.len() - first).min(S::TOKENS) {
                12.. => some_tokens::<S, W, 12>(w, x, first, out),
                11 => some_tokens::<S, W, 11>(w, x, first, out),
                10 => some_tokens::<S, W, 10>(w, x, first, out),
                9 => some_tokens::<S, W, 9>(w, x, first, out),
                8 => some_tokens::<S, W, 8>(w, x, first, out),
                7 => some_tokens::<S, W, 7>(w, x, first, out),
                6 => some_tokens::<S, W, 6>(w, x, first, out),
                5 => some_tokens::<S, W, 5>(w, x, first, out),
                4 => some_tokens::<S, W, 4>(w, x, first, out),
                3 => some_tokens::<S, W, 3>(w, x, first, out),
                2 => some_tokens::<S, W, 2>(w, x, first, out),
                _ => some_tokens::<S, W, 1>(w, x, first, out),
            };
        }
    }
}

/// Sixteen rows times tokens `first..first + T`. Returns `T`.
#[inline(always)]
unsafe fn some_tokens<S: Simd, W: Weights, const T: usize>(
    w: &[W],
    x: Tokens,
    first: usize,
    out: &mut [[f32; LANES]],
) -> usize {
    let tokens = x.scales.len();
    assert!(
        first + T <= tokens && w.len() <= x.stride,
        "tokens as wide as the weights"
    );
    assert!(x.sums.len() == tokens * w.len() && x.quants.len() == tokens * x.stride * PAIRS);
    // SAFETY: the tokens are there, as asserted; `out` holds sixteen numbers for each; the caller vouches for `S`.
    unsafe {
        let (mut sums, runs) = ([S::splat(0.0); T], w.len());
        for (run, w) in w.iter().enumerate() {
            if T > 2 {
                let ahead = std::ptr::from_ref(w).cast::<u8>().wrapping_add(AHEAD);
                for line in 0..size_of::<W>().div_ceil(64) {
                    S::prefetch(ahead.wrapping_add(line * 64));
                }
            }
            let x = Run {
                quants: x.quants.as_ptr().add((first * x.stride + run) * PAIRS),
                next: x.stride * PAIRS,
                sums: x.sums.as_ptr().add(first * runs + run),
                next_sum: runs,
            };
            w.add::<S, T>(x, &mut sums);
        }
        for t in 0..T {
            S::store(out[first + t].as_mut_ptr(), sums[t]);
        }
    }
    T
}
