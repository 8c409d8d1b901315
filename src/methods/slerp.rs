//! `slerp`: the way between two models along the great circle.

use super::weighted_sum::Combination;
use super::{
    Action, Arity, BaseRule, Method, MethodInfo, ParamInfo, ParamKind, ParamScope, Tensor,
    TensorParams,
};
use crate::engine::{AnyProgram, Block, Cost, Measure, Measured, Pass, Program};
use crate::numeric::{Real, dot};

/// Spherical linear interpolation from the base to the other model.
pub(super) struct Slerp;

/// Above this cosine the great circle is taken for a line.
const LINEAR_ABOVE: f64 = 0.9995;

static INFO: MethodInfo = MethodInfo {
    name: "slerp",
    summary: "the point at t on the great circle from the base model (t = 0) to the other (t = 1)",
    formula: "out = sin((1-t)*theta)/sin(theta) * base + sin(t*theta)/sin(theta) * x, theta the angle between the \
              two tensors; (1-t)*base + t*x where |cos(theta)| > 0.9995",
    when: "two models; often with t as a gradient over depth, and other values for attention and MLP",
    departs: "The cosine of tensors whose norm is below 1e-8 is computed like any other, so that copies of a \
              model give that model; mergekit leaves such tensors unnormalised. For independent fine-tunes of one \
              base the cosine exceeds 0.9995 when updates are below about 2 % of the weights: slerp is then linear.",
    source: "Shoemake, Animating rotation with quaternion curves, SIGGRAPH 1985; mergekit 0.1.5",
    models: Arity {
        min: 2,
        max: Some(2),
    },
    base: BaseRule::Required,
    params: &[ParamInfo {
        name: "t",
        kind: ParamKind::Number,
        scope: ParamScope::Tensor,
        default: None,
        required: true,
        doc: "Where on the way: 0 is the base, 1 the other model.",
    }],
    random: false,
};

impl Method for Slerp {
    fn info(&self) -> &'static MethodInfo {
        &INFO
    }

    fn action(&self, params: &TensorParams, tensor: &Tensor<'_>) -> Result<Action, String> {
        let t = params.number("t").ok_or("`t` has no value")?;
        let base = tensor.base.ok_or("slerp needs a base model")?;
        Ok(Action::Compute(Box::new(GreatCircle { t, base })))
    }
}

/// Measures the angle, then combines.
struct GreatCircle {
    t: f64,
    base: usize,
}

impl GreatCircle {
    /// The weights of base and other from the Gram matrix's entries.
    fn weights(&self, base_squared: f64, inner: f64, other_squared: f64) -> (f64, f64) {
        let t = self.t;
        let norms = base_squared.sqrt() * other_squared.sqrt();
        // Without a direction there is no angle; mergekit takes a right one.
        let cosine = if norms > 0.0 {
            (inner / norms).clamp(-1.0, 1.0)
        } else {
            0.0
        };
        if cosine.abs() > LINEAR_ABOVE {
            return (1.0 - t, t);
        }
        let angle = cosine.acos();
        (
            ((1.0 - t) * angle).sin() / angle.sin(),
            (t * angle).sin() / angle.sin(),
        )
    }
}

impl<R: Real> Program<R> for GreatCircle {
    fn next(&self, measured: &[Measured]) -> Pass<R> {
        let Some(gram) = measured.first() else {
            return Pass::Measure(Box::new(Gram));
        };
        let (first, inner, second) = (gram.sums[0], gram.sums[1], gram.sums[2]);
        let weights = if self.base == 0 {
            let (base, other) = self.weights(first, inner, second);
            [base, other]
        } else {
            let (base, other) = self.weights(second, inner, first);
            [other, base]
        };
        Pass::Apply(Box::new(Combination::new(&weights, false, false)))
    }
}

impl AnyProgram for GreatCircle {
    fn cost(&self) -> Cost {
        Cost {
            measures: 1,
            sums: 3,
            ..Cost::default()
        }
    }
}

/// The inner products of two sources: first with itself, first with second, second with itself.
struct Gram;

impl<R: Real> Measure<R> for Gram {
    fn sums(&self) -> usize {
        3
    }

    fn counts(&self) -> usize {
        0
    }

    fn block(&self, block: Block<'_, R>, sums: &mut [f64], _counts: &mut [u64]) {
        let [a, b] = [block.sources[0], block.sources[1]];
        sums[0] = dot(a, a);
        sums[1] = dot(a, b);
        sums[2] = dot(b, b);
    }
}
