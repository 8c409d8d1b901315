//! FlexOlmo: OLMo 2 with experts.

use crate::decoder::{Decoder, HeadDim};
use crate::family::Family;
use crate::mixture::{Counts, Experts, Mixture, RoutingRule, Sparse, Written};

pub(super) static FAMILY: Family = Family::decoder(&["flex_olmo"], "FlexOlmoForCausalLM", DECODER);

pub(super) const DECODER: Decoder = Decoder {
    head_dim: HeadDim::AlwaysShare,
    theta: 500_000.0,
    mixture: Some(Mixture {
        router: "mlp.gate.weight",
        experts: Experts::EACH,
        shared: None,
        correction: None,
        router_f32: false,
        sparse: Sparse::All,
        counts: Counts {
            experts: &["num_experts"],
            per_token: "num_experts_per_tok",
            width: "intermediate_size",
        },
        routing: RoutingRule::SoftmaxNorm(false),
        written: Some(Written {
            title: "FlexOlmo",
            holds: &["olmo2"],
            fixed: r#"{"norm_topk_prob": true, "output_router_logits": false, "router_aux_loss_coef": 0.01}"#,
            listed: &[],
        }),
    }),
    ..super::olmo2::DECODER
};
