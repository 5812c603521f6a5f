//! From settings to engines: which agent, model, index and judge an episode runs with.

use std::path::Path;
use std::sync::Arc;

use gym::{
    Agent, AgentKind, EpisodeConfig, Judge, LabelledQuestion, LanguageModel, PromptStyle, RewardModel, Sampling,
    Selection,
};

use crate::judges::{JudgeSpec, StoredFindings};
use crate::library::ENCODER;
use crate::view::AgentSettings;
use crate::{Result, Studio, StudioError, endpoints, lock};

/// Models from this size on follow the full prompts.
const FULL_PROMPT_PARAMETERS: u64 = 2_500_000_000;
/// Raised when the reader's prompts change, so that no reading of another prompt is given again.
const READER_VERSION: u32 = 3;
/// The reader answers in a few words.
const READER_TOKENS: usize = 40;

/// Settings, checked and resolved.
pub(crate) struct Setting {
    pub agent: Agent,
    pub model: Arc<dyn LanguageModel>,
    pub reader: Arc<dyn LanguageModel>,
    pub index: Arc<retrieval::Bm25Index>,
    pub judge: Option<Arc<dyn Judge>>,
    pub reward_model: Option<Arc<dyn RewardModel>>,
    pub findings: Arc<StoredFindings>,
    pub config: EpisodeConfig,
}

impl Setting {
    /// Who gives the rewards, by name and version.
    pub fn chooser(&self) -> Option<&str> {
        let model = self.reward_model.as_deref().map(|model| model.id());
        model.or_else(|| self.judge.as_deref().map(|judge| judge.id()))
    }

    pub fn engines(&self) -> gym::Engines<'_> {
        gym::Engines {
            agent: &self.agent,
            policy: self.model.as_ref(),
            reader: self.reader.as_ref(),
            retriever: self.index.as_ref(),
            judge: self.judge.as_deref(),
            reward_model: self.reward_model.as_deref(),
        }
    }
}

impl Default for AgentSettings {
    fn default() -> Self {
        AgentSettings {
            corpus: "factbook".into(),
            agent: "search-o1".into(),
            model: crate::DEFAULT_MODEL.into(),
            reader: None,
            prompt: None,
            k: 3,
            max_steps: 5,
            candidates: 1,
            temperature: 0.0,
            max_tokens: 0,
            seed: 0,
            judge: None,
            reward_model: None,
            select: None,
        }
    }
}

/// The prompts that a model of this size follows.
pub(crate) fn style_of(model: &store::Model) -> PromptStyle {
    // Servers seldom tell a model's size; who runs one seldom has a small model on it.
    let unknown = model.kind == endpoints::KIND && model.parameters == 0;
    if model.parameters < FULL_PROMPT_PARAMETERS && !unknown {
        PromptStyle::Compact
    } else {
        PromptStyle::Full
    }
}

impl Studio {
    /// Fills in what the settings leave open, so that a stored run says exactly what it did.
    pub(crate) fn resolve(&self, settings: &AgentSettings) -> Result<AgentSettings> {
        let mut settings = settings.clone();
        let _: AgentKind = parse(&settings.agent)?;
        let model = self.model_row(&settings.model)?;
        let prompt = settings.prompt.get_or_insert_with(|| style_of(&model).name().into());
        let style: PromptStyle = parse(prompt)?;
        if settings.max_tokens == 0 {
            settings.max_tokens = if matches!(style, PromptStyle::Compact) {
                128
            } else {
                512
            };
        }
        if settings.k == 0 || settings.max_steps == 0 || settings.candidates == 0 {
            return Err(StudioError::Invalid("k, max-steps and candidates start at 1".into()));
        }
        if settings.candidates > 1 && settings.temperature == 0.0 {
            // Greedy candidates would all be the same one.
            settings.temperature = 1.0;
        }
        if let Some(judge) = &mut settings.judge {
            let spec: JudgeSpec = judge.parse()?;
            if let JudgeSpec::Llm { model } = &spec {
                self.model_row(model)?;
            }
            *judge = spec.to_string();
        }
        if let Some(model) = &settings.reward_model {
            self.reward_row(model)?;
        }
        if let Some(reader) = &settings.reader {
            self.model_row(reader)?;
        }
        let rewards = settings.judge.is_some() || settings.reward_model.is_some();
        let selection: Selection = match &settings.select {
            Some(name) => parse(name)?,
            None if rewards => Selection::Reward,
            None if settings.candidates > 1 => Selection::Majority,
            None => Selection::First,
        };
        if matches!(selection, Selection::Reward | Selection::Weighted | Selection::Prior) && !rewards {
            return Err(StudioError::Invalid(
                "to select by reward, name a judge or a reward model".into(),
            ));
        }
        settings.select = Some(selection.name().into());
        Ok(settings)
    }

    /// Engines for resolved settings.
    pub(crate) fn setting(&self, settings: &AgentSettings) -> Result<Setting> {
        let style: PromptStyle = parse(settings.prompt.as_deref().unwrap_or("compact"))?;
        let index = self.index(&settings.corpus)?;
        let judge = match &settings.judge {
            Some(name) => Some(self.judge(&name.parse()?, settings)?),
            None => None,
        };
        let reward_model = match &settings.reward_model {
            Some(name) => Some(self.reward_model(name, settings)?),
            None => None,
        };
        let config = EpisodeConfig {
            max_steps: settings.max_steps,
            k: settings.k as usize,
            n_candidates: settings.candidates as usize,
            sampling: Sampling {
                temperature: settings.temperature,
                max_tokens: settings.max_tokens as usize,
                ..Sampling::default()
            },
            reader_sampling: Sampling {
                max_tokens: READER_TOKENS,
                ..Sampling::default()
            },
            constrained: matches!(style, PromptStyle::Compact),
            // Runs from before there was a choice took the highest reward.
            selection: settings.select.as_deref().map_or(Ok(Selection::Reward), parse)?,
        };
        let reader = settings.reader.as_ref().unwrap_or(&settings.model);
        // The file too, not the name alone: another file may take the name over.
        let row = self.model_row(reader)?;
        Ok(Setting {
            agent: Agent::new(parse(&settings.agent)?, style),
            model: self.load(&settings.model)?,
            reader: self.load(reader)?,
            index,
            judge,
            reward_model,
            findings: Arc::new(StoredFindings {
                studio: self.clone(),
                reader: format!("{}|{}|{style}#{READER_VERSION}", row.name, row.sha256),
            }),
            config,
        })
    }

    /// A model, read from disk or connected to once.
    pub(crate) fn load(&self, name: &str) -> Result<Arc<dyn LanguageModel>> {
        Ok(match endpoints::settings(&self.model_row(name)?)? {
            Some(settings) => {
                let mut open = lock(&self.inner.endpoints);
                match open.get(name) {
                    Some(endpoint) => endpoint.clone(),
                    None => {
                        let endpoint = Arc::new(endpoints::open(settings)?);
                        open.insert(name.into(), endpoint.clone());
                        endpoint
                    }
                }
            }
            None => self.load_local(name)?,
        })
    }

    /// A model of this machine, read from disk once; an adapter shares the weights of its base.
    pub(crate) fn load_local(&self, name: &str) -> Result<Arc<lm::LocalModel>> {
        let row = self.model_row(name)?;
        if let Some(model) = self.inner.models.get(name, &row.sha256) {
            return Ok(model);
        }
        if row.architecture == ENCODER {
            return Err(StudioError::Invalid(format!(
                "model `{name}` is an encoder: it writes no text"
            )));
        }
        let path = Path::new(&row.path);
        let model = match &row.adapter_of {
            Some(base) => self.load_local(base)?.with_adapter(path)?,
            None => lm::LocalModel::open(path)?,
        };
        Ok(self.inner.models.keep(name, &row.sha256, model))
    }

    /// Drops what is loaded under a name, and the adapters on it: its files are others now, or gone.
    pub(crate) fn forget_loaded(&self, name: &str) -> Result<()> {
        let models = self.store().models()?.into_iter();
        let adapters = models.filter(|model| model.adapter_of.as_deref() == Some(name));
        for name in adapters.map(|model| model.name).chain([name.to_owned()]) {
            self.inner.models.forget(&name);
            self.inner.rewarders.forget(&name);
            lock(&self.inner.endpoints).remove(&name);
        }
        Ok(())
    }

    /// The stored question with this text, if a set over this corpus has one: then its gold is known.
    pub(crate) fn find_question(&self, text: &str, corpus: &str) -> Result<Option<LabelledQuestion>> {
        for set in self.store().question_sets()? {
            if set.corpus.as_deref() == Some(corpus) {
                let questions = self.store().questions(&set.name, None)?;
                if let Some(found) = questions.into_iter().find(|labelled| labelled.question.text == text) {
                    return Ok(Some(found));
                }
            }
        }
        Ok(None)
    }
}

pub(crate) fn parse<T: std::str::FromStr>(name: &str) -> Result<T>
where
    T::Err: std::fmt::Display,
{
    name.parse()
        .map_err(|error: T::Err| StudioError::Invalid(error.to_string()))
}
