//! `subspace_boosting`: the summed task vectors with their weak directions raised.

use std::sync::Arc;

use super::super::{Arity, BaseRule, MethodInfo, ParamInfo, ParamKind, ParamScope, ParamValue};
use super::others::OTHERS;
use super::{Failure, LAMBDA, Merger, Size, Tasks, WEIGHT, WholeMethod};
use matrix::{Matrix, singular_vectors};

static INFO: MethodInfo = MethodInfo {
    name: "subspace_boosting",
    summary: "the sum of the task vectors, with its weak singular values raised to a stronger one",
    formula: "D = sum(w_i * (x_i - base)) = U diag(s) V^T; c the first index with sum(s_1 ... s_c) >= beta * sum(s); \
              out = base + lambda * U diag(max(s, s_c)) V^T",
    when: "many fine-tunes whose sum has collapsed to few directions; lambda as for task_arithmetic, and smaller if \
           there are more models",
    departs: "Singular values that are zero (below 1e-5 of the largest) stay zero, because their vectors are \
              arbitrary. Attention is treated like everything else; the paper raises some of its matrices less.",
    source: "Skorobogat et al., Subspace-Boosted Model Merging, arXiv:2506.16506",
    models: Arity { min: 1, max: None },
    base: BaseRule::Required,
    params: &[
        WEIGHT,
        LAMBDA,
        ParamInfo {
            name: "beta",
            kind: ParamKind::Range { min: 0.0, max: 1.0 },
            scope: ParamScope::Tensor,
            default: Some(ParamValue::Number(0.01)),
            required: false,
            doc: "Weaker singular values are raised to the one at which this share of the sum of all is reached; 0 \
                  raises all to the largest, 1 raises none.",
        },
        OTHERS,
    ],
    random: false,
    statistics: None,
};

/// Subspace boosting.
pub(in super::super) static SUBSPACE_BOOSTING: WholeMethod = WholeMethod {
    info: &INFO,
    merger: |params| {
        Ok(Arc::new(Boosting {
            beta: params.number("beta"),
        }))
    },
    keeps_one: false,
};

struct Boosting {
    beta: f64,
}

/// The value that weaker ones are raised to; none for none.
fn floor(values: &[f64], beta: f64) -> f64 {
    let all: f64 = values.iter().sum();
    let mut sum = 0.0;
    let reached = values.iter().find(|value| {
        sum += **value;
        sum >= beta * all
    });
    reached.or(values.last()).copied().unwrap_or(0.0)
}

impl Merger for Boosting {
    fn merge(&self, tasks: &Tasks<'_>) -> Result<Matrix<f32>, Failure> {
        let sum = tasks.sum(1.0)?;
        tasks.sources.check_running()?;
        let found = singular_vectors(&sum, usize::MAX)?;
        drop(sum);
        let floor = floor(&found.values, self.beta);
        let values: Vec<f64> = found.values.iter().map(|value| value.max(floor)).collect();
        Ok(found.with_values(&values)?)
    }

    fn bytes(&self, size: Size) -> u64 {
        // The sum and its left vectors, then these and the update.
        let held = size.matrix().saturating_mul(2);
        held.saturating_add(size.square())
            .saturating_add(size.decomposition())
    }
}
