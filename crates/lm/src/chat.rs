//! Turns messages into a model's own chat format.
//!
//! The template is rendered with placeholders where the contents go, and then split at them, so that a
//! content which spells a control token stays plain text.

use gym::{Prompt, Role};
use minijinja::syntax::SyntaxConfig;
use minijinja::{Environment, Value, context};

use crate::LmError;
use crate::tokenizer::{Piece, Tokenizer};

/// Used when a model file holds no template.
const CHATML: &str = "{% for message in messages %}<|im_start|>{{ message.role }}\n{{ message.content }}<|im_end|>\n{% endfor %}<|im_start|>assistant\n";
const PLAIN: &str = "{% for message in messages %}{{ message.role }}: {{ message.content }}\n{% endfor %}assistant:";

pub struct ChatTemplate {
    environment: Environment<'static>,
    bos: String,
    eos: String,
}

impl ChatTemplate {
    pub fn new(source: Option<&str>, tokenizer: &Tokenizer) -> Result<ChatTemplate, LmError> {
        let fallback = if tokenizer.control("<|im_start|>").is_some() {
            CHATML
        } else {
            PLAIN
        };
        let mut environment = Environment::new();
        let mut syntax = SyntaxConfig::builder();
        syntax.trim_blocks(true).lstrip_blocks(true);
        environment.set_syntax(syntax.build().map_err(LmError::Template)?);
        environment.set_unknown_method_callback(minijinja_contrib::pycompat::unknown_method_callback);
        environment.add_function(
            "raise_exception",
            |message: String| -> Result<String, minijinja::Error> {
                Err(minijinja::Error::new(minijinja::ErrorKind::InvalidOperation, message))
            },
        );
        // There is no clock here, so a template that asks for the date gets none.
        environment.add_function("strftime_now", |_format: String| String::new());
        environment
            .add_template_owned("chat", without_training_marks(source.unwrap_or(fallback)))
            .map_err(LmError::Template)?;
        let spelling = |id: Option<u32>| id.and_then(|id| tokenizer.spelling(id)).unwrap_or("").to_string();
        Ok(ChatTemplate {
            environment,
            bos: spelling(tokenizer.bos),
            eos: spelling(tokenizer.eos.or(tokenizer.end.first().copied())),
        })
    }

    /// The prompt up to and including the start of the assistant's turn.
    pub fn render(&self, prompt: &Prompt) -> Result<Vec<Piece>, LmError> {
        // A marker that no content spells.
        let mut nonce = 0u32;
        let taken = |nonce: u32| {
            let mark = format!("[[{nonce}:");
            prompt.messages.iter().any(|message| message.content.contains(&mark))
        };
        while taken(nonce) {
            nonce += 1;
        }
        let placeholder = |idx: usize| format!("[[{nonce}:{idx}]]");
        let messages: Vec<Value> = prompt
            .messages
            .iter()
            .enumerate()
            .map(|(idx, message)| context! { role => role_name(message.role), content => placeholder(idx) })
            .collect();
        let rendered = self
            .environment
            .get_template("chat")
            .and_then(|template| {
                template.render(context! {
                    messages => messages,
                    add_generation_prompt => true,
                    bos_token => &self.bos,
                    eos_token => &self.eos,
                })
            })
            .map_err(LmError::Template)?;
        let mut pieces = Vec::new();
        let mut rest = rendered.as_str();
        let mark = format!("[[{nonce}:");
        while let Some(at) = rest.find(&mark) {
            let after = &rest[at + mark.len()..];
            let close = after.find("]]");
            let idx = close.and_then(|close| after[..close].parse::<usize>().ok());
            let (Some(close), Some(message)) = (close, idx.and_then(|idx| prompt.messages.get(idx))) else {
                break;
            };
            pieces.push(Piece::Template(rest[..at].to_string()));
            pieces.push(Piece::Content(message.content.clone()));
            rest = &after[close + 2..];
        }
        pieces.push(Piece::Template(rest.to_string()));
        Ok(pieces)
    }
}

/// Statements around what a model is trained on, which change nothing of the text, as ones that are known here.
fn without_training_marks(source: &str) -> String {
    let mut parts = source.split("{%");
    let mut out = parts.next().unwrap_or_default().to_string();
    for part in parts {
        let statement = part.split("%}").next().unwrap_or_default();
        let known = match statement.trim_matches(|c: char| c == '-' || c.is_whitespace()) {
            "generation" => statement.replace("generation", "if true"),
            "endgeneration" => statement.replace("endgeneration", "endif"),
            _ => statement.to_string(),
        };
        out += "{%";
        out += &known;
        out += &part[statement.len()..];
    }
    out
}

fn role_name(role: Role) -> &'static str {
    match role {
        Role::System => "system",
        Role::User => "user",
        Role::Assistant => "assistant",
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn marks_of_training_become_statements_that_change_nothing() {
        let marked = "{% if a %}generation{%- generation -%} b {% endgeneration %}{{ '{% generation' }}{% endif %}{%";
        let plain = "{% if a %}generation{%- if true -%} b {% endif %}{{ '{% generation' }}{% endif %}{%";
        assert_eq!(without_training_marks(marked), plain);
    }
}
