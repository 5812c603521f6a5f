//! Products of floats: rows times columns, sums in registers.

use super::simd::Simd;

/// The right factor, (depth, columns).
pub(super) trait Right: Copy {
    /// Rows that one step takes.
    const STEP: usize;

    /// Adds the products of step `k` with `R` rows of the left factor to `sums`.
    ///
    /// # Safety
    ///
    /// The step's rows and sixteen columns for each of `C` vectors from `column` on must exist, as must the left
    /// factor's rows; the processor must have the instructions of `S`.
    unsafe fn add<S: Simd, const R: usize, const C: usize>(
        self,
        left: *const f32,
        left_stride: usize,
        k: usize,
        column: usize,
        sums: &mut [[S::F; C]; R],
    );
}

#[derive(Clone, Copy)]
pub(super) struct Floats {
    pub at: *const f32,
    pub stride: usize,
}

/// Numbers of 16 bits (bfloat16: the upper half of an f32), two rows side by side: (depth / 2, columns, 2).
/// Where [`Simd::PAIRS`], the left factor's rows must have gone through [`Simd::pack`].
#[derive(Clone, Copy)]
pub(super) struct Pairs {
    pub at: *const u16,
    /// Columns.
    pub stride: usize,
}

impl Right for Floats {
    const STEP: usize = 1;

    #[inline(always)]
    unsafe fn add<S: Simd, const R: usize, const C: usize>(
        self,
        left: *const f32,
        left_stride: usize,
        k: usize,
        column: usize,
        sums: &mut [[S::F; C]; R],
    ) {
        // SAFETY: the caller vouches for all of it.
        unsafe {
            let mut columns = [S::splat(0.0); C];
            for c in 0..C {
                columns[c] = S::load(self.at.add(k * self.stride + column + c * 16));
            }
            for r in 0..R {
                let x = S::splat(*left.add(r * left_stride + k));
                for c in 0..C {
                    sums[r][c] = S::fma(x, columns[c], sums[r][c]);
                }
            }
        }
    }
}

impl Right for Pairs {
    const STEP: usize = 2;

    #[inline(always)]
    unsafe fn add<S: Simd, const R: usize, const C: usize>(
        self,
        left: *const f32,
        left_stride: usize,
        k: usize,
        column: usize,
        sums: &mut [[S::F; C]; R],
    ) {
        // SAFETY: the caller vouches for all of it.
        unsafe {
            let at = |c: usize| self.at.add((k * self.stride + column + c * 16) * 2);
            if S::PAIRS {
                let mut columns = [S::load_pairs(at(0)); C];
                for c in 1..C {
                    columns[c] = S::load_pairs(at(c));
                }
                // Row by row: the columns stay in registers, and so do the sums.
                for r in 0..R {
                    let left = S::pair(left.add(r * left_stride + k));
                    for c in 0..C {
                        sums[r][c] = S::dot_pairs(sums[r][c], left, columns[c]);
                    }
                }
                return;
            }
            let (mut first, mut second) = ([S::splat(0.0); C], [S::splat(0.0); C]);
            for c in 0..C {
                let columns = S::load_pairs(at(c));
                (first[c], second[c]) = (S::firsts(columns), S::seconds(columns));
            }
            for r in 0..R {
                let left = left.add(r * left_stride + 2 * k);
                let (x, y) = (S::splat(*left), S::splat(*left.add(1)));
                for c in 0..C {
                    sums[r][c] = S::fma(y, second[c], S::fma(x, first[c], sums[r][c]));
                }
            }
        }
    }
}

/// The left factor, (rows, depth), and the result, (rows, columns).
#[derive(Clone, Copy)]
pub(super) struct Shape {
    pub rows: usize,
    pub depth: usize,
    /// A multiple of sixteen.
    pub columns: usize,
    pub left: *const f32,
    pub left_stride: usize,
    pub out: *mut f32,
    pub out_stride: usize,
}

/// `out = left right`, or `out = keep[row] out + left right` if `keep` is not null. Each number is one
/// chain of additions in the order of the depth, which is rounded up to whole steps of the right factor.
///
/// # Safety
///
/// The factors and the result must have the given shapes, `keep` a number for each row, and the processor the
/// instructions of `S`.
#[inline(always)]
pub(super) unsafe fn multiply<S: Simd, B: Right>(shape: Shape, right: B, keep: *const f32) {
    let mut row = 0;
    while row < shape.rows {
        // SAFETY: rows from `row` on exist; the rest is the caller's word.
        unsafe {
            row += match (shape.rows - row).min(S::ROWS) {
                12.. => several::<S, B, 12>(shape, right, keep, row),
                6..12 => several::<S, B, 6>(shape, right, keep, row),
                4..6 => several::<S, B, 4>(shape, right, keep, row),
                3 => several::<S, B, 3>(shape, right, keep, row),
                2 => several::<S, B, 2>(shape, right, keep, row),
                _ => several::<S, B, 1>(shape, right, keep, row),
            };
        }
    }
}

/// All columns of `R` rows. Returns `R`.
#[inline(always)]
unsafe fn several<S: Simd, B: Right, const R: usize>(shape: Shape, right: B, keep: *const f32, row: usize) -> usize {
    let mut column = 0;
    // SAFETY: as for `multiply`.
    unsafe {
        while S::COLUMNS >= 2 && column + 32 <= shape.columns {
            block::<S, B, R, 2>(shape, right, keep, row, column);
            column += 32;
        }
        while column < shape.columns {
            block::<S, B, R, 1>(shape, right, keep, row, column);
            column += 16;
        }
    }
    R
}

#[inline(always)]
unsafe fn block<S: Simd, B: Right, const R: usize, const C: usize>(
    shape: Shape,
    right: B,
    keep: *const f32,
    row: usize,
    column: usize,
) {
    // SAFETY: as for `multiply`; every index below is inside the shapes.
    unsafe {
        let out = shape.out.add(row * shape.out_stride + column);
        let left = shape.left.add(row * shape.left_stride);
        let mut sums = [[S::splat(0.0); C]; R];
        if !keep.is_null() {
            for r in 0..R {
                let keep = S::splat(*keep.add(row + r));
                for c in 0..C {
                    sums[r][c] = S::mul(keep, S::load(out.add(r * shape.out_stride + c * 16)));
                }
            }
        }
        for k in 0..shape.depth.div_ceil(B::STEP) {
            right.add::<S, R, C>(left, shape.left_stride, k, column, &mut sums);
        }
        for r in 0..R {
            for c in 0..C {
                S::store(out.add(r * shape.out_stride + c * 16), sums[r][c]);
            }
        }
    }
}
