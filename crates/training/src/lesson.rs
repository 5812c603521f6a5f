//! What episodes teach, as text: states with good actions, and states with better and worse ones. Then as
//! tokens for a model.

use std::path::Path;
use std::sync::Arc;

use gym::{Candidate, LabelledQuestion, Prompt, Question, Step, metrics, outcome};
use lm::LocalModel;
use lm::chat::ChatTemplate;
use lm::gguf::Gguf;
use lm::tokenizer::Tokenizer;

use crate::objective::{Example, Objective};
use crate::{Result, TrainingError};

/// A prompt as the agent renders it, and texts that may follow.
#[derive(Clone, Debug, PartialEq)]
pub struct Lesson {
    /// Of the question that it stems from: what splits go by.
    pub question: String,
    pub prompt: Prompt,
    pub completions: Vec<Completion>,
    /// (chosen, rejected), indices of `completions`; empty where every completion is good.
    pub pairs: Vec<(usize, usize)>,
}

impl Lesson {
    /// One good text.
    pub fn new(question: &Question, prompt: Prompt, text: String) -> Lesson {
        Lesson::imitated(question.id.0.clone(), prompt, vec![Completion::from(text)])
    }

    /// Every text is good.
    pub(crate) fn imitated(question: String, prompt: Prompt, completions: Vec<Completion>) -> Lesson {
        Lesson {
            question,
            prompt,
            completions,
            pairs: Vec::new(),
        }
    }

    /// Each text with a reward that is high enough beside each one whose reward is too low; `None` without both.
    pub(crate) fn compared(
        question: String,
        prompt: Prompt,
        all: Vec<Completion>,
        selection: Selection,
    ) -> Option<Lesson> {
        let with = |fits: &dyn Fn(f64) -> bool| -> Vec<Completion> {
            let fitting = all.iter().filter(|completion| completion.reward.is_some_and(fits));
            fitting.cloned().collect()
        };
        let chosen = with(&|reward| reward > selection.chosen_above);
        let rejected = with(&|reward| reward < selection.rejected_below);
        let pairs: Vec<_> = (0..chosen.len())
            .flat_map(|a| (0..rejected.len()).map(move |b| (a, b)))
            .map(|(a, b)| (a, chosen.len() + b))
            .collect();
        (!pairs.is_empty()).then(|| Lesson {
            question,
            prompt,
            completions: [chosen, rejected].concat(),
            pairs,
        })
    }

    /// With texts that would be worse than the first.
    pub fn against(mut self, worse: impl IntoIterator<Item = String>) -> Lesson {
        for text in worse {
            if self.completions.iter().any(|known| known.text == text) {
                continue;
            }
            self.pairs.push((0, self.completions.len()));
            self.completions.push(Completion::from(text));
        }
        self
    }

    /// Its first text alone.
    pub fn first_alone(mut self) -> Lesson {
        self.completions.truncate(1);
        self.pairs.clear();
        self
    }
}

#[derive(Clone, Debug, Default, PartialEq)]
pub struct Completion {
    pub text: String,
    /// As sampled; empty if nobody sampled it.
    pub token_ids: Vec<u32>,
    pub reward: Option<f64>,
}

impl From<String> for Completion {
    fn from(text: String) -> Completion {
        Completion {
            text,
            ..Completion::default()
        }
    }
}

/// Which episodes and candidates are good enough.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Selection {
    /// Episodes teach with an outcome above: accuracy where there are options, else token F1 (1 if exact).
    /// `None`: whatever they came to, also those without an answer.
    pub outcome_above: Option<f64>,
    /// Candidates with a reward above are chosen.
    pub chosen_above: f64,
    /// Candidates with a reward below are rejected.
    pub rejected_below: f64,
}

impl Default for Selection {
    fn default() -> Self {
        Selection {
            outcome_above: Some(0.75),
            chosen_above: 0.75,
            rejected_below: 0.5,
        }
    }
}

/// What an episode teaches for a method: nothing if its outcome is not good enough.
pub fn lessons(labelled: &LabelledQuestion, steps: &[Step], method: Objective, selection: Selection) -> Vec<Lesson> {
    let gold = &labelled.gold;
    let score = |answer: &str| {
        metrics::accuracy(answer, &labelled.question, gold)
            .unwrap_or_else(|| metrics::exact_match(answer, gold).max(metrics::token_f1(answer, gold)))
    };
    let is_below = |least: f64| outcome(steps).0.is_none_or(|answer| score(answer) <= least);
    if selection.outcome_above.is_some_and(is_below) {
        return Vec::new();
    }
    let of_step = |step: &Step| {
        let (question, prompt) = (labelled.question.id.0.clone(), step.prompt.clone()?);
        let completion = |candidate: &Candidate| Completion {
            text: candidate.text.clone(),
            token_ids: candidate.token_ids.clone(),
            reward: candidate.reward,
        };
        match method {
            Objective::Sft => {
                let chosen = &step.candidates[step.chosen];
                // Where nobody gave rewards, the action that led to the good outcome is as good as any.
                let is_good = |candidate: &&Candidate| match candidate.reward {
                    Some(reward) => reward > selection.chosen_above,
                    None => std::ptr::eq(*candidate, chosen),
                };
                let good = step.candidates.iter().filter(is_good);
                let good: Vec<_> = good.filter(|c| !c.action.is_malformed()).map(completion).collect();
                (!good.is_empty()).then(|| Lesson::imitated(question, prompt, good))
            }
            Objective::Dpo { .. } | Objective::Prm { .. } => {
                let all = step.candidates.iter().map(completion).collect();
                Lesson::compared(question, prompt, all, selection)
            }
        }
    };
    steps.iter().filter_map(of_step).collect()
}

/// Turns lessons into a model's tokens, exactly as that model is prompted at inference.
pub struct Encoder {
    tokenizer: Arc<Tokenizer>,
    template: Arc<ChatTemplate>,
    end: u32,
}

impl Encoder {
    pub fn open(model: &Path) -> Result<Encoder> {
        let gguf = Gguf::open(model)?;
        let tokenizer = Tokenizer::from_gguf(&gguf)?;
        let template = ChatTemplate::new(gguf.string("tokenizer.chat_template"), &tokenizer)?;
        Encoder::new(tokenizer.into(), template.into())
    }

    /// With the vocabulary and the turns of an open model.
    pub fn of(model: &LocalModel) -> Result<Encoder> {
        Encoder::new(model.tokenizer().clone(), model.template().clone())
    }

    fn new(tokenizer: Arc<Tokenizer>, template: Arc<ChatTemplate>) -> Result<Encoder> {
        let turn_ends = ["<|im_end|>", "<|eot_id|>"]
            .iter()
            .find_map(|spelling| tokenizer.control(spelling));
        let end = turn_ends
            .or(tokenizer.end.first().copied())
            .ok_or_else(|| TrainingError::Invalid("the model has no token that ends a turn".into()))?;
        Ok(Encoder {
            tokenizer,
            template,
            end,
        })
    }

    pub fn prompt(&self, prompt: &Prompt) -> Result<Vec<u32>> {
        Ok(self.tokenizer.encode_template(&self.template.render(prompt)?)?)
    }

    /// The sampled tokens where they spell the text in this model's vocabulary, else the text's own; and
    /// the end of the turn.
    pub fn completion(&self, completion: &Completion) -> Result<Vec<u32>> {
        let vocabulary = self.tokenizer.vocabulary();
        let known = completion.token_ids.iter().all(|&token| (token as usize) < vocabulary);
        let sampled = known && !completion.token_ids.is_empty();
        let mut tokens = match sampled && self.tokenizer.decode(&completion.token_ids) == completion.text {
            true => completion.token_ids.clone(),
            false => self.tokenizer.encode(&completion.text)?,
        };
        tokens.push(self.end);
        Ok(tokens)
    }

    pub fn example(&self, lesson: &Lesson) -> Result<Example> {
        Ok(Example {
            question: lesson.question.clone(),
            prompt: self.prompt(&lesson.prompt)?,
            completions: lesson
                .completions
                .iter()
                .map(|c| self.completion(c))
                .collect::<Result<_>>()?,
            pairs: lesson.pairs.clone(),
        })
    }
}
