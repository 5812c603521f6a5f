//! The pure core: question answering as a nested Markov decision process.
//!
//! Values (question, passage, state, action, candidate, step, episode), the traits that engines
//! implement (`Retriever`, `LanguageModel`, `Judge`), the six agents, judges that need no model, and
//! metrics. No files, no threads, no tensors, no clock, no ambient randomness: the caller passes them.

pub mod action;
pub mod agent;
pub mod engine;
pub mod episode;
pub mod evidence;
pub mod judge;
pub mod metrics;
pub mod parse;
pub mod question;
pub mod seed;
pub mod state;
pub mod statistics;

pub use action::{Action, Candidate};
pub use agent::{Agent, AgentKind, PromptStyle};
pub use engine::{
    Cancel, EngineError, FinishReason, Generation, Grammar, LanguageModel, Message, Prompt, Retriever, Role, Sample,
    Sampling, TokenEvent, Usage,
};
pub use episode::{Engines, EpisodeConfig, Event, Observer, Step, Termination, outcome, run_episode};
pub use evidence::EvidenceJudge;
pub use judge::{Judge, Verdict};
pub use question::{AnswerOption, Gold, GoldPassage, LabelledQuestion, Question, QuestionId, SubQuestion};
pub use seed::Seed;
pub use state::{Hit, Passage, State, Turn, transition};
pub use statistics::{Interval, PairedTest, bootstrap_mean, paired_difference};
