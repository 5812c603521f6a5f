//! Matrix products in f32: the only place where most of training's time goes.
//!
//! The right factor is packed once ([`Panels`]) and used by many products. Every element of a result is
//! one fused multiply-add after the other along the shared dimension, whatever the processor and the
//! number of threads, so results are the same bits everywhere that has fused multiply-add.

use std::cell::RefCell;
use std::ops::Range;

use pulp::{Arch, Simd, WithSimd};
use rayon::prelude::*;

/// A matrix in borrowed memory: element (row, column) lies at `row * row_step + column * column_step`.
#[derive(Clone, Copy)]
pub struct View<'a> {
    data: &'a [f32],
    pub rows: usize,
    pub columns: usize,
    row_step: usize,
    column_step: usize,
}

impl<'a> View<'a> {
    /// Row after row.
    pub fn new(data: &'a [f32], rows: usize, columns: usize) -> View<'a> {
        assert_eq!(data.len(), rows * columns, "{rows} x {columns}");
        View {
            data,
            rows,
            columns,
            row_step: columns,
            column_step: 1,
        }
    }

    pub fn transposed(self) -> View<'a> {
        View {
            rows: self.columns,
            columns: self.rows,
            row_step: self.column_step,
            column_step: self.row_step,
            ..self
        }
    }

    pub fn rows(self, range: Range<usize>) -> View<'a> {
        assert!(range.end <= self.rows);
        let data = &self.data[(range.start * self.row_step).min(self.data.len())..];
        View {
            data,
            rows: range.len(),
            ..self
        }
    }

    pub fn columns(self, range: Range<usize>) -> View<'a> {
        self.transposed().rows(range).transposed()
    }
}

/// Columns of a panel: two AVX-512 registers or four AVX2 ones.
const WIDTH: usize = 32;
/// Rows of a tile of results: with `WIDTH` columns they fill 24 AVX-512 registers.
const HEIGHT: usize = 12;
/// Steps along the shared dimension between two visits of the result.
const DEPTH: usize = 384;
/// Most rows of a task.
const TASK_ROWS: usize = 6 * HEIGHT;

/// The right factor of a product, packed: columns in groups of `WIDTH`, each group row after row.
#[derive(Clone, Default)]
pub struct Panels {
    pub rows: usize,
    pub columns: usize,
    data: Vec<f32>,
}

impl Panels {
    pub fn pack(&mut self, b: View<'_>) {
        (self.rows, self.columns) = (b.rows, b.columns);
        let len = b.rows * b.columns.next_multiple_of(WIDTH);
        self.data.resize(len, 0.0);
        if b.rows == 0 {
            return;
        }
        for (idx, panel) in self.data.chunks_exact_mut(b.rows * WIDTH).enumerate() {
            let first = idx * WIDTH;
            pack_panel::<WIDTH>(b.columns(first..b.columns.min(first + WIDTH)), panel);
        }
    }
}

/// Writes `b` (at most `N` columns) row after row, `N` numbers each, zeros at the end.
fn pack_panel<const N: usize>(b: View<'_>, panel: &mut [f32]) {
    let rows = panel.as_chunks_mut::<N>().0;
    if b.column_step == 1 {
        for (row, out) in rows.iter_mut().enumerate() {
            let from = &b.data[row * b.row_step..][..b.columns];
            if let Ok(whole) = <&[f32; N]>::try_from(from) {
                *out = *whole;
            } else {
                out[..b.columns].copy_from_slice(from);
                out[b.columns..].fill(0.0);
            }
        }
    } else if b.columns == N && b.row_step == 1 {
        // A transposition: short stretches of every column, so that both sides stay in the cache.
        for (block, out) in rows.chunks_mut(16).enumerate() {
            for column in 0..N {
                let from = &b.data[column * b.column_step + block * 16..][..out.len()];
                for (out, x) in out.iter_mut().zip(from) {
                    out[column] = *x;
                }
            }
        }
    } else {
        for (row, out) in rows.iter_mut().enumerate() {
            out.fill(0.0);
            for (column, out) in out.iter_mut().enumerate().take(b.columns) {
                *out = b.data[row * b.row_step + column * b.column_step];
            }
        }
    }
}

impl Panels {
    pub fn packed(b: View<'_>) -> Panels {
        let mut panels = Panels::default();
        panels.pack(b);
        panels
    }

    pub fn all(&self) -> Right<'_> {
        self.first(self.rows, self.columns)
    }

    /// The top left corner.
    pub fn first(&self, rows: usize, columns: usize) -> Right<'_> {
        assert!(rows <= self.rows && columns <= self.columns);
        Right {
            panels: self,
            rows,
            columns,
        }
    }
}

/// A right factor: the beginning of packed rows and columns.
#[derive(Clone, Copy)]
pub struct Right<'a> {
    panels: &'a Panels,
    rows: usize,
    columns: usize,
}

/// `out = a b`, or `out += a b`. `out`: (a.rows, b.columns), its rows `out_step` apart.
pub fn multiply(a: View<'_>, b: Right<'_>, out: &mut [f32], out_step: usize, add: bool) {
    let step = task_rows(a.rows);
    out.par_chunks_mut(step * out_step).enumerate().for_each(|(task, out)| {
        let first = task * step;
        let a = a.rows(first..a.rows.min(first + step));
        multiply_here(a, b, out, out_step, add);
    });
}

/// Rows of a task: whole tiles, and as many tasks for every thread.
pub fn task_rows(rows: usize) -> usize {
    let threads = rayon::current_num_threads();
    let tasks = rows.div_ceil(TASK_ROWS * threads).max(1) * threads;
    rows.div_ceil(tasks).next_multiple_of(HEIGHT).max(HEIGHT)
}

/// [`multiply`] on the calling thread.
pub fn multiply_here(a: View<'_>, b: Right<'_>, out: &mut [f32], out_step: usize, add: bool) {
    assert!(a.columns == b.rows && out_step >= b.columns);
    if a.rows == 0 || b.columns == 0 {
        return;
    }
    PACKED.with_borrow_mut(|packed| {
        Arch::new().dispatch(Product {
            a,
            b,
            out,
            out_step,
            add,
            packed,
        });
    });
}

thread_local! {
    /// Room for a task's left factor, kept: cleared anew for each it took a fiftieth of a training.
    static PACKED: RefCell<Vec<f32>> = const { RefCell::new(Vec::new()) };
}

struct Product<'a> {
    a: View<'a>,
    b: Right<'a>,
    out: &'a mut [f32],
    out_step: usize,
    add: bool,
    packed: &'a mut Vec<f32>,
}

impl WithSimd for Product<'_> {
    type Output = ();

    #[inline(always)]
    fn with_simd<S: Simd>(self, simd: S) {
        let Product {
            a,
            b,
            out,
            out_step,
            add,
            packed,
        } = self;
        let depth = b.rows;
        let room = a.rows.next_multiple_of(HEIGHT) * DEPTH.min(depth);
        if packed.len() < room {
            packed.resize(room, 0.0);
        }
        for from in (0..depth).step_by(DEPTH) {
            let to = depth.min(from + DEPTH);
            let packed = &mut packed[..a.rows.next_multiple_of(HEIGHT) * (to - from)];
            for (strip, packed) in packed.chunks_exact_mut((to - from) * HEIGHT).enumerate() {
                let first = strip * HEIGHT;
                let rows = a.rows(first..a.rows.min(first + HEIGHT)).columns(from..to);
                pack_panel::<HEIGHT>(rows.transposed(), packed);
            }
            for (idx, panel) in b
                .panels
                .data
                .chunks_exact(b.panels.rows * WIDTH)
                .take(b.columns.div_ceil(WIDTH))
                .enumerate()
            {
                let (panel, _) = S::as_simd_f32s(&panel[from * WIDTH..to * WIDTH]);
                let column = idx * WIDTH;
                let width = WIDTH.min(b.columns - column);
                for (strip, packed) in packed.chunks_exact((to - from) * HEIGHT).enumerate() {
                    let (packed, _) = packed.as_chunks::<HEIGHT>();
                    let mut tile = [[0.0; WIDTH]; HEIGHT];
                    // Low ranks fill half a panel.
                    match (S::F32_LANES, width <= WIDTH / 2) {
                        (16, true) => sum_tile::<S, 12, 1, 2>(simd, packed, panel, &mut tile),
                        (16, false) => sum_tile::<S, 12, 2, 2>(simd, packed, panel, &mut tile),
                        (8, true) => sum_tile::<S, 6, 2, 4>(simd, packed, panel, &mut tile),
                        (8, false) => sum_tile::<S, 3, 4, 4>(simd, packed, panel, &mut tile),
                        (4, _) => sum_tile::<S, 2, 8, 8>(simd, packed, panel, &mut tile),
                        _ => sum_tile::<S, 1, 32, 32>(simd, packed, panel, &mut tile),
                    }
                    let height = HEIGHT.min(a.rows - strip * HEIGHT);
                    for (row, tile) in tile[..height].iter().enumerate() {
                        let out = &mut out[(strip * HEIGHT + row) * out_step + column..][..width];
                        // Whole rows have a length that the compiler knows: vectors instead of calls.
                        match (<&mut [f32; WIDTH]>::try_from(&mut *out), add || from > 0) {
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
}

/// `tile[row][column] = Σ a[step][row] b[step][column]`, `ROWS` rows of `VECTORS` registers at a time; `b` has
/// `STEP` of them in a row.
#[inline(always)]
fn sum_tile<S: Simd, const ROWS: usize, const VECTORS: usize, const STEP: usize>(
    simd: S,
    a: &[[f32; HEIGHT]],
    b: &[S::f32s],
    tile: &mut [[f32; WIDTH]; HEIGHT],
) {
    for first in (0..HEIGHT).step_by(ROWS) {
        let mut sums = [[simd.splat_f32s(0.0); VECTORS]; ROWS];
        for (a, b) in a.iter().zip(b.as_chunks::<STEP>().0) {
            for row in 0..ROWS {
                let x = simd.splat_f32s(a[first + row]);
                for vector in 0..VECTORS {
                    sums[row][vector] = simd.mul_add_f32s(x, b[vector], sums[row][vector]);
                }
            }
        }
        for row in 0..ROWS {
            let (out, _) = S::as_mut_simd_f32s(&mut tile[first + row]);
            out[..VECTORS].copy_from_slice(&sums[row]);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use gym::Seed;

    fn random(n: usize, seed: u64) -> Vec<f32> {
        let mut rng = Seed(seed).rng();
        (0..n).map(|_| rng.next_f64() as f32 - 0.5).collect()
    }

    #[test]
    fn products_agree_with_the_definition() {
        for (m, k, n) in [(1, 1, 1), (13, 7, 33), (50, 400, 70), (97, 385, 31), (3, 16, 576)] {
            let (a, b) = (random(m * k, 1), random(k * n, 2));
            let right = |i: usize, j: usize| {
                (0..k)
                    .map(|p| f64::from(a[i * k + p]) * f64::from(b[p * n + j]))
                    .sum::<f64>()
            };
            let transpose = |x: &[f32], rows: usize, columns: usize| -> Vec<f32> {
                (0..columns * rows).map(|i| x[i % rows * columns + i / rows]).collect()
            };
            let (at, bt) = (transpose(&a, m, k), transpose(&b, k, n));
            for a in [View::new(&a, m, k), View::new(&at, k, m).transposed()] {
                for b in [View::new(&b, k, n), View::new(&bt, n, k).transposed()] {
                    let mut out = vec![1.0; m * n];
                    multiply(a, Panels::packed(b).all(), &mut out, n, false);
                    multiply(a, Panels::packed(b).all(), &mut out, n, true);
                    for (i, x) in out.iter().enumerate() {
                        assert!((f64::from(*x) - 2.0 * right(i / n, i % n)).abs() < 1e-4);
                    }
                }
            }
        }
    }

    #[test]
    fn a_corner_of_the_right_factor_and_a_wide_result_are_allowed() {
        let (a, b) = (random(5 * 9, 3), random(20 * 80, 4));
        let panels = Panels::packed(View::new(&b, 20, 80));
        let mut out = vec![7.0; 5 * 50];
        multiply_here(View::new(&a, 5, 9), panels.first(9, 40), &mut out, 50, false);
        for (i, row) in out.chunks_exact(50).enumerate() {
            let right: f32 = (0..9).map(|p| a[i * 9 + p] * b[p * 80 + 39]).sum();
            assert!((row[39] - right).abs() < 1e-5 && row[40] == 7.0);
        }
    }
}
