//! Vectors in the instructions of x86-64.

use std::arch::asm;
use std::arch::x86_64::*;

use super::simd::Simd;

/// Pairs of 256-bit vectors; sixteen registers. With `VNNI`, `vpdpwssd` adds two products to a sum at once.
#[derive(Clone, Copy)]
pub(super) struct Avx2<const VNNI: bool>;

/// 512-bit vectors, thirty-two registers, `vpdpwssd`; with `BF16`, `vdpbf16ps` too.
#[derive(Clone, Copy)]
pub(super) struct Avx512<const BF16: bool>;

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
    unsafe fn total(x: Self::F) -> f32 {
        unsafe { total(_mm256_add_ps(x[0], x[1])) }
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
    unsafe fn store_halves(to: *mut u16, low: Self::F, high: Self::F) {
        for (at, x) in [low, high].into_iter().enumerate() {
            unsafe {
                let halves = both!(x => _mm256_and_si256(_mm256_castps_si256(x), _mm256_set1_epi32(0xffff)));
                // The two vectors come out interleaved by quarters.
                let packed = _mm256_permute4x64_epi64::<0b11_01_10_00>(_mm256_packus_epi32(halves[0], halves[1]));
                _mm256_storeu_si256(to.add(16 * at).cast(), packed);
            }
        }
    }

    #[inline(always)]
    unsafe fn prefetch(at: *const u8) {
        // SAFETY: a hint; it reads nothing that the program sees.
        unsafe { _mm_prefetch::<_MM_HINT_T0>(at.cast()) };
    }
    #[inline(always)]
    unsafe fn nibbles<const FROM: u32>(x: Self::P) -> Self::P {
        unsafe {
            both!(x => _mm256_and_si256(_mm256_srl_epi16(x, _mm_cvtsi32_si128(FROM as i32)), _mm256_set1_epi16(15)))
        }
    }
    #[inline(always)]
    unsafe fn low_bytes(x: Self::P) -> Self::P {
        unsafe { both!(x => _mm256_srai_epi16::<8>(_mm256_slli_epi16::<8>(x))) }
    }
    #[inline(always)]
    unsafe fn high_bytes(x: Self::P) -> Self::P {
        unsafe { both!(x => _mm256_srai_epi16::<8>(x)) }
    }
    #[inline(always)]
    unsafe fn zero() -> Self::I {
        unsafe { [_mm256_setzero_si256(); 2] }
    }
    #[inline(always)]
    unsafe fn dot(sum: Self::I, weights: Self::P, x: *const u32) -> Self::I {
        unsafe {
            let x = _mm256_set1_epi32(*x as i32);
            if VNNI {
                both!(sum, weights => _mm256_dpwssd_avx_epi32(sum, weights, x))
            } else {
                both!(sum, weights => _mm256_add_epi32(sum, _mm256_madd_epi16(weights, x)))
            }
        }
    }
    #[inline(always)]
    unsafe fn floats(sum: Self::I) -> Self::F {
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
    unsafe fn total(x: __m512) -> f32 {
        unsafe {
            let upper = _mm512_castps_pd(x);
            let upper = _mm256_castpd_ps(_mm512_extractf64x4_pd::<1>(upper));
            total(_mm256_add_ps(_mm512_castps512_ps256(x), upper))
        }
    }
    #[inline(always)]
    unsafe fn power_of_two(x: __m512) -> __m512 {
        unsafe {
            let n = _mm512_slli_epi32::<23>(_mm512_castps_si512(x));
            _mm512_castsi512_ps(_mm512_add_epi32(n, _mm512_set1_epi32(127 << 23)))
        }
    }

    #[inline(always)]
    unsafe fn store_halves(to: *mut u16, low: __m512, high: __m512) {
        // Every other one of 64 halves.
        static EVEN: [u16; 32] = {
            let mut even = [0; 32];
            let mut at = 0;
            while at < 32 {
                even[at] = 2 * at as u16;
                at += 1;
            }
            even
        };
        unsafe {
            let even = _mm512_loadu_si512(EVEN.as_ptr().cast());
            let halves = _mm512_permutex2var_epi16(_mm512_castps_si512(low), even, _mm512_castps_si512(high));
            _mm512_storeu_si512(to.cast(), halves);
        }
    }

    #[inline(always)]
    unsafe fn prefetch(at: *const u8) {
        // SAFETY: a hint; it reads nothing that the program sees.
        unsafe { _mm_prefetch::<_MM_HINT_T0>(at.cast()) };
    }
    #[inline(always)]
    unsafe fn nibbles<const FROM: u32>(x: __m512i) -> __m512i {
        unsafe { _mm512_and_si512(_mm512_srli_epi16::<FROM>(x), _mm512_set1_epi16(15)) }
    }
    #[inline(always)]
    unsafe fn low_bytes(x: __m512i) -> __m512i {
        unsafe { _mm512_srai_epi16::<8>(_mm512_slli_epi16::<8>(x)) }
    }
    #[inline(always)]
    unsafe fn high_bytes(x: __m512i) -> __m512i {
        unsafe { _mm512_srai_epi16::<8>(x) }
    }
    #[inline(always)]
    unsafe fn zero() -> __m512i {
        unsafe { _mm512_setzero_si512() }
    }
    #[inline(always)]
    unsafe fn dot(sum: __m512i, weights: __m512i, x: *const u32) -> __m512i {
        unsafe { dot_broadcast(sum, weights, x) }
    }
    #[inline(always)]
    unsafe fn floats(sum: __m512i) -> __m512 {
        unsafe { _mm512_cvtepi32_ps(sum) }
    }
}

/// The sum of eight lanes, halves first.
#[inline]
#[target_feature(enable = "avx")]
fn total(x: __m256) -> f32 {
    let x = _mm_add_ps(_mm256_castps256_ps128(x), _mm256_extractf128_ps::<1>(x));
    let x = _mm_add_ps(x, _mm_movehl_ps(x, x));
    _mm_cvtss_f32(_mm_add_ss(x, _mm_movehdup_ps(x)))
}

/// One instruction that reads the pair, broadcasts, multiplies and adds. Written out, because the compiler takes the
/// intrinsic apart again into a broadcast, a product and a sum: what a block of weights takes grows by a fifth.
#[inline]
#[target_feature(enable = "avx512f,avx512vnni")]
unsafe fn dot_broadcast(mut sum: __m512i, weights: __m512i, x: *const u32) -> __m512i {
    // SAFETY: it reads the four bytes at `x`, which the caller vouches for, and writes its own register alone.
    unsafe {
        asm!(
            "vpdpwssd {sum}, {weights}, dword ptr [{x}]{{1to16}}",
            sum = inout(zmm_reg) sum,
            weights = in(zmm_reg) weights,
            x = in(reg) x,
            options(pure, readonly, nostack, preserves_flags),
        );
    }
    sum
}
