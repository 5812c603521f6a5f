//! Brings the runs of another home's database, with what they need, into this one.

use std::path::Path;

use rusqlite::{Connection, OptionalExtension, Transaction, params};
use serde::{Deserialize, Serialize};

use crate::error::Attempt;
use crate::{Error, Result, Run, Store, dump, runs, sql};

/// What a merge added; all zero when everything was here already.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct MergeReport {
    pub runs: u64,
    /// Added, or taken in place of one that was less far.
    pub episodes: u64,
    pub corpora: u64,
    pub question_sets: u64,
}

impl Store {
    /// All or nothing. Corpora and question sets are the same when name and content are; runs when id and
    /// configuration are, and then their episodes are united.
    pub fn merge_from(&self, other_path: impl AsRef<Path>) -> Result<MergeReport> {
        let path = other_path.as_ref();
        if !path.is_file() {
            return Err(Error::NotFound {
                what: "database",
                name: path.display().to_string(),
            });
        }
        // Upgrades it, or refuses it if it is newer, before its tables are read.
        drop(crate::connect(path)?);
        let attempted = format!("merging {}", path.display());
        let mut connection = self.lock();
        connection
            .execute("ATTACH ?1 AS other", [path.to_string_lossy()])
            .attempt(&attempted)?;
        let merged = merge(&mut connection, path, &attempted);
        connection.flush_prepared_statement_cache();
        let detached = connection.execute("DETACH other", []).attempt(&attempted);
        merged.and_then(|report| detached.map(|_| report))
    }
}

fn merge(connection: &mut Connection, path: &Path, attempted: &str) -> Result<MergeReport> {
    let transaction = connection.transaction().attempt(attempted)?;
    let conflict = |what, name: &str, difference: &str| Error::MergeConflict {
        path: path.to_path_buf(),
        what,
        name: name.into(),
        difference: difference.into(),
    };
    for (what, table) in [("corpus", "corpus"), ("question set", "question_set")] {
        let sql = format!(
            "SELECT name FROM other.{table} AS o JOIN main.{table} AS m USING (name) WHERE o.content_hash <> m.content_hash"
        );
        let differing: Option<String> = transaction
            .query_row(&sql, [], |row| row.get(0))
            .optional()
            .attempt(attempted)?;
        if let Some(name) = differing {
            return Err(conflict(what, &name, "content"));
        }
    }
    let mut report = MergeReport {
        corpora: copy_corpora(&transaction).attempt(attempted)?,
        ..MergeReport::default()
    };
    report.question_sets = copy_question_sets(&transaction).attempt(attempted)?;
    let theirs = sql::rows(&transaction, "SELECT * FROM other.run ORDER BY id", [], runs::read).attempt(attempted)?;
    for run in theirs {
        let ours = sql::first(
            &transaction,
            "SELECT * FROM main.run WHERE id = ?1",
            [&run.id],
            runs::read,
        );
        match ours.attempt(attempted)? {
            None => {
                sql::execute(
                    &transaction,
                    "INSERT INTO main.run SELECT * FROM other.run WHERE id = ?1",
                    [&run.id],
                )
                .attempt(attempted)?;
                report.runs += 1;
            }
            Some(ours) => {
                if let Some(difference) = difference(&ours, &run) {
                    return Err(conflict("run", &run.id, difference));
                }
                if ours.shard != run.shard {
                    sql::execute(
                        &transaction,
                        "UPDATE main.run SET shard = NULL WHERE id = ?1",
                        [&run.id],
                    )
                    .attempt(attempted)?;
                }
            }
        }
        report.episodes += merge_episodes(&transaction, &run.id, attempted, |question_id| {
            conflict("run", &run.id, &format!("question `{question_id}`"))
        })?;
    }
    transaction.commit().attempt(attempted)?;
    Ok(report)
}

fn difference(ours: &Run, theirs: &Run) -> Option<&'static str> {
    if ours.config_hash != theirs.config_hash {
        Some("configuration")
    } else if ours.question_set != theirs.question_set {
        Some("question set")
    } else if ours.corpus != theirs.corpus {
        Some("corpus")
    } else if ours.code_version != theirs.code_version {
        Some("program version")
    } else {
        None
    }
}

fn copy_corpora(transaction: &Transaction<'_>) -> rusqlite::Result<u64> {
    let names: Vec<String> = sql::rows(
        transaction,
        "SELECT name FROM other.corpus WHERE name NOT IN (SELECT name FROM main.corpus) ORDER BY corpus_key",
        [],
        |row| row.get(0),
    )?;
    for name in &names {
        transaction.execute(
            "INSERT INTO main.corpus (name, format, passages, content_hash, created_at)
             SELECT name, format, passages, content_hash, created_at FROM other.corpus WHERE name = ?1",
            [name],
        )?;
        transaction.execute(
            "INSERT INTO main.passage (corpus_key, id, title, text)
             SELECT ?2, id, title, text FROM other.passage
             WHERE corpus_key = (SELECT corpus_key FROM other.corpus WHERE name = ?1) ORDER BY passage_key",
            params![name, transaction.last_insert_rowid()],
        )?;
    }
    Ok(names.len() as u64)
}

fn copy_question_sets(transaction: &Transaction<'_>) -> rusqlite::Result<u64> {
    transaction.execute_batch(
        "CREATE TEMP TABLE merged_set AS SELECT name FROM other.question_set
        WHERE name NOT IN (SELECT name FROM main.question_set)",
    )?;
    let added = transaction.execute(
        "INSERT INTO main.question_set SELECT * FROM other.question_set WHERE name IN (SELECT name FROM temp.merged_set)",
        [],
    )?;
    transaction.execute(
        "INSERT INTO main.question SELECT * FROM other.question
         WHERE question_set IN (SELECT name FROM temp.merged_set)",
        [],
    )?;
    transaction.execute_batch("DROP TABLE temp.merged_set")?;
    Ok(added as u64)
}

fn merge_episodes(
    transaction: &Transaction<'_>,
    run_id: &str,
    attempted: &str,
    conflict: impl Fn(&str) -> Error,
) -> Result<u64> {
    let sql = "SELECT question_id FROM other.episode WHERE run_id = ?1 ORDER BY position, question_id";
    let question_ids: Vec<String> = sql::rows(transaction, sql, [run_id], |row| row.get(0)).attempt(attempted)?;
    let mut taken = 0;
    for question_id in &question_ids {
        let ours = progress(transaction, "main", run_id, question_id).attempt(attempted)?;
        let theirs = progress(transaction, "other", run_id, question_id).attempt(attempted)?;
        if theirs > ours {
            copy_episode(transaction, run_id, question_id).attempt(attempted)?;
            taken += 1;
        } else if theirs == ours && theirs.is_some_and(|(finished, _)| finished) {
            let text = |schema| dump::episode(transaction, schema, run_id, question_id).attempt(attempted);
            if text("main")? != text("other")? {
                return Err(conflict(question_id));
            }
            copy_verdicts(transaction, run_id, question_id).attempt(attempted)?;
        } else if theirs.zip(ours).is_some_and(|((theirs, _), (ours, _))| theirs && ours) {
            return Err(conflict(question_id));
        }
    }
    Ok(taken)
}

/// Whether the episode is finished, and how many steps it has; `None` if there is no such episode.
fn progress(
    connection: &Connection,
    schema: &str,
    run_id: &str,
    question_id: &str,
) -> rusqlite::Result<Option<(bool, u32)>> {
    let sql = format!(
        "SELECT status = 'finished', (SELECT count(*) FROM {schema}.step WHERE run_id = ?1 AND question_id = ?2)
         FROM {schema}.episode WHERE run_id = ?1 AND question_id = ?2"
    );
    sql::first(connection, &sql, [run_id, question_id], |row| {
        Ok((row.get(0)?, row.get(1)?))
    })
}

fn copy_episode(transaction: &Transaction<'_>, run_id: &str, question_id: &str) -> rusqlite::Result<()> {
    let of = [run_id, question_id];
    sql::execute(
        transaction,
        "DELETE FROM main.episode WHERE run_id = ?1 AND question_id = ?2",
        of,
    )?;
    sql::execute(
        transaction,
        "INSERT INTO main.episode SELECT * FROM other.episode WHERE run_id = ?1 AND question_id = ?2",
        of,
    )?;
    let columns = "run_id, question_id, step_idx, truncated, prompt, dropped, chosen, finding, usage_prompt,
                   usage_cached, usage_generated, took_ms";
    let sql = format!(
        "INSERT INTO main.step ({columns}) SELECT {columns} FROM other.step
         WHERE run_id = ?1 AND question_id = ?2 ORDER BY step_idx"
    );
    sql::execute(transaction, &sql, of)?;
    let keys = "main.step AS m JOIN other.step AS o USING (run_id, question_id, step_idx)";
    let columns = "candidate_idx, text, reasoning, action, token_ids, token_logprobs, multiplicity, redundant, reward";
    let sql = format!(
        "INSERT INTO main.candidate (step_key, {columns}) SELECT m.step_key, {columns}
         FROM {keys} JOIN other.candidate AS c ON c.step_key = o.step_key WHERE run_id = ?1 AND question_id = ?2"
    );
    sql::execute(transaction, &sql, of)?;
    let sql = format!(
        "INSERT INTO main.step_passage (step_key, position, passage_key, score, rank)
         SELECT m.step_key, sp.position, mp.passage_key, sp.score, sp.rank
         FROM {keys} JOIN other.step_passage AS sp ON sp.step_key = o.step_key
         JOIN other.passage AS op ON op.passage_key = sp.passage_key
         JOIN other.corpus AS oc ON oc.corpus_key = op.corpus_key
         JOIN main.corpus AS mc ON mc.name = oc.name
         JOIN main.passage AS mp ON mp.corpus_key = mc.corpus_key AND mp.id = op.id
         WHERE run_id = ?1 AND question_id = ?2"
    );
    sql::execute(transaction, &sql, of)?;
    copy_verdicts(transaction, run_id, question_id)
}

fn copy_verdicts(transaction: &Transaction<'_>, run_id: &str, question_id: &str) -> rusqlite::Result<()> {
    sql::execute(
        transaction,
        "INSERT OR IGNORE INTO main.verdict SELECT * FROM other.verdict WHERE run_id = ?1 AND question_id = ?2",
        [run_id, question_id],
    )?;
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::testing::{self, id};

    fn finish(store: &Store, question_id: &str, position: u32) {
        store.append_step("r1", &id(question_id), &testing::step(0), 5).unwrap();
        store
            .finish_episode(&testing::finished("r1", question_id, position))
            .unwrap();
    }

    #[test]
    fn merging_twice_is_merging_once() {
        let (_dir, here) = testing::empty();
        let (_other_dir, there) = testing::with_run();
        // Keys differ here, so they must be translated.
        here.create_corpus(
            "first",
            "jsonl",
            "t",
            testing::passages(2).into_iter().map(Ok::<_, String>),
        )
        .unwrap();
        finish(&there, "q1", 1);
        let report = here.merge_from(there.path()).unwrap();
        assert_eq!(
            report,
            MergeReport {
                runs: 1,
                episodes: 2,
                corpora: 1,
                question_sets: 1
            }
        );
        assert_eq!(here.dump_run("r1").unwrap(), there.dump_run("r1").unwrap());
        assert_eq!(here.steps("r1", &id("q1")).unwrap(), [testing::step(0)]);
        assert_eq!(
            here.questions("set", None).unwrap(),
            there.questions("set", None).unwrap()
        );
        assert_eq!(here.merge_from(there.path()).unwrap(), MergeReport::default());
        assert_eq!(here.dump_run("r1").unwrap(), there.dump_run("r1").unwrap());
        here.integrity_check().unwrap();
    }

    #[test]
    fn shards_of_a_run_unite() {
        let (_dir, here) = testing::with_run();
        let (_other_dir, there) = testing::with_run();
        finish(&here, "q1", 1);
        finish(&there, "q2", 0);
        assert_eq!(
            here.merge_from(there.path()).unwrap(),
            MergeReport {
                episodes: 1,
                ..MergeReport::default()
            }
        );
        assert!(
            here.episodes("r1")
                .unwrap()
                .iter()
                .all(|episode| episode.status == crate::EpisodeStatus::Finished)
        );
        assert_eq!(here.steps("r1", &id("q2")).unwrap(), [testing::step(0)]);
    }

    #[test]
    fn conflicts_name_the_run_and_change_nothing() {
        let (_dir, here) = testing::with_run();
        let (_other_dir, there) = testing::with_run();
        finish(&here, "q1", 1);
        let before = here.dump_run("r1").unwrap();
        finish(&there, "q2", 0);
        finish(&there, "q1", 1);
        let mut episode = testing::finished("r1", "q1", 1);
        episode.answer = Some("Grace".into());
        there.finish_episode(&episode).unwrap();
        let error = here.merge_from(there.path()).unwrap_err();
        assert!(
            error.to_string().contains("run `r1`") && error.to_string().contains("question `q1`"),
            "{error}"
        );
        assert_eq!(here.dump_run("r1").unwrap(), before);
        let (_third_dir, third) = testing::empty();
        third
            .create_corpus(
                "wiki",
                "jsonl",
                "t",
                testing::passages(1).into_iter().map(Ok::<_, String>),
            )
            .unwrap();
        let error = third.merge_from(there.path()).unwrap_err();
        assert!(error.to_string().contains("corpus `wiki`"), "{error}");
        assert!(matches!(here.merge_from("/nowhere.db"), Err(Error::NotFound { .. })));
    }
}
