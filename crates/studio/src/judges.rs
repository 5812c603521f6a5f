//! Judges and reward models by name, a second judge over a stored run, and how far judges agree.

use std::collections::{BTreeMap, BTreeSet};
use std::fmt;
use std::str::FromStr;
use std::sync::Arc;
use std::time::Instant;

use gym::judge::{judging_seed, step_seed};
use gym::{
    AgentKind, Agreement, EvidenceJudge, Hit, Judge, JudgedState, LlmJudge, Outcome, QuestionId, RolloutJudge, Seed,
    Visit, state_after,
};
use serde::Serialize;
use store::RUN_JUDGE;

use crate::engines::{parse, style_of};
use crate::rewards::reward_id;
use crate::view::{AgentSettings, Progress};
use crate::{Cancel, Result, Studio, StudioError, run};

/// Versions that verdicts carry: raise one when its judge rewards otherwise than before.
const LLM_VERSION: u32 = 1;
const ROLLOUT_VERSION: u32 = 1;
/// Reports are equal for equal verdicts.
const SEED: Seed = Seed(13);

/// A judge as users write it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum JudgeSpec {
    /// `evidence`
    Evidence,
    /// `llm:MODEL`
    Llm { model: String },
    /// `rollout:M`, or `rollout:M:em` for exact match in place of F1
    Rollout { continuations: u32, outcome: Outcome },
}

impl FromStr for JudgeSpec {
    type Err = StudioError;

    fn from_str(text: &str) -> Result<JudgeSpec> {
        let unknown = || {
            let by_hand = match text {
                "human" => "; a person judges in the window, under Annotate",
                _ => "",
            };
            StudioError::Invalid(format!(
                "no judge `{text}` can be called: write evidence, llm:MODEL, rollout:M or rollout:M:em with M from 1{by_hand}"
            ))
        };
        match text.split_once(':') {
            None if text == "evidence" => Ok(JudgeSpec::Evidence),
            Some(("llm", model)) if !model.is_empty() => Ok(JudgeSpec::Llm { model: model.into() }),
            Some(("rollout", rest)) => {
                let (number, outcome) = match rest.split_once(':') {
                    None | Some((_, "f1")) => (rest.trim_end_matches(":f1"), Outcome::F1),
                    Some((number, "em")) => (number, Outcome::Em),
                    Some(_) => return Err(unknown()),
                };
                match number.parse() {
                    Ok(continuations) if continuations > 0 => Ok(JudgeSpec::Rollout { continuations, outcome }),
                    _ => Err(unknown()),
                }
            }
            _ => Err(unknown()),
        }
    }
}

impl fmt::Display for JudgeSpec {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            JudgeSpec::Evidence => f.write_str("evidence"),
            JudgeSpec::Llm { model } => write!(f, "llm:{model}"),
            JudgeSpec::Rollout {
                continuations,
                outcome: Outcome::F1,
            } => write!(f, "rollout:{continuations}"),
            JudgeSpec::Rollout {
                continuations,
                outcome: Outcome::Em,
            } => write!(f, "rollout:{continuations}:em"),
        }
    }
}

/// The reader's answers in the store.
pub(crate) struct StoredFindings {
    pub studio: Studio,
    /// Parts of the key beside question, query and passages: the reader's model and prompts.
    pub reader: String,
}

/// Raised with every change of what a reader is shown: what it found before is read again.
const READING: u32 = 2;

impl StoredFindings {
    pub fn key(&self, question: &str, query: &str, hits: &[Hit]) -> String {
        let passages: Vec<&str> = hits
            .iter()
            .flat_map(|hit| [&hit.passage.id, &hit.passage.title, &hit.passage.text].map(String::as_str))
            .collect();
        let parts = serde_json::json!([READING, self.reader, question, query, passages]).to_string();
        use sha2::Digest;
        sha2::Sha256::digest(parts.as_bytes())
            .iter()
            .map(|byte| format!("{byte:02x}"))
            .collect()
    }
}

impl gym::Findings for StoredFindings {
    fn finding(&self, question: &str, query: &str, hits: &[Hit]) -> Option<String> {
        // A cache that cannot be read is a cache without the entry.
        self.studio
            .store()
            .finding(&self.key(question, query, hits))
            .ok()
            .flatten()
    }

    fn keep(&self, question: &str, query: &str, hits: &[Hit], finding: &str) {
        // Losing a cache entry costs time, not correctness.
        let _ = self
            .studio
            .store()
            .put_finding(&self.key(question, query, hits), finding);
    }
}

/// What `annotate` did.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct Annotation {
    pub run: String,
    /// The judge's name and version, as stored.
    pub judge: String,
    pub states: u32,
    /// Judged now; the others had this judge's verdict already.
    pub judged: u32,
    /// Of all the states.
    pub abstained: u32,
}

/// A state's rewards by judge; `None` where the judge abstained.
type Verdicts = BTreeMap<String, Option<Vec<f64>>>;
/// A question and the index of a step.
type StateId = (QuestionId, u32);

/// How far two judges agree on a run's states.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct JudgeAgreement {
    pub run: String,
    pub a: String,
    pub b: String,
    #[serde(flatten)]
    pub agreement: Agreement,
}

impl Studio {
    /// A judge for episodes with these settings, whose own judge does not matter.
    pub(crate) fn judge(&self, spec: &JudgeSpec, settings: &AgentSettings) -> Result<Arc<dyn Judge>> {
        Ok(match spec {
            JudgeSpec::Evidence => Arc::new(EvidenceJudge::new(self.index(&settings.corpus)?, settings.k as usize)),
            JudgeSpec::Llm { model } => {
                let row = self.model_row(model)?;
                let style = style_of(&row);
                let file = row.sha256.get(..8).unwrap_or(&row.sha256);
                let id = format!("{spec}#{LLM_VERSION}-{style}-{file}");
                Arc::new(LlmJudge::new(id, self.load(model)?, style))
            }
            JudgeSpec::Rollout { continuations, outcome } => {
                let setting = self.setting(&AgentSettings {
                    judge: None,
                    reward_model: None,
                    ..settings.clone()
                })?;
                Arc::new(RolloutJudge {
                    id: format!("{spec}#{ROLLOUT_VERSION}"),
                    agent: setting.agent,
                    policy: setting.model,
                    reader: setting.reader,
                    retriever: setting.index,
                    config: setting.config,
                    continuations: *continuations,
                    outcome: *outcome,
                    findings: setting.findings,
                })
            }
        })
    }

    /// Who will give the rewards of a run with these settings, by name and version.
    pub(crate) fn chooser(&self, settings: &AgentSettings) -> Result<Option<String>> {
        if let Some(model) = &settings.reward_model {
            return Ok(Some(reward_id(&self.reward_row(model)?)));
        }
        match &settings.judge {
            Some(judge) => Ok(Some(self.judge(&judge.parse()?, settings)?.id().to_owned())),
            None => Ok(None),
        }
    }

    /// Judges the stored steps of a run without sampling anything anew. Stopped at any instant, it goes on
    /// from there: a state that has this judge's verdict is passed over.
    pub fn annotate(
        &self,
        run: &str,
        judge: &str,
        cancel: &Cancel,
        on_progress: &mut dyn FnMut(Progress),
    ) -> Result<Annotation> {
        let row = self.run_row(run)?;
        let settings = run::settings_of(&row)?;
        let spec: JudgeSpec = judge.parse()?;
        if matches!(spec, JudgeSpec::Rollout { .. }) {
            self.check_models(&row)?;
        }
        let judge = self.judge(&spec, &settings)?;
        let searches = parse::<AgentKind>(&settings.agent)?.searches();
        let own = run::own_judge_of(&row)?;
        let mut report = Annotation {
            run: run.into(),
            judge: judge.id().into(),
            states: 0,
            judged: 0,
            abstained: 0,
        };
        let episodes = self.store().episodes(run)?;
        for (done, episode) in episodes.iter().enumerate() {
            let question = &episode.question_id;
            let labelled = self.episode_question(&row, question)?;
            let steps = self.store().steps(run, question)?;
            let known: BTreeMap<u32, bool> = self
                .store()
                .verdicts(run, question)?
                .into_iter()
                .filter(|stored| named_by(stored.judge_id.clone(), own.as_deref()) == judge.id())
                .map(|stored| (stored.step_idx, stored.verdict.rewards.is_none()))
                .collect();
            for (at, step) in steps.iter().enumerate() {
                if cancel.is_cancelled() {
                    return Err(StudioError::Cancelled);
                }
                report.states += 1;
                if let Some(abstained) = known.get(&step.step_idx) {
                    report.abstained += u32::from(*abstained);
                    continue;
                }
                let mut state = state_after(&labelled.question, &steps[..at]);
                state.truncated = step.truncated;
                let started = Instant::now();
                let verdict = judge.judge(&Visit {
                    labelled: &labelled,
                    steps: &steps[..at],
                    state: &state,
                    candidates: &step.candidates,
                    must_answer: step.truncated || step.prompt.is_some() && !searches,
                    seed: judging_seed(step_seed(Seed(settings.seed.into()), question, step.step_idx)),
                    cancel,
                })?;
                let latency_ms = started.elapsed().as_millis() as u64;
                self.store()
                    .add_verdict(run, question, step.step_idx, judge.id(), &verdict, latency_ms)?;
                report.judged += 1;
                report.abstained += u32::from(verdict.rewards.is_none());
                on_progress(Progress {
                    label: format!("{} states judged, questions", report.judged),
                    done: done as f64,
                    total: episodes.len() as f64,
                });
            }
        }
        Ok(report)
    }

    /// Compares two judges' verdicts on the well-formed candidates of a run's states. A judge is named as in
    /// `annotate`, or by its full id; a reward model by its name.
    pub fn agreement(&self, run: &str, a: &str, b: &str) -> Result<JudgeAgreement> {
        let mut verdicts = self.verdicts_of(run)?;
        let known: BTreeSet<String> = verdicts.values().flat_map(|found| found.keys().cloned()).collect();
        let (a, b) = (find_judge(a, run, &known)?, find_judge(b, run, &known)?);
        let mut judged: Vec<JudgedState> = Vec::new();
        for episode in self.store().episodes(run)? {
            let question = episode.question_id;
            for step in self.store().steps(run, &question)? {
                let Some(found) = verdicts.remove(&(question.clone(), step.step_idx)) else {
                    continue;
                };
                let well_formed = |rewards: &Vec<f64>| {
                    let candidates = step.candidates.iter().zip(rewards);
                    candidates
                        .filter(|(candidate, _)| !candidate.action.is_malformed())
                        .map(|(_, &reward)| reward)
                        .collect()
                };
                if let (Some(a), Some(b)) = (found.get(&a), found.get(&b)) {
                    judged.push(JudgedState {
                        question: question.clone(),
                        a: a.as_ref().map(well_formed),
                        b: b.as_ref().map(well_formed),
                    });
                }
            }
        }
        Ok(JudgeAgreement {
            run: run.into(),
            agreement: gym::agreement(&judged, SEED),
            a,
            b,
        })
    }

    /// A judge's rewards for the candidates of a run's states; states that it has not judged are absent.
    pub(crate) fn rewards_by(&self, run: &str, judge: &str) -> Result<BTreeMap<StateId, Vec<f64>>> {
        let verdicts = self.verdicts_of(run)?;
        let known: BTreeSet<String> = verdicts.values().flat_map(|found| found.keys().cloned()).collect();
        let judge = find_judge(judge, run, &known)?;
        let rewards = verdicts.into_iter().filter_map(|(state, mut found)| {
            let rewards = found.remove(&judge)??;
            Some((state, rewards))
        });
        Ok(rewards.collect())
    }

    /// All verdicts on a run's states; the run's own judge goes by its id where that is known.
    fn verdicts_of(&self, run: &str) -> Result<BTreeMap<StateId, Verdicts>> {
        let own = run::own_judge_of(&self.run_row(run)?)?;
        let mut all: BTreeMap<StateId, Verdicts> = BTreeMap::new();
        for episode in self.store().episodes(run)? {
            for stored in self.store().verdicts(run, &episode.question_id)? {
                let judge_id = named_by(stored.judge_id, own.as_deref());
                all.entry((episode.question_id.clone(), stored.step_idx))
                    .or_default()
                    .insert(judge_id, stored.verdict.rewards);
            }
        }
        Ok(all)
    }
}

/// Who gave a stored verdict: a run's own judge goes by its id where that is known.
pub(crate) fn named_by(stored: String, own: Option<&str>) -> String {
    match own {
        Some(own) if stored == RUN_JUDGE => own.to_owned(),
        _ => stored,
    }
}

/// The one judge of a run that a name means.
fn find_judge(name: &str, run: &str, known: &BTreeSet<String>) -> Result<String> {
    let name = name
        .parse::<JudgeSpec>()
        .map_or(name.to_owned(), |spec| spec.to_string());
    let means = |id: &&String| **id == name || id.split('#').next() == Some(name.as_str());
    let found: Vec<&String> = known.iter().filter(means).collect();
    match found[..] {
        [id] => Ok(id.to_string()),
        [] => {
            let known: Vec<&str> = known.iter().map(|id| id.as_str()).collect();
            let known = if known.is_empty() {
                "none".into()
            } else {
                known.join(", ")
            };
            Err(StudioError::Invalid(format!(
                "run `{run}` has no verdicts by `{name}`, only by: {known}; `rag-gym annotate {run} --judge …` adds them"
            )))
        }
        _ => Err(StudioError::Invalid(format!(
            "`{name}` means several judges of run `{run}`: {found:?}; write one of these ids in full"
        ))),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::testing::{self, RUN};
    use gym::Verdict;

    #[test]
    fn judges_are_written_as_they_are_read() {
        for name in ["evidence", "llm:smollm2-135m", "llm:a:b", "rollout:4", "rollout:12:em"] {
            assert_eq!(name.parse::<JudgeSpec>().unwrap().to_string(), name);
        }
        assert_eq!("rollout:4:f1".parse::<JudgeSpec>().unwrap().to_string(), "rollout:4");
        for name in [
            "",
            "Evidence",
            "evidence:2",
            "llm",
            "llm:",
            "rollout",
            "rollout:0",
            "rollout:x",
            "rollout:2:mse",
        ] {
            let error = name.parse::<JudgeSpec>().unwrap_err().to_string();
            assert!(error.contains("rollout:M"), "{error}");
        }
    }

    #[test]
    fn a_judge_is_found_by_name_or_by_id_and_never_guessed() {
        let ids = ["evidence#2", "evidence#3", "llm:m#1-compact-ab"].map(str::to_owned);
        let known: BTreeSet<String> = ids.iter().cloned().collect();
        assert_eq!(find_judge("llm:m", "r", &known).unwrap(), ids[2]);
        assert_eq!(find_judge("evidence#2", "r", &known).unwrap(), ids[0]);
        assert!(
            find_judge("evidence", "r", &known)
                .unwrap_err()
                .to_string()
                .contains("several")
        );
        assert!(
            find_judge("rollout:2", "r", &known)
                .unwrap_err()
                .to_string()
                .contains("annotate r")
        );
    }

    #[test]
    fn a_runs_own_judge_has_judged_it_already() {
        let (_dir, studio) = testing::judged_run();
        let found = studio
            .annotate(RUN, "evidence", &Cancel::default(), &mut |_| {})
            .unwrap();
        assert_eq!((found.states, found.judged), (4, 0));
        let mut judges: Vec<String> = studio
            .verdicts(RUN, "q1")
            .unwrap()
            .into_iter()
            .map(|v| v.judge)
            .collect();
        judges.dedup();
        assert_eq!(judges, ["evidence#3"]);
    }

    /// A person's verdicts, as the window stores them.
    #[test]
    fn a_persons_verdicts_are_a_judges() {
        let (_dir, studio) = testing::judged_run();
        let missing = studio.agreement(RUN, "human", "evidence").unwrap_err().to_string();
        assert!(missing.contains("only by: evidence#3"), "{missing}");
        let judged = |question: &str, rewards: Option<Vec<f64>>| {
            let verdict = Verdict {
                rewards,
                rationale: None,
            };
            let store = studio.store();
            store
                .add_verdict(RUN, &testing::id(question), 0, "human", &verdict, 900)
                .unwrap();
        };
        judged("q1", Some(vec![0.5, 1.0]));
        let against = studio.agreement(RUN, "human", "evidence").unwrap();
        assert_eq!((against.a.as_str(), against.b.as_str()), ("human", "evidence#3"));
        let tau = against.agreement.kendall_tau.unwrap();
        assert_eq!((against.agreement.states, tau.value), (1, -1.0));
        // Who skips a state abstains.
        judged("q2", None);
        let against = studio.agreement(RUN, "human", "evidence").unwrap();
        assert_eq!((against.agreement.states, against.agreement.abstained_a), (2, 1));
        let rewards = studio.rewards_by(RUN, "human").unwrap();
        assert_eq!(
            rewards.into_iter().collect::<Vec<_>>(),
            [((testing::id("q1"), 0), vec![0.5, 1.0])]
        );
    }
}
