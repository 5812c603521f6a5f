//! A [`Grammar`] in llama.cpp's notation.

use std::fmt::Write;

use gym::Grammar;

/// What a line may hold: no control characters, no line or paragraph separators.
const CHARACTER: &str = r"[^\x00-\x1F\x7F-\x9F\u2028\u2029]";
/// The same without spaces.
const VISIBLE: &str = r"[^\x00-\x20\x7F-\xA0\u2028\u2029\u3000]";
/// Spaces that a line may begin with.
const INDENT: usize = 3;

/// The rules of a grammar. The notation counts characters, so a line's `max_bytes` bounds those; and a
/// last line may end in a line feed, which the reader drops.
pub fn rules(grammar: &Grammar) -> String {
    let mut root = String::new();
    write(grammar, true, &mut root);
    format!("root ::= {root}\ncharacter ::= {CHARACTER}\nvisible ::= {VISIBLE}\n")
}

fn write(grammar: &Grammar, last: bool, out: &mut String) {
    match grammar {
        Grammar::Literal(text) => literal(text, out),
        Grammar::Line { max_bytes } => {
            let end = if last { "?" } else { "" };
            let _ = match max_bytes.saturating_sub(1) {
                0 => write!(out, "visible \"\\n\"{end}"),
                more => write!(out, "\" \"{{0,{INDENT}}} visible character{{0,{more}}} \"\\n\"{end}"),
            };
        }
        Grammar::Sequence(items) => {
            for (idx, item) in items.iter().enumerate() {
                if idx > 0 {
                    out.push(' ');
                }
                write(item, last && idx + 1 == items.len(), out);
            }
        }
        Grammar::OneOf(items) => {
            out.push('(');
            for (idx, item) in items.iter().enumerate() {
                if idx > 0 {
                    out.push_str(" | ");
                }
                write(item, last, out);
            }
            out.push(')');
        }
    }
}

fn literal(text: &str, out: &mut String) {
    out.push('"');
    for character in text.chars() {
        match character {
            '"' | '\\' => out.extend(['\\', character]),
            '\n' => out.push_str("\\n"),
            '\r' => out.push_str("\\r"),
            '\t' => out.push_str("\\t"),
            other => out.push(other),
        }
    }
    out.push('"');
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn lines_take_their_line_feed_and_literals_are_quoted() {
        let grammar = Grammar::OneOf(vec![
            Grammar::Sequence(vec![
                Grammar::Literal("Say \"\\\"\n".into()),
                Grammar::Line { max_bytes: 160 },
                Grammar::Literal("Answer: ".into()),
                Grammar::OneOf(vec![Grammar::Literal("A".into()), Grammar::Literal("B".into())]),
            ]),
            Grammar::Line { max_bytes: 1 },
        ]);
        let first = rules(&grammar).lines().next().unwrap().to_owned();
        assert_eq!(
            first,
            r#"root ::= ("Say \"\\\"\n" " "{0,3} visible character{0,159} "\n" "Answer: " ("A" | "B") | visible "\n"?)"#
        );
    }
}
