//! Scores of a run with intervals, and paired against another run on the same questions.

use std::collections::BTreeMap;

use gym::statistics::{Interval, PairedTest, bootstrap_mean, paired_difference};
use gym::{GuidedEpisode, GuidedState, Seed, Step, Termination};
use serde::Serialize;
use store::EpisodeStatus;

use crate::{Result, Studio, StudioError};

/// Bootstrap and permutation resamples: the intervals' ends are stable to about 0.002.
const RESAMPLES: usize = 5000;
/// Intervals are part of a report, so their draws are fixed.
const SEED: Seed = Seed(13);

/// A score of an episode.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Metric {
    Em,
    F1,
    Accuracy,
    EvidenceRecall,
}

impl std::str::FromStr for Metric {
    type Err = StudioError;

    fn from_str(name: &str) -> Result<Metric> {
        Ok(match name {
            "em" => Metric::Em,
            "f1" => Metric::F1,
            "accuracy" => Metric::Accuracy,
            "evidence-recall" => Metric::EvidenceRecall,
            _ => {
                return Err(StudioError::Invalid(format!(
                    "`{name}` is no metric: use em, f1, accuracy or evidence-recall"
                )));
            }
        })
    }
}

impl Metric {
    /// `None` where the question lacks what the metric needs. An episode without an answer scores 0.
    fn of(self, episode: &store::Episode) -> Option<f64> {
        let value = match self {
            Metric::Em => episode.em,
            Metric::F1 => episode.f1,
            Metric::Accuracy => episode.accuracy,
            Metric::EvidenceRecall => episode.evidence_recall,
        };
        match episode.status {
            EpisodeStatus::Finished => value,
            _ => Some(value.unwrap_or(0.0)),
        }
    }

    /// The mean over all questions asked; `None` where no question of a run has the metric.
    pub(crate) fn interval(self, episodes: &[store::Episode], resamples: usize) -> Option<Interval> {
        if !has(self, episodes) {
            return None;
        }
        let values: Vec<f64> = episodes.iter().filter_map(|episode| self.of(episode)).collect();
        bootstrap_mean(&values, resamples, SEED)
    }
}

#[derive(Clone, Debug, Serialize)]
pub struct Evaluation {
    pub run: String,
    /// Questions asked; one without an answer scores 0.
    pub n: usize,
    pub em: Option<Interval>,
    pub f1: Option<Interval>,
    pub accuracy: Option<Interval>,
    pub evidence_recall: Option<Interval>,
    pub searches_mean: f64,
    pub malformed_rate: f64,
    /// Signs that the reward is being gamed, for runs with rewards.
    pub monitors: Option<gym::Monitors>,
    pub against: Option<Against>,
}

#[derive(Clone, Debug, Serialize)]
pub struct Against {
    pub run: String,
    /// Questions that both runs asked.
    pub n: usize,
    pub delta: Delta,
}

#[derive(Clone, Debug, Serialize)]
pub struct Delta {
    pub em: Option<PairedTest>,
    pub f1: Option<PairedTest>,
    pub accuracy: Option<PairedTest>,
    pub evidence_recall: Option<PairedTest>,
}

impl Studio {
    /// Scores of one metric, or of all (`None`); a metric that no question of the run has is absent.
    pub fn evaluate(&self, run: &str, against: Option<&str>, only: Option<Metric>) -> Result<Evaluation> {
        let row = self.run_row(run)?;
        let episodes = self.store().episodes(run)?;
        if episodes.is_empty() {
            return Err(StudioError::Invalid(format!("run `{run}` has no questions")));
        }
        let wanted = |metric| only.is_none_or(|only| only == metric);
        let has = |metric: Metric| wanted(metric) && has(metric, &episodes);
        if let Some(only) = only
            && !has(only)
        {
            return Err(StudioError::Invalid(format!(
                "run `{run}` has no such metric: accuracy needs answer options, evidence-recall gold titles"
            )));
        }
        let interval = |metric: Metric| wanted(metric).then(|| metric.interval(&episodes, RESAMPLES)).flatten();
        let against = match against {
            None => None,
            Some(other) => {
                let theirs_row = self.run_row(other)?;
                if row.question_set != theirs_row.question_set {
                    return Err(StudioError::Invalid(format!(
                        "runs `{run}` and `{other}` are of different question sets: only the same questions can be paired"
                    )));
                }
                let theirs: BTreeMap<gym::QuestionId, store::Episode> = self
                    .store()
                    .episodes(other)?
                    .into_iter()
                    .map(|episode| (episode.question_id.clone(), episode))
                    .collect();
                let pairs: Vec<_> = episodes
                    .iter()
                    .filter_map(|episode| Some((episode, theirs.get(&episode.question_id)?)))
                    .collect();
                if pairs.is_empty() {
                    return Err(StudioError::Invalid(format!(
                        "runs `{run}` and `{other}` have no question in common"
                    )));
                }
                let delta = |metric: Metric| {
                    let (ours, theirs): (Vec<f64>, Vec<f64>) = pairs
                        .iter()
                        .filter_map(|(ours, theirs)| Some((metric.of(ours)?, metric.of(theirs)?)))
                        .unzip();
                    has(metric).then(|| paired_difference(&ours, &theirs, SEED))?
                };
                Some(Against {
                    run: other.into(),
                    n: pairs.len(),
                    delta: Delta {
                        em: delta(Metric::Em),
                        f1: delta(Metric::F1),
                        accuracy: delta(Metric::Accuracy),
                        evidence_recall: delta(Metric::EvidenceRecall),
                    },
                })
            }
        };
        Ok(Evaluation {
            run: run.into(),
            n: episodes.len(),
            em: interval(Metric::Em),
            f1: interval(Metric::F1),
            accuracy: interval(Metric::Accuracy),
            evidence_recall: interval(Metric::EvidenceRecall),
            searches_mean: episodes.iter().map(|episode| f64::from(episode.searches)).sum::<f64>()
                / episodes.len() as f64,
            malformed_rate: self.malformed_rate(run, &episodes)?,
            monitors: self.monitors(run, &episodes)?,
            against,
        })
    }

    /// Malformed actions over all actions of finished episodes: each of their steps is one.
    pub(crate) fn malformed_rate(&self, run: &str, episodes: &[store::Episode]) -> Result<f64> {
        let malformed: u32 = episodes.iter().map(|episode| episode.malformed_steps).sum();
        let actions = self.store().count_finished_steps(run)?;
        Ok(f64::from(malformed) / f64::from(actions.max(1)))
    }

    /// Signs that the run's reward is being gamed; `None` for runs without rewards.
    fn monitors(&self, run: &str, episodes: &[store::Episode]) -> Result<Option<gym::Monitors>> {
        let mut guided = Vec::new();
        for episode in episodes.iter().filter(|episode| finished(episode)) {
            let Some(outcome) = episode.accuracy.or(episode.f1) else {
                continue;
            };
            let steps = self.store().steps(run, &episode.question_id)?;
            guided.push(GuidedEpisode {
                outcome,
                evidence_recall: episode.evidence_recall,
                answered: episode.termination == Some(Termination::Answered),
                states: steps.iter().filter_map(guided_state).collect(),
            });
        }
        Ok(gym::monitors(&guided))
    }
}

fn guided_state(step: &Step) -> Option<GuidedState> {
    let well_formed = step
        .candidates
        .iter()
        .filter(|candidate| !candidate.action.is_malformed());
    let (rewards, lengths) = well_formed
        .filter_map(|candidate| Some((candidate.reward?, candidate.text.len() as f64)))
        .unzip();
    Some(GuidedState {
        chosen_reward: step.candidates[step.chosen].reward?,
        rewards,
        lengths,
    })
}

/// Whether a run has a metric. Exact match and F1 are of every question, so a run without answers yet has them.
fn has(metric: Metric, episodes: &[store::Episode]) -> bool {
    let known = |episode: &store::Episode| finished(episode) && metric.of(episode).is_some();
    let asked_only = matches!(metric, Metric::Em | Metric::F1);
    episodes.iter().any(known) || asked_only && !episodes.iter().all(finished)
}

fn finished(episode: &store::Episode) -> bool {
    episode.status == EpisodeStatus::Finished
}
