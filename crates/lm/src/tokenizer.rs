//! Text into tokens of a GGUF file's own vocabulary: byte-level BPE, or SentencePiece's ([`crate::pieces`]).
//!
//! Text never becomes a control token by spelling one: only [`Tokenizer::encode_template`] makes control
//! tokens, and only from the parts that the caller marks as the template's own.

use std::collections::HashMap;

use aho_corasick::{AhoCorasick, MatchKind};
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
use crate::pieces::{Pieces, SPACE};

/// A part of a rendered prompt.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Piece {
    /// Written by the chat template: control tokens spelled in it count.
    Template(String),
    /// Written by anyone else: plain text whatever it spells.
    Content(String),
}

pub struct Tokenizer {
    model: Model,
    /// Bytes of each token; empty for control tokens.
    bytes: Vec<Vec<u8>>,
    /// Tokens that templates spell.
    controls: Spellings,
    /// Whether white space after control and added tokens is dropped.
    strips: bool,
    /// Tokens that end a turn.
    pub end: Vec<u32>,
    pub bos: Option<u32>,
    pub eos: Option<u32>,
    pub add_bos: bool,
}

enum Model {
    Bytes(Box<Bpe>),
    Pieces {
        pieces: Pieces,
        /// Tokens that any text may spell, and which nothing is joined with.
        whole: Spellings,
    },
}

/// Tokens by their spelling.
struct Spellings {
    all: Vec<(String, u32)>,
    finder: AhoCorasick,
}

/// What a file says that a token is.
mod kind {
    pub const NORMAL: u64 = 1;
    pub const UNKNOWN: u64 = 2;
    pub const CONTROL: u64 = 3;
    pub const ADDED: u64 = 4;
    pub const BYTE: u64 = 6;
}

/// Control tokens that end a turn or a text.
const ENDS: [&str; 6] = [
    "<|im_end|>",
    "<|endoftext|>",
    "<|eot_id|>",
    "<|end_of_text|>",
    "<|end|>",
    "<end_of_turn>",
];

/// What files call Llama 3's way to cut text. Its texts begin with a token of their own, whether or not a file says so.
const LLAMA_3: [&str; 3] = ["llama-bpe", "llama3", "llama-v3"];

/// What C calls white space.
const WHITE: [char; 6] = [' ', '\t', '\n', '\u{b}', '\u{c}', '\r'];

/// Control tokens of Phi 3 after which white space stays.
const KEPT: [&str; 3] = ["<unk>", "<s>", "<|endoftext|>"];

const QWEN2: &str =
    r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+";
const GPT4O: &str = r"[^\r\n\p{L}\p{N}]?[\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}]*[\p{Ll}\p{Lm}\p{Lo}\p{M}]+(?i:'s|'t|'re|'ve|'m|'ll|'d)?|[^\r\n\p{L}\p{N}]?[\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}]+[\p{Ll}\p{Lm}\p{Lo}\p{M}]*(?i:'s|'t|'re|'ve|'m|'ll|'d)?|\p{N}{1,3}| ?[^\s\p{L}\p{N}]+[\r\n/]*|\s*[\r\n]+|\s+(?!\S)|\s+";
const LLAMA3: &str = r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}{1,3}| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+";

impl Tokenizer {
    pub fn from_gguf(gguf: &Gguf) -> Result<Tokenizer, LmError> {
        let pieces = match gguf.string("tokenizer.ggml.model") {
            Some("gpt2") => false,
            Some("llama") => true,
            Some(other) => {
                return Err(LmError::Unsupported(format!("tokenizer of type `{other}`")));
            }
            None => return Err(LmError::Tokenizer("the model file holds none".into())),
        };
        let tokens = strings(gguf, "tokenizer.ggml.tokens")?;
        let mut kinds: Vec<u64> = match gguf.array("tokenizer.ggml.token_type") {
            Some(types) => types.iter().map(|t| as_integer(t).unwrap_or(1)).collect(),
            None => Vec::new(),
        };
        kinds.resize(tokens.len(), kind::NORMAL);
        // Some files call what ends a turn an added or a normal token, as Phi 3's do: it is never text.
        for (token, kind) in tokens.iter().zip(&mut kinds) {
            if ENDS.contains(&token.as_str()) {
                *kind = kind::CONTROL;
            }
        }
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
        let mut whole = Vec::new();
        let decode = byte_of_char();
        let mut bytes = Vec::with_capacity(tokens.len());
        for ((id, token), &kind) in (0..).zip(&tokens).zip(&kinds) {
            let spaced = || token.replace(SPACE, " ");
            match kind {
                kind::CONTROL | kind::ADDED if token.is_empty() => {}
                kind::CONTROL => controls.push((token.clone(), id)),
                // Some files call the tokens of turns added ones; no content may make these either.
                kind::ADDED if pieces && !token.starts_with("<|") && !token.ends_with("_of_turn>") => {
                    whole.push((spaced(), id));
                }
                kind::ADDED => controls.push((token.clone(), id)),
                _ => {}
            }
            if ENDS.contains(&token.as_str()) {
                end.push(id);
            }
            bytes.push(match kind {
                kind::NORMAL if pieces => spaced().into_bytes(),
                kind::NORMAL => token
                    .chars()
                    .map(|c| decode.get(&c).copied())
                    .collect::<Option<_>>()
                    .unwrap_or_default(),
                kind::ADDED if pieces => spaced().into_bytes(),
                kind::ADDED => token.clone().into_bytes(),
                kind::BYTE => spelled_byte(token).into_iter().collect(),
                _ => Vec::new(),
            });
        }
        end.sort_unstable();
        end.dedup();
        let flag = |key: &str, otherwise: bool| match gguf.value(key) {
            Some(Value::Bool(on)) => *on,
            _ => otherwise,
        };
        let (bos, eos) = (
            id_of("tokenizer.ggml.bos_token_id"),
            id_of("tokenizer.ggml.eos_token_id"),
        );
        let pre = gguf.string("tokenizer.ggml.pre").unwrap_or("gpt-2");
        let model = match pieces {
            true => Model::Pieces {
                pieces: Pieces {
                    scores: scores(gguf, tokens.len())?,
                    bytes: byte_tokens(&tokens, &kinds),
                    unknown: id_of("tokenizer.ggml.unknown_token_id").or_else(|| {
                        (0..)
                            .zip(&kinds)
                            .find(|(_, kind)| **kind == kind::UNKNOWN)
                            .map(|(id, _)| id)
                    }),
                    space_first: flag("tokenizer.ggml.add_space_prefix", true),
                    ids: (0..)
                        .zip(&tokens)
                        .zip(&kinds)
                        .filter(|(_, kind)| **kind == kind::NORMAL)
                        .map(|((id, token), _)| (token.clone(), id))
                        .collect(),
                },
                whole: Spellings::new(whole)?,
            },
            false => Model::Bytes(build(&tokens, merges(gguf)?, pre)?.into()),
        };
        Ok(Tokenizer {
            model,
            bytes,
            controls: Spellings::new(controls)?,
            strips: pieces && gguf.string("general.architecture") == Some("phi3"),
            end,
            bos,
            eos,
            add_bos: flag("tokenizer.ggml.add_bos_token", pieces || LLAMA_3.contains(&pre)),
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
        let all = &self.controls.all;
        all.iter().find(|(text, _)| text == spelling).map(|(_, id)| *id)
    }

    pub fn spelling(&self, id: u32) -> Option<&str> {
        let all = &self.controls.all;
        all.iter()
            .find(|(_, known)| *known == id)
            .map(|(text, _)| text.as_str())
    }

    /// Tokens of plain text; control tokens never appear.
    pub fn encode(&self, text: &str) -> Result<Vec<u32>, LmError> {
        let mut ids = Vec::new();
        match &self.model {
            _ if text.is_empty() => {}
            Model::Bytes(bpe) => {
                let encoding = bpe.encode_fast(text, false);
                ids = encoding
                    .map_err(|e| LmError::Tokenizer(e.to_string()))?
                    .get_ids()
                    .to_vec();
            }
            Model::Pieces { pieces, whole } => {
                let mut rest = text;
                while let Some((at, len, id)) = whole.first(rest) {
                    if at > 0 {
                        pieces.encode(&rest[..at], &mut ids)?;
                    }
                    ids.push(id);
                    rest = &rest[at + len..];
                    if self.strips {
                        rest = rest.trim_start_matches(WHITE);
                    }
                }
                if !rest.is_empty() {
                    pieces.encode(rest, &mut ids)?;
                }
            }
        }
        Ok(ids)
    }

    /// Tokens of a rendered prompt. Text between two control tokens is encoded as one run, as if the
    /// template and the contents had been one string.
    pub fn encode_template(&self, parts: &[Piece]) -> Result<Vec<u32>, LmError> {
        let mut ids = Vec::new();
        let mut run = String::new();
        let mut strips = false;
        for part in parts {
            let mut rest = match part {
                Piece::Content(text) => {
                    run.push_str(text);
                    continue;
                }
                Piece::Template(text) => text.as_str(),
            };
            while let Some((at, len, id)) = self.controls.first(rest) {
                run.push_str(&rest[..at]);
                ids.extend(self.encode_run(&run, strips)?);
                run.clear();
                ids.push(id);
                strips = self.strips && !KEPT.contains(&&rest[at..at + len]);
                rest = &rest[at + len..];
            }
            run.push_str(rest);
        }
        ids.extend(self.encode_run(&run, strips)?);
        if self.add_bos
            && let Some(bos) = self.bos
            && ids.first() != Some(&bos)
        {
            ids.insert(0, bos);
        }
        Ok(ids)
    }

    fn encode_run(&self, run: &str, strips: bool) -> Result<Vec<u32>, LmError> {
        match strips {
            true => self.encode(run.trim_start_matches(WHITE)),
            false => self.encode(run),
        }
    }

    /// Text of tokens; bytes that are not UTF-8 become U+FFFD.
    pub fn decode(&self, ids: &[u32]) -> String {
        let bytes: Vec<u8> = ids.iter().flat_map(|&id| self.token_bytes(id)).copied().collect();
        String::from_utf8_lossy(&bytes).into_owned()
    }
}

impl Spellings {
    fn new(all: Vec<(String, u32)>) -> Result<Spellings, LmError> {
        let finder = AhoCorasick::builder()
            .match_kind(MatchKind::LeftmostLongest)
            .build(all.iter().map(|(spelling, _)| spelling))
            .map_err(|e| LmError::Tokenizer(e.to_string()))?;
        Ok(Spellings { all, finder })
    }

    /// Where the first one lies, how long it is (the longest of those at one place), and which it is.
    fn first(&self, text: &str) -> Option<(usize, usize, u32)> {
        let found = self.finder.find(text)?;
        Some((found.start(), found.len(), self.all[found.pattern()].1))
    }
}

/// The byte that a token like `<0x0A>` stands for.
fn spelled_byte(token: &str) -> Option<u8> {
    let digits = token.strip_prefix("<0x")?.strip_suffix('>')?;
    u8::from_str_radix(digits, 16).ok()
}

fn byte_tokens(tokens: &[String], kinds: &[u64]) -> Vec<Option<u32>> {
    let mut bytes = vec![None; 256];
    for ((id, token), &kind) in (0..).zip(tokens).zip(kinds) {
        if kind == kind::BYTE
            && let Some(byte) = spelled_byte(token)
        {
            bytes[usize::from(byte)] = Some(id);
        }
    }
    bytes
}

fn scores(gguf: &Gguf, tokens: usize) -> Result<Vec<f32>, LmError> {
    let scores = gguf.array("tokenizer.ggml.scores").unwrap_or_default();
    if scores.len() != tokens {
        let message = format!("{} scores for {tokens} tokens", scores.len());
        return Err(LmError::Tokenizer(message));
    }
    let number = |score: &Value| match score {
        Value::F32(score) => Ok(*score),
        _ => Err(LmError::Tokenizer("a score is no number".into())),
    };
    scores.iter().map(number).collect()
}

fn merges(gguf: &Gguf) -> Result<Vec<(String, String)>, LmError> {
    let merges = strings(gguf, "tokenizer.ggml.merges")?;
    let parts = |merge: &String| {
        let (left, right) = merge
            .split_once(' ')
            .ok_or_else(|| LmError::Tokenizer(format!("merge `{merge}` has no two parts")))?;
        Ok((left.to_string(), right.to_string()))
    };
    merges.iter().map(parts).collect()
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
        .ignore_merges(LLAMA_3.contains(&pre))
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
        "llama-bpe" | "llama3" | "llama-v3" | "smaug-bpe" | "dbrx" => vec![split(LLAMA3)?, bytes(false)],
        "gpt-4o" => vec![split(GPT4O)?, bytes(false)],
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
