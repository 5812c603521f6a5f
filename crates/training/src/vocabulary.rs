//! Log-probabilities of chosen tokens, without ever holding all logits.

use rayon::prelude::*;

use crate::Result;
use crate::base::Base;
use crate::elementwise::{exp, vectorised};
use crate::factor::{Direction, Factor};

/// Stripes of the vocabulary, one a task. Fixed, so that sums have one order on any number of threads.
const STRIPES: usize = 8;
/// Entries unpacked at a time.
const CHUNK: usize = 512;

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
    let vocabulary = base.config.vocabulary;
    let stripe = vocabulary.div_ceil(STRIPES).next_multiple_of(CHUNK);
    let stripes: Vec<Stripe> = (0..vocabulary)
        .into_par_iter()
        .step_by(stripe)
        .with_max_len(1)
        .map(|first| Stripe::new(base, hidden, targets, first..vocabulary.min(first + stripe), gradient))
        .collect::<Result<_>>()?;
    let width = base.config.hidden;
    let mut log_probabilities = Vec::with_capacity(targets.len());
    let mut derivatives = match gradient {
        true => base.output_rows(targets)?,
        false => Vec::new(),
    };
    for row in 0..targets.len() {
        let most = stripes
            .iter()
            .map(|stripe| stripe.sums[row].most)
            .fold(f32::NEG_INFINITY, f32::max);
        let share = |stripe: &Stripe| (stripe.sums[row].most - most).exp();
        let sum: f32 = stripes.iter().map(|stripe| stripe.sums[row].sum * share(stripe)).sum();
        let logit: f32 = stripes.iter().filter_map(|stripe| stripe.logits[row]).sum();
        log_probabilities.push(logit - most - sum.ln());
        if gradient {
            let derivative = &mut derivatives[row * width..][..width];
            for stripe in &stripes {
                let weight = share(stripe) / sum;
                let mean = &stripe.mean[row * width..][..width];
                derivative
                    .iter_mut()
                    .zip(mean)
                    .for_each(|(d, mean)| *d -= mean * weight);
            }
        }
    }
    Ok((log_probabilities, derivatives))
}

/// What a part of the vocabulary contributes to each row.
struct Stripe {
    sums: Vec<Sum>,
    /// Of the target, if it is in this part.
    logits: Vec<Option<f32>>,
    /// Rows of the output matrix, each times its `e^(logit - most)`: (rows, hidden).
    mean: Vec<f32>,
}

impl Stripe {
    fn new(
        base: &Base,
        hidden: &[f32],
        targets: &[u32],
        entries: std::ops::Range<usize>,
        gradient: bool,
    ) -> Result<Stripe> {
        let (rows, width) = (targets.len(), base.config.hidden);
        let mut stripe = Stripe {
            sums: vec![
                Sum {
                    most: f32::NEG_INFINITY,
                    sum: 0.0
                };
                rows
            ],
            logits: vec![None; rows],
            mean: vec![0.0; if gradient { rows * width } else { 0 }],
        };
        let mut factor = Factor::new(base.arithmetic);
        let mut logits = vec![0.0; rows * CHUNK];
        for first in entries.clone().step_by(CHUNK) {
            let chunk = first..entries.end.min(first + CHUNK);
            let logits = &mut logits[..rows * chunk.len()];
            factor.fill(base.output(), chunk.clone(), Direction::Forward)?;
            factor.multiply_here(hidden, logits, false);
            for (row, logits) in logits.chunks_exact_mut(chunk.len()).enumerate() {
                let target = targets[row] as usize;
                if chunk.contains(&target) {
                    stripe.logits[row] = Some(logits[target - first]);
                }
                let sum = &mut stripe.sums[row];
                let shrink = vectorised(
                    #[inline(always)]
                    || sum.add(logits),
                );
                if gradient {
                    let mean = &mut stripe.mean[row * width..][..width];
                    mean.iter_mut().for_each(|x| *x *= shrink);
                }
            }
            if gradient {
                factor.fill(base.output(), chunk, Direction::Backward)?;
                factor.multiply_here(logits, &mut stripe.mean, true);
            }
        }
        Ok(stripe)
    }
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
