//! Who ranks the candidates of a state: judges, which may see the gold answer, and reward models, which
//! may not.

use serde::{Deserialize, Serialize};

use crate::agent::{UnknownName, by_name};
use crate::{Cancel, Candidate, EngineError, Gold, LabelledQuestion, QuestionId, Seed, State, Step};

/// A visited state with its candidates.
#[derive(Clone, Copy)]
pub struct Visit<'a> {
    pub labelled: &'a LabelledQuestion,
    /// The steps that led to `state`.
    pub steps: &'a [Step],
    pub state: &'a State,
    pub candidates: &'a [Candidate],
    /// No search may follow: the agent is out of steps, or has the one call that answers (Direct, CoT, RAG).
    pub must_answer: bool,
    /// Every draw of a judge is derived from it; see [`judging_seed`].
    pub seed: Seed,
    pub cancel: &'a Cancel,
}

impl Visit<'_> {
    pub fn gold(&self) -> &Gold {
        &self.labelled.gold
    }
}

/// What a judge says of one state's candidates.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Verdict {
    /// One per candidate, higher is better; `None` is an abstention, never a zero.
    pub rewards: Option<Vec<f64>>,
    pub rationale: Option<String>,
}

/// A verdict that chose nothing, kept beside the one that did.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Opinion {
    pub judge_id: String,
    pub verdict: Verdict,
}

pub trait Judge: Send + Sync {
    /// Name and version, as stored with every verdict: `name#version`.
    fn id(&self) -> &str;

    fn judge(&self, visit: &Visit<'_>) -> Result<Verdict, EngineError>;
}

/// Scores candidates by what the agent itself may see, so that it can guide any run.
pub trait RewardModel: Send + Sync {
    /// Name and version, as stored with every verdict: `name#version`.
    fn id(&self) -> &str;

    /// One finite number per candidate, in order; higher is better, on any scale.
    fn score(&self, state: &State, candidates: &[Candidate]) -> Result<Vec<f64>, EngineError>;
}

/// How a step's action is taken from its candidates. A malformed one is taken only where there is no other.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Selection {
    /// The first sample: greedy decoding, or plain sampling.
    First,
    /// The action that most samples spell.
    Majority,
    /// Any sample, all equally likely: what several candidates are worth without a reward.
    Random,
    /// The highest reward; by majority where nothing gave one.
    #[default]
    Reward,
    /// The most samples, each counting e^reward (best-of-N weighted): what many samples agree on needs more of a
    /// reward to be passed over. With a reward that is a log-odds, as those of trained reward models are, this is
    /// the action most likely to be the better one if the policy's own choice counts as evidence too.
    Weighted,
    /// The highest sum of the reward and [`PRIOR`] times the action's log-probability: what the policy holds unlikely
    /// needs more of a reward. Where the model tells no log-probabilities, the highest reward.
    Prior,
}

/// What a nat of the policy counts beside a reward: of the weights .05, .1, .2, .3 and .5 the one under which ReAct's
/// choices on the built-in world were best, on training questions that had taught neither policy nor reward model.
pub const PRIOR: f64 = 0.3;

impl Selection {
    pub const ALL: [Selection; 6] = [
        Selection::First,
        Selection::Majority,
        Selection::Random,
        Selection::Reward,
        Selection::Weighted,
        Selection::Prior,
    ];

    pub fn name(self) -> &'static str {
        match self {
            Selection::First => "first",
            Selection::Majority => "majority",
            Selection::Random => "random",
            Selection::Reward => "reward",
            Selection::Weighted => "weighted",
            Selection::Prior => "prior",
        }
    }
}

impl std::str::FromStr for Selection {
    type Err = UnknownName;

    fn from_str(name: &str) -> Result<Selection, UnknownName> {
        by_name("way to select", name, &Selection::ALL, Selection::name)
    }
}

/// The seed of a run's step: its candidates, its choice and its judges derive theirs from it.
pub fn step_seed(run: Seed, question: &QuestionId, step_idx: u32) -> Seed {
    run.derive_str(&question.0).derive(step_idx.into())
}

/// The seed of a judgement: the same while the step is played and when a stored run is judged later.
pub fn judging_seed(step: Seed) -> Seed {
    step.derive_str("judge")
}

/// Rewards of a ranking over `n` candidates, best first: 1 / (1 + i) for rank i from 0; 0 for those that it
/// leaves out, which are the malformed ones.
pub fn rank_rewards(ranking: &[usize], n: usize) -> Vec<f64> {
    let mut rewards = vec![0.0; n];
    for (rank, &candidate) in ranking.iter().enumerate() {
        rewards[candidate] = 1.0 / (1 + rank) as f64;
    }
    rewards
}
