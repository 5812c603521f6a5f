//! From the core's values to what hosts show.

use gym::{Candidate, Gold, Hit, Step};

use crate::view::{CandidateView, GoldView, MessageView, PassageView, Segment, StepView, TermView, TokensView};

pub(crate) fn passage(hit: &Hit, query: &str, gold: &Gold) -> PassageView {
    let text = &hit.passage.text;
    PassageView {
        id: hit.passage.id.clone(),
        title: hit.passage.title.clone(),
        text: segments(text, &retrieval::highlights(query, text)),
        score: hit.score,
        rank: hit.rank,
        gold: gold.passages.iter().any(|passage| passage.title == hit.passage.title),
    }
}

/// Cuts text at sorted, disjoint byte ranges.
fn segments(text: &str, ranges: &[(usize, usize)]) -> Vec<Segment> {
    let mut segments = Vec::new();
    let mut push = |text: &str, marked| {
        if !text.is_empty() {
            segments.push(Segment {
                text: text.into(),
                marked,
            });
        }
    };
    let mut at = 0;
    for &(from, to) in ranges {
        push(&text[at..from], false);
        push(&text[from..to], true);
        at = to;
    }
    push(&text[at..], false);
    segments
}

pub(crate) fn term(term: retrieval::TermScore) -> TermView {
    TermView {
        term: term.term,
        idf: f64::from(term.idf),
        frequency: f64::from(term.term_frequency),
        score: f64::from(term.score),
    }
}

pub(crate) fn candidate(candidate: &Candidate) -> CandidateView {
    let malformed = match &candidate.action {
        gym::Action::Malformed { reason } => Some(reason.clone()),
        _ => None,
    };
    CandidateView {
        text: candidate.text.clone(),
        reasoning: candidate.reasoning.clone(),
        query: candidate.action.query().map(str::to_owned),
        answer: candidate.action.answer().map(str::to_owned),
        malformed,
        logprob: candidate.logprob(),
        token_logprobs: candidate.token_logprobs.clone(),
        reward: candidate.reward,
        multiplicity: candidate.multiplicity,
        redundant: candidate.redundant,
    }
}

pub(crate) fn prompt(prompt: Option<&gym::Prompt>) -> Vec<MessageView> {
    let messages = prompt.map(|prompt| prompt.messages.as_slice()).unwrap_or_default();
    let role = |role| match role {
        gym::Role::System => "system",
        gym::Role::User => "user",
        gym::Role::Assistant => "assistant",
    };
    messages
        .iter()
        .map(|message| MessageView {
            role: role(message.role).into(),
            content: message.content.clone(),
        })
        .collect()
}

pub(crate) fn step(step: &Step, judge: Option<&str>, gold: &Gold) -> StepView {
    let query = step.action().query().unwrap_or_default();
    StepView {
        step_idx: step.step_idx,
        truncated: step.truncated,
        prompt: prompt(step.prompt.as_ref()),
        dropped: step.dropped.clone(),
        candidates: step.candidates.iter().map(candidate).collect(),
        chosen: step.chosen as u32,
        judge: step.verdict.as_ref().and(judge).map(str::to_owned),
        rationale: step.verdict.as_ref().and_then(|verdict| verdict.rationale.clone()),
        passages: step.hits.iter().map(|hit| passage(hit, query, gold)).collect(),
        finding: step.finding.clone(),
        tokens: tokens(step.usage),
    }
}

pub(crate) fn tokens(usage: gym::Usage) -> TokensView {
    TokensView {
        prompt: usage.prompt,
        cached: usage.cached,
        generated: usage.generated,
    }
}

pub(crate) fn gold(gold: &Gold) -> GoldView {
    GoldView {
        answers: gold.answers.clone(),
        titles: gold.passages.iter().map(|passage| passage.title.clone()).collect(),
        sub_questions: gold.sub_questions.iter().map(|sub| sub.question.clone()).collect(),
    }
}
