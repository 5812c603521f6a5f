//! Reads a Python literal (`{'A': "it's", 'B': None}`) as JSON. Evaluates nothing.

use std::iter::Peekable;
use std::str::Chars;

use serde_json::{Map, Value};

const MAX_DEPTH: u32 = 32;

/// Parses a dict, list, tuple, string, number, `True`, `False` or `None`; `Err` says what is wrong.
pub(crate) fn parse(text: &str) -> Result<Value, String> {
    let mut chars = text.trim().chars().peekable();
    let value = value(&mut chars, 0)?;
    space(&mut chars);
    match chars.next() {
        None => Ok(value),
        Some(c) => Err(format!("`{c}` after the end of the value")),
    }
}

type Input<'a> = Peekable<Chars<'a>>;

fn value(chars: &mut Input<'_>, depth: u32) -> Result<Value, String> {
    if depth > MAX_DEPTH {
        return Err("nested too deeply".to_owned());
    }
    space(chars);
    match chars.peek().copied() {
        Some('{') => dict(chars, depth),
        Some('[') => list(chars, ']', depth),
        Some('(') => list(chars, ')', depth),
        Some(quote @ ('\'' | '"')) => string(chars, quote).map(Value::String),
        Some(_) => word(chars),
        None => Err("the value is cut off".to_owned()),
    }
}

fn dict(chars: &mut Input<'_>, depth: u32) -> Result<Value, String> {
    chars.next();
    let mut map = Map::new();
    loop {
        space(chars);
        if chars.next_if_eq(&'}').is_some() {
            return Ok(Value::Object(map));
        }
        let key = match value(chars, depth + 1)? {
            Value::String(key) => key,
            Value::Number(key) => key.to_string(),
            _ => return Err("a key is neither a string nor a number".to_owned()),
        };
        space(chars);
        if chars.next_if_eq(&':').is_none() {
            return Err(format!("no `:` after the key '{key}'"));
        }
        let item = value(chars, depth + 1)?;
        if map.insert(key.clone(), item).is_some() {
            return Err(format!("the key '{key}' occurs twice"));
        }
        separator(chars, '}')?;
    }
}

fn list(chars: &mut Input<'_>, close: char, depth: u32) -> Result<Value, String> {
    chars.next();
    let mut items = Vec::new();
    loop {
        space(chars);
        if chars.next_if_eq(&close).is_some() {
            return Ok(Value::Array(items));
        }
        items.push(value(chars, depth + 1)?);
        separator(chars, close)?;
    }
}

fn separator(chars: &mut Input<'_>, close: char) -> Result<(), String> {
    space(chars);
    match chars.peek() {
        Some(',') => {
            chars.next();
            Ok(())
        }
        Some(c) if *c == close => Ok(()),
        Some(c) => Err(format!("`{c}` where `,` or `{close}` belongs")),
        None => Err(format!("no closing `{close}`")),
    }
}

fn string(chars: &mut Input<'_>, quote: char) -> Result<String, String> {
    chars.next();
    let mut out = String::new();
    while let Some(c) = chars.next() {
        match c {
            c if c == quote => return Ok(out),
            '\\' => escape(chars, &mut out)?,
            c => out.push(c),
        }
    }
    Err("a string is not closed".to_owned())
}

fn escape(chars: &mut Input<'_>, out: &mut String) -> Result<(), String> {
    let digits = match chars.next() {
        Some('n') => return push(out, '\n'),
        Some('t') => return push(out, '\t'),
        Some('r') => return push(out, '\r'),
        Some('\n') => return Ok(()),
        Some(c @ ('\\' | '\'' | '"')) => return push(out, c),
        Some('x') => 2,
        Some('u') => 4,
        Some('U') => 8,
        // Python keeps the backslash of an escape it does not know.
        Some(c) => {
            out.push('\\');
            return push(out, c);
        }
        None => return Err("a string is not closed".to_owned()),
    };
    let mut code = 0u32;
    for _ in 0..digits {
        let digit = chars.next().and_then(|c| c.to_digit(16)).ok_or("a cut-off escape")?;
        code = code.wrapping_mul(16).wrapping_add(digit);
    }
    push(out, char::from_u32(code).ok_or("an escape that is no character")?)
}

fn push(out: &mut String, c: char) -> Result<(), String> {
    out.push(c);
    Ok(())
}

fn word(chars: &mut Input<'_>) -> Result<Value, String> {
    let mut word = String::new();
    while let Some(c) = chars.next_if(|c| c.is_alphanumeric() || "+-._".contains(*c)) {
        word.push(c);
    }
    match word.as_str() {
        "True" => Ok(Value::Bool(true)),
        "False" => Ok(Value::Bool(false)),
        "None" | "nan" => Ok(Value::Null),
        _ => serde_json::from_str::<serde_json::Number>(&word)
            .map(Value::Number)
            .map_err(|_| format!("`{word}` is no Python literal")),
    }
}

fn space(chars: &mut Input<'_>) {
    while chars.next_if(|c| c.is_whitespace()).is_some() {}
}

#[cfg(test)]
mod tests {
    use super::parse;
    use serde_json::json;

    #[test]
    fn reads_what_python_prints_and_refuses_the_rest() {
        let read = parse(r#"{'A': "it's", 'B': 'x\'\u00e9\n', 1: [1, -2.5, None], 'C': (True,)}"#);
        assert_eq!(
            read,
            Ok(json!({"A": "it's", "B": "x'é\n", "1": [1, -2.5, null], "C": [true]}))
        );
        for bad in [
            "",
            "{",
            "{'A'}",
            "{'A': 1",
            "__import__('os')",
            "'a' 'b'",
            "{'A':1,'A':2}",
            "['a",
        ] {
            assert!(parse(bad).is_err(), "{bad}");
        }
        assert!(parse(&"[".repeat(100_000)).is_err());
    }
}
