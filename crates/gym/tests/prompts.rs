//! Every prompt of every agent, as sent.

use std::fmt::Write;
use std::sync::Arc;

use gym::{Agent, AgentKind, AnswerOption, Grammar, Hit, Passage, PromptStyle, Question, QuestionId, State, Turn};

fn state() -> State {
    let hit = |rank, title: &str, text: &str| Hit {
        passage: Arc::new(Passage {
            id: title.into(),
            title: title.into(),
            text: text.into(),
        }),
        score: 1.0,
        rank,
    };
    State {
        question: Question {
            id: QuestionId("q".into()),
            text: "Where was the maker of <Alpha> born?".into(),
            options: Vec::new(),
        },
        history: vec![Turn {
            query: "Alpha maker".into(),
            hits: vec![
                hit(1, "Alpha", "Alpha is a film\nby {{ Beta }}."),
                hit(2, "Beta", "Beta makes films."),
            ],
            finding: Some("Beta".into()),
        }],
        truncated: false,
    }
}

#[test]
fn prompts() {
    for style in PromptStyle::ALL {
        for kind in AgentKind::ALL {
            let agent = Agent::new(kind, style);
            let mut shown = String::new();
            let state = state();
            let truncated = State {
                truncated: true,
                ..state.clone()
            };
            let mut cases = vec![("prompt", agent.prompt(&state))];
            if agent.searches() {
                cases.push(("truncated", agent.prompt(&truncated)));
            }
            if agent.reads() {
                cases.push((
                    "reader",
                    agent.reader_prompt(&state, "Alpha maker", &state.history[0].hits),
                ));
            }
            for (name, prompt) in cases {
                for message in prompt.messages {
                    writeln!(shown, "=== {name}, {:?}\n{}", message.role, message.content).unwrap();
                }
            }
            insta::assert_snapshot!(format!("{kind}-{style}"), shown);
        }
    }
}

#[test]
fn comparisons_of_findings_are_shown_to_agents_that_do_not_see_passages() {
    let mut state = state();
    let sizes = [("area of Mali", "1,240,192 sq km"), ("area of Malta", "316 sq km")];
    state.history.extend(sizes.map(|(query, finding)| Turn {
        query: query.into(),
        hits: Vec::new(),
        finding: Some(finding.into()),
    }));
    for kind in AgentKind::ALL {
        let agent = Agent::new(kind, PromptStyle::Compact);
        let user = &agent.prompt(&state).messages[1].content;
        let order = "\nFound: 316 sq km\nLargest: Mali\nSmallest: Malta";
        assert_eq!(user.ends_with(order), agent.reads(), "{kind}: {user}");
    }
}

#[test]
fn options_are_shown_and_only_their_labels_may_be_written() {
    let mut state = state();
    state.question.options = [("A", "here"), ("B", "there")]
        .map(|(label, text)| AnswerOption {
            label: label.into(),
            text: text.into(),
        })
        .into();
    for style in PromptStyle::ALL {
        for kind in AgentKind::ALL {
            let prompt = Agent::new(kind, style).prompt(&state);
            assert!(
                prompt.messages[1].content.contains("\nA. here\nB. there"),
                "{kind} {style}"
            );
        }
    }
    let literal = |text: &str| Grammar::Literal(text.into());
    let labels = Grammar::OneOf(vec![literal("A"), literal("B")]);
    let direct = Agent::new(AgentKind::Direct, PromptStyle::Compact);
    assert_eq!(
        direct.grammar(&state),
        Some(Grammar::Sequence(vec![literal("Answer: "), labels]))
    );
}

#[test]
fn names_round_trip_and_unknown_ones_list_the_choices() {
    for kind in AgentKind::ALL {
        assert_eq!(kind.to_string().parse(), Ok(kind));
        assert_eq!(serde_json::to_value(kind).unwrap(), kind.to_string());
    }
    for style in PromptStyle::ALL {
        assert_eq!(style.to_string().parse(), Ok(style));
    }
    let error = "reAct".parse::<AgentKind>().unwrap_err();
    assert_eq!(
        error.to_string(),
        "no agent is called `reAct`: choose direct, cot, rag, react, search-o1, research"
    );
}
