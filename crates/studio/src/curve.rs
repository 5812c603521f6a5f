//! What more candidates bring: a score of runs against their N.

use serde::{Deserialize, Serialize};
use specta::Type;

use crate::evaluate::Metric;
use crate::results::RESAMPLES;
use crate::view::IntervalView;
use crate::{Result, Studio, StudioError, run};

/// A run's score at its number of candidates a step.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, Type)]
pub struct CurvePoint {
    pub run: String,
    pub name: String,
    pub candidates: u32,
    /// Questions asked; one without an answer scores 0.
    pub n: u32,
    pub score: IntervalView,
}

impl Studio {
    /// A point per run over one question set, by number of candidates. Whether the runs differ in that alone is
    /// for the caller to choose.
    pub fn curve(&self, runs: &[String], metric: Metric) -> Result<Vec<CurvePoint>> {
        let mut points = Vec::new();
        let mut set = None;
        for id in runs {
            let row = self.run_row(id)?;
            if row.question_set.is_none() || *set.get_or_insert(row.question_set.clone()) != row.question_set {
                return Err(StudioError::Invalid(format!(
                    "run `{id}` asks other questions than the first: choose runs over one question set"
                )));
            }
            let asked = self.asked(id, metric == Metric::AnswerSupported)?;
            let score = metric
                .interval(&asked, RESAMPLES)
                .ok_or_else(|| StudioError::Invalid(format!("run `{id}` has no such metric")))?;
            points.push(CurvePoint {
                run: id.clone(),
                candidates: run::settings_of(&row)?.candidates,
                name: row.name,
                n: asked.len() as u32,
                score: score.into(),
            });
        }
        points.sort_by_key(|point| point.candidates);
        Ok(points)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::testing::{self, RUN};

    #[test]
    fn points_are_sorted_by_candidates_and_of_one_question_set() {
        let (_dir, studio) = testing::judged_run();
        let mut other = studio.run_row(RUN).unwrap();
        other.id = "one".into();
        other.config["settings"]["candidates"] = 1.into();
        studio.store().create_run(&other).unwrap();
        studio.store().create_episodes("one", &[testing::id("q1")]).unwrap();
        let points = studio.curve(&[RUN.into(), "one".into()], Metric::Em).unwrap();
        let found: Vec<_> = points.iter().map(|point| (point.candidates, point.n)).collect();
        assert_eq!(found, [(1, 1), (2, 3)]);
        assert_eq!(points[0].score.mean, 0.0, "nothing answered yet");
        assert!((points[1].score.mean - 2.0 / 3.0).abs() < 1e-9);
        assert!(studio.curve(&[RUN.into()], Metric::Accuracy).is_err());

        other.id = "asked".into();
        other.question_set = None;
        studio.store().create_run(&other).unwrap();
        assert!(studio.curve(&[RUN.into(), "asked".into()], Metric::Em).is_err());
    }
}
