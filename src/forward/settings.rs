//! Reads a config into the settings of the one block that serves all families; refuses by name what it cannot do.
//!
//! Defaults and rules follow transformers' configurations and modelling code, 4.57 and 5.23.

use architecture::{
    Absent, Bias, Decoder, Family, FieldError, Fields, HeadDim, NormPlacement, QueryNorms,
    RoutingRule, Shared as SharedRule, SharedLayout, SharedWidth, SparseLayers, WindowRule,
};
use serde_json::Value;

use super::activation::Activation;
use super::error::ForwardError;
use super::rope::RopeSettings;

/// Fields of other families that change the computation: a config that has one belongs to no supported family.
const OF_OTHERS: [&str; 9] = [
    "attn_logit_softcapping",
    "final_logit_softcapping",
    "query_pre_attn_scalar",
    "clip_qkv",
    "attention_chunk_size",
    "use_bidirectional_attention",
    "use_parallel_residual",
    "no_rope_layers",
    "logit_scale",
];

/// Which features of queries and keys are normed together.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum QueryNorm {
    None,
    Head,
    All,
}

/// How many keys, up to and including its own, a token sees in each layer.
#[derive(Debug, Clone)]
pub(super) enum Windows {
    None,
    All(usize),
    /// From that layer on.
    From(usize, usize),
    /// In the layers marked here.
    Listed(Vec<bool>, usize),
}

impl Windows {
    pub(super) fn of_layer(&self, layer: usize) -> Option<usize> {
        match self {
            Windows::None => None,
            Windows::All(window) => Some(*window),
            Windows::From(first, window) => (layer >= *first).then_some(*window),
            Windows::Listed(layers, window) => {
                layers.get(layer).is_some_and(|&has| has).then_some(*window)
            }
        }
    }
}

/// How experts are chosen and weighted.
#[derive(Debug, Clone, Copy, PartialEq)]
pub(super) enum Routing {
    /// Softmax over all experts; the largest are chosen, and normalised to sum to one if asked for.
    Softmax { renormalise: bool },
    /// Softmax over the largest logits only.
    TopSoftmax,
    /// Sigmoid of each logit; a bias affects the choice but not the weights, and groups of experts are chosen first.
    Sigmoid {
        groups: usize,
        chosen_groups: usize,
        renormalise: bool,
        factor: f64,
    },
}

/// An expert that every token uses.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Shared {
    pub(super) layout: SharedLayout,
    /// A row whose sigmoid weighs it.
    pub(super) gate: Option<&'static str>,
    /// Its inner features.
    pub(super) width: usize,
}

/// The experts of a config.
#[derive(Debug, Clone)]
pub(super) struct Mixture {
    pub(super) experts: usize,
    pub(super) per_token: usize,
    /// Inner features of an expert.
    pub(super) width: usize,
    /// How its tensors are named.
    pub(super) table: &'static architecture::Mixture,
    pub(super) routing: Routing,
    pub(super) shared: Option<Shared>,
    /// Which layers have experts.
    pub(super) layers: SparseLayers,
}

/// The settings from a config.
#[derive(Debug, Clone)]
pub(super) struct Settings {
    pub(super) hidden: usize,
    pub(super) layers: usize,
    pub(super) heads: usize,
    pub(super) key_heads: usize,
    pub(super) head_dim: usize,
    pub(super) vocabulary: usize,
    /// Inner features of an MLP that is not an expert; zero if there is none.
    pub(super) inner: usize,
    pub(super) eps: f64,
    /// Added to the weight of each norm.
    pub(super) norm_offset: f32,
    pub(super) activation: Activation,
    pub(super) rope: RopeSettings,
    pub(super) windows: Windows,
    /// What the norms before or after attention and MLP are called.
    pub(super) norm_names: [&'static str; 2],
    /// Whether they stand after each of them, before the residual is added.
    pub(super) norms_after: bool,
    pub(super) query_norm: QueryNorm,
    /// Whether queries, keys and values have biases.
    pub(super) qkv_bias: bool,
    /// Whether the output projection of the attention has a bias.
    pub(super) output_bias: bool,
    pub(super) mlp_bias: bool,
    /// Whether queries, keys and values are stored in one tensor, and gate and up in another.
    pub(super) fused: bool,
    pub(super) mixture: Option<Mixture>,
    pub(super) tied: bool,
    /// The factor of the products of queries and keys.
    pub(super) attention_scale: f64,
    pub(super) embedding_scale: f32,
    pub(super) residual_scale: f32,
    /// The divisor of logits.
    pub(super) logits_divisor: f64,
}

impl Settings {
    /// Reads a config; no size in it is trusted until a tensor confirms it.
    pub(super) fn read(config: &Fields) -> Result<Settings, ForwardError> {
        let family = family(config)?;
        Ok(Settings::for_decoder(config, family.decoder, family.tied)?)
    }

    fn for_decoder(
        config: &Fields,
        decoder: &'static Decoder,
        tied: bool,
    ) -> Result<Settings, FieldError> {
        refuse_others(config)?;
        let hidden = config.required("hidden_size")?;
        let heads = config.required("num_attention_heads")?;
        let key_heads = key_heads(config, decoder, heads)?;
        let head_dim = head_dim(config, decoder, hidden, heads)?;
        let multiplier = |name| -> Result<f64, FieldError> {
            match decoder.multipliers {
                true => Ok(config.positive(name)?.unwrap_or(1.0)),
                false => Ok(1.0),
            }
        };
        let &[attention_norm, mlp_norm] = decoder.layer_norms() else {
            return Err(config.wrong("model_type", "a family with two norms in a layer"));
        };
        Ok(Settings {
            hidden,
            layers: config.required("num_hidden_layers")?,
            heads,
            key_heads,
            head_dim,
            vocabulary: config.required("vocab_size")?,
            inner: match decoder.has_dense_mlp() {
                true => config.size_or_zero("intermediate_size")?.unwrap_or(0),
                false => 0,
            },
            eps: match config.number("rms_norm_eps")? {
                Some(eps) if eps >= 0.0 => eps,
                _ => return Err(config.wrong("rms_norm_eps", "a number that is not negative")),
            },
            norm_offset: decoder.norm_offset as f32,
            activation: activation(config, decoder)?,
            rope: RopeSettings::read(config, decoder)?,
            windows: windows(config, decoder.window)?,
            norm_names: [attention_norm, mlp_norm],
            norms_after: decoder.norms == NormPlacement::After,
            query_norm: match decoder.query_norms {
                QueryNorms::None => QueryNorm::None,
                QueryNorms::Head => QueryNorm::Head,
                QueryNorms::HeadIf(field) => match config.flag(field, false)? {
                    true => QueryNorm::Head,
                    false => QueryNorm::None,
                },
                QueryNorms::All => QueryNorm::All,
            },
            qkv_bias: has_bias(config, decoder.qkv_bias)?,
            output_bias: has_bias(config, decoder.o_bias)?,
            mlp_bias: has_bias(config, decoder.mlp_bias)?,
            fused: decoder.is_fused(),
            mixture: match &decoder.mixture {
                Some(table) => Some(Mixture::read(config, table)?),
                None => None,
            },
            tied: config.flag("tie_word_embeddings", tied)?,
            attention_scale: match decoder.multipliers {
                true => multiplier("attention_multiplier")?,
                false => (head_dim as f64).sqrt().recip(),
            },
            embedding_scale: match decoder.scaled_embedding {
                true => (hidden as f64).sqrt() as f32,
                false => multiplier("embedding_multiplier")? as f32,
            },
            residual_scale: multiplier("residual_multiplier")? as f32,
            logits_divisor: multiplier("logits_scaling")?,
        })
    }
}

/// A family that can be run.
struct Runnable {
    decoder: &'static Decoder,
    /// Whether its head is the embedding where the config does not say.
    tied: bool,
}

impl Runnable {
    fn find(family: &'static Family) -> Option<Runnable> {
        let decoder = family.decoder.as_ref().filter(|decoder| decoder.runs)?;
        let tied = family.is_tied();
        Some(Runnable { decoder, tied })
    }
}

fn family(config: &Fields) -> Result<Runnable, ForwardError> {
    let named = config.text("model_type")?.unwrap_or_default();
    let found = Family::named(named).and_then(Runnable::find);
    found.ok_or_else(|| {
        let all = Family::all().filter(|family| Runnable::find(family).is_some());
        let names: Vec<&str> = all.map(Family::name).collect();
        ForwardError::Family {
            found: named.chars().take(80).collect(),
            expected: names.join(", "),
        }
    })
}

fn key_heads(config: &Fields, decoder: &Decoder, heads: usize) -> Result<usize, FieldError> {
    const FIELD: &str = "num_key_value_heads";
    let by_class = decoder.kv_heads.filter(|_| !config.is_written(FIELD));
    let key_heads = config.size(FIELD)?.or(by_class).unwrap_or(heads);
    match heads.is_multiple_of(key_heads) {
        true => Ok(key_heads),
        false => {
            let expected = format!("a divisor of num_attention_heads, {heads}");
            Err(config.wrong(FIELD, expected))
        }
    }
}

fn head_dim(
    config: &Fields,
    decoder: &Decoder,
    hidden: usize,
    heads: usize,
) -> Result<usize, FieldError> {
    match (config.size("head_dim")?, decoder.head_dim) {
        (Some(head_dim), _) | (None, HeadDim::Of(head_dim)) => Ok(head_dim),
        (None, _) if hidden.is_multiple_of(heads) => Ok(hidden / heads),
        (None, _) => {
            let expected = format!("a number, as {heads} heads don't divide {hidden} features");
            Err(config.wrong("head_dim", expected))
        }
    }
}

fn has_bias(config: &Fields, bias: Bias) -> Result<bool, FieldError> {
    match bias {
        Bias::None => Ok(false),
        Bias::Always => Ok(true),
        Bias::Flag(field, default) => config.flag(field, default),
    }
}

/// Refuses fields that no supported family has.
fn refuse_others(config: &Fields) -> Result<(), FieldError> {
    for name in OF_OTHERS {
        let value = config.get(name);
        if value.is_some_and(|value| *value != Value::Bool(false)) {
            return Err(config.wrong(name, "none, as no family that can be run has it"));
        }
    }
    if let Some(kind) = config.text("position_embedding_type")?
        && kind != "rope"
    {
        return Err(config.wrong("position_embedding_type", "rope"));
    }
    Ok(())
}

fn activation(config: &Fields, decoder: &Decoder) -> Result<Activation, FieldError> {
    let mut fields = decoder.activation_fields.iter().copied();
    let written = fields.find(|field| config.get(field).is_some());
    let field = written.unwrap_or("hidden_act");
    let named = match written {
        Some(field) => config.text(field)?.unwrap_or_default(),
        None => decoder.activation,
    };
    match Activation::named(config, field, named)? {
        Activation::Gelu if decoder.gelu_is_tanh => Ok(Activation::GeluTanh),
        activation => Ok(activation),
    }
}

/// The windows of a family; transformers lets a token see `window` keys, its own among them.
fn windows(config: &Fields, rule: WindowRule) -> Result<Windows, FieldError> {
    const WINDOW: &str = "sliding_window";
    // If the field is absent, the class default applies; null means no window.
    let written = |default: Option<usize>| match config.is_written(WINDOW) {
        true => config.size(WINDOW),
        false => Ok(default),
    };
    let all = |window: Option<usize>| window.map_or(Windows::None, Windows::All);
    let used = || config.flag("use_sliding_window", false);
    match rule {
        WindowRule::None => Ok(Windows::None),
        WindowRule::All(default) => written(default).map(all),
        WindowRule::Switched => match used()? {
            true => written(Some(4096)).map(all),
            false => Ok(Windows::None),
        },
        WindowRule::Listed { switched, from } => {
            let window = match !switched || used()? {
                true => written(Some(4096))?,
                false => None,
            };
            if let Some(listed) = listed_windows(config)? {
                return match (window, listed.contains(&true)) {
                    (_, false) => Ok(Windows::None),
                    (Some(window), true) => Ok(Windows::Listed(listed, window)),
                    (None, true) => Err(config.wrong(
                        "layer_types",
                        "only full_attention, as there is no sliding_window in use",
                    )),
                };
            }
            let Some(window) = window else {
                return Ok(Windows::None);
            };
            let Some(default) = from else {
                let expected = "false, or layer_types that say which layers have a window";
                let hint = "transformers 4 and 5 differ in which layers those are";
                return Err(config.wrong_with("use_sliding_window", expected, hint));
            };
            let first = config.size_or_zero("max_window_layers")?;
            Ok(Windows::From(first.unwrap_or(default), window))
        }
    }
}

/// The layers to which `layer_types` gives a window.
fn listed_windows(config: &Fields) -> Result<Option<Vec<bool>>, FieldError> {
    let Some(list) = config.list("layer_types")? else {
        return Ok(None);
    };
    if list.len() < config.required("num_hidden_layers")? {
        return Err(config.wrong("layer_types", "one for each layer"));
    }
    let kinds = list.iter().map(|kind| match kind.as_str() {
        Some("full_attention") => Some(false),
        Some("sliding_attention") => Some(true),
        _ => None,
    });
    let kinds: Option<Vec<bool>> = kinds.collect();
    match kinds {
        Some(kinds) => Ok(Some(kinds)),
        None => Err(config.wrong("layer_types", "full_attention or sliding_attention")),
    }
}

impl Mixture {
    fn read(config: &Fields, table: &'static architecture::Mixture) -> Result<Mixture, FieldError> {
        let mut names = table.counts.experts.to_vec();
        if !names.contains(&"num_local_experts") {
            names.push("num_local_experts");
        }
        let experts = config.same_size(&names)?;
        let experts = experts.ok_or_else(|| config.wrong(names[0], "a whole number"))?;
        let per_token = config.required(table.counts.per_token)?;
        if per_token > experts {
            let expected = format!("at most the number of experts, {experts}");
            return Err(config.wrong(table.counts.per_token, expected));
        }
        let width = config.required(table.counts.width)?;
        let renormalise = |default| config.flag("norm_topk_prob", default);
        let routing = match table.routing {
            RoutingRule::Softmax => Routing::Softmax { renormalise: true },
            RoutingRule::SoftmaxNorm(default) => Routing::Softmax {
                renormalise: renormalise(default)?,
            },
            RoutingRule::TopSoftmax => Routing::TopSoftmax,
            RoutingRule::Sigmoid(default) => {
                sigmoid(config, experts, per_token, renormalise(default)?)?
            }
        };
        let shared = match &table.shared {
            Some(shared) => Shared::read(config, shared, width)?,
            None => None,
        };
        Ok(Mixture {
            experts,
            per_token,
            width,
            table,
            routing,
            shared,
            layers: table.sparse.layers(config)?,
        })
    }
}

impl Shared {
    /// The shared expert beside experts of that width; none if it has no width.
    fn read(
        config: &Fields,
        rule: &SharedRule,
        expert: usize,
    ) -> Result<Option<Shared>, FieldError> {
        let said = |field: &str, expected: &str| match config.size_or_zero(field)? {
            None if rule.absent != Absent::Nothing => Err(config.wrong(field, expected)),
            said => Ok(said.unwrap_or(0)),
        };
        let width = match rule.width {
            SharedWidth::Neurons(field) => said(field, "a size")?,
            SharedWidth::Experts(field) => said(field, "a number")?
                .checked_mul(expert)
                .ok_or_else(|| config.wrong(field, "fewer"))?,
            SharedWidth::Fixed => expert,
        };
        Ok((width > 0).then_some(Shared {
            layout: rule.layout,
            gate: rule.gate,
            width,
        }))
    }
}

fn sigmoid(
    config: &Fields,
    experts: usize,
    per_token: usize,
    renormalise: bool,
) -> Result<Routing, FieldError> {
    let groups = config.size("n_group")?.unwrap_or(1);
    let chosen_groups = config.size("topk_group")?.unwrap_or(1);
    // A group is scored by its two best experts.
    if !experts.is_multiple_of(groups) || experts / groups < 2 {
        let expected = format!("a divisor of {experts} experts that leaves two to a group");
        return Err(config.wrong("n_group", expected));
    }
    if chosen_groups > groups || chosen_groups * (experts / groups) < per_token {
        let expected = format!("at most {groups}, and enough for {per_token} experts");
        return Err(config.wrong("topk_group", expected));
    }
    Ok(Routing::Sigmoid {
        groups,
        chosen_groups,
        renormalise,
        factor: config.number("routed_scaling_factor")?.unwrap_or(1.0),
    })
}
