//! What an agent may do in a state, and a sampled proposal to do it.

use serde::{Deserialize, Serialize};

/// A macro-action of the outer decision process.
#[derive(Clone, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(tag = "kind", rename_all = "snake_case")]
pub enum Action {
    Search {
        query: String,
        /// ReSearch always carries the answer it would give now.
        #[serde(default, skip_serializing_if = "Option::is_none")]
        predicted_answer: Option<String>,
    },
    Finish {
        answer: String,
    },
    /// Model text that spells no action. Counted in every report; never becomes a query.
    Malformed {
        reason: String,
    },
}

impl Action {
    /// The answer this action carries, final or predicted.
    pub fn answer(&self) -> Option<&str> {
        match self {
            Action::Search { predicted_answer, .. } => predicted_answer.as_deref(),
            Action::Finish { answer } => Some(answer),
            Action::Malformed { .. } => None,
        }
    }

    pub fn query(&self) -> Option<&str> {
        match self {
            Action::Search { query, .. } => Some(query),
            _ => None,
        }
    }

    pub fn is_malformed(&self) -> bool {
        matches!(self, Action::Malformed { .. })
    }
}

/// A sampled action with the text that spelled it.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Candidate {
    /// The model's text, whole and unchanged.
    pub text: String,
    pub reasoning: Option<String>,
    pub action: Action,
    pub token_ids: Vec<u32>,
    /// Natural-log probability of each token under the sampling model at temperature 1.
    pub token_logprobs: Vec<f32>,
    /// How many samples spelled this same action (duplicates are merged into the first).
    pub multiplicity: u32,
    /// The query repeats one of the history.
    pub redundant: bool,
    /// Process reward by the run's judge or reward model; `None` when nothing ranked the candidates.
    pub reward: Option<f64>,
}

impl Candidate {
    /// Sum of the token log-probabilities, in nats.
    pub fn logprob(&self) -> f64 {
        self.token_logprobs.iter().map(|&x| f64::from(x)).sum()
    }
}
