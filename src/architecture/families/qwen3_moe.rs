//! Qwen 3 with experts.

use crate::decoder::{Decoder, QueryNorms, WindowRule};
use crate::family::Family;
use crate::mixture::{Counts, Experts, Mixture, RoutingRule, Sparse, Written};

pub(super) static FAMILY: Family = Family::decoder(&["qwen3_moe"], "Qwen3MoeForCausalLM", DECODER);

pub(super) const DECODER: Decoder = Decoder {
    kv_heads: Some(4),
    query_norms: QueryNorms::Head,
    window: WindowRule::Switched,
    mixture: Some(Mixture {
        router: "mlp.gate.weight",
        experts: Experts::EACH,
        shared: None,
        correction: None,
        router_f32: false,
        sparse: Sparse::MlpOnlyLayers,
        counts: Counts {
            experts: &["num_experts", "num_local_experts"],
            per_token: "num_experts_per_tok",
            width: "moe_intermediate_size",
        },
        routing: RoutingRule::SoftmaxNorm(false),
        written: Some(Written {
            title: "Qwen3 MoE",
            holds: &["qwen3"],
            fixed: r#"{"decoder_sparse_step": 1, "norm_topk_prob": true, "output_router_logits": false,
                       "router_aux_loss_coef": 0.001, "use_sliding_window": false}"#,
            listed: &[],
        }),
    }),
    ..Decoder::LLAMA
};
