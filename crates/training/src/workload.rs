//! The work by which training speed is compared: random tokens, one optimiser step at a time.

use gym::Seed;

use crate::Result;
use crate::adapter::{Adapter, AdapterConfig};
use crate::base::{Base, Part};
use crate::objective::{Batch, Example, Objective};
use crate::optimizer::AdamW;

/// Tokens of a completion.
const COMPLETION: usize = 64;

/// One sequence whose last 64 tokens are learnt; or a preference pair: one prompt and two completions of
/// 64 tokens. Rank 16 on queries, keys and values.
pub struct Workload {
    base: Base,
    adapter: Adapter,
    adam: AdamW,
    pair: bool,
    steps: u64,
}

impl Workload {
    pub fn new(base: Base, pair: bool) -> Result<Workload> {
        let config = AdapterConfig {
            rank: 16,
            alpha: 32.0,
            targets: vec![Part::Query, Part::Key, Part::Value],
            head: false,
        };
        let adapter = Adapter::new(&base.config, config, Seed(0))?;
        let adam = AdamW::new(adapter.values.len(), 0.0);
        Ok(Workload {
            base,
            adapter,
            adam,
            pair,
            steps: 0,
        })
    }

    /// One optimiser step over a sequence of `tokens` tokens (at least 65), completion included.
    ///
    /// Preferences are measured against a reference of zeros: a reference is computed once for all epochs,
    /// so it is not part of a step.
    pub fn step(&mut self, tokens: usize) -> Result<()> {
        self.steps += 1;
        let mut rng = Seed(self.steps).rng();
        let mut random = |n: usize| (0..n).map(|_| rng.below(self.base.config.vocabulary) as u32).collect();
        let example = Example {
            question: String::new(),
            prompt: random(tokens.saturating_sub(COMPLETION).max(1)),
            completions: (0..=usize::from(self.pair)).map(|_| random(COMPLETION)).collect(),
            pairs: if self.pair { vec![(0, 1)] } else { Vec::new() },
        };
        let objective = if self.pair {
            Objective::Dpo { beta: 0.1 }
        } else {
            Objective::Sft
        };
        let examples = [&example];
        let batch = Batch::new(&examples);
        let mut gradient = vec![0.0; self.adapter.values.len()];
        let weight = 1.0 / objective.n(&example) as f32;
        objective.measure(
            &self.base,
            &self.adapter,
            &batch,
            &[0.0; 2],
            None,
            Some((&mut gradient, weight)),
        )?;
        self.adam.update(&mut self.adapter.values, &gradient, 1e-4, self.steps);
        Ok(())
    }
}
