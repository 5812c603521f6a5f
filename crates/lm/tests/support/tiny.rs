//! Random models of a few layers, of every architecture; included by path where a test needs one.

use std::path::{Path, PathBuf};

use candle_core::quantized::gguf_file::{Value, write};
use candle_core::quantized::{GgmlDType, QTensor};
use candle_core::{Device, Tensor};
use gym::Seed;

pub const ARCHITECTURES: [&str; 6] = ["llama", "qwen2", "qwen3", "smollm3", "phi3", "gemma3"];
pub const HIDDEN: usize = 64;
const INNER: usize = 96;
/// Tokens that five of gemma3's six layers see.
pub const WINDOW: usize = 24;

/// The 256 byte characters of GPT-2, two merged tokens and two control tokens.
fn tokens() -> Vec<String> {
    let mut next = 0x100u32;
    let mut tokens: Vec<String> = (0..=255u8)
        .map(|byte| {
            let plain = matches!(byte, b'!'..=b'~' | 0xa1..=0xac | 0xae..=0xff);
            let code = if plain {
                u32::from(byte)
            } else {
                next += 1;
                next - 1
            };
            char::from_u32(code).unwrap().to_string()
        })
        .collect();
    tokens.extend(["he", "hel", "<|im_start|>", "<|im_end|>"].map(String::from));
    tokens
}

fn text(s: &str) -> Value {
    Value::String(s.to_string())
}

/// Writes a model with that vocabulary.
pub fn write_as(dir: &Path, architecture: &str, dtype: GgmlDType) -> PathBuf {
    write_with(dir, architecture, dtype, byte_level(), Vec::new(), Vec::new())
}

/// Metadata of a vocabulary, and how large it is.
pub struct Vocabulary {
    pub metadata: Vec<(&'static str, Value)>,
    pub tokens: usize,
}

pub fn byte_level() -> Vocabulary {
    let tokens = tokens();
    let kind = |id| Value::I32(if id < 258 { 1 } else { 3 });
    Vocabulary {
        metadata: vec![
            ("tokenizer.ggml.model", text("gpt2")),
            ("tokenizer.ggml.pre", text("smollm")),
            (
                "tokenizer.ggml.tokens",
                Value::Array(tokens.iter().map(|t| text(t)).collect()),
            ),
            (
                "tokenizer.ggml.token_type",
                Value::Array((0..tokens.len()).map(kind).collect()),
            ),
            ("tokenizer.ggml.merges", Value::Array(vec![text("h e"), text("he l")])),
            ("tokenizer.ggml.eos_token_id", Value::U32(259)),
        ],
        tokens: tokens.len(),
    }
}

/// Four heads, two of them for keys, of 16 numbers (qwen3 and gemma3: 32). Matrices are
/// rounded to 8 bits and stored as `dtype`. `more`: metadata, without the architecture's name; `vectors`: tensors.
pub fn write_with(
    dir: &Path,
    architecture: &str,
    dtype: GgmlDType,
    vocabulary: Vocabulary,
    more: Vec<(&str, Value)>,
    vectors: Vec<(&str, Vec<f32>)>,
) -> PathBuf {
    let dim = if ["qwen3", "gemma3"].contains(&architecture) {
        32
    } else {
        16
    };
    let layers = match architecture {
        "smollm3" => 4,
        "gemma3" => 6,
        _ => 2,
    };
    let (width, kv) = (4 * dim, 2 * dim);
    let mut rng = Seed(11).rng();
    let mut random = |rows: usize, columns: usize| {
        let data: Vec<f32> = (0..rows * columns)
            .map(|_| (rng.next_f64() as f32 - 0.5) * 0.5)
            .collect();
        let t = Tensor::from_vec(data, (rows, columns), &Device::Cpu).unwrap();
        let rounded = QTensor::quantize(&t, GgmlDType::Q8_0).unwrap();
        QTensor::quantize(&rounded.dequantize(&Device::Cpu).unwrap(), dtype).unwrap()
    };
    let plain = |data: Vec<f32>| QTensor::quantize(&Tensor::new(data, &Device::Cpu).unwrap(), GgmlDType::F32).unwrap();
    let mut near_one = Seed(12).rng();
    let mut vector = |len: usize, most: f32| plain((0..len).map(|_| most - near_one.next_f64() as f32).collect());
    let mut tensors = vec![
        ("token_embd.weight".to_string(), random(vocabulary.tokens, HIDDEN)),
        ("output_norm.weight".into(), vector(HIDDEN, 1.5)),
    ];
    if architecture == "phi3" {
        tensors.push(("output.weight".into(), random(vocabulary.tokens, HIDDEN)));
    }
    for idx in 0..layers {
        let joined = [("attn_qkv", width + 2 * kv, HIDDEN), ("ffn_up", 2 * INNER, HIDDEN)];
        let apart = [
            ("attn_q", width, HIDDEN),
            ("attn_k", kv, HIDDEN),
            ("attn_v", kv, HIDDEN),
            ("ffn_gate", INNER, HIDDEN),
            ("ffn_up", INNER, HIDDEN),
        ];
        let outward = [("attn_output", HIDDEN, width), ("ffn_down", HIDDEN, INNER)];
        let inward = if architecture == "phi3" { &joined[..] } else { &apart };
        for &(part, out, inside) in inward.iter().chain(&outward) {
            tensors.push((format!("blk.{idx}.{part}.weight"), random(out, inside)));
        }
        let mut vectors = vec![("attn_norm.weight", HIDDEN, 1.5), ("ffn_norm.weight", HIDDEN, 1.5)];
        if architecture == "qwen2" {
            vectors.extend([
                ("attn_q.bias", width, 0.5),
                ("attn_k.bias", kv, 0.5),
                ("attn_v.bias", kv, 0.5),
            ]);
        }
        if ["qwen3", "gemma3"].contains(&architecture) {
            vectors.extend([("attn_q_norm.weight", dim, 1.5), ("attn_k_norm.weight", dim, 1.5)]);
        }
        if architecture == "gemma3" {
            vectors.extend([
                ("post_attention_norm.weight", HIDDEN, 1.5),
                ("post_ffw_norm.weight", HIDDEN, 1.5),
            ]);
        }
        for (name, len, most) in vectors {
            tensors.push((format!("blk.{idx}.{name}"), vector(len, most)));
        }
    }
    tensors.extend(vectors.into_iter().map(|(name, data)| (name.to_string(), plain(data))));
    let sizes = [
        ("block_count", layers),
        ("context_length", 256),
        ("embedding_length", HIDDEN),
        ("feed_forward_length", INNER),
        ("attention.head_count", 4),
        ("attention.head_count_kv", 2),
        ("attention.key_length", dim),
        ("attention.value_length", dim),
        ("rope.dimension_count", dim),
        ("vocab_size", vocabulary.tokens),
    ];
    let mut own: Vec<(&str, Value)> = sizes.map(|(key, size)| (key, Value::U32(size as u32))).into();
    own.extend([
        ("attention.layer_norm_rms_epsilon", Value::F32(1e-5)),
        ("rope.freq_base", Value::F32(10_000.0)),
    ]);
    if architecture == "gemma3" {
        own.extend([
            ("attention.sliding_window", Value::U32(WINDOW as u32)),
            ("rope.freq_base", Value::F32(1_000_000.0)),
        ]);
    }
    own.extend(more);
    // What comes later counts.
    let mut metadata: Vec<(String, Value)> = Vec::new();
    for (key, value) in own {
        let key = format!("{architecture}.{key}");
        metadata.retain(|(known, _)| *known != key);
        metadata.push((key, value));
    }
    metadata.extend([
        ("general.architecture".to_string(), text(architecture)),
        ("general.dtype".to_string(), Value::U32(0)),
    ]);
    metadata.extend(
        vocabulary
            .metadata
            .into_iter()
            .map(|(key, value)| (key.to_string(), value)),
    );
    let path = dir.join(format!("{architecture}.gguf"));
    let mut file = std::fs::File::create(&path).unwrap();
    let metadata: Vec<(&str, &Value)> = metadata.iter().map(|(k, v)| (k.as_str(), v)).collect();
    let tensors: Vec<(&str, &QTensor)> = tensors.iter().map(|(k, v)| (k.as_str(), v)).collect();
    write(&mut file, &metadata, &tensors).unwrap();
    path
}
