//! What a file says of its network: sizes, and what sets the architectures apart, as data.

use candle_core::quantized::gguf_file::Value;

use crate::LmError;
use crate::gguf::Gguf;
use crate::kernels::Curve;
use crate::kernels::attention::{Heads, MOST_DIM, Rotary, View};

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Architecture {
    Llama,
    Qwen2,
    Qwen3,
    SmolLm3,
    Phi3,
    Gemma3,
}

use Architecture::{Gemma3, Llama, Phi3, Qwen2, Qwen3, SmolLm3};

impl Architecture {
    /// All there are, by the names that files have for them.
    const NAMES: [(&str, Architecture); 6] = [
        ("llama", Llama),
        ("qwen2", Qwen2),
        ("qwen3", Qwen3),
        ("smollm3", SmolLm3),
        ("phi3", Phi3),
        ("gemma3", Gemma3),
    ];

    pub fn name(self) -> &'static str {
        let known = |(_, architecture): &&(_, Architecture)| *architecture == self;
        Architecture::NAMES.iter().find(known).expect("all have names").0
    }

    /// Whether files have the two numbers of a head that turn together side by side; otherwise they lie half of those
    /// that turn apart.
    pub fn turns_neighbours(self) -> bool {
        matches!(self, Llama | SmolLm3)
    }

    /// Whether files have queries, keys and values in one matrix, and gate and partner in another.
    pub fn joins(self) -> bool {
        self == Phi3
    }

    /// Whether each head of the queries and keys is normalised.
    pub fn head_norms(self) -> bool {
        matches!(self, Qwen3 | Gemma3)
    }

    /// Whether what a layer adds is normalised first.
    pub fn post_norms(self) -> bool {
        self == Gemma3
    }
}

#[derive(Clone, Debug)]
pub struct Config {
    pub architecture: Architecture,
    pub layers: usize,
    pub hidden: usize,
    pub feed_forward: usize,
    pub heads: Heads,
    pub context_tokens: usize,
    pub vocabulary: usize,
    pub norm_epsilon: f32,
    /// What embeddings are multiplied by.
    pub embedding_scale: f32,
    /// What queries are multiplied by.
    pub query_scale: f32,
    pub curve: Curve,
    /// The ways in which positions turn queries and keys.
    pub rotaries: Vec<Rotary>,
    /// What each layer sees; names one of the rotaries.
    pub views: Vec<View>,
}

/// Names a file's part in errors.
const FILE: &str = "model file";

impl Config {
    pub fn from_gguf(gguf: &mut Gguf, vocabulary: usize) -> Result<Config, LmError> {
        let name = gguf.string("general.architecture").unwrap_or("").to_string();
        let known = Architecture::NAMES.iter().find(|(known, _)| *known == name);
        let Some(&(_, architecture)) = known else {
            return Err(LmError::Unsupported(format!("architecture `{name}`")));
        };
        let key = |part: &str| format!("{name}.{part}");
        let size = |part: &str, most| gguf.size(&key(part), most);
        let heads = size("attention.head_count", 1024)?;
        let hidden = size("embedding_length", 1 << 16)?;
        let kv_heads = match gguf.integer(&key("attention.head_count_kv")) {
            Some(_) => size("attention.head_count_kv", 1024)?,
            None => heads,
        };
        // Older architectures share the hidden numbers out among the heads.
        let dim = match gguf.integer(&key("attention.key_length")) {
            Some(_) => size("attention.key_length", MOST_DIM as u64)?,
            None if hidden.is_multiple_of(heads) => hidden / heads,
            None => 0,
        };
        if !heads.is_multiple_of(kv_heads) || dim == 0 {
            let message = format!("{heads} heads, {kv_heads} of them for keys, over {hidden} numbers");
            return Err(LmError::corrupt(FILE, message));
        }
        let values = gguf.integer(&key("attention.value_length"));
        if values.is_some_and(|values| values != dim as u64) {
            return Err(LmError::Unsupported("values as wide as no key".into()));
        }
        let rotated = gguf.integer(&key("rope.dimension_count")).unwrap_or(dim as u64);
        let fits = rotated == dim as u64 || (architecture == Phi3 && (1..dim as u64).contains(&rotated));
        if !fits || !rotated.is_multiple_of(2) || dim > MOST_DIM {
            return Err(LmError::Unsupported(format!(
                "rotating {rotated} of {dim} numbers per head"
            )));
        }
        if gguf.integer(&key("expert_count")).is_some_and(|n| n > 1) {
            return Err(LmError::Unsupported("a mixture of experts".into()));
        }
        for part in ["attn_logit_softcapping", "final_logit_softcapping"] {
            if gguf.float(&key(part)).is_some_and(|cap| cap != 0.0) {
                return Err(LmError::Unsupported(format!("`{part}`")));
            }
        }
        let norm_epsilon = gguf
            .float(&key("attention.layer_norm_rms_epsilon"))
            .ok_or_else(|| LmError::corrupt(FILE, "the norm's epsilon is missing"))?;
        let layers = size("block_count", 1024)?;
        let mut config = Config {
            architecture,
            layers,
            hidden,
            feed_forward: size("feed_forward_length", 1 << 20)?,
            heads: Heads { heads, kv_heads, dim },
            context_tokens: size("context_length", 1 << 20)?,
            vocabulary,
            norm_epsilon,
            embedding_scale: 1.0,
            query_scale: 1.0 / (dim as f32).sqrt(),
            curve: Curve::SILU,
            rotaries: Vec::new(),
            views: vec![View::default(); layers],
        };
        let rotary = config.rotary(gguf, rotated as usize)?;
        config.rotaries.push(rotary);
        config.set_apart(gguf)?;
        Ok(config)
    }

    /// How positions turn the layers that see everything.
    fn rotary(&mut self, gguf: &mut Gguf, rotated: usize) -> Result<Rotary, LmError> {
        let name = self.architecture.name();
        let float = |part: &str| gguf.float(&format!("{name}.rope.{part}"));
        let divisor = match gguf.string(&format!("{name}.rope.scaling.type")).unwrap_or("none") {
            "none" | "longrope" => 1.0,
            "linear" => float("scaling.factor").unwrap_or(1.0),
            other => return Err(LmError::Unsupported(format!("rotary positions scaled by `{other}`"))),
        };
        if !divisor.is_normal() {
            return Err(LmError::corrupt(FILE, format!("rotary positions divided by {divisor}")));
        }
        let mut rotary = Rotary::new(rotated, float("freq_base").unwrap_or(10_000.0));
        rotary.frequencies.iter_mut().for_each(|f| *f /= divisor);
        // Llama 3 has one set of divisors; Phi 3 has one for short contexts and one for long ones. What was read with
        // one cannot be gone on from with the other, so contexts stay short.
        let short = "rope_factors_short.weight";
        let divisors = if gguf.has_tensor(short) {
            let original = gguf.size(&format!("{name}.rope.scaling.original_context_length"), 1 << 20)?;
            self.context_tokens = self.context_tokens.min(original);
            short
        } else {
            "rope_freqs.weight"
        };
        if gguf.has_tensor(divisors) {
            for (f, divisor) in rotary.frequencies.iter_mut().zip(gguf.vector(divisors, rotated / 2)?) {
                *f /= divisor;
            }
        }
        Ok(rotary)
    }

    /// What only some architectures have.
    fn set_apart(&mut self, gguf: &Gguf) -> Result<(), LmError> {
        let name = self.architecture.name();
        let key = |part: &str| format!("{name}.{part}");
        let window = match gguf.integer(&key("attention.sliding_window")) {
            Some(n) if n > 0 => n as usize,
            _ => usize::MAX,
        };
        match self.architecture {
            Llama | Qwen2 | Qwen3 => {}
            // Every fourth layer does without positions; files do not say it.
            SmolLm3 => {
                let still = self.add_rotary(Rotary::new(0, 1.0));
                self.views
                    .iter_mut()
                    .skip(3)
                    .step_by(4)
                    .for_each(|view| view.rotary = still);
            }
            Phi3 => {
                self.rotaries[0].scale = gguf.float(&key("rope.scaling.attn_factor")).unwrap_or(1.0);
                self.views.fill(View { window, rotary: 0 });
            }
            Gemma3 => {
                self.embedding_scale = (self.hidden as f32).sqrt();
                self.curve = Curve::GELU;
                // The largest of the family, which files do not name, scales by the hidden numbers per head.
                if self.layers == 62 {
                    self.query_scale = ((self.heads.heads as f32) / self.hidden as f32).sqrt();
                }
                let base = gguf.float(&key("rope.freq_base_swa")).unwrap_or(10_000.0);
                let near = View {
                    window,
                    rotary: self.add_rotary(Rotary::new(self.heads.dim, base)),
                };
                let pattern = key("attention.sliding_window_pattern");
                for (idx, view) in self.views.iter_mut().enumerate() {
                    let slides = match gguf.value(&pattern) {
                        Some(Value::Array(layers)) => matches!(layers.get(idx), Some(Value::Bool(true))),
                        _ => match gguf.integer(&pattern).unwrap_or(6) {
                            0 => false,
                            every => !(idx as u64 + 1).is_multiple_of(every),
                        },
                    };
                    if slides && window < usize::MAX {
                        *view = near;
                    }
                }
            }
        }
        Ok(())
    }

    fn add_rotary(&mut self, rotary: Rotary) -> usize {
        self.rotaries.push(rotary);
        self.rotaries.len() - 1
    }
}
