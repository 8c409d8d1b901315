//! Mixtral: Mistral with experts in every layer.

use crate::decoder::{Bias, Decoder, WindowRule};
use crate::family::Family;
use crate::mixture::{Counts, Experts, Mixture, RoutingRule, Sparse, Written};

pub(super) static FAMILY: Family = Family::decoder(&["mixtral"], "MixtralForCausalLM", DECODER);

pub(super) const DECODER: Decoder = Decoder {
    kv_heads: Some(8),
    norm_eps: 1e-5,
    qkv_bias: Bias::None,
    o_bias: Bias::None,
    theta: 1e6,
    window: WindowRule::All(None),
    mixture: Some(Mixture {
        router: "block_sparse_moe.gate.weight",
        experts: Experts::Each {
            prefix: "block_sparse_moe.experts.",
            gate: "w1.weight",
            up: "w3.weight",
            down: "w2.weight",
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
        routing: RoutingRule::Softmax,
        written: Some(Written {
            title: "Mixtral",
            holds: &["llama", "mistral", "phi3", "gemma"],
            fixed: r#"{"router_jitter_noise": 0.0, "output_router_logits": false, "router_aux_loss_coef": 0.001}"#,
            listed: &[],
        }),
    }),
    ..Decoder::LLAMA
};
