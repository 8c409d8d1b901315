//! The first Gemma.

use crate::decoder::{Decoder, HeadDim};
use crate::family::{Family, Head};

pub(super) static FAMILY: Family = Family {
    head: Head::tied(&["lm_head.weight"]),
    ..Family::decoder(&["gemma"], "GemmaForCausalLM", DECODER)
};

pub(super) const DECODER: Decoder = Decoder {
    head_dim: HeadDim::Of(256),
    kv_heads: Some(16),
    norm_offset: 1.0,
    scaled_embedding: true,
    activation_fields: &["hidden_activation", "hidden_act"],
    activation: "gelu_pytorch_tanh",
    gelu_is_tanh: true,
    ..Decoder::LLAMA
};
