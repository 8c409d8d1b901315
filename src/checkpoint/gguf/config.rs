//! The config of a model from the metadata of its file, by the tables that files are written by.
//!
//! It says what llama.cpp computes from the file. Where the metadata leaves open what a model means, that is refused, and
//! a config.json beside the file answers it.

use architecture::llama_cpp::{
    DIALECTS, Dialect, HeadSize, LLAMA3, MULTIPLIERS, Rope, SIZES, YARN, llama3_divisors,
};
use architecture::{
    Bias, Decoder, Family, HeadDim, Mixture, QueryNorms, RoutingRule, SharedWidth, Sparse,
};
use errors::Refusal;
use serde_json::{Map, Value as Json, json};

use super::container::Value;
use super::keys::{Keys, TAKE_CONFIG, all_but_each, shortest};

/// What llama.cpp takes for the base of rotary positions where no key says it.
const USUAL_BASE: f64 = 10_000.0;

/// How far divisors of frequencies may be off the formula: other writers compute it in other orders.
const DIVISORS_AGREE: f32 = 1e-5;

/// A family, as llama.cpp names it and as the class does.
#[derive(Debug, Clone, Copy)]
pub(super) struct Known {
    pub(super) dialect: &'static Dialect,
    pub(super) family: &'static Family,
    pub(super) decoder: &'static Decoder,
}

/// What of the tensors says something of the config.
pub(super) trait Tensors {
    /// Whether there is one of that name.
    fn has(&self, name: &str) -> bool;
    /// The values of one that is F32 and has one dimension.
    fn floats(&self, name: &str) -> Option<Vec<f32>>;
    /// The rows of a matrix.
    fn rows(&self, name: &str) -> Option<usize>;
    /// Whether two hold the same bytes.
    fn same(&self, one: &str, other: &str) -> bool;
}

impl Known {
    /// The family of a `model_type`.
    pub(super) fn named(model_type: &str) -> Option<Known> {
        let family = Family::named(model_type)?;
        Some(Known {
            dialect: Dialect::of_family(family.name())?,
            family,
            decoder: family.decoder.as_ref()?,
        })
    }

    /// The family of a file. Of several with one name in llama.cpp, it is the one that has experts as the file has; of
    /// these, the first, which computes the same.
    pub(super) fn of_file(keys: &Keys<'_>) -> Result<Known, Refusal> {
        let name = keys.architecture;
        let experts = keys.size("expert_count")?.unwrap_or(0) > 0;
        let shared = keys.size("expert_shared_feed_forward_length")?.unwrap_or(0) > 0;
        let named = DIALECTS.iter().filter(|dialect| dialect.name == name);
        let known: Vec<Known> = named
            .filter_map(|dialect| Known::named(dialect.family))
            .collect();
        let of_kind = |known: &&Known| {
            let mixture = known.family.mixture();
            mixture.is_some() == experts
                && (known.family.name() != "granitemoeshared" || shared)
                && (known.family.name() != "granitemoe" || !shared)
        };
        let found = known.iter().find(of_kind).copied();
        found.ok_or_else(|| {
            let mut names: Vec<&str> = DIALECTS.iter().map(|dialect| dialect.name).collect();
            names.dedup();
            let what = match (known.is_empty(), experts) {
                (true, _) => "is not read".to_owned(),
                (false, true) => "with experts is not read".to_owned(),
                (false, false) => "without experts is not read".to_owned(),
            };
            Refusal::new(format!("the architecture `{name}` {what}")).with_hint(format!(
                "take the safetensors it was made from; read are {}",
                names.join(", ")
            ))
        })
    }
}

/// The layers of the decoder, and with those that predict further tokens.
pub(super) fn layers(keys: &Keys<'_>) -> Result<[usize; 2], Refusal> {
    let all = keys.required("block_count")?;
    let further = keys.size("nextn_predict_layers")?.unwrap_or(0);
    match all.checked_sub(further) {
        Some(layers) if layers > 0 => Ok([layers, all]),
        _ => Err(Refusal::new(format!(
            "the metadata counts {all} layers, of which {further} predict further tokens"
        ))
        .with_hint("the file is damaged: copy or download it again")),
    }
}

/// The config of a model.
pub(super) fn config(
    keys: &Keys<'_>,
    known: Known,
    tensors: &impl Tensors,
    dtype: &str,
) -> Result<Json, Refusal> {
    let Known {
        dialect,
        family,
        decoder,
    } = known;
    let mut config = Config(Map::new());
    config.set("architectures", json!([family.class]));
    config.set("model_type", json!(family.name()));
    for (field, key) in SIZES {
        config.set(field, json!(keys.required(key)?));
    }
    let [hidden, queries] =
        ["embedding_length", "attention.head_count"].map(|key| keys.required(key));
    let (hidden, queries) = (hidden?, queries?);
    let [layers, _] = layers(keys)?;
    config.set("num_hidden_layers", json!(layers));
    let heads = keys.size("attention.head_count_kv")?.unwrap_or(queries);
    config.set("num_key_value_heads", json!(heads));
    let epsilon = keys.number("attention.layer_norm_rms_epsilon")?;
    config.set("rms_norm_eps", json!(epsilon.unwrap_or(decoder.norm_eps)));
    let head = head(keys, dialect, hidden / queries)?;
    if dialect.head_size != HeadSize::Never
        && (head != hidden / queries || decoder.head_dim != HeadDim::Share)
    {
        config.set("head_dim", json!(head));
    }
    let vocabulary = tensors.rows("token_embd.weight").ok_or_else(|| {
        Refusal::new("there is no matrix `token_embd.weight`")
            .with_hint("take a file of the whole model")
    })?;
    config.set("vocab_size", json!(vocabulary));
    if let Some(field) = decoder.activation_fields.first() {
        config.set(field, json!(decoder.activation));
    }
    biases(&mut config, decoder, tensors);
    if decoder.multipliers {
        for (field, key) in MULTIPLIERS {
            config.set(field, json!(keys.number(key)?.unwrap_or(1.0)));
        }
    }
    for copied in dialect.copied {
        let value = match copied.is_number {
            true => keys.number(copied.key)?.map(|number| json!(number)),
            false => keys
                .size(copied.key)?
                .filter(|&size| size > 0)
                .map(|size| json!(size)),
        };
        // What the class takes for a field that is absent is not what a file without the key means.
        config.set(copied.field, value.unwrap_or(Json::Null));
    }
    windows(&mut config, keys, dialect, layers)?;
    attention_scale(&mut config, known, layers, head, hidden / queries);
    rope(&mut config, keys, known, head, tensors)?;
    if let Some(mixture) = &decoder.mixture {
        experts(&mut config, keys, (dialect, mixture), layers, tensors)?;
    }
    let tied = !tensors.has("output.weight")
        || dialect.head == architecture::llama_cpp::Head::Needed
            && tensors.same("output.weight", "token_embd.weight");
    config.set("tie_word_embeddings", json!(tied));
    for (field, key) in [
        ("bos_token_id", "tokenizer.ggml.bos_token_id"),
        ("eos_token_id", "tokenizer.ggml.eos_token_id"),
        ("pad_token_id", "tokenizer.ggml.padding_token_id"),
    ] {
        if let Some(Value::Whole(id)) = keys.whole(key)
            && let Ok(id) = u32::try_from(*id)
        {
            config.set(field, json!(id));
        }
    }
    config.set("torch_dtype", json!(dtype));
    Ok(Json::Object(config.0))
}

struct Config(Map<String, Json>);

impl Config {
    fn set(&mut self, field: &str, value: Json) {
        self.0.insert(field.to_owned(), value);
    }
}

/// The features of a head.
fn head(keys: &Keys<'_>, dialect: &Dialect, share: usize) -> Result<usize, Refusal> {
    let [key, value] = ["attention.key_length", "attention.value_length"].map(|key| keys.size(key));
    let (key, value) = (key?.unwrap_or(share), value?.unwrap_or(share));
    if key != value || dialect.head_size == HeadSize::Never && key != share {
        return Err(Refusal::new(format!(
            "the metadata gives heads {key} features of keys and {value} of values, where the class has {share}"
        ))
        .with_hint(TAKE_CONFIG));
    }
    Ok(key)
}

/// The fields that promise biases and norms of queries, by whether the first layer has them.
fn biases(config: &mut Config, decoder: &Decoder, tensors: &impl Tensors) {
    for (bias, modules) in [
        (decoder.qkv_bias, ["attn_q", "attn_qkv"]),
        (decoder.o_bias, ["attn_output", "attn_output"]),
        (decoder.mlp_bias, ["ffn_up", "ffn_down"]),
    ] {
        if let Bias::Flag(field, _) = bias {
            let has = modules
                .iter()
                .any(|module| tensors.has(&format!("blk.0.{module}.bias")));
            let said = config.0.get(field).and_then(Json::as_bool).unwrap_or(false);
            config.set(field, json!(said || has));
        }
    }
    if let QueryNorms::HeadIf(field) = decoder.query_norms {
        config.set(field, json!(tensors.has("blk.0.attn_q_norm.weight")));
    }
}

/// Which layers look through a window.
fn windows(
    config: &mut Config,
    keys: &Keys<'_>,
    dialect: &Dialect,
    layers: usize,
) -> Result<(), Refusal> {
    let Some(period) = dialect.window_period else {
        return Ok(());
    };
    let said = keys.each_layer("attention.sliding_window_pattern", layers)?;
    let windows = said.unwrap_or_else(|| all_but_each(period, layers));
    let kinds = windows.iter().map(|window| match window {
        true => "sliding_attention",
        false => "full_attention",
    });
    config.set("layer_types", kinds.collect());
    Ok(())
}

/// By what llama.cpp scales the attention of Gemma 2 and 3, which it tells by the number of layers.
fn attention_scale(config: &mut Config, known: Known, layers: usize, head: usize, share: usize) {
    let largest = match known.dialect.name {
        "gemma2" => 46,
        "gemma3" => 62,
        _ => return,
    };
    let scaled = match layers == largest {
        true => share,
        false => head,
    };
    config.set("query_pre_attn_scalar", json!(scaled));
}

fn rope(
    config: &mut Config,
    keys: &Keys<'_>,
    known: Known,
    head: usize,
    tensors: &impl Tensors,
) -> Result<(), Refusal> {
    let Known {
        dialect, decoder, ..
    } = known;
    let theta = keys.number("rope.freq_base")?.unwrap_or(USUAL_BASE);
    config.set("rope_theta", json!(theta));
    if dialect.rope == Rope::PerKind {
        let window = keys.number("rope.freq_base_swa")?.unwrap_or(USUAL_BASE);
        config.set("rope_local_base_freq", json!(window));
    }
    let rotated = keys.size("rope.dimension_count")?.unwrap_or(head);
    match decoder.partial_rotary {
        Some(_) if head > 0 => {
            config.set("partial_rotary_factor", json!(rotated as f64 / head as f64));
        }
        _ if rotated == head => {}
        _ => {
            return Err(Refusal::new(format!(
                "the metadata turns {rotated} of {head} features of a head, and the class turns all"
            ))
            .with_hint(TAKE_CONFIG));
        }
    }
    if dialect.rope == Rope::Long {
        return long_factors(config, keys, tensors);
    }
    if let Some(divisors) = tensors.floats("rope_freqs.weight") {
        let scaling = llama3(theta, &divisors, rotated)?;
        config.set("rope_scaling", scaling);
        return Ok(());
    }
    let kind = keys.text("rope.scaling.type")?;
    let factor = match keys.number("rope.scaling.factor")? {
        None => keys.number("rope.scale_linear")?,
        factor => factor,
    };
    match (kind, factor) {
        (None, None | Some(1.0)) | (Some("none"), _) => {}
        (None | Some("linear"), Some(factor)) => {
            config.set(
                "rope_scaling",
                json!({"rope_type": "linear", "factor": factor}),
            );
        }
        (Some("yarn"), Some(factor)) => {
            let original = keys.required("rope.scaling.original_context_length")?;
            let mut scaling = json!({
                "rope_type": "yarn", "factor": factor, "original_max_position_embeddings": original,
            });
            for (field, key) in YARN {
                if let Some(number) = keys.number(&format!("rope.scaling.{key}"))? {
                    scaling[field] = json!(number);
                }
            }
            config.set("rope_scaling", scaling);
        }
        (kind, _) => {
            let kind = kind.unwrap_or("none");
            return Err(Refusal::new(format!(
                "the metadata scales rotary positions by `{kind}`, which is not read"
            ))
            .with_hint(TAKE_CONFIG));
        }
    }
    Ok(())
}

/// The scaling that gives Llama 3's divisors, if it is the one that Llama 3 has.
fn llama3(theta: f64, divisors: &[f32], rotated: usize) -> Result<Json, Refusal> {
    let largest = divisors.iter().copied().fold(1.0f32, f32::max);
    let scaling = architecture::llama_cpp::Llama3 {
        factor: f64::from(largest),
        ..LLAMA3
    };
    let made = llama3_divisors(&scaling, theta, rotated);
    let alike = |(one, other): (&f32, &f32)| (one - other).abs() <= DIVISORS_AGREE * other.abs();
    if made.len() != divisors.len() || !made.iter().zip(divisors).all(alike) {
        return Err(Refusal::new(
            "the divisors in `rope_freqs.weight` are not those of Llama 3 by any factor",
        )
        .with_hint(TAKE_CONFIG));
    }
    Ok(json!({
        "rope_type": "llama3",
        "factor": shortest(largest),
        "low_freq_factor": scaling.low,
        "high_freq_factor": scaling.high,
        "original_max_position_embeddings": scaling.original,
    }))
}

/// Phi-3's divisors for short and long texts.
fn long_factors(
    config: &mut Config,
    keys: &Keys<'_>,
    tensors: &impl Tensors,
) -> Result<(), Refusal> {
    if let Some(original) = keys.size("rope.scaling.original_context_length")? {
        config.set("original_max_position_embeddings", json!(original));
    }
    let divisors = |name: &str| -> Option<Json> {
        let values = tensors.floats(name)?.into_iter().map(shortest);
        Some(values.collect())
    };
    let (long, short) = (
        divisors("rope_factors_long.weight"),
        divisors("rope_factors_short.weight"),
    );
    match (long, short) {
        (Some(long), Some(short)) => {
            config.set(
                "rope_scaling",
                json!({"type": "longrope", "short_factor": short, "long_factor": long}),
            );
            Ok(())
        }
        (None, None) => Ok(()),
        _ => Err(Refusal::new(
            "of `rope_factors_long.weight` and `rope_factors_short.weight` one is missing",
        )
        .with_hint("the file is damaged: copy or download it again")),
    }
}

fn experts(
    config: &mut Config,
    keys: &Keys<'_>,
    (dialect, mixture): (&Dialect, &Mixture),
    layers: usize,
    tensors: &impl Tensors,
) -> Result<(), Refusal> {
    let counts = &mixture.counts;
    if let Some(field) = counts.experts.first() {
        config.set(field, json!(keys.required("expert_count")?));
    }
    config.set(counts.per_token, json!(keys.required("expert_used_count")?));
    if counts.width != "intermediate_size" {
        config.set(
            counts.width,
            json!(keys.required("expert_feed_forward_length")?),
        );
    }
    let leading = keys.size("leading_dense_block_count")?.unwrap_or(0);
    match mixture.sparse {
        Sparse::All => {}
        Sparse::MlpOnlyLayers => {
            config.set("decoder_sparse_step", json!(1));
            config.set("mlp_only_layers", json!([]));
        }
        Sparse::FirstDense(_) => config.set("first_k_dense_replace", json!(leading)),
        Sparse::StartAndEnd => {
            let step = keys.size("interleave_moe_layer_step")?.unwrap_or(1);
            config.set("moe_layer_start_index", json!(leading));
            config.set("moe_layer_end_index", json!(layers.saturating_sub(1)));
            config.set("moe_layer_interval", json!(step));
        }
    }
    match mixture.routing {
        RoutingRule::Softmax | RoutingRule::TopSoftmax => {}
        RoutingRule::SoftmaxNorm(_) => {
            if let Some(normed) = dialect.sums_to_one {
                config.set("norm_topk_prob", json!(normed));
            }
        }
        RoutingRule::Sigmoid(normed) => {
            let said = keys.flag("expert_weights_norm")?;
            config.set("norm_topk_prob", json!(said.unwrap_or(normed)));
            let scale = keys.number("expert_weights_scale")?.unwrap_or(1.0);
            config.set("routed_scaling_factor", json!(scale));
            for (field, key) in [
                ("n_group", "expert_group_count"),
                ("topk_group", "expert_group_used_count"),
            ] {
                config.set(field, json!(keys.size(key)?.unwrap_or(1)));
            }
        }
    }
    if let Some((field, text)) = mixture.correction.and_then(|correction| correction.only_if) {
        let last = layers.saturating_sub(1);
        if tensors.has(&format!("blk.{last}.exp_probs_b.bias")) {
            config.set(field, json!(text));
        }
    }
    let shared = mixture.shared.as_ref().map(|shared| shared.width);
    match shared {
        Some(SharedWidth::Neurons(field)) => {
            let width = keys.size("expert_shared_feed_forward_length")?.unwrap_or(0);
            config.set(field, json!(width));
        }
        Some(SharedWidth::Experts(field)) => {
            config.set(field, json!(keys.size("expert_shared_count")?.unwrap_or(0)));
        }
        Some(SharedWidth::Fixed) | None => {}
    }
    Ok(())
}
