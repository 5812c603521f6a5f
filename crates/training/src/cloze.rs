//! Lessons in reading that passages teach by themselves: a sentence as far as a name, a number or a date that it goes
//! on with, and that. What a small reader lacks most is practice in finding where a text speaks of what it looks up.

use gym::comparison::name;
use gym::excerpt::sentences;
use gym::quantity::Quantity;
use gym::{Agent, EngineError, LabelledQuestion, PromptStyle, Retriever, Seed};

use crate::expert::shown;
use crate::lesson::Lesson;
use crate::supporting::{gold_passages, holds};

/// Words of the sentence that lead up to what is left out.
const LEAD: usize = 8;
/// With fewer of them nobody could tell what is asked.
const LEAST_LEAD: usize = 3;
/// Words of a name.
const NAME_WORDS: usize = 5;

/// A sentence's beginning, and what it goes on with.
#[derive(Clone, Debug, PartialEq, Eq)]
struct Gap {
    query: String,
    finding: String,
}

/// At most `n` lessons from the question's gold passages, drawn by the seed. Empty for agents that do not read.
pub fn clozes(
    agent: &Agent,
    labelled: &LabelledQuestion,
    retriever: &dyn Retriever,
    k: usize,
    n: usize,
    seed: Seed,
) -> Result<Vec<Lesson>, EngineError> {
    if n == 0 || !agent.reads() || agent.style() != PromptStyle::Compact {
        return Ok(Vec::new());
    }
    let mut gaps = Vec::new();
    for passage in gold_passages(&labelled.gold, retriever)? {
        gaps.extend(
            self::gaps(&passage.title, &passage.text)
                .into_iter()
                .map(|gap| (passage.id.clone(), gap)),
        );
    }
    let mut rng = seed.derive_str("cloze").derive_str(&labelled.question.id.0).rng();
    let mut lessons = Vec::new();
    while lessons.len() < n && !gaps.is_empty() {
        let (id, Gap { query, finding }) = gaps.swap_remove(rng.below(gaps.len()));
        let hits = retriever.search(&query, k)?;
        // The passage itself must be there, and the part of it that is shown.
        if hits
            .iter()
            .any(|hit| hit.passage.id == id && holds(&shown(&query, hit), &finding))
        {
            let state = gym::State::new(labelled.question.clone());
            let prompt = agent.reader_prompt(&state, &query, &hits);
            lessons.push(Lesson::new(&labelled.question, prompt, format!("Found: {finding}")));
        }
    }
    Ok(lessons)
}

/// All gaps of a passage.
fn gaps(title: &str, text: &str) -> Vec<Gap> {
    let mut all = Vec::new();
    // A line of a table ends as no sentence does: what goes before a value there does not lead up to it.
    let spoken = |sentence: &&str| sentence.trim_end_matches(['"', ')']).ends_with('.');
    for sentence in sentences(text).into_iter().filter(spoken) {
        let words: Vec<&str> = sentence.split_whitespace().collect();
        let mut at = LEAST_LEAD;
        while at < words.len() {
            let Some(end) = named(&words, at).or_else(|| counted(&words, at)) else {
                at += 1;
                continue;
            };
            let finding = plain(&words[at..end].join(" ")).to_owned();
            let lead: Vec<&str> = words[at.saturating_sub(LEAD)..at]
                .iter()
                .map(|word| plain(word))
                .collect();
            let lead = lead.join(" ");
            // Said already, it is no finding; and an initial is a part of a name.
            let initial = |text: &str| text.chars().count() < 2;
            let whole = !initial(&finding) && !initial(plain(words[at - 1]));
            if whole && !holds(&lead, &finding) && !holds(name(title), &finding) {
                let query = match name(title).split(' ').any(|word| holds(&lead, word)) {
                    true => lead,
                    false => format!("{} {lead}", name(title)),
                };
                all.push(Gap { query, finding });
            }
            at = end;
        }
    }
    all
}

/// Where the name that begins with this word ends, if one does.
fn named(words: &[&str], from: usize) -> Option<usize> {
    let begins = |word: &str| plain(word).starts_with(char::is_uppercase);
    // What ends a name ends it behind the word.
    let closes = |word: &str| word.ends_with([',', ';', ')', '"', ':', '.']);
    // "The Lord of …" goes on; a name that began before is no beginning.
    if !begins(words[from]) || words[from].starts_with('(') || begins(words[from - 1]) && !closes(words[from - 1]) {
        return None;
    }
    let mut end = from + 1;
    while end < words.len() && !closes(words[end - 1]) {
        let joins =
            ["of", "de", "von", "van"].contains(&words[end]) && words.get(end + 1).is_some_and(|next| begins(next));
        if !begins(words[end]) && !joins {
            break;
        }
        end += 1;
    }
    (end - from <= NAME_WORDS).then_some(end)
}

/// Where the number or date that begins with this word ends, if one does.
fn counted(words: &[&str], from: usize) -> Option<usize> {
    let digits = |word: &str| word.chars().any(|c| c.is_ascii_digit());
    let longest = (from + 3).min(words.len());
    (from + 1..=longest).rev().find(|&end| {
        let text = words[from..end].join(" ");
        let text = plain(&text);
        digits(text) && Quantity::parse(text).is_some_and(|quantity| quantity.is_year || end == from + 1)
    })
}

/// Without what is around it.
fn plain(text: &str) -> &str {
    text.trim_matches(|c: char| !c.is_alphanumeric())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn pairs(title: &str, text: &str) -> Vec<(String, String)> {
        gaps(title, text)
            .into_iter()
            .map(|gap| (gap.query, gap.finding))
            .collect()
    }

    #[test]
    fn names_numbers_and_dates_are_left_out() {
        let text = "Demon Dice, first sold as Chaos, is a game created by Lester Smith (born 12 March 1956), who lived in \
                    the city of Lake Geneva. It has 13 dice.";
        let found = pairs("Demon Dice (game)", text);
        let expected = [
            ("Demon Dice first sold as", "Chaos"),
            ("sold as Chaos is a game created by", "Lester Smith"),
            ("a game created by Lester Smith born", "12 March 1956"),
            ("1956 who lived in the city of", "Lake Geneva"),
        ];
        for (query, finding) in expected {
            assert!(
                found.iter().any(|(q, f)| q.ends_with(query) && f == finding),
                "{query} -> {finding}: {found:?}"
            );
        }
        // Without the title's words it is named.
        assert!(
            found
                .iter()
                .all(|(query, _)| query.contains("Demon") || query.contains("Dice")),
            "{found:?}"
        );
    }

    #[test]
    fn what_is_said_already_is_not_asked_for() {
        assert!(pairs("Lake Geneva", "It lies near the town of Lake Geneva.").is_empty());
        assert!(pairs("", "").is_empty() && pairs("A", "B C").is_empty());
        assert!(pairs("Blue", "It is a film by B. Eason.").is_empty());
        assert!(pairs("Niger: Land", "Border countries: Algeria 951 km, Benin 277 km").is_empty());
    }

    proptest::proptest! {
        #[test]
        fn a_finding_stands_in_the_text(title in "[A-Za-z ]{0,12}", text in "([A-Za-z0-9.,;()\"]{1,9} ){0,40}") {
            for gap in gaps(&title, &text) {
                let words = |text: &str| text.split_whitespace().map(|word| plain(word).to_owned()).collect::<Vec<_>>();
                let (all, finding) = (words(&text), words(&gap.finding));
                proptest::prop_assert!(all.windows(finding.len()).any(|part| part == finding), "{gap:?}");
            }
        }
    }
}
