//! What trainings learn from: stored runs, gold evidence, files.

use std::collections::{BTreeMap, HashSet};
use std::path::Path;

use gym::{Agent, LabelledQuestion, PromptStyle, Seed, State, Step, transition};
use store::EpisodeStatus;
use training::cloze::clozes;
use training::counterfactual::counterfactuals;
use training::expert::{Reading, expert};
use training::lesson::{Lesson, Selection, lessons};
use training::objective::{Example, Objective};
use training::train::TrainingConfig;
use training::trl::from_trl;

use crate::engines::parse;
use crate::network::Network;
use crate::run::settings_of;
use crate::{Result, Studio, StudioError, TrainRequest};

impl Studio {
    pub(crate) fn examples(
        &self,
        request: &TrainRequest,
        network: &Network,
        config: &TrainingConfig,
    ) -> Result<Vec<Example>> {
        let (objective, compares) = (config.objective, config.objective != Objective::Sft);
        if compares && (request.readings.is_some() || request.clozes > 0) {
            return Err(StudioError::Invalid(
                "readings and clozes teach sft only: they have no worse text beside the right one".into(),
            ));
        }
        if request.judge.is_some() && (!compares || request.runs.is_empty()) {
            return Err(StudioError::Invalid(
                "--judge chooses whose rewards of a run dpo and prm learn from".into(),
            ));
        }
        if request.any_outcome && (!compares || request.runs.is_empty()) {
            return Err(StudioError::Invalid(
                "--any-outcome is for dpo and prm from runs: sft learns the actions of episodes that came out well"
                    .into(),
            ));
        }
        let mut selection = Selection::default();
        if request.any_outcome {
            selection.outcome_above = None;
        }
        let mut all = Vec::new();
        for run in &request.runs {
            // An encoder is always shown the compact history, whatever the policy was shown.
            let shown = match network {
                Network::Encoder(_) => {
                    let agent = parse(&settings_of(&self.run_row(run)?)?.agent)?;
                    Some(Agent::new(agent, PromptStyle::Compact))
                }
                Network::Decoder { .. } => None,
            };
            self.each_episode(run, request.judge.as_deref(), |labelled, steps| {
                refuse_test(labelled)?;
                let shown = shown.as_ref().map(|agent| shown_by(agent, labelled, steps));
                let steps = shown.as_deref().unwrap_or(steps);
                all.extend(lessons(labelled, steps, objective, selection));
                Ok(())
            })?;
        }
        for file in &request.files {
            all.extend(lessons_of_file(file, objective)?);
        }
        for set in &request.expert {
            let of_gold = self.lessons_of_gold(request, set)?.into_iter();
            match compares {
                true => all.extend(of_gold.filter(|lesson| !lesson.pairs.is_empty())),
                false => all.extend(of_gold.map(Lesson::first_alone)),
            }
        }
        if all.is_empty() {
            return Err(StudioError::Invalid(
                "there is nothing to learn: no finished episode has a good outcome and, for dpo and prm, a state with \
                 candidates above 0.75 and below 0.5 (of runs by a reward model: by --judge); no file has a state with good and bad steps; and no question of \
                 a set that teaches has a known way"
                    .into(),
            ));
        }
        network.examples(&all, config)
    }

    /// Calls back with every finished episode of a run; with a judge, candidates have that judge's rewards,
    /// or none in states that it has not judged. A reward model's numbers are no shares of 1: without a judge,
    /// candidates that it chose among have no rewards.
    pub(crate) fn each_episode(
        &self,
        run: &str,
        judge: Option<&str>,
        mut each: impl FnMut(&LabelledQuestion, &[gym::Step]) -> Result<()>,
    ) -> Result<()> {
        let rewards = match judge {
            Some(judge) => Some(self.rewards_by(run, judge)?),
            None => settings_of(&self.run_row(run)?)?.reward_model.map(|_| BTreeMap::new()),
        };
        for episode in self.store().episodes(run)? {
            if episode.status != EpisodeStatus::Finished {
                continue;
            }
            let question = &episode.question_id;
            let labelled = self.store().episode_question(run, question)?;
            let mut steps = self.store().steps(run, question)?;
            if let Some(rewards) = &rewards {
                for step in &mut steps {
                    let given = rewards.get(&(question.clone(), step.step_idx));
                    for (idx, candidate) in step.candidates.iter_mut().enumerate() {
                        candidate.reward = given.and_then(|given| given.get(idx).copied());
                    }
                }
            }
            each(&labelled, &steps)?;
        }
        Ok(())
    }

    fn lessons_of_gold(&self, request: &TrainRequest, set: &str) -> Result<Vec<Lesson>> {
        let corpus = match &request.corpus {
            Some(corpus) => corpus.clone(),
            None => self.store().question_set(set)?.corpus.ok_or_else(|| {
                StudioError::Invalid(format!("question set `{set}` names no corpus: say which with --corpus"))
            })?,
        };
        let index = self.index(&corpus)?;
        let questions = self.store().questions(set, request.limit.map(|limit| limit as usize))?;
        let (mut all, mut readings, mut known) = (Vec::new(), Vec::new(), HashSet::new());
        // Agents that read ask their reader the same: what one has been taught by clozes serves all.
        let mut has_clozes = false;
        for name in &request.agents {
            let agent = Agent::new(parse(name)?, PromptStyle::Compact);
            for labelled in &questions {
                refuse_test(labelled)?;
                let (policy, reader) = expert(&agent, labelled, index.as_ref(), request.k as usize)?;
                all.extend(policy);
                let (n, seed) = (request.counterfactuals as usize, Seed(request.seed.into()));
                all.extend(counterfactuals(&agent, labelled, n, seed));
                let mut new = |lesson: &Lesson| known.insert(serde_json::to_string(&lesson.prompt).unwrap_or_default());
                readings.extend(reader.into_iter().filter(|reading| new(&reading.lesson)));
                if !has_clozes {
                    let n = request.clozes as usize;
                    let gaps = clozes(&agent, labelled, index.as_ref(), request.k as usize, n, seed)?;
                    all.extend(gaps.into_iter().filter(new));
                }
            }
            has_clozes |= agent.reads();
        }
        let most = request.readings.map_or(readings.len(), |most| most as usize);
        all.extend(balanced(readings, most));
        Ok(all)
    }
}

/// At most so many: of each topic the same number, or all that it has, taken evenly from the whole list. What is
/// asked often is soon learnt, what is asked rarely needs every lesson that there is.
fn balanced(readings: Vec<Reading>, most: usize) -> Vec<Lesson> {
    let mut topics: BTreeMap<String, Share> = BTreeMap::new();
    for reading in &readings {
        topics.entry(reading.topic.clone()).or_default().of += 1;
    }
    let mut left = most;
    loop {
        let wanting = topics.values_mut().filter(|share| share.kept < share.of);
        let given = wanting.take(left).map(|share| share.kept += 1).count();
        left -= given;
        if given == 0 {
            break;
        }
    }
    let mut keeps = |topic: &str| topics.get_mut(topic).is_some_and(Share::next);
    let kept = readings.into_iter().filter(|reading| keeps(&reading.topic));
    kept.map(|reading| reading.lesson).collect()
}

/// How many of a topic's readings are kept, and how many have been gone through.
#[derive(Default)]
struct Share {
    kept: usize,
    of: usize,
    seen: usize,
}

impl Share {
    /// Whether the next one is kept.
    fn next(&mut self) -> bool {
        self.seen += 1;
        self.seen * self.kept / self.of > (self.seen - 1) * self.kept / self.of
    }
}

/// The steps with the prompts that this agent would have shown.
fn shown_by(agent: &Agent, labelled: &LabelledQuestion, steps: &[Step]) -> Vec<Step> {
    let mut state = State::new(labelled.question.clone());
    let mut steps = steps.to_vec();
    for step in &mut steps {
        state.truncated = step.truncated;
        step.prompt = step.prompt.is_some().then(|| agent.prompt(&state));
        state = transition(&state, step.action(), step.hits.clone(), step.finding.clone());
    }
    steps
}

/// What a test measures must not be learnt.
fn refuse_test(labelled: &LabelledQuestion) -> Result<()> {
    match labelled.split.as_deref() {
        Some("test") => Err(StudioError::Invalid(format!(
            "question `{}` belongs to a test split: it is for measuring, not for training",
            labelled.question.id.0
        ))),
        _ => Ok(()),
    }
}

fn lessons_of_file(path: &Path, objective: Objective) -> Result<Vec<Lesson>> {
    let text = std::fs::read_to_string(path).map_err(StudioError::file("read", path))?;
    from_trl(&text, objective, Selection::default())
        .map_err(|(line, message)| StudioError::Invalid(format!("{}, line {line}: {message}", path.display())))
}

#[cfg(test)]
mod tests {
    use corpus::Split;
    use gym::metrics::{exact_match, normalise};
    use gym::{Agent, AgentKind, PromptStyle, Seed};
    use training::counterfactual::counterfactuals;

    use super::{Lesson, Reading, balanced};

    /// Judged by the words of the question, which the lessons' maker does not go by.
    #[test]
    fn the_worlds_comparisons_come_out_otherwise_with_other_numbers() {
        let agent = Agent::new(AgentKind::SearchO1, PromptStyle::Compact);
        let (mut n, mut changed) = (0, 0);
        for labelled in corpus::world_questions(Split::Train) {
            let (text, gold) = (&labelled.question.text, &labelled.gold);
            let most = ["largest", "larger"].iter().any(|word| text.contains(word));
            let least = ["smallest", "smaller"].iter().any(|word| text.contains(word));
            let lessons = counterfactuals(&agent, &labelled, 2, Seed(0));
            assert_eq!(lessons.len(), if most || least { 2 } else { 0 }, "{text}");
            for lesson in lessons {
                let user = &lesson.prompt.messages[1].content;
                let turns: Vec<&str> = user.split("Search: ").skip(1).collect();
                let sized = |turn: &&str| {
                    let (query, finding) = turn.split_once("\nFound: ")?;
                    let (_, name) = query.trim_end_matches('?').split_once(" of ")?;
                    let digits: String = finding.lines().next()?.chars().filter(char::is_ascii_digit).collect();
                    Some((digits.parse::<u64>().ok()?, normalise(name)))
                };
                let sized: Vec<(u64, String)> = turns
                    .iter()
                    .filter(|turn| turn.starts_with("What is the "))
                    .filter_map(sized)
                    .collect();
                let answer = lesson.completions[0].text.strip_prefix("Answer: ").unwrap();
                if labelled.kind.as_deref() == Some("yes_no") {
                    let yes = (sized[0].0 > sized[1].0) == most;
                    assert_eq!(answer, if yes { "yes" } else { "no" }, "{user}");
                } else {
                    let (_, name) = if most { sized.iter().max() } else { sized.iter().min() }.unwrap();
                    assert_eq!(&normalise(answer), name, "{answer}: {user}");
                }
                n += 1;
                changed += usize::from(exact_match(answer, gold) == 0.0);
            }
        }
        assert!(n > 1_200 && (n / 3..2 * n / 3).contains(&changed), "{changed} of {n}");
    }

    #[test]
    fn rare_topics_are_kept_whole_and_frequent_ones_evenly() {
        let prompt = gym::Prompt { messages: Vec::new() };
        let reading = |idx: usize| {
            let topic = ["director", "director", "director", "father"][idx % 4];
            let lesson = Lesson {
                question: idx.to_string(),
                prompt: prompt.clone(),
                completions: Vec::new(),
                pairs: Vec::new(),
            };
            Reading {
                topic: topic.into(),
                lesson,
            }
        };
        let kept = |most| -> Vec<String> {
            let readings = (0..12).map(reading).collect();
            balanced(readings, most)
                .into_iter()
                .map(|lesson| lesson.question)
                .collect()
        };
        assert_eq!(kept(20).len(), 12);
        // Three of nine directors, all three fathers.
        assert_eq!(kept(6), ["2", "3", "6", "7", "10", "11"]);
        assert_eq!(kept(7), ["2", "3", "5", "7", "8", "10", "11"]);
        assert_eq!(kept(0), Vec::<String>::new());
    }
}
