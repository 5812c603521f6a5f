//! Question sets and their questions, in the publisher's order.

use gym::{LabelledQuestion, QuestionId};
use rusqlite::{Connection, Row, params};
use serde::{Deserialize, Serialize};

use crate::error::{Attempt, is_duplicate};
use crate::{Error, Result, Store, corpora, sql};

#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct QuestionSet {
    pub name: String,
    /// The corpus its publisher means it to be answered from.
    pub corpus: Option<String>,
    pub format: String,
    pub questions: u64,
    pub content_hash: String,
    pub created_at: String,
}

impl Store {
    pub fn create_question_set(
        &self,
        name: &str,
        corpus: Option<&str>,
        format: &str,
        created_at: &str,
        questions: &[LabelledQuestion],
    ) -> Result<QuestionSet> {
        let attempted = format!("storing question set `{name}`");
        self.write(&attempted, |transaction| {
            if find(transaction, name)?.is_some() {
                return Err(Error::Exists {
                    what: "question set",
                    name: name.into(),
                });
            }
            if let Some(corpus) = corpus {
                corpora::require(transaction, corpus)?;
            }
            let records: Vec<String> = questions.iter().map(sql::to_json).collect();
            let mut hash = sql::ContentHash::default();
            records.iter().for_each(|record| hash.add(record));
            let set = QuestionSet {
                name: name.into(),
                corpus: corpus.map(Into::into),
                format: format.into(),
                questions: questions.len() as u64,
                content_hash: hash.finish(),
                created_at: created_at.into(),
            };
            transaction
                .execute(
                    "INSERT INTO question_set (name, corpus, format, questions, content_hash, created_at)
                     VALUES (?1, ?2, ?3, ?4, ?5, ?6)",
                    params![
                        name,
                        corpus,
                        format,
                        sql::signed(set.questions),
                        set.content_hash,
                        created_at
                    ],
                )
                .attempt(&attempted)?;
            for (position, (labelled, record)) in questions.iter().zip(&records).enumerate() {
                let id = &labelled.question.id.0;
                let inserted = sql::execute(
                    transaction,
                    "INSERT INTO question (question_set, position, id, labelled) VALUES (?1, ?2, ?3, ?4)",
                    params![name, position as i64, id, record],
                );
                match inserted {
                    Err(error) if is_duplicate(&error) => {
                        return Err(Error::DuplicateId {
                            name: name.into(),
                            id: id.clone(),
                        });
                    }
                    other => other.attempt(&attempted)?,
                };
            }
            Ok(set)
        })
    }

    /// By name.
    pub fn question_sets(&self) -> Result<Vec<QuestionSet>> {
        sql::rows(&self.lock(), "SELECT * FROM question_set ORDER BY name", [], read)
            .attempt("listing the question sets")
    }

    pub fn question_set(&self, name: &str) -> Result<QuestionSet> {
        require(&self.lock(), name)
    }

    /// The first `limit` questions, or all, in the set's order.
    pub fn questions(&self, set: &str, limit: Option<usize>) -> Result<Vec<LabelledQuestion>> {
        let connection = self.lock();
        require(&connection, set)?;
        sql::rows(
            &connection,
            "SELECT labelled FROM question WHERE question_set = ?1 ORDER BY position LIMIT ?2",
            params![set, limit.map_or(-1, |limit| sql::signed(limit as u64))],
            |row| sql::from_json(row, "labelled"),
        )
        .attempt(format!("reading question set `{set}`"))
    }

    pub fn question(&self, set: &str, id: &QuestionId) -> Result<LabelledQuestion> {
        question(&self.lock(), set, id)
    }

    /// Refused while a run refers to the set.
    pub fn remove_question_set(&self, name: &str) -> Result<()> {
        let attempted = format!("removing question set `{name}`");
        self.write(&attempted, |transaction| {
            require(transaction, name)?;
            let sql = "SELECT name FROM run WHERE question_set = ?1 ORDER BY created_at, id";
            let by = sql::rows(transaction, sql, [name], |row| {
                row.get::<_, String>(0).map(|run| format!("run `{run}`"))
            })
            .attempt(&attempted)?;
            if !by.is_empty() {
                return Err(Error::InUse {
                    what: "question set",
                    name: name.into(),
                    by,
                });
            }
            transaction
                .execute("DELETE FROM question_set WHERE name = ?1", [name])
                .attempt(&attempted)?;
            Ok(())
        })
    }
}

pub(crate) fn question(connection: &Connection, set: &str, id: &QuestionId) -> Result<LabelledQuestion> {
    sql::first(
        connection,
        "SELECT labelled FROM question WHERE question_set = ?1 AND id = ?2",
        [set, &id.0],
        |row| sql::from_json(row, "labelled"),
    )
    .attempt(format!("reading question `{}` of `{set}`", id.0))?
    .ok_or_else(|| Error::NotFound {
        what: "question",
        name: format!("{set}/{}", id.0),
    })
}

pub(crate) fn require(connection: &Connection, name: &str) -> Result<QuestionSet> {
    find(connection, name)?.ok_or_else(|| Error::NotFound {
        what: "question set",
        name: name.into(),
    })
}

fn find(connection: &Connection, name: &str) -> Result<Option<QuestionSet>> {
    sql::first(connection, "SELECT * FROM question_set WHERE name = ?1", [name], read)
        .attempt(format!("reading question set `{name}`"))
}

fn read(row: &Row<'_>) -> rusqlite::Result<QuestionSet> {
    Ok(QuestionSet {
        name: row.get("name")?,
        corpus: row.get("corpus")?,
        format: row.get("format")?,
        questions: sql::unsigned(row, "questions")?,
        content_hash: row.get("content_hash")?,
        created_at: row.get("created_at")?,
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::testing::{self, labelled};

    #[test]
    fn questions_come_back_in_order() {
        let (_dir, store) = testing::empty();
        let questions = [labelled("z"), labelled("a")];
        let set = store
            .create_question_set("set", None, "hotpotqa", "t", &questions)
            .unwrap();
        assert_eq!(store.question_set("set").unwrap(), set);
        assert_eq!(store.question_sets().unwrap(), [set]);
        assert_eq!(store.questions("set", None).unwrap(), questions);
        assert_eq!(store.questions("set", Some(1)).unwrap(), questions[..1]);
        assert_eq!(store.question("set", &QuestionId("a".into())).unwrap(), questions[1]);
        let again = store.create_question_set("set", None, "hotpotqa", "t", &questions);
        assert!(matches!(again, Err(Error::Exists { .. })));
        let twice = store.create_question_set("twice", None, "hotpotqa", "t", &[labelled("a"), labelled("a")]);
        assert!(matches!(twice, Err(Error::DuplicateId { .. })));
        assert!(
            store
                .create_question_set("other", Some("nowhere"), "hotpotqa", "t", &questions)
                .is_err()
        );
    }

    #[test]
    fn a_set_in_use_is_kept() {
        let (_dir, store) = testing::with_run();
        assert!(matches!(store.remove_question_set("set"), Err(Error::InUse { .. })));
        store.remove_run("r1").unwrap();
        store.remove_question_set("set").unwrap();
        assert!(matches!(store.questions("set", None), Err(Error::NotFound { .. })));
    }
}
