//! Writes the output's `config.json`: the base's fields under the target's names, readable by transformers 4 and 5.

use serde_json::{Map, Value, json};

use super::family::{Dense, Window};
use super::targets::Target;
use architecture::{Bias, HeadDim, Listed, QueryNorms, SharedWidth, Sparse, WindowRule};
use checkpoint::ModelConfig;

/// Fields of the base that every target has under the same name.
const KEPT: [&str; 12] = [
    "vocab_size",
    "max_position_embeddings",
    "initializer_range",
    "rms_norm_eps",
    "use_cache",
    "bos_token_id",
    "eos_token_id",
    "pad_token_id",
    "attention_dropout",
    "sep_token_id",
    "eod_token_id",
    "transformers_version",
];

/// Granite's multipliers, which are one in every other family.
const MULTIPLIERS: [&str; 4] = [
    "embedding_multiplier",
    "residual_multiplier",
    "logits_scaling",
    "attention_multiplier",
];

/// The decisions of the assembly that the config states.
pub(super) struct Assembled<'a> {
    pub(super) target: Target,
    pub(super) base: &'a Dense,
    /// Number of routed experts.
    pub(super) experts: usize,
    pub(super) per_token: usize,
    /// Neurons per routed expert.
    pub(super) width: usize,
    /// Neurons of the shared expert; zero if there is none.
    pub(super) shared_width: usize,
    /// For each layer, whether it has experts.
    pub(super) has_experts: &'a [bool],
    /// The name of the output's dtype.
    pub(super) dtype: Option<&'static str>,
}

/// The config of an assembly whose base has the config `config`.
pub(super) fn config(config: &ModelConfig, assembled: &Assembled<'_>) -> Value {
    let Assembled {
        target,
        base,
        experts,
        per_token,
        width,
        shared_width,
        has_experts,
        dtype,
    } = *assembled;
    let mut out = Map::new();
    let mut set = |key: &str, value: Value| {
        out.insert(key.to_owned(), value);
    };
    set("architectures", json!([target.class]));
    set("model_type", json!(target.model_type));
    set_decoder(&mut set, config, base);
    if target.decoder.head_dim != HeadDim::AlwaysShare || base.head_dim * base.heads == base.hidden
    {
        set("head_dim", json!(base.head_dim));
    }
    set(
        "tie_word_embeddings",
        json!(base.tied && !base.decoder.scaled_embedding),
    );
    if matches!(target.decoder.window, WindowRule::All(_)) {
        set("sliding_window", window(base));
    }
    if let Some(key) = target.decoder.qkv_bias.field() {
        set(key, json!(base.qkv_bias));
    }
    if let QueryNorms::HeadIf(key) = target.decoder.query_norms {
        set(key, json!(base.qk_norm));
    }
    set("intermediate_size", json!(base.width));
    set(target.mixture.counts.width, json!(width));
    for key in target.mixture.counts.experts {
        set(key, json!(experts));
    }
    set(target.mixture.counts.per_token, json!(per_token));
    match target.mixture.shared.as_ref().map(|shared| shared.width) {
        Some(SharedWidth::Neurons(key)) => set(key, json!(shared_width)),
        Some(SharedWidth::Experts(key)) => set(key, json!(shared_width / width.max(1))),
        Some(SharedWidth::Fixed) | None => {}
    }
    if target.decoder.multipliers {
        let granite = base.decoder.multipliers;
        for key in MULTIPLIERS {
            // Other families divide attention scores by the square root of the head's width. Granite's class multiplies
            // them by this field, whose default is one.
            let plain = match (key, granite) {
                ("attention_multiplier", false) => json!((base.head_dim as f64).powf(-0.5)),
                _ => json!(1.0),
            };
            let of_base = config.value().get(key).filter(|_| granite);
            set(key, of_base.cloned().unwrap_or(plain));
        }
    }
    let dense: Vec<usize> = (0..base.layers)
        .filter(|layer| !has_experts[*layer])
        .collect();
    match target.mixture.sparse {
        Sparse::All => {}
        Sparse::MlpOnlyLayers => set("mlp_only_layers", json!(dense)),
        Sparse::FirstDense(_) => set("first_k_dense_replace", json!(dense.len())),
        Sparse::StartAndEnd => {
            let first = has_experts.iter().position(|has| *has).unwrap_or(0);
            let last = has_experts.iter().rposition(|has| *has).unwrap_or(0);
            set("moe_layer_start_index", json!(first));
            set("moe_layer_end_index", json!(last));
        }
    }
    if let Ok(Value::Object(fixed)) = serde_json::from_str(target.written.fixed) {
        for (key, value) in fixed {
            set(&key, value);
        }
    }
    for (key, listed) in target.written.listed {
        let entry = match listed {
            Listed::PerToken => per_token,
            Listed::Width => width,
            Listed::Shared => 1,
        };
        set(key, json!(vec![entry; base.layers]));
    }
    set_dtype(&mut set, dtype);
    Value::Object(out)
}

/// The config of a dense model that was extracted from a mixture. `config` is the mixture's; `dense` describes the
/// output, whose MLPs are `dense.width` wide.
pub(super) fn dense(config: &ModelConfig, dense: &Dense, dtype: Option<&str>) -> Value {
    let mut out = Map::new();
    let mut set = |key: &str, value: Value| {
        out.insert(key.to_owned(), value);
    };
    let family = dense.family;
    set("architectures", json!([family.class]));
    set("model_type", json!(family.name()));
    set_decoder(&mut set, config, dense);
    set("head_dim", json!(dense.head_dim));
    set("intermediate_size", json!(dense.width));
    set("tie_word_embeddings", json!(dense.tied));
    let decoder = dense.decoder;
    if decoder.qkv_bias != Bias::None {
        let key = decoder.qkv_bias.field().unwrap_or("attention_bias");
        set(key, json!(dense.qkv_bias));
    }
    if let Some(key) = decoder.mlp_bias.field() {
        set(key, json!(false));
    }
    match decoder.window {
        WindowRule::All(_) => set("sliding_window", window(dense)),
        WindowRule::Switched | WindowRule::Listed { .. } => set("use_sliding_window", json!(false)),
        WindowRule::None => {}
    }
    if decoder.multipliers {
        for key in MULTIPLIERS {
            let of_mixture = config.value().get(key).cloned();
            set(key, of_mixture.unwrap_or(json!(1.0)));
        }
    }
    set_dtype(&mut set, dtype);
    Value::Object(out)
}

/// Sets the fields that a dense decoder and a mixture have in common.
fn set_decoder(set: &mut impl FnMut(&str, Value), config: &ModelConfig, dense: &Dense) {
    for key in KEPT {
        if let Some(value) = config.value().get(key) {
            set(key, value.clone());
        }
    }
    set("hidden_size", json!(dense.hidden));
    set("hidden_act", json!(dense.activation));
    set("num_hidden_layers", json!(dense.layers));
    set("num_attention_heads", json!(dense.heads));
    set("num_key_value_heads", json!(dense.kv_heads));
    // Classes have different defaults, so a value that the config leaves to its class is written out.
    if config.get("rms_norm_eps").is_none() {
        set("rms_norm_eps", json!(dense.decoder.norm_eps));
    }
    set_rope(set, dense);
}

fn set_dtype(set: &mut impl FnMut(&str, Value), dtype: Option<&str>) {
    if let Some(dtype) = dtype {
        set("dtype", json!(dtype));
        set("torch_dtype", json!(dtype));
    }
}

fn window(dense: &Dense) -> Value {
    match dense.window {
        Window::All(size) => json!(size),
        Window::None | Window::Some => Value::Null,
    }
}

/// Rotary positions, in the fields that transformers 4 reads and in those that transformers 5 reads.
fn set_rope(set: &mut impl FnMut(&str, Value), base: &Dense) {
    let rope = &base.rope;
    set("rope_theta", json!(rope.theta));
    set("rope_scaling", json!(rope.scaling));
    let mut parameters = rope.scaling.clone().unwrap_or_default();
    parameters.insert("rope_type".into(), json!(rope.kind()));
    parameters.insert("rope_theta".into(), json!(rope.theta));
    set("rope_parameters", Value::Object(parameters));
}
