//! What trainings learn from: stored runs, gold evidence, files; and a run's lessons as a file.

use std::collections::HashMap;
use std::path::Path;

use gym::{Agent, AgentKind, LabelledQuestion, PromptStyle, QuestionId, Step};
use store::{EpisodeStatus, RUN_JUDGE};
use training::expert::expert;
use training::lesson::{Encoder, Lesson, Selection, from_trl, lessons, to_trl, to_trl_stepwise};
use training::objective::{Example, Objective};

use crate::judges::find_judge;
use crate::{Result, Studio, StudioError, TrainRequest, run};

impl Studio {
    pub(crate) fn examples(&self, request: &TrainRequest, objective: Objective, model: &Path) -> Result<Vec<Example>> {
        let mut all = Vec::new();
        for run in &request.runs {
            all.extend(self.lessons_of_run(run, request.judge.as_deref(), objective)?);
        }
        for file in &request.files {
            all.extend(lessons_of_file(file)?);
        }
        if !request.expert.is_empty() && objective != Objective::Sft {
            return Err(StudioError::Invalid(
                "gold evidence teaches sft only: dpo and prm need a judged run".into(),
            ));
        }
        for set in &request.expert {
            all.extend(self.lessons_of_gold(request, set)?);
        }
        if all.is_empty() {
            return Err(StudioError::Invalid(
                "there is nothing to learn: no finished episode has a good outcome and, for dpo and prm, a state with \
                 candidates above 0.75 and below 0.5"
                    .into(),
            ));
        }
        let encoder = Encoder::open(model)?;
        Ok(all
            .iter()
            .map(|lesson| encoder.example(lesson))
            .collect::<training::Result<_>>()?)
    }

    /// With a judge, states that it has not judged teach nothing.
    fn lessons_of_run(&self, run: &str, judge: Option<&str>, objective: Objective) -> Result<Vec<Lesson>> {
        let rewards = judge.map(|judge| self.rewards_by(run, judge)).transpose()?;
        let mut all = Vec::new();
        self.each_episode(run, |labelled, steps| {
            refuse_test(labelled)?;
            let mut steps = steps.to_vec();
            if let Some(rewards) = &rewards {
                for step in &mut steps {
                    judged_by(step, rewards.get(&(labelled.question.id.clone(), step.step_idx)));
                }
            }
            all.extend(lessons(labelled, &steps, objective, Selection::default()));
            Ok(())
        })?;
        Ok(all)
    }

    /// What a judge says of the candidates of a run's steps, where it does not abstain.
    fn rewards_by(&self, run: &str, judge: &str) -> Result<HashMap<(QuestionId, u32), Vec<f64>>> {
        let own = run::chooser_of(&self.run_row(run)?)?;
        let mut verdicts = Vec::new();
        for episode in self.store().episodes(run)? {
            for stored in self.store().verdicts(run, &episode.question_id)? {
                let judge_id = match (stored.judge_id.as_str(), &own) {
                    (RUN_JUDGE, Some(own)) => own.clone(),
                    _ => stored.judge_id,
                };
                let place = (episode.question_id.clone(), stored.step_idx);
                verdicts.push((judge_id, place, stored.verdict.rewards));
            }
        }
        let judge = find_judge(judge, run, &verdicts.iter().map(|(judge, ..)| judge).collect())?;
        Ok(verdicts
            .into_iter()
            .filter(|(by, ..)| *by == judge)
            .filter_map(|(_, place, rewards)| Some((place, rewards?)))
            .collect())
    }

    /// Calls back with every finished episode of a run.
    fn each_episode(&self, run: &str, mut each: impl FnMut(&LabelledQuestion, &[Step]) -> Result<()>) -> Result<()> {
        self.run_row(run)?;
        for episode in self.store().episodes(run)? {
            if episode.status == EpisodeStatus::Finished {
                let labelled = self.store().episode_question(run, &episode.question_id)?;
                each(&labelled, &self.store().steps(run, &episode.question_id)?)?;
            }
        }
        Ok(())
    }

    fn lessons_of_gold(&self, request: &TrainRequest, set: &str) -> Result<Vec<Lesson>> {
        let corpus = match &request.corpus {
            Some(corpus) => corpus.clone(),
            None => self.store().question_set(set)?.corpus.ok_or_else(|| {
                StudioError::Invalid(format!("question set `{set}` names no corpus: say which with --corpus"))
            })?,
        };
        let index = self.index(&corpus)?;
        let mut all = Vec::new();
        for name in &request.agents {
            let kind: AgentKind = name
                .parse()
                .map_err(|error: gym::agent::UnknownName| StudioError::Invalid(error.to_string()))?;
            let agent = Agent::new(kind, PromptStyle::Compact);
            let limit = request.limit.map(|limit| limit as usize);
            for labelled in self.store().questions(set, limit)? {
                refuse_test(&labelled)?;
                let (policy, reader) = expert(&agent, &labelled, index.as_ref(), request.k as usize)?;
                all.extend(policy);
                all.extend(reader);
            }
        }
        Ok(all)
    }

    /// Writes what a run teaches as TRL's JSON lines: `trl-sft`, `trl-preference` or `trl-stepwise`. Returns
    /// the number of lines.
    pub fn export_lessons(&self, run: &str, to: &Path, format: &str) -> Result<usize> {
        let mut lines = Vec::new();
        let selection = Selection::default();
        self.each_episode(run, |labelled, steps| {
            let method = match format {
                "trl-sft" => Objective::Sft,
                "trl-preference" => Objective::Dpo { beta: 0.1 },
                "trl-stepwise" => {
                    lines.push(to_trl_stepwise(labelled, steps, selection));
                    return Ok(());
                }
                other => {
                    return Err(StudioError::Invalid(format!(
                        "there is no format `{other}`: choose trl-sft, trl-preference or trl-stepwise"
                    )));
                }
            };
            lines.extend(lessons(labelled, steps, method, selection).iter().flat_map(to_trl));
            Ok(())
        })?;
        let text: String = lines.iter().map(|line| format!("{line}\n")).collect();
        std::fs::write(to, text).map_err(|source| StudioError::File {
            action: "write",
            path: to.into(),
            source,
        })?;
        Ok(lines.len())
    }
}

/// Puts a judge's rewards in the place of the run's own.
fn judged_by(step: &mut Step, rewards: Option<&Vec<f64>>) {
    // A state without a prompt teaches nothing.
    step.prompt = step.prompt.take().filter(|_| rewards.is_some());
    for (idx, candidate) in step.candidates.iter_mut().enumerate() {
        candidate.reward = rewards.and_then(|rewards| rewards.get(idx).copied());
    }
}

/// What a test measures must not be learnt.
fn refuse_test(labelled: &LabelledQuestion) -> Result<()> {
    match labelled.split.as_deref() {
        Some("test") => Err(StudioError::Invalid(format!(
            "question `{}` belongs to a test split: it is for measuring, not for training",
            labelled.question.id.0
        ))),
        _ => Ok(()),
    }
}

fn lessons_of_file(path: &Path) -> Result<Vec<Lesson>> {
    let text = std::fs::read_to_string(path).map_err(|source| StudioError::File {
        action: "read",
        path: path.into(),
        source,
    })?;
    let lines = text.lines().enumerate().filter(|(_, line)| !line.trim().is_empty());
    lines
        .map(|(idx, line)| {
            from_trl(line)
                .map_err(|message| StudioError::Invalid(format!("{}, line {}: {message}", path.display(), idx + 1)))
        })
        .collect()
}
