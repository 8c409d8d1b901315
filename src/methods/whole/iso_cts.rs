//! `iso_cts`: as `iso_c`, with room for directions that only one task has.

use std::sync::Arc;

use super::super::{Arity, BaseRule, MethodInfo, ParamInfo, ParamKind, ParamScope, ParamValue};
use super::others::OTHERS;
use super::{Failure, LAMBDA, Merger, Size, Tasks, Turn, WEIGHT, WholeMethod};
use matrix::{Matrix, polar, singular_vectors};

static INFO: MethodInfo = MethodInfo {
    name: "iso_cts",
    summary: "like iso_c, but some of the directions are those that each task vector has beside the common ones",
    formula: "D_i = w_i * (x_i - base), of T models; n = min(rows, columns); q = round((n - floor(n * \
              common_space_fraction)) / T); c = n - q * T; U_c, s_c, V_c the first c singular triplets of sum(D_i); \
              U_i, s_i, V_i the first q of D_i - U_c U_c^T D_i; U', V' the polar factors of [U_1 ... U_T U_c], [V_1 \
              ... V_T V_c]; out = base + lambda * mean(s) * U' V'^T",
    when: "many fine-tunes, if iso_c loses those that have little in common with the others",
    departs: "Singular values that are zero (below 1e-5 of the largest) and their vectors are left out.",
    source: "Marczak et al., No Task Left Behind, arXiv:2502.04959",
    models: Arity { min: 1, max: None },
    base: BaseRule::Required,
    params: &[
        WEIGHT,
        LAMBDA,
        ParamInfo {
            name: "common_space_fraction",
            kind: ParamKind::Range { min: 0.0, max: 1.0 },
            scope: ParamScope::Tensor,
            default: Some(ParamValue::Number(0.8)),
            required: false,
            doc: "The share of the directions that are common to all tasks.",
        },
        OTHERS,
    ],
    random: false,
    statistics: None,
};

/// Isotropic merging in the common space and those of the tasks.
pub(in super::super) static ISO_CTS: WholeMethod = WholeMethod {
    info: &INFO,
    merger: |params| {
        Ok(Arc::new(IsoCts {
            common: params.number("common_space_fraction"),
        }))
    },
    keeps_one: false,
};

struct IsoCts {
    common: f64,
}

/// How many directions each task has of its own.
fn of_each(least: usize, tasks: usize, common: f64) -> usize {
    let rest = least - (least as f64 * common) as usize;
    // Half to even, as Python rounds.
    let each = (rest as f64 / tasks as f64).round_ties_even() as usize;
    each.min(least / tasks)
}

impl Merger for IsoCts {
    fn merge(&self, tasks: &Tasks<'_>) -> Result<Matrix<f32>, Failure> {
        let (rows, columns) = tasks.shape();
        let least = rows.min(columns);
        let of_each = of_each(least, tasks.count(), self.common);
        let common = singular_vectors(&tasks.sum(1.0)?, least - of_each * tasks.count())?;
        let mut left = Matrix::zeros(rows, least)?;
        let mut right = Matrix::zeros(columns, least)?;
        let mut values = Vec::with_capacity(least);
        for task in (0..tasks.count()).take_while(|_| of_each > 0) {
            let mut rest = tasks.read::<f32>(task)?;
            tasks.sources.check_running()?;
            let along = common.left.transposed_times(&rest)?;
            rest.add(&common.left.times(&along)?, -1.0);
            let found = singular_vectors(&rest, of_each)?;
            left.place(values.len(), &found.left);
            right.place(values.len(), &found.right);
            values.extend(found.values);
        }
        left.place(values.len(), &common.left);
        right.place(values.len(), &common.right);
        values.extend(common.values);
        let left = polar(&left.first_columns(values.len()))?.factor;
        tasks.sources.check_running()?;
        let right = polar(&right.first_columns(values.len()))?.factor;
        let mut update = left.times_transposed(&right)?;
        update.scale(values.iter().sum::<f64>() / values.len().max(1) as f64);
        Ok(update)
    }

    fn bytes(&self, size: Size) -> u64 {
        // All left and right vectors, the common ones, a task vector, and what it has along them or beside them.
        let held = size.matrix().saturating_mul(5);
        held.saturating_add(size.square().saturating_mul(5))
            .saturating_add(size.decomposition())
    }

    fn turn(&self) -> Turn {
        Turn::OutIn
    }
}
