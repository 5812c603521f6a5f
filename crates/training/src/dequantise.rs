//! Numbers of quantised rows. The formats that small models come in are read here, with vectors; all
//! others by candle.

use std::ops::Range;

use candle_core::quantized::{GgmlDType, QTensor, ggml_file};
use candle_core::{CpuStorage, Device, Storage};

use crate::Result;
use crate::elementwise::vectorised;

/// Writes rows of `weights`, one after the other, to `numbers`.
pub(crate) fn dequantise(weights: &QTensor, rows: Range<usize>, numbers: &mut Vec<f32>) -> Result<()> {
    let (all, columns) = weights.shape().dims2()?;
    let bytes = weights.data()?;
    let row_bytes = bytes.len() / all;
    let bytes = &bytes[rows.start * row_bytes..rows.end * row_bytes];
    numbers.resize(rows.len() * columns, 0.0);
    match weights.dtype() {
        GgmlDType::Q4_0 => blocks::<18>(bytes, numbers, |block, out| {
            nibbles(block, 2, out, half(block, 0), |q, scale| (q - 8.0) * scale);
        }),
        GgmlDType::Q4_1 => blocks::<20>(bytes, numbers, |block, out| {
            let least = half(block, 2);
            nibbles(block, 4, out, half(block, 0), |q, scale| q * scale + least);
        }),
        GgmlDType::Q8_0 => blocks::<34>(bytes, numbers, |block, out| {
            let scale = half(block, 0);
            for (out, &q) in out.iter_mut().zip(&block[2..]) {
                *out = f32::from(q as i8) * scale;
            }
        }),
        dtype => {
            let part = ggml_file::qtensor_from_ggml(dtype, bytes, vec![rows.len(), columns], &Device::Cpu)?;
            let dense = part.dequantize(&Device::Cpu)?;
            let (storage, _) = dense.storage_and_layout();
            let Storage::Cpu(CpuStorage::F32(dense)) = &*storage else {
                unreachable!("dequantised on the processor as f32");
            };
            numbers.copy_from_slice(dense);
        }
    }
    Ok(())
}

/// Reads blocks of `N` bytes that hold 32 numbers each.
fn blocks<const N: usize>(bytes: &[u8], numbers: &mut [f32], read: impl Fn(&[u8; N], &mut [f32; 32])) {
    vectorised(
        #[inline(always)]
        || {
            let blocks = bytes.as_chunks::<N>().0.iter();
            blocks
                .zip(numbers.as_chunks_mut::<32>().0)
                .for_each(|(block, out)| read(block, out));
        },
    );
}

/// Sixteen bytes from `start` on: the first half of the numbers in their low nibbles, the second in the high ones.
#[inline(always)]
fn nibbles<const N: usize>(
    block: &[u8; N],
    start: usize,
    out: &mut [f32; 32],
    scale: f32,
    value: impl Fn(f32, f32) -> f32,
) {
    let (low, high) = out.split_at_mut(16);
    for ((low, high), byte) in low.iter_mut().zip(high).zip(&block[start..start + 16]) {
        *low = value(f32::from(byte & 15), scale);
        *high = value(f32::from(byte >> 4), scale);
    }
}

/// The half-precision number at a byte.
#[inline(always)]
fn half<const N: usize>(block: &[u8; N], at: usize) -> f32 {
    let bits = u32::from(u16::from_le_bytes([block[at], block[at + 1]]));
    // Its exponent and mantissa as those of an f32 are 2^112 too small.
    let magnitude = f32::from_bits((bits & 0x7fff) << 13) * f32::from_bits((112 + 127) << 23);
    let finite = bits & 0x7c00 != 0x7c00;
    f32::from_bits(
        if finite {
            magnitude.to_bits()
        } else {
            f32::NAN.to_bits()
        } | (bits & 0x8000) << 16,
    )
}

#[cfg(test)]
mod tests {
    use super::*;
    use candle_core::Tensor;
    use gym::Seed;

    #[test]
    fn numbers_are_those_of_candle() -> Result<()> {
        let mut rng = Seed(1).rng();
        let (rows, columns) = (7, 256);
        let dense: Vec<f32> = (0..rows * columns)
            .map(|_| (rng.next_f64() as f32 - 0.5) * 1e-3)
            .collect();
        let dense = Tensor::from_vec(dense, (rows, columns), &Device::Cpu)?;
        for dtype in [
            GgmlDType::Q4_0,
            GgmlDType::Q4_1,
            GgmlDType::Q8_0,
            GgmlDType::Q6K,
            GgmlDType::F16,
        ] {
            let weights = QTensor::quantize(&dense, dtype)?;
            let theirs: Vec<f32> = weights.dequantize(&Device::Cpu)?.flatten_all()?.to_vec1()?;
            let mut ours = vec![9.0; 3];
            dequantise(&weights, 2..6, &mut ours)?;
            assert_eq!(ours, theirs[2 * columns..6 * columns], "{dtype:?}");
        }
        Ok(())
    }
}
