//! Reads a config into the settings of the one block that serves all families; refuses by name what it cannot do.
//!
//! Defaults and rules follow transformers' configurations and modelling code, 4.57 and 5.23.

use architecture::{FieldError, Fields};
use serde_json::Value;

use super::activation::Activation;
use super::error::ForwardError;
use super::rope::{RopeDefaults, RopeSettings, refuse_nested};

/// The supported families, by their `model_type`.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Family {
    Llama,
    Mistral,
    Qwen2,
    Qwen3,
    Phi3,
    Gemma,
    Olmo2,
    Granite,
    Mixtral,
    Qwen2Moe,
    Qwen3Moe,
    GraniteMoe,
    GraniteMoeShared,
    Glm4Moe,
    Dots1,
    FlexOlmo,
}

use Family::*;

const FAMILIES: [(&str, Family); 16] = [
    ("llama", Llama),
    ("mistral", Mistral),
    ("qwen2", Qwen2),
    ("qwen3", Qwen3),
    ("phi3", Phi3),
    ("gemma", Gemma),
    ("olmo2", Olmo2),
    ("granite", Granite),
    ("mixtral", Mixtral),
    ("qwen2_moe", Qwen2Moe),
    ("qwen3_moe", Qwen3Moe),
    ("granitemoe", GraniteMoe),
    ("granitemoeshared", GraniteMoeShared),
    ("glm4_moe", Glm4Moe),
    ("dots1", Dots1),
    ("flex_olmo", FlexOlmo),
];

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

/// Where the norms of a layer are.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Norms {
    /// Before the attention and before the MLP.
    Before,
    /// After each of them, before the residual is added.
    After,
}

/// Which features of queries and keys share a norm.
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
pub(super) enum Shared {
    None,
    Plain(usize),
    /// Weighted by a gate of its own.
    Gated(usize),
}

/// How the tensors of a mixture are named and stored.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Layout {
    Mixtral,
    Qwen,
    Granite,
}

/// The experts of a config.
#[derive(Debug, Clone)]
pub(super) struct Mixture {
    pub(super) experts: usize,
    pub(super) per_token: usize,
    /// Inner features of an expert.
    pub(super) width: usize,
    pub(super) layout: Layout,
    pub(super) routing: Routing,
    pub(super) shared: Shared,
    /// Layers before this one have no experts.
    first: usize,
    /// Counted from one, only layers that are multiples of this have experts.
    step: usize,
    /// Layers without experts.
    dense: Vec<u64>,
}

impl Mixture {
    pub(super) fn has(&self, layer: usize) -> bool {
        layer >= self.first
            && (layer + 1).is_multiple_of(self.step)
            && !self.dense.contains(&(layer as u64))
    }
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
    pub(super) norms: Norms,
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
        Ok(Settings::of(config, family(config)?)?)
    }

    fn of(config: &Fields, family: Family) -> Result<Settings, FieldError> {
        refuse_others(config)?;
        refuse_nested(config)?;
        let hidden = config.required("hidden_size")?;
        let heads = config.required("num_attention_heads")?;
        let key_heads = config.size("num_key_value_heads")?.unwrap_or(heads);
        if !heads.is_multiple_of(key_heads) {
            let expected = format!("a divisor of num_attention_heads, {heads}");
            return Err(config.wrong("num_key_value_heads", expected));
        }
        let head_dim = match (config.size("head_dim")?, family) {
            (Some(head_dim), _) => head_dim,
            (None, Qwen3) => 128,
            (None, Gemma) => 256,
            (None, _) if hidden.is_multiple_of(heads) => hidden / heads,
            (None, _) => {
                let expected = format!("a number, as {heads} heads don't divide {hidden} features");
                return Err(config.wrong("head_dim", expected));
            }
        };
        let granite = matches!(family, Granite | GraniteMoe | GraniteMoeShared);
        let multiplier = |name| -> Result<f64, FieldError> {
            match granite {
                true => Ok(config.positive(name)?.unwrap_or(1.0)),
                false => Ok(1.0),
            }
        };
        let flag = |name, default| config.flag(name, default);
        let (qkv_bias, output_bias) = match family {
            Qwen2 => (true, false),
            Qwen2Moe => (flag("qkv_bias", true)?, false),
            Glm4Moe => (flag("attention_bias", false)?, false),
            Mistral | Mixtral | Phi3 => (false, false),
            _ => (
                flag("attention_bias", false)?,
                flag("attention_bias", false)?,
            ),
        };
        let mixture = Mixture::read(config, family)?;
        let needs_inner = mixture
            .as_ref()
            .is_none_or(|mixture| mixture.layout == Layout::Qwen && family != FlexOlmo);
        Ok(Settings {
            hidden,
            layers: config.required("num_hidden_layers")?,
            heads,
            key_heads,
            head_dim,
            vocabulary: config.required("vocab_size")?,
            inner: match needs_inner {
                true => config.size_or_zero("intermediate_size")?.unwrap_or(0),
                false => 0,
            },
            eps: match config.number("rms_norm_eps")? {
                Some(eps) if eps >= 0.0 => eps,
                _ => return Err(config.wrong("rms_norm_eps", "a number that is not negative")),
            },
            norm_offset: if family == Gemma { 1.0 } else { 0.0 },
            activation: activation(config, family)?,
            rope: RopeSettings::read(config, rope_defaults(family))?,
            windows: windows(config, family)?,
            norms: match family {
                Olmo2 | FlexOlmo => Norms::After,
                _ => Norms::Before,
            },
            query_norm: match family {
                Qwen3 | Qwen3Moe | Dots1 => QueryNorm::Head,
                Glm4Moe if flag("use_qk_norm", false)? => QueryNorm::Head,
                Olmo2 | FlexOlmo => QueryNorm::All,
                _ => QueryNorm::None,
            },
            qkv_bias,
            output_bias,
            mlp_bias: matches!(family, Llama | Granite) && flag("mlp_bias", false)?,
            fused: family == Phi3,
            mixture,
            tied: flag("tie_word_embeddings", family == Gemma)?,
            attention_scale: match granite {
                true => multiplier("attention_multiplier")?,
                false => (head_dim as f64).sqrt().recip(),
            },
            embedding_scale: match family {
                Gemma => (hidden as f64).sqrt() as f32,
                _ => multiplier("embedding_multiplier")? as f32,
            },
            residual_scale: multiplier("residual_multiplier")? as f32,
            logits_divisor: multiplier("logits_scaling")?,
        })
    }
}

fn family(config: &Fields) -> Result<Family, ForwardError> {
    let named = config.text("model_type")?.unwrap_or_default();
    let found = FAMILIES.iter().find(|(name, _)| *name == named);
    found
        .map(|(_, family)| *family)
        .ok_or_else(|| ForwardError::Family {
            found: named.chars().take(80).collect(),
            expected: FAMILIES.map(|(name, _)| name).join(", "),
        })
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

fn activation(config: &Fields, family: Family) -> Result<Activation, FieldError> {
    if family != Gemma {
        let named = config.text("hidden_act")?.unwrap_or("silu");
        return Activation::named(config, "hidden_act", named);
    }
    // The first Gemma configs say `gelu` and mean its approximation; transformers reads them so.
    let fields = ["hidden_activation", "hidden_act"];
    let field = fields.iter().find(|field| config.get(field).is_some());
    let Some(field) = field else {
        return Ok(Activation::GeluTanh);
    };
    match Activation::named(config, field, config.text(field)?.unwrap_or_default())? {
        Activation::Gelu => Ok(Activation::GeluTanh),
        activation => Ok(activation),
    }
}

fn rope_defaults(family: Family) -> RopeDefaults {
    RopeDefaults {
        theta: match family {
            Mixtral => 1e6,
            FlexOlmo => 5e5,
            _ => 1e4,
        },
        partial: match family {
            Phi3 => Some(1.0),
            Glm4Moe => Some(0.5),
            _ => None,
        },
        longrope: family == Phi3,
    }
}

/// The windows of a family; in transformers a token sees `window` keys, its own included.
fn windows(config: &Fields, family: Family) -> Result<Windows, FieldError> {
    const WINDOW: &str = "sliding_window";
    // If the field is absent, the class default applies; null means no window.
    let written = |default: Option<usize>| match config.is_written(WINDOW) {
        true => config.size(WINDOW),
        false => Ok(default),
    };
    let all = |window: Option<usize>| window.map_or(Windows::None, Windows::All);
    let used = config.flag("use_sliding_window", false);
    match family {
        Mistral => written(Some(4096)).map(all),
        Phi3 | Mixtral => written(None).map(all),
        Qwen3Moe => match used? {
            true => written(Some(4096)).map(all),
            false => Ok(Windows::None),
        },
        Qwen2 | Qwen3 | Qwen2Moe | Dots1 => {
            let window = match family == Dots1 || used? {
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
            if family == Qwen2Moe {
                let expected = "false, or layer_types that say which layers have a window";
                let hint = "transformers 4 and 5 differ in which layers those are";
                return Err(config.wrong_with("use_sliding_window", expected, hint));
            }
            let first = config.size_or_zero("max_window_layers")?;
            let default = if family == Dots1 { 62 } else { 28 };
            Ok(Windows::From(first.unwrap_or(default), window))
        }
        _ => Ok(Windows::None),
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
    fn read(config: &Fields, family: Family) -> Result<Option<Mixture>, FieldError> {
        let (experts_fields, width_field, layout): (&[&str], _, _) = match family {
            Mixtral => (&["num_local_experts"], "intermediate_size", Layout::Mixtral),
            GraniteMoe | GraniteMoeShared => {
                (&["num_local_experts"], "intermediate_size", Layout::Granite)
            }
            Qwen2Moe | Qwen3Moe => (
                &["num_experts", "num_local_experts"],
                "moe_intermediate_size",
                Layout::Qwen,
            ),
            FlexOlmo => (
                &["num_experts", "num_local_experts"],
                "intermediate_size",
                Layout::Qwen,
            ),
            Glm4Moe | Dots1 => (
                &["n_routed_experts", "num_local_experts"],
                "moe_intermediate_size",
                Layout::Qwen,
            ),
            _ => return Ok(None),
        };
        let experts = one_of(config, experts_fields)?;
        let per_token = config.required("num_experts_per_tok")?;
        if per_token > experts {
            let expected = format!("at most the number of experts, {experts}");
            return Err(config.wrong("num_experts_per_tok", expected));
        }
        let width = config.required(width_field)?;
        let renormalise = |default| config.flag("norm_topk_prob", default);
        let routing = match family {
            Mixtral => Routing::Softmax { renormalise: true },
            GraniteMoe | GraniteMoeShared => Routing::TopSoftmax,
            Glm4Moe => sigmoid(config, experts, per_token, renormalise(true)?)?,
            Dots1 => sigmoid(config, experts, per_token, renormalise(false)?)?,
            _ => Routing::Softmax {
                renormalise: renormalise(false)?,
            },
        };
        let plain = |width| match width {
            0 => Shared::None,
            width => Shared::Plain(width),
        };
        let shared = match family {
            Qwen2Moe => match config.size_or_zero("shared_expert_intermediate_size")? {
                None => return Err(config.wrong("shared_expert_intermediate_size", "a size")),
                Some(0) => Shared::None,
                Some(width) => Shared::Gated(width),
            },
            GraniteMoeShared => plain(
                config
                    .size_or_zero("shared_intermediate_size")?
                    .unwrap_or(0),
            ),
            Glm4Moe | Dots1 => match config.size_or_zero("n_shared_experts")? {
                None => return Err(config.wrong("n_shared_experts", "a number")),
                Some(count) => match width.checked_mul(count) {
                    None => return Err(config.wrong("n_shared_experts", "fewer")),
                    Some(width) => plain(width),
                },
            },
            _ => Shared::None,
        };
        let (mut first, mut step, mut dense) = (0, 1, Vec::new());
        match family {
            Qwen2Moe | Qwen3Moe => {
                step = config.size("decoder_sparse_step")?.unwrap_or(1);
                for layer in config.list("mlp_only_layers")?.unwrap_or_default() {
                    let Some(layer) = layer.as_u64() else {
                        return Err(config.wrong("mlp_only_layers", "numbers of layers"));
                    };
                    dense.push(layer);
                }
            }
            Glm4Moe | Dots1 => {
                let default = usize::from(family == Glm4Moe);
                first = config
                    .size_or_zero("first_k_dense_replace")?
                    .unwrap_or(default);
            }
            _ => {}
        }
        Ok(Some(Mixture {
            experts,
            per_token,
            width,
            layout,
            routing,
            shared,
            first,
            step,
            dense,
        }))
    }
}

/// A size with several names, which must agree.
fn one_of(config: &Fields, names: &[&str]) -> Result<usize, FieldError> {
    let mut found = None;
    for name in names {
        let Some(size) = config.size(name)? else {
            continue;
        };
        if found.is_some_and(|found| found != size) {
            return Err(config.wrong(name, format!("the same as {}", names[0])));
        }
        found = Some(size);
    }
    found.ok_or_else(|| config.wrong(names[0], "a whole number"))
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
