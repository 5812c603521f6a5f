//! The endpoint client against llama.cpp's own server with SmolLM2-135M: `cargo xtask test` brings both
//! and names them in RAG_GYM_PEER_PYTHON and RAG_GYM_TEST_MODEL.

#![expect(clippy::unwrap_used, reason = "a test that cannot go on fails")]

use std::collections::HashSet;
use std::path::Path;

use gym::{
    Agent, AgentKind, Cancel, EngineError, FinishReason, Generation, LanguageModel, Message, Prompt, PromptStyle,
    Question, QuestionId, Role, Sampling, Seed, State,
};
use lm::LocalModel;
use lm::endpoint::{Endpoint, Route, Settings, Timeouts};
use lm::grammar::Automaton;

#[path = "support/llama_cpp.rs"]
mod support;

use support::{Server, server};

fn open(server: &Server, route: Route) -> Endpoint {
    let settings = Settings {
        url: server.url.clone(),
        model: "smollm2".into(),
        key_env: None,
        context_tokens: None,
        route,
        grammar: true,
    };
    Endpoint::open(settings, None, Timeouts::default()).unwrap()
}

fn prompt(text: &str) -> Prompt {
    Prompt {
        messages: vec![Message {
            role: Role::User,
            content: text.into(),
        }],
    }
}

#[test]
fn ten_candidates_come_from_one_request_with_their_log_probabilities() {
    let Some((server, model)) = server() else { return };
    let endpoint = open(&server, Route::Chat);
    assert_eq!(endpoint.context_tokens(), 8192);
    let local = LocalModel::open(Path::new(&model)).unwrap();

    let request = Generation {
        prompt: prompt("Which rivers flow through the middle of Africa? Name one, and say where it ends."),
        sampling: Sampling {
            temperature: 1.0,
            max_tokens: 24,
            ..Sampling::default()
        },
        seeds: (0..10).map(|idx| Seed(5).derive(idx)).collect(),
        grammar: None,
    };
    let mut heard = vec![String::new(); 10];
    let (samples, usage) = endpoint
        .generate(&request, &Cancel::default(), &mut |token| {
            heard[token.sample_idx] += &token.text
        })
        .unwrap();
    assert_eq!(samples.len(), 10);
    for (sample, heard) in samples.iter().zip(&heard) {
        assert_eq!(&sample.text, heard);
        assert!(!sample.token_logprobs.is_empty() && sample.token_ids.len() == sample.token_logprobs.len());
        assert!(sample.token_logprobs.iter().all(|&logprob| logprob <= 0.0));
    }
    let distinct: HashSet<&str> = samples.iter().map(|sample| sample.text.as_str()).collect();
    assert!(distinct.len() >= 8, "{distinct:?}");
    let tokens: usize = samples.iter().map(|sample| sample.token_ids.len()).sum();
    assert_eq!(usage.generated as usize, tokens);
    // Our tokenizer and template are the same as theirs, and the prompt was computed once.
    let counted = local.count_tokens(&request.prompt).unwrap();
    assert_eq!(usage.prompt as usize, counted);
    assert_eq!(endpoint.count_tokens(&request.prompt).unwrap(), counted);

    let greedy = Generation {
        sampling: Sampling {
            max_tokens: 12,
            ..Sampling::default()
        },
        ..request
    };
    let ask = |model: &dyn LanguageModel| model.generate(&greedy, &Cancel::default(), &mut |_| {}).unwrap();
    let (again, usage) = ask(&endpoint);
    assert!(usage.cached > 0, "the prompt is in the server's cache: {usage:?}");
    assert!(again.iter().all(|sample| sample.text == again[0].text));
    // Both compute the same distribution, theirs with activations rounded to 8 bits.
    let (ours, _) = ask(&local);
    let difference = (ours[0].token_logprobs[0] - again[0].token_logprobs[0]).abs();
    assert_eq!(ours[0].token_ids[0], again[0].token_ids[0]);
    assert!(difference < 0.2, "log-probabilities differ by {difference}");
}

#[test]
fn grammars_hold_on_the_server() {
    let Some((server, _)) = server() else { return };
    let endpoint = open(&server, Route::Chat);
    let question = Question {
        id: QuestionId("q".into()),
        text: "What is the capital of the country whose highest point is Grossglockner?".into(),
        options: Vec::new(),
    };
    for (kind, truncated) in [
        (AgentKind::React, false),
        (AgentKind::React, true),
        (AgentKind::Research, false),
        (AgentKind::Cot, false),
    ] {
        let agent = Agent::new(kind, PromptStyle::Compact);
        let state = State {
            truncated,
            ..State::new(question.clone())
        };
        let grammar = agent.grammar(&state).unwrap();
        let request = Generation {
            prompt: agent.prompt(&state),
            sampling: Sampling {
                temperature: 1.0,
                max_tokens: 80,
                ..Sampling::default()
            },
            seeds: (0..3).map(|idx| Seed(9).derive(idx)).collect(),
            grammar: Some(grammar.clone()),
        };
        let (samples, _) = endpoint.generate(&request, &Cancel::default(), &mut |_| {}).unwrap();
        let automaton = Automaton::new(&grammar).unwrap();
        for sample in samples {
            // Characters are counted in place of bytes, so a line that is not ASCII may go a little too far.
            let held = match sample.finish {
                FinishReason::Stop => automaton.matches(&sample.text),
                FinishReason::Length => !automaton.advance(&automaton.start(), sample.text.as_bytes()).is_empty(),
            };
            assert!(
                held || !sample.text.is_ascii(),
                "{kind}: {:?} ({:?})",
                sample.text,
                sample.finish
            );
            let malformed = agent.parse(&state, &sample.text).1.is_malformed();
            assert!(
                sample.finish == FinishReason::Length || !malformed,
                "{kind}: {:?}",
                sample.text
            );
        }
    }
}

#[test]
fn plain_completions_stop_where_told_and_long_prompts_are_refused_by_name() {
    let Some((server, _)) = server() else { return };
    let endpoint = open(&server, Route::Completions);
    let ask = |text: &str, stop: &[&str]| {
        let request = Generation {
            prompt: prompt(text),
            sampling: Sampling {
                max_tokens: 24,
                stop: stop.iter().map(|&stop| stop.into()).collect(),
                ..Sampling::default()
            },
            seeds: vec![Seed(1)],
            grammar: None,
        };
        endpoint.generate(&request, &Cancel::default(), &mut |_| {})
    };
    const TEXT: &str = "one, two, three, four, five, six, one, two, three, four, five, six, one, two,";
    let whole = ask(TEXT, &[]).unwrap().0.remove(0);
    assert_eq!(whole.finish, FinishReason::Length);
    assert!(!whole.token_logprobs.is_empty());
    let middle: String = whole.text.chars().skip(12).take(3).collect();
    let stopped = ask(TEXT, &[&middle]).unwrap().0.remove(0);
    assert_eq!(stopped.finish, FinishReason::Stop);
    assert_eq!(whole.text.split(&middle).next(), Some(stopped.text.as_str()));

    let error = ask(&"a b c d ".repeat(3000), &[]).unwrap_err();
    assert!(
        matches!(
            error,
            EngineError::PromptTooLong {
                limit: 8192,
                tokens: 8193..,
                ..
            }
        ),
        "{error}"
    );
}
