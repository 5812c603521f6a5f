//! The graphics card's arithmetic beside the processor's, on candle's processor device. With the feature `cuda` or
//! `metal` also on the card, where there is one.

#![expect(clippy::unwrap_used, reason = "a test that cannot go on fails")]

use std::collections::HashMap;
use std::path::Path;

use candle_core::quantized::GgmlDType;
use candle_core::{Device, Tensor};
use gym::seed::SplitMix64;
use gym::{Cancel, Seed};
use lm::kernels::Machine;
use lm::{LocalModel, Options, accelerator};

#[path = "support/tiny.rs"]
mod tiny;

use tiny::{ARCHITECTURES, HIDDEN, write_as};

/// Keys, values and activations are rounded differently, and a card keeps eight bits of each: so much of what the
/// numbers vary by, in the mean.
fn tolerance(device: &Device) -> f32 {
    if device.is_cpu() { 0.01 } else { 0.03 }
}

fn devices() -> Vec<Device> {
    [Some(Device::Cpu), accelerator::found()]
        .into_iter()
        .flatten()
        .collect()
}

fn model(path: &Path, device: Option<Device>) -> LocalModel {
    let options = Options {
        machine: Machine::shared(),
        kept_tokens: 1024,
        device,
        ..Options::default()
    };
    LocalModel::open_with(path, options).unwrap()
}

fn close(a: &[f32], b: &[f32], device: &Device, what: &str) {
    assert_eq!(a.len(), b.len());
    let mean = |sum: f32| sum / a.len() as f32;
    let off = mean(a.iter().zip(b).map(|(x, y)| (x - y).abs()).sum());
    let centre = mean(b.iter().sum());
    let spread = mean(b.iter().map(|x| (x - centre).abs()).sum());
    assert!(off <= tolerance(device) * spread, "{what}: differ by {off} of {spread}");
}

fn text(rng: &mut SplitMix64, n: usize) -> Vec<u32> {
    (0..n).map(|_| rng.below(256) as u32).collect()
}

#[test]
fn logits_are_the_processors_for_every_architecture() {
    let dir = tempfile::tempdir().unwrap();
    let tokens = text(&mut Seed(3).rng(), 150);
    for architecture in ARCHITECTURES {
        let path = write_as(dir.path(), architecture, GgmlDType::Q8_0);
        let here = model(&path, None).decoder().logits_of(&tokens).unwrap();
        for device in devices() {
            let there = model(&path, Some(device.clone())).decoder().logits_of(&tokens).unwrap();
            close(&there, &here, &device, architecture);
        }
    }
}

#[test]
fn continuations_share_pages_of_their_prompt_and_of_earlier_ones() {
    let dir = tempfile::tempdir().unwrap();
    for architecture in ["llama", "gemma3"] {
        let path = write_as(dir.path(), architecture, GgmlDType::Q8_0);
        let here = model(&path, None);
        for device in devices() {
            let there = model(&path, Some(device.clone()));
            let mut rng = Seed(5).rng();
            let beginning = text(&mut rng, 100);
            // Prompts that end within a page, at its end and behind it; pages run out and are given back.
            for more in [0, 28, 29, 60, 80, 7, 1] {
                let prompt = [&beginning[..], &text(&mut rng, more)].concat();
                let continuations: Vec<Vec<u32>> = [1, 30, 3, 70, 9].map(|n| text(&mut rng, n)).into();
                let scores = |model: &LocalModel| {
                    let cancel = Cancel::default();
                    model.token_logprobs(&prompt, &continuations, &cancel).unwrap().concat()
                };
                close(&scores(&there), &scores(&here), &device, architecture);
                let hidden = |model: &LocalModel| {
                    let cancel = Cancel::default();
                    model.hidden_states(&prompt, &continuations, &cancel).unwrap().concat()
                };
                close(&hidden(&there), &hidden(&here), &device, architecture);
            }
        }
    }
}

#[test]
fn several_callers_share_a_batch() {
    let dir = tempfile::tempdir().unwrap();
    let path = write_as(dir.path(), "qwen3", GgmlDType::Q8_0);
    let here = model(&path, None);
    for device in devices() {
        let there = model(&path, Some(device.clone()));
        std::thread::scope(|scope| {
            for caller in 0..6 {
                let (here, there, device) = (&here, &there, &device);
                scope.spawn(move || {
                    let mut rng = Seed(caller).rng();
                    for _ in 0..4 {
                        let length = 1 + rng.below(150);
                        let prompt = text(&mut rng, length);
                        let continuations = [text(&mut rng, 5), text(&mut rng, 1)];
                        let scores = |model: &LocalModel| {
                            let cancel = Cancel::default();
                            model.token_logprobs(&prompt, &continuations, &cancel).unwrap().concat()
                        };
                        close(&scores(there), &scores(here), device, "a caller among others");
                    }
                });
            }
        });
    }
}

#[test]
fn an_adapter_is_added_to_the_weights() {
    let dir = tempfile::tempdir().unwrap();
    let path = write_as(dir.path(), "llama", GgmlDType::Q8_0);
    let mut rng = Seed(9).rng();
    let mut random = |rows: usize, columns: usize| {
        let numbers: Vec<f32> = (0..rows * columns).map(|_| rng.next_f64() as f32 - 0.5).collect();
        Tensor::from_vec(numbers, (rows, columns), &Device::Cpu).unwrap()
    };
    // Four heads of 16 numbers, two of them for keys; 96 inner numbers.
    let name = |part: &str, side: &str| format!("base_model.model.model.layers.1.{part}.lora_{side}.weight");
    let tensors: HashMap<String, Tensor> = [
        (name("self_attn.k_proj", "A"), random(3, HIDDEN)),
        (name("self_attn.k_proj", "B"), random(32, 3)),
        (name("mlp.down_proj", "A"), random(3, 96)),
        (name("mlp.down_proj", "B"), random(HIDDEN, 3)),
    ]
    .into();
    let adapter = dir.path().join("adapter");
    std::fs::create_dir(&adapter).unwrap();
    candle_core::safetensors::save(&tensors, adapter.join("adapter_model.safetensors")).unwrap();
    std::fs::write(adapter.join("adapter_config.json"), r#"{"r": 3, "lora_alpha": 1}"#).unwrap();
    let tokens = text(&mut rng, 40);
    let logits = |model: LocalModel| model.decoder().logits_of(&tokens).unwrap();
    let base = logits(model(&path, None));
    let here = logits(model(&path, None).with_adapter(&adapter).unwrap());
    assert!(base.iter().zip(&here).any(|(a, b)| (a - b).abs() > 0.5));
    for device in devices() {
        let there = model(&path, Some(device.clone())).with_adapter(&adapter).unwrap();
        assert!(there.decoder().device().is_some());
        close(&logits(there), &here, &device, "an adapter");
    }
}
