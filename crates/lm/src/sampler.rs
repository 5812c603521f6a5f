//! Draws one token from logits.

use gym::Sampling;
use gym::seed::SplitMix64;

/// A token and its natural log-probability at temperature 1 over the whole vocabulary.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Draw {
    pub token: u32,
    pub logprob: f32,
}

/// Draws a token that `allowed` admits (all, if `None`); `None` when it admits none.
///
/// `generated` are the sample's tokens so far, for the repetition penalty. Ties go to the lower id.
pub fn draw(
    logits: &[f32],
    allowed: Option<&[bool]>,
    sampling: &Sampling,
    generated: &[u32],
    rng: &mut SplitMix64,
) -> Option<Draw> {
    let clean = |x: f32| if x.is_nan() { f32::NEG_INFINITY } else { x };
    let max = logits.iter().copied().map(clean).fold(f32::NEG_INFINITY, f32::max);
    let sum: f64 = logits.iter().map(|&x| f64::from((clean(x) - max).exp())).sum();
    let log_sum = max + sum.ln() as f32;

    let mut candidates: Vec<(u32, f32)> = logits
        .iter()
        .enumerate()
        .filter(|(id, _)| allowed.is_none_or(|allowed| allowed.get(*id).copied().unwrap_or(false)))
        .map(|(id, &x)| (id as u32, clean(x)))
        .collect();
    if sampling.repetition_penalty != 1.0 && sampling.repetition_penalty > 0.0 {
        let mut seen = generated.to_vec();
        seen.sort_unstable();
        seen.dedup();
        for id in seen {
            if let Ok(at) = candidates.binary_search_by_key(&id, |c| c.0) {
                let x = &mut candidates[at].1;
                *x = if *x > 0.0 {
                    *x / sampling.repetition_penalty
                } else {
                    *x * sampling.repetition_penalty
                };
            }
        }
    }
    let token = pick(candidates, sampling, rng)?;
    Some(Draw {
        token,
        logprob: clean(logits[token as usize]) - log_sum,
    })
}

fn pick(mut candidates: Vec<(u32, f32)>, sampling: &Sampling, rng: &mut SplitMix64) -> Option<u32> {
    let better = |a: &(u32, f32), b: &(u32, f32)| b.1.total_cmp(&a.1).then(a.0.cmp(&b.0));
    let best = *candidates.iter().min_by(|a, b| better(a, b))?;
    if sampling.temperature.is_nan() || sampling.temperature <= 0.0 || best.1 == f32::NEG_INFINITY {
        return Some(best.0);
    }
    let point = rng.next_f64();
    if sampling.top_k > 0 && sampling.top_k < candidates.len() {
        candidates.select_nth_unstable_by(sampling.top_k - 1, better);
        candidates.truncate(sampling.top_k);
    }
    let temperature = f64::from(sampling.temperature);
    let mut weights: Vec<(u32, f64)> = candidates
        .into_iter()
        .map(|(id, x)| (id, (f64::from(x - best.1) / temperature).exp()))
        .filter(|(_, p)| *p > 0.0 && *p >= f64::from(sampling.min_p))
        .collect();
    if sampling.top_p < 1.0 {
        weights.sort_unstable_by(|a, b| b.1.total_cmp(&a.1).then(a.0.cmp(&b.0)));
        let limit = weights.iter().map(|w| w.1).sum::<f64>() * f64::from(sampling.top_p.max(0.0));
        let mut mass = 0.0;
        let keep = weights.iter().position(|w| {
            mass += w.1;
            mass >= limit
        });
        weights.truncate(keep.map_or(weights.len(), |at| at + 1));
    } else if sampling.top_k > 0 {
        // Selection leaves an unspecified order; the draw must not depend on it.
        weights.sort_unstable_by_key(|w| w.0);
    }
    let mut left = point * weights.iter().map(|w| w.1).sum::<f64>();
    for (id, weight) in &weights {
        left -= weight;
        if left < 0.0 {
            return Some(*id);
        }
    }
    weights.last().map(|w| w.0).or(Some(best.0))
}

#[cfg(test)]
mod tests {
    use super::*;
    use gym::Seed;
    use proptest::prelude::*;

    fn sampling(temperature: f32) -> Sampling {
        Sampling {
            temperature,
            ..Sampling::default()
        }
    }

    #[test]
    fn greedy_takes_the_likeliest_allowed_token() {
        let logits = [1.0, 5.0, f32::NAN, 5.0, 2.0];
        let mut rng = Seed(1).rng();
        assert_eq!(draw(&logits, None, &sampling(0.0), &[], &mut rng).unwrap().token, 1);
        let allowed = [true, false, true, false, true];
        assert_eq!(
            draw(&logits, Some(&allowed), &sampling(0.0), &[], &mut rng)
                .unwrap()
                .token,
            4
        );
        assert_eq!(draw(&logits, Some(&[false; 5]), &sampling(0.0), &[], &mut rng), None);
    }

    #[test]
    fn frequencies_follow_the_softmax() {
        let logits = [0.0f32, 1.0, 2.0];
        let mut counts = [0usize; 3];
        let mut rng = Seed(3).rng();
        for _ in 0..30_000 {
            counts[draw(&logits, None, &sampling(1.0), &[], &mut rng).unwrap().token as usize] += 1;
        }
        let z: f64 = logits.iter().map(|x| f64::from(*x).exp()).sum();
        for (count, x) in counts.iter().zip(logits) {
            assert!((*count as f64 / 30_000.0 - f64::from(x).exp() / z).abs() < 0.015);
        }
    }

    #[test]
    fn repetition_penalty_lowers_both_signs() {
        let penalised = Sampling {
            repetition_penalty: 2.0,
            ..Sampling::default()
        };
        let mut rng = Seed(1).rng();
        assert_eq!(draw(&[3.0, 2.0], None, &penalised, &[0], &mut rng).unwrap().token, 1);
        assert_eq!(
            draw(&[-1.0, -1.5], None, &penalised, &[0, 0], &mut rng).unwrap().token,
            1
        );
    }

    proptest! {
        #[test]
        fn truncation_keeps_only_what_it_promises(
            logits in prop::collection::vec(-8f32..8.0, 1..40),
            top_k in 0usize..5, top_p in 0f32..1.2, min_p in 0f32..1.0, temperature in 0.1f32..3.0, seed: u64,
        ) {
            let sampling = Sampling { temperature, top_k, top_p, min_p, ..Sampling::default() };
            let drawn = draw(&logits, None, &sampling, &[], &mut Seed(seed).rng()).unwrap();
            let x = logits[drawn.token as usize];
            let better = logits.iter().filter(|y| **y > x).count();
            prop_assert!(top_k == 0 || better < top_k);
            let max = logits.iter().copied().fold(f32::MIN, f32::max);
            prop_assert!(((x - max) / temperature).exp() >= min_p - 1e-5);
            let z: f64 = logits.iter().map(|y| f64::from(*y).exp()).sum();
            prop_assert!((f64::from(drawn.logprob) - (f64::from(x) - z.ln())).abs() < 1e-4);
            let again = draw(&logits, None, &sampling, &[], &mut Seed(seed).rng()).unwrap();
            prop_assert_eq!(drawn, again);
        }
    }
}
