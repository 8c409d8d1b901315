//! `linear`: the weighted mean.

use super::weighted_sum::WeightedSum;
use super::{
    Action, Arity, BaseRule, Method, MethodInfo, ParamInfo, ParamKind, ParamScope, ParamValue,
    Tensor, TensorParams,
};
use errors::Refusal;

/// The weighted mean of the models.
pub(super) struct Linear;

static INFO: MethodInfo = MethodInfo {
    name: "linear",
    summary: "the weighted mean of the models",
    formula: "out = sum(w_i * x_i) / sum(w_i); without `normalize`, out = sum(w_i * x_i)",
    when: "fine-tunes of one base that are close to each other, or checkpoints of one run (a model soup)",
    departs: "Weights that sum to zero are an error with `normalize`; mergekit writes infinities. As in mergekit, a \
              `base_model` is one of the models: if `models:` does not list it, it is added to them at the end and \
              needs a `weight` that applies to it.",
    source: "Wortsman et al., Model soups, arXiv:2203.05482",
    models: Arity { min: 1, max: None },
    base: BaseRule::OneOfModels,
    params: &[
        ParamInfo {
            name: "weight",
            kind: ParamKind::Number,
            scope: ParamScope::EachModel,
            default: None,
            required: true,
            doc: "How much of the model goes into the sum.",
        },
        ParamInfo {
            name: "normalize",
            kind: ParamKind::Bool,
            scope: ParamScope::Tensor,
            default: Some(ParamValue::Bool(true)),
            required: false,
            doc: "Divide by the sum of the weights.",
        },
    ],
    random: false,
    statistics: None,
};

impl Method for Linear {
    fn info(&self) -> &'static MethodInfo {
        &INFO
    }

    fn action(&self, params: &TensorParams, tensor: &Tensor<'_>) -> Result<Action, Refusal> {
        let weights: Vec<f64> = (0..tensor.sources)
            .map(|source| params.source_number(source, "weight"))
            .collect();
        let normalize = params.flag("normalize");
        let sum: f64 = weights.iter().sum();
        let size: f64 = weights.iter().map(|weight| weight.abs()).sum();
        // Weights such as 0.1, 0.2 and -0.3 sum to zero except for rounding (5e-17), so compare with a tolerance.
        if normalize && sum.abs() <= 1e-9 * size {
            return Err(Refusal::new(format!(
                "the weights {weights:?} sum to zero, and `normalize` divides by their sum"
            ))
            .with_hint("choose weights with another sum, or set `normalize: false`"));
        }
        Ok(Action::Compute(Box::new(WeightedSum {
            weights,
            normalize,
            fused: true,
        })))
    }
}
