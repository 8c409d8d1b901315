//! GPT-2.

use crate::family::{Body, Family, Head};

pub(super) static FAMILY: Family = Family {
    head: Head::tied(&["lm_head.weight"]),
    ..Family::listed(
        &["gpt2"],
        "GPT2LMHeadModel",
        &[Body {
            prefixes: &["transformer.", ""],
            layers: "h.",
            tensors: &[TENSORS],
            ..Body::LISTED
        }],
    )
};

const TENSORS: &str = "wte.weight V H\nwpe.weight P H\nln_f.weight H\nln_f.bias H\nh.*.ln_1.weight H\nh.*.ln_1.bias H\n\
                 h.*.ln_2.weight H\nh.*.ln_2.bias H\nh.*.attn.c_attn.weight H HHH\nh.*.attn.c_attn.bias HHH\n\
                 h.*.attn.c_proj.weight H H\nh.*.attn.c_proj.bias H\nh.*.mlp.c_fc.weight H F\nh.*.mlp.c_fc.bias F\n\
                 h.*.mlp.c_proj.weight F H\nh.*.mlp.c_proj.bias H";
