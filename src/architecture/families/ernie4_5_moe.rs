//! ERNIE 4.5 with experts.

use crate::decoder::{Bias, Decoder, HeadDim};
use crate::family::{Family, Head};
use crate::mixture::{
    Absent, Correction, Counts, Experts, Mixture, RoutingRule, Shared, SharedLayout, SharedWidth,
    Sparse, Written,
};

pub(super) static FAMILY: Family = Family {
    head: Head::tied(&["lm_head.weight"]),
    ..Family::decoder(&["ernie4_5_moe"], "Ernie4_5_MoeForCausalLM", DECODER)
};

pub(super) const DECODER: Decoder = Decoder {
    head_dim: HeadDim::Share,
    kv_heads: Some(4),
    qkv_bias: Bias::None,
    o_bias: Bias::None,
    mlp_bias: Bias::None,
    mixture: Some(Mixture {
        router: "mlp.gate.weight",
        experts: Experts::EACH,
        shared: Some(Shared {
            layout: SharedLayout::Each("mlp.shared_experts."),
            gate: None,
            absent: Absent::Nothing,
            width: SharedWidth::Experts("moe_num_shared_experts"),
        }),
        correction: Some(Correction {
            name: "mlp.moe_statics.e_score_correction_bias",
            two_dimensions: true,
            only_if: None,
        }),
        router_f32: true,
        sparse: Sparse::StartAndEnd,
        counts: Counts {
            experts: &["moe_num_experts"],
            per_token: "moe_k",
            width: "moe_intermediate_size",
        },
        routing: RoutingRule::Softmax,
        written: Some(Written {
            title: "ERNIE 4.5 MoE",
            holds: &["ernie4_5"],
            fixed: r#"{"moe_layer_interval": 1, "moe_norm_min": 1e-12, "use_bias": false,
                       "output_router_logits": false, "router_aux_loss_coef": 0.001}"#,
            listed: &[],
        }),
    }),
    ..super::ernie4_5::DECODER
};
