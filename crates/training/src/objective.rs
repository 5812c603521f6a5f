//! What is minimised: likelihood of good actions, preferences between actions, rewards that rank them.

use gym::Seed;
use serde::{Deserialize, Serialize};

use crate::adapter::Adapter;
use crate::base::Base;
use crate::elementwise::{dot, normalise, normalise_backward};
use crate::forest::Forest;
use crate::network::{Dropout, Trace, backward, forward};
use crate::vocabulary::log_probabilities;
use crate::{Result, TrainingError};

/// A state's prompt and some of the actions that may follow it.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Example {
    /// Of the question that it stems from: what splits go by.
    pub question: String,
    pub prompt: Vec<u32>,
    pub completions: Vec<Vec<u32>>,
    /// (chosen, rejected), indices of `completions`. Without pairs, every completion is to be learnt.
    pub pairs: Vec<(usize, usize)>,
}

#[derive(Clone, Copy, Debug, PartialEq, Serialize, Deserialize)]
#[serde(tag = "method", rename_all = "lowercase")]
pub enum Objective {
    /// `-log π(a|s)`, mean over the tokens of actions.
    Sft,
    /// `-log σ(β [log π(a⁺|s)/π₀(a⁺|s) - log π(a⁻|s)/π₀(a⁻|s)])`, mean over pairs.
    Dpo { beta: f32 },
    /// `-log σ(r⁺ - r⁻) + c (r⁺ + r⁻)²`, mean over pairs.
    Prm { centre: f32 },
}

/// Sums over a batch.
#[derive(Clone, Copy, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct Measure {
    pub loss: f64,
    /// Action tokens for SFT, else pairs.
    pub n: usize,
    /// Sum of the pairs' reward margins: `β` times the log-ratios' difference, or `r⁺ - r⁻`.
    pub margin: f64,
    /// Pairs whose margin is positive.
    pub right: usize,
    /// Tokens computed, shared beginnings once.
    pub rows: usize,
}

impl std::ops::AddAssign for Measure {
    fn add_assign(&mut self, other: Measure) {
        self.loss += other.loss;
        self.n += other.n;
        self.margin += other.margin;
        self.right += other.right;
        self.rows += other.rows;
    }
}

/// Several examples packed into one forest.
pub struct Batch<'a> {
    pub examples: &'a [&'a Example],
    pub forest: Forest,
    /// For each completion of each example: the rows of the prompt's last token and of its own.
    completions: Vec<Vec<usize>>,
}

impl<'a> Batch<'a> {
    /// What sequences have in common at their beginning is computed once for all examples.
    pub fn new(examples: &'a [&'a Example]) -> Batch<'a> {
        Batch::packed(examples, std::iter::once(examples))
    }

    /// Shared within each example only, so that its numbers are the same bits in any batch.
    pub fn apart(examples: &'a [&'a Example]) -> Batch<'a> {
        Batch::packed(examples, examples.chunks(1))
    }

    fn packed(examples: &'a [&'a Example], groups: impl Iterator<Item = &'a [&'a Example]>) -> Batch<'a> {
        let mut forest = Forest::default();
        let mut completions = Vec::new();
        for group in groups {
            let each = || {
                group
                    .iter()
                    .flat_map(|e| e.completions.iter().map(|tokens| (&e.prompt, tokens)))
            };
            let sequences: Vec<Vec<u32>> = each().map(|(prompt, tokens)| [&prompt[..], tokens].concat()).collect();
            let rows = forest.push(&sequences).into_iter();
            completions.extend(
                rows.zip(each())
                    .map(|(mut rows, (prompt, _))| rows.split_off(prompt.len() - 1)),
            );
        }
        Batch {
            examples,
            forest,
            completions,
        }
    }

    /// The row that predicts each token of each completion, and the token.
    fn predictions(&self) -> (Vec<usize>, Vec<u32>) {
        let (mut rows, mut targets) = (Vec::new(), Vec::new());
        for completion in &self.completions {
            rows.extend_from_slice(&completion[..completion.len() - 1]);
            targets.extend(completion[1..].iter().map(|&row| self.forest.tokens[row]));
        }
        (rows, targets)
    }

    /// The row of each completion's last token.
    fn ends(&self) -> Vec<usize> {
        self.completions.iter().map(|rows| rows[rows.len() - 1]).collect()
    }
}

impl Objective {
    /// What a batch's loss is the mean over.
    pub fn n(self, example: &Example) -> usize {
        match self {
            Objective::Sft => example.completions.iter().map(Vec::len).sum(),
            Objective::Dpo { .. } | Objective::Prm { .. } => example.pairs.len(),
        }
    }

    pub fn needs_reference(self) -> bool {
        matches!(self, Objective::Dpo { .. })
    }

    /// The loss of a batch (a sum, not a mean). `reference`: for DPO, the base's log-probability of every
    /// completion, from [`log_probability`]. With `gradient`, `weight` times the sum's gradient is added
    /// to it.
    pub fn measure(
        self,
        base: &Base,
        adapter: &Adapter,
        batch: &Batch<'_>,
        reference: &[f32],
        dropout: Option<Dropout>,
        gradient: Option<(&mut [f32], f32)>,
    ) -> Result<Measure> {
        match self {
            Objective::Prm { centre } => rewarded(base, adapter, batch, centre, dropout, gradient),
            _ => likelihood(self, base, adapter, batch, reference, dropout, gradient),
        }
    }
}

/// SFT and DPO: functions of the tokens' log-probabilities.
fn likelihood(
    objective: Objective,
    base: &Base,
    adapter: &Adapter,
    batch: &Batch<'_>,
    reference: &[f32],
    dropout: Option<Dropout>,
    gradient: Option<(&mut [f32], f32)>,
) -> Result<Measure> {
    let forest = &batch.forest;
    let (rows, targets) = batch.predictions();
    let (last, trace) = forward(base, Some(adapter), forest, rows, dropout, gradient.is_some())?;
    let predictions = Predictions::new(base, batch, &last, &targets, gradient.is_some())?;
    let totals = predictions.totals();
    let mut measure = Measure {
        rows: forest.rows(),
        ..Measure::default()
    };
    // Derivatives of the loss by each completion's log-probability.
    let mut slopes = vec![0.0f32; totals.len()];
    match objective {
        Objective::Dpo { beta } => {
            let mut first = 0;
            for example in batch.examples {
                for &(chosen, rejected) in &example.pairs {
                    let ratio = |idx: usize| totals[first + idx] - f64::from(reference[first + idx]);
                    let margin = f64::from(beta) * (ratio(chosen) - ratio(rejected));
                    let slope = (f64::from(beta) * sigmoid(-margin)) as f32;
                    measure.pair(softplus(-margin), margin);
                    slopes[first + chosen] -= slope;
                    slopes[first + rejected] += slope;
                }
                first += example.completions.len();
            }
        }
        _ => {
            measure.loss = -totals.iter().sum::<f64>();
            measure.n = targets.len();
            slopes.fill(-1.0);
        }
    }
    if let Some((gradient, weight)) = gradient {
        let per_token = slopes
            .iter()
            .zip(&predictions.lengths)
            .flat_map(|(slope, &n)| std::iter::repeat_n(slope * weight, n));
        let d_normed: Vec<f32> = predictions
            .d_hidden
            .chunks_exact(base.config.hidden)
            .zip(per_token)
            .flat_map(|(row, slope)| row.iter().map(move |x| x * slope))
            .collect();
        descend(base, adapter, forest, trace, &last, &d_normed, gradient)?;
    }
    Ok(measure)
}

/// PRM: the head's value at each completion's last token.
fn rewarded(
    base: &Base,
    adapter: &Adapter,
    batch: &Batch<'_>,
    centre: f32,
    dropout: Option<Dropout>,
    gradient: Option<(&mut [f32], f32)>,
) -> Result<Measure> {
    let forest = &batch.forest;
    let (last, trace) = forward(base, Some(adapter), forest, batch.ends(), dropout, gradient.is_some())?;
    let (normed, rewards) = score(base, adapter, &last)?;
    let (mut measure, slopes) = pairwise(centre, batch.examples, &rewards);
    measure.rows = forest.rows();
    if let Some((gradient, weight)) = gradient {
        let head = &adapter.values[adapter.head()];
        let d_head = &mut gradient[adapter.head()];
        let mut d_normed = Vec::with_capacity(normed.len());
        for (normed, slope) in normed.chunks_exact(base.config.hidden).zip(&slopes) {
            d_head
                .iter_mut()
                .zip(normed)
                .for_each(|(d, x)| *d += weight * slope * x);
            d_normed.extend(head.iter().map(|w| weight * slope * w));
        }
        descend(base, adapter, forest, trace, &last, &d_normed, gradient)?;
    }
    Ok(measure)
}

/// PRM's loss of every pair, and its derivatives by the rewards: one of each per completion, in order.
pub(crate) fn pairwise(centre: f32, examples: &[&Example], rewards: &[f32]) -> (Measure, Vec<f32>) {
    let mut measure = Measure::default();
    let mut slopes = vec![0.0f32; rewards.len()];
    let mut first = 0;
    for example in examples {
        for &(chosen, rejected) in &example.pairs {
            let (a, b) = (f64::from(rewards[first + chosen]), f64::from(rewards[first + rejected]));
            let off_centre = f64::from(centre) * (a + b);
            measure.pair(softplus(b - a) + off_centre * (a + b), a - b);
            slopes[first + chosen] += (2.0 * off_centre - sigmoid(b - a)) as f32;
            slopes[first + rejected] += (2.0 * off_centre + sigmoid(b - a)) as f32;
        }
        first += example.completions.len();
    }
    (measure, slopes)
}

/// Log-probability of every completion of a batch; without adapter, the base's own.
pub fn log_probability(base: &Base, adapter: Option<&Adapter>, batch: &Batch<'_>) -> Result<Vec<f32>> {
    let (rows, targets) = batch.predictions();
    let (last, _) = forward(base, adapter, &batch.forest, rows, None, false)?;
    let totals = Predictions::new(base, batch, &last, &targets, false)?.totals();
    Ok(totals.into_iter().map(|x| x as f32).collect())
}

/// Reward of every completion of a batch by the adapter's head.
pub fn rewards(base: &Base, adapter: &Adapter, batch: &Batch<'_>) -> Result<Vec<f32>> {
    let (last, _) = forward(base, Some(adapter), &batch.forest, batch.ends(), None, false)?;
    Ok(score(base, adapter, &last)?.1)
}

/// Normalised hidden states, and the rewards that the head reads from them.
fn score(base: &Base, adapter: &Adapter, last: &[f32]) -> Result<(Vec<f32>, Vec<f32>)> {
    if adapter.head().is_empty() {
        return Err(TrainingError::Invalid("the adapter has no reward head".into()));
    }
    let normed = normalise(last, &base.norm, base.config.norm_epsilon);
    let head = &adapter.values[adapter.head()];
    let rewards = normed
        .chunks_exact(base.config.hidden)
        .map(|row| dot(row, head))
        .collect();
    Ok((normed, rewards))
}

/// What a batch's rows say of the completions' tokens.
struct Predictions {
    /// Tokens of each completion.
    lengths: Vec<usize>,
    log_probabilities: Vec<f32>,
    /// Derivatives by the normalised hidden states: (targets, hidden).
    d_hidden: Vec<f32>,
}

impl Predictions {
    fn new(base: &Base, batch: &Batch<'_>, last: &[f32], targets: &[u32], gradient: bool) -> Result<Predictions> {
        let normed = normalise(last, &base.norm, base.config.norm_epsilon);
        let (log_probabilities, d_hidden) = log_probabilities(base, &normed, targets, gradient)?;
        Ok(Predictions {
            lengths: batch.completions.iter().map(|rows| rows.len() - 1).collect(),
            log_probabilities,
            d_hidden,
        })
    }

    /// Sum over each completion's tokens.
    fn totals(&self) -> Vec<f64> {
        let mut rest = &self.log_probabilities[..];
        let total = |&n: &usize| {
            let (own, later) = rest.split_at(n);
            rest = later;
            own.iter().map(|&x| f64::from(x)).sum()
        };
        self.lengths.iter().map(total).collect()
    }
}

/// From gradients at the normalised last hidden states down to the adapter.
fn descend(
    base: &Base,
    adapter: &Adapter,
    forest: &Forest,
    trace: Trace,
    last: &[f32],
    d_normed: &[f32],
    gradient: &mut [f32],
) -> Result<()> {
    let mut dx = vec![0.0; last.len()];
    normalise_backward(last, &base.norm, base.config.norm_epsilon, d_normed, &mut dx);
    backward(base, adapter, forest, trace, dx, gradient)
}

impl Measure {
    fn pair(&mut self, loss: f64, margin: f64) {
        self.loss += loss;
        self.n += 1;
        self.margin += margin;
        self.right += usize::from(margin > 0.0);
    }
}

fn sigmoid(x: f64) -> f64 {
    1.0 / (1.0 + (-x).exp())
}

/// `log(1 + e^x)`, without overflow.
fn softplus(x: f64) -> f64 {
    x.max(0.0) + (-x.abs()).exp().ln_1p()
}

/// The seed of a batch's dropout.
pub(crate) fn dropout_of(share: f32, seed: Seed) -> Option<Dropout> {
    (share > 0.0).then_some(Dropout { share, seed })
}
