//! Vectors of sixteen numbers, in the words of each instruction set.

/// Sixteen lanes of f32 (`F`), of i32 sums (`I`), and sixteen groups of four bytes (`B`).
///
/// # Safety
///
/// Every method: the processor must have the instructions of the implementing set. Pointers must be
/// good for sixteen numbers (64 bytes for `bytes`); they need no alignment.
pub trait Simd: Copy {
    /// Tokens whose sums of a quantised product fit the registers together.
    const TOKENS: usize;
    /// Rows and vectors of columns whose sums of a float product fit the registers together.
    const ROWS: usize;
    const COLUMNS: usize;

    /// Whether an instruction adds the products of pairs of bfloat16 numbers.
    const PAIRS: bool;

    type F: Copy;
    type I: Copy;
    type B: Copy;
    /// Sixteen pairs of bfloat16 numbers.
    type P: Copy;

    unsafe fn splat(x: f32) -> Self::F;
    unsafe fn load(from: *const f32) -> Self::F;
    unsafe fn store(to: *mut f32, x: Self::F);
    /// Loads sixteen half-precision numbers.
    unsafe fn load_half(from: *const u16) -> Self::F;
    /// Loads sixteen pairs of bfloat16 numbers.
    unsafe fn load_pairs(from: *const u16) -> Self::P;
    /// The first numbers of sixteen pairs, and the second ones.
    unsafe fn firsts(x: Self::P) -> Self::F;
    unsafe fn seconds(x: Self::P) -> Self::F;
    /// The pair of bfloat16 numbers that lie at `from`, in every lane.
    unsafe fn pair(from: *const f32) -> Self::P;
    /// Adds to each lane the dot product of two pairs. Only where [`Simd::PAIRS`].
    #[inline(always)]
    unsafe fn dot_pairs(sum: Self::F, a: Self::P, b: Self::P) -> Self::F {
        let _ = (a, b);
        sum
    }
    /// Rounds 32 numbers to bfloat16 and writes them as sixteen pairs to the front of where they were read. Does
    /// nothing unless [`Simd::PAIRS`].
    #[inline(always)]
    unsafe fn pack(from: *const f32, to: *mut f32) {
        let _ = (from, to);
    }
    unsafe fn add(a: Self::F, b: Self::F) -> Self::F;
    unsafe fn mul(a: Self::F, b: Self::F) -> Self::F;
    /// `a * b + c`, rounded once (except [`Portable`], which may round twice).
    unsafe fn fma(a: Self::F, b: Self::F, c: Self::F) -> Self::F;
    /// The greater; `b` if either is not a number.
    unsafe fn max(a: Self::F, b: Self::F) -> Self::F;
    unsafe fn greatest(x: Self::F) -> f32;
    /// `2^n` where `x = n + 1.5 * 2^23`, and 0 for `n = -127`.
    unsafe fn power_of_two(x: Self::F) -> Self::F;

    /// Writes the lowest byte of each lane's bits, and returns the sum of those bytes taken as signed.
    unsafe fn store_low_bytes(to: *mut u8, x: Self::F) -> i32;

    unsafe fn bytes(from: *const u8) -> Self::B;
    /// Asks for the cache line at this address, which need not be one that may be read.
    #[inline(always)]
    unsafe fn prefetch(at: *const u8) {
        let _ = at;
    }
    unsafe fn low_nibbles(x: Self::B) -> Self::B;
    unsafe fn high_nibbles(x: Self::B) -> Self::B;
    unsafe fn zero() -> Self::I;
    /// Adds to each lane the dot product of its four nibbles with the four signed bytes of `x`. At most
    /// eight may be added before [`Simd::nibble_sums`] is taken.
    unsafe fn dot_nibbles(sum: Self::I, weights: Self::B, x: u32) -> Self::I;
    unsafe fn nibble_sums(sum: Self::I) -> Self::F;
    /// A sum for [`Simd::dot_bytes`] over activations that add up to `total`.
    unsafe fn start_bytes(total: i32) -> Self::I;
    /// Adds to each lane the dot product of its four weights, stored 128 too high, with the signed bytes
    /// of `x`, which lie in -127..=127.
    unsafe fn dot_bytes(sum: Self::I, weights: Self::B, x: u32) -> Self::I;
    unsafe fn byte_sums(sum: Self::I) -> Self::F;
}

/// `exp(x)` for x <= 0 within 3e-7 of the true value, and exactly 0 below -87.7.
///
/// # Safety
///
/// The processor must have the instructions of `S`.
#[inline(always)]
pub unsafe fn exp<S: Simd>(x: S::F) -> S::F {
    const ROUND: f32 = 12_582_912.0; // 1.5 * 2^23: adding it leaves an integer in the low bits
    // SAFETY: the caller vouches for `S`.
    unsafe {
        let x = S::max(x, S::splat(-88.02));
        let shifted = S::fma(x, S::splat(std::f32::consts::LOG2_E), S::splat(ROUND));
        let n = S::add(shifted, S::splat(-ROUND));
        // ln 2 in two parts, the first with few bits, so that the product with n is exact.
        let r = S::fma(n, S::splat(-0.693_359_4), x);
        let r = S::fma(n, S::splat(2.121_944_4e-4), r);
        let mut p = S::splat(1.388_889e-3);
        for c in [8.333_333e-3, 4.166_666_7e-2, 0.166_666_67, 0.5, 1.0, 1.0] {
            p = S::fma(p, r, S::splat(c));
        }
        S::mul(p, S::power_of_two(shifted))
    }
}

/// The sum of the lanes, in one order for every instruction set.
///
/// # Safety
///
/// The processor must have the instructions of `S`.
#[inline(always)]
pub unsafe fn total<S: Simd>(x: S::F) -> f32 {
    let mut lanes = [0f32; 16];
    // SAFETY: the array holds sixteen numbers; the caller vouches for `S`.
    unsafe { S::store(lanes.as_mut_ptr(), x) };
    let mut width = 8;
    while width > 0 {
        for i in 0..width {
            lanes[i] += lanes[i + width];
        }
        width /= 2;
    }
    lanes[0]
}

/// Plain arrays, which the compiler turns into whatever the target always has.
#[derive(Clone, Copy)]
pub struct Portable;

#[inline(always)]
fn each<T: Copy>(f: impl Fn(usize) -> T) -> [T; 16] {
    std::array::from_fn(f)
}

/// Fused where that is an instruction rather than a slow library call.
#[inline(always)]
fn fused(a: f32, b: f32, c: f32) -> f32 {
    if cfg!(any(target_arch = "aarch64", target_feature = "fma")) {
        a.mul_add(b, c)
    } else {
        a * b + c
    }
}

impl Simd for Portable {
    const TOKENS: usize = 2;
    const ROWS: usize = 2;
    const COLUMNS: usize = 1;
    const PAIRS: bool = false;
    type F = [f32; 16];
    type I = [i32; 16];
    type B = [[u8; 4]; 16];
    type P = [[u16; 2]; 16];

    #[inline(always)]
    unsafe fn splat(x: f32) -> Self::F {
        [x; 16]
    }
    #[inline(always)]
    unsafe fn load(from: *const f32) -> Self::F {
        // SAFETY: the caller vouches for sixteen numbers.
        unsafe { from.cast::<[f32; 16]>().read_unaligned() }
    }
    #[inline(always)]
    unsafe fn store(to: *mut f32, x: Self::F) {
        // SAFETY: the caller vouches for sixteen numbers.
        unsafe { to.cast::<[f32; 16]>().write_unaligned(x) }
    }
    #[inline(always)]
    unsafe fn load_half(from: *const u16) -> Self::F {
        // SAFETY: the caller vouches for sixteen numbers.
        let halves = unsafe { from.cast::<[u16; 16]>().read_unaligned() };
        each(|i| half::f16::from_bits(halves[i]).to_f32())
    }
    #[inline(always)]
    unsafe fn load_pairs(from: *const u16) -> Self::P {
        // SAFETY: the caller vouches for sixteen pairs.
        unsafe { from.cast::<Self::P>().read_unaligned() }
    }
    #[inline(always)]
    unsafe fn pair(from: *const f32) -> Self::P {
        // SAFETY: the caller vouches for a pair.
        [unsafe { from.cast::<[u16; 2]>().read() }; 16]
    }
    #[inline(always)]
    unsafe fn firsts(x: Self::P) -> Self::F {
        each(|i| f32::from_bits(u32::from(x[i][0]) << 16))
    }
    #[inline(always)]
    unsafe fn seconds(x: Self::P) -> Self::F {
        each(|i| f32::from_bits(u32::from(x[i][1]) << 16))
    }
    #[inline(always)]
    unsafe fn add(a: Self::F, b: Self::F) -> Self::F {
        each(|i| a[i] + b[i])
    }
    #[inline(always)]
    unsafe fn mul(a: Self::F, b: Self::F) -> Self::F {
        each(|i| a[i] * b[i])
    }
    #[inline(always)]
    unsafe fn fma(a: Self::F, b: Self::F, c: Self::F) -> Self::F {
        each(|i| fused(a[i], b[i], c[i]))
    }
    #[inline(always)]
    unsafe fn max(a: Self::F, b: Self::F) -> Self::F {
        each(|i| if a[i] > b[i] { a[i] } else { b[i] })
    }
    #[inline(always)]
    unsafe fn greatest(x: Self::F) -> f32 {
        x.into_iter().fold(f32::NEG_INFINITY, |a, b| if a > b { a } else { b })
    }
    #[inline(always)]
    unsafe fn power_of_two(x: Self::F) -> Self::F {
        each(|i| f32::from_bits((x[i].to_bits() << 23).wrapping_add(127 << 23)))
    }

    #[inline(always)]
    unsafe fn store_low_bytes(to: *mut u8, x: Self::F) -> i32 {
        let bytes = each(|i| x[i].to_bits() as u8);
        // SAFETY: the caller vouches for sixteen bytes.
        unsafe { to.cast::<[u8; 16]>().write_unaligned(bytes) };
        bytes.iter().map(|&byte| i32::from(byte as i8)).sum()
    }

    #[inline(always)]
    unsafe fn bytes(from: *const u8) -> Self::B {
        // SAFETY: the caller vouches for 64 bytes.
        unsafe { from.cast::<Self::B>().read_unaligned() }
    }
    #[inline(always)]
    unsafe fn low_nibbles(x: Self::B) -> Self::B {
        each(|i| x[i].map(|byte| byte & 15))
    }
    #[inline(always)]
    unsafe fn high_nibbles(x: Self::B) -> Self::B {
        each(|i| x[i].map(|byte| byte >> 4))
    }
    #[inline(always)]
    unsafe fn zero() -> Self::I {
        [0; 16]
    }
    #[inline(always)]
    unsafe fn dot_nibbles(sum: Self::I, weights: Self::B, x: u32) -> Self::I {
        let x = x.to_le_bytes().map(|byte| i32::from(byte as i8));
        each(|i| {
            let w = weights[i].map(i32::from);
            sum[i] + w[0] * x[0] + w[1] * x[1] + w[2] * x[2] + w[3] * x[3]
        })
    }
    #[inline(always)]
    unsafe fn nibble_sums(sum: Self::I) -> Self::F {
        each(|i| sum[i] as f32)
    }
    #[inline(always)]
    unsafe fn start_bytes(total: i32) -> Self::I {
        [-128 * total; 16]
    }
    #[inline(always)]
    unsafe fn dot_bytes(sum: Self::I, weights: Self::B, x: u32) -> Self::I {
        // SAFETY: plain arithmetic.
        unsafe { Self::dot_nibbles(sum, weights, x) }
    }
    #[inline(always)]
    unsafe fn byte_sums(sum: Self::I) -> Self::F {
        each(|i| sum[i] as f32)
    }
}

#[cfg(target_arch = "x86_64")]
pub use x86::{Avx2, Avx512};

#[cfg(target_arch = "x86_64")]
mod x86 {
    use super::Simd;
    use std::arch::x86_64::*;

    /// Pairs of 256-bit vectors; sixteen registers. With `VNNI`, `vpdpbusd` sums four products at once.
    #[derive(Clone, Copy)]
    pub struct Avx2<const VNNI: bool>;

    /// 512-bit vectors, thirty-two registers, `vpdpbusd`; with `BF16`, `vdpbf16ps` too.
    #[derive(Clone, Copy)]
    pub struct Avx512<const BF16: bool>;

    macro_rules! both {
        ($a:ident, $b:ident => $op:expr) => {
            [
                {
                    let ($a, $b) = ($a[0], $b[0]);
                    $op
                },
                {
                    let ($a, $b) = ($a[1], $b[1]);
                    $op
                },
            ]
        };
        ($a:ident => $op:expr) => {
            [
                {
                    let $a = $a[0];
                    $op
                },
                {
                    let $a = $a[1];
                    $op
                },
            ]
        };
    }

    /// Sum of sixteen signed bytes.
    #[inline(always)]
    unsafe fn sum_of_bytes(x: __m128i) -> i32 {
        // SAFETY: every processor of this architecture has these instructions.
        unsafe {
            // Sums of unsigned bytes, each 128 too high.
            let sums = _mm_sad_epu8(_mm_xor_si128(x, _mm_set1_epi8(-128)), _mm_setzero_si128());
            _mm_cvtsi128_si32(sums) + _mm_extract_epi16::<4>(sums) - 16 * 128
        }
    }

    // SAFETY of every block below: the trait's contract gives the instructions and the memory.
    impl<const VNNI: bool> Simd for Avx2<VNNI> {
        // Six sums of 32 bits, six of floats, two of weights, and two to work with.
        const TOKENS: usize = 3;
        // Eight sums, two of columns, and broadcast rows.
        const ROWS: usize = 4;
        const COLUMNS: usize = 1;
        const PAIRS: bool = false;
        type F = [__m256; 2];
        type I = [__m256i; 2];
        type B = [__m256i; 2];
        type P = [__m256i; 2];

        #[inline(always)]
        unsafe fn splat(x: f32) -> Self::F {
            unsafe { [_mm256_set1_ps(x); 2] }
        }
        #[inline(always)]
        unsafe fn load(from: *const f32) -> Self::F {
            unsafe { [_mm256_loadu_ps(from), _mm256_loadu_ps(from.add(8))] }
        }
        #[inline(always)]
        unsafe fn store(to: *mut f32, x: Self::F) {
            unsafe {
                _mm256_storeu_ps(to, x[0]);
                _mm256_storeu_ps(to.add(8), x[1]);
            }
        }
        #[inline(always)]
        unsafe fn load_half(from: *const u16) -> Self::F {
            unsafe {
                [
                    _mm256_cvtph_ps(_mm_loadu_si128(from.cast())),
                    _mm256_cvtph_ps(_mm_loadu_si128(from.add(8).cast())),
                ]
            }
        }
        #[inline(always)]
        unsafe fn load_pairs(from: *const u16) -> Self::P {
            unsafe { [_mm256_loadu_si256(from.cast()), _mm256_loadu_si256(from.add(16).cast())] }
        }
        #[inline(always)]
        unsafe fn pair(from: *const f32) -> Self::P {
            unsafe { [_mm256_set1_epi32(from.cast::<i32>().read()); 2] }
        }
        #[inline(always)]
        unsafe fn firsts(x: Self::P) -> Self::F {
            unsafe { both!(x => _mm256_castsi256_ps(_mm256_slli_epi32::<16>(x))) }
        }
        #[inline(always)]
        unsafe fn seconds(x: Self::P) -> Self::F {
            unsafe { both!(x => _mm256_castsi256_ps(_mm256_and_si256(x, _mm256_set1_epi32(-65536)))) }
        }
        #[inline(always)]
        unsafe fn add(a: Self::F, b: Self::F) -> Self::F {
            unsafe { both!(a, b => _mm256_add_ps(a, b)) }
        }
        #[inline(always)]
        unsafe fn mul(a: Self::F, b: Self::F) -> Self::F {
            unsafe { both!(a, b => _mm256_mul_ps(a, b)) }
        }
        #[inline(always)]
        unsafe fn fma(a: Self::F, b: Self::F, c: Self::F) -> Self::F {
            unsafe { [_mm256_fmadd_ps(a[0], b[0], c[0]), _mm256_fmadd_ps(a[1], b[1], c[1])] }
        }
        #[inline(always)]
        unsafe fn max(a: Self::F, b: Self::F) -> Self::F {
            unsafe { both!(a, b => _mm256_max_ps(a, b)) }
        }
        #[inline(always)]
        unsafe fn greatest(x: Self::F) -> f32 {
            unsafe {
                let x = _mm256_max_ps(x[0], x[1]);
                let x = _mm_max_ps(_mm256_castps256_ps128(x), _mm256_extractf128_ps::<1>(x));
                let x = _mm_max_ps(x, _mm_movehl_ps(x, x));
                _mm_cvtss_f32(_mm_max_ss(x, _mm_movehdup_ps(x)))
            }
        }
        #[inline(always)]
        unsafe fn power_of_two(x: Self::F) -> Self::F {
            unsafe {
                both!(x => {
                    let n = _mm256_slli_epi32::<23>(_mm256_castps_si256(x));
                    _mm256_castsi256_ps(_mm256_add_epi32(n, _mm256_set1_epi32(127 << 23)))
                })
            }
        }

        #[inline(always)]
        unsafe fn store_low_bytes(to: *mut u8, x: Self::F) -> i32 {
            unsafe {
                // The lowest byte of each lane to the front of its half, then the four bytes of both halves together.
                let order = _mm256_set_epi8(
                    -1, -1, -1, -1, -1, -1, -1, -1, -1, -1, -1, -1, 12, 8, 4, 0, -1, -1, -1, -1, -1, -1, -1, -1, -1,
                    -1, -1, -1, 12, 8, 4, 0,
                );
                let bytes = both!(x => {
                    let packed = _mm256_shuffle_epi8(_mm256_castps_si256(x), order);
                    _mm_unpacklo_epi32(_mm256_castsi256_si128(packed), _mm256_extracti128_si256::<1>(packed))
                });
                let bytes = _mm_unpacklo_epi64(bytes[0], bytes[1]);
                _mm_storeu_si128(to.cast(), bytes);
                sum_of_bytes(bytes)
            }
        }

        #[inline(always)]
        unsafe fn prefetch(at: *const u8) {
            // SAFETY: a hint; it reads nothing that the program sees.
            unsafe { _mm_prefetch::<_MM_HINT_T0>(at.cast()) };
        }
        #[inline(always)]
        unsafe fn bytes(from: *const u8) -> Self::B {
            unsafe { [_mm256_loadu_si256(from.cast()), _mm256_loadu_si256(from.add(32).cast())] }
        }
        #[inline(always)]
        unsafe fn low_nibbles(x: Self::B) -> Self::B {
            unsafe { both!(x => _mm256_and_si256(x, _mm256_set1_epi8(15))) }
        }
        #[inline(always)]
        unsafe fn high_nibbles(x: Self::B) -> Self::B {
            unsafe { both!(x => _mm256_and_si256(_mm256_srli_epi16::<4>(x), _mm256_set1_epi8(15))) }
        }
        #[inline(always)]
        unsafe fn zero() -> Self::I {
            unsafe { [_mm256_setzero_si256(); 2] }
        }
        #[inline(always)]
        unsafe fn dot_nibbles(sum: Self::I, weights: Self::B, x: u32) -> Self::I {
            unsafe {
                let x = _mm256_set1_epi32(x as i32);
                if VNNI {
                    both!(sum, weights => _mm256_dpbusd_avx_epi32(sum, weights, x))
                } else {
                    // Pairs of products stay in 16 bits: eight of at most 2 * 15 * 127 fit.
                    both!(sum, weights => _mm256_add_epi16(sum, _mm256_maddubs_epi16(weights, x)))
                }
            }
        }
        #[inline(always)]
        unsafe fn nibble_sums(sum: Self::I) -> Self::F {
            unsafe {
                if VNNI {
                    both!(sum => _mm256_cvtepi32_ps(sum))
                } else {
                    both!(sum => _mm256_cvtepi32_ps(_mm256_madd_epi16(sum, _mm256_set1_epi16(1))))
                }
            }
        }
        #[inline(always)]
        unsafe fn start_bytes(total: i32) -> Self::I {
            unsafe {
                [if VNNI {
                    _mm256_set1_epi32(-128 * total)
                } else {
                    _mm256_setzero_si256()
                }; 2]
            }
        }
        #[inline(always)]
        unsafe fn dot_bytes(sum: Self::I, weights: Self::B, x: u32) -> Self::I {
            unsafe {
                let x = _mm256_set1_epi32(x as i32);
                if VNNI {
                    both!(sum, weights => _mm256_dpbusd_avx_epi32(sum, weights, x))
                } else {
                    // |w| times x with the sign of w: pairs reach 2 * 128 * 127 at most, within 16 bits.
                    both!(sum, weights => {
                        let w = _mm256_xor_si256(weights, _mm256_set1_epi8(-128));
                        let pairs = _mm256_maddubs_epi16(_mm256_abs_epi8(w), _mm256_sign_epi8(x, w));
                        _mm256_add_epi32(sum, _mm256_madd_epi16(pairs, _mm256_set1_epi16(1)))
                    })
                }
            }
        }
        #[inline(always)]
        unsafe fn byte_sums(sum: Self::I) -> Self::F {
            unsafe { both!(sum => _mm256_cvtepi32_ps(sum)) }
        }
    }

    impl<const BF16: bool> Simd for Avx512<BF16> {
        // Twelve integer and twelve float sums leave eight registers for weights, scales and work.
        const TOKENS: usize = 12;
        // Twenty-four sums, two vectors of columns.
        const ROWS: usize = 12;
        const COLUMNS: usize = 2;
        const PAIRS: bool = BF16;
        type F = __m512;
        type I = __m512i;
        type B = __m512i;
        type P = __m512i;

        #[inline(always)]
        unsafe fn splat(x: f32) -> __m512 {
            unsafe { _mm512_set1_ps(x) }
        }
        #[inline(always)]
        unsafe fn load(from: *const f32) -> __m512 {
            unsafe { _mm512_loadu_ps(from) }
        }
        #[inline(always)]
        unsafe fn store(to: *mut f32, x: __m512) {
            unsafe { _mm512_storeu_ps(to, x) }
        }
        #[inline(always)]
        unsafe fn load_half(from: *const u16) -> __m512 {
            unsafe { _mm512_cvtph_ps(_mm256_loadu_si256(from.cast())) }
        }
        #[inline(always)]
        unsafe fn load_pairs(from: *const u16) -> __m512i {
            unsafe { _mm512_loadu_si512(from.cast()) }
        }
        #[inline(always)]
        unsafe fn firsts(x: __m512i) -> __m512 {
            unsafe { _mm512_castsi512_ps(_mm512_slli_epi32::<16>(x)) }
        }
        #[inline(always)]
        unsafe fn seconds(x: __m512i) -> __m512 {
            unsafe { _mm512_castsi512_ps(_mm512_and_si512(x, _mm512_set1_epi32(-65536))) }
        }
        #[inline(always)]
        unsafe fn pair(from: *const f32) -> __m512i {
            unsafe { _mm512_set1_epi32(from.cast::<i32>().read()) }
        }
        #[inline(always)]
        unsafe fn dot_pairs(sum: __m512, a: __m512i, b: __m512i) -> __m512 {
            if !BF16 {
                return sum;
            }
            unsafe {
                let a = std::mem::transmute::<__m512i, __m512bh>(a);
                _mm512_dpbf16_ps(sum, std::mem::transmute::<__m512i, __m512bh>(b), a)
            }
        }
        #[inline(always)]
        unsafe fn pack(from: *const f32, to: *mut f32) {
            if BF16 {
                unsafe {
                    let (low, high) = (_mm512_loadu_ps(from), _mm512_loadu_ps(from.add(16)));
                    let pairs = std::mem::transmute::<__m512bh, __m512i>(_mm512_cvtne2ps_pbh(high, low));
                    _mm512_storeu_si512(to.cast(), pairs);
                }
            }
        }
        #[inline(always)]
        unsafe fn add(a: __m512, b: __m512) -> __m512 {
            unsafe { _mm512_add_ps(a, b) }
        }
        #[inline(always)]
        unsafe fn mul(a: __m512, b: __m512) -> __m512 {
            unsafe { _mm512_mul_ps(a, b) }
        }
        #[inline(always)]
        unsafe fn fma(a: __m512, b: __m512, c: __m512) -> __m512 {
            unsafe { _mm512_fmadd_ps(a, b, c) }
        }
        #[inline(always)]
        unsafe fn max(a: __m512, b: __m512) -> __m512 {
            unsafe { _mm512_max_ps(a, b) }
        }
        #[inline(always)]
        unsafe fn greatest(x: __m512) -> f32 {
            unsafe { _mm512_reduce_max_ps(x) }
        }
        #[inline(always)]
        unsafe fn power_of_two(x: __m512) -> __m512 {
            unsafe {
                let n = _mm512_slli_epi32::<23>(_mm512_castps_si512(x));
                _mm512_castsi512_ps(_mm512_add_epi32(n, _mm512_set1_epi32(127 << 23)))
            }
        }

        #[inline(always)]
        unsafe fn store_low_bytes(to: *mut u8, x: __m512) -> i32 {
            unsafe {
                let bytes = _mm512_cvtepi32_epi8(_mm512_castps_si512(x));
                _mm_storeu_si128(to.cast(), bytes);
                sum_of_bytes(bytes)
            }
        }

        #[inline(always)]
        unsafe fn prefetch(at: *const u8) {
            // SAFETY: a hint; it reads nothing that the program sees.
            unsafe { _mm_prefetch::<_MM_HINT_T0>(at.cast()) };
        }
        #[inline(always)]
        unsafe fn bytes(from: *const u8) -> __m512i {
            unsafe { _mm512_loadu_si512(from.cast()) }
        }
        #[inline(always)]
        unsafe fn low_nibbles(x: __m512i) -> __m512i {
            unsafe { _mm512_and_si512(x, _mm512_set1_epi8(15)) }
        }
        #[inline(always)]
        unsafe fn high_nibbles(x: __m512i) -> __m512i {
            unsafe { _mm512_and_si512(_mm512_srli_epi16::<4>(x), _mm512_set1_epi8(15)) }
        }
        #[inline(always)]
        unsafe fn zero() -> __m512i {
            unsafe { _mm512_setzero_si512() }
        }
        #[inline(always)]
        unsafe fn dot_nibbles(sum: __m512i, weights: __m512i, x: u32) -> __m512i {
            unsafe { _mm512_dpbusd_epi32(sum, weights, _mm512_set1_epi32(x as i32)) }
        }
        #[inline(always)]
        unsafe fn nibble_sums(sum: __m512i) -> __m512 {
            unsafe { _mm512_cvtepi32_ps(sum) }
        }
        #[inline(always)]
        unsafe fn start_bytes(total: i32) -> __m512i {
            unsafe { _mm512_set1_epi32(-128 * total) }
        }
        #[inline(always)]
        unsafe fn dot_bytes(sum: __m512i, weights: __m512i, x: u32) -> __m512i {
            unsafe { _mm512_dpbusd_epi32(sum, weights, _mm512_set1_epi32(x as i32)) }
        }
        #[inline(always)]
        unsafe fn byte_sums(sum: __m512i) -> __m512 {
            unsafe { _mm512_cvtepi32_ps(sum) }
        }
    }
}
