//! The endpoint client against servers that misbehave: each is a few lines over a real socket.

#![expect(clippy::unwrap_used, reason = "a test that cannot go on fails")]

use std::collections::HashSet;
use std::io::{BufRead, BufReader, Read, Write};
use std::net::{TcpListener, TcpStream};
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Barrier, Mutex};
use std::time::{Duration, Instant};

use gym::{Cancel, EngineError, Generation, LanguageModel, Message, Prompt, Role, Sample, Sampling, Seed, Usage};
use lm::endpoint::{Endpoint, Route, Settings, Timeouts, probe};
use serde_json::{Value, json};

const KEY: &str = "sk-never-shown";

struct Request {
    /// Counts the requests of all connections from 0.
    number: usize,
    path: String,
    head: String,
    body: Value,
}

struct Server {
    url: String,
    /// Bodies, in the order of arrival.
    requests: Arc<Mutex<Vec<Value>>>,
    connections: Arc<AtomicUsize>,
}

/// Answers each request of each connection with what `answer` writes, until that returns false.
fn serve(answer: impl Fn(&Request, &mut TcpStream) -> bool + Send + Sync + 'static) -> Server {
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let url = format!("http://{}/v1", listener.local_addr().unwrap());
    let server = Server {
        url,
        requests: Arc::default(),
        connections: Arc::default(),
    };
    let (requests, connections, answer) = (server.requests.clone(), server.connections.clone(), Arc::new(answer));
    std::thread::spawn(move || {
        for stream in listener.incoming() {
            let (requests, answer) = (requests.clone(), answer.clone());
            connections.fetch_add(1, Ordering::Relaxed);
            std::thread::spawn(move || {
                let mut stream = stream.unwrap();
                stream.set_nodelay(true).unwrap();
                let mut reader = BufReader::new(stream.try_clone().unwrap());
                while let Some(mut request) = read_request(&mut reader) {
                    let mut requests = requests.lock().unwrap();
                    request.number = requests.len();
                    requests.push(request.body.clone());
                    drop(requests);
                    if !answer(&request, &mut stream) {
                        break;
                    }
                }
            });
        }
    });
    server
}

fn read_request(reader: &mut BufReader<TcpStream>) -> Option<Request> {
    let mut head = String::new();
    while !head.ends_with("\r\n\r\n") {
        if reader.read_line(&mut head).ok()? == 0 {
            return None;
        }
    }
    let lower = head.to_lowercase();
    let length = lower
        .lines()
        .find_map(|line| line.strip_prefix("content-length:")?.trim().parse().ok());
    let mut body = vec![0; length.unwrap_or(0)];
    reader.read_exact(&mut body).ok()?;
    let path = head.split(' ').nth(1)?.to_owned();
    Some(Request {
        number: 0,
        path,
        head,
        body: serde_json::from_slice(&body).unwrap_or(Value::Null),
    })
}

fn reply(stream: &mut TcpStream, status: &str, headers: &str, body: &str) -> bool {
    let length = body.len();
    let text = format!(
        "HTTP/1.1 {status}\r\ncontent-type: application/json\r\ncontent-length: {length}\r\n{headers}\r\n{body}"
    );
    stream.write_all(text.as_bytes()).is_ok()
}

/// The head of a stream that ends with its connection.
fn stream_head(stream: &mut TcpStream) {
    let head = "HTTP/1.1 200 OK\r\ncontent-type: text/event-stream; charset=utf-8\r\nconnection: close\r\n\r\n";
    stream.write_all(head.as_bytes()).unwrap();
}

/// False once the client is gone.
fn event(stream: &mut TcpStream, data: &str) -> bool {
    stream.write_all(format!("data: {data}\r\n\r\n").as_bytes()).is_ok()
}

fn part(index: usize, text: &str, finish: Option<&str>) -> String {
    json!({"choices": [{"index": index, "delta": {"content": text}, "finish_reason": finish}]}).to_string()
}

/// A stream of `texts`, one choice each.
fn stream_choices(stream: &mut TcpStream, texts: &[&str]) -> bool {
    stream_head(stream);
    for (index, text) in texts.iter().enumerate() {
        event(stream, &part(index, text, None));
        event(stream, &part(index, "", Some("stop")));
    }
    event(stream, "[DONE]");
    false
}

fn whole(texts: &[&str]) -> String {
    let choice =
        |(index, text): (usize, &&str)| json!({"index": index, "message": {"content": text}, "finish_reason": "stop"});
    json!({"choices": texts.iter().enumerate().map(choice).collect::<Vec<_>>()}).to_string()
}

fn settings(url: &str) -> Settings {
    Settings {
        url: url.into(),
        model: "some-model".into(),
        key_env: Some("SOME_KEY".into()),
        context_tokens: Some(4096),
        route: Route::Chat,
        grammar: false,
    }
}

fn open(server: &Server, silence_ms: u64, total_ms: u64) -> Endpoint {
    let timeouts = Timeouts {
        connect: Duration::from_secs(2),
        silence: Duration::from_millis(silence_ms),
        total: Duration::from_millis(total_ms),
        first_pause: Duration::from_millis(20),
    };
    Endpoint::open(settings(&server.url), Some(KEY.into()), timeouts).unwrap()
}

fn prompt() -> Prompt {
    Prompt {
        messages: vec![Message {
            role: Role::User,
            content: "Where is it?".into(),
        }],
    }
}

fn request(n: u64) -> Generation {
    Generation {
        prompt: prompt(),
        sampling: Sampling {
            temperature: 1.0,
            max_tokens: 20,
            ..Sampling::default()
        },
        seeds: (0..n).map(|idx| Seed(7).derive(idx)).collect(),
        grammar: None,
    }
}

type Outcome = Result<(Vec<Sample>, Usage), EngineError>;

/// The outcome, and the events of each sample joined.
fn generate(endpoint: &Endpoint, request: &Generation) -> (Outcome, Vec<String>) {
    let mut heard = vec![String::new(); request.seeds.len()];
    let outcome = endpoint.generate(request, &Cancel::default(), &mut |token| {
        heard[token.sample_idx] += &token.text
    });
    (outcome, heard)
}

fn texts(outcome: Outcome) -> Vec<String> {
    outcome.unwrap().0.into_iter().map(|sample| sample.text).collect()
}

/// The message of a failed call, which names the server and never the key.
fn message(outcome: Outcome, server: &Server) -> String {
    let message = outcome.unwrap_err().to_string();
    assert!(message.contains(&server.url), "{message}");
    assert!(!message.contains(KEY), "{message}");
    message
}

#[test]
fn overload_is_waited_out_as_long_as_the_server_asks() {
    let server = serve(|request, stream| match request.number {
        0 => reply(
            stream,
            "429 Too Many Requests",
            "retry-after: 1\r\n",
            r#"{"error": {"message": "busy"}}"#,
        ),
        1 => reply(stream, "503 Service Unavailable", "", "loading"),
        _ => stream_choices(stream, &["here"]),
    });
    let started = Instant::now();
    let (outcome, heard) = generate(&open(&server, 5000, 20_000), &request(1));
    assert_eq!(texts(outcome), ["here"]);
    assert_eq!(heard, ["here"]);
    assert!(started.elapsed() >= Duration::from_secs(1));
    assert_eq!(server.requests.lock().unwrap().len(), 3);
}

#[test]
fn lasting_errors_end_with_the_server_s_words_and_without_the_key() {
    let server = serve(|request, stream| {
        assert!(request.head.contains(KEY), "the key goes into the header");
        reply(
            stream,
            "500 Internal Server Error",
            "",
            &json!({"error": {"message": format!("no {KEY} fits")}}).to_string(),
        )
    });
    let said = message(generate(&open(&server, 5000, 1500), &request(1)).0, &server);
    assert!(
        said.contains("500") && said.contains("no [key] fits") && said.contains("tried"),
        "{said}"
    );
    assert!(server.requests.lock().unwrap().len() > 1);

    let server = serve(|_, stream| {
        stream_head(stream);
        event(
            stream,
            &json!({"error": {"message": format!("no {KEY} fits here either")}}).to_string(),
        )
    });
    let said = message(generate(&open(&server, 5000, 500), &request(1)).0, &server);
    assert!(said.contains("gave up: no [key] fits here either"), "{said}");

    let server = serve(|_, stream| reply(stream, "401 Unauthorized", "", r#"{"error": "who are you"}"#));
    let said = message(generate(&open(&server, 5000, 5000), &request(1)).0, &server);
    assert!(said.contains("who are you") && said.contains("--key-env"), "{said}");
    assert_eq!(server.requests.lock().unwrap().len(), 1, "a refusal is final");
}

#[test]
fn a_server_that_knows_fewer_fields_is_sent_fewer_from_then_on() {
    let server = serve(
        |request, stream| match request.body.get("top_k").or(request.body.get("logprobs")) {
            Some(_) => reply(
                stream,
                "400 Bad Request",
                "",
                r#"{"error": {"message": "unknown field"}}"#,
            ),
            None => stream_choices(stream, &["a", "b"]),
        },
    );
    let endpoint = open(&server, 5000, 5000);
    assert_eq!(texts(generate(&endpoint, &request(2)).0), ["a", "b"]);
    assert_eq!(
        server.requests.lock().unwrap().len(),
        3,
        "all fields, OpenAI's, without log-probabilities"
    );
    assert_eq!(texts(generate(&endpoint, &request(2)).0), ["a", "b"]);
    let requests = server.requests.lock().unwrap();
    assert_eq!(requests.len(), 4, "what works is remembered");
    assert_eq!(requests[3]["n"], 2);
}

#[test]
fn a_request_that_is_wrong_in_itself_is_refused_with_the_first_reason() {
    let server = serve(|request, stream| {
        let said = format!(r#"{{"error": {{"message": "reason {}"}}}}"#, request.number);
        reply(stream, "400 Bad Request", "", &said)
    });
    let said = message(generate(&open(&server, 5000, 5000), &request(2)).0, &server);
    assert!(said.contains("reason 0"), "{said}");
    assert_eq!(server.requests.lock().unwrap().len(), 4);

    let server = serve(|_, stream| {
        let error = json!({"error": {"type": "exceed_context_size_error", "n_prompt_tokens": 9000, "n_ctx": 4096}});
        reply(stream, "400 Bad Request", "", &error.to_string())
    });
    let error = generate(&open(&server, 5000, 5000), &request(1)).0.unwrap_err();
    assert!(
        matches!(
            error,
            EngineError::PromptTooLong {
                tokens: 9000,
                limit: 4096,
                ..
            }
        ),
        "{error}"
    );
}

#[test]
fn a_server_that_ignores_n_is_asked_again_with_the_next_seed() {
    let server = serve(|request, stream| stream_choices(stream, &[&format!("text {}", request.number)]));
    let request = request(3);
    let (outcome, heard) = generate(&open(&server, 5000, 5000), &request);
    assert_eq!(texts(outcome), ["text 0", "text 1", "text 2"]);
    assert_eq!(heard, ["text 0", "text 1", "text 2"]);
    let requests = server.requests.lock().unwrap();
    for (idx, sent) in requests.iter().enumerate() {
        assert_eq!(sent["seed"], request.seeds[idx].0 & 0x7fff_ffff);
    }
    assert_eq!(
        (&requests[0]["n"], &requests[1]["n"], requests[2].get("n")),
        (&json!(3), &json!(2), None)
    );
}

#[test]
fn greedy_samples_are_asked_for_once() {
    let server = serve(|_, stream| stream_choices(stream, &["same"]));
    let mut request = request(3);
    request.sampling.temperature = 0.0;
    let (outcome, heard) = generate(&open(&server, 5000, 5000), &request);
    assert_eq!(texts(outcome), ["same"; 3]);
    assert_eq!(heard, ["same"; 3]);
    assert_eq!(server.requests.lock().unwrap().len(), 1);
}

#[test]
fn broken_replies_are_asked_for_again_and_heard_once() {
    let server = serve(|request, stream| {
        match request.number {
            // Not JSON.
            0 => {
                stream_head(stream);
                event(stream, "{\"choices\": [oops");
            }
            // Cut in a choice.
            1 => {
                stream_head(stream);
                event(stream, &part(0, "the answer", None));
            }
            // Cut in the head.
            2 => stream.write_all(b"HTTP/1.1 200 OK\r\ncontent-ty").unwrap(),
            // Shorter than it says.
            3 => stream
                .write_all(b"HTTP/1.1 200 OK\r\ncontent-type: application/json\r\ncontent-length: 9999\r\n\r\n{}")
                .unwrap(),
            _ => {
                stream_choices(stream, &["the answer is here"]);
            }
        }
        false
    });
    let (outcome, heard) = generate(&open(&server, 5000, 30_000), &request(1));
    assert_eq!(texts(outcome), ["the answer is here"]);
    assert_eq!(heard, ["the answer is here"]);
    assert_eq!(server.requests.lock().unwrap().len(), 5);
}

#[test]
fn a_text_that_differs_after_a_cut_is_an_error_not_a_mixture() {
    let server = serve(|request, stream| {
        if request.number > 0 {
            return stream_choices(stream, &["another text"]);
        }
        stream_head(stream);
        event(stream, &part(0, "one text", None));
        false
    });
    let said = message(generate(&open(&server, 5000, 10_000), &request(1)).0, &server);
    assert!(said.contains("another text"), "{said}");
}

#[test]
fn silence_and_endless_waits_end_in_time() {
    // Never answers, or stops in the middle.
    for begins in [false, true] {
        let server = serve(move |_, stream| {
            if begins {
                stream_head(stream);
                event(stream, &part(0, "so", None));
            }
            let _ = stream.read(&mut [0]);
            false
        });
        let started = Instant::now();
        let said = message(generate(&open(&server, 300, 600), &request(1)).0, &server);
        assert!(said.contains("in time") || said.contains("silent"), "{said}");
        assert!(started.elapsed() < Duration::from_secs(3));
    }
    // Always says something, never ends.
    let server = serve(|_, stream| {
        stream_head(stream);
        while stream.write_all(b": still here\n\n").is_ok() {
            std::thread::sleep(Duration::from_millis(20));
        }
        false
    });
    let started = Instant::now();
    message(generate(&open(&server, 300, 600), &request(1)).0, &server);
    assert!(started.elapsed() < Duration::from_secs(3));
}

#[test]
fn cancelling_ends_a_wait_at_once_and_closes_the_connection() {
    let (sender, closed) = std::sync::mpsc::channel();
    let sender = Mutex::new(sender);
    let server = serve(move |_, stream| {
        // Nothing is sent; reading ends when the client hangs up.
        let _ = sender
            .lock()
            .unwrap()
            .send(matches!(stream.read(&mut [0]), Ok(0) | Err(_)));
        false
    });
    let endpoint = open(&server, 60_000, 60_000);
    let cancel = Cancel::default();
    let flag = cancel.clone();
    let requests = server.requests.clone();
    std::thread::spawn(move || {
        while requests.lock().unwrap().is_empty() {
            std::thread::yield_now();
        }
        flag.cancel();
    });
    let started = Instant::now();
    let outcome = endpoint.generate(&request(1), &cancel, &mut |_| {});
    assert!(matches!(outcome, Err(EngineError::Cancelled)), "{outcome:?}");
    assert!(started.elapsed() < Duration::from_secs(5));
    assert!(
        closed.recv_timeout(Duration::from_secs(5)).unwrap(),
        "the server can stop computing"
    );
}

#[test]
fn cancelling_between_events_and_during_a_pause_ends_the_call() {
    let server = serve(|_, stream| {
        stream_head(stream);
        while event(stream, &part(0, "more ", None)) {}
        false
    });
    let cancel = Cancel::default();
    let mut heard = 0;
    let outcome = open(&server, 60_000, 60_000).generate(&request(1), &cancel, &mut |_| {
        heard += 1;
        cancel.cancel();
    });
    assert!(matches!(outcome, Err(EngineError::Cancelled)), "{outcome:?}");
    assert_eq!(heard, 1);

    let server = serve(|_, stream| reply(stream, "429 Too Many Requests", "retry-after: 60\r\n", "{}"));
    let cancel = Cancel::default();
    let flag = cancel.clone();
    let requests = server.requests.clone();
    std::thread::spawn(move || {
        while requests.lock().unwrap().is_empty() {
            std::thread::yield_now();
        }
        flag.cancel();
    });
    let started = Instant::now();
    let outcome = open(&server, 60_000, 200_000).generate(&request(1), &cancel, &mut |_| {});
    assert!(matches!(outcome, Err(EngineError::Cancelled)), "{outcome:?}");
    assert!(started.elapsed() < Duration::from_secs(5));
}

#[test]
fn what_has_no_bounds_is_cut_off() {
    let server = serve(|_, stream| {
        stream_head(stream);
        let block = vec![b'x'; 1 << 16];
        while stream.write_all(&block).is_ok() {}
        false
    });
    let said = message(generate(&open(&server, 5000, 20_000), &request(1)).0, &server);
    assert!(said.contains("4 MiB"), "{said}");

    let server = serve(|_, stream| {
        let _ = stream.write_all(b"HTTP/1.1 200 OK\r\ncontent-type: application/json\r\n\r\n");
        let block = vec![b' '; 1 << 16];
        while stream.write_all(&block).is_ok() {}
        false
    });
    let said = message(generate(&open(&server, 5000, 20_000), &request(1)).0, &server);
    assert!(said.contains("64 MiB"), "{said}");
}

#[test]
fn plain_replies_odd_events_and_bytes_that_are_no_text_are_read() {
    let server = serve(|request, stream| match request.number {
        0 => reply(stream, "200 OK", "", &whole(&["a", "b", "one too many"])),
        _ => {
            stream_head(stream);
            let odd = b": ping\n\nevent: message\nid: 4\ndata:{\"choices\": [{\"text\":\ndata: \"caf\xff \xc3\xa9\", \"finish_reason\": \"length\"}]}";
            stream.write_all(odd).unwrap();
            false
        }
    });
    let endpoint = open(&server, 5000, 5000);
    let (outcome, heard) = generate(&endpoint, &request(2));
    let (samples, usage) = outcome.unwrap();
    assert_eq!(heard, ["a", "b"]);
    assert_eq!(usage, Usage::default(), "nothing was told");
    assert!(
        samples
            .iter()
            .all(|sample| sample.token_logprobs.is_empty() && sample.token_ids.is_empty())
    );
    // No blank line, no [DONE] at the end.
    assert_eq!(texts(generate(&endpoint, &request(1)).0), ["caf\u{fffd} é"]);
}

#[test]
fn the_completions_route_sends_text_and_reads_its_own_log_probabilities() {
    let server = serve(|request, stream| {
        assert_eq!(request.path, "/v1/completions");
        assert_eq!(request.body["prompt"], "Where is it?\n\n");
        let reply_body = json!({"choices": [{"index": 0, "text": "x y", "finish_reason": "length",
            "logprobs": {"tokens": ["x", " y"], "token_logprobs": [-0.25, -1.5]}}],
            "usage": {"prompt_tokens": 5, "completion_tokens": 2}});
        reply(stream, "200 OK", "", &reply_body.to_string())
    });
    let settings = Settings {
        route: Route::Completions,
        ..settings(&server.url)
    };
    let endpoint = Endpoint::open(settings, None, Timeouts::default()).unwrap();
    let (samples, usage) = generate(&endpoint, &request(1)).0.unwrap();
    assert_eq!(samples[0].token_logprobs, [-0.25, -1.5]);
    assert_eq!(
        usage,
        Usage {
            prompt: 5,
            cached: 0,
            generated: 2
        }
    );
}

#[test]
fn hundreds_of_calls_are_under_way_together_on_few_connections_later() {
    const WORKERS: usize = 200;
    let together = Barrier::new(WORKERS);
    let server = serve(move |request, stream| {
        // The first round is answered only once all its requests are here.
        if request.number < WORKERS {
            together.wait();
        }
        reply(stream, "200 OK", "", &whole(&[&format!("{}", request.body["seed"])]))
    });
    let endpoint = open(&server, 30_000, 30_000);
    for round in 0..2 {
        std::thread::scope(|scope| {
            for worker in 0..WORKERS {
                let endpoint = &endpoint;
                scope.spawn(move || {
                    let seed = Seed(round).derive(worker as u64);
                    let request = Generation {
                        seeds: vec![seed],
                        ..request(1)
                    };
                    assert_eq!(
                        texts(generate(endpoint, &request).0),
                        [format!("{}", seed.0 & 0x7fff_ffff)]
                    );
                });
            }
        });
    }
    assert_eq!(server.requests.lock().unwrap().len(), 2 * WORKERS);
    let connections = server.connections.load(Ordering::Relaxed);
    assert!(
        connections < WORKERS + WORKERS / 2,
        "{connections} connections: the second round opened its own"
    );
}

#[test]
fn prompts_are_counted_by_servers_that_count_and_estimated_for_others() {
    let server = serve(|request, stream| match request.path.as_str() {
        "/tokenize" if request.body.get("messages").is_some() => reply(stream, "200 OK", "", r#"{"count": 17}"#),
        _ => reply(stream, "404 Not Found", "", "{}"),
    });
    let endpoint = open(&server, 5000, 5000);
    assert_eq!(endpoint.count_tokens(&prompt()).unwrap(), 17);

    let server = serve(|_, stream| reply(stream, "404 Not Found", "", "{}"));
    let endpoint = open(&server, 5000, 5000);
    let counts: HashSet<usize> = (0..2).map(|_| endpoint.count_tokens(&prompt()).unwrap()).collect();
    assert!(
        counts.len() == 1 && counts.iter().all(|&count| count >= 7),
        "{counts:?}"
    );
    assert_eq!(server.requests.lock().unwrap().len(), 2, "it is not asked again");
}

#[test]
fn a_server_tells_its_context_or_the_settings_must() {
    let server = serve(|request, stream| match request.path.as_str() {
        "/v1/models" => {
            let models =
                json!({"data": [{"id": "other", "max_model_len": 1}, {"id": "some-model", "max_model_len": 32768}]});
            reply(stream, "200 OK", "", &models.to_string())
        }
        _ => reply(stream, "404 Not Found", "", ""),
    });
    let unknown = Settings {
        context_tokens: None,
        ..settings(&server.url)
    };
    let served = probe(&unknown, None, &Cancel::default()).unwrap();
    assert_eq!(served.models, ["other", "some-model"]);
    assert_eq!(
        Endpoint::open(unknown.clone(), None, Timeouts::default())
            .unwrap()
            .context_tokens(),
        32768
    );

    let silent = serve(|_, stream| reply(stream, "200 OK", "", r#"{"data": []}"#));
    let silent = Settings {
        url: silent.url.clone(),
        ..unknown.clone()
    };
    let error = Endpoint::open(silent, None, Timeouts::default())
        .err()
        .unwrap()
        .to_string();
    assert!(error.contains("--context"), "{error}");

    // A port that was free a moment ago.
    let nobody = TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap();
    let nobody = Settings {
        url: format!("http://{nobody}"),
        ..unknown
    };
    let error = Endpoint::open(nobody, None, Timeouts::default())
        .err()
        .unwrap()
        .to_string();
    assert!(error.contains("start the server"), "{error}");
}
