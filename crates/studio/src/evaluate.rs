//! Scores of a run with intervals, and paired against another run on the same questions.

use std::collections::BTreeMap;

use gym::Seed;
use gym::statistics::{Interval, PairedTest, bootstrap_mean, paired_difference};
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
        let has = |metric: Metric| {
            let known = |episode: &store::Episode| finished(episode) && metric.of(episode).is_some();
            let asked_only = matches!(metric, Metric::Em | Metric::F1);
            wanted(metric) && (episodes.iter().any(known) || asked_only && !episodes.iter().all(finished))
        };
        if let Some(only) = only
            && !has(only)
        {
            return Err(StudioError::Invalid(format!(
                "run `{run}` has no such metric: accuracy needs answer options, evidence-recall gold titles"
            )));
        }
        let interval = |metric: Metric| {
            let values: Vec<f64> = episodes.iter().filter_map(|episode| metric.of(episode)).collect();
            has(metric).then(|| bootstrap_mean(&values, RESAMPLES, SEED))?
        };
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
            malformed_rate: crate::run::malformed_rate(episodes.iter()),
            monitors: self.monitors(run, &episodes)?,
            against,
        })
    }
}

fn finished(episode: &store::Episode) -> bool {
    episode.status == EpisodeStatus::Finished
}
