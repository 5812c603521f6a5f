//! Models on this machine: what they are and where their files lie.

use rusqlite::{Row, Transaction, params};
use serde::{Deserialize, Serialize};

use crate::error::Attempt;
use crate::{Error, Result, Store, sql};

#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Model {
    pub name: String,
    pub kind: String,
    pub path: String,
    pub sha256: String,
    pub architecture: String,
    pub parameters: u64,
    /// The model whose weights this adapter changes.
    pub adapter_of: Option<String>,
}

impl Store {
    /// Adds the model or replaces the one of the same name, unless adapters belong to that and its contents differ.
    pub fn put_model(&self, model: &Model) -> Result<()> {
        let attempted = format!("storing model `{}`", model.name);
        self.write(&attempted, |transaction| {
            if let Some(base) = &model.adapter_of {
                let found = sql::first(transaction, "SELECT name FROM model WHERE name = ?1", [base], |_| Ok(()));
                if found.attempt(&attempted)?.is_none() {
                    return Err(Error::NotFound { what: "model", name: base.clone() });
                }
            }
            let sql = "SELECT sha256 FROM model WHERE name = ?1";
            let before: Option<String> =
                sql::first(transaction, sql, [&model.name], |row| row.get(0)).attempt(&attempted)?;
            if before.is_some_and(|sha256| sha256 != model.sha256) {
                free(transaction, &model.name).attempt(&attempted)??;
            }
            sql::execute(
                transaction,
                "INSERT INTO model (name, kind, path, sha256, architecture, parameters, adapter_of)
                 VALUES (?1, ?2, ?3, ?4, ?5, ?6, ?7)
                 ON CONFLICT (name) DO UPDATE SET kind = excluded.kind, path = excluded.path, sha256 = excluded.sha256,
                   architecture = excluded.architecture, parameters = excluded.parameters, adapter_of = excluded.adapter_of",
                params![
                    model.name, model.kind, model.path, model.sha256, model.architecture,
                    sql::signed(model.parameters), model.adapter_of
                ],
            )
            .attempt(&attempted)?;
            Ok(())
        })
    }

    pub fn model(&self, name: &str) -> Result<Model> {
        sql::first(&self.lock(), "SELECT * FROM model WHERE name = ?1", [name], read)
            .attempt(format!("reading model `{name}`"))?
            .ok_or_else(|| Error::NotFound {
                what: "model",
                name: name.into(),
            })
    }

    /// By name.
    pub fn models(&self) -> Result<Vec<Model>> {
        sql::rows(&self.lock(), "SELECT * FROM model ORDER BY name", [], read).attempt("listing the models")
    }

    /// Forgets the model, not its files; refused while an adapter needs it.
    pub fn remove_model(&self, name: &str) -> Result<()> {
        let attempted = format!("removing model `{name}`");
        self.write(&attempted, |transaction| {
            free(transaction, name).attempt(&attempted)??;
            match transaction
                .execute("DELETE FROM model WHERE name = ?1", [name])
                .attempt(&attempted)?
            {
                0 => Err(Error::NotFound {
                    what: "model",
                    name: name.into(),
                }),
                _ => Ok(()),
            }
        })
    }
}

/// Whether no adapter belongs to a model.
fn free(transaction: &Transaction<'_>, name: &str) -> rusqlite::Result<Result<()>> {
    let sql = "SELECT name FROM model WHERE adapter_of = ?1 AND name <> ?1 ORDER BY name";
    let by = sql::rows(transaction, sql, [name], |row| {
        row.get::<_, String>(0).map(|by| format!("adapter `{by}`"))
    })?;
    Ok(match by.is_empty() {
        true => Ok(()),
        false => Err(Error::InUse {
            what: "model",
            name: name.into(),
            by,
        }),
    })
}

fn read(row: &Row<'_>) -> rusqlite::Result<Model> {
    Ok(Model {
        name: row.get("name")?,
        kind: row.get("kind")?,
        path: row.get("path")?,
        sha256: row.get("sha256")?,
        architecture: row.get("architecture")?,
        parameters: sql::unsigned(row, "parameters")?,
        adapter_of: row.get("adapter_of")?,
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::testing;

    #[test]
    fn a_base_outlives_its_adapters() {
        let (_dir, store) = testing::empty();
        let base = Model {
            name: "base".into(),
            kind: "causal_lm".into(),
            path: "/m".into(),
            sha256: "00".into(),
            architecture: "llama".into(),
            parameters: 135_000_000,
            adapter_of: None,
        };
        let adapter = Model {
            name: "adapter".into(),
            adapter_of: Some("base".into()),
            ..base.clone()
        };
        assert!(matches!(store.put_model(&adapter), Err(Error::NotFound { .. })));
        store.put_model(&base).unwrap();
        store.put_model(&adapter).unwrap();
        store
            .put_model(&Model {
                path: "/n".into(),
                ..base.clone()
            })
            .unwrap();
        assert_eq!(store.model("base").unwrap().path, "/n");
        assert_eq!(store.models().unwrap().len(), 2);
        assert!(matches!(store.remove_model("base"), Err(Error::InUse { .. })));
        let others = Model {
            sha256: "01".into(),
            ..base.clone()
        };
        assert!(matches!(store.put_model(&others), Err(Error::InUse { .. })));
        store.remove_model("adapter").unwrap();
        store.remove_model("base").unwrap();
        assert!(matches!(store.model("base"), Err(Error::NotFound { .. })));
    }
}
