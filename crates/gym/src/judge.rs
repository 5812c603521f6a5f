//! Judges give process rewards to the candidates of a state. They alone see the gold answer.

use serde::{Deserialize, Serialize};

use crate::{Candidate, EngineError, Gold, State};

/// What a judge says of one state's candidates.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Verdict {
    /// One per candidate, higher is better; `None` is an abstention, never a zero.
    pub rewards: Option<Vec<f64>>,
    pub rationale: Option<String>,
}

pub trait Judge: Send + Sync {
    /// Name and version, as stored with every verdict.
    fn id(&self) -> &str;

    fn judge(&self, state: &State, gold: &Gold, candidates: &[Candidate]) -> Result<Verdict, EngineError>;
}
