//! From settings to engines: which agent, model, index and judge an episode runs with.

use std::path::Path;
use std::sync::Arc;

use gym::{Agent, AgentKind, EpisodeConfig, EvidenceJudge, Judge, LabelledQuestion, PromptStyle, Sampling};

use crate::view::AgentSettings;
use crate::{Result, Studio, StudioError, lock};

/// Models from this size on follow the full prompts.
const FULL_PROMPT_PARAMETERS: u64 = 2_500_000_000;
/// The reader answers in a few words.
const READER_TOKENS: usize = 40;

/// Settings, checked and resolved.
pub(crate) struct Setting {
    pub agent: Agent,
    pub model: Arc<lm::LocalModel>,
    pub index: Arc<retrieval::Bm25Index>,
    pub judge: Option<Box<dyn Judge>>,
    pub config: EpisodeConfig,
}

impl Setting {
    pub fn engines(&self) -> gym::Engines<'_> {
        gym::Engines {
            agent: &self.agent,
            policy: self.model.as_ref(),
            reader: self.model.as_ref(),
            retriever: self.index.as_ref(),
            judge: self.judge.as_deref(),
        }
    }
}

impl Default for AgentSettings {
    fn default() -> Self {
        AgentSettings {
            corpus: "factbook".into(),
            agent: "search-o1".into(),
            model: "smollm2-135m".into(),
            prompt: None,
            k: 3,
            max_steps: 5,
            candidates: 1,
            temperature: 0.0,
            max_tokens: 0,
            seed: 0,
            judge: None,
        }
    }
}

impl Studio {
    /// Fills in what the settings leave open, so that a stored run says exactly what it did.
    pub(crate) fn resolve(&self, settings: &AgentSettings) -> Result<AgentSettings> {
        let mut settings = settings.clone();
        let _: AgentKind = parse(&settings.agent)?;
        let model = self.model_row(&settings.model)?;
        let compact = model.parameters < FULL_PROMPT_PARAMETERS;
        let prompt = settings
            .prompt
            .get_or_insert_with(|| if compact { "compact" } else { "full" }.into());
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
        if let Some(judge) = &settings.judge
            && judge != "evidence"
        {
            return Err(StudioError::Invalid(format!(
                "there is no judge `{judge}`: this version has `evidence`"
            )));
        }
        Ok(settings)
    }

    /// Engines for resolved settings.
    pub(crate) fn setting(&self, settings: &AgentSettings) -> Result<Setting> {
        let style: PromptStyle = parse(settings.prompt.as_deref().unwrap_or("compact"))?;
        let index = self.index(&settings.corpus)?;
        let judge: Option<Box<dyn Judge>> = match settings.judge {
            Some(_) => Some(Box::new(EvidenceJudge::new(index.clone(), settings.k as usize))),
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
        };
        Ok(Setting {
            agent: Agent::new(parse(&settings.agent)?, style),
            model: self.load(&settings.model)?,
            index,
            judge,
            config,
        })
    }

    /// A model, read from disk once.
    fn load(&self, name: &str) -> Result<Arc<lm::LocalModel>> {
        let mut models = lock(&self.inner.models);
        if let Some(model) = models.get(name) {
            return Ok(model.clone());
        }
        let row = self.model_row(name)?;
        let model = match &row.adapter_of {
            // An adapter shares the weights of its base.
            Some(base) => {
                drop(models);
                let adapted = self.load(base)?.with_adapter(Path::new(&row.path))?;
                models = lock(&self.inner.models);
                Arc::new(adapted)
            }
            None => Arc::new(lm::LocalModel::open(Path::new(&row.path))?),
        };
        models.insert(name.into(), model.clone());
        Ok(model)
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

fn parse<T: std::str::FromStr>(name: &str) -> Result<T>
where
    T::Err: std::fmt::Display,
{
    name.parse()
        .map_err(|error: T::Err| StudioError::Invalid(error.to_string()))
}
