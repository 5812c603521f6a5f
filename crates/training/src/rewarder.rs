//! A trained reward model at work: scores what may follow a prompt, the prompt computed once.

use std::path::Path;

use gym::Prompt;

use crate::adapter::Adapter;
use crate::base::Base;
use crate::lesson::{Completion, Encoder};
use crate::objective::{Batch, Example, rewards};
use crate::{Result, TrainingError};

pub struct Rewarder {
    base: Base,
    adapter: Adapter,
    encoder: Encoder,
}

impl Rewarder {
    /// `model`: the base's file; `adapter`: the folder that PRM training wrote.
    pub fn open(model: &Path, adapter: &Path) -> Result<Rewarder> {
        let base = Base::open(model)?;
        let adapter = Adapter::load(&base.config, adapter)?;
        if !adapter.config.head {
            return Err(TrainingError::Invalid(
                "the adapter has no reward head: train one with prm".into(),
            ));
        }
        Ok(Rewarder {
            base,
            adapter,
            encoder: Encoder::open(model)?,
        })
    }

    /// One reward per completion, in order. A prompt that does not fit loses its beginning, as in training.
    pub fn score(&self, prompt: &Prompt, completions: &[Completion]) -> Result<Vec<f64>> {
        let encoded = completions.iter().map(|completion| self.encoder.completion(completion));
        let completions: Vec<Vec<u32>> = encoded.collect::<Result<_>>()?;
        let longest = completions.iter().map(Vec::len).max().unwrap_or(0);
        let prompt = self.encoder.prompt(prompt)?;
        let cut = (prompt.len() + longest).saturating_sub(self.base.config.context_tokens);
        let Some(prompt) = prompt.get(cut..).filter(|prompt| !prompt.is_empty()) else {
            return Err(TrainingError::Invalid(format!(
                "a candidate of {longest} tokens leaves no room for its prompt in {}",
                self.base.config.context_tokens
            )));
        };
        let example = Example {
            question: String::new(),
            prompt: prompt.to_vec(),
            completions,
            pairs: Vec::new(),
        };
        let scored = rewards(&self.base, &self.adapter, &Batch::new(&[&example]))?;
        Ok(scored.into_iter().map(f64::from).collect())
    }
}
