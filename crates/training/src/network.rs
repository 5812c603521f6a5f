//! The transformer's forward and backward passes over a forest. The base gets no gradients, only the
//! adapter does; what flows through the base is the gradient of its inputs.

use std::borrow::Cow;

use gym::Seed;

use crate::Result;
use crate::adapter::Adapter;
use crate::attention::{Projected, attend, attend_backward};
use crate::base::{Base, Factors, Layer, Part};
use crate::elementwise::{Rotation, add, gated, gated_backward, normalise, normalise_backward};
use crate::factor::Direction;
use crate::forest::Forest;
use crate::matrix::{Panels, View, multiply};

/// Zeroes some inputs of every low-rank pair, and scales the others up.
#[derive(Clone, Copy, Debug)]
pub struct Dropout {
    pub share: f32,
    /// Differs from batch to batch; layers, parts and rows derive their own.
    pub seed: Seed,
}

/// What the backward pass needs of one layer. All (rows, …), flat.
struct Kept {
    x: Vec<f32>,
    q: Vec<f32>,
    k: Vec<f32>,
    v: Vec<f32>,
    attended: Vec<f32>,
    /// (heads, rows).
    sums: Vec<f32>,
    // From here on the last layer has the wanted rows only.
    middle: Vec<f32>,
    gate: Vec<f32>,
    up: Vec<f32>,
    /// `x down` of each trained part: (rows, rank).
    low: [Vec<f32>; 7],
}

/// A forward pass, kept for one backward pass.
pub struct Trace {
    layers: Vec<Kept>,
    dropout: Option<Dropout>,
    /// Rows whose last hidden states are asked for.
    wanted: Vec<usize>,
}

/// One pass over a batch: what all its layers share.
struct Pass<'a> {
    adapter: Option<&'a Adapter>,
    forest: &'a Forest,
    dropout: Option<Dropout>,
    base: &'a Base,
    rotation: Rotation,
}

/// Hidden states of the last layer before the final norm, for the `wanted` rows: (wanted, hidden). With
/// `keep` also the trace.
pub fn forward(
    base: &Base,
    adapter: Option<&Adapter>,
    forest: &Forest,
    wanted: Vec<usize>,
    dropout: Option<Dropout>,
    keep: bool,
) -> Result<(Vec<f32>, Trace)> {
    let pass = Pass::new(base, adapter, forest, dropout);
    let mut trace = Trace {
        layers: Vec::new(),
        dropout,
        wanted,
    };
    let mut factors = base.factors();
    let mut x = base.embed(&forest.tokens)?;
    for idx in 0..base.config.layers {
        base.unpack(idx, Direction::Forward, &mut factors)?;
        let (next, kept) = pass.layer_forward(idx, &factors, x, pass.only(idx, &trace.wanted));
        x = next;
        if keep {
            trace.layers.push(kept);
        }
    }
    Ok((x, trace))
}

/// Adds the adapter's gradient to `gradient`, given that of the wanted hidden states.
pub fn backward(
    base: &Base,
    adapter: &Adapter,
    forest: &Forest,
    trace: Trace,
    mut dx: Vec<f32>,
    gradient: &mut [f32],
) -> Result<()> {
    let pass = Pass::new(base, Some(adapter), forest, trace.dropout);
    let mut factors = base.factors();
    for (idx, kept) in trace.layers.into_iter().enumerate().rev() {
        base.unpack(idx, Direction::Backward, &mut factors)?;
        let only = pass.only(idx, &trace.wanted);
        pass.layer_backward(idx, &factors, kept, only, &mut dx, gradient);
    }
    Ok(())
}

impl<'a> Pass<'a> {
    fn new(base: &'a Base, adapter: Option<&'a Adapter>, forest: &'a Forest, dropout: Option<Dropout>) -> Pass<'a> {
        let config = &base.config;
        let rotation = Rotation::new(&forest.positions, &config.rotaries[0].frequencies, base.pairing());
        Pass {
            adapter,
            forest,
            dropout,
            base,
            rotation,
        }
    }

    /// The rows that a layer has to compute beyond the attention's keys and values, if not all.
    fn only<'w>(&self, idx: usize, wanted: &'w [usize]) -> Option<&'w [usize]> {
        (idx + 1 == self.base.config.layers).then_some(wanted)
    }

    fn layer_forward(&self, idx: usize, factors: &Factors, x: Vec<f32>, only: Option<&[usize]>) -> (Vec<f32>, Kept) {
        let layer = &self.base.layers[idx];
        let epsilon = self.base.config.norm_epsilon;
        let mut low: [Vec<f32>; 7] = Default::default();
        let mut project = |part: Part, x: &[f32], out: Option<Vec<f32>>| {
            let (out, pair) = self.project(idx, part, factors, x, out);
            low[part as usize] = pair;
            out
        };
        let normed = normalise(&x, &layer.attention_norm, epsilon);
        let mut q = project(Part::Query, &normed, None);
        let mut k = project(Part::Key, &normed, None);
        let mut v = project(Part::Value, &normed, None);
        layer.add_biases([&mut q, &mut k, &mut v]);
        self.rotation.apply(&mut q, 1.0);
        self.rotation.apply(&mut k, 1.0);
        let of = Projected { q: &q, k: &k, v: &v };
        let (attended, sums) = attend(self.base.heads(), self.forest, &of);
        let middle = match only {
            None => project(Part::Output, &attended, Some(x.clone())),
            Some(rows) => {
                let hidden = self.base.config.hidden;
                let onto = gather(&x, rows, hidden);
                project(Part::Output, &gather(&attended, rows, hidden), Some(onto))
            }
        };
        let normed = normalise(&middle, &layer.feed_forward_norm, epsilon);
        let gate = project(Part::Gate, &normed, None);
        let up = project(Part::Up, &normed, None);
        let next = project(Part::Down, &gated(&gate, &up), Some(middle.clone()));
        (
            next,
            Kept {
                x,
                q,
                k,
                v,
                attended,
                sums,
                middle,
                gate,
                up,
                low,
            },
        )
    }

    fn layer_backward(
        &self,
        idx: usize,
        factors: &Factors,
        kept: Kept,
        only: Option<&[usize]>,
        dx: &mut Vec<f32>,
        gradient: &mut [f32],
    ) {
        let layer = &self.base.layers[idx];
        let config = &self.base.config;
        let trains = |part| self.adapter.is_some_and(|adapter| adapter.place(idx, part).is_some());
        let Kept {
            x,
            q,
            k,
            v,
            attended,
            sums,
            middle,
            mut gate,
            up,
            low,
        } = kept;
        let mut back = |part: Part, input: &[f32], dy: &[f32], d_input: &mut [f32], base: bool| {
            if base {
                factors[part as usize].multiply(dy, dy.len() / part.dims(config).0, d_input, true);
            }
            self.pair_backward(idx, part, input, &low[part as usize], dy, d_input, gradient);
        };
        // The feed-forward block.
        let inner = if trains(Part::Down) {
            gated(&gate, &up)
        } else {
            Vec::new()
        };
        let mut d_up = vec![0.0; gate.len()];
        back(Part::Down, &inner, dx, &mut d_up, true);
        drop(inner);
        gated_backward(&mut gate, &up, &mut d_up);
        let normed = match trains(Part::Gate) || trains(Part::Up) {
            true => normalise(&middle, &layer.feed_forward_norm, config.norm_epsilon),
            false => Vec::new(),
        };
        let mut d_normed = vec![0.0; middle.len()];
        back(Part::Gate, &normed, &gate, &mut d_normed, true);
        back(Part::Up, &normed, &d_up, &mut d_normed, true);
        normalise_backward(&middle, &layer.feed_forward_norm, config.norm_epsilon, &d_normed, dx);
        // The attention.
        let mut d_attended = vec![0.0; dx.len()];
        match only {
            None => back(Part::Output, &attended, dx, &mut d_attended, true),
            Some(rows) => {
                let input = gather(&attended, rows, config.hidden);
                back(Part::Output, &input, dx, &mut d_attended, true);
                d_attended = scattered(&d_attended, rows, attended.len(), config.hidden);
                *dx = scattered(dx, rows, x.len(), config.hidden);
                d_normed.resize(x.len(), 0.0);
            }
        }
        let of = Projected { q: &q, k: &k, v: &v };
        let [mut dq, mut dk, dv] = attend_backward(self.base.heads(), self.forest, &of, &attended, &sums, &d_attended);
        self.rotation.apply(&mut dq, -1.0);
        self.rotation.apply(&mut dk, -1.0);
        let normed = normalise(&x, &layer.attention_norm, config.norm_epsilon);
        d_normed.fill(0.0);
        // Nothing below the first layer is trained.
        let below = idx > 0;
        back(Part::Query, &normed, &dq, &mut d_normed, below);
        back(Part::Key, &normed, &dk, &mut d_normed, below);
        back(Part::Value, &normed, &dv, &mut d_normed, below);
        if below {
            normalise_backward(&x, &layer.attention_norm, config.norm_epsilon, &d_normed, dx);
        }
    }

    /// `x W` plus the part's low-rank addition, added to `onto` if given. Also returns `x down`.
    fn project(
        &self,
        idx: usize,
        part: Part,
        factors: &Factors,
        x: &[f32],
        onto: Option<Vec<f32>>,
    ) -> (Vec<f32>, Vec<f32>) {
        let (out, inside) = part.dims(&self.base.config);
        let rows = x.len() / inside;
        let add = onto.is_some();
        let mut y = onto.unwrap_or_else(|| vec![0.0; rows * out]);
        factors[part as usize].multiply(x, rows, &mut y, add);
        let Some((adapter, place)) = self.pair(idx, part) else {
            return (y, Vec::new());
        };
        let rank = adapter.config.rank;
        let down = Panels::packed(View::new(&adapter.values[place.down.clone()], inside, rank));
        let up = Panels::packed(View::new(&adapter.values[place.up.clone()], out, rank).transposed());
        let mut low = vec![0.0; rows * rank];
        multiply(
            View::new(&self.dropped(idx, part, x), rows, inside),
            down.all(),
            &mut low,
            rank,
            false,
        );
        let scaled = scaled(&low, adapter.scale());
        multiply(View::new(&scaled, rows, rank), up.all(), &mut y, out, true);
        (y, low)
    }

    /// Gradients of a part's low-rank pair, and what it passes on to its input.
    #[expect(
        clippy::too_many_arguments,
        reason = "what a projection was given and what came back"
    )]
    fn pair_backward(
        &self,
        idx: usize,
        part: Part,
        x: &[f32],
        low: &[f32],
        dy: &[f32],
        dx: &mut [f32],
        gradient: &mut [f32],
    ) {
        let Some((adapter, place)) = self.pair(idx, part) else {
            return;
        };
        let (out, inside) = part.dims(&self.base.config);
        let rows = dy.len() / out;
        let rank = adapter.config.rank;
        let up = Panels::packed(View::new(&adapter.values[place.up.clone()], out, rank));
        let dy = View::new(dy, rows, out);
        let mut d_low = vec![0.0; rows * rank];
        multiply(dy, up.all(), &mut d_low, rank, false);
        let d_low = scaled(&d_low, adapter.scale());
        let low = scaled(low, adapter.scale());
        let low = Panels::packed(View::new(&low, rows, rank));
        multiply(dy.transposed(), low.all(), &mut gradient[place.up.clone()], rank, true);
        let packed = Panels::packed(View::new(&d_low, rows, rank));
        let x = self.dropped(idx, part, x);
        let x = View::new(&x, rows, inside).transposed();
        multiply(x, packed.all(), &mut gradient[place.down.clone()], rank, true);
        let down = Panels::packed(View::new(&adapter.values[place.down.clone()], inside, rank).transposed());
        let d_low = View::new(&d_low, rows, rank);
        if self.dropout.is_some() {
            let mut d = vec![0.0; dx.len()];
            multiply(d_low, down.all(), &mut d, inside, false);
            add(dx, &self.dropped(idx, part, &d));
        } else {
            multiply(d_low, down.all(), dx, inside, true);
        }
    }

    fn pair(&self, idx: usize, part: Part) -> Option<(&'a Adapter, &'a crate::adapter::Place)> {
        let adapter = self.adapter?;
        Some((adapter, adapter.place(idx, part)?))
    }

    /// The input with dropout, which is its own gradient.
    fn dropped<'x>(&self, idx: usize, part: Part, x: &'x [f32]) -> Cow<'x, [f32]> {
        let Some(Dropout { share, seed }) = self.dropout else {
            return Cow::Borrowed(x);
        };
        let seed = seed.derive((idx * Part::ALL.len() + part as usize) as u64);
        let (_, width) = part.dims(&self.base.config);
        let (bar, kept) = ((f64::from(share) * 65536.0) as u64, 1.0 / (1.0 - share));
        let mut x = x.to_vec();
        for (row, x) in x.chunks_exact_mut(width).enumerate() {
            let mut rng = seed.derive(row as u64).rng();
            for four in x.chunks_mut(4) {
                let mut draw = rng.next_u64();
                for x in four {
                    *x *= if draw & 0xffff < bar { 0.0 } else { kept };
                    draw >>= 16;
                }
            }
        }
        Cow::Owned(x)
    }
}

impl Layer {
    fn add_biases(&self, projected: [&mut Vec<f32>; 3]) {
        for (rows, bias) in projected.into_iter().zip(&self.biases) {
            if !bias.is_empty() {
                rows.chunks_exact_mut(bias.len()).for_each(|row| add(row, bias));
            }
        }
    }
}

/// Chosen rows of `x`, `width` numbers each.
pub(crate) fn gather(x: &[f32], rows: &[usize], width: usize) -> Vec<f32> {
    let rows = rows.iter().flat_map(|&row| &x[row * width..(row + 1) * width]);
    rows.copied().collect()
}

/// The sums of what is at each row, as `len` numbers.
fn scattered(x: &[f32], rows: &[usize], len: usize, width: usize) -> Vec<f32> {
    let mut out = vec![0.0; len];
    for (&row, x) in rows.iter().zip(x.chunks_exact(width)) {
        add(&mut out[row * width..][..width], x);
    }
    out
}

fn scaled(x: &[f32], scale: f32) -> Vec<f32> {
    x.iter().map(|x| x * scale).collect()
}
