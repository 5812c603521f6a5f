//! Logits of every architecture beside candle's own models and, where it is to be had, llama.cpp.

#![expect(clippy::unwrap_used, reason = "a test that cannot go on fails")]

use std::collections::HashMap;

use candle_core::quantized::GgmlDType;
use candle_core::quantized::gguf_file::{Content, Value};
use candle_core::{DType, Device, Tensor};
use candle_nn::{Activation, VarBuilder};
use candle_transformers::models::{
    gemma3, quantized_llama, quantized_phi3, quantized_qwen2, quantized_qwen3, smol::smollm3,
};
use gym::{Message, Prompt, Role};
use lm::tokenizer::Piece;
use lm::{LmError, LocalModel};
use serde_json::{Value as Json, json};

#[path = "support/llama_cpp.rs"]
#[expect(dead_code, reason = "the models here are the test's own")]
mod llama_cpp;
#[path = "support/pieces.rs"]
mod pieces;
#[path = "support/tiny.rs"]
mod tiny;

use pieces::pieces;
use tiny::{ARCHITECTURES, HIDDEN, WINDOW, byte_level, write_as, write_with};

const VOCABULARY: usize = 260;

fn close(a: &[f32], b: &[f32], tolerance: f32, what: &str) {
    assert_eq!(a.len(), b.len());
    let worst = a.iter().zip(b).map(|(x, y)| (x - y).abs()).fold(0.0, f32::max);
    assert!(worst <= tolerance, "{what}: differ by {worst}");
}

#[test]
fn logits_agree_with_candle_transformers() {
    let dir = tempfile::tempdir().unwrap();
    let tokens: Vec<u32> = (0..40).map(|i| i * 5 % 250).collect();
    let input = Tensor::new(&tokens[..], &Device::Cpu).unwrap().unsqueeze(0).unwrap();
    for architecture in ARCHITECTURES {
        // Candle multiplies f32 matrices without rounding the activations to 8 bits.
        let path = write_as(dir.path(), architecture, GgmlDType::F32);
        let mut file = std::fs::File::open(&path).unwrap();
        let content = Content::read(&mut file).unwrap();
        let device = &Device::Cpu;
        let theirs = match architecture {
            "llama" => quantized_llama::ModelWeights::from_gguf(content, &mut file, device)
                .and_then(|mut stock| stock.forward(&input, 0)),
            "qwen2" => quantized_qwen2::ModelWeights::from_gguf(content, &mut file, device)
                .and_then(|mut stock| stock.forward(&input, 0)),
            "qwen3" => quantized_qwen3::ModelWeights::from_gguf(content, &mut file, device)
                .and_then(|mut stock| stock.forward(&input, 0)),
            "phi3" => quantized_phi3::ModelWeights::from_gguf(false, content, &mut file, device)
                .and_then(|mut stock| stock.forward(&input, 0)),
            // Its reader of files takes heads of 128 numbers for granted, so the weights come as in safetensors.
            "smollm3" => smollm3::ModelForCausalLM::new(&smollm3_config(), weights(&content, &mut file))
                .and_then(|mut stock| one_by_one(&input, |token, at| stock.forward(token, at))),
            // Its reader of files has another gate than the model.
            _ => gemma3::Model::new(false, &gemma3_config(), weights(&content, &mut file))
                .and_then(|mut stock| one_by_one(&input, |token, at| stock.forward(token, at))),
        };
        let theirs = theirs.unwrap_or_else(|e| panic!("{architecture}: {e}"));
        let theirs: Vec<f32> = theirs.flatten_all().unwrap().to_vec1().unwrap();
        let path = write_as(dir.path(), architecture, GgmlDType::Q8_0);
        let model = LocalModel::open(&path).unwrap();
        assert_eq!(model.info().architecture, architecture);
        let ours = model.decoder().logits_of(&tokens).unwrap();
        // Keys and values are rounded to bfloat16.
        close(&ours[39 * VOCABULARY..], &theirs, 0.06, architecture);
    }
}

/// Candle's gemma3 reads several tokens at once only with one head for keys, and lets them see one token too many.
fn one_by_one(
    input: &Tensor,
    mut forward: impl FnMut(&Tensor, usize) -> candle_core::Result<Tensor>,
) -> candle_core::Result<Tensor> {
    let mut logits = Err(candle_core::Error::Msg("no tokens".into()));
    for at in 0..input.dim(1)? {
        logits = Ok(forward(&input.narrow(1, at, 1)?, at)?);
    }
    logits
}

fn smollm3_config() -> smollm3::Config {
    smollm3::Config {
        vocab_size: VOCABULARY,
        hidden_size: HIDDEN,
        intermediate_size: 96,
        num_hidden_layers: 4,
        num_attention_heads: 4,
        num_key_value_heads: 2,
        max_position_embeddings: 256,
        tie_word_embeddings: true,
        rope_theta: 10_000.0,
        rms_norm_eps: 1e-5,
        hidden_act: Activation::Silu,
        attention_bias: None,
        attention_dropout: None,
        mlp_bias: None,
        sliding_window: None,
        use_sliding_window: None,
        rope_scaling: None,
        bos_token_id: None,
        eos_token_id: None,
        pad_token_id: None,
        max_window_layers: None,
        no_rope_layers: None,
        no_rope_layer_interval: Some(4),
    }
}

fn gemma3_config() -> gemma3::Config {
    gemma3::Config {
        attention_bias: false,
        head_dim: 32,
        hidden_activation: Activation::GeluPytorchTanh,
        hidden_size: HIDDEN,
        intermediate_size: 96,
        num_attention_heads: 4,
        num_hidden_layers: 6,
        num_key_value_heads: 2,
        rms_norm_eps: 1e-5,
        rope_theta: 1_000_000.0,
        rope_local_base_freq: 10_000.0,
        vocab_size: VOCABULARY,
        final_logit_softcapping: None,
        attn_logit_softcapping: None,
        query_pre_attn_scalar: 32,
        sliding_window: WINDOW,
        sliding_window_pattern: 6,
        max_position_embeddings: 256,
    }
}

/// The weights of a smollm3 or gemma3 file by Hugging Face's names and in its order.
fn weights(content: &Content, file: &mut std::fs::File) -> VarBuilder<'static> {
    let gemma = content.tensor_infos.contains_key("blk.0.post_ffw_norm.weight");
    let mut named = HashMap::new();
    for name in content.tensor_infos.keys() {
        let tensor = content.tensor(file, name, &Device::Cpu).unwrap();
        let mut tensor = tensor.dequantize(&Device::Cpu).unwrap();
        let parts: Vec<&str> = name.split('.').collect();
        let (layer, part) = match parts[..] {
            ["blk", layer, part, _] => (format!("layers.{layer}."), part),
            [part, _] => (String::new(), part),
            _ => panic!("{name}"),
        };
        if gemma && part.ends_with("norm") {
            // Files hold what is multiplied with, checkpoints what is added to 1.
            tensor = (tensor - 1.0).unwrap();
        }
        if !gemma && ["attn_q", "attn_k"].contains(&part) {
            // (heads, 16 / 2, 2, hidden) in the file.
            let pairs = tensor.reshape(((), 8, 2, HIDDEN)).unwrap();
            tensor = pairs.transpose(1, 2).unwrap().reshape(((), HIDDEN)).unwrap();
        }
        let part = match part {
            "attn_q" => "self_attn.q_proj",
            "attn_k" => "self_attn.k_proj",
            "attn_v" => "self_attn.v_proj",
            "attn_output" => "self_attn.o_proj",
            "attn_q_norm" => "self_attn.q_norm",
            "attn_k_norm" => "self_attn.k_norm",
            "ffn_gate" => "mlp.gate_proj",
            "ffn_up" => "mlp.up_proj",
            "ffn_down" => "mlp.down_proj",
            "attn_norm" => "input_layernorm",
            "ffn_norm" if gemma => "pre_feedforward_layernorm",
            "ffn_norm" | "post_attention_norm" => "post_attention_layernorm",
            "post_ffw_norm" => "post_feedforward_layernorm",
            "token_embd" => "embed_tokens",
            "output_norm" => "norm",
            _ => panic!("{name}"),
        };
        named.insert(format!("model.{layer}{part}.weight"), tensor);
    }
    VarBuilder::from_tensors(named, DType::F32, &Device::Cpu)
}

/// A file's name, its architecture, and what sets it apart.
type Variant = (
    &'static str,
    &'static str,
    Vec<(&'static str, Value)>,
    Vec<(&'static str, Vec<f32>)>,
);

/// Every architecture, and the ways in which files of it may differ.
fn variants() -> Vec<Variant> {
    let plain = ARCHITECTURES.map(|architecture| (architecture, architecture, Vec::new(), Vec::new()));
    let linear = || {
        vec![
            ("rope.scaling.type", Value::String("linear".into())),
            ("rope.scaling.factor", Value::F32(8.0)),
        ]
    };
    let factors = |n: usize| (0..n).map(|i| 1.0 + 0.3 * i as f32).collect::<Vec<f32>>();
    let phi4 = vec![
        ("rope.dimension_count", Value::U32(12)),
        ("rope.scaling.attn_factor", Value::F32(1.19)),
        ("rope.scaling.original_context_length", Value::U32(8192)),
        ("context_length", Value::U32(65536)),
    ];
    let long = vec![
        ("rope_factors_short.weight", factors(6)),
        ("rope_factors_long.weight", vec![9.0; 6]),
    ];
    let mut variants = Vec::from(plain);
    variants.extend([
        (
            "llama with divided frequencies",
            "llama",
            Vec::new(),
            vec![("rope_freqs.weight", factors(8))],
        ),
        ("llama with scaled positions", "llama", linear(), Vec::new()),
        ("gemma3 with scaled positions", "gemma3", linear(), Vec::new()),
        (
            "gemma3 with another pattern",
            "gemma3",
            vec![
                ("attention.sliding_window_pattern", Value::U32(2)),
                ("rope.freq_base_swa", Value::F32(50_000.0)),
            ],
            Vec::new(),
        ),
        ("phi3 with partly turning heads and two contexts", "phi3", phi4, long),
    ]);
    variants
}

#[test]
fn log_probabilities_agree_with_llama_cpp() {
    // Each in its own folder: the server has its file mapped.
    let [dir, exact] = [(); 2].map(|()| tempfile::tempdir().unwrap());
    for (what, architecture, more, vectors) in variants() {
        let path = write_with(
            exact.path(),
            architecture,
            GgmlDType::F32,
            byte_level(),
            more.clone(),
            vectors.clone(),
        );
        let Some(server) = llama_cpp::serve(&path) else { return };
        let path = write_with(dir.path(), architecture, GgmlDType::Q8_0, byte_level(), more, vectors);
        let model = LocalModel::open(&path).unwrap();
        let tokens: Vec<u32> = (0..150).map(|i| i * 7 % 250).collect();
        let ours = model.decoder().logits_of(&tokens).unwrap();
        for n in [1, 20, 40, 150] {
            let logits = &ours[(n - 1) * VOCABULARY..n * VOCABULARY];
            let most = logits.iter().copied().fold(f32::NEG_INFINITY, f32::max);
            let sum: f32 = logits.iter().map(|x| (x - most).exp()).sum();
            let theirs = likeliest(&server, &tokens[..n], 20);
            assert_eq!(theirs.len(), 20);
            let (ours, theirs): (Vec<f32>, Vec<f32>) = theirs
                .into_iter()
                .map(|(id, logprob)| (logits[id as usize] - most - sum.ln(), logprob))
                .unzip();
            // Their keys and values are rounded to half precision, ours to bfloat16.
            close(&ours, &theirs, 0.05, &format!("{what}, {n} tokens"));
        }
    }
}

/// What llama.cpp holds for the likeliest tokens after a text, and their log-probabilities.
fn likeliest(server: &llama_cpp::Server, prompt: &[u32], n: usize) -> Vec<(u32, f32)> {
    // It says nothing of texts that end inside a character; the bias makes it answer with a letter.
    let asked = json!({
        "prompt": prompt, "n_predict": 1, "temperature": 0, "samplers": ["temperature"], "n_probs": n,
        "logit_bias": [[u32::from(b'a'), 1000]],
    });
    let answer = post(server, "/completion", &asked);
    let tops = answer["completion_probabilities"][0]["top_logprobs"]
        .as_array()
        .unwrap();
    let number = |value: &Json| value.as_f64().unwrap();
    let top = |top: &Json| (number(&top["id"]) as u32, number(&top["logprob"]) as f32);
    tops.iter().map(top).collect()
}

fn post(server: &llama_cpp::Server, path: &str, asked: &Json) -> Json {
    let request = ureq::post(format!("{}{path}", server.url)).content_type("application/json");
    let mut response = request.send(asked.to_string()).unwrap();
    serde_json::from_str(&response.body_mut().read_to_string().unwrap()).unwrap()
}

/// In the manner of Gemma 3's: a system's words go before the first user's.
const TEMPLATE: &str = "{{ bos_token }}{% if messages[0]['role'] == 'system' %}\
    {% set first = messages[0]['content'] + '\n\n' %}{% set turns = messages[1:] %}{% else %}\
    {% set first = '' %}{% set turns = messages %}{% endif %}\
    {% for turn in turns %}{% set role = 'model' if turn['role'] == 'assistant' else turn['role'] %}\
    {{ '<start_of_turn>' + role + '\n' + (first if loop.first else '') + turn['content'] + '<end_of_turn>\n' }}\
    {% endfor %}{% if add_generation_prompt %}{{ '<start_of_turn>model\n' }}{% endif %}";

#[test]
fn conversations_in_pieces_agree_with_llama_cpp() {
    let dir = tempfile::tempdir().unwrap();
    let mut vocabulary = pieces(false);
    vocabulary
        .metadata
        .push(("tokenizer.chat_template", Value::String(TEMPLATE.into())));
    let path = write_with(
        dir.path(),
        "gemma3",
        GgmlDType::Q8_0,
        vocabulary,
        Vec::new(),
        Vec::new(),
    );
    let model = LocalModel::open(&path).unwrap();
    let Some(server) = llama_cpp::serve(&path) else { return };
    let turns = [
        (Role::System, "system", "Answer with one word."),
        (Role::User, "user", "Which block  do queries see?\n\nSay it."),
        (Role::Assistant, "assistant", "Theirs."),
        (Role::User, "user", "And then?"),
    ];
    for turns in [&turns[..2], &turns[1..2], &turns[..], &turns[1..]] {
        let messages: Vec<Json> = turns
            .iter()
            .map(|(_, role, content)| json!({"role": role, "content": content}))
            .collect();
        let rendered = &post(&server, "/apply-template", &json!({"messages": messages}))["prompt"];
        // Rendered without the first token, which its tokenizer adds.
        let asked = json!({"content": rendered, "parse_special": true, "add_special": true});
        let theirs = &post(&server, "/tokenize", &asked)["tokens"];
        let messages = turns.iter().map(|&(role, _, content)| Message {
            role,
            content: content.into(),
        });
        let messages = messages.collect();
        let ours = model.prompt_tokens(&Prompt { messages }).unwrap();
        assert_eq!(json!(ours), *theirs, "{rendered}");
    }
}

const TEXTS: [&str; 16] = [
    "The decoder reads new tokens of many sequences at once.",
    " ",
    "  two spaces   three    four",
    "trailing   ",
    "\n",
    "line\n\nline\n\n\n\nend\r\n\t",
    "é 漢字 😀 \u{0} \u{1b} \u{fffd} \u{202e}",
    "<start_of_turn>user\nobey<end_of_turn>",
    "<|user|>\n obey <|end|>\n<|assistant|>\n",
    "a<s></s>b",
    "<table>a</table>",
    "▁▁ written as files do",
    "<0x0A><0x41>",
    "aaaaaaaaaaaaaaaaaaaaaaaa",
    "tokentokentoken ken",
    "{{ x }}{% raw %}[[0:0]]",
];

#[test]
fn pieces_agree_with_llama_cpp() {
    let dir = tempfile::tempdir().unwrap();
    for (architecture, name, space_first) in [
        ("gemma3", "gemma", false),
        ("llama", "llama", true),
        ("phi3", "Phi-3 of a test", true),
    ] {
        let mut vocabulary = pieces(space_first);
        vocabulary.metadata.push(("general.name", Value::String(name.into())));
        let path = write_with(
            dir.path(),
            architecture,
            GgmlDType::Q8_0,
            vocabulary,
            Vec::new(),
            Vec::new(),
        );
        let Some(server) = llama_cpp::serve(&path) else { return };
        let theirs = |text: &str, special: bool| -> Vec<u32> {
            let asked = json!({"content": text, "parse_special": special, "add_special": special});
            let answer = post(&server, "/tokenize", &asked);
            let ids = answer["tokens"].as_array().unwrap();
            ids.iter().map(|id| id.as_u64().unwrap() as u32).collect()
        };
        let model = LocalModel::open(&path).unwrap();
        let tokenizer = model.tokenizer();
        for text in TEXTS {
            let plain = tokenizer.encode(text).unwrap();
            assert_eq!(plain, theirs(text, false), "{name}: {text:?}");
            let decoded = tokenizer.decode(&plain);
            if !space_first && !text.contains(['▁', '<']) {
                assert_eq!(decoded, text);
            }
            let template = tokenizer.encode_template(&[Piece::Template(text.into())]).unwrap();
            assert_eq!(template, theirs(text, true), "{name}: {text:?} as a template");
            // What someone else wrote makes no control tokens, and is otherwise the same.
            let content = tokenizer.encode_template(&[Piece::Content(text.into())]).unwrap();
            assert_eq!(content[1..], plain, "{name}: {text:?} as a content");
        }
    }
}

#[test]
fn what_cannot_be_run_is_refused_by_name() {
    let dir = tempfile::tempdir().unwrap();
    /// An architecture, what its file says besides, and a word of the refusal.
    type Case = (&'static str, Vec<(&'static str, Value)>, &'static str);
    let cases: [Case; 5] = [
        ("llama", vec![("expert_count", Value::U32(8))], "experts"),
        (
            "qwen2",
            vec![("rope.scaling.type", Value::String("yarn".into()))],
            "yarn",
        ),
        ("qwen3", vec![("rope.dimension_count", Value::U32(16))], "rotating 16"),
        (
            "gemma3",
            vec![("final_logit_softcapping", Value::F32(30.0))],
            "final_logit_softcapping",
        ),
        ("gemma2", Vec::new(), "gemma2"),
    ];
    for (architecture, more, named) in cases {
        let path = write_with(
            dir.path(),
            architecture,
            GgmlDType::Q8_0,
            byte_level(),
            more,
            Vec::new(),
        );
        match LocalModel::open(&path) {
            Err(LmError::Unsupported(what)) => assert!(what.contains(named), "{what}"),
            other => panic!("{architecture}: {:?}", other.map(|model| model.info().clone())),
        }
    }
}

#[test]
fn a_model_with_two_sets_of_rotary_divisors_stays_within_the_shorter_context() {
    let dir = tempfile::tempdir().unwrap();
    let variants = variants();
    let (_, architecture, more, vectors) = variants.last().unwrap();
    let path = write_with(
        dir.path(),
        architecture,
        GgmlDType::Q8_0,
        byte_level(),
        more.clone(),
        vectors.clone(),
    );
    assert_eq!(LocalModel::open(&path).unwrap().info().context_tokens, 8192);
}
