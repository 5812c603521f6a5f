//! Reads one record as passages: a chunk, or the paragraphs that come with a question.

use gym::Passage;
use serde_json::Value;

use crate::question::{kind_of, pairs, present, scalar_field};

/// Reads a record; `Err` names the field and what to change.
///
/// Paragraphs of a question get the id `{question id}#{n}`, since publishers give them none.
pub(crate) fn read(record: &Value, fallback_id: Option<String>) -> Result<Vec<Passage>, String> {
    let id = scalar_field(record, &["id", "_id", "docid"])?.or(fallback_id);
    let id = id.ok_or("no field `id` (or `_id`, `docid`): give each passage one")?;
    if let Some(context) = present(record, "context") {
        let pooled = pairs(context, "title", "sentences", "context")?;
        let paragraph = |(n, (title, sentences)): (usize, (&Value, &Value))| {
            let title = title.as_str().ok_or("a title in `context` is not text")?;
            Ok(Passage {
                id: format!("{id}#{n}"),
                title: title.trim().to_owned(),
                text: join(sentences)?,
            })
        };
        return pooled.into_iter().enumerate().map(paragraph).collect();
    }
    if let Some(paragraphs) = present(record, "paragraphs") {
        let paragraphs = paragraphs.as_array().ok_or("field `paragraphs` is not a list")?;
        let paragraph = |(n, item): (usize, &Value)| {
            let title = scalar_field(item, &["title"])?.ok_or("a paragraph has no `title`")?;
            let text = scalar_field(item, &["paragraph_text", "text"])?;
            let text = text.ok_or("a paragraph has no `paragraph_text`")?;
            Ok(Passage {
                id: format!("{id}#{n}"),
                title,
                text,
            })
        };
        return paragraphs.iter().enumerate().map(paragraph).collect();
    }
    let title = match present(record, "title") {
        None => None,
        Some(Value::String(title)) => Some(title.trim().to_owned()),
        Some(other) => return Err(format!("field `title` is {}, not text", kind_of(other))),
    };
    if let Some(text) = scalar_field(record, &["text", "content"])? {
        return Ok(vec![Passage {
            id,
            title: title.unwrap_or_default(),
            text,
        }]);
    }
    let contents = scalar_field(record, &["contents"])?
        .ok_or("no field `text` (or `contents`, `content`): give the passage's text")?;
    // FlashRAG: the title is the first line, in quotes.
    let (title, text) = match (title, contents.split_once('\n')) {
        (Some(title), _) => (title, contents),
        (None, Some((first, rest))) if !rest.trim().is_empty() => {
            (first.trim().trim_matches('"').to_owned(), rest.trim().to_owned())
        }
        (None, _) => (String::new(), contents),
    };
    Ok(vec![Passage { id, title, text }])
}

/// HotpotQA's sentences carry their leading space; 2Wiki's do not.
fn join(sentences: &Value) -> Result<String, String> {
    let wrong = "the sentences of a paragraph in `context` are not a list of text";
    let mut text = String::new();
    for sentence in sentences.as_array().ok_or(wrong)? {
        let sentence = sentence.as_str().ok_or(wrong)?;
        if !text.is_empty() && !text.ends_with(char::is_whitespace) && !sentence.starts_with(char::is_whitespace) {
            text.push(' ');
        }
        text.push_str(sentence);
    }
    Ok(text.trim().to_owned())
}
