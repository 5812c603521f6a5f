//! Judges that ask a model: rankings by a language model, and continuations.

#![expect(clippy::unwrap_used, reason = "a test that cannot go on fails")]

mod scripted;

use std::sync::{Arc, Mutex};

use gym::{
    Action, Agent, AgentKind, AnswerOption, Cancel, Candidate, EngineError, Findings, Hit, Judge, LabelledQuestion,
    LlmJudge, Outcome, PromptStyle, RolloutJudge, Seed, Step, Verdict, Visit, state_after,
};
use scripted::{RETRIEVER, Script, config, labelled};

fn candidate(action: Action) -> Candidate {
    Candidate {
        text: "Thought: a secret\n".into(),
        reasoning: Some("a secret".into()),
        action,
        token_ids: Vec::new(),
        token_logprobs: Vec::new(),
        multiplicity: 1,
        redundant: false,
        reward: None,
    }
}

fn search(query: &str) -> Candidate {
    candidate(Action::Search {
        query: query.into(),
        predicted_answer: None,
    })
}

fn finish(answer: &str) -> Candidate {
    candidate(Action::Finish { answer: answer.into() })
}

fn malformed() -> Candidate {
    candidate(Action::Malformed { reason: "x".into() })
}

fn judged(judge: &dyn Judge, steps: &[Step], candidates: &[Candidate], seed: Seed) -> Result<Verdict, EngineError> {
    judged_on(&labelled(), judge, steps, candidates, seed, &Cancel::default())
}

fn judged_on(
    labelled: &LabelledQuestion,
    judge: &dyn Judge,
    steps: &[Step],
    candidates: &[Candidate],
    seed: Seed,
    cancel: &Cancel,
) -> Result<Verdict, EngineError> {
    let state = state_after(&labelled.question, steps);
    judge.judge(&Visit {
        labelled,
        steps,
        state: &state,
        candidates,
        must_answer: false,
        seed,
        cancel,
    })
}

fn llm(style: PromptStyle, script: impl Fn(&str, Seed) -> String + Send + Sync + 'static) -> LlmJudge {
    LlmJudge::new("llm:script#1".into(), Arc::new(Script(script, 10_000)), style)
}

/// The actions in a judge's prompt: label and text.
fn actions(user: &str) -> Vec<(String, String)> {
    let (_, list) = user
        .rsplit_once("Actions\n")
        .or_else(|| user.rsplit_once("Steps:\n"))
        .unwrap();
    list.lines()
        .map(|line| line.split_once(". ").unwrap())
        .map(|(label, text)| (label.to_owned(), text.to_owned()))
        .collect()
}

/// Ranks by the alphabet, whatever the order shown.
fn alphabetical(style: PromptStyle) -> LlmJudge {
    llm(style, move |user, _| {
        let mut shown = actions(user);
        shown.sort_by(|a, b| a.1.cmp(&b.1));
        let labels: Vec<String> = shown.into_iter().map(|(label, _)| label).collect();
        match style {
            PromptStyle::Full => format!(
                "```json\n{{\"thought\": \"by name\", \"ranking\": [{}]}}\n```",
                labels.join(", ")
            ),
            PromptStyle::Compact => format!("Best: {}", labels[0]),
        }
    })
}

#[test]
fn a_ranking_is_mapped_back_from_any_shown_order() {
    let candidates = [search("c"), malformed(), search("a"), finish("x"), search("b")];
    for style in PromptStyle::ALL {
        for seed in 0..20 {
            // "Answer: x" comes before every "Query: …".
            let verdict = judged(&alphabetical(style), &[], &candidates, Seed(seed)).unwrap();
            assert_eq!(
                verdict.rewards,
                Some(vec![0.25, 0.0, 0.5, 1.0, 1.0 / 3.0]),
                "{style} {seed}"
            );
        }
    }
}

#[test]
fn the_shown_order_depends_on_the_seed_and_reasoning_is_never_shown() {
    for style in PromptStyle::ALL {
        let seen = Arc::new(Mutex::new(Vec::new()));
        let keep = seen.clone();
        let judge = llm(style, move |user, _| {
            assert!(!user.contains("secret"), "{user}");
            keep.lock().unwrap().push(actions(user)[0].1.clone());
            "Best: A {\"ranking\": [1, 2, 3]}".into()
        });
        let candidates = [search("a"), search("b"), search("c")];
        for seed in 0..30 {
            let verdict = judged(&judge, &[], &candidates, Seed(seed)).unwrap();
            assert_eq!(judged(&judge, &[], &candidates, Seed(seed)).unwrap(), verdict);
        }
        let seen = seen.lock().unwrap();
        for first in ["Query: a", "Query: b", "Query: c"] {
            assert!(
                seen.iter().any(|shown| shown == first),
                "{style}: {first} never came first"
            );
        }
    }
}

#[test]
fn what_is_no_ranking_is_tried_again_and_then_is_an_abstention() {
    let candidates = [search("a"), search("b"), search("c")];
    for (style, wrong) in [
        (PromptStyle::Full, "I like the first one."),
        (PromptStyle::Full, "{\"ranking\": [1, 2]}"),
        (PromptStyle::Full, "{\"ranking\": [1, 2, 2]}"),
        (PromptStyle::Full, "{\"ranking\": [0, 1, 2]}"),
        (PromptStyle::Full, "{\"ranking\": [3, 2, 1"),
        (PromptStyle::Full, "{\"ranking\": \"3, 2, 1\"}"),
        (PromptStyle::Compact, "Best: D"),
        (PromptStyle::Compact, "Best: all of them"),
    ] {
        let seeds = Arc::new(Mutex::new(Vec::new()));
        let keep = seeds.clone();
        let judge = llm(style, move |_, seed| {
            keep.lock().unwrap().push(seed);
            wrong.into()
        });
        let verdict = judged(&judge, &[], &candidates, Seed(3)).unwrap();
        assert_eq!(verdict.rewards, None, "{wrong}");
        assert!(verdict.rationale.unwrap().contains("3 tries"), "{wrong}");
        let mut seeds = seeds.lock().unwrap().clone();
        assert_eq!(seeds.len(), 3, "{wrong}");
        seeds.dedup();
        assert_eq!(seeds.len(), 3, "each try has its own seed");

        let tries = Mutex::new(0);
        let judge = llm(style, move |user, _| {
            let mut tries = tries.lock().unwrap();
            *tries += 1;
            let right = match style {
                PromptStyle::Full => "{\"ranking\": [2, 1, 3]}".to_owned(),
                PromptStyle::Compact => format!("Best: {}", actions(user)[0].0),
            };
            if *tries == 1 { wrong.into() } else { right }
        });
        assert!(
            judged(&judge, &[], &candidates, Seed(3)).unwrap().rewards.is_some(),
            "{wrong}"
        );
    }
}

#[test]
fn one_candidate_is_the_best_of_its_state_without_asking() {
    let judge = llm(PromptStyle::Full, |_, _| panic!("nothing to ask"));
    let rewards = |candidates: &[Candidate]| judged(&judge, &[], candidates, Seed(0)).unwrap().rewards.unwrap();
    assert_eq!(rewards(&[malformed(), search("a")]), [0.0, 1.0]);
    assert_eq!(rewards(&[malformed()]), [0.0]);
}

#[test]
fn judge_prompts() {
    let mut labelled = labelled();
    labelled.question.options = [("A", "here"), ("B", "there")]
        .map(|(label, text)| AnswerOption {
            label: label.into(),
            text: text.into(),
        })
        .into();
    let mut shown = String::new();
    for style in PromptStyle::ALL {
        for (with_history, finding) in [(false, None), (true, None), (true, Some("so it is"))] {
            let keep = Arc::new(Mutex::new(String::new()));
            let into = keep.clone();
            let judge = llm(style, move |user, _| {
                *into.lock().unwrap() = user.to_owned();
                String::new()
            });
            let steps = if with_history {
                vec![step(search("Alpha"), finding)]
            } else {
                Vec::new()
            };
            let candidates = [search("Beta  and\nmore"), finish("Gamma")];
            judged_on(&labelled, &judge, &steps, &candidates, Seed(1), &Cancel::default()).unwrap();
            shown += &format!("=== {style}, {with_history}, {finding:?}\n{}\n", keep.lock().unwrap());
        }
    }
    insta::assert_snapshot!(shown);
}

fn step(candidate: Candidate, finding: Option<&str>) -> Step {
    use gym::Retriever;
    let query = candidate.action.query().unwrap_or_default();
    Step {
        step_idx: 0,
        truncated: false,
        prompt: None,
        dropped: Vec::new(),
        hits: RETRIEVER().search(query, 3).unwrap(),
        candidates: vec![candidate],
        chosen: 0,
        verdict: None,
        opinions: Vec::new(),
        finding: finding.map(str::to_owned),
        usage: gym::Usage::default(),
    }
}

/// Reader's answers in memory.
#[derive(Default)]
struct Kept(Mutex<Vec<(String, String)>>);

impl Findings for Kept {
    fn finding(&self, _question: &str, query: &str, _hits: &[Hit]) -> Option<String> {
        let kept = self.0.lock().unwrap();
        kept.iter()
            .find(|(other, _)| other == query)
            .map(|(_, finding)| finding.clone())
    }

    fn keep(&self, _question: &str, query: &str, _hits: &[Hit], finding: &str) {
        self.0.lock().unwrap().push((query.into(), finding.into()));
    }
}

fn rollout(
    kind: AgentKind,
    outcome: Outcome,
    max_steps: u32,
    script: impl Fn(&str, Seed) -> String + Send + Sync + 'static,
) -> RolloutJudge {
    let model = Arc::new(Script(script, 10_000));
    RolloutJudge {
        id: "rollout:4#1".into(),
        agent: Agent::new(kind, PromptStyle::Compact),
        policy: model.clone(),
        reader: model,
        retriever: Arc::new(RETRIEVER()),
        config: config(max_steps, 2),
        continuations: 4,
        outcome,
        findings: Arc::new(Kept::default()),
    }
}

#[test]
fn a_candidate_is_worth_the_mean_outcome_of_its_continuations() {
    // Right after Alpha; after Beta right for even seeds only, which this step draws three times in four.
    let script = |user: &str, seed: Seed| {
        let right = user.contains("Search: Alpha") || user.contains("Search: Beta") && seed.0.is_multiple_of(2);
        format!("Answer: {}", if right { "Gamma ray" } else { "Delta" })
    };
    let judge = |outcome| rollout(AgentKind::React, outcome, 3, script);
    let candidates = [
        search("Alpha"),
        search("Beta"),
        search("Zeta"),
        finish("Gamma"),
        finish("Delta"),
        malformed(),
    ];
    let rewards = |outcome| {
        judged(&judge(outcome), &[], &candidates, Seed(5))
            .unwrap()
            .rewards
            .unwrap()
    };
    assert_eq!(rewards(Outcome::Em), [0.0, 0.0, 0.0, 1.0, 0.0, 0.0]);
    let f1 = rewards(Outcome::F1);
    assert_eq!((f1[0], f1[2], f1[3]), (2.0 / 3.0, 0.0, 1.0));
    let quarters = f1[1] / (2.0 / 3.0) * 4.0;
    assert!(
        (quarters - quarters.round()).abs() < 1e-9 && (1.0..=3.0).contains(&quarters),
        "{f1:?}"
    );
    assert_eq!(rewards(Outcome::F1), f1, "equal seeds, equal draws");
}

#[test]
fn continuations_keep_within_the_steps_that_are_left() {
    let calls = Arc::new(Mutex::new(Vec::new()));
    let keep = calls.clone();
    let judge = rollout(AgentKind::React, Outcome::F1, 2, move |user, _| {
        keep.lock().unwrap().push(user.matches("Search: ").count());
        if user.contains("No more searches") {
            "Answer: Gamma".into()
        } else {
            "Search: more".into()
        }
    });
    let earlier = [step(search("Alpha"), None)];
    let verdict = judged(&judge, &earlier, &[search("Beta")], Seed(1)).unwrap();
    assert_eq!(verdict.rewards, Some(vec![1.0]));
    // One earlier search, one by the candidate: each continuation may only answer.
    assert_eq!(*calls.lock().unwrap(), [2, 2, 2, 2]);
}

#[test]
fn equal_queries_and_their_readings_are_played_once() {
    let reads = Arc::new(Mutex::new(0));
    let plays = Arc::new(Mutex::new(0));
    let (count_reads, count_plays) = (reads.clone(), plays.clone());
    let judge = rollout(AgentKind::Research, Outcome::F1, 3, move |user, _| {
        if user.contains("Look up:") {
            *count_reads.lock().unwrap() += 1;
            return "Found: it".into();
        }
        *count_plays.lock().unwrap() += 1;
        "Draft: Gamma\nUnsupported: none\nSearch: none".into()
    });
    let drafted = |draft: &str| {
        candidate(Action::Search {
            query: "Alpha".into(),
            predicted_answer: Some(draft.into()),
        })
    };
    let candidates = [drafted("Gamma"), drafted("Delta")];
    let rewards = judged(&judge, &[], &candidates, Seed(1)).unwrap().rewards;
    assert_eq!(rewards, Some(vec![1.0, 1.0]));
    assert_eq!((*plays.lock().unwrap(), *reads.lock().unwrap()), (4, 1));
    // In the last step the drafts are the answers.
    let last = RolloutJudge {
        config: config(1, 2),
        ..judge
    };
    assert_eq!(
        judged(&last, &[], &candidates, Seed(1)).unwrap().rewards,
        Some(vec![1.0, 0.0])
    );
    assert_eq!(*plays.lock().unwrap(), 4);
}

#[test]
fn a_rollout_needs_a_gold_answer_and_stops_when_told() {
    let judge = rollout(AgentKind::React, Outcome::F1, 3, |_, _| "Answer: Gamma".into());
    let mut unknown = labelled();
    unknown.gold.answers.clear();
    let verdict = judged_on(&unknown, &judge, &[], &[search("Alpha")], Seed(1), &Cancel::default());
    assert_eq!(verdict.unwrap().rewards, None);
    let cancel = Cancel::default();
    cancel.cancel();
    let stopped = judged_on(&labelled(), &judge, &[], &[search("Alpha")], Seed(1), &cancel);
    assert!(matches!(stopped, Err(EngineError::Cancelled)), "{stopped:?}");
}

/// Stops at any event: what is resumed from the stored steps ends in the same steps.
#[test]
fn an_episode_with_these_judges_resumes_from_every_prefix_to_the_same_steps() {
    struct Silent;
    impl gym::Observer for Silent {
        fn on_event(&mut self, _: gym::Event<'_>) -> Result<(), EngineError> {
            Ok(())
        }
    }
    let policy = |user: &str, seed: Seed| {
        if user.contains("Look up:") {
            "Found: it".to_owned()
        } else if user.contains("No more searches") {
            ["Answer: Gamma", "Answer: Delta"][seed.0 as usize % 2].into()
        } else {
            format!("Search: {}", ["Alpha", "Beta", "Zeta"][seed.0 as usize % 3])
        }
    };
    let rollout = rollout(AgentKind::SearchO1, Outcome::F1, 4, policy);
    let llm = llm(PromptStyle::Compact, |user, seed| {
        let shown = actions(user);
        format!("Best: {}", shown[seed.0 as usize % shown.len()].0)
    });
    let model = Script(policy, 10_000);
    let retriever = RETRIEVER();
    for judge in [&rollout as &dyn Judge, &llm] {
        let engines = gym::Engines {
            agent: &rollout.agent,
            policy: &model,
            reader: &model,
            retriever: &retriever,
            judge: Some(judge),
            reward_model: None,
        };
        let play = |steps: Vec<Step>| {
            let cancel = Cancel::default();
            gym::run_episode(
                &labelled(),
                &config(4, 4),
                &engines,
                Seed(9),
                steps,
                &mut Silent,
                &cancel,
            )
            .unwrap()
        };
        let whole = play(Vec::new());
        assert!(whole.len() > 2 && whole.iter().all(|step| step.verdict.is_some()));
        for n in 0..whole.len() {
            assert_eq!(play(whole[..n].to_vec()), whole, "{} from step {n}", judge.id());
            // And the stored state, judged later, gets the verdict that it got then.
            let seed = gym::judge::step_seed(Seed(9), &labelled().question.id, n as u32);
            let mut state = state_after(&labelled().question, &whole[..n]);
            state.truncated = whole[n].truncated;
            let later = judge.judge(&Visit {
                labelled: &labelled(),
                steps: &whole[..n],
                state: &state,
                candidates: &whole[n].candidates,
                must_answer: whole[n].truncated,
                seed: gym::judge::judging_seed(seed),
                cancel: &Cancel::default(),
            });
            assert_eq!(
                later.unwrap(),
                whole[n].verdict.clone().unwrap(),
                "{} at step {n}",
                judge.id()
            );
        }
    }
}
