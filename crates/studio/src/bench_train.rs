//! How fast this machine trains, on the work by which others are measured.

use std::path::Path;
use std::time::Instant;

use serde::Serialize;
use training::base::Base;
use training::workload::Workload;

use crate::train::peak_memory_bytes;
use crate::{Cancel, Result, Studio};

#[derive(Clone, Debug, Serialize)]
pub struct TrainBench {
    /// SFT: one sequence a step.
    pub tokens_per_second: f64,
    /// Preferences: one prompt and two completions of 64 tokens a step.
    pub pairs_per_second: f64,
    /// Prompt and one completion.
    pub sequence_tokens: usize,
    pub peak_memory_bytes: Option<u64>,
}

impl Studio {
    /// Median over `steps` optimiser steps of random tokens, after one that is not counted.
    pub fn bench_train(&self, model: &str, tokens: usize, steps: usize, cancel: &Cancel) -> Result<TrainBench> {
        // Of an adapter its base: the workload brings an adapter of its own.
        let file = match self.root_of(model) {
            Ok((root, _)) => root.path,
            Err(_) => self.model_file(model)?,
        };
        let seconds = |pair: bool| -> Result<f64> {
            let mut workload = Workload::new(Base::open(Path::new(&file))?, pair)?;
            let mut seconds = Vec::with_capacity(steps);
            for step in 0..=steps.max(1) {
                cancel.check()?;
                let started = Instant::now();
                workload.step(tokens)?;
                if step > 0 {
                    seconds.push(started.elapsed().as_secs_f64());
                }
            }
            seconds.sort_by(f64::total_cmp);
            Ok(seconds[seconds.len() / 2])
        };
        Ok(TrainBench {
            tokens_per_second: tokens as f64 / seconds(false)?,
            pairs_per_second: 1.0 / seconds(true)?,
            sequence_tokens: tokens,
            peak_memory_bytes: peak_memory_bytes(),
        })
    }
}
