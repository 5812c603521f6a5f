//! Timing of the work that a run does all day: reading a prompt, decoding, sampling candidates.

use std::path::Path;
use std::time::Instant;

use gym::seed::SplitMix64;
use gym::{Generation, Prompt, Sampling, Seed};
use lm::estimate::Work;
use lm::kernels::{Level, Machine};
use lm::{LocalModel, Options};
use serde::Serialize;

use crate::machine::MachineView;
use crate::train::peak_memory_bytes;
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

/// Tokens a second, each measured once, on prompts of random tokens. Floors are what the processor's measured peaks
/// allow; a card's have none.
#[derive(Clone, Debug, Serialize)]
pub struct GenerateBench {
    pub prefill: Vec<PrefillBench>,
    /// One sequence, greedy, after 256 tokens.
    pub decode_tokens_per_second: f64,
    pub floor_decode_tokens_per_second: Option<f64>,
    pub candidates: Vec<CandidatesBench>,
    /// The process's largest memory until here; `None` where the system does not say.
    pub peak_memory_bytes: Option<u64>,
    pub machine: BenchMachine,
}

#[derive(Clone, Debug, Serialize)]
pub struct PrefillBench {
    pub tokens: usize,
    pub tokens_per_second: f64,
    pub floor_tokens_per_second: Option<f64>,
}

#[derive(Clone, Debug, Serialize)]
pub struct CandidatesBench {
    pub prompt_tokens: usize,
    pub n: usize,
    pub new_tokens: usize,
    /// New tokens of all candidates over the whole time, reading the prompt included.
    pub tokens_per_second: f64,
    pub floor_tokens_per_second: Option<f64>,
}

/// What computed, and what the work takes with the model that was timed.
#[derive(Clone, Debug, Serialize)]
pub struct BenchMachine {
    /// The card that computed, if one did.
    pub graphics: Option<String>,
    #[serde(flatten)]
    pub machine: MachineView,
    #[serde(flatten)]
    pub work: Work,
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
        let default = Options::default();
        let settings = Options {
            machine: machine.clone(),
            // Who names instructions or threads means the processor.
            device: default
                .device
                .filter(|_| options.instructions.is_none() && options.threads == 0),
            kept_tokens: default.kept_tokens,
            // Peers are told the same: a text that ends early would be timed for what it did not say.
            endless: true,
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
        let on_card = model.decoder().device().is_some();
        let mut rng = Seed(0).rng();
        // (seconds, tokens) of candidates after a prompt of so many tokens.
        let mut generate = |prompt_tokens: usize, candidates: usize, new_tokens: usize| -> Result<(f64, usize)> {
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
            let mut ask = || -> Result<(f64, usize)> {
                let prompt = random_tokens(&model, &mut rng, prompt_tokens);
                let start = Instant::now();
                let (_, usage) = model.generate_tokens(&prompt, &request, cancel, &mut |_| {})?;
                Ok((start.elapsed().as_secs_f64(), usage.generated as usize))
            };
            if on_card {
                // It loads a kernel when that is first used.
                ask()?;
            }
            ask()
        };
        generate(64, 1, 4)?;
        let prefill = [512, 1024].map(|tokens| Ok((tokens, generate(tokens, 1, 1)?.0)));
        // The prompt's own time is taken off: what is left is decoding.
        let (few_seconds, few) = generate(256, 1, 4)?;
        let (many_seconds, many) = generate(256, 1, NEW_TOKENS)?;
        let candidates = [256, 1024].map(|tokens| Ok((tokens, generate(tokens, CANDIDATES, NEW_TOKENS)?)));
        // Before the machine is measured, which takes memory of its own.
        let peak_memory_bytes = peak_memory_bytes();
        let (view, work) = (MachineView::of(&machine), Work::of(model.decoder()));
        let peaks = view.peaks();
        let floor = |tokens: f64, seconds: f64| (!on_card).then_some(tokens / seconds);
        let prefill = prefill.into_iter().map(|measured: Result<_>| {
            let (tokens, seconds) = measured?;
            Ok(PrefillBench {
                tokens,
                tokens_per_second: tokens as f64 / seconds,
                floor_tokens_per_second: floor(tokens as f64, work.prompt_seconds(&peaks, 0.0, tokens as f64)),
            })
        });
        let candidates = candidates.into_iter().map(|measured: Result<_>| {
            let (prompt_tokens, (seconds, tokens)) = measured?;
            let [read, n, new] = [prompt_tokens, CANDIDATES, NEW_TOKENS].map(|n| n as f64);
            Ok(CandidatesBench {
                prompt_tokens,
                n: CANDIDATES,
                new_tokens: NEW_TOKENS,
                tokens_per_second: tokens as f64 / seconds,
                floor_tokens_per_second: floor(n * new, work.candidates_seconds(&peaks, read, n, new)),
            })
        });
        Ok(GenerateBench {
            prefill: prefill.collect::<Result<_>>()?,
            decode_tokens_per_second: many.saturating_sub(few) as f64 / (many_seconds - few_seconds),
            // After the prompt and half of the new tokens.
            floor_decode_tokens_per_second: floor(1.0, work.step_seconds(&peaks, 1.0, 256.0 + NEW_TOKENS as f64 / 2.0)),
            candidates: candidates.collect::<Result<_>>()?,
            peak_memory_bytes,
            machine: BenchMachine {
                graphics: on_card.then(lm::accelerator::described),
                machine: view,
                work,
            },
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
