//! Qwen 3.

use crate::decoder::{Decoder, HeadDim, QueryNorms, WindowRule};
use crate::family::Family;

pub(super) static FAMILY: Family = Family::decoder(&["qwen3"], "Qwen3ForCausalLM", DECODER);

pub(super) const DECODER: Decoder = Decoder {
    head_dim: HeadDim::Of(128),
    kv_heads: Some(32),
    query_norms: QueryNorms::Head,
    window: WindowRule::Listed {
        switched: true,
        from: Some(28),
    },
    ..Decoder::LLAMA
};
