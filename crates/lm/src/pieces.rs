//! SentencePiece's byte-pair encoding: neighbours are joined, best score first; what is no piece is spelled in bytes.

use std::cmp::Ordering;
use std::collections::{BinaryHeap, HashMap};

use crate::LmError;

/// How vocabularies write a space.
pub const SPACE: &str = "\u{2581}";

pub struct Pieces {
    pub ids: HashMap<String, u32>,
    /// Of each token.
    pub scores: Vec<f32>,
    /// The tokens of the 256 bytes.
    pub bytes: Vec<Option<u32>>,
    pub unknown: Option<u32>,
    /// Whether every text begins as if after a space.
    pub space_first: bool,
}

/// A part of the text that is a piece, or one character; empty once it has been joined to what lies before.
struct Symbol {
    start: usize,
    len: usize,
    before: usize,
    after: usize,
}

const NONE: usize = usize::MAX;

/// Two neighbours that would make a piece.
struct Pair {
    score: f32,
    left: usize,
    right: usize,
    len: usize,
}

impl Ord for Pair {
    /// Better scores first, then what lies further left.
    fn cmp(&self, other: &Pair) -> Ordering {
        let score = self.score.total_cmp(&other.score);
        score.then(other.left.cmp(&self.left))
    }
}

impl PartialOrd for Pair {
    fn partial_cmp(&self, other: &Pair) -> Option<Ordering> {
        Some(self.cmp(other))
    }
}

impl PartialEq for Pair {
    fn eq(&self, other: &Pair) -> bool {
        self.cmp(other).is_eq()
    }
}

impl Eq for Pair {}

impl Pieces {
    /// Appends the tokens of a text. Errors if a byte has no token and there is none for the unknown.
    pub fn encode(&self, text: &str, out: &mut Vec<u32>) -> Result<(), LmError> {
        let first = if self.space_first { " " } else { "" };
        let text = format!("{first}{text}").replace(' ', SPACE);
        let mut symbols: Vec<Symbol> = text
            .char_indices()
            .enumerate()
            .map(|(idx, (start, c))| Symbol {
                start,
                len: c.len_utf8(),
                before: idx.wrapping_sub(1),
                after: idx + 1,
            })
            .collect();
        if let Some(last) = symbols.last_mut() {
            last.after = NONE;
        }
        let pair = |symbols: &[Symbol], left: usize, right: usize| -> Option<Pair> {
            if left == NONE || right == NONE {
                return None;
            }
            let len = symbols[left].len + symbols[right].len;
            let start = symbols[left].start;
            let &id = self.ids.get(&text[start..start + len])?;
            let score = self.scores[id as usize];
            Some(Pair {
                score,
                left,
                right,
                len,
            })
        };
        let mut pairs: BinaryHeap<Pair> = (1..symbols.len())
            .filter_map(|right| pair(&symbols, right - 1, right))
            .collect();
        while let Some(Pair { left, right, len, .. }) = pairs.pop() {
            // One of them may have become part of something else.
            if symbols[left].len == 0 || symbols[right].len == 0 || symbols[left].len + symbols[right].len != len {
                continue;
            }
            let after = symbols[right].after;
            symbols[right].len = 0;
            symbols[left].len = len;
            symbols[left].after = after;
            if after != NONE {
                symbols[after].before = left;
            }
            pairs.extend(pair(&symbols, symbols[left].before, left));
            pairs.extend(pair(&symbols, left, after));
        }
        for symbol in symbols.iter().filter(|symbol| symbol.len > 0) {
            let piece = &text[symbol.start..symbol.start + symbol.len];
            match self.ids.get(piece) {
                Some(&id) => out.push(id),
                None => self.spell(piece, out)?,
            }
        }
        Ok(())
    }

    fn spell(&self, piece: &str, out: &mut Vec<u32>) -> Result<(), LmError> {
        for byte in piece.bytes() {
            let id = self.bytes[usize::from(byte)].or(self.unknown);
            out.push(id.ok_or_else(|| LmError::Tokenizer(format!("no token spells byte {byte}")))?);
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use gym::Seed;

    /// Joins the best pair of all, again and again.
    fn plainly(pieces: &Pieces, text: &str) -> Vec<u32> {
        let mut parts: Vec<String> = text.chars().map(String::from).collect();
        let score = |pair: &[String]| pieces.ids.get(&pair.concat()).map(|&id| pieces.scores[id as usize]);
        loop {
            let best = (0..parts.len().saturating_sub(1))
                .filter_map(|at| Some((at, score(&parts[at..at + 2])?)))
                .fold(None, |best: Option<(usize, f32)>, (at, score)| match best {
                    Some((_, most)) if most >= score => best,
                    _ => Some((at, score)),
                });
            let Some((at, _)) = best else { break };
            let joined = parts.remove(at) + &parts[at];
            parts[at] = joined;
        }
        parts.iter().map(|part| pieces.ids[part]).collect()
    }

    #[test]
    fn joins_the_best_pair_first_whatever_lies_beside_it() {
        let mut rng = Seed(31).rng();
        for _ in 0..50 {
            // All short texts of three letters that a coin chose, in an order that a shuffle chose.
            let mut known = vec!["a".to_string(), "b".into(), "c".into(), SPACE.into()];
            for len in 2..5 {
                for _ in 0..len * 5 {
                    known.push((0..len).map(|_| ["a", "b", "c", SPACE][rng.below(4)]).collect());
                }
            }
            known.sort();
            known.dedup();
            let scores = known.iter().map(|_| -(rng.below(30) as f32)).collect();
            let ids = known.into_iter().zip(0..).collect();
            let pieces = Pieces {
                ids,
                scores,
                bytes: vec![None; 256],
                unknown: None,
                space_first: false,
            };
            for _ in 0..20 {
                let text: String = (0..rng.below(60)).map(|_| ["a", "b", "c", " "][rng.below(4)]).collect();
                let mut ids = Vec::new();
                pieces.encode(&text, &mut ids).unwrap();
                assert_eq!(ids, plainly(&pieces, &text.replace(' ', SPACE)), "{text:?}");
            }
        }
    }
}
