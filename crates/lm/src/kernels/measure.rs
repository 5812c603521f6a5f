//! What this machine can do at most, measured: the floors that the benchmarks are compared with.

use std::hint::black_box;

use super::Machine;
use super::level::Kernel;
use super::simd::Simd;

/// Peaks of the machine with all threads of its pool.
#[derive(Clone, Copy, Debug, serde::Serialize)]
pub struct Peaks {
    /// Multiplications and additions of f32, thousand millions a second.
    pub f32_gflops: f64,
    /// Multiplications and additions of 16-bit integers, thousand millions a second.
    pub int16_gops: f64,
    /// Thousand million bytes read a second.
    pub read_gb_per_second: f64,
}

const STEPS: usize = 1 << 21;
const SUMS: usize = 12;

impl Peaks {
    /// Takes about half a second. `now` tells the time in seconds.
    pub fn measure(machine: &Machine, now: &dyn Fn() -> f64) -> Peaks {
        let threads = machine.pool.threads();
        let best = |work: &(dyn Fn(usize) + Sync)| {
            (0..5)
                .map(|_| {
                    let start = now();
                    machine.pool.run(threads, work);
                    now() - start
                })
                .fold(f64::INFINITY, f64::min)
        };
        let floats = best(&|_| machine.level.run(Floats));
        let integers = best(&|_| machine.level.run(Integers));
        // Far larger than any cache; each thread reads its own part.
        let data = vec![1u64; (64 << 20) / 8 * threads];
        let reading = best(&|idx| {
            let part = &data[idx * data.len() / threads..(idx + 1) * data.len() / threads];
            let mut sums = [0u64; 16];
            for chunk in part.as_chunks::<16>().0 {
                for (sum, x) in sums.iter_mut().zip(chunk) {
                    *sum = sum.wrapping_add(*x);
                }
            }
            black_box(sums);
        });
        let steps = (threads * STEPS * SUMS) as f64;
        Peaks {
            f32_gflops: steps * 16.0 * 2.0 / floats / 1e9,
            int16_gops: steps * 32.0 * 2.0 / integers / 1e9,
            read_gb_per_second: (data.len() * 8) as f64 / reading / 1e9,
        }
    }
}

struct Floats;

impl Kernel for Floats {
    type Output = ();

    #[inline(always)]
    unsafe fn run<S: Simd>(self) {
        // SAFETY: the caller vouches for `S`; the array holds sixteen numbers.
        unsafe {
            let (x, y) = (S::splat(black_box(0.999)), S::splat(black_box(1e-3)));
            let mut sums = [S::splat(0.0); SUMS];
            for _ in 0..STEPS {
                for sum in &mut sums {
                    *sum = S::fma(*sum, x, y);
                }
            }
            let mut out = [0f32; 16];
            for sum in sums {
                S::store(out.as_mut_ptr(), sum);
                black_box(&out);
            }
        }
    }
}

struct Integers;

impl Kernel for Integers {
    type Output = ();

    #[inline(always)]
    unsafe fn run<S: Simd>(self) {
        // SAFETY: the caller vouches for `S`; the arrays hold sixteen pairs and sixteen numbers.
        unsafe {
            let ones = black_box([1u16; 32]);
            let (weights, x) = (S::load_pairs(ones.as_ptr()), black_box(0x0001_0001));
            let mut sums = [S::zero(); SUMS];
            for _ in 0..STEPS {
                for sum in &mut sums {
                    *sum = S::dot(*sum, weights, &x);
                }
            }
            let mut out = [0f32; 16];
            for sum in sums {
                S::store(out.as_mut_ptr(), S::floats(sum));
                black_box(&out);
            }
        }
    }
}
