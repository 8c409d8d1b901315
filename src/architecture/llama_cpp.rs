//! What each family is called in llama.cpp and its GGUF files, and what its converter does beside renaming. The writer
//! and the reader of such files both go by these tables.
//!
//! Source: the converter of llama.cpp v0.5.0, `conversion/*.py` and `gguf-py/gguf/constants.py`. What a family is
//! whatever the format, the other files here say.

use super::decoder::{Decoder, NormPlacement};
use super::mixture::SharedLayout;

/// A family as llama.cpp names it.
#[derive(Debug)]
pub struct Dialect {
    /// The name of the family in `architecture`.
    pub family: &'static str,
    /// `general.architecture`, which also begins the keys of its parameters.
    pub name: &'static str,
    /// Whether rotary positions turn neighbouring features in llama.cpp: rows of queries and keys change places.
    pub permuted: bool,
    /// Whether the features of a head are written: where the class always knows them, or where the config does.
    pub head_size: HeadSize,
    /// What the norm before the MLP is called, where it is `post_attention_layernorm`.
    pub mlp_norm: &'static str,
    /// Whether `vocab_size` is written, as for Llama and what is converted like it.
    pub vocab_size: bool,
    /// Whether the rotated features of a head are written.
    pub rotated_size: bool,
    /// What is written of rotary positions.
    pub rope: Rope,
    /// Fields that are written as they stand.
    pub copied: &'static [Copied],
    /// Whether there may be fewer heads of keys than of queries.
    pub grouped_heads: bool,
    /// Every how many layers llama.cpp expects attention to all tokens, the others looking through a window.
    pub window_period: Option<usize>,
    /// Whether the output head is written.
    pub head: Head,
    /// The field that gives it biases, which llama.cpp does not load.
    pub no_biases: Option<&'static str>,
    /// Whether layers that predict further tokens are written.
    pub further_layers: bool,
    /// Whether llama.cpp does not load it without a shared expert.
    pub needs_shared: bool,
    /// Whether the weights of a token's experts are made to sum to one in llama.cpp, where it does so or not whatever
    /// `norm_topk_prob` says.
    pub sums_to_one: Option<bool>,
    /// Whether the width of shared experts is written beside their number.
    pub shared_width: bool,
    /// Whether `tokenizer.model` comes before `tokenizer.json`.
    pub pieces_first: bool,
    /// Whether tokens that are added to `tokenizer.model` are written as they stand, and those of `tokenizer.json` too.
    pub added_verbatim: bool,
    /// Whether a space is put before a text.
    pub space_prefix: SpacePrefix,
    /// Special tokens by their text, for those that nothing else tells.
    pub special: &'static [(&'static str, &'static str)],
    /// Special tokens by their id: keys behind `tokenizer.ggml.`.
    pub special_ids: &'static [(&'static str, u32)],
}

/// When the features of a head are written.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum HeadSize {
    /// Always: the class computes what the config leaves out.
    Always,
    /// If config.json has `head_dim`.
    IfWritten,
    /// Never: `head_dim` is not read.
    Never,
}

/// What is written of rotary positions.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Rope {
    /// Base and scaling.
    Written,
    /// The same, with Llama 3's divisors as a tensor.
    WithLlama3,
    /// The same where they are not the base of 10000 without scaling that llama.cpp takes.
    IfUnusual,
    /// The same for layers that attend to all tokens, and the base of the others.
    PerKind,
    /// The same, where `dynamic` with an `alpha` is a larger base.
    WithAlpha,
    /// Base, and the divisors for short and long texts as tensors.
    Long,
}

/// A field of config.json that is written as it stands.
#[derive(Debug, Clone, Copy)]
pub struct Copied {
    /// The field.
    pub field: &'static str,
    /// Its key behind the architecture's name.
    pub key: &'static str,
    /// What it is where it is absent; none: it is not written.
    pub absent: Option<f64>,
    /// Whether it is a number; otherwise a size.
    pub is_number: bool,
}

/// Whether the output head is written.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Head {
    /// If the checkpoint has one.
    Kept,
    /// If the config does not say that it is the embedding.
    Untied,
    /// Never: llama.cpp reads none.
    Dropped,
    /// Always: llama.cpp does not take the embedding in its place, so it is written twice.
    Needed,
}

/// Whether a space is put before a text.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum SpacePrefix {
    /// As the tokenizer does.
    ByTokenizer,
    /// As `add_prefix_space` of tokenizer_config.json says, or the tokenizer does.
    BySetting,
    /// Never.
    Never,
}

const QWEN2: Dialect = Dialect {
    family: "qwen2",
    name: "qwen2",
    permuted: false,
    head_size: HeadSize::IfWritten,
    mlp_norm: "ffn_norm",
    vocab_size: false,
    rotated_size: false,
    rope: Rope::Written,
    copied: &[],
    grouped_heads: true,
    window_period: None,
    head: Head::Kept,
    no_biases: None,
    further_layers: false,
    needs_shared: false,
    sums_to_one: None,
    shared_width: false,
    pieces_first: true,
    added_verbatim: false,
    space_prefix: SpacePrefix::ByTokenizer,
    special: &[],
    special_ids: &[],
};

const LLAMA: Dialect = Dialect {
    family: "llama",
    name: "llama",
    permuted: true,
    head_size: HeadSize::Always,
    vocab_size: true,
    rotated_size: true,
    rope: Rope::WithLlama3,
    space_prefix: SpacePrefix::BySetting,
    ..QWEN2
};

const GRANITE: Dialect = Dialect {
    family: "granite",
    name: "granite",
    head_size: HeadSize::Never,
    rope: Rope::Written,
    ..LLAMA
};

const GEMMA: Dialect = Dialect {
    family: "gemma",
    name: "gemma",
    head_size: HeadSize::Always,
    rope: Rope::IfUnusual,
    head: Head::Dropped,
    space_prefix: SpacePrefix::Never,
    // CodeGemma's, which the converter writes for every Gemma.
    special_ids: &[("eot_token_id", 107)],
    ..QWEN2
};

const GEMMA2: Dialect = Dialect {
    family: "gemma2",
    name: "gemma2",
    copied: &[
        Copied::number(
            "attn_logit_softcapping",
            "attn_logit_softcapping",
            Some(50.0),
        ),
        Copied::number(
            "final_logit_softcapping",
            "final_logit_softcapping",
            Some(30.0),
        ),
        Copied::size("sliding_window", "attention.sliding_window", Some(4096.0)),
    ],
    window_period: Some(2),
    special_ids: &[],
    ..GEMMA
};

const GEMMA3: Dialect = Dialect {
    family: "gemma3_text",
    name: "gemma3",
    rope: Rope::PerKind,
    copied: &[
        Copied::number("final_logit_softcapping", "final_logit_softcapping", None),
        Copied::size("sliding_window", "attention.sliding_window", Some(4096.0)),
    ],
    window_period: Some(6),
    head: Head::Kept,
    ..GEMMA2
};

const HUNYUAN: Dialect = Dialect {
    family: "hunyuan_v1_dense",
    name: "hunyuan-dense",
    rope: Rope::WithAlpha,
    head: Head::Untied,
    pieces_first: false,
    ..QWEN2
};

/// Every family that can be exported.
pub const DIALECTS: &[Dialect] = &[
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
    GRANITE,
    Dialect {
        family: "granitemoe",
        name: "granitemoe",
        ..GRANITE
    },
    Dialect {
        family: "granitemoeshared",
        name: "granitemoe",
        ..GRANITE
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
        sums_to_one: Some(false),
        head: Head::Needed,
        needs_shared: true,
        pieces_first: false,
        ..QWEN2
    },
    Dialect {
        family: "qwen3_moe",
        name: "qwen3moe",
        sums_to_one: Some(true),
        pieces_first: false,
        ..QWEN2
    },
    Dialect {
        family: "olmo2",
        name: "olmo2",
        head: Head::Needed,
        pieces_first: false,
        ..QWEN2
    },
    GEMMA,
    GEMMA2,
    GEMMA3,
    Dialect {
        family: "gemma3",
        ..GEMMA3
    },
    Dialect {
        family: "phi3",
        name: "phi3",
        head_size: HeadSize::Never,
        rotated_size: true,
        rope: Rope::Long,
        copied: &[Copied::size(
            "sliding_window",
            "attention.sliding_window",
            Some(0.0),
        )],
        added_verbatim: true,
        ..QWEN2
    },
    Dialect {
        family: "ernie4_5",
        name: "ernie4_5",
        no_biases: Some("use_bias"),
        head_size: HeadSize::Always,
        space_prefix: SpacePrefix::BySetting,
        ..QWEN2
    },
    Dialect {
        family: "ernie4_5_moe",
        name: "ernie4_5-moe",
        no_biases: Some("use_bias"),
        shared_width: true,
        space_prefix: SpacePrefix::BySetting,
        ..QWEN2
    },
    HUNYUAN,
    Dialect {
        family: "hunyuan_v1_moe",
        name: "hunyuan-moe",
        ..HUNYUAN
    },
    Dialect {
        family: "glm4_moe",
        name: "glm4moe",
        further_layers: true,
        needs_shared: true,
        mlp_norm: "post_attention_norm",
        rotated_size: true,
        pieces_first: false,
        special: &[
            ("bos", "[gMASK]"),
            ("eot", "<|user|>"),
            ("unk", "<|endoftext|>"),
            ("eom", "<|observation|>"),
        ],
        ..QWEN2
    },
    Dialect {
        family: "dots1",
        name: "dots1",
        grouped_heads: false,
        needs_shared: true,
        head: Head::Needed,
        pieces_first: false,
        ..QWEN2
    },
];

impl Copied {
    const fn number(field: &'static str, key: &'static str, absent: Option<f64>) -> Self {
        Copied {
            field,
            key,
            absent,
            is_number: true,
        }
    }

    const fn size(field: &'static str, key: &'static str, absent: Option<f64>) -> Self {
        Copied {
            is_number: false,
            ..Copied::number(field, key, absent)
        }
    }
}

/// The part of a tensor's name in llama.cpp for a module of a layer, where all families agree.
const MODULES: &[(&str, &str)] = &[
    ("self_attn.q_proj", "attn_q"),
    ("self_attn.k_proj", "attn_k"),
    ("self_attn.v_proj", "attn_v"),
    ("self_attn.qkv_proj", "attn_qkv"),
    ("self_attn.o_proj", "attn_output"),
    ("self_attn.q_norm", "attn_q_norm"),
    ("self_attn.k_norm", "attn_k_norm"),
    ("self_attn.query_layernorm", "attn_q_norm"),
    ("self_attn.key_layernorm", "attn_k_norm"),
    ("input_layernorm", "attn_norm"),
    ("pre_feedforward_layernorm", "ffn_norm"),
    ("post_feedforward_layernorm", "post_ffw_norm"),
    ("mlp.gate_proj", "ffn_gate"),
    ("mlp.up_proj", "ffn_up"),
    ("mlp.down_proj", "ffn_down"),
    // Gate and up one after the other, as llama.cpp has them for the families that store them so.
    ("mlp.gate_up_proj", "ffn_up"),
    ("mlp.shared_expert_gate", "ffn_gate_inp_shexp"),
    ("shared_mlp.output_linear", "ffn_down_shexp"),
    // Of layers that predict further tokens.
    ("eh_proj", "nextn.eh_proj"),
    ("enorm", "nextn.enorm"),
    ("hnorm", "nextn.hnorm"),
    ("embed_tokens", "nextn.embed_tokens"),
    ("shared_head.head", "nextn.shared_head_head"),
    ("shared_head.norm", "nextn.shared_head_norm"),
];

/// What a matrix of a shared expert is called, behind its prefix.
const SHARED: &[(&str, &str)] = &[
    ("gate_proj", "ffn_gate_shexp"),
    ("up_proj", "ffn_up_shexp"),
    ("down_proj", "ffn_down_shexp"),
];

/// Sizes that every file has: the field of config.json, and the key behind the architecture's name.
pub const SIZES: [(&str, &str); 4] = [
    ("max_position_embeddings", "context_length"),
    ("hidden_size", "embedding_length"),
    ("intermediate_size", "feed_forward_length"),
    ("num_attention_heads", "attention.head_count"),
];

/// Granite's multipliers: fields and keys.
pub const MULTIPLIERS: [(&str, &str); 4] = [
    ("attention_multiplier", "attention.scale"),
    ("embedding_multiplier", "embedding_scale"),
    ("residual_multiplier", "residual_scale"),
    ("logits_scaling", "logit_scale"),
];

/// What may be said of a scaling by yarn: fields, and keys behind `rope.scaling.`.
pub const YARN: [(&str, &str); 4] = [
    ("extrapolation_factor", "yarn_ext_factor"),
    ("attention_factor", "yarn_attn_factor"),
    ("beta_fast", "yarn_beta_fast"),
    ("beta_slow", "yarn_beta_slow"),
];

impl Dialect {
    /// The one of a family of [`Family`](super::Family), by its name.
    pub fn of_family(name: &str) -> Option<&'static Dialect> {
        DIALECTS.iter().find(|dialect| dialect.family == name)
    }

    /// What llama.cpp calls a module of a layer, that of experts left out.
    pub fn module(&self, decoder: &Decoder, module: &str) -> Option<&'static str> {
        let mixture = decoder.mixture.as_ref();
        if mixture.is_some_and(|mixture| mixture.router.strip_suffix(".weight") == Some(module)) {
            return Some("ffn_gate_inp");
        }
        if module == "post_attention_layernorm" {
            return Some(match decoder.norms {
                NormPlacement::Before => self.mlp_norm,
                NormPlacement::After | NormPlacement::Around => "post_attention_norm",
            });
        }
        if let Some(SharedLayout::Each(prefix)) = mixture
            .and_then(|mixture| mixture.shared.as_ref())
            .map(|shared| shared.layout)
            && let Some(matrix) = module.strip_prefix(prefix)
        {
            let found = SHARED.iter().find(|(name, _)| *name == matrix);
            return found.map(|(_, name)| *name);
        }
        let found = MODULES.iter().find(|(name, _)| *name == module);
        found.map(|(_, name)| *name)
    }

    /// Whether the rows of a module of a layer, by its name in llama.cpp, are interleaved head by head: `Some(true)`
    /// those of queries, `Some(false)` those of keys.
    pub fn interleaves(&self, module: &str) -> Option<bool> {
        match module {
            "attn_q" if self.permuted => Some(true),
            "attn_k" if self.permuted => Some(false),
            _ => None,
        }
    }

    /// What llama.cpp calls a tensor of a decoder that belongs to no layer: embedding and last norm.
    pub fn outside_layers(name: &str) -> Option<&'static str> {
        match name {
            "embed_tokens.weight" => Some("token_embd.weight"),
            "norm.weight" => Some("output_norm.weight"),
            _ => None,
        }
    }
}

/// The row that llama.cpp has at `row` where rows are interleaved: of each head, rows of the first half and of the
/// second take turns.
pub fn interleaved(row: u64, head: u64) -> u64 {
    let (start, within) = (row / head * head, row % head);
    start + within % 2 * (head / 2) + within / 2
}

/// How Llama 3 divides rotary frequencies.
#[derive(Debug, Clone, Copy)]
pub struct Llama3 {
    /// What long waves are divided by.
    pub factor: f64,
    /// A wave that is longer than the old length of texts over this is long.
    pub low: f64,
    /// A wave that is shorter than the old length of texts over this is short, and stays.
    pub high: f64,
    /// The old length of texts, in tokens.
    pub original: usize,
}

/// As Llama 3.1 has it; 3.2 has another factor.
pub const LLAMA3: Llama3 = Llama3 {
    factor: 8.0,
    low: 1.0,
    high: 4.0,
    original: 8192,
};

/// What llama.cpp divides each rotary frequency by, for heads of which so many features are turned: 1 for short waves,
/// the factor for long ones, between them a blend.
///
/// Source: `_compute_llama3_parameters` of transformers. It computes in f32 and multiplies with an inverse where a
/// number is divided by a tensor, so the same is done here.
pub fn llama3_divisors(scaling: &Llama3, theta: f64, rotated: usize) -> Vec<f32> {
    let Llama3 {
        factor,
        low,
        high,
        original,
    } = *scaling;
    let context = original as f64;
    let divisors = (0..rotated / 2).map(|pair| {
        let exponent = (2 * pair) as f32 / rotated as f32;
        let frequency = 1.0 / libm::pow(theta, f64::from(exponent)) as f32;
        let wave = (1.0 / frequency) * std::f32::consts::TAU;
        if f64::from(wave) < context / high {
            1.0
        } else if f64::from(wave) > context / low {
            factor as f32
        } else {
            let turns = (1.0 / wave) * context as f32;
            let smooth = (turns - low as f32) / (high - low) as f32;
            1.0 / ((1.0 - smooth) / factor as f32 + smooth)
        }
    });
    divisors.collect()
}
