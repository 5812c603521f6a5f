//! A vocabulary of SentencePiece's kind, made from a text; included by path where a test needs one.

use std::collections::{BTreeMap, BTreeSet};

use candle_core::quantized::gguf_file::Value;

use crate::tiny::Vocabulary;

const TEXT: &str = include_str!("../../../../ARCHITECTURE.md");
const MERGES: usize = 300;

/// Control, byte and added tokens as Gemma 3 and Phi 3 have them, the text's characters, and the pairs that were
/// joined most often, the most frequent first.
pub fn pieces(space_first: bool) -> Vocabulary {
    let mut tokens: Vec<(String, f32, i32)> = vec![
        ("<unk>".into(), 0.0, 2),
        ("<s>".into(), 0.0, 3),
        ("</s>".into(), 0.0, 3),
    ];
    tokens.extend((0..=255u8).map(|byte| (format!("<0x{byte:02X}>"), 0.0, 6)));
    // Real files of Phi 3 call the end of a turn an added token.
    let controls = [
        ("<start_of_turn>", 3),
        ("<end_of_turn>", 3),
        ("<|endoftext|>", 3),
        ("<|user|>", 3),
        ("<|assistant|>", 3),
        ("<|end|>", 4),
    ];
    tokens.extend(controls.map(|(token, kind)| (token.into(), 0.0, kind)));
    tokens.extend(["\n\n", "\n\n\n", "   ", "<table>"].map(|token| (token.into(), 0.0, 4)));
    let characters: BTreeSet<char> = TEXT
        .chars()
        .filter(char::is_ascii)
        .map(|c| if c == ' ' { '▁' } else { c })
        .collect();
    let mut words: Vec<Vec<String>> = TEXT
        .split(' ')
        .map(|word| format!("▁{word}").chars().map(String::from).collect())
        .collect();
    for rank in 0..MERGES {
        let mut counts: BTreeMap<String, usize> = BTreeMap::new();
        for pair in words.iter().flat_map(|word| word.windows(2)) {
            *counts.entry(pair.concat()).or_default() += 1;
        }
        let Some((best, _)) = counts.into_iter().max_by_key(|(_, n)| *n) else {
            break;
        };
        for word in &mut words {
            let mut at = 0;
            while at + 1 < word.len() {
                if word[at..at + 2].concat() == best {
                    word.remove(at + 1);
                    word[at] = best.clone();
                }
                at += 1;
            }
        }
        if !tokens.iter().any(|(token, ..)| *token == best) {
            tokens.push((best, -(rank as f32), 1));
        }
    }
    tokens.extend(characters.into_iter().map(|c| (c.into(), -1e6, 1)));
    let array = |value: &dyn Fn(&(String, f32, i32)) -> Value| Value::Array(tokens.iter().map(value).collect());
    Vocabulary {
        tokens: tokens.len(),
        metadata: vec![
            ("tokenizer.ggml.model", Value::String("llama".into())),
            (
                "tokenizer.ggml.tokens",
                array(&|(token, ..)| Value::String(token.clone())),
            ),
            ("tokenizer.ggml.scores", array(&|(_, score, _)| Value::F32(*score))),
            ("tokenizer.ggml.token_type", array(&|(.., kind)| Value::I32(*kind))),
            ("tokenizer.ggml.bos_token_id", Value::U32(1)),
            ("tokenizer.ggml.eos_token_id", Value::U32(2)),
            ("tokenizer.ggml.unknown_token_id", Value::U32(0)),
            ("tokenizer.ggml.add_space_prefix", Value::Bool(space_first)),
        ],
    }
}
