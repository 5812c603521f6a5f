//! Intervals and tests for means over questions; deterministic for a seed.

use serde::{Deserialize, Serialize};

use crate::Seed;

/// A mean with its 95 % percentile bootstrap interval.
#[derive(Clone, Copy, Debug, PartialEq, Serialize, Deserialize)]
pub struct Interval {
    pub mean: f64,
    pub low: f64,
    pub high: f64,
}

/// The mean difference `a - b` over the same questions.
#[derive(Clone, Copy, Debug, PartialEq, Serialize, Deserialize)]
pub struct PairedTest {
    pub mean: f64,
    pub low: f64,
    pub high: f64,
    /// Two-sided sign-flip permutation p value, `(count + 1) / (n + 1)`.
    pub p: f64,
}

const RESAMPLES: usize = 2_000;
const PERMUTATIONS: usize = 9_999;

/// `None` where there is nothing to average: no values, no resamples, or a value that is not finite.
pub fn bootstrap_mean(values: &[f64], resamples: usize, seed: Seed) -> Option<Interval> {
    if values.is_empty() || resamples == 0 || values.iter().any(|value| !value.is_finite()) {
        return None;
    }
    let n = values.len();
    let mut rng = seed.derive_str("bootstrap").rng();
    let mut means: Vec<f64> = (0..resamples)
        .map(|_| (0..n).map(|_| values[rng.below(n)]).sum::<f64>() / n as f64)
        .collect();
    means.sort_by(f64::total_cmp);
    let low = (0.025 * resamples as f64).floor() as usize;
    let high = (0.975 * resamples as f64).ceil() as usize;
    Some(Interval {
        mean: values.iter().sum::<f64>() / n as f64,
        low: means[low.min(resamples - 1)],
        high: means[high.clamp(1, resamples) - 1],
    })
}

/// Compares two runs question by question; `None` unless both have the same number of finite values,
/// at least one.
pub fn paired_difference(a: &[f64], b: &[f64], seed: Seed) -> Option<PairedTest> {
    if a.len() != b.len() {
        return None;
    }
    let differences: Vec<f64> = a.iter().zip(b).map(|(a, b)| a - b).collect();
    let Interval { mean, low, high } = bootstrap_mean(&differences, RESAMPLES, seed)?;
    let observed = differences.iter().sum::<f64>().abs();
    let mut rng = seed.derive_str("sign flip").rng();
    let as_extreme = (0..PERMUTATIONS)
        .filter(|_| {
            let mut bits = 0u64;
            let mut sum = 0.0;
            for (idx, difference) in differences.iter().enumerate() {
                if idx % 64 == 0 {
                    bits = rng.next_u64();
                }
                sum += if bits & 1 == 1 { *difference } else { -difference };
                bits >>= 1;
            }
            // Sums in another order differ in the last bits.
            sum.abs() >= observed - 1e-9
        })
        .count();
    Some(PairedTest {
        mean,
        low,
        high,
        p: (as_extreme + 1) as f64 / (PERMUTATIONS + 1) as f64,
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn equal_values_have_a_point_interval() {
        let interval = bootstrap_mean(&[0.5; 20], 500, Seed(1)).unwrap();
        assert_eq!(
            interval,
            Interval {
                mean: 0.5,
                low: 0.5,
                high: 0.5
            }
        );
    }

    #[test]
    fn a_coin_has_the_normal_interval() {
        let values: Vec<f64> = (0..400).map(|i| f64::from(i % 2)).collect();
        let interval = bootstrap_mean(&values, 4000, Seed(3)).unwrap();
        // 1.96 * 0.5 / 20 = 0.049
        assert!(
            (interval.low - 0.451).abs() < 0.006 && (interval.high - 0.549).abs() < 0.006,
            "{interval:?}"
        );
        assert_eq!(Some(interval), bootstrap_mean(&values, 4000, Seed(3)));
    }

    #[test]
    fn nothing_to_average_is_none() {
        assert_eq!(bootstrap_mean(&[], 100, Seed(0)), None);
        assert_eq!(bootstrap_mean(&[f64::NAN], 100, Seed(0)), None);
        assert_eq!(bootstrap_mean(&[1.0], 0, Seed(0)), None);
        assert_eq!(paired_difference(&[1.0], &[], Seed(0)), None);
        assert_eq!(bootstrap_mean(&[1.0], 1, Seed(0)).unwrap().high, 1.0);
    }

    #[test]
    fn equal_runs_do_not_differ_and_p_is_one() {
        let a = [0.0, 1.0, 0.3];
        let test = paired_difference(&a, &a, Seed(0)).unwrap();
        assert_eq!((test.mean, test.p), (0.0, 1.0));
    }

    #[test]
    fn p_of_n_wins_in_n_is_two_in_two_to_the_n() {
        let test = paired_difference(&[1.0; 6], &[0.0; 6], Seed(5)).unwrap();
        assert!((test.p - 2.0 / 64.0).abs() < 0.006, "{test:?}");
        let swapped = paired_difference(&[0.0; 6], &[1.0; 6], Seed(5)).unwrap();
        assert_eq!((test.p, test.mean), (swapped.p, -swapped.mean));
        assert!(paired_difference(&[1.0; 100], &[0.0; 100], Seed(5)).unwrap().p <= 1e-4);
    }
}
