//! A run as text, to compare two executions of it.

use std::fmt::Write;

use rusqlite::types::ValueRef;
use rusqlite::{Connection, Params};

use crate::error::Attempt;
use crate::{Result, Store, runs, sql};

impl Store {
    /// Every row of the run, one per line, without what two equal executions may differ in: the run's id
    /// and name, times, and how many tokens a cache supplied.
    pub fn dump_run(&self, run_id: &str) -> Result<String> {
        let connection = self.lock();
        runs::require(&connection, run_id)?;
        let attempted = format!("dumping run `{run_id}`");
        let mut text = String::new();
        let sql = "SELECT 'run', status, question_set, corpus, config, config_hash, code_version, shard, error
                   FROM run WHERE id = ?1";
        lines(&connection, sql, [run_id], &mut text).attempt(&attempted)?;
        let question_ids = sql::rows(
            &connection,
            "SELECT question_id FROM episode WHERE run_id = ?1 ORDER BY position, question_id",
            [run_id],
            |row| row.get::<_, String>(0),
        )
        .attempt(&attempted)?;
        for question_id in question_ids {
            text += &episode(&connection, "main", run_id, &question_id).attempt(&attempted)?;
            let sql = "SELECT 'verdict', step_idx, judge_id, rewards, rationale FROM verdict
                       WHERE run_id = ?1 AND question_id = ?2 ORDER BY step_idx, judge_id";
            lines(&connection, sql, [run_id, &question_id], &mut text).attempt(&attempted)?;
        }
        Ok(text)
    }
}

/// An episode of an attached database with its steps, but without verdicts, which may be added later.
pub(crate) fn episode(
    connection: &Connection,
    schema: &str,
    run_id: &str,
    question_id: &str,
) -> rusqlite::Result<String> {
    let mut text = String::new();
    let of = [run_id, question_id];
    let selects = [
        format!(
            "SELECT 'episode', question_id, question_json, status, answer, termination, em, f1, accuracy,
               evidence_recall, searches, malformed_steps, usage_prompt, usage_generated, error
             FROM {schema}.episode WHERE run_id = ?1 AND question_id = ?2"
        ),
        format!(
            "SELECT 'step', step_idx, truncated, prompt, dropped, chosen, finding, usage_prompt, usage_generated
             FROM {schema}.step WHERE run_id = ?1 AND question_id = ?2 ORDER BY step_idx"
        ),
        format!(
            "SELECT 'candidate', step_idx, candidate_idx, text, reasoning, action, token_ids, token_logprobs,
               multiplicity, redundant, reward
             FROM {schema}.candidate JOIN {schema}.step USING (step_key)
             WHERE run_id = ?1 AND question_id = ?2 ORDER BY step_idx, candidate_idx"
        ),
        format!(
            "SELECT 'passage', step_idx, position, id, score, rank
             FROM {schema}.step_passage JOIN {schema}.step USING (step_key) JOIN {schema}.passage USING (passage_key)
             WHERE run_id = ?1 AND question_id = ?2 ORDER BY step_idx, position"
        ),
    ];
    for select in selects {
        lines(connection, &select, of, &mut text)?;
    }
    Ok(text)
}

fn lines(connection: &Connection, sql: &str, params: impl Params, text: &mut String) -> rusqlite::Result<()> {
    let mut statement = connection.prepare_cached(sql)?;
    let columns = statement.column_count();
    let mut rows = statement.query(params)?;
    while let Some(row) = rows.next()? {
        for column in 0..columns {
            let separator = if column == 0 { "" } else { " " };
            let written = match row.get_ref(column)? {
                ValueRef::Null => write!(text, "{separator}null"),
                ValueRef::Integer(integer) => write!(text, "{separator}{integer}"),
                ValueRef::Real(real) => write!(text, "{separator}{real:?}"),
                ValueRef::Text(bytes) if column == 0 => write!(text, "{}", String::from_utf8_lossy(bytes)),
                ValueRef::Text(bytes) => write!(text, "{separator}{:?}", String::from_utf8_lossy(bytes)),
                ValueRef::Blob(bytes) => {
                    let hex: String = bytes.iter().map(|byte| format!("{byte:02x}")).collect();
                    write!(text, "{separator}x{hex}")
                }
            };
            written.expect("writing to a string");
        }
        text.push('\n');
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use crate::testing::{self, id};

    #[test]
    fn equal_runs_dump_equal_text_whatever_they_took() {
        let dump = |took_ms: u64, cached: u32, finding: &str| {
            let (_dir, store) = testing::with_run();
            let mut step = testing::step(0);
            step.usage.cached = cached;
            step.finding = Some(finding.into());
            store.append_step("r1", &id("q1"), &step, took_ms).unwrap();
            store.add_run_time("r1", took_ms).unwrap();
            let mut episode = testing::finished("r1", "q1", 1);
            episode.took_ms = took_ms;
            episode.usage.cached = cached;
            store.finish_episode(&episode).unwrap();
            store.dump_run("r1").unwrap()
        };
        let text = dump(1, 2, "same");
        assert_eq!(text, dump(30, 40, "same"));
        assert_ne!(text, dump(1, 2, "other"));
        assert_eq!(text.lines().filter(|line| line.starts_with("candidate ")).count(), 2);
        assert_eq!(text.lines().filter(|line| line.starts_with("verdict ")).count(), 1);
    }
}
