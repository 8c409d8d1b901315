//! The program of every method that ends in one linear combination of its sources.

use crate::engine::{AnyProgram, Apply, Block, Cost, Measured, Pass, Program};
use crate::numeric::{Real, clamp_to_hull, weighted_sum};

/// `out = sum of weights[k] * sources[k] / divisor`, with weights that are known beforehand.
pub(super) struct WeightedSum {
    /// One weight for each source.
    pub(super) weights: Vec<f64>,
    /// Divides the sum, not the weights: whole weights then give exact sums, and a result half-way between
    /// two 16-bit values is rounded to even, not to where the weights' own rounding pushed it.
    pub(super) divisor: f64,
}

impl<R: Real> Program<R> for WeightedSum {
    fn next(&self, _measured: &[Measured]) -> Pass<R> {
        Pass::Apply(Box::new(Combination::new(&self.weights, self.divisor)))
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
    divisor: R,
    /// The sources that a result must lie between: those with weight, if the sum is a mean.
    hull: Vec<usize>,
}

impl<R: Real> Combination<R> {
    pub(super) fn new(weights: &[f64], divisor: f64) -> Self {
        let sum = weights.iter().sum::<f64>() / divisor;
        // A sum of weights that is meant to be one is so up to a few roundings.
        let mean =
            (sum - 1.0).abs() < 1e-12 && weights.iter().all(|&weight| weight / divisor >= 0.0);
        Self {
            divisor: R::from_f64(divisor),
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
        if self.divisor != R::ONE {
            out.iter_mut()
                .for_each(|value| *value = *value / self.divisor);
        }
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
