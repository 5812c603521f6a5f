//! Reads an action out of model text: labelled lines or a JSON object, as models really write them.
//!
//! Nothing is evaluated and nothing panics; what cannot be read is reported as missing, and the caller
//! keeps the raw text.

use serde_json::{Map, Value};

/// What a text says, each part if it is there.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Fields {
    pub thought: Option<String>,
    pub answer: Option<String>,
    pub query: Option<String>,
    /// The claim that the history does not support.
    pub unsupported: Option<String>,
    pub finding: Option<String>,
    /// The text says which query to ask or that there is none.
    pub query_given: bool,
    /// The answer stands before the query, so what follows it is the model talking to itself.
    pub answer_first: bool,
    /// The JSON object ends inside a string.
    pub cut: bool,
}

impl Fields {
    fn has_action(&self) -> bool {
        self.answer.is_some() || self.query_given || self.finding.is_some()
    }
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Label {
    Thought,
    Answer,
    Draft,
    Query,
    Unsupported,
    Finding,
    /// A part of the prompt: the model has gone on to write the next one.
    Prompt,
}

/// The label that a name spells, ignoring case, spaces and underscores.
fn label(name: &str) -> Option<Label> {
    let name: String = name
        .chars()
        .filter(|c| c.is_alphanumeric())
        .flat_map(char::to_lowercase)
        .collect();
    Some(match name.as_str() {
        "thought" | "thoughts" | "thinking" | "reasoning" | "rationale" | "analysis" | "stepbystepthinking" => {
            Label::Thought
        }
        "answer" | "finalanswer" | "thefinalanswer" | "finish" | "answerchoice" => Label::Answer,
        "draft" | "draftanswer" | "predictedanswer" | "provisionalanswer" | "prediction" => Label::Draft,
        "search" | "query" | "searchquery" | "nextquery" | "newquery" | "generatedquery" => Label::Query,
        "unsupported" | "unsupportedclaim" | "unverifiedclaim" => Label::Unsupported,
        "found" | "finding" => Label::Finding,
        "question" | "passages" | "lookup" | "options" | "observation" => Label::Prompt,
        _ => return None,
    })
}

/// Reads labelled lines where the text starts with one, a JSON object elsewhere, and labelled lines
/// anywhere as the last resort.
pub fn read_fields(text: &str) -> Fields {
    let starts_labelled = text
        .lines()
        .find(|line| !line.trim().is_empty())
        .is_some_and(|line| split_label(line).is_some());
    let lines = read_lines(text);
    if starts_labelled && lines.has_action() {
        return lines;
    }
    let mut json = read_json(text);
    if json.has_action() {
        if json.thought.is_none() {
            json.thought = lines.thought;
        }
        return json;
    }
    Fields { cut: json.cut, ..lines }
}

/// `Label: value` at the start of a line, with or without Markdown around the label.
fn split_label(line: &str) -> Option<(Label, &str)> {
    let line = line.trim();
    let bare = line.trim_start_matches(['*', '#', '-', '>', '_', ' ']);
    let (name, value) = bare.split_once(':')?;
    if name.len() > 40 || name.contains(['"', '\'', '{']) {
        return None;
    }
    let label = label(name)?;
    let value = if bare.len() < line.len() || name.ends_with('*') {
        value.trim_start().trim_start_matches(['*', '_'])
    } else {
        value
    };
    Some((label, value.trim()))
}

fn read_lines(text: &str) -> Fields {
    let mut fields = Fields::default();
    let mut lines = text.lines().peekable();
    let mut in_thought = false;
    while let Some(line) = lines.next() {
        let Some((label, mut value)) = split_label(line) else {
            if in_thought && let Some(thought) = &mut fields.thought {
                thought.push('\n');
                thought.push_str(line.trim_end());
            }
            continue;
        };
        in_thought = label == Label::Thought && fields.thought.is_none();
        if value.is_empty() && label != Label::Thought {
            // A heading with its value on the next line.
            while lines.next_if(|next| next.trim().is_empty()).is_some() {}
            if let Some(next) =
                lines.next_if(|next| split_label(next).is_none() && !next.trim_start().starts_with("```"))
            {
                value = next.trim();
            }
        }
        let given = (!value.is_empty()).then(|| value.to_owned());
        match label {
            Label::Thought if fields.thought.is_none() => fields.thought = Some(value.to_owned()),
            Label::Answer | Label::Draft if fields.answer.is_none() => {
                let answer = given.filter(|text| label == Label::Answer || !is_nothing(text));
                fields.answer_first = answer.is_some() && label == Label::Answer && !fields.query_given;
                fields.answer = answer;
            }
            Label::Query if !fields.query_given && given.is_some() => {
                fields.query_given = true;
                fields.query = given.filter(|text| !is_no_query(text));
            }
            Label::Unsupported if fields.unsupported.is_none() => {
                fields.unsupported = given.filter(|text| !is_nothing(text));
            }
            Label::Finding if fields.finding.is_none() => fields.finding = given,
            Label::Prompt if fields.has_action() => break,
            _ => {}
        }
    }
    fields.thought = fields
        .thought
        .map(|text| text.trim().to_owned())
        .filter(|text| !text.is_empty());
    fields
}

/// Starts of objects tried; a text with more braces than this is noise.
const MAX_OBJECTS: usize = 32;

fn read_json(text: &str) -> Fields {
    let mut cut = false;
    for (at, _) in text.match_indices('{').take(MAX_OBJECTS) {
        let strict = serde_json::Deserializer::from_str(&text[at..])
            .into_iter::<Value>()
            .next();
        let fields = match strict {
            Some(Ok(Value::Object(object))) => object_fields(&object, 0),
            _ => {
                let mut reader = Lenient {
                    rest: &text[at..],
                    cut: false,
                };
                let object = reader.object(0);
                Fields {
                    cut: reader.cut,
                    ..object_fields(&object, 0)
                }
            }
        };
        if fields.has_action() {
            return fields;
        }
        cut = fields.cut;
        if cut {
            // What follows lies inside the string that was cut off, braces and all.
            break;
        }
    }
    Fields {
        cut,
        ..Fields::default()
    }
}

fn object_fields(object: &Map<String, Value>, depth: usize) -> Fields {
    let mut fields = Fields::default();
    for (key, value) in object {
        match (label(key), value) {
            (Some(Label::Thought), value) if fields.thought.is_none() => fields.thought = value_text(value),
            (Some(Label::Answer | Label::Draft), value) if fields.answer.is_none() => fields.answer = value_text(value),
            (Some(Label::Query), value) if fields.query.is_none() => {
                fields.query_given = true;
                fields.query = value_text(value).filter(|text| !is_no_query(text));
            }
            (Some(Label::Unsupported), value) if fields.unsupported.is_none() => {
                fields.unsupported = value_text(value).filter(|text| !is_nothing(text));
            }
            (Some(Label::Finding), value) if fields.finding.is_none() => fields.finding = value_text(value),
            (None, Value::Object(inner)) if depth < 4 => {
                let inner = object_fields(inner, depth + 1);
                fields.thought = fields.thought.or(inner.thought);
                fields.answer = fields.answer.or(inner.answer);
                fields.query = fields.query.or(inner.query);
                fields.query_given |= inner.query_given;
                fields.unsupported = fields.unsupported.or(inner.unsupported);
                fields.finding = fields.finding.or(inner.finding);
            }
            _ => {}
        }
    }
    fields
}

/// A JSON value as text: strings as they are, lists joined by commas, null and blanks as nothing.
fn value_text(value: &Value) -> Option<String> {
    let text = match value {
        Value::Null => return None,
        Value::String(text) => text.trim().to_owned(),
        Value::Array(values) => values.iter().filter_map(value_text).collect::<Vec<_>>().join(", "),
        other => other.to_string(),
    };
    (!text.is_empty()).then_some(text)
}

/// Lower-cased words without punctuation.
fn words(text: &str) -> Vec<String> {
    text.split(|c: char| !c.is_alphanumeric() && c != '\'')
        .filter(|word| !word.is_empty())
        .map(str::to_lowercase)
        .collect()
}

/// A way of writing that there is nothing to write.
pub fn is_nothing(text: &str) -> bool {
    matches!(
        words(text).join(" ").as_str(),
        "" | "none" | "null" | "n a" | "na" | "nil" | "nothing"
    )
}

/// A way of writing that no query is needed.
pub fn is_no_query(text: &str) -> bool {
    let words = words(text);
    let words: Vec<&str> = words.iter().map(String::as_str).collect();
    let noun = |word: &str| {
        matches!(
            word,
            "query"
                | "queries"
                | "search"
                | "searches"
                | "searching"
                | "question"
                | "questions"
                | "information"
                | "evidence"
        )
    };
    let end = |rest: &[&str]| {
        matches!(
            rest,
            [] | ["needed" | "required" | "necessary"] | ["is" | "are", "needed" | "required" | "necessary"]
        )
    };
    is_nothing(text)
        || match words.as_slice() {
            ["no"] | ["not", "needed" | "required" | "necessary" | "applicable"] => true,
            ["no" | "none", "needed" | "required" | "necessary"] => true,
            [
                "no",
                "further" | "more" | "additional" | "new" | "other",
                word,
                rest @ ..,
            ] if noun(word) => end(rest),
            ["no", word, rest @ ..] if noun(word) => end(rest),
            _ => false,
        }
}

/// Reads JSON as models write it: trailing commas, single and typographic quotes, Python's constants,
/// bare words, inner quotes, and ends that are missing.
struct Lenient<'a> {
    rest: &'a str,
    /// The text ended inside a string; that string is left out.
    cut: bool,
}

const MAX_DEPTH: usize = 16;

impl Lenient<'_> {
    fn peek(&self) -> Option<char> {
        self.rest.chars().next()
    }

    fn bump(&mut self) -> Option<char> {
        let c = self.peek()?;
        self.rest = &self.rest[c.len_utf8()..];
        Some(c)
    }

    fn skip(&mut self, extra: &[char]) {
        self.rest = self
            .rest
            .trim_start_matches(|c: char| c.is_whitespace() || extra.contains(&c));
    }

    /// From `{` to its `}`, the end of the text, or what cannot be a member.
    fn object(&mut self, depth: usize) -> Map<String, Value> {
        let mut object = Map::new();
        self.bump();
        loop {
            self.skip(&[',']);
            let key = match self.peek() {
                None => return object,
                Some('}') => {
                    self.bump();
                    return object;
                }
                Some(c) if closing(c).is_some() => match self.string() {
                    Some(key) => key,
                    None => return object,
                },
                Some(_) => {
                    let end = self.rest.find([':', ',', '}', '{', '\n']).unwrap_or(self.rest.len());
                    let key = self.rest[..end].trim().to_owned();
                    self.rest = &self.rest[end..];
                    key
                }
            };
            self.skip(&[]);
            if self.peek() != Some(':') {
                return object;
            }
            self.bump();
            if let Some(value) = self.value(depth) {
                object.entry(key).or_insert(value);
            }
        }
    }

    /// `None` where a string or the whole value is cut off.
    fn value(&mut self, depth: usize) -> Option<Value> {
        self.skip(&[]);
        match self.peek()? {
            '{' | '[' if depth >= MAX_DEPTH => {
                self.rest = "";
                None
            }
            '{' => Some(Value::Object(self.object(depth + 1))),
            '[' => {
                self.bump();
                let mut values = Vec::new();
                loop {
                    self.skip(&[',']);
                    match self.peek() {
                        None => return None,
                        Some(']') => {
                            self.bump();
                            return Some(Value::Array(values));
                        }
                        Some('}') => return Some(Value::Array(values)),
                        Some(_) => values.push(self.value(depth + 1)?),
                    }
                }
            }
            c if closing(c).is_some() => self.string().map(Value::String),
            _ => {
                let end = self.rest.find([',', '}', ']', '\n']);
                self.cut |= end.is_none();
                let end = end.unwrap_or(self.rest.len());
                let word = self.rest[..end].trim().to_owned();
                self.rest = &self.rest[end..];
                Some(match word.as_str() {
                    "null" | "None" | "NULL" | "none" | "Null" | "" => Value::Null,
                    "true" | "True" => Value::Bool(true),
                    "false" | "False" => Value::Bool(false),
                    _ if self.cut => return None,
                    _ => Value::String(word),
                })
            }
        }
    }

    /// A quoted string; a quote closes it only where a member or the text can end.
    fn string(&mut self) -> Option<String> {
        let closes = closing(self.bump()?)?;
        let mut text = String::new();
        while let Some(c) = self.bump() {
            if c == '\\' {
                match self.bump()? {
                    'n' => text.push('\n'),
                    't' => text.push('\t'),
                    'r' => text.push('\r'),
                    'b' | 'f' => text.push(' '),
                    'u' => text.push(self.unicode()),
                    other => text.push(other),
                }
            } else if closes.contains(&c) && self.ends_here() {
                return Some(text);
            } else {
                text.push(c);
            }
        }
        self.cut = true;
        None
    }

    fn unicode(&mut self) -> char {
        let Some(code) = self.rest.get(..4).and_then(|hex| u32::from_str_radix(hex, 16).ok()) else {
            return char::REPLACEMENT_CHARACTER;
        };
        self.rest = &self.rest[4..];
        if !(0xd800..0xdc00).contains(&code) {
            return char::from_u32(code).unwrap_or(char::REPLACEMENT_CHARACTER);
        }
        let low = self.rest.strip_prefix("\\u").and_then(|rest| rest.get(..4));
        match low.and_then(|hex| u32::from_str_radix(hex, 16).ok()) {
            Some(low) if (0xdc00..0xe000).contains(&low) => {
                self.rest = &self.rest[6..];
                char::from_u32(0x10000 + ((code - 0xd800) << 10) + (low - 0xdc00))
                    .unwrap_or(char::REPLACEMENT_CHARACTER)
            }
            _ => char::REPLACEMENT_CHARACTER,
        }
    }

    fn ends_here(&self) -> bool {
        let rest = self.rest.trim_start();
        let new_line = self.rest[..self.rest.len() - rest.len()].contains('\n');
        match rest.chars().next() {
            None | Some(',' | '}' | ']' | ':') => true,
            Some(c) => new_line && closing(c).is_some() || rest.starts_with("```"),
        }
    }
}

/// What closes a string that this opens.
fn closing(open: char) -> Option<&'static [char]> {
    match open {
        '"' => Some(&['"']),
        '\'' => Some(&['\'']),
        '“' | '”' => Some(&['”', '“', '"']),
        '‘' | '’' => Some(&['’', '\'']),
        _ => None,
    }
}
