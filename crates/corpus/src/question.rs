//! Reads one record as a labelled question, whatever its publisher's field names.

use gym::{AnswerOption, Gold, GoldPassage, LabelledQuestion, Question, QuestionId, SubQuestion};
use serde_json::Value;

use crate::literal;

const IDS: &[&str] = &["id", "_id", "qid", "index"];
const TEXTS: &[&str] = &["question", "query", "text"];
const ANSWERS: &[&str] = &["answer", "golden_answers", "answers"];

/// Reads a record; `Err` names the field and what to change.
///
/// `fallback_id` is used where the file gives no ids at all (a table without such a column).
/// `answer_optional`: the publisher keeps relevant passages instead of answers (BEIR).
pub(crate) fn read(
    record: &Value,
    fallback_id: Option<String>,
    answer_optional: bool,
) -> Result<LabelledQuestion, String> {
    if record.get("answerable").and_then(Value::as_bool) == Some(false) {
        return Err("field `answerable` is false: questions without an answer are left out".to_owned());
    }
    let id = match (scalar_field(record, IDS)?, fallback_id) {
        (Some(id), _) => id,
        (None, Some(id)) => id,
        (None, None) => {
            return Err("no field `id` (or `_id`, `qid`): give each question one".to_owned());
        }
    };
    let text = scalar_field(record, TEXTS)?.ok_or("no field `question` (or `query`): give the question's text")?;
    let options = match present(record, "options") {
        Some(options) => read_options(options)?,
        None => Vec::new(),
    };
    let mut answers = Vec::new();
    let metadata = record.get("metadata").unwrap_or(&Value::Null);
    for key in ANSWERS {
        push_answers(&mut answers, record.get(*key), key)?;
    }
    if answers.is_empty() {
        push_answers(&mut answers, metadata.get("answer"), "metadata.answer")?;
    }
    for key in ["answer 2", "aliases", "answer_aliases"] {
        push_answers(&mut answers, record.get(key), key)?;
    }
    if answers.is_empty() && !answer_optional {
        return Err("no field `answer` (or `golden_answers`, `answers`): give the gold answer".to_owned());
    }
    if !options.is_empty() {
        let first = answers
            .first()
            .ok_or("no field `answer`: give the label of an option")?;
        answers = vec![label_of(first, &options)?];
    }
    let gold = Gold {
        answers,
        passages: gold_passages(record)?,
        sub_questions: sub_questions(record)?,
        evidences: evidences(record)?,
    };
    let kind = optional(record, &["type", "kind"])?.or_else(|| musique_kind(record, &id));
    let split = optional(record, &["split"])?;
    let question = Question {
        id: QuestionId(id),
        text,
        options,
    };
    Ok(LabelledQuestion {
        question,
        gold,
        kind,
        split,
    })
}

/// The field, unless it is missing or null.
pub(crate) fn present<'a>(record: &'a Value, key: &str) -> Option<&'a Value> {
    record.get(key).filter(|value| !value.is_null())
}

/// The first of the fields that is present: a string that is not blank, or a number.
pub(crate) fn scalar_field(record: &Value, keys: &[&str]) -> Result<Option<String>, String> {
    for key in keys {
        let Some(value) = present(record, key) else {
            continue;
        };
        let text = scalar(value).ok_or_else(|| format!("field `{key}` is {}, not text", kind_of(value)))?;
        if text.is_empty() {
            return Err(format!("field `{key}` is blank: fill it in"));
        }
        return Ok(Some(text));
    }
    Ok(None)
}

fn optional(record: &Value, keys: &[&str]) -> Result<Option<String>, String> {
    let blank = |key: &&&str| present(record, key).is_some_and(|v| v.as_str().is_some_and(|s| s.trim().is_empty()));
    let keys: Vec<&str> = keys.iter().filter(|key| !blank(key)).copied().collect();
    scalar_field(record, &keys)
}

fn scalar(value: &Value) -> Option<String> {
    match value {
        Value::String(text) => Some(text.trim().to_owned()),
        Value::Number(number) => Some(number.to_string()),
        _ => None,
    }
}

pub(crate) fn kind_of(value: &Value) -> &'static str {
    match value {
        Value::Null => "null",
        Value::Bool(_) => "true or false",
        Value::Number(_) => "a number",
        Value::String(_) => "text",
        Value::Array(_) => "a list",
        Value::Object(_) => "an object",
    }
}

fn push_answers(answers: &mut Vec<String>, value: Option<&Value>, key: &str) -> Result<(), String> {
    let mut push = |value: &Value| {
        let text = match value {
            Value::Bool(yes) => if *yes { "yes" } else { "no" }.to_owned(),
            other => scalar(other).ok_or_else(|| format!("field `{key}` holds {}, not text", kind_of(other)))?,
        };
        if !text.is_empty() && !answers.contains(&text) {
            answers.push(text);
        }
        Ok(())
    };
    match value {
        None | Some(Value::Null) => Ok(()),
        Some(Value::Array(items)) => items.iter().try_for_each(push),
        Some(one) => push(one),
    }
}

fn read_options(value: &Value) -> Result<Vec<AnswerOption>, String> {
    let options: Vec<AnswerOption> = match value {
        Value::String(text) => {
            let parsed = serde_json::from_str(text).or_else(|_| literal::parse(text));
            let parsed = parsed.map_err(|e| format!("field `options` is no list or dict of options: {e}"))?;
            return if parsed.is_string() {
                Err("field `options` is text, not a list or an object".to_owned())
            } else {
                read_options(&parsed)
            };
        }
        Value::Object(map) => {
            let option = |(label, text): (&String, &Value)| match scalar(text) {
                Some(text) => Ok(AnswerOption {
                    label: label.trim().to_owned(),
                    text,
                }),
                None => Err(format!("option `{label}` is {}, not text", kind_of(text))),
            };
            map.iter().map(option).collect::<Result<_, String>>()?
        }
        Value::Array(items) => {
            let option = |(n, item): (usize, &Value)| {
                let text = scalar(item).ok_or_else(|| format!("option {} is {}, not text", n + 1, kind_of(item)))?;
                let own = u8::try_from(n).ok().and_then(|n| b'A'.checked_add(n));
                let label = own.filter(u8::is_ascii_uppercase).map(|c| char::from(c).to_string());
                let label = label.ok_or("field `options` has more than 26 options")?;
                let rest = text.strip_prefix(&label).and_then(|rest| {
                    rest.strip_prefix('.')
                        .or_else(|| rest.strip_prefix(')'))
                        .or_else(|| rest.strip_prefix(':'))
                });
                let text = rest.map_or(text.as_str(), str::trim).to_owned();
                Ok(AnswerOption { label, text })
            };
            items.iter().enumerate().map(option).collect::<Result<_, String>>()?
        }
        other => {
            return Err(format!(
                "field `options` is {}, not a list or an object",
                kind_of(other)
            ));
        }
    };
    for (n, option) in options.iter().enumerate() {
        if options[..n].iter().any(|earlier| earlier.label == option.label) {
            return Err(format!("two options are labelled `{}`", option.label));
        }
    }
    Ok(options)
}

fn label_of(answer: &str, options: &[AnswerOption]) -> Result<String, String> {
    let same = |a: &str, b: &str| a.trim().eq_ignore_ascii_case(b.trim());
    let lettered = |option: &&AnswerOption| {
        let rest = answer.strip_prefix(option.label.as_str());
        rest.and_then(|r| r.strip_prefix(['.', ')', ':']))
            .is_some_and(|r| same(r, &option.text))
    };
    let by_label = options.iter().find(|option| option.label == answer);
    let found = by_label
        .or_else(|| options.iter().find(|option| same(&option.text, answer)))
        .or_else(|| options.iter().find(lettered))
        .or_else(|| options.iter().find(|option| same(&option.label, answer)));
    found.map(|option| option.label.clone()).ok_or_else(|| {
        let mut short: String = answer.chars().take(60).collect();
        if short.len() < answer.len() {
            short.push('…');
        }
        format!("field `answer` is `{short}`, neither the label nor the text of an option")
    })
}

fn gold_passages(record: &Value) -> Result<Vec<GoldPassage>, String> {
    let mut passages = Vec::new();
    if let Some(gold) = present(record, "gold") {
        for item in gold.as_array().ok_or("field `gold` is not a list of {title, sent}")? {
            let title = scalar_field(item, &["title"])?.ok_or("an item of `gold` has no `title`")?;
            passages.push(GoldPassage {
                title,
                sentence: index(item.get("sent"))?,
            });
        }
        return Ok(passages);
    }
    let metadata = record.get("metadata").unwrap_or(&Value::Null);
    if let Some(facts) = present(record, "supporting_facts").or_else(|| present(metadata, "supporting_facts")) {
        for (title, sentence) in pairs(facts, "title", "sent_id", "supporting_facts")? {
            let title = scalar(title).ok_or("a title in `supporting_facts` is not text")?;
            passages.push(GoldPassage {
                title,
                sentence: index(Some(sentence))?,
            });
        }
    } else if let Some(Value::Array(paragraphs)) = record.get("paragraphs") {
        for paragraph in paragraphs {
            if paragraph.get("is_supporting").and_then(Value::as_bool) == Some(true)
                && let Some(title) = paragraph.get("title").and_then(scalar)
            {
                passages.push(GoldPassage { title, sentence: None });
            }
        }
    }
    Ok(passages)
}

fn index(value: Option<&Value>) -> Result<Option<u32>, String> {
    match value {
        None | Some(Value::Null) => Ok(None),
        Some(value) => {
            let n = value.as_u64().and_then(|n| u32::try_from(n).ok());
            n.map(Some)
                .ok_or_else(|| "a sentence index is not a whole number from 0".to_owned())
        }
    }
}

/// `[[a, b], …]`, or the column form `{first: [a, …], second: [b, …]}`.
pub(crate) fn pairs<'a>(
    value: &'a Value,
    first: &str,
    second: &str,
    field: &str,
) -> Result<Vec<(&'a Value, &'a Value)>, String> {
    let wrong = || format!("field `{field}` is neither [[{first}, {second}], …] nor {{{first}: […], {second}: […]}}");
    if let Value::Array(items) = value {
        let pair = |item: &'a Value| match item.as_array().map(Vec::as_slice) {
            Some([a, b, ..]) => Ok((a, b)),
            _ => Err(wrong()),
        };
        return items.iter().map(pair).collect();
    }
    let column = |name: &str| value.get(name).and_then(Value::as_array);
    match (column(first), column(second)) {
        (Some(a), Some(b)) if a.len() == b.len() => Ok(a.iter().zip(b).collect()),
        _ => Err(wrong()),
    }
}

fn sub_questions(record: &Value) -> Result<Vec<SubQuestion>, String> {
    let keys = ["decomposition", "question_decomposition", "qa_pairs"];
    let Some(key) = keys.iter().find(|key| present(record, key).is_some()) else {
        return Ok(Vec::new());
    };
    let items = record[*key]
        .as_array()
        .ok_or_else(|| format!("field `{key}` is not a list"))?;
    let hop = |item: &Value| {
        let missing = |name: &str| format!("a step of `{key}` has no `{name}`");
        let question = scalar_field(item, &["question"])?.ok_or_else(|| missing("question"))?;
        let answer = scalar_field(item, &["answer"])?.ok_or_else(|| missing("answer"))?;
        let title = match scalar_field(item, &["title"])? {
            Some(title) => Some(title),
            None => support_title(record, item),
        };
        Ok(SubQuestion {
            question,
            answer,
            title,
        })
    };
    items.iter().map(hop).collect()
}

/// MuSiQue: the title of the paragraph that a hop points at.
fn support_title(record: &Value, hop: &Value) -> Option<String> {
    let wanted = hop.get("paragraph_support_idx")?.as_u64()?;
    let paragraphs = record.get("paragraphs")?.as_array()?;
    let found = paragraphs
        .iter()
        .find(|p| p.get("idx").and_then(Value::as_u64) == Some(wanted))?;
    scalar(found.get("title")?)
}

fn musique_kind(record: &Value, id: &str) -> Option<String> {
    record.get("question_decomposition")?;
    id.split_once("__").map(|(kind, _)| kind.to_owned())
}

fn evidences(record: &Value) -> Result<Vec<[String; 3]>, String> {
    let Some(value) = present(record, "evidences") else {
        return Ok(Vec::new());
    };
    let wrong = || "field `evidences` is not a list of [subject, relation, object]".to_owned();
    let triple = |item: &Value| match item.as_array().map(Vec::as_slice) {
        Some([s, r, o]) => Some([scalar(s)?, scalar(r)?, scalar(o)?]),
        _ => None,
    };
    let items = value.as_array().ok_or_else(wrong)?;
    items.iter().map(|item| triple(item).ok_or_else(wrong)).collect()
}
