//! The traits that engines implement, and the values that cross them. All calls block; long ones take
//! a [`Cancel`] and check it per token or document.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use serde::{Deserialize, Serialize};

use crate::{Hit, Seed};

/// A failed engine. Never transcript text: an episode stops on it.
#[derive(Debug, thiserror::Error)]
pub enum EngineError {
    #[error("cancelled")]
    Cancelled,
    /// The prompt does not fit the model's context even with every passage dropped.
    #[error("prompt has {tokens} tokens; model `{model}` holds {limit}: shorten the question or the template")]
    PromptTooLong { model: String, tokens: usize, limit: usize },
    #[error("{engine}: {message}")]
    Failed { engine: String, message: String },
}

/// A shared flag: set once, checked often.
#[derive(Clone, Debug, Default)]
pub struct Cancel(Arc<AtomicBool>);

impl Cancel {
    pub fn cancel(&self) {
        self.0.store(true, Ordering::Relaxed);
    }

    pub fn is_cancelled(&self) -> bool {
        self.0.load(Ordering::Relaxed)
    }

    pub fn check(&self) -> Result<(), EngineError> {
        if self.is_cancelled() {
            Err(EngineError::Cancelled)
        } else {
            Ok(())
        }
    }
}

/// Finds passages of one corpus.
pub trait Retriever: Send + Sync {
    /// Best first, ranks from 1, at most `k`. A query without a known word returns no hits.
    fn search(&self, query: &str, k: usize) -> Result<Vec<Hit>, EngineError>;
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Role {
    System,
    User,
    Assistant,
}

#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Message {
    pub role: Role,
    pub content: String,
}

/// Messages for a chat model, which the model's own template turns into tokens.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Prompt {
    pub messages: Vec<Message>,
}

/// Sampling parameters; the defaults are greedy.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Sampling {
    /// 0 is greedy.
    pub temperature: f32,
    /// Keep the k likeliest tokens; 0 keeps all.
    pub top_k: usize,
    /// Nucleus mass; 1 keeps all.
    pub top_p: f32,
    /// Keep tokens at least this share of the likeliest one's probability; 0 keeps all.
    pub min_p: f32,
    /// Divides positive and multiplies negative logits of tokens already generated; 1 is off.
    pub repetition_penalty: f32,
    pub max_tokens: usize,
    /// Generation ends before the first of these in the text.
    pub stop: Vec<String>,
}

impl Default for Sampling {
    fn default() -> Self {
        Sampling {
            temperature: 0.0,
            top_k: 0,
            top_p: 1.0,
            min_p: 0.0,
            repetition_penalty: 1.0,
            max_tokens: 256,
            stop: Vec::new(),
        }
    }
}

/// The texts that decoding may spell. Generation ends when the grammar is complete.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Grammar {
    /// Exactly this text.
    Literal(String),
    /// One line of free text: at least one character that is not white space, at most `max_bytes`
    /// bytes, no control characters, then a line feed or the end of generation, which are not part of
    /// the match if the line is the last item.
    Line {
        max_bytes: usize,
    },
    Sequence(Vec<Grammar>),
    /// Any one of these; their literals must differ in the first byte after their common prefix.
    OneOf(Vec<Grammar>),
}

/// A request for `seeds.len()` samples from one prompt.
#[derive(Clone, Debug, PartialEq)]
pub struct Generation {
    pub prompt: Prompt,
    pub sampling: Sampling,
    /// One per sample.
    pub seeds: Vec<Seed>,
    pub grammar: Option<Grammar>,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum FinishReason {
    /// End token, stop string or complete grammar.
    Stop,
    /// `max_tokens` or the end of the context.
    Length,
}

#[derive(Clone, Debug, PartialEq)]
pub struct Sample {
    pub text: String,
    /// Empty where a server does not name them.
    pub token_ids: Vec<u32>,
    /// Natural log, at temperature 1, before any truncation of the distribution; one per token, none
    /// where a server does not give them.
    pub token_logprobs: Vec<f32>,
    pub finish: FinishReason,
}

/// Token counts of one call or a sum of calls.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Usage {
    pub prompt: u32,
    /// Prompt tokens that a cache supplied.
    pub cached: u32,
    pub generated: u32,
}

impl std::ops::AddAssign for Usage {
    fn add_assign(&mut self, other: Usage) {
        self.prompt += other.prompt;
        self.cached += other.cached;
        self.generated += other.generated;
    }
}

/// New text of one sample, as it is decoded. The texts of a sample's events concatenate to its text.
#[derive(Clone, Debug, PartialEq)]
pub struct TokenEvent {
    pub sample_idx: usize,
    pub text: String,
}

/// An error and its causes in one line.
pub fn chain(error: &dyn std::error::Error) -> String {
    let mut message = error.to_string();
    let mut cause = error.source();
    while let Some(error) = cause {
        message = format!("{message}: {error}");
        cause = error.source();
    }
    message
}

/// Generates text. Implementations serialise concurrent calls themselves.
pub trait LanguageModel: Send + Sync {
    /// Largest number of tokens of prompt and completion together.
    fn context_tokens(&self) -> usize;

    /// Tokens of the prompt after the chat template.
    fn count_tokens(&self, prompt: &Prompt) -> Result<usize, EngineError>;

    /// One sample per seed, in order.
    fn generate(
        &self,
        request: &Generation,
        cancel: &Cancel,
        on_token: &mut dyn FnMut(TokenEvent),
    ) -> Result<(Vec<Sample>, Usage), EngineError>;
}
