//! The program of every method that ends in one linear combination of its sources.

use crate::engine::{AnyProgram, Apply, Block, Cost, Measured, Pass, Program};
use crate::numeric::{Real, clamp_to_hull, weighted_sum};

/// `out = sum of weights[k] * sources[k]`, with weights that are known beforehand.
pub(super) struct WeightedSum {
    /// One weight for each source.
    pub(super) weights: Vec<f64>,
}

impl<R: Real> Program<R> for WeightedSum {
    fn next(&self, _measured: &[Measured]) -> Pass<R> {
        Pass::Apply(Box::new(Combination::new(&self.weights)))
    }
}

impl AnyProgram for WeightedSum {
    fn cost(&self) -> Cost {
        Cost::default()
    }
}

/// The pass that applies a linear combination.
pub(super) struct Combination<R> {
    weights: Vec<R>,
    /// The sources that a result must lie between: those with weight, if the sum is a mean.
    hull: Vec<usize>,
}

impl<R: Real> Combination<R> {
    pub(super) fn new(weights: &[f64]) -> Self {
        let sum: f64 = weights.iter().sum();
        // The sum of weights that were divided by their sum is one up to a few roundings.
        let mean = (sum - 1.0).abs() < 1e-12 && weights.iter().all(|&weight| weight >= 0.0);
        Self {
            weights: weights.iter().map(|&weight| R::from_f64(weight)).collect(),
            hull: if mean {
                (0..weights.len()).filter(|&k| weights[k] != 0.0).collect()
            } else {
                Vec::new()
            },
        }
    }
}

impl<R: Real> Apply<R> for Combination<R> {
    fn block(&self, block: Block<'_, R>, out: &mut [R]) {
        weighted_sum(block.sources, &self.weights, out);
        if !self.hull.is_empty() {
            let hull: Vec<&[R]> = self
                .hull
                .iter()
                .map(|&source| block.sources[source])
                .collect();
            clamp_to_hull(&hull, out);
        }
    }
}
