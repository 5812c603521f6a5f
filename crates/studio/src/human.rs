//! A person as a judge: states shown blind, verdicts stored beside the other judges', and what each judge
//! said of an episode.

use gym::judge::{Verdict, rank_rewards, step_seed};
use gym::{Gold, LabelledQuestion, QuestionId, Seed, Step};
use serde::{Deserialize, Serialize};
use specta::Type;
use store::RUN_JUDGE;

use crate::judges::named_by;
use crate::view::{IntervalView, PassageView};
use crate::{Result, Studio, StudioError, run, show};

/// The judge id of verdicts that a person gave.
const HUMAN: &str = "human";

/// A state that a person can judge: at least two of its candidates are well-formed.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, Type)]
pub struct HumanState {
    pub question_id: String,
    pub step_idx: u32,
    pub judged: bool,
}

/// What a person sees of a state: what the agent knew, and what it could do, in an order that tells nothing.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, Type)]
pub struct HumanView {
    pub question: String,
    pub options: Vec<String>,
    /// Only shown when asked for.
    pub gold: Vec<String>,
    pub before: Vec<PastStep>,
    pub candidates: Vec<BlindCandidate>,
}

/// A step that led to a state.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, Type)]
pub struct PastStep {
    pub query: Option<String>,
    pub passages: Vec<PassageView>,
    pub finding: Option<String>,
}

/// A candidate without rewards, probabilities and counts.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, Type)]
pub struct BlindCandidate {
    pub reasoning: Option<String>,
    pub query: Option<String>,
    pub answer: Option<String>,
}

/// What one judge said of one step.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, Type)]
pub struct VerdictView {
    pub step_idx: u32,
    pub judge: String,
    /// The run took its actions by these rewards.
    pub own: bool,
    /// One a candidate; `None` where the judge abstained.
    pub rewards: Option<Vec<f64>>,
    pub rationale: Option<String>,
    pub latency_ms: f64,
}

/// How far two judges agree; each measure with its interval over questions and its n.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, Type)]
pub struct AgreementView {
    pub a: String,
    pub b: String,
    pub states: u32,
    pub abstained_a: u32,
    pub abstained_b: u32,
    pub pair_accuracy: Option<(IntervalView, u32)>,
    pub kendall_tau: Option<(IntervalView, u32)>,
    pub cohen_kappa: Option<(IntervalView, u32)>,
}

impl Studio {
    /// The states of a run that a person can judge, in the order of its questions.
    pub fn human_states(&self, run: &str) -> Result<Vec<HumanState>> {
        self.run_row(run)?;
        let mut states = Vec::new();
        for episode in self.store().episodes(run)? {
            let question = episode.question_id;
            let verdicts = self.store().verdicts(run, &question)?;
            for step in self.store().steps(run, &question)? {
                if well_formed(&step).len() > 1 {
                    let of_human = |v: &store::StoredVerdict| v.judge_id == HUMAN && v.step_idx == step.step_idx;
                    states.push(HumanState {
                        question_id: question.0.clone(),
                        step_idx: step.step_idx,
                        judged: verdicts.iter().any(of_human),
                    });
                }
            }
        }
        Ok(states)
    }

    pub fn human_state(&self, run: &str, question_id: &str, step_idx: u32) -> Result<HumanView> {
        let (labelled, steps, at) = self.state(run, question_id, step_idx)?;
        let question = &labelled.question;
        let before = steps[..at].iter().map(|step| {
            let query = step.action().query().unwrap_or_default();
            PastStep {
                query: step.action().query().map(str::to_owned),
                // Which passages are gold would tell what is right.
                passages: step
                    .hits
                    .iter()
                    .map(|hit| show::passage(hit, query, &Gold::default()))
                    .collect(),
                finding: step.finding.clone(),
            }
        });
        let blind = |idx: usize| {
            let candidate = &steps[at].candidates[idx];
            BlindCandidate {
                reasoning: candidate.reasoning.clone(),
                query: candidate.action.query().map(str::to_owned),
                answer: candidate.action.answer().map(str::to_owned),
            }
        };
        Ok(HumanView {
            question: question.text.clone(),
            options: question
                .options
                .iter()
                .map(|option| format!("{}. {}", option.label, option.text))
                .collect(),
            gold: labelled.gold.answers.clone(),
            before: before.collect(),
            candidates: order(&question.id, &steps[at]).into_iter().map(blind).collect(),
        })
    }

    /// Stores a person's verdict: `best` are candidates of the [`HumanView`], best first, `worst` are those
    /// to avoid; all others are equal, after the best. Both empty is an abstention.
    pub fn judge_by_hand(
        &self,
        run: &str,
        question_id: &str,
        step_idx: u32,
        best: &[u32],
        worst: &[u32],
        took_ms: f64,
    ) -> Result<()> {
        let (labelled, steps, at) = self.state(run, question_id, step_idx)?;
        let (id, step) = (&labelled.question.id, &steps[at]);
        let rewards = by_hand(&order(id, step), step.candidates.len(), best, worst)?;
        let verdict = Verdict {
            rewards,
            rationale: None,
        };
        self.store()
            .add_verdict(run, id, step_idx, HUMAN, &verdict, took_ms.max(0.0) as u64)?;
        Ok(())
    }

    /// Takes a person's verdict back.
    pub fn unjudge(&self, run: &str, question_id: &str, step_idx: u32) -> Result<()> {
        self.run_row(run)?;
        let question = QuestionId(question_id.into());
        Ok(self.store().remove_verdict(run, &question, step_idx, HUMAN)?)
    }

    /// What every judge and reward model said of an episode's steps, the run's own first.
    pub fn verdicts(&self, run: &str, question_id: &str) -> Result<Vec<VerdictView>> {
        let own = run::own_judge_of(&self.run_row(run)?)?;
        let stored = self.store().verdicts(run, &QuestionId(question_id.into()))?;
        let mut verdicts: Vec<VerdictView> = stored
            .into_iter()
            .map(|stored| VerdictView {
                step_idx: stored.step_idx,
                own: stored.judge_id == RUN_JUDGE,
                judge: named_by(stored.judge_id, own.as_deref()),
                rewards: stored.verdict.rewards,
                rationale: stored.verdict.rationale,
                latency_ms: stored.latency_ms as f64,
            })
            .collect();
        verdicts.sort_by_key(|verdict| (!verdict.own, verdict.judge.clone(), verdict.step_idx));
        Ok(verdicts)
    }

    /// How far two judges of a run agree, as `agreement` reports it.
    pub fn agreement_view(&self, run: &str, a: &str, b: &str) -> Result<AgreementView> {
        let found = self.agreement(run, a, b)?;
        let measure = |measure: Option<gym::agreement::Measure>| {
            let measure = measure?;
            let (mean, low, high) = (measure.value, measure.low, measure.high);
            Some((IntervalView { mean, low, high }, measure.n as u32))
        };
        Ok(AgreementView {
            a: found.a,
            b: found.b,
            states: found.agreement.states as u32,
            abstained_a: found.agreement.abstained_a as u32,
            abstained_b: found.agreement.abstained_b as u32,
            pair_accuracy: measure(found.agreement.pair_accuracy),
            kendall_tau: measure(found.agreement.kendall_tau),
            cohen_kappa: measure(found.agreement.cohen_kappa),
        })
    }

    fn state(&self, run: &str, question_id: &str, step_idx: u32) -> Result<(LabelledQuestion, Vec<Step>, usize)> {
        let row = self.run_row(run)?;
        let id = QuestionId(question_id.into());
        let labelled = self.episode_question(&row, &id)?;
        let steps = self.store().steps(run, &id)?;
        match steps.iter().position(|step| step.step_idx == step_idx) {
            Some(at) => Ok((labelled, steps, at)),
            None => Err(StudioError::NotFound {
                kind: "step",
                name: step_idx.to_string(),
                hint: format!(" of question `{question_id}` in run `{run}`"),
            }),
        }
    }
}

fn well_formed(step: &Step) -> Vec<usize> {
    let formed = |idx: &usize| !step.candidates[*idx].action.is_malformed();
    (0..step.candidates.len()).filter(formed).collect()
}

/// The well-formed candidates, shuffled alike whenever the state is shown.
fn order(question: &QuestionId, step: &Step) -> Vec<usize> {
    let mut order = well_formed(step);
    let mut rng = step_seed(Seed(0), question, step.step_idx).derive_str(HUMAN).rng();
    for i in (1..order.len()).rev() {
        order.swap(i, rng.below(i + 1));
    }
    order
}

/// Rewards as a ranking judge gives them: 1 / (1 + i) for rank i from 0, shared by those not named; 0 for the
/// worst and the malformed.
fn by_hand(order: &[usize], n: usize, best: &[u32], worst: &[u32]) -> Result<Option<Vec<f64>>> {
    let mut named: Vec<u32> = best.iter().chain(worst).copied().collect();
    named.sort_unstable();
    named.dedup();
    if named.len() != best.len() + worst.len() || named.iter().any(|&shown| shown as usize >= order.len()) {
        let message = format!(
            "each of {} candidates can be named once: {best:?}, {worst:?}",
            order.len()
        );
        return Err(StudioError::Invalid(message));
    }
    if named.is_empty() {
        return Ok(None);
    }
    let at = |shown: &u32| order[*shown as usize];
    let mut rewards = rank_rewards(&best.iter().map(at).collect::<Vec<_>>(), n);
    for shown in 0..order.len() as u32 {
        if named.binary_search(&shown).is_err() {
            rewards[at(&shown)] = 1.0 / (1 + best.len()) as f64;
        }
    }
    Ok(Some(rewards))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn keys_become_rewards_in_the_stored_order() {
        // Shown as stored candidates 3, 0, 2; candidate 1 is malformed.
        let given = |best: &[u32], worst: &[u32]| by_hand(&[3, 0, 2], 4, best, worst).unwrap();
        assert_eq!(given(&[0], &[]), Some(vec![0.5, 0.0, 0.5, 1.0]));
        assert_eq!(given(&[1], &[0]), Some(vec![1.0, 0.0, 0.5, 0.0]));
        assert_eq!(given(&[], &[2]), Some(vec![1.0, 0.0, 0.0, 1.0]));
        assert_eq!(given(&[2, 1, 0], &[]), Some(vec![0.5, 0.0, 1.0, 1.0 / 3.0]));
        assert_eq!(given(&[], &[]), None);
        for (best, worst) in [(&[0, 0][..], &[][..]), (&[1], &[1]), (&[3], &[])] {
            assert!(by_hand(&[3, 0, 2], 4, best, worst).is_err());
        }
    }
}
