//! A small home that the tests share: no model, a run whose episodes are written down.

use std::sync::Arc;

use gym::{Action, Candidate, Gold, GoldPassage, Hit, LabelledQuestion, Message, Passage, Prompt, Question};
use gym::{QuestionId, Role, Step, Usage, Verdict};
use serde_json::json;
use store::RunStatus;
use tempfile::TempDir;

use crate::results::finished_episode;
use crate::view::AgentSettings;
use crate::{Studio, TrainRequest, clock};

pub const RUN: &str = "r";

pub fn id(question: &str) -> QuestionId {
    QuestionId(question.into())
}

/// Run `r` by judge `evidence#3` over q1 and q2 (finished, answered "Ada", right) and q3 (pending). A finished
/// episode has a search step, candidates "Search: ada" (reward 1) and "Search: bob" (0.1), and its answer.
pub fn judged_run() -> (TempDir, Studio) {
    let dir = tempfile::tempdir().unwrap();
    let studio = Studio::open(Some(dir.path().join("home"))).unwrap();
    let store = studio.store();
    let passages = [passage()].into_iter().map(Ok::<_, String>);
    let corpus = store.create_corpus("wiki", "jsonl", "t0", passages).unwrap();
    let questions = ["q1", "q2", "q3"].map(labelled);
    store
        .create_question_set("people", Some("wiki"), "jsonl", "t0", &questions)
        .unwrap();
    let settings = AgentSettings {
        corpus: "wiki".into(),
        agent: "react".into(),
        candidates: 2,
        judge: Some("evidence".into()),
        ..AgentSettings::default()
    };
    let config = json!({"settings": settings, "model_sha256": "00", "corpus_hash": corpus.content_hash,
                        "question_set_hash": null, "chooser": "evidence#3"});
    let run = store::Run {
        id: RUN.into(),
        name: "by hand".into(),
        status: RunStatus::Stopped,
        question_set: Some("people".into()),
        corpus: Some("wiki".into()),
        config,
        config_hash: "c0".into(),
        code_version: "0.1.0".into(),
        shard: None,
        error: None,
        created_at: clock::now(),
        took_ms: 5,
    };
    store.create_run(&run).unwrap();
    store.create_episodes(RUN, &["q1", "q2", "q3"].map(id)).unwrap();
    for question in ["q1", "q2"] {
        let answer = candidate("Answer: Ada", Action::Finish { answer: "Ada".into() }, 1.0);
        let steps = [
            step(0, vec![search("ada", 1.0), search("bob", 0.1)]),
            step(1, vec![answer]),
        ];
        finish(&studio, question, &steps);
    }
    (dir, studio)
}

/// A request that names no data that exists.
pub fn training(name: &str) -> TrainRequest {
    TrainRequest {
        method: "sft".into(),
        runs: Vec::new(),
        judge: None,
        any_outcome: false,
        files: vec!["data.jsonl".into()],
        expert: Vec::new(),
        agents: Vec::new(),
        corpus: None,
        limit: None,
        readings: None,
        counterfactuals: 0,
        clozes: 0,
        k: 3,
        base: "base".into(),
        out: name.into(),
        rank: 4,
        alpha: 8.0,
        targets: vec!["q".into()],
        learning_rate: None,
        schedule: "linear".into(),
        warm_up: 0.0,
        epochs: 1,
        batch: 1,
        beta: 0.1,
        centre: 0.01,
        dropout: 0.0,
        max_length: 64,
        eval_ratio: 0.0,
        eval_every: 0,
        patience: 0,
        seed: 0,
    }
}

pub fn finish(studio: &Studio, question: &str, steps: &[Step]) {
    for step in steps {
        studio.store().append_step(RUN, &id(question), step, 1).unwrap();
    }
    let episode = finished_episode(RUN, &labelled(question), steps, 20);
    studio.store().finish_episode(&episode).unwrap();
}

pub fn search(query: &str, reward: f64) -> Candidate {
    let action = Action::Search {
        query: query.into(),
        predicted_answer: None,
    };
    candidate(&format!("Search: {query}"), action, reward)
}

pub fn candidate(text: &str, action: Action, reward: f64) -> Candidate {
    Candidate {
        text: text.into(),
        reasoning: None,
        action,
        token_ids: vec![1, 2],
        token_logprobs: vec![-0.5, f32::NEG_INFINITY],
        multiplicity: 1,
        redundant: false,
        reward: Some(reward),
    }
}

/// The first candidate is taken.
pub fn step(step_idx: u32, candidates: Vec<Candidate>) -> Step {
    let searched = candidates[0].action.query().is_some();
    let hit = Hit {
        passage: Arc::new(passage()),
        score: 1.5,
        rank: 1,
    };
    Step {
        step_idx,
        truncated: false,
        prompt: Some(Prompt {
            messages: vec![Message {
                role: Role::User,
                content: "Who?".into(),
            }],
        }),
        dropped: Vec::new(),
        chosen: 0,
        verdict: Some(Verdict {
            rewards: candidates.iter().map(|candidate| candidate.reward).collect(),
            rationale: None,
        }),
        candidates,
        opinions: Vec::new(),
        hits: searched.then_some(hit).into_iter().collect(),
        finding: None,
        usage: Usage {
            prompt: 7,
            cached: 2,
            generated: 3,
        },
    }
}

fn passage() -> Passage {
    Passage {
        id: "p".into(),
        title: "Ada".into(),
        text: "Ada wrote the first program.".into(),
    }
}

fn labelled(question: &str) -> LabelledQuestion {
    LabelledQuestion {
        question: Question {
            id: id(question),
            text: format!("Who is {question}?"),
            options: Vec::new(),
        },
        gold: Gold {
            answers: vec!["Ada".into()],
            passages: vec![GoldPassage {
                title: "Ada".into(),
                sentence: None,
            }],
            ..Gold::default()
        },
        kind: Some("bridge".into()),
        split: None,
    }
}
