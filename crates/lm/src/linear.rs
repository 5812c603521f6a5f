//! A matrix product with a model file's weights, with an optional low-rank addition.

use std::sync::Arc;

use candle_core::quantized::{QMatMul, QTensor};
use candle_core::{Device, Module, Tensor};

use crate::LmError;

/// `x Wᵀ + scale (x Aᵀ) Bᵀ`.
#[derive(Clone)]
pub struct Linear {
    weight: Weight,
    lora: Option<LowRank>,
}

/// How the weights lie in memory.
#[derive(Clone)]
enum Weight {
    /// f32, (out, in). candle picks the processor's best f32 kernels at run time, but its quantised ones
    /// only when compiled for that processor: a portable build decodes ten times faster from these.
    Dense(Tensor),
    /// As in the file: an eighth to a quarter of the memory.
    Quantised(Arc<QTensor>, QMatMul),
}

/// A LoRA pair: `a` is (rank, in), `b` is (out, rank).
#[derive(Clone)]
pub struct LowRank {
    pub a: Tensor,
    pub b: Tensor,
    pub scale: f64,
}

/// Which arithmetic multiplies weights that are kept quantised.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Route {
    /// Dequantised weights, f32 activations: many rows at once, and results that do not depend on how
    /// a prompt was cut into pieces.
    Exact,
    /// Quantised weights and activations, each row by itself: few rows.
    Quantised,
}

impl Linear {
    /// Keeps the weights as f32 if `dense`, else as they are.
    pub fn new(weight: QTensor, dense: bool) -> Result<Linear, LmError> {
        let weight = if dense {
            Weight::Dense(weight.dequantize(&Device::Cpu)?)
        } else {
            let weight = Arc::new(weight);
            Weight::Quantised(weight.clone(), QMatMul::from_arc(weight)?)
        };
        Ok(Linear { weight, lora: None })
    }

    /// (out, in).
    pub fn dims(&self) -> (usize, usize) {
        let dims = match &self.weight {
            Weight::Dense(weight) => weight.dims2(),
            Weight::Quantised(weight, _) => weight.shape().dims2(),
        };
        dims.unwrap_or((0, 0))
    }

    #[must_use]
    pub fn with_lora(&self, lora: LowRank) -> Linear {
        Linear {
            lora: Some(lora),
            ..self.clone()
        }
    }

    /// `x`: (rows, in). Returns (rows, out).
    pub fn forward(&self, x: &Tensor, route: Route) -> Result<Tensor, LmError> {
        let y = match (&self.weight, route) {
            (Weight::Dense(weight), _) => x.matmul(&weight.t()?)?,
            (Weight::Quantised(weight, _), Route::Exact) => x.matmul(&weight.dequantize(&Device::Cpu)?.t()?)?,
            (Weight::Quantised(_, product), Route::Quantised) => product.forward(x)?,
        };
        Ok(match &self.lora {
            None => y,
            Some(LowRank { a, b, scale }) => (y + (x.matmul(&a.t()?)?.matmul(&b.t()?)? * *scale)?)?,
        })
    }
}
