//! Lessons from gold evidence: what an agent that knows the way would have done, for a first training of
//! models that cannot yet act at all, and what a careless one would do in its place, for preferences and rewards
//! that no policy has to be sampled for. Compact prompts only; larger models need no such start.

use gym::excerpt;
use gym::{
    Action, Agent, AgentKind, EngineError, Gold, Hit, LabelledQuestion, Passage, PromptStyle, Retriever, State,
    metrics, transition,
};

use crate::counterfactual::other_answers;
use crate::lesson::Lesson;
use crate::supporting::{self, holds};

/// One step of the way.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Hop {
    pub query: String,
    pub finding: String,
}

/// A lesson for the reader.
pub struct Reading {
    /// What is asked of the passages, whoever it is asked about: "date of birth", "is the country whose capital is".
    pub topic: String,
    pub lesson: Lesson,
}

/// The way to the answer: the question's triples as "subject relation", or its sub-questions with earlier
/// answers filled in. Empty where neither is known.
pub fn hops(gold: &Gold) -> Vec<Hop> {
    if !gold.evidences.is_empty() {
        let hop = |[subject, relation, object]: &[String; 3]| Hop {
            query: format!("{subject} {relation}"),
            finding: object.clone(),
        };
        return gold.evidences.iter().map(hop).collect();
    }
    let answers: Vec<&str> = gold.sub_questions.iter().map(|hop| hop.answer.as_str()).collect();
    let hop = |sub: &gym::SubQuestion| {
        let mut query = sub.question.replace(" >> ", " ");
        for (idx, answer) in answers.iter().enumerate().rev() {
            query = query.replace(&format!("#{}", idx + 1), answer);
        }
        Hop {
            query,
            finding: sub.answer.clone(),
        }
    };
    gold.sub_questions.iter().map(hop).collect()
}

/// Lessons for the policy and for the reader from one question. Empty where no way is known, or the agent
/// does not search, or its prompts are not compact.
///
/// The policy's lessons have worse actions beside the right one: a search again for what was found, one for what
/// another hop asks of its subject, an answer that names what was found on the way or what lost the comparison.
/// The reader learns a finding only where what it is shown of a passage holds it; the policy is shown the
/// gold finding all the same, as a reader that errs would only teach it to err.
pub fn expert(
    agent: &Agent,
    labelled: &LabelledQuestion,
    retriever: &dyn Retriever,
    k: usize,
) -> Result<(Vec<Lesson>, Vec<Reading>), EngineError> {
    let (mut policy, mut reader) = (Vec::new(), Vec::new());
    let Some(answer) = labelled.gold.answers.first() else {
        return Ok((policy, reader));
    };
    if !agent.searches() || agent.style() != PromptStyle::Compact {
        return Ok((policy, reader));
    }
    let mut hops = hops(&labelled.gold);
    if hops.is_empty() {
        hops = supporting::hops(labelled, retriever, k)?;
    }
    if hops.is_empty() {
        return Ok((policy, reader));
    }
    let right =
        |text: &str| metrics::exact_match(text, &labelled.gold) > 0.0 || metrics::token_f1(text, &labelled.gold) >= 0.5;
    let early = |found: &[Hop]| -> Vec<String> {
        let wrong = found
            .iter()
            .rev()
            .map(|hop| &hop.finding)
            .filter(|finding| !right(finding));
        wrong.map(|finding| concluding(agent, finding)).collect()
    };
    let mut state = State::new(labelled.question.clone());
    for (idx, hop) in hops.iter().enumerate() {
        // Until the last hop is found, the best draft is what was found so far.
        let (found, draft) = (&hops[..idx], hops[..idx].last().map_or("unknown", |hop| &hop.finding));
        let again = found.last().map(|hop| hop.query.clone());
        let queries = again.into_iter().chain(astray(&labelled.gold, idx));
        let worse = queries
            .map(|query| searching(agent, draft, &query))
            .chain(early(found).into_iter().take(1));
        let lesson = Lesson::new(
            &state.question,
            agent.prompt(&state),
            searching(agent, draft, &hop.query),
        );
        policy.push(lesson.against(worse));
        let hits = retriever.search(&hop.query, k)?;
        let held = hits.iter().any(|hit| holds_all(&shown(&hop.query, hit), &hop.finding));
        if agent.reads() && held {
            // Hops that come from triples are in their order.
            let relation = labelled
                .gold
                .evidences
                .get(idx)
                .map(|[_, relation, _]| relation.clone());
            let prompt = agent.reader_prompt(&state, &hop.query, &hits);
            reader.push(Reading {
                topic: relation.unwrap_or_else(|| without_names(&hop.query)),
                lesson: Lesson::new(&state.question, prompt, format!("Found: {}", hop.finding)),
            });
        }
        state = searched(&state, &hop.query, hits, agent.reads().then(|| hop.finding.clone()));
    }
    let others = other_answers(labelled).into_iter().filter(|other| !right(other));
    let worse = others.map(|other| concluding(agent, &other)).chain(early(&hops));
    let again = hops.last().map(|hop| searching(agent, answer, &hop.query));
    policy.push(conclusion(agent, &state, answer).against(worse.take(WORSE).chain(again)));
    Ok((policy, reader))
}

/// Worse answers of one state, at most.
const WORSE: usize = 3;

/// What another hop asks, asked of this one's subject: a film's date of birth, where its director's is wanted.
fn astray(gold: &Gold, idx: usize) -> Option<String> {
    let [subject, own, _] = gold.evidences.get(idx)?;
    let mut others = gold.evidences.iter().map(|[_, relation, _]| relation);
    let other = others.find(|relation| *relation != own)?;
    let known = |[of, relation, _]: &[String; 3]| of == subject && relation == other;
    (!gold.evidences.iter().any(known)).then(|| format!("{subject} {other}"))
}

/// A query's words less its names and numbers.
fn without_names(query: &str) -> String {
    let words = query
        .split_whitespace()
        .map(|word| word.trim_end_matches(|c: char| c.is_ascii_punctuation()));
    let general = |word: &&str| !word.is_empty() && word.chars().all(char::is_lowercase);
    words.filter(general).collect::<Vec<_>>().join(" ")
}

/// What a reader is shown of a passage.
pub(crate) fn shown(query: &str, hit: &Hit) -> String {
    let Passage { title, text, .. } = hit.passage.as_ref();
    format!("{title} {}", excerpt::shown(query, text, hit.rank))
}

/// Whether a text holds a finding, or each item of a list: "Chad, Mali" stands in "Chad 1,175 km, Mali 821 km".
fn holds_all(text: &str, finding: &str) -> bool {
    holds(text, finding) || finding.split(", ").all(|item| holds(text, item))
}

/// The lesson that what was found is enough for this answer.
pub(crate) fn conclusion(agent: &Agent, state: &State, answer: &str) -> Lesson {
    Lesson::new(&state.question, agent.prompt(state), concluding(agent, answer))
}

/// The text of an answer.
pub(crate) fn concluding(agent: &Agent, answer: &str) -> String {
    match agent.kind() {
        AgentKind::Research => format!("Draft: {answer}\nUnsupported: none\nSearch: none"),
        _ => format!("Answer: {answer}"),
    }
}

/// The text of a search, with the best answer so far.
fn searching(agent: &Agent, draft: &str, query: &str) -> String {
    match agent.kind() {
        AgentKind::Research => format!("Draft: {draft}\nUnsupported: {query}\nSearch: {query}"),
        _ => format!("Search: {query}"),
    }
}

/// The state after a search.
pub(crate) fn searched(state: &State, query: &str, hits: Vec<Hit>, finding: Option<String>) -> State {
    let action = Action::Search {
        query: query.to_owned(),
        predicted_answer: None,
    };
    transition(state, &action, hits, finding)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::counterfactual::tests::asked;

    struct Nothing;

    impl Retriever for Nothing {
        fn search(&self, _: &str, _: usize) -> Result<Vec<Hit>, EngineError> {
            Ok(Vec::new())
        }
    }

    /// Of each of the policy's states, the right text and the worse ones.
    fn texts(kind: AgentKind, text: &str, answer: &str, evidences: &[[&str; 3]]) -> Vec<Vec<String>> {
        let agent = Agent::new(kind, PromptStyle::Compact);
        let (policy, _) = expert(&agent, &asked(text, answer, evidences), &Nothing, 3).unwrap();
        let of = |lesson: Lesson| {
            let right_first: Vec<(usize, usize)> = (1..lesson.completions.len()).map(|idx| (0, idx)).collect();
            assert_eq!(lesson.pairs, right_first);
            lesson
                .completions
                .into_iter()
                .map(|completion| completion.text)
                .collect()
        };
        policy.into_iter().map(of).collect()
    }

    #[test]
    fn a_careless_agent_goes_astray_repeats_itself_or_stops_too_early() {
        let found = texts(
            AgentKind::SearchO1,
            "When was the director of A born?",
            "1901",
            &[["A", "director", "B"], ["B", "date of birth", "1901"]],
        );
        assert_eq!(
            found,
            [
                vec!["Search: A director", "Search: A date of birth"],
                vec![
                    "Search: B date of birth",
                    "Search: A director",
                    "Search: B director",
                    "Answer: B"
                ],
                vec!["Answer: 1901", "Answer: B", "Search: B date of birth"],
            ]
        );
    }

    #[test]
    fn worse_answers_lose_the_comparison_and_none_is_right() {
        let dates = [["A", "publication date", "1953"], ["B", "publication date", "2014"]];
        let found = texts(AgentKind::SearchO1, "Which film came out first, A or B?", "A", &dates);
        assert_eq!(
            found[2],
            [
                "Answer: A",
                "Answer: B",
                "Answer: 2014",
                "Answer: 1953",
                "Search: B publication date"
            ]
        );
        let kin = [["A", "mother", "Ann Lee"], ["B", "mother", "Ann Lee"]];
        let found = texts(AgentKind::Research, "Who is the mother of A and B?", "Ann Lee", &kin);
        assert_eq!(
            found[2],
            [
                "Draft: Ann Lee\nUnsupported: none\nSearch: none",
                "Draft: Ann Lee\nUnsupported: B mother\nSearch: B mother"
            ]
        );
        let same = [["A", "country", "Mali"], ["B", "country", "Chad"]];
        let found = texts(AgentKind::SearchO1, "Are A and B in the same country?", "no", &same);
        assert_eq!(found[2][..2], ["Answer: no", "Answer: yes"]);
    }

    #[test]
    fn a_topic_is_what_remains_without_names() {
        let topic = without_names("Which is the country whose capital is Addis Ababa?");
        assert_eq!(topic, "is the country whose capital is");
        assert_eq!(topic, without_names("Which is the country whose capital is Asmara?"));
        assert_eq!(
            without_names("Which is the country with the internet country code .er?"),
            "is the country with the internet country code"
        );
    }

    #[test]
    fn a_list_is_held_by_what_holds_its_items() {
        let text = "Niger: border countries Chad 1,175 km, the Mali 821 km";
        for finding in ["Chad", "Mali, Chad", "chad 1175 km"] {
            assert!(holds_all(text, finding), "{finding}");
        }
        for finding in ["", ", ", "Benin", "Chad, Benin"] {
            assert!(!holds_all(text, finding), "{finding}");
        }
    }
}
