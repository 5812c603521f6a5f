//! Draws one token from logits.

use gym::Sampling;
use gym::seed::SplitMix64;

use crate::kernels::{Level, STRETCH, Weighing, exponential_sum, greatest, weight_sums, weights};

/// A token and its natural log-probability at temperature 1 over the whole vocabulary.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Draw {
    pub token: u32,
    pub logprob: f32,
}

/// Room to work in, kept from token to token.
#[derive(Default)]
pub struct Room {
    scores: Vec<f32>,
    sums: Vec<f64>,
}

/// Draws a token that `allowed` admits (all, if `None`); `None` when it admits none.
///
/// `generated` are the sample's tokens so far, for the repetition penalty. Ties go to the lower id. Logits
/// that are no numbers count as impossible.
pub fn draw(
    level: Level,
    logits: &[f32],
    allowed: Option<&[bool]>,
    sampling: &Sampling,
    generated: &[u32],
    rng: &mut SplitMix64,
    room: &mut Room,
) -> Option<Draw> {
    let most = greatest(level, logits);
    let log_sum = most + exponential_sum(level, logits, most).ln() as f32;

    let Room { scores, sums } = room;
    scores.clear();
    if let Some(allowed) = allowed {
        let admit = |(&x, &admitted): (&f32, &bool)| if admitted { x } else { f32::NEG_INFINITY };
        scores.extend(logits.iter().zip(allowed).map(admit));
    }
    let penalty = sampling.repetition_penalty;
    if penalty != 1.0 && penalty > 0.0 {
        copied(scores, logits);
        for (at, &id) in generated.iter().enumerate() {
            if let Some(x) = scores.get_mut(id as usize)
                && !generated[..at].contains(&id)
            {
                *x = if *x > 0.0 { *x / penalty } else { *x * penalty };
            }
        }
    }
    let best = match scores.is_empty() {
        true => most,
        false => greatest(level, scores),
    };
    let chosen = if best == f32::NEG_INFINITY {
        (0..logits.len()).find(|&id| allowed.is_none_or(|allowed| allowed[id]))
    } else if sampling.temperature.is_nan() || sampling.temperature <= 0.0 {
        let scores = if scores.is_empty() { logits } else { scores };
        scores.iter().position(|&x| x == best)
    } else {
        let weighing = Weighing {
            most: best,
            inverse: (1.0 / sampling.temperature).min(f32::MAX),
            // The likeliest token always stays: its weight is 1.
            least: sampling.min_p.min(1.0),
        };
        if sampling.top_k > 0 || sampling.top_p < 1.0 {
            copied(scores, logits);
            keep_likeliest(level, scores, weighing, sampling);
        }
        let scores = if scores.is_empty() { logits } else { scores };
        pick(level, scores, weighing, rng.next_f64(), sums)
    };
    let token = chosen? as u32;
    let logit = logits[token as usize];
    Some(Draw {
        token,
        logprob: if logit.is_nan() {
            f32::NEG_INFINITY
        } else {
            logit - log_sum
        },
    })
}

/// Makes the scores the logits' unless they are there already.
fn copied(scores: &mut Vec<f32>, logits: &[f32]) {
    if scores.is_empty() {
        scores.extend_from_slice(logits);
    }
}

/// The score at `point` of the way, from 0 to 1, along all weights.
///
/// Sums of stretches come first, so that only one stretch's weights are ever written down.
fn pick(level: Level, scores: &[f32], weighing: Weighing, point: f64, sums: &mut Vec<f64>) -> Option<usize> {
    weight_sums(level, scores, weighing, sums);
    let stretch_of = |stretch: usize| {
        let scores = &scores[stretch * STRETCH..scores.len().min((stretch + 1) * STRETCH)];
        let mut room = [0f32; STRETCH];
        room[..scores.len()].copy_from_slice(scores);
        weights(level, &mut room[..scores.len()], weighing);
        room
    };
    let mut left = point * sums.iter().sum::<f64>();
    for (stretch, sum) in sums.iter().enumerate() {
        if left >= *sum {
            left -= sum;
            continue;
        }
        for (at, weight) in stretch_of(stretch).into_iter().enumerate() {
            left -= f64::from(weight);
            if left < 0.0 {
                return Some(stretch * STRETCH + at);
            }
        }
    }
    // Rounding let the point slip past the last weight.
    let last = sums.iter().rposition(|&sum| sum > 0.0)?;
    let at = stretch_of(last).into_iter().rposition(|weight| weight > 0.0)?;
    Some(last * STRETCH + at)
}

/// Rules all scores out but those of the `top_k` greatest weights, and of those all but the nucleus of mass `top_p`.
fn keep_likeliest(level: Level, scores: &mut [f32], weighing: Weighing, sampling: &Sampling) {
    let mut found = scores.to_vec();
    weights(level, &mut found, weighing);
    // With top-p alone, weights that together cannot reach what the nucleus leaves out need no sorting.
    let total: f64 = found.iter().map(|&w| f64::from(w)).sum();
    let spared = (1.0 - f64::from(sampling.top_p)).max(0.0) * total / found.len() as f64;
    let floor = if sampling.top_k == 0 { spared } else { 0.0 };
    let mut kept: Vec<(usize, f32)> = found
        .iter()
        .copied()
        .enumerate()
        .filter(|&(_, w)| w > 0.0 && f64::from(w) >= floor)
        .collect();
    let better = |a: &(usize, f32), b: &(usize, f32)| b.1.total_cmp(&a.1).then(a.0.cmp(&b.0));
    let mut limit = f64::from(sampling.top_p.max(0.0)) * total;
    if sampling.top_k > 0 && sampling.top_k < kept.len() {
        kept.select_nth_unstable_by(sampling.top_k - 1, better);
        kept.truncate(sampling.top_k);
    }
    if sampling.top_p < 1.0 {
        kept.sort_unstable_by(better);
        if sampling.top_k > 0 {
            limit = f64::from(sampling.top_p.max(0.0)) * kept.iter().map(|k| f64::from(k.1)).sum::<f64>();
        }
        let mut mass = 0.0;
        let end = kept.iter().position(|(_, w)| {
            mass += f64::from(*w);
            mass >= limit
        });
        kept.truncate(end.map_or(kept.len(), |at| at + 1));
    }
    let kept: Vec<(usize, f32)> = kept.into_iter().map(|(id, _)| (id, scores[id])).collect();
    scores.fill(f32::NEG_INFINITY);
    for (id, score) in kept {
        scores[id] = score;
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use gym::Seed;

    fn draw(
        logits: &[f32],
        allowed: Option<&[bool]>,
        sampling: &Sampling,
        generated: &[u32],
        rng: &mut SplitMix64,
    ) -> Option<Draw> {
        super::draw(
            Level::best(),
            logits,
            allowed,
            sampling,
            generated,
            rng,
            &mut Room::default(),
        )
    }

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
            top_k in 0usize..5, top_p in 0f32..1.2, min_p in 0f32..1.5, temperature in 0.1f32..3.0, seed: u64,
        ) {
            let sampling = Sampling { temperature, top_k, top_p, min_p, ..Sampling::default() };
            let drawn = draw(&logits, None, &sampling, &[], &mut Seed(seed).rng()).unwrap();
            let x = logits[drawn.token as usize];
            let better = logits.iter().filter(|y| **y > x).count();
            prop_assert!(top_k == 0 || better < top_k);
            let max = logits.iter().copied().fold(f32::MIN, f32::max);
            prop_assert!(((x - max) / temperature).exp() >= min_p.min(1.0) - 1e-5);
            let z: f64 = logits.iter().map(|y| f64::from(*y).exp()).sum();
            prop_assert!((f64::from(drawn.logprob) - (f64::from(x) - z.ln())).abs() < 1e-4);
            let again = draw(&logits, None, &sampling, &[], &mut Seed(seed).rng()).unwrap();
            prop_assert_eq!(drawn, again);
        }
    }
}
