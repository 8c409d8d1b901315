//! `slerp`: a point on the great circle between two models.

use std::sync::Arc;

use super::gram::{Extent, Gram, GramProgram, Solve, Vectors};
use super::{
    Action, Arity, BaseRule, Method, MethodInfo, ParamInfo, ParamKind, ParamScope, Tensor,
    TensorParams,
};
use errors::Refusal;

/// Spherical linear interpolation from the base to the other model.
pub(super) struct Slerp;

/// Above this cosine, the great circle is treated as a straight line.
const LINEAR_ABOVE: f64 = 0.9995;

static INFO: MethodInfo = MethodInfo {
    name: "slerp",
    summary: "the point at t on the great circle from the base model (t = 0) to the other (t = 1)",
    formula: "out = sin((1-t)*theta)/sin(theta) * base + sin(t*theta)/sin(theta) * x, theta the angle between the \
              two tensors; (1-t)*base + t*x where |cos(theta)| > 0.9995",
    when: "two models; often with t as a gradient over depth, and other values for attention and MLP",
    departs: "The cosine of tensors with a norm below 1e-8 is computed as for any other, so that copies of a model \
              merge to that model; mergekit leaves such tensors unnormalised. For independent fine-tunes of one \
              base, the cosine is above 0.9995 if the updates are smaller than about 2 % of the weights; slerp is \
              then linear.",
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
        doc: "The position between the models: 0 is the base, 1 the other model.",
    }],
    random: false,
    statistics: None,
};

impl Method for Slerp {
    fn info(&self) -> &'static MethodInfo {
        &INFO
    }

    fn action(&self, params: &TensorParams, tensor: &Tensor<'_>) -> Result<Action, Refusal> {
        let t = params.number("t");
        let base = match (tensor.base, tensor.sources) {
            (Some(base @ (0 | 1)), 2) => base,
            _ => return Err("slerp needs a base and one other model".into()),
        };
        Ok(Action::Compute(Box::new(GramProgram {
            vectors: Vectors {
                members: vec![base, 1 - base],
                origin: None,
            },
            extent: Extent::Whole,
            solve: Arc::new(GreatCircle { t }),
        })))
    }
}

/// The weights of base and other model, from the angle between them.
struct GreatCircle {
    t: f64,
}

impl Solve for GreatCircle {
    fn weights(&self, gram: &Gram) -> Vec<f64> {
        arc(self.t, gram, |cosine| cosine.abs() > LINEAR_ABOVE).into()
    }
}

/// The weights of two vectors at position `t` on the great circle between them; on the straight line, if
/// `is_linear` holds for their cosine.
pub(super) fn arc(t: f64, gram: &Gram, is_linear: impl Fn(f64) -> bool) -> [f64; 2] {
    let cosine = match gram.cosine(0, 1) {
        Some(cosine) => cosine,
        None if gram.all_zero() => return [1.0 - t, t],
        // A zero vector has no direction, so no angle; mergekit uses a right angle.
        None => 0.0,
    };
    if is_linear(cosine) {
        return [1.0 - t, t];
    }
    let angle = libm::acos(cosine);
    [
        libm::sin((1.0 - t) * angle) / libm::sin(angle),
        libm::sin(t * angle) / libm::sin(angle),
    ]
}
