//! The reader's answers, kept so that the same reading is done once.

use rusqlite::Connection;

use crate::error::Attempt;
use crate::{Result, Store, sql};

impl Store {
    pub fn finding(&self, key: &str) -> Result<Option<String>> {
        sql::first(
            &self.lock(),
            "SELECT finding FROM finding WHERE key = ?1",
            [key],
            |row| row.get(0),
        )
        .attempt("reading a finding")
    }

    /// Adds or replaces.
    pub fn put_finding(&self, key: &str, text: &str) -> Result<()> {
        put(&self.lock(), key, text)
    }
}

pub(crate) fn put(connection: &Connection, key: &str, text: &str) -> Result<()> {
    let sql = "INSERT INTO finding (key, finding) VALUES (?1, ?2)
               ON CONFLICT (key) DO UPDATE SET finding = excluded.finding";
    sql::execute(connection, sql, [key, text]).attempt("storing a finding")?;
    Ok(())
}

#[cfg(test)]
mod tests {
    use crate::testing;

    #[test]
    fn the_last_finding_is_kept() {
        let (_dir, store) = testing::empty();
        assert_eq!(store.finding("k").unwrap(), None);
        store.put_finding("k", "one").unwrap();
        store.put_finding("k", "two").unwrap();
        assert_eq!(store.finding("k").unwrap().as_deref(), Some("two"));
    }
}
