//! Byte-level BPE from a GGUF file's own vocabulary.
//!
//! Text never becomes a control token by spelling one: only [`Tokenizer::encode_template`] makes control
//! tokens, and only from the parts that the caller marks as the template's own.

use std::collections::HashMap;

use candle_core::quantized::gguf_file::Value;
use tokenizers::models::bpe::BPE;
use tokenizers::pre_tokenizers::PreTokenizerWrapper;
use tokenizers::pre_tokenizers::byte_level::ByteLevel;
use tokenizers::pre_tokenizers::digits::Digits;
use tokenizers::pre_tokenizers::sequence::Sequence;
use tokenizers::pre_tokenizers::split::{Split, SplitPattern};
use tokenizers::{SplitDelimiterBehavior, Tokenizer as Bpe};

use crate::LmError;
use crate::gguf::{Gguf, as_integer};

/// A part of a rendered prompt.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Piece {
    /// Written by the chat template: control tokens spelled in it count.
    Template(String),
    /// Written by anyone else: plain text whatever it spells.
    Content(String),
}

pub struct Tokenizer {
    bpe: Bpe,
    /// Bytes of each token; empty for control tokens.
    bytes: Vec<Vec<u8>>,
    /// Control tokens and their spelling, longest first.
    controls: Vec<(String, u32)>,
    /// Tokens that end a turn.
    pub end: Vec<u32>,
    pub bos: Option<u32>,
    pub add_bos: bool,
}

const QWEN2: &str =
    r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+";
const LLAMA3: &str = r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}{1,3}| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+";

impl Tokenizer {
    pub fn from_gguf(gguf: &Gguf) -> Result<Tokenizer, LmError> {
        match gguf.string("tokenizer.ggml.model") {
            Some("gpt2") => {}
            Some(other) => {
                return Err(LmError::Unsupported(format!("tokenizer of type `{other}`")));
            }
            None => return Err(LmError::Tokenizer("the model file holds none".into())),
        }
        let tokens = strings(gguf, "tokenizer.ggml.tokens")?;
        let merges = strings(gguf, "tokenizer.ggml.merges")?
            .iter()
            .map(|merge| {
                merge
                    .split_once(' ')
                    .map(|(left, right)| (left.to_string(), right.to_string()))
                    .ok_or_else(|| LmError::Tokenizer(format!("merge `{merge}` has no two parts")))
            })
            .collect::<Result<Vec<_>, _>>()?;
        let types: Vec<u64> = match gguf.array("tokenizer.ggml.token_type") {
            Some(types) => types.iter().map(|t| as_integer(t).unwrap_or(1)).collect(),
            None => vec![1; tokens.len()],
        };
        let pre = gguf.string("tokenizer.ggml.pre").unwrap_or("gpt-2");
        let id_of = |key: &str| {
            gguf.integer(key)
                .filter(|&id| id < tokens.len() as u64)
                .map(|id| id as u32)
        };
        let mut end: Vec<u32> = ["tokenizer.ggml.eos_token_id", "tokenizer.ggml.eot_token_id"]
            .iter()
            .filter_map(|key| id_of(key))
            .collect();
        let mut controls = Vec::new();
        let mut bytes = Vec::with_capacity(tokens.len());
        let decode = byte_of_char();
        for (id, token) in tokens.iter().enumerate() {
            let kind = types.get(id).copied().unwrap_or(1);
            if kind == 3 || kind == 4 {
                if !token.is_empty() {
                    controls.push((token.clone(), id as u32));
                }
                let is_end = ["<|im_end|>", "<|endoftext|>", "<|eot_id|>", "<|end_of_text|>"];
                if kind == 3 && is_end.contains(&token.as_str()) {
                    end.push(id as u32);
                }
            }
            bytes.push(match kind {
                1 => token
                    .chars()
                    .map(|c| decode.get(&c).copied())
                    .collect::<Option<_>>()
                    .unwrap_or_default(),
                4 => token.clone().into_bytes(),
                _ => Vec::new(),
            });
        }
        end.sort_unstable();
        end.dedup();
        controls.sort_by(|a, b| b.0.len().cmp(&a.0.len()).then(a.1.cmp(&b.1)));
        let bpe = build(&tokens, merges, pre)?;
        Ok(Tokenizer {
            bpe,
            bytes,
            controls,
            end,
            bos: id_of("tokenizer.ggml.bos_token_id"),
            add_bos: matches!(gguf.value("tokenizer.ggml.add_bos_token"), Some(Value::Bool(true))),
        })
    }

    pub fn vocabulary(&self) -> usize {
        self.bytes.len()
    }

    /// Bytes that a token stands for; empty for control tokens.
    pub fn token_bytes(&self, id: u32) -> &[u8] {
        self.bytes.get(id as usize).map_or(&[], Vec::as_slice)
    }

    pub fn all_token_bytes(&self) -> &[Vec<u8>] {
        &self.bytes
    }

    pub fn control(&self, spelling: &str) -> Option<u32> {
        self.controls
            .iter()
            .find(|(text, _)| text == spelling)
            .map(|(_, id)| *id)
    }

    pub fn spelling(&self, id: u32) -> Option<&str> {
        self.controls
            .iter()
            .find(|(_, known)| *known == id)
            .map(|(text, _)| text.as_str())
    }

    /// Tokens of plain text; control tokens never appear.
    pub fn encode(&self, text: &str) -> Result<Vec<u32>, LmError> {
        if text.is_empty() {
            return Ok(Vec::new());
        }
        let encoding = self
            .bpe
            .encode_fast(text, false)
            .map_err(|e| LmError::Tokenizer(e.to_string()))?;
        Ok(encoding.get_ids().to_vec())
    }

    /// Tokens of a rendered prompt. Text between two control tokens is encoded as one run, as if the
    /// template and the contents had been one string.
    pub fn encode_template(&self, pieces: &[Piece]) -> Result<Vec<u32>, LmError> {
        let mut ids = Vec::new();
        let mut run = String::new();
        for piece in pieces {
            let mut rest = match piece {
                Piece::Content(text) => {
                    run.push_str(text);
                    continue;
                }
                Piece::Template(text) => text.as_str(),
            };
            while let Some((at, len, id)) = self.first_control(rest) {
                run.push_str(&rest[..at]);
                ids.extend(self.encode(&run)?);
                run.clear();
                ids.push(id);
                rest = &rest[at + len..];
            }
            run.push_str(rest);
        }
        ids.extend(self.encode(&run)?);
        if self.add_bos
            && let Some(bos) = self.bos
            && ids.first() != Some(&bos)
        {
            ids.insert(0, bos);
        }
        Ok(ids)
    }

    fn first_control(&self, text: &str) -> Option<(usize, usize, u32)> {
        // Earliest wins; of those at one place the longest, which comes first in the list.
        let mut best: Option<(usize, usize, u32)> = None;
        for (spelling, id) in &self.controls {
            if let Some(at) = text.find(spelling.as_str())
                && best.is_none_or(|(first, ..)| at < first)
            {
                best = Some((at, spelling.len(), *id));
            }
        }
        best
    }

    /// Text of tokens; bytes that are not UTF-8 become U+FFFD.
    pub fn decode(&self, ids: &[u32]) -> String {
        let bytes: Vec<u8> = ids.iter().flat_map(|&id| self.token_bytes(id)).copied().collect();
        String::from_utf8_lossy(&bytes).into_owned()
    }
}

fn build(tokens: &[String], merges: Vec<(String, String)>, pre: &str) -> Result<Bpe, LmError> {
    let failed = |e: tokenizers::Error| LmError::Tokenizer(e.to_string());
    let mut vocab: HashMap<String, u32> = HashMap::with_capacity(tokens.len());
    for (id, token) in tokens.iter().enumerate() {
        vocab.entry(token.clone()).or_insert(id as u32);
    }
    let vocab: Vec<(String, u32)> = vocab.into_iter().collect();
    let bpe = BPE::builder()
        .vocab_and_merges(vocab.into_iter().collect::<tokenizers::models::bpe::Vocab>(), merges)
        .ignore_merges(pre == "llama-bpe")
        .build()
        .map_err(failed)?;
    let split = |pattern: &str| -> Result<PreTokenizerWrapper, LmError> {
        let pattern = SplitPattern::Regex(pattern.to_string());
        Ok(Split::new(pattern, SplitDelimiterBehavior::Isolated, false)
            .map_err(failed)?
            .into())
    };
    let bytes = |regex| PreTokenizerWrapper::from(ByteLevel::new(false, false, regex));
    let steps = match pre {
        "smollm" | "starcoder" | "refact" | "command-r" => {
            vec![Digits::new(true).into(), bytes(true)]
        }
        "qwen2" | "deepseek-r1-qwen" => vec![split(QWEN2)?, bytes(false)],
        "llama-bpe" | "llama3" | "llama-v3" => vec![split(LLAMA3)?, bytes(false)],
        "gpt-2" | "gpt2" | "default" => vec![bytes(true)],
        other => return Err(LmError::Unsupported(format!("pre-tokenizer `{other}`"))),
    };
    let mut tokenizer = Bpe::new(bpe);
    tokenizer.with_pre_tokenizer(Some(Sequence::new(steps)));
    Ok(tokenizer)
}

fn strings(gguf: &Gguf, key: &str) -> Result<Vec<String>, LmError> {
    let values = gguf
        .array(key)
        .ok_or_else(|| LmError::Tokenizer(format!("`{key}` is missing")))?;
    values
        .iter()
        .map(|value| match value {
            Value::String(text) => Ok(text.clone()),
            _ => Err(LmError::Tokenizer(format!("`{key}` holds something other than text"))),
        })
        .collect()
}

/// The characters that GPT-2's vocabulary writes bytes as: printable ones stand for themselves, the
/// others follow from U+0100 on.
fn byte_of_char() -> HashMap<char, u8> {
    let mut map = HashMap::with_capacity(256);
    let mut next = 0x100u32;
    for byte in 0..=255u8 {
        let plain = matches!(byte, b'!'..=b'~' | 0xa1..=0xac | 0xae..=0xff);
        let code = if plain {
            u32::from(byte)
        } else {
            next += 1;
            next - 1
        };
        map.insert(char::from_u32(code).expect("below U+0200"), byte);
    }
    map
}
