//! Qwen MoE: experts beside a shared one with a gate.

use crate::decoder::{Bias, Decoder, HeadDim, WindowRule};
use crate::family::Family;
use crate::mixture::{
    Absent, Counts, Experts, Mixture, RoutingRule, Shared, SharedLayout, SharedWidth, Sparse,
    Written,
};

pub(super) static FAMILY: Family = Family::decoder(&["qwen2_moe"], "Qwen2MoeForCausalLM", DECODER);

pub(super) const DECODER: Decoder = Decoder {
    head_dim: HeadDim::AlwaysShare,
    kv_heads: Some(16),
    qkv_bias: Bias::Flag("qkv_bias", true),
    o_bias: Bias::None,
    window: WindowRule::Listed {
        switched: true,
        from: None,
    },
    mixture: Some(Mixture {
        router: "mlp.gate.weight",
        experts: Experts::EACH,
        shared: Some(Shared {
            layout: SharedLayout::Each("mlp.shared_expert."),
            gate: Some("mlp.shared_expert_gate.weight"),
            absent: Absent::Zeros,
            width: SharedWidth::Neurons("shared_expert_intermediate_size"),
        }),
        correction: None,
        router_f32: false,
        sparse: Sparse::MlpOnlyLayers,
        counts: Counts {
            experts: &["num_experts"],
            per_token: "num_experts_per_tok",
            width: "moe_intermediate_size",
        },
        routing: RoutingRule::SoftmaxNorm(false),
        written: Some(Written {
            title: "Qwen MoE",
            holds: &["qwen2", "llama"],
            fixed: r#"{"decoder_sparse_step": 1, "norm_topk_prob": true, "output_router_logits": false,
                       "router_aux_loss_coef": 0.001, "use_sliding_window": false}"#,
            listed: &[],
        }),
    }),
    ..Decoder::LLAMA
};
