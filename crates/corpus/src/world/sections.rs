//! Writes a place's profile as passages: one per group of fields, short enough to retrieve.

use gym::Passage;
use serde_json::Value;

use super::place::Place;

const FIELD_WORDS: usize = 70;
const PASSAGE_WORDS: usize = 160;

/// A passage of every place: its name, and the (section, field)s it tells of, in order.
struct Group {
    name: &'static str,
    fields: &'static [(&'static str, &'static str)],
}

const PEOPLE: &str = "People and Society";

#[rustfmt::skip]
const GROUPS: &[Group] = &[
    Group { name: "Background", fields: &[("Introduction", "Background")] },
    Group { name: "Geography", fields: &[("Geography", "Location"), ("Geography", "Area"), ("Geography", "Coastline"), ("Geography", "Geographic coordinates"), ("Geography", "Climate"), ("Geography", "Terrain")] },
    Group { name: "Borders and elevation", fields: &[("Geography", "Land boundaries"), ("Geography", "Elevation extremes"), ("Geography", "Geography - note")] },
    Group { name: "Resources and environment", fields: &[("Geography", "Natural resources"), ("Geography", "Natural hazards"), ("Geography", "Environment - current issues")] },
    Group { name: "Population", fields: &[(PEOPLE, "Population"), (PEOPLE, "Nationality"), (PEOPLE, "Languages"), (PEOPLE, "Religions"), (PEOPLE, "Ethnic groups")] },
    Group { name: "Demographics", fields: &[(PEOPLE, "Life expectancy at birth"), (PEOPLE, "Median age"), (PEOPLE, "Population growth rate"), (PEOPLE, "Birth rate"), (PEOPLE, "Death rate"), (PEOPLE, "Total fertility rate"), (PEOPLE, "Urbanization"), (PEOPLE, "Major urban areas - population")] },
    Group { name: "Government", fields: &[("Government", "Country name"), ("Government", "Dependency status"), ("Government", "Capital"), ("Government", "Government type"), ("Government", "Administrative divisions"), ("Government", "Legal system")] },
    Group { name: "Independence and symbols", fields: &[("Government", "Independence"), ("Government", "National holiday"), ("Government", "National symbol(s)"), ("Government", "National anthem"), ("Government", "Flag description")] },
    Group { name: "Leaders", fields: &[("Government", "Executive branch"), ("Government", "Legislative branch"), ("Government", "Suffrage")] },
    Group { name: "Economic overview", fields: &[("Economy", "Economy - overview")] },
    Group { name: "Currency and economy", fields: &[("Economy", "GDP - per capita (PPP)"), ("Economy", "GDP (purchasing power parity)"), ("Economy", "Exchange rates"), ("Economy", "Exports - partners"), ("Economy", "Imports - partners"), ("Economy", "Agriculture - products"), ("Economy", "Industries"), ("Economy", "Unemployment rate")] },
    Group { name: "Energy", fields: &[("Energy", "Electricity - production"), ("Energy", "Electricity - consumption"), ("Energy", "Crude oil - production"), ("Energy", "Natural gas - production"), ("Energy", "Electricity - from hydroelectric plants")] },
    Group { name: "Communications", fields: &[("Communications", "Internet country code"), ("Communications", "Internet users"), ("Communications", "Telephones - mobile cellular"), ("Communications", "Broadcast media")] },
    Group { name: "Transport", fields: &[("Transportation", "Airports"), ("Transportation", "Railways"), ("Transportation", "Roadways"), ("Transportation", "Waterways"), ("Transportation", "Ports and terminals")] },
    Group { name: "Disputes", fields: &[("Transnational Issues", "Disputes - international")] },
];

/// `Austria: Government`.
pub(super) fn title(place: &Place, group: &str) -> String {
    format!("{}: {group}", place.name)
}

/// A place's passages. A group that is too long has a second passage of the same title.
pub(super) fn passages(place: &Place) -> Vec<Passage> {
    let mut passages = Vec::new();
    let slug = place.slug();
    for group in GROUPS {
        let heading = format!("{} of {}.", group.name, place.in_sentence());
        let mut chunks = vec![heading.clone()];
        for (section, field) in group.fields {
            let Some(value) = place.profile.get(section).and_then(|s| s.get(field)) else {
                continue;
            };
            let label = match *field {
                // The only field that names the currency does not call it so.
                "Exchange rates" => "Currency and exchange rates".to_owned(),
                field => field.replace(" - ", ", "),
            };
            let mut value = flatten(value);
            if *field == "Major urban areas - population" {
                // That a city is the capital stands in one passage only, so that a question needs it.
                value = value.replace(" (capital)", "");
            }
            let sentence = shorten(&format!("{label}: {}", value.trim_end_matches('.')));
            let words = |s: &str| s.split_whitespace().count();
            let current = chunks.last_mut().expect("starts with one");
            if words(current) + words(&sentence) > PASSAGE_WORDS {
                chunks.push(format!("{heading}\n{sentence}"));
            } else {
                current.push('\n');
                current.push_str(&sentence);
            }
        }
        chunks.retain(|chunk| *chunk != heading);
        for (n, text) in chunks.into_iter().enumerate() {
            let group_slug = group.name.to_lowercase().replace(' ', "-");
            let id = if n == 0 {
                format!("{slug}/{group_slug}")
            } else {
                format!("{slug}/{group_slug}-{}", n + 1)
            };
            passages.push(Passage {
                id,
                title: title(place, group.name),
                text,
            });
        }
    }
    passages
}

fn flatten(value: &Value) -> String {
    let own = |text: &str| text.replace(" ++ ", "; ").replace("++ ", "");
    match value {
        Value::String(text) => own(text),
        Value::Object(parts) => {
            let part = |(key, part): (&String, &Value)| {
                let text = flatten(part);
                // A long list must not push the other parts out of the passage.
                let text = text.split_once("; note").map_or(text.as_str(), |(before, _)| before);
                if key.is_empty() || key == "name" {
                    text.to_owned()
                } else {
                    format!("{key} {text}")
                }
            };
            parts.iter().map(part).collect::<Vec<_>>().join("; ")
        }
        _ => String::new(),
    }
}

/// At most `FIELD_WORDS` words (background and overview: a passage), ended at a clause.
fn shorten(sentence: &str) -> String {
    let limit = match sentence.split(':').next() {
        Some("Background" | "Economy, overview") => PASSAGE_WORDS - 10,
        _ => FIELD_WORDS,
    };
    let words: Vec<&str> = sentence.split_whitespace().collect();
    if words.len() <= limit {
        return format!("{}.", words.join(" "));
    }
    let cut = &words[..limit];
    let ends = |word: &&str| word.ends_with(['.', ';', ',']);
    let end = cut
        .iter()
        .rposition(ends)
        .filter(|at| *at > limit / 2)
        .unwrap_or(limit - 1);
    format!("{}.", cut[..=end].join(" ").trim_end_matches(['.', ';', ',']))
}
