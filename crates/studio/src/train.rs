//! Training: from stored runs, gold evidence or files to an adapter that is a model of its own.

use std::collections::HashSet;
use std::io::Write;
use std::path::{Path, PathBuf};
use std::time::Instant;

use gym::{Agent, AgentKind, LabelledQuestion, PromptStyle, Seed};
use serde::Serialize;
use store::EpisodeStatus;
use training::TrainingError;
use training::adapter::{Adapter, AdapterConfig};
use training::base::{Base, Part};
use training::expert::expert;
use training::lesson::{Encoder, Lesson, Selection, from_trl, lessons};
use training::objective::{Example, Objective};
use training::optimizer::Schedule;
use training::train::{Evaluation, StepReport, TrainingConfig, split, train};

use crate::library::check_name;
use crate::{Cancel, Result, Studio, StudioError};

/// What to train, on what. Numbers left open take the method's defaults.
#[derive(Clone, Debug)]
pub struct TrainRequest {
    /// sft, dpo or prm.
    pub method: String,
    /// Runs whose episodes teach.
    pub runs: Vec<String>,
    /// Whose rewards of the runs' candidates count; `None` for each run's own. Not for SFT, which learns from
    /// the actions that were taken.
    pub judge: Option<String>,
    /// Files of TRL's JSON lines.
    pub files: Vec<PathBuf>,
    /// Question sets whose gold evidence teaches, for `agents` over `corpus`. SFT only.
    pub expert: Vec<String>,
    /// Only the first so many questions of each of these sets.
    pub limit: Option<u32>,
    pub agents: Vec<String>,
    pub corpus: Option<String>,
    /// Passages per search of the expert.
    pub k: u32,
    /// A model, or an adapter to go on from.
    pub base: String,
    pub out: String,
    pub rank: usize,
    pub alpha: f32,
    pub targets: Vec<String>,
    pub learning_rate: Option<f32>,
    pub schedule: String,
    pub warm_up: f32,
    pub epochs: u32,
    pub batch: usize,
    pub beta: f32,
    pub centre: f32,
    pub dropout: f32,
    pub max_length: usize,
    pub eval_ratio: f64,
    pub eval_every: u64,
    pub patience: u32,
    pub seed: u64,
}

/// One optimiser step, as it is shown and logged.
#[derive(Clone, Debug, Serialize)]
pub struct TrainStep {
    pub step: u64,
    pub steps: u64,
    pub loss: f64,
    pub learning_rate: f64,
    /// Tokens computed; what the step's examples share at their beginning counts once.
    pub tokens_per_second: f64,
    /// The same time, with shared beginnings counted for every example.
    pub example_tokens_per_second: f64,
    pub grad_norm: f64,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub margin: Option<f64>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub accuracy: Option<f64>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub eval: Option<Evaluation>,
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

impl Studio {
    /// Trains an adapter and registers it as a model. A training of the same name that was stopped goes on.
    pub fn train(
        &self,
        request: &TrainRequest,
        cancel: &Cancel,
        on_step: &mut dyn FnMut(&TrainStep),
    ) -> Result<TrainReport> {
        let started = Instant::now();
        check_name(&request.out)?;
        let (root, start_dir) = self.root_of(&request.base)?;
        let dir = self.home().join("models").join(&request.out);
        if self.store().model(&request.out).is_ok() && !dir.join(CHECKPOINT).exists() {
            let message = format!(
                "there is a model `{}` already; remove it or choose another name",
                request.out
            );
            return Err(StudioError::Invalid(message));
        }
        let objective = objective(request)?;
        let base = Base::open(Path::new(&root.path))?;
        let start = match &start_dir {
            Some(dir) => Some(Adapter::load(&base.config, dir)?),
            None => None,
        };
        let config = self.config(request, objective, start.as_ref())?;
        let examples = self.examples(request, objective, Path::new(&root.path))?;
        let (examples, held_out) = split(examples, request.eval_ratio, config.seed.derive_str("split"));
        std::fs::create_dir_all(&dir).map_err(|source| StudioError::File {
            action: "create",
            path: dir.clone(),
            source,
        })?;
        let checkpoint = dir.join(CHECKPOINT);
        let mut log = StepLog::new(&dir);
        let mut last = Instant::now();
        let mut shown = |report: &StepReport| {
            let seconds = last.elapsed().as_secs_f64();
            let step = TrainStep {
                step: report.step,
                steps: report.steps,
                loss: report.measure.loss,
                learning_rate: report.learning_rate,
                tokens_per_second: report.tokens as f64 / seconds,
                example_tokens_per_second: report.example_tokens as f64 / seconds,
                grad_norm: report.grad_norm,
                margin: report.measure.margin,
                accuracy: report.measure.accuracy,
                eval: report.evaluation,
            };
            last = Instant::now();
            log.write(&step);
            on_step(&step);
        };
        let start = start.as_ref();
        let trained = train(
            &base,
            &config,
            start,
            &examples,
            &held_out,
            &checkpoint,
            cancel,
            &mut shown,
        )?;
        trained.adapter.save(&base.config, &dir, &root.name)?;
        let reward = matches!(objective, Objective::Prm { .. });
        self.register_adapter(&request.out, &dir, &root, reward)?;
        // Only now: a training that dies before is gone on with, not begun again.
        let _ = std::fs::remove_file(&checkpoint);
        Ok(TrainReport {
            adapter: request.out.clone(),
            path: dir.display().to_string(),
            eval: trained.evaluation,
            steps: trained.steps,
            stopped_early: trained.stopped_early,
            examples: examples.len(),
            held_out: held_out.len(),
            peak_memory_bytes: peak_memory_bytes(),
            took_ms: started.elapsed().as_millis() as u64,
        })
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

    fn config(&self, request: &TrainRequest, objective: Objective, start: Option<&Adapter>) -> Result<TrainingConfig> {
        let targets: Vec<Part> = match request.targets.iter().map(String::as_str).collect::<Vec<_>>()[..] {
            ["all"] => Part::ALL.to_vec(),
            _ => request.targets.iter().map(|name| part(name)).collect::<Result<_>>()?,
        };
        let head = matches!(objective, Objective::Prm { .. });
        let adapter = match start {
            // The pairs of an earlier training stay as they are.
            Some(start) => AdapterConfig {
                head,
                ..start.config.clone()
            },
            None => AdapterConfig {
                rank: request.rank,
                alpha: request.alpha,
                targets,
                head,
            },
        };
        let defaults = TrainingConfig::new(objective, adapter);
        Ok(TrainingConfig {
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
            batch: request.batch,
            dropout: request.dropout,
            max_length: request.max_length,
            eval_every: request.eval_every,
            patience: request.patience,
            seed: Seed(request.seed),
            ..defaults
        })
    }

    fn examples(&self, request: &TrainRequest, objective: Objective, model: &Path) -> Result<Vec<Example>> {
        if request.judge.is_some() && (objective == Objective::Sft || request.runs.is_empty()) {
            return Err(StudioError::Invalid(
                "--judge chooses whose rewards of a run dpo and prm learn from".into(),
            ));
        }
        let mut all = Vec::new();
        for run in &request.runs {
            all.extend(self.lessons_of_run(run, objective, request.judge.as_deref())?);
        }
        for file in &request.files {
            all.extend(lessons_of_file(file)?);
        }
        if !request.expert.is_empty() && objective != Objective::Sft {
            return Err(StudioError::Invalid(
                "gold evidence teaches sft only: dpo and prm need a judged run".into(),
            ));
        }
        for set in &request.expert {
            all.extend(self.lessons_of_gold(request, set)?);
        }
        if all.is_empty() {
            return Err(StudioError::Invalid(
                "there is nothing to learn: no finished episode has a good outcome and, for dpo and prm, a state with \
                 candidates above 0.75 and below 0.5"
                    .into(),
            ));
        }
        let encoder = Encoder::open(model)?;
        Ok(all
            .iter()
            .map(|lesson| encoder.example(lesson))
            .collect::<training::Result<_>>()?)
    }

    fn lessons_of_run(&self, run: &str, objective: Objective, judge: Option<&str>) -> Result<Vec<Lesson>> {
        let mut all = Vec::new();
        self.each_episode(run, judge, |labelled, steps| {
            refuse_test(labelled)?;
            all.extend(lessons(labelled, steps, objective, Selection::default()));
            Ok(())
        })?;
        Ok(all)
    }

    /// Calls back with every finished episode of a run; with a judge, candidates have that judge's rewards,
    /// or none in states that it has not judged.
    pub(crate) fn each_episode(
        &self,
        run: &str,
        judge: Option<&str>,
        mut each: impl FnMut(&LabelledQuestion, &[gym::Step]) -> Result<()>,
    ) -> Result<()> {
        self.run_row(run)?;
        let rewards = judge.map(|judge| self.rewards_by(run, judge)).transpose()?;
        for episode in self.store().episodes(run)? {
            if episode.status != EpisodeStatus::Finished {
                continue;
            }
            let question = &episode.question_id;
            let labelled = self.store().episode_question(run, question)?;
            let mut steps = self.store().steps(run, question)?;
            if let Some(rewards) = &rewards {
                for step in &mut steps {
                    let given = rewards.get(&(question.clone(), step.step_idx));
                    for (idx, candidate) in step.candidates.iter_mut().enumerate() {
                        candidate.reward = given.and_then(|given| given.get(idx).copied());
                    }
                }
            }
            each(&labelled, &steps)?;
        }
        Ok(())
    }

    fn lessons_of_gold(&self, request: &TrainRequest, set: &str) -> Result<Vec<Lesson>> {
        let corpus = match &request.corpus {
            Some(corpus) => corpus.clone(),
            None => self.store().question_set(set)?.corpus.ok_or_else(|| {
                StudioError::Invalid(format!("question set `{set}` names no corpus: say which with --corpus"))
            })?,
        };
        let index = self.index(&corpus)?;
        let questions = self.store().questions(set, request.limit.map(|limit| limit as usize))?;
        let (mut all, mut readers) = (Vec::new(), HashSet::new());
        for name in &request.agents {
            let kind: AgentKind = name
                .parse()
                .map_err(|error: gym::agent::UnknownName| StudioError::Invalid(error.to_string()))?;
            let agent = Agent::new(kind, PromptStyle::Compact);
            for labelled in &questions {
                refuse_test(labelled)?;
                let (policy, reader) = expert(&agent, labelled, index.as_ref(), request.k as usize)?;
                all.extend(policy);
                // Agents that read ask their reader the same.
                let new = |lesson: &Lesson| readers.insert(serde_json::to_string(&lesson.prompt).unwrap_or_default());
                all.extend(reader.into_iter().filter(new));
            }
        }
        Ok(all)
    }
}

/// Where a training that is not finished keeps what it needs to go on.
const CHECKPOINT: &str = "checkpoint.safetensors";

/// Every step of a training as JSON lines, `steps.jsonl` in the adapter's folder.
struct StepLog {
    path: PathBuf,
    file: Option<std::fs::File>,
}

impl StepLog {
    fn new(dir: &Path) -> StepLog {
        StepLog {
            path: dir.join("steps.jsonl"),
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

/// What a test measures must not be learnt.
fn refuse_test(labelled: &LabelledQuestion) -> Result<()> {
    match labelled.split.as_deref() {
        Some("test") => Err(StudioError::Invalid(format!(
            "question `{}` belongs to a test split: it is for measuring, not for training",
            labelled.question.id.0
        ))),
        _ => Ok(()),
    }
}

fn lessons_of_file(path: &Path) -> Result<Vec<Lesson>> {
    let text = std::fs::read_to_string(path).map_err(|source| StudioError::File {
        action: "read",
        path: path.into(),
        source,
    })?;
    let lines = text.lines().enumerate().filter(|(_, line)| !line.trim().is_empty());
    lines
        .map(|(idx, line)| {
            from_trl(line)
                .map_err(|message| StudioError::Invalid(format!("{}, line {}: {message}", path.display(), idx + 1)))
        })
        .collect()
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
