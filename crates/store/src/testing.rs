//! Small values that the tables' tests share.

use std::sync::Arc;

use gym::episode::{Step, Termination};
use gym::judge::Verdict;
use gym::{
    Action, Candidate, Gold, Hit, LabelledQuestion, Message, Passage, Prompt, Question, QuestionId, Role, Usage,
};
use tempfile::TempDir;

use crate::{Episode, EpisodeStatus, Run, RunStatus, Store};

pub fn empty() -> (TempDir, Store) {
    let dir = tempfile::tempdir().unwrap();
    let store = Store::open(dir.path().join("store.db")).unwrap();
    (dir, store)
}

/// Corpus `wiki` (p0, p1, p2), set `set` (q1, q2), run `r1` with pending episodes q2, q1.
pub fn with_run() -> (TempDir, Store) {
    let (dir, store) = empty();
    store
        .create_corpus("wiki", "jsonl", "t0", passages(3).into_iter().map(Ok::<_, String>))
        .unwrap();
    store
        .create_question_set("set", Some("wiki"), "hotpotqa", "t0", &[labelled("q1"), labelled("q2")])
        .unwrap();
    store.create_run(&run("r1")).unwrap();
    store.create_episodes("r1", &[id("q2"), id("q1")]).unwrap();
    (dir, store)
}

pub fn id(id: &str) -> QuestionId {
    QuestionId(id.into())
}

pub fn passages(n: usize) -> Vec<Passage> {
    (0..n)
        .map(|i| Passage {
            id: format!("p{i}"),
            title: format!("Title {i}"),
            text: format!("Text {i}."),
        })
        .collect()
}

pub fn labelled(question_id: &str) -> LabelledQuestion {
    LabelledQuestion {
        question: Question {
            id: id(question_id),
            text: format!("Who is {question_id}?"),
            options: Vec::new(),
        },
        gold: Gold {
            answers: vec!["Ada".into()],
            ..Gold::default()
        },
        kind: Some("bridge".into()),
        split: None,
    }
}

pub fn run(run_id: &str) -> Run {
    Run {
        id: run_id.into(),
        name: format!("Run {run_id}"),
        status: RunStatus::Running,
        question_set: Some("set".into()),
        corpus: Some("wiki".into()),
        config: serde_json::json!({"k": 3, "agent": "react", "temperature": 0.7}),
        config_hash: "c0".into(),
        code_version: "0.1.0".into(),
        shard: None,
        error: None,
        created_at: "2026-01-01T00:00:00Z".into(),
        took_ms: 0,
    }
}

pub fn finished(run_id: &str, question_id: &str, position: u32) -> Episode {
    Episode {
        run_id: run_id.into(),
        question_id: id(question_id),
        position,
        status: EpisodeStatus::Finished,
        answer: Some("Ada".into()),
        termination: Some(Termination::Answered),
        em: Some(1.0),
        f1: Some(1.0),
        accuracy: None,
        evidence_recall: Some(0.5),
        searches: 1,
        malformed_steps: 0,
        usage: Usage {
            prompt: 10,
            cached: 3,
            generated: 5,
        },
        took_ms: 20,
        error: None,
    }
}

pub fn step(step_idx: u32) -> Step {
    let candidate = |query: &str, reward| Candidate {
        text: format!("Search: {query}"),
        reasoning: None,
        action: Action::Search {
            query: query.into(),
            predicted_answer: None,
        },
        token_ids: vec![1, 2, 70_000],
        token_logprobs: vec![-0.1, -2.5, f32::NEG_INFINITY],
        multiplicity: 1,
        redundant: false,
        reward: Some(reward),
    };
    let hit = |(i, passage)| Hit {
        passage: Arc::new(passage),
        score: 0.1 / (i + 1) as f32,
        rank: i as u32 + 1,
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
        dropped: vec!["p2".into()],
        candidates: vec![candidate("ada", 0.25), candidate("lovelace", 0.1)],
        chosen: 0,
        verdict: Some(Verdict {
            rewards: Some(vec![0.25, 0.1]),
            rationale: None,
        }),
        opinions: Vec::new(),
        hits: passages(2).into_iter().enumerate().map(hit).collect(),
        finding: Some("Ada".into()),
        usage: Usage {
            prompt: 7,
            cached: 1,
            generated: 3,
        },
    }
}
