//! Trained reward models at work in an episode.

use std::path::Path;
use std::sync::Arc;

use gym::{Agent, Candidate, EngineError, RewardModel, State};
use training::lesson::Completion;
use training::rewarder::Rewarder;

use crate::{Result, Studio, StudioError};

/// Raise it when the same files reward otherwise than before.
const VERSION: u32 = 1;

/// Scores candidates behind the prompt that the agent would send, as in training.
struct TrainedReward {
    id: String,
    agent: Agent,
    rewarder: Rewarder,
}

impl RewardModel for TrainedReward {
    fn id(&self) -> &str {
        &self.id
    }

    fn score(&self, state: &State, candidates: &[Candidate]) -> std::result::Result<Vec<f64>, EngineError> {
        let completions: Vec<Completion> = candidates
            .iter()
            .map(|candidate| Completion {
                text: candidate.text.clone(),
                token_ids: candidate.token_ids.clone(),
                reward: None,
            })
            .collect();
        self.rewarder
            .score(&self.agent.prompt(state), &completions)
            .map_err(|error| EngineError::Failed {
                engine: self.id.clone(),
                message: error.to_string(),
            })
    }
}

impl Studio {
    /// Reads a reward model from its files, for episodes of `agent`.
    pub(crate) fn open_reward_model(&self, row: &store::Model, agent: Agent) -> Result<Arc<dyn RewardModel>> {
        let (root, adapter) = self.root_of(&row.name)?;
        let adapter = adapter.ok_or_else(|| {
            StudioError::Invalid(format!(
                "reward model `{}` has no base: train one with `rag-gym train prm`",
                row.name
            ))
        })?;
        let file = row.sha256.get(..8).unwrap_or(&row.sha256);
        Ok(Arc::new(TrainedReward {
            id: format!("{}#{VERSION}-{file}", row.name),
            agent,
            rewarder: Rewarder::open(Path::new(&root.path), &adapter)?,
        }))
    }
}
