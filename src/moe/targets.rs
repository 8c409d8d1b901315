//! The layouts of mixtures of experts that can be written, as data: names of tensors, and what each can express.
//!
//! The names are those of checkpoints on the Hub, which transformers 4 and 5, vLLM and llama.cpp read.

use super::pieces::Matrix;

/// A layout.
#[derive(Debug)]
pub(super) struct Target {
    /// As configs name it.
    pub(super) model_type: &'static str,
    /// The class that loads it.
    pub(super) class: &'static str,
    /// What mergekit calls it.
    pub(super) title: &'static str,
    /// The dense families that it holds exactly, by their model type.
    pub(super) families: &'static [&'static str],
    /// The router's rows, behind the layer's prefix.
    pub(super) router: &'static str,
    /// The experts.
    pub(super) experts: Experts,
    /// An expert for all tokens.
    pub(super) shared: Option<Shared>,
    /// A bias of the choice of experts, zeros: its name, and whether it has a first dimension of one.
    pub(super) correction: Option<(&'static str, bool)>,
    /// Whether the router's rows are kept in float32, as the class does.
    pub(super) router_f32: bool,
    /// What the attention can have.
    pub(super) attention: Attention,
    /// How the config says that only some layers have experts.
    pub(super) partial: Partial,
    /// Whether it has Granite's multipliers, which are one for other families.
    pub(super) multipliers: bool,
    /// How the config counts.
    pub(super) counts: Counts,
}

/// How the matrices of experts are stored.
#[derive(Debug)]
pub(super) enum Experts {
    /// Each by itself: what stands before the expert's number, and the names of gate, up and down behind it.
    Each {
        prefix: &'static str,
        gate: &'static str,
        up: &'static str,
        down: &'static str,
    },
    /// All in two tensors: `[experts, 2 * width, hidden]`, gate rows first, and `[experts, hidden, width]`.
    Fused {
        input: &'static str,
        output: &'static str,
    },
}

/// How a layer's router and experts are named.
#[derive(Debug, Clone, Copy)]
pub(super) struct Names {
    /// The router's rows, behind the layer's prefix.
    pub(super) router: &'static str,
    /// The experts.
    pub(super) experts: &'static Experts,
}

impl Names {
    /// The name of a tensor of an expert, behind the layer's prefix; of fused ones, of the tensor that holds it.
    pub(super) fn tensor(&self, expert: usize, matrix: Matrix) -> String {
        match (self.experts, matrix) {
            (
                Experts::Each {
                    prefix,
                    gate,
                    up,
                    down,
                },
                _,
            ) => {
                let suffix = match matrix {
                    Matrix::Gate => gate,
                    Matrix::Up => up,
                    Matrix::Down => down,
                };
                format!("{prefix}{expert}.{suffix}")
            }
            (Experts::Fused { output, .. }, Matrix::Down) => (*output).to_owned(),
            (Experts::Fused { input, .. }, _) => (*input).to_owned(),
        }
    }
}

/// What transformers 5 holds in memory, writes for checkpoints that it read so, and reads.
static HELD: Experts = Experts::Fused {
    input: "mlp.experts.gate_up_proj",
    output: "mlp.experts.down_proj",
};

/// The expert that every token goes through.
#[derive(Debug)]
pub(super) struct Shared {
    /// What stands before `gate_proj.weight` and the others; or the names of two fused matrices.
    pub(super) layout: SharedLayout,
    /// A row whose sigmoid the result is multiplied by.
    pub(super) gate: Option<&'static str>,
    /// What there is where no shared expert is asked for.
    pub(super) absent: Absent,
    /// The config's field of its width, or of how many times the experts' width it has.
    pub(super) width: SharedWidth,
}

/// How a shared expert is stored.
#[derive(Debug)]
pub(super) enum SharedLayout {
    /// `gate_proj`, `up_proj` and `down_proj` behind this.
    Each(&'static str),
    /// Gate rows and up rows in one matrix, and the down matrix.
    Fused(&'static str, &'static str),
}

/// What stands for a shared expert that is not there.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Absent {
    /// Nothing.
    Nothing,
    /// One without width.
    ZeroWidth,
    /// One of zeros, as wide as an expert: the class always has it.
    Zeros,
}

/// How the config gives the width of the shared expert.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum SharedWidth {
    /// In neurons, by this field.
    Neurons(&'static str),
    /// In experts, by this field.
    Experts(&'static str),
    /// It is always as wide as an expert.
    Fixed,
}

/// What the attention of a target can have beside its four matrices.
#[derive(Debug)]
pub(super) struct Attention {
    /// Biases of q, k and v, and the field that says so.
    pub(super) qkv_bias: Option<&'static str>,
    /// A bias of o, with that of q, k and v.
    pub(super) o_bias: bool,
    /// Norms of q and k.
    pub(super) norms: Norms,
    /// One window for all layers.
    pub(super) window: bool,
    /// Heads of another width than `hidden_size / num_attention_heads`.
    pub(super) head_dim: bool,
}

/// Norms of queries and keys.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Norms {
    /// There are none.
    None,
    /// There are always.
    Always,
    /// There may be, as `use_qk_norm` says.
    Optional,
}

/// How a config says that only some layers have experts.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Partial {
    /// It cannot.
    No,
    /// `mlp_only_layers` lists the others.
    MlpOnlyLayers,
    /// `first_k_dense_replace` layers without come first.
    FirstDense,
    /// `moe_layer_start_index` and `moe_layer_end_index`.
    StartAndEnd,
}

/// The config's fields for counts and widths.
#[derive(Debug)]
pub(super) struct Counts {
    /// Experts; several where versions differ.
    pub(super) experts: &'static [&'static str],
    /// Experts for each token.
    pub(super) per_token: &'static str,
    /// Their width; `intermediate_size` is always written too.
    pub(super) width: &'static str,
    /// Fields with fixed values, as JSON.
    pub(super) fixed: &'static str,
}

const QWEN: Experts = Experts::Each {
    prefix: "mlp.experts.",
    gate: "gate_proj.weight",
    up: "up_proj.weight",
    down: "down_proj.weight",
};

const GRANITE: Experts = Experts::Fused {
    input: "block_sparse_moe.input_linear.weight",
    output: "block_sparse_moe.output_linear.weight",
};

const GRANITE_ATTENTION: Attention = Attention {
    qkv_bias: Some("attention_bias"),
    o_bias: true,
    norms: Norms::None,
    window: false,
    head_dim: false,
};

/// Every target; for a family that several hold, the first is taken if the recipe names none.
pub(super) static TARGETS: &[Target] = &[
    Target {
        model_type: "mixtral",
        class: "MixtralForCausalLM",
        title: "Mixtral",
        families: &["llama", "mistral", "phi3", "gemma"],
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
        attention: Attention {
            qkv_bias: None,
            o_bias: false,
            norms: Norms::None,
            window: true,
            head_dim: true,
        },
        partial: Partial::No,
        multipliers: false,
        counts: Counts {
            experts: &["num_local_experts"],
            per_token: "num_experts_per_tok",
            width: "intermediate_size",
            fixed: r#"{"router_jitter_noise": 0.0, "output_router_logits": false, "router_aux_loss_coef": 0.001}"#,
        },
    },
    Target {
        model_type: "qwen2_moe",
        class: "Qwen2MoeForCausalLM",
        title: "Qwen MoE",
        families: &["qwen2", "llama"],
        router: "mlp.gate.weight",
        experts: QWEN,
        shared: Some(Shared {
            layout: SharedLayout::Each("mlp.shared_expert."),
            gate: Some("mlp.shared_expert_gate.weight"),
            absent: Absent::ZeroWidth,
            width: SharedWidth::Neurons("shared_expert_intermediate_size"),
        }),
        correction: None,
        router_f32: false,
        attention: Attention {
            qkv_bias: Some("qkv_bias"),
            o_bias: false,
            norms: Norms::None,
            window: false,
            head_dim: false,
        },
        partial: Partial::MlpOnlyLayers,
        multipliers: false,
        counts: Counts {
            experts: &["num_experts"],
            per_token: "num_experts_per_tok",
            width: "moe_intermediate_size",
            fixed: r#"{"decoder_sparse_step": 1, "norm_topk_prob": true, "output_router_logits": false,
                       "router_aux_loss_coef": 0.001, "use_sliding_window": false}"#,
        },
    },
    Target {
        model_type: "qwen3_moe",
        class: "Qwen3MoeForCausalLM",
        title: "Qwen3 MoE",
        families: &["qwen3"],
        router: "mlp.gate.weight",
        experts: QWEN,
        shared: None,
        correction: None,
        router_f32: false,
        attention: Attention {
            qkv_bias: Some("attention_bias"),
            o_bias: true,
            norms: Norms::Always,
            window: false,
            head_dim: true,
        },
        partial: Partial::MlpOnlyLayers,
        multipliers: false,
        counts: Counts {
            experts: &["num_experts", "num_local_experts"],
            per_token: "num_experts_per_tok",
            width: "moe_intermediate_size",
            fixed: r#"{"decoder_sparse_step": 1, "norm_topk_prob": true, "output_router_logits": false,
                       "router_aux_loss_coef": 0.001, "use_sliding_window": false}"#,
        },
    },
    Target {
        model_type: "glm4_moe",
        class: "Glm4MoeForCausalLM",
        title: "GLM4 MoE",
        families: &["llama", "qwen2", "qwen3"],
        router: "mlp.gate.weight",
        experts: QWEN,
        shared: Some(Shared {
            layout: SharedLayout::Each("mlp.shared_experts."),
            gate: None,
            absent: Absent::ZeroWidth,
            width: SharedWidth::Experts("n_shared_experts"),
        }),
        correction: Some(("mlp.gate.e_score_correction_bias", false)),
        router_f32: false,
        attention: Attention {
            qkv_bias: Some("attention_bias"),
            o_bias: false,
            norms: Norms::Optional,
            window: false,
            head_dim: true,
        },
        partial: Partial::FirstDense,
        multipliers: false,
        counts: Counts {
            experts: &["n_routed_experts"],
            per_token: "num_experts_per_tok",
            width: "moe_intermediate_size",
            fixed: r#"{"n_group": 1, "topk_group": 1, "norm_topk_prob": true, "routed_scaling_factor": 1.0,
                       "partial_rotary_factor": 1.0, "num_nextn_predict_layers": 0}"#,
        },
    },
    Target {
        model_type: "dots1",
        class: "Dots1ForCausalLM",
        title: "dots1",
        families: &["qwen3"],
        router: "mlp.gate.weight",
        experts: QWEN,
        shared: Some(Shared {
            layout: SharedLayout::Each("mlp.shared_experts."),
            gate: None,
            absent: Absent::ZeroWidth,
            width: SharedWidth::Experts("n_shared_experts"),
        }),
        correction: Some(("mlp.gate.e_score_correction_bias", false)),
        router_f32: false,
        attention: Attention {
            qkv_bias: Some("attention_bias"),
            o_bias: true,
            norms: Norms::Always,
            window: false,
            head_dim: true,
        },
        partial: Partial::FirstDense,
        multipliers: false,
        counts: Counts {
            experts: &["n_routed_experts"],
            per_token: "num_experts_per_tok",
            width: "moe_intermediate_size",
            fixed: r#"{"n_group": 1, "topk_group": 1, "norm_topk_prob": true, "routed_scaling_factor": 1.0,
                       "sliding_window": null}"#,
        },
    },
    Target {
        model_type: "granitemoe",
        class: "GraniteMoeForCausalLM",
        title: "Granite MoE",
        families: &["granite", "llama"],
        router: "block_sparse_moe.router.layer.weight",
        experts: GRANITE,
        shared: None,
        correction: None,
        router_f32: false,
        attention: GRANITE_ATTENTION,
        partial: Partial::No,
        multipliers: true,
        counts: Counts {
            experts: &["num_local_experts"],
            per_token: "num_experts_per_tok",
            width: "intermediate_size",
            fixed: r#"{"output_router_logits": false, "router_aux_loss_coef": 0.001}"#,
        },
    },
    Target {
        model_type: "granitemoeshared",
        class: "GraniteMoeSharedForCausalLM",
        title: "Granite MoE shared",
        families: &["granite", "llama"],
        router: "block_sparse_moe.router.layer.weight",
        experts: GRANITE,
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
        attention: GRANITE_ATTENTION,
        partial: Partial::No,
        multipliers: true,
        counts: Counts {
            experts: &["num_local_experts"],
            per_token: "num_experts_per_tok",
            width: "intermediate_size",
            fixed: r#"{"output_router_logits": false, "router_aux_loss_coef": 0.001}"#,
        },
    },
    Target {
        model_type: "flex_olmo",
        class: "FlexOlmoForCausalLM",
        title: "FlexOlmo",
        families: &["olmo2"],
        router: "mlp.gate.weight",
        experts: QWEN,
        shared: None,
        correction: None,
        router_f32: false,
        attention: Attention {
            qkv_bias: Some("attention_bias"),
            o_bias: true,
            norms: Norms::Always,
            window: false,
            head_dim: false,
        },
        partial: Partial::No,
        multipliers: false,
        counts: Counts {
            experts: &["num_experts"],
            per_token: "num_experts_per_tok",
            width: "intermediate_size",
            fixed: r#"{"norm_topk_prob": true, "output_router_logits": false, "router_aux_loss_coef": 0.01}"#,
        },
    },
    Target {
        model_type: "ernie4_5_moe",
        class: "Ernie4_5_MoeForCausalLM",
        title: "ERNIE 4.5 MoE",
        families: &["ernie4_5"],
        router: "mlp.gate.weight",
        experts: QWEN,
        shared: Some(Shared {
            layout: SharedLayout::Each("mlp.shared_experts."),
            gate: None,
            absent: Absent::Nothing,
            width: SharedWidth::Experts("moe_num_shared_experts"),
        }),
        correction: Some(("mlp.moe_statics.e_score_correction_bias", true)),
        router_f32: true,
        attention: Attention {
            qkv_bias: None,
            o_bias: false,
            norms: Norms::None,
            window: false,
            head_dim: true,
        },
        partial: Partial::StartAndEnd,
        multipliers: false,
        counts: Counts {
            experts: &["moe_num_experts"],
            per_token: "moe_k",
            width: "moe_intermediate_size",
            fixed: r#"{"moe_layer_interval": 1, "moe_norm_min": 1e-12, "use_bias": false,
                       "output_router_logits": false, "router_aux_loss_coef": 0.001}"#,
        },
    },
    Target {
        model_type: "hunyuan_v1_moe",
        class: "HunYuanMoEV1ForCausalLM",
        title: "HunYuan MoE",
        families: &["hunyuan_v1_dense"],
        router: "mlp.gate.wg.weight",
        experts: QWEN,
        shared: Some(Shared {
            layout: SharedLayout::Each("mlp.shared_mlp."),
            gate: None,
            absent: Absent::Zeros,
            width: SharedWidth::Fixed,
        }),
        correction: None,
        router_f32: true,
        attention: Attention {
            qkv_bias: Some("attention_bias"),
            o_bias: true,
            norms: Norms::Always,
            window: false,
            head_dim: true,
        },
        partial: Partial::No,
        multipliers: false,
        counts: Counts {
            experts: &["num_experts"],
            per_token: "moe_topk",
            width: "intermediate_size",
            fixed: r#"{"output_router_logits": false}"#,
        },
    },
];

impl Target {
    /// The names on the Hub, or those that transformers 5 holds in memory.
    pub(super) fn names(&'static self, held: bool) -> Names {
        match (&self.experts, self.router) {
            (Experts::Each { .. }, router) if held => Names {
                router: match router {
                    "block_sparse_moe.gate.weight" => "mlp.gate.weight",
                    other => other,
                },
                experts: &HELD,
            },
            (experts, router) => Names { router, experts },
        }
    }

    /// Those that `architecture:` may mean: a model type, or the beginning of mergekit's title or of a class.
    pub(super) fn named(word: &str) -> Vec<&'static Target> {
        let word = word.to_lowercase();
        let exact =
            |target: &&Target| target.model_type == word || target.title.to_lowercase() == word;
        if let Some(target) = TARGETS.iter().find(exact) {
            return vec![target];
        }
        let begins = |text: &str| text.to_lowercase().starts_with(&word);
        let meant = |target: &&Target| begins(target.title) || begins(target.class);
        TARGETS.iter().filter(meant).collect()
    }

    /// The one that is taken for a family if the recipe names none.
    pub(super) fn of_family(family: &str, shared: bool) -> Option<&'static Target> {
        let holds = |target: &&Target| target.families.contains(&family);
        let mut fitting = TARGETS.iter().filter(holds);
        match shared {
            true => fitting.find(|target| target.shared.is_some()),
            false => fitting.next(),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_table_is_sound() {
        for target in TARGETS {
            let fixed: serde_json::Value = serde_json::from_str(target.counts.fixed).unwrap();
            assert!(fixed.is_object(), "{}", target.model_type);
            assert!(!target.families.is_empty(), "{}", target.model_type);
            assert_eq!(Target::named(target.model_type).len(), 1);
            assert_eq!(Target::named(target.title).len(), 1, "{}", target.title);
        }
    }
}
