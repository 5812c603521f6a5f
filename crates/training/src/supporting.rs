//! A way to the answer through the passages that support it, for questions whose publisher names these and no
//! sub-questions, as HotpotQA's does. Only ways that the words of question and passages bear out, and that the
//! search finds: a question that is worded otherwise teaches nothing.

use std::cmp::Reverse;
use std::ops::Range;
use std::sync::Arc;

use gym::comparison::{bare, name};
use gym::excerpt::{sentences, stem};
use gym::metrics::normalise;
use gym::quantity::Quantity;
use gym::{EngineError, Gold, LabelledQuestion, Passage, Retriever};

use crate::expert::Hop;

/// Words of a query, names apart.
const QUERY_WORDS: usize = 12;
/// Words of a finding that is no name.
const FINDING_WORDS: usize = 12;
/// Among so many hits for its title a passage is looked for.
const NAMESAKES: usize = 10;

/// The way, or nothing.
pub fn hops(labelled: &LabelledQuestion, retriever: &dyn Retriever, k: usize) -> Result<Vec<Hop>, EngineError> {
    if distinct_titles(&labelled.gold).len() != 2 {
        return Ok(Vec::new());
    }
    let passages = gold_passages(&labelled.gold, retriever)?;
    let [a, b] = &passages[..] else {
        return Ok(Vec::new());
    };
    let (question, gold) = (&labelled.question.text, &labelled.gold);
    let ways = match labelled.kind.as_deref() {
        Some("comparison") => compared(question, gold, a, b).into_iter().collect(),
        _ => bridges(question, gold, a, b),
    };
    let found = |(hop, title): &(Hop, &str)| {
        let hits = retriever.search(&hop.query, k)?;
        Ok(hits.iter().any(|hit| hit.passage.title == *title))
    };
    for way in ways {
        let all: Result<Vec<bool>, EngineError> = way.iter().map(found).collect();
        if all?.into_iter().all(|found| found) {
            return Ok(way.into_iter().map(|(hop, _)| hop).collect());
        }
    }
    Ok(Vec::new())
}

/// The passages with the gold titles; of several with one title the best for it. Those that are not found are left out.
pub(crate) fn gold_passages(gold: &Gold, retriever: &dyn Retriever) -> Result<Vec<Arc<Passage>>, EngineError> {
    let mut found = Vec::new();
    for title in distinct_titles(gold) {
        let hits = retriever.search(title, NAMESAKES)?;
        found.extend(
            hits.into_iter()
                .map(|hit| hit.passage)
                .find(|passage| passage.title == title),
        );
    }
    Ok(found)
}

fn distinct_titles(gold: &Gold) -> Vec<&str> {
    let mut titles: Vec<&str> = Vec::new();
    for gold in &gold.passages {
        if !titles.contains(&gold.title.as_str()) {
            titles.push(&gold.title);
        }
    }
    titles
}

/// Each hop with the title of the passage that it is to find.
type Way<'p> = Vec<(Hop, &'p str)>;

/// From one passage, which a part of the question describes, to the other, about which the rest of it asks.
fn bridges<'p>(question: &str, gold: &Gold, a: &'p Passage, b: &'p Passage) -> Vec<Way<'p>> {
    let Some(answer) = gold.answers.first() else {
        return Vec::new();
    };
    let mut ways = Vec::new();
    for (from, to) in [(a, b), (b, a)] {
        let bridge = [name(&to.title), name(&to.title).split(", ").next().unwrap_or_default()]
            .into_iter()
            .find(|name| holds(&from.text, name) && !holds(question, name));
        let Some(bridge) = bridge.filter(|bridge| normalise(bridge) != normalise(answer)) else {
            continue;
        };
        if let Some([described, asked]) = parts(question, from, bridge).filter(|_| holds(&to.text, answer)) {
            let first = (hop([described.as_str()], bridge), from.title.as_str());
            ways.push(vec![first, (hop([asked.as_str()], answer), to.title.as_str())]);
        }
    }
    ways
}

/// The stretch of the question that a passage speaks of most densely, and the question with a name in its place:
/// "the film that was shot near Leland" and "Who directed Maximum Overdrive".
fn parts(question: &str, passage: &Passage, bridge: &str) -> Option<[String; 2]> {
    let words: Vec<&str> = question.split_whitespace().collect();
    // What a word says for the stretch that begins or goes on with it.
    let worth = |word: &str| match trimmed(word) {
        word if asks(word) || opens(word) => -3,
        word if word.is_empty() || filling(word) => 0,
        word if speaks_of(passage, word) => 2,
        _ => -2,
    };
    let worths: Vec<i32> = words.iter().map(|word| worth(word)).collect();
    let value = |range: &Range<usize>| worths[range.clone()].iter().sum::<i32>();
    let all = (0..words.len()).flat_map(|from| (from + 1..=words.len()).map(move |to| from..to));
    // Of equals the shortest, and of these the first.
    let mut best = all.max_by_key(|range| (value(range), Reverse(range.len()), Reverse(range.start)))?;
    if best.start > 0 && ["the", "a", "an"].contains(&words[best.start - 1].to_lowercase().as_str()) {
        best.start -= 1;
    }
    let (spoken, rest) = (value(&best), worths.len() - best.len());
    // A name alone says too little, and so does a question that is hardly left.
    let told = words[best.clone()]
        .iter()
        .filter(|word| !filling(trimmed(word)))
        .count();
    let left = words[..best.start].iter().chain(&words[best.end..]);
    let left = left.filter(|word| !filling(trimmed(word)) && !asks(trimmed(word)));
    if spoken < 4 || told < 2 || rest < 2 || left.count() == 0 {
        return None;
    }
    let described = words[best.clone()].join(" ");
    let asked = [&words[..best.start], &[bridge], &words[best.end..]].concat().join(" ");
    let plain = |text: &str| {
        text.trim_matches(|c: char| c.is_whitespace() || ",;?".contains(c))
            .to_owned()
    };
    Some([plain(&described), plain(&asked)])
}

/// The same about two things that the question names.
fn compared<'p>(question: &str, gold: &Gold, a: &'p Passage, b: &'p Passage) -> Option<Way<'p>> {
    let answer = gold.answers.first()?;
    // In the order that the question has.
    let place = |passage: &Passage| format!(" {} ", normalise(question)).find(&format!(" {} ", bare(&passage.title)));
    let both = if place(a)? <= place(b)? { [a, b] } else { [b, a] };
    let title_words: Vec<String> = both.iter().map(|passage| normalise(name(&passage.title))).collect();
    let words: Vec<&str> = telling(question)
        .into_iter()
        .filter(|word| !asks(word) && !title_words.iter().any(|title| holds(title, word)))
        .collect();
    let way = |about: &[&str], findings: [String; 2]| -> Way<'p> {
        let hops = both.iter().zip(findings).map(|(passage, finding)| {
            let query = [name(&passage.title)].into_iter().chain(about.iter().copied());
            (hop(query.take(QUERY_WORDS), &finding), passage.title.as_str())
        });
        hops.collect()
    };
    let is_title = title_words.iter().position(|title| *title == normalise(answer));
    if let (Some(right), Some(latest)) = (is_title, asks_for_the_latest(question)) {
        let about = dated_by(question, &both);
        let dates = both.map(|passage| date(passage, about));
        let [Some(one), Some(other)] = dates else { return None };
        let order = Quantity::parse(&one)?.order(&Quantity::parse(&other)?);
        // A date of something else would teach to look for the wrong one.
        let expected = if (right == 0) == latest {
            std::cmp::Ordering::Greater
        } else {
            std::cmp::Ordering::Less
        };
        return (order == expected).then(|| way(&[about], [one, other]));
    }
    let about: Vec<&str> = words.into_iter().take(QUERY_WORDS / 2).collect();
    if about.is_empty() {
        return None;
    }
    if both.iter().all(|passage| holds(&passage.text, answer)) {
        return Some(way(&about, [answer.clone(), answer.clone()]));
    }
    let findings = both.map(|passage| said(passage, &about));
    let told = |finding: &String| about.iter().filter(|word| tells(finding, word)).count();
    let decided = match is_title {
        Some(right) => told(&findings[right]) > told(&findings[1 - right]),
        None => match normalise(answer).as_str() {
            "yes" => about
                .iter()
                .any(|word| findings.iter().all(|finding| tells(finding, word))),
            answer => answer == "no",
        },
    };
    decided.then(|| way(&about, findings))
}

fn hop<'w>(query: impl IntoIterator<Item = &'w str>, finding: &str) -> Hop {
    Hop {
        query: query.into_iter().collect::<Vec<_>>().join(" "),
        finding: finding.to_owned(),
    }
}

/// Whole words, as answers are compared.
pub(crate) fn holds(text: &str, part: &str) -> bool {
    let part = normalise(part);
    !part.is_empty() && format!(" {} ", normalise(text)).contains(&format!(" {part} "))
}

/// The words of a question that tell what is sought, each once, in their order.
fn telling(question: &str) -> Vec<&str> {
    let mut words: Vec<&str> = Vec::new();
    let all = question.split_whitespace().map(trimmed);
    for text in all.filter(|word| !word.is_empty() && !filling(word)) {
        if !words.iter().any(|earlier| earlier.eq_ignore_ascii_case(text)) {
            words.push(text);
        }
    }
    words
}

/// Without what is around and behind a word.
fn trimmed(word: &str) -> &str {
    let word = word.trim_matches(|c: char| !c.is_alphanumeric());
    word.strip_suffix("'s").or(word.strip_suffix("’s")).unwrap_or(word)
}

/// Says nothing by itself.
fn filling(word: &str) -> bool {
    FILLING.contains(&word.to_lowercase().as_str())
}

/// Begins what a question asks for.
fn opens(word: &str) -> bool {
    ["what", "which"].contains(&word.to_lowercase().as_str())
}

/// What a reader takes its cue from, and no passage says.
fn asks(word: &str) -> bool {
    ["who", "whom", "whose", "when", "where", "how", "many", "much"].contains(&word.to_lowercase().as_str())
}

fn speaks_of(passage: &Passage, word: &str) -> bool {
    tells(&passage.title, word) || tells(&passage.text, word)
}

/// Whether a text has a word, perhaps in another form.
fn tells(text: &str, word: &str) -> bool {
    let word = word.to_lowercase();
    text.split(apart).any(|own| stem(&own.to_lowercase()) == stem(&word))
}

fn apart(c: char) -> bool {
    !c.is_alphanumeric()
}

/// Whether the later of two dates decides, or the earlier; nothing if the question is not about dates.
fn asks_for_the_latest(question: &str) -> Option<bool> {
    let has = |words: &[&str]| words.iter().any(|word| holds(question, word));
    match (
        has(&["first", "older", "oldest", "earlier", "earliest", "before"]),
        has(&[
            "later", "latest", "last", "younger", "youngest", "newer", "newest", "recently", "after",
        ]),
    ) {
        (true, false) => Some(false),
        (false, true) => Some(true),
        _ => None,
    }
}

/// What the dates of both are called in a query.
fn dated_by(question: &str, both: &[&Passage; 2]) -> &'static str {
    let asked = MADE.iter().find(|verb| holds(question, verb));
    let lives = |passage: &&Passage| {
        sentences(&passage.text)
            .first()
            .is_some_and(|first| first.contains("born"))
    };
    match asked {
        Some(verb) => verb,
        None if both.iter().any(lives) => "date of birth",
        None => "date",
    }
}

/// The first date of the sentence that speaks of it, or of the whole passage.
fn date(passage: &Passage, about: &str) -> Option<String> {
    let all = sentences(&passage.text);
    let spoken = all.iter().filter(|sentence| tells(sentence, about));
    spoken.chain(&all).find_map(|sentence| first_date(sentence))
}

/// "12 March 1956", "March 12, 1956" or "1956", as the sentence spells it.
fn first_date(sentence: &str) -> Option<String> {
    let words: Vec<&str> = sentence.split_whitespace().collect();
    let trimmed = |from: usize, to: usize| {
        words[from..=to]
            .join(" ")
            .trim_matches(|c: char| !c.is_alphanumeric())
            .to_owned()
    };
    let is_date = |text: &String| Quantity::parse(text).is_some_and(|quantity| quantity.is_year);
    (0..words.len()).find_map(|to| {
        let longest_first = (to.saturating_sub(2)..=to).map(|from| trimmed(from, to));
        longest_first.into_iter().find(is_date)
    })
}

/// What a passage says of its subject that bears on the question most: "an American film director".
fn said(passage: &Passage, about: &[&str]) -> String {
    let all = sentences(&passage.text);
    let score = |sentence: &str| about.iter().filter(|word| tells(sentence, word)).count();
    // Of equals the earliest.
    let Some(best) = all.iter().rev().max_by_key(|sentence| score(sentence)) else {
        return String::new();
    };
    let predicate = [" is ", " was ", " are ", " were "]
        .into_iter()
        .filter_map(|verb| best.split_once(verb))
        .min_by_key(|(subject, _)| subject.len());
    let text = predicate.map_or(*best, |(_, said)| said);
    let words: Vec<&str> = text.split_whitespace().take(FINDING_WORDS).collect();
    words
        .join(" ")
        .trim_end_matches(|c: char| !c.is_alphanumeric())
        .to_owned()
}

/// What things are made by, as questions ask for it.
const MADE: [&str; 12] = [
    "formed",
    "founded",
    "published",
    "released",
    "established",
    "opened",
    "created",
    "built",
    "started",
    "launched",
    "introduced",
    "completed",
];

const FILLING: [&str; 60] = [
    "a", "an", "the", "of", "in", "on", "at", "by", "for", "from", "to", "with", "and", "or", "is", "are", "was",
    "were", "be", "been", "being", "do", "does", "did", "has", "have", "had", "that", "which", "what", "why", "it",
    "its", "this", "these", "those", "as", "also", "both", "either", "than", "then", "there", "their", "his", "her",
    "he", "she", "they", "not", "into", "such", "same", "between", "one", "other", "who's", "can", "name", "if",
];

#[cfg(test)]
mod tests {
    use gym::{GoldPassage, Hit, Question, QuestionId};

    use super::*;

    /// Ranks by the share of the query's words that a passage has.
    struct Shelf(Vec<Arc<Passage>>);

    impl Retriever for Shelf {
        fn search(&self, query: &str, k: usize) -> Result<Vec<Hit>, EngineError> {
            let score = |passage: &Passage| query.split(apart).filter(|word| speaks_of(passage, word)).count() as f32;
            let mut hits: Vec<Hit> = self
                .0
                .iter()
                .map(|passage| Hit {
                    score: score(passage),
                    passage: passage.clone(),
                    rank: 1,
                })
                .collect();
            hits.sort_by(|a, b| b.score.total_cmp(&a.score));
            hits.truncate(k);
            Ok(hits)
        }
    }

    fn way(question: &str, answer: &str, kind: &str, passages: [(&str, &str); 2]) -> Vec<(String, String)> {
        let others = [
            ("Leland (film)", "A film."),
            ("Stephen Foster", "An American who wrote songs."),
        ];
        let shelf = passages.iter().chain(&others).map(|(title, text)| {
            Arc::new(Passage {
                id: (*title).into(),
                title: (*title).into(),
                text: (*text).into(),
            })
        });
        let gold = |(title, _): &(&str, &str)| GoldPassage {
            title: (*title).into(),
            sentence: None,
        };
        let labelled = LabelledQuestion {
            question: Question {
                id: QuestionId("q".into()),
                text: question.into(),
                options: Vec::new(),
            },
            gold: Gold {
                answers: vec![answer.into()],
                passages: passages.iter().map(gold).collect(),
                ..Gold::default()
            },
            kind: Some(kind.into()),
            split: None,
        };
        let hops = hops(&labelled, &Shelf(shelf.collect()), 1).unwrap();
        hops.into_iter().map(|hop| (hop.query, hop.finding)).collect()
    }

    fn pairs<const N: usize>(hops: [(&str, &str); N]) -> Vec<(String, String)> {
        hops.map(|(query, finding)| (query.into(), finding.into())).into()
    }

    const LELAND: (&str, &str) = (
        "Leland, Ohio",
        "Leland is a town. The film Night Drive was shot near it in 1986.",
    );
    const DRIVE: (&str, &str) = (
        "Night Drive (1986 film)",
        "Night Drive was written and directed by Ann Lee.",
    );

    #[test]
    fn a_bridge_leads_through_what_the_question_does_not_name() {
        let question = "Who directed the film that was shot near Leland in 1986?";
        let both = pairs([
            ("the film that was shot near Leland in 1986", "Night Drive"),
            ("Who directed Night Drive", "Ann Lee"),
        ]);
        assert_eq!(way(question, "Ann Lee", "bridge", [LELAND, DRIVE]), both);
        // Whatever the publisher's order.
        assert_eq!(way(question, "Ann Lee", "bridge", [DRIVE, LELAND]), both);
        assert_eq!(way(question, "Bob Hay", "bridge", [DRIVE, LELAND]), pairs([]));
        // Nothing is asked about the film.
        let only = "Which film was shot near Leland in 1986?";
        assert_eq!(way(only, "Ann Lee", "bridge", [LELAND, DRIVE]), pairs([]));
    }

    #[test]
    fn comparisons_ask_the_same_of_both() {
        let people = [
            ("Sid Haig", "Sid Haig (born July 14, 1939) is an American actor."),
            (
                "Vic Dar (boxer)",
                "Vic Dar ( ; born 7 January 1976) is an Armenian boxer.",
            ),
        ];
        let born = pairs([
            ("Vic Dar date of birth", "7 January 1976"),
            ("Sid Haig date of birth", "July 14, 1939"),
        ]);
        assert_eq!(
            way(
                "Who is the oldest, Vic Dar or Sid Haig?",
                "Sid Haig",
                "comparison",
                people
            ),
            born
        );
        // Against the dates.
        assert!(
            way(
                "Who is the youngest, Vic Dar or Sid Haig?",
                "Sid Haig",
                "comparison",
                people
            )
            .is_empty()
        );
        let said = pairs([
            ("Sid Haig American", "an American actor"),
            ("Vic Dar American", "an Armenian boxer"),
        ]);
        assert_eq!(
            way("Are Sid Haig and Vic Dar both American?", "no", "comparison", people),
            said
        );
        assert_eq!(
            way(
                "Which is American, Sid Haig or Vic Dar?",
                "Sid Haig",
                "comparison",
                people
            ),
            said
        );
        assert!(
            way(
                "Which is American, Sid Haig or Vic Dar?",
                "Vic Dar",
                "comparison",
                people
            )
            .is_empty()
        );
        assert!(way("Are Sid Haig and Vic Dar both American?", "yes", "comparison", people).is_empty());
    }

    #[test]
    fn dates_are_found_as_they_are_spelled() {
        for (sentence, date) in [
            ("Founded on 12 March 1956, it", Some("12 March 1956")),
            ("(March 12, 1956 – 2001)", Some("March 12, 1956")),
            ("In 1956.", Some("1956")),
            ("No date in 3 words", None),
        ] {
            assert_eq!(first_date(sentence).as_deref(), date, "{sentence}");
        }
    }
}
