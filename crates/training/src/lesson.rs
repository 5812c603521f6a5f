//! What episodes teach, as text: states with good actions, and states with better and worse ones. Then as
//! tokens for a model, or as TRL's JSON lines.

use std::path::Path;

use gym::{LabelledQuestion, Message, Prompt, Question, Role, Step, metrics, outcome};
use lm::chat::ChatTemplate;
use lm::gguf::Gguf;
use lm::tokenizer::Tokenizer;
use serde_json::{Value, json};

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
        Lesson {
            question: question.id.0.clone(),
            prompt,
            completions: vec![Completion {
                text,
                ..Completion::default()
            }],
            pairs: Vec::new(),
        }
    }

    /// With texts that would be worse than the first.
    pub fn against(mut self, worse: impl IntoIterator<Item = String>) -> Lesson {
        for text in worse {
            if self.completions.iter().any(|known| known.text == text) {
                continue;
            }
            self.pairs.push((0, self.completions.len()));
            self.completions.push(Completion {
                text,
                ..Completion::default()
            });
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

/// Which episodes and candidates are good enough.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Selection {
    /// Least outcome of an episode: accuracy where there are options, else token F1 (1 if exact).
    pub outcome: f64,
    /// Candidates with a reward above are chosen.
    pub chosen_above: f64,
    /// Candidates with a reward below are rejected.
    pub rejected_below: f64,
}

impl Default for Selection {
    fn default() -> Self {
        Selection {
            outcome: 0.75,
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
    if outcome(steps).0.is_none_or(|answer| score(answer) < selection.outcome) {
        return Vec::new();
    }
    let of_step = |step: &Step| {
        let prompt = step.prompt.clone()?;
        let completion = |idx: usize| {
            let candidate = &step.candidates[idx];
            Completion {
                text: candidate.text.clone(),
                token_ids: candidate.token_ids.clone(),
                reward: candidate.reward,
            }
        };
        let reward = |idx: usize| step.candidates[idx].reward;
        let (completions, pairs) = match method {
            Objective::Sft => {
                let good = reward(step.chosen).is_none_or(|reward| reward > selection.chosen_above);
                let learnt = good && !step.action().is_malformed();
                (
                    learnt.then(|| completion(step.chosen)).into_iter().collect::<Vec<_>>(),
                    Vec::new(),
                )
            }
            Objective::Dpo { .. } | Objective::Prm { .. } => {
                let all = 0..step.candidates.len();
                let chosen: Vec<usize> = all
                    .clone()
                    .filter(|&idx| reward(idx).is_some_and(|r| r > selection.chosen_above))
                    .collect();
                let rejected: Vec<usize> = all
                    .filter(|&idx| reward(idx).is_some_and(|r| r < selection.rejected_below))
                    .collect();
                if chosen.is_empty() || rejected.is_empty() {
                    return None;
                }
                let pairs = (0..chosen.len())
                    .flat_map(|a| (0..rejected.len()).map(move |b| (a, b)))
                    .map(|(a, b)| (a, chosen.len() + b))
                    .collect();
                (
                    chosen.iter().chain(&rejected).map(|&idx| completion(idx)).collect(),
                    pairs,
                )
            }
        };
        let question = labelled.question.id.0.clone();
        (!completions.is_empty() || !pairs.is_empty()).then_some(Lesson {
            question,
            prompt,
            completions,
            pairs,
        })
    };
    steps.iter().filter_map(of_step).collect()
}

/// Turns lessons into a model's tokens, exactly as that model is prompted at inference.
pub struct Encoder {
    tokenizer: Tokenizer,
    template: ChatTemplate,
    end: u32,
}

impl Encoder {
    pub fn open(model: &Path) -> Result<Encoder> {
        let gguf = Gguf::open(model)?;
        let tokenizer = Tokenizer::from_gguf(&gguf)?;
        let template = ChatTemplate::new(gguf.string("tokenizer.chat_template"), &tokenizer)?;
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

/// TRL's conversational lines of a lesson: `messages` per completion, or `prompt`, `chosen`, `rejected`
/// per pair.
pub fn to_trl(lesson: &Lesson) -> Vec<Value> {
    let assistant = |idx: usize| json!({"role": "assistant", "content": lesson.completions[idx].text});
    let prompt: Vec<Value> = lesson.prompt.messages.iter().map(|message| json!(message)).collect();
    if lesson.pairs.is_empty() {
        let line = |idx: usize| {
            let messages: Vec<Value> = prompt.iter().cloned().chain([assistant(idx)]).collect();
            json!({"messages": messages, "question": lesson.question})
        };
        return (0..lesson.completions.len()).map(line).collect();
    }
    let line = |&(chosen, rejected): &(usize, usize)| {
        json!({
            "prompt": prompt,
            "chosen": [assistant(chosen)],
            "rejected": [assistant(rejected)],
            "question": lesson.question,
        })
    };
    lesson.pairs.iter().map(line).collect()
}

/// TRL's stepwise supervision of an episode: the question, its actions, and whether each was good.
pub fn to_trl_stepwise(labelled: &LabelledQuestion, steps: &[Step], selection: Selection) -> Value {
    let chosen = || {
        steps
            .iter()
            .filter(|step| step.prompt.is_some())
            .map(|step| &step.candidates[step.chosen])
    };
    json!({
        "prompt": labelled.question.text,
        "completions": chosen().map(|candidate| candidate.text.as_str()).collect::<Vec<_>>(),
        "labels": chosen().map(|candidate| candidate.reward.is_some_and(|r| r > selection.chosen_above)).collect::<Vec<_>>(),
        "rewards": chosen().map(|candidate| candidate.reward).collect::<Vec<_>>(),
        "question": labelled.question.id.0,
    })
}

/// Reads one of TRL's lines: `messages`; `prompt` and `completion`; or `prompt`, `chosen` and `rejected`.
/// Each part is a list of messages or a string, which stands for one message. Errors say what is wrong.
pub fn from_trl(line: &str) -> std::result::Result<Lesson, String> {
    let value: Value = serde_json::from_str(line).map_err(|error| error.to_string())?;
    let messages = |key: &str, role: Role| -> std::result::Result<Vec<Message>, String> {
        match &value[key] {
            Value::String(text) => Ok(vec![Message {
                role,
                content: text.clone(),
            }]),
            list @ Value::Array(_) => serde_json::from_value(list.clone()).map_err(|error| format!("`{key}`: {error}")),
            _ => Err(format!("`{key}` is neither a text nor a list of messages")),
        }
    };
    let answer = |key: &str| match messages(key, Role::Assistant)?.as_slice() {
        [
            Message {
                role: Role::Assistant,
                content,
            },
        ] => Ok(Completion {
            text: content.clone(),
            ..Completion::default()
        }),
        _ => Err(format!("`{key}` is not one message of the assistant")),
    };
    let (prompt, completions, pairs) = if value.get("messages").is_some() {
        let mut all = messages("messages", Role::User)?;
        match all.pop() {
            Some(Message {
                role: Role::Assistant,
                content,
            }) if !all.is_empty() => (
                all,
                vec![Completion {
                    text: content,
                    ..Completion::default()
                }],
                Vec::new(),
            ),
            _ => return Err("`messages` does not end with an answer of the assistant".into()),
        }
    } else if value.get("chosen").is_some() {
        let completions = vec![answer("chosen")?, answer("rejected")?];
        (messages("prompt", Role::User)?, completions, vec![(0, 1)])
    } else {
        (messages("prompt", Role::User)?, vec![answer("completion")?], Vec::new())
    };
    let prompt = Prompt { messages: prompt };
    let question = match &value["question"] {
        Value::String(question) => question.clone(),
        // Lines of one prompt belong together.
        _ => serde_json::to_string(&prompt).unwrap_or_default(),
    };
    Ok(Lesson {
        question,
        prompt,
        completions,
        pairs,
    })
}
