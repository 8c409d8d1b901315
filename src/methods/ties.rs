//! `ties`: trim, elect a sign, merge.

use super::task_vectors::{self, Consensus, Scheme, Sparsifier, TaskVectorMethod};
use super::{Arity, BaseRule, MethodInfo};

static INFO: MethodInfo = MethodInfo {
    name: "ties",
    summary: "task vectors trimmed to their largest elements; where signs conflict, the majority is added",
    formula: "d_i = x_i - base, kept where |d_i| is among the k = max(1, floor(density * N)) largest of the tensor; \
              s = sign(sum(w_i * d_i)), + if the sum is 0; out = base + lambda * sum over sign(w_i * d_i) = s of \
              w_i * d_i, divided by the sum of those w_i with `normalize`",
    when: "several fine-tunes that interfere with each other; density 0.2 to 0.6",
    departs: "As in mergekit, and unlike the paper's code: the k largest are chosen in each tensor, not in the whole \
              model; models vote on signs with their weights; the divisor is the sum of weights, not a count. Of \
              equal magnitudes at the threshold, those with the lowest index are kept, so that exactly k remain \
              (undefined in mergekit).",
    source: "Yadav et al., TIES-Merging, arXiv:2306.01708",
    models: Arity { min: 1, max: None },
    base: BaseRule::Required,
    params: &[
        task_vectors::WEIGHT,
        task_vectors::DENSITY,
        task_vectors::normalize(true),
        task_vectors::LAMBDA,
        task_vectors::rescale("false"),
        task_vectors::INT8_MASK,
    ],
    random: false,
    statistics: None,
};

/// Trims task vectors to their largest elements, elects a sign for each element, and adds those that agree.
pub(super) static TIES: TaskVectorMethod = TaskVectorMethod {
    info: &INFO,
    scheme: Scheme {
        sparsifier: Sparsifier::Magnitude,
        consensus: Consensus::WeightedSign,
        agreement: false,
    },
};
