//! PyTorch's and PEFT's numbers for a tiny random llama (`peft/make.py`), and ours.

#![expect(clippy::unwrap_used, reason = "a test that cannot go on fails")]

use std::collections::HashMap;
use std::path::PathBuf;

use candle_core::Device;
use gym::Cancel;
use lm::{LocalModel, Options};
use serde::Deserialize;
use training::adapter::Adapter;
use training::base::Base;
use training::factor::Arithmetic;
use training::objective::{Batch, Example, Objective, log_probability, rewards};

#[derive(Deserialize)]
struct Numbers {
    prompt: Vec<u32>,
    completions: Vec<Vec<u32>>,
    score: Vec<f32>,
    reference: Vec<f32>,
    log_probabilities: Vec<f32>,
    rewards: Vec<f32>,
    sft: Loss,
    dpo: Loss,
    prm: Loss,
}

#[derive(Deserialize)]
struct Loss {
    loss: f64,
    gradient_norms: HashMap<String, f64>,
}

fn fixture(name: &str) -> PathBuf {
    PathBuf::from(env!("CARGO_MANIFEST_DIR")).join("tests/peft").join(name)
}

fn numbers() -> (Base, Adapter, Numbers, Example) {
    let mut base = Base::open(&fixture("tiny.gguf")).unwrap();
    base.arithmetic = Arithmetic::F32;
    let adapter = Adapter::load(&base.config, &fixture("adapter")).unwrap();
    let numbers: Numbers = serde_json::from_slice(&std::fs::read(fixture("numbers.json")).unwrap()).unwrap();
    let example = Example {
        question: "q".into(),
        prompt: numbers.prompt.clone(),
        completions: numbers.completions.clone(),
        pairs: Vec::new(),
    };
    (base, adapter, numbers, example)
}

fn close(ours: f64, theirs: f64, what: &str) {
    assert!(
        (ours - theirs).abs() <= 1e-4 * theirs.abs().max(1.0),
        "{what}: {ours}, theirs {theirs}"
    );
}

#[test]
fn an_adapter_made_by_peft_gives_its_log_probabilities_here() {
    let (base, adapter, numbers, example) = numbers();
    let examples = [&example];
    let batch = Batch::new(&examples);
    for (ours, theirs) in [
        (
            log_probability(&base, Some(&adapter), &batch).unwrap(),
            numbers.log_probabilities,
        ),
        (log_probability(&base, None, &batch).unwrap(), numbers.reference),
    ] {
        for (ours, theirs) in ours.iter().zip(theirs) {
            close((*ours).into(), theirs.into(), "log-probability");
        }
    }
}

#[test]
fn losses_and_gradients_are_those_of_pytorch() {
    let (base, mut adapter, numbers, mut example) = numbers();
    for (objective, theirs) in [
        (Objective::Sft, &numbers.sft),
        (Objective::Dpo { beta: 0.1 }, &numbers.dpo),
        (Objective::Prm { centre: 0.01 }, &numbers.prm),
    ] {
        if objective != Objective::Sft {
            example.pairs = vec![(0, 1)];
        }
        if matches!(objective, Objective::Prm { .. }) {
            adapter = adapter.with_head(&numbers.score);
        }
        let examples = [&example];
        let batch = Batch::new(&examples);
        let mut gradient = vec![0.0; adapter.values.len()];
        let measure = objective
            .measure(
                &base,
                &adapter,
                &batch,
                &numbers.reference,
                None,
                Some((&mut gradient, 1.0)),
            )
            .unwrap();
        close(measure.loss, theirs.loss, "loss");
        let mut compared = 0;
        for (name, range) in adapter.tensors() {
            let norm = gradient[range]
                .iter()
                .map(|&g| f64::from(g).powi(2))
                .sum::<f64>()
                .sqrt();
            close(norm, theirs.gradient_norms[&format!("{name}.weight")], &name);
            compared += 1;
        }
        assert_eq!(compared, theirs.gradient_norms.len());
    }
    let examples = [&example];
    for (ours, theirs) in rewards(&base, &adapter, &Batch::new(&examples))
        .unwrap()
        .iter()
        .zip(&numbers.rewards)
    {
        close((*ours).into(), (*theirs).into(), "reward");
    }
}

#[test]
fn an_episode_sees_the_rewards_of_pytorch() {
    let (base, adapter, numbers, _) = numbers();
    let dir = tempfile::tempdir().unwrap();
    adapter
        .with_head(&numbers.score)
        .save(&base.config, dir.path(), "tiny")
        .unwrap();
    let (prompt, completions, cancel) = (&numbers.prompt, &numbers.completions, Cancel::default());
    // As a card computes, and as the processor does. Both have this file's weights in eight bits.
    for device in [Some(Device::Cpu), None] {
        let options = Options {
            device,
            ..Options::default()
        };
        let model = LocalModel::open_with(&fixture("tiny.gguf"), options).unwrap();
        assert!(model.rewards(prompt, completions, &cancel).is_err(), "there is no head");
        let model = model.with_adapter(dir.path()).unwrap();
        let together = model.rewards(prompt, completions, &cancel).unwrap();
        let spread = (numbers.rewards[0] - numbers.rewards[1]).abs();
        for (ours, theirs) in together.iter().zip(&numbers.rewards) {
            assert!((ours - theirs).abs() <= 0.03 * spread, "{ours}, theirs {theirs}");
        }
        // By itself, with the prompt in the cache.
        for (completion, reward) in completions.iter().zip(&together) {
            let alone = model
                .rewards(prompt, std::slice::from_ref(completion), &cancel)
                .unwrap();
            assert!((alone[0] - reward).abs() <= 1e-5, "{alone:?}, {reward}");
        }
    }
}

#[test]
fn an_adapter_survives_its_files() {
    let (base, adapter, numbers, _) = numbers();
    let adapter = adapter.with_head(&numbers.score);
    let dir = tempfile::tempdir().unwrap();
    adapter.save(&base.config, dir.path(), "tiny").unwrap();
    let again = Adapter::load(&base.config, dir.path()).unwrap();
    assert_eq!((&again.values, &again.config), (&adapter.values, &adapter.config));
    let config: serde_json::Value =
        serde_json::from_slice(&std::fs::read(dir.path().join("adapter_config.json")).unwrap()).unwrap();
    assert_eq!(
        (&config["task_type"], &config["modules_to_save"][0]),
        (&"SEQ_CLS".into(), &"score".into())
    );
    let bytes = std::fs::read(dir.path().join("adapter_model.safetensors")).unwrap();
    std::fs::write(dir.path().join("adapter_model.safetensors"), &bytes[..bytes.len() / 2]).unwrap();
    let error = Adapter::load(&base.config, dir.path()).unwrap_err();
    assert!(error.to_string().contains("damaged"), "{error}");
}
