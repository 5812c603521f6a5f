//! A reward model over an encoder: reads a state and an action as a pair of sentences, and scores the action.
//!
//! A state's rows do not see the actions, so they are computed once for all of them; an action's rows see
//! the state and themselves. The reward is read from the mean of the action's rows.

use std::ops::Range;
use std::path::Path;

use gym::{Cancel, Prompt, Role};
use tokenizers::Tokenizer;

use crate::adapter::write_whole;
use crate::bert::{Bert, Packed};
use crate::elementwise::{add, dot};
use crate::forest::Forest;
use crate::lesson::Lesson;
use crate::objective::{Example, Measure, Objective, pairwise};
use crate::train::{Learner, StepReport, Trained, TrainingConfig, cancelled, learn, packed, values_so_far};
use crate::{Result, TrainingError};

/// What the encoder was trained to read at most.
pub const MOST_TOKENS: usize = 256;

/// An encoder with its tokenizer.
#[derive(Clone)]
pub struct CrossEncoder {
    pub bert: Bert,
    tokenizer: Tokenizer,
    /// The tokenizer as its file has it.
    tokenizer_file: Vec<u8>,
    begin: u32,
    end: u32,
}

const TOKENIZER: &str = "tokenizer.json";

impl CrossEncoder {
    /// Reads a folder in Hugging Face's layout: `config.json`, `model.safetensors`, `tokenizer.json`.
    pub fn open(dir: &Path) -> Result<CrossEncoder> {
        let bert = Bert::open(dir)?;
        let path = dir.join(TOKENIZER);
        let tokenizer_file = std::fs::read(&path).map_err(TrainingError::file("read", &path))?;
        let damaged = |message: String| TrainingError::Corrupt {
            path: path.clone(),
            message,
        };
        let mut tokenizer = Tokenizer::from_bytes(&tokenizer_file).map_err(|error| damaged(error.to_string()))?;
        tokenizer.with_padding(None);
        tokenizer
            .with_truncation(None)
            .map_err(|error| damaged(error.to_string()))?;
        if tokenizer.get_vocab_size(true) > bert.config.vocab_size {
            return Err(damaged("it has more tokens than the encoder".into()));
        }
        let special = |spelling| {
            tokenizer
                .token_to_id(spelling)
                .ok_or_else(|| damaged(format!("no {spelling}")))
        };
        let (begin, end) = (special("[CLS]")?, special("[SEP]")?);
        Ok(CrossEncoder {
            bert,
            tokenizer,
            tokenizer_file,
            begin,
            end,
        })
    }

    pub fn save(&self, dir: &Path) -> Result<()> {
        write_whole(&dir.join(TOKENIZER), |path| std::fs::write(path, &self.tokenizer_file))?;
        self.bert.save(dir)
    }

    /// A state and its actions as tokens, at most so many of a state and one action.
    pub fn example(&self, lesson: &Lesson, most: usize) -> Result<Example> {
        let most = most.min(MOST_TOKENS).min(self.bert.config.max_position_embeddings);
        let actions = lesson
            .completions
            .iter()
            .map(|completion| self.action(&completion.text, most / 2));
        let completions: Vec<Vec<u32>> = actions.collect::<Result<_>>()?;
        let longest = completions.iter().map(Vec::len).max().unwrap_or(0);
        Ok(Example {
            question: lesson.question.clone(),
            prompt: self.state(&lesson.prompt, most - longest)?,
            completions,
            pairs: lesson.pairs.clone(),
        })
    }

    /// The first sentence: what the agent is shown of the question and its history. The oldest history is cut
    /// first; only a question that is longer by itself loses its end.
    fn state(&self, prompt: &Prompt, most: usize) -> Result<Vec<u32>> {
        let shown = prompt.messages.iter().rfind(|message| message.role == Role::User);
        let text = shown.map_or("", |message| message.content.as_str());
        let (question, history) = text.split_at(text.find("\nSearch: ").unwrap_or(text.len()));
        let (mut question, history) = (self.tokens(question)?, self.tokens(history)?);
        let room = most.saturating_sub(2);
        question.truncate(room);
        let cut = (question.len() + history.len()).saturating_sub(room);
        Ok([&[self.begin][..], &question, &history[cut..], &[self.end]].concat())
    }

    /// The second sentence. A long action loses its beginning: the query or answer ends it.
    fn action(&self, text: &str, most: usize) -> Result<Vec<u32>> {
        let mut tokens = self.tokens(text)?;
        tokens.push(self.end);
        Ok(tokens.split_off(tokens.len().saturating_sub(most)))
    }

    fn tokens(&self, text: &str) -> Result<Vec<u32>> {
        let encoding = self.tokenizer.encode_fast(text, false);
        let encoding = encoding.map_err(|error| TrainingError::Invalid(format!("a text has no tokens: {error}")))?;
        Ok(encoding.get_ids().to_vec())
    }

    /// Trains all weights and the head, as [`crate::train::train`] trains an adapter. A head that is there
    /// goes on being trained.
    pub fn train(
        &self,
        config: &TrainingConfig,
        examples: &[Example],
        held_out: &[Example],
        checkpoint: &Path,
        cancel: &Cancel,
        on_step: &mut dyn FnMut(&StepReport),
    ) -> Result<Trained<CrossEncoder>> {
        let Objective::Prm { centre } = config.objective else {
            return Err(TrainingError::Invalid(
                "an encoder gives rewards only: train it by prm".into(),
            ));
        };
        if config.dropout > 0.0 {
            return Err(TrainingError::Invalid("an encoder is trained without dropout".into()));
        }
        let mut bert = self.bert.clone();
        if !bert.scored {
            bert.scored = true;
            let mut rng = config.seed.derive_str("score").rng();
            let bound = 1.0 / (bert.config.hidden_size as f64).sqrt();
            let score = bert.score();
            for x in &mut bert.values[score] {
                *x = ((rng.next_f64() * 2.0 - 1.0) * bound) as f32;
            }
        }
        let limits = (bert.config.vocab_size, bert.config.max_position_embeddings);
        let learner = Scoring {
            bert,
            centre,
            pack_tokens: config.pack_tokens,
        };
        let started = &self.bert.values;
        let trained = learn(
            learner, config, limits, started, examples, held_out, checkpoint, cancel, on_step,
        )?;
        Ok(trained.map(|learner| self.with(learner.bert.values)))
    }

    /// As [`crate::train::so_far`].
    pub fn so_far(&self, checkpoint: &Path) -> Result<Trained<CrossEncoder>> {
        Ok(values_so_far(self.bert.values.len(), checkpoint)?.map(|values| self.with(values)))
    }

    fn with(&self, values: Vec<f32>) -> CrossEncoder {
        let mut other = self.clone();
        (other.bert.values, other.bert.scored) = (values, true);
        other
    }
}

/// An encoder that learns to score.
struct Scoring {
    bert: Bert,
    centre: f32,
    pack_tokens: usize,
}

impl Learner for Scoring {
    fn values(&mut self) -> &mut Vec<f32> {
        &mut self.bert.values
    }

    fn measure(
        &mut self,
        examples: &[&Example],
        _: Option<u64>,
        mut gradient: Option<(&mut [f32], f32)>,
        cancel: &Cancel,
    ) -> Result<Measure> {
        let weights = self.bert.packed();
        let mut total = Measure::default();
        for examples in packed(examples, self.pack_tokens) {
            cancelled(cancel)?;
            let gradient = gradient.as_mut().map(|(gradient, weight)| (&mut gradient[..], *weight));
            total += measure(&self.bert, &weights, self.centre, examples, gradient);
        }
        Ok(total)
    }
}

/// The loss of some examples, a sum; `weight` times its gradient is added to `gradient`.
pub fn measure(
    bert: &Bert,
    weights: &Packed,
    centre: f32,
    examples: &[&Example],
    gradient: Option<(&mut [f32], f32)>,
) -> Measure {
    let hidden = bert.config.hidden_size;
    let (forest, actions) = families(examples);
    let (last, trace) = bert.forward(weights, &forest, gradient.is_some());
    let means: Vec<Vec<f32>> = actions.iter().map(|rows| mean(&last, rows.clone(), hidden)).collect();
    let head = &bert.values[bert.score()];
    let rewards: Vec<f32> = means.iter().map(|mean| dot(mean, head)).collect();
    let (mut measure, slopes) = pairwise(centre, examples, &rewards);
    measure.rows = forest.rows();
    if let Some((gradient, weight)) = gradient {
        let mut d_last = vec![0.0; last.len()];
        for ((rows, mean), slope) in actions.iter().zip(&means).zip(slopes) {
            let slope = weight * slope;
            for (d, x) in gradient[bert.score()].iter_mut().zip(mean) {
                *d += slope * x;
            }
            let d_row: Vec<f32> = head.iter().map(|w| slope * w / rows.len() as f32).collect();
            for row in rows.clone() {
                d_last[row * hidden..][..hidden].copy_from_slice(&d_row);
            }
        }
        bert.backward(&forest, trace, d_last, gradient);
    }
    measure
}

/// All examples' rows, and where each action's lie.
fn families(examples: &[&Example]) -> (Forest, Vec<Range<usize>>) {
    let mut forest = Forest {
        both_ways: true,
        ..Forest::default()
    };
    let actions = examples
        .iter()
        .flat_map(|example| forest.push_family(&example.prompt, &example.completions))
        .collect();
    (forest, actions)
}

fn mean(last: &[f32], rows: Range<usize>, hidden: usize) -> Vec<f32> {
    let mut sum = vec![0.0; hidden];
    let n = rows.len() as f32;
    for row in rows {
        add(&mut sum, &last[row * hidden..][..hidden]);
    }
    sum.iter_mut().for_each(|x| *x /= n);
    sum
}

/// A trained reward model at work.
pub struct Scorer {
    encoder: CrossEncoder,
    weights: Packed,
}

impl Scorer {
    /// `dir`: what prm training wrote.
    pub fn open(dir: &Path) -> Result<Scorer> {
        let encoder = CrossEncoder::open(dir)?;
        if !encoder.bert.scored {
            return Err(TrainingError::Invalid(
                "the encoder has no reward head: train one with prm".into(),
            ));
        }
        let weights = encoder.bert.packed();
        Ok(Scorer { encoder, weights })
    }

    /// One reward per action, in order. What is too long is cut as in training.
    pub fn score(&self, lesson: &Lesson) -> Result<Vec<f64>> {
        let example = self.encoder.example(lesson, MOST_TOKENS)?;
        Ok(rewards(&self.encoder.bert, &self.weights, &example))
    }
}

/// One reward per completion.
pub fn rewards(bert: &Bert, weights: &Packed, example: &Example) -> Vec<f64> {
    let (forest, actions) = families(&[example]);
    let (last, _) = bert.forward(weights, &forest, false);
    let head = &bert.values[bert.score()];
    let reward = |rows: Range<usize>| f64::from(dot(&mean(&last, rows, bert.config.hidden_size), head));
    actions.into_iter().map(reward).collect()
}
