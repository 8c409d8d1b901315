//! OLMo 2: norms after attention and MLP, and of all queries and keys.

use crate::decoder::{Decoder, NormPlacement, QueryNorms};
use crate::family::Family;

pub(super) static FAMILY: Family = Family::decoder(&["olmo2"], "Olmo2ForCausalLM", DECODER);

pub(super) const DECODER: Decoder = Decoder {
    query_norms: QueryNorms::All,
    norms: NormPlacement::After,
    norm_eps: 1e-5,
    ..Decoder::LLAMA
};
