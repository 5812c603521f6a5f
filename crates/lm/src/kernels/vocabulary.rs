//! Passes over the logits of a whole vocabulary.

use super::Level;
use super::level::Kernel;
use super::simd::{Simd, exp, total};

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
            let mut last = [f32::NEG_INFINITY; 16];
            let (whole, rest) = stretch.as_chunks::<16>();
            last[..rest.len()].copy_from_slice(rest);
            // SAFETY: each chunk holds sixteen numbers; the caller vouches for `S`.
            unsafe {
                let minus = S::splat(-most);
                let mut lanes = exp::<S>(S::add(S::load(last.as_ptr()), minus));
                for x in whole {
                    lanes = S::add(lanes, exp::<S>(S::add(S::load(x.as_ptr()), minus)));
                }
                sum += f64::from(total::<S>(lanes));
            }
        }
        sum
    }
}

/// The sum of `exp(x - most)`; those that are no numbers count as nothing. `most` must be at least the greatest.
pub fn exponential_sum(level: Level, x: &[f32], most: f32) -> f64 {
    level.run(Exponentials(x, most))
}

struct Weights<'a> {
    x: &'a mut [f32],
    most: f32,
    inverse: f32,
    least: f32,
}

impl Kernel for Weights<'_> {
    type Output = ();

    #[inline(always)]
    unsafe fn run<S: Simd>(self) {
        let Weights {
            x,
            most,
            inverse,
            least,
        } = self;
        // Sixteen numbers, or what is left of them.
        for part in x.chunks_mut(16) {
            let mut lanes = [f32::NEG_INFINITY; 16];
            lanes[..part.len()].copy_from_slice(part);
            // SAFETY: `lanes` holds sixteen numbers; the caller vouches for `S`.
            unsafe {
                let x = S::mul(S::add(S::load(lanes.as_ptr()), S::splat(-most)), S::splat(inverse));
                S::store(lanes.as_mut_ptr(), exp::<S>(x));
            }
            for (x, weight) in part.iter_mut().zip(lanes) {
                *x = if weight >= least { weight } else { 0.0 };
            }
        }
    }
}

/// Replaces each number by `exp((x - most) * inverse)`, or by 0 if that is less than `least`. `most` must be
/// at least the greatest, `inverse` positive.
pub fn weights(level: Level, x: &mut [f32], most: f32, inverse: f32, least: f32) {
    level.run(Weights {
        x,
        most,
        inverse,
        least,
    });
}
