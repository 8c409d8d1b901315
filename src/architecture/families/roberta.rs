//! RoBERTa and its relatives: BERT under another prefix.

use crate::family::{Body, Family};

pub(super) static FAMILY: Family = Family::listed(
    &["roberta", "xlm-roberta", "camembert"],
    "RobertaForMaskedLM",
    &[Body {
        prefixes: &["roberta.", ""],
        layers: "encoder.layer.",
        tensors: &[super::bert::TENSORS],
        ..Body::LISTED
    }],
);
