//! Weights laid out for the products: sixteen rows side by side, 32 columns at a time.

use candle_core::Device;
use candle_core::quantized::{GgmlDType, QTensor};
use half::f16;

use super::memory::{Arena, Region, Zeroed};
use super::pool::Pool;
use crate::LmError;

/// Rows side by side: one for each lane of a vector.
pub(super) const LANES: usize = 16;
/// Columns that share a scale.
pub(super) const COLUMNS: usize = 32;

/// A matrix of quantised weights, (rows, columns).
///
/// A block is sixteen rows by 32 columns. One 64-byte load holds eight columns (of bytes: four) of all sixteen rows,
/// as sixteen pairs of 16-bit numbers. A shift and a mask make pairs of weights of them: two columns of each row, which
/// one instruction multiplies by two activations of one token.
pub struct Packed {
    pub rows: usize,
    pub columns: usize,
    /// What all scales are to be multiplied by: a power of two that keeps them in half precision's range.
    pub(super) unit: f32,
    pub(super) blocks: Blocks,
}

pub(super) enum Blocks {
    Nibbles(Region<NibbleBlock>),
    Bytes(Region<ByteBlock>),
}

/// `w = scale * q + min`, q in 0..=15. Number `h` of group `g` and a row holds columns 8g + h, 8g + 2 + h, 8g + 4 + h
/// and 8g + 6 + h, lowest bits first.
#[derive(Clone, Copy)]
#[repr(C, align(64))]
pub(super) struct NibbleBlock {
    pub quants: [[[u16; 2]; LANES]; COLUMNS / 8],
    pub scale: [u16; LANES],
    pub min: [u16; LANES],
}

/// `w = scale * q`, q in -128..=127. Number `h` of group `g` and a row holds columns 4g + h and 4g + 2 + h, the first
/// in its low byte.
#[derive(Clone, Copy)]
#[repr(C, align(32))]
pub(super) struct ByteBlock {
    pub quants: [[[u16; 2]; LANES]; COLUMNS / 4],
    pub scale: [u16; LANES],
}

// SAFETY: arrays of numbers.
unsafe impl Zeroed for NibbleBlock {}
// SAFETY: as above.
unsafe impl Zeroed for ByteBlock {}

/// One row's 32 weights of a file, before they are laid out.
struct Run {
    scale: f32,
    min: f32,
    quants: [i16; COLUMNS],
}

impl Packed {
    /// Lays out the rows of `tensor`, (rows, columns), so that row `i` becomes its row `order(i)`.
    ///
    /// Q4_0, Q4_1, Q5_0 and Q8_0 keep every bit; Q4_K's scales are rounded to half precision; everything
    /// else is rounded to 8 bits with one scale for 32 weights.
    pub fn new(
        tensor: &QTensor,
        order: impl Fn(usize) -> usize + Sync,
        pool: &Pool,
        arena: &mut Arena,
    ) -> Result<Packed, LmError> {
        let (rows, columns) = tensor.shape().dims2()?;
        let dtype = tensor.dtype();
        let data = tensor.data()?;
        let wide = match dtype {
            GgmlDType::Q4_0 | GgmlDType::Q4_1 | GgmlDType::Q4K | GgmlDType::Q5_0 | GgmlDType::Q8_0 => None,
            _ => Some(tensor.dequantize(&Device::Cpu)?.flatten_all()?.to_vec1::<f32>()?),
        };
        let row_bytes = data.len() / rows;
        let runs = columns.div_ceil(COLUMNS);
        // Reads run `run` of row `row`.
        let read = |row: usize, run: usize| -> Run {
            let row = order(row);
            match &wide {
                Some(wide) => rounded(&wide[row * columns + run * COLUMNS..(row + 1) * columns]),
                None => decoded(dtype, &data[row * row_bytes..(row + 1) * row_bytes], run),
            }
        };
        let exact = !matches!(dtype, GgmlDType::Q4K) && wide.is_none();
        let unit = if exact {
            1.0
        } else {
            let greatest = (0..rows)
                .flat_map(|row| (0..runs).map(move |run| (row, run)))
                .map(|(row, run)| {
                    let run = read(row, run);
                    run.scale.abs().max(run.min.abs())
                })
                .filter(|x| x.is_finite())
                .fold(0f32, f32::max);
            // The greatest scale becomes 1024 to 2048.
            if greatest > 0.0 {
                2f32.powi(greatest.log2().floor() as i32 - 10)
            } else {
                1.0
            }
        };
        let half = |x: f32| f16::from_f32(x / unit).to_bits();
        let n_blocks = rows.div_ceil(LANES) * runs;
        let blocks = if fits_nibbles(dtype) {
            let mut blocks = arena.zeroed(n_blocks);
            pool.parts(&mut blocks, runs, |tile, blocks: &mut [NibbleBlock]| {
                for lane in 0..LANES.min(rows - tile * LANES) {
                    for (run, block) in blocks.iter_mut().enumerate() {
                        let run = read(tile * LANES + lane, run);
                        block.scale[lane] = half(run.scale);
                        block.min[lane] = half(run.min);
                        for (at, &q) in run.quants.iter().enumerate() {
                            block.quants[at / 8][lane][at % 2] |= (q as u16) << (at % 8 / 2 * 4);
                        }
                    }
                }
            });
            Blocks::Nibbles(blocks)
        } else {
            let mut blocks = arena.zeroed(n_blocks);
            pool.parts(&mut blocks, runs, |tile, blocks: &mut [ByteBlock]| {
                for lane in 0..LANES.min(rows - tile * LANES) {
                    for (run, block) in blocks.iter_mut().enumerate() {
                        let run = read(tile * LANES + lane, run);
                        block.scale[lane] = half(run.scale);
                        for (at, &q) in run.quants.iter().enumerate() {
                            block.quants[at / 4][lane][at % 2] |= u16::from(q as u8) << (at % 4 / 2 * 8);
                        }
                    }
                }
            });
            Blocks::Bytes(blocks)
        };
        Ok(Packed {
            rows,
            columns,
            unit,
            blocks,
        })
    }

    /// Blocks from one row of blocks to the next.
    pub(super) fn runs(&self) -> usize {
        self.columns.div_ceil(COLUMNS)
    }

    /// Weights of one row, as numbers. Panics if there is no such row or `out` is not `columns` long.
    pub fn row(&self, row: usize, out: &mut [f32]) {
        assert!(
            row < self.rows && out.len() == self.columns,
            "row {row} of {}",
            self.rows
        );
        let (first, lane) = (row / LANES * self.runs(), row % LANES);
        for (run, out) in out.chunks_mut(COLUMNS).enumerate() {
            match &self.blocks {
                Blocks::Nibbles(blocks) => {
                    let block = &blocks[first + run];
                    let (scale, min) = (float(block.scale[lane]) * self.unit, float(block.min[lane]) * self.unit);
                    for (at, out) in out.iter_mut().enumerate() {
                        let q = block.quants[at / 8][lane][at % 2] >> (at % 8 / 2 * 4) & 15;
                        *out = scale * f32::from(q) + min;
                    }
                }
                Blocks::Bytes(blocks) => {
                    let block = &blocks[first + run];
                    let scale = float(block.scale[lane]) * self.unit;
                    for (at, out) in out.iter_mut().enumerate() {
                        let q = block.quants[at / 4][lane][at % 2] >> (at % 4 / 2 * 8);
                        *out = scale * f32::from(q as i8);
                    }
                }
            }
        }
    }

    /// Bytes that a matrix of a file's type will have.
    pub fn bytes_of(dtype: GgmlDType, rows: usize, columns: usize) -> usize {
        let block = if fits_nibbles(dtype) {
            size_of::<NibbleBlock>()
        } else {
            size_of::<ByteBlock>()
        };
        rows.div_ceil(LANES) * columns.div_ceil(COLUMNS) * block
    }

    /// Bytes that one product reads.
    pub fn bytes(&self) -> usize {
        match &self.blocks {
            Blocks::Nibbles(blocks) => std::mem::size_of_val(&blocks[..]),
            Blocks::Bytes(blocks) => std::mem::size_of_val(&blocks[..]),
        }
    }
}

/// Whether 4 bits hold a file's weights.
fn fits_nibbles(dtype: GgmlDType) -> bool {
    matches!(dtype, GgmlDType::Q4_0 | GgmlDType::Q4_1 | GgmlDType::Q4K)
}

fn float(bits: u16) -> f32 {
    f16::from_bits(bits).to_f32()
}

/// Run `run` of a row in a file's own blocks. Layouts: ggml's `block_q4_0`, `block_q4_1`, `block_q5_0`,
/// `block_q8_0` and `block_q4_K`.
fn decoded(dtype: GgmlDType, row: &[u8], run: usize) -> Run {
    let half = |bytes: &[u8]| f16::from_le_bytes([bytes[0], bytes[1]]).to_f32();
    // Sixteen bytes hold 32 nibbles: the low halves come first.
    let nibbles =
        |bytes: &[u8]| -> [i16; COLUMNS] { std::array::from_fn(|at| i16::from(bytes[at % 16] >> (at / 16 * 4) & 15)) };
    match dtype {
        GgmlDType::Q4_0 => {
            let block = &row[run * 18..][..18];
            let scale = half(block);
            Run {
                scale,
                min: -8.0 * scale,
                quants: nibbles(&block[2..]),
            }
        }
        GgmlDType::Q4_1 => {
            let block = &row[run * 20..][..20];
            Run {
                scale: half(block),
                min: half(&block[2..]),
                quants: nibbles(&block[4..]),
            }
        }
        GgmlDType::Q5_0 => {
            let block = &row[run * 22..][..22];
            let fifth = u32::from_le_bytes([block[2], block[3], block[4], block[5]]);
            let mut quants = nibbles(&block[6..]);
            for (at, q) in quants.iter_mut().enumerate() {
                *q += (fifth >> at & 1) as i16 * 16 - 16;
            }
            Run {
                scale: half(block),
                min: 0.0,
                quants,
            }
        }
        GgmlDType::Q8_0 => {
            let block = &row[run * 34..][..34];
            Run {
                scale: half(block),
                min: 0.0,
                quants: std::array::from_fn(|at| i16::from(block[2 + at] as i8)),
            }
        }
        _ => {
            // Q4_K: eight runs share two scales and twelve bytes of 6-bit multipliers.
            let block = &row[run / 8 * 144..][..144];
            let (packed, part) = (&block[4..16], run % 8);
            let (multiplier, offset) = if part < 4 {
                (packed[part] & 63, packed[part + 4] & 63)
            } else {
                (
                    packed[part + 4] & 15 | packed[part - 4] >> 6 << 4,
                    packed[part + 4] >> 4 | packed[part] >> 6 << 4,
                )
            };
            let bytes = &block[16 + part / 2 * 32..][..32];
            Run {
                scale: half(block) * f32::from(multiplier),
                min: -half(&block[2..]) * f32::from(offset),
                quants: std::array::from_fn(|at| i16::from(bytes[at] >> (part % 2 * 4) & 15)),
            }
        }
    }
}

/// The first 32 numbers, or as many as there are, rounded to 8 bits with one scale.
fn rounded(weights: &[f32]) -> Run {
    let weights = &weights[..COLUMNS.min(weights.len())];
    let greatest = weights.iter().fold(0f32, |most, w| most.max(w.abs()));
    let scale = greatest / 127.0;
    let mut quants = [0; COLUMNS];
    if scale > 0.0 {
        for (q, w) in quants.iter_mut().zip(weights) {
            *q = (w / scale).round_ties_even().clamp(-127.0, 127.0) as i16;
        }
    }
    Run {
        scale,
        min: 0.0,
        quants,
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use candle_core::Tensor;
    use gym::Seed;

    #[test]
    fn rows_read_back_as_the_file_has_them() {
        let (rows, columns) = (21, 256);
        let mut rng = Seed(4).rng();
        let data: Vec<f32> = (0..rows * columns).map(|_| rng.next_f64() as f32 - 0.4).collect();
        let dense = Tensor::from_vec(data, (rows, columns), &Device::Cpu).unwrap();
        let pool = Pool::new(2);
        for (dtype, tolerance) in [
            (GgmlDType::Q4_0, 0.0),
            (GgmlDType::Q4_1, 0.0),
            (GgmlDType::Q5_0, 0.0),
            (GgmlDType::Q8_0, 0.0),
            (GgmlDType::Q4K, 1e-3),
            (GgmlDType::Q5_1, 3e-3),
            (GgmlDType::Q5K, 3e-3),
            (GgmlDType::Q6K, 3e-3),
            (GgmlDType::F16, 3e-3),
            (GgmlDType::BF16, 3e-3),
            (GgmlDType::F32, 3e-3),
        ] {
            let tensor = QTensor::quantize(&dense, dtype).unwrap();
            let want: Vec<f32> = tensor
                .dequantize(&Device::Cpu)
                .unwrap()
                .flatten_all()
                .unwrap()
                .to_vec1()
                .unwrap();
            let packed = Packed::new(&tensor, |row| (row + 1) % rows, &pool, &mut Arena::default()).unwrap();
            let mut got = vec![0.0; columns];
            for row in 0..rows {
                packed.row((row + rows - 1) % rows, &mut got);
                for (got, want) in got.iter().zip(&want[row * columns..]) {
                    assert!((got - want).abs() <= tolerance + 1e-7, "{dtype:?}: {got} {want}");
                }
            }
        }
    }
}
