//! HunYuan with experts.

use crate::decoder::Decoder;
use crate::family::Family;
use crate::mixture::{
    Absent, Counts, Experts, Listed, Mixture, RoutingRule, Shared, SharedLayout, SharedWidth,
    Sparse, Written,
};

pub(super) static FAMILY: Family =
    Family::decoder(&["hunyuan_v1_moe"], "HunYuanMoEV1ForCausalLM", DECODER);

pub(super) const DECODER: Decoder = Decoder {
    mixture: Some(Mixture {
        router: "mlp.gate.wg.weight",
        experts: Experts::EACH,
        shared: Some(Shared {
            layout: SharedLayout::Each("mlp.shared_mlp."),
            gate: None,
            absent: Absent::Zeros,
            width: SharedWidth::Fixed,
        }),
        correction: None,
        router_f32: true,
        sparse: Sparse::All,
        counts: Counts {
            experts: &["num_experts"],
            per_token: "moe_topk",
            width: "intermediate_size",
        },
        routing: RoutingRule::Softmax,
        written: Some(Written {
            title: "HunYuan MoE",
            holds: &["hunyuan_v1_dense"],
            fixed: r#"{"output_router_logits": false}"#,
            listed: &[
                ("moe_topk", Listed::PerToken),
                ("moe_intermediate_size", Listed::Width),
                ("num_shared_expert", Listed::Shared),
            ],
        }),
    }),
    ..super::hunyuan_v1_dense::DECODER
};
