//! Makes every question the facts allow, checks each, and keeps a fixed sample of every kind.

use std::collections::{HashMap, HashSet};

use gym::{LabelledQuestion, QuestionId, SubQuestion};

use super::chains::{BORDERS, ask, forms, hop, identify, look_up, names, question};
use super::facts::{Country, Relation, countries, key};
use super::{Split, stable_hash};

/// Kind, questions kept for train, and for dev and test each. Yes/no answers alternate.
const KEPT: [(&str, usize, usize); 7] = [
    ("bridge", 400, 80),
    ("3hop", 350, 80),
    ("4hop", 300, 70),
    ("comparison", 300, 70),
    ("intersection", 150, 40),
    ("superlative", 150, 40),
    ("yes_no", 300, 60),
];

/// A longest border, a larger population: by at least this factor, so that no rounding decides.
const MARGIN: f64 = 1.1;

pub(super) fn generate(split: Split) -> Vec<LabelledQuestion> {
    let all = countries();
    let starts: Vec<&Country> = all.iter().filter(|c| c.split == split).collect();
    let mut made = Vec::new();
    for start in &starts {
        from_one(&all, start, &mut made);
    }
    for (n, a) in starts.iter().enumerate() {
        for b in &starts[n + 1..] {
            from_two(&all, a, b, &mut made);
        }
    }
    let texts = texts_by_title();
    made.retain(|q| sound(q, &texts));
    let mut order: Vec<(u64, LabelledQuestion)> =
        made.into_iter().map(|q| (stable_hash(&q.question.text), q)).collect();
    order.sort_by(|a, b| (a.0, &a.1.question.text).cmp(&(b.0, &b.1.question.text)));
    order.dedup_by(|a, b| a.1.question.text == b.1.question.text);
    let mut kept = Vec::new();
    for (kind, train, other) in KEPT {
        let limit = if split == Split::Train { train } else { other };
        let of_kind = |answer: Option<&'static str>| {
            let right = move |q: &LabelledQuestion| {
                q.kind.as_deref() == Some(kind) && answer.is_none_or(|a| q.gold.answers[0] == a)
            };
            order.iter().map(|(_, q)| q).filter(move |q| right(q)).cloned()
        };
        if kind == "yes_no" {
            let pairs = of_kind(Some("yes")).zip(of_kind(Some("no"))).take(limit / 2);
            kept.extend(pairs.flat_map(|(yes, no)| [yes, no]));
        } else {
            kept.extend(of_kind(None).take(limit));
        }
    }
    // Kinds mixed, so that the first so many questions are a fair sample. The hash is read from its other end: by the
    // leading bits the kept ones of a kind with many made all come before those of a kind with few.
    kept.sort_by_key(|q| stable_hash(&q.question.text).reverse_bits());
    for (n, q) in kept.iter_mut().enumerate() {
        q.question.id = QuestionId(format!("world-{}-{:04}", split.name(), n + 1));
        q.split = Some(split.name().to_owned());
    }
    kept
}

/// The neighbour with by far the longest border.
fn longest<'a>(all: &'a [Country], country: &Country) -> Option<(&'a Country, SubQuestion)> {
    let borders = country.borders.as_ref()?;
    let (first, km, _) = borders.iter().max_by(|a, b| a.1.total_cmp(&b.1))?;
    let near = |(other, next, _): &(usize, f64, String)| other != first && *km < next * MARGIN;
    if borders.iter().any(near) {
        return None;
    }
    let found = &all[*first];
    let question = format!(
        "Which country has the longest border with {}?",
        country.place.in_sentence()
    );
    Some((found, hop(question, &found.place.name, country, BORDERS)))
}

fn from_one(all: &[Country], start: &Country, made: &mut Vec<LabelledQuestion>) {
    for known in &start.identifies {
        let Some((what, first)) = identify(start, *known) else {
            continue;
        };
        let neighbour = longest(all, start);
        let beyond = neighbour.as_ref().and_then(|(n, _)| longest(all, n));
        let beyond = beyond.filter(|(b, _)| !std::ptr::eq(*b, start));
        for asked in Relation::ALL {
            if asked == *known {
                continue;
            }
            let mut chain = |kind: &str, what: &str, end: &Country, mut hops: Vec<SubQuestion>| {
                let (Some(last), Some(value)) = (look_up(end, asked), end.value(asked)) else {
                    return;
                };
                hops.push(last);
                let text = ask(asked, what, stable_hash(what) >> 8);
                made.push(question(kind, text, forms(asked, value), hops));
            };
            chain("bridge", &what, start, vec![first.clone()]);
            let Some((next, second)) = &neighbour else { continue };
            let around = format!("the neighbour that {what} shares its longest border with");
            let what = match stable_hash(&what) % 2 {
                0 => format!("the country that has the longest border with {what}"),
                _ => around.clone(),
            };
            chain("3hop", &what, next, vec![first.clone(), second.clone()]);
            let Some((end, third)) = &beyond else { continue };
            let what = format!("the country that has the longest border with {around}");
            chain("4hop", &what, end, vec![first.clone(), second.clone(), third.clone()]);
        }
        superlative(all, start, &what, &first, made);
    }
}

/// Among a country's two to four neighbours, the one with most people or land, or least.
fn superlative(all: &[Country], start: &Country, what: &str, first: &SubQuestion, made: &mut Vec<LabelledQuestion>) {
    let Some(borders) = start.borders.as_ref().filter(|b| (2..=4).contains(&b.len())) else {
        return;
    };
    for (relation, most) in [
        (Relation::Population, true),
        (Relation::Population, false),
        (Relation::Area, true),
        (Relation::Area, false),
    ] {
        let numbers: Option<Vec<_>> = borders
            .iter()
            .map(|(n, _, _)| Some((number(&all[*n], relation)?, &all[*n])))
            .collect();
        let Some(mut numbers) = numbers else { continue };
        // As the passage lists them: who asks does not know their order yet.
        let asked: Vec<&Country> = numbers.iter().map(|(_, country)| *country).collect();
        numbers.sort_by(|a, b| if most { b.0.total_cmp(&a.0) } else { a.0.total_cmp(&b.0) });
        let (high, low) = if most {
            (numbers[0].0, numbers[1].0)
        } else {
            (numbers[1].0, numbers[0].0)
        };
        if high < low * MARGIN {
            continue;
        }
        let winner = numbers[0].1;
        let adjective = match (relation, most) {
            (Relation::Population, true) => "has the largest population",
            (Relation::Population, false) => "has the smallest population",
            (_, true) => "has the largest total area",
            (_, false) => "has the smallest total area",
        };
        let listed = borders
            .iter()
            .map(|(n, _, _)| all[*n].place.name.as_str())
            .collect::<Vec<_>>()
            .join(", ");
        let neighbours = format!("Which countries border {}?", start.place.in_sentence());
        let mut hops = vec![first.clone(), hop(neighbours, &listed, start, BORDERS)];
        hops.extend(asked.iter().filter_map(|country| look_up(country, relation)));
        let text = match stable_hash(what) % 2 {
            0 => format!("Which of the countries bordering {what} {adjective}?"),
            _ => format!("Among the neighbours of {what}, which one {adjective}?"),
        };
        made.push(question("superlative", text, names(winner), hops));
    }
}

fn number(country: &Country, relation: Relation) -> Option<f64> {
    if relation == Relation::Population {
        country.population
    } else {
        country.area
    }
}

fn from_two(all: &[Country], a: &Country, b: &Country, made: &mut Vec<LabelledQuestion>) {
    // One description of each, chosen by the pair: other pairs show the other descriptions.
    let pair = stable_hash(&format!("{}|{}", a.place.name, b.place.name));
    let pick = |country: &Country, salt: u64| {
        let n = country.identifies.len() as u64;
        let at = usize::try_from((pair >> salt).checked_rem(n)?).ok()?;
        identify(country, country.identifies[at])
    };
    let (Some((what_a, hop_a)), Some((what_b, hop_b))) = (pick(a, 3), pick(b, 17)) else {
        return;
    };
    let (in_a, in_b) = (a.place.in_sentence(), b.place.in_sentence());

    for (relation, noun) in [(Relation::Population, "population"), (Relation::Area, "total area")] {
        let (Some(x), Some(y)) = (number(a, relation), number(b, relation)) else {
            continue;
        };
        if x.max(y) < x.min(y) * MARGIN * MARGIN {
            continue;
        }
        let more = (pair >> 29) & 1 == 0;
        let winner = if (x > y) == more { a } else { b };
        let size = if more { "larger" } else { "smaller" };
        let (Some(of_a), Some(of_b)) = (look_up(a, relation), look_up(b, relation)) else {
            continue;
        };
        let hops = vec![hop_a.clone(), hop_b.clone(), of_a.clone(), of_b.clone()];
        let text = match pair % 2 {
            0 => format!("Which has the {size} {noun}: {what_a} or {what_b}?"),
            _ => format!("Of {what_a} and {what_b}, which one has the {size} {noun}?"),
        };
        made.push(question("comparison", text, names(winner), hops.clone()));
        if pair.is_multiple_of(5) {
            let text = format!("Which country has the {size} {noun}, {in_a} or {in_b}?");
            made.push(question("comparison", text, names(winner), vec![of_a, of_b]));
        }
        let answer = if (x > y) == more { "yes" } else { "no" };
        let text = format!("Does {what_a} have a {size} {noun} than {what_b}?");
        made.push(question("yes_no", text, vec![answer.to_owned()], hops));
    }
    if let (Some(x), Some(y)) = (a.value(Relation::Currency), b.value(Relation::Currency))
        && let (Some(of_a), Some(of_b)) = (look_up(a, Relation::Currency), look_up(b, Relation::Currency))
        && (key(x) == key(y) || (!key(x).contains(&key(y)) && !key(y).contains(&key(x)) && pair.is_multiple_of(8)))
    {
        let answer = if key(x) == key(y) { "yes" } else { "no" };
        let text = format!("Do {what_a} and {what_b} use the same currency?");
        made.push(question(
            "yes_no",
            text,
            vec![answer.to_owned()],
            vec![hop_a.clone(), hop_b.clone(), of_a, of_b],
        ));
    }
    let (Some(near_a), Some(near_b)) = (&a.borders, &b.borders) else {
        return;
    };
    let common: Vec<_> = near_a
        .iter()
        .filter(|(n, _, _)| near_b.iter().any(|(m, _, _)| m == n))
        .collect();
    if let [(n, _, written)] = common.as_slice() {
        let found = &all[*n];
        let mut answers = names(found);
        if !answers.contains(written) {
            answers.push(written.clone());
        }
        let list = |near: &[(usize, f64, String)]| {
            near.iter()
                .map(|(n, _, _)| all[*n].place.name.as_str())
                .collect::<Vec<_>>()
                .join(", ")
        };
        let of_a = hop(format!("Which countries border {in_a}?"), &list(near_a), a, BORDERS);
        let of_b = hop(format!("Which countries border {in_b}?"), &list(near_b), b, BORDERS);
        let text = format!("Which country borders both {in_a} and {in_b}?");
        made.push(question(
            "intersection",
            text,
            answers.clone(),
            vec![of_a.clone(), of_b.clone()],
        ));
        for salt in [3, 11, 23] {
            let (Some((what_a, hop_a)), Some((what_b, hop_b))) = (pick(a, salt), pick(b, salt + 14)) else {
                continue;
            };
            let text = match (pair >> salt) % 2 {
                0 => format!("Which country borders both {what_a} and {what_b}?"),
                _ => format!("What is the common neighbour of {what_a} and {what_b}?"),
            };
            let hops = vec![hop_a, hop_b, of_a.clone(), of_b.clone()];
            made.push(question("intersection", text, answers.clone(), hops));
        }
    }
}

/// The first passage of every title: a gold fact must stand there.
pub(super) fn texts_by_title() -> HashMap<String, String> {
    let mut texts = HashMap::new();
    for passage in super::world_passages() {
        texts.entry(passage.title).or_insert(passage.text);
    }
    texts
}

/// Whether the answer stands in a gold passage but not in the question, and each hop's in its own.
fn sound(question: &LabelledQuestion, texts: &HashMap<String, String>) -> bool {
    let gold = &question.gold;
    let kind = question.kind.as_deref().unwrap_or_default();
    let passages: Option<Vec<&String>> = gold.passages.iter().map(|p| texts.get(&p.title)).collect();
    let Some(passages) = passages else { return false };
    let asked = key(&question.question.text);
    let compares = matches!(kind, "comparison" | "yes_no");
    let given_away = !compares && gold.answers.iter().any(|answer| asked.contains(&key(answer)));
    let stands = kind == "yes_no"
        || gold
            .answers
            .iter()
            .any(|answer| passages.iter().any(|text| text.contains(answer.as_str())));
    let hops_stand = gold.sub_questions.iter().all(|hop| {
        let text = hop.title.as_ref().and_then(|title| texts.get(title));
        let listed = hop.question.starts_with("Which countries border");
        text.is_some_and(|text| {
            listed || text.contains(&hop.answer) || hop.answer == "United States" && text.contains("US ")
        })
    });
    let distinct: HashSet<&str> = gold.passages.iter().map(|p| p.title.as_str()).collect();
    !given_away && stands && hops_stand && distinct.len() >= 2
}
