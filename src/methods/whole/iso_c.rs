//! `iso_c`: the summed task vectors with all singular values made equal.

use std::sync::Arc;

use super::super::{Arity, BaseRule, MethodInfo};
use super::others::OTHERS;
use super::{Failure, LAMBDA, Merger, Size, Tasks, WEIGHT, WholeMethod};
use matrix::{Matrix, polar};

static INFO: MethodInfo = MethodInfo {
    name: "iso_c",
    summary: "the sum of the task vectors with all its singular values made equal to their mean",
    formula: "D = sum(w_i * (x_i - base)) = U diag(s) V^T; out = base + lambda * mean(s) * U V^T",
    when: "fine-tunes that share much of what they changed; tune lambda (1 to 1.5 in the paper)",
    departs: "Singular values that are zero (below 1e-5 of the largest) stay zero and do not count in the mean, \
              because their vectors are arbitrary. So sums of LoRA updates keep their rank.",
    source: "Marczak et al., No Task Left Behind, arXiv:2502.04959",
    models: Arity { min: 1, max: None },
    base: BaseRule::Required,
    params: &[WEIGHT, LAMBDA, OTHERS],
    random: false,
    statistics: None,
};

/// Isotropic merging in the common space.
pub(in super::super) static ISO_C: WholeMethod = WholeMethod {
    info: &INFO,
    merger: |_| Ok(Arc::new(IsoC)),
    keeps_one: false,
};

struct IsoC;

impl Merger for IsoC {
    fn merge(&self, tasks: &Tasks<'_>) -> Result<Matrix<f32>, Failure> {
        let sum = tasks.sum::<f32>(1.0)?;
        tasks.sources.check_running()?;
        let polar = polar(&sum)?;
        let mean = polar.values.iter().sum::<f64>() / polar.values.len().max(1) as f64;
        let mut update = polar.factor;
        update.scale(mean);
        Ok(update)
    }

    fn works_on_directions(&self) -> bool {
        true
    }

    fn bytes(&self, size: Size) -> u64 {
        // The sum and the factor; two bases and the square that turns the one into the other.
        let held = size.matrix().saturating_mul(2);
        held.saturating_add(size.square().saturating_mul(3))
            .saturating_add(size.decomposition())
    }
}
