//! A random two-layer model written by the test: every claim that needs no real weights.

#![expect(clippy::unwrap_used, reason = "a test that cannot go on fails")]

use std::path::{Path, PathBuf};

use candle_core::quantized::GgmlDType;
use gym::seed::SplitMix64;
use gym::{Cancel, EngineError, Generation, Grammar, LanguageModel, Message, Prompt, Role, Sampling, Seed, TokenEvent};
use lm::estimate::{Estimate, Work};
use lm::grammar::Automaton;
use lm::kernels::measure::Peaks;
use lm::kernels::{Level, Machine};
use lm::{LmError, LocalModel, Options};

#[path = "support/tiny.rs"]
mod tiny;

use tiny::{ARCHITECTURES, HIDDEN, write_as};

fn write_model(dir: &Path) -> PathBuf {
    write_as(dir, "llama", GgmlDType::Q8_0)
}

fn model() -> (tempfile::TempDir, LocalModel) {
    let dir = tempfile::tempdir().unwrap();
    let model = LocalModel::open(&write_model(dir.path())).unwrap();
    (dir, model)
}

fn close(a: &[f32], b: &[f32], tolerance: f32) {
    assert_eq!(a.len(), b.len());
    let worst = a.iter().zip(b).map(|(x, y)| (x - y).abs()).fold(0.0, f32::max);
    assert!(worst <= tolerance, "differ by {worst}");
}

fn request(text: &str, n: u64) -> Generation {
    Generation {
        prompt: Prompt {
            messages: vec![Message {
                role: Role::User,
                content: text.into(),
            }],
        },
        sampling: Sampling {
            temperature: 1.0,
            max_tokens: 40,
            ..Sampling::default()
        },
        seeds: (0..n).map(Seed).collect(),
        grammar: None,
    }
}

#[test]
fn estimates_from_a_header_know_the_work_of_the_loaded_model() {
    let dir = tempfile::tempdir().unwrap();
    let peaks = |scale: f64| Peaks {
        f32_gflops: 100.0 * scale,
        int16_gops: 400.0 * scale,
        read_gb_per_second: 20.0 * scale,
    };
    for (architecture, dtype) in [
        ("qwen3", GgmlDType::Q4_1),
        ("phi3", GgmlDType::Q8_0),
        ("gemma3", GgmlDType::F32),
    ] {
        let path = write_as(dir.path(), architecture, dtype);
        let model = LocalModel::open(&path).unwrap();
        let [one, two] = [1.0, 2.0].map(|scale| Estimate::of(&path, &peaks(scale)).unwrap());
        let work = Work::of(model.decoder());
        assert_eq!(one.work, work);
        assert!(one.memory_bytes > work.bytes_per_step);
        // No estimate is faster than the machine, nor ten times slower.
        let peaks = peaks(1.0);
        let floors = [
            512.0 / work.prompt_seconds(&peaks, 0.0, 512.0),
            1.0 / work.step_seconds(&peaks, 1.0, 288.0),
            640.0 / work.candidates_seconds(&peaks, 256.0, 10.0, 64.0),
        ];
        let speeds = |estimate: Estimate| {
            [
                estimate.prefill_tokens_per_second,
                estimate.decode_tokens_per_second,
                estimate.candidates_tokens_per_second,
            ]
        };
        for ((one, two), floor) in speeds(one).into_iter().zip(speeds(two)).zip(floors) {
            assert!((0.1..1.0).contains(&(one / floor)), "{one} of {floor}");
            assert!((two / one - 2.0).abs() < 1e-9);
        }
    }
}

#[test]
fn steps_are_bound_by_reading_or_by_arithmetic_whichever_takes_longer() {
    let work = Work {
        bytes_per_step: 2_000_000,
        layer_operations_per_token: 3_000_000,
        output_operations_per_token: 1_000_000,
        attention_operations_per_pair: 1000,
    };
    let peaks = Peaks {
        f32_gflops: 1.0,
        int16_gops: 10.0,
        read_gb_per_second: 1.0,
    };
    let close = |found: f64, expected: f64| assert!((found - expected).abs() < 1e-12, "{found}, not {expected}");
    close(work.step_seconds(&peaks, 1.0, 0.0), 2e-3);
    close(work.step_seconds(&peaks, 10.0, 0.0), 4e-3);
    close(work.step_seconds(&peaks, 10.0, 100.0), 5e-3);
    close(work.prompt_seconds(&peaks, 0.0, 100.0), 100.0 * 3e-4 + 5e-3);
    close(work.prompt_seconds(&peaks, 50.0, 100.0), 100.0 * 3e-4 + 1e-2);
    close(
        work.candidates_seconds(&peaks, 100.0, 10.0, 3.0),
        35e-3 + 2.0 * (4e-3 + 10.0 * 101.5e-6),
    );
}

/// Log-probabilities of `continuations` as a model of these options gives them.
fn logprobs(path: &Path, machine: &Machine, prompt: &[u32], continuations: &[Vec<u32>]) -> Vec<Vec<f32>> {
    let options = Options {
        machine: machine.clone(),
        kept_tokens: 1024,
        device: None,
        ..Options::default()
    };
    let model = LocalModel::open_with(path, options).unwrap();
    model.token_logprobs(prompt, continuations, &Cancel::default()).unwrap()
}

#[test]
fn a_token_has_the_same_bits_in_any_company_on_any_path() {
    for architecture in ARCHITECTURES {
        has_the_same_bits_in_any_company(architecture);
    }
}

fn has_the_same_bits_in_any_company(architecture: &str) {
    let dir = tempfile::tempdir().unwrap();
    let path = write_as(dir.path(), architecture, GgmlDType::Q8_0);
    let text: Vec<u32> = (0..200).map(|i| i * 7 % 256).collect();
    let mut by_level = Vec::new();
    for level in Level::available() {
        let machine = Machine::new(level, 3);
        let model = LocalModel::open_with(
            &path,
            Options {
                machine: machine.clone(),
                kept_tokens: 1024,
                device: None,
                ..Options::default()
            },
        )
        .unwrap();
        let at_once = model.decoder().logits_of(&text).unwrap();
        let log_sum = |row: &[f32]| row.iter().map(|x| f64::from(*x).exp()).sum::<f64>().ln() as f32;
        let whole: Vec<f32> = (0..199)
            .map(|i| at_once[i * 260 + text[i + 1] as usize] - log_sum(&at_once[i * 260..][..260]))
            .collect();
        // A batch of continuations, each of them alone, and every cut of prompt and continuation.
        for cut in [1, 63, 64, 65, 130] {
            let long = text[cut..].to_vec();
            let short = text[cut..cut + 5].to_vec();
            let together = logprobs(
                &path,
                &machine,
                &text[..cut],
                &[long.clone(), short.clone(), long.clone()],
            );
            assert_eq!(together[0], together[2]);
            assert_eq!(together[0][..5], together[1]);
            assert_eq!(
                together[0],
                logprobs(&path, &Machine::new(level, 1), &text[..cut], &[long])[0]
            );
            close(&together[0], &whole[cut - 1..], 1e-4);
            // The prompt is in the cache now, and so is a longer text.
            let cancel = Cancel::default();
            let fresh = model
                .token_logprobs(&text[..cut], std::slice::from_ref(&short), &cancel)
                .unwrap();
            let again = model
                .token_logprobs(&text[..cut], std::slice::from_ref(&short), &cancel)
                .unwrap();
            assert_eq!((&fresh[0], &again[0]), (&together[1], &together[1]));
        }
        // One token at a time reads like all at once.
        let mut sampled = request("", 1);
        sampled.sampling.temperature = 0.0;
        let (samples, _) = model
            .generate_tokens(&text[..70], &sampled, &Cancel::default(), &mut |_| {})
            .unwrap();
        let scored = model
            .token_logprobs(&text[..70], &[samples[0].token_ids.clone()], &Cancel::default())
            .unwrap();
        assert_eq!(samples[0].token_logprobs, scored[0]);
        by_level.push((level.name(), at_once));
    }
    // The portable path may round twice where the others fuse; one path rounds queries to bfloat16.
    let size = by_level[0].1.iter().fold(0f32, |most, x| most.max(x.abs()));
    for (name, logits) in &by_level {
        close(logits, &by_level[0].1, 0.05 * size);
        if !["portable", "avx512-bf16"].contains(name) {
            assert_eq!(
                logits, &by_level[1].1,
                "{architecture}: {name} differs from {}",
                by_level[1].0
            );
        }
    }
}

#[test]
fn hidden_states_say_what_the_logits_come_from() {
    let (_dir, model) = model();
    let prompt: Vec<u32> = (0..90).map(|i| i * 3 % 256).collect();
    let cancel = Cancel::default();
    let states = model.hidden_states(&prompt, &[vec![4, 5], vec![6]], &cancel).unwrap();
    assert_eq!(states.iter().map(Vec::len).collect::<Vec<_>>(), [HIDDEN, HIDDEN]);
    let alone = model.hidden_states(&prompt, &[vec![6]], &cancel).unwrap();
    assert_eq!(states[1], alone[0]);
    assert_ne!(states[0], states[1]);
    assert!(model.hidden_states(&[], &[vec![1]], &cancel).is_err());
    assert!(model.hidden_states(&prompt, &[vec![]], &cancel).is_err());
    assert!(model.token_logprobs(&prompt, &[vec![9999]], &cancel).is_err());
}

#[test]
fn callers_at_the_same_time_get_what_each_would_alone() {
    for architecture in ARCHITECTURES {
        callers_get_what_each_would_alone(architecture);
    }
}

fn callers_get_what_each_would_alone(architecture: &str) {
    let dir = tempfile::tempdir().unwrap();
    let path = write_as(dir.path(), architecture, GgmlDType::Q8_0);
    let [model, fresh] = [(); 2].map(|()| LocalModel::open(&path).unwrap());
    let ask = |i: u64| request(&"hello there you ".repeat(1 + i as usize % 5), 1 + i % 4);
    let alone: Vec<_> = (0..12)
        .map(|i| model.generate(&ask(i), &Cancel::default(), &mut |_| {}).unwrap().0)
        .collect();
    std::thread::scope(|scope| {
        let together: Vec<_> = (0..12)
            .map(|i| {
                let (fresh, ask) = (&fresh, &ask);
                scope.spawn(move || fresh.generate(&ask(i), &Cancel::default(), &mut |_| {}).unwrap().0)
            })
            .collect();
        for (alone, together) in alone.iter().zip(together) {
            assert_eq!(*alone, together.join().unwrap());
        }
    });
}

#[test]
fn streams_concatenate_and_a_kept_prompt_changes_nothing() {
    for architecture in ARCHITECTURES {
        a_kept_prompt_changes_nothing(architecture);
    }
}

fn a_kept_prompt_changes_nothing(architecture: &str) {
    let dir = tempfile::tempdir().unwrap();
    let model = LocalModel::open(&write_as(dir.path(), architecture, GgmlDType::Q8_0)).unwrap();
    let mut texts = vec![String::new(); 5];
    let first = request(&format!("{}there", "hello ".repeat(30)), 5);
    let (samples, usage) = model
        .generate(&first, &Cancel::default(), &mut |e: TokenEvent| {
            texts[e.sample_idx] += &e.text
        })
        .unwrap();
    assert_eq!(usage.cached, 0);
    assert_eq!(samples.iter().map(|s| s.text.clone()).collect::<Vec<_>>(), texts);
    let (_, usage) = model
        .generate(
            &request(&format!("{}you", "hello ".repeat(30)), 1),
            &Cancel::default(),
            &mut |_| {},
        )
        .unwrap();
    assert!(usage.cached > 120, "{usage:?}");
    let (again, usage) = model.generate(&first, &Cancel::default(), &mut |_| {}).unwrap();
    assert_eq!((&again, usage.cached), (&samples, usage.prompt - 1));
    let one = Generation {
        seeds: vec![Seed(3)],
        ..first
    };
    assert_eq!(
        model.generate(&one, &Cancel::default(), &mut |_| {}).unwrap().0[0].text,
        samples[3].text
    );
}

#[test]
fn an_endless_model_fills_every_text() {
    let dir = tempfile::tempdir().unwrap();
    let path = write_model(dir.path());
    let lengths = |endless: bool| -> Vec<usize> {
        let options = Options {
            endless,
            ..Options::default()
        };
        let model = LocalModel::open_with(&path, options).unwrap();
        let mut many = request("hello", 16);
        many.sampling.max_tokens = 200;
        let (samples, usage) = model.generate(&many, &Cancel::default(), &mut |_| {}).unwrap();
        let lengths: Vec<_> = samples.iter().map(|sample| sample.token_ids.len()).collect();
        assert_eq!(usage.generated as usize, lengths.iter().sum::<usize>());
        lengths
    };
    assert!(lengths(false).iter().any(|length| *length < 200));
    assert!(lengths(true).iter().all(|length| *length == 200));
}

#[test]
fn cancelling_stops_and_long_prompts_are_refused() {
    let (_dir, model) = model();
    let cancel = Cancel::default();
    let flag = cancel.clone();
    let stopped = model.generate(&request("hello", 2), &cancel, &mut |_| flag.cancel());
    assert!(matches!(stopped, Err(EngineError::Cancelled)));
    let long = model.generate(&request(&"z".repeat(300), 1), &Cancel::default(), &mut |_| {});
    assert!(matches!(long, Err(EngineError::PromptTooLong { limit: 256, .. })));
}

fn random_grammar(rng: &mut SplitMix64, depth: usize) -> Grammar {
    match rng.below(if depth == 0 { 2 } else { 4 }) {
        0 => Grammar::Literal(["hello", "é\n", "A: ", "🐍"][rng.below(4)].into()),
        1 => Grammar::Line {
            max_bytes: 1 + rng.below(9),
        },
        2 => Grammar::Sequence((0..1 + rng.below(3)).map(|_| random_grammar(rng, depth - 1)).collect()),
        _ => Grammar::OneOf(
            (0..1 + rng.below(3))
                .map(|i| {
                    Grammar::Sequence(vec![
                        Grammar::Literal(["x", "y", "z"][i].into()),
                        random_grammar(rng, depth - 1),
                    ])
                })
                .collect(),
        ),
    }
}

#[test]
fn what_is_generated_under_a_grammar_matches_it() {
    let (_dir, model) = model();
    let mut rng = Seed(5).rng();
    for _ in 0..25 {
        let grammar = random_grammar(&mut rng, 2);
        let mut asked = request("hi", 3);
        asked.sampling.max_tokens = 200;
        asked.grammar = Some(grammar.clone());
        let (samples, _) = model.generate(&asked, &Cancel::default(), &mut |_| {}).unwrap();
        let automaton = Automaton::new(&grammar).unwrap();
        for sample in samples {
            assert!(automaton.matches(&sample.text), "{grammar:?}: {:?}", sample.text);
        }
    }
}

#[test]
fn damaged_files_are_errors() {
    let dir = tempfile::tempdir().unwrap();
    let path = write_model(dir.path());
    let whole = std::fs::read(&path).unwrap();
    let mut rng = Seed(2).rng();
    let bad = dir.path().join("bad.gguf");
    for _ in 0..120 {
        std::fs::write(&bad, &whole[..rng.below(whole.len() - 32)]).unwrap();
        assert!(LocalModel::open(&bad).is_err());
    }
    // Flipped bytes of the header may leave a valid file; they must not panic.
    for _ in 0..300 {
        let mut bytes = whole.clone();
        let at = rng.below(bytes.len().min(9000));
        bytes[at] = rng.next_u64() as u8;
        std::fs::write(&bad, &bytes).unwrap();
        let _: Result<LocalModel, LmError> = LocalModel::open(&bad);
    }
}
