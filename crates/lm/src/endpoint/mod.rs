//! Models behind an OpenAI-compatible server: llama.cpp, vLLM, SGLang, Ollama, OpenVINO Model Server,
//! or a hosted one. Blocking, one request at a time on the caller's thread, any number of threads.
//!
//! Servers differ in what they know. A request starts with all that is useful; where a server refuses
//! it, fields are left out step by step ([`Fields`]), and what worked is remembered. A server that
//! brings fewer choices than `n` is asked again. The key comes from the caller, goes into the
//! `authorization` header, and nowhere else.

mod gbnf;
mod http;
mod reply;

use std::sync::OnceLock;
use std::sync::atomic::{AtomicU8, Ordering};
use std::time::{Duration, Instant};

use gym::{Cancel, EngineError, Generation, LanguageModel, Prompt, Role, Sample, Seed, TokenEvent, Usage};
use serde::{Deserialize, Serialize};
use serde_json::{Map, Value, json};

use crate::LmError;
use http::{Fault, Http, Limits, said};
use reply::Choices;

/// Which of the two OpenAI routes a model is asked by.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Route {
    /// The server applies the model's chat template.
    #[default]
    Chat,
    /// For base models: the messages as plain text, a blank line after each.
    Completions,
}

/// Where a model is and how it is asked. Holds the name of the key's variable, never the key.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Settings {
    /// Up to the version, such as `http://localhost:8000/v1`.
    pub url: String,
    /// The model's name on that server.
    pub model: String,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub key_env: Option<String>,
    /// `None` asks the server.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub context_tokens: Option<usize>,
    #[serde(default)]
    pub route: Route,
    /// The server reads llama.cpp's `grammar` field; without it decoding is free.
    #[serde(default)]
    pub grammar: bool,
}

impl Settings {
    /// The settings with their URL checked and completed: `/v1` where it has no path.
    pub fn checked(mut self) -> Result<Settings, LmError> {
        let wrong = |reason: &str| LmError::Endpoint {
            // Without what may be a password.
            url: self
                .url
                .split(['?', '#'])
                .next()
                .unwrap_or_default()
                .rsplit('@')
                .next()
                .unwrap_or_default()
                .into(),
            message: format!("not the URL of a server: {reason}"),
        };
        let uri: ureq::http::Uri = self
            .url
            .trim()
            .parse()
            .map_err(|_| wrong("write it like http://localhost:8000/v1"))?;
        if !matches!(uri.scheme_str(), Some("http" | "https")) {
            return Err(wrong("it begins with neither http:// nor https://"));
        }
        let authority = uri.authority().ok_or_else(|| wrong("it names no host"))?;
        if authority.as_str().contains('@') || self.url.contains(['?', '#']) {
            return Err(wrong(
                "keys and passwords do not belong in it; name a variable with --key-env",
            ));
        }
        if self.model.trim().is_empty() {
            return Err(wrong("the model's name on the server is missing"));
        }
        let path = match uri.path().trim_end_matches('/') {
            "" => "/v1",
            path => path,
        };
        let scheme = uri.scheme_str().expect("matched above");
        self.url = format!("{scheme}://{authority}{path}");
        Ok(self)
    }

    /// Requests for things that are no part of OpenAI's interface go beside `/v1`.
    fn root(&self) -> &str {
        let (root, version) = self.url.rsplit_once('/').unwrap_or((&self.url, ""));
        let is_version = version
            .strip_prefix('v')
            .is_some_and(|rest| rest.parse::<u32>().is_ok());
        if is_version { root } else { &self.url }
    }
}

/// How long a server may take.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Timeouts {
    /// A cancelled call ends at once except while it connects.
    pub connect: Duration,
    /// Between two bytes, and before the first one: a full server lets requests wait.
    pub silence: Duration,
    /// A whole call, with all its requests and pauses.
    pub total: Duration,
    /// Before the second try of a request; doubles with each further one.
    pub first_pause: Duration,
}

impl Default for Timeouts {
    fn default() -> Self {
        Timeouts {
            connect: Duration::from_secs(10),
            silence: Duration::from_secs(300),
            total: Duration::from_secs(1800),
            first_pause: Duration::from_millis(500),
        }
    }
}

/// Tries of one request after the first, for faults that may pass.
const RETRIES: u32 = 6;
const LONGEST_PAUSE: Duration = Duration::from_secs(30);
/// The longest pause that a server may ask for.
const LONGEST_RETRY_AFTER: Duration = Duration::from_secs(120);
/// OpenAI's limit; the rest of a longer list is looked for here only.
const MOST_STOPS: usize = 4;
/// Requests that a user waits for: what the server is, how many tokens a prompt has.
const SHORT: Duration = Duration::from_secs(20);

/// What a request holds beyond model, prompt and lengths; each step down leaves more out.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
#[repr(u8)]
enum Fields {
    /// With the parameters that OpenAI does not have: `top_k`, `min_p`, the repetition penalty.
    All,
    OpenAi,
    /// No `logprobs`, no usage of a stream.
    NoExtras,
    /// No `n` and no `seed` either: one choice a request.
    Least,
}

impl Fields {
    const ALL: [Fields; 4] = [Fields::All, Fields::OpenAi, Fields::NoExtras, Fields::Least];

    fn next(self) -> Option<Fields> {
        Fields::ALL.get(self as usize + 1).copied()
    }
}

/// How the server counts the tokens of a prompt.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Counting {
    /// `/tokenize` takes the request's prompt or messages (vLLM).
    Whole,
    /// `/apply-template`, then `/tokenize` of the text (llama.cpp).
    Text,
    /// It does not.
    Estimate,
}

/// What a server says of itself.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize)]
pub struct Served {
    /// The models that it names.
    pub models: Vec<String>,
    pub context_tokens: Option<usize>,
    pub parameters: Option<u64>,
}

/// A model on a server.
pub struct Endpoint {
    settings: Settings,
    timeouts: Timeouts,
    http: Http,
    context_tokens: usize,
    /// The first [`Fields`] worth sending.
    fields: AtomicU8,
    counting: OnceLock<Counting>,
}

/// Asks a server for its models and its limits. `key` is sent, not kept.
pub fn probe(settings: &Settings, key: Option<String>, cancel: &Cancel) -> Result<Served, LmError> {
    let http = Http::new(key, &Timeouts::default());
    served(settings, &http, cancel).map_err(|fault| LmError::Endpoint {
        url: settings.url.clone(),
        message: match fault {
            Fault::Cancelled => "cancelled".into(),
            Fault::Passing { message, .. } | Fault::Refused { message, .. } | Fault::Final(message) => message,
        },
    })
}

fn served(settings: &Settings, http: &Http, cancel: &Cancel) -> Result<Served, Fault> {
    let limits = short(cancel);
    let listed = http.send(&format!("{}/models", settings.url), None, &limits)?.json()?;
    let models = listed
        .get("data")
        .and_then(Value::as_array)
        .cloned()
        .unwrap_or_default();
    let id = |model: &Value| model.get("id").and_then(Value::as_str).map(str::to_owned);
    // llama.cpp serves its one model under any name.
    let ours = models
        .iter()
        .find(|model| id(model).as_deref() == Some(&settings.model))
        .or(match &models[..] {
            [only] => Some(only),
            _ => None,
        });
    let of = |path: &[&str]| path.iter().try_fold(ours?, |value, name| value.get(name))?.as_u64();
    // llama.cpp's list names the context of all its slots together, its properties that of one.
    let props = http
        .send(&format!("{}/props", settings.root()), None, &limits)
        .and_then(http::Reply::json);
    let slot = props
        .ok()
        .and_then(|props| props.get("default_generation_settings")?.get("n_ctx")?.as_u64());
    Ok(Served {
        context_tokens: slot
            .or_else(|| of(&["max_model_len"]))
            .or_else(|| of(&["meta", "n_ctx"]))
            .map(|n| n as usize),
        parameters: of(&["meta", "n_params"]),
        models: models.iter().filter_map(id).collect(),
    })
}

fn short(cancel: &Cancel) -> Limits {
    Limits {
        cancel: cancel.clone(),
        deadline: Instant::now() + SHORT,
        silence: SHORT,
    }
}

impl Endpoint {
    /// `key` is what the variable of the settings holds. Connects only to ask for the context's size
    /// where the settings do not say it; an error then tells what is missing.
    pub fn open(settings: Settings, key: Option<String>, timeouts: Timeouts) -> Result<Endpoint, LmError> {
        let settings = settings.checked()?;
        let context_tokens = match settings.context_tokens {
            Some(tokens) => tokens,
            None => probe(&settings, key.clone(), &Cancel::default())?
                .context_tokens
                .ok_or_else(|| LmError::Endpoint {
                    url: settings.url.clone(),
                    message: format!(
                        "the server does not tell the context of `{}`: set it with --context",
                        settings.model
                    ),
                })?,
        };
        Ok(Endpoint {
            http: Http::new(key, &timeouts),
            settings,
            timeouts,
            context_tokens,
            fields: AtomicU8::new(Fields::All as u8),
            counting: OnceLock::new(),
        })
    }

    pub fn settings(&self) -> &Settings {
        &self.settings
    }

    fn failed(&self, message: String) -> EngineError {
        EngineError::Failed {
            engine: format!("endpoint {} (`{}`)", self.settings.url, self.settings.model),
            message: self.http.without_key(&message),
        }
    }

    /// A reply or an event that brings an error in place of text.
    fn check_given_up(&self, reply: &Value) -> Result<(), Fault> {
        if reply.get("error").is_none_or(Value::is_null) {
            return Ok(());
        }
        let said = self.http.quoted(said(reply).unwrap_or("no reason given"));
        Err(Fault::passing(format!("the server gave up: {said}")))
    }

    fn engine_error(&self, fault: Fault) -> EngineError {
        match fault {
            Fault::Cancelled => EngineError::Cancelled,
            Fault::Passing { message, .. } | Fault::Refused { message, .. } | Fault::Final(message) => {
                self.failed(message)
            }
        }
    }

    fn limits(&self, cancel: &Cancel) -> Limits {
        Limits {
            cancel: cancel.clone(),
            deadline: Instant::now() + self.timeouts.total,
            silence: self.timeouts.silence,
        }
    }

    fn post(&self, url: &str, body: &Value, limits: &Limits) -> Result<Value, Fault> {
        self.http.send(url, Some(body), limits)?.json()
    }

    /// The prompt in the form of the route.
    fn prompt(&self, prompt: &Prompt) -> (&'static str, Value) {
        match self.settings.route {
            Route::Chat => {
                let role = |role| match role {
                    Role::System => "system",
                    Role::User => "user",
                    Role::Assistant => "assistant",
                };
                let messages = prompt.messages.iter();
                (
                    "messages",
                    messages
                        .map(|m| json!({"role": role(m.role), "content": m.content}))
                        .collect(),
                )
            }
            Route::Completions => {
                let text: String = prompt
                    .messages
                    .iter()
                    .map(|message| format!("{}\n\n", message.content))
                    .collect();
                ("prompt", Value::String(text))
            }
        }
    }

    fn body(&self, request: &Generation, seed: Seed, n: usize, fields: Fields) -> Value {
        let sampling = &request.sampling;
        let (name, prompt) = self.prompt(&request.prompt);
        let mut body = Map::new();
        let mut put = |name: &str, value: Value| body.insert(name.into(), value);
        put("model", json!(self.settings.model));
        put(name, prompt);
        put("stream", json!(true));
        put("max_tokens", json!(sampling.max_tokens));
        put("temperature", json!(sampling.temperature));
        put("top_p", json!(sampling.top_p));
        if !sampling.stop.is_empty() {
            put("stop", json!(sampling.stop[..sampling.stop.len().min(MOST_STOPS)]));
        }
        if let (Some(grammar), true) = (&request.grammar, self.settings.grammar) {
            put("grammar", json!(gbnf::rules(grammar)));
        }
        if fields < Fields::Least {
            // 31 bits, which every server takes.
            put("seed", json!(seed.0 & 0x7fff_ffff));
            if n > 1 {
                put("n", json!(n));
            }
        }
        if fields < Fields::NoExtras {
            put("stream_options", json!({"include_usage": true}));
            match self.settings.route {
                Route::Chat => {
                    put("logprobs", json!(true));
                    put("top_logprobs", json!(1));
                }
                Route::Completions => {
                    put("logprobs", json!(1));
                }
            }
        }
        if fields < Fields::OpenAi {
            // Said even where they do nothing, since servers have defaults of their own. -1 keeps all.
            put(
                "top_k",
                if sampling.top_k == 0 {
                    json!(-1)
                } else {
                    json!(sampling.top_k)
                },
            );
            put("min_p", json!(sampling.min_p));
            // llama.cpp's name and everyone else's.
            put("repeat_penalty", json!(sampling.repetition_penalty));
            put("repetition_penalty", json!(sampling.repetition_penalty));
        }
        Value::Object(body)
    }

    /// Samples from the `from`-th seed on: one or more, as many of the rest as the server brings.
    fn ask(
        &self,
        request: &Generation,
        from: usize,
        wanted: usize,
        limits: &Limits,
        on_text: &mut dyn FnMut(usize, &str) -> Result<(), Fault>,
    ) -> Result<(Vec<Sample>, Usage), EngineError> {
        let route = match self.settings.route {
            Route::Chat => "chat/completions",
            Route::Completions => "completions",
        };
        let url = format!("{}/{route}", self.settings.url);
        let seed = request.seeds[from];
        let mut fields = Fields::ALL[usize::from(self.fields.load(Ordering::Relaxed))];
        let mut first_refusal = None;
        loop {
            let body = self.body(request, seed, wanted, fields);
            let constrained = body.get("grammar").is_some();
            let asked = self.retrying(seed, limits, || {
                self.ask_once(&url, &body, wanted, constrained, request, limits, on_text)
            });
            match asked {
                Ok(done) => {
                    self.fields.fetch_max(fields as u8, Ordering::Relaxed);
                    return Ok(done);
                }
                Err(Fault::Refused { message, body }) => {
                    self.check_length(&body, request)?;
                    let message = first_refusal.get_or_insert(message);
                    fields = fields.next().ok_or_else(|| self.failed(message.clone()))?;
                }
                Err(fault) => return Err(self.engine_error(fault)),
            }
        }
    }

    /// Repeats what may pass, with pauses between, as long as there are tries and time.
    fn retrying<T>(
        &self,
        seed: Seed,
        limits: &Limits,
        mut attempt: impl FnMut() -> Result<T, Fault>,
    ) -> Result<T, Fault> {
        let mut failed = 0;
        loop {
            match attempt() {
                Err(Fault::Passing { message, retry_after }) => {
                    let pause = pause(self.timeouts.first_pause, seed, failed, retry_after);
                    failed += 1;
                    if failed > RETRIES || Instant::now() + pause >= limits.deadline {
                        return Err(Fault::Final(format!("{message} (tried {failed} times)")));
                    }
                    wait(pause, &limits.cancel)?;
                }
                other => return other,
            }
        }
    }

    #[expect(clippy::too_many_arguments, reason = "one request's parts, passed on once")]
    fn ask_once(
        &self,
        url: &str,
        body: &Value,
        wanted: usize,
        constrained: bool,
        request: &Generation,
        limits: &Limits,
        on_text: &mut dyn FnMut(usize, &str) -> Result<(), Fault>,
    ) -> Result<(Vec<Sample>, Usage), Fault> {
        let reply = self.http.send(url, Some(body), limits)?;
        let mut choices = Choices::new(wanted, &request.sampling.stop, constrained);
        if reply.streamed {
            reply.events(&mut |data| {
                let event = serde_json::from_str(data)
                    .map_err(|error| Fault::passing(format!("an event of the stream is not JSON: {error}")))?;
                self.check_given_up(&event)?;
                choices.take(&event, on_text)
            })?;
        } else {
            let reply = reply.json()?;
            self.check_given_up(&reply)?;
            choices.take(&reply, on_text)?;
        }
        choices.finish()
    }

    /// A prompt that is too long gets its own error, from servers that mark theirs.
    fn check_length(&self, body: &Value, request: &Generation) -> Result<(), EngineError> {
        let error = body.get("error").unwrap_or(body);
        let is = |name: &str, mark: &str| error.get(name).and_then(Value::as_str) == Some(mark);
        if !is("type", "exceed_context_size_error") && !is("code", "context_length_exceeded") {
            return Ok(());
        }
        let count = |name: &str| error.get(name).and_then(Value::as_u64).map(|n| n as usize);
        Err(EngineError::PromptTooLong {
            model: self.settings.model.clone(),
            tokens: count("n_prompt_tokens").unwrap_or_else(|| estimate(&request.prompt)),
            limit: count("n_ctx").unwrap_or(self.context_tokens),
        })
    }

    /// `None` if the server does not count that way.
    fn count_by(&self, counting: Counting, prompt: &Prompt, limits: &Limits) -> Result<Option<usize>, Fault> {
        let url = |name: &str| format!("{}/{name}", self.settings.root());
        let (name, value) = self.prompt(prompt);
        let counted = match counting {
            Counting::Whole => {
                let mut body = json!({"model": self.settings.model, name: value});
                if self.settings.route == Route::Chat {
                    body["add_generation_prompt"] = json!(true);
                }
                let reply = self.post(&url("tokenize"), &body, limits);
                reply.map(|reply| reply["count"].as_u64().map(|n| n as usize))
            }
            Counting::Text => {
                let text = match self.settings.route {
                    Route::Completions => Ok(value),
                    Route::Chat => self
                        .post(&url("apply-template"), &json!({ name: value }), limits)
                        .map(|reply| reply["prompt"].clone()),
                };
                text.and_then(|text| {
                    let body = json!({"content": text, "add_special": true, "parse_special": true});
                    self.post(&url("tokenize"), &body, limits)
                })
                // No prompt has no tokens: an empty list is a server that did not read the field.
                .map(|reply| reply["tokens"].as_array().map(Vec::len).filter(|&n| n > 0))
            }
            Counting::Estimate => Ok(Some(estimate(prompt))),
        };
        match counted {
            // Not there, or not like this.
            Err(Fault::Final(_) | Fault::Refused { .. }) => Ok(None),
            other => other,
        }
    }
}

/// Hears the growing texts of a call's samples and passes on what is new. A request that is repeated
/// because its reply broke off starts its texts again.
struct Listener<'a> {
    heard: Vec<String>,
    on_token: &'a mut dyn FnMut(TokenEvent),
}

impl Listener<'_> {
    fn hear(&mut self, sample_idx: usize, text: &str) -> Result<(), Fault> {
        let heard = &mut self.heard[sample_idx];
        if let Some(new) = text.strip_prefix(heard.as_str()) {
            if !new.is_empty() {
                (self.on_token)(TokenEvent {
                    sample_idx,
                    text: new.into(),
                });
                heard.push_str(new);
            }
            return Ok(());
        }
        match heard.starts_with(text) {
            true => Ok(()),
            false => Err(Fault::Final(
                "a reply broke off, and asked again the server wrote another text: `resume` repeats the question"
                    .into(),
            )),
        }
    }
}

impl LanguageModel for Endpoint {
    fn context_tokens(&self) -> usize {
        self.context_tokens
    }

    /// By the server if it counts tokens (vLLM, llama.cpp); else an estimate that errs on the high side.
    /// A server out of reach is an error, not an estimate: what fits must not depend on the moment.
    fn count_tokens(&self, prompt: &Prompt) -> Result<usize, EngineError> {
        // Nobody can stop a count, so it may not take long.
        let limits = Limits {
            deadline: Instant::now() + 4 * SHORT,
            silence: SHORT,
            ..self.limits(&Cancel::default())
        };
        let seed = prompt
            .messages
            .iter()
            .fold(Seed(0), |seed, message| seed.derive_str(&message.content));
        let known = self.counting.get().copied();
        for counting in [Counting::Whole, Counting::Text, Counting::Estimate] {
            if known.is_none_or(|known| known == counting) {
                let counted = self.retrying(seed, &limits, || self.count_by(counting, prompt, &limits));
                if let Some(tokens) = counted.map_err(|fault| self.engine_error(fault))? {
                    // Another thread may have found the same.
                    let _ = self.counting.set(counting);
                    return Ok(tokens);
                }
            }
        }
        Err(self.failed("the server stopped counting tokens".into()))
    }

    /// One request with `n` and the first seed, from which the server derives the others; where it
    /// brings fewer choices, further requests with the seed of the first one missing. Greedy samples
    /// are equal, so one is asked for and repeated.
    ///
    /// `token_ids` are empty where the server names none, `token_logprobs` where it gives none.
    fn generate(
        &self,
        request: &Generation,
        cancel: &Cancel,
        on_token: &mut dyn FnMut(TokenEvent),
    ) -> Result<(Vec<Sample>, Usage), EngineError> {
        cancel.check()?;
        let limits = self.limits(cancel);
        let all = request.seeds.len();
        let wanted = if request.sampling.temperature == 0.0 {
            all.min(1)
        } else {
            all
        };
        let mut listener = Listener {
            heard: vec![String::new(); all],
            on_token,
        };
        let mut samples: Vec<Sample> = Vec::with_capacity(all);
        let mut usage = Usage::default();
        while samples.len() < wanted {
            let from = samples.len();
            let mut on_text = |idx: usize, text: &str| listener.hear(from + idx, text);
            let (more, spent) = self.ask(request, from, wanted - from, &limits, &mut on_text)?;
            for (idx, sample) in more.iter().enumerate() {
                if listener.heard[from + idx] != sample.text {
                    return Err(
                        self.failed("a reply broke off, and asked again the server wrote a shorter text".into())
                    );
                }
            }
            samples.extend(more);
            usage += spent;
        }
        for idx in wanted..all {
            let sample = samples[0].clone();
            // What is repeated has been read once already.
            listener
                .hear(idx, &sample.text)
                .expect("nothing was heard of this sample before");
            samples.push(sample);
        }
        Ok((samples, usage))
    }
}

/// Doubling pauses, each drawn from its upper half so that callers who failed together part ways.
fn pause(first: Duration, seed: Seed, attempt: u32, retry_after: Option<Duration>) -> Duration {
    let share = 0.5 + 0.5 * seed.derive_str("retry").derive(attempt.into()).rng().next_f64();
    let pause = first
        .saturating_mul(1 << attempt.min(16))
        .min(LONGEST_PAUSE)
        .mul_f64(share);
    // Never sooner than asked.
    retry_after.map_or(pause, |asked| asked.min(LONGEST_RETRY_AFTER) + pause.min(first))
}

fn wait(pause: Duration, cancel: &Cancel) -> Result<(), Fault> {
    let end = Instant::now() + pause;
    while Instant::now() < end {
        if cancel.is_cancelled() {
            return Err(Fault::Cancelled);
        }
        std::thread::sleep(Duration::from_millis(50).min(end.saturating_duration_since(Instant::now())));
    }
    Ok(())
}

/// More tokens than the prompt is likely to have: one for 3 letters or spaces, for each digit or sign,
/// and for 2 bytes of any other script; 16 around each message.
fn estimate(prompt: &Prompt) -> usize {
    let of = |text: &str| {
        let letters = text
            .bytes()
            .filter(|byte| byte.is_ascii_alphabetic() || *byte == b' ')
            .count();
        let others = text.bytes().filter(|byte| !byte.is_ascii()).count();
        letters.div_ceil(3) + others.div_ceil(2) + (text.len() - letters - others)
    };
    prompt.messages.iter().map(|message| of(&message.content) + 16).sum()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn settings(url: &str) -> Settings {
        Settings {
            url: url.into(),
            model: "m".into(),
            key_env: None,
            context_tokens: None,
            route: Route::Chat,
            grammar: false,
        }
    }

    #[test]
    fn urls_are_completed_and_secrets_in_them_refused() {
        for (url, completed, root) in [
            (
                "http://localhost:8000",
                "http://localhost:8000/v1",
                "http://localhost:8000",
            ),
            ("https://host/llm/v1/", "https://host/llm/v1", "https://host/llm"),
            ("http://ovms:8000/v3", "http://ovms:8000/v3", "http://ovms:8000"),
            ("http://host/models/x", "http://host/models/x", "http://host/models/x"),
        ] {
            let settings = settings(url).checked().unwrap();
            assert_eq!((settings.url.as_str(), settings.root()), (completed, root));
        }
        for url in [
            "localhost:8000",
            "ftp://host/v1",
            "",
            "http://me:secret@host/v1",
            "http://host/v1?key=secret",
        ] {
            let error = settings(url).checked().unwrap_err().to_string();
            assert!(!error.contains("secret"), "{error}");
        }
    }

    #[test]
    fn pauses_grow_and_differ_by_seed_and_obey_the_server() {
        let first = Timeouts::default().first_pause;
        for seed in [Seed(1), Seed(2)] {
            for attempt in 0..20 {
                let most = (0.5 * 2f64.powi(attempt)).min(30.0);
                let pause = pause(first, seed, attempt as u32, None).as_secs_f64();
                assert!(pause >= most / 2.0 && pause <= most, "{attempt}: {pause}");
            }
        }
        assert_ne!(pause(first, Seed(1), 3, None), pause(first, Seed(2), 3, None));
        assert!(pause(first, Seed(1), 0, Some(Duration::from_secs(7))) >= Duration::from_secs(7));
    }
}
