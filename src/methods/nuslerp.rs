//! `nuslerp`: spherical interpolation of two models or of their task vectors, whole or by rows or columns.

use std::sync::Arc;

use super::gram::{Extent, Gram, GramProgram, Solve, Vectors};
use super::slerp::arc;
use super::{
    Action, Arity, BaseRule, Method, MethodInfo, ParamInfo, ParamKind, ParamScope, ParamValue,
    Tensor, TensorParams,
};
use errors::Refusal;

/// Spherical linear interpolation with weights, with or without a base.
pub(super) struct Nuslerp;

/// Below this squared sine, two vectors count as parallel or opposite. mergekit's bound is 1e-16; its float32
/// reaches that at 1e-7 and below. Rounding may make two opposite vectors look this far from opposite.
const COLINEAR: f64 = 1e-14;

static INFO: MethodInfo = MethodInfo {
    name: "nuslerp",
    summary: "the point on the great circle between two models, or between their differences from a base",
    formula: "t = w_2 / (w_1 + w_2), 1/2 if their sum is 0; out = sin((1-t)*theta)/sin(theta) * x_1 + \
              sin(t*theta)/sin(theta) * x_2, theta the angle between the two; (1-t)*x_1 + t*x_2 where they are \
              parallel or opposite; with `base_model`, the same for x_i - base, added to base",
    when: "two models, with weights instead of the t of slerp; with a base, two fine-tunes of it: the angle between \
           updates is larger than that between whole models",
    departs: "As in mergekit, `nuslerp_row_wise: false` uses the angle of each row W[i, :] and `true` that of each \
              column W[:, j], the opposite of what the name says. Both matter only with `nuslerp_flatten: false`. \
              Angles of tensors with a norm below 1e-7 are computed like any others; mergekit replaces them by right \
              angles.",
    source: "Shoemake, Animating rotation with quaternion curves, SIGGRAPH 1985; mergekit 0.1.5",
    models: Arity {
        min: 2,
        max: Some(2),
    },
    base: BaseRule::Optional,
    params: &[
        ParamInfo {
            name: "weight",
            kind: ParamKind::Number,
            scope: ParamScope::EachButBase,
            default: None,
            required: true,
            doc: "How near the result is to this model, relative to the other model's weight.",
        },
        ParamInfo {
            name: "nuslerp_flatten",
            kind: ParamKind::Bool,
            scope: ParamScope::Tensor,
            default: Some(ParamValue::Bool(true)),
            required: false,
            doc: "One angle for the whole tensor; otherwise one for each row or column.",
        },
        ParamInfo {
            name: "nuslerp_row_wise",
            kind: ParamKind::Bool,
            scope: ParamScope::Tensor,
            default: Some(ParamValue::Bool(false)),
            required: false,
            doc: "Without `nuslerp_flatten`: one angle for each column (true) or row (false).",
        },
    ],
    random: false,
    statistics: None,
};

impl Method for Nuslerp {
    fn info(&self) -> &'static MethodInfo {
        &INFO
    }

    fn action(&self, params: &TensorParams, tensor: &Tensor<'_>) -> Result<Action, Refusal> {
        let vectors = Vectors::from_base(tensor.sources, tensor.base);
        let [first, second] = vectors.members[..] else {
            return Err("nuslerp takes two models besides the base".into());
        };
        let weight = |source| params.source_number(source, "weight");
        let (first, second) = (weight(first), weight(second));
        let sum = first + second;
        // Weights that sum to zero name no point between the models: the middle, as mergekit has it.
        let t = if sum.abs() <= 1e-9 * (first.abs() + second.abs()) {
            0.5
        } else {
            second / sum
        };
        let extent = match (
            params.flag("nuslerp_flatten"),
            params.flag("nuslerp_row_wise"),
        ) {
            (true, _) => Extent::Whole,
            (false, false) => Extent::rows(tensor.shape),
            (false, true) => Extent::columns(tensor.shape),
        };
        Ok(Action::Compute(Box::new(GramProgram {
            vectors,
            extent,
            solve: Arc::new(GreatCircle { t }),
        })))
    }
}

/// The weights of both models, from the angle between them.
struct GreatCircle {
    t: f64,
}

impl Solve for GreatCircle {
    fn weights(&self, gram: &Gram) -> Vec<f64> {
        let is_linear = |cosine: f64| (1.0 - cosine) * (1.0 + cosine) <= COLINEAR;
        arc(self.t, gram, is_linear).into()
    }
}
