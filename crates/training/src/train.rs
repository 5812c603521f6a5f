//! The training loop: batches in a seeded order, optimiser steps, evaluations, checkpoints, exact resume.

use std::collections::HashMap;
use std::path::Path;

use candle_core::{Device, Tensor};
use gym::{Cancel, Seed};
use serde::{Deserialize, Serialize};

use crate::adapter::{Adapter, AdapterConfig, write_whole};
use crate::base::Base;
use crate::forest::common;
use crate::objective::{Batch, Example, Measure, Objective, dropout_of, log_probability};
use crate::optimizer::{AdamW, Schedule, clip};
use crate::{Result, TrainingError};

#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct TrainingConfig {
    pub objective: Objective,
    /// Whatever tells the frozen weights from others: a training goes on over the same only.
    pub base: String,
    /// `None` for an encoder, all of whose weights are trained.
    pub adapter: Option<AdapterConfig>,
    /// At its peak.
    pub learning_rate: f32,
    pub schedule: Schedule,
    /// Share of all steps over which the learning rate rises.
    pub warm_up: f32,
    pub epochs: u32,
    /// Examples of one optimiser step.
    pub batch: usize,
    /// Tokens computed at a time, shared beginnings once; an example is never cut. Bounds the memory, not
    /// the result's meaning.
    pub pack_tokens: usize,
    /// Longest prompt and completion together; longer prompts lose their beginning.
    pub max_length: usize,
    pub weight_decay: f32,
    /// Largest gradient norm; 0 is no limit.
    pub clip_norm: f32,
    /// On the inputs of the low-rank pairs.
    pub dropout: f32,
    /// Steps between evaluations; 0 evaluates after each epoch.
    pub eval_every: u64,
    /// Evaluations without improvement before the end; 0 never stops early.
    pub patience: u32,
    /// Steps between checkpoints.
    pub checkpoint_every: u64,
    pub seed: Seed,
}

impl TrainingConfig {
    pub fn new(objective: Objective, adapter: impl Into<Option<AdapterConfig>>) -> TrainingConfig {
        let adapter = adapter.into();
        TrainingConfig {
            objective,
            learning_rate: match objective {
                _ if adapter.is_none() => 5e-5,
                Objective::Sft => 5e-4,
                Objective::Dpo { .. } => 1e-4,
                Objective::Prm { .. } => 3e-4,
            },
            base: String::new(),
            adapter,
            schedule: Schedule::Linear,
            warm_up: 0.05,
            epochs: 1,
            batch: 8,
            pack_tokens: 1024,
            max_length: 1024,
            weight_decay: 0.0,
            clip_norm: 1.0,
            dropout: 0.0,
            eval_every: 0,
            patience: 0,
            checkpoint_every: 20,
            seed: Seed(0),
        }
    }

    fn check(&self) -> Result<()> {
        let wrong = |what: &str| Err(TrainingError::Invalid(what.into()));
        match self {
            _ if !(self.learning_rate > 0.0 && self.learning_rate.is_finite()) => {
                wrong("the learning rate must be positive")
            }
            _ if !(0.0..1.0).contains(&self.dropout) => wrong("dropout goes from 0 to below 1"),
            _ if !(0.0..=1.0).contains(&self.warm_up) => wrong("the warm-up is a share of all steps: 0 to 1"),
            _ if self.epochs == 0 || self.batch == 0 => wrong("epochs and batch start at 1"),
            _ if self.max_length < 2 => wrong("the longest example has at least 2 tokens"),
            _ if matches!(self.objective, Objective::Prm { .. }) != self.adapter.as_ref().is_none_or(|a| a.head) => {
                wrong("a reward model has a head, a policy has none")
            }
            _ => Ok(()),
        }
    }
}

/// Held-out examples, measured without dropout.
#[derive(Clone, Copy, Debug, PartialEq, Serialize, Deserialize)]
pub struct Evaluation {
    pub step: u64,
    /// Mean over action tokens (SFT) or pairs.
    pub loss: f64,
    /// Of pairs; absent for SFT.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub margin: Option<f64>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub accuracy: Option<f64>,
    /// Action tokens or pairs.
    pub n: usize,
}

impl Evaluation {
    fn new(step: u64, objective: Objective, measure: &Measure) -> Evaluation {
        let n = measure.n.max(1) as f64;
        let pairs = objective != Objective::Sft;
        Evaluation {
            step,
            loss: measure.loss / n,
            margin: pairs.then_some(measure.margin / n),
            accuracy: pairs.then_some(measure.right as f64 / n),
            n: measure.n,
        }
    }
}

/// What one optimiser step did.
#[derive(Clone, Debug, PartialEq)]
pub struct StepReport {
    /// From 1.
    pub step: u64,
    pub steps: u64,
    /// Loss, margin and accuracy over the step's examples, before the update.
    pub measure: Evaluation,
    pub learning_rate: f64,
    /// Before clipping.
    pub grad_norm: f64,
    /// Tokens computed, shared beginnings once.
    pub tokens: usize,
    /// Tokens of the step's examples, each with its prompt.
    pub example_tokens: usize,
    /// If this step was followed by one.
    pub evaluation: Option<Evaluation>,
}

/// A finished training.
pub struct Trained<M = Adapter> {
    /// The best by evaluation if there were any, else the last.
    pub model: M,
    pub steps: u64,
    /// Of `model`.
    pub evaluation: Option<Evaluation>,
    pub stopped_early: bool,
}

impl<M> Trained<M> {
    pub fn map<N>(self, of: impl FnOnce(M) -> N) -> Trained<N> {
        Trained {
            model: of(self.model),
            steps: self.steps,
            evaluation: self.evaluation,
            stopped_early: self.stopped_early,
        }
    }
}

/// What the loop trains: numbers in one vector, and the loss of examples by them.
pub(crate) trait Learner {
    fn values(&mut self) -> &mut Vec<f32>;

    /// The loss of some examples, a sum. With `gradient`, `weight` times its gradient is added to it. `step`
    /// is that of a training step, for what is drawn anew in each; `None` measures as at inference.
    fn measure(
        &mut self,
        examples: &[&Example],
        step: Option<u64>,
        gradient: Option<(&mut [f32], f32)>,
        cancel: &Cancel,
    ) -> Result<Measure>;
}

/// What a checkpoint holds beside the numbers.
#[derive(Clone, Debug, Serialize, Deserialize)]
struct Progress {
    /// Of settings and data.
    fingerprint: u64,
    step: u64,
    best: Option<Evaluation>,
    since_best: u32,
}

struct Training<'a, L> {
    config: &'a TrainingConfig,
    learner: L,
    adam: AdamW,
    progress: Progress,
    best: Option<Vec<f32>>,
}

/// An adapter on its base.
struct Adapting<'a> {
    base: &'a Base,
    config: &'a TrainingConfig,
    start: Option<&'a Adapter>,
    adapter: Adapter,
    /// For DPO: the log-probabilities, before training, of each example's completions, once computed.
    references: HashMap<*const Example, Vec<f32>>,
}

/// Trains on `examples`, evaluates on `held_out` (may be empty). With `start`, an earlier adapter goes on being
/// trained, and is DPO's reference; else a new one is made, whose reference is the base. `checkpoint` is a file that is written now
/// and then, and gone on from if it exists; whoever calls removes it in the end.
///
/// Stopping at any instant and calling again gives the same adapter, to the bit, as never stopping.
#[expect(
    clippy::too_many_arguments,
    reason = "the parts of a training; a struct would be built at one call only"
)]
pub fn train(
    base: &Base,
    config: &TrainingConfig,
    start: Option<&Adapter>,
    examples: &[Example],
    held_out: &[Example],
    checkpoint: &Path,
    cancel: &Cancel,
    on_step: &mut dyn FnMut(&StepReport),
) -> Result<Trained> {
    let Some(wanted) = &config.adapter else {
        return Err(TrainingError::Invalid(
            "a base that stays as it is needs an adapter".into(),
        ));
    };
    let adapter = Adapter::new(&base.config, wanted.clone(), config.seed.derive_str("adapter"))?;
    let adapter = match start {
        None => adapter,
        Some(start) if start.config == *wanted => start.clone(),
        Some(start)
            if *wanted
                == (AdapterConfig {
                    head: true,
                    ..start.config.clone()
                }) =>
        {
            start.clone().with_head(&adapter.values[adapter.head()])
        }
        Some(start) => {
            let message = match start.config.head && !wanted.head {
                true => "a reward model is no policy to go on from: choose one without a reward head".to_owned(),
                false => format!("an adapter of {:?} cannot become one of {wanted:?}", start.config),
            };
            return Err(TrainingError::Invalid(message));
        }
    };
    let learner = Adapting {
        base,
        config,
        start,
        adapter,
        references: HashMap::new(),
    };
    let limits = (base.config.vocabulary, base.config.context_tokens);
    let started = start.map_or(&[][..], |start| &start.values);
    let trained = learn(
        learner, config, limits, started, examples, held_out, checkpoint, cancel, on_step,
    )?;
    Ok(trained.map(|learner| learner.adapter))
}

/// [`train`], whatever it is that learns. `limits`: tokens of the vocabulary and of the longest example;
/// `started`: the numbers that were there before training.
#[expect(clippy::too_many_arguments, reason = "the parts of a training, as above")]
pub(crate) fn learn<L: Learner>(
    mut learner: L,
    config: &TrainingConfig,
    limits: (usize, usize),
    started: &[f32],
    examples: &[Example],
    held_out: &[Example],
    checkpoint: &Path,
    cancel: &Cancel,
    on_step: &mut dyn FnMut(&StepReport),
) -> Result<Trained<L>> {
    config.check()?;
    let prepare = |examples: &[Example]| -> Result<Vec<Example>> {
        examples
            .iter()
            .enumerate()
            .map(|(idx, example)| prepared(example, idx, limits, config))
            .collect()
    };
    let (examples, held_out) = (prepare(examples)?, prepare(held_out)?);
    if examples.is_empty() {
        return Err(TrainingError::Invalid("there is no example to train on".into()));
    }
    let families = families(&examples);
    let held_out = by_prompt(&held_out);
    let steps_an_epoch = examples.len().div_ceil(config.batch) as u64;
    let steps = steps_an_epoch * u64::from(config.epochs);
    let warm_up = (f64::from(config.warm_up) * steps as f64).ceil() as u64;
    let mut training = Training {
        config,
        adam: AdamW::new(learner.values().len(), config.weight_decay),
        learner,
        progress: Progress {
            fingerprint: fingerprint(config, started, &examples, &held_out),
            step: 0,
            best: None,
            since_best: 0,
        },
        best: None,
    };
    if checkpoint.exists() {
        training.restore(checkpoint)?;
    }
    let mut saved = training.progress.step;
    let mut stopped_early = training.out_of_patience();
    while training.progress.step < steps && !stopped_early {
        let step = training.progress.step;
        let order = shuffled(&families, config.seed.derive_str("order").derive(step / steps_an_epoch));
        let start = (step % steps_an_epoch) as usize * config.batch;
        let chosen = &order[start..examples.len().min(start + config.batch)];
        let chosen = by_prompt(chosen.iter().map(|&idx| &examples[idx]));
        let share = config.schedule.share(step, steps, warm_up);
        let next = step + 1;
        let due = match config.eval_every {
            0 => next.is_multiple_of(steps_an_epoch),
            every => next.is_multiple_of(every) || next == steps,
        };
        // A step whose evaluation is cancelled is taken back, so that both are made when training goes on.
        let before = (due && !held_out.is_empty()).then(|| (training.learner.values().clone(), training.adam.clone()));
        let report = training.step(&chosen, share * f64::from(config.learning_rate), cancel);
        let mut report = match report {
            Err(TrainingError::Cancelled) if saved < step => {
                training.save(checkpoint)?;
                return Err(TrainingError::Cancelled);
            }
            other => other?,
        };
        let step = training.progress.step;
        if let Some((values, adam)) = before {
            match training.evaluate(&held_out, cancel) {
                Err(TrainingError::Cancelled) => {
                    (*training.learner.values(), training.adam) = (values, adam);
                    training.progress.step = step - 1;
                    if saved < step - 1 {
                        training.save(checkpoint)?;
                    }
                    return Err(TrainingError::Cancelled);
                }
                evaluation => report.evaluation = Some(training.judge(evaluation?)),
            }
            stopped_early = training.out_of_patience();
        }
        report.steps = steps;
        if step.is_multiple_of(config.checkpoint_every.max(1)) || step == steps || report.evaluation.is_some() {
            training.save(checkpoint)?;
            saved = step;
        }
        on_step(&report);
    }
    let Training {
        mut learner,
        progress,
        best,
        ..
    } = training;
    if let Some(best) = best {
        *learner.values() = best;
    }
    Ok(Trained {
        model: learner,
        steps: progress.step,
        evaluation: progress.best,
        stopped_early,
    })
}

/// What a stopped training has come to: the best by evaluation if there was one, else the last.
///
/// `adapter` is that of its settings. Errors if the checkpoint is damaged or holds an adapter of another size.
pub fn so_far(base: &Base, adapter: AdapterConfig, checkpoint: &Path) -> Result<Trained> {
    let mut adapter = Adapter::new(&base.config, adapter, Seed(0))?;
    let trained = values_so_far(adapter.values.len(), checkpoint)?;
    Ok(trained.map(|values| {
        adapter.values = values;
        adapter
    }))
}

/// [`so_far`] of as many numbers.
pub(crate) fn values_so_far(n: usize, checkpoint: &Path) -> Result<Trained<Vec<f32>>> {
    let damaged = |message: String| TrainingError::Corrupt {
        path: checkpoint.into(),
        message,
    };
    let tensors =
        candle_core::safetensors::load(checkpoint, &Device::Cpu).map_err(|error| damaged(error.to_string()))?;
    let get = |name: &str| tensors.get(name).ok_or_else(|| damaged(format!("`{name}` is missing")));
    let progress: Progress =
        serde_json::from_slice(&get("progress")?.to_vec1::<u8>()?).map_err(|error| damaged(error.to_string()))?;
    let values: Vec<f32> = get(if progress.best.is_some() { "best" } else { "values" })?.to_vec1()?;
    if values.len() != n {
        return Err(damaged(format!("it holds {} numbers, expected {n}", values.len())));
    }
    Ok(Trained {
        model: values,
        steps: progress.step,
        evaluation: progress.best,
        stopped_early: true,
    })
}

/// Examples whose question is held out, and all others: a `share` of the questions, at least one of
/// several, by their seeded hashes, so that no question is on both sides.
pub fn split(examples: Vec<Example>, share: f64, seed: Seed) -> (Vec<Example>, Vec<Example>) {
    let mut questions: Vec<String> = examples.iter().map(|example| example.question.clone()).collect();
    questions.sort_by_cached_key(|question| (seed.derive_str(question).0, question.clone()));
    questions.dedup();
    let n = match questions.len() {
        n if share > 0.0 && n > 1 => ((n as f64 * share).round() as usize).clamp(1, n - 1),
        _ => 0,
    };
    let held_out: std::collections::HashSet<String> = questions.drain(..n).collect();
    examples
        .into_iter()
        .partition(|example| !held_out.contains(&example.question))
}

impl Learner for Adapting<'_> {
    fn values(&mut self) -> &mut Vec<f32> {
        &mut self.adapter.values
    }

    fn measure(
        &mut self,
        examples: &[&Example],
        step: Option<u64>,
        mut gradient: Option<(&mut [f32], f32)>,
        cancel: &Cancel,
    ) -> Result<Measure> {
        let config = self.config;
        let mut total = Measure::default();
        for (idx, examples) in packed(examples, config.pack_tokens).into_iter().enumerate() {
            cancelled(cancel)?;
            let batch = Batch::new(examples);
            let reference = self.reference(&batch)?;
            let seed = |step| config.seed.derive_str("dropout").derive(step).derive(idx as u64);
            let dropout = step.and_then(|step| dropout_of(config.dropout, seed(step)));
            let gradient = gradient.as_mut().map(|(gradient, weight)| (&mut gradient[..], *weight));
            total += config
                .objective
                .measure(self.base, &self.adapter, &batch, &reference, dropout, gradient)?;
        }
        Ok(total)
    }
}

impl Adapting<'_> {
    fn reference(&mut self, batch: &Batch<'_>) -> Result<Vec<f32>> {
        if !self.config.objective.needs_reference() {
            return Ok(Vec::new());
        }
        let known = |example: &&Example| self.references.contains_key(&std::ptr::from_ref(*example));
        if !batch.examples.iter().all(known) {
            // Apart, so that they are the same bits whichever batch needs them first, also after a resume.
            let apart = Batch::apart(batch.examples);
            let mut computed = log_probability(self.base, self.start, &apart)?.into_iter();
            for &example in batch.examples {
                let own = computed.by_ref().take(example.completions.len()).collect();
                self.references.insert(example, own);
            }
        }
        let of = |&example: &&Example| self.references[&std::ptr::from_ref(example)].clone();
        Ok(batch.examples.iter().flat_map(of).collect())
    }
}

impl<L: Learner> Training<'_, L> {
    fn step(&mut self, examples: &[&Example], learning_rate: f64, cancel: &Cancel) -> Result<StepReport> {
        let (config, step) = (self.config, self.progress.step + 1);
        let n: usize = examples.iter().map(|example| config.objective.n(example)).sum();
        let mut gradient = vec![0.0; self.learner.values().len()];
        let weighted = Some((&mut gradient[..], 1.0 / n as f32));
        let total = self.learner.measure(examples, Some(step), weighted, cancel)?;
        let grad_norm = clip(&mut gradient, config.clip_norm);
        for (what, number) in [("a loss", total.loss), ("a gradient", grad_norm)] {
            if !number.is_finite() {
                return Err(TrainingError::Diverged {
                    step,
                    what: what.into(),
                });
            }
        }
        self.adam
            .update(self.learner.values(), &gradient, learning_rate as f32, step);
        self.progress.step = step;
        Ok(StepReport {
            step,
            steps: step,
            measure: Evaluation::new(step, config.objective, &total),
            learning_rate,
            grad_norm,
            tokens: total.rows,
            example_tokens: examples.iter().map(|example| length(example)).sum(),
            evaluation: None,
        })
    }

    fn evaluate(&mut self, examples: &[&Example], cancel: &Cancel) -> Result<Evaluation> {
        let total = self.learner.measure(examples, None, None, cancel)?;
        Ok(Evaluation::new(self.progress.step, self.config.objective, &total))
    }

    fn judge(&mut self, evaluation: Evaluation) -> Evaluation {
        if self.progress.best.is_none_or(|best| evaluation.loss < best.loss) {
            self.progress.best = Some(evaluation);
            self.progress.since_best = 0;
            self.best = Some(self.learner.values().clone());
        } else {
            self.progress.since_best += 1;
        }
        evaluation
    }

    fn out_of_patience(&self) -> bool {
        self.config.patience > 0 && self.progress.since_best >= self.config.patience
    }

    fn save(&mut self, path: &Path) -> Result<()> {
        let progress = serde_json::to_vec(&self.progress).expect("plain data");
        let tensor = |values: &[f32]| Tensor::from_slice(values, values.len(), &Device::Cpu);
        let mut tensors = HashMap::from([
            ("progress", Tensor::from_slice(&progress, progress.len(), &Device::Cpu)?),
            ("values", tensor(self.learner.values())?),
            ("mean", tensor(&self.adam.mean)?),
            ("square", tensor(&self.adam.square)?),
        ]);
        if let Some(best) = &self.best {
            tensors.insert("best", tensor(best)?);
        }
        write_whole(path, |path| {
            candle_core::safetensors::save(&tensors, path).map_err(std::io::Error::other)
        })
    }

    fn restore(&mut self, path: &Path) -> Result<()> {
        let damaged = |message: String| TrainingError::Corrupt {
            path: path.into(),
            message,
        };
        let tensors = candle_core::safetensors::load(path, &Device::Cpu).map_err(|error| damaged(error.to_string()))?;
        let get = |name: &str| tensors.get(name).ok_or_else(|| damaged(format!("`{name}` is missing")));
        let progress: Progress =
            serde_json::from_slice(&get("progress")?.to_vec1::<u8>()?).map_err(|error| damaged(error.to_string()))?;
        if progress.fingerprint != self.progress.fingerprint {
            return Err(TrainingError::Invalid(format!(
                "the checkpoint `{}` belongs to other settings or other data: remove it to start anew",
                path.display()
            )));
        }
        for (name, place) in [
            ("values", self.learner.values()),
            ("mean", &mut self.adam.mean),
            ("square", &mut self.adam.square),
        ] {
            let values = get(name)?.to_vec1::<f32>()?;
            if values.len() != place.len() {
                return Err(damaged(format!(
                    "`{name}` has {} numbers, expected {}",
                    values.len(),
                    place.len()
                )));
            }
            *place = values;
        }
        self.best = match progress.best {
            Some(_) => Some(get("best")?.to_vec1()?),
            None => None,
        };
        self.progress = progress;
        Ok(())
    }
}

/// Checks an example and cuts its prompt's beginning to the longest length.
fn prepared(
    example: &Example,
    idx: usize,
    (vocabulary, context): (usize, usize),
    config: &TrainingConfig,
) -> Result<Example> {
    let wrong = |message: String| Err(TrainingError::Example { example: idx, message });
    let completions = &example.completions;
    if example.prompt.is_empty() || completions.is_empty() || completions.iter().any(Vec::is_empty) {
        return wrong("the prompt and every completion need at least one token".into());
    }
    let tokens = example.prompt.iter().chain(completions.iter().flatten());
    if let Some(token) = tokens.copied().find(|&token| token as usize >= vocabulary) {
        return wrong(format!("token {token} is not in the vocabulary of {vocabulary}"));
    }
    if config.objective == Objective::Sft {
        if !example.pairs.is_empty() {
            return wrong("pairs are for dpo and prm: sft learns every completion".into());
        }
    } else if example.pairs.is_empty() {
        return wrong("no pair of a chosen and a rejected completion".into());
    }
    let valid = |&(a, b): &(usize, usize)| a < completions.len() && b < completions.len() && a != b;
    if let Some((a, b)) = example.pairs.iter().copied().find(|pair| !valid(pair)) {
        return wrong(format!(
            "the pair ({a}, {b}) does not name two of {} completions",
            completions.len()
        ));
    }
    let longest = completions.iter().map(Vec::len).max().unwrap_or(0);
    let limit = config.max_length.min(context);
    if longest >= limit {
        return wrong(format!(
            "a completion has {longest} tokens; with its prompt at most {limit} are allowed"
        ));
    }
    let cut = (example.prompt.len() + longest).saturating_sub(limit);
    Ok(Example {
        prompt: example.prompt[cut..].to_vec(),
        ..example.clone()
    })
}

/// Indices of examples that stay together in every epoch's order: those of a question that share at least half of
/// a prompt, as a policy's steps do, so that it is computed once. Large ones are several, as a step from one question
/// alone would be a poor estimate.
fn families(examples: &[Example]) -> Vec<Vec<usize>> {
    const LARGEST: usize = 5;
    let mut families: Vec<Vec<usize>> = Vec::new();
    let mut of_question: HashMap<&str, Vec<usize>> = HashMap::new();
    for (idx, example) in examples.iter().enumerate() {
        let own = of_question.entry(&example.question).or_default();
        let near = |&family: &usize| {
            let (a, b) = (&examples[families[family][0]].prompt, &example.prompt);
            families[family].len() < LARGEST && 2 * common(a, b) >= a.len().min(b.len())
        };
        match own.iter().copied().find(near) {
            Some(family) => families[family].push(idx),
            None => {
                own.push(families.len());
                families.push(vec![idx]);
            }
        }
    }
    families
}

/// All members, family after family, the families in a random order (Fisher-Yates).
fn shuffled(families: &[Vec<usize>], seed: Seed) -> Vec<usize> {
    let mut rng = seed.rng();
    let mut order: Vec<&Vec<usize>> = families.iter().collect();
    for i in (1..order.len()).rev() {
        order.swap(i, rng.below(i + 1));
    }
    order.into_iter().flatten().copied().collect()
}

/// In the order of their prompts: neighbours share most.
fn by_prompt<'a>(examples: impl IntoIterator<Item = &'a Example>) -> Vec<&'a Example> {
    let mut examples: Vec<&Example> = examples.into_iter().collect();
    examples.sort_by(|a, b| a.prompt.cmp(&b.prompt));
    examples
}

/// Runs of examples, ordered by prompt, with about so many tokens to compute together, one example at least.
pub(crate) fn packed<'a, 'b>(examples: &'a [&'b Example], tokens: usize) -> Vec<&'a [&'b Example]> {
    let mut runs = Vec::new();
    let (mut start, mut sum) = (0, 0);
    for (idx, example) in examples.iter().enumerate() {
        let own = length(example);
        let shared = match idx > start {
            true => common(&examples[idx - 1].prompt, &example.prompt),
            false => 0,
        };
        if idx > start && sum + own - shared > tokens {
            runs.push(&examples[start..idx]);
            (start, sum) = (idx, own);
        } else {
            sum += own - shared;
        }
    }
    runs.push(&examples[start..]);
    runs
}

/// Tokens of the prompt and all completions.
fn length(example: &Example) -> usize {
    example.prompt.len() + example.completions.iter().map(Vec::len).sum::<usize>()
}

fn fingerprint(config: &TrainingConfig, started: &[f32], examples: &[Example], held_out: &[&Example]) -> u64 {
    // How often it is saved changes nothing.
    let config = TrainingConfig {
        checkpoint_every: 0,
        ..config.clone()
    };
    let parts = [
        serde_json::to_string(&config),
        serde_json::to_string(examples),
        serde_json::to_string(held_out),
    ];
    let text = |part: &serde_json::Result<String>| part.as_ref().expect("plain data").clone();
    let seed = parts.iter().fold(Seed(0), |seed, part| seed.derive_str(&text(part)));
    started
        .iter()
        .fold(seed, |seed, value| seed.derive(value.to_bits().into()))
        .0
}

pub(crate) fn cancelled(cancel: &Cancel) -> Result<()> {
    cancel.check().map_err(|_| TrainingError::Cancelled)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn example(question: &str, prompt: &[u32]) -> Example {
        Example {
            question: question.into(),
            prompt: prompt.to_vec(),
            completions: vec![vec![1, 2]],
            pairs: Vec::new(),
        }
    }

    #[test]
    fn steps_of_a_question_stay_together_and_every_example_comes_once() {
        let mut examples = Vec::new();
        for q in 0..9 {
            let (question, q) = (format!("q{q}"), 20 + q);
            // Two steps of one history, and a reader's prompt, which only begins alike.
            examples.push(example(&question, &[9, 9, q, q, q, 4]));
            examples.push(example(&question, &[9, 9, 8, 7, q, 6, 5, 4]));
            examples.push(example(&question, &[9, 9, q, q, q, 5, 5, 5]));
        }
        let families = families(&examples);
        assert_eq!(families[..3], [vec![0, 2], vec![1], vec![3, 5]]);
        let orders: Vec<Vec<usize>> = (0..2).map(|epoch| shuffled(&families, Seed(epoch))).collect();
        assert_ne!(orders[0], orders[1]);
        for mut order in orders {
            for q in 0..9 {
                let at = order.iter().position(|&idx| idx == 3 * q).unwrap();
                assert_eq!(order[at + 1], 3 * q + 2);
            }
            order.sort_unstable();
            assert_eq!(order, (0..27).collect::<Vec<_>>());
        }
    }

    #[test]
    fn a_pack_is_filled_with_computed_tokens() {
        let begin = [3; 20];
        let examples: Vec<Example> = (0..8).map(|i| example("q", &[&begin[..], &[i]].concat())).collect();
        let examples = by_prompt(&examples);
        // 23 tokens for the first, 3 for each later one.
        let runs: Vec<usize> = packed(&examples, 32).iter().map(|run| run.len()).collect();
        assert_eq!(runs, [4, 4]);
        for run in packed(&examples, 32) {
            assert_eq!(Batch::new(run).forest.rows(), 32);
        }
        assert_eq!(packed(&examples, 1).len(), 8);
    }
}
