//! The parameters that the task vector methods share.

use super::super::{ParamInfo, ParamKind, ParamScope, ParamValue};

pub(crate) const WEIGHT: ParamInfo = ParamInfo {
    name: "weight",
    kind: ParamKind::Number,
    scope: ParamScope::EachButBase,
    default: None,
    required: true,
    doc: "Multiplies the model's task vector.",
};

pub(crate) const DENSITY: ParamInfo = ParamInfo {
    name: "density",
    kind: ParamKind::Range { min: 0.0, max: 1.0 },
    scope: ParamScope::EachButBase,
    default: Some(ParamValue::Number(1.0)),
    required: false,
    doc: "The fraction of the task vector's elements that is kept.",
};

pub(crate) const UNUSED_DENSITY: ParamInfo = ParamInfo {
    doc: "No effect here; accepted because mergekit accepts it.",
    ..DENSITY
};

pub(crate) const LAMBDA: ParamInfo = ParamInfo {
    name: "lambda",
    kind: ParamKind::Number,
    scope: ParamScope::Tensor,
    default: Some(ParamValue::Number(1.0)),
    required: false,
    doc: "Multiplies the sum of task vectors before it is added to the base.",
};

pub(crate) const INT8_MASK: ParamInfo = ParamInfo {
    name: "int8_mask",
    kind: ParamKind::Bool,
    scope: ParamScope::Tensor,
    default: Some(ParamValue::Bool(false)),
    required: false,
    doc: "No effect; accepted because mergekit accepts it (there it saves memory).",
};

pub(crate) const UNUSED_RESCALE: ParamInfo = ParamInfo {
    doc: "No effect here; accepted because mergekit accepts it.",
    ..rescale_by_word("false", true)
};

pub(crate) const fn normalize(default: bool) -> ParamInfo {
    ParamInfo {
        name: "normalize",
        kind: ParamKind::Bool,
        scope: ParamScope::Tensor,
        default: Some(ParamValue::Bool(default)),
        required: false,
        doc: "Divide by the sum of the weights (if a sign is elected: of the models that agree with it).",
    }
}

/// `rescale` of the methods whose masks are random, or of those whose masks are not.
pub(crate) const fn rescale(default: &'static str) -> ParamInfo {
    // Only a random mask has an expectation to restore; those rescale by default.
    rescale_by_word(default, matches!(default.as_bytes(), b"l1"))
}

const fn rescale_by_word(default: &'static str, expectation: bool) -> ParamInfo {
    ParamInfo {
        name: "rescale",
        kind: ParamKind::Word {
            words: if expectation {
                &["l1", "expectation", "false"]
            } else {
                &["l1", "false"]
            },
            booleans: Some(("l1", "false")),
        },
        scope: ParamScope::Tensor,
        default: Some(ParamValue::Word(default)),
        required: false,
        doc: if expectation {
            "How masked task vectors are rescaled: `l1` (or true) restores their L1 norm, `expectation` multiplies \
             by 1/density, `false` leaves them as they are."
        } else {
            "How masked task vectors are rescaled: `l1` (or true) restores their L1 norm, `false` leaves them as \
             they are."
        },
    }
}
