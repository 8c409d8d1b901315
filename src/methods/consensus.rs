//! `consensus_ta` and `consensus_ties`: a sum of task vectors, kept where enough of them agree with it.

use super::task_vectors::{self, Consensus, Scheme, Sparsifier, TaskVectorMethod};
use super::{Arity, BaseRule, MethodInfo, ParamInfo, ParamKind, ParamScope, ParamValue};

const fn params(density: ParamInfo, normalize: bool, rescale: ParamInfo) -> [ParamInfo; 7] {
    [
        task_vectors::WEIGHT,
        density,
        ParamInfo {
            name: "k",
            kind: ParamKind::Number,
            scope: ParamScope::EachButBase,
            default: Some(ParamValue::Number(1.0)),
            required: false,
            doc: "How many task vectors must agree; the same whole number for all models.",
        },
        ParamInfo {
            name: "lambda",
            kind: ParamKind::Number,
            scope: ParamScope::EachButBase,
            default: Some(ParamValue::Number(1.0)),
            required: false,
            doc: "A task vector agrees where it is larger than lambda times the rest of the sum; a smaller lambda \
                  keeps more elements.",
        },
        task_vectors::normalize(normalize),
        rescale,
        task_vectors::INT8_MASK,
    ]
}

const DEPARTS: &str = "Follows mergekitty; mergekit 0.1.5 lacks these methods. The paper chooses lambda for each \
    task on held-out data. `lambda` scales the threshold, not the sum. mergekitty uses the first model's `k` for \
    all; here different values are an error, and so is a `k` that no element can reach.";

const SOURCE: &str = "Wang et al., Localizing task information, arXiv:2405.07813; mergekitty";

static TA: MethodInfo = MethodInfo {
    name: "consensus_ta",
    summary: "a weighted sum of task vectors, kept where enough of them agree with it",
    formula: "d_i = x_i - base; t = sum(w_i * d_i), divided by sum(w_i) with `normalize`; out = base + t where \
              |d_i| > lambda_i * |t - d_i| for at least k models, else base",
    when: "many fine-tunes; k = 1 drops elements that no single task vector agrees with, k = 2 also those that only \
           one does",
    departs: DEPARTS,
    source: SOURCE,
    models: Arity { min: 1, max: None },
    base: BaseRule::Required,
    params: &params(
        task_vectors::UNUSED_DENSITY,
        false,
        task_vectors::UNUSED_RESCALE,
    ),
    random: false,
    statistics: None,
};

static TIES: MethodInfo = MethodInfo {
    name: "consensus_ties",
    summary: "the sum of task vectors that ties computes, kept where enough task vectors agree with it",
    formula: "d_i = x_i - base, e_i = d_i kept where |d_i| is among the k' = max(1, floor(density * N)) largest; \
              s = sign(sum(w_i * e_i)), + if the sum is 0; t = sum over sign(w_i * e_i) = s of w_i * e_i, divided \
              by the sum of those w_i with `normalize`; out = base + t where |d_i| > lambda_i * |t - d_i| for at \
              least k models, else base",
    when: "many fine-tunes that interfere with each other",
    departs: DEPARTS,
    source: SOURCE,
    models: Arity { min: 1, max: None },
    base: BaseRule::Required,
    params: &params(task_vectors::DENSITY, true, task_vectors::rescale("false")),
    random: false,
    statistics: None,
};

/// Adds task vectors; keeps the sum where enough of them agree with it.
pub(super) static CONSENSUS_TA: TaskVectorMethod = TaskVectorMethod {
    info: &TA,
    scheme: Scheme {
        sparsifier: Sparsifier::None,
        consensus: Consensus::None,
        agreement: true,
    },
};

/// Trims task vectors, elects a sign and adds those with that sign; keeps the sum where enough task vectors agree
/// with it.
pub(super) static CONSENSUS_TIES: TaskVectorMethod = TaskVectorMethod {
    info: &TIES,
    scheme: Scheme {
        sparsifier: Sparsifier::Magnitude,
        consensus: Consensus::WeightedSign,
        agreement: true,
    },
};
