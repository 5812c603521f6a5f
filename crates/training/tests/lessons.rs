//! What lessons say in TRL's lines, and how a trained reward model reads them.

use std::path::PathBuf;

use gym::{
    Action, Candidate, Gold, LabelledQuestion, Message, Prompt, Question, QuestionId, Role, Step, SubQuestion, Usage,
};
use lm::LocalModel;
use training::expert::{Hop, hops};
use training::lesson::{Completion, Lesson, Selection, lessons};
use training::objective::Objective;
use training::rewarder::Rewarder;
use training::trl::{from_trl, to_trl};

fn completion(text: &str) -> Completion {
    Completion {
        text: text.into(),
        ..Completion::default()
    }
}

const PRM: Objective = Objective::Prm { centre: 0.01 };

fn read(text: &str, method: Objective) -> Result<Vec<Lesson>, (usize, String)> {
    from_trl(text, method, Selection::default())
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
        assert_eq!(read(&lines[0].to_string(), Objective::Sft), Ok(vec![lesson]));
    }
    for bad in [
        "{",
        "{}",
        r#"{"messages": []}"#,
        r#"{"prompt": "a", "chosen": 3, "rejected": "b"}"#,
        r#"{"prompt": "a", "completions": ["b", "c"], "labels": [true]}"#,
        r#"{"prompt": "a", "completions": ["b"], "labels": ["yes"]}"#,
        r#"{"prompt": [], "completions": ["b"], "labels": [true]}"#,
    ] {
        let good = r#"{"prompt": "a", "completion": "b"}"#;
        let (line, _) = read(&format!("{good}\n\n{bad}"), PRM).unwrap_err();
        assert_eq!(line, 3, "{bad}");
    }
}

/// Two ways as trl-lib/math_shepherd writes them: they share a step, and part after it.
const WAYS: &str = r#"{"prompt": "2 + 3 * 4?", "completions": ["3 * 4 = 12.", "2 + 12 = 14."], "labels": [true, true]}
{"prompt": "2 + 3 * 4?", "completions": ["3 * 4 = 12.", "2 + 12 = 15."], "labels": [true, false]}
{"prompt": "1 + 1?", "completions": ["1 + 1 = 3."], "labels": [false]}"#;

#[test]
fn labelled_steps_are_imitated_where_good_and_compared_where_ways_part() {
    let told = |lesson: &Lesson| -> (String, Vec<String>) {
        let texts = lesson.completions.iter().map(|completion| completion.text.clone());
        (lesson.prompt.messages[0].content.clone(), texts.collect())
    };
    let told = |method| read(WAYS, method).unwrap().iter().map(told).collect::<Vec<_>>();
    let state = |prompt: &str, texts: &[&str]| -> (String, Vec<String>) {
        (prompt.into(), texts.iter().map(|text| (*text).into()).collect())
    };
    let (first, second) = ("2 + 3 * 4?", "2 + 3 * 4?\n3 * 4 = 12.");
    assert_eq!(
        told(Objective::Sft),
        [state(first, &["3 * 4 = 12."]), state(second, &["2 + 12 = 14."])]
    );
    assert_eq!(told(PRM), [state(second, &["2 + 12 = 14.", "2 + 12 = 15."])]);
    let lessons = read(WAYS, PRM).unwrap();
    assert_eq!(lessons[0].pairs, [(0, 1)]);
    // States of one way are held out together.
    let all = read(WAYS, Objective::Sft).unwrap();
    assert_eq!(all[0].question, all[1].question);
}

#[test]
fn an_episode_that_came_to_nothing_teaches_only_if_it_may() {
    let candidate = |answer: &str, reward| Candidate {
        text: answer.into(),
        reasoning: None,
        action: Action::Finish { answer: answer.into() },
        token_ids: Vec::new(),
        token_logprobs: Vec::new(),
        multiplicity: 1,
        redundant: false,
        reward: Some(reward),
    };
    let step = |chosen| Step {
        step_idx: 0,
        truncated: false,
        prompt: Some(prompt()),
        dropped: Vec::new(),
        candidates: vec![candidate("Ada", 1.0), candidate("Bob", 0.0)],
        chosen,
        verdict: None,
        opinions: Vec::new(),
        hits: Vec::new(),
        finding: None,
        usage: Usage::default(),
    };
    let labelled = LabelledQuestion {
        question: Question {
            id: QuestionId("q1".into()),
            text: "Who?".into(),
            options: Vec::new(),
        },
        gold: Gold {
            answers: vec!["Ada".into()],
            ..Gold::default()
        },
        kind: None,
        split: None,
    };
    let any = Selection {
        outcome_above: None,
        ..Selection::default()
    };
    let taught = |chosen, selection| {
        let all = lessons(&labelled, &[step(chosen)], PRM, selection);
        all.iter().map(|lesson| lesson.pairs.len()).sum::<usize>()
    };
    assert_eq!(
        [taught(0, Selection::default()), taught(1, Selection::default())],
        [1, 0]
    );
    assert_eq!([taught(0, any), taught(1, any)], [1, 1]);
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
    let file = fixtures.join("tiny.gguf");
    let error = Rewarder::open(&LocalModel::open(&file).unwrap(), &fixtures.join("adapter"))
        .err()
        .unwrap();
    assert!(error.to_string().contains("no reward head"), "{error}");
}
