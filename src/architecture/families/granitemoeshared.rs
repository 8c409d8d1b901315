//! Granite with experts and a shared one.

use crate::decoder::{Decoder, HeadDim};
use crate::family::Family;
use crate::mixture::{
    Absent, Counts, Experts, Mixture, RoutingRule, Shared, SharedLayout, SharedWidth, Sparse,
    Written,
};

pub(super) static FAMILY: Family = Family::decoder(
    &["granitemoeshared"],
    "GraniteMoeSharedForCausalLM",
    DECODER,
);

pub(super) const DECODER: Decoder = Decoder {
    head_dim: HeadDim::AlwaysShare,
    multipliers: true,
    mixture: Some(Mixture {
        router: "block_sparse_moe.router.layer.weight",
        experts: Experts::Fused {
            input: "block_sparse_moe.input_linear.weight",
            output: "block_sparse_moe.output_linear.weight",
        },
        shared: Some(Shared {
            layout: SharedLayout::Fused(
                "shared_mlp.input_linear.weight",
                "shared_mlp.output_linear.weight",
            ),
            gate: None,
            absent: Absent::Nothing,
            width: SharedWidth::Neurons("shared_intermediate_size"),
        }),
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
            title: "Granite MoE shared",
            holds: &["granite", "llama", "qwen2"],
            fixed: r#"{"output_router_logits": false, "router_aux_loss_coef": 0.001}"#,
            listed: &[],
        }),
    }),
    ..Decoder::LLAMA
};
