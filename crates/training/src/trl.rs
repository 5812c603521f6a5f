//! TRL's JSON lines: `messages` or `prompt` and `completion` to imitate, `chosen` and `rejected` to prefer, and the
//! labelled steps of stepwise supervision. Source: the dataset formats in TRL's documentation.

use std::collections::HashMap;

use gym::{LabelledQuestion, Message, Prompt, Role, Step};
use serde_json::{Value, json};

use crate::lesson::{Completion, Lesson, Selection};
use crate::objective::Objective;

/// Conversational lines of a lesson: `messages` per completion, or `prompt`, `chosen`, `rejected` per pair.
pub fn to_trl(lesson: &Lesson) -> Vec<Value> {
    let assistant = |idx: usize| json!({"role": "assistant", "content": lesson.completions[idx].text});
    let prompt: Vec<Value> = lesson.prompt.messages.iter().map(|message| json!(message)).collect();
    if lesson.pairs.is_empty() {
        let line = |idx: usize| {
            let messages: Vec<Value> = prompt.iter().cloned().chain([assistant(idx)]).collect();
            json!({"messages": messages, "question": lesson.question})
        };
        return (0..lesson.completions.len()).map(line).collect();
    }
    let line = |&(chosen, rejected): &(usize, usize)| {
        json!({
            "prompt": prompt,
            "chosen": [assistant(chosen)],
            "rejected": [assistant(rejected)],
            "question": lesson.question,
        })
    };
    lesson.pairs.iter().map(line).collect()
}

/// Stepwise supervision of an episode: the question, its actions, and whether each was good.
pub fn to_trl_stepwise(labelled: &LabelledQuestion, steps: &[Step], selection: Selection) -> Value {
    let chosen = || {
        steps
            .iter()
            .filter(|step| step.prompt.is_some())
            .map(|step| &step.candidates[step.chosen])
    };
    json!({
        "prompt": labelled.question.text,
        "completions": chosen().map(|candidate| candidate.text.as_str()).collect::<Vec<_>>(),
        "labels": chosen().map(|candidate| candidate.reward.is_some_and(|r| r > selection.chosen_above)).collect::<Vec<_>>(),
        "rewards": chosen().map(|candidate| candidate.reward).collect::<Vec<_>>(),
        "question": labelled.question.id.0,
    })
}

/// What lines teach for a method. Each has `messages`; `prompt` and `completion`; `prompt`, `chosen` and `rejected`; or
/// `prompt`, `completions` and `labels`: the steps of one way, and whether each is good. A part of messages may be a
/// text, which stands for one.
///
/// A step's state is the prompt with the steps before it, a line each. Imitation learns the good steps; preferences
/// and rewards learn from states that have good and bad ones, which takes ways that part there.
///
/// # Errors
/// The line, from 1, and what is wrong with it.
pub fn from_trl(text: &str, method: Objective, selection: Selection) -> Result<Vec<Lesson>, (usize, String)> {
    let mut lessons = Vec::new();
    let mut stepwise: Vec<Lesson> = Vec::new();
    let mut known: HashMap<String, usize> = HashMap::new();
    for (idx, line) in text.lines().enumerate().filter(|(_, line)| !line.trim().is_empty()) {
        let wrong = |message| (idx + 1, message);
        let value: Value = serde_json::from_str(line).map_err(|error| wrong(error.to_string()))?;
        if value.get("labels").is_none() {
            lessons.push(whole(&value).map_err(wrong)?);
            continue;
        }
        for step in steps_of(&value).map_err(wrong)? {
            let state = json!([step.question, step.prompt]).to_string();
            let at = *known.entry(state).or_insert(stepwise.len());
            match stepwise.get_mut(at) {
                None => stepwise.push(step),
                Some(state) => step.completions.into_iter().for_each(|new| {
                    // What two lines label otherwise is what the first says it is.
                    if !state.completions.iter().any(|known| known.text == new.text) {
                        state.completions.push(new);
                    }
                }),
            }
        }
    }
    lessons.extend(stepwise.into_iter().filter_map(|mut state| match method {
        Objective::Sft => {
            let good = |completion: &Completion| completion.reward > Some(selection.chosen_above);
            state.completions.retain(good);
            (!state.completions.is_empty()).then_some(state)
        }
        Objective::Dpo { .. } | Objective::Prm { .. } => {
            Lesson::compared(state.question, state.prompt, state.completions, selection)
        }
    }));
    Ok(lessons)
}

/// A text, which stands for one message, or a list of messages.
fn messages(value: &Value, key: &str, role: Role) -> Result<Vec<Message>, String> {
    match &value[key] {
        Value::String(text) => Ok(vec![Message {
            role,
            content: text.clone(),
        }]),
        list @ Value::Array(_) => serde_json::from_value(list.clone()).map_err(|error| format!("`{key}`: {error}")),
        _ => Err(format!("`{key}` is neither a text nor a list of messages")),
    }
}

/// What lines are held out by: the question that they name, or their prompt.
fn question(value: &Value, prompt: &Prompt) -> String {
    match &value["question"] {
        Value::String(question) => question.clone(),
        _ => serde_json::to_string(prompt).unwrap_or_default(),
    }
}

/// The lesson of a line that stands for itself.
fn whole(value: &Value) -> Result<Lesson, String> {
    let (mut prompt, mut pairs) = (Vec::new(), Vec::new());
    let answer = |key: &str| match messages(value, key, Role::Assistant)?.as_slice() {
        [message] if message.role == Role::Assistant => Ok(Completion::from(message.content.clone())),
        _ => Err(format!("`{key}` is not one message of the assistant")),
    };
    let completions = if value.get("messages").is_some() {
        prompt.extend(messages(value, "messages", Role::User)?);
        match prompt.pop() {
            Some(last) if last.role == Role::Assistant && !prompt.is_empty() => vec![Completion::from(last.content)],
            _ => return Err("`messages` does not end with an answer of the assistant".into()),
        }
    } else if value.get("chosen").is_some() {
        pairs.push((0, 1));
        vec![answer("chosen")?, answer("rejected")?]
    } else {
        vec![answer("completion")?]
    };
    if prompt.is_empty() {
        prompt = messages(value, "prompt", Role::User)?;
    }
    let prompt = Prompt { messages: prompt };
    let question = question(value, &prompt);
    Ok(Lesson {
        pairs,
        ..Lesson::imitated(question, prompt, completions)
    })
}

/// The steps of a way, each in the state that it was taken in, with 1 or 0 for a reward.
fn steps_of(value: &Value) -> Result<Vec<Lesson>, String> {
    let list = |key: &str| value[key].as_array().ok_or_else(|| format!("`{key}` is not a list"));
    let (texts, labels) = (list("completions")?, list("labels")?);
    if texts.len() != labels.len() {
        return Err(format!("{} `completions` have {} `labels`", texts.len(), labels.len()));
    }
    let mut prompt = Prompt {
        messages: messages(value, "prompt", Role::User)?,
    };
    let question = question(value, &prompt);
    let mut steps = Vec::new();
    for (text, label) in texts.iter().zip(labels) {
        let text = text.as_str().ok_or("a step of `completions` is not a text")?;
        let good = label.as_bool().ok_or("one of `labels` is neither true nor false")?;
        let completion = Completion {
            reward: Some(f64::from(u8::from(good))),
            ..Completion::from(text.to_owned())
        };
        steps.push(Lesson::imitated(question.clone(), prompt.clone(), vec![completion]));
        let last = prompt.messages.last_mut().ok_or("`prompt` has no message")?;
        last.content = format!("{}\n{text}", last.content);
    }
    Ok(steps)
}
