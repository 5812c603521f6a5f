//! Writes a policy adapter and a reward adapter for the tiny llama of `tests/peft`, and what they say, into a
//! folder, for `tests/peft/check.py` to compare with PEFT: `peft_peer FOLDER`.

use std::path::Path;

use gym::Seed;
use serde_json::json;
use training::adapter::{Adapter, AdapterConfig};
use training::base::{Base, Part};
use training::factor::Arithmetic;
use training::objective::{Batch, Example, log_probability, rewards};

fn main() -> Result<(), Box<dyn std::error::Error>> {
    let folder = std::env::args().nth(1).ok_or("usage: peft_peer FOLDER")?;
    let folder = Path::new(&folder);
    let mut base = Base::open(&Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/peft/tiny.gguf"))?;
    base.arithmetic = Arithmetic::F32;
    let example = Example {
        question: String::new(),
        prompt: vec![7, 3, 25, 11, 40, 2, 19],
        completions: vec![vec![9, 30, 47], vec![12, 5, 33, 8, 47]],
        pairs: Vec::new(),
    };
    let examples = [&example];
    let batch = Batch::new(&examples);
    let adapter = |head: bool| -> Result<Adapter, training::TrainingError> {
        let config = AdapterConfig {
            rank: 4,
            alpha: 6.0,
            targets: Part::ALL.to_vec(),
            head,
        };
        let mut adapter = Adapter::new(&base.config, config, Seed(5))?;
        let mut rng = Seed(6).rng();
        let values = adapter.values.iter_mut();
        values.for_each(|x| *x = (rng.next_f64() as f32 - 0.5) * 0.5);
        Ok(adapter)
    };
    let (policy, reward) = (adapter(false)?, adapter(true)?);
    policy.save(&base.config, &folder.join("policy"), "tiny")?;
    reward.save(&base.config, &folder.join("reward"), "tiny")?;
    let said = json!({
        "prompt": example.prompt,
        "completions": example.completions,
        "log_probabilities": log_probability(&base, Some(&policy), &batch)?,
        "rewards": rewards(&base, &reward, &batch)?,
    });
    std::fs::write(folder.join("said.json"), said.to_string())?;
    Ok(())
}
