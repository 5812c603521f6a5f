//! AdamW, learning-rate schedules and gradient clipping.

use std::f64::consts::PI;

use serde::{Deserialize, Serialize};

/// Moments of the gradient, one number per trained value.
#[derive(Clone, Debug)]
pub struct AdamW {
    pub mean: Vec<f32>,
    pub square: Vec<f32>,
    pub weight_decay: f32,
}

const BETAS: (f32, f32) = (0.9, 0.999);
const EPSILON: f32 = 1e-8;

impl AdamW {
    pub fn new(values: usize, weight_decay: f32) -> AdamW {
        AdamW {
            mean: vec![0.0; values],
            square: vec![0.0; values],
            weight_decay,
        }
    }

    /// The `step`-th update, from 1. As `torch.optim.AdamW` with its default betas and epsilon.
    pub fn update(&mut self, values: &mut [f32], gradient: &[f32], learning_rate: f32, step: u64) {
        let (one, two) = BETAS;
        let correction = |beta: f32| (1.0 - f64::from(beta).powf(step as f64)) as f32;
        let (mean_correction, square_correction) = (correction(one), correction(two).sqrt());
        let moments = self.mean.iter_mut().zip(&mut self.square);
        for ((value, g), (mean, square)) in values.iter_mut().zip(gradient).zip(moments) {
            *mean = one * *mean + (1.0 - one) * g;
            *square = two * *square + (1.0 - two) * g * g;
            *value -= learning_rate * self.weight_decay * *value;
            *value -= learning_rate / mean_correction * *mean / (square.sqrt() / square_correction + EPSILON);
        }
    }
}

/// How the learning rate falls after its warm-up.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Schedule {
    Constant,
    Linear,
    Cosine,
}

impl Schedule {
    /// Share of the peak learning rate at `step`, from 0, of `steps`.
    pub fn share(self, step: u64, steps: u64, warm_up: u64) -> f64 {
        if step < warm_up {
            return (step + 1) as f64 / warm_up as f64;
        }
        let done = (step - warm_up) as f64 / steps.saturating_sub(warm_up).max(1) as f64;
        match self {
            Schedule::Constant => 1.0,
            Schedule::Linear => 1.0 - done,
            Schedule::Cosine => 0.5 * (1.0 + (PI * done).cos()),
        }
    }
}

/// Scales the gradient so that its norm is at most `most`; returns the norm it had.
pub fn clip(gradient: &mut [f32], most: f32) -> f64 {
    let norm = gradient
        .iter()
        .map(|&g| f64::from(g) * f64::from(g))
        .sum::<f64>()
        .sqrt();
    if most > 0.0 && norm > f64::from(most) {
        let scale = (f64::from(most) / norm) as f32;
        gradient.iter_mut().for_each(|g| *g *= scale);
    }
    norm
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn three_updates_are_those_of_pytorch() {
        // p = torch.nn.Parameter(torch.tensor([0.5, -1.0, 2.0]))
        // o = torch.optim.AdamW([p], lr=0.1, weight_decay=0.01)
        // for g in ([0.1, -0.2, 0.0], [0.3, 0.1, -5.0], [-1.0, 0.0, 1e-4]):
        //     p.grad = torch.tensor(g); o.step()
        // p.tolist()
        let right = [0.3465466, -0.8500079, 2.125866];
        let mut values = [0.5, -1.0, 2.0];
        let mut adam = AdamW::new(3, 0.01);
        for (step, g) in [[0.1, -0.2, 0.0], [0.3, 0.1, -5.0], [-1.0, 0.0, 1e-4]]
            .iter()
            .enumerate()
        {
            adam.update(&mut values, g, 0.1, step as u64 + 1);
        }
        for (value, right) in values.iter().zip(right) {
            assert!((value - right).abs() < 2e-6, "{values:?}");
        }
    }

    #[test]
    fn schedules_rise_to_the_peak_and_fall_to_zero() {
        for (schedule, middle) in [
            (Schedule::Linear, 0.5),
            (Schedule::Cosine, 0.5),
            (Schedule::Constant, 1.0),
        ] {
            assert_eq!(schedule.share(0, 110, 10), 0.1);
            assert_eq!(schedule.share(10, 110, 10), 1.0);
            assert!((schedule.share(60, 110, 10) - middle).abs() < 1e-12);
        }
        assert!(Schedule::Linear.share(109, 110, 10) < 0.011);
    }

    #[test]
    fn clipping_keeps_the_direction() {
        let mut gradient = [3.0, -4.0];
        assert_eq!(clip(&mut gradient, 10.0), 5.0);
        assert_eq!(gradient, [3.0, -4.0]);
        assert_eq!(clip(&mut gradient, 1.0), 5.0);
        assert!((gradient[0] - 0.6).abs() < 1e-6 && (gradient[1] + 0.8).abs() < 1e-6);
    }
}
