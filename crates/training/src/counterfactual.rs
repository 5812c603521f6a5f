//! What if the facts were others: the same question over other quantities, so that an answer is learnt from
//! what was found and cannot be remembered.
//!
//! An untrained model ignores the prompt's comparisons. Drawn quantities make any number of lessons in heeding them,
//! and whoever knows the true ones by heart is wrong. Only questions are used that are given; nothing but their last
//! findings and their answer is changed.

use gym::comparison::{bare, subjects};
use gym::quantity::Quantity;
use gym::{Agent, LabelledQuestion, PromptStyle, Seed, State};

use crate::expert::{Hop, concluding, conclusion, hops, searched};
use crate::lesson::Lesson;

/// Quantities of one question: more are no comparison that anybody asks for, and would hardly be drawn all apart.
const MOST: usize = 6;

/// The question's last hops look up one quantity of several things, and their order decides.
#[derive(Debug, PartialEq)]
struct Comparison {
    hops: Vec<Hop>,
    /// Of the last hops, in their order.
    quantities: Vec<Quantity>,
    rule: Rule,
}

#[derive(Debug, PartialEq, Eq)]
enum Rule {
    /// The name beside the greatest quantity, or the least.
    Named { names: Vec<String>, greatest: bool },
    /// Whether the first of two is greater, or less.
    Asked { greater: bool },
}

/// `n` conclusions of a question with drawn quantities, each with the answer that they give and those that they do
/// not. Empty where the question compares nothing, and for agents that see passages: these would say otherwise.
pub fn counterfactuals(agent: &Agent, labelled: &LabelledQuestion, n: usize, seed: Seed) -> Vec<Lesson> {
    if !agent.reads() || agent.style() != PromptStyle::Compact {
        return Vec::new();
    }
    let Some(comparison) = comparison(labelled) else {
        return Vec::new();
    };
    let seed = seed.derive_str("counterfactual").derive_str(&labelled.question.id.0);
    let one = |idx| {
        let values = drawn(&comparison.quantities, seed.derive(idx));
        let known = comparison.hops.len() - values.len();
        let mut state = State::new(labelled.question.clone());
        for (idx, hop) in comparison.hops.iter().enumerate() {
            let finding = match idx.checked_sub(known) {
                Some(own) => comparison.quantities[own].with(values[own]),
                None => hop.finding.clone(),
            };
            state = searched(&state, &hop.query, Vec::new(), Some(finding));
        }
        let worse = comparison.rule.others(&values).map(|other| concluding(agent, other));
        conclusion(agent, &state, comparison.rule.answer(&values)).against(worse)
    };
    (0..n as u64).map(one).collect()
}

/// What the question's answer would be if its comparison came out otherwise; nothing where it compares nothing.
pub(crate) fn other_answers(labelled: &LabelledQuestion) -> Vec<String> {
    match labelled.gold.answers.first().map(|answer| bare(answer)).as_deref() {
        Some("yes") => vec!["no".into()],
        Some("no") => vec!["yes".into()],
        _ => comparison(labelled).map_or_else(Vec::new, |comparison| {
            let values: Vec<u64> = comparison.quantities.iter().map(|quantity| quantity.value).collect();
            comparison.rule.others(&values).map(str::to_owned).collect()
        }),
    }
}

impl Rule {
    /// Every answer but that which the values give.
    fn others(&self, values: &[u64]) -> impl Iterator<Item = &str> {
        let all: Vec<&str> = match self {
            Rule::Named { names, .. } => names.iter().map(String::as_str).collect(),
            Rule::Asked { .. } => vec!["yes", "no"],
        };
        let answer = self.answer(values);
        all.into_iter().filter(move |other| *other != answer)
    }

    fn answer(&self, values: &[u64]) -> &str {
        match self {
            Rule::Named { names, greatest } => &names[extreme(values, *greatest)],
            Rule::Asked { greater } => match (values[0] > values[1]) == *greater {
                true => "yes",
                false => "no",
            },
        }
    }
}

/// Index of the greatest value, or the least.
fn extreme(values: &[u64], greatest: bool) -> usize {
    let indices = 0..values.len();
    let found = match greatest {
        true => indices.max_by_key(|&idx| values[idx]),
        false => indices.min_by_key(|&idx| values[idx]),
    };
    found.unwrap_or_default()
}

/// What a question compares and how its answer follows, worked out from its true facts and its true answer.
fn comparison(labelled: &LabelledQuestion) -> Option<Comparison> {
    let gold = &labelled.gold;
    let hops = hops(gold);
    let mut quantities: Vec<Quantity> = Vec::new();
    for hop in hops.iter().rev() {
        let alike = |own: &Quantity| quantities.first().is_none_or(|next| own.compares(next));
        match Quantity::parse(&hop.finding).filter(alike) {
            Some(own) => quantities.insert(0, own),
            None => break,
        }
    }
    if !(2..=MOST).contains(&quantities.len()) {
        return None;
    }
    let mut values: Vec<u64> = quantities.iter().map(|quantity| quantity.value).collect();
    let known = hops.len() - quantities.len();
    let answers: Vec<String> = gold.answers.iter().map(|answer| bare(answer)).collect();
    let rule = match answers.first()?.as_str() {
        // "The same year?" asks for no order.
        yes_no @ ("yes" | "no") if values.len() == 2 && !labelled.question.text.contains(" same ") => Rule::Asked {
            greater: (values[0] > values[1]) == (yes_no == "yes"),
        },
        "yes" | "no" => return None,
        _ => {
            let (names, chosen) = named(&hops, known, &answers)?;
            let greatest = [true, false]
                .into_iter()
                .find(|&greatest| extreme(&values, greatest) == chosen)?;
            Rule::Named { names, greatest }
        }
    };
    values.sort_unstable();
    values.dedup();
    (values.len() == quantities.len()).then_some(Comparison { hops, quantities, rule })
}

/// What each of the last hops is about, spelled as the answer is, and which of them is the answer.
fn named(hops: &[Hop], known: usize, answers: &[String]) -> Option<(Vec<String>, usize)> {
    let turns: Vec<(&str, &str)> = hops
        .iter()
        .map(|hop| (hop.query.as_str(), hop.finding.as_str()))
        .collect();
    let subjects = subjects(&turns, &(known..hops.len()).collect::<Vec<_>>());
    let names = subjects.iter().map(|subject| subject.name.clone()).collect();
    let led_by: Option<Vec<String>> = subjects.into_iter().map(|subject| subject.led_by).collect();
    [Some(names), led_by]
        .into_iter()
        .flatten()
        .find_map(|names: Vec<String>| {
            let chosen = names.iter().position(|name| answers.contains(&bare(name)))?;
            Some((names, chosen))
        })
}

/// Other quantities around the true ones, no two of them equal. Numbers: within ten times of them, and in half
/// of the draws so near to each other that leading digits decide; a tenth apart at least, as the given ones are.
fn drawn(quantities: &[Quantity], seed: Seed) -> Vec<u64> {
    let mut rng = seed.rng();
    let values = || quantities.iter().map(|quantity| quantity.value);
    let (low, high) = (values().min().unwrap_or(1), values().max().unwrap_or(1));
    loop {
        let mut drawn: Vec<u64> = if quantities[0].is_year {
            let (low, high) = (low.saturating_sub(20), high + 20);
            values()
                .map(|_| low + rng.below((high - low + 1) as usize) as u64)
                .collect()
        } else {
            let (low, high) = ((low.max(1) as f64).log10() - 1.0, (high.max(1) as f64).log10() + 1.0);
            let mut between = |low: f64, high: f64| low + (high - low) * rng.next_f64();
            let first = between(low, high);
            let near = between(0.0, 1.0) < 0.5;
            let next = |_| match near {
                true => first + between(-0.6, 0.6),
                false => between(low, high),
            };
            let others: Vec<f64> = quantities[1..].iter().map(next).collect();
            [first]
                .into_iter()
                .chain(others)
                .map(|log| 10_f64.powf(log) as u64)
                .collect()
        };
        let result = drawn.clone();
        drawn.sort_unstable();
        let apart = |pair: &[u64]| match quantities[0].is_year {
            true => pair[0] < pair[1],
            false => pair[0] > 0 && pair[0] as f64 * 1.1 <= pair[1] as f64,
        };
        if drawn.windows(2).all(apart) {
            return result;
        }
    }
}

#[cfg(test)]
pub(crate) mod tests {
    use std::collections::HashSet;

    use gym::{AgentKind, Gold, Question, QuestionId, Role};

    use super::*;

    /// A question whose way is these triples.
    pub(crate) fn asked(text: &str, answer: &str, evidences: &[[&str; 3]]) -> LabelledQuestion {
        LabelledQuestion {
            question: Question {
                id: QuestionId("q".into()),
                text: text.into(),
                options: Vec::new(),
            },
            gold: Gold {
                answers: vec![answer.into()],
                evidences: evidences.iter().map(|triple| triple.map(str::to_owned)).collect(),
                ..Gold::default()
            },
            kind: None,
            split: None,
        }
    }

    #[test]
    fn the_rule_is_read_off_the_true_answer() {
        let named = |names: &[&str], greatest| Rule::Named {
            names: names.iter().map(|&name| name.to_owned()).collect(),
            greatest,
        };
        let older = asked(
            "Who is older, David Dzakhov or David Luna?",
            "David Luna",
            &[
                ["David Luna", "date of birth", "February 27, 1975"],
                ["David Dzakhov", "date of birth", "6 October 1988"],
            ],
        );
        assert_eq!(
            comparison(&older).unwrap().rule,
            named(&["David Luna", "David Dzakhov"], false)
        );
        let film = asked(
            "Which film has the director who died later, Alpha or Beta?",
            "Beta",
            &[
                ["Alpha", "director", "Ann Lee"],
                ["Beta", "director", "Jean Boyer"],
                ["Ann Lee", "date of death", "1960"],
                ["Jean Boyer (director)", "date of death", "10 March 1965"],
            ],
        );
        assert_eq!(comparison(&film).unwrap().rule, named(&["Alpha", "Beta"], true));
        let same = [["A", "born", "1960"], ["B", "born", "1961"]];
        assert_eq!(
            comparison(&asked("Were A and B born in the same year?", "no", &same)),
            None
        );
        let bridge = [["A", "director", "B"], ["B", "born", "1961"]];
        assert_eq!(
            comparison(&asked("When was the director of A born?", "1961", &bridge)),
            None
        );
        let many: Vec<String> = (0..50).map(|year| (1900 + year).to_string()).collect();
        let many: Vec<[&str; 3]> = many.iter().map(|year| [year.as_str(), "born", year.as_str()]).collect();
        assert_eq!(comparison(&asked("Who of them was born first?", "1900", &many)), None);
    }

    #[test]
    fn draws_change_the_numbers_and_with_them_the_answer() {
        let film = asked(
            "Which film came out first, A or B?",
            "A",
            &[["A", "publication date", "1953"], ["B", "publication date", "2014"]],
        );
        let agent = Agent::new(AgentKind::SearchO1, PromptStyle::Compact);
        let lessons = counterfactuals(&agent, &film, 40, Seed(0));
        assert_eq!(lessons, counterfactuals(&agent, &film, 40, Seed(0)));
        let mut answers = HashSet::new();
        for lesson in &lessons {
            let user = lesson
                .prompt
                .messages
                .iter()
                .find(|message| message.role == Role::User)
                .unwrap();
            let years: Vec<u64> = user
                .content
                .lines()
                .filter_map(|line| line.strip_prefix("Found: ")?.parse().ok())
                .collect();
            let answer = if years[0] < years[1] { "Answer: A" } else { "Answer: B" };
            assert_eq!(lesson.completions[0].text, answer);
            answers.insert(answer);
        }
        assert_eq!(answers.len(), 2);
        let shown = Agent::new(AgentKind::React, PromptStyle::Compact);
        assert!(counterfactuals(&shown, &film, 4, Seed(0)).is_empty());
    }
}
