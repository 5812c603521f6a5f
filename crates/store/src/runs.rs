//! Runs: what was asked of which engines, and how it is going.

use rusqlite::{Connection, Row, params};
use serde::{Deserialize, Serialize};

use crate::error::{Attempt, is_duplicate};
use crate::{Error, Result, Store, corpora, questions, sql};

#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum RunStatus {
    Running,
    Finished,
    Stopped,
    Failed,
}

#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Run {
    pub id: String,
    pub name: String,
    pub status: RunStatus,
    /// `None` for asked questions, which their episodes keep.
    pub question_set: Option<String>,
    /// `None` for agents that never search.
    pub corpus: Option<String>,
    pub config: serde_json::Value,
    pub config_hash: String,
    pub code_version: String,
    /// "2/8": the part of the question set that this home ran.
    pub shard: Option<String>,
    pub error: Option<String>,
    pub created_at: String,
    /// Time spent running, over all its resumptions.
    pub took_ms: u64,
}

impl Store {
    pub fn create_run(&self, run: &Run) -> Result<()> {
        let attempted = format!("storing run `{}`", run.id);
        self.write(&attempted, |transaction| {
            if let Some(set) = &run.question_set {
                questions::require(transaction, set)?;
            }
            if let Some(corpus) = &run.corpus {
                corpora::require(transaction, corpus)?;
            }
            let inserted = transaction.execute(
                "INSERT INTO run (id, name, status, question_set, corpus, config, config_hash, code_version, shard,
                   error, created_at, took_ms) VALUES (?1, ?2, ?3, ?4, ?5, ?6, ?7, ?8, ?9, ?10, ?11, ?12)",
                params![
                    run.id,
                    run.name,
                    sql::to_name(&run.status),
                    run.question_set,
                    run.corpus,
                    sql::to_json(&run.config),
                    run.config_hash,
                    run.code_version,
                    run.shard,
                    run.error,
                    run.created_at,
                    sql::signed(run.took_ms)
                ],
            );
            match inserted {
                Err(error) if is_duplicate(&error) => Err(Error::Exists {
                    what: "run",
                    name: run.id.clone(),
                }),
                other => other.attempt(&attempted).map(|_| ()),
            }
        })
    }

    pub fn run(&self, id: &str) -> Result<Run> {
        require(&self.lock(), id)
    }

    /// Newest first.
    pub fn runs(&self) -> Result<Vec<Run>> {
        sql::rows(&self.lock(), "SELECT * FROM run ORDER BY created_at DESC, id", [], read).attempt("listing the runs")
    }

    pub fn set_run_status(&self, id: &str, status: RunStatus, error: Option<&str>) -> Result<()> {
        let changed = sql::execute(
            &self.lock(),
            "UPDATE run SET status = ?2, error = ?3 WHERE id = ?1",
            params![id, sql::to_name(&status), error],
        );
        changed_one(changed.attempt(format!("storing the status of run `{id}`"))?, id)
    }

    pub fn add_run_time(&self, id: &str, ms: u64) -> Result<()> {
        let sql = "UPDATE run SET took_ms = took_ms + ?2 WHERE id = ?1";
        let changed = sql::execute(&self.lock(), sql, params![id, sql::signed(ms)]);
        changed_one(changed.attempt(format!("storing the time of run `{id}`"))?, id)
    }

    /// With its episodes, steps and verdicts.
    pub fn remove_run(&self, id: &str) -> Result<()> {
        let removed = sql::execute(&self.lock(), "DELETE FROM run WHERE id = ?1", [id]);
        changed_one(removed.attempt(format!("removing run `{id}`"))?, id)
    }
}

pub(crate) fn require(connection: &Connection, id: &str) -> Result<Run> {
    sql::first(connection, "SELECT * FROM run WHERE id = ?1", [id], read)
        .attempt(format!("reading run `{id}`"))?
        .ok_or_else(|| Error::NotFound {
            what: "run",
            name: id.into(),
        })
}

fn changed_one(changed: usize, id: &str) -> Result<()> {
    if changed == 0 {
        Err(Error::NotFound {
            what: "run",
            name: id.into(),
        })
    } else {
        Ok(())
    }
}

pub(crate) fn read(row: &Row<'_>) -> rusqlite::Result<Run> {
    Ok(Run {
        id: row.get("id")?,
        name: row.get("name")?,
        status: sql::from_name(row, "status")?,
        question_set: row.get("question_set")?,
        corpus: row.get("corpus")?,
        config: sql::from_json(row, "config")?,
        config_hash: row.get("config_hash")?,
        code_version: row.get("code_version")?,
        shard: row.get("shard")?,
        error: row.get("error")?,
        created_at: row.get("created_at")?,
        took_ms: sql::unsigned(row, "took_ms")?,
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::testing;

    #[test]
    fn a_run_keeps_its_configuration_and_status() {
        let (_dir, store) = testing::with_run();
        let mut run = testing::run("r1");
        assert_eq!(store.run("r1").unwrap(), run);
        assert!(matches!(store.create_run(&run), Err(Error::Exists { .. })));
        store.set_run_status("r1", RunStatus::Failed, Some("no model")).unwrap();
        store.add_run_time("r1", 5).unwrap();
        store.add_run_time("r1", 6).unwrap();
        run = Run {
            status: RunStatus::Failed,
            error: Some("no model".into()),
            took_ms: 11,
            ..run
        };
        assert_eq!(store.runs().unwrap(), [run]);
        store.remove_run("r1").unwrap();
        assert!(matches!(store.run("r1"), Err(Error::NotFound { .. })));
        assert!(matches!(store.add_run_time("r1", 1), Err(Error::NotFound { .. })));
    }
}
