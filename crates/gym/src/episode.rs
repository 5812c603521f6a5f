//! One question, from first state to answer: sample candidates, judge them, take the best, ask the
//! environment, repeat. Resumes from any prefix of its own steps.

use serde::{Deserialize, Serialize};

use crate::agent::Agent;
use crate::judge::{Judge, Opinion, PRIOR, RewardModel, Selection, Verdict, Visit, judging_seed, step_seed};
use crate::{
    Action, Cancel, Candidate, EngineError, Generation, Hit, LabelledQuestion, LanguageModel, Prompt, Question,
    Retriever, Sampling, Seed, State, TokenEvent, Usage, transition,
};

/// What stays the same over a run.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct EpisodeConfig {
    /// Searches and retries allowed before the agent is asked for an answer only.
    pub max_steps: u32,
    /// Passages per search.
    pub k: usize,
    pub n_candidates: usize,
    pub sampling: Sampling,
    /// Sampling of the reader's short answers; greedy by default.
    pub reader_sampling: Sampling,
    /// Decode within the agent's action grammar.
    pub constrained: bool,
    #[serde(default)]
    pub selection: Selection,
}

/// One step of an episode and all its parts.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Step {
    pub step_idx: u32,
    /// The agent was asked for an answer only.
    pub truncated: bool,
    /// As sent; `None` when the action was fixed by the agent (RAG's first search).
    pub prompt: Option<Prompt>,
    /// Ids of passages left out because the prompt would not have fitted, oldest first.
    pub dropped: Vec<String>,
    pub candidates: Vec<Candidate>,
    /// Index into `candidates`.
    pub chosen: usize,
    /// By whatever gave the candidates their rewards: the reward model, else the judge.
    pub verdict: Option<Verdict>,
    /// By the judge, where a reward model gave the rewards. Kept for reports; nothing is built on it.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub opinions: Vec<Opinion>,
    /// What the chosen query retrieved; empty for answers.
    pub hits: Vec<Hit>,
    pub finding: Option<String>,
    pub usage: Usage,
}

impl Step {
    pub fn action(&self) -> &Action {
        &self.candidates[self.chosen].action
    }
}

/// How an episode ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Termination {
    Answered,
    /// Out of steps; the answer is the forced or the last predicted one.
    Truncated,
    /// No answer could be read, not even when asked for one only.
    Unanswered,
}

/// What happens inside an episode, as it happens.
#[derive(Debug)]
pub enum Event<'a> {
    StepStarted {
        step_idx: u32,
        prompt: Option<&'a Prompt>,
        dropped: &'a [String],
    },
    Token(TokenEvent),
    /// The candidates are sampled; this reward model or judge looks at them now.
    Judging {
        judge_id: &'a str,
    },
    Candidates {
        candidates: &'a [Candidate],
        chosen: usize,
    },
    Retrieved {
        query: &'a str,
        hits: &'a [Hit],
    },
    ReaderToken(TokenEvent),
    Finding {
        finding: &'a str,
    },
    /// Sent once a step is complete, before the next one starts; an error returned by the observer
    /// ends the episode, so a step that could not be stored is never built upon.
    StepFinished(&'a Step),
}

/// Watches an episode and keeps what must outlive it.
pub trait Observer {
    fn on_event(&mut self, event: Event<'_>) -> Result<(), EngineError>;

    /// A reader's answer given before to the same question, query and passages.
    fn cached_finding(&mut self, _question: &str, _query: &str, _hits: &[Hit]) -> Option<String> {
        None
    }

    fn store_finding(&mut self, _question: &str, _query: &str, _hits: &[Hit], _finding: &str) {}
}

/// The engines of an episode.
pub struct Engines<'a> {
    pub agent: &'a Agent,
    pub policy: &'a dyn LanguageModel,
    pub reader: &'a dyn LanguageModel,
    pub retriever: &'a dyn Retriever,
    pub judge: Option<&'a dyn Judge>,
    /// Gives the rewards in the judge's place, whose verdict is then kept beside.
    pub reward_model: Option<&'a dyn RewardModel>,
}

/// Short answers of readers, by question, query and passages, from an earlier reading of the same.
pub trait Findings: Send + Sync {
    fn finding(&self, question: &str, query: &str, hits: &[Hit]) -> Option<String>;
    fn keep(&self, question: &str, query: &str, hits: &[Hit], finding: &str);
}

/// Runs (or resumes, when `steps` is not empty) one episode; returns all its steps, old ones included.
///
/// `seed` is the run's seed; every draw is derived from it by question, step and candidate.
pub fn run_episode(
    labelled: &LabelledQuestion,
    config: &EpisodeConfig,
    engines: &Engines<'_>,
    seed: Seed,
    mut steps: Vec<Step>,
    observer: &mut dyn Observer,
    cancel: &Cancel,
) -> Result<Vec<Step>, EngineError> {
    let mut state = state_after(&labelled.question, &steps);
    while !ended(engines.agent, config, &steps) {
        cancel.check()?;
        let step_idx = steps.len() as u32;
        state.truncated = must_answer(engines.agent, config, &steps);
        let seed = step_seed(seed, &labelled.question.id, step_idx);
        let step = run_step(labelled, &steps, &state, config, engines, seed, observer, cancel)?;
        observer.on_event(Event::StepFinished(&step))?;
        state = transition(&state, step.action(), step.hits.clone(), step.finding.clone());
        steps.push(step);
    }
    Ok(steps)
}

/// The state that steps lead to.
pub fn state_after(question: &Question, steps: &[Step]) -> State {
    steps.iter().fold(State::new(question.clone()), |state, step| {
        transition(&state, step.action(), step.hits.clone(), step.finding.clone())
    })
}

/// Whether the next step may only answer: out of steps, or greedy decoding would repeat itself.
///
/// Never for Direct, CoT and RAG, whose one model call answers anyway: no searches are taken from them.
fn must_answer(agent: &Agent, config: &EpisodeConfig, steps: &[Step]) -> bool {
    if !agent.searches() {
        return false;
    }
    let greedy_repeat = config.sampling.temperature == 0.0
        && steps
            .last()
            .is_some_and(|step| step.action().is_malformed() || step.candidates[step.chosen].redundant);
    steps.len() as u32 >= config.max_steps || greedy_repeat
}

pub(crate) fn ended(agent: &Agent, config: &EpisodeConfig, steps: &[Step]) -> bool {
    let Some(last) = steps.last() else { return false };
    match last.action() {
        Action::Finish { .. } => true,
        // Direct, CoT and RAG have one shot; the others have had their last one.
        Action::Malformed { .. } => last.truncated || !agent.searches(),
        // A ReSearch action carries its answer, so running out of steps needs no further call.
        Action::Search {
            predicted_answer: Some(_),
            ..
        } => must_answer(agent, config, steps),
        Action::Search { .. } => last.truncated,
    }
}

/// The answer of a finished episode and how it ended.
pub fn outcome(steps: &[Step]) -> (Option<&str>, Termination) {
    let Some(last) = steps.last() else {
        return (None, Termination::Unanswered);
    };
    let predicted = steps.iter().rev().find_map(|step| step.action().answer());
    match (last.action(), predicted) {
        (Action::Finish { answer }, _) if last.truncated => (Some(answer), Termination::Truncated),
        (Action::Finish { answer }, _) => (Some(answer), Termination::Answered),
        (_, Some(answer)) => (Some(answer), Termination::Truncated),
        (_, None) => (None, Termination::Unanswered),
    }
}

#[expect(
    clippy::too_many_arguments,
    reason = "the parts of a step; a struct would be built at one call only"
)]
fn run_step(
    labelled: &LabelledQuestion,
    steps: &[Step],
    state: &State,
    config: &EpisodeConfig,
    engines: &Engines<'_>,
    seed: Seed,
    observer: &mut dyn Observer,
    cancel: &Cancel,
) -> Result<Step, EngineError> {
    let step_idx = steps.len() as u32;
    let mut usage = Usage::default();
    let (prompt, dropped, mut candidates) = match engines.agent.fixed_action(state) {
        Some(action) => {
            observer.on_event(Event::StepStarted {
                step_idx,
                prompt: None,
                dropped: &[],
            })?;
            (None, Vec::new(), vec![fixed_candidate(action)])
        }
        None => {
            let room = engines
                .policy
                .context_tokens()
                .saturating_sub(config.sampling.max_tokens);
            let (prompt, dropped) = fit("policy", state, room, engines.policy, |state| {
                engines.agent.prompt(state)
            })?;
            observer.on_event(Event::StepStarted {
                step_idx,
                prompt: Some(&prompt),
                dropped: &dropped,
            })?;
            let n = config.n_candidates.max(1);
            let request = Generation {
                prompt: prompt.clone(),
                sampling: config.sampling.clone(),
                seeds: (0..n as u64).map(|candidate_idx| seed.derive(candidate_idx)).collect(),
                grammar: if config.constrained {
                    engines.agent.grammar(state)
                } else {
                    None
                },
            };
            let mut failed = None;
            let (samples, spent) = engines
                .policy
                .generate(&request, cancel, &mut |token| {
                    if let Err(error) = observer.on_event(Event::Token(token)) {
                        failed = Some(error);
                        cancel.cancel();
                    }
                })
                .map_err(|error| failed.take().unwrap_or(error))?;
            if let Some(error) = failed {
                return Err(error);
            }
            usage += spent;
            let candidates = samples.into_iter().map(|sample| {
                let (reasoning, action) = engines.agent.parse(state, &sample.text);
                let redundant = action.query().is_some_and(|query| state.repeats(query));
                Candidate {
                    text: sample.text,
                    reasoning,
                    action,
                    redundant,
                    multiplicity: 1,
                    reward: None,
                    token_ids: sample.token_ids,
                    token_logprobs: sample.token_logprobs,
                }
            });
            (Some(prompt), dropped, merge_duplicates(candidates.collect()))
        }
    };

    // One candidate needs no ranking, but its verdict is still worth storing.
    let visit = Visit {
        labelled,
        steps,
        state,
        candidates: &candidates,
        must_answer: state.truncated || prompt.is_some() && !engines.agent.searches(),
        seed: judging_seed(seed),
        cancel,
    };
    let (verdict, opinions) = verdicts(&visit, engines, observer)?;
    if let Some(rewards) = verdict.as_ref().and_then(|verdict| verdict.rewards.as_ref()) {
        for (candidate, &reward) in candidates.iter_mut().zip(rewards) {
            candidate.reward = Some(reward);
        }
    }
    let chosen = choose(&candidates, config.selection, seed);
    observer.on_event(Event::Candidates {
        candidates: &candidates,
        chosen,
    })?;

    let (mut hits, mut finding) = (Vec::new(), None);
    if let Action::Search { query, .. } = &candidates[chosen].action {
        cancel.check()?;
        hits = engines.retriever.search(query, config.k)?;
        observer.on_event(Event::Retrieved { query, hits: &hits })?;
        if engines.agent.reads() {
            let (text, spent) = read(state, query, &hits, config, engines, observer, cancel)?;
            usage += spent;
            observer.on_event(Event::Finding { finding: &text })?;
            finding = Some(text);
        }
    }
    Ok(Step {
        step_idx,
        truncated: state.truncated,
        prompt,
        dropped,
        candidates,
        chosen,
        verdict,
        opinions,
        hits,
        finding,
        usage,
    })
}

/// The verdict that gives the rewards, and the one beside it.
fn verdicts(
    visit: &Visit<'_>,
    engines: &Engines<'_>,
    observer: &mut dyn Observer,
) -> Result<(Option<Verdict>, Vec<Opinion>), EngineError> {
    let mut found = Vec::new();
    if let Some(model) = engines.reward_model {
        let judge_id = model.id();
        observer.on_event(Event::Judging { judge_id })?;
        visit.cancel.check()?;
        let rewards = model.score(visit.state, visit.candidates)?;
        found.push(Opinion {
            judge_id: judge_id.into(),
            verdict: Verdict {
                rewards: Some(rewards),
                rationale: None,
            },
        });
    }
    if let Some(judge) = engines.judge {
        let judge_id = judge.id();
        observer.on_event(Event::Judging { judge_id })?;
        found.push(Opinion {
            judge_id: judge_id.into(),
            verdict: judge.judge(visit)?,
        });
    }
    for Opinion { judge_id, verdict } in &found {
        let rewards = verdict.rewards.as_deref();
        if rewards.is_some_and(|rewards| {
            rewards.len() != visit.candidates.len() || rewards.iter().any(|reward| !reward.is_finite())
        }) {
            return Err(EngineError::Failed {
                engine: judge_id.clone(),
                message: format!(
                    "{rewards:?} is not one finite number for each of {} candidates",
                    visit.candidates.len()
                ),
            });
        }
    }
    let mut found = found.into_iter();
    Ok((found.next().map(|first| first.verdict), found.collect()))
}

fn fixed_candidate(action: Action) -> Candidate {
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

/// The reader's short answer to a query from its passages, from the cache if it was given before.
pub(crate) fn read(
    state: &State,
    query: &str,
    hits: &[Hit],
    config: &EpisodeConfig,
    engines: &Engines<'_>,
    observer: &mut dyn Observer,
    cancel: &Cancel,
) -> Result<(String, Usage), EngineError> {
    let question = state.question.text.as_str();
    if let Some(finding) = observer.cached_finding(question, query, hits) {
        return Ok((finding, Usage::default()));
    }
    let room = engines
        .reader
        .context_tokens()
        .saturating_sub(config.reader_sampling.max_tokens);
    // The passages being read are the only ones in this prompt; the lowest-ranked give way first.
    let mut kept = hits;
    let prompt = loop {
        let prompt = engines.agent.reader_prompt(state, query, kept);
        let tokens = engines.reader.count_tokens(&prompt)?;
        match kept.split_last() {
            _ if tokens <= room => break prompt,
            Some((_, rest)) => kept = rest,
            None => {
                return Err(EngineError::PromptTooLong {
                    model: "reader".into(),
                    tokens,
                    limit: room,
                });
            }
        }
    };
    let request = Generation {
        prompt,
        sampling: config.reader_sampling.clone(),
        seeds: vec![Seed(0)],
        grammar: if config.constrained {
            engines.agent.reader_grammar()
        } else {
            None
        },
    };
    let mut failed = None;
    let (samples, usage) = engines
        .reader
        .generate(&request, cancel, &mut |token| {
            if let Err(error) = observer.on_event(Event::ReaderToken(token)) {
                failed = Some(error);
                cancel.cancel();
            }
        })
        .map_err(|error| failed.take().unwrap_or(error))?;
    if let Some(error) = failed {
        return Err(error);
    }
    let finding = engines.agent.parse_finding(&samples[0].text);
    observer.store_finding(question, query, hits, &finding);
    Ok((finding, usage))
}

/// Renders a prompt that fits `room` tokens by leaving out passages, oldest first; never the question
/// or the instructions. Returns the ids of what was left out.
pub(crate) fn fit(
    reader: &str,
    state: &State,
    room: usize,
    model: &dyn LanguageModel,
    render: impl Fn(&State) -> Prompt,
) -> Result<(Prompt, Vec<String>), EngineError> {
    let mut shown = state.clone();
    let mut dropped = Vec::new();
    loop {
        let prompt = render(&shown);
        let tokens = model.count_tokens(&prompt)?;
        if tokens <= room {
            return Ok((prompt, dropped));
        }
        // Within the oldest turn, the lowest-ranked passage goes first.
        match shown.history.iter_mut().find_map(|turn| turn.hits.pop()) {
            Some(hit) => dropped.push(hit.passage.id.clone()),
            None => {
                return Err(EngineError::PromptTooLong {
                    model: reader.into(),
                    tokens,
                    limit: room,
                });
            }
        }
    }
}

/// Merges samples with the same parsed action into the first of them; malformed ones by their raw text.
pub fn merge_duplicates(candidates: Vec<Candidate>) -> Vec<Candidate> {
    let mut merged: Vec<Candidate> = Vec::new();
    for candidate in candidates {
        let twin = merged.iter_mut().find(|other| {
            other.action == candidate.action && (!candidate.action.is_malformed() || other.text == candidate.text)
        });
        match twin {
            Some(twin) => twin.multiplicity += candidate.multiplicity,
            None => merged.push(candidate),
        }
    }
    merged
}

/// The index of the candidate to take; `seed` is the step's.
///
/// What rewards leave equal is decided by votes, equal votes by likelihood a token, then by order.
pub fn choose(candidates: &[Candidate], selection: Selection, seed: Seed) -> usize {
    let mut eligible: Vec<usize> = (0..candidates.len())
        .filter(|&idx| !candidates[idx].action.is_malformed())
        .collect();
    if eligible.is_empty() {
        eligible = (0..candidates.len()).collect();
    }
    let key = |candidate: &Candidate| {
        let merit = match selection {
            Selection::Reward => candidate.reward.unwrap_or(f64::NEG_INFINITY),
            Selection::Weighted => candidate.reward.unwrap_or(0.0) + f64::from(candidate.multiplicity).ln(),
            Selection::Prior => candidate.reward.unwrap_or(0.0) + PRIOR * candidate.logprob(),
            _ => 0.0,
        };
        let per_token = candidate.logprob() / candidate.token_logprobs.len().max(1) as f64;
        (merit, candidate.multiplicity, per_token)
    };
    match selection {
        Selection::First => eligible[0],
        Selection::Random => {
            let samples: Vec<usize> = eligible
                .into_iter()
                .flat_map(|idx| std::iter::repeat_n(idx, candidates[idx].multiplicity as usize))
                .collect();
            samples[seed.derive_str("select").rng().below(samples.len())]
        }
        Selection::Majority | Selection::Reward | Selection::Weighted | Selection::Prior => eligible
            .into_iter()
            .reduce(|best, idx| {
                let better = key(&candidates[idx]).partial_cmp(&key(&candidates[best]));
                if better == Some(std::cmp::Ordering::Greater) {
                    idx
                } else {
                    best
                }
            })
            .expect("a step has a candidate"),
    }
}
