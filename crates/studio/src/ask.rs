//! One question, live: the same episode that a run would store, with its events passed on as they happen.

use std::time::Instant;

use gym::{EngineError, Event, Findings, Gold, Hit, LabelledQuestion, Observer, Question, QuestionId, Seed, Step};

use crate::judges::StoredFindings;
use crate::results::finished_episode;
use crate::view::{AskEvent, AskRequest, EpisodeView};
use crate::{Cancel, Result, Studio, StudioError, engines, show};

/// Stores an episode's steps as they are finished, and passes its events on.
pub(crate) struct Recorder<'a> {
    pub store: &'a store::Store,
    pub run: &'a str,
    pub labelled: &'a LabelledQuestion,
    pub findings: &'a StoredFindings,
    /// What the reader came to in this step, (key, text), stored with it.
    pub read: Vec<(String, String)>,
    /// Who gave the rewards.
    pub judge: Option<&'a str>,
    pub step_started: Instant,
    /// Of this step: who is judging since when, and who took how many milliseconds.
    pub judging: Option<(String, Instant)>,
    pub judged: Vec<(String, u64)>,
    pub n_candidates: u32,
    pub forward: &'a mut dyn FnMut(AskEvent),
}

impl Recorder<'_> {
    fn end_judging(&mut self) {
        if let Some((judge_id, since)) = self.judging.take() {
            self.judged.push((judge_id, since.elapsed().as_millis() as u64));
        }
    }

    /// The step with all its parts and what the reader came to; then what may be lost with a kill: latencies.
    fn keep(&mut self, step: &Step) -> store::Result<()> {
        let question = &self.labelled.question.id;
        let took_ms = self.step_started.elapsed().as_millis() as u64;
        let read = std::mem::take(&mut self.read);
        self.store.append_read_step(self.run, question, step, took_ms, &read)?;
        for (nth, (judge_id, latency_ms)) in self.judged.drain(..).enumerate() {
            let judge_id = if nth == 0 { store::RUN_JUDGE } else { &judge_id };
            self.store
                .set_verdict_latency(self.run, question, step.step_idx, judge_id, latency_ms)?;
        }
        Ok(())
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
                self.judged.clear();
                self.read.clear();
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
            Event::Judging { judge_id } => {
                self.end_judging();
                self.judging = Some((judge_id.into(), Instant::now()));
                return Ok(());
            }
            Event::Candidates { candidates, chosen } => {
                self.end_judging();
                AskEvent::Candidates {
                    candidates: candidates.iter().map(show::candidate).collect(),
                    chosen: chosen as u32,
                }
            }
            Event::Retrieved { query, hits } => AskEvent::Retrieved {
                query: query.into(),
                passages: hits.iter().map(|hit| show::passage(hit, query, self.gold())).collect(),
            },
            Event::ReaderToken(token) => AskEvent::ReaderToken { text: token.text },
            Event::Finding { finding } => AskEvent::Finding {
                finding: finding.into(),
            },
            Event::StepFinished(step) => {
                self.keep(step).map_err(|error| EngineError::Failed {
                    engine: "store".into(),
                    message: gym::chain(&error),
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
        self.findings.finding(question, query, hits)
    }

    fn store_finding(&mut self, question: &str, query: &str, hits: &[Hit], finding: &str) {
        self.read
            .push((self.findings.key(question, query, hits), finding.into()));
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
        let claim = self.claim(&run.id)?;
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
        claim.remove();
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
        let mut recorder = Recorder {
            store: self.store(),
            run,
            labelled,
            findings: &setting.findings,
            read: Vec::new(),
            judge: setting.chooser(),
            step_started: started,
            judging: None,
            judged: Vec::new(),
            n_candidates: settings.candidates,
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
            .finish_episode(&finished_episode(run, labelled, &steps, took_ms))?;
        Ok(())
    }
}
