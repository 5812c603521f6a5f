//! Standard output for results, standard error for people.

use std::io::{IsTerminal, Write};
use std::time::{Duration, Instant};

use anyhow::{Context, Result};

/// One line on standard error.
pub fn note(line: &str) {
    // Nobody is left to tell if standard error is closed.
    let _ = writeln!(std::io::stderr(), "{line}");
}

/// One line on standard output.
pub fn line(text: &str) -> Result<()> {
    writeln!(std::io::stdout(), "{text}").context("cannot write to standard output")
}

pub fn json(value: &impl serde::Serialize) -> Result<()> {
    line(&serde_json::to_string(value)?)
}

/// Progress on standard error: a line that rewrites itself on a terminal, else one every few seconds.
pub struct Progress {
    last: Option<Instant>,
    every: Duration,
    terminal: bool,
}

impl Progress {
    pub fn new() -> Progress {
        let terminal = std::io::stderr().is_terminal();
        Progress {
            last: None,
            every: Duration::from_millis(if terminal { 100 } else { 5000 }),
            terminal,
        }
    }

    pub fn show(&mut self, text: &str) {
        if self.last.is_some_and(|last| last.elapsed() < self.every) {
            return;
        }
        self.last = Some(Instant::now());
        if self.terminal {
            let _ = write!(std::io::stderr(), "\r\x1b[K{text}");
        } else {
            note(text);
        }
    }
}

impl Drop for Progress {
    fn drop(&mut self) {
        if self.terminal && self.last.is_some() {
            let _ = writeln!(std::io::stderr());
        }
    }
}
