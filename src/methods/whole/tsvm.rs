//! `tsvm`: the strongest singular vectors of each task, made orthogonal to those of the others.

use std::sync::Arc;

use super::super::{Arity, BaseRule, MethodInfo};
use super::others::OTHERS;
use super::{Failure, LAMBDA, Merger, Size, Tasks, WEIGHT, WholeMethod};
use matrix::{Matrix, polar, singular_vectors};

static INFO: MethodInfo = MethodInfo {
    name: "tsvm",
    summary: "the strongest singular vectors of each task vector, made orthogonal to those of the other tasks",
    formula: "D_i = w_i * (x_i - base), of T models; r = floor(min(rows, columns) / T); U_i, s_i, V_i the first r \
              singular triplets of D_i; U = [U_1 ... U_T], V = [V_1 ... V_T], s likewise; U', V' their polar factors; \
              out = base + lambda * U' diag(s) V'^T",
    when: "fine-tunes of one base, each with a skill of its own; a good first choice if there are few of them \
           compared with the width of the layers",
    departs: "Singular vectors whose value is zero (below 1e-5 of the largest, in f32) are left out; the authors' code \
              fills their places with arbitrary directions. A matrix with fewer rows or columns than there are models \
              is merged as `others` says. One model comes out as it is, times lambda.",
    source: "Gargiulo et al., Task Singular Vectors, arXiv:2412.00081",
    models: Arity { min: 1, max: None },
    base: BaseRule::Required,
    params: &[WEIGHT, LAMBDA, OTHERS],
    random: false,
    statistics: None,
};

/// Task singular vectors, merged.
pub(in super::super) static TSVM: WholeMethod = WholeMethod {
    info: &INFO,
    merger: |_| Ok(Arc::new(Tsvm)),
    keeps_one: true,
};

struct Tsvm;

impl Merger for Tsvm {
    fn merge(&self, tasks: &Tasks<'_>) -> Result<Matrix<f32>, Failure> {
        let (rows, columns) = tasks.shape();
        let share = rows.min(columns) / tasks.count();
        let (rows, columns) = tasks.held();
        let share = share.min(rows).min(columns);
        let mut left = Matrix::zeros(rows, share * tasks.count())?;
        let mut right = Matrix::zeros(columns, share * tasks.count())?;
        let mut values = Vec::with_capacity(share * tasks.count());
        for task in 0..tasks.count() {
            let difference = tasks.read::<f32>(task)?;
            tasks.sources.check_running()?;
            let found = singular_vectors(&difference, share)?;
            left.place(values.len(), &found.left);
            right.place(values.len(), &found.right);
            values.extend(found.values);
        }
        let right = polar(&right.first_columns(values.len()))?.factor;
        tasks.sources.check_running()?;
        let mut left = polar(&left.first_columns(values.len()))?.factor;
        left.scale_columns(&values);
        Ok(left.times_transposed(&right)?)
    }

    fn bytes(&self, size: Size) -> u64 {
        // All left and right vectors, a task vector and its left vectors, or a factor.
        let held = size.matrix().saturating_mul(3);
        let squares = size.square().saturating_mul(3);
        held.saturating_add(squares)
            .saturating_add(size.decomposition())
    }

    fn least(&self, tasks: usize) -> usize {
        tasks
    }

    fn works_on_directions(&self) -> bool {
        true
    }
}
