//! Runs side by side: each against the first, paired by question.

use std::collections::BTreeMap;

use gym::QuestionId;
use gym::statistics::PairedTest;
use serde::{Deserialize, Serialize};
use specta::Type;

use crate::view::RunView;
use crate::{Result, Studio, StudioError};

/// A mean difference to the first run over the questions that both asked.
#[derive(Clone, Copy, Debug, PartialEq, Serialize, Deserialize, Type)]
pub struct DeltaView {
    pub mean: f64,
    pub low: f64,
    pub high: f64,
    /// Two-sided, of a paired permutation test.
    pub p: f64,
}

/// A run beside the first one.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, Type)]
pub struct ComparedRun {
    pub run: RunView,
    /// Questions that this run and the first both asked; 0 for the first itself.
    pub shared: u32,
    pub em: Option<DeltaView>,
    pub f1: Option<DeltaView>,
}

/// What one run made of one question.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, Type)]
pub struct CellView {
    pub answer: Option<String>,
    pub em: Option<f64>,
    pub f1: Option<f64>,
    pub searches: u32,
}

#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, Type)]
pub struct ComparedQuestion {
    pub question_id: String,
    pub question: String,
    pub gold_answer: String,
    /// One per run, in the runs' order; `None` where a run has not answered it.
    pub cells: Vec<Option<CellView>>,
}

#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, Type)]
pub struct Comparison {
    pub runs: Vec<ComparedRun>,
    /// Every question that any of the runs asked, in the first run's order.
    pub questions: Vec<ComparedQuestion>,
}

impl Studio {
    /// Compares runs over the same question set; the first is the baseline.
    pub fn compare(&self, runs: &[String]) -> Result<Comparison> {
        let mut compared: Vec<ComparedRun> = Vec::new();
        let mut questions: Vec<ComparedQuestion> = Vec::new();
        let mut places: BTreeMap<QuestionId, usize> = BTreeMap::new();
        for (idx, id) in runs.iter().enumerate() {
            let run = self.run_view(id)?;
            let set = compared.first().map(|first| &first.run.question_set);
            if set.is_some_and(|set| *set != run.question_set) || run.question_set.is_none() {
                return Err(StudioError::Invalid(format!(
                    "run `{}` asks other questions than the first: choose runs over one question set",
                    run.name
                )));
            }
            let against = match runs.first() {
                Some(first) if idx > 0 => self.evaluate(id, Some(first))?.against,
                _ => None,
            };
            compared.push(ComparedRun {
                run,
                shared: against.as_ref().map_or(0, |against| against.n as u32),
                em: against.as_ref().and_then(|against| against.delta.em).map(delta),
                f1: against.as_ref().and_then(|against| against.delta.f1).map(delta),
            });
            for row in self.episodes(id)? {
                let place = *places.entry(QuestionId(row.question_id.clone())).or_insert_with(|| {
                    questions.push(ComparedQuestion {
                        question_id: row.question_id,
                        question: row.question,
                        gold_answer: row.gold_answer,
                        cells: vec![None; runs.len()],
                    });
                    questions.len() - 1
                });
                questions[place].cells[idx] = (row.status == "finished").then_some(CellView {
                    answer: row.answer,
                    em: row.em,
                    f1: row.f1,
                    searches: row.searches,
                });
            }
        }
        Ok(Comparison {
            runs: compared,
            questions,
        })
    }
}

fn delta(test: PairedTest) -> DeltaView {
    DeltaView {
        mean: test.mean,
        low: test.low,
        high: test.high,
        p: test.p,
    }
}
