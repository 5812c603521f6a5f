//! Passes over the logits of a whole vocabulary.

use super::Level;
use super::level::Kernel;
use super::simd::{Simd, exp};

struct Greatest<'a>(&'a [f32]);

impl Kernel for Greatest<'_> {
    type Output = f32;

    #[inline(always)]
    unsafe fn run<S: Simd>(self) -> f32 {
        let (whole, rest) = self.0.as_chunks::<16>();
        // SAFETY: each chunk holds sixteen numbers; the caller vouches for `S`.
        let most = unsafe {
            let mut most = S::splat(f32::NEG_INFINITY);
            for x in whole {
                most = S::max(S::load(x.as_ptr()), most);
            }
            S::greatest(most)
        };
        rest.iter().fold(most, |most, &x| if x > most { x } else { most })
    }
}

/// The greatest number; those that are none are passed over.
pub fn greatest(level: Level, x: &[f32]) -> f32 {
    level.run(Greatest(x))
}

struct Exponentials<'a>(&'a [f32], f32);

impl Kernel for Exponentials<'_> {
    type Output = f64;

    #[inline(always)]
    unsafe fn run<S: Simd>(self) -> f64 {
        let Exponentials(x, most) = self;
        let mut sum = 0f64;
        // Short stretches keep the rounding of the f32 sums small.
        for stretch in x.chunks(1024) {
            let (whole, rest) = stretch.as_chunks::<16>();
            let last = filled(rest);
            // SAFETY: each chunk holds sixteen numbers; the caller vouches for `S`.
            unsafe {
                let minus = S::splat(-most);
                let mut lanes = exp::<S>(S::add(S::load(last.as_ptr()), minus));
                for x in whole {
                    lanes = S::add(lanes, exp::<S>(S::add(S::load(x.as_ptr()), minus)));
                }
                sum += f64::from(S::total(lanes));
            }
        }
        sum
    }
}

/// The sum of `exp(x - most)`; those that are no numbers count as nothing. `most` must be at least the greatest.
pub fn exponential_sum(level: Level, x: &[f32], most: f32) -> f64 {
    level.run(Exponentials(x, most))
}

/// How numbers become weights: `exp((x - most) * inverse)`, or 0 where that is less than `least`.
#[derive(Clone, Copy)]
pub struct Weighing {
    /// At least the greatest number.
    pub most: f32,
    /// Of the temperature; positive.
    pub inverse: f32,
    pub least: f32,
}

impl Weighing {
    #[inline(always)]
    unsafe fn of<S: Simd>(self, x: S::F) -> S::F {
        // SAFETY: `lanes` holds sixteen numbers; the caller vouches for `S`.
        unsafe {
            let weights = exp::<S>(S::mul(S::add(x, S::splat(-self.most)), S::splat(self.inverse)));
            if self.least <= 0.0 {
                return weights;
            }
            let mut lanes = [0f32; 16];
            S::store(lanes.as_mut_ptr(), weights);
            let lanes = lanes.map(|weight| if weight >= self.least { weight } else { 0.0 });
            S::load(lanes.as_ptr())
        }
    }
}

/// The numbers that are left of sixteen, and others whose weight is 0.
#[inline(always)]
fn filled(rest: &[f32]) -> [f32; 16] {
    let mut lanes = [f32::NEG_INFINITY; 16];
    lanes[..rest.len()].copy_from_slice(rest);
    lanes
}

struct Weights<'a>(&'a mut [f32], Weighing);

impl Kernel for Weights<'_> {
    type Output = ();

    #[inline(always)]
    unsafe fn run<S: Simd>(self) {
        let Weights(x, weighing) = self;
        let (whole, rest) = x.as_chunks_mut::<16>();
        // SAFETY: each chunk holds sixteen numbers, as does what `filled` makes; the caller vouches for `S`.
        unsafe {
            for x in whole {
                S::store(x.as_mut_ptr(), weighing.of::<S>(S::load(x.as_ptr())));
            }
            let mut lanes = filled(rest);
            S::store(lanes.as_mut_ptr(), weighing.of::<S>(S::load(lanes.as_ptr())));
            rest.copy_from_slice(&lanes[..rest.len()]);
        }
    }
}

/// Replaces each number by its weight.
pub fn weights(level: Level, x: &mut [f32], weighing: Weighing) {
    level.run(Weights(x, weighing));
}

/// Numbers whose weights are summed together.
pub const STRETCH: usize = 256;

struct Sums<'a>(&'a [f32], Weighing, &'a mut Vec<f64>);

impl Kernel for Sums<'_> {
    type Output = ();

    #[inline(always)]
    unsafe fn run<S: Simd>(self) {
        let Sums(x, weighing, sums) = self;
        sums.clear();
        for stretch in x.chunks(STRETCH) {
            let mut lanes = [0f32; 16];
            let (whole, rest) = stretch.as_chunks::<16>();
            // SAFETY: each chunk holds sixteen numbers, as does what `filled` makes; the caller vouches for `S`.
            unsafe {
                let mut sum = S::splat(0.0);
                for x in whole {
                    sum = S::add(sum, weighing.of::<S>(S::load(x.as_ptr())));
                }
                if !rest.is_empty() {
                    sum = S::add(sum, weighing.of::<S>(S::load(filled(rest).as_ptr())));
                }
                S::store(lanes.as_mut_ptr(), sum);
            }
            sums.push(lanes.into_iter().map(f64::from).sum());
        }
    }
}

/// Fills `sums` with the sum of the weights of each [`STRETCH`] numbers.
pub fn weight_sums(level: Level, x: &[f32], weighing: Weighing, sums: &mut Vec<f64>) {
    level.run(Sums(x, weighing, sums));
}
