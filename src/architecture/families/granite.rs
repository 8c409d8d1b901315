//! Granite: Llama with four multipliers.

use crate::decoder::{Bias, Decoder};
use crate::family::Family;

pub(super) static FAMILY: Family = Family::decoder(&["granite"], "GraniteForCausalLM", DECODER);

pub(super) const DECODER: Decoder = Decoder {
    mlp_bias: Bias::Flag("mlp_bias", false),
    multipliers: true,
    ..Decoder::LLAMA
};
