//! What outlives the program: corpora, question sets, models, runs, episodes, steps and verdicts in
//! one SQLite file. A step and its parts commit together, and a committed step survives a kill.
//!
//! No clock (callers pass `created_at`), no indexes, no model files, no metrics.

mod corpora;
mod dump;
mod episodes;
mod error;
mod findings;
mod merge;
mod models;
mod questions;
mod runs;
mod sql;
mod steps;
#[cfg(test)]
mod testing;
mod verdicts;

use std::path::{Path, PathBuf};
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use rusqlite::{Connection, Transaction, TransactionBehavior};

pub use corpora::Corpus;
pub use episodes::{Episode, EpisodeStatus};
pub use error::{Error, Result};
pub use merge::MergeReport;
pub use models::Model;
pub use questions::QuestionSet;
pub use runs::{Run, RunStatus};
pub use verdicts::{RUN_JUDGE, StoredVerdict};

use error::Attempt;

/// Append-only; the position of the last one applied is the file's `user_version`.
const MIGRATIONS: &[&str] = &[include_str!("../migrations/0001_init.sql")];

/// How long a call waits for another program's write.
const BUSY_TIMEOUT: Duration = Duration::from_secs(30);

/// One open database. Calls are short except imports and merges; concurrent ones wait for each other.
#[derive(Debug)]
pub struct Store {
    path: PathBuf,
    connection: Mutex<Connection>,
}

impl Store {
    /// Opens the file, creating or upgrading it as needed; refuses one of a newer program.
    pub fn open(path: impl AsRef<Path>) -> Result<Store> {
        let path = path.as_ref().to_path_buf();
        let connection = connect(&path)?;
        Ok(Store {
            path,
            connection: Mutex::new(connection),
        })
    }

    pub fn path(&self) -> &Path {
        &self.path
    }

    /// Reads the whole file; an error names what is damaged.
    pub fn integrity_check(&self) -> Result<()> {
        let connection = self.lock();
        let attempted = "checking the database";
        let mut problems: Vec<String> =
            sql::rows(&connection, "PRAGMA integrity_check", [], |row| row.get(0)).attempt(attempted)?;
        problems.retain(|problem| problem != "ok");
        problems.extend(
            sql::rows(&connection, "PRAGMA foreign_key_check", [], |row| {
                Ok(format!(
                    "table {} refers to missing rows of {}",
                    row.get::<_, String>(0)?,
                    row.get::<_, String>(2)?
                ))
            })
            .attempt(attempted)?,
        );
        if problems.is_empty() {
            Ok(())
        } else {
            Err(Error::Damaged { problems })
        }
    }

    fn lock(&self) -> MutexGuard<'_, Connection> {
        // A panic inside a transaction rolled it back, so the connection is still sound.
        self.connection.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Runs `work` in one transaction; an error leaves nothing behind.
    fn write<T, E: From<Error>>(
        &self,
        attempted: &str,
        work: impl FnOnce(&Transaction<'_>) -> std::result::Result<T, E>,
    ) -> std::result::Result<T, E> {
        let mut connection = self.lock();
        let transaction = connection
            .transaction_with_behavior(TransactionBehavior::Immediate)
            .attempt(attempted)?;
        let value = work(&transaction)?;
        transaction.commit().attempt(attempted)?;
        Ok(value)
    }
}

fn connect(path: &Path) -> Result<Connection> {
    let opening = |source| Error::Open {
        path: path.to_path_buf(),
        source,
    };
    let mut connection = Connection::open(path).map_err(opening)?;
    connection.busy_timeout(BUSY_TIMEOUT).map_err(opening)?;
    let known = MIGRATIONS.len() as u32;
    let version = schema_version(&connection).map_err(opening)?;
    if version > known {
        return Err(Error::Newer {
            path: path.to_path_buf(),
            found: version,
            known,
        });
    }
    // Answers with the mode, so it is a query; a read-only file keeps the mode it has.
    connection
        .query_row("PRAGMA journal_mode = WAL", [], |_| Ok(()))
        .map_err(opening)?;
    connection.pragma_update(None, "synchronous", "FULL").map_err(opening)?;
    connection.pragma_update(None, "foreign_keys", true).map_err(opening)?;
    migrate(&mut connection, known)?;
    Ok(connection)
}

fn migrate(connection: &mut Connection, known: u32) -> Result<()> {
    let failed = |version| move |source| Error::Migrate { version, source };
    loop {
        // Read again under the lock: another program may have migrated the file meanwhile.
        if schema_version(connection).map_err(failed(known))? >= known {
            return Ok(());
        }
        let transaction = connection
            .transaction_with_behavior(TransactionBehavior::Immediate)
            .map_err(failed(known))?;
        let version = schema_version(&transaction).map_err(failed(known))?;
        if let Some(migration) = MIGRATIONS.get(version as usize) {
            transaction.execute_batch(migration).map_err(failed(version + 1))?;
            transaction
                .pragma_update(None, "user_version", version + 1)
                .map_err(failed(version + 1))?;
        }
        transaction.commit().map_err(failed(version + 1))?;
    }
}

fn schema_version(connection: &Connection) -> rusqlite::Result<u32> {
    connection.query_row("PRAGMA user_version", [], |row| row.get(0))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn newer_file_is_refused_and_left_alone() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("new.db");
        drop(Store::open(&path).unwrap());
        Connection::open(&path)
            .unwrap()
            .pragma_update(None, "user_version", 99)
            .unwrap();
        assert!(matches!(
            Store::open(&path),
            Err(Error::Newer {
                found: 99,
                known: 1,
                ..
            })
        ));
    }

    #[test]
    fn failed_work_leaves_nothing_behind() {
        let (_dir, store) = testing::empty();
        let result = store.write("testing", |transaction| {
            transaction
                .execute("INSERT INTO finding VALUES ('a', 'b')", [])
                .attempt("testing")?;
            Err::<(), _>(Error::NotFound {
                what: "thing",
                name: "x".into(),
            })
        });
        assert!(result.is_err());
        assert_eq!(store.finding("a").unwrap(), None);
    }

    #[test]
    fn uncommitted_rows_are_gone_after_reopening() {
        let (dir, store) = testing::empty();
        let raw = Connection::open(store.path()).unwrap();
        raw.execute_batch("BEGIN IMMEDIATE; INSERT INTO finding VALUES ('a', 'b');")
            .unwrap();
        drop(raw);
        drop(store);
        let store = Store::open(dir.path().join("store.db")).unwrap();
        assert_eq!(store.finding("a").unwrap(), None);
        store.integrity_check().unwrap();
    }

    #[test]
    fn full_disk_and_read_only_say_so() {
        let (_dir, store) = testing::empty();
        let pages: i64 = store
            .lock()
            .query_row("PRAGMA page_count", [], |row| row.get(0))
            .unwrap();
        store
            .lock()
            .query_row(&format!("PRAGMA max_page_count = {pages}"), [], |_| Ok(()))
            .unwrap();
        let error = store.put_finding("a", &"x".repeat(1 << 20)).unwrap_err();
        assert!(matches!(error, Error::DiskFull { .. }), "{error:?}");
        assert!(error.to_string().contains("disk is full"));
        store.lock().pragma_update(None, "query_only", true).unwrap();
        let error = store.put_finding("a", "x").unwrap_err();
        assert!(matches!(error, Error::ReadOnly { .. }), "{error:?}");
    }

    #[test]
    fn damage_is_named() {
        let (_dir, store) = testing::empty();
        let connection = store.lock();
        connection.pragma_update(None, "foreign_keys", false).unwrap();
        connection
            .execute("INSERT INTO passage VALUES (1, 7, 'a', 'b', 'c')", [])
            .unwrap();
        drop(connection);
        assert!(store.integrity_check().unwrap_err().to_string().contains("passage"));
    }
}
