//! Many token sequences that share beginnings, packed into one batch without repeating what they share.

use std::ops::Range;

/// A run of consecutive rows. A row sees all rows of the segment's ancestors, and those of its own
/// segment up to itself.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Segment {
    pub rows: Range<usize>,
    pub parent: Option<usize>,
}

/// Trees of segments, one row per token.
#[derive(Clone, Debug, Default)]
pub struct Forest {
    pub tokens: Vec<u32>,
    /// Distance from the root's first token, per row: what rotates queries and keys.
    pub positions: Vec<u32>,
    pub segments: Vec<Segment>,
}

impl Forest {
    /// Adds a segment after its parent's last token; returns its index.
    pub fn push(&mut self, parent: Option<usize>, tokens: &[u32]) -> usize {
        let first = match parent.map(|parent| &self.segments[parent].rows) {
            Some(rows) if !rows.is_empty() => self.positions[rows.end - 1] + 1,
            _ => 0,
        };
        let start = self.tokens.len();
        self.tokens.extend_from_slice(tokens);
        self.positions.extend((0..tokens.len() as u32).map(|i| first + i));
        self.segments.push(Segment {
            rows: start..self.tokens.len(),
            parent,
        });
        self.segments.len() - 1
    }

    pub fn rows(&self) -> usize {
        self.tokens.len()
    }

    /// Ancestors of a segment, nearest first.
    pub fn ancestors(&self, segment: usize) -> impl Iterator<Item = usize> {
        std::iter::successors(self.segments[segment].parent, |&idx| self.segments[idx].parent)
    }

    /// For each token of a segment, the row whose output predicts it: the parent's last row for the first
    /// token, then the row before.
    pub fn predictors(&self, segment: usize) -> impl Iterator<Item = usize> {
        let Segment { rows, parent } = self.segments[segment].clone();
        let before = parent.map(|parent| self.segments[parent].rows.end - 1);
        rows.clone()
            .zip(0..)
            .filter_map(move |(row, i)| if i == 0 { before } else { Some(row - 1) })
    }
}
