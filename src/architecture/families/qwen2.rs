//! Qwen 2 and 2.5.

use crate::decoder::{Bias, Decoder, WindowRule};
use crate::family::Family;

pub(super) static FAMILY: Family = Family::decoder(&["qwen2"], "Qwen2ForCausalLM", DECODER);

pub(super) const DECODER: Decoder = Decoder {
    kv_heads: Some(32),
    qkv_bias: Bias::Always,
    o_bias: Bias::None,
    window: WindowRule::Listed {
        switched: true,
        from: Some(28),
    },
    ..Decoder::LLAMA
};
