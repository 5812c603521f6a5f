//! Products of quantised weights with activations rounded to 8 bits.
//!
//! Activations keep one scale for 32 numbers of a token, as the weights do. A block's products are
//! summed as integers, exactly, and the blocks' sums one after the other as floats. With AVX-512 a tile
//! of sixteen rows by twelve tokens has its 24 sums in registers: each 64-byte load of weights then
//! meets twelve activations, which the instruction itself reads and broadcasts.

use super::dense::{Floats, Shape, multiply};
use super::level::Kernel;
use super::packed::{Blocks, ByteBlock, COLUMNS, LANES, NibbleBlock, Packed};
use super::pool::Parts;
use super::simd::{Simd, exp};
use super::{Level, Machine};

/// Weights are asked for so many bytes before they are needed; they lie on in one piece from tile to tile.
/// One or two tokens alone are quick enough for the processor to foresee by itself what comes next.
const AHEAD: usize = 2048;

/// Tokens whose activations lie side by side.
const TILE: usize = 12;

/// 32 numbers of each of twelve tokens.
#[derive(Clone)]
#[repr(C)]
struct TokenBlock {
    /// Four signed bytes each.
    quants: [[u32; TILE]; COLUMNS / 4],
    scale: [f32; TILE],
    /// Sum of the rounded numbers, times the scale.
    sum: [f32; TILE],
    /// Sum of the bytes.
    total: [i32; TILE],
}

const EMPTY: TokenBlock = TokenBlock {
    quants: [[0; TILE]; COLUMNS / 4],
    scale: [0.0; TILE],
    sum: [0.0; TILE],
    total: [0; TILE],
};

/// Activations of several tokens, rounded for the products.
#[derive(Default)]
pub struct Activations {
    tokens: usize,
    runs: usize,
    blocks: Vec<TokenBlock>,
}

impl Activations {
    /// Rounds `x`, (tokens, columns).
    pub fn set(&mut self, machine: &Machine, x: &[f32], columns: usize) {
        self.resize(x.len() / columns, columns);
        let (level, runs) = (machine.level, self.runs);
        machine.pool.parts(&mut self.blocks, runs, |tile, blocks| {
            let x = &x[tile * TILE * columns..x.len().min((tile + 1) * TILE * columns)];
            level.run(Round { x, columns, blocks });
        });
    }

    /// Normalises each token of `x`, (tokens, columns), by its root mean square into `normed`, and rounds that.
    pub fn set_normed(&mut self, machine: &Machine, x: &[f32], weight: &[f32], epsilon: f32, normed: &mut [f32]) {
        let columns = weight.len();
        assert_eq!(x.len(), normed.len(), "one normalised number for each");
        self.resize(x.len() / columns, columns);
        let (level, runs, whole) = (machine.level, self.runs, x.len());
        let parts = Parts::new(normed);
        machine.pool.parts(&mut self.blocks, runs, |tile, blocks| {
            let (start, end) = (tile * TILE * columns, whole.min((tile + 1) * TILE * columns));
            // SAFETY: tiles are disjoint and end inside `normed`, which is as long as `x`.
            let normed = unsafe { std::slice::from_raw_parts_mut(parts.at(start), end - start) };
            level.run(Norm {
                x: &x[start..end],
                weight,
                epsilon,
                out: normed,
            });
            level.run(Round {
                x: normed,
                columns,
                blocks,
            });
        });
    }

    fn resize(&mut self, tokens: usize, columns: usize) {
        (self.tokens, self.runs) = (tokens, columns.div_ceil(COLUMNS));
        self.blocks.resize(tokens.div_ceil(TILE) * self.runs, EMPTY);
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
    });
}

struct Norm<'a> {
    x: &'a [f32],
    weight: &'a [f32],
    epsilon: f32,
    out: &'a mut [f32],
}

impl Kernel for Norm<'_> {
    type Output = ();

    #[inline(always)]
    unsafe fn run<S: Simd>(self) {
        let columns = self.weight.len();
        for (row, out) in self.x.chunks_exact(columns).zip(self.out.chunks_exact_mut(columns)) {
            let mut sums = [0f32; 16];
            let whole = row.chunks_exact(16);
            for (at, x) in whole.remainder().iter().enumerate() {
                sums[at] = x * x;
            }
            for x in whole {
                for (sum, x) in sums.iter_mut().zip(x) {
                    *sum += x * x;
                }
            }
            // SAFETY: sixteen sums; the caller vouches for `S`.
            let sum = unsafe { super::simd::total::<S>(S::load(sums.as_ptr())) };
            let scale = 1.0 / (sum / columns as f32 + self.epsilon).sqrt();
            for ((out, x), w) in out.iter_mut().zip(row).zip(self.weight) {
                *out = x * scale * w;
            }
        }
    }
}

/// Rounds up to [`TILE`] tokens.
struct Round<'a> {
    x: &'a [f32],
    columns: usize,
    blocks: &'a mut [TokenBlock],
}

impl Kernel for Round<'_> {
    type Output = ();

    #[inline(always)]
    unsafe fn run<S: Simd>(self) {
        // 1.5 * 2^23: added to a small number, it leaves the rounded number in the low bits.
        const ROUND: f32 = 12_582_912.0;
        for (token, row) in self.x.chunks_exact(self.columns).enumerate() {
            for (block, x) in self.blocks.iter_mut().zip(row.chunks(COLUMNS)) {
                let mut filled = [0f32; COLUMNS];
                let x = match x.len() {
                    COLUMNS => x,
                    n => {
                        filled[..n].copy_from_slice(x);
                        &filled[..]
                    }
                };
                let mut bytes = [0u8; COLUMNS];
                // SAFETY: `x` and `bytes` hold 32 numbers; the caller vouches for `S`.
                let (scale, total) = unsafe {
                    let (a, b) = (S::load(x.as_ptr()), S::load(x.as_ptr().add(16)));
                    let minus = S::splat(-1.0);
                    let size = S::max(S::max(a, S::mul(a, minus)), S::max(b, S::mul(b, minus)));
                    let most = S::greatest(size);
                    let inverse = S::splat(if most > 0.0 { 127.0 / most } else { 0.0 });
                    let (a, b) = (S::fma(a, inverse, S::splat(ROUND)), S::fma(b, inverse, S::splat(ROUND)));
                    let total = S::store_low_bytes(bytes.as_mut_ptr(), a);
                    (most / 127.0, total + S::store_low_bytes(bytes.as_mut_ptr().add(16), b))
                };
                for (group, four) in block.quants.iter_mut().zip(bytes.as_chunks::<4>().0) {
                    group[token] = u32::from_le_bytes(*four);
                }
                block.scale[token] = scale;
                block.sum[token] = scale * total as f32;
                block.total[token] = total;
            }
        }
    }
}

/// A LoRA pair, laid out for the kernels.
pub struct LowRank {
    pub rank: usize,
    /// (columns, rank rounded up to sixteen).
    a: Vec<f32>,
    /// (tiles of sixteen rows, rank, 16), times the adapter's scale.
    b: Vec<f32>,
    columns: usize,
    rows: usize,
}

impl LowRank {
    /// `a`: (rank, columns), `b`: (rows, rank), row by row.
    pub fn new(rank: usize, a: &[f32], b: &[f32], scale: f32) -> LowRank {
        let (columns, rows, wide) = (a.len() / rank, b.len() / rank, rank.next_multiple_of(LANES));
        let mut across = vec![0.0; columns * wide];
        let mut down = vec![0.0; rows.div_ceil(LANES) * rank * LANES];
        for r in 0..rank {
            for column in 0..columns {
                across[column * wide + r] = a[r * columns + column];
            }
            for row in 0..rows {
                down[(row / LANES * rank + r) * LANES + row % LANES] = b[row * rank + r] * scale;
            }
        }
        LowRank {
            rank,
            a: across,
            b: down,
            columns,
            rows,
        }
    }

    fn wide(&self) -> usize {
        self.rank.next_multiple_of(LANES)
    }
}

/// `x Aᵀ` of each token. `x`: (tokens, columns). `out` becomes (tokens, rank rounded up to sixteen).
pub fn down_project(machine: &Machine, x: &[f32], low: &LowRank, out: &mut Vec<f32>) {
    struct Down<'a>(&'a [f32], &'a LowRank, &'a mut [f32]);
    impl Kernel for Down<'_> {
        type Output = ();
        #[inline(always)]
        unsafe fn run<S: Simd>(self) {
            let Down(x, low, out) = self;
            let (rows, columns) = (out.len() / low.wide(), low.wide());
            let shape = Shape {
                rows,
                depth: low.columns,
                columns,
                left: x.as_ptr(),
                left_stride: low.columns,
                out: out.as_mut_ptr(),
                out_stride: columns,
            };
            assert!(x.len() >= rows * low.columns, "a row for each token");
            // SAFETY: `x` and `out` have the shape's rows, `a` is (columns, wide); the caller vouches for `S`.
            unsafe {
                multiply::<S, _>(
                    shape,
                    Floats {
                        at: low.a.as_ptr(),
                        stride: columns,
                    },
                    std::ptr::null(),
                )
            };
        }
    }
    let tokens = x.len() / low.columns;
    out.resize(tokens * low.wide(), 0.0);
    machine.pool.parts(out, TILE * low.wide(), |tile, out| {
        machine.level.run(Down(&x[tile * TILE * low.columns..], low, out));
    });
}

/// One matrix of a product, and the columns of the result that it fills.
#[derive(Clone, Copy)]
pub struct Part<'a> {
    pub matrix: &'a Packed,
    /// Added to every token; empty for none.
    pub bias: &'a [f32],
    /// The adapter and what [`down_project`] made of the same activations.
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
    in_groups(machine, total, &|mut tile| {
        for part in parts {
            if tile < part.tiles() {
                let columns = part.column + tile * LANES;
                let width = LANES.min(part.matrix.rows - tile * LANES);
                let place = Place {
                    out: &target,
                    stride,
                    column: columns,
                    width,
                    into,
                };
                return machine.level.run(Rows {
                    part,
                    gate: None,
                    tile,
                    x,
                    place,
                });
            }
            tile -= part.tiles();
        }
    });
}

/// `silu(gate x) * (up x)` of every token. `out`: (tokens, rows).
pub fn gated(machine: &Machine, x: &Activations, gate: &Part, up: &Part, out: &mut [f32]) {
    gate.check(x);
    up.check(x);
    let rows = up.matrix.rows;
    assert!(
        gate.matrix.rows == rows && out.len() >= x.tokens * rows,
        "room for the result"
    );
    let target = Parts::new(out);
    in_groups(machine, up.tiles(), &|tile| {
        let width = LANES.min(rows - tile * LANES);
        let place = Place {
            out: &target,
            stride: rows,
            column: tile * LANES,
            width,
            into: Into::Replace,
        };
        machine.level.run(Rows {
            part: up,
            gate: Some(gate),
            tile,
            x,
            place,
        });
    });
}

/// Runs tiles in groups that are large enough to be worth taking and small enough to share out evenly.
fn in_groups(machine: &Machine, tiles: usize, run: &(dyn Fn(usize) + Sync)) {
    let group = (tiles / (machine.pool.threads() * 8)).max(1);
    machine.pool.run(tiles.div_ceil(group), &|idx| {
        (idx * group..tiles.min((idx + 1) * group)).for_each(run);
    });
}

/// Where a tile's results go.
#[derive(Clone, Copy)]
struct Place<'a> {
    out: &'a Parts<f32>,
    stride: usize,
    column: usize,
    width: usize,
    into: Into,
}

/// Sixteen rows of a matrix, or of a gate and its partner, times all tokens.
struct Rows<'a> {
    part: &'a Part<'a>,
    gate: Option<&'a Part<'a>>,
    tile: usize,
    x: &'a Activations,
    place: Place<'a>,
}

impl Kernel for Rows<'_> {
    type Output = ();

    #[inline(always)]
    unsafe fn run<S: Simd>(self) {
        let Rows {
            part,
            gate,
            tile,
            x,
            place,
        } = self;
        let mut y = [[0f32; LANES]; TILE];
        let mut open = [[0f32; LANES]; TILE];
        for (at, blocks) in x.blocks.chunks_exact(x.runs).enumerate() {
            let (first, n) = (at * TILE, TILE.min(x.tokens - at * TILE));
            // SAFETY: the caller vouches for `S`; `check` compared the shapes.
            unsafe {
                sums::<S>(part, tile, blocks, first, n, &mut y);
                if let Some(gate) = gate {
                    sums::<S>(gate, tile, blocks, first, n, &mut open);
                    for (y, open) in y[..n].iter_mut().zip(&open) {
                        let g = S::load(open.as_ptr());
                        S::store(y.as_mut_ptr(), S::mul(S::load(y.as_ptr()), silu::<S>(g)));
                    }
                }
            }
            for (t, y) in y[..n].iter().enumerate() {
                // SAFETY: `product` and `gated` checked that the result has room for every token and column;
                // no other task has these columns; the caller vouches for `S`.
                unsafe {
                    let out = place.out.at((first + t) * place.stride + place.column);
                    let y = S::load(y.as_ptr());
                    let write = |out| match place.into {
                        Into::Replace => S::store(out, y),
                        Into::Add => S::store(out, S::add(S::load(out), y)),
                    };
                    if place.width == LANES {
                        write(out);
                    } else {
                        // The last rows: by way of a whole vector.
                        let mut lanes = [0f32; LANES];
                        std::ptr::copy_nonoverlapping(out, lanes.as_mut_ptr(), place.width);
                        write(lanes.as_mut_ptr());
                        std::ptr::copy_nonoverlapping(lanes.as_ptr(), out, place.width);
                    }
                }
            }
        }
    }
}

/// `x / (1 + exp(-x))`.
#[inline(always)]
unsafe fn silu<S: Simd>(x: S::F) -> S::F {
    // exp takes non-positive numbers: with e = exp(-|x|), the sigmoid is 1 / (1 + e) or e / (1 + e).
    let (mut lanes, mut powers) = ([0f32; LANES], [0f32; LANES]);
    // SAFETY: the arrays hold sixteen numbers; the caller vouches for `S`.
    unsafe {
        let minus = S::mul(x, S::splat(-1.0));
        let size = S::max(x, minus);
        S::store(powers.as_mut_ptr(), exp::<S>(S::mul(size, S::splat(-1.0))));
        S::store(lanes.as_mut_ptr(), x);
        for (x, e) in lanes.iter_mut().zip(powers) {
            *x *= if *x >= 0.0 { 1.0 } else { e } / (1.0 + e);
        }
        S::load(lanes.as_ptr())
    }
}

/// Sixteen results of each of `n` tokens: product, bias and adapter.
#[inline(always)]
unsafe fn sums<S: Simd>(
    part: &Part,
    tile: usize,
    x: &[TokenBlock],
    first_token: usize,
    n: usize,
    out: &mut [[f32; LANES]; TILE],
) {
    let blocks = tile * x.len()..(tile + 1) * x.len();
    // SAFETY: the caller vouches for `S`.
    unsafe {
        match &part.matrix.blocks {
            Blocks::Nibbles(all) => all_tokens::<S, _>(&all[blocks], x, n, out),
            Blocks::Bytes(all) => all_tokens::<S, _>(&all[blocks], x, n, out),
        }
    }
    for out in out[..n].iter_mut() {
        out.iter_mut().for_each(|y| *y *= part.matrix.unit);
        for (y, bias) in out.iter_mut().zip(part.bias.iter().skip(tile * LANES)) {
            *y += bias;
        }
    }
    if let Some((low, hidden)) = part.low {
        let b = &low.b[tile * low.rank * LANES..(tile + 1) * low.rank * LANES];
        let shape = Shape {
            rows: n,
            depth: low.rank,
            columns: LANES,
            left: hidden[first_token * low.wide()..(first_token + n) * low.wide()].as_ptr(),
            left_stride: low.wide(),
            out: out.as_mut_ptr().cast(),
            out_stride: LANES,
        };
        let keep = [1f32; TILE];
        // SAFETY: the slices above have the shape's rows; the caller vouches for `S`.
        unsafe {
            multiply::<S, _>(
                shape,
                Floats {
                    at: b.as_ptr(),
                    stride: LANES,
                },
                keep.as_ptr(),
            )
        };
    }
}

/// Sixteen rows of weights, 32 columns.
trait Weights {
    /// Adds the products with tokens `first..first + T` of `x` to `sums`.
    unsafe fn add<S: Simd, const T: usize>(&self, x: &TokenBlock, first: usize, sums: &mut [S::F; T]);
}

impl Weights for NibbleBlock {
    #[inline(always)]
    unsafe fn add<S: Simd, const T: usize>(&self, x: &TokenBlock, first: usize, sums: &mut [S::F; T]) {
        // SAFETY: arrays of known size, `first + T <= TILE`; the caller vouches for `S`.
        unsafe {
            let mut dots = [S::zero(); T];
            for (pair, weights) in self.quants.iter().enumerate() {
                let weights = S::bytes(weights.as_ptr().cast());
                let low = S::low_nibbles(weights);
                for t in 0..T {
                    dots[t] = S::dot_nibbles(dots[t], low, *x.quants[2 * pair].get_unchecked(first + t));
                }
                let high = S::high_nibbles(weights);
                for t in 0..T {
                    dots[t] = S::dot_nibbles(dots[t], high, *x.quants[2 * pair + 1].get_unchecked(first + t));
                }
            }
            let (scale, min) = (S::load_half(self.scale.as_ptr()), S::load_half(self.min.as_ptr()));
            for t in 0..T {
                let scale = S::mul(scale, S::splat(*x.scale.get_unchecked(first + t)));
                let sum = S::fma(min, S::splat(*x.sum.get_unchecked(first + t)), sums[t]);
                sums[t] = S::fma(S::nibble_sums(dots[t]), scale, sum);
            }
        }
    }
}

impl Weights for ByteBlock {
    #[inline(always)]
    unsafe fn add<S: Simd, const T: usize>(&self, x: &TokenBlock, first: usize, sums: &mut [S::F; T]) {
        // SAFETY: arrays of known size, `first + T <= TILE`; the caller vouches for `S`.
        unsafe {
            let mut dots = [S::zero(); T];
            for t in 0..T {
                dots[t] = S::start_bytes(*x.total.get_unchecked(first + t));
            }
            for (group, weights) in self.quants.iter().enumerate() {
                let weights = S::bytes(weights.as_ptr().cast());
                for t in 0..T {
                    dots[t] = S::dot_bytes(dots[t], weights, *x.quants[group].get_unchecked(first + t));
                }
            }
            let scale = S::load_half(self.scale.as_ptr());
            for t in 0..T {
                let scale = S::mul(scale, S::splat(*x.scale.get_unchecked(first + t)));
                sums[t] = S::fma(S::byte_sums(dots[t]), scale, sums[t]);
            }
        }
    }
}

#[inline(always)]
unsafe fn all_tokens<S: Simd, W: Weights>(w: &[W], x: &[TokenBlock], n: usize, out: &mut [[f32; LANES]; TILE]) {
    let mut first = 0;
    while first < n {
        // SAFETY: `first + T <= n <= TILE`; the caller vouches for `S`.
        unsafe {
            first += match (n - first).min(S::TOKENS) {
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
    x: &[TokenBlock],
    first: usize,
    out: &mut [[f32; LANES]; TILE],
) -> usize {
    // SAFETY: the caller vouches for `S` and for the tokens; `out` holds sixteen numbers for each.
    unsafe {
        let mut sums = [S::splat(0.0); T];
        for (w, x) in w.iter().zip(x) {
            if T > 2 {
                let ahead = std::ptr::from_ref(w).cast::<u8>().wrapping_add(AHEAD);
                for line in 0..size_of::<W>().div_ceil(64) {
                    S::prefetch(ahead.wrapping_add(line * 64));
                }
            }
            w.add::<S, T>(x, first, &mut sums);
        }
        for t in 0..T {
            S::store(out[first + t].as_mut_ptr(), sums[t]);
        }
    }
    T
}
