//! Attention over keys and values that lie in blocks of 64 tokens, where they were written.
//!
//! A sequence is a table of blocks, and sequences with a common beginning name the same blocks. Queries
//! that see the same block (the heads that share its keys, the tokens of one prompt, all candidates of
//! one step) are multiplied by it together, so its keys are read once for all of them. Keys are stored
//! with the tokens side by side, so that a vector of scores is sums of broadcast queries times loaded
//! keys; values are stored token by token. The softmax runs along: whenever a block raises a row's
//! greatest score, what was summed before is scaled down.
//!
//! A row's numbers depend on its own sequence and the borders of the blocks only: masked scores
//! weigh exactly nothing. Blocks older than a layer's window are passed over.

use std::cell::RefCell;
use std::sync::Arc;

use super::Machine;
use super::activations::norm_scale;
use super::dense::{Pairs, Shape, multiply};
use super::level::Kernel;
use super::pool::Parts;
use super::simd::{Simd, exp};
use crate::accelerator::{Page, Pages};

/// Tokens per block.
pub const BLOCK: usize = 64;
/// Numbers of 16 bits in a line of the cache.
const LINE: usize = 32;
/// Query rows that one task multiplies by a block: four times the rows of a register tile.
const ROWS: usize = 48;

/// Head counts and width of the attention.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Heads {
    pub heads: usize,
    pub kv_heads: usize,
    pub dim: usize,
}

impl Heads {
    /// Query heads that share keys and values.
    pub fn group(&self) -> usize {
        self.heads / self.kv_heads
    }

    /// Numbers of one token's queries, keys and values.
    pub fn stride(&self) -> usize {
        (self.heads + 2 * self.kv_heads) * self.dim
    }

    fn wide(&self) -> usize {
        self.dim.next_multiple_of(32)
    }

    /// Numbers of one layer of one key head in a block: keys (wide / 2, 64, 2), then values (32, wide, 2).
    fn part(&self) -> usize {
        2 * BLOCK * self.wide()
    }
}

/// Keys and values of up to 64 tokens in every layer.
pub enum Block {
    /// As bfloat16 numbers.
    Memory(Box<[u16]>),
    /// On a graphics card. These kernels never see it.
    Page(Page),
}

/// Where blocks come from.
pub enum Store {
    Memory { layers: usize, heads: Heads },
    Pages(Arc<Pages>),
}

impl Store {
    pub fn block(&self) -> Block {
        match self {
            Store::Memory { layers, heads } => Block::Memory(vec![0; layers * heads.kv_heads * heads.part()].into()),
            Store::Pages(pages) => Block::Page(pages.take()),
        }
    }

    pub fn bytes_per_block(&self) -> usize {
        match self {
            Store::Memory { layers, heads } => layers * heads.kv_heads * heads.part() * 2,
            Store::Pages(pages) => pages.bytes_per_page(),
        }
    }
}

impl Block {
    /// From one of the same store.
    pub fn copy_from(&mut self, other: &Block) {
        match (self, other) {
            (Block::Memory(own), Block::Memory(other)) => own.copy_from_slice(other),
            (Block::Page(own), Block::Page(other)) => own.copy_from(other),
            _ => unreachable!("blocks of one store"),
        }
    }

    fn numbers(&self) -> &[u16] {
        match self {
            Block::Memory(numbers) => numbers,
            Block::Page(_) => unreachable!("a block in memory"),
        }
    }

    fn numbers_mut(&mut self) -> &mut [u16] {
        match self {
            Block::Memory(numbers) => numbers,
            Block::Page(_) => unreachable!("a block in memory"),
        }
    }

    pub fn page(&self) -> &Page {
        match self {
            Block::Memory(_) => unreachable!("a block on a graphics card"),
            Block::Page(page) => page,
        }
    }
}

/// New tokens of one sequence in a batch. Its blocks from the first new token's on must be its own, and
/// there must be enough of them.
pub struct Span<'a> {
    /// The sequence's blocks; the new tokens' are written.
    pub blocks: &'a mut [Arc<Block>],
    /// Tokens that were there before.
    pub base: usize,
    pub tokens: usize,
}

/// How queries and keys turn with their position: numbers `i` and `i + rotated / 2` of a head together.
#[derive(Clone, Debug)]
pub struct Rotary {
    /// Angles per position, `rotated / 2` of them; none for layers that know no positions.
    pub frequencies: Vec<f32>,
    /// What the turned numbers are multiplied by.
    pub scale: f32,
}

impl Rotary {
    pub fn new(rotated: usize, base: f32) -> Rotary {
        let frequency = |i: usize| 1.0 / base.powf(i as f32 / rotated as f32);
        Rotary {
            frequencies: (0..rotated).step_by(2).map(frequency).collect(),
            scale: 1.0,
        }
    }
}

/// What a layer sees.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct View {
    /// Tokens that a query sees at most, its own included; at least 1.
    pub window: usize,
    /// The rotary of those that were planned with.
    pub rotary: usize,
}

impl Default for View {
    fn default() -> View {
        View {
            window: usize::MAX,
            rotary: 0,
        }
    }
}

/// Where the rows of one batch belong. Kept for its buffers.
#[derive(Default)]
pub struct Plan {
    rows: Vec<Row>,
    pieces: Vec<Piece>,
    /// One for each rotary.
    turns: Vec<Turns>,
}

/// Cosines and sines of every row's angles: (rows, frequencies), each.
#[derive(Default)]
struct Turns {
    frequencies: usize,
    cosines: Vec<f32>,
    sines: Vec<f32>,
}

#[derive(Clone, Copy)]
struct Row {
    span: usize,
    position: usize,
}

/// Tokens that are written into one block.
struct Piece {
    span: usize,
    block: usize,
    slot: usize,
    row: usize,
    n: usize,
    target: Parts<u16>,
}

/// What the attention of one layer needs to know.
#[derive(Clone, Copy)]
pub struct Shapes<'a> {
    pub heads: Heads,
    pub layer: usize,
    pub view: View,
    /// What queries are multiplied by.
    pub query_scale: f32,
    /// Queries, keys and values of each row: (rows, heads.stride()).
    pub qkv: &'a [f32],
    /// What each head of the queries and of the keys is normalised with before it turns; empty for nothing.
    pub norms: [&'a [f32]; 2],
    pub norm_epsilon: f32,
}

impl Shapes<'_> {
    fn check(&self) {
        let fits = |norm: &[f32]| norm.is_empty() || norm.len() == self.heads.dim;
        assert!(self.norms.into_iter().all(fits), "a norm as wide as a head");
        assert!(self.view.window > 0, "a query sees its own token");
    }
}

impl Plan {
    /// Plans a batch: rows are the spans' tokens, one span after the other.
    pub fn set(&mut self, spans: &[Span], rotaries: &[Rotary]) {
        self.rows.clear();
        self.pieces.clear();
        for (span, Span { blocks, base, tokens }) in spans.iter().enumerate() {
            assert!(base + tokens <= blocks.len() * BLOCK, "a block for each token");
            let mut position = *base;
            while position < base + tokens {
                let n = (BLOCK - position % BLOCK).min(base + tokens - position);
                self.pieces.push(Piece {
                    span,
                    block: position / BLOCK,
                    slot: position % BLOCK,
                    row: self.rows.len(),
                    n,
                    target: Parts::new(&mut []),
                });
                self.rows
                    .extend((position..position + n).map(|position| Row { span, position }));
                position += n;
            }
        }
        self.turns.resize_with(rotaries.len(), Turns::default);
        for (turns, rotary) in self.turns.iter_mut().zip(rotaries) {
            turns.frequencies = rotary.frequencies.len();
            turns.cosines.clear();
            turns.sines.clear();
            for row in &self.rows {
                for frequency in &rotary.frequencies {
                    let (sin, cos) = (row.position as f32 * frequency).sin_cos();
                    turns.cosines.push(cos * rotary.scale);
                    turns.sines.push(sin * rotary.scale);
                }
            }
        }
    }

    /// Turns one head of row `row` of the queries (`of` 0) or keys (1), normalised if there is a norm for it.
    ///
    /// # Safety
    ///
    /// The processor must have the instructions of `S`.
    #[inline(always)]
    unsafe fn turn<S: Simd>(&self, row: usize, head: &mut [f32], shapes: &Shapes, of: usize) {
        let (norm, epsilon) = (shapes.norms[of], shapes.norm_epsilon);
        if !norm.is_empty() {
            // SAFETY: the caller vouches for `S`.
            let scale = unsafe { norm_scale::<S>(head, epsilon) };
            for (x, w) in head.iter_mut().zip(norm) {
                *x *= scale * w;
            }
        }
        let turns = &self.turns[shapes.view.rotary];
        let half = turns.frequencies;
        let (cosines, sines) = (&turns.cosines[row * half..][..half], &turns.sines[row * half..][..half]);
        let (first, second) = head[..2 * half].split_at_mut(half);
        for i in 0..half {
            let (a, b) = (first[i], second[i]);
            first[i] = a * cosines[i] - b * sines[i];
            second[i] = a * sines[i] + b * cosines[i];
        }
    }

    /// Writes the keys and values of the new tokens into their sequences' blocks.
    ///
    /// Panics if another sequence holds one of these blocks too.
    pub fn write(&mut self, machine: &Machine, spans: &mut [Span], shapes: Shapes) {
        let Shapes { heads, layer, .. } = shapes;
        shapes.check();
        assert!(shapes.qkv.len() >= self.rows.len() * heads.stride(), "keys of each row");
        for piece in &mut self.pieces {
            let block =
                Arc::get_mut(&mut spans[piece.span].blocks[piece.block]).expect("new tokens' blocks are their own");
            let part = heads.kv_heads * heads.part();
            piece.target = Parts::new(&mut block.numbers_mut()[layer * part..(layer + 1) * part]);
        }
        let plan = &*self;
        // A few rows are written sooner than they are shared out.
        let group = plan.pieces.len().div_ceil(if plan.rows.len() < 4 {
            1
        } else {
            machine.pool.threads() * 2
        });
        machine.pool.run(plan.pieces.len().div_ceil(group.max(1)), &|idx| {
            for piece in plan.pieces.iter().skip(idx * group).take(group) {
                machine.level.run(Write { plan, piece, shapes });
            }
        });
    }

    /// Causal attention of every row. `out`: (rows, heads, dim). The rows' keys must have been written.
    pub fn attend(&self, machine: &Machine, spans: &[Span], shapes: Shapes, out: &mut [f32]) {
        let heads = shapes.heads;
        let n = self.rows.len();
        shapes.check();
        assert!(shapes.qkv.len() >= n * heads.stride(), "queries of each row");
        assert!(out.len() >= n * heads.heads * heads.dim, "room for the result");
        // Enough tasks that all threads have some, but no more query rows in one than fit the cache.
        let share = (n * heads.kv_heads).div_ceil(machine.pool.threads() * 4);
        let tokens = share.clamp(1, (ROWS / heads.group()).max(1));
        let target = Parts::new(out);
        machine.pool.run(n.div_ceil(tokens) * heads.kv_heads, &|idx| {
            let (first, kv_head) = (idx / heads.kv_heads * tokens, idx % heads.kv_heads);
            let range = first..n.min(first + tokens);
            SCRATCH.with_borrow_mut(|scratch| {
                machine.level.run(Attend {
                    plan: self,
                    spans,
                    shapes,
                    range,
                    kv_head,
                    out: &target,
                    scratch,
                });
            });
        });
    }
}

thread_local! {
    static SCRATCH: RefCell<Vec<f32>> = const { RefCell::new(Vec::new()) };
}

struct Write<'a> {
    plan: &'a Plan,
    piece: &'a Piece,
    shapes: Shapes<'a>,
}

impl Kernel for Write<'_> {
    type Output = ();

    #[inline(always)]
    unsafe fn run<S: Simd>(self) {
        let Write { plan, piece, shapes } = self;
        let Heads { heads, kv_heads, dim } = shapes.heads;
        let (wide, stride) = (shapes.heads.wide(), shapes.heads.stride());
        let mut numbers = vec_of_heads(wide);
        for t in 0..piece.n {
            let row = &shapes.qkv[(piece.row + t) * stride..][..stride];
            let slot = piece.slot + t;
            for head in 0..kv_heads {
                let key = &row[(heads + head) * dim..][..dim];
                let value = &row[(heads + kv_heads + head) * dim..][..dim];
                // SAFETY: the block's layer has a part for each key head, with `wide` times 64 keys and as
                // many values, and the slots of a piece end inside the block; other tasks write other blocks.
                unsafe {
                    let keys = piece.target.at(head * shapes.heads.part());
                    numbers[..dim].copy_from_slice(key);
                    plan.turn::<S>(piece.row + t, &mut numbers[..dim], &shapes, 1);
                    for (i, &x) in numbers[..wide].iter().enumerate() {
                        *keys.add((i / 2 * BLOCK + slot) * 2 + i % 2) = upper_half(x);
                    }
                    let values = keys.add(BLOCK * wide);
                    numbers[..dim].copy_from_slice(value);
                    for (i, &x) in numbers[..wide].iter().enumerate() {
                        *values.add((slot / 2 * wide + i) * 2 + slot % 2) = upper_half(x);
                    }
                }
            }
        }
    }
}

/// A number rounded to bfloat16, ties to even.
#[inline(always)]
fn upper_half(x: f32) -> u16 {
    let bits = x.to_bits();
    (bits.wrapping_add(0x7fff + (bits >> 16 & 1)) >> 16) as u16
}

/// Room for one head. Longer heads than any model's are refused when a model is opened.
#[inline(always)]
fn vec_of_heads(wide: usize) -> [f32; MOST_DIM] {
    assert!(wide <= MOST_DIM, "heads of at most {MOST_DIM} numbers");
    [0.0; MOST_DIM]
}

/// Widest head.
pub const MOST_DIM: usize = 512;

/// Queries of a range of rows, of the heads that share one key head.
struct Attend<'a> {
    plan: &'a Plan,
    spans: &'a [Span<'a>],
    shapes: Shapes<'a>,
    range: std::ops::Range<usize>,
    kv_head: usize,
    out: &'a Parts<f32>,
    scratch: &'a mut Vec<f32>,
}

impl Kernel for Attend<'_> {
    type Output = ();

    #[inline(always)]
    unsafe fn run<S: Simd>(self) {
        let Attend {
            plan,
            spans,
            shapes,
            range,
            kv_head,
            out,
            scratch,
        } = self;
        let heads = shapes.heads;
        let (group, dim, wide) = (heads.group(), heads.dim, heads.wide());
        let rows = &plan.rows[range.clone()];
        let n = rows.len() * group;
        // Queries (n, wide), sums of values (n, wide), scores (n, 64), sums of weights (n, 16), greatest scores (n),
        // and what to keep of the sums (n).
        let room = n * (2 * wide + BLOCK + 16 + 2);
        if scratch.len() < room {
            scratch.resize(room, 0.0);
        }
        let (queries, rest) = scratch.split_at_mut(n * wide);
        let (sums, rest) = rest.split_at_mut(n * wide);
        let (scores, rest) = rest.split_at_mut(n * BLOCK);
        let (weights, rest) = rest.split_at_mut(n * 16);
        let (greatest, keep) = rest.split_at_mut(n);
        sums.fill(0.0);
        weights.fill(0.0);
        greatest.fill(f32::NEG_INFINITY);
        for (row, queries) in range.clone().zip(queries.chunks_exact_mut(group * wide)) {
            for (g, query) in queries.chunks_exact_mut(wide).enumerate() {
                query[dim..].fill(0.0);
                let head = &mut query[..dim];
                head.copy_from_slice(&shapes.qkv[row * heads.stride() + (kv_head * group + g) * dim..][..dim]);
                // SAFETY: the caller vouches for `S`.
                unsafe { plan.turn::<S>(row, head, &shapes, 0) };
                head.iter_mut().for_each(|x| *x *= shapes.query_scale);
                let packed = query.as_mut_ptr();
                for at in (0..wide).step_by(32) {
                    // SAFETY: the query is `wide` long, a multiple of 32, and a pair takes the room of one number,
                    // so what is written lies before what is still to be read; the caller vouches for `S`.
                    unsafe { S::pack(packed.add(at), packed.add(at / 2)) };
                }
            }
        }

        // The first token that a row sees.
        let oldest = |row: &Row| (row.position + 1).saturating_sub(shapes.view.window);
        let first_block = rows.iter().map(|row| oldest(row) / BLOCK).min().unwrap_or(0);
        let blocks = rows.iter().map(|row| row.position / BLOCK + 1).max().unwrap_or(0);
        let start = (shapes.layer * heads.kv_heads + kv_head) * heads.part();
        let own = start..start + heads.part();
        let block_of = |row: &Row, at: usize| {
            let seen = oldest(row) / BLOCK..=row.position / BLOCK;
            seen.contains(&at).then(|| &spans[row.span].blocks[at])
        };
        let seen_of = |row: &Row, at: usize| (row.position + 1 - at * BLOCK).min(BLOCK);
        for at in first_block..blocks {
            let mut first = 0;
            while first < rows.len() {
                let Some(block) = block_of(&rows[first], at) else {
                    first += 1;
                    continue;
                };
                // Neighbours that see the same block.
                let same = |row: &Row| block_of(row, at).is_some_and(|other| Arc::ptr_eq(block, other));
                let n_tokens = rows[first..].iter().take_while(|row| same(row)).count();
                let seen = |row: &Row| seen_of(row, at);
                let together = &rows[first..first + n_tokens];
                let most = together.iter().map(seen).max().unwrap_or(0);
                let (row, n_rows) = (first * group, n_tokens * group);
                let part = &block.numbers()[own.clone()];
                // The block after it is on its way while this one is multiplied by.
                let found = |rows: &[Row], at: usize| {
                    let mut rows = rows.iter();
                    rows.find_map(|row| block_of(row, at).map(|block| (block, seen_of(row, at))))
                };
                if let Some((block, seen)) = found(&rows[first + n_tokens..], at).or_else(|| found(rows, at + 1)) {
                    let (keys, values) = block.numbers()[own.clone()].split_at(BLOCK * wide);
                    let keys = keys
                        .chunks(2 * BLOCK)
                        .flat_map(|tokens| tokens[..2 * seen].chunks(LINE));
                    let values = values[..seen.next_multiple_of(2) * wide].chunks(LINE);
                    for line in keys.chain(values) {
                        // SAFETY: a hint; the caller vouches for `S`.
                        unsafe { S::prefetch(line.as_ptr().cast()) };
                    }
                }
                let columns = most.next_multiple_of(16);
                let scored = Shape {
                    rows: n_rows,
                    depth: wide,
                    columns,
                    left: queries[row * wide..].as_ptr(),
                    left_stride: wide,
                    out: scores[row * BLOCK..].as_mut_ptr(),
                    out_stride: BLOCK,
                };
                // SAFETY: `queries` has `wide` numbers for each row, `scores` 64 >= `columns`, and the part's
                // keys are (wide / 2, 64, 2); the caller vouches for `S`.
                unsafe {
                    let keys = Pairs {
                        at: part.as_ptr(),
                        stride: BLOCK,
                    };
                    multiply::<S, _>(scored, keys, std::ptr::null());
                }
                for (i, row) in (row..row + n_rows).enumerate() {
                    let scores = &mut scores[row * BLOCK..][..BLOCK];
                    let weights = &mut weights[row * 16..][..16];
                    let of = &together[i / group];
                    scores[seen(of)..columns].fill(f32::NEG_INFINITY);
                    scores[..oldest(of).saturating_sub(at * BLOCK)].fill(f32::NEG_INFINITY);
                    scores[columns..columns.next_multiple_of(32)].fill(0.0);
                    // SAFETY: `columns` is a multiple of sixteen, `weights` has sixteen numbers; what `pack` reads is
                    // a multiple of 32, and it writes before what is still to be read; the caller vouches for `S`.
                    unsafe {
                        weigh::<S>(&mut scores[..columns], weights, &mut greatest[row], &mut keep[row]);
                        let packed = scores.as_mut_ptr();
                        for at in (0..columns).step_by(32) {
                            S::pack(packed.add(at), packed.add(at / 2));
                        }
                    }
                }
                let summed = Shape {
                    rows: n_rows,
                    depth: most,
                    columns: wide,
                    left: scores[row * BLOCK..].as_ptr(),
                    left_stride: BLOCK,
                    out: sums[row * wide..].as_mut_ptr(),
                    out_stride: wide,
                };
                // SAFETY: as above; the part's values are (32, wide, 2), `keep` has a number for each row.
                unsafe {
                    let values = Pairs {
                        at: part[BLOCK * wide..].as_ptr(),
                        stride: wide,
                    };
                    multiply::<S, _>(summed, values, keep[row..].as_ptr());
                }
                first += n_tokens;
            }
        }

        for i in 0..n {
            // SAFETY: `weights` holds sixteen numbers for each row; `attend` checked that the result has room
            // for every row and head, and no other task has these rows and heads.
            let (sum, out) = unsafe {
                let at = (range.start + i / group) * heads.heads * dim + (kv_head * group + i % group) * dim;
                (
                    S::total(S::load(weights[i * 16..].as_ptr())),
                    std::slice::from_raw_parts_mut(out.at(at), dim),
                )
            };
            let inverse = 1.0 / sum;
            for (out, x) in out.iter_mut().zip(&sums[i * wide..]) {
                *out = x * inverse;
            }
        }
    }
}

/// Turns a row's scores into weights relative to the greatest score so far; adds them to the sums of
/// weights, scaled down if the greatest rose, and says by how much in `keep`.
///
/// # Safety
///
/// `scores` must be a multiple of sixteen long, `weights` sixteen; the processor must have the
/// instructions of `S`.
#[inline(always)]
unsafe fn weigh<S: Simd>(scores: &mut [f32], weights: &mut [f32], greatest: &mut f32, keep: &mut f32) {
    // SAFETY: the caller vouches for it.
    unsafe {
        let mut top = S::splat(*greatest);
        for scores in scores.chunks_exact(16) {
            top = S::max(S::load(scores.as_ptr()), top);
        }
        let new = S::greatest(top);
        let minus = S::splat(-new);
        let mut first = [0f32; 16];
        let kept = exp::<S>(S::add(S::splat(*greatest), minus));
        S::store(first.as_mut_ptr(), kept);
        let mut sum = S::mul(S::load(weights.as_ptr()), kept);
        for scores in scores.chunks_exact_mut(16) {
            let weight = exp::<S>(S::add(S::load(scores.as_ptr()), minus));
            S::store(scores.as_mut_ptr(), weight);
            sum = S::add(sum, weight);
        }
        S::store(weights.as_mut_ptr(), sum);
        (*greatest, *keep) = (new, first[0]);
    }
}
