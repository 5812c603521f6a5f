//! The proof that supervision pays: every rung from the untrained model to a trained policy that a
//! trained reward model guides, on questions that taught nothing.
//!
//! Each stage is one `rag-gym` command with a name of its own in the ladder's home, so a ladder that was
//! stopped goes on where it was: finished stages are found there, unfinished ones are resumed.

use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::{Context, Result, bail};
use serde_json::Value;

use crate::ladder_table::{self, Row};
use crate::step::{self, cargo, root, step};
use crate::{bench, model};

/// How much is done. The full ladder takes hours, the quick one shows within minutes that every stage works.
#[derive(Clone, Copy)]
struct Plan {
    home: &'static str,
    /// Of the program that does the work: what tests have built is slower, but there already.
    profile: &'static str,
    /// Whole ladders, each with its own trainings and samples.
    seeds: u32,
    agents: &'static [&'static str],
    /// Questions of each training set: for the first lessons, and for the judged runs.
    expert: u32,
    /// Of each set's first lessons, those for the reader: they are longest.
    readings: u32,
    /// Of each of these questions that compares quantities, so many lessons with drawn ones.
    counterfactuals: u32,
    /// Of each of these questions, so many lessons that its gold passages teach the reader by themselves.
    clozes: u32,
    collect: u32,
    /// Candidates of a state in the judged runs: a trained policy mostly proposes the same, and states whose candidates
    /// are all alike teach nothing.
    proposals: u32,
    /// Questions of a row, and candidates of a state in it.
    report: u32,
    candidates: u32,
    /// What the first lessons are given to, and how fast it learns them.
    base: &'static str,
    lr: &'static str,
    rank: u32,
    epochs: u32,
}

const FULL: Plan = Plan {
    home: "target/ladder",
    profile: "release",
    seeds: 3,
    agents: &["react", "search-o1", "research"],
    expert: 400,
    readings: 450,
    counterfactuals: 4,
    clozes: 2,
    collect: 300,
    proposals: 10,
    report: 150,
    candidates: 5,
    base: "smollm2-135m",
    lr: "8e-4",
    rank: 16,
    epochs: 1,
};

const QUICK: Plan = Plan {
    home: "target/ladder-quick",
    profile: "debug",
    seeds: 1,
    agents: &["search-o1"],
    expert: 8,
    readings: 16,
    counterfactuals: 2,
    clozes: 1,
    collect: 24,
    proposals: 6,
    report: 4,
    candidates: 3,
    // So few lessons teach an untrained model nothing, and then no episode ends well enough to teach further.
    base: "searcher",
    lr: "1e-5",
    rank: 8,
    epochs: 1,
};

/// A corpus with questions to learn from and others to report on.
struct Set {
    name: String,
    corpus: String,
    train: String,
    report: String,
}

/// One row of a table: who proposes, and who chooses among its proposals.
pub struct Rung {
    /// Part of its runs' names.
    pub id: &'static str,
    pub name: &'static str,
    policy: &'static str,
    choice: Choice,
}

#[derive(Clone, Copy, PartialEq, Eq)]
enum Choice {
    Greedy,
    Random,
    /// By a reward model of the ladder, and the way in which it is heard.
    Reward(&'static str, &'static str),
    /// Sees the gold evidence of the question that is asked: an upper bound, not a method.
    Evidence,
}

pub const RUNGS: [Rung; 12] = [
    rung("zero-shot", "zero-shot", "base", Choice::Greedy),
    rung("random", "random of N", "base", Choice::Random),
    rung("prm", "PRM", "base", Choice::Reward("prm", "reward")),
    rung("sft", "SFT", "sft", Choice::Greedy),
    rung("sft-random", "SFT, random of N", "sft", Choice::Random),
    rung("sft-prm", "SFT + PRM", "sft", Choice::Reward("prm", "reward")),
    rung(
        "sft-prm-weighted",
        "SFT + PRM, weighted",
        "sft",
        Choice::Reward("prm", "weighted"),
    ),
    rung(
        "sft-prm-prior",
        "SFT + PRM, prior",
        "sft",
        Choice::Reward("prm", "prior"),
    ),
    rung(
        "sft-encoder",
        "SFT + PRM of the encoder",
        "sft",
        Choice::Reward("encoder", "reward"),
    ),
    rung("dpo", "DPO", "dpo", Choice::Greedy),
    rung("dpo-prm", "DPO + PRM", "dpo", Choice::Reward("prm", "reward")),
    rung("sft-evidence", "SFT + evidence (upper bound)", "sft", Choice::Evidence),
];

const fn rung(id: &'static str, name: &'static str, policy: &'static str, choice: Choice) -> Rung {
    Rung {
        id,
        name,
        policy,
        choice,
    }
}

impl Rung {
    /// Whether a reward model chooses among SFT's proposals.
    pub fn guides_sft(&self) -> bool {
        self.policy == "sft" && matches!(self.choice, Choice::Reward(..))
    }
}

const USAGE: &str =
    "usage: cargo xtask ladder [--quick] [--policy NAME] [--expert N] [--seeds N] [--agents A,B] [--data FOLDER [--sets A,B]]

  --quick         from nothing, within minutes: shows that every stage works
  --policy NAME   a trained one in place of SFT's, as the searcher that comes with the program: an hour less
  --expert N      so many questions of each training set taught the policy, or will; judged runs ask those after them
                  [default: 400]
  --data FOLDER   beside the built-in world: sets whose NAME_corpus.jsonl, NAME_train.jsonl and NAME_dev.jsonl lie there
  --sets A,B      their names [default: 2wiki,hotpotqa,musique]";

struct Ladder {
    plan: Plan,
    agents: Vec<String>,
    sets: Vec<Set>,
    /// Stands in for what the first lessons would make.
    policy: Option<String>,
    home: PathBuf,
    publish: bool,
}

/// A part of a question set, and how its candidates are sampled.
struct Questions {
    set: String,
    skip: u32,
    limit: u32,
    candidates: u32,
    temperature: &'static str,
}

pub fn run(arguments: &[String]) -> Result<()> {
    let mut plan = FULL;
    let (mut data, mut names) = (None, "2wiki,hotpotqa,musique".to_owned());
    let (mut policy, mut expert, mut seeds, mut agents) = (None, None, None, None);
    let mut rest = arguments.iter();
    while let Some(argument) = rest.next() {
        let mut value = || {
            rest.next()
                .cloned()
                .with_context(|| format!("{argument} needs a value\n\n{USAGE}"))
        };
        match argument.as_str() {
            "--quick" => plan = QUICK,
            "--policy" => policy = Some(value()?),
            "--expert" => expert = Some(value()?.parse().context("--expert is a number")?),
            "--seeds" => seeds = Some(value()?.parse().context("--seeds is a number")?),
            "--agents" => agents = Some(value()?),
            "--data" => data = Some(PathBuf::from(value()?)),
            "--sets" => names = value()?,
            other => bail!("no option is called {other}\n\n{USAGE}"),
        }
    }
    plan.seeds = seeds.unwrap_or(plan.seeds);
    plan.expert = expert.unwrap_or(plan.expert);
    let agents = agents.map_or_else(
        || plan.agents.iter().map(|agent| (*agent).to_owned()).collect(),
        |list| list.split(',').map(str::to_owned).collect(),
    );
    step("the command line", || {
        // Of the small ladder exactly what `cargo test` builds, with the features that it chooses.
        step::run(&mut match plan.profile {
            "release" => cargo(["build", "--release", "--package", "cli"]),
            _ => cargo(["test", "--workspace", "--no-run"]),
        })
    })?;
    step("the built-in models", model::ensure)?;
    let mut ladder = Ladder {
        home: root().join(plan.home),
        // Only the full ladder is a result.
        publish: plan.home == FULL.home,
        plan,
        agents,
        policy,
        sets: Vec::new(),
    };
    if !ladder.publish && ladder.home.exists() {
        // What an earlier version left there would stand for this one's work.
        std::fs::remove_dir_all(&ladder.home).with_context(|| format!("cannot empty {}", ladder.home.display()))?;
    }
    step("sets", || ladder.bring_sets(data.as_deref(), &names))?;
    let mut rows = Vec::new();
    (0..ladder.plan.seeds).try_for_each(|seed| ladder.train_and_report(seed, &mut rows))
}

impl Ladder {
    fn bring_sets(&mut self, data: Option<&Path>, names: &str) -> Result<()> {
        self.json(&["setup"])?;
        self.sets.push(Set {
            name: "factbook".into(),
            corpus: "factbook".into(),
            train: "factbook-train".into(),
            report: "factbook-test".into(),
        });
        let Some(data) = data else { return Ok(()) };
        for name in names.split(',') {
            let set = Set {
                name: name.to_owned(),
                corpus: name.to_owned(),
                train: format!("{name}-train"),
                report: format!("{name}-dev"),
            };
            if !self.has("corpus", name)? {
                let file = data.join(format!("{name}_corpus.jsonl"));
                self.json(&["corpus", "import", &file.to_string_lossy(), "--name", name])?;
            }
            for part in ["train", "dev"] {
                let own = format!("{name}-{part}");
                if !self.has("questions", &own)? {
                    let file = data.join(format!("{name}_{part}.jsonl"));
                    let file = file.to_string_lossy();
                    self.json(&["questions", "import", &file, "--name", &own, "--corpus", name])?;
                }
            }
            self.sets.push(set);
        }
        Ok(())
    }

    /// One whole ladder: lessons from gold evidence, judged runs of what learnt them, preferences and
    /// rewards from these, then every row.
    fn train_and_report(&self, seed: u32, rows: &mut Vec<Row>) -> Result<()> {
        let number = seed.to_string();
        let sets: Vec<&str> = self.sets.iter().map(|set| set.train.as_str()).collect();
        let (expert, rank, epochs) = (
            self.plan.expert.to_string(),
            self.plan.rank.to_string(),
            self.plan.epochs.to_string(),
        );
        let [readings, counterfactuals, clozes] =
            [self.plan.readings, self.plan.counterfactuals, self.plan.clozes].map(|number| number.to_string());
        let alpha = (2 * self.plan.rank).to_string();
        let shape = ["--rank", &rank, "--alpha", &alpha, "--targets", "all"];
        let common = ["--seed", &number, "--max-length", "2048"];
        let first = [
            ["--expert", &sets.join(",")],
            ["--agents", &self.agents.join(",")],
            ["--limit", &expert],
            ["--readings", &readings],
            ["--counterfactuals", &counterfactuals],
            ["--clozes", &clozes],
            ["--epochs", &epochs],
            ["--lr", self.plan.lr],
            ["--base", self.plan.base],
        ];
        let sft = self.model("sft", seed);
        if self.policy.is_none() {
            self.ensure_trained("sft", &sft, &[&first.concat()[..], &shape, &common].concat())?;
        }
        let mut judged = Vec::new();
        for set in &self.sets {
            for agent in &self.agents {
                let rung = rung("collect", "judged runs", "sft", Choice::Evidence);
                let questions = self.unseen(set)?;
                judged.push(self.ensure_run(set, &questions, agent, &rung, seed)?);
            }
        }
        let judged = judged.join(",");
        // Judged states are few, and a head has to be learnt from nothing.
        for (part, method, base, epochs) in [
            ("dpo", "dpo", sft.as_str(), "1"),
            ("prm", "prm", &sft, "3"),
            ("encoder", "prm", model::encoder(), "3"),
        ] {
            let from = ["--from", &judged, "--base", base, "--epochs", epochs];
            self.ensure_trained(method, &self.model(part, seed), &[&from[..], &common].concat())?;
        }
        for set in &self.sets {
            let report = Questions {
                set: set.report.clone(),
                skip: 0,
                limit: self.plan.report,
                candidates: self.plan.candidates,
                temperature: "1",
            };
            for agent in &self.agents {
                let mut zero_shot: Option<String> = None;
                for (idx, rung) in RUNGS.iter().enumerate() {
                    let run = self.ensure_run(set, &report, agent, rung, seed)?;
                    let mut words = vec!["evaluate", &run];
                    if let Some(zero_shot) = &zero_shot {
                        words.extend(["--against", zero_shot]);
                    }
                    let evaluation = self.json(&words)?;
                    let agreement = match rung.choice {
                        Choice::Reward(part, _) => self.agreement(&run, &self.model(part, seed))?,
                        _ => Value::Null,
                    };
                    zero_shot.get_or_insert(run);
                    rows.push(Row {
                        set: set.name.clone(),
                        agent: agent.clone(),
                        rung: idx,
                        seed,
                        evaluation,
                        agreement,
                    });
                }
                // After each table, so that a ladder that is stopped has said what it knows.
                ladder_table::write(&self.home, rows, self.publish)?;
            }
        }
        Ok(())
    }

    /// How a run's reward model agrees with the gold evidence, on states that taught it nothing.
    fn agreement(&self, run: &str, reward_model: &str) -> Result<Value> {
        self.json(&["annotate", run, "--judge", "evidence"])?;
        self.json(&["agreement", run, "--judges", &format!("evidence,{reward_model}")])
    }

    /// What plays a rung's part in the ladder of a seed.
    fn model(&self, part: &str, seed: u32) -> String {
        match (part, &self.policy) {
            ("base", _) => "smollm2-135m".to_owned(),
            ("sft", Some(policy)) => policy.clone(),
            _ => format!("{part}-s{seed}"),
        }
    }

    /// Training questions that the first lessons left out. The others' answers are known by heart, to the policy and to
    /// the reward model that grows from it: 400 of them more taught it nothing about new ones (docs/results.md).
    fn unseen(&self, set: &Set) -> Result<Questions> {
        let found = self.listed("questions", &set.train)?;
        let all = found.and_then(|found| found["questions"].as_u64()).unwrap_or_default() as u32;
        let left = all.saturating_sub(self.plan.expert);
        // A small set has none to spare: then those that it has been taught from have to serve.
        let skip = if left == 0 { 0 } else { self.plan.expert };
        Ok(Questions {
            set: set.train.clone(),
            skip,
            limit: self.plan.collect,
            candidates: self.plan.proposals,
            // What a trained policy rarely says is worth learning from too.
            temperature: "1.3",
        })
    }

    fn ensure_trained(&self, method: &str, name: &str, options: &[&str]) -> Result<()> {
        if self.has("models", name)? {
            return Ok(());
        }
        step(&format!("train {name}"), || {
            let mut command = self.rag_gym();
            command.args(["train", method, "--out", name]).args(options);
            step::run(&mut command)
        })
    }

    /// Makes a run, or what is left of it; returns its id.
    fn ensure_run(&self, set: &Set, questions: &Questions, agent: &str, rung: &Rung, seed: u32) -> Result<String> {
        let name = &format!("{}-{agent}-{}-s{seed}", set.name, rung.id);
        let mut command = self.rag_gym();
        match self.find_run(name)? {
            Some((id, true)) => return Ok(id),
            Some((id, false)) => drop(command.args(["resume", &id])),
            None => {
                let model = self.model(rung.policy, seed);
                command.args(["run", "--name", name, "--questions", &questions.set]);
                command.args(["--skip", &questions.skip.to_string()]);
                command.args(["--corpus", &set.corpus, "--agent", agent, "--model", &model]);
                command.args(["--limit", &questions.limit.to_string(), "--seed", &seed.to_string()]);
                if rung.policy == "dpo" {
                    // Preferences are over actions: the reader stays as SFT left it, and so do its answers.
                    command.args(["--reader", &self.model("sft", seed)]);
                }
                // Superlatives of the built-in world look up as many as four neighbours.
                command.args(["--max-steps", "7"]);
                if rung.choice != Choice::Greedy {
                    command.args(["--candidates", &questions.candidates.to_string()]);
                    command.args(["--temperature", questions.temperature]);
                }
                match rung.choice {
                    Choice::Greedy => {}
                    Choice::Random => drop(command.args(["--select", "random"])),
                    Choice::Reward(model, select) => {
                        command.args(["--reward-model", &self.model(model, seed), "--select", select]);
                    }
                    Choice::Evidence => drop(command.args(["--judge", "evidence"])),
                }
            }
        }
        step(&format!("run {name}"), || step::run(command.args(["--workers", "8"])))?;
        match self.find_run(name)? {
            Some((id, true)) => Ok(id),
            _ => bail!("run {name} is not finished"),
        }
    }

    /// A run's id, and whether it is finished.
    fn find_run(&self, name: &str) -> Result<Option<(String, bool)>> {
        Ok(self.listed("runs", name)?.map(|run| {
            (
                run["run"].as_str().unwrap_or_default().to_owned(),
                run["status"] == "finished",
            )
        }))
    }

    /// Whether a list names this.
    fn has(&self, list: &str, name: &str) -> Result<bool> {
        Ok(self.listed(list, name)?.is_some())
    }

    /// The first item of a list with this name.
    fn listed(&self, list: &str, name: &str) -> Result<Option<Value>> {
        let Value::Array(items) = self.json(&[list, "list"])? else {
            return Ok(None);
        };
        Ok(items.into_iter().find(|item| item["name"] == name))
    }

    fn rag_gym(&self) -> Command {
        let mut command = bench::program(self.plan.profile);
        command
            .arg("--home")
            .arg(&self.home)
            .env("RAG_GYM_BUNDLE", model::folder());
        command
    }

    fn json(&self, words: &[&str]) -> Result<Value> {
        bench::json(self.rag_gym().arg("--json").args(words))
    }
}
