//! Gemma 2: norms around attention and MLP.

use crate::decoder::{Decoder, Norms};
use crate::family::{Family, Head};

pub(super) static FAMILY: Family = Family {
    head: Head::tied(&["lm_head.weight"]),
    ..Family::decoder(&["gemma2"], "Gemma2ForCausalLM", DECODER)
};

pub(super) const DECODER: Decoder = Decoder {
    kv_heads: Some(4),
    norms: Norms::Around,
    runs: false,
    ..super::gemma::DECODER
};
