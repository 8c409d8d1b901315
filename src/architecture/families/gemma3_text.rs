//! Gemma 3 that reads text alone.

use crate::decoder::{Decoder, QueryNorms};
use crate::family::{Family, Head};

pub(super) static FAMILY: Family = Family {
    head: Head::tied(&["lm_head.weight"]),
    ..Family::decoder(&["gemma3_text"], "Gemma3ForCausalLM", DECODER)
};

pub(super) const DECODER: Decoder = Decoder {
    absent_sizes: &[
        ("num_attention_heads", 8),
        ("vocab_size", 262_208),
        ("max_position_embeddings", 131_072),
    ],
    query_norms: QueryNorms::Head,
    theta: 1_000_000.0,
    window_period: Some("sliding_window_pattern"),
    ..super::gemma2::DECODER
};
