//! Files cut off, overwritten, or written to deceive: a clear error, never a panic, never more memory than
//! the file could honestly ask for. Alone in its program, whose memory it watches.

#![expect(clippy::unwrap_used, reason = "a test that cannot go on fails")]

use std::path::Path;

use lm::{LmError, LocalModel};
use proptest::prelude::*;

const HIDDEN: u64 = 32;
const VOCABULARY: u64 = 259;

/// Writes GGUF version 3 by hand, so that no writer's checks stand between the test and the bytes.
#[derive(Clone, Default)]
struct Header {
    metadata: Vec<(&'static str, Vec<u8>)>,
    tensors: Vec<(String, Vec<u64>)>,
    /// All tensors at the beginning of the data, which is as long as the largest.
    overlap: bool,
}

fn text(value: &str) -> Vec<u8> {
    [&(value.len() as u64).to_le_bytes(), value.as_bytes()].concat()
}

/// A value with its type's number in front: 4 is u32, 6 is f32, 8 is text, 9 is an array.
fn typed(kind: u32, value: &[u8]) -> Vec<u8> {
    [&kind.to_le_bytes(), value].concat()
}

fn number(value: u32) -> Vec<u8> {
    typed(4, &value.to_le_bytes())
}

fn array(kind: u32, items: &[Vec<u8>]) -> Vec<u8> {
    let head = [&kind.to_le_bytes()[..], &(items.len() as u64).to_le_bytes()].concat();
    typed(9, &[head, items.concat()].concat())
}

impl Header {
    /// One layer, 256 byte tokens, a merged one and two control tokens.
    fn tiny() -> Header {
        let mut next = 0x100u32;
        let mut tokens: Vec<String> = (0..=255u8)
            .map(|byte| {
                let plain = matches!(byte, b'!'..=b'~' | 0xa1..=0xac | 0xae..=0xff);
                next += u32::from(!plain);
                char::from_u32(if plain { u32::from(byte) } else { next - 1 })
                    .unwrap()
                    .to_string()
            })
            .collect();
        tokens.extend(["he", "<|im_start|>", "<|im_end|>"].map(String::from));
        let kinds: Vec<Vec<u8>> = (0..VOCABULARY)
            .map(|id| if id < 257 { 1u32 } else { 3 }.to_le_bytes().to_vec())
            .collect();
        let metadata = vec![
            ("general.architecture", typed(8, &text("llama"))),
            ("llama.block_count", number(1)),
            ("llama.context_length", number(64)),
            ("llama.embedding_length", number(HIDDEN as u32)),
            ("llama.feed_forward_length", number(HIDDEN as u32)),
            ("llama.attention.head_count", number(2)),
            ("llama.attention.head_count_kv", number(2)),
            (
                "llama.attention.layer_norm_rms_epsilon",
                typed(6, &1e-5f32.to_le_bytes()),
            ),
            ("tokenizer.ggml.model", typed(8, &text("gpt2"))),
            ("tokenizer.ggml.pre", typed(8, &text("smollm"))),
            (
                "tokenizer.ggml.tokens",
                array(8, &tokens.iter().map(|t| text(t)).collect::<Vec<_>>()),
            ),
            ("tokenizer.ggml.token_type", array(5, &kinds)),
            ("tokenizer.ggml.merges", array(8, &[text("h e")])),
            ("tokenizer.ggml.eos_token_id", number(258)),
        ];
        let mut tensors = vec![
            ("token_embd.weight".to_owned(), vec![HIDDEN, VOCABULARY]),
            ("output_norm.weight".into(), vec![HIDDEN]),
        ];
        for part in [
            "attn_q",
            "attn_k",
            "attn_v",
            "attn_output",
            "ffn_gate",
            "ffn_up",
            "ffn_down",
        ] {
            tensors.push((format!("blk.0.{part}.weight"), vec![HIDDEN, HIDDEN]));
        }
        for part in ["attn_norm", "ffn_norm"] {
            tensors.push((format!("blk.0.{part}.weight"), vec![HIDDEN]));
        }
        Header {
            metadata,
            tensors,
            overlap: false,
        }
    }

    fn set(mut self, key: &str, value: Vec<u8>) -> Header {
        self.metadata.iter_mut().find(|(known, _)| *known == key).unwrap().1 = value;
        self
    }

    /// Header and tensor data; the second number says how much of it is header.
    fn bytes(&self) -> (Vec<u8>, usize) {
        let mut bytes = b"GGUF".to_vec();
        bytes.extend(3u32.to_le_bytes());
        bytes.extend((self.tensors.len() as u64).to_le_bytes());
        bytes.extend((self.metadata.len() as u64).to_le_bytes());
        for (key, value) in &self.metadata {
            bytes.extend(text(key));
            bytes.extend(value);
        }
        let mut offset = 0u64;
        for (name, dims) in &self.tensors {
            bytes.extend(text(name));
            bytes.extend((dims.len() as u32).to_le_bytes());
            dims.iter().for_each(|dim| bytes.extend(dim.to_le_bytes()));
            bytes.extend(0u32.to_le_bytes()); // f32
            bytes.extend(if self.overlap { 0 } else { offset }.to_le_bytes());
            offset += (dims.iter().fold(4u64, |n, dim| n.wrapping_mul(*dim))).next_multiple_of(32) % (1 << 20);
        }
        let header = bytes.len();
        bytes.resize(header.next_multiple_of(32), 0);
        let length = if self.overlap { 4 * HIDDEN * VOCABULARY } else { offset };
        let values = (0..length / 4).flat_map(|n| ((n % 13) as f32 * 0.01).to_le_bytes());
        bytes.extend(values);
        (bytes, header)
    }
}

fn open(dir: &Path, bytes: &[u8]) -> Result<LocalModel, LmError> {
    let path = dir.join("model.gguf");
    std::fs::write(&path, bytes).unwrap();
    LocalModel::open(&path)
}

/// The most address space this program ever had, in KiB; `None` where the system does not tell.
fn peak_kib() -> Option<u64> {
    let status = std::fs::read_to_string("/proc/self/status").ok()?;
    let line = status.lines().find_map(|line| line.strip_prefix("VmPeak:"))?;
    line.trim().strip_suffix(" kB")?.parse().ok()
}

fn one_line(error: &LmError) {
    let message = error.to_string();
    assert!(
        message.len() > 10 && message.len() < 600 && !message.contains('\n'),
        "{message:?}"
    );
}

#[test]
fn damaged_and_deceiving_files_are_errors_without_large_allocations() {
    let dir = tempfile::tempdir().unwrap();
    let (whole, header) = Header::tiny().bytes();
    open(dir.path(), &whole).expect("the undamaged file opens");
    let before = peak_kib();

    // Every kind of claim, made too large or senseless.
    let huge = u64::MAX / 8;
    let mut lies: Vec<(&str, Vec<u8>)> = Vec::new();
    for key in [
        "llama.block_count",
        "llama.context_length",
        "llama.embedding_length",
        "llama.feed_forward_length",
        "llama.attention.head_count",
        "llama.attention.head_count_kv",
    ] {
        for value in [0, 1 << 20 | 1, u32::MAX] {
            lies.push((key, Header::tiny().set(key, number(value)).bytes().0));
        }
        // Without a readable number of key heads, there are as many as heads.
        if key != "llama.attention.head_count_kv" {
            lies.push((key, Header::tiny().set(key, typed(8, &text("many"))).bytes().0));
        }
    }
    let length = [&8u32.to_le_bytes()[..], &huge.to_le_bytes()].concat();
    for key in ["tokenizer.ggml.tokens", "tokenizer.ggml.merges"] {
        lies.push((key, Header::tiny().set(key, typed(9, &length)).bytes().0));
        lies.push((key, Header::tiny().set(key, array(8, &[])).bytes().0));
    }
    lies.push((
        "a long text",
        Header::tiny()
            .set("general.architecture", typed(8, &huge.to_le_bytes()))
            .bytes()
            .0,
    ));
    lies.push((
        "architecture",
        Header::tiny()
            .set("general.architecture", typed(8, &text("mamba")))
            .bytes()
            .0,
    ));
    let overlapping = Header {
        overlap: true,
        ..Header::tiny()
    };
    lies.push(("tensors in one place", overlapping.bytes().0));
    lies.push((
        "a kind of value",
        Header::tiny().set("general.architecture", typed(99, &[0; 8])).bytes().0,
    ));
    for dims in [
        vec![huge, huge],
        vec![0, 0],
        vec![HIDDEN, huge],
        vec![1 << 33, 1 << 33],
        vec![],
        vec![HIDDEN; 4],
    ] {
        let mut header = Header::tiny();
        header.tensors[0].1 = dims;
        lies.push(("dimensions", header.bytes().0));
    }
    for (at, what) in [(8, "tensors"), (16, "values")] {
        for count in [huge, u64::from(u32::MAX), 1 << 24] {
            let mut bytes = whole.clone();
            bytes[at..at + 8].copy_from_slice(&count.to_le_bytes());
            lies.push((what, bytes));
        }
    }
    lies.push(("nothing", Vec::new()));
    lies.push(("magic", b"GGML".to_vec()));
    lies.push(("text", b"This is no model.\n".repeat(50)));
    for (what, bytes) in &lies {
        match open(dir.path(), bytes) {
            Err(error) => one_line(&error),
            // Merges may be none, and a layer may be asked to remember more than it is trained for.
            Ok(_) => assert!(
                ["tokenizer.ggml.merges", "llama.context_length"].contains(what),
                "{what} was believed"
            ),
        }
    }

    // Every cut is an error; a flipped byte may leave a valid file, but neither panics.
    let config = ProptestConfig {
        cases: 600,
        failure_persistence: None,
        rng_seed: proptest::test_runner::RngSeed::Fixed(3),
        ..ProptestConfig::default()
    };
    let mut runner = proptest::test_runner::TestRunner::new(config);
    let flips = prop::collection::vec((0..header + 64, any::<u8>()), 0..4);
    let damage = (flips, prop::option::of(0..whole.len() - 64));
    runner
        .run(&damage, |(flips, cut)| {
            let mut bytes = whole.clone();
            for (at, value) in &flips {
                bytes[*at] = *value;
            }
            bytes.truncate(cut.unwrap_or(bytes.len()));
            match open(dir.path(), &bytes) {
                Err(error) => one_line(&error),
                Ok(_) => prop_assert!(cut.is_none() || !flips.is_empty(), "cut to {} bytes", bytes.len()),
            }
            Ok(())
        })
        .unwrap();

    if let (Some(before), Some(after)) = (before, peak_kib()) {
        eprintln!(
            "{} lies and 600 damaged files raised the peak by {} KiB",
            lies.len(),
            after - before
        );
        // Address space, not memory: an allocator sets 64 MiB of it aside for each thread that a valid file
        // starts, while a length that is believed costs far more.
        assert!(
            after - before < 2 << 20,
            "{} KiB for a file of {} bytes",
            after - before,
            whole.len()
        );
    }
}
