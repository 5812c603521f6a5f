//! Whole episodes with engines that answer from a script.

use std::sync::{Arc, Mutex};

use gym::{
    Action, Agent, AgentKind, Cancel, EngineError, Engines, EpisodeConfig, Event, EvidenceJudge, FinishReason,
    Generation, Gold, GoldPassage, Hit, Judge, LabelledQuestion, LanguageModel, Observer, Passage, Prompt, PromptStyle,
    Question, QuestionId, Retriever, Sample, Sampling, Seed, State, Step, Termination, TokenEvent, Usage, outcome,
    run_episode,
};

/// Writes what a function of the prompt's last message and the seed says; 1 token a byte.
struct Script<F>(F, usize);

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
struct Titles(Vec<&'static str>);

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

#[derive(Default)]
struct Log {
    events: Vec<&'static str>,
    cancel_at: Option<(usize, Cancel)>,
}

impl Observer for Log {
    fn on_event(&mut self, event: Event<'_>) -> Result<(), EngineError> {
        self.events.push(match event {
            Event::StepStarted { .. } => "started",
            Event::Token(_) => "token",
            Event::Candidates { .. } => "candidates",
            Event::Retrieved { .. } => "retrieved",
            Event::ReaderToken(_) => "reader token",
            Event::Finding { .. } => "finding",
            Event::StepFinished(_) => "finished",
        });
        if let Some((at, cancel)) = &self.cancel_at
            && self.events.len() == *at
        {
            cancel.cancel();
        }
        Ok(())
    }
}

fn labelled() -> LabelledQuestion {
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

fn config(max_steps: u32, n_candidates: usize) -> EpisodeConfig {
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
    }
}

fn engines<'a>(agent: &'a Agent, policy: &'a dyn LanguageModel, retriever: &'a dyn Retriever) -> Engines<'a> {
    Engines {
        agent,
        policy,
        reader: policy,
        retriever,
        judge: None,
    }
}

fn run(engines: &Engines<'_>, config: &EpisodeConfig, steps: Vec<Step>) -> Vec<Step> {
    run_episode(
        &labelled(),
        config,
        engines,
        Seed(7),
        steps,
        &mut Log::default(),
        &Cancel::default(),
    )
    .expect("the scripted engines do not fail")
}

/// A policy that searches Alpha, then Beta, then answers, in any agent's compact format.
fn good(kind: AgentKind) -> impl Fn(&str, Seed) -> String + Send + Sync {
    move |user, _| {
        if user.contains("Look up:") {
            return "Found: it is so".into();
        }
        let next = ["Alpha", "Beta"]
            .into_iter()
            .find(|query| !user.contains(&format!("Search: {query}")));
        match (kind, next) {
            (AgentKind::Direct, _) => "Answer: Gamma".into(),
            (AgentKind::Cot | AgentKind::Rag, _) => "Thought: well\nAnswer: Gamma".into(),
            _ if user.contains("No more searches") => "Answer: Gamma".into(),
            (AgentKind::Research, next) => format!("Draft: Gamma\nUnsupported: it\nSearch: {}", next.unwrap_or("none")),
            (_, Some(query)) => format!("Search: {query}"),
            (_, None) => "Answer: Gamma".into(),
        }
    }
}

const RETRIEVER: fn() -> Titles = || Titles(vec!["Alpha", "Beta"]);

#[test]
fn every_agent_answers_within_its_own_number_of_steps() {
    let retriever = RETRIEVER();
    for (kind, max_steps, n_steps, termination) in [
        (AgentKind::Direct, 4, 1, Termination::Answered),
        (AgentKind::Direct, 0, 1, Termination::Answered),
        (AgentKind::Cot, 4, 1, Termination::Answered),
        (AgentKind::Rag, 4, 2, Termination::Answered),
        (AgentKind::Rag, 1, 2, Termination::Answered),
        (AgentKind::Rag, 0, 2, Termination::Answered),
        (AgentKind::React, 4, 3, Termination::Answered),
        (AgentKind::React, 1, 2, Termination::Truncated),
        (AgentKind::React, 0, 1, Termination::Truncated),
        (AgentKind::SearchO1, 4, 3, Termination::Answered),
        (AgentKind::SearchO1, 2, 3, Termination::Truncated),
        (AgentKind::Research, 4, 3, Termination::Answered),
        // The draft of the last search is the answer: no further call.
        (AgentKind::Research, 1, 1, Termination::Truncated),
    ] {
        let agent = Agent::new(kind, PromptStyle::Compact);
        let policy = Script(good(kind), 10_000);
        let steps = run(&engines(&agent, &policy, &retriever), &config(max_steps, 1), Vec::new());
        let case = format!("{kind} with {max_steps} steps");
        assert_eq!(outcome(&steps), (Some("Gamma"), termination), "{case}");
        assert_eq!(steps.len(), n_steps, "{case}");
        let read = agent.reads() && steps[0].action().query().is_some();
        assert_eq!(steps[0].finding.is_some(), read, "{case}");
    }
}

#[test]
fn an_episode_resumes_from_every_prefix_to_the_same_steps() {
    let retriever = RETRIEVER();
    for kind in AgentKind::ALL {
        let agent = Agent::new(kind, PromptStyle::Compact);
        // Two spellings, chosen by the seed, so that a wrong seed shows.
        let policy = Script(
            move |user: &str, seed: Seed| {
                let text = good(kind)(user, seed);
                if seed.0.is_multiple_of(2) {
                    text
                } else {
                    text.replace("Search: ", "Search: the ")
                }
            },
            10_000,
        );
        let judge = EvidenceJudge::new(Arc::new(RETRIEVER()), 3);
        let engines = Engines {
            judge: Some(&judge),
            ..engines(&agent, &policy, &retriever)
        };
        let config = config(4, 3);
        let whole = run(&engines, &config, Vec::new());
        for n in 0..=whole.len() {
            assert_eq!(
                run(&engines, &config, whole[..n].to_vec()),
                whole,
                "{kind} from step {n}"
            );
        }
    }
}

#[test]
fn duplicates_are_merged_and_the_better_reward_is_chosen() {
    let retriever = RETRIEVER();
    let agent = Agent::new(AgentKind::React, PromptStyle::Compact);
    let count = Mutex::new(0);
    let policy = Script(
        |_: &str, _: Seed| {
            let mut count = count.lock().unwrap();
            *count += 1;
            ["Search: Zeta", "Search: Alpha", "Search: Zeta", "???"][(*count - 1) % 4].to_owned()
        },
        10_000,
    );
    let judge = EvidenceJudge::new(Arc::new(RETRIEVER()), 3);
    let engines = Engines {
        judge: Some(&judge),
        ..engines(&agent, &policy, &retriever)
    };
    let steps = run(&engines, &config(1, 4), Vec::new());
    let step = &steps[0];
    assert_eq!(
        step.candidates.iter().map(|c| c.multiplicity).collect::<Vec<_>>(),
        [2, 1, 1]
    );
    assert_eq!(step.action().query(), Some("Alpha"));
    assert_eq!(step.candidates[2].reward, Some(0.0));
    assert_eq!(step.candidates[2].text, "???");
    assert_eq!(step.hits.len(), 1);
}

#[test]
fn malformed_text_ends_unanswered_and_never_searches() {
    let retriever = RETRIEVER();
    for kind in AgentKind::ALL {
        let agent = Agent::new(kind, PromptStyle::Compact);
        let policy = Script(|_: &str, _: Seed| "{\"query\": \"x".to_owned(), 10_000);
        for n_candidates in [1, 2] {
            let steps = run(
                &engines(&agent, &policy, &retriever),
                &config(3, n_candidates),
                Vec::new(),
            );
            assert_eq!(outcome(&steps), (None, Termination::Unanswered), "{kind}");
            assert!(
                steps
                    .iter()
                    .all(|step| step.action().is_malformed() || step.prompt.is_none()),
                "{kind}"
            );
            assert!(steps.len() <= 4);
        }
    }
}

#[test]
fn a_repeating_greedy_agent_is_asked_for_its_answer() {
    let retriever = RETRIEVER();
    let agent = Agent::new(AgentKind::React, PromptStyle::Compact);
    let policy = Script(
        |user: &str, _: Seed| {
            if user.contains("No more") {
                "Answer: Gamma".into()
            } else {
                "Search: Alpha".to_owned()
            }
        },
        10_000,
    );
    let steps = run(&engines(&agent, &policy, &retriever), &config(9, 1), Vec::new());
    assert_eq!(steps.len(), 3);
    assert!(steps[1].candidates[0].redundant && steps[2].truncated);
}

#[test]
fn passages_that_do_not_fit_are_dropped_and_named() {
    let retriever = RETRIEVER();
    let agent = Agent::new(AgentKind::Rag, PromptStyle::Compact);
    let run_in = |context| {
        let policy = Script(good(AgentKind::Rag), context);
        run_episode(
            &labelled(),
            &config(3, 1),
            &engines(&agent, &policy, &retriever),
            Seed(1),
            Vec::new(),
            &mut Log::default(),
            &Cancel::default(),
        )
    };
    let whole = run_in(10_000).unwrap();
    let tokens: usize = whole[1]
        .prompt
        .as_ref()
        .unwrap()
        .messages
        .iter()
        .map(|m| m.content.len())
        .sum();
    assert!(whole[1].dropped.is_empty());
    let short = run_in(tokens + 10 - 1).unwrap();
    assert_eq!(short[1].dropped, ["p-Beta"]);
    assert!(matches!(run_in(100), Err(EngineError::PromptTooLong { .. })));
}

#[test]
fn a_cancelled_episode_stops_and_resumes() {
    let retriever = RETRIEVER();
    let agent = Agent::new(AgentKind::SearchO1, PromptStyle::Compact);
    let policy = Script(good(AgentKind::SearchO1), 10_000);
    let engines = engines(&agent, &policy, &retriever);
    let whole = run(&engines, &config(4, 1), Vec::new());
    for at in 1..13 {
        let cancel = Cancel::default();
        let mut log = Log {
            cancel_at: Some((at, cancel.clone())),
            ..Log::default()
        };
        let result = run_episode(
            &labelled(),
            &config(4, 1),
            &engines,
            Seed(7),
            Vec::new(),
            &mut log,
            &cancel,
        );
        assert!(matches!(result, Err(EngineError::Cancelled)), "at event {at}");
        let n_stored = log.events.iter().filter(|event| **event == "finished").count();
        assert_eq!(run(&engines, &config(4, 1), whole[..n_stored].to_vec()), whole);
    }
}

#[test]
fn the_evidence_judge_gives_the_documented_rewards() {
    let judge = EvidenceJudge::new(Arc::new(RETRIEVER()), 3);
    let LabelledQuestion { question, gold, .. } = labelled();
    let search = |query: &str| Action::Search {
        query: query.into(),
        predicted_answer: None,
    };
    let finish = |answer: &str| Action::Finish { answer: answer.into() };
    let candidate = |action: Action| gym::Candidate {
        text: String::new(),
        reasoning: None,
        action,
        token_ids: Vec::new(),
        token_logprobs: Vec::new(),
        multiplicity: 1,
        redundant: false,
        reward: None,
    };
    let actions = || {
        vec![
            finish("Gamma"),
            finish("Delta"),
            search("Alpha"),
            search("Beta and Alpha"),
            search("Zeta"),
            Action::Malformed { reason: "x".into() },
        ]
        .into_iter()
        .map(candidate)
        .collect::<Vec<_>>()
    };
    let rewards = |state: &State, gold: &Gold| {
        let rewards = judge.judge(state, gold, &actions()).unwrap().rewards?;
        Some(
            rewards
                .iter()
                .map(|reward| (reward * 1e6).round() / 1e6)
                .collect::<Vec<_>>(),
        )
    };
    let start = State::new(question);
    assert_eq!(rewards(&start, &gold), Some(vec![0.6, 0.1, 0.95, 1.0, 0.3, 0.0]));
    let hits = RETRIEVER().search("Alpha Beta", 3).unwrap();
    let sufficient = gym::transition(&start, &search("alpha"), hits, None);
    assert_eq!(rewards(&sufficient, &gold), Some(vec![1.0, 0.2, 0.1, 0.3, 0.3, 0.0]));
    let answers_only = Gold {
        passages: Vec::new(),
        ..gold.clone()
    };
    assert_eq!(rewards(&start, &answers_only), Some(vec![1.0, 0.2, 0.5, 0.5, 0.5, 0.0]));
    assert_eq!(rewards(&start, &Gold::default()), None);
}
