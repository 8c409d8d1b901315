//! `dare_linear` and `dare_ties`: task vectors thinned at random.

use super::task_vectors::{self, Consensus, Scheme, Sparsifier, TaskVectorMethod};
use super::{Arity, BaseRule, MethodInfo, ParamInfo};

const PARAMS: &[ParamInfo] = &[
    task_vectors::WEIGHT,
    task_vectors::DENSITY,
    task_vectors::normalize(false),
    task_vectors::LAMBDA,
    task_vectors::rescale("l1"),
    task_vectors::INT8_MASK,
];

const DEPARTS: &str = "`rescale: true` does what mergekit does: it restores the task vector's L1 norm in each \
    tensor. The paper divides by the density instead; that is `rescale: expectation`. Masks are keyed by seed, \
    tensor name and the model's position in the recipe, so they are the same at any thread count; mergekit's depend \
    on execution order.";

const SOURCE: &str = "Yu et al., Language models are super mario, arXiv:2311.03099";

static LINEAR: MethodInfo = MethodInfo {
    name: "dare_linear",
    summary: "task vectors thinned at random and rescaled, then added",
    formula: "d_i = x_i - base, each element kept with probability density, then rescaled; \
              out = base + lambda * sum(w_i * d_i), divided by sum(w_i) with `normalize`",
    when: "the same as task_arithmetic, if many fine-tunes should interfere less with each other",
    departs: DEPARTS,
    source: SOURCE,
    models: Arity { min: 1, max: None },
    base: BaseRule::Required,
    params: PARAMS,
    random: true,
    statistics: None,
};

static TIES: MethodInfo = MethodInfo {
    name: "dare_ties",
    summary: "task vectors thinned at random and rescaled; where signs conflict, the majority is added",
    formula: "d_i = x_i - base, each element kept with probability density, then rescaled; \
              s = sign(sum(w_i * d_i)), + if the sum is 0; out = base + lambda * sum over sign(w_i * d_i) = s of \
              w_i * d_i, divided by the sum of those w_i with `normalize`",
    when: "the same as ties, with a random choice of elements instead of the largest ones",
    departs: DEPARTS,
    source: SOURCE,
    models: Arity { min: 1, max: None },
    base: BaseRule::Required,
    params: PARAMS,
    random: true,
    statistics: None,
};

/// Thins task vectors at random and adds them.
pub(super) static DARE_LINEAR: TaskVectorMethod = TaskVectorMethod {
    info: &LINEAR,
    scheme: Scheme {
        sparsifier: Sparsifier::Random,
        consensus: Consensus::None,
        agreement: false,
    },
};

/// Thins task vectors at random, elects a sign for each element, and adds those that agree.
pub(super) static DARE_TIES: TaskVectorMethod = TaskVectorMethod {
    info: &TIES,
    scheme: Scheme {
        sparsifier: Sparsifier::Random,
        consensus: Consensus::WeightedSign,
        agreement: false,
    },
};
