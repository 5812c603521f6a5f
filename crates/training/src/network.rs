//! The transformer's forward and backward passes over a forest. The base gets no gradients, only the
//! adapter does; what flows through the base is the gradient of its inputs.

use std::borrow::Cow;
use std::ops::Range;

use gym::Seed;

use crate::Result;
use crate::adapter::{Adapter, Place};
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
    /// `x down` of the trained parts that share an input, side by side: (rows, parts rank). The inputs of
    /// queries, keys and values; of the output; of gate and up; of down.
    low: [Vec<f32>; 4],
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
        let normed = normalise(&x, &layer.attention_norm, epsilon);
        let inputs = [Part::Query, Part::Key, Part::Value];
        let ([mut q, mut k, mut v], low_inputs) = self.project(idx, inputs, factors, &normed, [None, None, None]);
        layer.add_biases([&mut q, &mut k, &mut v]);
        self.rotation.apply(&mut q, 1.0);
        self.rotation.apply(&mut k, 1.0);
        let of = Projected { q: &q, k: &k, v: &v };
        let (attended, sums) = attend(self.base.heads(), self.forest, &of);
        let hidden = self.base.config.hidden;
        let (onto, input) = match only {
            None => (x.clone(), Cow::Borrowed(&attended)),
            Some(rows) => (gather(&x, rows, hidden), Cow::Owned(gather(&attended, rows, hidden))),
        };
        let ([middle], low_output) = self.project(idx, [Part::Output], factors, &input, [Some(onto)]);
        let normed = normalise(&middle, &layer.feed_forward_norm, epsilon);
        let ([gate, up], low_inner) = self.project(idx, [Part::Gate, Part::Up], factors, &normed, [None, None]);
        let inner = gated(&gate, &up);
        let ([next], low_down) = self.project(idx, [Part::Down], factors, &inner, [Some(middle.clone())]);
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
                low: [low_inputs, low_output, low_inner, low_down],
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
            low: [low_inputs, low_output, low_inner, low_down],
        } = kept;
        // The feed-forward block.
        let inner = if trains(Part::Down) {
            gated(&gate, &up)
        } else {
            Vec::new()
        };
        let mut d_up = vec![0.0; gate.len()];
        let mut back = Back {
            pass: self,
            idx,
            factors,
            gradient,
        };
        back.through([Part::Down], &inner, &low_down, [&dx[..]], &mut d_up);
        drop(inner);
        gated_backward(&mut gate, &up, &mut d_up);
        let normed = match trains(Part::Gate) || trains(Part::Up) {
            true => normalise(&middle, &layer.feed_forward_norm, config.norm_epsilon),
            false => Vec::new(),
        };
        let mut d_normed = vec![0.0; middle.len()];
        back.through(
            [Part::Gate, Part::Up],
            &normed,
            &low_inner,
            [&gate, &d_up],
            &mut d_normed,
        );
        normalise_backward(&middle, &layer.feed_forward_norm, config.norm_epsilon, &d_normed, dx);
        // The attention.
        let mut d_attended = vec![0.0; dx.len()];
        match only {
            None => back.through([Part::Output], &attended, &low_output, [&dx[..]], &mut d_attended),
            Some(rows) => {
                let input = gather(&attended, rows, config.hidden);
                back.through([Part::Output], &input, &low_output, [&dx[..]], &mut d_attended);
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
        let inputs = [Part::Query, Part::Key, Part::Value];
        back.through(inputs, &normed, &low_inputs, [&dq, &dk, &dv], &mut d_normed);
        // Nothing below the first layer is trained.
        if idx > 0 {
            normalise_backward(&x, &layer.attention_norm, config.norm_epsilon, &d_normed, dx);
        }
    }

    /// For each of some parts with the same input, `x W` plus the low-rank addition, added to what is given
    /// `onto`. Also returns `x down` of the trained ones, side by side.
    fn project<const N: usize>(
        &self,
        idx: usize,
        parts: [Part; N],
        factors: &Factors,
        x: &[f32],
        mut onto: [Option<Vec<f32>>; N],
    ) -> ([Vec<f32>; N], Vec<f32>) {
        let rows = x.len() / parts[0].dims(&self.base.config).1;
        let mut ys = std::array::from_fn(|i| {
            let add = onto[i].is_some();
            let (out, _) = parts[i].dims(&self.base.config);
            let mut y = onto[i].take().unwrap_or_else(|| vec![0.0; rows * out]);
            factors[parts[i] as usize].multiply(x, rows, &mut y, add);
            y
        });
        let Some(pairs) = self.pairs(idx, &parts) else {
            return (ys, Vec::new());
        };
        let width = pairs.width();
        let mut low = vec![0.0; rows * width];
        for (input, down, columns) in pairs.inputs(x) {
            let down = Panels::packed(View::new(&down, pairs.inside, columns.len()));
            let input = View::new(&input, rows, pairs.inside);
            multiply(input, down.all(), &mut low[columns.start..], width, false);
        }
        for (i, pair) in pairs.each.iter().enumerate() {
            let up = Panels::packed(View::new(&pair.up, pair.out, pairs.rank).transposed());
            let low = View::new(&low, rows, width).columns(pairs.columns(i));
            multiply(low, up.all(), &mut ys[pair.at], pair.out, true);
        }
        (ys, low)
    }

    /// The trained ones of some parts with the same input.
    fn pairs<'p>(&'p self, idx: usize, parts: &[Part]) -> Option<Pairs<'p, 'a>> {
        let adapter = self.adapter?;
        let each: Vec<Pair> = parts
            .iter()
            .enumerate()
            .filter_map(|(at, &part)| {
                let place = adapter.place(idx, part)?.clone();
                let up = scaled(&adapter.values[place.up.clone()], adapter.scale());
                let (out, _) = part.dims(&self.base.config);
                Some(Pair {
                    at,
                    part,
                    out,
                    place,
                    up,
                })
            })
            .collect();
        (!each.is_empty()).then(|| Pairs {
            pass: self,
            adapter,
            idx,
            rank: adapter.config.rank,
            inside: parts[0].dims(&self.base.config).1,
            each,
        })
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

/// Low-rank pairs with the same input.
struct Pairs<'p, 'a> {
    pass: &'p Pass<'a>,
    adapter: &'a Adapter,
    idx: usize,
    rank: usize,
    inside: usize,
    each: Vec<Pair>,
}

struct Pair {
    /// Among the parts that were asked for.
    at: usize,
    part: Part,
    out: usize,
    place: Place,
    /// (out, rank), times the adapter's scale.
    up: Vec<f32>,
}

/// What is multiplied by which downs, (inside, columns), for which columns.
type Input<'x> = (Cow<'x, [f32]>, Vec<f32>, Range<usize>);

impl Pairs<'_, '_> {
    fn width(&self) -> usize {
        self.rank * self.each.len()
    }

    /// Where a pair's numbers lie in the rows of all.
    fn columns(&self, i: usize) -> Range<usize> {
        i * self.rank..(i + 1) * self.rank
    }

    /// With dropout every pair has an input of its own.
    fn inputs<'x>(&self, x: &'x [f32]) -> Vec<Input<'x>> {
        let downs = |i: usize| &self.adapter.values[self.each[i].place.down.clone()];
        if self.pass.dropout.is_some() {
            let own = |i: usize| {
                let input = self.pass.dropped(self.idx, self.each[i].part, x);
                (input, downs(i).to_vec(), self.columns(i))
            };
            return (0..self.each.len()).map(own).collect();
        }
        let row = |row: usize| (0..self.each.len()).flat_map(move |i| &downs(i)[row * self.rank..][..self.rank]);
        let side_by_side = (0..self.inside).flat_map(row).copied().collect();
        vec![(Cow::Borrowed(x), side_by_side, 0..self.width())]
    }
}

/// The way back through one layer's projections.
struct Back<'b, 'a> {
    pass: &'b Pass<'a>,
    idx: usize,
    factors: &'b Factors,
    gradient: &'b mut [f32],
}

impl Back<'_, '_> {
    /// Adds to `dx` what parts with the same input `x` pass on of their gradients `dys`, and to the gradient
    /// those of their pairs. The first layer's inputs get nothing from its weights: nothing below is trained.
    fn through<const N: usize>(&mut self, parts: [Part; N], x: &[f32], low: &[f32], dys: [&[f32]; N], dx: &mut [f32]) {
        let (idx, pass) = (self.idx, self.pass);
        let last = idx == 0 && parts[0] == Part::Query;
        let rows = dys[0].len() / parts[0].dims(&pass.base.config).0;
        if !last {
            for (part, dy) in parts.iter().zip(dys) {
                self.factors[*part as usize].multiply(dy, rows, dx, true);
            }
        }
        let Some(pairs) = pass.pairs(idx, &parts) else { return };
        let (rank, width, inside) = (pairs.rank, pairs.width(), pairs.inside);
        let low = scaled(low, pairs.adapter.scale());
        let mut d_low = vec![0.0; rows * width];
        for (i, pair) in pairs.each.iter().enumerate() {
            let dy = View::new(dys[pair.at], rows, pair.out);
            let up = Panels::packed(View::new(&pair.up, pair.out, rank));
            let columns = pairs.columns(i);
            multiply(dy, up.all(), &mut d_low[columns.start..], width, false);
            let low = Panels::packed(View::new(&low, rows, width).columns(columns));
            let d_up = &mut self.gradient[pair.place.up.clone()];
            multiply(dy.transposed(), low.all(), d_up, rank, true);
        }
        let d_low = View::new(&d_low, rows, width);
        let mut d_down = vec![0.0; inside * width];
        for (input, down, columns) in pairs.inputs(x) {
            let own = d_low.columns(columns.clone());
            let input = View::new(&input, rows, inside).transposed();
            let d_down = &mut d_down[columns.start..];
            multiply(input, Panels::packed(own).all(), d_down, width, false);
            if last {
                continue;
            }
            let down = Panels::packed(View::new(&down, inside, columns.len()).transposed());
            if pass.dropout.is_some() {
                let mut d = vec![0.0; dx.len()];
                multiply(own, down.all(), &mut d, inside, false);
                let part = pairs.each[columns.start / rank].part;
                add(dx, &pass.dropped(idx, part, &d));
            } else {
                multiply(own, down.all(), dx, inside, true);
            }
        }
        for (i, pair) in pairs.each.iter().enumerate() {
            let gradient = &mut self.gradient[pair.place.down.clone()];
            for (gradient, d) in gradient.chunks_exact_mut(rank).zip(d_down.chunks_exact(width)) {
                add(gradient, &d[pairs.columns(i)]);
            }
        }
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
