//! Trained reward models at work in an episode.

use std::path::Path;
use std::sync::Arc;

use gym::{Agent, Candidate, EngineError, PromptStyle, RewardModel, State};
use training::cross_encoder::Scorer;
use training::lesson::{Completion, Lesson};
use training::rewarder::Rewarder;

use crate::engines::parse;
use crate::library::ENCODER;
use crate::view::AgentSettings;
use crate::{Result, Studio, StudioError};

/// Raise it when the same files reward otherwise than before.
const VERSION: u32 = 2;

/// A reward model's files, read.
#[expect(clippy::large_enum_variant, reason = "there are one or two at a time")]
pub(crate) enum Loaded {
    Adapter(Rewarder),
    Encoder(Scorer),
}

/// Scores candidates behind the prompt that the agent would send, as in training.
struct TrainedReward {
    id: String,
    agent: Agent,
    loaded: Arc<Loaded>,
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
        let prompt = self.agent.prompt(state);
        let scored = match &*self.loaded {
            Loaded::Adapter(rewarder) => rewarder.score(&prompt, &completions),
            Loaded::Encoder(scorer) => scorer.score(&Lesson {
                question: String::new(),
                prompt,
                completions,
                pairs: Vec::new(),
            }),
        };
        scored.map_err(|error| EngineError::Failed {
            engine: self.id.clone(),
            message: gym::chain(&error),
        })
    }
}

/// Name, version and file of a reward model: what a run keeps of it.
pub(crate) fn reward_id(row: &store::Model) -> String {
    let file = row.sha256.get(..8).unwrap_or(&row.sha256);
    format!("{}#{VERSION}-{file}", row.name)
}

impl Studio {
    /// The row of a model that gives rewards.
    pub(crate) fn reward_row(&self, name: &str) -> Result<store::Model> {
        let row = self.model_row(name)?;
        if row.kind != "reward" {
            return Err(StudioError::Invalid(format!(
                "model `{name}` is of kind `{}`: a reward model is needed",
                row.kind
            )));
        }
        Ok(row)
    }

    /// A registered reward model, to score what the agent of these settings does.
    pub(crate) fn reward_model(&self, name: &str, settings: &AgentSettings) -> Result<Arc<dyn RewardModel>> {
        let row = self.reward_row(name)?;
        let style = match row.architecture.as_str() {
            ENCODER => PromptStyle::Compact,
            _ => parse(settings.prompt.as_deref().unwrap_or("compact"))?,
        };
        Ok(Arc::new(TrainedReward {
            id: reward_id(&row),
            agent: Agent::new(parse(&settings.agent)?, style),
            loaded: self.loaded_reward(&row)?,
        }))
    }

    /// Read from its files once.
    fn loaded_reward(&self, row: &store::Model) -> Result<Arc<Loaded>> {
        let name = &row.name;
        if let Some(loaded) = self.inner.rewarders.get(name, &row.sha256) {
            return Ok(loaded);
        }
        let (root, adapter) = self.root_of(name)?;
        let loaded = match adapter {
            Some(adapter) => Loaded::Adapter(Rewarder::open(&*self.load_local(&root.name)?, &adapter)?),
            None if root.architecture == ENCODER => Loaded::Encoder(Scorer::open(Path::new(&root.path))?),
            None => {
                return Err(StudioError::Invalid(format!(
                    "reward model `{name}` has no base: train one with `rag-gym train prm`"
                )));
            }
        };
        Ok(self.inner.rewarders.keep(name, &row.sha256, loaded))
    }
}
