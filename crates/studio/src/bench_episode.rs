//! Whole ReSearch episodes, with the same work for every model: candidates are drawn and passages read as
//! ever, but a script says what is searched for and what was found.

use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Instant;

use gym::{
    Agent, EngineError, Engines, EpisodeConfig, Event, Generation, LabelledQuestion, LanguageModel, Observer, Prompt,
    Retriever, Sample, Seed, TokenEvent, Usage, run_episode,
};
use lm::estimate::Work;
use lm::kernels::Machine;
use serde::Serialize;

use crate::machine::MachineView;
use crate::view::{AgentSettings, TokensView};
use crate::{Cancel, Result, Studio, StudioError};

type Engine<T> = std::result::Result<T, EngineError>;

const CANDIDATES: u32 = 10;
const STEPS: u32 = 5;

/// Episodes over the wall time, the model's loading left out.
#[derive(Clone, Debug, Serialize)]
pub struct EpisodeBench {
    pub episodes: usize,
    /// In all episodes together; five each.
    pub steps: usize,
    pub candidates: u32,
    pub workers: u32,
    /// Of candidates and readings together.
    pub tokens: TokensView,
    pub took_ms: f64,
    pub episodes_per_minute: f64,
    /// What the measured peaks allow for these tokens; `None` behind a server.
    pub floor_episodes_per_minute: Option<f64>,
}

impl Studio {
    /// Plays the first `episodes` dev questions of the built-in world, `workers` at once, with compact prompts
    /// and ten candidates a step. `model` is a registered file or endpoint.
    pub fn bench_episode(&self, model: &str, episodes: usize, workers: u32, cancel: &Cancel) -> Result<EpisodeBench> {
        let workers = workers.max(1);
        let settings = self.resolve(&AgentSettings {
            agent: "research".into(),
            model: model.into(),
            prompt: Some("compact".into()),
            max_steps: STEPS,
            candidates: CANDIDATES,
            temperature: 1.0,
            // The first one is the script's.
            select: Some("first".into()),
            ..AgentSettings::default()
        })?;
        let setting = self.setting(&settings)?;
        // Some more than are played, for their hops.
        let questions = self
            .store()
            .questions("factbook-dev", Some(episodes.saturating_add(STEPS as usize)))?;
        if !(1..=questions.len()).contains(&episodes) {
            return Err(StudioError::Invalid(format!(
                "episodes go from 1 to the {} questions of factbook-dev",
                questions.len()
            )));
        }
        let next = AtomicUsize::new(0);
        let started = Instant::now();
        let played: Vec<Engine<(usize, Usage)>> = std::thread::scope(|scope| {
            let work = || {
                let (mut steps, mut usage) = (0, Usage::default());
                loop {
                    let idx = next.fetch_add(1, Ordering::Relaxed);
                    if idx >= episodes {
                        return Ok((steps, usage));
                    }
                    let engines = (&setting.agent, setting.model.as_ref(), setting.index.as_ref() as _);
                    let (more, spent) = play(&questions, idx, &setting.config, engines, cancel)?;
                    steps += more;
                    usage += spent;
                }
            };
            let workers: Vec<_> = (0..workers).map(|_| scope.spawn(work)).collect();
            let join = |worker: std::thread::ScopedJoinHandle<'_, _>| worker.join().expect("a worker does not panic");
            workers.into_iter().map(join).collect()
        });
        let took_ms = started.elapsed().as_secs_f64() * 1000.0;
        let (mut steps, mut usage) = (0, Usage::default());
        for outcome in played {
            let (more, spent) = outcome?;
            steps += more;
            usage += spent;
        }
        Ok(EpisodeBench {
            episodes,
            steps,
            candidates: CANDIDATES,
            workers,
            tokens: TokensView {
                prompt: usage.prompt,
                cached: usage.cached,
                generated: usage.generated,
            },
            took_ms,
            episodes_per_minute: episodes as f64 * 60_000.0 / took_ms,
            floor_episodes_per_minute: self
                .floor_seconds(model, steps, workers, usage)?
                .map(|s| episodes as f64 * 60.0 / s),
        })
    }
}

impl Studio {
    /// Fewest seconds for what a model of this machine read and wrote in `steps`, each with a reading.
    fn floor_seconds(&self, model: &str, steps: usize, workers: u32, usage: Usage) -> Result<Option<f64>> {
        if self.endpoint(model)?.is_some() {
            return Ok(None);
        }
        let work = Work::of(self.load_local(model)?.decoder());
        let peaks = MachineView::of(&Machine::shared()).peaks();
        // Two prompts a step: one for the candidates, one for the reading.
        let prompts = 2.0 * steps as f64;
        let (cached, read) = (
            f64::from(usage.cached) / prompts,
            f64::from(usage.prompt - usage.cached) / prompts,
        );
        let batch = f64::from(CANDIDATES * workers);
        let written = f64::from(usage.generated);
        let length = written / (steps as f64 * f64::from(CANDIDATES + 1));
        let step = work.step_seconds(&peaks, batch, cached + read + length / 2.0);
        Ok(Some(
            prompts * work.prompt_seconds(&peaks, cached, read) + written / batch * step,
        ))
    }
}

/// Plays one question by its script; returns its steps and tokens.
fn play(
    questions: &[LabelledQuestion],
    idx: usize,
    config: &EpisodeConfig,
    (agent, model, retriever): (&Agent, &dyn LanguageModel, &dyn Retriever),
    cancel: &Cancel,
) -> Engine<(usize, Usage)> {
    // The question's own hops, then those of the questions after it: no step repeats another.
    let hops = questions
        .iter()
        .cycle()
        .skip(idx)
        .flat_map(|labelled| &labelled.gold.sub_questions);
    let (searches, findings) = hops
        .take(config.max_steps as usize)
        .map(|hop| {
            let search = format!("Draft: not known yet\nUnsupported: {0}\nSearch: {0}", hop.question);
            (search, format!("Found: {}", hop.answer))
        })
        .unzip();
    let (policy, reader) = (Scripted::new(model, searches), Scripted::new(model, findings));
    let engines = Engines {
        agent,
        policy: &policy,
        reader: &reader,
        retriever,
        judge: None,
        reward_model: None,
    };
    let steps = run_episode(
        &questions[idx],
        config,
        &engines,
        Seed(0),
        Vec::new(),
        &mut Unwatched,
        cancel,
    )?;
    let mut usage = Usage::default();
    steps.iter().for_each(|step| usage += step.usage);
    Ok((steps.len(), usage))
}

/// A model that draws its samples at their full cost; the first one of each call then reads as the script says.
struct Scripted<'a> {
    model: &'a dyn LanguageModel,
    texts: Vec<String>,
    calls: AtomicUsize,
}

impl Scripted<'_> {
    fn new(model: &dyn LanguageModel, texts: Vec<String>) -> Scripted<'_> {
        Scripted {
            model,
            texts,
            calls: AtomicUsize::new(0),
        }
    }
}

impl LanguageModel for Scripted<'_> {
    fn context_tokens(&self) -> usize {
        self.model.context_tokens()
    }

    fn count_tokens(&self, prompt: &Prompt) -> Engine<usize> {
        self.model.count_tokens(prompt)
    }

    fn generate(
        &self,
        request: &Generation,
        cancel: &Cancel,
        on_token: &mut dyn FnMut(TokenEvent),
    ) -> Engine<(Vec<Sample>, Usage)> {
        let (mut samples, usage) = self.model.generate(request, cancel, on_token)?;
        let call = self.calls.fetch_add(1, Ordering::Relaxed);
        samples[0].text.clone_from(&self.texts[call]);
        Ok((samples, usage))
    }
}

/// Nothing is kept, so nothing that was found before is there either.
struct Unwatched;

impl Observer for Unwatched {
    fn on_event(&mut self, _event: Event<'_>) -> Engine<()> {
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use std::sync::Mutex;

    use gym::{AgentKind, FinishReason, Gold, Hit, PromptStyle, Question, QuestionId, SubQuestion};

    use super::*;

    /// Says the same whatever it is asked, and remembers what it was asked.
    struct Parrot {
        says: &'static str,
        heard: Mutex<Vec<Generation>>,
    }

    impl LanguageModel for Parrot {
        fn context_tokens(&self) -> usize {
            1 << 20
        }

        fn count_tokens(&self, _prompt: &Prompt) -> Engine<usize> {
            Ok(1)
        }

        fn generate(
            &self,
            request: &Generation,
            _cancel: &Cancel,
            _on_token: &mut dyn FnMut(TokenEvent),
        ) -> Engine<(Vec<Sample>, Usage)> {
            self.heard.lock().unwrap().push(request.clone());
            let sample = Sample {
                text: self.says.into(),
                token_ids: Vec::new(),
                token_logprobs: Vec::new(),
                finish: FinishReason::Stop,
            };
            let usage = Usage {
                prompt: 3,
                cached: 0,
                generated: request.seeds.len() as u32,
            };
            Ok((vec![sample; request.seeds.len()], usage))
        }
    }

    /// Of two hops.
    fn question(number: usize) -> LabelledQuestion {
        let hop = |hop| SubQuestion {
            question: format!("hop {hop} of {number}"),
            answer: format!("place {hop} of {number}"),
            title: None,
        };
        LabelledQuestion {
            question: Question {
                id: QuestionId(number.to_string()),
                text: format!("Where is {number}?"),
                options: Vec::new(),
            },
            gold: Gold {
                sub_questions: vec![hop(1), hop(2)],
                ..Gold::default()
            },
            kind: None,
            split: None,
        }
    }

    struct Echo(Mutex<Vec<String>>);

    impl Retriever for Echo {
        fn search(&self, query: &str, _k: usize) -> Engine<Vec<Hit>> {
            self.0.lock().unwrap().push(query.into());
            Ok(Vec::new())
        }
    }

    #[test]
    fn models_that_answer_at_once_or_never_take_the_same_steps() {
        let questions = [0, 1, 2].map(question);
        let config = EpisodeConfig {
            max_steps: STEPS,
            k: 3,
            n_candidates: 10,
            sampling: gym::Sampling::default(),
            reader_sampling: gym::Sampling::default(),
            constrained: true,
            selection: gym::Selection::First,
        };
        let agent = Agent::new(AgentKind::Research, PromptStyle::Compact);
        let mut work = Vec::new();
        for says in ["Draft: Vienna\nUnsupported: none\nSearch: none", "@"] {
            let (parrot, echo) = (
                Parrot {
                    says,
                    heard: Mutex::default(),
                },
                Echo(Mutex::default()),
            );
            let (steps, usage) = play(&questions, 2, &config, (&agent, &parrot, &echo), &Cancel::default()).unwrap();
            assert_eq!(
                (steps, usage.prompt, usage.generated),
                (5, 30, 55),
                "five steps, five readings"
            );
            work.push((parrot.heard.into_inner().unwrap(), echo.0.into_inner().unwrap()));
        }
        assert_eq!(work[0], work[1]);
        let queries: std::collections::BTreeSet<&String> = work[0].1.iter().collect();
        assert_eq!(queries.len(), 5, "{queries:?}");
        let own = &questions[2].gold.sub_questions[0];
        assert_eq!(work[0].1[0], own.question);
        let second = &work[0].0[2].prompt.messages[1].content;
        assert!(second.contains(&format!("Found: {}", own.answer)), "{second}");
    }
}
