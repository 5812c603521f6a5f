//! Many token sequences that share beginnings, packed into one batch without repeating what they share.

use std::ops::Range;

/// Shorter beginnings are repeated: a segment of a few rows costs attention more than it saves.
const LEAST: usize = 8;

/// A run of consecutive rows. A row sees all rows of the segment's ancestors, and those of its own
/// segment up to itself, or all of them where the forest is seen both ways.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Segment {
    pub rows: Range<usize>,
    pub parent: Option<usize>,
}

/// Trees of segments, one row per token; parents come before their children.
#[derive(Clone, Debug, Default)]
pub struct Forest {
    pub tokens: Vec<u32>,
    /// Distance from the root's first token, per row: what rotates queries and keys.
    pub positions: Vec<u32>,
    pub segments: Vec<Segment>,
    /// Rows see what comes after them in their segment too, as in encoders.
    pub both_ways: bool,
}

impl Forest {
    /// Adds sequences, which share rows among themselves only. Returns the rows of each one's tokens.
    pub fn push(&mut self, sequences: &[Vec<u32>]) -> Vec<Vec<usize>> {
        let mut rows = vec![Vec::new(); sequences.len()];
        self.branch(None, 0, (0..sequences.len()).collect(), sequences, &mut rows);
        rows
    }

    /// Adds a sequence and what may follow it, each without its siblings. Returns the rows of each of those.
    pub fn push_family(&mut self, first: &[u32], following: &[Vec<u32>]) -> Vec<Range<usize>> {
        let parent = self.segments.len();
        self.segment(first, 0, None);
        following
            .iter()
            .map(|tokens| self.segment(tokens, first.len(), Some(parent)))
            .collect()
    }

    /// Adds a segment whose first token is `depth` away from the root's; returns its rows.
    fn segment(&mut self, tokens: &[u32], depth: usize, parent: Option<usize>) -> Range<usize> {
        let rows = self.tokens.len()..self.tokens.len() + tokens.len();
        self.tokens.extend_from_slice(tokens);
        self.positions.extend(depth as u32..(depth + tokens.len()) as u32);
        self.segments.push(Segment {
            rows: rows.clone(),
            parent,
        });
        rows
    }

    /// Adds what follows `depth` tokens, which are those of `parent` and its ancestors, in each sequence of a `group`.
    fn branch(
        &mut self,
        parent: Option<usize>,
        depth: usize,
        group: Vec<usize>,
        sequences: &[Vec<u32>],
        rows: &mut [Vec<usize>],
    ) {
        let next = |idx: usize| sequences[idx].get(depth..depth + LEAST);
        let mut groups: Vec<Vec<usize>> = Vec::new();
        for idx in group {
            let alike = groups
                .iter_mut()
                .find(|group| next(idx).is_some() && next(group[0]) == next(idx));
            match alike {
                Some(group) => group.push(idx),
                None => groups.push(vec![idx]),
            }
        }
        for mut group in groups {
            let first = &sequences[group[0]];
            let ends = group.iter().map(|&idx| common(first, &sequences[idx]));
            let end = ends.min().unwrap_or(depth);
            let added = self.segment(&first[depth..end], depth, parent);
            for &idx in &group {
                rows[idx].extend(added.clone());
            }
            group.retain(|&idx| sequences[idx].len() > end);
            self.branch(Some(self.segments.len() - 1), end, group, sequences, rows);
        }
    }

    pub fn rows(&self) -> usize {
        self.tokens.len()
    }

    /// Ancestors of a segment, nearest first.
    pub fn ancestors(&self, segment: usize) -> impl Iterator<Item = usize> {
        std::iter::successors(self.segments[segment].parent, |&idx| self.segments[idx].parent)
    }
}

/// Tokens that two sequences have in common at their beginnings.
pub fn common(a: &[u32], b: &[u32]) -> usize {
    a.iter().zip(b).take_while(|(a, b)| a == b).count()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn sequences_keep_their_tokens_and_share_their_beginnings() {
        let begin: Vec<u32> = (0..20).collect();
        let with = |prefix: usize, rest: &[u32]| [&begin[..prefix], rest].concat();
        let sequences = [
            with(20, &[30, 31]),
            with(12, &[40]),
            with(20, &[30, 32]),
            with(4, &[50]),
            with(12, &[]),
            with(12, &[40]),
        ];
        let mut forest = Forest::default();
        let before = forest.push(&[vec![7; 9]]);
        let rows = forest.push(&sequences);
        for (sequence, rows) in sequences.iter().zip(&rows) {
            let tokens: Vec<u32> = rows.iter().map(|&row| forest.tokens[row]).collect();
            assert_eq!(&tokens, sequence);
            assert!(rows.iter().zip(0..).all(|(&row, at)| forest.positions[row] == at));
        }
        // 9 apart; 12 shared by five; 9 by two of them; ends of one; and a stranger.
        assert_eq!(forest.rows(), 9 + 12 + 9 + 1 + 1 + 1 + 1 + 5);
        assert_eq!(before, [(0..9).collect::<Vec<_>>()]);
        for segment in 0..forest.segments.len() {
            assert!(!forest.segments[segment].rows.is_empty());
            assert!(forest.ancestors(segment).all(|above| above < segment));
        }
    }
}
