//! `passthrough`: the tensors of one model.

use super::weighted_sum::WeightedSum;
use super::{
    Action, Arity, BaseRule, Method, MethodInfo, ParamInfo, ParamKind, ParamScope, Tensor,
    TensorParams,
};
use errors::Refusal;

/// The tensors of one model, unchanged or scaled.
pub(super) struct Passthrough;

static INFO: MethodInfo = MethodInfo {
    name: "passthrough",
    summary: "the tensors of one model, unchanged or scaled; with `slices:`, layers of several models stacked",
    formula: "out = x, or scale * x",
    when: "stacking layers (depth up-scaling, frankenmerges), dropping layers, changing the dtype",
    departs: "",
    source: "mergekit 0.1.5",
    models: Arity {
        min: 1,
        max: Some(1),
    },
    base: BaseRule::OneOfModels,
    params: &[ParamInfo {
        name: "scale",
        kind: ParamKind::Number,
        scope: ParamScope::EachModel,
        default: None,
        required: false,
        doc: "Multiplies each element; if unset, the bytes are copied.",
    }],
    random: false,
    statistics: None,
};

impl Method for Passthrough {
    fn info(&self) -> &'static MethodInfo {
        &INFO
    }

    fn action(&self, params: &TensorParams, _tensor: &Tensor<'_>) -> Result<Action, Refusal> {
        Ok(match params.optional_source_number(0, "scale") {
            None | Some(1.0) => Action::Copy(0),
            Some(scale) => Action::Compute(Box::new(WeightedSum {
                weights: vec![scale],
                normalize: false,
                fused: false,
            })),
        })
    }
}
