//! A run as a file, for other programs.

use std::fs::{self, File};
use std::io::{BufWriter, Write};
use std::path::{Path, PathBuf};

use serde::Serialize;
use training::lesson::{Selection, lessons};
use training::objective::Objective;
use training::trl::{to_trl, to_trl_stepwise};

use crate::{Result, Studio, StudioError, inspect, table};

/// How a run is written.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Format {
    /// Finished episodes with their steps, one JSON value a line.
    Jsonl,
    /// A row for every question asked.
    Csv,
    Parquet,
    /// What the run teaches, as TRL's JSON lines: `messages`; `prompt`, `chosen`, `rejected`; `prompt`,
    /// `completions`, `labels`.
    TrlSft,
    TrlPreference,
    TrlStepwise,
    /// An Inspect log: one sample a question, events for steps and candidates.
    Inspect,
}

impl Format {
    const ALL: [(&str, Format); 7] = [
        ("jsonl", Format::Jsonl),
        ("csv", Format::Csv),
        ("parquet", Format::Parquet),
        ("trl-sft", Format::TrlSft),
        ("trl-preference", Format::TrlPreference),
        ("trl-stepwise", Format::TrlStepwise),
        ("inspect", Format::Inspect),
    ];

    /// What a file of this format holds one of after the other.
    pub fn records(self) -> &'static str {
        match self {
            Format::Jsonl | Format::Inspect => "episodes",
            Format::Csv | Format::Parquet => "rows",
            Format::TrlSft | Format::TrlPreference | Format::TrlStepwise => "lines",
        }
    }
}

impl std::str::FromStr for Format {
    type Err = StudioError;

    fn from_str(name: &str) -> Result<Format> {
        let known = Format::ALL.into_iter().find(|(known, _)| *known == name);
        known.map(|(_, format)| format).ok_or_else(|| {
            let names = Format::ALL.map(|(name, _)| name).join(", ");
            StudioError::Invalid(format!("there is no format `{name}`: choose {names}"))
        })
    }
}

/// What was written where.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct Exported {
    pub run: String,
    pub path: PathBuf,
    pub records: u32,
}

impl Studio {
    /// Writes a run to a file; into a folder, under a name made from the run's id. `judge` chooses whose
    /// rewards trl-preference and trl-stepwise go by: `None` for the run's own.
    pub fn export(&self, run: &str, to: &Path, format: Format, judge: Option<&str>) -> Result<Exported> {
        let row = self.run_row(run)?;
        if judge.is_some() && !matches!(format, Format::TrlPreference | Format::TrlStepwise) {
            return Err(StudioError::Invalid(
                "--judge chooses whose rewards trl-preference and trl-stepwise go by".into(),
            ));
        }
        let path = match to.is_dir() {
            true => to.join(file_name(&row, format)),
            false => to.to_path_buf(),
        };
        let records = write_whole(&path, |out| match format {
            Format::Jsonl => self.write_jsonl(run, out),
            Format::Csv => table::write_csv(&self.table(run)?, out),
            Format::Parquet => table::write_parquet(&self.table(run)?, out),
            Format::Inspect => self.write_inspect(&row, out),
            Format::TrlSft | Format::TrlPreference | Format::TrlStepwise => self.write_trl(run, format, judge, out),
        })?;
        Ok(Exported {
            run: run.into(),
            path,
            records,
        })
    }

    fn write_jsonl(&self, run: &str, out: &mut dyn Write) -> Result<u32> {
        let mut written = 0;
        for row in self.episodes(run)? {
            if row.status == "finished" {
                write_line(out, &self.episode(run, &row.question_id)?)?;
                written += 1;
            }
        }
        Ok(written)
    }

    fn write_trl(&self, run: &str, format: Format, judge: Option<&str>, out: &mut dyn Write) -> Result<u32> {
        let selection = Selection::default();
        let mut written = 0;
        self.each_episode(run, judge, |labelled, steps| {
            let taught = |method| lessons(labelled, steps, method, selection);
            let lines = match format {
                Format::TrlSft => taught(Objective::Sft).iter().flat_map(to_trl).collect(),
                Format::TrlStepwise => {
                    let mut said = steps.iter().filter(|step| step.prompt.is_some()).peekable();
                    // A step without a reward has no label; one left out would break the chain.
                    let whole = said.peek().is_some() && said.all(|step| step.candidates[step.chosen].reward.is_some());
                    match whole {
                        true => vec![to_trl_stepwise(labelled, steps, selection)],
                        false => Vec::new(),
                    }
                }
                _ => taught(Objective::Dpo { beta: 0.1 }).iter().flat_map(to_trl).collect(),
            };
            written += lines.len() as u32;
            lines.iter().try_for_each(|line| write_line(out, line))
        })?;
        if written == 0 {
            return Err(StudioError::Invalid(format!(
                "run `{run}` teaches nothing in this form: trl-sft needs finished episodes with a good outcome, \
                 trl-preference also judged candidates, trl-stepwise rewards for every step; `rag-gym annotate` judges"
            )));
        }
        Ok(written)
    }
}

/// The name in a folder. Inspect lists a log by its time stamp, and reads its task between underscores.
fn file_name(row: &store::Run, format: Format) -> String {
    match format {
        Format::Inspect => {
            let time = row.created_at.trim_end_matches('Z').replace(':', "-");
            format!("{time}+00-00_{}_{}.json", inspect::task(row), row.id)
        }
        Format::Csv => format!("{}.csv", row.id),
        Format::Parquet => format!("{}.parquet", row.id),
        _ => format!("{}.jsonl", row.id),
    }
}

/// Writes a file beside its place and moves it there whole; what fails leaves nothing.
pub(crate) fn write_whole<T>(path: &Path, write: impl FnOnce(&mut BufWriter<File>) -> Result<T>) -> Result<T> {
    let failed = |source| StudioError::File {
        action: "write",
        path: path.into(),
        source,
    };
    let mut name = path.file_name().unwrap_or_default().to_owned();
    name.push(format!(".{}.part", std::process::id()));
    let part = path.with_file_name(name);
    let written = File::create(&part).map_err(failed).and_then(|file| {
        let mut out = BufWriter::new(file);
        let value = write(&mut out)?;
        out.flush().and_then(|()| out.get_ref().sync_all()).map_err(failed)?;
        drop(out);
        fs::rename(&part, path).map_err(failed)?;
        Ok(value)
    });
    if written.is_err() {
        let _ = fs::remove_file(&part);
    }
    written
}

/// The same for a file whose content is there already.
pub(crate) fn write_bytes(path: &Path, content: &[u8]) -> Result<()> {
    write_whole(path, |out| {
        out.write_all(content).map_err(StudioError::file("write", path))
    })
}

pub(crate) fn write_line(out: &mut dyn Write, value: &impl Serialize) -> Result<()> {
    let line = serde_json::to_string(value).expect("exported values are plain data");
    writeln!(out, "{line}").map_err(unwritten)
}

/// What is written has no name here; whoever reads the message knows what was asked for.
pub(crate) fn unwritten(source: std::io::Error) -> StudioError {
    StudioError::File {
        action: "write",
        path: "the export".into(),
        source,
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::testing::{self, RUN};
    use serde_json::{Value, json};

    #[test]
    fn a_failed_export_leaves_the_old_file_and_nothing_else() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("run.csv");
        write_whole(&path, |out| out.write_all(b"old").map_err(unwritten)).unwrap();
        let failed = write_whole(&path, |out| {
            out.write_all(b"half").map_err(unwritten)?;
            Err::<(), _>(StudioError::Cancelled)
        });
        assert!(matches!(failed, Err(StudioError::Cancelled)));
        assert_eq!(fs::read(&path).unwrap(), b"old");
        assert_eq!(fs::read_dir(dir.path()).unwrap().count(), 1);
    }

    fn lines(path: &Path) -> Vec<Value> {
        let text = fs::read_to_string(path).unwrap();
        text.lines().map(|line| serde_json::from_str(line).unwrap()).collect()
    }

    /// A reward model's numbers are no shares of 1.
    #[test]
    fn what_a_reward_model_chose_is_imitated_and_compared_by_a_judge_only() {
        let (dir, studio) = testing::judged_run();
        let mut row = studio.run_row(RUN).unwrap();
        row.id = "guided".into();
        row.config["settings"]["reward_model"] = "prm".into();
        studio.store().create_run(&row).unwrap();
        studio.store().create_episodes("guided", &[testing::id("q1")]).unwrap();
        let action = |answer: &str| gym::Action::Finish { answer: answer.into() };
        let step = testing::step(
            0,
            vec![
                testing::candidate("Answer: Ada", action("Ada"), -0.4),
                testing::candidate("Answer: Bob", action("Bob"), 1.9),
            ],
        );
        let steps = [step];
        studio
            .store()
            .append_step("guided", &testing::id("q1"), &steps[0], 1)
            .unwrap();
        let labelled = studio.store().episode_question("guided", &testing::id("q1")).unwrap();
        let episode = crate::results::finished_episode("guided", &labelled, &steps, 1);
        studio.store().finish_episode(&episode).unwrap();
        let to = dir.path().join("out.jsonl");
        assert_eq!(studio.export("guided", &to, Format::TrlSft, None).unwrap().records, 1);
        assert_eq!(lines(&to)[0]["messages"][1]["content"], "Answer: Ada");
        assert!(studio.export("guided", &to, Format::TrlPreference, None).is_err());
    }

    #[test]
    fn lessons_go_by_the_runs_own_rewards_or_by_another_judges() {
        let (dir, studio) = testing::judged_run();
        let to = dir.path().join("out.jsonl");
        let export = |format, judge| studio.export(RUN, &to, format, judge);
        assert_eq!(export(Format::TrlSft, None).unwrap().records, 4);
        let last = lines(&to)[1]["messages"][1].clone();
        assert_eq!(last, json!({"role": "assistant", "content": "Answer: Ada"}));

        assert_eq!(export(Format::TrlPreference, None).unwrap().records, 2);
        assert_eq!(lines(&to)[0]["chosen"][0]["content"], "Search: ada");
        assert_eq!(export(Format::TrlStepwise, None).unwrap().records, 2);
        assert_eq!(lines(&to)[0]["labels"], json!([true, true]));

        let refused = export(Format::TrlPreference, Some("human")).unwrap_err().to_string();
        assert!(refused.contains("no verdicts by `human`"), "{refused}");
        let verdict = gym::Verdict {
            rewards: Some(vec![0.3, 1.0]),
            rationale: None,
        };
        studio
            .store()
            .add_verdict(RUN, &testing::id("q2"), 0, "human", &verdict, 1)
            .unwrap();
        assert_eq!(export(Format::TrlPreference, Some("human")).unwrap().records, 1);
        assert_eq!(lines(&to)[0]["chosen"][0]["content"], "Search: bob");
        assert_eq!(lines(&to)[0]["question"], "q2");
        // The answers were not judged by hand: no chain is whole.
        let partly = export(Format::TrlStepwise, Some("human")).unwrap_err().to_string();
        assert!(partly.contains("teaches nothing"), "{partly}");
        assert_eq!(lines(&to).len(), 1, "the file of before stays");
        assert!(export(Format::Csv, Some("human")).is_err());
    }

    #[test]
    fn a_folder_gets_a_file_named_after_the_run_and_the_table_has_every_question() {
        let (dir, studio) = testing::judged_run();
        let exported = studio.export(RUN, dir.path(), Format::Csv, None).unwrap();
        assert_eq!((exported.records, exported.path), (3, dir.path().join("r.csv")));
        let text = fs::read_to_string(dir.path().join("r.csv")).unwrap();
        assert!(
            text.contains("q1,Who is q1?,bridge,finished,Ada,Ada,answered,1,1,,1,1,0,14,4,6,20,\r\n"),
            "{text}"
        );
        assert!(
            text.contains("q3,Who is q3?,bridge,pending,,Ada,,,,,,0,0,0,0,0,0,\r\n"),
            "{text}"
        );
    }

    /// inspect_ai itself reads these files in `xtask/peers/inspect_log.py`.
    #[test]
    fn an_inspect_log_has_its_keys_in_order_and_its_spans_closed() {
        let (dir, studio) = testing::judged_run();
        let exported = studio.export(RUN, dir.path(), Format::Inspect, None).unwrap();
        let name = exported.path.file_name().unwrap().to_str().unwrap().to_owned();
        assert!(name.contains("+00-00_people_r.json") && !name.contains(':'), "{name}");
        let log: Value = serde_json::from_slice(&fs::read(&exported.path).unwrap()).unwrap();
        let keys: Vec<&String> = log.as_object().unwrap().keys().collect();
        assert_eq!(
            keys,
            ["version", "status", "eval", "plan", "results", "stats", "samples"]
        );
        assert_eq!(log["results"]["total_samples"], 3);
        let em = log["results"]["scores"][0]["metrics"]["mean"]["value"]
            .as_f64()
            .unwrap();
        assert!((em - 2.0 / 3.0).abs() < 1e-9, "the pending question scores 0: {em}");
        let sample = &log["samples"][0];
        assert_eq!(sample["scores"]["em"], json!({"value": 1.0, "answer": "Ada"}));
        let events = sample["events"].as_array().unwrap();
        let of = |kind: &str| events.iter().filter(|event| event["event"] == kind).count();
        assert_eq!((of("span_begin"), of("span_end")), (5, 5));
        assert_eq!((of("model"), of("tool"), of("score")), (2, 1, 3));
    }
}
