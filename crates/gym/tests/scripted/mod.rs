//! Engines that answer from a script, and a question to ask of them.
#![allow(dead_code, reason = "each test file uses a part")]

use std::sync::Arc;

use gym::{
    Cancel, EngineError, EpisodeConfig, FinishReason, Generation, Gold, GoldPassage, Hit, LabelledQuestion,
    LanguageModel, Passage, Prompt, Question, QuestionId, Retriever, Sample, Sampling, Seed, Selection, TokenEvent,
    Usage,
};

/// Writes what a function of the prompt's last message and the seed says; 1 token a byte.
pub struct Script<F>(pub F, pub usize);

impl<F: Fn(&str, Seed) -> String + Send + Sync> LanguageModel for Script<F> {
    fn context_tokens(&self) -> usize {
        self.1
    }

    fn count_tokens(&self, prompt: &Prompt) -> Result<usize, EngineError> {
        Ok(prompt.messages.iter().map(|message| message.content.len()).sum())
    }

    fn generate(
        &self,
        request: &Generation,
        cancel: &Cancel,
        on_token: &mut dyn FnMut(TokenEvent),
    ) -> Result<(Vec<Sample>, Usage), EngineError> {
        cancel.check()?;
        let user = &request.prompt.messages[1].content;
        let samples = request.seeds.iter().enumerate().map(|(sample_idx, &seed)| {
            let text = (self.0)(user, seed);
            on_token(TokenEvent {
                sample_idx,
                text: text.clone(),
            });
            Sample {
                text,
                token_ids: vec![1],
                token_logprobs: vec![-1.0],
                finish: FinishReason::Stop,
            }
        });
        Ok((
            samples.collect(),
            Usage {
                prompt: 1,
                cached: 0,
                generated: 1,
            },
        ))
    }
}

/// Finds the passages whose title is a word of the query.
pub struct Titles(pub Vec<&'static str>);

impl Retriever for Titles {
    fn search(&self, query: &str, k: usize) -> Result<Vec<Hit>, EngineError> {
        let found = self.0.iter().filter(|title| query.contains(**title)).take(k);
        Ok(found
            .zip(1..)
            .map(|(title, rank)| Hit {
                passage: Arc::new(Passage {
                    id: format!("p-{title}"),
                    title: (*title).into(),
                    text: format!("About {title}."),
                }),
                score: 1.0 / rank as f32,
                rank,
            })
            .collect())
    }
}

pub fn labelled() -> LabelledQuestion {
    LabelledQuestion {
        question: Question {
            id: QuestionId("q1".into()),
            text: "Who made the Alpha of Beta?".into(),
            options: Vec::new(),
        },
        gold: Gold {
            answers: vec!["Gamma".into()],
            passages: ["Alpha", "Beta"]
                .map(|title| GoldPassage {
                    title: title.into(),
                    sentence: None,
                })
                .into(),
            ..Gold::default()
        },
        kind: None,
        split: None,
    }
}

pub fn config(max_steps: u32, n_candidates: usize) -> EpisodeConfig {
    let temperature = if n_candidates > 1 { 1.0 } else { 0.0 };
    EpisodeConfig {
        max_steps,
        k: 3,
        n_candidates,
        sampling: Sampling {
            temperature,
            max_tokens: 10,
            ..Sampling::default()
        },
        reader_sampling: Sampling {
            max_tokens: 10,
            ..Sampling::default()
        },
        constrained: true,
        selection: Selection::Reward,
    }
}

pub const RETRIEVER: fn() -> Titles = || Titles(vec!["Alpha", "Beta"]);
