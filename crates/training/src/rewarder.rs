//! A trained reward model at work: scores what may follow a prompt, with the decoder that policies run on, so that the
//! prompt's beginning comes from its cache and the states of several episodes share a batch.

use std::path::Path;

use gym::{Cancel, Prompt};
use lm::LocalModel;

use crate::lesson::{Completion, Encoder};
use crate::{Result, TrainingError};

pub struct Rewarder {
    model: LocalModel,
    encoder: Encoder,
}

impl Rewarder {
    /// `base`: shares its weights; `adapter`: the folder that PRM training wrote.
    pub fn open(base: &LocalModel, adapter: &Path) -> Result<Rewarder> {
        let model = base.with_adapter(adapter)?;
        if !model.is_reward_model() {
            return Err(TrainingError::Invalid(
                "the adapter has no reward head: train one with prm".into(),
            ));
        }
        Ok(Rewarder {
            encoder: Encoder::of(&model)?,
            model,
        })
    }

    /// One reward per completion, in order. A prompt that does not fit loses its beginning, as in training.
    pub fn score(&self, prompt: &Prompt, completions: &[Completion]) -> Result<Vec<f64>> {
        let encoded = completions.iter().map(|completion| self.encoder.completion(completion));
        let completions: Vec<Vec<u32>> = encoded.collect::<Result<_>>()?;
        let longest = completions.iter().map(Vec::len).max().unwrap_or(0);
        let prompt = self.encoder.prompt(prompt)?;
        let context = self.model.info().context_tokens;
        let cut = (prompt.len() + longest).saturating_sub(context);
        let Some(prompt) = prompt.get(cut..).filter(|prompt| !prompt.is_empty()) else {
            return Err(TrainingError::Invalid(format!(
                "a candidate of {longest} tokens leaves no room for its prompt in {context}"
            )));
        };
        let rewards = self.model.rewards(prompt, &completions, &Cancel::default())?;
        Ok(rewards.into_iter().map(f64::from).collect())
    }
}
