//! Where two configs differ in meaning: fields that change what is computed from weights of the same shapes, and
//! others.
//!
//! Old and new spellings of a field are compared by what they mean, and a field that one config leaves out by what the
//! family takes it for. Training, generation and bookkeeping are left aside, and so are sizes, which the shapes of the
//! tensors tell.

use std::collections::{BTreeMap, BTreeSet};

use serde_json::{Map, Value, json};

use super::config::TEXT_PARTS;
use super::decoder::{Decoder, HeadDim};
use super::family::Family;

/// A field that means different things in two configs.
#[derive(Debug, Clone, PartialEq)]
pub struct Difference {
    /// The field, by its path within the config.
    pub field: String,
    /// What it is in the first config and in the second; none: it is not said, and no default of it is known.
    pub values: [Option<Value>; 2],
    /// Whether the same weights mean something else by it. Else it is about positions, windows, or is not known.
    pub is_arithmetic: bool,
}

/// The fields in which two configs differ in meaning, in order of their names.
///
/// A config of a language model alone is compared with the language model's part of the other.
pub fn differences(a: &Value, b: &Value) -> Vec<Difference> {
    let mut found = Vec::new();
    let [types_a, types_b] = [model_types(a), model_types(b)];
    if let ([Some(a), ..], [Some(b), ..]) = (&types_a[..], &types_b[..])
        && !types_a.iter().any(|kind| types_b.contains(kind))
    {
        found.push(Difference {
            field: "model_type".into(),
            values: [Some((*a).into()), Some((*b).into())],
            is_arithmetic: true,
        });
    }
    let (mut text_a, mut text_b) = (of_text(a), of_text(b));
    let decoders = [&text_a, &text_b].map(|text| {
        let kind = text.get("model_type").and_then(Value::as_str);
        kind.and_then(Family::named)
            .and_then(|family| family.decoder.as_ref())
    });
    compare("", [&mut text_a, &mut text_b], decoders, &mut found);
    found
}

/// The type of the whole model and that of its language model, without the ending of the latter.
fn model_types(config: &Value) -> Vec<Option<&str>> {
    let parts = TEXT_PARTS.iter().filter_map(|part| config.get(part));
    let types = std::iter::once(config)
        .chain(parts)
        .filter_map(|part| part.get("model_type")?.as_str());
    types
        .map(|kind| Some(kind.strip_suffix("_text").unwrap_or(kind)))
        .collect()
}

/// The fields of the language model, and those at the top that it lacks.
fn of_text(config: &Value) -> Map<String, Value> {
    let mut text = Map::new();
    let mut add = |part: &Value| {
        for (name, value) in part.as_object().into_iter().flatten() {
            if !TEXT_PARTS.contains(&name.as_str()) && !value.is_null() {
                text.entry(name.clone()).or_insert_with(|| value.clone());
            }
        }
    };
    for part in TEXT_PARTS.iter().filter_map(|part| config.get(part)) {
        add(part);
    }
    add(config);
    text
}

/// Writes fields in one spelling, and adds those that the family has a default for; returns what was added.
fn complete(config: &mut Map<String, Value>, decoder: Option<&Decoder>) -> Vec<&'static str> {
    activation(config, decoder);
    rotary(config, decoder);
    let heads = number(config, "num_attention_heads").filter(|heads| *heads > 0.0);
    let of_class = |size: HeadDim| match size {
        HeadDim::Of(size) => Some(size as f64),
        HeadDim::Share | HeadDim::AlwaysShare => None,
    };
    let share = || Some((number(config, "hidden_size")? / heads?).floor());
    let defaults = [
        ("rms_norm_eps", decoder.map(|decoder| decoder.norm_eps)),
        (
            "num_key_value_heads",
            decoder
                .and_then(|decoder| decoder.kv_heads)
                .map(|heads| heads as f64)
                .or(heads),
        ),
        (
            "head_dim",
            decoder
                .and_then(|decoder| of_class(decoder.head_dim))
                .or_else(share),
        ),
    ];
    let mut added = Vec::new();
    for (name, value) in defaults {
        if let Some(value) = value.filter(|_| !config.contains_key(name)) {
            config.insert(name.into(), value.into());
            added.push(name);
        }
    }
    added
}

fn number(config: &Map<String, Value>, name: &str) -> Option<f64> {
    config.get(name)?.as_f64()
}

/// Names of one activation, by its name here.
const ACTIVATIONS: [(&str, &str); 4] = [
    ("swish", "silu"),
    ("gelu_new", "gelu_pytorch_tanh"),
    ("gelu_fast", "gelu_pytorch_tanh"),
    ("gelu_python", "gelu"),
];

/// Puts the activation under one name.
fn activation(config: &mut Map<String, Value>, decoder: Option<&Decoder>) {
    let fields: &[&str] = match decoder {
        Some(decoder) => decoder.activation_fields,
        None => &["hidden_act"],
    };
    let found = fields.iter().find_map(|field| config.get(*field)).cloned();
    let of_class = decoder.map(|decoder| decoder.activation.into());
    if decoder.is_some() {
        for field in fields {
            config.remove(*field);
        }
    }
    if let Some(mut name) = found.or(of_class) {
        if decoder.is_some_and(|decoder| decoder.gelu_is_tanh) && name == "gelu" {
            name = "gelu_pytorch_tanh".into();
        }
        config.insert("hidden_act".into(), name);
    }
    for (field, value) in config.iter_mut() {
        let alias = ACTIVATIONS.iter().find(|(name, _)| value == name);
        if let Some((_, name)) = alias.filter(|_| field.contains("act")) {
            *value = (*name).into();
        }
    }
}

/// Where the rotary positions stand once they are in one spelling: an object for each kind of layers, by its name.
const ROPE: &str = "rope_parameters";
/// The kind of layers that a spelling without kinds is about.
const ALL_LAYERS: &str = "full_attention";
/// The kind of layers with a window.
const WINDOW: &str = "sliding_attention";

/// Puts the rotary positions of a config into one spelling, with the defaults of its family.
fn rotary(config: &mut Map<String, Value>, decoder: Option<&Decoder>) {
    let mut take = |names: &[&str]| -> Option<Value> {
        let found: Vec<Value> = names
            .iter()
            .filter_map(|name| config.remove(*name))
            .collect();
        found.into_iter().next()
    };
    let (new, old) = (take(&[ROPE]), take(&["rope_scaling"]));
    let theta = take(&["rope_theta", "rotary_emb_base", "global_rope_theta"])
        .or_else(|| Some(decoder?.theta.into()));
    let local = take(&["rope_local_base_freq", "local_rope_theta"]);
    let part = take(&["partial_rotary_factor", "rotary_pct"])
        .or_else(|| Some(decoder?.partial_rotary.unwrap_or(1.0).into()));
    let is_none = [&new, &old, &theta, &local, &part]
        .iter()
        .all(|said| said.is_none());
    if is_none {
        return;
    }
    let first = config.get("original_max_position_embeddings").cloned();
    let mut kinds = Map::new();
    let mut add = |kind: &str, said: Map<String, Value>, theta: &Option<Value>| {
        let said = one_spelling(said, theta.as_ref(), part.as_ref(), first.as_ref());
        kinds.insert(kind.to_owned(), said.into());
    };
    match new.or(old) {
        Some(Value::Object(said)) if said.values().any(Value::is_object) => {
            for (kind, said) in said {
                if let Value::Object(said) = said {
                    add(&kind, said, &theta);
                }
            }
        }
        said => {
            let said = said.and_then(|said| said.as_object().cloned());
            add(ALL_LAYERS, said.unwrap_or_default(), &theta);
            if local.is_some() {
                add(WINDOW, Map::new(), &local);
            }
        }
    }
    config.insert(ROPE.into(), kinds.into());
}

/// What a spelling says of one kind of layers: numbers, and `rope_type` where it is not the default.
fn one_spelling(
    mut said: Map<String, Value>,
    theta: Option<&Value>,
    part: Option<&Value>,
    first: Option<&Value>,
) -> Map<String, Value> {
    let old = said.remove("type");
    let kind = said.remove("rope_type").or(old);
    let kind = match kind.as_ref().and_then(Value::as_str) {
        None | Some("mrope") => "default",
        Some("su") => "longrope",
        Some(kind) => kind,
    };
    if kind == "default" {
        said.retain(|name, _| {
            ["rope_theta", "partial_rotary_factor", "mrope_section"].contains(&name.as_str())
        });
    } else {
        said.insert("rope_type".into(), kind.into());
        if let Some(first) = first {
            let name = "original_max_position_embeddings";
            said.entry(name).or_insert(first.clone());
        }
    }
    if kind == "yarn" {
        said.entry("beta_fast").or_insert(32.into());
        said.entry("beta_slow").or_insert(1.into());
    }
    for (name, value) in [("rope_theta", theta), ("partial_rotary_factor", part)] {
        if let Some(value) = value {
            said.entry(name).or_insert(value.clone());
        }
    }
    said.retain(|_, value| !value.is_null());
    said
}

/// Compares two objects field by field, once they are in one spelling.
fn compare(
    within: &str,
    [a, b]: [&mut Map<String, Value>; 2],
    decoders: [Option<&Decoder>; 2],
    found: &mut Vec<Difference>,
) {
    let of_a = complete(a, decoders[0]);
    let of_b = complete(b, decoders[1]);
    for name in of_a.into_iter().filter(|name| of_b.contains(name)) {
        a.remove(name);
        b.remove(name);
    }
    let names: BTreeSet<&String> = a.keys().chain(b.keys()).collect();
    for name in names {
        let path = match within {
            "" => name.clone(),
            within => format!("{within}.{name}"),
        };
        if name == ROPE {
            if let (Some(a), Some(b)) = (a.get(name), b.get(name)) {
                compare_rotary(within, a, b, found);
            }
            continue;
        }
        let Some(effect) = effect(name) else { continue };
        match (a.get(name), b.get(name)) {
            (Some(Value::Object(a)), Some(Value::Object(b))) => {
                let parts = [&mut a.clone(), &mut b.clone()];
                compare(&path, parts, [None, None], found);
            }
            (Some(Value::Object(_)), None) | (None, Some(Value::Object(_))) => {}
            (a, b) => found.extend(difference(path, a, b, name, effect == Effect::Arithmetic)),
        }
    }
}

/// Compares rotary positions, each kind of layers by itself; kinds that only one config knows are left aside.
fn compare_rotary(within: &str, a: &Value, b: &Value, found: &mut Vec<Difference>) {
    let nothing = Map::new();
    let (Some(a), Some(b)) = (a.as_object(), b.as_object()) else {
        return;
    };
    let kinds: BTreeMap<&String, (&Value, &Value)> = a
        .iter()
        .filter_map(|(kind, a)| Some((kind, (a, b.get(kind)?))))
        .collect();
    for (kind, (a, b)) in kinds {
        let of = |value: &Value| value.as_object().unwrap_or(&nothing).clone();
        let (a, b) = (of(a), of(b));
        let names: BTreeSet<&String> = a.keys().chain(b.keys()).collect();
        // The numbers of different kinds of scaling cannot be compared.
        let one_kind = a.get("rope_type") == b.get("rope_type");
        for name in names {
            let top = ["rope_theta", "partial_rotary_factor"].contains(&name.as_str());
            if !(one_kind || top || name == "rope_type") {
                continue;
            }
            let mut path = match (kind.as_str(), top) {
                (ALL_LAYERS, true) => name.clone(),
                (ALL_LAYERS, false) => format!("rope_scaling.{name}"),
                (kind, _) => format!("{ROPE}.{kind}.{name}"),
            };
            if !within.is_empty() {
                path = format!("{within}.{path}");
            }
            // A kind of scaling is said or is none.
            let default = (name == "rope_type").then(|| json!("default"));
            let [a, b] = [&a, &b].map(|of| of.get(name).or(default.as_ref()));
            found.extend(difference(path, a, b, name, true));
        }
    }
}

/// What a difference in a field does.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Effect {
    /// The same weights mean something else.
    Arithmetic,
    /// It is about positions or windows, or nobody knows.
    Note,
}

/// How a row of the table tells a field.
#[derive(Debug, Clone, Copy)]
enum Is {
    /// By its name.
    Named(&'static str),
    /// By the end of its name.
    Ends(&'static str),
    /// By the beginning of its name.
    Begins(&'static str),
    /// By a part of its name.
    Has(&'static str),
}

impl Is {
    fn fits(self, name: &str) -> bool {
        match self {
            Is::Named(text) => name == text,
            Is::Ends(text) => name.ends_with(text),
            Is::Begins(text) => name.starts_with(text),
            Is::Has(text) => name.contains(text),
        }
    }
}

/// Fields of training, generation, sizes and bookkeeping: they change nothing that is computed from given tensors, or
/// the tensors themselves tell.
const ASIDE: &[Is] = &[
    Is::Begins("_"),
    Is::Named("architectures"),
    Is::Named("auto_map"),
    Is::Named("model_type"),
    Is::Has("version"),
    Is::Ends("dtype"),
    Is::Named("name_or_path"),
    Is::Begins("unsloth"),
    // Training.
    Is::Has("drop"),
    Is::Begins("init"),
    Is::Has("_init"),
    Is::Has("loss"),
    Is::Has("jitter"),
    Is::Has("gradient_checkpointing"),
    Is::Ends("_coef"),
    Is::Ends("_coeff"),
    Is::Named("pretraining_tp"),
    Is::Begins("mask_"),
    Is::Begins("apply_spec_augment"),
    Is::Named("rescale_prenorm_residual"),
    Is::Begins("time_step_m"),
    Is::Named("time_step_floor"),
    Is::Named("output_router_logits"),
    // Ids, whose meaning the tokenizer tells, and labels, which are compared by name.
    Is::Ends("_token_id"),
    Is::Ends("_token_ids"),
    Is::Ends("_token_index"),
    Is::Named("id2label"),
    Is::Named("label2id"),
    Is::Named("num_labels"),
    Is::Named("problem_type"),
    Is::Named("finetuning_task"),
    Is::Named("task_specific_params"),
    // Generation and output.
    Is::Begins("use_cache"),
    Is::Named("output_attentions"),
    Is::Named("output_hidden_states"),
    Is::Named("output_scores"),
    Is::Begins("return_"),
    Is::Named("cache_implementation"),
    Is::Named("do_sample"),
    Is::Named("temperature"),
    Is::Named("top_k"),
    Is::Named("top_p"),
    Is::Named("typical_p"),
    Is::Ends("_penalty"),
    Is::Has("num_beam"),
    Is::Has("beam_search"),
    Is::Ends("_ngram_size"),
    Is::Named("max_length"),
    Is::Named("min_length"),
    Is::Named("max_new_tokens"),
    Is::Named("early_stopping"),
    Is::Named("num_return_sequences"),
    Is::Named("remove_invalid_values"),
    Is::Ends("suppress_tokens"),
    Is::Named("bad_words_ids"),
    Is::Named("forced_decoder_ids"),
    Is::Named("prefix"),
    // How it is run.
    Is::Named("attn_implementation"),
    Is::Named("torchscript"),
    Is::Named("use_bfloat16"),
    Is::Named("is_encoder_decoder"),
    Is::Named("pruned_heads"),
    Is::Named("chunk_size"),
    Is::Named("chunk_size_feed_forward"),
    Is::Named("tokenizer_class"),
    Is::Has("kernel_backend"),
    Is::Has("flash_attn"),
    Is::Has("fused"),
    Is::Has("memory_efficient"),
    Is::Named("ep_size"),
    Is::Named("quantization_config"),
    Is::Named("num_logits_to_keep"),
    Is::Named("reorder_and_upcast_attn"),
    // What the tensors tell.
    Is::Begins("tie_"),
    Is::Ends("vocab_size"),
    Is::Begins("vocab_size"),
    Is::Ends("hidden_size"),
    Is::Ends("intermediate_size"),
    Is::Ends("_bias"),
    Is::Begins("bias"),
    Is::Ends("hidden_layers"),
    Is::Ends("num_layers"),
    Is::Named("n_layer"),
    Is::Named("n_layers"),
    Is::Named("encoder_layers"),
    Is::Named("decoder_layers"),
    Is::Named("depth"),
    Is::Ends("num_local_experts"),
    Is::Named("num_experts"),
    Is::Named("n_routed_experts"),
    Is::Named("num_nextn_predict_layers"),
    Is::Named("mlp_only_layers"),
    Is::Named("decoder_sparse_step"),
    Is::Named("first_k_dense_replace"),
    Is::Named("d_model"),
    Is::Named("d_ff"),
    Is::Named("n_embd"),
    Is::Named("n_inner"),
];

/// Fields that change what is computed from tensors of the same shapes.
const ARITHMETIC: &[Is] = &[
    // Heads.
    Is::Ends("attention_heads"),
    Is::Ends("num_heads"),
    Is::Ends("key_value_heads"),
    Is::Ends("kv_heads"),
    Is::Ends("head_dim"),
    Is::Named("n_head"),
    Is::Named("n_heads"),
    Is::Named("d_kv"),
    Is::Named("kv_channels"),
    Is::Named("multi_query"),
    Is::Named("new_decoder_architecture"),
    // Activations and norms.
    Is::Ends("_act"),
    Is::Ends("activation"),
    Is::Ends("act_fn"),
    Is::Named("activation_function"),
    Is::Named("feed_forward_proj"),
    Is::Has("activation_func"),
    Is::Has("activation_sparsity"),
    Is::Named("swiglu_limit"),
    Is::Ends("_eps"),
    Is::Ends("epsilon"),
    Is::Has("norm_type"),
    Is::Has("norm_before"),
    Is::Named("normalize_before"),
    Is::Named("pre_norm"),
    Is::Named("apply_residual_connection_post_layernorm"),
    Is::Named("zero_centered_gamma"),
    // Scales.
    Is::Ends("multiplier"),
    Is::Ends("multipliers"),
    Is::Ends("softcapping"),
    Is::Ends("softcap"),
    Is::Named("query_pre_attn_scalar"),
    Is::Named("logits_scaling"),
    Is::Named("logit_scale"),
    Is::Ends("scaling_factor"),
    Is::Begins("scale_"),
    Is::Ends("_scale"),
    Is::Named("dim_model_base"),
    Is::Begins("mup_"),
    Is::Begins("altup_"),
    Is::Begins("attn_temperature"),
    // Positions as they enter attention.
    Is::Named("rotary_dim"),
    Is::Begins("rope_"),
    Is::Begins("no_rope"),
    Is::Begins("rotary_emb"),
    Is::Named("alibi"),
    Is::Named("position_embedding_type"),
    Is::Named("relative_attention_max_distance"),
    Is::Named("pos_att_type"),
    Is::Named("is_causal"),
    Is::Named("is_decoder"),
    Is::Has("bidirectional"),
    Is::Named("parallel_attn"),
    Is::Named("use_parallel_residual"),
    Is::Ends("qk_norm"),
    Is::Ends("kv_shared_layers"),
    // Routing.
    Is::Has("experts_per_tok"),
    Is::Named("moe_topk"),
    Is::Named("moe_k"),
    Is::Begins("top_k_"),
    Is::Has("topk_"),
    Is::Ends("_topk"),
    Is::Named("n_group"),
    Is::Named("n_groups"),
    Is::Named("num_expert_group"),
    Is::Named("scoring_func"),
    Is::Begins("route_"),
    Is::Begins("score_func"),
    // State-space models.
    Is::Named("time_step_limit"),
    Is::Begins("mamba_d_"),
    Is::Begins("mamba_n_"),
    // Images, sound, and what is made of the last states.
    Is::Named("vision_feature_layer"),
    Is::Named("vision_feature_select_strategy"),
    Is::Ends("merge_size"),
    Is::Named("downsample_ratio"),
    Is::Named("scale_factor"),
    Is::Has("pooling"),
    Is::Named("summary_type"),
];

/// What a difference in a field does; none if it does nothing.
fn effect(name: &str) -> Option<Effect> {
    let is_of = |rows: &[Is]| rows.iter().any(|row| row.fits(name));
    match (is_of(ASIDE), is_of(ARITHMETIC)) {
        (true, _) => None,
        (false, true) => Some(Effect::Arithmetic),
        (false, false) => Some(Effect::Note),
    }
}

/// A field in which two configs differ.
fn difference(
    field: String,
    a: Option<&Value>,
    b: Option<&Value>,
    name: &str,
    is_arithmetic: bool,
) -> Option<Difference> {
    let same = match (a, b) {
        (Some(a), Some(b)) => is_same(a, b),
        (Some(one), None) | (None, Some(one)) => is_neutral(name, one),
        (None, None) => true,
    };
    (!same).then(|| Difference {
        field,
        // What one leaves out may be what the other says.
        is_arithmetic: is_arithmetic && a.is_some() && b.is_some(),
        values: [a.cloned(), b.cloned()],
    })
}

/// Whether two values are the same: numbers by their size.
fn is_same(a: &Value, b: &Value) -> bool {
    match (a, b) {
        (Value::Number(a), Value::Number(b)) => a.as_f64() == b.as_f64(),
        (Value::Array(a), Value::Array(b)) => {
            a.len() == b.len() && a.iter().zip(b).all(|(a, b)| is_same(a, b))
        }
        (a, b) => a == b,
    }
}

/// Whether a value is what the absence of its field means: nothing, no, or a factor of one.
fn is_neutral(name: &str, value: &Value) -> bool {
    let factor = name.contains("multiplier") || name.contains("scal") || name.contains("factor");
    match value {
        Value::Null | Value::Bool(false) => true,
        Value::Number(number) => factor && number.as_f64() == Some(1.0),
        Value::String(text) => text.is_empty(),
        Value::Array(list) => list.is_empty(),
        Value::Object(fields) => fields.is_empty(),
        Value::Bool(true) => false,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// The fields that change the arithmetic, and the others.
    fn fields(a: Value, b: Value) -> (Vec<String>, Vec<String>) {
        let found = differences(&a, &b);
        let back = differences(&b, &a);
        assert_eq!(found.len(), back.len(), "{found:?} {back:?}");
        let of = |arithmetic: bool| {
            let found = found
                .iter()
                .filter(|found| found.is_arithmetic == arithmetic);
            found.map(|found| found.field.clone()).collect()
        };
        (of(true), of(false))
    }

    fn llama(more: Value) -> Value {
        let mut config =
            json!({"model_type": "llama", "hidden_size": 64, "num_attention_heads": 4});
        for (name, value) in more.as_object().unwrap() {
            config[name] = value.clone();
        }
        config
    }

    #[track_caller]
    fn differ(a: Value, b: Value, arithmetic: &[&str], others: &[&str]) {
        let (found, noted) = fields(llama(a), llama(b));
        assert_eq!(found, arithmetic);
        assert_eq!(noted, others);
    }

    #[track_caller]
    fn same(a: Value, b: Value) {
        differ(a, b, &[], &[]);
    }

    #[test]
    fn fields_that_change_what_is_computed_are_told_from_others() {
        for (name, a, b) in [
            ("num_attention_heads", json!(4), json!(8)),
            ("num_key_value_heads", json!(4), json!(2)),
            ("hidden_act", json!("silu"), json!("gelu")),
            ("rms_norm_eps", json!(1e-5), json!(1e-6)),
            ("rope_theta", json!(10_000), json!(1e6)),
            ("attention_multiplier", json!(0.1), json!(0.2)),
            ("final_logit_softcapping", json!(30), json!(50)),
            ("num_experts_per_tok", json!(2), json!(4)),
            ("norm_topk_prob", json!(true), json!(false)),
            ("routed_scaling_factor", json!(1.0), json!(2.5)),
            ("layer_norm_epsilon", json!(1e-5), json!(1e-12)),
        ] {
            differ(json!({name: a}), json!({name: b}), &[name], &[]);
        }
        for (name, a, b) in [
            ("max_position_embeddings", json!(2048), json!(4096)),
            ("sliding_window", json!(null), json!(4096)),
            ("something_new", json!(1), json!(2)),
        ] {
            differ(json!({name: a}), json!({name: b}), &[], &[name]);
        }
        let honest = json!({"use_cache": true, "transformers_version": "4.40", "attention_dropout": 0.1,
            "torch_dtype": "bfloat16", "_name_or_path": "x", "architectures": ["A"], "eos_token_id": [1, 2],
            "initializer_range": 0.02, "router_aux_loss_coef": 0.1, "vocab_size": 7, "pad_token_id": 3});
        same(
            honest,
            json!({"use_cache": false, "dtype": "float32", "attention_bias": false}),
        );
    }

    #[test]
    fn spellings_and_defaults_mean_the_same() {
        same(
            json!({}),
            json!({"rope_theta": 10_000.0, "rms_norm_eps": 1e-6, "hidden_act": "silu"}),
        );
        same(
            json!({}),
            json!({"num_key_value_heads": 4, "head_dim": 16, "hidden_act": "swish"}),
        );
        differ(json!({}), json!({"rope_theta": 5e5}), &["rope_theta"], &[]);
        differ(json!({}), json!({"head_dim": 32}), &["head_dim"], &[]);
        let old = json!({"rope_theta": 5e5, "rope_scaling": {"type": "yarn", "factor": 4.0}});
        let new = json!({"rope_parameters": {"rope_theta": 500_000, "rope_type": "yarn", "factor": 4, "beta_fast": 32}});
        same(old.clone(), new);
        differ(
            old.clone(),
            json!({"rope_theta": 5e5}),
            &["rope_scaling.rope_type"],
            &[],
        );
        let other =
            json!({"rope_theta": 5e5, "rope_scaling": {"rope_type": "yarn", "factor": 8.0}});
        differ(old, other, &["rope_scaling.factor"], &[]);
        let gemma = json!({"rope_theta": 1e6, "rope_local_base_freq": 1e4});
        let nested = json!({"rope_parameters": {"full_attention": {"rope_type": "default", "rope_theta": 1e6},
            "sliding_attention": {"rope_type": "default", "rope_theta": 1e4}}});
        same(gemma.clone(), nested);
        let other = json!({"rope_theta": 1e6, "rope_local_base_freq": 2e4});
        differ(
            gemma,
            other,
            &["rope_parameters.sliding_attention.rope_theta"],
            &[],
        );
        let (found, _) = fields(
            json!({"model_type": "gemma", "hidden_act": "gelu"}),
            json!({"model_type": "gemma", "hidden_activation": "gelu_pytorch_tanh", "head_dim": 256}),
        );
        assert_eq!(found, [""; 0]);
    }

    #[test]
    fn families_and_parts_are_compared_with_their_like() {
        let (found, _) = fields(llama(json!({})), llama(json!({"model_type": "mistral"})));
        assert_eq!(found, ["model_type"]);
        let whole = |text: Value, act: &str| json!({"model_type": "gemma3", "text_config": text, "vision_config": {"hidden_act": act}});
        let text = || json!({"model_type": "gemma3_text", "rms_norm_eps": 1e-6});
        assert_eq!(fields(whole(text(), "a"), text()), (vec![], vec![]));
        let (found, _) = fields(whole(text(), "a"), whole(text(), "b"));
        assert_eq!(found, ["vision_config.hidden_act"]);
        assert_eq!(fields(json!({}), json!([])), (vec![], vec![]));
    }
}
