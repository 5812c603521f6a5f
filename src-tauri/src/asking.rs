//! What a command needs to report while it works: batches for the page, and a way to be stopped.

use std::collections::HashMap;
use std::sync::{Mutex, PoisonError};
use std::time::{Duration, Instant};

use studio::Cancel;
use studio::view::{AskEvent, Progress};
use tauri::ipc::Channel;

/// How long events gather before they cross to the page.
const TICK: Duration = Duration::from_millis(30);

/// Work the page can stop, by the page's own key.
#[derive(Default)]
pub struct Tasks(Mutex<HashMap<String, Cancel>>);

impl Tasks {
    pub fn begin(&self, key: &str) -> Cancel {
        let cancel = Cancel::default();
        let mut tasks = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        tasks.insert(key.to_owned(), cancel.clone());
        cancel
    }

    pub fn end(&self, key: &str) {
        self.0.lock().unwrap_or_else(PoisonError::into_inner).remove(key);
    }

    pub fn stop(&self, key: &str) {
        if let Some(cancel) = self.0.lock().unwrap_or_else(PoisonError::into_inner).get(key) {
            cancel.cancel();
        }
    }
}

/// Gathers events and sends them once a tick; tokens of one candidate join into one.
pub struct Batcher {
    channel: Channel<Vec<AskEvent>>,
    waiting: Vec<AskEvent>,
    sent: Instant,
}

impl Batcher {
    pub fn new(channel: Channel<Vec<AskEvent>>) -> Self {
        Self {
            channel,
            waiting: Vec::new(),
            sent: Instant::now(),
        }
    }

    pub fn push(&mut self, event: AskEvent) {
        let streams = matches!(event, AskEvent::Token { .. } | AskEvent::ReaderToken { .. });
        join(&mut self.waiting, event);
        if !streams || self.sent.elapsed() >= TICK {
            self.flush();
        }
    }

    /// A page that is gone hears nothing; the work is stopped by its own key.
    pub fn flush(&mut self) {
        if !self.waiting.is_empty() {
            let _ = self.channel.send(std::mem::take(&mut self.waiting));
        }
        self.sent = Instant::now();
    }
}

fn join(waiting: &mut Vec<AskEvent>, event: AskEvent) {
    match &event {
        AskEvent::Token { sample_idx, text } => {
            let open = waiting.iter_mut().rev().map_while(|earlier| match earlier {
                AskEvent::Token { sample_idx, text } => Some((*sample_idx, text)),
                _ => None,
            });
            for (idx, earlier) in open {
                if idx == *sample_idx {
                    earlier.push_str(text);
                    return;
                }
            }
        }
        AskEvent::ReaderToken { text } => {
            if let Some(AskEvent::ReaderToken { text: earlier }) = waiting.last_mut() {
                earlier.push_str(text);
                return;
            }
        }
        _ => {}
    }
    waiting.push(event);
}

/// Progress at most once a tick, and always the last.
pub struct Meter {
    channel: Channel<Progress>,
    sent: Option<Instant>,
}

impl Meter {
    pub fn new(channel: Channel<Progress>) -> Self {
        Self { channel, sent: None }
    }

    pub fn report(&mut self, progress: Progress) {
        let due = self.sent.is_none_or(|sent| sent.elapsed() >= TICK);
        if due || (progress.total > 0.0 && progress.done >= progress.total) {
            let _ = self.channel.send(progress);
            self.sent = Some(Instant::now());
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn token(sample_idx: u32, text: &str) -> AskEvent {
        AskEvent::Token {
            sample_idx,
            text: text.to_owned(),
        }
    }

    #[test]
    fn tokens_of_one_candidate_join_and_keep_their_order() {
        let mut waiting = Vec::new();
        for event in [token(0, "a"), token(1, "x"), token(0, "b"), token(1, "y")] {
            join(&mut waiting, event);
        }
        assert_eq!(waiting, [token(0, "ab"), token(1, "xy")]);
    }

    #[test]
    fn tokens_do_not_join_across_another_event() {
        let mut waiting = Vec::new();
        for event in [token(0, "a"), AskEvent::Cancelled, token(0, "b")] {
            join(&mut waiting, event);
        }
        assert_eq!(waiting, [token(0, "a"), AskEvent::Cancelled, token(0, "b")]);
    }
}
