//! Arithmetic written for the processor: quantised products, attention, and the threads that run them.
//!
//! Every kernel is written once, over the vectors of [`simd::Simd`], and compiled for each instruction
//! set; [`Level`] chooses at run time. The order of operations behind every number is fixed: it depends
//! neither on how many rows are computed together, nor on the number of threads, nor (where the
//! processor fuses multiply and add) on the instruction set. So a token's numbers are the same bits in
//! any company.
//!
//! This is the only module of the workspace's own code with `unsafe`. Three kinds occur, and each place says which:
//! instructions that a [`Level`] vouches for, loads and stores inside slices whose lengths were checked
//! on entry, and slices handed to threads that write disjoint parts of them.

#![expect(unsafe_code, reason = "vector instructions and threads that share buffers")]
#![expect(
    clippy::needless_range_loop,
    reason = "numbers of a register tile, in several arrays at once"
)]

mod activations;
pub mod attention;
pub mod bf16;
mod dense;
mod level;
mod low_rank;
pub mod measure;
mod memory;
#[cfg(target_arch = "aarch64")]
mod neon;
mod packed;
pub mod pool;
mod product;
mod simd;
#[cfg(test)]
mod tests;
mod vocabulary;
#[cfg(target_arch = "x86_64")]
mod x86;

pub use activations::{Activations, add_normalised, normalise};
pub use level::Level;
pub use low_rank::{LowRank, down_project};
pub use memory::Arena;
pub use packed::Packed;
pub use product::{Curve, Into, Part, gated, product};
pub use vocabulary::{STRETCH, Weighing, exponential_sum, greatest, weight_sums, weights};

/// What computes: an instruction set and a pool of threads.
#[derive(Clone)]
pub struct Machine {
    pub level: Level,
    pub pool: std::sync::Arc<pool::Pool>,
}

impl Machine {
    /// The best instruction set of this processor and the pool that all models of the process share.
    pub fn shared() -> Machine {
        Machine {
            level: Level::best(),
            pool: pool::Pool::shared(),
        }
    }

    pub fn new(level: Level, threads: usize) -> Machine {
        Machine {
            level,
            pool: std::sync::Arc::new(pool::Pool::new(threads)),
        }
    }
}
