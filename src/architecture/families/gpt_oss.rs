//! gpt-oss: attention with sinks, and biases in its experts, whose matrices are stored turned over.

use crate::family::{Body, Family, Head};

pub(super) static FAMILY: Family = Family {
    head: Head::own(&["lm_head.weight"]),
    ..Family::listed(
        &["gpt_oss"],
        "GptOssForCausalLM",
        &[Body {
            tensors: &[TENSORS],
            ..Body::LISTED
        }],
    )
};

const TENSORS: &str = "embed_tokens.weight V H\nnorm.weight H\nlayers.*.input_layernorm.weight H\n\
    layers.*.post_attention_layernorm.weight H\nlayers.*.self_attn.sinks N\n\
    layers.*.self_attn.q_proj.weight Q H\n?layers.*.self_attn.q_proj.bias Q\n\
    layers.*.self_attn.k_proj.weight K H\n?layers.*.self_attn.k_proj.bias K\n\
    layers.*.self_attn.v_proj.weight K H\n?layers.*.self_attn.v_proj.bias K\n\
    layers.*.self_attn.o_proj.weight H Q\n?layers.*.self_attn.o_proj.bias H\n\
    layers.*.mlp.router.weight E H\nlayers.*.mlp.router.bias E\n\
    layers.*.mlp.experts.gate_up_proj E H II\nlayers.*.mlp.experts.gate_up_proj_bias E II\n\
    layers.*.mlp.experts.down_proj E I H\nlayers.*.mlp.experts.down_proj_bias E H";
