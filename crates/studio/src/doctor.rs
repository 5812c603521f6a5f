//! Is everything well? Each check names its thing, what was found, and what to do.

use std::path::Path;

use serde::{Deserialize, Serialize};
use specta::Type;

use crate::{Result, Studio, setup};

#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, Type)]
pub struct Check {
    pub name: String,
    pub ok: bool,
    /// What was found; for a failed check also the remedy.
    pub detail: String,
}

impl Studio {
    /// Checks the database, every index and every model file (its bytes are hashed).
    pub fn doctor(&self) -> Result<Vec<Check>> {
        let mut checks = vec![check("database", self.integrity(), "restore a backup of rag-gym.db")];
        for corpus in self.corpora()? {
            let searched = self
                .search(&corpus.name, "the", 1)
                .map(|_| format!("{} passages can be searched", corpus.passages));
            checks.push(check(
                &format!("corpus {}", corpus.name),
                searched,
                "remove and import it again",
            ));
        }
        for model in self.models()?.into_iter().filter(|model| !model.sha256.is_empty()) {
            let name = format!("model {}", model.name);
            checks.push(match setup::sha256(Path::new(&model.path)) {
                Ok(found) if found == model.sha256 => Check {
                    name,
                    ok: true,
                    detail: "its bytes are the ones registered".into(),
                },
                Ok(found) => Check {
                    name,
                    ok: false,
                    detail: format!(
                        "{} has SHA-256 {found}, not the registered one: put the file back, or remove the model and add it again",
                        model.path
                    ),
                },
                Err(error) => check(&name, Err(error), "put the file back, or remove the model"),
            });
        }
        Ok(checks)
    }
}

fn check(name: &str, outcome: Result<String>, remedy: &str) -> Check {
    Check {
        name: name.into(),
        ok: outcome.is_ok(),
        detail: outcome.unwrap_or_else(|error| format!("{}; {remedy}", error.chain())),
    }
}
