//! The BM25 formula.

use crate::RetrievalError;

/// Parameters of BM25; read at query time, so an index need not be rebuilt for them.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Bm25Parameters {
    /// How slowly repeated words saturate.
    pub k1: f32,
    /// How much long passages are held back, 0 to 1.
    pub b: f32,
    /// Weight of a second BM25 score over titles alone; 0 turns it off.
    pub title_boost: f32,
}

impl Default for Bm25Parameters {
    /// Chosen on the training questions of HotpotQA, 2WikiMultihopQA and MuSiQue.
    fn default() -> Bm25Parameters {
        Bm25Parameters {
            k1: 0.6,
            b: 0.3,
            title_boost: 0.4,
        }
    }
}

impl Bm25Parameters {
    pub(crate) fn checked(self) -> Result<Bm25Parameters, RetrievalError> {
        let Bm25Parameters { k1, b, title_boost } = self;
        let sound = |x: f32| x.is_finite() && x >= 0.0;
        if sound(k1) && sound(title_boost) && (0.0..=1.0).contains(&b) {
            Ok(self)
        } else {
            Err(RetrievalError::Parameters { k1, b, title_boost })
        }
    }

    /// `k1 · (1 - b + b · length / average_length)`.
    pub(crate) fn norm(&self, length: u32, average_length: f32) -> f32 {
        if average_length > 0.0 {
            self.k1 * (1.0 - self.b + self.b * length as f32 / average_length)
        } else {
            self.k1
        }
    }
}

/// `ln(1 + (n - df + 0.5) / (df + 0.5))`, which is never negative.
pub(crate) fn idf(n_passages: u64, document_frequency: u64) -> f32 {
    let (n, df) = (n_passages as f64, document_frequency as f64);
    (1.0 + (n - df + 0.5) / (df + 0.5)).ln() as f32
}

/// `idf · tf / (tf + norm)`, Lucene's form: without the constant factor `k1 + 1`.
pub(crate) fn term_score(idf: f32, term_frequency: u32, norm: f32) -> f32 {
    let tf = term_frequency as f32;
    idf * tf / (tf + norm)
}
