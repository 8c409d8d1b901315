//! mergekit's random methods: dare and della.
//!
//! Their masks are torch's, and nothing records which generator drew them in which order. So no value can be
//! recomputed. What can be computed are the bounds of a value for all possible masks: each task vector kept or
//! dropped there, and rescaled as much as chance allows. That a value is within its bounds proves nothing.

use super::rounding::Profile;
use super::tasks::Tasks;
use super::{Evidence, Replay};
use engine::{AnyProgram, Apply, Block, Cost, Measure, Measured, Pass, Program};
use methods::{Tensor, TensorParams};
use numeric::{FloatType, NoMemory, Real};

/// How many standard deviations the part of a norm that a mask keeps may be off its expectation.
const STANDARD_DEVIATIONS: f64 = 8.0;

/// How many ULPs of the dtype rounding may move a sum.
const ROUNDINGS: f64 = 8.0;

/// Computes the bounds of each value.
#[derive(Debug, Clone)]
struct Chances {
    tasks: Tasks,
    densities: Vec<f64>,
    /// How far an element's own probability may be from the density.
    spreads: Vec<f64>,
    rescaled: bool,
    /// The smallest and the largest factor of each term; empty until they are known.
    factors: Vec<[f64; 2]>,
    epsilon: f64,
}

pub(super) fn replay(
    profile: Profile,
    params: &TensorParams,
    tensor: &Tensor<'_>,
    output: FloatType,
) -> Option<Box<dyn Replay>> {
    let tasks = Tasks::new(profile, params, tensor, false)?;
    let rescaled = match params.word("rescale") {
        "l1" => true,
        "false" => false,
        // mergekit has no other.
        _ => return None,
    };
    let spread = |source| params.source_number(source, "epsilon");
    let density = |source| params.source_number(source, "density");
    let densities = tasks
        .terms
        .iter()
        .map(|term| density(term.source))
        .collect();
    // The dtype of the result may have the larger ULP.
    let epsilon = match output {
        FloatType::Bf16 => Profile::Bfloat16.epsilon(),
        FloatType::F16 => Profile::Float16.epsilon(),
        FloatType::F32 | FloatType::F64 => 0.0,
        FloatType::F8E4m3 | FloatType::F8E5m2 => return None,
    };
    Some(Box::new(Chances {
        densities,
        spreads: tasks.terms.iter().map(|term| spread(term.source)).collect(),
        rescaled,
        factors: Vec::new(),
        epsilon: epsilon.max(profile.epsilon()),
        tasks,
    }))
}

impl Chances {
    fn deltas<R: Real>(&self, sources: &[&[R]], at: usize) -> impl Iterator<Item = f64> {
        let deltas = self
            .tasks
            .terms
            .iter()
            .map(move |term| self.tasks.delta(term, sources, at));
        deltas.map(R::to_f64)
    }

    /// The range of factors of each term's differences, from their sums and the sums of their squares.
    fn factors(&self, sums: &[f64]) -> Vec<[f64; 2]> {
        let chances = self.densities.iter().zip(&self.spreads);
        let factors = chances
            .zip(sums.chunks_exact(2))
            .map(|((&density, &wide), sums)| {
                if !self.rescaled || density >= 1.0 {
                    return [1.0, 1.0];
                }
                // The variance of one random choice is at most a quarter.
                let spread = STANDARD_DEVIATIONS * (0.25 * sums[1]).sqrt();
                let least = sums[0] / ((density + wide) * sums[0] + spread);
                let kept = (density - wide) * sums[0] - spread;
                // Too few elements to bound the factor from above.
                let most = if kept > 0.0 {
                    sums[0] / kept
                } else {
                    f64::INFINITY
                };
                [least.min(1.0), most]
            });
        factors.collect()
    }

    /// The bounds of a result.
    fn bounds<R: Real>(&self, sources: &[&[R]], at: usize) -> [f64; 2] {
        let base = self
            .tasks
            .profile
            .step(sources[self.tasks.base][at])
            .to_f64();
        let [mut low, mut high, mut size] = [0.0, 0.0, 0.0f64];
        let mut negative = false;
        let (mut least, mut most) = (0f64, 0f64);
        for ((delta, term), (&density, factor)) in self
            .deltas(sources, at)
            .zip(&self.tasks.terms)
            .zip(self.densities.iter().zip(&self.factors))
        {
            if delta == 0.0 || density <= 0.0 || term.weight == 0.0 {
                continue;
            }
            let largest = delta * factor[1];
            let term_most = largest * f64::from(term.weight);
            // Even a difference that is always kept may lose the election of a sign, so zero is always possible.
            low += term_most.min(0.0);
            high += term_most.max(0.0);
            size += term_most.abs();
            negative |= term.weight < 0.0;
            least = least.min(largest);
            most = most.max(largest);
        }
        if self.tasks.normalize {
            // A mean of the differences that are kept, unless a weight is negative.
            (low, high) = match negative {
                true => (f64::NEG_INFINITY, f64::INFINITY),
                false => (least, most),
            };
            size = size.max(most - least);
        }
        let lambda = self.tasks.lambda;
        let (low, high) = match lambda < 0.0 {
            true => (high * lambda, low * lambda),
            false => (low * lambda, high * lambda),
        };
        let noise = match low == 0.0 && high == 0.0 {
            // Nothing is added, so nothing is rounded.
            true => 0.0,
            false => ROUNDINGS * self.epsilon * (base.abs() + size * lambda.abs().max(1.0)),
        };
        [base + low - noise, base + high + noise]
    }
}

impl<R: Real> Measure<R> for Chances {
    fn sums(&self) -> usize {
        2 * self.densities.len()
    }

    fn counts(&self) -> usize {
        0
    }

    fn block(
        &self,
        block: Block<'_, R>,
        sums: &mut [f64],
        _counts: &mut [u64],
    ) -> Result<(), NoMemory> {
        for at in 0..block.len() {
            for (delta, sums) in self.deltas(block.sources, at).zip(sums.chunks_exact_mut(2)) {
                sums[0] += delta.abs();
                sums[1] += delta * delta;
            }
        }
        Ok(())
    }
}

impl<R: Real> Apply<R> for Chances {
    fn block(&self, block: Block<'_, R>, out: &mut [R]) -> Result<(), NoMemory> {
        let Some(found) = block.sources.last() else {
            return Ok(());
        };
        for (at, out) in out.iter_mut().enumerate() {
            let [low, high] = self.bounds(block.sources, at);
            let value = found[at].to_f64();
            let bound = value.clamp(low.min(high), high.max(low));
            *out = if bound == value {
                found[at]
            } else {
                R::from_f64(bound)
            };
        }
        Ok(())
    }
}

impl<R: Real> Program<R> for Chances {
    fn next(&self, measured: &[Measured]) -> Pass<R> {
        let mut chances = self.clone();
        match measured {
            [sums, ..] => {
                chances.factors = self.factors(&sums.sums);
                Pass::Apply(Box::new(chances))
            }
            [] => Pass::Measure(Box::new(chances)),
        }
    }
}

impl AnyProgram for Chances {
    fn cost(&self) -> Cost {
        Cost {
            measures: 1,
            sums: 2 * self.densities.len(),
            ..Cost::default()
        }
    }
}

impl Replay for Chances {
    fn evidence(&self) -> Evidence {
        Evidence {
            bounds_only: true,
            ..Evidence::default()
        }
    }
}
