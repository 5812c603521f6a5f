//! The engine's claims about gradients, packing and training, on a tiny model.

#![expect(clippy::unwrap_used, reason = "a test that cannot go on fails")]

use std::path::{Path, PathBuf};

use gym::{Cancel, Seed};
use training::TrainingError;
use training::adapter::{Adapter, AdapterConfig};
use training::base::{Base, Part};
use training::factor::Arithmetic;
use training::lesson::{Encoder, Selection};
use training::network::Dropout;
use training::objective::{Batch, Example, Objective, log_probability, rewards};
use training::train::{StepReport, Trained, TrainingConfig, split, train};
use training::trl::from_trl;

/// In f32 whatever the machine has: slopes are differences of close numbers.
fn base() -> Base {
    let mut base = fast_base();
    base.arithmetic = Arithmetic::F32;
    base
}

fn fast_base() -> Base {
    Base::open(&PathBuf::from(env!("CARGO_MANIFEST_DIR")).join("tests/peft/tiny.gguf")).unwrap()
}

const OBJECTIVES: [Objective; 3] = [
    Objective::Sft,
    Objective::Dpo { beta: 0.3 },
    Objective::Prm { centre: 0.01 },
];

/// All parts trained, and no number zero.
fn adapter(base: &Base, objective: Objective) -> Adapter {
    let config = AdapterConfig {
        rank: 3,
        alpha: 4.0,
        targets: Part::ALL.to_vec(),
        head: matches!(objective, Objective::Prm { .. }),
    };
    let mut adapter = Adapter::new(&base.config, config, Seed(1)).unwrap();
    let mut rng = Seed(2).rng();
    adapter
        .values
        .iter_mut()
        .for_each(|x| *x = (rng.next_f64() as f32 - 0.5) * 0.4);
    adapter
}

fn tokens(n: usize, seed: u64) -> Vec<u32> {
    let mut rng = Seed(seed).rng();
    (0..n).map(|_| rng.below(46) as u32).collect()
}

fn examples(objective: Objective) -> Vec<Example> {
    let example = |seed: u64, prompt, completions: &[usize]| Example {
        question: format!("q{seed}"),
        prompt: tokens(prompt, seed),
        completions: completions
            .iter()
            .zip(1..)
            .map(|(&n, i)| tokens(n, seed * 10 + i))
            .collect(),
        pairs: if objective == Objective::Sft {
            Vec::new()
        } else {
            vec![(0, 1), (0, 2), (2, 1)]
        },
    };
    vec![example(1, 11, &[4, 7, 1]), example(2, 60, &[3, 2, 5])]
}

fn loss(
    base: &Base,
    adapter: &Adapter,
    objective: Objective,
    examples: &[Example],
    dropout: Option<Dropout>,
) -> (f64, Vec<f32>) {
    let examples: Vec<&Example> = examples.iter().collect();
    let batch = Batch::new(&examples);
    let reference = log_probability(base, None, &batch).unwrap();
    let mut gradient = vec![0.0; adapter.values.len()];
    let measure = objective
        .measure(base, adapter, &batch, &reference, dropout, Some((&mut gradient, 1.0)))
        .unwrap();
    (measure.loss, gradient)
}

#[test]
fn gradients_are_slopes() {
    let base = base();
    for objective in OBJECTIVES {
        for dropout in [
            None,
            Some(Dropout {
                share: 0.2,
                seed: Seed(9),
            }),
        ] {
            let adapter = adapter(&base, objective);
            let examples = examples(objective);
            let (_, gradient) = loss(&base, &adapter, objective, &examples, dropout);
            for (name, range) in adapter.tensors() {
                let norm = gradient[range.clone()].iter().map(|g| g * g).sum::<f32>().sqrt();
                assert!(norm > 1e-4, "{objective:?}: `{name}` receives no gradient");
                // Along the gradient, where the slope is its norm, and along a random direction.
                let mut rng = Seed(3).derive_str(&name).rng();
                let random: Vec<f32> = range.clone().map(|_| rng.next_f64() as f32 - 0.5).collect();
                for direction in [gradient[range.clone()].to_vec(), random] {
                    let length = direction.iter().map(|d| d * d).sum::<f32>().sqrt();
                    let at = |step: f32| {
                        let mut moved = adapter.clone();
                        for (x, d) in moved.values[range.clone()].iter_mut().zip(&direction) {
                            *x += step * d / length;
                        }
                        loss(&base, &moved, objective, &examples, dropout).0
                    };
                    let step = 4e-3;
                    let slope = (at(step) - at(-step)) / (2.0 * f64::from(step));
                    let dot: f32 = gradient[range.clone()].iter().zip(&direction).map(|(g, d)| g * d).sum();
                    let ours = f64::from(dot / length);
                    let tolerance = 0.01 * f64::from(norm) + 2e-3;
                    assert!(
                        (slope - ours).abs() < tolerance,
                        "{objective:?} {name}: {ours}, slope {slope}"
                    );
                }
            }
        }
    }
}

#[test]
fn a_shared_prompt_changes_neither_loss_nor_gradient() {
    let base = base();
    for objective in OBJECTIVES {
        let adapter = adapter(&base, objective);
        let packed = examples(objective);
        // The prompt repeated in every completion: its own likelihood cancels in a pair, and no reward is
        // read from it.
        let apart: Vec<Example> = match objective {
            Objective::Sft => packed
                .iter()
                .flat_map(|example| {
                    example.completions.iter().map(|completion| Example {
                        completions: vec![completion.clone()],
                        ..example.clone()
                    })
                })
                .collect(),
            _ => packed
                .iter()
                .map(|example| Example {
                    prompt: example.prompt[..1].to_vec(),
                    completions: example
                        .completions
                        .iter()
                        .map(|completion| [&example.prompt[1..], completion].concat())
                        .collect(),
                    ..example.clone()
                })
                .collect(),
        };
        let (ours, gradient) = loss(&base, &adapter, objective, &packed, None);
        let (mut theirs, mut their_gradient) = (0.0, vec![0.0; gradient.len()]);
        for example in apart {
            let (loss, gradient) = loss(&base, &adapter, objective, &[example], None);
            theirs += loss;
            their_gradient.iter_mut().zip(gradient).for_each(|(sum, g)| *sum += g);
        }
        assert!((ours - theirs).abs() < 1e-4, "{objective:?}: {ours}, {theirs}");
        let most = gradient.iter().fold(0.0f32, |most, g| most.max(g.abs()));
        for (a, b) in gradient.iter().zip(&their_gradient) {
            assert!((a - b).abs() < 1e-4 * most.max(1.0), "{objective:?}: {a}, {b}");
        }
    }
}

#[test]
fn a_beginning_shared_by_examples_changes_neither_loss_nor_gradient() {
    let base = base();
    for objective in OBJECTIVES {
        let adapter = adapter(&base, objective);
        // A growing history, as a question's steps have it, and another question with the same instructions.
        let history = tokens(50, 7);
        let example = |prompt: &[u32], seed: u64| Example {
            prompt: prompt.to_vec(),
            completions: (0..3).map(|i| tokens(3 + i, seed + i as u64)).collect(),
            ..examples(objective).remove(0)
        };
        let examples = [
            example(&history[..30], 20),
            example(&history, 30),
            example(&[&history[..12], &tokens(9, 8)].concat(), 40),
        ];
        let examples: Vec<&Example> = examples.iter().collect();
        let measure = |batch: &Batch<'_>| {
            let reference = log_probability(&base, None, batch).unwrap();
            let mut gradient = vec![0.0; adapter.values.len()];
            let measure = objective
                .measure(&base, &adapter, batch, &reference, None, Some((&mut gradient, 1.0)))
                .unwrap();
            (measure, gradient)
        };
        let ((shared, gradient), (apart, its)) = (measure(&Batch::new(&examples)), measure(&Batch::apart(&examples)));
        assert_eq!((shared.rows, apart.rows), (50 + 9 + 3 * 12, 30 + 50 + 21 + 3 * 12));
        assert_eq!((shared.n, shared.right), (apart.n, apart.right));
        assert!(
            (shared.loss - apart.loss).abs() < 1e-5 * apart.loss,
            "{shared:?} {apart:?}"
        );
        let most = its.iter().fold(0.0f32, |most, g| most.max(g.abs()));
        for (a, b) in gradient.iter().zip(&its) {
            assert!((a - b).abs() < 1e-5 * most, "{objective:?}: {a}, {b}, of {most}");
        }
    }
}

/// bfloat16 keeps 8 bits: a number is off by at most 1/256 of itself, and the tiny model's are of one size.
#[test]
fn fast_arithmetic_agrees_with_f32() {
    for objective in OBJECTIVES {
        compare(&mut fast_base(), objective, &examples(objective), 1.0, 0.06);
    }
}

#[test]
fn fast_arithmetic_agrees_with_f32_on_a_real_model() {
    let Some(model) = std::env::var_os("RAG_GYM_TEST_MODEL") else {
        eprintln!("RAG_GYM_TEST_MODEL names no model: run `cargo xtask test`");
        return;
    };
    let encoder = Encoder::open(Path::new(&model)).unwrap();
    let pair = r#"{"prompt": "What is the highest mountain of Austria?", "chosen": "Search: highest mountain of Austria", "rejected": "Answer: Vienna"}"#;
    let lessons = from_trl(pair, OBJECTIVES[1], Selection::default()).unwrap();
    let example = encoder.example(&lessons[0]).unwrap();
    for objective in [OBJECTIVES[1], OBJECTIVES[2], Objective::Sft] {
        let mut example = example.clone();
        if objective == Objective::Sft {
            example.pairs.clear();
        }
        let mut base = Base::open(Path::new(&model)).unwrap();
        // An adapter that does not drown the model.
        compare(&mut base, objective, &[example], 0.05, 0.1);
    }
}

/// The loss may be off by a twentieth, the gradient by `tolerance` of its length; and the same bits come twice.
fn compare(base: &mut Base, objective: Objective, examples: &[Example], strength: f32, tolerance: f32) {
    let fast = base.arithmetic;
    if fast == Arithmetic::F32 {
        return;
    }
    let mut adapter = adapter(base, objective);
    adapter.values.iter_mut().for_each(|x| *x *= strength);
    let (ours, gradient) = loss(base, &adapter, objective, examples, None);
    assert_eq!(
        loss(base, &adapter, objective, examples, None),
        (ours, gradient.clone())
    );
    base.arithmetic = Arithmetic::F32;
    let (right, its) = loss(base, &adapter, objective, examples, None);
    let norm = |x: &mut dyn Iterator<Item = f32>| x.map(|x| x * x).sum::<f32>().sqrt();
    let off = norm(&mut gradient.iter().zip(&its).map(|(a, b)| a - b)) / norm(&mut its.iter().copied());
    eprintln!("{objective:?}: loss {ours} instead of {right}, gradient off by {off}");
    assert!(ours != right && (ours - right).abs() < 0.05 * right.max(1.0));
    assert!(off < tolerance);
}

fn config(objective: Objective) -> TrainingConfig {
    let adapter = AdapterConfig {
        rank: 4,
        alpha: 8.0,
        targets: vec![Part::Query, Part::Key, Part::Value, Part::Down],
        head: matches!(objective, Objective::Prm { .. }),
    };
    TrainingConfig {
        learning_rate: 2e-2,
        warm_up: 0.0,
        epochs: 30,
        batch: 2,
        dropout: 0.1,
        pack_tokens: 64,
        checkpoint_every: 4,
        eval_every: 5,
        ..TrainingConfig::new(objective, adapter)
    }
}

fn run(
    objective: Objective,
    checkpoint: &Path,
    stop_after: Option<u64>,
) -> (Result<Trained, TrainingError>, Vec<StepReport>) {
    let base = base();
    let cancel = Cancel::default();
    let mut reports = Vec::new();
    let (train_examples, held_out) = (examples(objective), examples(objective));
    let trained = train(
        &base,
        &config(objective),
        None,
        &train_examples,
        &held_out,
        checkpoint,
        &cancel,
        &mut |report| {
            reports.push(report.clone());
            if Some(report.step) == stop_after {
                cancel.cancel();
            }
        },
    );
    (trained, reports)
}

#[test]
fn every_method_learns_what_it_is_shown() {
    let dir = tempfile::tempdir().unwrap();
    for objective in OBJECTIVES {
        let (trained, reports) = run(objective, &dir.path().join(format!("{objective:?}")), None);
        let trained = trained.unwrap();
        assert_eq!(trained.steps, 30);
        let (first, last) = (reports[0].measure, trained.evaluation.unwrap());
        match objective {
            Objective::Sft => assert!(last.loss < 0.3 * first.loss, "{first:?} {last:?}"),
            // Two of the three pairs of each example can hold at once with the third: the order 0, 2, 1.
            _ => assert!(
                last.accuracy == Some(1.0) && last.loss < 0.3 * first.loss,
                "{first:?} {last:?}"
            ),
        }
    }
}

#[test]
fn stopping_anywhere_and_going_on_gives_the_same_bytes() {
    let dir = tempfile::tempdir().unwrap();
    for objective in OBJECTIVES {
        let path = |name: &str| dir.path().join(format!("{name} {objective:?}"));
        let (whole, reports) = run(objective, &path("whole"), None);
        let whole = whole.unwrap().model;
        assert_eq!(
            run(objective, &path("again"), None).0.unwrap().model.values,
            whole.values
        );
        for stop in [1, 6, 17] {
            let checkpoint = path(&format!("stopped {stop}"));
            let (stopped, _) = run(objective, &checkpoint, Some(stop));
            assert!(matches!(stopped, Err(TrainingError::Cancelled)));
            let (resumed, later) = run(objective, &checkpoint, None);
            assert_eq!(resumed.unwrap().model.values, whole.values);
            assert_eq!(later[..], reports[stop as usize..]);
        }
    }
}

#[test]
fn a_checkpoint_of_other_settings_or_half_a_file_is_refused() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("checkpoint");
    run(Objective::Sft, &path, Some(2)).0.err().unwrap();
    let (other, _) = run(Objective::Dpo { beta: 0.1 }, &path, None);
    assert!(matches!(other, Err(TrainingError::Invalid(message)) if message.contains("other settings")));
    let bytes = std::fs::read(&path).unwrap();
    std::fs::write(&path, &bytes[..bytes.len() / 2]).unwrap();
    assert!(matches!(
        run(Objective::Sft, &path, None).0,
        Err(TrainingError::Corrupt { .. })
    ));
}

#[test]
fn unusable_examples_are_named() {
    let base = base();
    let good = examples(Objective::Sft).remove(0);
    let with = |change: &dyn Fn(&mut Example)| {
        let mut example = good.clone();
        change(&mut example);
        example
    };
    for (bad, says) in [
        (with(&|e| e.prompt.clear()), "at least one token"),
        (with(&|e| e.completions.clear()), "at least one token"),
        (with(&|e| e.completions[1].clear()), "at least one token"),
        (with(&|e| e.prompt[3] = 48), "token 48"),
        (with(&|e| e.completions[0] = vec![1; 200]), "200 tokens"),
        (with(&|e| e.pairs.push((0, 1))), "pairs are for"),
    ] {
        let examples = [good.clone(), bad];
        let dir = tempfile::tempdir().unwrap();
        let cancel = Cancel::default();
        let error = train(
            &base,
            &config(Objective::Sft),
            None,
            &examples,
            &[],
            &dir.path().join("c"),
            &cancel,
            &mut |_| {},
        );
        let error = error.err().unwrap().to_string();
        assert!(error.contains("example 1") && error.contains(says), "{error}");
    }
    let dir = tempfile::tempdir().unwrap();
    let diverging = TrainingConfig {
        learning_rate: 1e30,
        clip_norm: 0.0,
        ..config(Objective::Sft)
    };
    let error = train(
        &base,
        &diverging,
        None,
        &[good],
        &[],
        &dir.path().join("c"),
        &Cancel::default(),
        &mut |_| {},
    );
    assert!(matches!(error, Err(TrainingError::Diverged { .. })));
}

#[test]
fn a_long_prompt_loses_its_beginning_only() {
    let base = base();
    let dir = tempfile::tempdir().unwrap();
    let long = examples(Objective::Sft).remove(1);
    let short = Example {
        prompt: long.prompt[long.prompt.len() - 15..].to_vec(),
        ..long.clone()
    };
    let adapters = [long, short].map(|example| {
        let config = TrainingConfig {
            max_length: 20,
            epochs: 2,
            ..config(Objective::Sft)
        };
        let path = dir.path().join(format!("{}", example.prompt.len()));
        train(
            &base,
            &config,
            None,
            &[example],
            &[],
            &path,
            &Cancel::default(),
            &mut |_| {},
        )
        .unwrap()
        .model
        .values
    });
    assert_eq!(adapters[0], adapters[1]);
}

#[test]
fn no_question_is_on_both_sides_of_a_split() {
    let all: Vec<Example> = (0..40)
        .map(|i| Example {
            question: format!("q{}", i % 10),
            ..examples(Objective::Sft).remove(0)
        })
        .collect();
    let (train, held_out) = split(all.clone(), 0.2, Seed(4));
    assert_eq!((train.len(), held_out.len()), (32, 8));
    assert!(
        held_out
            .iter()
            .all(|example| train.iter().all(|other| other.question != example.question))
    );
    assert_eq!(split(all.clone(), 0.2, Seed(4)).1, held_out);
    assert_eq!(split(all, 0.0, Seed(4)).1, []);
}

#[test]
fn a_reward_needs_a_head() {
    let base = base();
    let examples = examples(Objective::Sft);
    let examples: Vec<&Example> = examples.iter().collect();
    assert!(rewards(&base, &adapter(&base, Objective::Sft), &Batch::new(&examples)).is_err());
}

#[test]
fn training_goes_on_from_an_adapter_which_is_the_reference() {
    let base = base();
    let dir = tempfile::tempdir().unwrap();
    let (sft, _) = run(Objective::Sft, &dir.path().join("sft"), None);
    let start = sft.unwrap().model;
    for (objective, first_loss) in [(OBJECTIVES[1], Some(2.0f64.ln())), (OBJECTIVES[2], None)] {
        let config = TrainingConfig {
            dropout: 0.0,
            epochs: 1,
            ..config(objective)
        };
        let mut reports = Vec::new();
        let path = dir.path().join(format!("{objective:?}"));
        let examples = examples(objective);
        let mut seen = |report: &StepReport| reports.push(report.clone());
        let cancel = Cancel::default();
        let trained = train(&base, &config, Some(&start), &examples, &[], &path, &cancel, &mut seen).unwrap();
        assert_ne!(trained.model.values[..start.values.len()], start.values);
        // Nothing differs from the reference yet: every margin is 0.
        if let Some(first_loss) = first_loss {
            assert!((reports[0].measure.loss - first_loss).abs() < 1e-6);
        }
    }
}
