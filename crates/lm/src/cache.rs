//! Keys and values of what was read, kept for whoever reads the same beginning again.
//!
//! A radix tree whose edges are blocks of 64 tokens: candidates, later steps, readers and judges of any
//! episode find the longest beginning that is there. Whole blocks are shared, never written again; of a
//! block that is only begun, a copy is taken. The blocks used longest ago go first.

use std::sync::Arc;

use crate::kernels::attention::{BLOCK, Block, Store};

/// The tokens read so far of one text, as a table of blocks. Only the last block may have room left.
#[derive(Clone, Default)]
pub struct Sequence {
    pub tokens: usize,
    pub blocks: Vec<Arc<Block>>,
}

pub struct PrefixCache {
    store: Store,
    /// Blocks that the tree and the spare ones may fill together.
    most_blocks: usize,
    kept: usize,
    spare: Vec<Arc<Block>>,
    roots: Vec<Node>,
    clock: u64,
}

/// A block of the tree and what follows it.
struct Node {
    tokens: Vec<u32>,
    block: Arc<Block>,
    used: u64,
    children: Vec<Node>,
}

impl PrefixCache {
    /// A cache of at most so many blocks, beside what is in use.
    pub fn new(store: Store, most_blocks: usize) -> PrefixCache {
        PrefixCache {
            store,
            most_blocks,
            kept: 0,
            spare: Vec::new(),
            roots: Vec::new(),
            clock: 0,
        }
    }

    /// Bytes of the blocks that are kept, in use or not.
    pub fn bytes(&self) -> usize {
        (self.kept + self.spare.len()) * self.store.bytes_per_block()
    }

    /// The longest known beginning of `tokens`, but never all of it: the last token is read again for what
    /// follows it.
    pub fn longest(&mut self, tokens: &[u32]) -> Sequence {
        self.clock += 1;
        let clock = self.clock;
        let mut left = &tokens[..tokens.len().saturating_sub(1)];
        let mut sequence = Sequence::default();
        let mut begun = None;
        let mut nodes = &mut self.roots;
        while let Some((at, n)) = nodes
            .iter()
            .enumerate()
            .map(|(at, node)| (at, common(&node.tokens, left)))
            .filter(|&(_, n)| n > 0)
            .max_by_key(|&(at, n)| (n, usize::MAX - at))
        {
            let node = &mut nodes[at];
            node.used = clock;
            sequence.tokens += n;
            if n < BLOCK {
                begun = Some(node.block.clone());
                break;
            }
            sequence.blocks.push(node.block.clone());
            left = &left[n..];
            nodes = &mut node.children;
        }
        if let Some(block) = begun {
            let copy = self.copy(&block);
            sequence.blocks.push(copy);
        }
        sequence
    }

    /// Keeps what `sequence` holds of `tokens`, which must be all it holds. Where the tree has a block of the
    /// same tokens already, the sequence takes that one.
    pub fn keep(&mut self, tokens: &[u32], sequence: &mut Sequence) {
        self.clock += 1;
        let mut nodes = &mut self.roots;
        let read = &tokens[..sequence.tokens];
        for (part, block) in read.chunks(BLOCK).zip(&mut sequence.blocks) {
            // The same tokens, or fewer of them: then this block says more.
            let at = match nodes
                .iter()
                .position(|node| common(&node.tokens, part) == node.tokens.len().min(part.len()))
            {
                Some(at) => {
                    let node = &mut nodes[at];
                    if node.tokens.len() < part.len() {
                        node.tokens = part.to_vec();
                        node.block = block.clone();
                    } else if node.tokens.len() == part.len() {
                        *block = node.block.clone();
                    }
                    at
                }
                None => {
                    let (tokens, block) = (part.to_vec(), block.clone());
                    nodes.push(Node {
                        tokens,
                        block,
                        used: 0,
                        children: Vec::new(),
                    });
                    self.kept += 1;
                    nodes.len() - 1
                }
            };
            nodes[at].used = self.clock;
            nodes = &mut nodes[at].children;
        }
        self.trim();
    }

    /// A second sequence of the same beginning, which goes its own way.
    pub fn fork(&mut self, sequence: &Sequence) -> Sequence {
        let mut fork = sequence.clone();
        if !fork.tokens.is_multiple_of(BLOCK)
            && let Some(begun) = fork.blocks.last_mut()
        {
            *begun = self.copy(begun);
        }
        fork
    }

    /// Makes room for `tokens` more.
    pub fn grow(&mut self, sequence: &mut Sequence, tokens: usize) {
        while sequence.blocks.len() * BLOCK < sequence.tokens + tokens {
            let block = self.block();
            sequence.blocks.push(block);
        }
    }

    /// Takes back the blocks that nobody else has.
    pub fn release(&mut self, sequence: Sequence) {
        for mut block in sequence.blocks {
            if Arc::get_mut(&mut block).is_some() && self.kept + self.spare.len() < self.most_blocks {
                self.spare.push(block);
            }
        }
    }

    fn copy(&mut self, block: &Block) -> Arc<Block> {
        let mut copy = self.block();
        Arc::get_mut(&mut copy)
            .expect("a block that nobody else has")
            .copy_from(block);
        copy
    }

    fn block(&mut self) -> Arc<Block> {
        self.spare.pop().unwrap_or_else(|| Arc::new(self.store.block()))
    }

    /// Forgets the blocks used longest ago that no sequence holds and none in the tree follows.
    fn trim(&mut self) {
        while self.kept + self.spare.len() > self.most_blocks {
            if self.spare.pop().is_some() {
                continue;
            }
            let Some(oldest) = self.roots.iter().filter_map(oldest).min() else {
                return;
            };
            forget(&mut self.roots, oldest);
            self.kept -= 1;
        }
    }
}

fn common(a: &[u32], b: &[u32]) -> usize {
    a.iter().zip(b).take_while(|(a, b)| a == b).count()
}

/// When the leaf used longest ago, of those that only the tree holds, was used.
fn oldest(node: &Node) -> Option<u64> {
    if node.children.is_empty() {
        (Arc::strong_count(&node.block) == 1).then_some(node.used)
    } else {
        node.children.iter().filter_map(oldest).min()
    }
}

/// Removes one leaf that was last used then; returns whether it was found.
fn forget(nodes: &mut Vec<Node>, used: u64) -> bool {
    let leaf = |node: &Node| node.children.is_empty() && node.used == used && Arc::strong_count(&node.block) == 1;
    if let Some(at) = nodes.iter().position(leaf) {
        nodes.remove(at);
        return true;
    }
    nodes.iter_mut().any(|node| forget(&mut node.children, used))
}

#[cfg(test)]
mod tests {
    use gym::Seed;

    use super::*;
    use crate::kernels::attention::Heads;

    const HEADS: Heads = Heads {
        heads: 1,
        kv_heads: 1,
        dim: 16,
    };

    fn cache(blocks: usize) -> PrefixCache {
        let store = Store::Memory {
            layers: 1,
            heads: HEADS,
        };
        PrefixCache::new(store, blocks)
    }

    fn read(cache: &mut PrefixCache, tokens: &[u32]) -> Sequence {
        let mut sequence = cache.longest(tokens);
        let new = tokens.len() - sequence.tokens;
        cache.grow(&mut sequence, new);
        sequence.tokens = tokens.len();
        cache.keep(tokens, &mut sequence);
        sequence
    }

    #[test]
    fn finds_the_longest_beginning_and_never_all_of_it() {
        let mut cache = cache(100);
        let text: Vec<u32> = (0..150).collect();
        let first = read(&mut cache, &text);
        let again = cache.longest(&text);
        assert_eq!(again.tokens, 149);
        assert!(
            Arc::ptr_eq(&first.blocks[1], &again.blocks[1]),
            "whole blocks are shared"
        );
        assert!(
            !Arc::ptr_eq(&first.blocks[2], &again.blocks[2]),
            "begun ones are copied"
        );
        let mut other = text.clone();
        other[100] = 7;
        assert_eq!(cache.longest(&other).tokens, 100);
        assert_eq!(cache.longest(&[5, 6]).tokens, 0);
    }

    #[test]
    fn agrees_with_a_list_of_texts_and_stays_within_its_bound() {
        let mut rng = Seed(9).rng();
        for most in [4, 1000] {
            let mut cache = cache(most);
            let mut texts: Vec<Vec<u32>> = Vec::new();
            for _ in 0..200 {
                // Begins like an earlier text, then goes on at random.
                let mut text = match texts.len() {
                    0 => Vec::new(),
                    n => texts[rng.below(n)].clone(),
                };
                text.truncate(rng.below(200));
                text.extend((0..1 + rng.below(130)).map(|_| rng.below(2) as u32));
                let want = texts
                    .iter()
                    .map(|t| common(t, &text[..text.len() - 1]))
                    .max()
                    .unwrap_or(0);
                let found = cache.longest(&text).tokens;
                if most == 1000 {
                    assert_eq!(found, want);
                } else {
                    assert!(found <= want);
                }
                let sequence = read(&mut cache, &text);
                assert_eq!(sequence.blocks.len(), text.len().div_ceil(BLOCK));
                cache.release(sequence);
                cache.trim();
                assert!(cache.kept + cache.spare.len() <= most, "{} of {most}", cache.kept);
                texts.push(text);
            }
        }
    }
}
