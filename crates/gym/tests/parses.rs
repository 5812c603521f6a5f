//! What models write, and the action that is read out of it.

use gym::{Action, Agent, AgentKind, PromptStyle, Question, QuestionId, State};
use proptest::prelude::*;

fn state(truncated: bool) -> State {
    let question = Question {
        id: QuestionId("q".into()),
        text: "Who?".into(),
        options: Vec::new(),
    };
    State {
        truncated,
        ..State::new(question)
    }
}

fn read(kind: AgentKind, text: &str) -> String {
    let (_, action) = Agent::new(kind, PromptStyle::Full).parse(&state(false), text);
    spell(action)
}

fn spell(action: Action) -> String {
    match action {
        Action::Search {
            query,
            predicted_answer: None,
        } => format!("search {query}"),
        Action::Search {
            query,
            predicted_answer: Some(answer),
        } => format!("search {query} | {answer}"),
        Action::Finish { answer } => format!("finish {answer}"),
        Action::Malformed { reason } => format!("malformed {reason}"),
    }
}

#[test]
fn actions_are_read_as_models_write_them() {
    use AgentKind::{Cot, Direct, React, Research};
    let neither = "malformed neither a query nor an answer";
    #[rustfmt::skip]
    let cases = [
        (React, "Search: capital of France", "search capital of France"),
        (React, "Answer: Paris", "finish Paris"),
        (React, "search: x", "search x"),
        (React, "**Search:** the river", "search the river"),
        (React, "- Query: the river", "search the river"),
        (React, "Final answer: 42", "finish 42"),
        (React, "Search:\n  the river", "search the river"),
        (React, "Thought: I need x.\nSearch: x", "search x"),
        (React, "Search: x\nFound: y\nAnswer: y", "search x"),
        (React, "Answer: y\nSearch: x", "finish y"),
        (Research, "Answer: y\nUnsupported: z\nQuery: x", "search x | y"),
        (React, "Search: none", neither),
        (React, "Search: None\nAnswer: Paris", "finish Paris"),
        (React, "Search: No further query is needed.\nAnswer: Paris", "finish Paris"),
        (React, "Search: no more heroes album", "search no more heroes album"),
        (React, "", neither),
        (React, "I do not know what to do", neither),
        (React, "{", neither),
        (React, r#"{"query": "x", "answer": null}"#, "search x"),
        (React, r#"{"query": null, "answer": "annulled"}"#, "finish annulled"),
        (React, r#"{"query": None, "answer": "annulled",}"#, "finish annulled"),
        (React, r#"{'query': None, 'answer': 'it's annulled'}"#, "finish it's annulled"),
        (React, r#"{"query": "none", "answer": "Paris"}"#, "finish Paris"),
        (React, r#"{"query": null, "answer": null}"#, neither),
        (React, r#"{"query": None, "answer": None}"#, neither),
        (React, "Here it is:\n```json\n{\"query\": \"x\"}\n```\nI hope it helps", "search x"),
        (React, "```\n{\n  \"thought\": \"t\",\n  \"query\": \"x\",\n}\n```", "search x"),
        (React, "{“query”: “x”, “answer”: null}", "search x"),
        (React, r#"{"QUERY": "x"}"#, "search x"),
        (React, r#"{"Final Answer": "x"}"#, "finish x"),
        (React, r#"{query: the river, answer: null}"#, "search the river"),
        (React, r#"{"action": {"query": "x"}}"#, "search x"),
        (React, r#"{"thought": "cut", "query": "x""#, "search x"),
        (React, r#"{"thought": "cut", "query": "the riv"#, "malformed neither a query nor an answer: the text is cut off"),
        (React, r#"{"query": "say "hello" now", "answer": null}"#, r#"search say "hello" now"#),
        (React, "{\"thought\": \"two\nlines\", \"query\": \"x\"}", "search x"),
        (React, r#"A set {1, 2} first, then {"query": "x"}"#, "search x"),
        (React, r#"__import__('os').system('true')"#, neither),
        (Direct, r#"{"answer": 1969}"#, "finish 1969"),
        (Direct, r#"{"answer": ["a", "b"]}"#, "finish a, b"),
        (Direct, r#"{"answer": true}"#, "finish true"),
        (Direct, "Paris", "finish Paris"),
        (Direct, "Search: Paris", "malformed no answer"),
        (Direct, "", "malformed no answer"),
        (Cot, "Thought: because.\nAnswer: Paris", "finish Paris"),
        (Cot, "Thought: because", "malformed no answer"),
        (Cot, "Because: x.\n\nThe final answer: Paris", "finish Paris"),
        (Research, "Draft: Paris\nUnsupported: it is big\nSearch: size of Paris", "search size of Paris | Paris"),
        (Research, "Draft: Paris\nUnsupported: none\nSearch: none", "finish Paris"),
        (Research, "Draft: none\nUnsupported: all\nSearch: x", "search x"),
        (Research, r#"{"answer": ["Paris"], "query": "x"}"#, "search x | Paris"),
        (Research, r#"{"answer": "Paris", "query": "No further query is needed."}"#, "finish Paris"),
    ];
    let mut wrong = Vec::new();
    for (kind, text, expected) in cases {
        let got = read(kind, text);
        if got != expected {
            wrong.push(format!("{kind}: {text:?}\n  expected {expected}\n  got      {got}"));
        }
    }
    assert!(wrong.is_empty(), "{}", wrong.join("\n"));
}

#[test]
fn a_truncated_state_never_searches() {
    for kind in AgentKind::ALL {
        let agent = Agent::new(kind, PromptStyle::Compact);
        let (_, action) = agent.parse(&state(true), "Search: x");
        assert!(action.is_malformed(), "{kind}: {action:?}");
        let (_, action) = agent.parse(&state(true), "Answer: x");
        assert_eq!(action, Action::Finish { answer: "x".into() });
    }
}

#[test]
fn findings_are_read_with_and_without_a_label() {
    let agent = Agent::new(AgentKind::SearchO1, PromptStyle::Compact);
    for (text, finding) in [
        ("Found: Paris", "Paris"),
        ("Found: not found", "not found"),
        ("It is\n Paris.", "It is Paris."),
        ("```json\n{\"thought\": \"t\", \"found\": \"Paris\"}\n```", "Paris"),
        ("", ""),
    ] {
        assert_eq!(agent.parse_finding(text), finding);
    }
}

fn content() -> impl Strategy<Value = String> {
    prop_oneof![
        "\\PC{1,40}",
        r#"[\\"'{}\[\]:,`*# a-z“”’]{1,40}"#,
        "(Answer|Search|null|None|```|\\{\"a\": )[ :a-z\"}]{0,20}"
    ]
    .prop_map(|text| text.trim().to_owned())
    .prop_filter("says something", |text| {
        !text.is_empty() && !gym::parse::is_no_query(text)
    })
}

proptest! {
    #[test]
    fn any_text_is_read_without_panic(text in "(\\PC|[\\n{}\"':,\\\\\\[\\]`]){0,200}", kind in 0..6usize, truncated: bool) {
        let agent = Agent::new(AgentKind::ALL[kind], PromptStyle::Compact);
        let (_, action) = agent.parse(&state(truncated), &text);
        agent.parse_finding(&text);
        let searches = action.query().is_some();
        prop_assert!(!(truncated && searches));
    }

    #[test]
    fn cut_json_is_read_without_panic(query in content(), cut in 0..80usize) {
        let whole = serde_json::json!({"thought": query, "query": query, "answer": null}).to_string();
        let text: String = whole.chars().take(cut).collect();
        let (_, action) = Agent::new(AgentKind::React, PromptStyle::Full).parse(&state(false), &text);
        prop_assert!(action.is_malformed() || action.query() == Some(query.as_str()), "{:?}", action);
    }

    #[test]
    fn compact_lines_round_trip(text in content()) {
        let react = Agent::new(AgentKind::React, PromptStyle::Compact);
        let (_, action) = react.parse(&state(false), &format!("Search: {text}"));
        prop_assert_eq!(action.query(), Some(text.as_str()));
        let (_, action) = react.parse(&state(false), &format!("Answer: {text}"));
        prop_assert_eq!(action, Action::Finish { answer: text.clone() });
        let research = Agent::new(AgentKind::Research, PromptStyle::Compact);
        let (_, action) = research.parse(&state(false), &format!("Draft: {text}\nUnsupported: {text}\nSearch: {text}"));
        prop_assert_eq!(action, Action::Search { query: text.clone(), predicted_answer: Some(text) });
    }

    #[test]
    fn json_round_trips(thought in "\\PC{0,60}", text in content()) {
        let object = serde_json::json!({"thought": thought, "answer": text, "query": text});
        let fenced = format!("```json\n{}\n```", serde_json::to_string_pretty(&object).unwrap());
        let (_, action) = Agent::new(AgentKind::Research, PromptStyle::Full).parse(&state(false), &fenced);
        prop_assert_eq!(action, Action::Search { query: text.clone(), predicted_answer: Some(text) });
    }
}
