//! GPT-NeoX and Pythia.

use crate::family::{Body, Family, Head};

pub(super) static FAMILY: Family = Family {
    head: Head::own(&["embed_out.weight"]),
    ..Family::listed(
        &["gpt_neox"],
        "GPTNeoXForCausalLM",
        &[Body {
            prefixes: &["gpt_neox.", ""],
            tensors: &[TENSORS],
            ..Body::LISTED
        }],
    )
};

const TENSORS: &str = "embed_in.weight V H\nfinal_layer_norm.weight H\nfinal_layer_norm.bias H\n\
                 layers.*.input_layernorm.weight H\nlayers.*.input_layernorm.bias H\n\
                 layers.*.post_attention_layernorm.weight H\nlayers.*.post_attention_layernorm.bias H\n\
                 layers.*.attention.query_key_value.weight HHH H\n?layers.*.attention.query_key_value.bias HHH\n\
                 layers.*.attention.dense.weight H H\n?layers.*.attention.dense.bias H\n\
                 layers.*.mlp.dense_h_to_4h.weight I H\nlayers.*.mlp.dense_h_to_4h.bias I\n\
                 layers.*.mlp.dense_4h_to_h.weight H I\nlayers.*.mlp.dense_4h_to_h.bias H";
