//! Verdicts of any number of judges on stored steps.

use gym::QuestionId;
use gym::judge::Verdict;
use rusqlite::{Connection, params};
use serde::{Deserialize, Serialize};

use crate::error::Attempt;
use crate::{Error, Result, Store, sql};

/// The judge id of the verdict that a step carries: the run's own judge, whom its config names.
pub const RUN_JUDGE: &str = "run";

#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct StoredVerdict {
    pub step_idx: u32,
    pub judge_id: String,
    pub verdict: Verdict,
    pub latency_ms: u64,
}

impl Store {
    /// Adds a judge's verdict on a stored step or replaces that judge's earlier one.
    pub fn add_verdict(
        &self,
        run_id: &str,
        question_id: &QuestionId,
        step_idx: u32,
        judge_id: &str,
        verdict: &Verdict,
        latency_ms: u64,
    ) -> Result<()> {
        self.write("storing a verdict", |transaction| {
            let sql = "SELECT 1 FROM step WHERE run_id = ?1 AND question_id = ?2 AND step_idx = ?3";
            let step = sql::first(transaction, sql, params![run_id, question_id.0, step_idx], |_| Ok(()));
            if step.attempt("storing a verdict")?.is_none() {
                return Err(Error::NotFound {
                    what: "step",
                    name: format!("{run_id}/{}/{step_idx}", question_id.0),
                });
            }
            put(
                transaction,
                run_id,
                question_id,
                step_idx,
                judge_id,
                verdict,
                latency_ms,
            )
        })
    }

    /// How long a stored verdict took; a step's own verdicts are stored with their step, before this is known.
    pub fn set_verdict_latency(
        &self,
        run_id: &str,
        question_id: &QuestionId,
        step_idx: u32,
        judge_id: &str,
        latency_ms: u64,
    ) -> Result<()> {
        sql::execute(
            &self.lock(),
            "UPDATE verdict SET latency_ms = ?5
             WHERE run_id = ?1 AND question_id = ?2 AND step_idx = ?3 AND judge_id = ?4",
            params![run_id, question_id.0, step_idx, judge_id, sql::signed(latency_ms)],
        )
        .attempt("storing a verdict's latency")?;
        Ok(())
    }

    /// Takes a judge's verdict on a step back, if there is one; a step's own stays as long as the step.
    pub fn remove_verdict(&self, run_id: &str, question_id: &QuestionId, step_idx: u32, judge_id: &str) -> Result<()> {
        sql::execute(
            &self.lock(),
            "DELETE FROM verdict
             WHERE run_id = ?1 AND question_id = ?2 AND step_idx = ?3 AND judge_id = ?4 AND judge_id <> ?5",
            params![run_id, question_id.0, step_idx, judge_id, RUN_JUDGE],
        )
        .attempt("removing a verdict")?;
        Ok(())
    }

    /// By step, then judge; the run's own included, under [`RUN_JUDGE`].
    pub fn verdicts(&self, run_id: &str, question_id: &QuestionId) -> Result<Vec<StoredVerdict>> {
        of_episode(&self.lock(), run_id, question_id)
    }
}

pub(crate) fn of_episode(
    connection: &Connection,
    run_id: &str,
    question_id: &QuestionId,
) -> Result<Vec<StoredVerdict>> {
    sql::rows(
        connection,
        "SELECT * FROM verdict WHERE run_id = ?1 AND question_id = ?2 ORDER BY step_idx, judge_id",
        [run_id, &question_id.0],
        |row| {
            Ok(StoredVerdict {
                step_idx: row.get("step_idx")?,
                judge_id: row.get("judge_id")?,
                verdict: Verdict {
                    rewards: sql::from_json_or_null(row, "rewards")?,
                    rationale: row.get("rationale")?,
                },
                latency_ms: sql::unsigned(row, "latency_ms")?,
            })
        },
    )
    .attempt(format!("reading the verdicts of run `{run_id}`"))
}

pub(crate) fn put(
    connection: &Connection,
    run_id: &str,
    question_id: &QuestionId,
    step_idx: u32,
    judge_id: &str,
    verdict: &Verdict,
    latency_ms: u64,
) -> Result<()> {
    // JSON has no other numbers, and no judge means them.
    if verdict.rewards.iter().flatten().any(|reward| !reward.is_finite()) {
        let question_id = question_id.0.clone();
        return Err(Error::NotFinite {
            run_id: run_id.into(),
            question_id,
            step_idx,
            what: "a reward",
        });
    }
    sql::execute(
        connection,
        "INSERT OR REPLACE INTO verdict (run_id, question_id, step_idx, judge_id, rewards, rationale, latency_ms)
         VALUES (?1, ?2, ?3, ?4, ?5, ?6, ?7)",
        params![
            run_id,
            question_id.0,
            step_idx,
            judge_id,
            verdict.rewards.as_ref().map(sql::to_json),
            verdict.rationale,
            sql::signed(latency_ms)
        ],
    )
    .attempt("storing a verdict")?;
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::testing::{self, id};

    #[test]
    fn judges_disagree_side_by_side() {
        let (_dir, store) = testing::with_run();
        let verdict = Verdict {
            rewards: Some(vec![0.1, 1.0 / 3.0]),
            rationale: Some("why".into()),
        };
        let early = store.add_verdict("r1", &id("q1"), 0, "llm/1", &verdict, 3);
        assert!(matches!(early, Err(Error::NotFound { .. })));
        store.append_step("r1", &id("q1"), &testing::step(0), 1).unwrap();
        store.add_verdict("r1", &id("q1"), 0, "llm/1", &verdict, 3).unwrap();
        let silent = Verdict {
            rewards: None,
            rationale: None,
        };
        store.add_verdict("r1", &id("q1"), 0, "human", &silent, 0).unwrap();
        let stored = store.verdicts("r1", &id("q1")).unwrap();
        assert_eq!(
            stored.iter().map(|v| v.judge_id.as_str()).collect::<Vec<_>>(),
            ["human", "llm/1", RUN_JUDGE]
        );
        assert_eq!((&stored[0].verdict, &stored[1].verdict), (&silent, &verdict));
        let infinite = Verdict {
            rewards: Some(vec![f64::INFINITY]),
            rationale: None,
        };
        assert!(matches!(
            store.add_verdict("r1", &id("q1"), 0, "x", &infinite, 0),
            Err(Error::NotFinite { .. })
        ));
        store.set_verdict_latency("r1", &id("q1"), 0, RUN_JUDGE, 7).unwrap();
        let latencies = store.verdicts("r1", &id("q1")).unwrap();
        assert_eq!(latencies.iter().map(|v| v.latency_ms).collect::<Vec<_>>(), [0, 3, 7]);
        for judge in ["human", RUN_JUDGE, "nobody"] {
            store.remove_verdict("r1", &id("q1"), 0, judge).unwrap();
        }
        let left = store.verdicts("r1", &id("q1")).unwrap();
        assert_eq!(
            left.iter().map(|v| v.judge_id.as_str()).collect::<Vec<_>>(),
            ["llm/1", RUN_JUDGE]
        );
        // Other judges' verdicts are not the step's.
        assert_eq!(store.steps("r1", &id("q1")).unwrap(), [testing::step(0)]);
    }

    #[test]
    fn an_opinion_commits_with_its_step_and_replays_harmlessly() {
        let (_dir, store) = testing::with_run();
        let opinion = gym::Opinion {
            judge_id: "evidence#3".into(),
            verdict: Verdict {
                rewards: Some(vec![1.0, 0.3]),
                rationale: Some("why".into()),
            },
        };
        let step = gym::Step {
            opinions: vec![opinion.clone()],
            ..testing::step(0)
        };
        for _ in 0..2 {
            store.append_step("r1", &id("q1"), &step, 1).unwrap();
        }
        let stored = store.verdicts("r1", &id("q1")).unwrap();
        assert_eq!(stored.len(), 2);
        assert_eq!(
            (&stored[0].judge_id, &stored[0].verdict),
            (&opinion.judge_id, &opinion.verdict)
        );
        assert_eq!(store.steps("r1", &id("q1")).unwrap(), [testing::step(0)]);
    }
}
