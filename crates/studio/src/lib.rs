//! Use cases: everything a host (window or command line) can do, as blocking functions.
//!
//! The only crate that composes the others. Hosts see [`Studio`], the values of [`view`] and
//! [`StudioError`]; they never see SQL, tensors or index files.

mod adapters;
mod ask;
pub mod bench;
mod bench_episode;
mod bench_retrieve;
mod bench_train;
mod claim;
mod clock;
pub mod compare;
pub mod curve;
pub mod doctor;
mod endpoints;
mod engines;
mod error;
mod evaluate;
mod export;
mod human;
mod inspect;
mod judges;
mod lessons;
mod library;
pub mod machine;
mod network;
mod opened;
pub mod preview;
mod results;
mod rewards;
mod run;
mod setup;
mod show;
mod table;
#[cfg(test)]
mod testing;
mod train;
mod trainings;
pub mod view;

use std::collections::HashMap;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

pub use adapters::DEFAULT_MODEL;
pub use bench_episode::EpisodeBench;
pub use bench_retrieve::{Recall, RetrievalBench};
pub use bench_train::TrainBench;
pub use endpoints::AddedEndpoint;
pub use error::StudioError;
pub use evaluate::{Evaluation, Metric};
pub use export::{Exported, Format};
pub use gym::{AgentKind, Cancel};
pub use human::{AgreementView, HumanState, HumanView, VerdictView};
pub use judges::{Annotation, JudgeAgreement, JudgeSpec};
pub use lm::endpoint;
pub use run::RunOptions;
pub use train::{EvalPoint, TrainReport, TrainRequest, TrainStep};
pub use trainings::TrainingView;

use opened::Opened;

pub(crate) type Result<T> = std::result::Result<T, StudioError>;

/// One home folder: its database, its indexes, its models, and the jobs of this process.
#[derive(Clone)]
pub struct Studio {
    inner: Arc<Inner>,
}

struct Inner {
    home: PathBuf,
    store: store::Store,
    /// Loaded models, connected endpoints and open indexes, by name.
    models: Opened<lm::LocalModel>,
    rewarders: Opened<rewards::Loaded>,
    endpoints: Mutex<HashMap<String, Arc<endpoint::Endpoint>>>,
    indexes: Opened<retrieval::Bm25Index>,
    jobs: Mutex<HashMap<String, run::Job>>,
    trainings: Mutex<HashMap<String, trainings::TrainingJob>>,
    /// Scores of finished runs, by id.
    finished_runs: Mutex<HashMap<String, view::RunView>>,
}

impl Studio {
    /// Opens (or creates) a home: the given folder, else `RAG_GYM_HOME`, else the platform's data folder.
    pub fn open(home: Option<PathBuf>) -> Result<Studio> {
        let home = home
            .or_else(|| std::env::var_os("RAG_GYM_HOME").map(PathBuf::from))
            .unwrap_or_else(platform_home);
        // Paths of models stand in the database, and the next call may come from another folder.
        let home = std::path::absolute(&home).map_err(StudioError::file("find", &home))?;
        std::fs::create_dir_all(&home).map_err(StudioError::file("create", &home))?;
        let store = store::Store::open(home.join("rag-gym.db"))?;
        Ok(Studio {
            inner: Arc::new(Inner {
                home,
                store,
                models: Opened::default(),
                rewarders: Opened::default(),
                endpoints: Mutex::default(),
                indexes: Opened::default(),
                jobs: Mutex::default(),
                trainings: Mutex::default(),
                finished_runs: Mutex::default(),
            }),
        })
    }

    pub fn home(&self) -> &Path {
        &self.inner.home
    }

    pub(crate) fn store(&self) -> &store::Store {
        &self.inner.store
    }
}

/// A panic in another thread leaves these maps whole: every change to them is a single insert or remove.
pub(crate) fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

fn platform_home() -> PathBuf {
    let var = |name: &str| {
        std::env::var_os(name)
            .filter(|value| !value.is_empty())
            .map(PathBuf::from)
    };
    let home = || var("HOME").unwrap_or_else(|| PathBuf::from("."));
    if cfg!(target_os = "windows") {
        var("APPDATA").unwrap_or_else(home).join("RAG-Gym Studio")
    } else if cfg!(target_os = "macos") {
        home().join("Library/Application Support/RAG-Gym Studio")
    } else {
        var("XDG_DATA_HOME")
            .unwrap_or_else(|| home().join(".local/share"))
            .join("rag-gym-studio")
    }
}
