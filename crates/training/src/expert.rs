//! Lessons from gold evidence: what an agent that knows the way would have done, for a first training of
//! models that cannot yet act at all. Compact prompts only; larger models need no such start.

use gym::excerpt;
use gym::{
    Action, Agent, AgentKind, EngineError, Gold, Hit, LabelledQuestion, Passage, PromptStyle, Retriever, State,
    transition,
};

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
    let research = agent.kind() == AgentKind::Research;
    let mut state = State::new(labelled.question.clone());
    for (idx, hop) in hops.iter().enumerate() {
        // Until the last hop is found, the best draft is what was found so far.
        let draft = hops[..idx].last().map_or("unknown", |hop| hop.finding.as_str());
        let text = match research {
            true => format!("Draft: {draft}\nUnsupported: {}\nSearch: {}", hop.query, hop.query),
            false => format!("Search: {}", hop.query),
        };
        policy.push(Lesson::new(&state.question, agent.prompt(&state), text));
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
    policy.push(conclusion(agent, &state, answer));
    Ok((policy, reader))
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
    let text = match agent.kind() {
        AgentKind::Research => format!("Draft: {answer}\nUnsupported: none\nSearch: none"),
        _ => format!("Answer: {answer}"),
    };
    Lesson::new(&state.question, agent.prompt(state), text)
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
    use super::{holds_all, without_names};

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
