//! A question as the agent sees it, and its gold answer, which only judges and metrics may see.

use serde::{Deserialize, Serialize};

/// Identifies a question inside its question set; the publisher's own id where there is one.
#[derive(Clone, Debug, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(transparent)]
pub struct QuestionId(pub String);

/// One lettered answer of a multiple-choice question.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct AnswerOption {
    /// "A", "B", …
    pub label: String,
    pub text: String,
}

/// What the agent is asked. Never holds the gold answer.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Question {
    pub id: QuestionId,
    pub text: String,
    /// Empty for free-text questions.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub options: Vec<AnswerOption>,
}

/// A passage that a correct chain of evidence needs, by title.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct GoldPassage {
    pub title: String,
    /// Index of the supporting sentence, where the data set gives one.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub sentence: Option<u32>,
}

/// One hop of a question's decomposition.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct SubQuestion {
    pub question: String,
    pub answer: String,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub title: Option<String>,
}

/// What is known to be right about a question.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Gold {
    /// Accepted answers, the publisher's main one first; for multiple choice, the option's label.
    pub answers: Vec<String>,
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub passages: Vec<GoldPassage>,
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub sub_questions: Vec<SubQuestion>,
    /// (subject, relation, object) triples, where the data set gives them.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub evidences: Vec<[String; 3]>,
}

/// A question with its gold answer and what its publisher says of it: a row of a question set.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct LabelledQuestion {
    pub question: Question,
    pub gold: Gold,
    /// The publisher's type of question ("bridge", "comparison", "2hop", …).
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub kind: Option<String>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub split: Option<String>,
}
