//! One question, live: the same episode that a run would store, with its events passed on as they happen.

use std::time::Instant;

use gym::{EngineError, Event, Gold, Hit, LabelledQuestion, Observer, Question, QuestionId, Seed, Step};

use crate::view::{AskEvent, AskRequest, EpisodeView};
use crate::{Cancel, Result, Studio, StudioError, engines, run, show};

/// Stores an episode's steps as they are finished, and passes its events on.
pub(crate) struct Recorder<'a> {
    pub store: &'a store::Store,
    pub run: &'a str,
    pub labelled: &'a LabelledQuestion,
    /// Parts of the reader's cache key beside question, query and passages.
    pub reader: &'a str,
    pub judge: Option<&'a str>,
    pub step_started: Instant,
    pub n_candidates: u32,
    /// What the reader came to in this step, stored with it: (key, text).
    pub finding: Option<(String, String)>,
    pub forward: &'a mut dyn FnMut(AskEvent),
}

impl Recorder<'_> {
    fn finding_key(&self, question: &str, query: &str, hits: &[Hit]) -> String {
        let passages: Vec<&str> = hits
            .iter()
            .flat_map(|hit| [&hit.passage.id, &hit.passage.title, &hit.passage.text].map(String::as_str))
            .collect();
        let parts = serde_json::json!([self.reader, question, query, passages]).to_string();
        use sha2::Digest;
        sha2::Sha256::digest(parts.as_bytes())
            .iter()
            .map(|byte| format!("{byte:02x}"))
            .collect()
    }

    fn gold(&self) -> &Gold {
        &self.labelled.gold
    }
}

impl Observer for Recorder<'_> {
    fn on_event(&mut self, event: Event<'_>) -> std::result::Result<(), EngineError> {
        let out = match event {
            Event::StepStarted {
                step_idx,
                prompt,
                dropped,
            } => {
                self.step_started = Instant::now();
                let candidates = if prompt.is_some() { self.n_candidates } else { 1 };
                AskEvent::StepStarted {
                    step_idx,
                    prompt: show::prompt(prompt),
                    dropped: dropped.to_vec(),
                    candidates,
                }
            }
            Event::Token(token) => AskEvent::Token {
                sample_idx: token.sample_idx as u32,
                text: token.text,
            },
            Event::Candidates { candidates, chosen } => AskEvent::Candidates {
                candidates: candidates.iter().map(show::candidate).collect(),
                chosen: chosen as u32,
            },
            Event::Retrieved { query, hits } => AskEvent::Retrieved {
                query: query.into(),
                passages: hits.iter().map(|hit| show::passage(hit, query, self.gold())).collect(),
            },
            Event::ReaderToken(token) => AskEvent::ReaderToken { text: token.text },
            Event::Finding { finding } => AskEvent::Finding {
                finding: finding.into(),
            },
            Event::StepFinished(step) => {
                let took_ms = self.step_started.elapsed().as_millis() as u64;
                let finding = self.finding.take();
                let finding = finding.as_ref().map(|(key, text)| (key.as_str(), text.as_str()));
                self.store
                    .append_read_step(self.run, &self.labelled.question.id, step, took_ms, finding)
                    .map_err(|error| EngineError::Failed {
                        engine: "store".into(),
                        message: error.to_string(),
                    })?;
                AskEvent::StepFinished {
                    step: show::step(step, self.judge, self.gold()),
                }
            }
        };
        (self.forward)(out);
        Ok(())
    }

    fn cached_finding(&mut self, question: &str, query: &str, hits: &[Hit]) -> Option<String> {
        // A cache that cannot be read is a cache without the entry.
        self.store
            .finding(&self.finding_key(question, query, hits))
            .ok()
            .flatten()
    }

    fn store_finding(&mut self, question: &str, query: &str, hits: &[Hit], finding: &str) {
        self.finding = Some((self.finding_key(question, query, hits), finding.to_owned()));
    }
}

impl Studio {
    /// Answers one question. The episode is stored as a run of one question without a set.
    pub fn ask(
        &self,
        request: &AskRequest,
        cancel: &Cancel,
        on_event: &mut dyn FnMut(AskEvent),
    ) -> Result<EpisodeView> {
        let result = self.ask_and_store(request, cancel, on_event);
        match &result {
            Ok(episode) => on_event(AskEvent::Finished {
                episode: episode.clone(),
            }),
            Err(StudioError::Cancelled) => on_event(AskEvent::Cancelled),
            Err(error) => on_event(AskEvent::Failed { error: error.view() }),
        }
        result
    }

    fn ask_and_store(
        &self,
        request: &AskRequest,
        cancel: &Cancel,
        on_event: &mut dyn FnMut(AskEvent),
    ) -> Result<EpisodeView> {
        let text = request.question.trim();
        if text.is_empty() {
            return Err(StudioError::Invalid("the question is empty".into()));
        }
        let settings = self.resolve(&request.settings)?;
        let labelled = match self.find_question(text, &settings.corpus)? {
            Some(labelled) => labelled,
            None => LabelledQuestion {
                question: Question {
                    id: QuestionId("ask".into()),
                    text: text.into(),
                    options: Vec::new(),
                },
                gold: Gold::default(),
                kind: None,
                split: None,
            },
        };
        on_event(AskEvent::Loading {
            model: settings.model.clone(),
        });
        let setting = self.setting(&settings)?;
        let run = self.new_run(None, text, None, &settings)?;
        self.store().create_episode_for(&run.id, &labelled)?;
        let finished = self.play(
            &run.id,
            &settings,
            &setting,
            &labelled,
            Vec::<Step>::new(),
            cancel,
            on_event,
        );
        let status = match &finished {
            Ok(()) => store::RunStatus::Finished,
            Err(StudioError::Cancelled) => store::RunStatus::Stopped,
            Err(_) => store::RunStatus::Failed,
        };
        self.store().set_run_status(
            &run.id,
            status,
            finished.as_ref().err().map(ToString::to_string).as_deref(),
        )?;
        finished?;
        self.episode(&run.id, &labelled.question.id.0)
    }

    /// Plays one episode to its end, from the steps it already has, and stores its outcome.
    #[expect(
        clippy::too_many_arguments,
        reason = "an episode's coordinates; both callers pass them through"
    )]
    pub(crate) fn play(
        &self,
        run: &str,
        settings: &crate::view::AgentSettings,
        setting: &engines::Setting,
        labelled: &LabelledQuestion,
        steps: Vec<Step>,
        cancel: &Cancel,
        on_event: &mut dyn FnMut(AskEvent),
    ) -> Result<()> {
        let started = Instant::now();
        // The file too, not the name alone: another file may take the name over.
        let model = self.model_row(&settings.model)?;
        let reader = format!("{}|{}|{}", model.name, model.sha256, setting.agent.style());
        let mut recorder = Recorder {
            store: self.store(),
            run,
            labelled,
            reader: &reader,
            judge: setting.judge.as_ref().map(|judge| judge.id()),
            step_started: started,
            n_candidates: settings.candidates,
            finding: None,
            forward: on_event,
        };
        let steps = gym::run_episode(
            labelled,
            &setting.config,
            &setting.engines(),
            Seed(settings.seed.into()),
            steps,
            &mut recorder,
            cancel,
        )?;
        let took_ms = started.elapsed().as_millis() as u64;
        self.store()
            .finish_episode(&run::finished_episode(run, labelled, &steps, took_ms))?;
        Ok(())
    }
}
