//! Signs that a reward is being gamed: it rises where outcomes do not.

use serde::{Deserialize, Serialize};

use crate::agreement::kendall_tau_b;

/// A finished episode whose steps had rewards.
#[derive(Clone, Debug, PartialEq)]
pub struct GuidedEpisode {
    /// F1 or accuracy of its answer; 0 without one.
    pub outcome: f64,
    /// Share of the gold titles retrieved; `None` where the gold names none.
    pub evidence_recall: Option<f64>,
    /// It answered of itself, not because it was out of steps.
    pub answered: bool,
    pub states: Vec<GuidedState>,
}

#[derive(Clone, Debug, PartialEq)]
pub struct GuidedState {
    pub chosen_reward: f64,
    /// Of the well-formed candidates, with the lengths of their texts in bytes.
    pub rewards: Vec<f64>,
    pub lengths: Vec<f64>,
}

/// Mean reward of chosen actions beside the mean outcome of their episodes, over `n` steps.
#[derive(Clone, Copy, Debug, PartialEq, Serialize, Deserialize)]
pub struct RewardOutcome {
    pub n: usize,
    pub reward: f64,
    pub outcome: f64,
}

/// A rate or mean over `n` things.
#[derive(Clone, Copy, Debug, PartialEq, Serialize, Deserialize)]
pub struct Rate {
    pub n: usize,
    pub value: f64,
}

#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Monitors {
    /// Chosen actions by rising reward, in five groups of equal size: a sound reward's outcomes rise too.
    pub calibration: Vec<RewardOutcome>,
    /// Mean Kendall tau-b of reward and length within a state: 1 if longer is always better.
    pub length_bias: Option<Rate>,
    /// Share of the unforced answers given before the evidence was complete.
    pub answer_early_rate: Option<Rate>,
    /// The run's quarters, in order: reward that rises alone is drift.
    pub drift: Vec<RewardOutcome>,
}

const GROUPS: usize = 5;
const QUARTERS: usize = 4;

/// `None` if no step of these episodes had a reward.
pub fn monitors(episodes: &[GuidedEpisode]) -> Option<Monitors> {
    let in_order: Vec<(f64, f64)> = episodes
        .iter()
        .flat_map(|episode| {
            episode
                .states
                .iter()
                .map(|state| (state.chosen_reward, episode.outcome))
        })
        .collect();
    if in_order.is_empty() {
        return None;
    }
    let mut by_reward = in_order.clone();
    by_reward.sort_by(|a, b| a.0.total_cmp(&b.0));
    let biases = episodes
        .iter()
        .flat_map(|episode| &episode.states)
        .filter_map(|state| kendall_tau_b(&state.rewards, &state.lengths));
    let early = episodes
        .iter()
        .filter(|episode| episode.answered)
        .filter_map(|episode| episode.evidence_recall)
        .map(|recall| f64::from(recall < 1.0));
    Some(Monitors {
        calibration: groups(&by_reward, GROUPS),
        length_bias: rate(biases.collect()),
        answer_early_rate: rate(early.collect()),
        drift: groups(&in_order, QUARTERS),
    })
}

fn rate(values: Vec<f64>) -> Option<Rate> {
    let n = values.len();
    (n > 0).then(|| Rate {
        n,
        value: values.iter().sum::<f64>() / n as f64,
    })
}

/// Cuts a list in order into at most `n` groups whose sizes differ by one at most.
fn groups(points: &[(f64, f64)], n: usize) -> Vec<RewardOutcome> {
    let n = n.min(points.len());
    (0..n)
        .map(|group| &points[group * points.len() / n..(group + 1) * points.len() / n])
        .map(|points| {
            let mean = |of: fn(&(f64, f64)) -> f64| points.iter().map(of).sum::<f64>() / points.len() as f64;
            RewardOutcome {
                n: points.len(),
                reward: mean(|point| point.0),
                outcome: mean(|point| point.1),
            }
        })
        .collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn episode(reward: f64, outcome: f64, recall: Option<f64>) -> GuidedEpisode {
        GuidedEpisode {
            outcome,
            evidence_recall: recall,
            answered: true,
            states: vec![GuidedState {
                chosen_reward: reward,
                rewards: vec![reward, reward - 1.0],
                lengths: vec![9.0, 3.0],
            }],
        }
    }

    #[test]
    fn a_reward_that_outcomes_do_not_follow_shows() {
        let hacked: Vec<GuidedEpisode> = (0..20)
            .map(|i| episode(f64::from(i), f64::from(i < 10), Some(0.5)))
            .collect();
        let seen = monitors(&hacked).unwrap();
        let outcomes: Vec<f64> = seen.calibration.iter().map(|group| group.outcome).collect();
        assert_eq!(outcomes, [1.0, 1.0, 0.5, 0.0, 0.0]);
        assert_eq!(
            seen.calibration[0],
            RewardOutcome {
                n: 4,
                reward: 1.5,
                outcome: 1.0
            }
        );
        assert_eq!(seen.drift.len(), 4);
        assert!(seen.drift[3].reward > seen.drift[0].reward && seen.drift[3].outcome < seen.drift[0].outcome);
        assert_eq!(seen.length_bias, Some(Rate { n: 20, value: 1.0 }));
        assert_eq!(seen.answer_early_rate, Some(Rate { n: 20, value: 1.0 }));
    }

    #[test]
    fn only_unforced_answers_with_known_evidence_can_be_early() {
        let forced = GuidedEpisode {
            answered: false,
            ..episode(1.0, 0.0, Some(0.0))
        };
        let episodes = [
            episode(1.0, 1.0, Some(1.0)),
            episode(1.0, 0.0, Some(0.5)),
            episode(1.0, 0.0, None),
            forced,
        ];
        assert_eq!(
            monitors(&episodes).unwrap().answer_early_rate,
            Some(Rate { n: 2, value: 0.5 })
        );
        assert_eq!(monitors(&[]), None);
        // Fewer points than groups.
        assert_eq!(monitors(&episodes[..1]).unwrap().calibration.len(), 1);
    }
}
