//! Where a text matches a query, and the part of it that matches best.

use std::collections::{HashMap, HashSet};

use crate::analysis::{Analyzer, Word};

/// Byte ranges of the words of `text` that are words of `query` after analysis, in order.
pub fn highlights(query: &str, text: &str) -> Vec<(usize, usize)> {
    matches(query, text)
        .into_iter()
        .map(|word| (word.start, word.end))
        .collect()
}

/// At most `max_chars` characters of `text` around its densest matches, and the matches' byte ranges
/// in that snippet. Cuts are marked with `…`, which counts; they avoid splitting words where they can.
pub fn snippet(query: &str, text: &str, max_chars: usize) -> (String, Vec<(usize, usize)>) {
    let found = matches(query, text);
    // Byte offset of each character, and of the end.
    let starts: Vec<usize> = text.char_indices().map(|(byte, _)| byte).chain([text.len()]).collect();
    let n_chars = starts.len() - 1;
    if n_chars <= max_chars {
        return (
            text.to_owned(),
            found.into_iter().map(|word| (word.start, word.end)).collect(),
        );
    }
    let mark = if max_chars > 8 { "…" } else { "" };
    let budget = if mark.is_empty() { max_chars } else { max_chars - 2 };
    let char_at = |byte: usize| starts.partition_point(|&start| start < byte);
    let spans: Vec<(usize, usize)> = found
        .iter()
        .map(|word| (char_at(word.start), char_at(word.end)))
        .collect();
    let (first, last) = densest(&found, &spans, budget);
    let (core_start, core_end) = if first < last {
        (spans[first].0, spans[last - 1].1)
    } else {
        (0, 0)
    };

    let spare = budget.saturating_sub(core_end - core_start);
    let mut start = core_start.saturating_sub(spare / 2).min(n_chars - budget);
    let mut end = start + budget;
    // Shrink to whole words, but not into the matches.
    let is_break = |at: usize| {
        at == 0 || at >= n_chars || {
            let space = |at: usize| text[starts[at]..].starts_with(char::is_whitespace);
            space(at) || space(at - 1)
        }
    };
    if let Some(at) = (start..=core_start)
        .find(|&at| is_break(at))
        .filter(|_| first < last || start == 0)
    {
        start = at;
    }
    if let Some(at) = (core_end.max(start + 1)..=end).rev().find(|&at| is_break(at)) {
        end = at;
    }
    let raw = &text[starts[start]..starts[end]];
    let lead = raw.len() - raw.trim_start().len();
    let kept = raw.trim();
    let from = starts[start] + lead;
    let to = from + kept.len();
    let prefix = if start > 0 { mark } else { "" };
    let suffix = if end < n_chars { mark } else { "" };
    let ranges = found
        .iter()
        .filter(|word| word.start >= from && word.end <= to)
        .map(|word| (word.start - from + prefix.len(), word.end - from + prefix.len()))
        .collect();
    (format!("{prefix}{kept}{suffix}"), ranges)
}

fn matches(query: &str, text: &str) -> Vec<Word> {
    let mut analyzer = Analyzer::new();
    let wanted: HashSet<String> = analyzer.words(query).into_iter().map(|word| word.term).collect();
    if wanted.is_empty() {
        return Vec::new();
    }
    let mut words = analyzer.words(text);
    words.retain(|word| wanted.contains(&word.term));
    words
}

/// The run of matches `first..last` within `budget` characters with the most distinct terms, then the
/// most matches, then the earliest; empty if no match fits.
fn densest(found: &[Word], spans: &[(usize, usize)], budget: usize) -> (usize, usize) {
    let mut counts: HashMap<&str, usize> = HashMap::new();
    let (mut best, mut best_run) = ((0, 0), (0, 0));
    let mut first = 0;
    for last in 0..found.len() {
        *counts.entry(&found[last].term).or_default() += 1;
        while first <= last && spans[last].1 - spans[first].0 > budget {
            if let Some(count) = counts.get_mut(found[first].term.as_str()) {
                *count -= 1;
                if *count == 0 {
                    counts.remove(found[first].term.as_str());
                }
            }
            first += 1;
        }
        let run = (counts.len(), last + 1 - first);
        if run > best {
            (best, best_run) = (run, (first, last + 1));
        }
    }
    best_run
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn a_highlight_is_stem_aware_and_ignores_stop_words() {
        let text = "The directors, a director, Café Müller.";
        let found: Vec<&str> = highlights("who is the director of cafe", text)
            .into_iter()
            .map(|(a, b)| &text[a..b])
            .collect();
        assert_eq!(found, ["directors", "director", "Café"]);
    }

    #[test]
    fn a_snippet_shows_the_densest_matches() {
        let text = format!(
            "wrestler {} the wrestler Robinson competed {}",
            "filler ".repeat(50),
            "tail ".repeat(50)
        );
        let (snippet, ranges) = snippet("wrestler robinson", &text, 60);
        assert!(
            snippet.chars().count() <= 60 && snippet.starts_with('…') && snippet.ends_with('…'),
            "{snippet}"
        );
        let found: Vec<&str> = ranges.iter().map(|&(a, b)| &snippet[a..b]).collect();
        assert_eq!(found, ["wrestler", "Robinson"]);
    }

    #[test]
    fn a_snippet_without_matches_is_the_beginning() {
        let (snippet, ranges) = snippet("zebra", "one two three four five six seven", 16);
        assert_eq!((snippet.as_str(), ranges.len()), ("one two three…", 0));
    }

    proptest! {
        #[test]
        fn ranges_lie_on_character_boundaries(query in "\\PC{0,20}", text in "[a-e é東🦀\\PC\u{301}]{0,80}", max in 0usize..60) {
            for (a, b) in highlights(&query, &text) {
                prop_assert!(text.get(a..b).is_some_and(|s| !s.is_empty()));
            }
            let (short, ranges) = snippet(&format!("{query} a b"), &text, max);
            prop_assert!(short.chars().count() <= max);
            for (a, b) in ranges {
                prop_assert!(short.get(a..b).is_some_and(|s| !s.is_empty()));
            }
        }
    }
}
