//! The judge that knows the gold evidence: exact, free, offline.

use std::sync::Arc;

use crate::judge::{Judge, Verdict};
use crate::metrics::{accuracy, exact_match, gold_titles, title_key, token_f1};
use crate::{Action, Candidate, EngineError, Gold, Retriever, State};

/// Rewards by the three criteria, in their order: sufficiency, utility, redundancy.
///
/// `c` is the answer's correctness: accuracy where there are options, else 1 for an exact match, else
/// token F1. Rewards above 0.75 go to good actions only, below 0.5 to bad ones only.
///
/// | action | history holds every gold title (or no more searches) | a gold title is missing | no titles known |
/// |---|---|---|---|
/// | answer, c = 1 | 1 | 0.6 | 1 |
/// | answer, c < 1 | 0.2 + 0.5 c | 0.1 + 0.35 c | 0.2 + 0.5 c |
/// | answer, none known | 0.6 | 0.1 | (abstains) |
/// | query finding a missing title | — | 0.8 + 0.1 (share of the missing) + 0.1 / (rank of the first) | — |
/// | any other query | 0.3 | 0.3 | 0.5 |
/// | query that repeats the history | 0.1 | 0.1 | 0.1 |
/// | malformed | 0 | 0 | 0 |
///
/// Gold titles are those of the gold passages, or else of the sub-questions. It abstains where neither
/// titles nor answers are known.
pub struct EvidenceJudge {
    retriever: Arc<dyn Retriever>,
    k: usize,
}

impl EvidenceJudge {
    /// `k` passages per query, as many as the episode retrieves.
    pub fn new(retriever: Arc<dyn Retriever>, k: usize) -> EvidenceJudge {
        EvidenceJudge { retriever, k }
    }

    fn reward(
        &self,
        state: &State,
        gold: &Gold,
        titles: &[String],
        missing: &[String],
        action: &Action,
    ) -> Result<f64, EngineError> {
        let sufficient = missing.is_empty() || state.truncated;
        Ok(match action {
            Action::Malformed { .. } => 0.0,
            Action::Finish { answer } => match (correctness(answer, state, gold), sufficient) {
                (None, true) => 0.6,
                (None, false) => 0.1,
                (Some(c), true) if c >= 1.0 => 1.0,
                (Some(c), true) => 0.2 + 0.5 * c,
                (Some(c), false) if c >= 1.0 => 0.6,
                (Some(c), false) => 0.1 + 0.35 * c,
            },
            Action::Search { query, .. } if state.repeats(query) => 0.1,
            Action::Search { .. } if titles.is_empty() => 0.5,
            Action::Search { .. } if sufficient => 0.3,
            Action::Search { query, .. } => {
                let hits = self.retriever.search(query, self.k)?;
                let found: Vec<String> = hits.iter().map(|hit| title_key(&hit.passage.title)).collect();
                let n_found = missing.iter().filter(|title| found.contains(title)).count();
                match found.iter().position(|title| missing.contains(title)) {
                    Some(first) => 0.8 + 0.1 * n_found as f64 / missing.len() as f64 + 0.1 / (first + 1) as f64,
                    None => 0.3,
                }
            }
        })
    }
}

impl Judge for EvidenceJudge {
    fn id(&self) -> &str {
        "evidence-1"
    }

    fn judge(&self, state: &State, gold: &Gold, candidates: &[Candidate]) -> Result<Verdict, EngineError> {
        let titles = gold_titles(gold);
        if titles.is_empty() && gold.answers.is_empty() {
            return Ok(Verdict {
                rewards: None,
                rationale: Some("the question has neither gold evidence nor a gold answer".into()),
            });
        }
        let seen: Vec<String> = state
            .history
            .iter()
            .flat_map(|turn| &turn.hits)
            .map(|hit| title_key(&hit.passage.title))
            .collect();
        let missing: Vec<String> = titles.iter().filter(|title| !seen.contains(title)).cloned().collect();
        let rewards = candidates
            .iter()
            .map(|candidate| self.reward(state, gold, &titles, &missing, &candidate.action))
            .collect::<Result<_, _>>()?;
        let rationale = match (titles.len(), missing.len()) {
            (0, _) => "no gold titles: answers are judged by correctness".to_owned(),
            (n, 0) => format!("the history holds all {n} gold titles"),
            (n, m) => format!(
                "the history holds {} of {n} gold titles; missing: {}",
                n - m,
                missing.join("; ")
            ),
        };
        Ok(Verdict {
            rewards: Some(rewards),
            rationale: Some(rationale),
        })
    }
}

/// `None` if no answer is known.
fn correctness(answer: &str, state: &State, gold: &Gold) -> Option<f64> {
    if gold.answers.is_empty() {
        return None;
    }
    Some(accuracy(answer, &state.question, gold).unwrap_or_else(|| {
        if exact_match(answer, gold) == 1.0 {
            1.0
        } else {
            token_f1(answer, gold).min(0.99)
        }
    }))
}
