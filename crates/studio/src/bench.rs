//! Timing of the work that a run does all day: reading a prompt, decoding, sampling candidates.

use std::path::Path;
use std::time::Instant;

use gym::seed::SplitMix64;
use gym::{Generation, Prompt, Sampling, Seed};
use lm::kernels::{Level, Machine, measure::Peaks};
use lm::{LocalModel, Options};
use serde::Serialize;

use crate::{Cancel, Result, Studio, StudioError};

/// What a bench is run with.
#[derive(Clone, Debug, Default)]
pub struct BenchOptions {
    /// A registered model's name, or the path of a GGUF file.
    pub model: String,
    /// A LoRA adapter's folder.
    pub adapter: Option<String>,
    /// All processors of this process if 0.
    pub threads: usize,
    /// An instruction set by name, or the best there is.
    pub instructions: Option<String>,
}

/// Tokens a second, each measured once, on prompts of random tokens.
#[derive(Clone, Debug, Serialize)]
pub struct GenerateBench {
    pub prefill: Vec<PrefillBench>,
    /// One sequence, greedy, after 256 tokens.
    pub decode_tokens_per_second: f64,
    pub candidates: Vec<CandidatesBench>,
    /// The process's largest memory until here; `None` where the system does not say.
    pub peak_memory_bytes: Option<u64>,
    pub machine: MachineView,
}

#[derive(Clone, Debug, Serialize)]
pub struct PrefillBench {
    pub tokens: usize,
    pub tokens_per_second: f64,
}

#[derive(Clone, Debug, Serialize)]
pub struct CandidatesBench {
    pub prompt_tokens: usize,
    pub n: usize,
    pub new_tokens: usize,
    /// New tokens of all candidates over the whole time, reading the prompt included.
    pub tokens_per_second: f64,
}

/// What computes, and what it can do at most.
#[derive(Clone, Debug, Serialize)]
pub struct MachineView {
    pub processor: String,
    pub instructions: &'static str,
    pub threads: usize,
    #[serde(flatten)]
    pub peaks: Peaks,
    /// What the work takes with the model that was timed.
    #[serde(flatten)]
    pub work: Option<Work>,
}

/// Bytes and operations (multiplications and additions).
#[derive(Clone, Copy, Debug, Serialize)]
pub struct Work {
    /// Weights that a decoding step reads.
    pub bytes_per_step: usize,
    /// In the layers' matrices.
    pub layer_operations_per_token: u64,
    /// For the logits, where they are wanted.
    pub output_operations_per_token: u64,
    /// For each token and each token that it sees, in all layers.
    pub attention_operations_per_pair: u64,
}

impl MachineView {
    /// Measures the machine as the models use it. Takes about half a second.
    pub fn measure() -> MachineView {
        MachineView::of(&Machine::shared(), None)
    }

    fn of(machine: &Machine, model: Option<&LocalModel>) -> MachineView {
        let start = Instant::now();
        MachineView {
            processor: processor(),
            instructions: machine.level.name(),
            threads: machine.pool.threads(),
            peaks: Peaks::measure(machine, &|| start.elapsed().as_secs_f64()),
            work: model.map(|model| {
                let (decoder, config) = (model.decoder(), &model.decoder().config);
                Work {
                    bytes_per_step: decoder.bytes_per_token(),
                    layer_operations_per_token: 2 * decoder.layer_weights(),
                    output_operations_per_token: 2 * (config.vocabulary * config.hidden) as u64,
                    attention_operations_per_pair: 4 * (config.layers * config.heads.heads * config.heads.dim) as u64,
                }
            }),
        }
    }
}

const CANDIDATES: usize = 10;
const NEW_TOKENS: usize = 64;

impl Studio {
    /// The path of a model's file, from its registered name or the path itself.
    pub(crate) fn model_file(&self, model: &str) -> Result<String> {
        if Path::new(model).is_file() {
            return Ok(model.to_owned());
        }
        Ok(self.model_row(model)?.path)
    }

    /// Opens the model that a bench asks for, by itself: nothing is shared with the studio's own models.
    fn bench_model(&self, options: &BenchOptions) -> Result<(LocalModel, Machine)> {
        let mut machine = Machine::shared();
        if let Some(name) = &options.instructions {
            let names: Vec<_> = Level::available().iter().map(|level| level.name()).collect();
            machine.level = Level::named(name).ok_or_else(|| {
                StudioError::Invalid(format!("this processor has no `{name}`; it has {}", names.join(", ")))
            })?;
        }
        if options.threads > 0 {
            machine = Machine::new(machine.level, options.threads);
        }
        let settings = Options {
            machine: machine.clone(),
            ..Options::default()
        };
        let mut model = LocalModel::open_with(Path::new(&self.model_file(&options.model)?), settings)?;
        if let Some(adapter) = &options.adapter {
            model = model.with_adapter(Path::new(adapter))?;
        }
        Ok((model, machine))
    }

    /// Reading prompts, decoding one sequence, sampling ten candidates from one prompt.
    pub fn bench_generate(&self, options: &BenchOptions, cancel: &Cancel) -> Result<GenerateBench> {
        let (model, machine) = self.bench_model(options)?;
        let mut rng = Seed(0).rng();
        let mut prompt = |n: usize| -> Vec<u32> { random_tokens(&model, &mut rng, n) };
        // (seconds, tokens)
        let generate = |prompt: &[u32], candidates: usize, new_tokens: usize| -> Result<(f64, usize)> {
            let request = Generation {
                prompt: Prompt { messages: Vec::new() },
                sampling: Sampling {
                    temperature: 0.8,
                    max_tokens: new_tokens,
                    ..Sampling::default()
                },
                seeds: (0..candidates as u64).map(Seed).collect(),
                grammar: None,
            };
            let start = Instant::now();
            let (_, usage) = model.generate_tokens(prompt, &request, cancel, &mut |_| {})?;
            Ok((start.elapsed().as_secs_f64(), usage.generated as usize))
        };
        generate(&prompt(64), 1, 4)?;
        let mut prefill = Vec::new();
        for tokens in [512, 1024] {
            let (seconds, _) = generate(&prompt(tokens), 1, 1)?;
            prefill.push(PrefillBench {
                tokens,
                tokens_per_second: tokens as f64 / seconds,
            });
        }
        // The prompt's own time is taken off: what is left is decoding.
        let (few_seconds, few) = generate(&prompt(256), 1, 4)?;
        let (many_seconds, many) = generate(&prompt(256), 1, NEW_TOKENS)?;
        let mut candidates = Vec::new();
        for prompt_tokens in [256, 1024] {
            let (seconds, tokens) = generate(&prompt(prompt_tokens), CANDIDATES, NEW_TOKENS)?;
            candidates.push(CandidatesBench {
                prompt_tokens,
                n: CANDIDATES,
                new_tokens: NEW_TOKENS,
                tokens_per_second: tokens as f64 / seconds,
            });
        }
        let peak_memory_bytes = peak_memory();
        Ok(GenerateBench {
            prefill,
            decode_tokens_per_second: many.saturating_sub(few) as f64 / (many_seconds - few_seconds),
            candidates,
            peak_memory_bytes,
            machine: MachineView::of(&machine, Some(&model)),
        })
    }

    /// Log-probability of each token of `text` after those before it in its window: what the accuracy of
    /// the arithmetic is judged by. Windows of `window` tokens; each window's first token has none.
    pub fn bench_logprobs(&self, options: &BenchOptions, text: &str, window: usize) -> Result<TokenLogProbs> {
        let (model, _) = self.bench_model(options)?;
        let tokens = model.tokenizer().encode(text)?;
        let mut logprobs = Vec::new();
        for window in tokens.chunks(window.max(2)).filter(|window| window.len() > 1) {
            let scores = model.token_logprobs(&window[..1], &[window[1..].to_vec()], &Cancel::default())?;
            logprobs.extend(scores.into_iter().flatten());
        }
        Ok(TokenLogProbs { tokens, logprobs })
    }
}

/// Tokens of a text and the natural logarithms of their probabilities.
#[derive(Clone, Debug, Serialize)]
pub struct TokenLogProbs {
    pub tokens: Vec<u32>,
    pub logprobs: Vec<f32>,
}

fn random_tokens(model: &LocalModel, rng: &mut SplitMix64, n: usize) -> Vec<u32> {
    let vocabulary = model.decoder().config.vocabulary;
    // Past the first thousand, where control tokens and single bytes are.
    let first = vocabulary.min(1000) / 2;
    (0..n)
        .map(|_| (first + rng.below(vocabulary - first - 1)) as u32)
        .collect()
}

fn processor() -> String {
    let info = std::fs::read_to_string("/proc/cpuinfo").unwrap_or_default();
    let name = info
        .lines()
        .find_map(|line| line.strip_prefix("model name")?.split_once(": "));
    name.map_or_else(|| std::env::consts::ARCH.into(), |(_, name)| name.trim().into())
}

/// The process's largest resident memory so far.
fn peak_memory() -> Option<u64> {
    let status = std::fs::read_to_string("/proc/self/status").ok()?;
    let line = status.lines().find_map(|line| line.strip_prefix("VmHWM:"))?;
    Some(line.trim().strip_suffix(" kB")?.parse::<u64>().ok()? * 1024)
}
