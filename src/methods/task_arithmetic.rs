//! `task_arithmetic`: the base plus a weighted sum of task vectors.

use super::task_vectors::{self, Consensus, Scheme, Sparsifier, TaskVectorMethod};
use super::{Arity, BaseRule, MethodInfo};

static INFO: MethodInfo = MethodInfo {
    name: "task_arithmetic",
    summary: "the base plus a weighted sum of task vectors (differences of the fine-tunes from the base)",
    formula: "out = base + lambda * sum(w_i * (x_i - base)), divided by sum(w_i) with `normalize`",
    when: "a first attempt; weights of about 0.3 to 1, negative ones to remove a skill",
    departs: "`density` is accepted and has no effect, as in mergekit.",
    source: "Ilharco et al., Editing models with task arithmetic, arXiv:2212.04089",
    models: Arity { min: 1, max: None },
    base: BaseRule::Required,
    params: &[
        task_vectors::WEIGHT,
        task_vectors::normalize(false),
        task_vectors::LAMBDA,
        task_vectors::UNUSED_DENSITY,
        task_vectors::UNUSED_RESCALE,
        task_vectors::INT8_MASK,
    ],
    random: false,
    statistics: None,
};

/// The base plus weighted differences from it.
pub(super) static TASK_ARITHMETIC: TaskVectorMethod = TaskVectorMethod {
    info: &INFO,
    scheme: Scheme {
        sparsifier: Sparsifier::None,
        consensus: Consensus::None,
        agreement: false,
    },
};
