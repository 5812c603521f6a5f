//! The state of the outer decision process and its only transition.

use std::sync::Arc;

use serde::{Deserialize, Serialize};

use crate::{Action, Question};

/// A unit of retrieval.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Passage {
    /// Unique in its corpus; the publisher's id where there is one.
    pub id: String,
    pub title: String,
    pub text: String,
}

/// A retrieved passage.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Hit {
    pub passage: Arc<Passage>,
    /// The retriever's own score; higher is better.
    pub score: f32,
    /// From 1.
    pub rank: u32,
}

/// One round of information seeking.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Turn {
    pub query: String,
    pub hits: Vec<Hit>,
    /// The reader's short answer to the query, for agents that read (Search-o1, ReSearch).
    pub finding: Option<String>,
}

/// `s_t = (Q, H_t)`. Holds nothing that the agent may not see.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct State {
    pub question: Question,
    pub history: Vec<Turn>,
    /// No more searches are allowed: the agent is asked for an answer only.
    pub truncated: bool,
}

impl State {
    pub fn new(question: Question) -> State {
        State {
            question,
            history: Vec::new(),
            truncated: false,
        }
    }

    /// Whether `query` repeats one of the history, ignoring case and spacing.
    pub fn repeats(&self, query: &str) -> bool {
        let key = |s: &str| s.to_lowercase().split_whitespace().collect::<Vec<_>>().join(" ");
        let query = key(query);
        self.history.iter().any(|turn| key(&turn.query) == query)
    }
}

/// The next state: a search appends its turn; an answer or a malformed action changes nothing.
///
/// `hits` and `finding` are what the environment returned for the query; ignored otherwise.
pub fn transition(state: &State, action: &Action, hits: Vec<Hit>, finding: Option<String>) -> State {
    let mut next = state.clone();
    if let Action::Search { query, .. } = action {
        next.history.push(Turn {
            query: query.clone(),
            hits,
            finding,
        });
    }
    next
}
