//! The program of all methods that end in one linear combination of their sources.

use engine::{AnyProgram, Apply, Block, Cost, Measured, Pass, Program};
use numeric::{NoMemory, Real, SumRule, weighted_sum};

/// Elements combined at a time, so that they stay in the first-level cache.
const STRIP: usize = 1024;

/// `out = sum of weights[k] * sources[k]`, divided by the sum of the weights if `normalize`.
pub(super) struct WeightedSum {
    /// One weight for each source.
    pub(super) weights: Vec<f64>,
    /// Whether the sum is divided by the sum of the weights. Dividing the sum and not each weight keeps sums with
    /// integer weights exact: a result half-way between two 16-bit values then rounds to even, and not in the
    /// direction in which the weights were rounded.
    pub(super) normalize: bool,
    /// Whether each term is added with a single rounding.
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
    /// The sources whose weight is not zero, with their weights.
    terms: Vec<(usize, R)>,
    rule: SumRule<R>,
}

impl<R: Real> Combination<R> {
    pub(super) fn new(exact: &[f64], normalize: bool, fused: bool) -> Self {
        let weights: Vec<R> = exact.iter().map(|&weight| R::from_f64(weight)).collect();
        // Sums the weights as they are used, after rounding, so that their rounding errors cancel.
        let divisor = match normalize {
            true => weights.iter().fold(R::ZERO, |sum, &weight| sum + weight),
            false => R::ONE,
        };
        // A sum of weights that is meant to be one may be off by a few roundings.
        let one = normalize || (exact.iter().sum::<f64>() - 1.0).abs() < 1e-12;
        let mean = one && weights.iter().all(|&weight| weight / divisor >= R::ZERO);
        let terms = weights.into_iter().enumerate();
        Self {
            terms: terms.filter(|&(_, weight)| weight != R::ZERO).collect(),
            rule: SumRule {
                divisor,
                fused,
                mean,
            },
        }
    }
}

impl<R: Real> Apply<R> for Combination<R> {
    fn block(&self, block: Block<'_, R>, out: &mut [R]) -> Result<(), NoMemory> {
        for (index, out) in out.chunks_mut(STRIP).enumerate() {
            let start = index * STRIP;
            block.ahead(start..start + out.len());
            self.combine(block.sources, start, out);
        }
        Ok(())
    }
}

impl<R: Real> Combination<R> {
    /// Combines the sources' elements from `start` on.
    pub(super) fn combine(&self, sources: &[&[R]], start: usize, out: &mut [R]) {
        weighted_sum(sources, &self.terms, start, self.rule, out);
    }
}
