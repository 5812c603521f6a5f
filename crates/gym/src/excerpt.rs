//! The part of a passage that bears on a query. A small model reads three short excerpts faster, and better,
//! than three whole passages.

use crate::comparison::extremes_of_list;

/// Words that the excerpts of the first passage, of the second and of each later one may have. For the gold queries of
/// training questions they keep 1 to 3 % more of the findings that three passages hold than 60 words of each do, and
/// are at most 5 % longer.
const EXCERPT_WORDS: [usize; 3] = [100, 60, 40];

/// What compact prompts show of the text of a passage with this rank, from 1: what bears on the query, and the extremes
/// of a list that the text may have.
pub fn shown(query: &str, text: &str, rank: u32) -> String {
    let words = EXCERPT_WORDS[(rank.max(1) as usize - 1).min(EXCERPT_WORDS.len() - 1)];
    format!("{} {}", excerpt(query, text, words), extremes_of_list(text))
        .trim_end()
        .to_owned()
}

/// Letters that two words must share to count as one: "border" and "bordering", "euro" and "euros".
const STEM: usize = 5;

/// At most `limit` words of `text`, whole sentences where they fit, in their order: the first sentence, which
/// says what the passage is about, then those that share the most words with the query. A word counts for
/// more the fewer sentences have it.
fn excerpt(query: &str, text: &str, limit: usize) -> String {
    let sentences = sentences(text);
    let length = |sentence: &str| sentence.split_whitespace().count();
    if sentences.iter().map(|sentence| length(sentence)).sum::<usize>() <= limit {
        return text.trim().to_owned();
    }
    let wanted: Vec<String> = words(query).collect();
    let found: Vec<Vec<bool>> = sentences
        .iter()
        .map(|sentence| {
            let own: Vec<String> = words(sentence).collect();
            wanted
                .iter()
                .map(|word| own.iter().any(|other| stem(other) == stem(word)))
                .collect()
        })
        .collect();
    let weight = |word: usize| 1.0 / found.iter().filter(|in_sentence| in_sentence[word]).count().max(1) as f64;
    let score = |idx: usize| -> f64 { (0..wanted.len()).filter(|&word| found[idx][word]).map(weight).sum() };
    let mut order: Vec<usize> = (1..sentences.len()).collect();
    // Stable: of equals the earlier stays first.
    order.sort_by(|&a, &b| score(b).total_cmp(&score(a)));
    order.insert(0, 0);
    let (mut kept, mut left) = (Vec::new(), limit);
    for idx in order {
        let all = length(sentences[idx]);
        // The beginning of a long sentence is better than a worse one; a few words of it are not.
        if all > left && left < limit / 4 {
            continue;
        }
        kept.push((idx, all.min(left)));
        left -= all.min(left);
    }
    kept.sort_unstable();
    let part = |&(idx, n): &(usize, usize)| -> String {
        let sentence = sentences[idx];
        match n < length(sentence) {
            true => sentence.split_whitespace().take(n).collect::<Vec<_>>().join(" ") + " …",
            false => sentence.to_owned(),
        }
    };
    kept.iter().map(part).collect::<Vec<_>>().join(" ")
}

/// Lines, and their sentences: a full stop ends one where a blank and no small letter follow.
pub fn sentences(text: &str) -> Vec<&str> {
    let mut all = Vec::new();
    for line in text.lines() {
        let mut from = 0;
        for (at, _) in line.match_indices(['.', '!', '?']) {
            let rest = &line[at + 1..];
            let next = rest.trim_start();
            let ends = rest.len() > next.len() && next.chars().next().is_some_and(|c| !c.is_lowercase());
            // "J. R. R. Tolkien", "St. Louis": what is this short is a part of a name.
            let last = line[from..at].rsplit(char::is_whitespace).next().unwrap_or_default();
            if ends && last.chars().count() > 2 {
                all.push(line[from..=at].trim());
                from = at + 1;
            }
        }
        all.push(line[from..].trim());
    }
    all.retain(|sentence| !sentence.is_empty());
    all
}

fn words(text: &str) -> impl Iterator<Item = String> {
    text.split(|c: char| !c.is_alphanumeric())
        .filter(|word| word.chars().count() > 2 || word.chars().any(char::is_numeric))
        .map(str::to_lowercase)
}

pub fn stem(word: &str) -> &str {
    word.char_indices().nth(STEM).map_or(word, |(end, _)| &word[..end])
}

#[cfg(test)]
mod tests {
    use super::*;

    const ECONOMY: &str = "Economy of Slovenia.\nGDP, per capita (PPP): $29,700 (2014 est.).\nCurrency, exchange rates: \
                           euros (EUR) per US dollar; 0.7489 (2014 est.).\nIndustries: ferrous metallurgy.";

    #[test]
    fn a_short_text_stays_as_it_is() {
        assert_eq!(
            excerpt("anything", " A short text.\nTwo lines. ", 10),
            "A short text.\nTwo lines."
        );
        assert_eq!(excerpt("anything", "", 10), "");
    }

    #[test]
    fn the_first_sentence_and_the_best_one_stay() {
        let short = excerpt("What is the currency of Slovenia?", ECONOMY, 14);
        assert_eq!(
            short,
            "Economy of Slovenia. Currency, exchange rates: euros (EUR) per US dollar; 0.7489 (2014 est.)."
        );
    }

    #[test]
    fn a_long_sentence_gives_its_beginning() {
        let text = format!("{}.", ["word"; 100].join(" "));
        assert_eq!(excerpt("query", &text, 7), "word word word word word word word …");
    }

    #[test]
    fn names_and_numbers_end_no_sentence() {
        assert_eq!(
            sentences("J. R. R. Tolkien wrote 3.5 books. He lived in St. Louis, e.g. there! 1999 came."),
            [
                "J. R. R. Tolkien wrote 3.5 books.",
                "He lived in St. Louis, e.g. there!",
                "1999 came."
            ]
        );
    }

    proptest::proptest! {
        #[test]
        fn an_excerpt_is_short_and_made_of_the_text(query in ".{0,40}", text in "(.|\n){0,400}", limit in 1usize..30) {
            let short = excerpt(&query, &text, limit);
            let in_text: Vec<&str> = text.split_whitespace().collect();
            let kept: Vec<&str> = short.split_whitespace().collect();
            let cuts = kept.iter().filter(|word| **word == "…").count();
            proptest::prop_assert!(kept.len() <= in_text.len().min(limit) + cuts);
            proptest::prop_assert!(kept.iter().all(|word| *word == "…" || in_text.contains(word)));
        }
    }
}
