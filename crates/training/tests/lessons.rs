//! What lessons say in TRL's lines, and how a trained reward model reads them.

use std::path::PathBuf;

use gym::{Gold, Message, Prompt, Role, SubQuestion};
use training::expert::{Hop, hops};
use training::lesson::{Completion, Lesson, from_trl, to_trl};
use training::rewarder::Rewarder;

fn completion(text: &str) -> Completion {
    Completion {
        text: text.into(),
        ..Completion::default()
    }
}

fn prompt() -> Prompt {
    let message = |role, content: &str| Message {
        role,
        content: content.into(),
    };
    Prompt {
        messages: vec![message(Role::System, "ABC"), message(Role::User, "$%&")],
    }
}

#[test]
fn lessons_survive_trls_lines() {
    let lesson = |completions: &[&str], pairs: Vec<(usize, usize)>| Lesson {
        question: "q1".into(),
        prompt: prompt(),
        completions: completions.iter().map(|text| completion(text)).collect(),
        pairs,
    };
    for lesson in [lesson(&["A"], vec![]), lesson(&["good", "bad"], vec![(0, 1)])] {
        let lines = to_trl(&lesson);
        assert_eq!(lines.len(), 1);
        assert_eq!(from_trl(&lines[0].to_string()), Ok(lesson));
    }
    for bad in [
        "{",
        "{}",
        r#"{"messages": []}"#,
        r#"{"prompt": "a", "chosen": 3, "rejected": "b"}"#,
    ] {
        assert!(from_trl(bad).is_err(), "{bad}");
    }
}

#[test]
fn sub_questions_are_asked_with_earlier_answers() {
    let sub = |question: &str, answer: &str| SubQuestion {
        question: question.into(),
        answer: answer.into(),
        title: None,
    };
    let gold = Gold {
        sub_questions: vec![
            sub("Hello Love >> performer", "Hank Snow"),
            sub("Where did #1 die?", "Tennessee"),
        ],
        ..Gold::default()
    };
    let hop = |query: &str, finding: &str| Hop {
        query: query.into(),
        finding: finding.into(),
    };
    let way = [
        hop("Hello Love performer", "Hank Snow"),
        hop("Where did Hank Snow die?", "Tennessee"),
    ];
    assert_eq!(hops(&gold), way);
}

#[test]
fn a_policy_adapter_is_no_reward_model() {
    let fixtures = PathBuf::from(env!("CARGO_MANIFEST_DIR")).join("tests/peft");
    let error = Rewarder::open(&fixtures.join("tiny.gguf"), &fixtures.join("adapter"))
        .err()
        .unwrap();
    assert!(error.to_string().contains("no reward head"), "{error}");
}
