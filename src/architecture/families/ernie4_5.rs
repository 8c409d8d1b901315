//! ERNIE 4.5, dense.

use crate::decoder::{Bias, Decoder, HeadDim};
use crate::family::{Family, Head};

pub(super) static FAMILY: Family = Family {
    head: Head::tied(&["lm_head.weight"]),
    ..Family::decoder(&["ernie4_5"], "Ernie4_5ForCausalLM", DECODER)
};

pub(super) const DECODER: Decoder = Decoder {
    head_dim: HeadDim::Of(128),
    kv_heads: Some(2),
    qkv_bias: Bias::Flag("use_bias", false),
    o_bias: Bias::Flag("use_bias", false),
    mlp_bias: Bias::Flag("use_bias", false),
    norm_eps: 1e-5,
    theta: 500_000.0,
    runs: false,
    ..Decoder::LLAMA
};
