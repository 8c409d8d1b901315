//! Mistral: Llama without biases, with a window.

use crate::decoder::{Bias, Decoder, WindowRule};
use crate::family::Family;

pub(super) static FAMILY: Family = Family::decoder(&["mistral"], "MistralForCausalLM", DECODER);

pub(super) const DECODER: Decoder = Decoder {
    kv_heads: Some(8),
    qkv_bias: Bias::None,
    o_bias: Bias::None,
    window: WindowRule::All(Some(4096)),
    ..Decoder::LLAMA
};
