//! Reads LoRA adapters in PEFT's layout and lays them over a decoder's weights.

use std::collections::HashMap;
use std::path::Path;

use candle_core::{DType, Device, Tensor};
use serde::Deserialize;

use crate::LmError;
use crate::decoder::{Decoder, Layer, Linear};
use crate::kernels::LowRank;

#[derive(Deserialize)]
struct AdapterConfig {
    r: usize,
    lora_alpha: f64,
    #[serde(default)]
    use_rslora: bool,
    #[serde(default)]
    use_dora: bool,
    /// Modules with a scale of their own.
    #[serde(default)]
    alpha_pattern: HashMap<String, f64>,
}

const PARTS: [&str; 7] = [
    "self_attn.q_proj",
    "self_attn.k_proj",
    "self_attn.v_proj",
    "self_attn.o_proj",
    "mlp.gate_proj",
    "mlp.up_proj",
    "mlp.down_proj",
];

/// The name of a reward model's head in PEFT's files: (1, hidden).
const HEAD: &str = "base_model.model.score.weight";

/// The decoder with the adapter in `dir` (`adapter_config.json`, `adapter_model.safetensors`) on top, and the
/// adapter's reward head if it has one: `hidden` numbers.
///
/// The base's weights are shared, not copied. Errors if a tensor has no place or the wrong shape.
pub fn with_adapter(base: &Decoder, dir: &Path) -> Result<(Decoder, Option<Vec<f32>>), LmError> {
    let read = |name: &str| {
        let path = dir.join(name);
        std::fs::read(&path).map_err(|source| LmError::Read { path, source })
    };
    let damaged = |message: String| LmError::corrupt(dir.display().to_string(), message);
    let config: AdapterConfig =
        serde_json::from_slice(&read("adapter_config.json")?).map_err(|e| damaged(e.to_string()))?;
    if config.use_dora {
        return Err(LmError::Unsupported("DoRA adapters".into()));
    }
    if !config.alpha_pattern.is_empty() {
        return Err(LmError::Unsupported("adapters with an alpha_pattern".into()));
    }
    if config.r == 0 {
        return Err(damaged("rank 0".into()));
    }
    let rank = config.r as f64;
    let scale = config.lora_alpha / if config.use_rslora { rank.sqrt() } else { rank };
    let mut tensors: HashMap<String, Tensor> =
        candle_core::safetensors::load_buffer(&read("adapter_model.safetensors")?, &Device::Cpu)
            .map_err(|e| damaged(e.to_string()))?;

    let flat = |t: &Tensor| -> Result<Vec<f32>, LmError> { Ok(t.to_dtype(DType::F32)?.flatten_all()?.to_vec1()?) };
    let head = match tensors.remove(HEAD) {
        Some(head) if head.dims() != [1, base.config.hidden] => {
            return Err(damaged(format!("`{HEAD}` has shape {:?}", head.dims())));
        }
        head => head.as_ref().map(flat).transpose()?,
    };
    let mut decoder = base.clone();
    for (idx, layer) in decoder.layers.iter_mut().enumerate() {
        for part in PARTS {
            let name = format!("base_model.model.model.layers.{idx}.{part}");
            let a = tensors.remove(&format!("{name}.lora_A.weight"));
            let b = tensors.remove(&format!("{name}.lora_B.weight"));
            let (a, b) = match (a, b) {
                (Some(a), Some(b)) => (a, b),
                (None, None) => continue,
                _ => return Err(damaged(format!("`{name}` has only one of its two matrices"))),
            };
            let linear = slot(layer, part);
            let (out, inside) = linear.dims();
            if a.dims() != [config.r, inside] || b.dims() != [out, config.r] {
                return Err(damaged(format!(
                    "`{name}` has shapes {:?} and {:?}, expected {:?} and {:?}",
                    a.dims(),
                    b.dims(),
                    [config.r, inside],
                    [out, config.r]
                )));
            }
            linear.low = Some(LowRank::new(config.r, &flat(&a)?, &flat(&b)?, scale as f32).into());
        }
    }
    if let Some(name) = tensors.keys().next() {
        return Err(damaged(format!("tensor `{name}` has no place in this model")));
    }
    match base.device() {
        Some(device) => Ok((decoder.on(device)?, head)),
        None => Ok((decoder, head)),
    }
}

fn slot<'a>(layer: &'a mut Layer, part: &str) -> &'a mut Linear {
    match part {
        "self_attn.q_proj" => &mut layer.q,
        "self_attn.k_proj" => &mut layer.k,
        "self_attn.v_proj" => &mut layer.v,
        "self_attn.o_proj" => &mut layer.o,
        "mlp.gate_proj" => &mut layer.gate,
        "mlp.up_proj" => &mut layer.up,
        _ => &mut layer.down,
    }
}
