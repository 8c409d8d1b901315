//! HunYuan, dense.

use crate::decoder::{Decoder, QueryNorms};
use crate::family::Family;

pub(super) static FAMILY: Family =
    Family::decoder(&["hunyuan_v1_dense"], "HunYuanDenseV1ForCausalLM", DECODER);

pub(super) const DECODER: Decoder = Decoder {
    query_norms: QueryNorms::Head,
    query_norm_names: ["query_layernorm", "key_layernorm"],
    norm_eps: 1e-5,
    runs: false,
    ..Decoder::LLAMA
};
