//! `model_stock`: moves from the base towards the mean of the fine-tunes, by an amount that depends on their angle.

use std::sync::Arc;

use super::gram::{Extent, Gram, GramProgram, Solve, Vectors};
use super::{
    Action, Arity, BaseRule, Method, MethodInfo, ParamInfo, ParamKind, ParamScope, ParamValue,
    Tensor, TensorParams,
};
use errors::Refusal;

/// Interpolates between the base and the mean of the fine-tunes.
pub(super) struct ModelStock;

static INFO: MethodInfo = MethodInfo {
    name: "model_stock",
    summary: "a point between the base and the mean of the fine-tunes, chosen by the angle between their updates",
    formula: "c = mean over pairs of cos(x_i - base, x_j - base); t = n*c / (1 + (n-1)*c) for n fine-tunes, 0 where c < 0; \
              out = t * mean(x_i) + (1-t) * base",
    when: "fine-tunes of one base on the same task, with different seeds or settings; keeps what they agree on",
    departs: "Where updates oppose each other (c < 0), the result is the base; the paper's t is negative there, and \
              mergekit moves away from the mean without limit. The cosines of small updates are exact; mergekit \
              divides by at least 1e-6, which pulls tensors whose update is shorter than 1e-3 towards the base.",
    source: "Jang et al., Model Stock, arXiv:2403.19522",
    models: Arity { min: 3, max: None },
    base: BaseRule::Required,
    params: &[ParamInfo {
        name: "filter_wise",
        kind: ParamKind::Bool,
        scope: ParamScope::Tensor,
        default: Some(ParamValue::Bool(false)),
        required: false,
        doc: "One t for each row W[i, :] instead of one for the tensor.",
    }],
    random: false,
    statistics: None,
};

impl Method for ModelStock {
    fn info(&self) -> &'static MethodInfo {
        &INFO
    }

    fn action(&self, params: &TensorParams, tensor: &Tensor<'_>) -> Result<Action, Refusal> {
        let base = tensor.base.ok_or("model_stock needs a base model")?;
        let vectors = Vectors::from_base(tensor.sources, Some(base));
        if vectors.members.len() < 2 {
            return Err("model_stock needs two models besides the base".into());
        }
        Ok(Action::Compute(Box::new(GramProgram {
            vectors,
            extent: match params.flag("filter_wise") {
                true => Extent::rows(tensor.shape),
                false => Extent::Whole,
            },
            solve: Arc::new(Agreement),
        })))
    }
}

/// Computes the weights from the mean cosine.
struct Agreement;

impl Solve for Agreement {
    fn weights(&self, gram: &Gram) -> Vec<f64> {
        let count = gram.count();
        let mut cosines = 0.0;
        for i in 0..count {
            for j in i + 1..count {
                // An update of zero agrees with no other.
                cosines += gram.cosine(i, j).unwrap_or(0.0);
            }
        }
        let n = count as f64;
        let cosine = cosines / (n * (n - 1.0) / 2.0);
        let t = if cosine <= 0.0 {
            0.0
        } else {
            n * cosine / (1.0 + (n - 1.0) * cosine)
        };
        vec![t / n; count]
    }
}
