//! `breadcrumbs` and `breadcrumbs_ties`: task vectors without their smallest and their very largest elements.

use super::task_vectors::{self, Consensus, Scheme, Sparsifier, TaskVectorMethod};
use super::{Arity, BaseRule, MethodInfo, ParamInfo, ParamKind, ParamScope, ParamValue};

const PARAMS: &[ParamInfo] = &[
    task_vectors::WEIGHT,
    ParamInfo {
        doc: "The fraction of the task vector's elements that is kept; 1 keeps all, even the largest.",
        ..task_vectors::DENSITY
    },
    ParamInfo {
        name: "gamma",
        kind: ParamKind::Range { min: 0.0, max: 1.0 },
        scope: ParamScope::EachButBase,
        default: Some(ParamValue::Number(0.01)),
        required: false,
        doc: "The fraction of elements that is dropped as outliers, largest first, as far as the density leaves \
              room.",
    },
    task_vectors::normalize(false),
    task_vectors::LAMBDA,
    task_vectors::rescale("false"),
    task_vectors::INT8_MASK,
];

const DEPARTS: &str = "As in mergekit, elements are counted in each tensor; density is the fraction that is kept, \
    gamma the fraction that is dropped at the top (the paper's beta is 1 - density - gamma). Of equal magnitudes at \
    either threshold, those with the lowest index are kept, so that exactly k remain (undefined in mergekit). With \
    `gamma: 0` the mask is that of ties; mergekit before 0.1.5 dropped everything then.";

const SOURCE: &str = "Davari and Belilovsky, Model Breadcrumbs, arXiv:2312.06795";

static PLAIN: MethodInfo = MethodInfo {
    name: "breadcrumbs",
    summary: "task vectors without their smallest and their very largest elements, then added",
    formula: "d_i = x_i - base; sorted by |d_i|, skip the floor(gamma * N) largest elements (fewer, if otherwise \
              fewer than k would remain), keep the next k = floor(density * N), drop the rest; out = base + lambda * \
              sum(w_i * d_i), divided by sum(w_i) with `normalize`",
    when: "many fine-tunes, some with outliers; density about 0.9, gamma 0.01",
    departs: DEPARTS,
    source: SOURCE,
    models: Arity { min: 1, max: None },
    base: BaseRule::Required,
    params: PARAMS,
    random: false,
    statistics: None,
};

static TIES: MethodInfo = MethodInfo {
    name: "breadcrumbs_ties",
    summary: "task vectors without their smallest and their very largest elements; where signs conflict, the \
              majority is added",
    formula: "d_i = x_i - base; sorted by |d_i|, skip the floor(gamma * N) largest elements (fewer, if otherwise \
              fewer than k would remain), keep the next k = floor(density * N), drop the rest; s = sign(sum(w_i * \
              d_i)), + if the sum is 0; out = base + lambda * sum over sign(w_i * d_i) = s of w_i * d_i, divided by \
              the sum of those w_i with `normalize`",
    when: "the same as ties, if outliers do harm",
    departs: DEPARTS,
    source: SOURCE,
    models: Arity { min: 1, max: None },
    base: BaseRule::Required,
    params: PARAMS,
    random: false,
    statistics: None,
};

/// Drops the small and the outlying elements of task vectors and adds the rest.
pub(super) static BREADCRUMBS: TaskVectorMethod = TaskVectorMethod {
    info: &PLAIN,
    scheme: Scheme {
        sparsifier: Sparsifier::Outliers,
        consensus: Consensus::None,
        agreement: false,
    },
};

/// Drops the small and the outlying elements, elects a sign for each element, and adds those that agree.
pub(super) static BREADCRUMBS_TIES: TaskVectorMethod = TaskVectorMethod {
    info: &TIES,
    scheme: Scheme {
        sparsifier: Sparsifier::Outliers,
        consensus: Consensus::WeightedSign,
        agreement: false,
    },
};
