//! How findings compare. Which of two numbers is larger is a coin toss to a small model; the compact prompts say
//! it, as a calculator would.

use std::cmp::Ordering;

use crate::metrics::normalise;
use crate::quantity::Quantity;

/// A line below the findings.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Comparison {
    /// Smallest, Largest, Earliest, Latest or Same.
    pub label: &'static str,
    /// What it is: the thing that was asked about, or the finding that several have.
    pub text: String,
}

/// What a query of several alike asks about: in "population of Mali" and "population of Chad", "Mali" and "Chad".
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Subject {
    pub name: String,
    /// What earlier queries that found these names ask about: films, where the names are their directors'.
    pub led_by: Option<String>,
}

/// Of findings that compare, which is least and which is greatest, in the order that they were asked for (so that
/// the first line is about the first thing); and findings that several queries have in common.
pub fn comparisons(turns: &[(&str, &str)]) -> Vec<Comparison> {
    let mut lines: Vec<(usize, Comparison)> = Vec::new();
    let mut groups: Vec<Vec<(Quantity, usize)>> = Vec::new();
    for (idx, (query, finding)) in turns.iter().enumerate() {
        if turns[..idx].iter().any(|(earlier, _)| earlier == query) {
            continue;
        }
        let Some(quantity) = Quantity::parse(finding) else {
            // The second of them says it, and no third.
            let mut shared = turns[..idx]
                .iter()
                .map(|(_, earlier)| common(earlier, finding))
                .filter(|common| !common.is_empty());
            if let (Some(text), None) = (shared.next(), shared.next()) {
                lines.push((idx, Comparison { label: "Same", text }));
            }
            continue;
        };
        match groups.iter_mut().find(|group| group[0].0.compares(&quantity)) {
            Some(group) => group.push((quantity, idx)),
            None => groups.push(vec![(quantity, idx)]),
        }
    }
    for group in groups {
        let order = |a: &&(Quantity, usize), b: &&(Quantity, usize)| a.0.order(&b.0);
        let (Some(least), Some(most)) = (group.iter().min_by(order), group.iter().max_by(order)) else {
            continue;
        };
        if least.0.order(&most.0) == Ordering::Equal {
            continue;
        }
        let asked: Vec<usize> = group.iter().map(|(_, idx)| *idx).collect();
        let subjects = subjects(turns, &asked);
        let labels = if least.0.is_year {
            ["Earliest", "Latest"]
        } else {
            ["Smallest", "Largest"]
        };
        for (label, found) in labels.into_iter().zip([least.1, most.1]) {
            let subject = asked.iter().zip(&subjects).find(|(idx, _)| **idx == found);
            let text = subject.map(|(_, subject)| subject.to_string()).unwrap_or_default();
            lines.push((found, Comparison { label, text }));
        }
    }
    lines.sort_by_key(|(idx, _)| *idx);
    lines.into_iter().map(|(_, line)| line).collect()
}

/// What two findings have in common: all, if they are one thing each, or the items that two lists share. A thing is
/// not compared with a list.
fn common(a: &str, b: &str) -> String {
    let [a, b] = [a, b].map(|text| text.split(", ").collect::<Vec<_>>());
    let shared = |item: &&str| !normalise(item).is_empty() && a.iter().any(|other| normalise(other) == normalise(item));
    match (a.len() > 1) == (b.len() > 1) {
        true => b.iter().copied().filter(shared).collect::<Vec<_>>().join(", "),
        false => String::new(),
    }
}

/// What each of these turns asks about.
pub fn subjects(turns: &[(&str, &str)], asked: &[usize]) -> Vec<Subject> {
    let queries =
        |turns: &[(&str, &str)], asked: &[usize]| apart(&asked.iter().map(|&idx| turns[idx].0).collect::<Vec<_>>());
    let names = queries(turns, asked);
    let led =
        |(name, &idx): (&String, &usize)| turns[..idx].iter().position(|(_, finding)| bare(finding) == bare(name));
    let led: Option<Vec<usize>> = names.iter().zip(asked).map(led).collect();
    let led_by = match led {
        Some(led) => queries(turns, &led).into_iter().map(Some).collect(),
        None => vec![None; names.len()],
    };
    let subject = |(name, led_by)| Subject { name, led_by };
    names.into_iter().zip(led_by).map(subject).collect()
}

/// The extremes of the first list of things with numbers in a passage: "(Largest: Peru. Smallest: Colombia.)" of
/// "border countries Colombia 708 km, Peru 1,529 km". Empty if there is none.
pub fn extremes_of_list(text: &str) -> String {
    let sentences = text.split(['\n', ';']).flat_map(|line| line.split(". "));
    for sentence in sentences {
        let items: Option<Vec<(&str, Quantity)>> = sentence.trim_end_matches('.').split(", ").map(item).collect();
        let Some(items) = items.filter(|items| items.len() > 1) else {
            continue;
        };
        let order = |a: &&(&str, Quantity), b: &&(&str, Quantity)| a.1.order(&b.1);
        if let (Some(least), Some(most)) = (items.iter().min_by(order), items.iter().max_by(order))
            && least.1.order(&most.1) == Ordering::Less
            && items.iter().all(|(_, quantity)| quantity.compares(&least.1))
        {
            return format!("(Largest: {}. Smallest: {}.)", most.0, least.0);
        }
    }
    String::new()
}

/// A name and a number with a unit: "Peru 1,529 km". What stands before the name's capital says what is listed.
fn item(text: &str) -> Option<(&str, Quantity)> {
    let begin = text.find(char::is_uppercase)?;
    let number = text
        .find(|c: char| c.is_ascii_digit())
        .filter(|&number| number > begin)?;
    let quantity = Quantity::parse(&text[number..]).filter(|quantity| !quantity.is_year && quantity.has_unit())?;
    Some((text[begin..number].strip_suffix(' ')?, quantity))
}

/// Without what only tells namesakes apart: "Jean Boyer" of "Jean Boyer (director)".
pub fn name(text: &str) -> &str {
    text.split(" (").next().unwrap_or(text)
}

/// A name as answers are compared.
pub fn bare(text: &str) -> String {
    normalise(name(text))
}

impl std::fmt::Display for Subject {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match &self.led_by {
            Some(led_by) => write!(f, "{} ({led_by})", self.name),
            None => write!(f, "{}", self.name),
        }
    }
}

/// The queries without the words that all begin with and all end with. A capital begins a name, which stays whole:
/// "Saint Lucia" beside "Saint Vincent"; but a first word may be "What" or "Which".
fn apart(queries: &[&str]) -> Vec<String> {
    let queries: Vec<Vec<&str>> = queries
        .iter()
        .map(|query| query.trim_end_matches('?').split_whitespace().collect())
        .collect();
    let shortest = queries.iter().map(Vec::len).min().unwrap_or(0);
    let plain = |word: &str| word.starts_with(char::is_lowercase);
    let asks = |word: &str| ["What", "Which", "When", "Where", "Who", "How"].contains(&word);
    let begin = (0..shortest.saturating_sub(1))
        .take_while(|&idx| {
            let word = queries[0][idx];
            (plain(word) || idx == 0 && asks(word)) && queries.iter().all(|query| query[idx] == word)
        })
        .count();
    let last = |query: &[&'_ str], idx: usize| query[query.len() - 1 - idx].to_owned();
    let end = (0..shortest.saturating_sub(begin + 1))
        .take_while(|&idx| {
            let word = last(&queries[0], idx);
            plain(&word) && queries.iter().all(|query| last(query, idx) == word)
        })
        .count();
    let name = |query: &Vec<&str>| {
        let words = query[begin..query.len() - end].join(" ");
        words.strip_prefix("the ").unwrap_or(&words).to_owned()
    };
    queries.iter().map(name).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn shown(turns: &[(&str, &str)]) -> Vec<String> {
        let line = |line: Comparison| format!("{}: {}", line.label, line.text);
        comparisons(turns).into_iter().map(line).collect()
    }

    #[test]
    fn extremes_are_named_in_the_order_they_were_asked_for() {
        let turns = [
            ("Which is the country whose capital is Bamako?", "Mali"),
            ("Which is the country with the internet code .mt?", "Malta"),
            ("What is the total area of Mali?", "1,240,192 sq km"),
            ("What is the total area of Malta?", "316 sq km"),
        ];
        let about = ["whose capital is Bamako", "with the internet code .mt"];
        let [mali, malta] = [format!("Mali ({})", about[0]), format!("Malta ({})", about[1])];
        assert_eq!(
            shown(&turns),
            [format!("Largest: {mali}"), format!("Smallest: {malta}")]
        );
        assert_eq!(shown(&turns[..3]), Vec::<String>::new());
        let direct = [
            ("What is the population of Saint Lucia?", "163,922"),
            ("What is the population of Saint Vincent and the Grenadines?", "102,627"),
            ("What is the population of the Netherlands?", "16,947,904"),
        ];
        assert_eq!(
            shown(&direct),
            ["Smallest: Saint Vincent and the Grenadines", "Largest: Netherlands"]
        );
    }

    #[test]
    fn films_stand_beside_their_directors() {
        let turns = [
            ("Sitting Target director", "Douglas Hickox"),
            ("Man Alive (1945 film) director", "Ray Enright"),
            ("Douglas Hickox date of death", "25 July 1988"),
            ("Ray Enright (director) date of death", "April 3, 1965"),
        ];
        assert_eq!(
            shown(&turns),
            [
                "Latest: Douglas Hickox (Sitting Target)",
                "Earliest: Ray Enright (director) (Man Alive (1945 film))"
            ]
        );
    }

    #[test]
    fn lists_with_numbers_name_their_extremes() {
        let borders = "Borders of Ecuador.\nLand boundaries: total 2,237 km; border countries Colombia 708 km, Republic \
                       of the Congo 1,529 km, Peru 99.5 km.\nElevation extremes: lowest point Ocean 0 m";
        let said = "(Largest: Republic of the Congo. Smallest: Peru.)";
        assert_eq!(extremes_of_list(borders), said);
        for text in [
            "",
            "Mali 7 km.",
            "Mali 7 km, Chad 8 m",
            "Mali 7, Chad 8",
            "Mali 7 km, Chad 7 km",
            "born in May 1953, died in June 1960",
            "Mali 7 km, and so on",
        ] {
            assert_eq!(extremes_of_list(text), "", "{text}");
        }
    }

    #[test]
    fn what_is_found_twice_is_said_once() {
        let turns = [
            ("country of A", "Iran"),
            ("country of B", "the Iran"),
            ("country of C", "Iran"),
            ("country of A", "Iran"),
        ];
        assert_eq!(shown(&turns), ["Same: the Iran"]);
        let turns = [
            ("Which is the country?", "Niger"),
            ("Which countries border Chad?", "Cameroon, Libya, Niger"),
            ("Which countries border Algeria?", "Libya, Mali, Niger"),
        ];
        assert_eq!(shown(&turns), ["Same: Libya, Niger"]);
        assert!(shown(&[("born A", "1953"), ("born B", "1953")]).is_empty());
        assert!(shown(&[("A", ""), ("B", ""), ("", "x"), ("?", "y")]).is_empty());
    }
}
