//! What runs have come to: their scores, and their episodes as hosts show them.

use gym::statistics::bootstrap_mean;
use gym::{LabelledQuestion, QuestionId, Step, metrics, outcome};
use serde::Serialize;
use store::EpisodeStatus;

use crate::evaluate::SEED;
use crate::run::{own_judge_of, settings_of};
use crate::view::{EpisodeRow, EpisodeView, IntervalView, RunView};
use crate::{Result, Studio, StudioError, lock, show};

/// Bootstrap resamples of what shows many runs at once; reports take more.
pub(crate) const RESAMPLES: usize = 1000;

impl Studio {
    /// Newest first.
    pub fn runs(&self) -> Result<Vec<RunView>> {
        let mut runs: Vec<RunView> = self
            .store()
            .runs()?
            .into_iter()
            .map(|row| self.view_of(row))
            .collect::<Result<_>>()?;
        runs.sort_by(|a, b| (&b.created_at, &b.id).cmp(&(&a.created_at, &a.id)));
        Ok(runs)
    }

    pub fn run_view(&self, run: &str) -> Result<RunView> {
        self.view_of(self.run_row(run)?)
    }

    /// A finished run's scores are computed once: a table of hundreds of runs is asked for often.
    fn view_of(&self, row: store::Run) -> Result<RunView> {
        let settled = row.status == store::RunStatus::Finished;
        if settled
            && let Some(view) = lock(&self.inner.finished_runs).get(&row.id)
            && view.took_ms == row.took_ms as f64
        {
            return Ok(view.clone());
        }
        let view = self.score(row)?;
        if settled && view.finished + view.failed == view.questions {
            lock(&self.inner.finished_runs).insert(view.id.clone(), view.clone());
        }
        Ok(view)
    }

    fn score(&self, row: store::Run) -> Result<RunView> {
        let settings = settings_of(&row)?;
        let episodes = self.store().episodes(&row.id)?;
        let finished: Vec<_> = episodes
            .iter()
            .filter(|episode| episode.status == EpisodeStatus::Finished)
            .collect();
        // Of the questions asked, once one is answered: an unanswered one scores 0, as in `evaluate`.
        let interval = |of: fn(&store::Episode) -> Option<f64>| {
            // Where no answer is known, nothing can be wrong.
            if !finished.iter().any(|episode| of(episode).is_some()) {
                return None;
            }
            let score = |episode: &store::Episode| match episode.status {
                EpisodeStatus::Finished => of(episode),
                _ => Some(0.0),
            };
            let scores: Vec<f64> = episodes.iter().filter_map(score).collect();
            bootstrap_mean(&scores, RESAMPLES, SEED).map(IntervalView::from)
        };
        let malformed = episodes.iter().map(|episode| episode.malformed_steps).sum();
        let searches: f64 = episodes.iter().map(|episode| f64::from(episode.searches)).sum();
        // A row that says so while nobody works on it, here or in another process, was left by a killed one.
        let at_work = || lock(&self.inner.jobs).contains_key(&row.id) || self.is_claimed(&row.id);
        let status = match row.status {
            store::RunStatus::Running if !at_work() => store::RunStatus::Stopped,
            status => status,
        };
        Ok(RunView {
            status: name_of(&status),
            questions: episodes.len() as u32,
            finished: finished.len() as u32,
            failed: episodes
                .iter()
                .filter(|episode| episode.status == EpisodeStatus::Failed)
                .count() as u32,
            em: interval(|episode| episode.em),
            f1: interval(|episode| episode.f1),
            searches_mean: searches / episodes.len().max(1) as f64,
            malformed_rate: self.malformed_rate(&row.id, malformed)?,
            took_ms: row.took_ms as f64,
            id: row.id,
            name: row.name,
            question_set: row.question_set,
            settings,
            created_at: row.created_at,
            error: row.error,
        })
    }

    pub fn episodes(&self, run: &str) -> Result<Vec<EpisodeRow>> {
        let row = self.run_row(run)?;
        self.store()
            .episodes(run)?
            .into_iter()
            .map(|episode| {
                let labelled = self.episode_question(&row, &episode.question_id)?;
                Ok(EpisodeRow {
                    question_id: episode.question_id.0,
                    question: labelled.question.text,
                    status: name_of(&episode.status),
                    answer: episode.answer,
                    gold_answer: labelled.gold.answers.first().cloned().unwrap_or_default(),
                    em: episode.em,
                    f1: episode.f1,
                    searches: episode.searches,
                    took_ms: episode.took_ms as f64,
                })
            })
            .collect()
    }

    pub fn episode(&self, run: &str, question_id: &str) -> Result<EpisodeView> {
        let row = self.run_row(run)?;
        let id = QuestionId(question_id.into());
        let labelled = self.episode_question(&row, &id)?;
        let episode = self
            .store()
            .episodes(run)?
            .into_iter()
            .find(|episode| episode.question_id == id)
            .ok_or_else(|| StudioError::NotFound {
                kind: "question",
                name: question_id.into(),
                hint: format!(" in run `{run}`"),
            })?;
        let steps = self.store().steps(run, &id)?;
        let judge = own_judge_of(&row)?;
        Ok(EpisodeView {
            run: run.into(),
            question_id: question_id.into(),
            question: labelled.question.text,
            options: labelled
                .question
                .options
                .iter()
                .map(|option| format!("{}. {}", option.label, option.text))
                .collect(),
            gold: show::gold(&labelled.gold),
            status: name_of(&episode.status),
            answer: episode.answer,
            termination: episode.termination.map(|termination| name_of(&termination)),
            em: episode.em,
            f1: episode.f1,
            steps: steps
                .iter()
                .map(|step| show::step(step, judge.as_deref(), &labelled.gold))
                .collect(),
            tokens: show::tokens(total_usage(&steps)),
            took_ms: episode.took_ms as f64,
        })
    }
}

/// The name that an enum of the core has in every stored form.
pub(crate) fn name_of(value: &impl Serialize) -> String {
    let value = serde_json::to_value(value).expect("a unit variant is a plain string");
    value.as_str().unwrap_or_default().to_owned()
}

fn total_usage(steps: &[Step]) -> gym::Usage {
    let mut usage = gym::Usage::default();
    for step in steps {
        usage += step.usage;
    }
    usage
}

/// The row of a finished episode: its answer, scores and counts.
pub(crate) fn finished_episode(run: &str, labelled: &LabelledQuestion, steps: &[Step], took_ms: u64) -> store::Episode {
    let (answer, termination) = outcome(steps);
    let text = answer.unwrap_or_default();
    let known = !labelled.gold.answers.is_empty();
    // No answer is wrong, even where the gold answer is nothing but an article ("A") and so normalises to nothing;
    // and option A is right by F1 too, though no token of it is left.
    let exact = answer.map_or(0.0, |answer| metrics::exact_match(answer, &labelled.gold));
    store::Episode {
        run_id: run.into(),
        question_id: labelled.question.id.clone(),
        position: 0,
        status: EpisodeStatus::Finished,
        answer: answer.map(str::to_owned),
        termination: Some(termination),
        em: known.then_some(exact),
        f1: known.then(|| metrics::token_f1(text, &labelled.gold).max(exact)),
        accuracy: metrics::accuracy(text, &labelled.question, &labelled.gold),
        evidence_recall: metrics::evidence_recall(steps, &labelled.gold),
        searches: steps.iter().filter(|step| step.action().query().is_some()).count() as u32,
        malformed_steps: steps.iter().filter(|step| step.action().is_malformed()).count() as u32,
        usage: total_usage(steps),
        took_ms,
        error: None,
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::testing::{self, RUN};

    #[test]
    fn no_answer_scores_nothing_even_where_the_gold_answer_is_an_article() {
        let labelled = LabelledQuestion {
            question: gym::Question {
                id: QuestionId("q".into()),
                text: "Which option?".into(),
                options: Vec::new(),
            },
            gold: gym::Gold {
                answers: vec!["A".into()],
                ..gym::Gold::default()
            },
            kind: None,
            split: None,
        };
        let episode = finished_episode("r", &labelled, &[], 1);
        assert_eq!((episode.em, episode.f1, episode.answer), (Some(0.0), Some(0.0), None));
    }

    #[test]
    fn a_question_without_an_answer_scores_nothing_and_counts() {
        let (_dir, studio) = testing::judged_run();
        let view = studio.run_view(RUN).unwrap();
        assert_eq!((view.questions, view.finished), (3, 2));
        let em = view.em.unwrap().mean;
        assert!((em - 2.0 / 3.0).abs() < 1e-9, "{em}");
        assert_eq!(em, studio.evaluate(RUN, None, None).unwrap().em.unwrap().mean);
        assert!((view.searches_mean - 2.0 / 3.0).abs() < 1e-9);
    }

    #[test]
    fn work_is_running_while_somebody_holds_it_and_stopped_once_its_process_is_gone() {
        let (_dir, studio) = testing::judged_run();
        studio
            .store()
            .set_run_status(RUN, store::RunStatus::Running, None)
            .unwrap();
        let status = || studio.run_view(RUN).unwrap().status;
        assert_eq!(status(), "stopped");
        let claim = studio.claim(RUN).unwrap();
        assert_eq!(status(), "running");
        drop(claim);
        assert_eq!(status(), "stopped");
    }

    /// ReSearch out of steps: its last search holds the answer, and is one action.
    #[test]
    fn a_truncated_answer_is_no_action_of_its_own() {
        let (_dir, studio) = testing::judged_run();
        assert_eq!(studio.run_view(RUN).unwrap().malformed_rate, 0.0);
        let malformed = gym::Action::Malformed { reason: "no".into() };
        let search = gym::Action::Search {
            query: "ada".into(),
            predicted_answer: Some("Ada".into()),
        };
        let steps = [
            testing::step(0, vec![testing::candidate("?", malformed, 0.0)]),
            testing::step(1, vec![testing::candidate("!", search, 1.0)]),
        ];
        testing::finish(&studio, "q3", &steps);
        let view = studio.run_view(RUN).unwrap();
        assert_eq!((view.finished, view.em.unwrap().mean), (3, 1.0));
        // Four actions of q1 and q2, two of q3.
        assert!(
            (view.malformed_rate - 1.0 / 6.0).abs() < 1e-9,
            "{}",
            view.malformed_rate
        );
    }
}
