//! Runs: an agent over a question set, resumable at any instant, in this process or the next one.

use std::path::Path;
use std::sync::Mutex;
use std::sync::atomic::{AtomicU32, Ordering};
use std::time::Instant;

use gym::{LabelledQuestion, QuestionId, Seed};
use serde::{Deserialize, Serialize};
use store::EpisodeStatus;

use crate::claim::Claim;
use crate::library::{check_name, known};
use crate::view::{AgentSettings, JobView, RunRequest};
use crate::{Cancel, Result, Studio, StudioError, clock, endpoints, lock};

/// Which questions of a set a run takes, and how many at once.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct RunOptions {
    pub workers: u32,
    /// Questions at the beginning of the set that are left out; the request's limit counts from there.
    pub skip: u32,
    /// (i, n), i from 1: every n-th question from the i-th on.
    pub shard: Option<(u32, u32)>,
}

/// A run at work in this process.
pub(crate) struct Job {
    pub cancel: Cancel,
    pub name: String,
    pub started: Instant,
    pub done_before: u32,
    pub done: u32,
    pub total: u32,
    /// Keeps other processes off the run.
    _claim: Claim,
}

/// What a run row keeps beside its columns.
#[derive(Serialize, Deserialize)]
struct RunConfig {
    settings: AgentSettings,
    model_sha256: String,
    /// Of a reader that is not the model itself.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    reader_sha256: Option<String>,
    /// Where the model was, if behind a server: the URL is no part of the configuration's hash.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    endpoint: Option<lm::endpoint::Settings>,
    corpus_hash: String,
    question_set_hash: Option<String>,
    /// Who gives the rewards, by name and version.
    #[serde(default)]
    chooser: Option<String>,
}

impl Studio {
    /// Writes a run's row, and nothing else.
    pub(crate) fn new_run(
        &self,
        id: Option<String>,
        name: &str,
        set: Option<&store::QuestionSet>,
        settings: &AgentSettings,
    ) -> Result<store::Run> {
        let model = self.model_row(&settings.model)?;
        let mut config = RunConfig {
            settings: settings.clone(),
            endpoint: None,
            corpus_hash: self.corpus_row(&settings.corpus)?.content_hash,
            question_set_hash: set.map(|set| set.content_hash.clone()),
            model_sha256: model.sha256.clone(),
            reader_sha256: match &settings.reader {
                Some(reader) => Some(self.model_row(reader)?.sha256),
                None => None,
            },
            chooser: self.chooser(settings)?,
        };
        let value = |config: &RunConfig| serde_json::to_value(config).expect("the configuration is plain data");
        let hashed = value(&config).to_string();
        config.endpoint = endpoints::settings(&model)?;
        let run = store::Run {
            id: id.unwrap_or_else(clock::run_id),
            name: name.into(),
            status: store::RunStatus::Running,
            question_set: set.map(|set| set.name.clone()),
            corpus: Some(settings.corpus.clone()),
            config_hash: format!("{:016x}", Seed(0).derive_str(&hashed).0),
            config: value(&config),
            code_version: env!("CARGO_PKG_VERSION").into(),
            shard: None,
            error: None,
            created_at: clock::now(),
            took_ms: 0,
        };
        self.store().create_run(&run)?;
        Ok(run)
    }

    /// Makes a run and its pending episodes; returns its id.
    pub fn create_run(&self, request: &RunRequest, options: &RunOptions) -> Result<String> {
        let settings = self.resolve(&request.settings)?;
        let set = known(self.store().question_set(&request.questions))?.ok_or_else(|| StudioError::NotFound {
            kind: "question set",
            name: request.questions.clone(),
            hint: "; `rag-gym questions list` names those there are".into(),
        })?;
        let questions = self.store().questions(
            &set.name,
            request.limit.map(|limit| options.skip as usize + limit as usize),
        )?;
        let (shard, shards) = options.shard.unwrap_or((1, 1));
        if shard == 0 || shard > shards {
            return Err(StudioError::Invalid(format!(
                "shard {shard}/{shards}: i runs from 1 to n"
            )));
        }
        let ids: Vec<QuestionId> = questions
            .into_iter()
            .map(|labelled| labelled.question.id)
            .skip(options.skip as usize + shard as usize - 1)
            .step_by(shards as usize)
            .collect();
        if ids.is_empty() {
            return Err(StudioError::Invalid("no question is left for this run".into()));
        }
        let name = request
            .name
            .clone()
            .unwrap_or_else(|| format!("{} on {}", settings.agent, set.name));
        // The shards of one run share its id, so that `merge` puts them together again.
        let id = options.shard.map(|(_, shards)| {
            let chosen = (options.skip, request.limit, shards);
            let parts = serde_json::json!([name, settings, set.content_hash, chosen]).to_string();
            format!("shared-{:016x}", Seed(0).derive_str(&parts).0)
        });
        let run = self.new_run(id, &name, Some(&set), &settings)?;
        self.store().create_episodes(&run.id, &ids)?;
        Ok(run.id)
    }

    /// Starts a run in the background of this process; returns its id.
    pub fn start_run(&self, request: &RunRequest) -> Result<String> {
        let run = self.create_run(request, &RunOptions::default())?;
        self.spawn(&run)?;
        Ok(run)
    }

    /// Goes on with a stopped run in the background of this process.
    pub fn resume_run(&self, run: &str) -> Result<()> {
        self.run_row(run)?;
        self.spawn(run)
    }

    fn spawn(&self, run: &str) -> Result<()> {
        let cancel = self.register(run)?;
        let (studio, run) = (self.clone(), run.to_owned());
        std::thread::spawn(move || {
            // The outcome, an error too, is in the run's row.
            let _ = studio.execute(&run, 1, &cancel, &mut |_| {});
        });
        Ok(())
    }

    /// Plays all that is left of a run, here and now. `on_progress` hears of every finished question.
    pub fn work_on(
        &self,
        run: &str,
        workers: u32,
        cancel: &Cancel,
        on_progress: &mut (dyn FnMut(JobView) + Send),
    ) -> Result<()> {
        self.run_row(run)?;
        let own = self.register(run)?;
        // The caller's flag is the one that counts here.
        drop(own);
        if let Some(job) = lock(&self.inner.jobs).get_mut(run) {
            job.cancel = cancel.clone();
        }
        self.execute(run, workers, cancel, on_progress)
    }

    fn register(&self, run: &str) -> Result<Cancel> {
        let row = self.run_row(run)?;
        let episodes = self.store().episodes(run)?;
        let done = episodes
            .iter()
            .filter(|episode| episode.status == EpisodeStatus::Finished)
            .count() as u32;
        let mut jobs = lock(&self.inner.jobs);
        if jobs.contains_key(run) {
            return Err(StudioError::busy_here(run));
        }
        let claim = self.claim(run)?;
        let cancel = Cancel::default();
        jobs.insert(
            run.into(),
            Job {
                cancel: cancel.clone(),
                name: row.name,
                started: Instant::now(),
                done_before: done,
                done,
                total: episodes.len() as u32,
                _claim: claim,
            },
        );
        Ok(cancel)
    }

    fn execute(
        &self,
        run: &str,
        workers: u32,
        cancel: &Cancel,
        on_progress: &mut (dyn FnMut(JobView) + Send),
    ) -> Result<()> {
        let started = Instant::now();
        let result = self.execute_episodes(run, workers, cancel, on_progress);
        let (status, error) = match &result {
            Ok(()) => (store::RunStatus::Finished, None),
            Err(StudioError::Cancelled) => (store::RunStatus::Stopped, None),
            Err(error) => (store::RunStatus::Failed, Some(error.chain())),
        };
        let stored = self
            .store()
            .add_run_time(run, started.elapsed().as_millis() as u64)
            .and_then(|()| self.store().set_run_status(run, status, error.as_deref()));
        // Last, so that whoever sees the job gone sees how it ended.
        lock(&self.inner.jobs).remove(run);
        stored?;
        result
    }

    fn execute_episodes(
        &self,
        run: &str,
        workers: u32,
        cancel: &Cancel,
        on_progress: &mut (dyn FnMut(JobView) + Send),
    ) -> Result<()> {
        self.store().set_run_status(run, store::RunStatus::Running, None)?;
        let row = self.run_row(run)?;
        let settings = settings_of(&row)?;
        self.check_models(&row)?;
        let setting = self.setting(&settings)?;
        if let Some(began) = chooser_of(&row)?
            && Some(began.as_str()) != setting.chooser()
        {
            return Err(StudioError::Invalid(format!(
                "run `{run}` began with `{began}` and this is `{}`: start a new run",
                setting.chooser().unwrap_or("nothing")
            )));
        }
        let pending: Vec<QuestionId> = self
            .store()
            .episodes(run)?
            .into_iter()
            .filter(|episode| episode.status != EpisodeStatus::Finished)
            .map(|episode| episode.question_id)
            .collect();
        let next = AtomicU32::new(0);
        let failure: Mutex<Option<StudioError>> = Mutex::new(None);
        let on_progress = Mutex::new(on_progress);
        std::thread::scope(|scope| {
            for _ in 0..workers.max(1) {
                scope.spawn(|| {
                    while let Some(question) = pending.get(next.fetch_add(1, Ordering::Relaxed) as usize) {
                        let result = self.play_stored(&row, &settings, &setting, question, cancel);
                        if let Err(error) = result {
                            // One question that cannot be played is a failed question; the rest goes on.
                            let local = matches!(error, StudioError::Engine(_));
                            if !local || self.store().fail_episode(run, question, &error.chain()).is_err() {
                                lock(&failure).get_or_insert(error);
                                return;
                            }
                        }
                        if let Some(job) = lock(&self.inner.jobs).get_mut(run) {
                            job.done += 1;
                            (lock(&on_progress))(job_view(run, job));
                        }
                    }
                });
            }
        });
        match failure.into_inner().unwrap_or_else(std::sync::PoisonError::into_inner) {
            Some(error) => Err(error),
            None => self.refuse_nothing_finished(run),
        }
    }

    /// A run none of whose questions could be played has no result: its server does not answer, say.
    fn refuse_nothing_finished(&self, run: &str) -> Result<()> {
        let episodes = self.store().episodes(run)?;
        let finished = episodes.iter().any(|episode| episode.status == EpisodeStatus::Finished);
        match episodes.iter().find_map(|episode| episode.error.as_deref()) {
            Some(error) if !finished => Err(StudioError::Invalid(format!(
                "none of the {} questions of run `{run}` could be played; mend this, then resume it: {error}",
                episodes.len()
            ))),
            _ => Ok(()),
        }
    }

    fn play_stored(
        &self,
        row: &store::Run,
        settings: &AgentSettings,
        setting: &crate::engines::Setting,
        question: &QuestionId,
        cancel: &Cancel,
    ) -> Result<()> {
        if cancel.is_cancelled() {
            return Err(StudioError::Cancelled);
        }
        let labelled = self.episode_question(row, question)?;
        let steps = self.store().steps(&row.id, question)?;
        self.play(&row.id, settings, setting, &labelled, steps, cancel, &mut |_| {})
    }

    /// Refuses a run if the name of its model or reader stands for another file now.
    pub(crate) fn check_models(&self, row: &store::Run) -> Result<()> {
        let config = parse_config(row)?;
        let model = (&config.settings.model, &config.model_sha256);
        let reader = config.settings.reader.as_ref().zip(config.reader_sha256.as_ref());
        for (name, sha256) in [Some(model), reader].into_iter().flatten() {
            if self.model_row(name)?.sha256 != *sha256 {
                return Err(StudioError::Invalid(format!(
                    "run `{}` began with another model under the name `{name}`: put that one back, or start a new run",
                    row.id
                )));
            }
        }
        Ok(())
    }

    pub(crate) fn episode_question(&self, row: &store::Run, question: &QuestionId) -> Result<LabelledQuestion> {
        Ok(match &row.question_set {
            Some(set) => self.store().question(set, question)?,
            None => self.store().episode_question(&row.id, question)?,
        })
    }

    pub fn cancel_run(&self, run: &str) -> Result<()> {
        match lock(&self.inner.jobs).get(run) {
            Some(job) => job.cancel.cancel(),
            None => {
                return Err(StudioError::Invalid(format!(
                    "run `{run}` is not at work in this process"
                )));
            }
        }
        Ok(())
    }

    /// Runs and trainings at work in this process.
    pub fn jobs(&self) -> Vec<JobView> {
        lock(&self.inner.jobs)
            .iter()
            .map(|(run, job)| job_view(run, job))
            .chain(self.training_jobs())
            .collect()
    }

    pub(crate) fn run_row(&self, run: &str) -> Result<store::Run> {
        known(self.store().run(run))?.ok_or_else(|| StudioError::NotFound {
            kind: "run",
            name: run.into(),
            hint: "; `rag-gym runs list` names those there are".into(),
        })
    }

    pub fn remove_run(&self, run: &str) -> Result<()> {
        self.run_row(run)?;
        if lock(&self.inner.jobs).contains_key(run) {
            return Err(StudioError::busy_here(run));
        }
        let claim = self.claim(run)?;
        self.store().remove_run(run)?;
        claim.remove();
        Ok(())
    }

    /// Brings the runs, sets and corpora of another home into this one.
    pub fn merge(&self, other: &Path) -> Result<store::MergeReport> {
        let database = other.join("rag-gym.db");
        if !database.is_file() {
            return Err(StudioError::NotFound {
                kind: "home",
                name: other.display().to_string(),
                hint: ": it has no rag-gym.db".into(),
            });
        }
        // Names become folders and files of this home.
        let theirs = store::Store::open(&database)?;
        let corpora = theirs.corpora()?.into_iter().map(|corpus| corpus.name);
        let sets = theirs.question_sets()?.into_iter().map(|set| set.name);
        let runs = theirs.runs()?.into_iter().map(|run| run.id);
        corpora.chain(sets).chain(runs).try_for_each(|name| check_name(&name))?;
        drop(theirs);
        let report = self.store().merge_from(&database)?;
        lock(&self.inner.finished_runs).clear();
        Ok(report)
    }

    /// All rows of a run as text, without times: equal for equal work.
    pub fn dump_run(&self, run: &str) -> Result<String> {
        Ok(self.store().dump_run(run)?)
    }

    /// "ok", or what the database's own check found.
    pub fn integrity(&self) -> Result<String> {
        self.store().integrity_check()?;
        Ok("ok".into())
    }
}

fn parse_config(row: &store::Run) -> Result<RunConfig> {
    serde_json::from_value(row.config.clone()).map_err(|error| {
        StudioError::Invalid(format!(
            "run `{}` has a configuration that this version cannot read: {error}",
            row.id
        ))
    })
}

/// Who gave the run's rewards; `None` if nobody did, or before this was kept.
pub(crate) fn chooser_of(row: &store::Run) -> Result<Option<String>> {
    Ok(parse_config(row)?.chooser)
}

/// The run's own judge; runs from before judges had versions know its name only.
pub(crate) fn own_judge_of(row: &store::Run) -> Result<Option<String>> {
    let config = parse_config(row)?;
    Ok(config.chooser.or(config.settings.judge))
}

pub(crate) fn settings_of(row: &store::Run) -> Result<AgentSettings> {
    Ok(parse_config(row)?.settings)
}

fn job_view(run: &str, job: &Job) -> JobView {
    let elapsed_ms = job.started.elapsed().as_secs_f64() * 1000.0;
    let here = f64::from(job.done.saturating_sub(job.done_before));
    let left = f64::from(job.total.saturating_sub(job.done));
    JobView {
        kind: "run".into(),
        run: run.into(),
        name: job.name.clone(),
        done: job.done,
        total: job.total,
        elapsed_ms,
        eta_ms: (here > 0.0).then(|| elapsed_ms / here * left),
    }
}

#[cfg(test)]
mod tests {
    use crate::testing;

    #[test]
    fn a_home_whose_names_are_paths_is_not_merged() {
        let (_dir, studio) = testing::judged_run();
        let other = tempfile::tempdir().unwrap();
        let theirs = store::Store::open(other.path().join("rag-gym.db")).unwrap();
        let passages = std::iter::empty::<std::result::Result<gym::Passage, String>>();
        theirs.create_corpus("../documents", "jsonl", "t", passages).unwrap();
        drop(theirs);
        let refused = studio.merge(other.path()).unwrap_err().to_string();
        assert!(refused.contains("`../documents` is no name"), "{refused}");
        assert!(studio.corpora().unwrap().iter().all(|corpus| corpus.name == "wiki"));
    }
}
