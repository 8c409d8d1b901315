//! `della` and `della_linear`: task vectors thinned at random, small elements more than large ones.

use super::task_vectors::{self, Consensus, Scheme, Sparsifier, TaskVectorMethod};
use super::{Arity, BaseRule, MethodInfo, ParamInfo, ParamKind, ParamScope, ParamValue};

const EPSILON: ParamInfo = ParamInfo {
    name: "epsilon",
    kind: ParamKind::Range { min: 0.0, max: 0.5 },
    scope: ParamScope::EachButBase,
    default: Some(ParamValue::Number(0.15)),
    required: false,
    doc: "How far the probability to keep an element lies below the density for the smallest element of a row, and \
          above it for the largest; density - epsilon and density + epsilon must lie between 0 and 1.",
};

const fn params(normalize: bool) -> [ParamInfo; 7] {
    [
        task_vectors::WEIGHT,
        task_vectors::DENSITY,
        EPSILON,
        task_vectors::normalize(normalize),
        task_vectors::LAMBDA,
        ParamInfo {
            doc: "How masked task vectors are rescaled: `l1` (or true) restores their L1 norm, `expectation` \
                  multiplies each element by 1/p, `false` leaves them as they are.",
            ..task_vectors::rescale("l1")
        },
        task_vectors::INT8_MASK,
    ]
}

const DEPARTS: &str = "`rescale: true` does what mergekit does: it restores the task vector's L1 norm in each \
    tensor. The paper divides each element by its probability instead; that is `rescale: expectation`. Masks are \
    keyed by seed, tensor name and the model's position in the recipe; mergekit's depend on execution order. \
    Magnitudes are ranked as float32, and ties by index; in bfloat16 mergekit rounds the ranks themselves. A row is \
    always the last dimension, so that stacked experts are thinned like single ones; mergekit ranks along the \
    second, which is the same for matrices. In rows of one element the probability is the density; mergekit fails \
    there.";

const SOURCE: &str = "Deep et al., DELLA-Merging, arXiv:2406.11617";

static ELECTED: MethodInfo = MethodInfo {
    name: "della",
    summary: "task vectors thinned at random, small elements more than large ones; where signs conflict, the \
              majority is added",
    formula: "d_i = x_i - base, each element kept with probability \
              p = (density - epsilon) + 2 * epsilon * (r - 1) / (n - 1), r its rank by magnitude in its row of n, \
              then rescaled; s = sign(sum(w_i * d_i)), + if the sum is 0; out = base + lambda * sum over \
              sign(w_i * d_i) = s of w_i * d_i, divided by the sum of those w_i with `normalize`",
    when: "the same as dare_ties, if large changes matter more",
    departs: DEPARTS,
    source: SOURCE,
    models: Arity { min: 1, max: None },
    base: BaseRule::Required,
    params: &params(true),
    random: true,
    statistics: None,
};

static LINEAR: MethodInfo = MethodInfo {
    name: "della_linear",
    summary: "task vectors thinned at random, small elements more than large ones, then added",
    formula: "d_i = x_i - base, each element kept with probability \
              p = (density - epsilon) + 2 * epsilon * (r - 1) / (n - 1), r its rank by magnitude in its row of n, \
              then rescaled; out = base + lambda * sum(w_i * d_i), divided by sum(w_i) with `normalize`",
    when: "the same as dare_linear, if large changes matter more",
    departs: DEPARTS,
    source: SOURCE,
    models: Arity { min: 1, max: None },
    base: BaseRule::Required,
    params: &params(false),
    random: true,
    statistics: None,
};

/// Thins task vectors by magnitude and chance, elects a sign for each element, and adds those that agree.
pub(super) static DELLA: TaskVectorMethod = TaskVectorMethod {
    info: &ELECTED,
    scheme: Scheme {
        sparsifier: Sparsifier::ByRank,
        consensus: Consensus::WeightedSign,
        agreement: false,
    },
};

/// Thins task vectors by magnitude and chance and adds them.
pub(super) static DELLA_LINEAR: TaskVectorMethod = TaskVectorMethod {
    info: &LINEAR,
    scheme: Scheme {
        sparsifier: Sparsifier::ByRank,
        consensus: Consensus::None,
        agreement: false,
    },
};
