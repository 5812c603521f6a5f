//! The pure core: question answering as a nested Markov decision process.
//!
//! Values (question, passage, state, action, candidate, step, episode), the traits that engines
//! implement (`Retriever`, `LanguageModel`, `Judge`, `RewardModel`), the six agents, judges, and
//! metrics. No files, no threads, no tensors, no clock, no ambient randomness: the caller passes them.

pub mod action;
pub mod agent;
pub mod agreement;
pub mod comparison;
pub mod engine;
pub mod episode;
pub mod evidence;
pub mod excerpt;
pub mod judge;
pub mod llm_judge;
pub mod metrics;
pub mod monitors;
pub mod parse;
pub mod quantity;
mod question;
pub mod rollout;
pub mod seed;
pub mod state;
pub mod statistics;

pub use action::{Action, Candidate};
pub use agent::{Agent, AgentKind, PromptStyle};
pub use agreement::{Agreement, JudgedState, Measure, agreement};
pub use engine::{
    Cancel, EngineError, FinishReason, Generation, Grammar, LanguageModel, Message, Prompt, Retriever, Role, Sample,
    Sampling, TokenEvent, Usage, chain,
};
pub use episode::{
    Engines, EpisodeConfig, Event, Findings, Observer, Step, Termination, outcome, run_episode, state_after,
};
pub use evidence::EvidenceJudge;
pub use judge::{Judge, Opinion, RewardModel, Selection, Verdict, Visit};
pub use llm_judge::LlmJudge;
pub use monitors::{GuidedEpisode, GuidedState, Monitors, monitors};
pub use question::{AnswerOption, Gold, GoldPassage, LabelledQuestion, Question, QuestionId, SubQuestion};
pub use rollout::{Outcome, RolloutJudge};
pub use seed::Seed;
pub use state::{Hit, Passage, State, Turn, transition};
pub use statistics::{Interval, PairedTest, bootstrap_mean, paired_difference};
