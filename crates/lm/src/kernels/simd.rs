//! Vectors of sixteen numbers, in the words of each instruction set.

/// Sixteen lanes of f32 (`F`), of i32 sums (`I`), and of pairs of 16-bit numbers (`P`).
///
/// # Safety
///
/// Every method: the processor must have the instructions of the implementing set. Pointers must be
/// good for sixteen numbers or pairs; they need no alignment.
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
    type P: Copy;

    unsafe fn splat(x: f32) -> Self::F;
    unsafe fn load(from: *const f32) -> Self::F;
    unsafe fn store(to: *mut f32, x: Self::F);
    /// Loads sixteen half-precision numbers.
    unsafe fn load_half(from: *const u16) -> Self::F;
    unsafe fn load_pairs(from: *const u16) -> Self::P;
    /// The first numbers of sixteen pairs of bfloat16 numbers, and the second ones.
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
    /// The sum of the lanes, in one order for every instruction set: the upper half is added to the lower one until
    /// one lane is left.
    #[inline(always)]
    unsafe fn total(x: Self::F) -> f32 {
        let mut lanes = [0f32; 16];
        // SAFETY: the array holds sixteen numbers; the caller vouches for the instructions.
        unsafe { Self::store(lanes.as_mut_ptr(), x) };
        for width in [8, 4, 2, 1] {
            for i in 0..width {
                lanes[i] += lanes[i + width];
            }
        }
        lanes[0]
    }
    /// `2^n` where `x = n + 1.5 * 2^23`, and 0 for `n = -127`.
    unsafe fn power_of_two(x: Self::F) -> Self::F;

    /// Writes the low half of each lane's bits, 32 of them.
    unsafe fn store_halves(to: *mut u16, low: Self::F, high: Self::F);
    /// Asks for the cache line at this address, which need not be one that may be read.
    #[inline(always)]
    unsafe fn prefetch(at: *const u8) {
        let _ = at;
    }
    /// The nibble from bit `FROM` on of each 16-bit number.
    unsafe fn nibbles<const FROM: u32>(x: Self::P) -> Self::P;
    /// The low byte of each 16-bit number, as a signed number, and the high one.
    unsafe fn low_bytes(x: Self::P) -> Self::P;
    unsafe fn high_bytes(x: Self::P) -> Self::P;
    unsafe fn zero() -> Self::I;
    /// Adds to each lane the dot product of its pair with the pair at `x`, all of them signed. Not both pairs may hold
    /// -32768 alone.
    unsafe fn dot(sum: Self::I, weights: Self::P, x: *const u32) -> Self::I;
    unsafe fn floats(sum: Self::I) -> Self::F;
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
    unsafe fn store_halves(to: *mut u16, low: Self::F, high: Self::F) {
        let halves = [low, high].map(|x| each(|i| x[i].to_bits() as u16));
        // SAFETY: the caller vouches for 32 numbers.
        unsafe { to.cast::<[[u16; 16]; 2]>().write_unaligned(halves) };
    }

    #[inline(always)]
    unsafe fn nibbles<const FROM: u32>(x: Self::P) -> Self::P {
        each(|i| x[i].map(|half| half >> FROM & 15))
    }
    #[inline(always)]
    unsafe fn low_bytes(x: Self::P) -> Self::P {
        each(|i| x[i].map(|half| half as i8 as u16))
    }
    #[inline(always)]
    unsafe fn high_bytes(x: Self::P) -> Self::P {
        each(|i| x[i].map(|half| (half as i16 >> 8) as u16))
    }
    #[inline(always)]
    unsafe fn zero() -> Self::I {
        [0; 16]
    }
    #[inline(always)]
    unsafe fn dot(sum: Self::I, weights: Self::P, x: *const u32) -> Self::I {
        // SAFETY: the trait's contract.
        let x = unsafe { *x };
        let (x, y) = (i32::from(x as i16), x as i32 >> 16);
        each(|i| {
            let [a, b] = weights[i].map(|half| i32::from(half as i16));
            sum[i] + a * x + b * y
        })
    }
    #[inline(always)]
    unsafe fn floats(sum: Self::I) -> Self::F {
        each(|i| sum[i] as f32)
    }
}
