//! GLM 4.5 and 4.6.

use crate::decoder::{Bias, Decoder, QueryNorms};
use crate::family::Family;
use crate::mixture::{
    Absent, Correction, Counts, Experts, Mixture, RoutingRule, Shared, SharedLayout, SharedWidth,
    Sparse, Written,
};

pub(super) static FAMILY: Family = Family::decoder(&["glm4_moe"], "Glm4MoeForCausalLM", DECODER);

pub(super) const DECODER: Decoder = Decoder {
    kv_heads: Some(8),
    norm_eps: 1e-5,
    o_bias: Bias::None,
    query_norms: QueryNorms::HeadIf("use_qk_norm"),
    partial_rotary: Some(0.5),
    mixture: Some(Mixture {
        router: "mlp.gate.weight",
        experts: Experts::EACH,
        shared: Some(Shared {
            layout: SharedLayout::Each("mlp.shared_experts."),
            gate: None,
            absent: Absent::Zeros,
            width: SharedWidth::Experts("n_shared_experts"),
        }),
        correction: Some(Correction {
            name: "mlp.gate.e_score_correction_bias",
            two_dimensions: false,
            only_if: None,
        }),
        router_f32: false,
        sparse: Sparse::FirstDense(1),
        counts: Counts {
            experts: &["n_routed_experts"],
            per_token: "num_experts_per_tok",
            width: "moe_intermediate_size",
        },
        routing: RoutingRule::Sigmoid(true),
        written: Some(Written {
            title: "GLM4 MoE",
            holds: &["llama", "qwen2", "qwen3"],
            fixed: r#"{"n_group": 1, "topk_group": 1, "norm_topk_prob": true, "routed_scaling_factor": 1.0,
                       "partial_rotary_factor": 1.0, "num_nextn_predict_layers": 0}"#,
            listed: &[],
        }),
    }),
    ..Decoder::LLAMA
};
