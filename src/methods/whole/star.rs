//! `star`: task vectors without their weakest directions, scaled up for what they lost.

use std::sync::Arc;

use super::super::{Arity, BaseRule, MethodInfo, ParamInfo, ParamKind, ParamScope, ParamValue};
use super::others::OTHERS;
use super::{Failure, LAMBDA, Merger, Size, Tasks, WEIGHT, WholeMethod};
use matrix::{Matrix, singular_vectors};

static INFO: MethodInfo = MethodInfo {
    name: "star",
    summary: "the mean of the task vectors, each cut to its strongest directions and scaled to its nuclear norm",
    formula: "w_i * (x_i - base) = U diag(s) V^T; r the least number with sum(s_1 ... s_r) >= eta * sum(s); D_i = \
              sum(s) / sum(s_1 ... s_r) * the first r singular triplets; out = base + lambda * mean(D_i)",
    when: "fine-tunes whose weaker directions get in each other's way",
    departs: "Eta is a share; the paper gives it in percent (40).",
    source: "Lee et al., STAR: Spectral Truncation and Rescale for Model Merging, arXiv:2502.10339",
    models: Arity { min: 1, max: None },
    base: BaseRule::Required,
    params: &[
        WEIGHT,
        LAMBDA,
        ParamInfo {
            name: "eta",
            kind: ParamKind::Range { min: 0.0, max: 1.0 },
            scope: ParamScope::Tensor,
            default: Some(ParamValue::Number(0.4)),
            required: false,
            doc: "The share of the sum of the singular values that is kept; at least one of them is.",
        },
        OTHERS,
    ],
    random: false,
    statistics: None,
};

/// Spectral truncation and rescaling.
pub(in super::super) static STAR: WholeMethod = WholeMethod {
    info: &INFO,
    merger: |params| {
        Ok(Arc::new(Star {
            eta: params.number("eta"),
        }))
    },
    keeps_one: false,
};

struct Star {
    eta: f64,
}

impl Merger for Star {
    fn merge(&self, tasks: &Tasks<'_>) -> Result<Matrix<f32>, Failure> {
        let (rows, columns) = tasks.shape();
        let mut update = Matrix::zeros(rows, columns)?;
        for task in 0..tasks.count() {
            let difference = tasks.read(task)?;
            tasks.sources.check_running()?;
            let found = singular_vectors(&difference, usize::MAX)?;
            let all: f64 = found.values.iter().sum();
            let mut kept = 0.0;
            let mut values = Vec::new();
            for value in &found.values {
                if kept >= self.eta * all && !values.is_empty() {
                    break;
                }
                kept += value;
                values.push(*value);
            }
            let mut left = found.left.first_columns(values.len());
            left.scale_columns(&values);
            let right = found.right.first_columns(values.len());
            let part = left.times_transposed(&right)?;
            if kept > 0.0 {
                update.add(&part, all / kept / tasks.count() as f64);
            }
        }
        Ok(update)
    }

    fn bytes(&self, size: Size) -> u64 {
        // The update, a difference, its left vectors and its part.
        let held = size.matrix().saturating_mul(4);
        held.saturating_add(size.square())
            .saturating_add(size.decomposition())
    }
}
