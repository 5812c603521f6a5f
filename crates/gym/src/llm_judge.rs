//! A judge that asks a language model to rank a state's candidates.

use std::sync::Arc;

use minijinja::{Value, context};
use serde::Deserialize;

use crate::agent::{Prompts, shown};
use crate::episode::fit;
use crate::judge::{Judge, Verdict, Visit, rank_rewards};
use crate::{
    Action, Candidate, EngineError, Generation, Grammar, LanguageModel, Prompt, PromptStyle, Sampling, Seed, State,
};

/// Answers of the model that are tried before the judge abstains.
const TRIES: u64 = 3;
/// The first try is greedy; a greedy model would repeat itself in the others.
const RETRY_TEMPERATURE: f32 = 0.7;
/// The compact style names candidates by letters, which one byte tells apart.
const LETTERS: &[u8; 26] = b"ABCDEFGHIJKLMNOPQRSTUVWXYZ";

/// Candidates, best first, and why.
type Ranking = (Vec<usize>, Option<String>);

/// Ranks candidates by sufficiency, utility and redundancy, in this order; rank i from 0 is worth 1 / (1 + i).
///
/// The model sees the question, the history (findings where the agent reads, else passages) and each
/// well-formed candidate's query or answer, in an order drawn for every try; never reasoning or gold.
/// Malformed candidates are worth 0. The full style asks for the ranking as strict JSON, the compact
/// one for the best of what is left, again and again. An answer that is no ranking is tried again, then
/// the judge abstains.
pub struct LlmJudge {
    id: String,
    model: Arc<dyn LanguageModel>,
    style: PromptStyle,
    prompts: Prompts,
}

impl LlmJudge {
    pub fn new(id: String, model: Arc<dyn LanguageModel>, style: PromptStyle) -> LlmJudge {
        LlmJudge {
            id,
            model,
            style,
            prompts: Prompts::new(style),
        }
    }

    /// The messages for candidates in this order, each under its label.
    fn prompt(&self, state: &State, visit: &Visit<'_>, labelled: &[(String, usize)]) -> Prompt {
        let actions: Vec<Value> = labelled
            .iter()
            .map(|(label, candidate)| {
                let (kind, text) = match &visit.candidates[*candidate].action {
                    Action::Search { query, .. } => ("Query", query.as_str()),
                    Action::Finish { answer } => ("Answer", answer.as_str()),
                    Action::Malformed { reason } => ("Malformed", reason.as_str()),
                };
                context! { label => label, kind => kind, text => text }
            })
            .collect();
        let reads = state.history.iter().any(|turn| turn.finding.is_some());
        let values = context! { actions => actions, ..shown(state, reads) };
        self.prompts.messages("judge", "judge-user", values)
    }

    /// What the model writes about candidates under these labels.
    fn ask(
        &self,
        visit: &Visit<'_>,
        labelled: &[(String, usize)],
        temperature: f32,
        seed: Seed,
    ) -> Result<String, EngineError> {
        let (max_tokens, grammar) = match self.style {
            PromptStyle::Full => (512, None),
            PromptStyle::Compact => {
                let letters = labelled.iter().map(|(label, _)| Grammar::Literal(label.clone()));
                let best = vec![Grammar::Literal("Best: ".into()), Grammar::OneOf(letters.collect())];
                (8, Some(Grammar::Sequence(best)))
            }
        };
        let room = self.model.context_tokens().saturating_sub(max_tokens);
        let (prompt, _) = fit(&self.id, visit.state, room, self.model.as_ref(), |state| {
            self.prompt(state, visit, labelled)
        })?;
        let request = Generation {
            prompt,
            sampling: Sampling {
                temperature,
                max_tokens,
                ..Sampling::default()
            },
            seeds: vec![seed],
            grammar,
        };
        let (mut samples, _) = self.model.generate(&request, visit.cancel, &mut |_| {})?;
        let sample = samples.pop().ok_or_else(|| EngineError::Failed {
            engine: self.id.clone(),
            message: "the model returned no sample".into(),
        })?;
        Ok(sample.text)
    }

    /// All of `order`, best first, and why; the inner error says why the model's text is no ranking.
    fn rank(
        &self,
        visit: &Visit<'_>,
        order: &[usize],
        temperature: f32,
        seed: Seed,
    ) -> Result<Result<Ranking, String>, EngineError> {
        match self.style {
            PromptStyle::Full => {
                let labelled: Vec<(String, usize)> =
                    (1..).map(|n: u32| n.to_string()).zip(order.iter().copied()).collect();
                let text = self.ask(visit, &labelled, temperature, seed)?;
                Ok(read_ranking(&text, order.len())
                    .map(|(ranking, thought)| (ranking.into_iter().map(|place| order[place]).collect(), thought)))
            }
            PromptStyle::Compact => {
                // Letters that name the question's options are taken.
                let options = &visit.state.question.options;
                let letters = LETTERS.iter().map(|&letter| char::from(letter).to_string());
                let free = letters.filter(|letter| !options.iter().any(|option| option.label == *letter));
                let mut left: Vec<(String, usize)> = free.zip(order.iter().copied()).collect();
                if left.len() < order.len() {
                    return Ok(Err(format!("{} candidates are more than letters", order.len())));
                }
                let mut ranking = Vec::with_capacity(order.len());
                while left.len() > 1 {
                    let text = self.ask(visit, &left, temperature, seed.derive(left.len() as u64))?;
                    match read_letter(&text, &left) {
                        Some(place) => ranking.push(left.remove(place).1),
                        None => return Ok(Err(format!("it names no step: {text:?}"))),
                    }
                }
                ranking.extend(left.into_iter().map(|(_, candidate)| candidate));
                Ok(Ok((ranking, None)))
            }
        }
    }
}

impl Judge for LlmJudge {
    fn id(&self) -> &str {
        &self.id
    }

    fn judge(&self, visit: &Visit<'_>) -> Result<Verdict, EngineError> {
        let n = visit.candidates.len();
        let well_formed = |candidate: &Candidate| !candidate.action.is_malformed();
        let ranked: Vec<usize> = (0..n).filter(|&idx| well_formed(&visit.candidates[idx])).collect();
        if ranked.len() < 2 {
            return Ok(Verdict {
                rewards: Some(rank_rewards(&ranked, n)),
                rationale: Some("there is nothing to rank".into()),
            });
        }
        let mut problem = String::new();
        for attempt in 0..TRIES {
            visit.cancel.check()?;
            let seed = visit.seed.derive(attempt);
            let temperature = if attempt == 0 { 0.0 } else { RETRY_TEMPERATURE };
            match self.rank(visit, &shuffled(&ranked, seed), temperature, seed)? {
                Ok((ranking, rationale)) => {
                    return Ok(Verdict {
                        rewards: Some(rank_rewards(&ranking, n)),
                        rationale,
                    });
                }
                Err(reason) => problem = reason,
            }
        }
        Ok(Verdict {
            rewards: None,
            rationale: Some(format!("no ranking in {TRIES} tries; the last: {problem}")),
        })
    }
}

fn shuffled(items: &[usize], seed: Seed) -> Vec<usize> {
    let mut rng = seed.derive_str("order").rng();
    let mut items = items.to_vec();
    for idx in (1..items.len()).rev() {
        items.swap(idx, rng.below(idx + 1));
    }
    items
}

/// Places from 0, best first, out of `{"thought": …, "ranking": [numbers from 1]}`, perhaps in a code block.
fn read_ranking(text: &str, n: usize) -> Result<Ranking, String> {
    #[derive(Deserialize)]
    struct Written {
        #[serde(default)]
        thought: Option<String>,
        ranking: Vec<usize>,
    }
    let json = match (text.find('{'), text.rfind('}')) {
        (Some(from), Some(to)) if from < to => &text[from..=to],
        _ => return Err("it has no JSON object".into()),
    };
    let Written { thought, ranking } = serde_json::from_str(json).map_err(|error| error.to_string())?;
    let mut sorted = ranking.clone();
    sorted.sort_unstable();
    if !sorted.iter().copied().eq(1..=n) {
        return Err(format!("{ranking:?} is no order of 1 to {n}"));
    }
    Ok((ranking.into_iter().map(|number| number - 1).collect(), thought))
}

/// The place of the step that a line such as `Best: B` names.
fn read_letter(text: &str, left: &[(String, usize)]) -> Option<usize> {
    let text = text.trim();
    let text = text.strip_prefix("Best:").unwrap_or(text);
    let letter = text.trim_matches(|c: char| !c.is_alphanumeric());
    left.iter().position(|(label, _)| label == letter)
}
