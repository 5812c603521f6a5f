//! Trainings in the background of this process, and the record that each keeps in its adapter's folder.

use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Instant;

use serde::{Deserialize, Serialize};
use specta::Type;
use training::TrainingError;

use crate::claim::Claim;
use crate::export::write_bytes;
use crate::train::{CHECKPOINT, EvalPoint, STEPS};
use crate::view::JobView;
use crate::{Cancel, Result, Studio, StudioError, TrainRequest, TrainStep, clock, lock};

/// A training as a row of the table of trainings.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize, Type)]
pub struct TrainingView {
    pub name: String,
    /// running | finished | stopped | failed
    pub state: String,
    /// `None` for adapters whose record is not here.
    pub request: Option<TrainRequest>,
    /// Made so far, and in all; 0 until the first is made.
    pub step: u32,
    pub steps: u32,
    /// Of the last step.
    pub loss: Option<f64>,
    /// The evaluation with the least loss.
    pub best: Option<EvalPoint>,
    pub examples: u32,
    pub held_out: u32,
    /// Stopped with a checkpoint: it can end here and be kept.
    pub keepable: bool,
    pub took_ms: f64,
    pub created_at: String,
    pub error: Option<String>,
}

/// A training at work in this process.
pub(crate) struct TrainingJob {
    cancel: Cancel,
    /// When it stops, what it came to is registered.
    keep: Arc<AtomicBool>,
    started: Instant,
    /// The first step made here, and the last.
    first: Option<(u32, Instant)>,
    done: u32,
    total: u32,
}

/// What a training was asked to do and how far it came, as `training.json` keeps it.
#[derive(Clone, Debug, Serialize, Deserialize)]
struct Kept {
    request: TrainRequest,
    /// As in [`TrainingView`]; one that says running without a process at work was killed.
    state: String,
    error: Option<String>,
    created_at: String,
    took_ms: u64,
    examples: u32,
    held_out: u32,
}

/// The record of a training that this process works on; no other process can, as long as it is held.
pub(crate) struct Record {
    dir: PathBuf,
    kept: Kept,
    /// As it was, where there is a checkpoint to go on from.
    stopped: Option<Kept>,
    started: Instant,
    _held: Claim,
}

impl Record {
    /// Creates the folder, or goes on with the record that is there.
    pub fn begin(dir: &Path, request: &TrainRequest, examples: usize, held_out: usize) -> Result<Record> {
        let started = Instant::now();
        std::fs::create_dir_all(dir).map_err(StudioError::file("create", dir))?;
        let held = hold(dir)?;
        let before = read(dir)?;
        let stopped = before.clone().filter(|_| dir.join(CHECKPOINT).exists());
        let record = Record {
            dir: dir.into(),
            kept: Kept {
                // What the checkpoint was made by: it goes on only where nothing that counts is different.
                request: stopped
                    .as_ref()
                    .map_or_else(|| request.clone(), |kept| kept.request.clone()),
                state: "running".into(),
                error: None,
                created_at: before.as_ref().map_or_else(clock::now, |kept| kept.created_at.clone()),
                took_ms: before.map_or(0, |kept| kept.took_ms),
                examples: examples as u32,
                held_out: held_out as u32,
            },
            stopped,
            started,
            _held: held,
        };
        record.write()?;
        Ok(record)
    }

    pub fn reopen(dir: &Path) -> Result<Record> {
        let held = hold(dir)?;
        let kept = read(dir)?.ok_or_else(|| unknown(dir))?;
        Ok(Record {
            dir: dir.into(),
            kept,
            stopped: None,
            started: Instant::now(),
            _held: held,
        })
    }

    /// Without an error it is finished. A training that was refused to go on is as it was before.
    pub fn end(mut self, error: Option<&StudioError>) -> Result<()> {
        let refused = matches!(error, Some(StudioError::Training(TrainingError::Invalid(_))));
        if let (true, Some(stopped)) = (refused, self.stopped.take()) {
            self.kept = stopped;
            return self.write();
        }
        self.kept.took_ms += self.started.elapsed().as_millis() as u64;
        (self.kept.state, self.kept.error) = match error {
            None => ("finished".into(), None),
            Some(StudioError::Cancelled) => ("stopped".into(), None),
            Some(error) => ("failed".into(), Some(error.chain())),
        };
        self.write()
    }

    fn write(&self) -> Result<()> {
        let text = serde_json::to_vec_pretty(&self.kept)
            .map_err(|error| StudioError::Invalid(format!("the settings cannot be written as JSON: {error}")))?;
        write_bytes(&self.dir.join(RECORD), &text)
    }
}

const RECORD: &str = "training.json";
const LOCK: &str = "training.lock";

impl Studio {
    /// Starts a training in the background of this process, or goes on with a stopped one of that name.
    /// Returns once the data is read, so that wrong settings are told at once.
    pub fn start_training(&self, request: &TrainRequest) -> Result<()> {
        let name = request.out.clone();
        let (cancel, keep) = (Cancel::default(), Arc::new(AtomicBool::new(false)));
        let mut jobs = lock(&self.inner.trainings);
        if jobs.contains_key(&name) {
            return Err(StudioError::busy_here(&name));
        }
        let job = TrainingJob {
            cancel: cancel.clone(),
            keep: keep.clone(),
            started: Instant::now(),
            first: None,
            done: 0,
            total: 0,
        };
        jobs.insert(name.clone(), job);
        drop(jobs);
        let end = |studio: &Studio| lock(&studio.inner.trainings).remove(&name);
        let prepared = match self.prepare(request) {
            Ok(prepared) => prepared,
            Err(error) => {
                end(self);
                return Err(error);
            }
        };
        let studio = self.clone();
        std::thread::spawn(move || {
            let name = prepared.request.out.clone();
            let request = prepared.request.clone();
            // The outcome, an error too, is in the record.
            let outcome = studio.carry_out(prepared, Instant::now(), &cancel, &mut |step| {
                if let Some(job) = lock(&studio.inner.trainings).get_mut(&name) {
                    job.first.get_or_insert((step.step, Instant::now()));
                    (job.done, job.total) = (step.step, step.steps);
                }
            });
            if matches!(outcome, Err(StudioError::Cancelled))
                && keep.load(Ordering::Relaxed)
                && let Err(error) = studio.keep_stopped(&request)
            {
                // The record is all that is left to tell it; if it cannot be written either, it says "stopped".
                let _ = Record::reopen(&studio.model_dir(&name)).and_then(|record| record.end(Some(&error)));
            }
            lock(&studio.inner.trainings).remove(&name);
        });
        Ok(())
    }

    /// Goes on with a stopped training as it was asked for.
    pub fn resume_training(&self, name: &str) -> Result<()> {
        self.start_training(&self.kept(name)?.request)
    }

    /// Stops a training at its next step; it can be resumed.
    pub fn pause_training(&self, name: &str) -> Result<()> {
        match lock(&self.inner.trainings).get(name) {
            Some(job) => job.cancel.cancel(),
            None => {
                let message = format!("training `{name}` is not at work in this process");
                return Err(StudioError::Invalid(message));
            }
        }
        Ok(())
    }

    /// Ends a training here: the best by evaluation, or else the last, becomes the model.
    pub fn keep_training(&self, name: &str) -> Result<()> {
        if let Some(job) = lock(&self.inner.trainings).get(name) {
            job.keep.store(true, Ordering::Relaxed);
            job.cancel.cancel();
            return Ok(());
        }
        self.keep_stopped(&self.kept(name)?.request)
    }

    /// Removes a training with its model, if it became one, and its files.
    pub fn remove_training(&self, name: &str) -> Result<()> {
        if lock(&self.inner.trainings).contains_key(name) {
            return Err(StudioError::busy_here(name));
        }
        if self.store().model(name).is_ok() {
            return self.remove_model(name);
        }
        let dir = self.checked_dir(name)?;
        let held = hold(&dir)?;
        std::fs::remove_dir_all(&dir).map_err(StudioError::file("remove", &dir))?;
        drop(held);
        Ok(())
    }

    /// Newest first.
    pub fn trainings(&self) -> Result<Vec<TrainingView>> {
        let models = self.home().join("models");
        let entries = match std::fs::read_dir(&models) {
            Err(error) if error.kind() == std::io::ErrorKind::NotFound => return Ok(Vec::new()),
            entries => entries.map_err(StudioError::file("read", &models))?,
        };
        let mut trainings = Vec::new();
        for entry in entries.flatten() {
            let (dir, name) = (entry.path(), entry.file_name().to_string_lossy().into_owned());
            if dir.join(RECORD).exists() || dir.join(STEPS).exists() {
                // One that cannot be read does not hide the others.
                trainings.push(self.training_view(&name, &dir).unwrap_or_else(|error| TrainingView {
                    name,
                    state: "failed".into(),
                    error: Some(error.chain()),
                    ..TrainingView::default()
                }));
            }
        }
        trainings.sort_by(|a, b| (&b.created_at, &b.name).cmp(&(&a.created_at, &a.name)));
        Ok(trainings)
    }

    pub fn training(&self, name: &str) -> Result<TrainingView> {
        self.training_view(name, &self.checked_dir(name)?)
    }

    /// The steps made after `after`.
    pub fn training_steps(&self, name: &str, after: u32) -> Result<Vec<TrainStep>> {
        let path = self.checked_dir(name)?.join(STEPS);
        let text = match std::fs::read_to_string(&path) {
            Err(error) if error.kind() == std::io::ErrorKind::NotFound => String::new(),
            text => text.map_err(StudioError::file("read", &path))?,
        };
        // A line that is being written is read the next time.
        let lines = text.lines().skip(after as usize);
        Ok(lines.map_while(|line| serde_json::from_str(line).ok()).collect())
    }

    pub(crate) fn training_jobs(&self) -> Vec<JobView> {
        let jobs = lock(&self.inner.trainings);
        jobs.iter().map(|(name, job)| job.view(name)).collect()
    }

    fn training_view(&self, name: &str, dir: &Path) -> Result<TrainingView> {
        let steps = self.training_steps(name, 0)?;
        let kept = read(dir)?;
        let at_work = lock(&self.inner.trainings).contains_key(name);
        let state = match &kept {
            _ if at_work => "running",
            Some(kept) if kept.state != "running" => &kept.state,
            Some(_) if Claim::is_held(&dir.join(LOCK)) => "running",
            Some(_) => "stopped",
            None => "finished",
        };
        let best = steps.iter().filter_map(|step| step.eval.as_ref());
        let last = steps.last();
        Ok(TrainingView {
            name: name.into(),
            state: state.into(),
            step: last.map_or(0, |step| step.step),
            steps: last.map_or(0, |step| step.steps),
            loss: last.map(|step| step.loss),
            best: best.min_by(|a, b| a.loss.total_cmp(&b.loss)).cloned(),
            examples: kept.as_ref().map_or(0, |kept| kept.examples),
            held_out: kept.as_ref().map_or(0, |kept| kept.held_out),
            keepable: matches!(state, "stopped" | "failed") && dir.join(CHECKPOINT).exists(),
            took_ms: kept.as_ref().map_or(0.0, |kept| kept.took_ms as f64),
            created_at: kept.as_ref().map_or(String::new(), |kept| kept.created_at.clone()),
            error: kept.as_ref().and_then(|kept| kept.error.clone()),
            request: kept.map(|kept| kept.request),
        })
    }

    fn kept(&self, name: &str) -> Result<Kept> {
        let dir = self.checked_dir(name)?;
        read(&dir)?.ok_or_else(|| unknown(&dir))
    }

    fn checked_dir(&self, name: &str) -> Result<PathBuf> {
        crate::library::check_name(name)?;
        let dir = self.model_dir(name);
        match dir.join(RECORD).exists() || dir.join(STEPS).exists() {
            true => Ok(dir),
            false => Err(unknown(&dir)),
        }
    }
}

impl TrainingJob {
    fn view(&self, name: &str) -> JobView {
        let left = f64::from(self.total.saturating_sub(self.done));
        // The first step also reads what the others find in memory, so that it says little of them.
        let pace = self.first.and_then(|(first, since)| {
            let made = self.done.checked_sub(first).filter(|made| *made > 0)?;
            Some(since.elapsed().as_secs_f64() * 1000.0 / f64::from(made))
        });
        JobView {
            kind: "training".into(),
            run: name.into(),
            name: name.into(),
            done: self.done,
            total: self.total,
            elapsed_ms: self.started.elapsed().as_secs_f64() * 1000.0,
            eta_ms: pace.map(|pace| pace * left),
        }
    }
}

fn hold(dir: &Path) -> Result<Claim> {
    Claim::take(&dir.join(LOCK), &name_of(dir))
}

fn name_of(dir: &Path) -> String {
    dir.file_name().unwrap_or_default().to_string_lossy().into_owned()
}

fn read(dir: &Path) -> Result<Option<Kept>> {
    let path = dir.join(RECORD);
    let text = match std::fs::read(&path) {
        Err(error) if error.kind() == std::io::ErrorKind::NotFound => return Ok(None),
        text => text.map_err(StudioError::file("read", &path))?,
    };
    serde_json::from_slice(&text)
        .map(Some)
        .map_err(|error| StudioError::Invalid(format!("{} cannot be read by this version: {error}", path.display())))
}

fn unknown(dir: &Path) -> StudioError {
    StudioError::NotFound {
        kind: "training",
        name: name_of(dir),
        hint: "".into(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::testing::training as request;

    #[test]
    fn a_training_that_is_refused_to_go_on_leaves_the_stopped_one_as_it_was() {
        let home = tempfile::tempdir().unwrap();
        let studio = Studio::open(Some(home.path().into())).unwrap();
        let dir = studio.model_dir("one");
        let record = Record::begin(&dir, &request("one"), 9, 1).unwrap();
        record.end(Some(&StudioError::Cancelled)).unwrap();
        std::fs::write(dir.join(CHECKPOINT), b"numbers").unwrap();
        let stopped = studio.training("one").unwrap();
        assert_eq!((stopped.state.as_str(), stopped.keepable), ("stopped", true));

        let other = TrainRequest {
            alpha: 64.0,
            ..request("one")
        };
        let record = Record::begin(&dir, &other, 5, 0).unwrap();
        assert_eq!(studio.training("one").unwrap().request, Some(request("one")));
        let refused = StudioError::Training(TrainingError::Invalid("other settings".into()));
        record.end(Some(&refused)).unwrap();
        assert_eq!(studio.training("one").unwrap(), stopped);
    }

    #[test]
    fn a_record_says_what_became_of_a_training_even_of_a_killed_one() {
        let home = tempfile::tempdir().unwrap();
        let studio = Studio::open(Some(home.path().into())).unwrap();
        assert_eq!(studio.trainings().unwrap(), []);
        let dir = studio.model_dir("one");
        let state = |name: &str| studio.training(name).unwrap().state;

        let record = Record::begin(&dir, &request("one"), 9, 1).unwrap();
        assert_eq!(state("one"), "running");
        assert!(Record::reopen(&dir).is_err(), "it is held");
        assert!(studio.remove_training("one").is_err(), "it is held");
        // Killed: nothing was said at the end.
        drop(record);
        assert_eq!(state("one"), "stopped");
        let began = studio.training("one").unwrap();
        assert_eq!(
            (began.request, began.examples, began.held_out),
            (Some(request("one")), 9, 1)
        );

        let record = Record::begin(&dir, &request("one"), 9, 1).unwrap();
        record.end(Some(&StudioError::Invalid("too wild".into()))).unwrap();
        let failed = studio.training("one").unwrap();
        assert_eq!(
            (failed.state.as_str(), failed.error.as_deref()),
            ("failed", Some("too wild"))
        );
        assert_eq!((failed.keepable, &failed.created_at), (false, &began.created_at));
        let early = studio.keep_training("one").unwrap_err().to_string();
        assert!(early.contains("before its first step"), "{early}");
        Record::reopen(&dir).unwrap().end(None).unwrap();
        assert_eq!(state("one"), "finished");

        studio.remove_training("one").unwrap();
        assert!(!dir.exists());
        assert_eq!(studio.training("one").unwrap_err().code(), "not_found");
    }

    #[test]
    fn steps_are_read_on_from_where_one_was() {
        let home = tempfile::tempdir().unwrap();
        let studio = Studio::open(Some(home.path().into())).unwrap();
        let dir = studio.model_dir("old");
        std::fs::create_dir_all(&dir).unwrap();
        let line = |step: u32, eval: &str| {
            format!(
                r#"{{"step":{step},"steps":3,"loss":{},"learning_rate":0.1,"tokens_per_second":9.0,"grad_norm":1.0{eval}}}"#,
                4 - step
            )
        };
        let eval = |step: u32, loss: f64| format!(r#","eval":{{"step":{step},"loss":{loss},"n":7}}"#);
        // The third line is being written.
        let log = [line(1, &eval(1, 0.5)), line(2, &eval(2, 0.75)), r#"{"step":3,"#.into()].join("\n");
        std::fs::write(dir.join(STEPS), log).unwrap();
        let steps = |after| -> Vec<u32> {
            let steps = studio.training_steps("old", after).unwrap();
            steps.iter().map(|step| step.step).collect()
        };
        assert_eq!(
            (steps(0), steps(1), steps(2), steps(9)),
            (vec![1, 2], vec![2], vec![], vec![])
        );
        // Made before there were records.
        let view = &studio.trainings().unwrap()[0];
        assert_eq!((view.state.as_str(), view.step, view.steps), ("finished", 2, 3));
        assert_eq!(
            (view.loss, view.best.as_ref().map(|best| (best.step, best.n))),
            (Some(2.0), Some((1, 7)))
        );
    }
}
