//! Gemma 2: norms around attention and MLP.

use crate::decoder::{Decoder, NormPlacement, WindowRule};
use crate::family::{Family, Head};

pub(super) static FAMILY: Family = Family {
    head: Head::tied(&["lm_head.weight"]),
    ..Family::decoder(&["gemma2"], "Gemma2ForCausalLM", DECODER)
};

pub(super) const DECODER: Decoder = Decoder {
    kv_heads: Some(4),
    norms: NormPlacement::Around,
    window: WindowRule::Listed {
        switched: false,
        from: None,
    },
    runs: false,
    ..super::gemma::DECODER
};
