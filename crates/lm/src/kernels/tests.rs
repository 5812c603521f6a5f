//! Every kernel beside plain arithmetic, on odd shapes, for each instruction set of the machine.

use std::sync::Arc;

use candle_core::quantized::{GgmlDType, QTensor};
use candle_core::{Device, Tensor};
use gym::Seed;
use gym::seed::SplitMix64;
use half::bf16;

use super::attention::{BLOCK, Block, Heads, Plan, Rotary, Shapes, Span, Store, View};
use super::*;

fn numbers(rng: &mut SplitMix64, n: usize) -> Vec<f32> {
    (0..n).map(|_| rng.next_f64() as f32 * 2.0 - 1.0).collect()
}

fn machines() -> Vec<Machine> {
    Level::available()
        .into_iter()
        .map(|level| Machine::new(level, 2))
        .collect()
}

fn close(got: &[f32], want: &[f64], what: &str) {
    assert_eq!(got.len(), want.len(), "{what}");
    let size = want.iter().fold(1.0f64, |most, x| most.max(x.abs()));
    for (at, (got, want)) in got.iter().zip(want).enumerate() {
        assert!(
            (f64::from(*got) - want).abs() < 1e-4 * size,
            "{what} at {at}: {got}, not {want}"
        );
    }
}

#[test]
fn products_agree_with_plain_arithmetic_and_with_each_other() {
    let mut rng = Seed(21).rng();
    for (dtype, rows, columns) in [
        (GgmlDType::Q4_1, 21, 96),
        (GgmlDType::Q4_0, 1, 32),
        (GgmlDType::Q8_0, 50, 64),
        (GgmlDType::Q4K, 16, 512),
        (GgmlDType::F32, 33, 45),
        // More tiles in a task than are multiplied in turn.
        (GgmlDType::Q4_0, 1100, 32),
    ] {
        let machines = machines();
        let mut matrix = || {
            let dense = Tensor::from_vec(numbers(&mut rng, rows * columns), (rows, columns), &Device::Cpu).unwrap();
            Packed::new(
                &QTensor::quantize(&dense, dtype).unwrap(),
                |row| row,
                &machines[0].pool,
                &mut Arena::default(),
            )
            .unwrap()
        };
        let (matrix, gate) = (matrix(), matrix());
        let (bias, rank) = (numbers(&mut rng, rows), 5);
        let (a, b) = (numbers(&mut rng, rank * columns), numbers(&mut rng, rows * rank));
        let low = LowRank::new(rank, &a, &b, 0.5);
        for tokens in [1, 2, 3, 11, 12, 13, 29, 50] {
            let x = numbers(&mut rng, tokens * columns);
            let before = numbers(&mut rng, tokens * rows);
            let plain = |matrix: &Packed| -> Vec<f64> {
                let mut weights = vec![0.0; columns];
                let mut y = vec![0.0; tokens * rows];
                for row in 0..rows {
                    matrix.row(row, &mut weights);
                    for (token, x) in x.chunks_exact(columns).enumerate() {
                        y[token * rows + row] =
                            x.iter().zip(&weights).map(|(x, w)| f64::from(*x) * f64::from(*w)).sum();
                    }
                }
                y
            };
            let bare = plain(&matrix);
            let mut added: Vec<f64> = bare
                .iter()
                .zip(&before)
                .map(|(y, before)| y + f64::from(*before))
                .collect();
            for (token, x) in x.chunks_exact(columns).enumerate() {
                for row in 0..rows {
                    added[token * rows + row] += f64::from(bias[row]);
                    for r in 0..rank {
                        let inner: f64 = x
                            .iter()
                            .zip(&a[r * columns..])
                            .map(|(x, a)| f64::from(*x) * f64::from(*a))
                            .sum();
                        added[token * rows + row] += 0.5 * inner * f64::from(b[row * rank + r]);
                    }
                }
            }
            let silu = |g: f64| g / (1.0 + (-g).exp());
            let gelu =
                |g: f64| 0.5 * g * (1.0 + ((2.0 / std::f64::consts::PI).sqrt() * (g + 0.044715 * g.powi(3))).tanh());
            let opened = |curve: &dyn Fn(f64) -> f64| -> Vec<f64> {
                bare.iter().zip(plain(&gate)).map(|(y, g)| y * curve(g)).collect()
            };
            let opened = [(Curve::SILU, opened(&silu)), (Curve::GELU, opened(&gelu))];

            let mut all = Vec::new();
            for machine in &machines {
                let what = format!("{dtype:?} {rows}x{columns}, {tokens} tokens, {}", machine.level.name());
                let mut activations = Activations::default();
                activations.set(machine, &x, columns);
                let mut hidden = Vec::new();
                down_project(machine, &x, &low, &mut hidden);
                let part = Part {
                    bias: &bias,
                    low: Some((&low, &hidden)),
                    ..Part::new(&matrix)
                };
                let mut y = before.clone();
                product(machine, &activations, &[part], &mut y, rows, Into::Add);
                close(&y, &added, &what);
                let mut both = vec![7.0; tokens * (2 * rows + 3)];
                let parts = [
                    Part::new(&matrix),
                    Part {
                        column: rows + 1,
                        ..Part::new(&matrix)
                    },
                ];
                product(machine, &activations, &parts, &mut both, 2 * rows + 3, Into::Replace);
                for (both, bare) in both.chunks(2 * rows + 3).zip(bare.chunks(rows)) {
                    close(&both[..rows], bare, &what);
                    close(&both[rows + 1..2 * rows + 1], bare, &what);
                    assert_eq!((both[rows], both[2 * rows + 1], both[2 * rows + 2]), (7.0, 7.0, 7.0));
                }
                let mut inner = vec![0.0; tokens * rows];
                for (curve, opened) in &opened {
                    let (gate, up) = (Part::new(&gate), Part::new(&matrix));
                    gated(machine, &activations, *curve, &gate, &up, &mut inner);
                    close(&inner, opened, &what);
                }
                // Each token alone gives the same bits.
                for token in 0..tokens {
                    activations.set(machine, &x[token * columns..(token + 1) * columns], columns);
                    let mut alone = vec![0.0; rows];
                    product(
                        machine,
                        &activations,
                        &[Part::new(&matrix)],
                        &mut alone,
                        rows,
                        Into::Replace,
                    );
                    assert_eq!(alone, both[token * (2 * rows + 3)..][..rows], "{what}");
                }
                all.push((machine.level, y, both, inner));
            }
            // All instruction sets that fuse multiply and add give the same bits.
            for pair in all[all.len().min(1)..].windows(2) {
                assert!(
                    pair[0].1 == pair[1].1 && pair[0].2 == pair[1].2 && pair[0].3 == pair[1].3,
                    "{dtype:?}"
                );
            }
        }
    }
}

#[test]
fn attention_agrees_with_plain_arithmetic() {
    let heads = Heads {
        heads: 6,
        kv_heads: 2,
        dim: 24,
    };
    // All numbers turn; ten of them do, and grow; none does.
    let mut some = Rotary::new(10, 30.0);
    some.scale = 1.5;
    let rotaries = [Rotary::new(24, 100.0), some, Rotary::new(0, 1.0)];
    let whole = View::default();
    for view in [
        whole,
        View { rotary: 2, ..whole },
        View { rotary: 1, window: 1 },
        View { rotary: 0, window: 64 },
        View { rotary: 1, window: 70 },
    ] {
        attends_like_plain_arithmetic(heads, &rotaries, view);
    }
}

fn attends_like_plain_arithmetic(heads: Heads, rotaries: &[Rotary], view: View) {
    let (stride, layers) = (heads.stride(), 2);
    let Rotary { frequencies, scale } = &rotaries[view.rotary];
    let mut rng = Seed(22).rng();
    // Two texts that share their first 130 tokens.
    let common = numbers(&mut rng, 130 * stride);
    let texts: Vec<Vec<f32>> = (0..2)
        .map(|_| [common.clone(), numbers(&mut rng, 90 * stride)].concat())
        .collect();
    let (query_norm, key_norm) = (numbers(&mut rng, 24), numbers(&mut rng, 24));
    let turned = |position: usize, head: &[f32], norm: &[f32]| -> Vec<f64> {
        let mut out: Vec<f64> = head.iter().map(|x| f64::from(*x)).collect();
        let squares: f64 = out.iter().map(|x| x * x).sum();
        for (x, w) in out.iter_mut().zip(norm) {
            *x *= f64::from(*w) / (squares / 24.0 + 0.01).sqrt();
        }
        let half = frequencies.len();
        for i in 0..half {
            let (sin, cos) = (position as f32 * frequencies[i]).sin_cos();
            let (sin, cos) = (f64::from(sin * scale), f64::from(cos * scale));
            let (a, b) = (out[i], out[i + half]);
            out[i] = a * cos - b * sin;
            out[i + half] = a * sin + b * cos;
        }
        out
    };
    let half = |x: f64| bf16::from_f32(x as f32).to_f64();
    let plain = |text: &[f32], position: usize| -> Vec<f64> {
        let at = |position: usize, head: usize| &text[position * stride + head * 24..][..24];
        let mut out = Vec::new();
        for head in 0..6 {
            let (query, kv) = (turned(position, at(position, head), &query_norm), head / 3);
            let seen = (position + 1).saturating_sub(view.window)..=position;
            let scores: Vec<f64> = seen
                .clone()
                .map(|p| {
                    turned(p, at(p, 6 + kv), &key_norm)
                        .iter()
                        .zip(&query)
                        .map(|(k, q)| half(*k) * q)
                        .sum::<f64>()
                        * 0.3
                })
                .collect();
            let total: f64 = scores.iter().map(|s| s.exp()).sum();
            out.extend((0..24).map(|i| {
                seen.clone()
                    .zip(&scores)
                    .map(|(p, score)| score.exp() / total * half(f64::from(at(p, 8 + kv)[i])))
                    .sum::<f64>()
            }));
        }
        out
    };
    let store = Store::Memory { layers, heads };
    for machine in machines() {
        let mut plan = Plan::default();
        // Reads tokens of some texts after what their tables hold; returns each token's result.
        let mut read = |tables: &mut [(usize, usize, Vec<Arc<Block>>)], n: usize| -> Vec<f32> {
            let mut qkv = Vec::new();
            for (text, base, table) in tables.iter_mut() {
                qkv.extend_from_slice(&texts[*text][*base * stride..(*base + n) * stride]);
                table.resize_with((*base + n).div_ceil(BLOCK), || Arc::new(store.block()));
            }
            let mut spans: Vec<Span> = tables
                .iter_mut()
                .map(|(_, base, table)| Span {
                    blocks: table,
                    base: *base,
                    tokens: n,
                })
                .collect();
            plan.set(&spans, rotaries);
            let shapes = Shapes {
                heads,
                layer: 1,
                view,
                query_scale: 0.3,
                qkv: &qkv,
                norms: [&query_norm, &key_norm],
                norm_epsilon: 0.01,
            };
            plan.write(&machine, &mut spans, shapes);
            let mut out = vec![0.0; qkv.len() / stride * 6 * 24];
            plan.attend(&machine, &spans, shapes, &mut out);
            tables.iter_mut().for_each(|(_, base, _)| *base += n);
            out
        };
        let check = |text: usize, first: usize, out: &[f32]| {
            for (i, out) in out.chunks(6 * 24).enumerate() {
                let want = plain(&texts[text], first + i);
                let worst = out
                    .iter()
                    .zip(&want)
                    .map(|(a, b)| (f64::from(*a) - b).abs())
                    .fold(0.0, f64::max);
                // With `vdpbf16ps`, queries and weights are rounded to 8 bits of precision as well.
                assert!(
                    worst
                        < if machine.level.name() == "avx512-bf16" {
                            1e-2
                        } else {
                            1e-4
                        },
                    "{} token {}: {worst}",
                    machine.level.name(),
                    first + i
                );
            }
        };
        let mut prompt = vec![(0, 0, Vec::new())];
        check(0, 0, &read(&mut prompt, 70));
        check(0, 70, &read(&mut prompt, 58));
        // Both texts go on from the shared 128 tokens, side by side.
        let shared = prompt[0].2.clone();
        let mut both = vec![(0, 128, shared.clone()), (1, 128, shared)];
        let mut alone = both.clone();
        for n in [1, 2, 37, 1, 40] {
            let base = both[0].1;
            let out = read(&mut both, n);
            check(0, base, &out[..n * 144]);
            check(1, base, &out[n * 144..]);
            let single = read(&mut alone[1..], n);
            assert_eq!(single, out[n * 144..], "a row does not depend on its company");
        }
    }
}

#[test]
fn normalised_rows_are_added() {
    let mut rng = Seed(24).rng();
    for (rows, columns) in [(1, 5), (13, 40), (40, 64)] {
        let (y, before) = (numbers(&mut rng, rows * columns), numbers(&mut rng, rows * columns));
        let weight = numbers(&mut rng, columns);
        let mut want: Vec<f64> = before.iter().map(|x| f64::from(*x)).collect();
        for (want, y) in want.chunks_mut(columns).zip(y.chunks(columns)) {
            let squares: f64 = y.iter().map(|y| f64::from(*y).powi(2)).sum();
            for ((want, y), w) in want.iter_mut().zip(y).zip(&weight) {
                *want += f64::from(*y) * f64::from(*w) / (squares / columns as f64 + 0.01).sqrt();
            }
        }
        for machine in machines() {
            let mut x = before.clone();
            add_normalised(&machine, &y, &weight, 0.01, &mut x);
            close(&x, &want, machine.level.name());
        }
    }
}

#[test]
fn passes_over_the_vocabulary_agree_with_plain_arithmetic() {
    let mut rng = Seed(23).rng();
    for n in [1, 15, 16, 17, 3000] {
        let mut x: Vec<f32> = numbers(&mut rng, n).iter().map(|x| x * 20.0).collect();
        if n > 2 {
            (x[1], x[2]) = (f32::NAN, f32::NEG_INFINITY);
        }
        let real = || x.iter().copied().filter(|x| !x.is_nan());
        let most = real().fold(f32::NEG_INFINITY, f32::max);
        let sum: f64 = real().map(|x| f64::from(x - most).exp()).sum();
        for level in Level::available() {
            assert_eq!(greatest(level, &x), most);
            assert!((exponential_sum(level, &x, most) / sum - 1.0).abs() < 1e-5);
            let mut found = x.clone();
            let weighing = Weighing {
                most,
                inverse: 0.5,
                least: 0.01,
            };
            weights(level, &mut found, weighing);
            for (found, x) in found.iter().zip(&x) {
                let want = (f64::from(x - most) * 0.5).exp();
                let want = if want < 0.01 || x.is_nan() { 0.0 } else { want };
                assert!((f64::from(*found) - want).abs() < 1e-5, "{x}: {found}, not {want}");
            }
            let mut sums = Vec::new();
            weight_sums(level, &x, weighing, &mut sums);
            let stretches = found
                .chunks(STRETCH)
                .map(|part| part.iter().map(|&w| f64::from(w)).sum::<f64>());
            assert_eq!(sums.len(), n.div_ceil(STRETCH));
            for (found, want) in sums.iter().zip(stretches) {
                assert!((found - want).abs() < 1e-4 * want.max(1.0), "{found}, not {want}");
            }
        }
    }
}
