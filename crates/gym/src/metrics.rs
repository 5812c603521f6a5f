//! Outcome metrics, as the official scorers compute them.

use crate::{Gold, Question, Step};

/// HotpotQA's (SQuAD's) normalisation: lower case, no ASCII punctuation, no articles, single spaces.
pub fn normalise(text: &str) -> String {
    let bare: String = text
        .to_lowercase()
        .chars()
        .filter(|c| !c.is_ascii_punctuation())
        .collect();
    let mut kept = String::with_capacity(bare.len());
    let mut word = String::new();
    for c in bare.chars().chain([' ']) {
        if c.is_alphanumeric() {
            word.push(c);
            continue;
        }
        if !matches!(word.as_str(), "a" | "an" | "the") {
            kept.push_str(&word);
        } else {
            kept.push(' ');
        }
        word.clear();
        kept.push(c);
    }
    kept.split_whitespace().collect::<Vec<_>>().join(" ")
}

/// 1 if the prediction equals any accepted answer after normalisation, else 0.
pub fn exact_match(prediction: &str, gold: &Gold) -> f64 {
    let prediction = normalise(prediction);
    f64::from(gold.answers.iter().any(|answer| normalise(answer) == prediction))
}

/// Token F1 against the best accepted answer, with HotpotQA's rule for yes, no and noanswer.
pub fn token_f1(prediction: &str, gold: &Gold) -> f64 {
    let prediction = normalise(prediction);
    gold.answers
        .iter()
        .map(|answer| f1(&prediction, &normalise(answer)))
        .fold(0.0, f64::max)
}

fn f1(prediction: &str, answer: &str) -> f64 {
    let closed = |text: &str| matches!(text, "yes" | "no" | "noanswer");
    if prediction != answer && (closed(prediction) || closed(answer)) {
        return 0.0;
    }
    let predicted: Vec<&str> = prediction.split_whitespace().collect();
    let mut expected: Vec<&str> = answer.split_whitespace().collect();
    let n_expected = expected.len();
    let mut same = 0;
    for token in &predicted {
        if let Some(at) = expected.iter().position(|other| other == token) {
            expected.swap_remove(at);
            same += 1;
        }
    }
    if same == 0 {
        return 0.0;
    }
    let (precision, recall) = (
        f64::from(same) / predicted.len() as f64,
        f64::from(same) / n_expected as f64,
    );
    2.0 * precision * recall / (precision + recall)
}

/// 1 if the prediction names the right option, by label or by text, else 0.
///
/// `None` if the question has no options, or no gold answer names one.
pub fn accuracy(prediction: &str, question: &Question, gold: &Gold) -> Option<f64> {
    let right: Vec<usize> = gold
        .answers
        .iter()
        .filter_map(|answer| option_idx(answer, question))
        .collect();
    if right.is_empty() {
        return None;
    }
    Some(f64::from(
        option_idx(prediction, question).is_some_and(|idx| right.contains(&idx)),
    ))
}

/// The option that a text names. A capital at the start of a word or sentence is no label: a label
/// stands alone, is marked off by punctuation, or follows "answer is" or "option". Several labels are no
/// choice.
fn option_idx(text: &str, question: &Question) -> Option<usize> {
    let text = text.trim().trim_matches(['*', '"', '\'', '`']).trim();
    if let Some(idx) = whole_option(text, question) {
        return Some(idx);
    }
    if let Some((idx, rest)) = leading_label(text, question) {
        let marked = text.starts_with(['(', '['])
            || rest.is_empty()
            || rest.starts_with([')', ']', '.', ':', ',', ';', '*', '\n'])
            || rest.starts_with(" -")
            || rest.starts_with(" –");
        if marked {
            // "B. <the text of C>" names no one option.
            let text = rest.trim_start_matches([')', ']', '.', ':', ',', ';', '*', '-', '–', ' ']);
            match whole_text(text, question) {
                Some(other) if other != idx => return None,
                None if names_another(rest, question) => {}
                _ => return Some(idx),
            }
        }
    }
    // The last statement counts: reasoning comes before it. ASCII lower-casing keeps byte positions.
    let lower = text.to_ascii_lowercase();
    let mut found: Option<(usize, Option<usize>)> = None;
    for cue in ["answer is", "answer:", "answer", "option", "choice"] {
        for (at, _) in lower.match_indices(cue) {
            let starts_word = !lower[..at].ends_with(char::is_alphanumeric);
            let rest = text[at + cue.len()..].trim_start_matches([' ', ':', '*', '\n']);
            let Some(stated) = starts_word.then(|| stated_option(rest, question)).flatten() else {
                continue;
            };
            if found.is_none_or(|(last, _)| at > last) {
                found = Some((at, stated));
            }
        }
    }
    found.and_then(|(_, stated)| stated)
}

/// The option that the words after "answer is" or "option" name; `Some(None)` if they name several.
fn stated_option(rest: &str, question: &Question) -> Option<Option<usize>> {
    let lower = rest.to_ascii_lowercase();
    let rest = ["option ", "choice "]
        .iter()
        .find_map(|cue| lower.strip_prefix(cue))
        .map_or(rest, |tail| &rest[rest.len() - tail.len()..]);
    if let Some(idx) = whole_option(rest, question) {
        return Some(Some(idx));
    }
    let (idx, after) = leading_label(rest, question)?;
    if names_another(after, question) {
        return Some(None);
    }
    let label = &question.options[idx].label;
    // "A" and "I" before a word are English, not labels.
    let stands_apart = match after.chars().next() {
        None => true,
        Some(' ') => rest.starts_with(['(', '[']) || !matches!(label.as_str(), "A" | "I"),
        Some(c) => matches!(c, ')' | ']' | '.' | ',' | ':' | ';' | '*' | '\n' | '!'),
    };
    stands_apart.then_some(Some(idx))
}

/// Whether a list of labels goes on: ", C", " or C", "/C", ") and (C)".
fn names_another(after: &str, question: &Question) -> bool {
    let after = after.trim_start_matches([')', ']', '*', '.']);
    let next = after.trim_start_matches([',', ';', '/', '&', '+', ' ']);
    let words = ["and ", "or "].iter().find_map(|word| next.strip_prefix(word));
    let Some(next) = words.or((next.len() < after.trim_start().len()).then_some(next)) else {
        return false;
    };
    leading_label(next.trim_start(), question).is_some_and(|(idx, rest)| {
        let rest = rest.trim_start_matches([')', ']', '*']);
        let english = matches!(question.options[idx].label.as_str(), "A" | "I");
        !(english && rest.starts_with(' ')) || [" and ", " or "].iter().any(|word| rest.starts_with(word))
    })
}

/// A text that is nothing but a label or an option's text.
fn whole_option(text: &str, question: &Question) -> Option<usize> {
    let label = text
        .trim()
        .trim_matches(['(', ')', '[', ']', '.', ':', ',', '*', '"', '\'', '`', ' ']);
    question
        .options
        .iter()
        .position(|option| option.label.eq_ignore_ascii_case(label))
        .or_else(|| whole_text(text, question))
}

fn whole_text(text: &str, question: &Question) -> Option<usize> {
    let text = normalise(text);
    (!text.is_empty())
        .then(|| {
            question
                .options
                .iter()
                .position(|option| normalise(&option.text) == text)
        })
        .flatten()
}

/// A label in its own case at the start, perhaps in brackets, and what follows it.
fn leading_label<'a>(text: &'a str, question: &Question) -> Option<(usize, &'a str)> {
    let text = text.trim_start_matches(['(', '[', '*']);
    question.options.iter().enumerate().find_map(|(idx, option)| {
        let rest = text.strip_prefix(option.label.as_str())?;
        (!option.label.is_empty() && !rest.starts_with(|c: char| c.is_alphanumeric() || c == '\'' || c == '-'))
            .then_some((idx, rest))
    })
}

/// Titles compared without case and spacing.
pub(crate) fn title_key(title: &str) -> String {
    title.to_lowercase().split_whitespace().collect::<Vec<_>>().join(" ")
}

/// The distinct gold titles: those of the passages, or else those of the sub-questions.
pub(crate) fn gold_titles(gold: &Gold) -> Vec<String> {
    let mut titles: Vec<String> = gold.passages.iter().map(|passage| title_key(&passage.title)).collect();
    if titles.is_empty() {
        titles = gold
            .sub_questions
            .iter()
            .filter_map(|sub| sub.title.as_deref())
            .map(title_key)
            .collect();
    }
    // A passage without a title cannot be told from others by it.
    titles.retain(|title| !title.is_empty());
    titles.sort();
    titles.dedup();
    titles
}

/// 1 if what the steps retrieved holds the answer, word for word after normalisation, else 0. Of a list, every part
/// between commas must stand in some passage. An empty answer has no support.
///
/// `None` where no passage could say it: yes and no, which judge over passages, and choices of an option.
pub fn answer_supported(answer: &str, question: &Question, steps: &[Step]) -> Option<f64> {
    if !question.options.is_empty() || matches!(normalise(answer).as_str(), "yes" | "no") {
        return None;
    }
    // Spaces around, so that only whole words are found.
    let spaced = |text: &str| format!(" {} ", normalise(text));
    let hits = steps.iter().flat_map(|step| &step.hits);
    let texts: Vec<String> = hits
        .flat_map(|hit| [spaced(&hit.passage.title), spaced(&hit.passage.text)])
        .collect();
    let stands = |part: &str| {
        let part = spaced(part);
        part != "  " && texts.iter().any(|text| text.contains(&part))
    };
    Some(f64::from(stands(answer) || answer.split(", ").all(stands)))
}

/// Share of the gold titles among everything the steps retrieved; `None` if the gold names no titles.
pub fn evidence_recall(steps: &[Step], gold: &Gold) -> Option<f64> {
    let titles = gold_titles(gold);
    if titles.is_empty() {
        return None;
    }
    let hits: Vec<String> = steps
        .iter()
        .flat_map(|step| &step.hits)
        .map(|hit| title_key(&hit.passage.title))
        .collect();
    let found = titles.iter().filter(|title| hits.contains(title)).count();
    Some(found as f64 / titles.len() as f64)
}
