//! `cart`: the mean, plus what each fine-tune differs from it by in its strongest directions.

use std::sync::Arc;

use super::super::{Arity, BaseRule, MethodInfo, ParamInfo, ParamKind, ParamScope, ParamValue};
use super::others::OTHERS;
use super::{Failure, LAMBDA, Merger, Size, Tasks, WEIGHT, WholeMethod};
use matrix::{Matrix, singular_vectors};

static INFO: MethodInfo = MethodInfo {
    name: "cart",
    summary: "the mean of the models, plus the strongest directions in which each differs from it",
    formula: "D_i = w_i * (x_i - base); A = mean(D_i); k = ceil(rank_ratio * min(rows, columns)); out = base + A + \
              lambda * sum(the first k singular triplets of D_i - A)",
    when: "many fine-tunes of one base; the paper tunes lambda and rank_ratio (0.04 to 0.32)",
    departs: "As in the paper, lambda multiplies the low-rank parts alone, not the mean that other tensors take.",
    source: "Choi et al., Revisiting Weight Averaging for Model Merging, arXiv:2412.12153",
    models: Arity { min: 1, max: None },
    base: BaseRule::Required,
    params: &[
        WEIGHT,
        ParamInfo {
            doc: "Multiplies the sum of the low-rank parts.",
            ..LAMBDA
        },
        ParamInfo {
            name: "rank_ratio",
            kind: ParamKind::Range { min: 0.0, max: 1.0 },
            scope: ParamScope::Tensor,
            default: Some(ParamValue::Number(0.04)),
            required: false,
            doc: "The share of the directions of each difference that is kept.",
        },
        OTHERS,
    ],
    random: false,
    statistics: None,
};

/// Centred low-rank parts on the mean.
pub(in super::super) static CART: WholeMethod = WholeMethod {
    info: &INFO,
    merger: |params| {
        Ok(Arc::new(Cart {
            ratio: params.number("rank_ratio"),
            lambda: params.number("lambda"),
        }))
    },
    keeps_one: true,
};

struct Cart {
    ratio: f64,
    lambda: f64,
}

impl Merger for Cart {
    fn merge(&self, tasks: &Tasks<'_>) -> Result<Matrix<f32>, Failure> {
        let (rows, columns) = tasks.shape();
        let rank = (self.ratio * rows.min(columns) as f64).ceil() as usize;
        let mean = tasks.sum::<f32>(1.0 / tasks.count() as f64)?;
        let mut update = mean.clone();
        for task in 0..tasks.count() {
            let mut rest = tasks.read(task)?;
            rest.add(&mean, -1.0);
            tasks.sources.check_running()?;
            let mut found = singular_vectors(&rest, rank)?;
            found.left.scale_columns(&found.values);
            let part = found.left.times_transposed(&found.right)?;
            update.add(&part, self.lambda);
        }
        Ok(update)
    }

    fn works_on_directions(&self) -> bool {
        true
    }

    fn bytes(&self, size: Size) -> u64 {
        // The mean, the update, a difference, its left vectors and its low-rank part.
        let held = size.matrix().saturating_mul(5);
        held.saturating_add(size.square())
            .saturating_add(size.decomposition())
    }

    fn factor(&self, _lambda: f64) -> f64 {
        1.0
    }
}
