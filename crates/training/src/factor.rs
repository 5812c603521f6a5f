//! Frozen matrices as right factors of products, in f32 or, where the processor multiplies it, bfloat16.

use std::ops::Range;

use candle_core::quantized::QTensor;
use lm::kernels::bf16::{self, Bf16, PANEL};
use rayon::prelude::*;

use crate::Result;
use crate::dequantise::dequantise;
use crate::matrix::{self, Panels, View, task_rows};

/// What products with frozen weights are computed in. Everything else is f32.
///
/// For the same seed the same arithmetic gives the same bits; the two differ in low ones.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Arithmetic {
    F32,
    /// Factors rounded to bfloat16, sums in f32: twice as fast.
    Bf16(Bf16),
}

impl Arithmetic {
    /// The fastest that this processor has.
    pub fn best() -> Arithmetic {
        Bf16::detect().map_or(Arithmetic::F32, Arithmetic::Bf16)
    }

    pub fn name(self) -> &'static str {
        match self {
            Arithmetic::F32 => "f32",
            Arithmetic::Bf16(_) => "bf16",
        }
    }
}

#[derive(Clone, Copy, PartialEq, Eq)]
pub(crate) enum Direction {
    /// (in, out): from inputs to outputs.
    Forward,
    /// (out, in): from gradients of outputs to gradients of inputs.
    Backward,
}

/// A right factor, packed; its memory serves one matrix after the other.
pub(crate) struct Factor {
    packed: Packed,
    /// As unpacked.
    numbers: Vec<f32>,
}

enum Packed {
    F32(Panels),
    Bf16(Bf16, bf16::Factor),
}

impl Factor {
    pub fn new(arithmetic: Arithmetic) -> Factor {
        let packed = match arithmetic {
            Arithmetic::F32 => Packed::F32(Panels::default()),
            Arithmetic::Bf16(machine) => Packed::Bf16(machine, bf16::Factor::default()),
        };
        Factor {
            packed,
            numbers: Vec::new(),
        }
    }

    /// Unpacks some rows of `weights`, which is (out, in).
    pub fn fill(&mut self, weights: &QTensor, rows: Range<usize>, direction: Direction) -> Result<()> {
        let (_, inside) = weights.shape().dims2()?;
        let (out, numbers) = (rows.len(), &mut self.numbers);
        match &mut self.packed {
            Packed::F32(panels) => {
                dequantise(weights, rows, numbers)?;
                let weights = View::new(numbers, out, inside);
                panels.pack(match direction {
                    Direction::Forward => weights.transposed(),
                    Direction::Backward => weights,
                });
            }
            Packed::Bf16(machine, factor) => {
                match direction {
                    Direction::Forward => factor.resize(inside, out),
                    Direction::Backward => factor.resize(out, inside),
                }
                // A few rows at a time stay in the cache.
                for first in (0..out).step_by(PANEL) {
                    let block = rows.start + first..rows.start + out.min(first + PANEL);
                    dequantise(weights, block, numbers)?;
                    match direction {
                        Direction::Forward => factor.write_columns(*machine, first, numbers),
                        Direction::Backward => factor.write_rows(*machine, first, numbers),
                    }
                }
            }
        }
        Ok(())
    }

    /// `out = x self`, or `out += x self`, on all threads. `x`: (rows, depth), `out`: (rows, columns).
    pub fn multiply(&self, x: &[f32], rows: usize, out: &mut [f32], add: bool) {
        if rows == 0 {
            return;
        }
        let step = task_rows(rows);
        let tasks = out
            .par_chunks_mut(step * (out.len() / rows))
            .zip(x.par_chunks(step * (x.len() / rows)));
        tasks.for_each(|(out, x)| self.multiply_here(x, out, add));
    }

    /// [`Factor::multiply`] on the calling thread.
    pub fn multiply_here(&self, x: &[f32], out: &mut [f32], add: bool) {
        match &self.packed {
            Packed::F32(panels) => {
                let rows = out.len() / panels.columns;
                matrix::multiply_here(View::new(x, rows, panels.rows), panels.all(), out, panels.columns, add);
            }
            Packed::Bf16(machine, factor) => factor.multiply(*machine, x, out, add),
        }
    }
}
