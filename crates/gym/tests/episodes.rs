//! Whole episodes with engines that answer from a script.

#![expect(clippy::unwrap_used, reason = "a test that cannot go on fails")]

mod scripted;

use std::sync::{Arc, Mutex};

use gym::{
    Action, Agent, AgentKind, Cancel, Candidate, EngineError, Engines, EpisodeConfig, Event, EvidenceJudge, Gold,
    Judge, LabelledQuestion, LanguageModel, Observer, Opinion, PromptStyle, Retriever, RewardModel, Seed, Selection,
    State, Step, SubQuestion, Termination, Visit, outcome, run_episode,
};
use scripted::{RETRIEVER, Script, config, labelled};

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
            Event::Judging { .. } => "judging",
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

fn engines<'a>(agent: &'a Agent, policy: &'a dyn LanguageModel, retriever: &'a dyn Retriever) -> Engines<'a> {
    Engines {
        agent,
        policy,
        reader: policy,
        retriever,
        judge: None,
        reward_model: None,
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

fn search(query: &str) -> Action {
    Action::Search {
        query: query.into(),
        predicted_answer: None,
    }
}

fn finish(answer: &str) -> Action {
    Action::Finish { answer: answer.into() }
}

fn malformed() -> Action {
    Action::Malformed { reason: "x".into() }
}

fn candidate(action: Action) -> Candidate {
    Candidate {
        text: String::new(),
        reasoning: None,
        action,
        token_ids: Vec::new(),
        token_logprobs: Vec::new(),
        multiplicity: 1,
        redundant: false,
        reward: None,
    }
}

/// The evidence judge's rewards, to six places.
fn evidence_rewards(state: &State, gold: &Gold, actions: impl IntoIterator<Item = Action>) -> Option<Vec<f64>> {
    let labelled = LabelledQuestion {
        gold: gold.clone(),
        ..labelled()
    };
    let candidates: Vec<Candidate> = actions.into_iter().map(candidate).collect();
    let visit = Visit {
        labelled: &labelled,
        steps: &[],
        state,
        candidates: &candidates,
        must_answer: state.truncated,
        seed: Seed(0),
        cancel: &Cancel::default(),
    };
    let judge = EvidenceJudge::new(Arc::new(RETRIEVER()), 3);
    let rewards = judge.judge(&visit).unwrap().rewards?;
    Some(rewards.iter().map(|reward| (reward * 1e6).round() / 1e6).collect())
}

#[test]
fn the_evidence_judge_gives_the_documented_rewards() {
    let LabelledQuestion { question, gold, .. } = labelled();
    let actions = || {
        [
            finish("Gamma"),
            finish("Delta"),
            search("Alpha"),
            search("Beta and Alpha"),
            search("Zeta"),
            malformed(),
        ]
    };
    let start = State::new(question);
    let rewards = |state: &State, gold: &Gold| evidence_rewards(state, gold, actions());
    assert_eq!(rewards(&start, &gold), Some(vec![0.15, 0.05, 0.975, 1.0, 0.2, 0.0]));
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

#[test]
fn a_guess_before_the_evidence_ranks_below_any_new_query() {
    let LabelledQuestion { question, gold, .. } = labelled();
    let rewards = evidence_rewards(&State::new(question), &gold, [finish("Gamma"), search("Zeta")]).unwrap();
    assert!(rewards[0] < rewards[1] && rewards[0] < 0.5, "{rewards:?}");
}

#[test]
fn the_foundational_query_ranks_before_the_specific_one() {
    let LabelledQuestion { question, gold, .. } = labelled();
    let hop = |title: &str| SubQuestion {
        question: String::new(),
        answer: String::new(),
        title: Some(title.into()),
    };
    let ordered = Gold {
        sub_questions: vec![hop("Beta"), hop("Alpha")],
        ..gold
    };
    let start = State::new(question);
    let rewards = |state: &State| evidence_rewards(state, &ordered, [search("Alpha"), search("Beta")]).unwrap();
    assert_eq!(rewards(&start), [0.875, 0.975]);
    // Beta is found: Alpha is the next one.
    let hits = RETRIEVER().search("Beta", 3).unwrap();
    let later = gym::transition(&start, &search("Beta"), hits, None);
    assert_eq!(rewards(&later), [1.0, 0.1]);
}

#[test]
fn a_query_that_brings_nothing_new_ranks_below_one_that_does() {
    let LabelledQuestion { question, mut gold, .. } = labelled();
    gold.passages[1].title = "Nowhere".into();
    let start = State::new(question);
    let hits = RETRIEVER().search("Alpha", 3).unwrap();
    let later = gym::transition(&start, &search("Alpha"), hits, None);
    let rewards = evidence_rewards(&later, &gold, [search("the Alpha"), search("Beta"), search("alpha ")]);
    assert_eq!(rewards, Some(vec![0.2, 0.3, 0.1]));
}

/// Likes long queries.
struct Length;

impl RewardModel for Length {
    fn id(&self) -> &str {
        "length#1"
    }

    fn score(&self, _state: &State, candidates: &[Candidate]) -> Result<Vec<f64>, EngineError> {
        Ok(candidates.iter().map(|candidate| candidate.text.len() as f64).collect())
    }
}

/// Samples of one step, in turn.
fn in_turn(texts: &'static [&'static str]) -> impl LanguageModel {
    let count = Mutex::new(0);
    Script(
        move |_: &str, _: Seed| {
            let mut count = count.lock().unwrap();
            *count += 1;
            texts[(*count - 1) % texts.len()].to_owned()
        },
        10_000,
    )
}

#[test]
fn a_reward_model_guides_and_the_judge_is_kept_beside_it() {
    let retriever = RETRIEVER();
    let agent = Agent::new(AgentKind::React, PromptStyle::Compact);
    let policy = in_turn(&[
        "Search: Alpha",
        "Search: nothing of any use",
        "no action, however long it is",
    ]);
    let judge = EvidenceJudge::new(Arc::new(RETRIEVER()), 3);
    let engines = Engines {
        judge: Some(&judge),
        reward_model: Some(&Length),
        ..engines(&agent, &policy, &retriever)
    };
    let step = &run(&engines, &config(1, 3), Vec::new())[0];
    assert_eq!(step.action().query(), Some("nothing of any use"));
    let rewards: Vec<Option<f64>> = step.candidates.iter().map(|candidate| candidate.reward).collect();
    assert_eq!(rewards, [Some(13.0), Some(26.0), Some(29.0)]);
    let [Opinion { judge_id, verdict }] = &step.opinions[..] else {
        panic!("{:?}", step.opinions)
    };
    assert_eq!(judge_id, "evidence#3");
    let expected = EvidenceJudge::new(Arc::new(RETRIEVER()), 3);
    let visit = Visit {
        labelled: &labelled(),
        steps: &[],
        state: &State::new(labelled().question),
        candidates: &step.candidates,
        must_answer: false,
        seed: Seed(0),
        cancel: &Cancel::default(),
    };
    assert_eq!(*verdict, expected.judge(&visit).unwrap());
}

#[test]
fn a_reward_that_is_no_number_stops_the_episode() {
    struct Broken(Vec<f64>);
    impl RewardModel for Broken {
        fn id(&self) -> &str {
            "broken#1"
        }
        fn score(&self, _: &State, _: &[Candidate]) -> Result<Vec<f64>, EngineError> {
            Ok(self.0.clone())
        }
    }
    let retriever = RETRIEVER();
    let agent = Agent::new(AgentKind::React, PromptStyle::Compact);
    for rewards in [vec![f64::NAN, 0.0], vec![1.0]] {
        let policy = in_turn(&["Search: Alpha", "Search: Beta"]);
        let model = Broken(rewards);
        let engines = Engines {
            reward_model: Some(&model),
            ..engines(&agent, &policy, &retriever)
        };
        let result = run_episode(
            &labelled(),
            &config(1, 2),
            &engines,
            Seed(7),
            Vec::new(),
            &mut Log::default(),
            &Cancel::default(),
        );
        assert!(matches!(result, Err(EngineError::Failed { .. })), "{result:?}");
    }
}

#[test]
fn each_way_to_select_takes_its_candidate() {
    let rated = |query: &str, votes, reward| Candidate {
        multiplicity: votes,
        reward: Some(reward),
        ..candidate(search(query))
    };
    let malformed = Candidate {
        multiplicity: 9,
        reward: Some(9.0),
        ..candidate(malformed())
    };
    let candidates = [
        malformed.clone(),
        rated("a", 1, 0.2),
        rated("b", 3, 0.1),
        rated("c", 1, 0.7),
    ];
    let chosen = |selection| gym::episode::choose(&candidates, selection, Seed(1));
    assert_eq!(chosen(Selection::First), 1);
    assert_eq!(chosen(Selection::Majority), 2);
    assert_eq!(chosen(Selection::Reward), 3);
    // Three samples against one: e^0.6 is too little to pass them over, e^1.2 is enough.
    assert_eq!(chosen(Selection::Weighted), 2);
    let closer = [rated("b", 3, 0.1), rated("c", 1, 1.3)];
    assert_eq!(gym::episode::choose(&closer, Selection::Weighted, Seed(1)), 1);
    let unrated = candidates.clone().map(|candidate| Candidate {
        reward: None,
        ..candidate
    });
    assert_eq!(gym::episode::choose(&unrated, Selection::Weighted, Seed(1)), 2);
    // A reward of 1 outweighs three nats of the policy, and not four.
    let unlikely = |nats: f32| Candidate {
        token_logprobs: vec![-1.0, 1.0 - nats],
        ..rated("d", 1, 1.0)
    };
    let prior = |nats| gym::episode::choose(&[rated("a", 1, 0.0), unlikely(nats)], Selection::Prior, Seed(1));
    assert_eq!((prior(3.0), prior(4.0)), (1, 0));
    let mut counts = [0u32; 4];
    for seed in 0..5000 {
        counts[gym::episode::choose(&candidates, Selection::Random, Seed(seed))] += 1;
    }
    // One sample of five each, three for `b`: 1000, 3000, 1000, give or take four deviations.
    assert_eq!(counts[0], 0);
    assert!(
        counts[1].abs_diff(1000) < 120 && counts[2].abs_diff(3000) < 140,
        "{counts:?}"
    );
    // With nothing else to take, a malformed one is taken.
    assert_eq!(gym::episode::choose(&[malformed], Selection::Random, Seed(1)), 0);
}

#[test]
fn a_random_choice_is_the_same_after_a_resumption() {
    let retriever = RETRIEVER();
    let agent = Agent::new(AgentKind::React, PromptStyle::Compact);
    let policy = Script(|_: &str, seed: Seed| format!("Search: {}", seed.0 % 7), 10_000);
    let config = EpisodeConfig {
        selection: Selection::Random,
        ..config(4, 5)
    };
    let engines = engines(&agent, &policy, &retriever);
    let whole = run(&engines, &config, Vec::new());
    assert!(whole.iter().any(|step| step.chosen > 0));
    for n in 0..whole.len() {
        assert_eq!(run(&engines, &config, whole[..n].to_vec()), whole);
    }
}
