//! Log-probabilities of chosen tokens, without ever holding all logits.

use rayon::prelude::*;

use crate::Result;
use crate::base::Base;
use crate::elementwise::{dot, exp, vectorised};
use crate::matrix::{Panels, View, multiply};

/// Vocabulary entries unpacked at a time.
const CHUNK: usize = 2048;

/// Log-probabilities of `targets`, one per row of `hidden` (targets, hidden), already normalised.
///
/// With `gradient` also the derivative of each by its row of `hidden`: the target's row of the output
/// matrix less the mean row under the model's distribution. That mean is accumulated beside the running
/// sum of exponentials, so the vocabulary is passed once.
pub(crate) fn log_probabilities(
    base: &Base,
    hidden: &[f32],
    targets: &[u32],
    gradient: bool,
) -> Result<(Vec<f32>, Vec<f32>)> {
    let (rows, width) = (targets.len(), base.config.hidden);
    let x = View::new(hidden, rows, width);
    let vocabulary = base.config.vocabulary as u32;
    let mut sums = vec![
        Sum {
            most: f32::NEG_INFINITY,
            sum: 0.0
        };
        rows
    ];
    let mut mean = vec![0.0; if gradient { rows * width } else { 0 }];
    let mut logits = vec![0.0; rows * CHUNK];
    let mut panels = Panels::default();
    for first in (0..vocabulary).step_by(CHUNK) {
        let entries: Vec<u32> = (first..vocabulary.min(first + CHUNK as u32)).collect();
        let n = entries.len();
        let weights = base.output_rows(&entries)?;
        let weights = View::new(&weights, n, width);
        panels.pack(weights.transposed());
        multiply(x, panels.all(), &mut logits, CHUNK, false);
        let updates: Vec<f32> = logits
            .par_chunks_mut(CHUNK)
            .zip(&mut sums)
            .map(|(logits, sum)| {
                vectorised(
                    #[inline(always)]
                    || sum.add(&mut logits[..n]),
                )
            })
            .collect();
        if gradient {
            mean.par_chunks_mut(width)
                .zip(&updates)
                .for_each(|(mean, shrink)| mean.iter_mut().for_each(|x| *x *= shrink));
            panels.pack(weights);
            let logits: View<'_> = View::new(&logits, rows, CHUNK).columns(0..n);
            multiply(logits, panels.all(), &mut mean, width, true);
        }
    }
    let targets = base.output_rows(targets)?;
    let pairs = hidden.chunks_exact(width).zip(targets.chunks_exact(width)).zip(&sums);
    let log_probabilities = pairs.map(|((x, w), sum)| dot(x, w) - sum.most - sum.sum.ln()).collect();
    if gradient {
        for ((mean, w), sum) in mean.chunks_exact_mut(width).zip(targets.chunks_exact(width)).zip(&sums) {
            mean.iter_mut().zip(w).for_each(|(mean, w)| *mean = w - *mean / sum.sum);
        }
    }
    Ok((log_probabilities, mean))
}

/// A running `Σ e^(x - most)`.
#[derive(Clone, Copy)]
struct Sum {
    most: f32,
    sum: f32,
}

impl Sum {
    /// Turns logits into `e^(x - most)` and adds them; returns what older terms must be multiplied by.
    #[inline(always)]
    fn add(&mut self, logits: &mut [f32]) -> f32 {
        let most = logits.iter().copied().fold(self.most, f32::max);
        let shrink = (self.most - most).exp();
        let mut sums = [0.0; 16];
        for chunk in logits.chunks_mut(16) {
            for (x, sum) in chunk.iter_mut().zip(&mut sums) {
                *x = exp(*x - most);
                *sum += *x;
            }
        }
        self.sum = self.sum * shrink + sums.iter().sum::<f32>();
        self.most = most;
        shrink
    }
}
