//! What the window and the command line show: the values that cross to a host, with no 64-bit integers
//! (JavaScript has none): bytes and milliseconds are floats, counts are `u32`.

use serde::{Deserialize, Serialize};
use specta::Type;

/// The settings of an agent at work; the same for one question and for a run.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, Type)]
pub struct AgentSettings {
    pub corpus: String,
    /// direct | cot | rag | react | search-o1 | research
    pub agent: String,
    pub model: String,
    /// Who condenses passages for agents that read; `None` for the model itself.
    #[serde(default)]
    pub reader: Option<String>,
    /// full | compact; `None` chooses by the model's size.
    pub prompt: Option<String>,
    /// Passages per search.
    pub k: u32,
    pub max_steps: u32,
    pub candidates: u32,
    /// 0 is greedy; with several candidates 1.0 is usual.
    pub temperature: f32,
    pub max_tokens: u32,
    pub seed: u32,
    /// evidence | llm:MODEL | rollout:M | rollout:M:em, or `None` for no judge. All but llm need gold.
    pub judge: Option<String>,
    /// A model of kind `reward`, which gives the rewards in the judge's place.
    #[serde(default)]
    pub reward_model: Option<String>,
    /// first | majority | prior | random | reward | weighted; `None` chooses reward where something gives one, else majority.
    #[serde(default)]
    pub select: Option<String>,
}

#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, Type)]
pub struct AskRequest {
    pub question: String,
    pub settings: AgentSettings,
}

#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, Type)]
pub struct RunRequest {
    pub name: Option<String>,
    pub questions: String,
    pub limit: Option<u32>,
    pub settings: AgentSettings,
}

/// Text cut where a query's words begin and end.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, Type)]
pub struct Segment {
    pub text: String,
    pub marked: bool,
}

#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, Type)]
pub struct PassageView {
    pub id: String,
    pub title: String,
    pub text: Vec<Segment>,
    pub score: f32,
    pub rank: u32,
    /// Its title is one of the question's gold passages.
    pub gold: bool,
}

#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, Type)]
pub struct CandidateView {
    pub text: String,
    pub reasoning: Option<String>,
    pub query: Option<String>,
    pub answer: Option<String>,
    /// Why no action could be read, if none could.
    pub malformed: Option<String>,
    /// Sum over tokens, nats.
    pub logprob: f64,
    /// Per token, nats.
    pub token_logprobs: Vec<f32>,
    pub reward: Option<f64>,
    pub multiplicity: u32,
    pub redundant: bool,
}

#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, Type)]
pub struct MessageView {
    pub role: String,
    pub content: String,
}

#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, Type)]
pub struct StepView {
    pub step_idx: u32,
    pub truncated: bool,
    /// As sent to the model; empty when the action was fixed.
    pub prompt: Vec<MessageView>,
    /// Ids of passages left out for lack of room.
    pub dropped: Vec<String>,
    pub candidates: Vec<CandidateView>,
    pub chosen: u32,
    pub judge: Option<String>,
    pub rationale: Option<String>,
    pub passages: Vec<PassageView>,
    pub finding: Option<String>,
    pub tokens: TokensView,
}

#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize, Type)]
pub struct TokensView {
    pub prompt: u32,
    pub cached: u32,
    pub generated: u32,
}

#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, Type)]
pub struct GoldView {
    pub answers: Vec<String>,
    pub titles: Vec<String>,
    pub sub_questions: Vec<String>,
}

#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, Type)]
pub struct EpisodeView {
    pub run: String,
    pub question_id: String,
    pub question: String,
    pub options: Vec<String>,
    pub gold: GoldView,
    pub status: String,
    pub answer: Option<String>,
    /// answered | truncated | unanswered
    pub termination: Option<String>,
    pub em: Option<f64>,
    pub f1: Option<f64>,
    pub steps: Vec<StepView>,
    pub tokens: TokensView,
    pub took_ms: f64,
}

/// What happens while a question is answered.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, Type)]
#[serde(tag = "kind", rename_all = "snake_case")]
pub enum AskEvent {
    /// The model is being read from disk.
    Loading {
        model: String,
    },
    StepStarted {
        step_idx: u32,
        prompt: Vec<MessageView>,
        dropped: Vec<String>,
        candidates: u32,
    },
    /// Text to append to a candidate of the current step.
    Token {
        sample_idx: u32,
        text: String,
    },
    Candidates {
        candidates: Vec<CandidateView>,
        chosen: u32,
    },
    Retrieved {
        query: String,
        passages: Vec<PassageView>,
    },
    /// Text to append to the reader's answer of the current step.
    ReaderToken {
        text: String,
    },
    Finding {
        finding: String,
    },
    StepFinished {
        step: StepView,
    },
    Finished {
        episode: EpisodeView,
    },
    Cancelled,
    Failed {
        error: ErrorView,
    },
}

/// An error as a host shows it: what to branch on, what to say, what to do.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, Type)]
pub struct ErrorView {
    pub code: String,
    pub message: String,
}

#[derive(Clone, Copy, Debug, PartialEq, Serialize, Deserialize, Type)]
pub struct IntervalView {
    pub mean: f64,
    pub low: f64,
    pub high: f64,
}

impl From<gym::Interval> for IntervalView {
    fn from(interval: gym::Interval) -> IntervalView {
        IntervalView {
            mean: interval.mean,
            low: interval.low,
            high: interval.high,
        }
    }
}

/// A run as a row of the table of runs.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, Type)]
pub struct RunView {
    pub id: String,
    pub name: String,
    /// running | finished | stopped | failed
    pub status: String,
    pub question_set: Option<String>,
    pub settings: AgentSettings,
    pub questions: u32,
    pub finished: u32,
    pub failed: u32,
    pub em: Option<IntervalView>,
    pub f1: Option<IntervalView>,
    pub searches_mean: f64,
    pub malformed_rate: f64,
    pub took_ms: f64,
    pub created_at: String,
    pub error: Option<String>,
}

/// A question of a run, without its steps.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, Type)]
pub struct EpisodeRow {
    pub question_id: String,
    pub question: String,
    pub status: String,
    pub answer: Option<String>,
    pub gold_answer: String,
    pub em: Option<f64>,
    pub f1: Option<f64>,
    pub searches: u32,
    pub took_ms: f64,
}

#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, Type)]
pub struct CorpusView {
    pub name: String,
    pub format: String,
    pub passages: u32,
}

#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, Type)]
pub struct QuestionSetView {
    pub name: String,
    pub corpus: Option<String>,
    pub format: String,
    pub questions: u32,
}

#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, Type)]
pub struct QuestionView {
    pub id: String,
    pub text: String,
    pub answer: String,
    pub kind: Option<String>,
}

/// Some of a set's questions.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, Type)]
pub struct QuestionPage {
    /// How many there are in all.
    pub matching: u32,
    pub questions: Vec<QuestionView>,
}

#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, Type)]
pub struct ModelView {
    pub name: String,
    /// language | encoder | reward | endpoint
    pub kind: String,
    pub path: String,
    pub sha256: String,
    pub architecture: String,
    pub parameters: f64,
    pub file_bytes: f64,
    pub adapter_of: Option<String>,
}

#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, Type)]
pub struct Rejected {
    pub file: String,
    pub line: u32,
    pub reason: String,
}

#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, Type)]
pub struct ImportView {
    pub name: String,
    pub format: String,
    pub read: u32,
    pub kept: u32,
    /// The first 20.
    pub rejected: Vec<Rejected>,
    pub rejected_count: u32,
}

/// Progress of anything long; `total` is 0 while unknown.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, Type)]
pub struct Progress {
    pub label: String,
    pub done: f64,
    pub total: f64,
}

/// A long job of this process.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, Type)]
pub struct JobView {
    /// run | training
    pub kind: String,
    /// The run's id, or the training's name.
    pub run: String,
    pub name: String,
    pub done: u32,
    pub total: u32,
    pub elapsed_ms: f64,
    /// `None` until one question or step is done.
    pub eta_ms: Option<f64>,
}

#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, Type)]
pub struct SearchView {
    pub hits: Vec<PassageView>,
    pub took_ms: f64,
}

/// One term's part of a passage's score.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, Type)]
pub struct TermView {
    pub term: String,
    pub idf: f64,
    pub frequency: f64,
    pub score: f64,
}

/// The state of the program, for Home and the doctor.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, Type)]
pub struct Overview {
    pub version: String,
    pub home: String,
    /// Built-in model and world are in place.
    pub ready: bool,
    pub threads: u32,
    pub memory_bytes: f64,
    pub corpora: Vec<CorpusView>,
    pub question_sets: Vec<QuestionSetView>,
    pub models: Vec<ModelView>,
    /// The name of the model that answers unless another is chosen.
    pub default_model: String,
    /// Newest first.
    pub runs: Vec<RunView>,
    /// A question that shows several hops, to start with.
    pub sample_question: String,
}
