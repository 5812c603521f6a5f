//! The bundled almanac, read once.

use std::io::Read;
use std::sync::OnceLock;

use serde::Deserialize;
use serde_json::Value;

static PACKED: &[u8] = include_bytes!("../../../../assets/world/factbook.jsonl.gz");

/// A country, a territory, an ocean, or the world.
#[derive(Debug, Deserialize)]
pub(super) struct Place {
    pub name: String,
    /// Section, then field, then text or parts (whose own text has the key "").
    pub profile: Value,
}

pub(super) struct World {
    pub places: Vec<Place>,
}

pub(super) fn world() -> &'static World {
    static WORLD: OnceLock<World> = OnceLock::new();
    WORLD.get_or_init(|| {
        let mut text = String::new();
        flate2::read::GzDecoder::new(PACKED)
            .read_to_string(&mut text)
            .expect("the bundled almanac is checked by a test");
        let read = |line| serde_json::from_str(line).expect("the bundled almanac is checked by a test");
        World {
            places: text.lines().map(read).collect(),
        }
    })
}

impl Place {
    /// A field's own text.
    pub fn text(&self, section: &str, field: &str) -> Option<&str> {
        own_text(self.profile.get(section)?.get(field)?)
    }

    /// The text of a part of a field.
    pub fn part(&self, section: &str, field: &str, part: &str) -> Option<&str> {
        own_text(self.profile.get(section)?.get(field)?.get(part)?)
    }

    /// `austria`, `cote-d-ivoire`.
    pub fn slug(&self) -> String {
        let word = |c: char| {
            if c.is_ascii_alphanumeric() {
                c.to_ascii_lowercase()
            } else {
                ' '
            }
        };
        let spaced: String = self.name.chars().map(word).collect();
        spaced.split_whitespace().collect::<Vec<_>>().join("-")
    }

    /// The name inside a sentence: "the Gambia", "Austria".
    pub fn in_sentence(&self) -> String {
        let name = &self.name;
        if let Some(rest) = name.strip_prefix("The ") {
            return format!("the {rest}");
        }
        let first = [
            "United ",
            "Republic ",
            "Democratic ",
            "Dominican ",
            "Czech ",
            "Central African",
            "Holy ",
            "Federated ",
        ];
        let last = [
            "Islands",
            "Philippines",
            "Netherlands",
            "Maldives",
            "Seychelles",
            "Comoros",
        ];
        let article = first.iter().any(|f| name.starts_with(f)) || last.iter().any(|l| name.ends_with(l));
        if article { format!("the {name}") } else { name.clone() }
    }
}

fn own_text(value: &Value) -> Option<&str> {
    value.as_str().or_else(|| value.get("")?.as_str())
}
