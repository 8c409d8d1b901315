//! mergekit's `linear`, and `passthrough` with a scale.

use super::rounding::{Profile, inner_sum, single};
use super::{Evidence, Replay};
use engine::{AnyProgram, Apply, Block, Cost, Measured, Pass, Program};
use methods::{Tensor, TensorParams};
use numeric::{NoMemory, Real, vectorised};

/// A weighted sum in float32, fused, divided at the end and rounded to the dtype once.
#[derive(Debug, Clone)]
pub(super) struct Linear {
    profile: Profile,
    weights: Vec<f32>,
    divisor: Option<f32>,
}

impl Linear {
    pub(super) fn new(profile: Profile, params: &TensorParams, tensor: &Tensor<'_>) -> Self {
        let weight = |source| params.source_number(source, "weight") as f32;
        let weights: Vec<f32> = (0..tensor.sources).map(weight).collect();
        let normalize = params.flag("normalize");
        Self {
            profile,
            divisor: normalize.then(|| inner_sum(&weights)),
            weights,
        }
    }
}

vectorised! {
    /// Adds a source times its weight, with a single rounding to float32.
    fn add<R: Real>(sum: &mut [R], source: &[R], weight: f32, profile: Profile) {
        for (sum, value) in sum.iter_mut().zip(source) {
            let value = profile.step(*value).to_f32();
            *sum = R::from_f32(value.mul_add(weight, sum.to_f32()));
        }
    }
}

impl<R: Real> Apply<R> for Linear {
    fn block(&self, block: Block<'_, R>, out: &mut [R]) -> Result<(), NoMemory> {
        out.fill(R::ZERO);
        for (source, &weight) in block.sources.iter().zip(&self.weights) {
            add(out, source, weight, self.profile);
        }
        for value in out {
            if let Some(divisor) = self.divisor {
                *value = single(*value / R::from_f32(divisor));
            }
            *value = self.profile.step(*value);
        }
        Ok(())
    }
}

impl<R: Real> Program<R> for Linear {
    fn next(&self, _measured: &[Measured]) -> Pass<R> {
        Pass::Apply(Box::new(self.clone()))
    }
}

impl AnyProgram for Linear {
    fn cost(&self) -> Cost {
        Cost::default()
    }
}

impl Replay for Linear {
    fn evidence(&self) -> Evidence {
        Evidence::default()
    }
}

/// One model times a number.
#[derive(Debug, Clone)]
pub(super) struct Scaled {
    profile: Profile,
    scale: f32,
}

impl Scaled {
    pub(super) fn new(profile: Profile, params: &TensorParams) -> Option<Self> {
        let scale = params.optional_source_number(0, "scale")? as f32;
        Some(Self { profile, scale })
    }
}

impl<R: Real> Apply<R> for Scaled {
    fn block(&self, block: Block<'_, R>, out: &mut [R]) -> Result<(), NoMemory> {
        let Some(source) = block.sources.first() else {
            return Ok(());
        };
        for (out, value) in out.iter_mut().zip(*source) {
            *out = self
                .profile
                .step(self.profile.step(*value) * R::from_f32(self.scale));
        }
        Ok(())
    }
}

impl<R: Real> Program<R> for Scaled {
    fn next(&self, _measured: &[Measured]) -> Pass<R> {
        Pass::Apply(Box::new(self.clone()))
    }
}

impl AnyProgram for Scaled {
    fn cost(&self) -> Cost {
        Cost::default()
    }
}

impl Replay for Scaled {
    fn evidence(&self) -> Evidence {
        Evidence::default()
    }
}
