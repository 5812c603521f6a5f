//! Corpora and their passages, each stored once.

use gym::Passage;
use rusqlite::{Connection, Row, params};
use serde::{Deserialize, Serialize};

use crate::error::{Attempt, is_duplicate};
use crate::{Error, Result, Store, sql};

#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Corpus {
    pub name: String,
    pub format: String,
    pub passages: u64,
    /// Over ids, titles and texts in order; the same records give the same hash anywhere.
    pub content_hash: String,
    pub created_at: String,
}

impl Store {
    /// Stores all passages or, if one is in error, none.
    pub fn create_corpus<E: Into<Box<dyn std::error::Error + Send + Sync>>>(
        &self,
        name: &str,
        format: &str,
        created_at: &str,
        passages: impl IntoIterator<Item = std::result::Result<Passage, E>>,
    ) -> Result<Corpus> {
        self.fill_corpus(name, format, created_at, |add| {
            for (record, passage) in (1..).zip(passages) {
                let passage = passage.map_err(|error| Error::Import {
                    name: name.into(),
                    record,
                    source: error.into(),
                })?;
                add(passage)?;
            }
            Ok(())
        })
    }

    /// Stores every passage that `fill` hands to its argument, one at a time, or none if it fails.
    pub fn fill_corpus<E: From<Error>>(
        &self,
        name: &str,
        format: &str,
        created_at: &str,
        fill: impl FnOnce(&mut dyn FnMut(Passage) -> Result<()>) -> std::result::Result<(), E>,
    ) -> std::result::Result<Corpus, E> {
        let attempted = format!("storing corpus `{name}`");
        self.write(&attempted, |transaction| {
            if find(transaction, name)?.is_some() {
                return Err(Error::Exists {
                    what: "corpus",
                    name: name.into(),
                }
                .into());
            }
            transaction
                .execute(
                    "INSERT INTO corpus (name, format, passages, content_hash, created_at) VALUES (?1, ?2, 0, '', ?3)",
                    params![name, format, created_at],
                )
                .attempt(&attempted)?;
            let corpus_key = transaction.last_insert_rowid();
            let mut hash = sql::ContentHash::default();
            let mut count = 0;
            fill(&mut |passage| {
                [&passage.id, &passage.title, &passage.text]
                    .into_iter()
                    .for_each(|field| hash.add(field));
                count += 1;
                let inserted = sql::execute(
                    transaction,
                    "INSERT INTO passage (corpus_key, id, title, text) VALUES (?1, ?2, ?3, ?4)",
                    params![corpus_key, passage.id, passage.title, passage.text],
                );
                match inserted {
                    Err(error) if is_duplicate(&error) => Err(Error::DuplicateId {
                        name: name.into(),
                        id: passage.id,
                    }),
                    other => other.attempt(&attempted).map(|_| ()),
                }
            })?;
            let content_hash = hash.finish();
            transaction
                .execute(
                    "UPDATE corpus SET passages = ?2, content_hash = ?3 WHERE corpus_key = ?1",
                    params![corpus_key, sql::signed(count), content_hash],
                )
                .attempt(&attempted)?;
            Ok(Corpus {
                name: name.into(),
                format: format.into(),
                passages: count,
                content_hash,
                created_at: created_at.into(),
            })
        })
    }

    /// By name.
    pub fn corpora(&self) -> Result<Vec<Corpus>> {
        sql::rows(&self.lock(), "SELECT * FROM corpus ORDER BY name", [], read).attempt("listing the corpora")
    }

    pub fn corpus(&self, name: &str) -> Result<Corpus> {
        require(&self.lock(), name)
    }

    /// Refused while a run refers to the corpus; question sets merely forget it.
    pub fn remove_corpus(&self, name: &str) -> Result<()> {
        let attempted = format!("removing corpus `{name}`");
        self.write(&attempted, |transaction| {
            require(transaction, name)?;
            let by = sql::rows(
                transaction,
                "SELECT name FROM run WHERE corpus = ?1 ORDER BY created_at, id",
                [name],
                |row| row.get::<_, String>(0).map(|run| format!("run `{run}`")),
            )
            .attempt(&attempted)?;
            if !by.is_empty() {
                return Err(Error::InUse {
                    what: "corpus",
                    name: name.into(),
                    by,
                });
            }
            transaction
                .execute("DELETE FROM corpus WHERE name = ?1", [name])
                .attempt(&attempted)?;
            Ok(())
        })
    }

    pub fn passage(&self, corpus: &str, id: &str) -> Result<Passage> {
        sql::first(
            &self.lock(),
            "SELECT id, title, text FROM passage
             WHERE corpus_key = (SELECT corpus_key FROM corpus WHERE name = ?1) AND id = ?2",
            [corpus, id],
            read_passage,
        )
        .attempt(format!("reading passage `{id}` of corpus `{corpus}`"))?
        .ok_or_else(|| Error::NotFound {
            what: "passage",
            name: format!("{corpus}/{id}"),
        })
    }

    /// In the corpus's order. Reads on a connection of its own, so that `visit` may call the store.
    pub fn for_each_passage(&self, corpus: &str, mut visit: impl FnMut(Passage)) -> Result<()> {
        let attempted = format!("reading corpus `{corpus}`");
        let connection = crate::connect(&self.path)?;
        require(&connection, corpus)?;
        let mut statement = connection
            .prepare(
                "SELECT id, title, text FROM passage
                 WHERE corpus_key = (SELECT corpus_key FROM corpus WHERE name = ?1) ORDER BY passage_key",
            )
            .attempt(&attempted)?;
        for passage in statement.query_map([corpus], read_passage).attempt(&attempted)? {
            visit(passage.attempt(&attempted)?);
        }
        Ok(())
    }
}

pub(crate) fn require(connection: &Connection, name: &str) -> Result<Corpus> {
    find(connection, name)?.ok_or_else(|| Error::NotFound {
        what: "corpus",
        name: name.into(),
    })
}

fn find(connection: &Connection, name: &str) -> Result<Option<Corpus>> {
    sql::first(connection, "SELECT * FROM corpus WHERE name = ?1", [name], read)
        .attempt(format!("reading corpus `{name}`"))
}

fn read(row: &Row<'_>) -> rusqlite::Result<Corpus> {
    Ok(Corpus {
        name: row.get("name")?,
        format: row.get("format")?,
        passages: sql::unsigned(row, "passages")?,
        content_hash: row.get("content_hash")?,
        created_at: row.get("created_at")?,
    })
}

pub(crate) fn read_passage(row: &Row<'_>) -> rusqlite::Result<Passage> {
    Ok(Passage {
        id: row.get("id")?,
        title: row.get("title")?,
        text: row.get("text")?,
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::testing::{self, passages};

    #[test]
    fn passages_come_back_in_order() {
        let (_dir, store) = testing::empty();
        let corpus = store
            .create_corpus("wiki", "jsonl", "t", passages(3).into_iter().map(Ok::<_, String>))
            .unwrap();
        assert_eq!(corpus.passages, 3);
        assert_eq!(store.corpus("wiki").unwrap(), corpus);
        assert_eq!(store.corpora().unwrap(), [corpus]);
        let mut seen = Vec::new();
        store.for_each_passage("wiki", |passage| seen.push(passage)).unwrap();
        assert_eq!(seen, passages(3));
        assert_eq!(store.passage("wiki", "p1").unwrap(), passages(3)[1]);
        assert!(matches!(store.passage("wiki", "p9"), Err(Error::NotFound { .. })));
    }

    #[test]
    fn an_import_is_all_or_nothing() {
        let (_dir, store) = testing::empty();
        let broken = passages(2).into_iter().map(Ok).chain([Err("line 3 is cut")]);
        let error = store.create_corpus("wiki", "jsonl", "t", broken).unwrap_err();
        assert_eq!(error.to_string(), "importing `wiki`: record 3");
        assert_eq!(std::error::Error::source(&error).unwrap().to_string(), "line 3 is cut");
        let twice = passages(2).into_iter().chain(passages(1)).map(Ok::<_, String>);
        assert!(matches!(
            store.create_corpus("wiki", "jsonl", "t", twice),
            Err(Error::DuplicateId { .. })
        ));
        assert!(store.corpora().unwrap().is_empty());
        assert!(
            store
                .create_corpus("wiki", "jsonl", "t", passages(2).into_iter().map(Ok::<_, String>))
                .is_ok()
        );
    }

    #[test]
    fn a_corpus_in_use_is_kept() {
        let (_dir, store) = testing::with_run();
        assert!(
            store
                .remove_corpus("wiki")
                .unwrap_err()
                .to_string()
                .contains("run `Run r1`")
        );
        store.remove_run("r1").unwrap();
        store.remove_corpus("wiki").unwrap();
        assert!(matches!(store.passage("wiki", "p0"), Err(Error::NotFound { .. })));
        assert_eq!(store.question_set("set").unwrap().corpus, None);
    }
}
