//! Steps with their candidates, retrieved passages and the run's own verdict: in whole or not at all.

use std::collections::HashMap;
use std::sync::Arc;

use gym::episode::Step;
use gym::{Candidate, Hit, Opinion, Passage, QuestionId};
use rusqlite::{Connection, Row, params};

use crate::error::Attempt;
use crate::verdicts::RUN_JUDGE;
use crate::{Error, Result, Store, corpora, episodes, findings, runs, sql, verdicts};

impl Store {
    /// Stores the step and all its parts in one transaction. Appending a stored step again is harmless;
    /// appending another in its place, or after a gap, is refused.
    pub fn append_step(&self, run_id: &str, question_id: &QuestionId, step: &Step, took_ms: u64) -> Result<()> {
        self.append_read_step(run_id, question_id, step, took_ms, &[])
    }

    /// The same, with the reader's answers (key, text) that the step came to, for those who ask again. All
    /// are kept or none: a step that is played again after a kill must not find its own answer cached,
    /// or it would count fewer tokens than an undisturbed one.
    pub fn append_read_step(
        &self,
        run_id: &str,
        question_id: &QuestionId,
        step: &Step,
        took_ms: u64,
        findings: &[(String, String)],
    ) -> Result<()> {
        let attempted = format!(
            "storing step {} of run `{run_id}`, question `{}`",
            step.step_idx, question_id.0
        );
        self.write(&attempted, |transaction| {
            append(transaction, run_id, question_id, step, took_ms, &attempted)?;
            findings
                .iter()
                .try_for_each(|(key, text)| findings::put(transaction, key, text))
        })
    }

    /// The steps as they were appended, passages resolved from the run's corpus; their opinions are among
    /// [`Store::verdicts`].
    pub fn steps(&self, run_id: &str, question_id: &QuestionId) -> Result<Vec<Step>> {
        let connection = self.lock();
        episodes::require(&connection, run_id, question_id)?;
        of_episode(&connection, run_id, question_id)
    }
}

fn append(
    connection: &Connection,
    run_id: &str,
    question_id: &QuestionId,
    step: &Step,
    took_ms: u64,
    attempted: &str,
) -> Result<()> {
    let step_idx = step.step_idx;
    let run = runs::require(connection, run_id)?;
    episodes::require(connection, run_id, question_id)?;
    check_numbers(run_id, question_id, step)?;
    let stored: u32 = connection
        .prepare_cached("SELECT count(*) FROM step WHERE run_id = ?1 AND question_id = ?2")
        .and_then(|mut count| count.query_row([run_id, &question_id.0], |row| row.get(0)))
        .attempt(attempted)?;
    let question = || question_id.0.clone();
    if step_idx < stored {
        let steps = of_episode(connection, run_id, question_id)?;
        return match steps.get(step_idx as usize) {
            Some(old) if same(old, step) => Ok(()),
            _ => Err(Error::StepConflict {
                run_id: run_id.into(),
                question_id: question(),
                step_idx,
            }),
        };
    }
    if step_idx > stored {
        return Err(Error::StepGap {
            run_id: run_id.into(),
            question_id: question(),
            step_idx,
            stored,
        });
    }
    sql::execute(
        connection,
        "INSERT INTO step (run_id, question_id, step_idx, truncated, prompt, dropped, chosen, finding, usage_prompt,
           usage_cached, usage_generated, took_ms) VALUES (?1, ?2, ?3, ?4, ?5, ?6, ?7, ?8, ?9, ?10, ?11, ?12)",
        params![
            run_id,
            question_id.0,
            step_idx,
            step.truncated,
            step.prompt.as_ref().map(sql::to_json),
            sql::to_json(&step.dropped),
            step.chosen as i64,
            step.finding,
            step.usage.prompt,
            step.usage.cached,
            step.usage.generated,
            sql::signed(took_ms)
        ],
    )
    .attempt(attempted)?;
    let step_key = connection.last_insert_rowid();
    for (candidate_idx, candidate) in step.candidates.iter().enumerate() {
        sql::execute(
            connection,
            "INSERT INTO candidate (step_key, candidate_idx, text, reasoning, action, token_ids, token_logprobs,
               multiplicity, redundant, reward) VALUES (?1, ?2, ?3, ?4, ?5, ?6, ?7, ?8, ?9, ?10)",
            params![
                step_key,
                candidate_idx as i64,
                candidate.text,
                candidate.reasoning,
                sql::to_json(&candidate.action),
                bytes(&candidate.token_ids, |id| id.to_le_bytes()),
                bytes(&candidate.token_logprobs, |logprob| logprob.to_le_bytes()),
                candidate.multiplicity,
                candidate.redundant,
                candidate.reward
            ],
        )
        .attempt(attempted)?;
    }
    for (position, hit) in step.hits.iter().enumerate() {
        let inserted = sql::execute(
            connection,
            "INSERT INTO step_passage (step_key, position, passage_key, score, rank)
             SELECT ?1, ?2, passage_key, ?3, ?4 FROM passage
             WHERE corpus_key = (SELECT corpus_key FROM corpus WHERE name = ?5) AND id = ?6",
            params![
                step_key,
                position as i64,
                f64::from(hit.score),
                hit.rank,
                run.corpus,
                hit.passage.id
            ],
        )
        .attempt(attempted)?;
        if inserted == 0 {
            let corpus = run.corpus.as_deref().unwrap_or("(no corpus)");
            return Err(Error::NotFound {
                what: "passage",
                name: format!("{corpus}/{}", hit.passage.id),
            });
        }
    }
    if let Some(verdict) = &step.verdict {
        verdicts::put(connection, run_id, question_id, step_idx, RUN_JUDGE, verdict, 0)?;
    }
    for Opinion { judge_id, verdict } in &step.opinions {
        verdicts::put(connection, run_id, question_id, step_idx, judge_id, verdict, 0)?;
    }
    Ok(())
}

/// Equal but for what a cache saved, which depends on what ran before, and for opinions, which are not read
/// back with their step.
fn same(old: &Step, new: &Step) -> bool {
    let mut old = old.clone();
    old.usage.cached = new.usage.cached;
    old.opinions = new.opinions.clone();
    old == *new
}

/// SQLite turns NaN into NULL.
fn check_numbers(run_id: &str, question_id: &QuestionId, step: &Step) -> Result<()> {
    let what = if step.hits.iter().any(|hit| hit.score.is_nan()) {
        "a passage's score"
    } else if step
        .candidates
        .iter()
        .any(|candidate| candidate.reward.is_some_and(f64::is_nan))
    {
        "a candidate's reward"
    } else {
        return Ok(());
    };
    let question_id = question_id.0.clone();
    Err(Error::NotFinite {
        run_id: run_id.into(),
        question_id,
        step_idx: step.step_idx,
        what,
    })
}

pub(crate) fn of_episode(connection: &Connection, run_id: &str, question_id: &QuestionId) -> Result<Vec<Step>> {
    let attempted = format!("reading the steps of run `{run_id}`, question `{}`", question_id.0);
    let mut steps = sql::rows(
        connection,
        "SELECT * FROM step WHERE run_id = ?1 AND question_id = ?2 ORDER BY step_idx",
        [run_id, &question_id.0],
        read,
    )
    .attempt(&attempted)?;
    let mut passages = HashMap::new();
    for (step_key, step) in &mut steps {
        step.candidates = sql::rows(
            connection,
            "SELECT * FROM candidate WHERE step_key = ?1 ORDER BY candidate_idx",
            [*step_key],
            read_candidate,
        )
        .attempt(&attempted)?;
        step.hits = sql::rows(
            connection,
            "SELECT * FROM step_passage JOIN passage USING (passage_key) WHERE step_key = ?1 ORDER BY position",
            [*step_key],
            |row| read_hit(row, &mut passages),
        )
        .attempt(&attempted)?;
    }
    let mut steps: Vec<Step> = steps.into_iter().map(|(_, step)| step).collect();
    for stored in verdicts::of_episode(connection, run_id, question_id)? {
        if let Some(step) = steps
            .get_mut(stored.step_idx as usize)
            .filter(|_| stored.judge_id == RUN_JUDGE)
        {
            step.verdict = Some(stored.verdict);
        }
    }
    Ok(steps)
}

/// The step's own row; its parts follow.
fn read(row: &Row<'_>) -> rusqlite::Result<(i64, Step)> {
    let step = Step {
        step_idx: row.get("step_idx")?,
        truncated: row.get("truncated")?,
        prompt: sql::from_json_or_null(row, "prompt")?,
        dropped: sql::from_json(row, "dropped")?,
        candidates: Vec::new(),
        chosen: sql::unsigned(row, "chosen")? as usize,
        verdict: None,
        opinions: Vec::new(),
        hits: Vec::new(),
        finding: row.get("finding")?,
        usage: episodes::read_usage(row)?,
    };
    Ok((row.get("step_key")?, step))
}

fn read_candidate(row: &Row<'_>) -> rusqlite::Result<Candidate> {
    Ok(Candidate {
        text: row.get("text")?,
        reasoning: row.get("reasoning")?,
        action: sql::from_json(row, "action")?,
        token_ids: words(row.get_ref("token_ids")?.as_blob()?, u32::from_le_bytes),
        token_logprobs: words(row.get_ref("token_logprobs")?.as_blob()?, f32::from_le_bytes),
        multiplicity: row.get("multiplicity")?,
        redundant: row.get("redundant")?,
        reward: row.get("reward")?,
    })
}

fn read_hit(row: &Row<'_>, passages: &mut HashMap<i64, Arc<Passage>>) -> rusqlite::Result<Hit> {
    let passage_key = row.get("passage_key")?;
    let passage = match passages.get(&passage_key) {
        Some(passage) => passage.clone(),
        None => passages
            .entry(passage_key)
            .or_insert(Arc::new(corpora::read_passage(row)?))
            .clone(),
    };
    Ok(Hit {
        passage,
        score: row.get::<_, f64>("score")? as f32,
        rank: row.get("rank")?,
    })
}

fn bytes<T: Copy>(values: &[T], to_bytes: impl Fn(T) -> [u8; 4]) -> Vec<u8> {
    values.iter().flat_map(|&value| to_bytes(value)).collect()
}

fn words<T>(bytes: &[u8], from_bytes: impl Fn([u8; 4]) -> T) -> Vec<T> {
    bytes
        .chunks_exact(4)
        .map(|word| from_bytes([word[0], word[1], word[2], word[3]]))
        .collect()
}

#[cfg(test)]
mod tests {
    use gym::judge::Verdict;
    use gym::{Action, Message, Prompt, Role, Usage};
    use proptest::option::of;
    use proptest::prelude::*;

    use super::*;
    use crate::testing::{self, id};

    #[test]
    fn a_step_and_its_finding_are_kept_together() {
        let (_dir, store) = testing::with_run();
        let found = [("key".to_owned(), "Vienna".to_owned())];
        let gap = store.append_read_step("r1", &id("q1"), &testing::step(1), 1, &found);
        assert!(matches!(gap, Err(Error::StepGap { .. })));
        assert_eq!(store.finding("key").unwrap(), None);
        store
            .append_read_step("r1", &id("q1"), &testing::step(0), 1, &found)
            .unwrap();
        assert_eq!(store.finding("key").unwrap().as_deref(), Some("Vienna"));
    }

    #[test]
    fn replay_is_harmless_and_conflict_is_not() {
        let (_dir, store) = testing::with_run();
        let step = testing::step(0);
        store.append_step("r1", &id("q1"), &step, 10).unwrap();
        let mut cached = step.clone();
        cached.usage.cached += 1;
        store.append_step("r1", &id("q1"), &cached, 99).unwrap();
        let other = Step {
            finding: Some("else".into()),
            ..step.clone()
        };
        assert!(matches!(
            store.append_step("r1", &id("q1"), &other, 10),
            Err(Error::StepConflict { .. })
        ));
        assert!(matches!(
            store.append_step("r1", &id("q1"), &testing::step(2), 1),
            Err(Error::StepGap { stored: 1, .. })
        ));
        assert_eq!(store.steps("r1", &id("q1")).unwrap(), [step]);
        assert!(matches!(store.steps("r1", &id("q9")), Err(Error::NotFound { .. })));
    }

    #[test]
    fn a_step_with_a_part_missing_is_not_stored() {
        let (_dir, store) = testing::with_run();
        let mut step = testing::step(0);
        step.hits[1].passage = Arc::new(Passage {
            id: "gone".into(),
            title: String::new(),
            text: String::new(),
        });
        let error = store.append_step("r1", &id("q1"), &step, 1).unwrap_err();
        assert_eq!(error.to_string(), "no passage `wiki/gone`");
        assert!(store.steps("r1", &id("q1")).unwrap().is_empty());
        let rows: i64 = store
            .lock()
            .query_row("SELECT count(*) FROM candidate", [], |row| row.get(0))
            .unwrap();
        assert_eq!(rows, 0);
        step = testing::step(0);
        step.hits[0].score = f32::NAN;
        assert!(matches!(
            store.append_step("r1", &id("q1"), &step, 1),
            Err(Error::NotFinite { .. })
        ));
    }

    #[test]
    fn removing_the_run_removes_every_part() {
        let (_dir, store) = testing::with_run();
        store.append_step("r1", &id("q1"), &testing::step(0), 1).unwrap();
        store.remove_run("r1").unwrap();
        for table in ["episode", "step", "candidate", "step_passage", "verdict"] {
            let sql = format!("SELECT count(*) FROM {table}");
            assert_eq!(
                store.lock().query_row(&sql, [], |row| row.get::<_, i64>(0)).unwrap(),
                0,
                "{table}"
            );
        }
        store.integrity_check().unwrap();
    }

    fn action() -> impl Strategy<Value = Action> {
        prop_oneof![
            (any::<String>(), of(any::<String>())).prop_map(|(query, predicted_answer)| Action::Search {
                query,
                predicted_answer
            }),
            any::<String>().prop_map(|answer| Action::Finish { answer }),
            any::<String>().prop_map(|reason| Action::Malformed { reason }),
        ]
    }

    fn candidate() -> impl Strategy<Value = Candidate> {
        let tokens = proptest::collection::vec((any::<u32>(), -100f32..0.0), 0..5);
        (
            any::<String>(),
            of(any::<String>()),
            action(),
            tokens,
            any::<u32>(),
            any::<bool>(),
            of(-1e9..1e9f64),
        )
            .prop_map(|(text, reasoning, action, tokens, multiplicity, redundant, reward)| {
                let (token_ids, token_logprobs) = tokens.into_iter().unzip();
                Candidate {
                    text,
                    reasoning,
                    action,
                    token_ids,
                    token_logprobs,
                    multiplicity,
                    redundant,
                    reward,
                }
            })
    }

    fn step() -> impl Strategy<Value = Step> {
        let message = any::<String>().prop_map(|content| Message {
            role: Role::User,
            content,
        });
        let prompt = proptest::collection::vec(message, 0..3).prop_map(|messages| Prompt { messages });
        let rewards = of(proptest::collection::vec(-1e9..1e9f64, 0..4));
        let verdict = (rewards, of(any::<String>())).prop_map(|(rewards, rationale)| Verdict { rewards, rationale });
        let hit = (0..3usize, -1e9..1e9f32, any::<u32>()).prop_map(|(passage, score, rank)| Hit {
            passage: Arc::new(testing::passages(3)[passage].clone()),
            score,
            rank,
        });
        let usage = any::<[u32; 3]>().prop_map(|[prompt, cached, generated]| Usage {
            prompt,
            cached,
            generated,
        });
        (
            (
                any::<bool>(),
                of(prompt),
                proptest::collection::vec(any::<String>(), 0..3),
            ),
            (proptest::collection::vec(candidate(), 1..4), 0..9usize, of(verdict)),
            (proptest::collection::vec(hit, 0..4), of(any::<String>()), usage),
        )
            .prop_map(
                |((truncated, prompt, dropped), (candidates, chosen, verdict), (hits, finding, usage))| Step {
                    opinions: Vec::new(),
                    step_idx: 0,
                    truncated,
                    prompt,
                    dropped,
                    candidates,
                    chosen,
                    verdict,
                    hits,
                    finding,
                    usage,
                },
            )
    }

    proptest! {
        #![proptest_config(ProptestConfig { cases: 48, ..ProptestConfig::default() })]
        #[test]
        fn steps_come_back_equal(mut steps in proptest::collection::vec(step(), 0..4)) {
            let (_dir, store) = testing::with_run();
            for (step_idx, step) in steps.iter_mut().enumerate() {
                step.step_idx = step_idx as u32;
                store.append_step("r1", &id("q1"), step, 1).unwrap();
                store.append_step("r1", &id("q1"), step, 1).unwrap();
            }
            prop_assert_eq!(store.steps("r1", &id("q1")).unwrap(), steps);
        }
    }
}
