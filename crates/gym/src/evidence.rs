//! The judge that knows the gold evidence: exact, free, offline.

use std::sync::Arc;

use crate::judge::{Judge, Verdict, Visit};
use crate::metrics::{accuracy, exact_match, gold_titles, title_key, token_f1};
use crate::{Action, EngineError, Gold, Retriever, State};

/// Rewards by the three criteria, in their order: sufficiency, utility, redundancy.
///
/// `c` is the answer's correctness: accuracy where there are options, else 1 for an exact match, else
/// token F1. Rewards above 0.75 go to good actions only, below 0.5 to bad ones only. Before the evidence is
/// complete an answer is a guess, even a right one, and ranks below every query that could add something.
///
/// | action | history holds every gold title (or no more searches) | a gold title is missing | no titles known |
/// |---|---|---|---|
/// | answer, c = 1 | 1 | 0.15 | 1 |
/// | answer, c < 1 | 0.2 + 0.5 c | 0.05 + 0.1 c | 0.2 + 0.5 c |
/// | answer, none known | 0.6 | 0.05 | (abstains) |
/// | query finding a missing title | — | 0.8 + 0.05 (share of the missing) + 0.05 / (rank of the first) + 0.1 (finds the next) | — |
/// | query finding nothing new | 0.3 | 0.2 | 0.5 |
/// | any other query | 0.3 | 0.3 | 0.5 |
/// | query that repeats the history | 0.1 | 0.1 | 0.1 |
/// | malformed | 0 | 0 | 0 |
///
/// Gold titles are those of the gold passages, or else of the sub-questions. The next one is the first
/// missing title in the order of the sub-questions, which build on each other; where no order is known,
/// each is the next. It abstains where neither titles nor answers are known.
pub struct EvidenceJudge {
    retriever: Arc<dyn Retriever>,
    k: usize,
}

impl EvidenceJudge {
    /// `k` passages per query, as many as the episode retrieves.
    pub fn new(retriever: Arc<dyn Retriever>, k: usize) -> EvidenceJudge {
        EvidenceJudge { retriever, k }
    }

    fn reward(&self, visit: &Visit<'_>, evidence: &Evidence, action: &Action) -> Result<f64, EngineError> {
        let state = visit.state;
        let sufficient = evidence.missing.is_empty() || visit.must_answer;
        Ok(match action {
            Action::Malformed { .. } => 0.0,
            Action::Finish { answer } => match (correctness(answer, state, visit.gold()), sufficient) {
                (None, true) => 0.6,
                (None, false) => 0.05,
                (Some(c), true) if c >= 1.0 => 1.0,
                (Some(c), true) => 0.2 + 0.5 * c,
                (Some(c), false) => 0.05 + 0.1 * c,
            },
            Action::Search { query, .. } if state.repeats(query) => 0.1,
            Action::Search { .. } if evidence.titles.is_empty() => 0.5,
            Action::Search { .. } if sufficient => 0.3,
            Action::Search { query, .. } => self.utility(query, evidence)?,
        })
    }

    /// Of a query while evidence is missing.
    fn utility(&self, query: &str, evidence: &Evidence) -> Result<f64, EngineError> {
        let Evidence {
            missing, next, seen, ..
        } = evidence;
        let hits = self.retriever.search(query, self.k)?;
        let found: Vec<String> = hits.iter().map(|hit| title_key(&hit.passage.title)).collect();
        let n_found = missing.iter().filter(|title| found.contains(title)).count();
        Ok(match found.iter().position(|title| missing.contains(title)) {
            Some(first) => {
                let share = n_found as f64 / missing.len() as f64;
                let in_order = next.as_ref().is_none_or(|next| found.contains(next));
                0.8 + 0.05 * share + 0.05 / (first + 1) as f64 + if in_order { 0.1 } else { 0.0 }
            }
            None if found.iter().all(|title| seen.contains(title)) => 0.2,
            None => 0.3,
        })
    }
}

/// What a state has and lacks; titles as `title_key` writes them.
struct Evidence {
    titles: Vec<String>,
    seen: Vec<String>,
    missing: Vec<String>,
    /// The first missing title in the sub-questions' order.
    next: Option<String>,
}

impl Evidence {
    fn of(visit: &Visit<'_>) -> Evidence {
        let gold = visit.gold();
        let titles = gold_titles(gold);
        let hits = visit.state.history.iter().flat_map(|turn| &turn.hits);
        let seen: Vec<String> = hits.map(|hit| title_key(&hit.passage.title)).collect();
        let missing: Vec<String> = titles.iter().filter(|title| !seen.contains(title)).cloned().collect();
        let in_order = gold.sub_questions.iter().filter_map(|sub| sub.title.as_deref());
        let next = in_order.map(title_key).find(|title| missing.contains(title));
        Evidence {
            titles,
            seen,
            missing,
            next,
        }
    }
}

impl Judge for EvidenceJudge {
    fn id(&self) -> &str {
        "evidence#3"
    }

    fn judge(&self, visit: &Visit<'_>) -> Result<Verdict, EngineError> {
        let evidence = Evidence::of(visit);
        let Evidence { titles, missing, .. } = &evidence;
        if titles.is_empty() && visit.gold().answers.is_empty() {
            return Ok(Verdict {
                rewards: None,
                rationale: Some("the question has neither gold evidence nor a gold answer".into()),
            });
        }
        let rewards = visit
            .candidates
            .iter()
            .map(|candidate| self.reward(visit, &evidence, &candidate.action))
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
