//! The built-in world: a public-domain almanac of 260 places, as a corpus and as questions on it.
//!
//! Facts are as of 2015. Everything is a function of the bundled file: same passages, same
//! questions, in the same order, on every machine.

mod chains;
mod facts;
mod place;
mod questions;
mod sections;

use std::sync::OnceLock;

use gym::{LabelledQuestion, Passage};

/// Which part of the world's questions: no chain of entities occurs in two of them.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Split {
    Train,
    Dev,
    Test,
}

impl Split {
    pub const ALL: [Split; 3] = [Split::Train, Split::Dev, Split::Test];

    pub fn name(self) -> &'static str {
        match self {
            Split::Train => "train",
            Split::Dev => "dev",
            Split::Test => "test",
        }
    }
}

/// The corpus: one passage per place and section group, ids like `austria/government`.
pub fn world_passages() -> Vec<Passage> {
    place::world().places.iter().flat_map(sections::passages).collect()
}

/// Multi-hop questions with verified answers, gold titles and sub-questions for each hop.
///
/// A question's split is that of the countries it starts from, so the splits start from different
/// countries; the countries a chain passes through on its way may occur in any split.
pub fn world_questions(split: Split) -> Vec<LabelledQuestion> {
    static ALL: OnceLock<[Vec<LabelledQuestion>; 3]> = OnceLock::new();
    let all = ALL.get_or_init(|| Split::ALL.map(questions::generate));
    match split {
        Split::Train => all[0].clone(),
        Split::Dev => all[1].clone(),
        Split::Test => all[2].clone(),
    }
}

/// FNV-1a with a final mix: a stable order that has nothing to do with the alphabet.
fn stable_hash(text: &str) -> u64 {
    let mut hash = 0xcbf2_9ce4_8422_2325_u64;
    for byte in text.bytes() {
        hash = (hash ^ u64::from(byte)).wrapping_mul(0x0100_0000_01b3);
    }
    hash ^= hash >> 33;
    hash = hash.wrapping_mul(0xff51_afd7_ed55_8ccd);
    hash ^ (hash >> 33)
}
