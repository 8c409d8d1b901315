//! What each family is called in GGUF, and what its converter does beside renaming.
//!
//! Source: the converter of llama.cpp v0.5.0, `conversion/*.py` and `gguf-py/gguf/constants.py`.

/// A family as llama.cpp names it.
#[derive(Debug)]
pub(super) struct Dialect {
    /// The name of the family in `architecture`.
    pub family: &'static str,
    /// `general.architecture`, which also begins the keys of its parameters.
    pub name: &'static str,
    /// Whether rotary positions turn neighbouring features in llama.cpp: rows of queries and keys change places.
    pub permuted: bool,
    /// Whether the features of a head are written: where the class always knows them, or where the config does.
    pub head_size: HeadSize,
    /// Whether `vocab_size` and the rotated features are written, as for Llama and what is converted like it.
    pub like_llama: bool,
}

/// When the features of a head are written.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum HeadSize {
    /// Always: the class computes what the config leaves out.
    Always,
    /// If config.json has `head_dim`.
    IfWritten,
    /// Never: `head_dim` is not read.
    Never,
}

const LLAMA: Dialect = Dialect {
    family: "llama",
    name: "llama",
    permuted: true,
    head_size: HeadSize::Always,
    like_llama: true,
};

const QWEN2: Dialect = Dialect {
    family: "qwen2",
    name: "qwen2",
    permuted: false,
    head_size: HeadSize::IfWritten,
    like_llama: false,
};

/// Every family that can be exported.
pub(super) const DIALECTS: &[Dialect] = &[
    LLAMA,
    Dialect {
        family: "mistral",
        ..LLAMA
    },
    Dialect {
        family: "mixtral",
        head_size: HeadSize::IfWritten,
        ..LLAMA
    },
    Dialect {
        family: "granite",
        name: "granite",
        head_size: HeadSize::Never,
        ..LLAMA
    },
    Dialect {
        family: "granitemoe",
        name: "granitemoe",
        head_size: HeadSize::Never,
        ..LLAMA
    },
    Dialect {
        family: "granitemoeshared",
        name: "granitemoe",
        head_size: HeadSize::Never,
        ..LLAMA
    },
    QWEN2,
    Dialect {
        family: "qwen3",
        name: "qwen3",
        head_size: HeadSize::Always,
        ..QWEN2
    },
    Dialect {
        family: "qwen2_moe",
        name: "qwen2moe",
        ..QWEN2
    },
    Dialect {
        family: "qwen3_moe",
        name: "qwen3moe",
        ..QWEN2
    },
    Dialect {
        family: "olmo2",
        name: "olmo2",
        ..QWEN2
    },
];

/// The part of a tensor's name in llama.cpp for a module of a layer, where all families agree.
pub(super) const MODULES: &[(&str, &str)] = &[
    ("self_attn.q_proj", "attn_q"),
    ("self_attn.k_proj", "attn_k"),
    ("self_attn.v_proj", "attn_v"),
    ("self_attn.o_proj", "attn_output"),
    ("self_attn.q_norm", "attn_q_norm"),
    ("self_attn.k_norm", "attn_k_norm"),
    ("input_layernorm", "attn_norm"),
    ("post_feedforward_layernorm", "post_ffw_norm"),
    ("mlp.gate_proj", "ffn_gate"),
    ("mlp.up_proj", "ffn_up"),
    ("mlp.down_proj", "ffn_down"),
    ("mlp.shared_expert.gate_proj", "ffn_gate_shexp"),
    ("mlp.shared_expert.up_proj", "ffn_up_shexp"),
    ("mlp.shared_expert.down_proj", "ffn_down_shexp"),
    ("mlp.shared_expert_gate", "ffn_gate_inp_shexp"),
    ("shared_mlp.output_linear", "ffn_down_shexp"),
];
