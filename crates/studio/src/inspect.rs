//! A run as a log of Inspect (inspect_ai), JSON, version 2: one sample a question; a step is a span, its
//! candidates are spans inside it, their rewards intermediate scores.
//!
//! Key order matters to Inspect: its header reader stops at `stats` and `samples`.

use std::collections::BTreeMap;
use std::io::Write;

use gym::{Candidate, LabelledQuestion, Prompt, Step, Usage};
use serde_json::{Map, Value, json};
use store::{EpisodeStatus, RunStatus};

use crate::evaluate::Evaluation;
use crate::export::unwritten;
use crate::results::name_of;
use crate::view::AgentSettings;
use crate::{Result, Studio, run};

/// Inspect reads a file name's parts between underscores, so a task has none.
pub(crate) fn task(row: &store::Run) -> String {
    row.question_set.as_deref().unwrap_or("ask").replace('_', "-")
}

impl Studio {
    /// Samples are the episodes that have ended; returns their number. Scores are means over all questions asked.
    pub(crate) fn write_inspect(&self, row: &store::Run, out: &mut dyn Write) -> Result<u32> {
        let settings = run::settings_of(row)?;
        let episodes = self.store().episodes(&row.id)?;
        let ended: Vec<&store::Episode> = episodes
            .iter()
            .filter(|episode| episode.status != EpisodeStatus::Pending)
            .collect();
        let evaluation = self.evaluate(&row.id, None, None)?;
        let log = Log {
            row,
            model: format!("rag-gym/{}", settings.model),
            settings,
        };
        let header = log.header(&episodes, &evaluation).to_string();
        let open = header.strip_suffix('}').expect("an object ends with its brace");
        write!(out, "{open},\"samples\":[").map_err(unwritten)?;
        for (nth, episode) in ended.iter().enumerate() {
            let labelled = self.episode_question(row, &episode.question_id)?;
            let steps = self.store().steps(&row.id, &episode.question_id)?;
            let comma = if nth > 0 { "," } else { "" };
            write!(out, "{comma}\n{}", log.sample(episode, &labelled, &steps)).map_err(unwritten)?;
        }
        writeln!(out, "]}}").map_err(unwritten)?;
        Ok(ended.len() as u32)
    }
}

struct Log<'a> {
    row: &'a store::Run,
    settings: AgentSettings,
    /// With the provider that Inspect expects before a model's name.
    model: String,
}

impl Log<'_> {
    /// Everything but the samples.
    fn header(&self, episodes: &[store::Episode], evaluation: &Evaluation) -> Value {
        let row = self.row;
        let created = self.time();
        let ids: Vec<&str> = episodes.iter().map(|episode| episode.question_id.0.as_str()).collect();
        let finished = episodes.iter().filter(|e| e.status == EpisodeStatus::Finished).count();
        let status = match row.status {
            RunStatus::Finished => "success",
            RunStatus::Failed => "error",
            // Whether a process is at work on it, the file cannot know.
            RunStatus::Stopped | RunStatus::Running => "cancelled",
        };
        let scores: Vec<Value> = [
            ("em", evaluation.em),
            ("f1", evaluation.f1),
            ("accuracy", evaluation.accuracy),
            ("evidence_recall", evaluation.evidence_recall),
            ("answer_supported", evaluation.answer_supported),
        ]
        .into_iter()
        .filter_map(|(name, interval)| {
            let interval = interval?;
            let metric = |name: &str, value: f64| json!({"name": name, "value": value, "params": {}});
            Some(json!({"name": name, "scorer": name, "params": {}, "metrics": {
                "mean": metric("mean", interval.mean), "ci_low": metric("ci_low", interval.low),
                "ci_high": metric("ci_high", interval.high),
            }}))
        })
        .collect();
        let mut usage = Usage::default();
        episodes.iter().for_each(|episode| usage += episode.usage);
        let mut log = json!({
            "version": 2,
            "status": status,
            "eval": {
                "run_id": row.id, "created": created, "task": task(row), "task_id": row.id, "task_version": 0,
                "task_args": self.settings, "solver": self.solver(),
                "dataset": {"name": task(row), "samples": ids.len(), "sample_ids": ids, "shuffled": false},
                "model": self.model, "model_args": {}, "config": {},
                "packages": {"rag-gym-studio": row.code_version}, "metadata": {"name": row.name, "config": row.config},
            },
            "plan": {"name": "plan", "steps": [{"solver": self.solver(), "params": self.settings}], "config": {}},
            "results": {"total_samples": ids.len(), "completed_samples": finished, "scores": scores},
            "stats": {"started_at": created, "completed_at": created, "model_usage": BTreeMap::from([(&self.model, tokens(usage))])},
        });
        if let (Some(error), RunStatus::Failed) = (&row.error, row.status) {
            log["error"] = failure(error);
        }
        log
    }

    fn solver(&self) -> String {
        format!("rag-gym/{}", self.settings.agent)
    }

    /// ISO 8601 with the offset written out, as Inspect writes it.
    fn time(&self) -> String {
        self.row.created_at.replace('Z', "+00:00")
    }

    fn sample(&self, episode: &store::Episode, labelled: &LabelledQuestion, steps: &[Step]) -> Value {
        let question = &labelled.question;
        let answer = episode.answer.as_deref().unwrap_or_default();
        let mut scores = Map::new();
        for (name, value) in [
            ("em", episode.em),
            ("f1", episode.f1),
            ("accuracy", episode.accuracy),
            ("evidence_recall", episode.evidence_recall),
        ] {
            if let Some(value) = value {
                scores.insert(name.into(), json!({"value": value, "answer": answer}));
            }
        }
        let options: Vec<&str> = question.options.iter().map(|option| option.text.as_str()).collect();
        let titles: Vec<&str> = labelled
            .gold
            .passages
            .iter()
            .map(|passage| passage.title.as_str())
            .collect();
        let mut sample = json!({
            "id": question.id.0, "epoch": 1, "input": question.text,
            "choices": (!options.is_empty()).then_some(options), "target": labelled.gold.answers,
            "messages": messages(&question.text, steps),
            "output": {"model": self.model, "choices": [choice(answer.into(), &json!(null))], "completion": answer,
                       "usage": tokens(episode.usage)},
            "scores": scores,
            "metadata": {"kind": labelled.kind, "split": labelled.split, "gold_titles": titles,
                         "termination": episode.termination.as_ref().map(name_of)},
            "store": {}, "events": self.events(steps), "model_usage": {&self.model: tokens(episode.usage)},
            "total_time": episode.took_ms as f64 / 1000.0, "attachments": {},
        });
        if let Some(error) = &episode.error {
            sample["error"] = failure(error);
        }
        sample
    }

    /// In their order; the store does not keep when each happened, so all bear the run's time.
    fn events(&self, steps: &[Step]) -> Vec<Value> {
        let mut events = Vec::new();
        let mut push = |kind: &str, span: Option<&str>, rest: Value| {
            let mut event = json!({"event": kind, "timestamp": self.time(), "working_start": 0.0});
            event["span_id"] = json!(span);
            let rest = rest.as_object().cloned().unwrap_or_default();
            event.as_object_mut().expect("made as one").extend(rest);
            events.push(event);
        };
        for step in steps {
            let span = format!("step-{}", step.step_idx);
            let span = Some(span.as_str());
            push("span_begin", span, json!({"id": span, "name": span, "type": "step"}));
            if let Some(prompt) = &step.prompt {
                // The one that was taken comes first: Inspect shows it as the completion.
                let others = (0..step.candidates.len()).filter(|idx| *idx != step.chosen);
                let choices: Vec<Value> = std::iter::once(step.chosen)
                    .chain(others)
                    .map(|idx| {
                        choice(
                            step.candidates[idx].text.clone(),
                            &tool_call(step, &step.candidates[idx]),
                        )
                    })
                    .collect();
                let output = json!({"model": self.model, "choices": choices, "usage": tokens(step.usage)});
                let model = json!({"model": self.model, "input": said(prompt), "tools": [], "tool_choice": "auto",
                                   "config": {"temperature": self.settings.temperature, "num_choices": self.settings.candidates},
                                   "output": output});
                push("model", span, model);
            }
            for (idx, candidate) in step.candidates.iter().enumerate() {
                let taken = if idx == step.chosen { ", taken" } else { "" };
                let id = format!("step-{}-candidate-{idx}", step.step_idx);
                let (inner, name) = (Some(id.as_str()), format!("candidate {idx}{taken}"));
                push(
                    "span_begin",
                    inner,
                    json!({"id": id, "parent_id": span, "name": name, "type": "candidate"}),
                );
                push(
                    "info",
                    inner,
                    json!({"source": "rag-gym", "data": {
                        "text": candidate.text, "action": candidate.action, "multiplicity": candidate.multiplicity,
                        "redundant": candidate.redundant, "logprob": candidate.logprob(),
                    }}),
                );
                if let Some(reward) = candidate.reward {
                    let answer = candidate.action.query().or(candidate.action.answer());
                    let explanation = step.verdict.as_ref().and_then(|verdict| verdict.rationale.as_deref());
                    let score = json!({"value": reward, "answer": answer, "explanation": explanation});
                    push("score", inner, json!({"score": score, "intermediate": true}));
                }
                push("span_end", inner, json!({"id": id}));
            }
            if let Some(query) = step.action().query() {
                let arguments = json!({"query": query});
                push(
                    "tool",
                    span,
                    json!({"type": "function", "id": call_id(step), "function": "search",
                                          "arguments": arguments, "result": found(step)}),
                );
            }
            push("span_end", span, json!({"id": span}));
        }
        events
    }
}

/// The episode as a conversation: what was done, and what the search gave.
fn messages(question: &str, steps: &[Step]) -> Vec<Value> {
    let mut messages = vec![json!({"role": "user", "content": question})];
    for step in steps {
        let chosen = &step.candidates[step.chosen];
        messages.push(assistant(chosen.text.clone(), &tool_call(step, chosen)));
        if chosen.action.query().is_some() {
            messages.push(
                json!({"role": "tool", "tool_call_id": call_id(step), "function": "search", "content": found(step)}),
            );
        }
    }
    messages
}

fn assistant(text: String, tool_call: &Value) -> Value {
    let mut message = json!({"role": "assistant", "content": text, "source": "generate"});
    if !tool_call.is_null() {
        message["tool_calls"] = json!([tool_call]);
    }
    message
}

fn choice(text: String, tool_call: &Value) -> Value {
    let reason = if tool_call.is_null() { "stop" } else { "tool_calls" };
    json!({"message": assistant(text, tool_call), "stop_reason": reason})
}

/// Null for what is no search.
fn tool_call(step: &Step, candidate: &Candidate) -> Value {
    candidate.action.query().map_or(
        Value::Null,
        |query| json!({"id": call_id(step), "function": "search", "arguments": {"query": query}, "type": "function"}),
    )
}

fn call_id(step: &Step) -> String {
    format!("search-{}", step.step_idx)
}

/// The reader's answer where there is one, and the passages.
fn found(step: &Step) -> String {
    let passages = step
        .hits
        .iter()
        .map(|hit| format!("{}\n{}", hit.passage.title, hit.passage.text));
    step.finding
        .iter()
        .cloned()
        .chain(passages)
        .collect::<Vec<_>>()
        .join("\n\n")
}

fn said(prompt: &Prompt) -> Value {
    json!(prompt.messages)
}

fn tokens(usage: Usage) -> Value {
    json!({"input_tokens": usage.prompt - usage.cached.min(usage.prompt), "output_tokens": usage.generated,
           "total_tokens": usage.prompt + usage.generated, "input_tokens_cache_read": usage.cached})
}

fn failure(message: &str) -> Value {
    json!({"message": message, "traceback": "", "traceback_ansi": ""})
}
