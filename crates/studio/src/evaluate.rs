//! Scores of a run with intervals, and paired against another run on the same questions.

use std::collections::BTreeMap;

use gym::Seed;
use gym::statistics::{Interval, PairedTest, bootstrap_mean, paired_difference};
use serde::Serialize;

use crate::{Result, Studio, StudioError};

/// Bootstrap and permutation resamples: the intervals' ends are stable to about 0.002.
const RESAMPLES: usize = 5000;
/// Intervals are part of a report, so their draws are fixed.
const SEED: Seed = Seed(13);

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
}

impl Studio {
    pub fn evaluate(&self, run: &str, against: Option<&str>) -> Result<Evaluation> {
        self.run_row(run)?;
        let episodes = self.store().episodes(run)?;
        if episodes.is_empty() {
            return Err(StudioError::Invalid(format!("run `{run}` has no questions")));
        }
        let asked = |value: Option<f64>| value.unwrap_or(0.0);
        // A metric that no question has (accuracy of free text, recall without gold) is absent, not zero.
        let interval = |metric: &dyn Fn(&store::Episode) -> Option<f64>| {
            episodes.iter().any(|episode| metric(episode).is_some()).then(|| {
                let values: Vec<f64> = episodes.iter().map(|episode| asked(metric(episode))).collect();
                bootstrap_mean(&values, RESAMPLES, SEED)
            })?
        };
        let against = match against {
            None => None,
            Some(other) => {
                self.run_row(other)?;
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
                let delta = |metric: &dyn Fn(&store::Episode) -> Option<f64>| {
                    let (ours, theirs): (Vec<f64>, Vec<f64>) =
                        pairs.iter().map(|(a, b)| (asked(metric(a)), asked(metric(b)))).unzip();
                    paired_difference(&ours, &theirs, SEED)
                };
                Some(Against {
                    run: other.into(),
                    n: pairs.len(),
                    delta: Delta {
                        em: delta(&|episode| episode.em),
                        f1: delta(&|episode| episode.f1),
                    },
                })
            }
        };
        Ok(Evaluation {
            run: run.into(),
            n: episodes.len(),
            em: interval(&|episode| episode.em),
            f1: interval(&|episode| episode.f1),
            accuracy: interval(&|episode| episode.accuracy),
            evidence_recall: interval(&|episode| episode.evidence_recall),
            searches_mean: episodes.iter().map(|episode| f64::from(episode.searches)).sum::<f64>()
                / episodes.len() as f64,
            malformed_rate: crate::run::malformed_rate(episodes.iter()),
            monitors: self.monitors(run, &episodes)?,
            against,
        })
    }
}
