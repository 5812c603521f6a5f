//! Vectors in the instructions that every 64-bit Arm processor has.

use std::arch::aarch64::*;
use std::arch::asm;

use super::simd::Simd;

/// Four 128-bit vectors; thirty-two registers. Pairs lie apart, eight first numbers to a vector and eight second ones,
/// as the instruction that multiplies 16-bit numbers into sums of 32 bits takes them.
#[derive(Clone, Copy)]
pub(super) struct Neon;

/// Sixteen pairs: first numbers of the pairs, then second ones.
type Pairs = [[uint16x8_t; 2]; 2];

#[inline(always)]
fn each<T: Copy, U>(x: [T; 4], f: impl Fn(T) -> U) -> [U; 4] {
    x.map(f)
}

#[inline(always)]
fn two<T: Copy, U>(a: [T; 4], b: [T; 4], f: impl Fn(T, T) -> U) -> [U; 4] {
    std::array::from_fn(|i| f(a[i], b[i]))
}

#[inline(always)]
fn numbers(x: Pairs, f: impl Fn(uint16x8_t) -> uint16x8_t) -> Pairs {
    x.map(|side| side.map(&f))
}

/// Numbers of 16 bits, bfloat16 ones, as the upper halves of floats.
#[inline(always)]
unsafe fn widened(x: [uint16x8_t; 2]) -> [float32x4_t; 4] {
    unsafe {
        [
            vreinterpretq_f32_u32(vshll_n_u16::<16>(vget_low_u16(x[0]))),
            vreinterpretq_f32_u32(vshll_n_u16::<16>(vget_high_u16(x[0]))),
            vreinterpretq_f32_u32(vshll_n_u16::<16>(vget_low_u16(x[1]))),
            vreinterpretq_f32_u32(vshll_n_u16::<16>(vget_high_u16(x[1]))),
        ]
    }
}

// SAFETY of every block below: the trait's contract gives the instructions and the memory.
impl Simd for Neon {
    // Eight sums of 32 bits, eight of floats; eight registers of weights and as many to work with.
    const TOKENS: usize = 2;
    // Sixteen sums, eight registers of columns.
    const ROWS: usize = 4;
    const COLUMNS: usize = 1;
    const PAIRS: bool = false;
    type F = [float32x4_t; 4];
    type I = [int32x4_t; 4];
    type P = Pairs;

    #[inline(always)]
    unsafe fn splat(x: f32) -> Self::F {
        unsafe { [vdupq_n_f32(x); 4] }
    }
    #[inline(always)]
    unsafe fn load(from: *const f32) -> Self::F {
        unsafe {
            [
                vld1q_f32(from),
                vld1q_f32(from.add(4)),
                vld1q_f32(from.add(8)),
                vld1q_f32(from.add(12)),
            ]
        }
    }
    #[inline(always)]
    unsafe fn store(to: *mut f32, x: Self::F) {
        unsafe {
            vst1q_f32(to, x[0]);
            vst1q_f32(to.add(4), x[1]);
            vst1q_f32(to.add(8), x[2]);
            vst1q_f32(to.add(12), x[3]);
        }
    }
    #[inline(always)]
    unsafe fn load_half(from: *const u16) -> Self::F {
        std::array::from_fn(|i| unsafe {
            let halves = vld1_u16(from.add(4 * i));
            let floats: float32x4_t;
            // The intrinsic takes half-precision numbers, which the language has not yet.
            asm!(
                "fcvtl {floats:v}.4s, {halves:v}.4h",
                floats = out(vreg) floats,
                halves = in(vreg) halves,
                options(pure, nomem, nostack, preserves_flags),
            );
            floats
        })
    }
    #[inline(always)]
    unsafe fn load_pairs(from: *const u16) -> Pairs {
        unsafe {
            let (a, b) = (vld2q_u16(from), vld2q_u16(from.add(16)));
            [[a.0, b.0], [a.1, b.1]]
        }
    }
    #[inline(always)]
    unsafe fn pair(from: *const f32) -> Pairs {
        unsafe {
            let [first, second] = from.cast::<[u16; 2]>().read();
            [[vdupq_n_u16(first); 2], [vdupq_n_u16(second); 2]]
        }
    }
    #[inline(always)]
    unsafe fn firsts(x: Pairs) -> Self::F {
        unsafe { widened(x[0]) }
    }
    #[inline(always)]
    unsafe fn seconds(x: Pairs) -> Self::F {
        unsafe { widened(x[1]) }
    }
    #[inline(always)]
    unsafe fn add(a: Self::F, b: Self::F) -> Self::F {
        two(a, b, |a, b| unsafe { vaddq_f32(a, b) })
    }
    #[inline(always)]
    unsafe fn mul(a: Self::F, b: Self::F) -> Self::F {
        two(a, b, |a, b| unsafe { vmulq_f32(a, b) })
    }
    #[inline(always)]
    unsafe fn fma(a: Self::F, b: Self::F, c: Self::F) -> Self::F {
        std::array::from_fn(|i| unsafe { vfmaq_f32(c[i], a[i], b[i]) })
    }
    #[inline(always)]
    unsafe fn max(a: Self::F, b: Self::F) -> Self::F {
        two(a, b, |a, b| unsafe { vbslq_f32(vcgtq_f32(a, b), a, b) })
    }
    #[inline(always)]
    unsafe fn greatest(x: Self::F) -> f32 {
        unsafe { vmaxvq_f32(vmaxq_f32(vmaxq_f32(x[0], x[1]), vmaxq_f32(x[2], x[3]))) }
    }
    #[inline(always)]
    unsafe fn power_of_two(x: Self::F) -> Self::F {
        each(x, |x| unsafe {
            let n = vshlq_n_u32::<23>(vreinterpretq_u32_f32(x));
            vreinterpretq_f32_u32(vaddq_u32(n, vdupq_n_u32(127 << 23)))
        })
    }

    #[inline(always)]
    unsafe fn store_halves(to: *mut u16, low: Self::F, high: Self::F) {
        for (at, x) in [low, high].into_iter().enumerate() {
            unsafe {
                let x = each(x, |x| vmovn_u32(vreinterpretq_u32_f32(x)));
                vst1q_u16(to.add(16 * at), vcombine_u16(x[0], x[1]));
                vst1q_u16(to.add(16 * at + 8), vcombine_u16(x[2], x[3]));
            }
        }
    }

    #[inline(always)]
    unsafe fn prefetch(at: *const u8) {
        // SAFETY: a hint; it reads nothing that the program sees.
        unsafe { asm!("prfm pldl1keep, [{at}]", at = in(reg) at, options(readonly, nostack, preserves_flags)) };
    }
    #[inline(always)]
    unsafe fn nibbles<const FROM: u32>(x: Pairs) -> Pairs {
        // Shifted by the content of a register, which may be nothing.
        numbers(x, |x| unsafe {
            let shifted = vshlq_u16(x, vdupq_n_s16(-(FROM as i16)));
            vandq_u16(shifted, vdupq_n_u16(15))
        })
    }
    #[inline(always)]
    unsafe fn low_bytes(x: Pairs) -> Pairs {
        numbers(x, |x| unsafe {
            vreinterpretq_u16_s16(vshrq_n_s16::<8>(vreinterpretq_s16_u16(vshlq_n_u16::<8>(x))))
        })
    }
    #[inline(always)]
    unsafe fn high_bytes(x: Pairs) -> Pairs {
        numbers(x, |x| unsafe {
            vreinterpretq_u16_s16(vshrq_n_s16::<8>(vreinterpretq_s16_u16(x)))
        })
    }
    #[inline(always)]
    unsafe fn zero() -> Self::I {
        unsafe { [vdupq_n_s32(0); 4] }
    }
    #[inline(always)]
    unsafe fn dot(sum: Self::I, weights: Pairs, x: *const u32) -> Self::I {
        unsafe {
            // Both activations in one register; the instruction picks one of them.
            let x = vreinterpret_s16_u32(vdup_n_u32(*x));
            let [firsts, seconds] = weights.map(|side| side.map(|w| vreinterpretq_s16_u16(w)));
            let mut sums = sum;
            for i in 0..2 {
                let (low, high) = (2 * i, 2 * i + 1);
                sums[low] = vmlal_lane_s16::<0>(sums[low], vget_low_s16(firsts[i]), x);
                sums[high] = vmlal_high_lane_s16::<0>(sums[high], firsts[i], x);
                sums[low] = vmlal_lane_s16::<1>(sums[low], vget_low_s16(seconds[i]), x);
                sums[high] = vmlal_high_lane_s16::<1>(sums[high], seconds[i], x);
            }
            sums
        }
    }
    #[inline(always)]
    unsafe fn floats(sum: Self::I) -> Self::F {
        sum.map(|sum| unsafe { vcvtq_f32_s32(sum) })
    }
}
