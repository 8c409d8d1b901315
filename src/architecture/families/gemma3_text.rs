//! Gemma 3 that reads text alone.

use crate::decoder::{Decoder, QueryNorms};
use crate::family::{Family, Head};

pub(super) static FAMILY: Family = Family {
    head: Head::tied(&["lm_head.weight"]),
    ..Family::decoder(&["gemma3_text"], "Gemma3ForCausalLM", DECODER)
};

pub(super) const DECODER: Decoder = Decoder {
    query_norms: QueryNorms::Head,
    ..super::gemma2::DECODER
};
