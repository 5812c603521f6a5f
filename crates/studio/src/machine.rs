//! What this machine can do at most, and what each model may be expected to do on it.

use std::collections::HashMap;
use std::path::Path;
use std::time::Instant;

use lm::estimate::Estimate;
use lm::kernels::Machine;
use lm::kernels::measure::Peaks;
use serde::{Deserialize, Serialize};
use specta::Type;

use crate::export::write_bytes;
use crate::{Result, Studio, endpoints};

/// What computes, and its measured peaks.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, Type)]
pub struct MachineView {
    pub processor: String,
    pub instructions: String,
    pub threads: u32,
    /// Multiplications and additions, thousand millions a second, all threads together.
    pub f32_gflops: f64,
    pub int16_gops: f64,
    pub read_gb_per_second: f64,
}

/// Tokens a second on an idle machine, and whether the model fits into its memory.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, Type)]
pub struct EstimateView {
    pub model: String,
    /// Reading a prompt of 512 tokens.
    pub prefill_tokens_per_second: f64,
    /// Writing one text after 256 tokens.
    pub decode_tokens_per_second: f64,
    /// Writing ten candidates of 64 tokens, all together, the reading of their 256 prompt tokens included.
    pub candidates_tokens_per_second: f64,
    /// When loaded, with what it keeps of earlier prompts.
    pub memory_bytes: f64,
    /// `None` where the system does not tell its memory.
    pub fits: Option<bool>,
}

#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, Type)]
pub struct MachineReport {
    pub machine: MachineView,
    /// 0 where the system does not tell.
    pub memory_bytes: f64,
    /// Of the models that are files here and can be read.
    pub estimates: Vec<EstimateView>,
}

/// The share of the memory that a model may take: the rest is for everything else.
const SHARE: f64 = 0.8;

impl MachineView {
    /// Measures a machine. Takes about half a second.
    pub(crate) fn of(machine: &Machine) -> MachineView {
        let start = Instant::now();
        let peaks = Peaks::measure(machine, &|| start.elapsed().as_secs_f64());
        MachineView {
            f32_gflops: peaks.f32_gflops,
            int16_gops: peaks.int16_gops,
            read_gb_per_second: peaks.read_gb_per_second,
            ..MachineView::unmeasured(machine)
        }
    }

    fn unmeasured(machine: &Machine) -> MachineView {
        MachineView {
            processor: processor(),
            instructions: machine.level.name().into(),
            threads: machine.pool.threads() as u32,
            f32_gflops: 0.0,
            int16_gops: 0.0,
            read_gb_per_second: 0.0,
        }
    }

    pub(crate) fn peaks(&self) -> Peaks {
        Peaks {
            f32_gflops: self.f32_gflops,
            int16_gops: self.int16_gops,
            read_gb_per_second: self.read_gb_per_second,
        }
    }

    /// The same processor, used in the same way.
    fn is(&self, other: &MachineView) -> bool {
        let of = |view: &MachineView| (view.processor.clone(), view.instructions.clone(), view.threads);
        of(self) == of(other)
    }
}

impl Studio {
    /// The machine's peaks: measured once for a home and kept in its `machine.json`, measured anew where that is of
    /// another machine, or `again`. Other work slows them meanwhile.
    pub fn machine(&self, again: bool) -> Result<MachineView> {
        let path = self.home().join("machine.json");
        if !again
            && let Some(kept) = kept(&path)
            && kept.is(&MachineView::unmeasured(&Machine::shared()))
        {
            return Ok(kept);
        }
        let measured = MachineView::of(&Machine::shared());
        let text = serde_json::to_string_pretty(&measured).expect("it is plain data");
        // A home without room loses no more than the time to measure again.
        let _ = write_bytes(&path, text.as_bytes());
        Ok(measured)
    }

    /// The machine and what each model of the home may be expected to do on it.
    pub fn machine_report(&self, again: bool) -> Result<MachineReport> {
        let machine = self.machine(again)?;
        let (mut estimates, mut of_files) = (Vec::new(), HashMap::new());
        for model in self.store().models()? {
            estimates.extend(self.estimate_on(&machine, &model, &mut of_files)?);
        }
        Ok(MachineReport {
            machine,
            memory_bytes: memory_bytes(),
            estimates,
        })
    }

    /// `None` for what no file here says: endpoints, and models whose files are gone or damaged.
    pub fn estimate(&self, model: &str) -> Result<Option<EstimateView>> {
        let row = self.model_row(model)?;
        self.estimate_on(&self.machine(false)?, &row, &mut HashMap::new())
    }

    /// `of_files`: those made before, by path. A base and its adapters share a file, whose header is long.
    fn estimate_on(
        &self,
        machine: &MachineView,
        model: &store::Model,
        of_files: &mut HashMap<String, Option<Estimate>>,
    ) -> Result<Option<EstimateView>> {
        if model.kind == endpoints::KIND {
            return Ok(None);
        }
        // An adapter's own arithmetic is small beside its base's.
        let (base, _) = self.root_of(&model.name)?;
        let read = |path: &String| Estimate::of(Path::new(path), &machine.peaks()).ok();
        let estimate = *of_files.entry(base.path).or_insert_with_key(read);
        let Some(estimate) = estimate else { return Ok(None) };
        let (needed, there) = (estimate.memory_bytes as f64, memory_bytes());
        Ok(Some(EstimateView {
            model: model.name.clone(),
            prefill_tokens_per_second: estimate.prefill_tokens_per_second,
            decode_tokens_per_second: estimate.decode_tokens_per_second,
            candidates_tokens_per_second: estimate.candidates_tokens_per_second,
            memory_bytes: needed,
            fits: (there > 0.0).then_some(needed <= SHARE * there),
        }))
    }
}

fn kept(path: &Path) -> Option<MachineView> {
    serde_json::from_slice(&std::fs::read(path).ok()?).ok()
}

/// The machine's memory; 0 where the system does not tell.
pub(crate) fn memory_bytes() -> f64 {
    let memory = std::fs::read_to_string("/proc/meminfo").unwrap_or_default();
    let kib = memory.lines().find_map(|line| {
        line.strip_prefix("MemTotal:")?
            .trim()
            .strip_suffix(" kB")?
            .parse::<f64>()
            .ok()
    });
    kib.unwrap_or(0.0) * 1024.0
}

fn processor() -> String {
    let info = std::fs::read_to_string("/proc/cpuinfo").unwrap_or_default();
    let name = info
        .lines()
        .find_map(|line| line.strip_prefix("model name")?.split_once(": "));
    name.map_or_else(|| std::env::consts::ARCH.into(), |(_, name)| name.trim().into())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_machine_is_measured_once_and_again_when_it_is_another_or_asked_for() {
        let dir = tempfile::tempdir().unwrap();
        let studio = Studio::open(Some(dir.path().into())).unwrap();
        let first = studio.machine(false).unwrap();
        assert!(first.f32_gflops > 0.0 && first.int16_gops > 0.0 && first.read_gb_per_second > 0.0);

        let keep = |machine: &MachineView| {
            std::fs::write(dir.path().join("machine.json"), serde_json::to_string(machine).unwrap()).unwrap();
        };
        let marked = MachineView {
            f32_gflops: 1e9,
            ..first
        };
        keep(&marked);
        assert_eq!(studio.machine(false).unwrap(), marked);
        let other = MachineView {
            threads: marked.threads + 1,
            ..marked.clone()
        };
        keep(&other);
        let measured = studio.machine(false).unwrap();
        assert!(measured.f32_gflops < 1e9 && measured.threads == marked.threads);
        keep(&marked);
        studio.doctor().unwrap();
        assert!(
            studio.machine(false).unwrap().f32_gflops < 1e9,
            "the doctor measured anew"
        );
    }

    #[test]
    fn files_have_estimates_adapters_their_bases_and_endpoints_none() {
        let peft = Path::new(env!("CARGO_MANIFEST_DIR")).join("../training/tests/peft");
        let dir = tempfile::tempdir().unwrap();
        let studio = Studio::open(Some(dir.path().join("home"))).unwrap();
        let gone = dir.path().join("gone.gguf");
        std::fs::copy(peft.join("tiny.gguf"), &gone).unwrap();
        studio.add_model(&peft.join("tiny.gguf"), "tiny").unwrap();
        studio.add_model(&gone, "gone").unwrap();
        std::fs::remove_file(&gone).unwrap();
        studio.add_adapter(&peft.join("adapter"), "adapter", "tiny").unwrap();
        let server = lm::endpoint::Settings {
            url: "http://127.0.0.1:9".into(),
            model: "m".into(),
            key_env: None,
            context_tokens: Some(1024),
            route: lm::endpoint::Route::Chat,
            grammar: false,
        };
        studio
            .add_endpoint("server", server, &crate::Cancel::default())
            .unwrap();

        let report = studio.machine_report(false).unwrap();
        let names: Vec<&str> = report
            .estimates
            .iter()
            .map(|estimate| estimate.model.as_str())
            .collect();
        assert_eq!(names, ["adapter", "tiny"]);
        let [adapter, tiny] = &report.estimates[..] else {
            panic!()
        };
        assert_eq!(adapter.decode_tokens_per_second, tiny.decode_tokens_per_second);
        assert_eq!(studio.estimate("tiny").unwrap().as_ref(), Some(tiny));
        assert!(tiny.memory_bytes > 0.0 && tiny.candidates_tokens_per_second > 0.0);
        assert_eq!(tiny.fits, (report.memory_bytes > 0.0).then_some(true), "{tiny:?}");
        assert_eq!(studio.estimate("server").unwrap(), None);
    }
}
