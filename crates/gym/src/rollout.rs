//! A judge that plays on from each candidate and looks at how it ends (Math-Shepherd).

use std::sync::Arc;

use serde::{Deserialize, Serialize};

use crate::episode::{ended, read};
use crate::judge::{Judge, Verdict, Visit};
use crate::metrics::{accuracy, exact_match, token_f1};
use crate::{
    Action, Agent, Candidate, EngineError, Engines, EpisodeConfig, Event, Findings, Hit, LanguageModel, Observer,
    Retriever, Selection, Step, Usage, outcome, run_episode,
};

/// The reward of an episode's answer; accuracy in its place where the question has options.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Outcome {
    Em,
    F1,
}

/// A candidate's value: the mean outcome of continuations that start with it, sampled with the run's own
/// agent and engines, one candidate a step, within the steps that are left.
///
/// An answer needs no continuation, a greedy policy only one, and candidates with the same query share
/// theirs. Abstains where no gold answer is known.
pub struct RolloutJudge {
    pub id: String,
    pub agent: Agent,
    pub policy: Arc<dyn LanguageModel>,
    pub reader: Arc<dyn LanguageModel>,
    pub retriever: Arc<dyn Retriever>,
    /// The run's own.
    pub config: EpisodeConfig,
    pub continuations: u32,
    pub outcome: Outcome,
    pub findings: Arc<dyn Findings>,
}

impl RolloutJudge {
    fn engines(&self) -> Engines<'_> {
        Engines {
            agent: &self.agent,
            policy: self.policy.as_ref(),
            reader: self.reader.as_ref(),
            retriever: self.retriever.as_ref(),
            judge: None,
            reward_model: None,
        }
    }

    fn reward(&self, visit: &Visit<'_>, steps: &[Step]) -> f64 {
        let answer = outcome(steps).0.unwrap_or_default();
        let gold = visit.gold();
        accuracy(answer, &visit.labelled.question, gold).unwrap_or_else(|| match self.outcome {
            Outcome::Em => exact_match(answer, gold),
            Outcome::F1 => token_f1(answer, gold),
        })
    }

    /// The steps up to this candidate, taken.
    fn taken(&self, visit: &Visit<'_>, candidate: &Candidate) -> Result<Vec<Step>, EngineError> {
        let (mut hits, mut finding) = (Vec::new(), None);
        if let Action::Search { query, .. } = &candidate.action {
            hits = self.retriever.search(query, self.config.k)?;
            if self.agent.reads() {
                let observer = &mut Unseen(self.findings.as_ref());
                let engines = &self.engines();
                let (text, _) = read(visit.state, query, &hits, &self.config, engines, observer, visit.cancel)?;
                finding = Some(text);
            }
        }
        let mut steps = visit.steps.to_vec();
        steps.push(Step {
            step_idx: steps.len() as u32,
            truncated: visit.state.truncated,
            prompt: None,
            dropped: Vec::new(),
            candidates: vec![candidate.clone()],
            chosen: 0,
            verdict: None,
            opinions: Vec::new(),
            hits,
            finding,
            usage: Usage::default(),
        });
        Ok(steps)
    }

    fn value(
        &self,
        visit: &Visit<'_>,
        candidate: &Candidate,
        known: &mut Vec<(String, f64)>,
    ) -> Result<f64, EngineError> {
        let query = match &candidate.action {
            Action::Malformed { .. } => return Ok(0.0),
            Action::Finish { .. } => return Ok(self.reward(visit, &self.taken(visit, candidate)?)),
            Action::Search { query, .. } => query,
        };
        let config = EpisodeConfig {
            n_candidates: 1,
            selection: Selection::First,
            ..self.config.clone()
        };
        let steps = self.taken(visit, candidate)?;
        if ended(&self.agent, &config, &steps) {
            return Ok(self.reward(visit, &steps));
        }
        if let Some((_, value)) = known.iter().find(|(other, _)| other == query) {
            return Ok(*value);
        }
        let continuations = if config.sampling.temperature == 0.0 {
            1
        } else {
            self.continuations
        };
        let seed = visit.seed.derive_str(query);
        let mut sum = 0.0;
        for continuation in 0..continuations {
            let steps = run_episode(
                visit.labelled,
                &config,
                &self.engines(),
                seed.derive(continuation.into()),
                steps.clone(),
                &mut Unseen(self.findings.as_ref()),
                visit.cancel,
            )?;
            sum += self.reward(visit, &steps);
        }
        let value = sum / f64::from(continuations.max(1));
        known.push((query.clone(), value));
        Ok(value)
    }
}

impl Judge for RolloutJudge {
    fn id(&self) -> &str {
        &self.id
    }

    fn judge(&self, visit: &Visit<'_>) -> Result<Verdict, EngineError> {
        if visit.gold().answers.is_empty() {
            return Ok(Verdict {
                rewards: None,
                rationale: Some("the question has no gold answer".into()),
            });
        }
        let mut known = Vec::new();
        let values = visit
            .candidates
            .iter()
            .map(|candidate| self.value(visit, candidate, &mut known));
        Ok(Verdict {
            rewards: Some(values.collect::<Result<_, _>>()?),
            rationale: None,
        })
    }
}

/// Nobody watches a continuation; only its reader's answers are kept.
struct Unseen<'a>(&'a dyn Findings);

impl Observer for Unseen<'_> {
    fn on_event(&mut self, _event: Event<'_>) -> Result<(), EngineError> {
        Ok(())
    }

    fn cached_finding(&mut self, question: &str, query: &str, hits: &[Hit]) -> Option<String> {
        self.0.finding(question, query, hits)
    }

    fn store_finding(&mut self, question: &str, query: &str, hits: &[Hit], finding: &str) {
        self.0.keep(question, query, hits, finding);
    }
}
