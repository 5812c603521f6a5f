//! What a server's reply holds: choices with their text and tokens, and what they cost.

use gym::{FinishReason, Sample, Usage};
use serde_json::Value;

use super::http::Fault;
use crate::stream::TextStream;

/// One choice, as it grows.
struct Choice {
    stream: TextStream,
    /// A line feed that ends the text so far, held back while it may be the grammar's last one.
    line_feed: bool,
    token_ids: Vec<u32>,
    token_logprobs: Vec<f32>,
    finish: Option<FinishReason>,
}

/// The choices of one request, from a whole reply or from the events of a stream.
pub struct Choices {
    choices: Vec<Choice>,
    wanted: usize,
    stops: Vec<String>,
    constrained: bool,
    usages: Vec<Usage>,
}

impl Choices {
    /// At most `wanted` choices are taken. `constrained` drops the line feed that ends a grammar's last line.
    pub fn new(wanted: usize, stops: &[String], constrained: bool) -> Choices {
        Choices {
            choices: Vec::new(),
            wanted,
            stops: stops.to_vec(),
            constrained,
            usages: Vec::new(),
        }
    }

    /// Takes a reply or an event. `on_text` hears the text so far of each choice that it lengthens.
    pub fn take(
        &mut self,
        reply: &Value,
        on_text: &mut dyn FnMut(usize, &str) -> Result<(), Fault>,
    ) -> Result<(), Fault> {
        self.usages.extend(usage(reply));
        for part in reply.get("choices").and_then(Value::as_array).into_iter().flatten() {
            let idx = part.get("index").and_then(Value::as_u64).unwrap_or(0) as usize;
            if idx >= self.wanted {
                continue;
            }
            while self.choices.len() <= idx {
                self.choices.push(Choice {
                    stream: TextStream::new(&self.stops),
                    line_feed: false,
                    token_ids: Vec::new(),
                    token_logprobs: Vec::new(),
                    finish: None,
                });
            }
            let choice = &mut self.choices[idx];
            if choice.finish.is_some() {
                continue;
            }
            choice.add_tokens(part.get("logprobs"));
            choice.add_text(text(part), self.constrained);
            if choice.stream.stopped {
                choice.finish = Some(FinishReason::Stop);
            } else if let Some(reason) = part.get("finish_reason").and_then(Value::as_str) {
                choice.finish = Some(match reason {
                    "length" => FinishReason::Length,
                    "abort" | "error" => return Err(Fault::passing("the server broke a choice off")),
                    _ => FinishReason::Stop,
                });
                choice.stream.finish();
            }
            on_text(idx, &choice.stream.text)?;
        }
        Ok(())
    }

    /// One sample or more. A choice without its end means that the reply was cut.
    pub fn finish(self) -> Result<(Vec<Sample>, Usage), Fault> {
        let usage = self.usage();
        if self.choices.is_empty() {
            return Err(Fault::passing("the reply holds no choice"));
        }
        let sample = |choice: Choice| {
            let finish = choice
                .finish
                .ok_or_else(|| Fault::passing("the reply broke off before its end"))?;
            // Ids are all there or of no use.
            let whole = choice.token_ids.len() == choice.token_logprobs.len();
            Ok(Sample {
                text: choice.stream.text,
                token_ids: if whole { choice.token_ids } else { Vec::new() },
                token_logprobs: choice.token_logprobs,
                finish,
            })
        };
        Ok((self.choices.into_iter().map(sample).collect::<Result<_, _>>()?, usage))
    }

    /// llama.cpp reports each choice of a stream apart, others all at once, some again with every event.
    fn usage(&self) -> Usage {
        let counted: usize = self.choices.iter().map(|choice| choice.token_logprobs.len()).sum();
        let reported = self.usages.iter().map(|usage| usage.generated);
        let reported = match self.usages.len() <= self.choices.len() {
            true => reported.sum(),
            false => reported.max().unwrap_or(0),
        };
        Usage {
            prompt: self.usages.iter().map(|usage| usage.prompt).max().unwrap_or(0),
            cached: self.usages.iter().map(|usage| usage.cached).min().unwrap_or(0),
            generated: if counted > 0 { counted as u32 } else { reported },
        }
    }
}

impl Choice {
    fn add_text(&mut self, text: &str, constrained: bool) {
        if text.is_empty() {
            return;
        }
        if std::mem::take(&mut self.line_feed) {
            self.stream.push(b"\n");
        }
        let text = match text.strip_suffix('\n') {
            Some(rest) if constrained => {
                self.line_feed = true;
                rest
            }
            _ => text,
        };
        self.stream.push(text.as_bytes());
    }

    /// Chat style, `{"content": [{"logprob", "id"?}]}`, or that of completions, `{"token_logprobs": […]}`.
    fn add_tokens(&mut self, logprobs: Option<&Value>) {
        let list = |name: &str| logprobs.and_then(|logprobs| logprobs.get(name)?.as_array());
        for token in list("content").into_iter().flatten() {
            self.token_logprobs.extend(
                token
                    .get("logprob")
                    .and_then(Value::as_f64)
                    .map(|logprob| logprob as f32),
            );
            self.token_ids
                .extend(token.get("id").and_then(Value::as_u64).map(|id| id as u32));
        }
        let logprobs = list("token_logprobs").into_iter().flatten();
        self.token_logprobs
            .extend(logprobs.filter_map(Value::as_f64).map(|logprob| logprob as f32));
    }
}

fn text(part: &Value) -> &str {
    let of = |name: &str| part.get(name)?.get("content")?.as_str();
    let text = of("delta")
        .or_else(|| of("message"))
        .or_else(|| part.get("text")?.as_str());
    text.unwrap_or_default()
}

fn usage(reply: &Value) -> Option<Usage> {
    let usage = reply.get("usage").filter(|usage| usage.is_object())?;
    let count = |value: Option<&Value>| value.and_then(Value::as_u64).unwrap_or(0) as u32;
    Some(Usage {
        prompt: count(usage.get("prompt_tokens")),
        cached: count(
            usage
                .get("prompt_tokens_details")
                .and_then(|details| details.get("cached_tokens")),
        ),
        generated: count(usage.get("completion_tokens")),
    })
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    fn read(wanted: usize, constrained: bool, replies: &[Value]) -> Result<(Vec<Sample>, Usage, String), Fault> {
        let mut choices = Choices::new(wanted, &["STOP".into()], constrained);
        let mut heard = String::new();
        for reply in replies {
            choices.take(reply, &mut |idx, text| {
                heard = format!("{idx}:{text}");
                Ok(())
            })?;
        }
        let (samples, usage) = choices.finish()?;
        Ok((samples, usage, heard))
    }

    #[test]
    fn whole_replies_and_streams_say_the_same() {
        let whole = json!({"choices": [{"index": 0, "finish_reason": "length", "message": {"content": "a b"},
            "logprobs": {"content": [{"id": 5, "logprob": -1.0}, {"id": 6, "logprob": -2.5}]}}],
            "usage": {"prompt_tokens": 9, "completion_tokens": 2, "prompt_tokens_details": {"cached_tokens": 4}}});
        let parts = [
            json!({"choices": [{"index": 0, "finish_reason": null, "delta": {"role": "assistant", "content": null}}]}),
            json!({"choices": [{"index": 0, "delta": {"content": "a"}, "logprobs": {"content": [{"id": 5, "logprob": -1.0}]}}]}),
            json!({"choices": [{"index": 0, "delta": {"content": " b"}, "logprobs": {"content": [{"id": 6, "logprob": -2.5}]}}]}),
            json!({"choices": [{"index": 0, "finish_reason": "length", "delta": {}}]}),
            json!({"choices": [], "usage": {"prompt_tokens": 9, "completion_tokens": 2, "prompt_tokens_details": {"cached_tokens": 4}}}),
        ];
        let whole = read(1, false, &[whole]).unwrap();
        assert_eq!(whole, read(1, false, &parts).unwrap());
        assert_eq!(whole.0[0].token_ids, [5, 6]);
        assert_eq!(
            whole.1,
            Usage {
                prompt: 9,
                cached: 4,
                generated: 2
            }
        );
        let cut = read(1, false, &parts[..3]).unwrap_err();
        assert!(matches!(cut, Fault::Passing { .. }), "{cut:?}");
    }

    #[test]
    fn a_stop_string_that_the_server_lets_through_ends_the_text() {
        let part = |text: &str, finish: Option<&str>| {
            json!({"choices": [{"index": 0, "text": text, "finish_reason": finish,
                                "logprobs": {"token_logprobs": [-0.5, null], "tokens": ["x", "y"]}}]})
        };
        let (samples, usage, heard) = read(
            1,
            false,
            &[part("one ST", None), part("OP two", None), part(" three", Some("stop"))],
        )
        .unwrap();
        assert_eq!(samples[0].text, "one ");
        assert_eq!(heard, "0:one ");
        assert_eq!((samples[0].token_logprobs.len(), usage.generated), (2, 2));
        assert!(samples[0].token_ids.is_empty(), "completions name no ids");
    }

    #[test]
    fn only_the_last_line_feed_of_a_grammar_is_dropped() {
        let part = |text: &str, finish: Option<&str>| json!({"choices": [{"index": 0, "delta": {"content": text}, "finish_reason": finish}]});
        let parts = [
            part("Draft: a\n", None),
            part("Search: b\n", None),
            part("", Some("stop")),
        ];
        assert_eq!(read(1, true, &parts).unwrap().0[0].text, "Draft: a\nSearch: b");
        assert_eq!(read(1, false, &parts).unwrap().0[0].text, "Draft: a\nSearch: b\n");
    }

    #[test]
    fn usage_is_the_same_however_often_it_is_told() {
        let end = |idx: u32| json!({"choices": [{"index": idx, "text": "x", "finish_reason": "stop"}]});
        let told = |generated: u32, cached: u32| {
            json!({"choices": [], "usage": {"prompt_tokens": 7, "completion_tokens": generated,
                                            "prompt_tokens_details": {"cached_tokens": cached}}})
        };
        let each = [end(0), told(3, 2), end(1), told(4, 6)];
        let once = [end(0), end(1), told(7, 2)];
        let growing = [told(1, 2), end(0), told(4, 2), end(1), told(7, 2)];
        for replies in [&each[..], &once, &growing] {
            assert_eq!(
                read(2, false, replies).unwrap().1,
                Usage {
                    prompt: 7,
                    cached: 2,
                    generated: 7
                }
            );
        }
    }
}
