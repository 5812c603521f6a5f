//! Keeps generation inside a [`gym::Grammar`]: a byte automaton, and the tokens that it admits.
//!
//! A state is a set of threads, each at one place of the grammar. A token is admitted when all its
//! bytes can be followed by at least one thread. No state is a dead end.

use std::collections::HashMap;
use std::sync::Arc;

use gym::Grammar;

use crate::LmError;
use crate::kernels::pool::Pool;

enum Node {
    /// The match is complete.
    End,
    /// Complete through the line feed that closed a last line, which is not part of the match.
    LineEnd,
    Literal {
        bytes: Vec<u8>,
        next: usize,
    },
    Line {
        max_bytes: u32,
        next: usize,
    },
    Split(Vec<usize>),
}

const END: usize = 0;
const LINE_END: usize = 1;

#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct Thread {
    node: usize,
    /// Literal: bytes matched. Line: bytes that still fit.
    count: u32,
    /// A character other than white space was read.
    seen: bool,
    /// The character being read: its bits so far, bytes missing, and bounds of the next byte.
    code: u32,
    need: u8,
    low: u8,
    high: u8,
}

pub type State = Vec<Thread>;

pub struct Automaton {
    nodes: Vec<Node>,
    start: State,
}

impl Automaton {
    pub fn new(grammar: &Grammar) -> Result<Automaton, LmError> {
        let mut automaton = Automaton {
            nodes: vec![Node::End, Node::LineEnd],
            start: Vec::new(),
        };
        let first = automaton.compile(grammar, END)?;
        let mut start = Vec::new();
        automaton.enter(first, &mut start);
        automaton.start = start;
        Ok(automaton)
    }

    fn compile(&mut self, grammar: &Grammar, next: usize) -> Result<usize, LmError> {
        let node = match grammar {
            Grammar::Literal(text) if text.is_empty() => return Ok(next),
            Grammar::Literal(text) => Node::Literal {
                bytes: text.clone().into_bytes(),
                next,
            },
            Grammar::Line { max_bytes: 0 } => {
                return Err(LmError::Grammar("a line of at most 0 bytes matches nothing".into()));
            }
            Grammar::Line { max_bytes } => Node::Line {
                max_bytes: u32::try_from(*max_bytes).unwrap_or(u32::MAX),
                next,
            },
            Grammar::Sequence(items) => {
                return items.iter().rev().try_fold(next, |next, item| self.compile(item, next));
            }
            Grammar::OneOf(items) if items.is_empty() => {
                return Err(LmError::Grammar("a choice among nothing matches nothing".into()));
            }
            Grammar::OneOf(items) => {
                let starts = items
                    .iter()
                    .map(|item| self.compile(item, next))
                    .collect::<Result<_, _>>()?;
                Node::Split(starts)
            }
        };
        self.nodes.push(node);
        Ok(self.nodes.len() - 1)
    }

    fn enter(&self, node: usize, out: &mut State) {
        let count = match &self.nodes[node] {
            Node::Split(starts) => return starts.iter().for_each(|&start| self.enter(start, out)),
            Node::Line { max_bytes, .. } => *max_bytes,
            _ => 0,
        };
        let thread = Thread {
            node,
            count,
            seen: false,
            code: 0,
            need: 0,
            low: 0,
            high: 0,
        };
        if !out.contains(&thread) {
            out.push(thread);
        }
    }

    pub fn start(&self) -> State {
        self.start.clone()
    }

    /// The state after one more byte; empty if the byte does not fit.
    pub fn step(&self, state: &[Thread], byte: u8, out: &mut State) {
        out.clear();
        for &thread in state {
            match &self.nodes[thread.node] {
                Node::Literal { bytes, next } => {
                    let at = thread.count as usize;
                    if bytes[at] == byte {
                        if at + 1 == bytes.len() {
                            self.enter(*next, out);
                        } else {
                            out.push(Thread {
                                count: thread.count + 1,
                                ..thread
                            });
                        }
                    }
                }
                Node::Line { next, .. } if byte == b'\n' => {
                    if thread.seen && thread.need == 0 {
                        self.enter(if *next == END { LINE_END } else { *next }, out);
                    }
                }
                Node::Line { .. } => out.extend(line_step(thread, byte)),
                Node::End | Node::LineEnd | Node::Split(_) => {}
            }
        }
        out.sort_unstable();
        out.dedup();
    }

    /// Whether the text so far is a whole match, or is one without its closing line feed.
    pub fn may_end(&self, state: &[Thread]) -> bool {
        state.iter().any(|thread| match self.nodes[thread.node] {
            Node::End | Node::LineEnd => true,
            Node::Line { next, .. } => next == END && thread.seen && thread.need == 0,
            _ => false,
        })
    }

    /// Whether nothing can follow.
    pub fn is_complete(&self, state: &[Thread]) -> bool {
        !state.is_empty() && state.iter().all(|thread| thread.node <= LINE_END)
    }

    /// Whether the last byte was a line feed that is not part of the match.
    pub fn ended_by_line_feed(&self, state: &[Thread]) -> bool {
        !state.is_empty() && state.iter().all(|thread| thread.node == LINE_END)
    }

    /// The state after several bytes; empty if they do not fit.
    pub fn advance(&self, state: &[Thread], bytes: &[u8]) -> State {
        let (mut state, mut next) = (state.to_vec(), Vec::new());
        for &byte in bytes {
            self.step(&state, byte, &mut next);
            std::mem::swap(&mut state, &mut next);
        }
        state
    }

    /// Whether a generated text is a whole match.
    pub fn matches(&self, text: &str) -> bool {
        let state = self.advance(&self.start, text.as_bytes());
        self.may_end(&state) && !self.ended_by_line_feed(&state)
    }
}

fn line_step(thread: Thread, byte: u8) -> Option<Thread> {
    let mut thread = Thread {
        count: thread.count.checked_sub(1)?,
        ..thread
    };
    if thread.need > 0 {
        if byte < thread.low || byte > thread.high {
            return None;
        }
        thread.code = thread.code << 6 | u32::from(byte & 0x3f);
        thread.need -= 1;
        (thread.low, thread.high) = (0x80, 0xbf);
    } else {
        (thread.need, thread.low, thread.high) = match byte {
            0x20..=0x7e => (0, 0, 0),
            0xc2..=0xdf => (1, 0x80, 0xbf),
            0xe0 => (2, 0xa0, 0xbf),
            0xed => (2, 0x80, 0x9f),
            0xe1..=0xef => (2, 0x80, 0xbf),
            0xf0 => (3, 0x90, 0xbf),
            0xf1..=0xf3 => (3, 0x80, 0xbf),
            0xf4 => (3, 0x80, 0x8f),
            _ => return None,
        };
        thread.code = match thread.need {
            0 => u32::from(byte),
            need => u32::from(byte) & (0x3f >> need),
        };
        if thread.count < u32::from(thread.need) {
            return None;
        }
    }
    if thread.need == 0 {
        let character = char::from_u32(thread.code)?;
        if character.is_control() {
            return None;
        }
        thread.seen |= !character.is_whitespace();
        // Only white space so far, and no room for anything else: a dead end.
        if !thread.seen && thread.count == 0 {
            return None;
        }
        (thread.code, thread.low, thread.high) = (0, 0, 0);
    }
    Some(thread)
}

impl Automaton {
    /// Which of some tokens, in the order of their bytes, may follow a state.
    fn walk(&self, state: &State, order: &[(u32, usize)], bytes: &[Vec<u8>], longest: usize, admitted: &mut [bool]) {
        let mut states: Vec<State> = vec![state.clone()];
        states.resize(longest + 1, Vec::new());
        // `states[n]` is the state after n bytes of the current token, for n <= alive.
        let mut alive = 0;
        for (at, (&(id, common), admitted)) in order.iter().zip(admitted).enumerate() {
            let token = &bytes[id as usize];
            // Before the first one there is none.
            let common = if at == 0 { 0 } else { common };
            if common > alive {
                continue; // Begins with bytes that already failed.
            }
            alive = common;
            while alive < token.len() {
                let (done, rest) = states.split_at_mut(alive + 1);
                self.step(&done[alive], token[alive], &mut rest[0]);
                if rest[0].is_empty() {
                    break;
                }
                alive += 1;
            }
            *admitted = alive == token.len();
        }
    }
}

/// Tokens in the order of their bytes, for walking them with shared beginnings.
pub struct Vocabulary {
    /// Token and the number of bytes it shares with the one before.
    order: Vec<(u32, usize)>,
    size: usize,
    longest: usize,
}

impl Vocabulary {
    pub fn new(bytes: &[Vec<u8>]) -> Vocabulary {
        let mut ids: Vec<u32> = (0..bytes.len() as u32)
            .filter(|&id| !bytes[id as usize].is_empty())
            .collect();
        ids.sort_unstable_by(|&a, &b| bytes[a as usize].cmp(&bytes[b as usize]));
        let mut before: &[u8] = &[];
        let mut order = Vec::with_capacity(ids.len());
        for id in ids {
            let now = &bytes[id as usize];
            order.push((id, before.iter().zip(now).take_while(|(a, b)| a == b).count()));
            before = now;
        }
        let longest = bytes.iter().map(Vec::len).max().unwrap_or(0);
        Vocabulary {
            order,
            size: bytes.len(),
            longest,
        }
    }
}

/// Admitted tokens of the states met so far.
#[derive(Default)]
pub struct Masks(HashMap<State, Arc<Vec<bool>>>);

/// Masks kept before starting over: 2048 of 49 kB are 100 MB.
const MOST_MASKS: usize = 2048;

impl Masks {
    /// Which tokens may follow; `end` tokens may if the match may end here.
    pub fn admitted(
        &mut self,
        automaton: &Automaton,
        state: &[Thread],
        vocabulary: &Vocabulary,
        bytes: &[Vec<u8>],
        end: &[u32],
        pool: &Pool,
    ) -> Arc<Vec<bool>> {
        // Room beyond the longest token makes no difference to any token.
        let most = u32::try_from(vocabulary.longest + 1).unwrap_or(u32::MAX);
        let mut key = state.to_vec();
        for thread in &mut key {
            if matches!(automaton.nodes[thread.node], Node::Line { .. }) {
                thread.count = thread.count.min(most);
            }
        }
        if let Some(mask) = self.0.get(&key) {
            return mask.clone();
        }
        let mut admitted = vec![false; vocabulary.order.len()];
        let part = admitted.len().div_ceil(4 * pool.threads()).max(1);
        pool.parts(&mut admitted, part, |idx, admitted| {
            let order = &vocabulary.order[idx * part..][..admitted.len()];
            automaton.walk(&key, order, bytes, vocabulary.longest, admitted);
        });
        let mut mask = vec![false; vocabulary.size];
        for ((id, _), admitted) in vocabulary.order.iter().zip(admitted) {
            mask[*id as usize] = admitted;
        }
        if automaton.may_end(state) {
            for &id in end {
                mask[id as usize] = true;
            }
        }
        if self.0.len() >= MOST_MASKS {
            self.0.clear();
        }
        let mask = Arc::new(mask);
        self.0.insert(key, mask.clone());
        mask
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn action() -> Grammar {
        Grammar::OneOf(vec![
            Grammar::Sequence(vec![
                Grammar::Literal("Search: ".into()),
                Grammar::Line { max_bytes: 12 },
                Grammar::Literal("end".into()),
            ]),
            Grammar::Sequence(vec![
                Grammar::Literal("Answer: ".into()),
                Grammar::Line { max_bytes: 4 },
            ]),
        ])
    }

    #[test]
    fn a_text_matches_exactly_when_the_grammar_spells_it() {
        let automaton = Automaton::new(&action()).unwrap();
        for good in ["Answer: x", "Answer: 🐍", "Answer:   é", "Search: a b\nend"] {
            assert!(automaton.matches(good), "{good:?}");
        }
        for bad in [
            "",
            "Answer: ",
            "Answer:     ",
            "Answer: abcde",
            "Answer: a\n",
            "Answer: \u{85}",
            "Answer: a\tb",
            "Search: a",
            "Search: \nend",
            "Search: a\nend.",
            "Other",
        ] {
            assert!(!automaton.matches(bad), "{bad:?}");
        }
        let state = automaton.advance(&automaton.start(), b"Answer: a\n");
        assert!(automaton.is_complete(&state) && automaton.ended_by_line_feed(&state));
    }

    #[test]
    fn masks_agree_with_stepping_each_token() {
        let automaton = Automaton::new(&action()).unwrap();
        let mut bytes: Vec<Vec<u8>> = (0..=255u8).map(|b| vec![b]).collect();
        bytes.extend(
            [
                "Se",
                "Search: ",
                "Answer: x",
                "a\n",
                "a\nend",
                "\n\n",
                "abcdefghijklm",
                "🐍",
                "",
                "end",
            ]
            .map(|t| t.as_bytes().to_vec()),
        );
        let vocabulary = Vocabulary::new(&bytes);
        let mut masks = Masks::default();
        for text in [
            "",
            "S",
            "Search: ",
            "Search: a",
            "Search: abcdefghijkl",
            "Answer: ",
            "Answer: 🐍",
            "Answer: \u{e9}\u{e9}",
        ] {
            let state = automaton.advance(&automaton.start(), text.as_bytes());
            assert!(!state.is_empty(), "{text}");
            let mask = masks.admitted(&automaton, &state, &vocabulary, &bytes, &[264], &Pool::new(2));
            for (id, token) in bytes.iter().enumerate() {
                let want = match id {
                    264 => automaton.may_end(&state),
                    _ => !automaton.advance(&state, token).is_empty(),
                };
                assert_eq!(mask[id], want, "{text:?} then {token:?}");
            }
            assert!(
                automaton.is_complete(&state) || mask.contains(&true),
                "dead end after {text:?}"
            );
        }
    }
}
