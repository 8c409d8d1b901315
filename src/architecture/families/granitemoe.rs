//! Granite with experts, all of a layer in two tensors.

use crate::decoder::{Decoder, HeadDim};
use crate::family::Family;
use crate::mixture::{Counts, Experts, Mixture, RoutingRule, Sparse, Written};

pub(super) static FAMILY: Family =
    Family::decoder(&["granitemoe"], "GraniteMoeForCausalLM", DECODER);

pub(super) const DECODER: Decoder = Decoder {
    head_dim: HeadDim::AlwaysShare,
    multipliers: true,
    mixture: Some(Mixture {
        router: "block_sparse_moe.router.layer.weight",
        experts: Experts::Fused {
            input: "block_sparse_moe.input_linear.weight",
            output: "block_sparse_moe.output_linear.weight",
        },
        shared: None,
        correction: None,
        router_f32: false,
        sparse: Sparse::All,
        counts: Counts {
            experts: &["num_local_experts"],
            per_token: "num_experts_per_tok",
            width: "intermediate_size",
        },
        routing: RoutingRule::TopSoftmax,
        written: Some(Written {
            title: "Granite MoE",
            holds: &["granite", "llama", "qwen2"],
            fixed: r#"{"output_router_logits": false, "router_aux_loss_coef": 0.001}"#,
            listed: &[],
        }),
    }),
    ..Decoder::LLAMA
};
