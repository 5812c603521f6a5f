//! Episodes: one row per question of a run, with its answer and metrics once it has ended.

use gym::episode::Termination;
use gym::{LabelledQuestion, QuestionId, Usage};
use rusqlite::{Connection, Row, params};
use serde::{Deserialize, Serialize};

use crate::error::Attempt;
use crate::{Error, Result, Store, questions, runs, sql};

#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum EpisodeStatus {
    /// Not begun, or begun and resumable from its stored steps.
    Pending,
    Finished,
    Failed,
}

#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Episode {
    pub run_id: String,
    pub question_id: QuestionId,
    pub position: u32,
    pub status: EpisodeStatus,
    pub answer: Option<String>,
    pub termination: Option<Termination>,
    /// Metrics are `None` where the gold answer lacks what they need.
    pub em: Option<f64>,
    pub f1: Option<f64>,
    pub accuracy: Option<f64>,
    pub evidence_recall: Option<f64>,
    pub searches: u32,
    pub malformed_steps: u32,
    pub usage: Usage,
    pub took_ms: u64,
    pub error: Option<String>,
}

impl Store {
    /// Adds a pending episode per question, in this order; those that exist are left as they are.
    pub fn create_episodes(&self, run_id: &str, question_ids: &[QuestionId]) -> Result<()> {
        let attempted = format!("storing the episodes of run `{run_id}`");
        self.write(&attempted, |transaction| {
            runs::require(transaction, run_id)?;
            for (position, question_id) in question_ids.iter().enumerate() {
                sql::execute(
                    transaction,
                    "INSERT INTO episode (run_id, question_id, position, status) VALUES (?1, ?2, ?3, 'pending')
                     ON CONFLICT DO NOTHING",
                    params![run_id, question_id.0, position as i64],
                )
                .attempt(&attempted)?;
            }
            Ok(())
        })
    }

    /// Adds a pending episode that keeps its own question, for runs without a question set.
    pub fn create_episode_for(&self, run_id: &str, labelled: &LabelledQuestion) -> Result<()> {
        let attempted = format!("storing an episode of run `{run_id}`");
        self.write(&attempted, |transaction| {
            runs::require(transaction, run_id)?;
            sql::execute(
                transaction,
                "INSERT INTO episode (run_id, question_id, position, question_json, status)
                 VALUES (?1, ?2, (SELECT count(*) FROM episode WHERE run_id = ?1), ?3, 'pending')
                 ON CONFLICT DO NOTHING",
                params![run_id, labelled.question.id.0, sql::to_json(labelled)],
            )
            .attempt(&attempted)?;
            Ok(())
        })
    }

    /// The question of an episode, from the episode itself or the run's question set.
    pub fn episode_question(&self, run_id: &str, question_id: &QuestionId) -> Result<LabelledQuestion> {
        let connection = self.lock();
        let run = runs::require(&connection, run_id)?;
        let own = sql::first(
            &connection,
            "SELECT question_json FROM episode WHERE run_id = ?1 AND question_id = ?2",
            [run_id, &question_id.0],
            |row| sql::from_json_or_null(row, "question_json"),
        )
        .attempt(format!("reading question `{}` of run `{run_id}`", question_id.0))?
        .ok_or_else(|| missing(run_id, question_id))?;
        match (own, run.question_set) {
            (Some(labelled), _) => Ok(labelled),
            (None, Some(set)) => questions::question(&connection, &set, question_id),
            (None, None) => Err(Error::NotFound {
                what: "question",
                name: format!("{run_id}/{}", question_id.0),
            }),
        }
    }

    /// In the run's order.
    pub fn episodes(&self, run_id: &str) -> Result<Vec<Episode>> {
        let connection = self.lock();
        runs::require(&connection, run_id)?;
        sql::rows(
            &connection,
            "SELECT * FROM episode WHERE run_id = ?1 ORDER BY position, question_id",
            [run_id],
            read,
        )
        .attempt(format!("reading the episodes of run `{run_id}`"))
    }

    /// Steps, each one action, of a run's finished episodes.
    pub fn count_finished_steps(&self, run_id: &str) -> Result<u32> {
        let sql = "SELECT count(*) FROM step JOIN episode USING (run_id, question_id)
                   WHERE run_id = ?1 AND status = 'finished'";
        let count = sql::first(&self.lock(), sql, [run_id], |row| row.get(0));
        Ok(count
            .attempt(format!("counting the steps of run `{run_id}`"))?
            .unwrap_or_default())
    }

    /// Stores everything of `episode` but its position, which stays.
    pub fn finish_episode(&self, episode: &Episode) -> Result<()> {
        let changed = sql::execute(
            &self.lock(),
            "UPDATE episode SET status = ?3, answer = ?4, termination = ?5, em = ?6, f1 = ?7, accuracy = ?8,
               evidence_recall = ?9, searches = ?10, malformed_steps = ?11, usage_prompt = ?12, usage_cached = ?13,
               usage_generated = ?14, took_ms = ?15, error = ?16
             WHERE run_id = ?1 AND question_id = ?2",
            params![
                episode.run_id,
                episode.question_id.0,
                sql::to_name(&episode.status),
                episode.answer,
                episode.termination.as_ref().map(sql::to_name),
                episode.em,
                episode.f1,
                episode.accuracy,
                episode.evidence_recall,
                episode.searches,
                episode.malformed_steps,
                episode.usage.prompt,
                episode.usage.cached,
                episode.usage.generated,
                sql::signed(episode.took_ms),
                episode.error
            ],
        );
        changed_one(changed, &episode.run_id, &episode.question_id)
    }

    /// Marks the episode failed; its steps stay, so that it can be resumed.
    pub fn fail_episode(&self, run_id: &str, question_id: &QuestionId, error: &str) -> Result<()> {
        let changed = sql::execute(
            &self.lock(),
            "UPDATE episode SET status = 'failed', error = ?3 WHERE run_id = ?1 AND question_id = ?2",
            [run_id, &question_id.0, error],
        );
        changed_one(changed, run_id, question_id)
    }
}

pub(crate) fn require(connection: &Connection, run_id: &str, question_id: &QuestionId) -> Result<Episode> {
    let sql = "SELECT * FROM episode WHERE run_id = ?1 AND question_id = ?2";
    sql::first(connection, sql, [run_id, &question_id.0], read)
        .attempt(format!("reading an episode of run `{run_id}`"))?
        .ok_or_else(|| missing(run_id, question_id))
}

fn missing(run_id: &str, question_id: &QuestionId) -> Error {
    Error::NotFound {
        what: "episode",
        name: format!("{run_id}/{}", question_id.0),
    }
}

fn changed_one(changed: rusqlite::Result<usize>, run_id: &str, question_id: &QuestionId) -> Result<()> {
    match changed.attempt(format!("storing an episode of run `{run_id}`"))? {
        0 => Err(missing(run_id, question_id)),
        _ => Ok(()),
    }
}

fn read(row: &Row<'_>) -> rusqlite::Result<Episode> {
    Ok(Episode {
        run_id: row.get("run_id")?,
        question_id: QuestionId(row.get("question_id")?),
        position: row.get("position")?,
        status: sql::from_name(row, "status")?,
        answer: row.get("answer")?,
        termination: sql::from_name_or_null(row, "termination")?,
        em: row.get("em")?,
        f1: row.get("f1")?,
        accuracy: row.get("accuracy")?,
        evidence_recall: row.get("evidence_recall")?,
        searches: row.get("searches")?,
        malformed_steps: row.get("malformed_steps")?,
        usage: read_usage(row)?,
        took_ms: sql::unsigned(row, "took_ms")?,
        error: row.get("error")?,
    })
}

pub(crate) fn read_usage(row: &Row<'_>) -> rusqlite::Result<Usage> {
    Ok(Usage {
        prompt: row.get("usage_prompt")?,
        cached: row.get("usage_cached")?,
        generated: row.get("usage_generated")?,
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::Run;
    use crate::testing::{self, id, labelled};

    #[test]
    fn episodes_end_with_their_metrics() {
        let (_dir, store) = testing::with_run();
        let mut episodes = store.episodes("r1").unwrap();
        assert_eq!(
            episodes.iter().map(|e| e.question_id.0.as_str()).collect::<Vec<_>>(),
            ["q2", "q1"]
        );
        episodes[1] = testing::finished("r1", "q1", 1);
        store.finish_episode(&episodes[1]).unwrap();
        store.fail_episode("r1", &id("q2"), "out of memory").unwrap();
        // Creating them again on resumption changes nothing.
        store.create_episodes("r1", &[id("q1"), id("q2")]).unwrap();
        let stored = store.episodes("r1").unwrap();
        assert_eq!(stored[1], episodes[1]);
        assert_eq!(stored[0].status, EpisodeStatus::Failed);
        assert_eq!(stored[0].error.as_deref(), Some("out of memory"));
        for (question, step_idx) in [("q1", 0), ("q1", 1), ("q2", 0)] {
            store
                .append_step("r1", &id(question), &testing::step(step_idx), 1)
                .unwrap();
        }
        assert_eq!(store.count_finished_steps("r1").unwrap(), 2);
        assert!(matches!(
            store.fail_episode("r1", &id("q9"), ""),
            Err(Error::NotFound { .. })
        ));
        assert!(matches!(
            store.create_episodes("r9", &[id("q1")]),
            Err(Error::NotFound { .. })
        ));
    }

    #[test]
    fn an_asked_question_is_kept_by_its_episode() {
        let (_dir, store) = testing::with_run();
        store
            .create_run(&Run {
                question_set: None,
                ..testing::run("ask")
            })
            .unwrap();
        store.create_episode_for("ask", &labelled("mine")).unwrap();
        assert_eq!(store.episode_question("ask", &id("mine")).unwrap(), labelled("mine"));
        assert_eq!(store.episode_question("r1", &id("q1")).unwrap(), labelled("q1"));
        assert!(matches!(
            store.episode_question("r1", &id("mine")),
            Err(Error::NotFound { .. })
        ));
    }
}
