//! Attention over a forest, and its backward pass. Probabilities are never kept: the backward pass
//! computes them again, block by block, from the logarithm of each row's sum.

use rayon::prelude::*;

use crate::elementwise::{dot, exp, vectorised};
use crate::forest::Forest;
use crate::matrix::{Panels, View, multiply_here};

/// Query rows whose scores exist at a time.
const BLOCK: usize = 48;

/// Head counts and width.
#[derive(Clone, Copy, Debug)]
pub struct Heads {
    pub heads: usize,
    pub kv_heads: usize,
    pub dim: usize,
}

/// Rotated queries and keys, and values: (rows, heads, dim), flat.
pub struct Projected<'a> {
    pub q: &'a [f32],
    pub k: &'a [f32],
    pub v: &'a [f32],
}

/// Returns the attended values, (rows, heads, dim), and the logarithms of the softmax's sums,
/// (heads, rows).
pub fn attend(heads: Heads, forest: &Forest, of: &Projected<'_>) -> (Vec<f32>, Vec<f32>) {
    let (rows, dim) = (forest.rows(), heads.dim);
    let per_head: Vec<(Vec<f32>, Vec<f32>)> = (0..heads.heads)
        .into_par_iter()
        .with_max_len(1)
        .map(|head| {
            let sight = Sight::new(heads, forest, of, head);
            let mut out = vec![0.0; rows * dim];
            let mut sums = vec![0.0; rows];
            sight.blocks(|block| {
                let (from, to) = (block.rows.start, block.rows.end);
                let mut scores = sight.scores(block);
                for (row, scores) in (from..to).zip(scores.chunks_exact_mut(block.width)) {
                    sums[row] = softmax(&mut scores[..block.visible(row)], sight.scale);
                    scores[block.visible(row)..].fill(0.0);
                }
                let scores = View::new(&scores, to - from, block.width);
                for (idx, part) in block.parts.iter().enumerate() {
                    let seen = scores.columns(part.at..part.at + part.rows);
                    let values = sight.values[part.segment].first(part.rows, dim);
                    multiply_here(seen, values, &mut out[from * dim..to * dim], dim, idx > 0);
                }
            });
            (out, sums)
        })
        .collect();
    let mut out = vec![0.0; rows * heads.heads * dim];
    let mut sums = Vec::with_capacity(heads.heads * rows);
    for (head, (values, head_sums)) in per_head.iter().enumerate() {
        for (out, values) in out.chunks_exact_mut(heads.heads * dim).zip(values.chunks_exact(dim)) {
            out[head * dim..][..dim].copy_from_slice(values);
        }
        sums.extend_from_slice(head_sums);
    }
    (out, sums)
}

/// Gradients of queries, keys and values, shaped like them. `out` and `sums` are what [`attend`]
/// returned, `d_out` is the gradient of `out`.
pub fn attend_backward(
    heads: Heads,
    forest: &Forest,
    of: &Projected<'_>,
    out: &[f32],
    sums: &[f32],
    d_out: &[f32],
) -> [Vec<f32>; 3] {
    let (rows, dim) = (forest.rows(), heads.dim);
    let (q_width, kv_width) = (heads.heads * dim, heads.kv_heads * dim);
    let per_head: Vec<[Vec<f32>; 3]> = (0..heads.heads)
        .into_par_iter()
        .with_max_len(1)
        .map(|head| {
            let sight = Sight::new(heads, forest, of, head);
            let strip = head * dim..(head + 1) * dim;
            let values: Vec<Panels> = sight.pack(of.v, true);
            let keys: Vec<Panels> = sight.pack(of.k, false);
            let d_out_head = View::new(d_out, rows, q_width).columns(strip.clone());
            let q_head = View::new(of.q, rows, q_width).columns(strip.clone());
            let [mut dq, mut dk, mut dv] = [(); 3].map(|()| vec![0.0; rows * dim]);
            sight.blocks(|block| {
                let (from, to) = (block.rows.start, block.rows.end);
                let mut probabilities = sight.scores(block);
                let mut d_scores = vec![0.0; probabilities.len()];
                let d_out_block = d_out_head.rows(from..to);
                for part in &block.parts {
                    let values = values[part.segment].first(dim, part.rows);
                    multiply_here(d_out_block, values, &mut d_scores[part.at..], block.width, false);
                }
                vectorised(
                    #[inline(always)]
                    || {
                        let both = probabilities
                            .chunks_exact_mut(block.width)
                            .zip(d_scores.chunks_exact_mut(block.width));
                        for (row, (p, ds)) in (from..to).zip(both) {
                            let at = row * q_width + head * dim;
                            let along = dot(&out[at..at + dim], &d_out[at..at + dim]);
                            let sum = sums[head * rows + row];
                            let visible = block.visible(row);
                            for (p, ds) in p[..visible].iter_mut().zip(&mut ds[..visible]) {
                                *p = exp(*p * sight.scale - sum);
                                *ds = *p * (*ds - along) * sight.scale;
                            }
                            p[visible..].fill(0.0);
                            ds[visible..].fill(0.0);
                        }
                    },
                );
                let q_block = Panels::packed(q_head.rows(from..to));
                let d_out_block = Panels::packed(d_out_block);
                let probabilities = View::new(&probabilities, to - from, block.width);
                let d_scores = View::new(&d_scores, to - from, block.width);
                for part in &block.parts {
                    let columns = part.at..part.at + part.rows;
                    let first = forest.segments[part.segment].rows.start;
                    let target = first * dim..(first + part.rows) * dim;
                    let (p, ds) = (probabilities.columns(columns.clone()), d_scores.columns(columns));
                    multiply_here(p.transposed(), d_out_block.all(), &mut dv[target.clone()], dim, true);
                    multiply_here(ds.transposed(), q_block.all(), &mut dk[target], dim, true);
                    let keys = keys[part.segment].first(part.rows, dim);
                    multiply_here(ds, keys, &mut dq[from * dim..to * dim], dim, true);
                }
            });
            [dq, dk, dv]
        })
        .collect();
    let mut gradients = [rows * q_width, rows * kv_width, rows * kv_width].map(|len| vec![0.0; len]);
    for (head, parts) in per_head.iter().enumerate() {
        let kv_head = head / (heads.heads / heads.kv_heads);
        let places = [(q_width, head), (kv_width, kv_head), (kv_width, kv_head)];
        for ((gradient, part), (width, strip)) in gradients.iter_mut().zip(parts).zip(places) {
            for (out, part) in gradient.chunks_exact_mut(width).zip(part.chunks_exact(dim)) {
                out[strip * dim..][..dim]
                    .iter_mut()
                    .zip(part)
                    .for_each(|(out, x)| *out += x);
            }
        }
    }
    gradients
}

/// Turns scores into probabilities; returns the logarithm of their sum.
fn softmax(scores: &mut [f32], scale: f32) -> f32 {
    vectorised(
        #[inline(always)]
        || {
            let most = scores.iter().copied().fold(f32::NEG_INFINITY, f32::max) * scale;
            let mut sums = [0.0; 16];
            let (whole, rest) = scores.as_chunks_mut::<16>();
            for chunk in whole {
                for (x, sum) in chunk.iter_mut().zip(&mut sums) {
                    *x = exp(x.mul_add(scale, -most));
                    *sum += *x;
                }
            }
            for (x, sum) in rest.iter_mut().zip(&mut sums) {
                *x = exp(x.mul_add(scale, -most));
                *sum += *x;
            }
            let sum: f32 = sums.iter().sum();
            scores.iter_mut().for_each(|x| *x /= sum);
            most + sum.ln()
        },
    )
}

/// What one head sees: keys and values of its group, packed by segment.
struct Sight<'a> {
    forest: &'a Forest,
    queries: View<'a>,
    /// (dim, rows) per segment.
    keys: Vec<Panels>,
    /// (rows, dim) per segment.
    values: Vec<Panels>,
    kv_head: usize,
    dim: usize,
    scale: f32,
}

/// Some rows of a segment and the columns that they see: all ancestors, then the segment itself.
struct Block {
    rows: std::ops::Range<usize>,
    parts: Vec<Visible>,
    width: usize,
    both_ways: bool,
}

/// The first rows of a segment, as columns from `at` on.
struct Visible {
    segment: usize,
    rows: usize,
    at: usize,
}

impl Block {
    /// Columns that a row sees.
    fn visible(&self, row: usize) -> usize {
        match self.both_ways {
            true => self.width,
            false => self.width - (self.rows.end - 1 - row),
        }
    }
}

impl<'a> Sight<'a> {
    fn new(heads: Heads, forest: &'a Forest, of: &Projected<'a>, head: usize) -> Sight<'a> {
        let dim = heads.dim;
        let queries = View::new(of.q, forest.rows(), heads.heads * dim).columns(head * dim..(head + 1) * dim);
        let mut sight = Sight {
            forest,
            queries,
            keys: Vec::new(),
            values: Vec::new(),
            kv_head: head / (heads.heads / heads.kv_heads),
            dim,
            scale: 1.0 / (dim as f32).sqrt(),
        };
        sight.keys = sight.pack(of.k, true);
        sight.values = sight.pack(of.v, false);
        sight
    }

    fn pack(&self, from: &[f32], transposed: bool) -> Vec<Panels> {
        let rows = self.forest.rows();
        let strip = self.kv_head * self.dim..(self.kv_head + 1) * self.dim;
        let view = View::new(from, rows, from.len() / rows.max(1)).columns(strip);
        let pack = |rows: std::ops::Range<usize>| {
            let view = view.rows(rows);
            Panels::packed(if transposed { view.transposed() } else { view })
        };
        self.forest
            .segments
            .iter()
            .map(|segment| pack(segment.rows.clone()))
            .collect()
    }

    fn blocks(&self, mut each: impl FnMut(&Block)) {
        for (idx, segment) in self.forest.segments.iter().enumerate() {
            let mut above = Vec::new();
            let mut at = 0;
            for ancestor in self.forest.ancestors(idx) {
                let rows = self.forest.segments[ancestor].rows.len();
                above.push((ancestor, rows, at));
                at += rows;
            }
            for from in segment.rows.clone().step_by(BLOCK) {
                let to = segment.rows.end.min(from + BLOCK);
                let both_ways = self.forest.both_ways;
                let own = if both_ways { segment.rows.end } else { to } - segment.rows.start;
                let parts = above.iter().copied().chain([(idx, own, at)]);
                each(&Block {
                    rows: from..to,
                    parts: parts.map(|(segment, rows, at)| Visible { segment, rows, at }).collect(),
                    width: at + own,
                    both_ways,
                });
            }
        }
    }

    /// Products of a block's queries with the keys that they see: (block rows, width).
    fn scores(&self, block: &Block) -> Vec<f32> {
        let queries = self.queries.rows(block.rows.clone());
        let mut scores = vec![0.0; block.rows.len() * block.width];
        for part in &block.parts {
            let keys = self.keys[part.segment].first(self.dim, part.rows);
            multiply_here(queries, keys, &mut scores[part.at..], block.width, false);
        }
        scores
    }
}
