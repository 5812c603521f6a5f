//! How far two judges agree on the same states; intervals by question.

use std::collections::BTreeMap;

use serde::{Deserialize, Serialize};

use crate::judge::rank_rewards;
use crate::{QuestionId, Seed};

/// One state's rewards by both judges, candidate by candidate; `None` where a judge abstained.
#[derive(Clone, Debug, PartialEq)]
pub struct JudgedState {
    pub question: QuestionId,
    pub a: Option<Vec<f64>>,
    pub b: Option<Vec<f64>>,
}

/// A measure over `n` things with its 95 % bootstrap interval over questions.
#[derive(Clone, Copy, Debug, PartialEq, Serialize, Deserialize)]
pub struct Measure {
    pub value: f64,
    pub low: f64,
    pub high: f64,
    pub n: usize,
}

#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Agreement {
    pub questions: usize,
    /// States that both judges saw, abstentions included.
    pub states: usize,
    pub abstained_a: usize,
    pub abstained_b: usize,
    /// Share of the pairs that both judges order strictly which they order alike; n counts these pairs.
    pub pair_accuracy: Option<Measure>,
    /// Mean over states of Kendall's tau-b; n counts states where neither judge ties all candidates.
    pub kendall_tau: Option<Measure>,
    /// Cohen's kappa on chosen (reward above 0.75) and rejected (below 0.5); n counts candidates that both
    /// judges call one of these. A judge whose rewards leave 0..1 in any state goes by its ranking in all.
    pub cohen_kappa: Option<Measure>,
}

const RESAMPLES: usize = 2_000;
const CHOSEN: f64 = 0.75;
const REJECTED: f64 = 0.5;

/// What a set of states adds to each measure.
#[derive(Clone, Copy, Default)]
struct Counts {
    alike: f64,
    pairs: f64,
    tau_sum: f64,
    tau_states: f64,
    /// Candidates by (a calls it chosen, b calls it chosen).
    table: [[f64; 2]; 2],
}

pub fn agreement(states: &[JudgedState], seed: Seed) -> Agreement {
    let mut by_question: BTreeMap<&QuestionId, Counts> = BTreeMap::new();
    let ranks = |of: fn(&JudgedState) -> &Option<Vec<f64>>| {
        let rewards = states.iter().filter_map(|state| of(state).as_ref()).flatten();
        rewards.into_iter().any(|reward| !(0.0..=1.0).contains(reward))
    };
    let ranks = [ranks(|state| &state.a), ranks(|state| &state.b)];
    for state in states {
        let counts = by_question.entry(&state.question).or_default();
        if let (Some(a), Some(b)) = (&state.a, &state.b) {
            *counts = counts.plus(&Counts::of([a, b], ranks));
        }
    }
    let counts: Vec<Counts> = by_question.into_values().collect();
    let abstained = |of: fn(&JudgedState) -> bool| states.iter().filter(|state| of(state)).count();
    Agreement {
        questions: counts.len(),
        states: states.len(),
        abstained_a: abstained(|state| state.a.is_none()),
        abstained_b: abstained(|state| state.b.is_none()),
        pair_accuracy: measure(&counts, Counts::pair_accuracy, |all| all.pairs, seed),
        kendall_tau: measure(&counts, Counts::kendall_tau, |all| all.tau_states, seed),
        cohen_kappa: measure(
            &counts,
            Counts::cohen_kappa,
            |all| all.table.iter().flatten().sum(),
            seed,
        ),
    }
}

impl Counts {
    /// `ranks`: whether a judge's rewards are no shares of 1, so that only their order tells good from bad.
    fn of([a, b]: [&[f64]; 2], ranks: [bool; 2]) -> Counts {
        let mut counts = Counts::default();
        let (mut alike, mut unlike) = (0.0, 0.0);
        for i in 0..a.len().min(b.len()) {
            for j in 0..i {
                match (a[i] - a[j]) * (b[i] - b[j]) {
                    product if product > 0.0 => alike += 1.0,
                    product if product < 0.0 => unlike += 1.0,
                    _ => {}
                }
            }
        }
        counts.alike = alike;
        counts.pairs = alike + unlike;
        if let Some(tau) = kendall_tau_b(a, b) {
            counts.tau_sum = tau;
            counts.tau_states = 1.0;
        }
        for (a, b) in labels(a, ranks[0]).into_iter().zip(labels(b, ranks[1])) {
            if let (Some(a), Some(b)) = (a, b) {
                counts.table[usize::from(a)][usize::from(b)] += 1.0;
            }
        }
        counts
    }

    fn plus(&self, other: &Counts) -> Counts {
        let mut table = self.table;
        for (row, others) in table.iter_mut().zip(&other.table) {
            for (cell, other) in row.iter_mut().zip(others) {
                *cell += other;
            }
        }
        Counts {
            alike: self.alike + other.alike,
            pairs: self.pairs + other.pairs,
            tau_sum: self.tau_sum + other.tau_sum,
            tau_states: self.tau_states + other.tau_states,
            table,
        }
    }

    fn pair_accuracy(&self) -> Option<f64> {
        (self.pairs > 0.0).then(|| self.alike / self.pairs)
    }

    fn kendall_tau(&self) -> Option<f64> {
        (self.tau_states > 0.0).then(|| self.tau_sum / self.tau_states)
    }

    /// `None` where chance alone already agrees always: both judges use one and the same label.
    fn cohen_kappa(&self) -> Option<f64> {
        let [[nn, ny], [yn, yy]] = self.table;
        let n = nn + ny + yn + yy;
        let observed = (nn + yy) / n;
        let expected = ((yn + yy) * (ny + yy) + (nn + ny) * (nn + yn)) / (n * n);
        (n > 0.0 && expected < 1.0).then(|| (observed - expected) / (1.0 - expected))
    }
}

/// Kendall's tau-b; `None` if either side has no two different values.
pub fn kendall_tau_b(a: &[f64], b: &[f64]) -> Option<f64> {
    let n = a.len().min(b.len());
    let (mut score, mut strict_a, mut strict_b) = (0.0, 0.0, 0.0);
    for i in 0..n {
        for j in 0..i {
            let (da, db) = (a[i] - a[j], b[i] - b[j]);
            strict_a += f64::from(da != 0.0);
            strict_b += f64::from(db != 0.0);
            if da != 0.0 && db != 0.0 {
                score += da.signum() * db.signum();
            }
        }
    }
    let scale = f64::sqrt(strict_a * strict_b);
    (scale > 0.0).then(|| score / scale)
}

/// Whether each candidate is chosen (true), rejected (false) or neither.
fn labels(rewards: &[f64], by_rank: bool) -> Vec<Option<bool>> {
    let mut rewards = rewards.to_vec();
    if by_rank && rewards.len() < 2 {
        // First of one says nothing.
        return vec![None; rewards.len()];
    }
    if by_rank {
        let mut ranking: Vec<usize> = (0..rewards.len()).collect();
        ranking.sort_by(|&i, &j| rewards[j].total_cmp(&rewards[i]));
        rewards = rank_rewards(&ranking, rewards.len());
    }
    rewards
        .into_iter()
        .map(|reward| match reward {
            reward if reward > CHOSEN => Some(true),
            reward if reward < REJECTED => Some(false),
            _ => None,
        })
        .collect()
}

fn measure(
    questions: &[Counts],
    of: impl Fn(&Counts) -> Option<f64>,
    n: impl Fn(&Counts) -> f64,
    seed: Seed,
) -> Option<Measure> {
    let all = questions.iter().fold(Counts::default(), |sum, counts| sum.plus(counts));
    let value = of(&all)?;
    let mut rng = seed.derive_str("agreement").rng();
    let mut drawn: Vec<f64> = (0..RESAMPLES)
        .filter_map(|_| {
            let sum = (0..questions.len()).fold(Counts::default(), |sum, _| {
                sum.plus(&questions[rng.below(questions.len())])
            });
            of(&sum)
        })
        .collect();
    drawn.sort_by(f64::total_cmp);
    let at = |share: f64| drawn.get(((drawn.len() as f64 * share) as usize).min(drawn.len().saturating_sub(1)));
    Some(Measure {
        value,
        low: *at(0.025)?,
        high: *at(0.975)?,
        n: n(&all) as usize,
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn state(question: &str, a: &[f64], b: &[f64]) -> JudgedState {
        JudgedState {
            question: QuestionId(question.into()),
            a: Some(a.to_vec()),
            b: Some(b.to_vec()),
        }
    }

    /// By hand: 7 pairs alike, 1 unlike, 1 tied by a and 1 by b: (7 - 1) / sqrt(9 * 9).
    /// scipy 1.17.1, `kendalltau([1, 2, 2, 3, 4], [1, 3, 2, 2, 5]).statistic`: 0.6666666666666666
    #[test]
    fn tau_b_corrects_for_ties() {
        let tau = kendall_tau_b(&[1.0, 2.0, 2.0, 3.0, 4.0], &[1.0, 3.0, 2.0, 2.0, 5.0]).unwrap();
        assert!((tau - 2.0 / 3.0).abs() < 1e-12, "{tau}");
        assert_eq!(kendall_tau_b(&[1.0, 2.0, 3.0], &[6.0, 5.0, 4.0]), Some(-1.0));
        assert_eq!(kendall_tau_b(&[1.0, 1.0], &[1.0, 2.0]), None);
    }

    #[test]
    fn equal_judges_agree_fully_and_reversed_ones_not_at_all() {
        let up = [0.1, 0.4, 0.9];
        let down = [0.9, 0.4, 0.1];
        let same = agreement(&[state("q1", &up, &up), state("q2", &down, &down)], Seed(1));
        for measure in [same.pair_accuracy, same.kendall_tau, same.cohen_kappa] {
            let measure = measure.unwrap();
            assert_eq!((measure.value, measure.low, measure.high), (1.0, 1.0, 1.0));
        }
        assert_eq!(same.pair_accuracy.unwrap().n, 6);
        let reversed = agreement(&[state("q1", &up, &down)], Seed(1));
        assert_eq!(reversed.pair_accuracy.unwrap().value, 0.0);
        assert_eq!(reversed.kendall_tau.unwrap().value, -1.0);
        assert!(reversed.cohen_kappa.unwrap().value < 0.0);
    }

    /// By hand: both chosen 20, only a 5, only b 10, both rejected 15 of 50: observed 0.7, expected
    /// 0.5 * 0.6 + 0.5 * 0.4 = 0.5. scikit-learn 1.9.1, `cohen_kappa_score` of these labels: 0.4
    #[test]
    fn kappa_corrects_for_chance() {
        let mut states = Vec::new();
        for (n, a, b) in [
            (20, 1.0, 0.9),
            (5, 0.8, 0.2),
            (10, 0.0, 1.0),
            (15, 0.1, 0.3),
            (7, 0.6, 1.0),
        ] {
            for i in 0..n {
                states.push(state(&format!("q{i}"), &[a], &[b]));
            }
        }
        let kappa = agreement(&states, Seed(1)).cohen_kappa.unwrap();
        assert!((kappa.value - 0.4).abs() < 1e-12, "{kappa:?}");
        assert_eq!(kappa.n, 50, "a reward between the thresholds is no label");
        assert!(kappa.low < 0.4 && 0.4 < kappa.high);
    }

    #[test]
    fn ties_and_abstentions_are_counted_apart() {
        let silent = JudgedState {
            b: None,
            ..state("q2", &[0.1, 0.2], &[])
        };
        let tied = state("q1", &[0.5, 0.5, 1.0], &[0.2, 0.7, 0.9]);
        let result = agreement(&[tied, silent], Seed(1));
        assert_eq!((result.questions, result.states), (2, 2));
        assert_eq!((result.abstained_a, result.abstained_b), (0, 1));
        // The tied pair has no order to agree on.
        assert_eq!(result.pair_accuracy.unwrap().n, 2);
        assert_eq!(agreement(&[], Seed(1)).pair_accuracy, None);
    }

    #[test]
    fn unbounded_scores_are_labelled_by_their_ranking() {
        assert_eq!(
            labels(&[-3.0, 12.0, 4.0, 0.0], true),
            [Some(false), Some(true), None, Some(false)]
        );
        assert_eq!(labels(&[0.3], true), [None], "first of one");
        assert_eq!(
            labels(&[0.8, 0.75, 0.5, 0.49], false),
            [Some(true), None, None, Some(false)]
        );
    }

    /// Questions are resampled whole: ten equal states of one question say no more than one.
    #[test]
    fn the_interval_is_over_questions() {
        let good = |question: &str| state(question, &[0.0, 1.0], &[0.0, 1.0]);
        let bad = |question: &str| state(question, &[0.0, 1.0], &[1.0, 0.0]);
        let few: Vec<JudgedState> = (0..10).map(|_| good("q1")).chain((0..10).map(|_| bad("q2"))).collect();
        let many: Vec<JudgedState> = (0..10)
            .map(|i| good(&format!("g{i}")))
            .chain((0..10).map(|i| bad(&format!("b{i}"))))
            .collect();
        let few = agreement(&few, Seed(1)).pair_accuracy.unwrap();
        let many = agreement(&many, Seed(1)).pair_accuracy.unwrap();
        assert_eq!((few.value, few.low, few.high), (0.5, 0.0, 1.0));
        // Binomial, n 20, p 0.5: 0.5 ± 0.22.
        assert!(
            (many.low - 0.3).abs() < 0.06 && (many.high - 0.7).abs() < 0.06,
            "{many:?}"
        );
    }
}
