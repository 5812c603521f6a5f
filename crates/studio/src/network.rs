//! What a training changes: an adapter on a base, or an encoder.

use std::path::Path;

use training::Result as TrainingResult;
use training::adapter::Adapter;
use training::base::Base;
use training::cross_encoder::CrossEncoder;
use training::lesson::{Encoder, Lesson};
use training::objective::Example;
use training::train::{StepReport, Trained, TrainingConfig, so_far, train};

use crate::library::ENCODER;
use crate::{Cancel, Result, Studio, StudioError, TrainRequest};

#[expect(clippy::large_enum_variant, reason = "there are one or two at a time")]
pub(crate) enum Network {
    /// `start`: the adapter to go on from.
    Decoder {
        root: store::Model,
        base: Base,
        start: Option<Adapter>,
    },
    Encoder(CrossEncoder),
}

/// What a training has made.
#[expect(clippy::large_enum_variant, reason = "there are one or two at a time")]
pub(crate) enum Made {
    Adapter(Adapter),
    Encoder(CrossEncoder),
}

impl Studio {
    pub(crate) fn network(&self, request: &TrainRequest) -> Result<Network> {
        let (root, start) = self.root_of(&request.base)?;
        if root.architecture == ENCODER {
            if request.method != "prm" {
                let message = format!("`{}` is an encoder: it can become a reward model, by prm", root.name);
                return Err(StudioError::Invalid(message));
            }
            return Ok(Network::Encoder(CrossEncoder::open(Path::new(&root.path))?));
        }
        let base = Base::open(Path::new(&root.path))?;
        let start = match start {
            Some(dir) => Some(Adapter::load(&base.config, &dir)?),
            None => None,
        };
        Ok(Network::Decoder { root, base, start })
    }

    /// Writes what a training has made into `dir` and registers it.
    pub(crate) fn keep_made(&self, request: &TrainRequest, network: &Network, made: &Made, dir: &Path) -> Result<()> {
        match (network, made) {
            (Network::Decoder { root, base, .. }, Made::Adapter(adapter)) => {
                adapter.save(&base.config, dir, &root.name)?;
                self.register_adapter(&request.out, dir, root, request.method == "prm")
            }
            (_, Made::Encoder(encoder)) => {
                encoder.save(dir)?;
                self.register_model(dir, &request.out, None)
            }
            (Network::Encoder(_), Made::Adapter(_)) => unreachable!("an encoder has no adapter"),
        }
    }
}

impl Network {
    pub fn examples(&self, lessons: &[Lesson], config: &TrainingConfig) -> Result<Vec<Example>> {
        let examples: TrainingResult<_> = match self {
            Network::Decoder { root, .. } => {
                let encoder = Encoder::open(Path::new(&root.path))?;
                lessons.iter().map(|lesson| encoder.example(lesson)).collect()
            }
            Network::Encoder(encoder) => {
                let example = |lesson| encoder.example(lesson, config.max_length);
                lessons.iter().map(example).collect()
            }
        };
        Ok(examples?)
    }

    pub fn train(
        &self,
        config: &TrainingConfig,
        examples: &[Example],
        held_out: &[Example],
        checkpoint: &Path,
        cancel: &Cancel,
        on_step: &mut dyn FnMut(&StepReport),
    ) -> Result<Trained<Made>> {
        Ok(match self {
            Network::Decoder { base, start, .. } => {
                let start = start.as_ref();
                train(base, config, start, examples, held_out, checkpoint, cancel, on_step)?.map(Made::Adapter)
            }
            Network::Encoder(encoder) => encoder
                .train(config, examples, held_out, checkpoint, cancel, on_step)?
                .map(Made::Encoder),
        })
    }

    /// What a stopped training has come to.
    pub fn so_far(&self, config: TrainingConfig, checkpoint: &Path) -> Result<Made> {
        Ok(match (self, config.adapter) {
            (Network::Decoder { base, .. }, Some(adapter)) => Made::Adapter(so_far(base, adapter, checkpoint)?.model),
            (Network::Encoder(encoder), _) => Made::Encoder(encoder.so_far(checkpoint)?.model),
            (Network::Decoder { .. }, None) => unreachable!("a base is trained by an adapter"),
        })
    }
}

#[cfg(test)]
mod tests {
    use std::path::PathBuf;

    use gym::{Seed, State};
    use training::bert::Bert;

    use super::*;
    use crate::testing::{RUN, judged_run, search, training};
    use crate::view::AgentSettings;

    /// A random encoder's folder in `dir`.
    fn tiny(dir: &Path) -> PathBuf {
        let from = Path::new(env!("CARGO_MANIFEST_DIR")).join("../training/tests/encoder");
        let to = dir.join("tiny");
        std::fs::create_dir(&to).unwrap();
        let config = std::fs::read(from.join("config.json")).unwrap();
        let mut bert = Bert::zeros(serde_json::from_slice(&config).unwrap()).unwrap();
        let mut rng = Seed(7).rng();
        bert.values.iter_mut().for_each(|x| *x = rng.next_f64() as f32 - 0.5);
        bert.save(&to).unwrap();
        std::fs::copy(from.join("tokenizer.json"), to.join("tokenizer.json")).unwrap();
        to
    }

    #[test]
    fn an_encoder_learns_from_a_judged_run_and_rewards_what_the_judge_did() {
        let (dir, studio) = judged_run();
        let encoder = studio.add_model(&tiny(dir.path()), "tiny").unwrap();
        assert_eq!(
            (encoder.kind.as_str(), encoder.architecture.as_str()),
            ("encoder", ENCODER)
        );
        let request = TrainRequest {
            method: "prm".into(),
            runs: vec![RUN.into()],
            files: Vec::new(),
            base: "tiny".into(),
            learning_rate: Some(1e-2),
            epochs: 40,
            eval_ratio: 0.5,
            ..training("small")
        };
        let mut steps = Vec::new();
        let report = studio.train(&request, &Cancel::default(), &mut |step| steps.push(step.clone()));
        let report = report.unwrap();
        assert_eq!((report.examples, report.held_out, steps.len()), (1, 1, 40));
        assert_eq!(studio.training_steps("small", 0).unwrap(), steps);
        assert_eq!(report.eval.unwrap().accuracy, Some(1.0));
        let made = studio.model("small").unwrap();
        assert_eq!((made.kind.as_str(), &made.adapter_of), ("reward", &None));
        assert_eq!(made.parameters, encoder.parameters + 24.0);
        assert!(studio.doctor().unwrap().iter().all(|check| check.ok));

        let state = State::new(studio.store().questions("people", None).unwrap()[0].question.clone());
        let candidates = [search("bob", 0.0), search("ada", 0.0)];
        let scores = |name: &str| {
            let settings = AgentSettings {
                agent: "react".into(),
                ..AgentSettings::default()
            };
            let model = studio.reward_model(name, &settings).unwrap();
            (model.id().to_owned(), model.score(&state, &candidates).unwrap())
        };
        let (id, rewards) = scores("small");
        assert!(rewards[1] > rewards[0], "{rewards:?}");
        assert_eq!(id, format!("small#2-{}", &made.sha256[..8]));
        // A copy is the same model.
        let copy = dir.path().join("copy");
        studio.export_adapter("small", &copy, false).unwrap();
        studio.add_model(&copy, "copy").unwrap();
        assert_eq!(scores("copy").1, rewards);
        studio.remove_model("small").unwrap();
        assert!(!studio.model_dir("small").exists() && tiny_stays(&dir));
    }

    fn tiny_stays(dir: &tempfile::TempDir) -> bool {
        dir.path().join("tiny/model.safetensors").exists()
    }

    #[test]
    fn an_encoder_neither_answers_nor_imitates() {
        let (dir, studio) = judged_run();
        studio.add_model(&tiny(dir.path()), "tiny").unwrap();
        let no_text = studio.load("tiny").err().unwrap().to_string();
        assert!(no_text.contains("writes no text"), "{no_text}");
        let train = |request: TrainRequest| {
            let trained = studio.train(&request, &Cancel::default(), &mut |_| {});
            trained.unwrap_err().to_string()
        };
        let request = TrainRequest {
            runs: vec![RUN.into()],
            files: Vec::new(),
            base: "tiny".into(),
            ..training("small")
        };
        let sft = train(request.clone());
        assert!(sft.contains("reward model, by prm"), "{sft}");
        let dropout = train(TrainRequest {
            method: "prm".into(),
            dropout: 0.1,
            ..request
        });
        assert!(dropout.contains("without dropout"), "{dropout}");
        assert!(studio.reward_model("tiny", &AgentSettings::default()).is_err());
    }
}
