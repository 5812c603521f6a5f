//! Endpoints: models behind a server, registered beside the files.
//!
//! A row of kind `endpoint` keeps the settings as JSON in its `path`. Its `sha256` is that of what a run
//! must not mix: the model's name on the server, the route, the grammar. The URL may change, as servers
//! move, and shards of one run may use different ones.

use lm::endpoint::{Endpoint, Settings, Timeouts, probe};
use sha2::{Digest, Sha256};

use crate::library::{check_name, known};
use crate::{Cancel, Result, Studio, StudioError};

pub(crate) const KIND: &str = "endpoint";

/// What came of registering an endpoint.
#[derive(Debug)]
pub struct AddedEndpoint {
    pub settings: Settings,
    /// What may keep it from working, in a line each.
    pub notes: Vec<String>,
}

impl Studio {
    /// Registers a model behind a server, or changes its settings. The server is asked what it knows of
    /// itself; it need not run yet.
    pub fn add_endpoint(&self, name: &str, settings: Settings, cancel: &Cancel) -> Result<AddedEndpoint> {
        check_name(name)?;
        let mut settings = settings.checked()?;
        if known(self.store().model(name))?.is_some_and(|model| model.kind != KIND) {
            return Err(StudioError::Invalid(format!(
                "there is a model `{name}` already: choose another name"
            )));
        }
        let mut notes = Vec::new();
        let key = key(&settings).unwrap_or_else(|error| {
            notes.push(error.to_string());
            None
        });
        let mut parameters = 0;
        match probe(&settings, key, cancel) {
            Ok(served) => {
                if !served.models.is_empty() && !served.models.contains(&settings.model) {
                    notes.push(format!(
                        "the server names {}, not `{}`",
                        served.models.join(", "),
                        settings.model
                    ));
                }
                settings.context_tokens = settings.context_tokens.or(served.context_tokens);
                if settings.context_tokens.is_none() {
                    notes.push("the server does not tell the model's context: set it with --context".into());
                }
                parameters = served.parameters.unwrap_or(0);
            }
            Err(_) if cancel.is_cancelled() => return Err(StudioError::Cancelled),
            Err(error) => notes.push(gym::chain(&error)),
        }
        self.store().put_model(&store::Model {
            name: name.into(),
            kind: KIND.into(),
            path: serde_json::to_string(&settings).expect("settings are plain data"),
            sha256: identity(&settings),
            architecture: settings.model.clone(),
            parameters,
            adapter_of: None,
        })?;
        self.forget_loaded(name)?;
        Ok(AddedEndpoint { settings, notes })
    }

    /// The settings of a model that is an endpoint.
    pub fn endpoint(&self, name: &str) -> Result<Option<Settings>> {
        settings(&self.model_row(name)?)
    }
}

/// `None` for models that are files.
pub(crate) fn settings(model: &store::Model) -> Result<Option<Settings>> {
    if model.kind != KIND {
        return Ok(None);
    }
    serde_json::from_str(&model.path).map(Some).map_err(|error| {
        StudioError::Invalid(format!(
            "endpoint `{}` has settings that this version cannot read: {error}",
            model.name
        ))
    })
}

pub(crate) fn open(settings: Settings) -> Result<Endpoint> {
    let key = key(&settings)?;
    Ok(Endpoint::open(settings, key, Timeouts::default())?)
}

/// The key, from the environment; nothing keeps it but the client that sends it.
fn key(settings: &Settings) -> Result<Option<String>> {
    let Some(variable) = &settings.key_env else {
        return Ok(None);
    };
    match std::env::var(variable) {
        Ok(key) if !key.trim().is_empty() => Ok(Some(key.trim().into())),
        _ => Err(StudioError::Invalid(format!(
            "the variable {variable}, which should hold the key for {}, is not set",
            settings.url
        ))),
    }
}

fn identity(settings: &Settings) -> String {
    let parts = serde_json::json!([settings.model, settings.route, settings.grammar]).to_string();
    Sha256::digest(parts.as_bytes())
        .iter()
        .map(|byte| format!("{byte:02x}"))
        .collect()
}
