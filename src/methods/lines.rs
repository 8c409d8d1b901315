//! `lines`: a merged model whose update grows with depth.

use super::task_arithmetic::TASK_ARITHMETIC;
use super::{
    Action, Arity, BaseRule, Method, MethodInfo, ParamInfo, ParamKind, ParamScope, ParamValue,
    Tensor, TensorParams,
};
use errors::Refusal;

/// Layer-increasing network scaling.
pub(super) struct Lines;

static INFO: MethodInfo = MethodInfo {
    name: "lines",
    summary: "a merged model whose update is scaled by depth, from the first layer to the last",
    formula: "out = base + (alpha + beta * l / (L - 1)) * (x - base), in layer l = 0 ... L - 1 of a stack of L; out = \
              base + alpha * (x - base) outside of layers",
    when: "after any other method: a second document whose model is the result of the first. Shallow layers, which fine-tunes share, \
           keep more of the base than deep ones",
    departs: "The only layer of a stack counts as its last. In `slices`, l and L are those of the slice, as for gradients.",
    source: "Wang et al., LiNeS: Post-training Layer Scaling, arXiv:2410.17146",
    models: Arity {
        min: 2,
        max: Some(2),
    },
    base: BaseRule::Required,
    params: &[
        ParamInfo {
            name: "alpha",
            kind: ParamKind::Number,
            scope: ParamScope::Tensor,
            default: None,
            required: true,
            doc: "The share of the update in the first layer, and outside of layers. The paper takes 1/T of the ratio of \
                  the norms of the sum of T task vectors and of the merged update.",
        },
        ParamInfo {
            name: "beta",
            kind: ParamKind::Number,
            scope: ParamScope::Tensor,
            default: None,
            required: true,
            doc: "What is added to it up to the last layer; tuned in the paper.",
        },
    ],
    random: false,
    statistics: None,
};

impl Method for Lines {
    fn info(&self) -> &'static MethodInfo {
        &INFO
    }

    fn action(&self, params: &TensorParams, tensor: &Tensor<'_>) -> Result<Action, Refusal> {
        let share = params.number("alpha") + params.number("beta") * tensor.context.depth;
        let scaled = TensorParams::of_method(TASK_ARITHMETIC.info(), tensor.sources, |name, _| {
            (name == "weight").then_some(ParamValue::Number(share))
        });
        TASK_ARITHMETIC.action(&scaled, tensor)
    }
}
