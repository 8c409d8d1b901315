//! DeepSeek V3 and R1: latent attention, experts chosen by groups.

use crate::decoder::{Attention, Decoder};
use crate::family::Family;
use crate::mixture::{
    Absent, Correction, Counts, Experts, Mixture, RoutingRule, Shared, SharedLayout, SharedWidth,
    Sparse,
};

pub(super) static FAMILY: Family =
    Family::decoder(&["deepseek_v3"], "DeepseekV3ForCausalLM", DECODER);

const LATENT: &str = "layers.*.self_attn.q_proj.weight QH H if q_lora_rank=null\n\
    layers.*.self_attn.q_a_proj.weight QL H if q_lora_rank\n\
    layers.*.self_attn.q_a_layernorm.weight QL if q_lora_rank\n\
    layers.*.self_attn.q_b_proj.weight QH QL if q_lora_rank\n\
    ?layers.*.self_attn.q_a_proj.bias QL\n\
    ?layers.*.self_attn.kv_a_proj_with_mqa.bias KA\n\
    ?layers.*.self_attn.o_proj.bias H\n\
    layers.*.self_attn.kv_a_proj_with_mqa.weight KA H\n\
    layers.*.self_attn.kv_a_layernorm.weight KL\n\
    layers.*.self_attn.kv_b_proj.weight KB KL\n\
    layers.*.self_attn.o_proj.weight H VO";

const DECODER: Decoder = decoder(3);

/// Its block, where so many layers have no experts unless the config says otherwise.
pub(super) const fn decoder(dense_layers: usize) -> Decoder {
    Decoder {
        attention: Attention::Listed(LATENT),
        mixture: Some(Mixture {
            router: "mlp.gate.weight",
            experts: Experts::EACH,
            shared: Some(Shared {
                layout: SharedLayout::Each("mlp.shared_experts."),
                gate: None,
                absent: Absent::Nothing,
                width: SharedWidth::Experts("n_shared_experts"),
            }),
            correction: Some(Correction {
                name: "mlp.gate.e_score_correction_bias",
                two_dimensions: false,
                only_if: Some(("topk_method", "noaux_tc")),
            }),
            router_f32: false,
            sparse: Sparse::FirstDense(dense_layers),
            counts: Counts {
                experts: &["n_routed_experts"],
                per_token: "num_experts_per_tok",
                width: "moe_intermediate_size",
            },
            routing: RoutingRule::Sigmoid(true),
            written: None,
        }),
        runs: false,
        ..Decoder::LLAMA
    }
}
