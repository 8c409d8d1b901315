//! Llama, by which the other decoders are told.

use crate::decoder::{Bias, Decoder};
use crate::family::Family;

pub(super) static FAMILY: Family = Family::decoder(&["llama"], "LlamaForCausalLM", DECODER);

pub(super) const DECODER: Decoder = Decoder {
    mlp_bias: Bias::Flag("mlp_bias", false),
    ..Decoder::LLAMA
};
