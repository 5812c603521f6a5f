//! One HTTP exchange at a time, on the caller's thread: pooled connections, time limits, cancellation.
//!
//! ureq does HTTP and TLS. It cannot be interrupted while it waits for a server, so [`Watched`] sits
//! between its socket and its TLS layer, waits in short slices, and looks at the caller's flag and
//! limits after each.

use std::cell::RefCell;
use std::io::{self, BufRead, BufReader, Read};
use std::time::{Duration, Instant};

use gym::Cancel;
use serde_json::Value;
use ureq::Agent;
use ureq::tls::{RootCerts, TlsConfig};
use ureq::unversioned::resolver::DefaultResolver;
use ureq::unversioned::transport::time::Duration as Wait;
use ureq::unversioned::transport::{
    Buffers, ConnectionDetails, Connector, NextTimeout, RustlsConnector, TcpConnector, Transport,
};

use super::Timeouts;

/// How often a wait looks at the cancellation flag.
const SLICE: Duration = Duration::from_millis(50);
/// Connections kept open between requests: one for each of several hundred workers.
const IDLE_CONNECTIONS: usize = 1024;
/// Bytes of one reply, and of one line of a stream.
const LARGEST_REPLY: u64 = 64 << 20;
const LARGEST_LINE: u64 = 4 << 20;
/// Of a server's own words in an error.
const QUOTED_CHARS: usize = 300;

/// Why an exchange brought nothing.
#[derive(Debug)]
pub enum Fault {
    Cancelled,
    /// May pass: overload, a server that restarts, a connection or reply that broke off.
    Passing {
        message: String,
        retry_after: Option<Duration>,
    },
    /// 400, 422 or 501: the server may know fewer fields than it was sent. `body` is its reply.
    Refused {
        message: String,
        body: Value,
    },
    Final(String),
}

impl Fault {
    pub fn passing(message: impl Into<String>) -> Fault {
        Fault::Passing {
            message: message.into(),
            retry_after: None,
        }
    }
}

/// What bounds the waits of the call that a thread is in.
#[derive(Clone)]
pub struct Limits {
    pub cancel: Cancel,
    pub deadline: Instant,
    /// Longest wait for the next byte, the first one included.
    pub silence: Duration,
}

thread_local! {
    /// Connections are pooled and outlive calls, so their limits come with the thread, not with them.
    static LIMITS: RefCell<Option<Limits>> = const { RefCell::new(None) };
}

/// Restores the thread's limits when dropped.
struct Limited(Option<Limits>);

impl Limited {
    fn to(limits: &Limits) -> Limited {
        Limited(LIMITS.with(|cell| cell.replace(Some(limits.clone()))))
    }
}

impl Drop for Limited {
    fn drop(&mut self) {
        LIMITS.with(|cell| cell.replace(self.0.take()));
    }
}

pub struct Http {
    agent: Agent,
    key: Option<String>,
}

impl Http {
    pub fn new(key: Option<String>, timeouts: &Timeouts) -> Http {
        // Settings of single requests would make ureq read the certificates again for each.
        let config = Agent::config_builder()
            .http_status_as_error(false)
            // A POST that is redirected becomes a GET with most servers, and the key would travel along.
            .max_redirects(0)
            .max_redirects_will_error(false)
            // From the environment otherwise.
            .proxy(None)
            .timeout_connect(Some(timeouts.connect))
            .max_idle_connections(IDLE_CONNECTIONS)
            .max_idle_connections_per_host(IDLE_CONNECTIONS)
            .tls_config(TlsConfig::builder().root_certs(RootCerts::PlatformVerifier).build())
            .user_agent(concat!("rag-gym/", env!("CARGO_PKG_VERSION")))
            .build();
        let connector = ().chain(TcpConnector::default()).chain(Watch).chain(RustlsConnector::default());
        Http {
            agent: Agent::with_parts(config, connector, DefaultResolver::default()),
            key,
        }
    }

    /// A reply of 2xx whose body is not read yet; anything else is a fault. `body` makes it a POST.
    pub fn send(&self, url: &str, body: Option<&Value>, limits: &Limits) -> Result<Reply, Fault> {
        let _limited = Limited::to(limits);
        let bearer = self.key.as_ref().map(|key| format!("Bearer {key}"));
        let sent = match body {
            Some(body) => {
                let mut request = self.agent.post(url).header("content-type", "application/json");
                if let Some(bearer) = &bearer {
                    request = request.header("authorization", bearer);
                }
                request.send(body.to_string())
            }
            None => {
                let mut request = self.agent.get(url);
                if let Some(bearer) = &bearer {
                    request = request.header("authorization", bearer);
                }
                request.call()
            }
        };
        let response = sent.map_err(|error| self.fault(error, limits))?;
        let status = response.status();
        let header = |name: &str| response.headers().get(name).and_then(|value| value.to_str().ok());
        let retry_after = header("retry-after")
            .and_then(|value| value.trim().parse().ok())
            .map(Duration::from_secs);
        let streamed = header("content-type").is_some_and(|value| value.starts_with("text/event-stream"));
        let reader = response.into_body().into_with_config().limit(LARGEST_REPLY).reader();
        let reply = Reply {
            reader: BufReader::new(Box::new(reader)),
            streamed,
            limits: limits.clone(),
        };
        if status.is_success() {
            return Ok(reply);
        }
        // What the server says of it is worth having, not worth another fault.
        let body = reply.json().unwrap_or(Value::Null);
        let said = said(&body).map_or(String::new(), |said| format!(": {}", self.quoted(said)));
        let message = format!("the server answers {status}{said}");
        Err(match status.as_u16() {
            408 | 425 | 429 | 500 | 502.. => Fault::Passing { message, retry_after },
            400 | 422 | 501 => Fault::Refused { message, body },
            401 | 403 if self.key.is_none() => Fault::Final(format!(
                "{message}: it wants a key; put it in a variable and name that with --key-env"
            )),
            401 | 403 => Fault::Final(format!(
                "{message}: it does not accept the key in the variable of --key-env"
            )),
            404 | 405 => Fault::Final(format!(
                "{message}: check the URL, which mostly ends in /v1, and the model's name"
            )),
            300..400 => Fault::Final(format!("{message}: give the URL that it redirects to")),
            _ => Fault::Final(message),
        })
    }

    fn fault(&self, error: ureq::Error, limits: &Limits) -> Fault {
        if limits.cancel.is_cancelled() {
            return Fault::Cancelled;
        }
        match error {
            ureq::Error::Io(error) if error.kind() == io::ErrorKind::ConnectionRefused => {
                Fault::passing("nothing listens there: start the server, or correct the URL")
            }
            // What TLS refuses, it refuses again.
            ureq::Error::Io(error) if error.kind() == io::ErrorKind::InvalidData => Fault::Final(format!(
                "no secure connection: {error}; the server's authority must be in the system's store, or in SSL_CERT_FILE"
            )),
            ureq::Error::Io(error) => Fault::passing(format!("the connection failed: {error}")),
            ureq::Error::Timeout(ureq::Timeout::Connect) => Fault::passing("no connection came about in time"),
            ureq::Error::Timeout(_) => Fault::passing("the server did not answer in time"),
            ureq::Error::HostNotFound => Fault::passing("the host is not known: correct the URL, or check the network"),
            ureq::Error::Protocol(error) => Fault::passing(format!("the reply is not HTTP: {error}")),
            other => Fault::Final(self.quoted(&other.to_string())),
        }
    }

    /// Without the key, which some servers repeat.
    pub fn without_key(&self, text: &str) -> String {
        match self.key.as_deref() {
            Some(key) if !key.is_empty() => text.replace(key, "[key]"),
            _ => text.to_owned(),
        }
    }

    /// A server's words: short, on one line, and without the key.
    pub fn quoted(&self, text: &str) -> String {
        let text = self.without_key(&text.split_whitespace().collect::<Vec<_>>().join(" "));
        match text.char_indices().nth(QUOTED_CHARS) {
            Some((at, _)) => format!("{}…", &text[..at]),
            None => text,
        }
    }
}

/// The message of an error object: `{"error": {"message": …}}`, `{"error": …}` or `{"message": …}`.
pub fn said(body: &Value) -> Option<&str> {
    let error = body.get("error").unwrap_or(body);
    error
        .as_str()
        .or_else(|| error.get("message")?.as_str())
        .or_else(|| body.get("detail")?.as_str())
}

/// A body that is still to be read.
pub struct Reply {
    reader: BufReader<Box<dyn Read>>,
    /// Server-sent events; one JSON document otherwise.
    pub streamed: bool,
    limits: Limits,
}

impl Reply {
    /// The whole body as one document. Bytes that are not UTF-8 become U+FFFD.
    pub fn json(mut self) -> Result<Value, Fault> {
        let _limited = Limited::to(&self.limits);
        let mut bytes = Vec::new();
        let read = self.reader.read_to_end(&mut bytes);
        read.map_err(|error| broken(&self.limits, &error))?;
        serde_json::from_str(&String::from_utf8_lossy(&bytes))
            .map_err(|error| Fault::passing(format!("the reply is not JSON: {error}")))
    }

    /// The data of each event, up to `[DONE]` or the end, while `on_event` wants more.
    pub fn events(mut self, on_event: &mut dyn FnMut(&str) -> Result<(), Fault>) -> Result<(), Fault> {
        let _limited = Limited::to(&self.limits);
        let mut data = String::new();
        let mut line = Vec::new();
        loop {
            if self.limits.cancel.is_cancelled() {
                return Err(Fault::Cancelled);
            }
            line.clear();
            let read = (&mut self.reader).take(LARGEST_LINE).read_until(b'\n', &mut line);
            let ended = read.map_err(|error| broken(&self.limits, &error))? == 0;
            if line.len() as u64 == LARGEST_LINE {
                return Err(Fault::Final("the server sends a line of more than 4 MiB".into()));
            }
            let text = String::from_utf8_lossy(&line);
            let text = text.trim_end_matches(['\r', '\n']);
            if (text.is_empty() || ended) && !data.is_empty() {
                if data == "[DONE]" {
                    return Ok(());
                }
                on_event(&data)?;
                data.clear();
            }
            if ended {
                return Ok(());
            }
            // Comments, names and ids of events carry nothing for us.
            if let Some(more) = text.strip_prefix("data:") {
                if !data.is_empty() {
                    data.push('\n');
                }
                data.push_str(more.strip_prefix(' ').unwrap_or(more));
            }
        }
    }
}

fn broken(limits: &Limits, error: &io::Error) -> Fault {
    if limits.cancel.is_cancelled() {
        return Fault::Cancelled;
    }
    match error.get_ref().and_then(|inner| inner.downcast_ref::<ureq::Error>()) {
        Some(ureq::Error::BodyExceedsLimit(bytes)) => {
            Fault::Final(format!("the reply is larger than {} MiB", bytes >> 20))
        }
        Some(ureq::Error::Timeout(_)) => Fault::passing("the server fell silent in the middle of its reply"),
        _ => Fault::passing(format!("the reply broke off: {error}")),
    }
}

#[derive(Debug)]
struct Watch;

impl<In: Transport> Connector<In> for Watch {
    type Out = Watched<In>;

    fn connect(&self, _: &ConnectionDetails, chained: Option<In>) -> Result<Option<Self::Out>, ureq::Error> {
        Ok(chained.map(Watched))
    }
}

/// A connection whose waits end with the calling thread's [`Limits`].
#[derive(Debug)]
struct Watched<T>(T);

impl<T: Transport> Transport for Watched<T> {
    fn buffers(&mut self) -> &mut dyn Buffers {
        self.0.buffers()
    }

    fn transmit_output(&mut self, amount: usize, timeout: NextTimeout) -> Result<(), ureq::Error> {
        self.0.transmit_output(amount, timeout)
    }

    fn await_input(&mut self, timeout: NextTimeout) -> Result<bool, ureq::Error> {
        let Some(limits) = LIMITS.with(|cell| cell.borrow().clone()) else {
            return self.0.await_input(timeout);
        };
        let started = Instant::now();
        let longest = limits
            .silence
            .min(*timeout.after)
            .min(limits.deadline.saturating_duration_since(started));
        loop {
            if limits.cancel.is_cancelled() {
                return Err(io::Error::new(io::ErrorKind::ConnectionAborted, "cancelled").into());
            }
            let left = longest.saturating_sub(started.elapsed());
            if left.is_zero() {
                return Err(ureq::Error::Timeout(timeout.reason));
            }
            match self.0.await_input(NextTimeout {
                after: Wait::Exact(left.min(SLICE)),
                ..timeout
            }) {
                Err(ureq::Error::Timeout(_)) => {}
                other => return other,
            }
        }
    }

    fn is_open(&mut self) -> bool {
        self.0.is_open()
    }

    fn is_tls(&self) -> bool {
        self.0.is_tls()
    }
}
