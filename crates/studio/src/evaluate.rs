//! Scores of a run with intervals, and paired against another run on the same questions.

use std::collections::BTreeMap;

use gym::statistics::{Interval, PairedTest, bootstrap_mean, paired_difference};
use gym::{GuidedEpisode, GuidedState, Seed, Step, Termination, metrics};
use serde::Serialize;
use store::EpisodeStatus;

use crate::results::finished_episode;
use crate::{Result, Studio, StudioError};

/// Bootstrap and permutation resamples: the intervals' ends are stable to about 0.002.
const RESAMPLES: usize = 5000;
/// Intervals are part of a report, so their draws are fixed.
pub(crate) const SEED: Seed = Seed(13);

/// A question of a run, scored. One that has not finished scores as one that was left without an answer.
pub(crate) struct Asked {
    episode: store::Episode,
    answer_supported: Option<f64>,
}

/// A score of an episode.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Metric {
    Em,
    F1,
    Accuracy,
    EvidenceRecall,
    AnswerSupported,
}

impl std::str::FromStr for Metric {
    type Err = StudioError;

    fn from_str(name: &str) -> Result<Metric> {
        Ok(match name {
            "em" => Metric::Em,
            "f1" => Metric::F1,
            "accuracy" => Metric::Accuracy,
            "evidence-recall" => Metric::EvidenceRecall,
            "answer-supported" => Metric::AnswerSupported,
            _ => {
                return Err(StudioError::Invalid(format!(
                    "`{name}` is no metric: use em, f1, accuracy, evidence-recall or answer-supported"
                )));
            }
        })
    }
}

impl Metric {
    /// `None` where the question lacks what the metric needs.
    fn of(self, asked: &Asked) -> Option<f64> {
        match self {
            Metric::Em => asked.episode.em,
            Metric::F1 => asked.episode.f1,
            Metric::Accuracy => asked.episode.accuracy,
            Metric::EvidenceRecall => asked.episode.evidence_recall,
            Metric::AnswerSupported => asked.answer_supported,
        }
    }

    /// The mean over all questions asked that have the metric; `None` if none has.
    pub(crate) fn interval(self, asked: &[Asked], resamples: usize) -> Option<Interval> {
        let values: Vec<f64> = asked.iter().filter_map(|asked| self.of(asked)).collect();
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
    /// Share of the answers that a retrieved passage holds; of those that a passage can hold.
    pub answer_supported: Option<Interval>,
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
    pub answer_supported: Option<PairedTest>,
}

impl Studio {
    /// Scores of one metric, or of all (`None`); a metric that no question of the run has is absent.
    pub fn evaluate(&self, run: &str, against: Option<&str>, only: Option<Metric>) -> Result<Evaluation> {
        let row = self.run_row(run)?;
        let wanted = |metric| only.is_none_or(|only| only == metric);
        let supported = wanted(Metric::AnswerSupported);
        let asked = self.asked(run, supported)?;
        if asked.is_empty() {
            return Err(StudioError::Invalid(format!("run `{run}` has no questions")));
        }
        let has = |metric: Metric| wanted(metric) && asked.iter().any(|asked| metric.of(asked).is_some());
        if let Some(only) = only
            && !has(only)
        {
            return Err(StudioError::Invalid(format!(
                "run `{run}` has no such metric: accuracy needs answer options, evidence-recall gold titles, \
                     answer-supported other answers than yes, no and options"
            )));
        }
        let interval = |metric: Metric| wanted(metric).then(|| metric.interval(&asked, RESAMPLES)).flatten();
        let against = match against {
            None => None,
            Some(other) => {
                let theirs_row = self.run_row(other)?;
                if row.question_set != theirs_row.question_set {
                    return Err(StudioError::Invalid(format!(
                        "runs `{run}` and `{other}` are of different question sets: only the same questions can be paired"
                    )));
                }
                let theirs: BTreeMap<gym::QuestionId, Asked> = self
                    .asked(other, supported)?
                    .into_iter()
                    .map(|asked| (asked.episode.question_id.clone(), asked))
                    .collect();
                let pairs: Vec<_> = asked
                    .iter()
                    .filter_map(|asked| Some((asked, theirs.get(&asked.episode.question_id)?)))
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
                        answer_supported: delta(Metric::AnswerSupported),
                    },
                })
            }
        };
        let total = |count: fn(&store::Episode) -> u32| asked.iter().map(|asked| count(&asked.episode)).sum::<u32>();
        Ok(Evaluation {
            run: run.into(),
            n: asked.len(),
            em: interval(Metric::Em),
            f1: interval(Metric::F1),
            accuracy: interval(Metric::Accuracy),
            evidence_recall: interval(Metric::EvidenceRecall),
            answer_supported: interval(Metric::AnswerSupported),
            searches_mean: f64::from(total(|episode| episode.searches)) / asked.len() as f64,
            malformed_rate: self.malformed_rate(run, total(|episode| episode.malformed_steps))?,
            monitors: self.monitors(run, &asked)?,
            against,
        })
    }

    /// Malformed actions over all actions of finished episodes: each of their steps is one.
    pub(crate) fn malformed_rate(&self, run: &str, malformed: u32) -> Result<f64> {
        let actions = self.store().count_finished_steps(run)?;
        Ok(f64::from(malformed) / f64::from(actions.max(1)))
    }

    /// The questions of a run in order. Whether passages support their answers takes all their steps: `supported`.
    pub(crate) fn asked(&self, run: &str, supported: bool) -> Result<Vec<Asked>> {
        let of = |episode: store::Episode| {
            let labelled = self.store().episode_question(run, &episode.question_id)?;
            let is_finished = finished(&episode);
            let answer_supported = if supported {
                let steps = match is_finished {
                    true => self.store().steps(run, &episode.question_id)?,
                    false => Vec::new(),
                };
                let answer = episode.answer.as_deref().unwrap_or_default();
                metrics::answer_supported(answer, &labelled.question, &steps)
            } else {
                None
            };
            let episode = match is_finished {
                true => episode,
                false => store::Episode {
                    status: episode.status,
                    ..finished_episode(run, &labelled, &[], episode.took_ms)
                },
            };
            Ok(Asked {
                episode,
                answer_supported,
            })
        };
        self.store().episodes(run)?.into_iter().map(of).collect()
    }

    /// Signs that the run's reward is being gamed; `None` for runs without rewards.
    fn monitors(&self, run: &str, asked: &[Asked]) -> Result<Option<gym::Monitors>> {
        let mut guided = Vec::new();
        for episode in asked
            .iter()
            .map(|asked| &asked.episode)
            .filter(|episode| finished(episode))
        {
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

fn finished(episode: &store::Episode) -> bool {
    episode.status == EpisodeStatus::Finished
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::testing::{self, RUN};

    #[test]
    fn a_question_left_without_an_answer_scores_nothing_in_what_it_can_be_scored_by() {
        let (_dir, studio) = testing::judged_run();
        let evaluation = studio.evaluate(RUN, None, None).unwrap();
        let mean = |interval: Option<Interval>| interval.map(|interval| (interval.mean * 3.0).round());
        assert_eq!(evaluation.n, 3);
        assert_eq!(mean(evaluation.em), Some(2.0));
        assert_eq!(mean(evaluation.evidence_recall), Some(2.0));
        assert_eq!(mean(evaluation.answer_supported), Some(2.0));
        assert_eq!(mean(evaluation.accuracy), None, "no question has options");

        let mut row = studio.run_row(RUN).unwrap();
        row.id = "bare".into();
        studio.store().create_run(&row).unwrap();
        let mut untitled = studio.store().episode_question(RUN, &testing::id("q3")).unwrap();
        untitled.gold.passages.clear();
        studio.store().create_episode_for("bare", &untitled).unwrap();
        let evaluation = studio.evaluate("bare", None, None).unwrap();
        assert_eq!(mean(evaluation.em), Some(0.0));
        assert_eq!(mean(evaluation.evidence_recall), None, "nothing to recall");
    }
}
