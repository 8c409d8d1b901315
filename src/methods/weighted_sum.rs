//! The program of every method that ends in one linear combination of its sources.

use crate::engine::{AnyProgram, Apply, Block, Cost, Measured, Pass, Program};
use crate::numeric::{Real, clamp_to_hull, weighted_sum};

/// Elements combined at a time, so that they stay in the first cache.
const STRIP: usize = 1024;

/// `out = sum of weights[k] * sources[k]`, or that divided by the sum of the weights.
pub(super) struct WeightedSum {
    /// One weight for each source.
    pub(super) weights: Vec<f64>,
    /// Whether the sum is divided. It is the sum that is, not the weights: whole weights then give exact sums,
    /// and a result half-way between two 16-bit values is rounded to even, not to where the weights' own
    /// rounding pushed it.
    pub(super) normalize: bool,
    /// Whether each term is added with one rounding.
    pub(super) fused: bool,
}

impl<R: Real> Program<R> for WeightedSum {
    fn next(&self, _measured: &[Measured]) -> Pass<R> {
        Pass::Apply(Box::new(Combination::new(
            &self.weights,
            self.normalize,
            self.fused,
        )))
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
    fused: bool,
    /// The sources that a result must lie between: those with weight, if the sum is a mean.
    hull: Vec<usize>,
}

impl<R: Real> Combination<R> {
    pub(super) fn new(exact: &[f64], normalize: bool, fused: bool) -> Self {
        let weights: Vec<R> = exact.iter().map(|&weight| R::from_f64(weight)).collect();
        // The sum of the weights as they are used, so that their rounding cancels.
        let divisor = match normalize {
            true => weights.iter().fold(R::ZERO, |sum, &weight| sum + weight),
            false => R::ONE,
        };
        // A sum of weights that is meant to be one is so up to a few roundings.
        let one = normalize || (exact.iter().sum::<f64>() - 1.0).abs() < 1e-12;
        let mean = one
            && exact
                .iter()
                .all(|&weight| R::from_f64(weight) / divisor >= R::ZERO);
        Self {
            divisor,
            fused,
            hull: if mean {
                (0..exact.len()).filter(|&k| exact[k] != 0.0).collect()
            } else {
                Vec::new()
            },
            weights,
        }
    }
}

impl<R: Real> Apply<R> for Combination<R> {
    fn block(&self, block: Block<'_, R>, out: &mut [R]) {
        let mut room = Vec::new();
        for (index, out) in out.chunks_mut(STRIP).enumerate() {
            let strip = index * STRIP..index * STRIP + out.len();
            block.ahead(strip.clone());
            self.combine(block.part(strip, &mut room).sources, out);
        }
    }
}

impl<R: Real> Combination<R> {
    /// Combines slices of one length.
    pub(super) fn combine(&self, sources: &[&[R]], out: &mut [R]) {
        weighted_sum(sources, &self.weights, self.fused, out);
        if self.divisor != R::ONE {
            out.iter_mut()
                .for_each(|value| *value = *value / self.divisor);
        }
        if !self.hull.is_empty() {
            let hull: Vec<&[R]> = self.hull.iter().map(|&source| sources[source]).collect();
            clamp_to_hull(&hull, out);
        }
    }
}
