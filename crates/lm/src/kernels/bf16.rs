//! Products in bfloat16 with sums in f32, for training: an instruction does 32 multiplications, twice what
//! f32 does, and a matrix takes half the memory.
//!
//! Both factors are rounded to 8 significant bits when they are packed. Every element of a result is one
//! chain of additions along the depth, so it depends neither on its company nor on the threads.

use super::level::{Kernel, Level};
use super::simd::Simd;

/// Columns of a panel: two vectors of pairs.
pub const PANEL: usize = 32;
/// Rows of a tile: with a panel's columns 24 sums; two columns and a broadcast row fill the registers.
const HEIGHT: usize = 12;

/// A processor that multiplies bfloat16 numbers: no other value can be made.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Bf16(Level);

impl Bf16 {
    pub fn detect() -> Option<Bf16> {
        Level::named("avx512-bf16").map(Bf16)
    }
}

/// A right factor, (depth, columns). Panels of 32 columns; in each, the numbers of two rows lie side by
/// side: (columns / 32, depth / 2, 32, 2).
#[derive(Clone, Default)]
pub struct Factor {
    depth: usize,
    columns: usize,
    pairs: Vec<u32>,
}

impl Factor {
    /// Takes a new shape; what it holds is then to be written.
    pub fn resize(&mut self, depth: usize, columns: usize) {
        (self.depth, self.columns) = (depth, columns);
        let len = depth.div_ceil(2) * columns.next_multiple_of(PANEL);
        self.pairs.resize(len, 0);
    }

    /// Writes the panel of at most 32 columns from `first`, a multiple of 32, on: `depth` numbers each.
    pub fn write_columns(&mut self, machine: Bf16, first: usize, columns: &[f32]) {
        assert!(first.is_multiple_of(PANEL) && first + columns.len() / self.depth <= self.columns);
        let len = self.depth.div_ceil(2) * PANEL;
        let to = &mut self.pairs[first / PANEL * len..][..len];
        let depth = self.depth;
        machine.0.run(Pack::<PANEL> {
            rows: columns,
            depth,
            to,
        });
    }

    /// Writes rows from `first`, which is even, on: `columns` numbers each. Only the last of all rows may
    /// be without its pair.
    pub fn write_rows(&mut self, machine: Bf16, first: usize, rows: &[f32]) {
        let end = first + rows.len() / self.columns;
        assert!(first.is_multiple_of(2) && (end.is_multiple_of(2) || end == self.depth) && end <= self.depth);
        machine.0.run(WriteRows {
            factor: self,
            first,
            rows,
        });
    }

    /// `out = left self`, or `out += left self`, on the calling thread. `left`: (rows, depth), `out`: (rows, columns).
    pub fn multiply(&self, machine: Bf16, left: &[f32], out: &mut [f32], add: bool) {
        if !out.is_empty() {
            let right = self;
            machine.0.run(Multiply { left, right, out, add });
        }
    }
}

/// Rounds at most `N` rows of `depth` numbers and turns them: (depth / 2, N, 2).
struct Pack<'a, const N: usize> {
    rows: &'a [f32],
    depth: usize,
    to: &'a mut [u32],
}

impl<const N: usize> Kernel for Pack<'_, N> {
    type Output = ();

    #[inline(always)]
    unsafe fn run<S: Simd>(self) {
        let Pack { rows, depth, to } = self;
        let to = to.as_chunks_mut::<N>().0;
        assert!(to.len() == depth.div_ceil(2) && rows.len() <= N * depth);
        // Sixteen pairs of every row at a time, so that both sides stay in the cache.
        for (block, to) in to.chunks_mut(16).enumerate() {
            for (row, numbers) in rows.chunks_exact(depth).enumerate() {
                let numbers = &numbers[block * 32..depth.min(block * 32 + 32)];
                // SAFETY: the caller vouches for `S`.
                let pairs = unsafe { rounded::<S>(numbers) };
                for (to, pair) in to.iter_mut().zip(pairs) {
                    to[row] = pair;
                }
            }
            for to in to {
                to[rows.len() / depth..].fill(0);
            }
        }
    }
}

/// At most 32 numbers as pairs, zeros behind them.
///
/// # Safety
///
/// The processor must have the instructions of `S`.
#[inline(always)]
unsafe fn rounded<S: Simd>(numbers: &[f32]) -> [u32; 16] {
    let mut pairs = [0u32; 16];
    let padded;
    let numbers: &[f32; 32] = match numbers.try_into() {
        Ok(whole) => whole,
        Err(_) => {
            let mut zeros = [0.0; 32];
            zeros[..numbers.len()].copy_from_slice(numbers);
            padded = zeros;
            &padded
        }
    };
    // SAFETY: 32 numbers are read, sixteen pairs written.
    unsafe { S::pack(numbers.as_ptr(), pairs.as_mut_ptr().cast()) };
    pairs
}

struct WriteRows<'a> {
    factor: &'a mut Factor,
    first: usize,
    rows: &'a [f32],
}

impl Kernel for WriteRows<'_> {
    type Output = ();

    #[inline(always)]
    unsafe fn run<S: Simd>(self) {
        let Factor { depth, columns, pairs } = self.factor;
        let panel_len = depth.div_ceil(2) * PANEL;
        for (at, two) in self.rows.chunks(2 * *columns).enumerate() {
            let (upper, lower) = two.split_at(*columns);
            for (half, upper) in upper.chunks(16).enumerate() {
                let lower = lower.get(half * 16..).unwrap_or_default();
                let at = half / 2 * panel_len + (self.first / 2 + at) * PANEL + half % 2 * 16;
                let mut woven = [0.0; 32];
                let pairs_of = woven.as_chunks_mut::<2>().0;
                match (upper.first_chunk::<16>(), lower.first_chunk::<16>()) {
                    // Whole vectors have a length that the compiler knows.
                    (Some(upper), Some(lower)) => {
                        for i in 0..16 {
                            pairs_of[i] = [upper[i], lower[i]];
                        }
                    }
                    _ => {
                        for (i, x) in upper.iter().enumerate() {
                            pairs_of[i] = [*x, lower.get(i).copied().unwrap_or(0.0)];
                        }
                    }
                }
                // SAFETY: the caller vouches for `S`.
                let pairs_of = unsafe { rounded::<S>(&woven) };
                pairs[at..at + 16].copy_from_slice(&pairs_of);
            }
        }
    }
}

struct Multiply<'a> {
    left: &'a [f32],
    right: &'a Factor,
    out: &'a mut [f32],
    add: bool,
}

impl Kernel for Multiply<'_> {
    type Output = ();

    #[inline(always)]
    unsafe fn run<S: Simd>(self) {
        let Multiply { left, right, out, add } = self;
        let Factor { depth, columns, pairs } = right;
        let (depth, columns, steps) = (*depth, *columns, depth.div_ceil(2));
        let rows = out.len() / columns;
        assert!(out.len() == rows * columns && left.len() == rows * depth);
        let mut packed = vec![0u32; rows.div_ceil(HEIGHT) * steps * HEIGHT];
        let strips = packed.chunks_exact_mut(steps * HEIGHT);
        for (to, rows) in strips.zip(left.chunks(HEIGHT * depth)) {
            // SAFETY: the caller vouches for `S`.
            unsafe { Pack::<HEIGHT> { rows, depth, to }.run::<S>() };
        }
        for (idx, panel) in pairs.chunks_exact(steps * PANEL).enumerate() {
            let column = idx * PANEL;
            let width = PANEL.min(columns - column);
            let strips = packed.chunks_exact(steps * HEIGHT);
            for (strip, out) in strips.zip(out.chunks_mut(HEIGHT * columns)) {
                let mut tile = [[0.0; PANEL]; HEIGHT];
                // SAFETY: the caller vouches for `S`.
                unsafe { sum_tile::<S>(strip, panel, &mut tile) };
                for (out, tile) in out.chunks_exact_mut(columns).zip(&tile) {
                    let out = &mut out[column..column + width];
                    // A whole row has a length that the compiler knows.
                    match (<&mut [f32; PANEL]>::try_from(&mut *out), add) {
                        (Ok(out), true) => out.iter_mut().zip(tile).for_each(|(out, x)| *out += x),
                        (Ok(out), false) => *out = *tile,
                        (Err(_), true) => out.iter_mut().zip(tile).for_each(|(out, x)| *out += x),
                        (Err(_), false) => out.copy_from_slice(&tile[..width]),
                    }
                }
            }
        }
    }
}

/// `tile[row][column] = Σ left[step][row] right[step][column]` over pairs.
///
/// # Safety
///
/// The processor must have the instructions of `S`.
#[inline(always)]
unsafe fn sum_tile<S: Simd>(left: &[u32], right: &[u32], tile: &mut [[f32; PANEL]; HEIGHT]) {
    // SAFETY: loads and stores are of whole arrays; the caller vouches for `S`.
    unsafe {
        let mut sums = [[S::splat(0.0); 2]; HEIGHT];
        let (left, right) = (left.as_chunks::<HEIGHT>().0, right.as_chunks::<PANEL>().0);
        for (rows, columns) in left.iter().zip(right) {
            let columns: *const u16 = columns.as_ptr().cast();
            let columns = [S::load_pairs(columns), S::load_pairs(columns.add(PANEL))];
            for row in 0..HEIGHT {
                let x = S::pair(rows.as_ptr().add(row).cast());
                for half in 0..2 {
                    sums[row][half] = S::dot_pairs(sums[row][half], x, columns[half]);
                }
            }
        }
        for row in 0..HEIGHT {
            for half in 0..2 {
                S::store(tile[row].as_mut_ptr().add(half * 16), sums[row][half]);
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use gym::Seed;
    use half::bf16;

    fn random(n: usize, seed: u64) -> Vec<f32> {
        let mut rng = Seed(seed).rng();
        (0..n).map(|_| rng.next_f64() as f32 - 0.5).collect()
    }

    #[test]
    fn products_are_those_of_rounded_numbers() {
        let Some(machine) = Bf16::detect() else { return };
        for (m, k, n) in [(1, 1, 1), (13, 7, 33), (50, 400, 70), (25, 385, 31), (3, 16, 576)] {
            let (left, right) = (random(m * k, 1), random(k * n, 2));
            let turned: Vec<f32> = (0..k * n).map(|i| right[i % k * n + i / k]).collect();
            let mut factors = [Factor::default(), Factor::default()];
            for factor in &mut factors {
                // What another shape left behind must not matter.
                factor.resize(99, 99);
                factor.pairs.fill(u32::MAX);
                factor.resize(k, n);
            }
            for (first, columns) in turned.chunks(PANEL * k).enumerate() {
                factors[0].write_columns(machine, first * PANEL, columns);
            }
            for (first, rows) in right.chunks(6 * n).enumerate() {
                factors[1].write_rows(machine, first * 6, rows);
            }
            let round = |x: f32| f64::from(bf16::from_f32(x).to_f32());
            for factor in &factors {
                let mut out = vec![1.0; m * n];
                factor.multiply(machine, &left, &mut out, false);
                factor.multiply(machine, &left, &mut out, true);
                for (i, x) in out.iter().enumerate() {
                    let products = (0..k).map(|p| round(left[i / n * k + p]) * round(right[p * n + i % n]));
                    assert!(
                        (f64::from(*x) - 2.0 * products.sum::<f64>()).abs() < 1e-4,
                        "{m} {k} {n} at {i}"
                    );
                }
            }
        }
    }

    #[test]
    fn what_is_not_a_number_stays_so() {
        let Some(machine) = Bf16::detect() else { return };
        let mut factor = Factor::default();
        factor.resize(2, 1);
        factor.write_columns(machine, 0, &[1.0, 1.0]);
        let mut out = [0.0];
        factor.multiply(machine, &[f32::from_bits(0x7fff_ffff), 1.0], &mut out, false);
        assert!(out[0].is_nan());
    }
}
