//! What the almanac says of each country, parsed, with what identifies a country checked unique.

use std::collections::HashMap;

use super::Split;
use super::place::{Place, world};

const PEOPLE: &str = "People and Society";

/// A fact with one short value for each country.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub(super) enum Relation {
    Capital,
    HighestPoint,
    InternetCode,
    Anthem,
    Independence,
    ChiefOfState,
    HeadOfGovernment,
    Currency,
    Population,
    Area,
}

impl Relation {
    pub const ALL: [Relation; 10] = [
        Relation::Capital,
        Relation::HighestPoint,
        Relation::InternetCode,
        Relation::Anthem,
        Relation::Independence,
        Relation::ChiefOfState,
        Relation::HeadOfGovernment,
        Relation::Currency,
        Relation::Population,
        Relation::Area,
    ];

    /// The section group that tells it.
    pub fn group(self) -> &'static str {
        match self {
            Relation::Capital => "Government",
            Relation::HighestPoint => "Borders and elevation",
            Relation::InternetCode => "Communications",
            Relation::Anthem | Relation::Independence => "Independence and symbols",
            Relation::ChiefOfState | Relation::HeadOfGovernment => "Leaders",
            Relation::Currency => "Currency and economy",
            Relation::Population => "Population",
            Relation::Area => "Geography",
        }
    }

    /// Where the almanac keeps it, with its remarks.
    fn section_and_field(self) -> (&'static str, &'static str) {
        match self {
            Relation::Capital => ("Government", "Capital"),
            Relation::HighestPoint => ("Geography", "Elevation extremes"),
            Relation::InternetCode => ("Communications", "Internet country code"),
            Relation::Anthem => ("Government", "National anthem"),
            Relation::Independence => ("Government", "Independence"),
            Relation::ChiefOfState | Relation::HeadOfGovernment => ("Government", "Executive branch"),
            Relation::Currency => ("Economy", "Exchange rates"),
            Relation::Population => (PEOPLE, "Population"),
            Relation::Area => ("Geography", "Area"),
        }
    }

    /// The text that holds the value.
    fn field(self, place: &Place) -> Option<&str> {
        match self {
            Relation::Capital => place.part("Government", "Capital", "name"),
            Relation::HighestPoint => place.part("Geography", "Elevation extremes", "highest point"),
            Relation::InternetCode => place.text("Communications", "Internet country code"),
            Relation::Anthem => place.part("Government", "National anthem", "name"),
            Relation::Independence => place.text("Government", "Independence"),
            Relation::ChiefOfState => place.part("Government", "Executive branch", "chief of state"),
            Relation::HeadOfGovernment => place.part("Government", "Executive branch", "head of government"),
            Relation::Currency => place.text("Economy", "Exchange rates"),
            Relation::Population => place.text(PEOPLE, "Population"),
            Relation::Area => place.part("Geography", "Area", "total"),
        }
    }

    fn value(self, place: &Place) -> Option<String> {
        let text = self.field(place)?;
        let value = match self {
            Relation::Capital => {
                // Where the seat of government is elsewhere, "the capital" has two answers.
                if text.contains([';', ':']) || text.starts_with("none") {
                    return None;
                }
                let name = text.split(" (").next()?;
                // "Chisinau in Romanian (Kishinev in Russian)".
                name.split(" in ").next()?.to_owned()
            }
            Relation::HighestPoint => {
                let name = text
                    .split(|c: char| c.is_ascii_digit())
                    .next()?
                    .split(" (")
                    .next()?
                    .trim();
                if name.starts_with("unnamed") || name.contains([';', ',']) || name.contains(" on ") || name.len() < 3 {
                    return None;
                }
                name.to_owned()
            }
            Relation::InternetCode => {
                if text.contains([';', ',']) || !text.starts_with('.') {
                    return None;
                }
                text.split_whitespace().next()?.to_owned()
            }
            Relation::Anthem => {
                let name = text.strip_prefix('"')?.split('"').next()?;
                (text.matches('"').count() == 2).then(|| name.to_owned())?
            }
            Relation::Independence => {
                let (date, rest) = text.split_once(" (from ")?;
                let plain = !rest.contains(';') && date.split(' ').count() == 3;
                (plain && date.starts_with(|c: char| c.is_ascii_digit())).then(|| date.to_owned())?
            }
            Relation::ChiefOfState => leader(text)?,
            Relation::HeadOfGovernment => leader(text)?,
            Relation::Currency => {
                let (name, _) = text.split_once(" (")?;
                let single = text
                    .split_once(')')
                    .is_some_and(|(_, rest)| rest.starts_with(" per US dollar"));
                (single && !name.is_empty()).then(|| name.to_owned())?
            }
            Relation::Population => first_number(text)?.to_owned(),
            Relation::Area => {
                let number = first_number(text)?;
                text[number.len()..]
                    .starts_with(" sq km")
                    .then(|| format!("{number} sq km"))?
            }
        };
        let value = value.trim().to_owned();
        (!value.is_empty()).then_some(value)
    }
}

/// The one person named first, without the term: "President Heinz FISCHER".
fn leader(text: &str) -> Option<String> {
    let (name, rest) = text.split_once(" (since ")?;
    let one = rest.matches("(since ").count() == 0 && !rest.contains("note");
    (one && !name.contains([';', '(']) && name.split(' ').count() <= 7).then(|| name.to_owned())
}

fn first_number(text: &str) -> Option<&str> {
    let end = text
        .find(|c: char| !c.is_ascii_digit() && c != ',' && c != '.')
        .unwrap_or(text.len());
    let number = text[..end].trim_end_matches([',', '.']);
    let scaled = text[end..].starts_with(" million") || text[end..].starts_with(" billion");
    (!number.is_empty() && !scaled).then_some(number)
}

/// A sovereign country.
pub(super) struct Country {
    pub place: &'static Place,
    pub split: Split,
    pub values: HashMap<Relation, String>,
    /// The relations whose value no other place shares.
    pub identifies: Vec<Relation>,
    pub population: Option<f64>,
    pub area: Option<f64>,
    /// (index, km, name as the profile writes it), in the profile's order; `None` where a name or length
    /// could not be read, or the neighbour's profile disagrees.
    pub borders: Option<Vec<(usize, f64, String)>>,
}

impl Country {
    pub fn value(&self, relation: Relation) -> Option<&str> {
        self.values.get(&relation).map(String::as_str)
    }
}

pub(super) fn countries() -> Vec<Country> {
    let places = &world().places;
    let sovereign = |place: &&Place| {
        let free = |text: &str| !text.starts_with("none") && !text.to_lowercase().contains("territory of");
        place.profile["Government"].get("Dependency status").is_none()
            && place.text("Government", "Independence").is_some_and(free)
    };
    let list: Vec<&'static Place> = places.iter().filter(sovereign).collect();
    let mut shared: HashMap<(Relation, String), u32> = HashMap::new();
    let mut heights: HashMap<String, u32> = HashMap::new();
    for place in places {
        for relation in Relation::ALL {
            if let Some(value) = relation.value(place) {
                *shared.entry((relation, key(&value))).or_default() += 1;
            }
        }
        if let Some(metres) = height(place) {
            *heights.entry(metres).or_default() += 1;
        }
    }
    let mut countries: Vec<Country> = list
        .iter()
        .map(|place| {
            let mut values = HashMap::new();
            let mut identifies = Vec::new();
            for relation in Relation::ALL {
                let Some(value) = relation.value(place) else { continue };
                let number = matches!(relation, Relation::Population | Relation::Area | Relation::Currency);
                // Two spellings of one mountain have one height.
                let one_mountain = relation != Relation::HighestPoint
                    || height(place).is_some_and(|metres| heights.get(&metres) == Some(&1));
                if !number
                    && one_mountain
                    && shared.get(&(relation, key(&value))) == Some(&1)
                    && !key(&value).contains(&key(&place.name))
                    && !named_elsewhere(places, place, relation, &value)
                {
                    identifies.push(relation);
                }
                values.insert(relation, value);
            }
            let numeric = |relation| {
                let text = values
                    .get(&relation)
                    .map(|v: &String| v.trim_end_matches(" sq km").replace(',', ""));
                text.and_then(|t| t.parse::<f64>().ok()).filter(|n| *n > 0.0)
            };
            let (population, area) = (numeric(Relation::Population), numeric(Relation::Area));
            Country {
                place,
                split: split_of(&place.name),
                values,
                identifies,
                population,
                area,
                borders: None,
            }
        })
        .collect();
    let names: HashMap<&str, usize> = list.iter().enumerate().map(|(n, p)| (p.name.as_str(), n)).collect();
    let read: Vec<_> = list.iter().map(|place| borders(place, &names)).collect();
    for (n, country) in countries.iter_mut().enumerate() {
        let Some(own) = &read[n] else { continue };
        let mutual = |(other, _, _): &(usize, f64, String)| {
            read[*other]
                .as_ref()
                .is_some_and(|theirs| theirs.iter().any(|(back, _, _)| *back == n))
        };
        if own.iter().all(mutual) {
            country.borders = Some(own.clone());
        }
    }
    countries
}

/// Whether another place's field mentions the value, as what it had before or as a remark.
fn named_elsewhere(places: &[Place], own: &Place, relation: Relation, value: &str) -> bool {
    let value = value.to_lowercase();
    places.iter().filter(|place| place.name != own.name).any(|place| {
        let (section, field) = relation.section_and_field();
        let whole = place.profile.get(section).and_then(|s| s.get(field));
        whole.is_some_and(|text| text.to_string().to_lowercase().contains(&value))
    })
}

fn split_of(name: &str) -> Split {
    match super::stable_hash(name) % 10 {
        0..=1 => Split::Dev,
        2..=3 => Split::Test,
        _ => Split::Train,
    }
}

/// Letters and digits only, so that `George Town` is `Georgetown`.
pub(super) fn key(text: &str) -> String {
    text.chars()
        .filter(|c| c.is_alphanumeric())
        .flat_map(char::to_lowercase)
        .collect()
}

fn height(place: &Place) -> Option<String> {
    let text = place.part("Geography", "Elevation extremes", "highest point")?;
    let end = text.find(" m").or_else(|| text.find('m'))?;
    let digits = |c: &char| c.is_ascii_digit() || *c == ',';
    let mut number: Vec<char> = text[..end].chars().rev().take_while(digits).collect();
    number.reverse();
    (!number.is_empty()).then(|| number.into_iter().collect())
}

fn borders(place: &Place, names: &HashMap<&str, usize>) -> Option<Vec<(usize, f64, String)>> {
    let Some(text) = place.part("Geography", "Land boundaries", "border countries") else {
        return Some(Vec::new());
    };
    // Parentheses hold remarks, some with lengths and commas of their own.
    let mut depth = 0_u32;
    let mut plain = String::new();
    for c in text.chars() {
        match c {
            '(' => depth += 1,
            ')' => depth = depth.saturating_sub(1),
            c if depth == 0 => plain.push(c),
            _ => {}
        }
    }
    let mut found: Vec<(usize, f64, String)> = Vec::new();
    for item in plain.split(" km") {
        let item = item.trim_start_matches([',', ';']).trim();
        if item.is_empty() {
            continue;
        }
        let at = item.rfind(' ')?;
        let km: f64 = item[at + 1..].replace(',', "").parse().ok()?;
        let written = item[..at].trim();
        let name = match written {
            "US" => "United States",
            "UK" => "United Kingdom",
            "UAE" => "United Arab Emirates",
            "Bosnia" => "Bosnia and Herzegovina",
            "Dominican Republic" | "The Dominican Republic" => "Dominican Republic",
            "Gambia" => "The Gambia",
            "Vatican City" | "Holy See" => "Holy See",
            other => other,
        };
        let other = *names.get(name)?;
        if found.iter().any(|(seen, _, _)| *seen == other) {
            return None;
        }
        found.push((other, km, written.to_owned()));
    }
    Some(found)
}
