//! Seeds derived by coordinates: the same question, step and candidate draw the same numbers in any
//! order, batch or process.

use serde::{Deserialize, Serialize};

#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(transparent)]
pub struct Seed(pub u64);

impl Seed {
    /// A seed for a named part (a question id, a purpose).
    pub fn derive_str(self, name: &str) -> Seed {
        // FNV-1a over the bytes, then mixed with the parent.
        let hash = name.bytes().fold(0xcbf2_9ce4_8422_2325u64, |h, b| {
            (h ^ u64::from(b)).wrapping_mul(0x0000_0100_0000_01b3)
        });
        self.derive(hash)
    }

    /// A seed for a numbered part (a step, a candidate).
    pub fn derive(self, index: u64) -> Seed {
        let mut rng = SplitMix64(self.0 ^ index.wrapping_mul(0x9e37_79b9_7f4a_7c15));
        rng.next_u64();
        Seed(rng.next_u64())
    }

    pub fn rng(self) -> SplitMix64 {
        SplitMix64(self.0)
    }
}

/// SplitMix64 (Steele, Lea, Flood 2014): small, fast, and good enough for sampling tokens and bootstraps.
#[derive(Clone, Debug)]
pub struct SplitMix64(u64);

impl SplitMix64 {
    pub fn next_u64(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut z = self.0;
        z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        z ^ (z >> 31)
    }

    /// Uniform in [0, 1).
    pub fn next_f64(&mut self) -> f64 {
        (self.next_u64() >> 11) as f64 / (1u64 << 53) as f64
    }

    /// Uniform in `0..n`; `n` must be positive. The bias of the multiply is below 2^-32 for n < 2^32.
    pub fn below(&mut self, n: usize) -> usize {
        ((u128::from(self.next_u64()) * n as u128) >> 64) as usize
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn different_coordinates_draw_differently_and_equal_ones_equally() {
        let run = Seed(7);
        let a = run.derive_str("q1").derive(0).derive(3);
        assert_eq!(a, run.derive_str("q1").derive(0).derive(3));
        for other in [
            run.derive_str("q1").derive(3).derive(0),
            run.derive_str("q2").derive(0).derive(3),
        ] {
            assert_ne!(a, other);
        }
    }
}
