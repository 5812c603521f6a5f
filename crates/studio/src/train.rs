//! Training: from stored runs, gold evidence or files to an adapter that is a model of its own.

use std::io::Write;
use std::path::{Path, PathBuf};
use std::time::Instant;

use gym::Seed;
use serde::{Deserialize, Serialize};
use specta::Type;
use training::TrainingError;
use training::adapter::AdapterConfig;
use training::base::Part;
use training::objective::{Example, Objective};
use training::optimizer::Schedule;
use training::train::{Evaluation, StepReport, TrainingConfig, split};

use crate::library::check_name;
use crate::network::{Made, Network};
use crate::trainings::Record;
use crate::{Cancel, Result, Studio, StudioError};

/// What to train, on what. Numbers left open take the method's defaults.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, Type)]
pub struct TrainRequest {
    /// sft, dpo or prm.
    pub method: String,
    /// Runs whose episodes teach.
    pub runs: Vec<String>,
    /// Whose rewards of the runs' candidates count; `None` for each run's own, by which SFT goes too.
    pub judge: Option<String>,
    /// Their episodes teach whatever they came to, else those with a good outcome. Not for SFT.
    #[serde(default)]
    pub any_outcome: bool,
    /// Files of TRL's JSON lines.
    pub files: Vec<PathBuf>,
    /// Question sets whose gold evidence teaches, for `agents` over `corpus`.
    pub expert: Vec<String>,
    /// Only the first so many questions of each of these sets.
    pub limit: Option<u32>,
    /// At most so many lessons for the reader from each of these sets, an equal share of each topic. SFT only.
    #[serde(default)]
    pub readings: Option<u32>,
    /// So many conclusions with drawn quantities from each of their questions that compares some.
    #[serde(default)]
    pub counterfactuals: u32,
    /// At most so many lessons in reading from each question's gold passages, with a name, number or date left out.
    /// SFT only.
    #[serde(default)]
    pub clozes: u32,
    pub agents: Vec<String>,
    pub corpus: Option<String>,
    /// Passages per search of the expert.
    pub k: u32,
    /// A model, an adapter to go on from, or for PRM an encoder.
    pub base: String,
    pub out: String,
    /// Rank, alpha, targets: of adapters; an encoder is trained as a whole.
    pub rank: u32,
    pub alpha: f32,
    pub targets: Vec<String>,
    pub learning_rate: Option<f32>,
    pub schedule: String,
    pub warm_up: f32,
    pub epochs: u32,
    pub batch: u32,
    pub beta: f32,
    pub centre: f32,
    pub dropout: f32,
    pub max_length: u32,
    pub eval_ratio: f64,
    pub eval_every: u32,
    pub patience: u32,
    pub seed: u32,
}

/// One optimiser step, as it is shown and logged.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, Type)]
pub struct TrainStep {
    pub step: u32,
    pub steps: u32,
    pub loss: f64,
    pub learning_rate: f64,
    /// Tokens computed; what the step's examples share at their beginning counts once.
    pub tokens_per_second: f64,
    /// The same time, with shared beginnings counted for every example.
    #[serde(default)]
    pub example_tokens_per_second: f64,
    pub grad_norm: f64,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub margin: Option<f64>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub accuracy: Option<f64>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub eval: Option<EvalPoint>,
}

/// Held-out examples, measured after a step.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, Type)]
pub struct EvalPoint {
    pub step: u32,
    pub loss: f64,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub margin: Option<f64>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub accuracy: Option<f64>,
    /// Action tokens or pairs.
    pub n: u32,
}

impl From<Evaluation> for EvalPoint {
    fn from(evaluation: Evaluation) -> Self {
        EvalPoint {
            step: evaluation.step as u32,
            loss: evaluation.loss,
            margin: evaluation.margin,
            accuracy: evaluation.accuracy,
            n: evaluation.n as u32,
        }
    }
}

/// What became of a training.
#[derive(Clone, Debug, Serialize)]
pub struct TrainReport {
    pub adapter: String,
    pub path: String,
    pub eval: Option<Evaluation>,
    pub steps: u64,
    pub stopped_early: bool,
    pub examples: usize,
    pub held_out: usize,
    /// Of this process so far; absent where the system does not tell.
    pub peak_memory_bytes: Option<u64>,
    pub took_ms: u64,
}

/// A training whose settings and data are in order, and that no one else works on.
pub(crate) struct Prepared {
    pub request: TrainRequest,
    record: Record,
    network: Network,
    config: TrainingConfig,
    examples: Vec<Example>,
    held_out: Vec<Example>,
}

impl Studio {
    /// Trains an adapter or an encoder and registers it as a model. A training of the same name that was stopped goes on.
    pub fn train(
        &self,
        request: &TrainRequest,
        cancel: &Cancel,
        on_step: &mut dyn FnMut(&TrainStep),
    ) -> Result<TrainReport> {
        let started = Instant::now();
        self.carry_out(self.prepare(request)?, started, cancel, on_step)
    }

    /// Reads the base and the data, then opens the training's record.
    pub(crate) fn prepare(&self, request: &TrainRequest) -> Result<Prepared> {
        check_name(&request.out)?;
        if self.store().model(&request.out).is_ok() && !self.model_dir(&request.out).join(CHECKPOINT).exists() {
            let message = format!(
                "there is a model `{}` already; remove it or choose another name",
                request.out
            );
            return Err(StudioError::Invalid(message));
        }
        let objective = objective(request)?;
        let network = self.network(request)?;
        let config = config(request, objective, &network)?;
        let examples = self.examples(request, &network, &config)?;
        let (examples, held_out) = split(examples, request.eval_ratio, config.seed.derive_str("split"));
        let dir = self.model_dir(&request.out);
        Ok(Prepared {
            record: Record::begin(&dir, request, examples.len(), held_out.len())?,
            request: request.clone(),
            network,
            config,
            examples,
            held_out,
        })
    }

    pub(crate) fn carry_out(
        &self,
        prepared: Prepared,
        started: Instant,
        cancel: &Cancel,
        on_step: &mut dyn FnMut(&TrainStep),
    ) -> Result<TrainReport> {
        let dir = self.model_dir(&prepared.request.out);
        let (examples, held_out) = (prepared.examples.len(), prepared.held_out.len());
        let mut log = StepLog::new(&dir);
        let mut last = Instant::now();
        let mut shown = |report: &StepReport| {
            let seconds = last.elapsed().as_secs_f64();
            let step = TrainStep {
                step: report.step as u32,
                steps: report.steps as u32,
                loss: report.measure.loss,
                learning_rate: report.learning_rate,
                tokens_per_second: report.tokens as f64 / seconds,
                example_tokens_per_second: report.example_tokens as f64 / seconds,
                grad_norm: report.grad_norm,
                margin: report.measure.margin,
                accuracy: report.measure.accuracy,
                eval: report.evaluation.map(EvalPoint::from),
            };
            last = Instant::now();
            log.write(&step);
            on_step(&step);
        };
        let (config, checkpoint) = (&prepared.config, dir.join(CHECKPOINT));
        let trained = prepared
            .network
            .train(
                config,
                &prepared.examples,
                &prepared.held_out,
                &checkpoint,
                cancel,
                &mut shown,
            )
            .and_then(|trained| {
                self.keep(&prepared.request, &prepared.network, &trained.model)?;
                Ok(trained)
            });
        prepared.record.end(trained.as_ref().err())?;
        let trained = trained?;
        Ok(TrainReport {
            adapter: prepared.request.out,
            path: dir.display().to_string(),
            eval: trained.evaluation,
            steps: trained.steps,
            stopped_early: trained.stopped_early,
            examples,
            held_out,
            peak_memory_bytes: peak_memory_bytes(),
            took_ms: started.elapsed().as_millis() as u64,
        })
    }

    /// Ends a stopped training with what its checkpoint holds.
    pub(crate) fn keep_stopped(&self, request: &TrainRequest) -> Result<()> {
        let dir = self.model_dir(&request.out);
        let checkpoint = dir.join(CHECKPOINT);
        if !checkpoint.exists() {
            return Err(StudioError::Invalid(format!(
                "training `{}` stopped before its first step was saved: resume or remove it",
                request.out
            )));
        }
        let record = Record::reopen(&dir)?;
        let network = self.network(request)?;
        let config = config(request, objective(request)?, &network)?;
        let made = network.so_far(config, &checkpoint)?;
        self.keep(request, &network, &made)?;
        record.end(None)
    }

    fn keep(&self, request: &TrainRequest, network: &Network, made: &Made) -> Result<()> {
        let dir = self.model_dir(&request.out);
        self.keep_made(request, network, made, &dir)?;
        // Only now: a training that dies before is gone on with, not begun again.
        let _ = std::fs::remove_file(dir.join(CHECKPOINT));
        Ok(())
    }

    /// Where the files of a model lie that was trained or made here.
    pub(crate) fn model_dir(&self, name: &str) -> PathBuf {
        self.home().join("models").join(name)
    }

    /// The model file under a model, and the adapter's folder if it is one.
    pub(crate) fn root_of(&self, name: &str) -> Result<(store::Model, Option<PathBuf>)> {
        let row = self.model_row(name)?;
        let Some(base) = &row.adapter_of else {
            return Ok((row, None));
        };
        let root = self.model_row(base)?;
        Ok((root, Some(PathBuf::from(row.path))))
    }
}

fn config(request: &TrainRequest, objective: Objective, network: &Network) -> Result<TrainingConfig> {
    let targets: Vec<Part> = match request.targets.iter().map(String::as_str).collect::<Vec<_>>()[..] {
        ["all"] => Part::ALL.to_vec(),
        _ => request.targets.iter().map(|name| part(name)).collect::<Result<_>>()?,
    };
    let head = matches!(objective, Objective::Prm { .. });
    let adapter = match network {
        Network::Encoder(_) => None,
        // The pairs of an earlier training stay as they are.
        Network::Decoder { start: Some(start), .. } => Some(AdapterConfig {
            head,
            ..start.config.clone()
        }),
        Network::Decoder { start: None, .. } => Some(AdapterConfig {
            rank: request.rank as usize,
            alpha: request.alpha,
            targets,
            head,
        }),
    };
    let defaults = TrainingConfig::new(objective, adapter);
    Ok(TrainingConfig {
        base: match network {
            Network::Decoder { root, .. } => root.sha256.clone(),
            Network::Encoder(_) => String::new(),
        },
        learning_rate: request.learning_rate.unwrap_or(defaults.learning_rate),
        schedule: match request.schedule.as_str() {
            "constant" => Schedule::Constant,
            "linear" => Schedule::Linear,
            "cosine" => Schedule::Cosine,
            other => {
                let message = format!("there is no schedule `{other}`: choose constant, linear or cosine");
                return Err(StudioError::Invalid(message));
            }
        },
        warm_up: request.warm_up,
        epochs: request.epochs,
        batch: request.batch as usize,
        dropout: request.dropout,
        max_length: request.max_length as usize,
        eval_every: request.eval_every.into(),
        patience: request.patience,
        seed: Seed(request.seed.into()),
        ..defaults
    })
}

/// Where a training that is not finished keeps what it needs to go on.
pub(crate) const CHECKPOINT: &str = "checkpoint.safetensors";
/// Every step of a training as JSON lines, in the adapter's folder.
pub(crate) const STEPS: &str = "steps.jsonl";
struct StepLog {
    path: PathBuf,
    file: Option<std::fs::File>,
}

impl StepLog {
    fn new(dir: &Path) -> StepLog {
        StepLog {
            path: dir.join(STEPS),
            file: None,
        }
    }

    /// Steps after the checkpoint that a stopped training went on from are made again: they replace those
    /// that were logged. A log that cannot be written does not stop a training.
    fn write(&mut self, step: &TrainStep) {
        if self.file.is_none() {
            let before = std::fs::read_to_string(&self.path).unwrap_or_default();
            let kept: Vec<&str> = before.lines().take(step.step as usize - 1).collect();
            let text: String = kept.iter().map(|line| format!("{line}\n")).collect();
            let _ = std::fs::write(&self.path, text);
            self.file = std::fs::OpenOptions::new().append(true).open(&self.path).ok();
        }
        if let (Some(file), Ok(line)) = (&mut self.file, serde_json::to_string(step)) {
            let _ = writeln!(file, "{line}");
        }
    }
}

fn objective(request: &TrainRequest) -> Result<Objective> {
    match request.method.as_str() {
        "sft" => Ok(Objective::Sft),
        "dpo" => Ok(Objective::Dpo { beta: request.beta }),
        "prm" => Ok(Objective::Prm { centre: request.centre }),
        other => Err(StudioError::Invalid(format!(
            "there is no method `{other}`: choose sft, dpo or prm"
        ))),
    }
}

fn part(name: &str) -> Result<Part> {
    let known = Part::ALL
        .into_iter()
        .find(|part| part.name() == name || part.name() == format!("{name}_proj"));
    known.ok_or_else(|| {
        let names: Vec<&str> = Part::ALL.iter().map(|part| part.name()).collect();
        StudioError::Invalid(format!(
            "no module is called `{name}`: choose {} or all",
            names.join(", ")
        ))
    })
}

/// The most memory that this process has held, where the system tells.
pub(crate) fn peak_memory_bytes() -> Option<u64> {
    let status = std::fs::read_to_string("/proc/self/status").ok()?;
    let line = status.lines().find_map(|line| line.strip_prefix("VmHWM:"))?;
    let kilobytes: u64 = line.trim().strip_suffix("kB")?.trim().parse().ok()?;
    Some(kilobytes * 1024)
}

impl From<TrainingError> for StudioError {
    fn from(error: TrainingError) -> Self {
        match error {
            TrainingError::Cancelled => StudioError::Cancelled,
            other => StudioError::Training(other),
        }
    }
}
