//! dots.llm1.

use crate::decoder::{Decoder, QueryNorms, WindowRule};
use crate::family::Family;
use crate::mixture::{
    Absent, Correction, Counts, Experts, Mixture, RoutingRule, Shared, SharedLayout, SharedWidth,
    Sparse, Written,
};

pub(super) static FAMILY: Family = Family::decoder(&["dots1"], "Dots1ForCausalLM", DECODER);

pub(super) const DECODER: Decoder = Decoder {
    kv_heads: Some(32),
    query_norms: QueryNorms::Head,
    window: WindowRule::Listed {
        switched: false,
        from: Some(62),
    },
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
        sparse: Sparse::FirstDense(0),
        counts: Counts {
            experts: &["n_routed_experts"],
            per_token: "num_experts_per_tok",
            width: "moe_intermediate_size",
        },
        routing: RoutingRule::Sigmoid(false),
        written: Some(Written {
            title: "dots1",
            holds: &["qwen3"],
            fixed: r#"{"n_group": 1, "topk_group": 1, "norm_topk_prob": true, "routed_scaling_factor": 1.0,
                       "scoring_func": "sigmoid", "sliding_window": null}"#,
            listed: &[],
        }),
    }),
    ..Decoder::LLAMA
};
