//! Adapters: products with two narrow matrices, in floats.

use super::Machine;
use super::activations::share;
use super::dense::{Floats, Shape, multiply};
use super::level::Kernel;
use super::packed::LANES;
use super::product::TILE;
use super::simd::Simd;

/// A LoRA pair, laid out for the kernels.
pub struct LowRank {
    pub rank: usize,
    /// (columns, rank rounded up to sixteen).
    a: Vec<f32>,
    /// (tiles of sixteen rows, rank, 16), times the adapter's scale.
    b: Vec<f32>,
    columns: usize,
    pub(super) rows: usize,
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

    /// Adds its share in one row of the matrix that it changes.
    pub fn add_to_row(&self, row: usize, out: &mut [f32]) {
        let wide = self.wide();
        for r in 0..self.rank {
            let b = self.b[(row / LANES * self.rank + r) * LANES + row % LANES];
            for (x, a) in out.iter_mut().zip(self.a[r..].iter().step_by(wide)) {
                *x += b * a;
            }
        }
    }

    pub(super) fn wide(&self) -> usize {
        self.rank.next_multiple_of(LANES)
    }

    /// Adds the adapter's share in sixteen rows of the result: `out`, (tokens, 16), from what [`down_project`] made of
    /// these tokens.
    ///
    /// # Safety
    ///
    /// The processor must have the instructions of `S`.
    #[inline(always)]
    pub(super) unsafe fn add<S: Simd>(&self, tile: usize, hidden: &[f32], out: &mut [[f32; LANES]]) {
        let b = &self.b[tile * self.rank * LANES..(tile + 1) * self.rank * LANES];
        let keep = [1f32; TILE];
        assert!(
            out.len() <= TILE && hidden.len() == out.len() * self.wide(),
            "a tile's tokens"
        );
        let shape = Shape {
            rows: out.len(),
            depth: self.rank,
            columns: LANES,
            left: hidden.as_ptr(),
            left_stride: self.wide(),
            out: out.as_mut_ptr().cast(),
            out_stride: LANES,
        };
        let right = Floats {
            at: b.as_ptr(),
            stride: LANES,
        };
        // SAFETY: the slices have the shape's rows; the caller vouches for `S`.
        unsafe { multiply::<S, _>(shape, right, keep.as_ptr()) };
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
    let share = share(machine, tokens);
    machine.pool.parts(out, share * low.wide(), |part, out| {
        machine.level.run(Down(&x[part * share * low.columns..], low, out));
    });
}
