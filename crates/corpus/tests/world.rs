//! The built-in world: what holds for every passage and every generated question.

use std::collections::{HashMap, HashSet};

use corpus::{Split, world_passages, world_questions};
use gym::comparison::extremes_of_list;

fn folded(text: &str) -> String {
    text.chars()
        .filter(|c| c.is_alphanumeric())
        .flat_map(char::to_lowercase)
        .collect()
}

#[test]
fn the_corpus_has_unique_ids_and_short_passages() {
    let passages = world_passages();
    eprintln!("{} passages", passages.len());
    assert!(passages.len() >= 2500, "{}", passages.len());
    let ids: HashSet<&str> = passages.iter().map(|p| p.id.as_str()).collect();
    assert_eq!(ids.len(), passages.len());
    for passage in &passages {
        let words = passage.text.split_whitespace().count();
        assert!((4..=170).contains(&words), "{} has {words} words", passage.id);
    }
    let government = passages.iter().find(|p| p.id == "austria/government").expect("Austria");
    assert_eq!(government.title, "Austria: Government");
    assert!(government.text.contains("Capital: Vienna"), "{}", government.text);
    assert_eq!(world_passages(), passages);
}

#[test]
fn every_split_has_enough_of_every_kind() {
    for split in Split::ALL {
        let questions = world_questions(split);
        let mut kinds: HashMap<String, usize> = HashMap::new();
        for q in &questions {
            *kinds.entry(q.kind.clone().expect("a kind")).or_default() += 1;
        }
        eprintln!("{}: {} {kinds:?}", split.name(), questions.len());
        assert!(questions.len() >= if split == Split::Train { 1500 } else { 300 });
        assert_eq!(kinds.len(), 7);
        assert!(kinds.values().all(|n| *n >= 10), "{kinds:?}");
        let yes = questions.iter().filter(|q| q.gold.answers[0] == "yes").count();
        assert_eq!(yes * 2, kinds["yes_no"]);
    }
}

#[test]
fn the_first_questions_are_a_fair_sample() {
    for split in Split::ALL {
        let questions = world_questions(split);
        let kinds: HashSet<&str> = questions.iter().filter_map(|q| q.kind.as_deref()).collect();
        for kind in kinds {
            let share = |first: usize| {
                let of_kind = questions[..first].iter().filter(|q| q.kind.as_deref() == Some(kind));
                of_kind.count() as f64 / first as f64
            };
            let (all, first) = (share(questions.len()), share(150));
            // Three standard deviations of a share of 150.
            let chance = 3.0 * (all * (1.0 - all) / 150.0).sqrt();
            assert!(
                (first - all).abs() < chance,
                "{} {kind}: {first:.3} of the first, {all:.3} of all",
                split.name()
            );
        }
    }
}

/// Prompts show it beside the passage: a small model does not find the greatest of ten numbers.
#[test]
fn the_longest_border_is_said_of_every_list() {
    let mut texts: HashMap<String, String> = HashMap::new();
    for passage in world_passages() {
        texts.entry(passage.title).or_insert(passage.text);
    }
    let (mut n, mut said) = (0, 0);
    for hop in Split::ALL
        .into_iter()
        .flat_map(world_questions)
        .flat_map(|q| q.gold.sub_questions)
    {
        if !hop.question.starts_with("Which country has the longest border") {
            continue;
        }
        let extremes = extremes_of_list(&texts[hop.title.as_ref().expect("a title")]);
        n += 1;
        // An only neighbour is compared with none.
        if !extremes.is_empty() {
            let right = folded(&extremes).starts_with(&folded(&format!("largest {}", hop.answer)));
            assert!(right, "{}: {extremes}, not {}", hop.question, hop.answer);
            said += 1;
        }
    }
    assert!(said > 1_000 && said * 10 > n * 8, "{said} of {n}");
}

#[test]
fn no_question_or_chain_occurs_twice() {
    let mut texts = HashSet::new();
    let mut starts: HashMap<String, Split> = HashMap::new();
    for split in Split::ALL {
        for q in world_questions(split) {
            assert!(texts.insert(q.question.text.clone()), "{}", q.question.text);
            let title = q.gold.sub_questions[0].title.clone().expect("a title");
            let place = title.split(": ").next().expect("a place").to_owned();
            assert_eq!(*starts.entry(place).or_insert(split), split, "{}", q.question.text);
        }
    }
}

#[test]
fn answers_stand_in_the_gold_passages_and_not_in_the_question() {
    let mut texts: HashMap<String, String> = HashMap::new();
    for passage in world_passages() {
        texts.entry(passage.title).or_default().push_str(&passage.text);
    }
    for split in Split::ALL {
        for q in world_questions(split) {
            let (gold, text) = (&q.gold, &q.question.text);
            assert!(gold.passages.len() >= 2, "{text}");
            assert!(gold.passages.iter().all(|p| texts.contains_key(&p.title)), "{text}");
            assert!(gold.sub_questions.len() >= 2, "{text}");
            let kind = q.kind.as_deref().expect("a kind");
            if kind != "yes_no" {
                let stands = |a: &String| gold.passages.iter().any(|p| texts[&p.title].contains(a));
                assert!(gold.answers.iter().any(stands), "{text} {gold:?}");
            }
            if kind != "yes_no" && kind != "comparison" {
                let given = gold.answers.iter().any(|a| folded(text).contains(&folded(a)));
                assert!(!given, "{text} {gold:?}");
            }
            if ["bridge", "3hop", "4hop"].contains(&kind) {
                let last = gold.sub_questions.last().expect("a hop");
                assert_eq!(last.answer, gold.answers[0], "{text}");
                let hops = ["bridge", "3hop", "4hop"].iter().position(|k| *k == kind).expect("one") + 2;
                assert_eq!(gold.sub_questions.len(), hops, "{text}");
            }
        }
    }
}

#[test]
fn a_sample_reads_well() {
    for q in world_questions(Split::Dev).iter().step_by(13) {
        eprintln!(
            "{} [{}] {} -> {:?}",
            q.question.id.0,
            q.kind.as_deref().unwrap_or("?"),
            q.question.text,
            q.gold.answers
        );
    }
    assert!(
        world_questions(Split::Dev)
            .iter()
            .all(|q| q.question.text.ends_with(['?', '.']))
    );
}

/// What identifies a country is said of no other place: read back from the passages themselves.
#[test]
fn every_description_fits_one_place() {
    let markers = [
        ("whose capital is ", "Capital: "),
        ("whose highest point is ", "Elevation extremes: "),
        ("internet country code ", "Internet country code: "),
        ("whose national anthem is ", "National anthem: "),
        ("became independent on ", "Independence: "),
        ("whose chief of state is ", "Executive branch: "),
        ("whose head of government is ", "Executive branch: "),
    ];
    let passages = world_passages();
    let mut checked = HashMap::new();
    for q in Split::ALL.into_iter().flat_map(world_questions) {
        for hop in &q.gold.sub_questions {
            let Some(rest) = hop.question.strip_prefix("Which is the country ") else {
                continue;
            };
            let (marker, label) = markers.iter().find(|(m, _)| rest.contains(m)).expect("a marker");
            let value = rest
                .split_once(marker)
                .expect("the marker")
                .1
                .trim_end_matches('?')
                .trim_matches('"');
            checked
                .entry((value.to_owned(), *label))
                .or_insert_with(|| hop.answer.clone());
        }
    }
    assert!(checked.len() > 500, "{}", checked.len());
    for ((value, label), answer) in checked {
        let says = |line: &str| line.starts_with(label) && line.contains(&value);
        let mut places: Vec<&str> = passages
            .iter()
            .filter(|p| p.text.lines().any(says))
            .filter_map(|p| p.title.split(": ").next())
            .collect();
        places.dedup();
        assert_eq!(places, [answer.as_str()], "{label}{value}");
    }
}

#[test]
fn a_capital_is_called_one_in_its_own_passage_only() {
    for passage in world_passages().iter().filter(|p| !p.title.ends_with(": Government")) {
        assert!(!passage.text.contains("(capital)"), "{}", passage.id);
    }
}

#[test]
fn wordings_can_be_read_and_aliases_are_names() {
    for q in Split::ALL.into_iter().flat_map(world_questions) {
        let text = &q.question.text;
        // "How many square kilometres does the country that … shares its longest border with cover?"
        let clause = text
            .split_once("shares its longest border with")
            .map_or("", |(_, rest)| rest);
        let ended = clause.trim_end_matches(['?', '.']).is_empty();
        assert!(ended || q.kind.as_deref() == Some("superlative"), "{text}");
        assert!(!text.contains(" in Romanian"), "{text}");
        for answer in &q.gold.answers {
            let first = answer.split(' ').next().expect("an answer");
            let lower = ["of", "and", "or", "minister", "republic"];
            assert!(
                !lower.contains(&first.to_lowercase().as_str()) || first == "Republic",
                "{text} {answer}"
            );
        }
    }
    let president = Split::ALL
        .into_iter()
        .flat_map(world_questions)
        .find(|q| q.gold.answers[0].contains("NISHANI"))
        .expect("Albania's head of state is asked for");
    assert_eq!(president.gold.answers[1], "Bujar NISHANI");
}
