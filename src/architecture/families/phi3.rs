//! Phi 3 and 4: fused matrices, longrope.

use crate::decoder::{Attention, Bias, Decoder, WindowRule};
use crate::family::Family;

pub(super) static FAMILY: Family = Family::decoder(&["phi3"], "Phi3ForCausalLM", DECODER);

pub(super) const DECODER: Decoder = Decoder {
    attention: Attention::Fused,
    absent_sizes: &[("original_max_position_embeddings", 4096)],
    qkv_bias: Bias::None,
    o_bias: Bias::None,
    norm_eps: 1e-5,
    partial_rotary: Some(1.0),
    longrope: true,
    window: WindowRule::All(None),
    ..Decoder::LLAMA
};
