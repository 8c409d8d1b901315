//! What a dense model is, as far as an assembly must know: read from its config and its tensors' names.

use std::ops::Range;

use serde_json::{Map, Value};

use checkpoint::{Checkpoint, ModelConfig};
use errors::Refusal;

/// Larger sizes are no model's: products of two and sums of three of them can be counted.
const LARGEST: usize = 1 << 31;

/// The families that experts can be taken from, by the model type of their configs.
static FAMILIES: &[Family] = &[
    Family::plain("llama", "LlamaForCausalLM"),
    Family {
        kv_heads: Some(8),
        ..Family::plain("mistral", "MistralForCausalLM")
    },
    Family {
        kv_heads: Some(32),
        ..Family::plain("qwen2", "Qwen2ForCausalLM")
    },
    Family {
        kv_heads: Some(32),
        head_dim: Some(128),
        ..Family::plain("qwen3", "Qwen3ForCausalLM")
    },
    Family {
        fused: true,
        norm_eps: 1e-5,
        ..Family::plain("phi3", "Phi3ForCausalLM")
    },
    Family {
        norm_offset: 1.0,
        scaled_embedding: true,
        activation: "gelu_pytorch_tanh",
        tied: true,
        kv_heads: Some(16),
        head_dim: Some(256),
        ..Family::plain("gemma", "GemmaForCausalLM")
    },
    Family::plain("granite", "GraniteForCausalLM"),
    Family {
        pre_norm: None,
        norm_eps: 1e-5,
        ..Family::plain("olmo2", "Olmo2ForCausalLM")
    },
    Family {
        tied: true,
        theta: 500_000.0,
        kv_heads: Some(2),
        head_dim: Some(128),
        norm_eps: 1e-5,
        ..Family::plain("ernie4_5", "Ernie4_5ForCausalLM")
    },
    Family {
        norm_eps: 1e-5,
        ..Family::plain("hunyuan_v1_dense", "HunYuanDenseV1ForCausalLM")
    },
];

/// A family of dense decoders: how it differs from Llama.
#[derive(Debug)]
pub(super) struct Family {
    pub(super) model_type: &'static str,
    /// The class that loads it.
    pub(super) class: &'static str,
    /// Whether q, k and v are one matrix, and gate and up another.
    pub(super) fused: bool,
    /// The norm whose result the MLP sees, behind the layer's prefix.
    pub(super) pre_norm: Option<&'static str>,
    /// What is added to the weights of norms before they are used.
    pub(super) norm_offset: f64,
    /// Whether embeddings are multiplied by the root of the width.
    pub(super) scaled_embedding: bool,
    /// The activation if the config names none.
    activation: &'static str,
    /// Whether the head is the embedding if the config doesn't say.
    tied: bool,
    /// The base of rotary frequencies if the config doesn't say.
    theta: f64,
    /// Heads of keys and values if the config doesn't say; none where they are as many as all.
    kv_heads: Option<usize>,
    /// What norms add under the root if the config doesn't say.
    pub(super) norm_eps: f64,
    /// Width of a head if the config doesn't say; none where heads share the width of a state.
    head_dim: Option<usize>,
}

impl Family {
    const fn plain(model_type: &'static str, class: &'static str) -> Self {
        Family {
            model_type,
            class,
            fused: false,
            pre_norm: Some("post_attention_layernorm.weight"),
            norm_offset: 0.0,
            scaled_embedding: false,
            activation: "silu",
            tied: false,
            theta: 10_000.0,
            kv_heads: None,
            norm_eps: 1e-6,
            head_dim: None,
        }
    }

    /// Where the gate matrix of an MLP of so many neurons is stored, or the up matrix: the tensor behind `mlp.`, its
    /// rows there, and how many rows the tensor has.
    pub(super) fn input_matrix(
        &self,
        up: bool,
        width: usize,
    ) -> (&'static str, Range<usize>, usize) {
        match (self.fused, up) {
            (true, false) => ("gate_up_proj.weight", 0..width, 2 * width),
            (true, true) => ("gate_up_proj.weight", width..2 * width, 2 * width),
            (false, false) => ("gate_proj.weight", 0..width, width),
            (false, true) => ("up_proj.weight", 0..width, width),
        }
    }

    /// The one of this model type.
    pub(super) fn named(model_type: &str) -> Option<&'static Family> {
        FAMILIES
            .iter()
            .find(|family| family.model_type == model_type)
    }

    /// Llama, which the others are told by.
    pub(super) fn first() -> &'static Family {
        &FAMILIES[0]
    }

    /// The names of all, for messages.
    pub(super) fn names() -> Vec<&'static str> {
        FAMILIES.iter().map(|family| family.model_type).collect()
    }
}

/// A dense decoder.
#[derive(Debug)]
pub(super) struct Dense {
    pub(super) family: &'static Family,
    pub(super) hidden: usize,
    pub(super) width: usize,
    pub(super) layers: usize,
    pub(super) heads: usize,
    pub(super) kv_heads: usize,
    pub(super) head_dim: usize,
    pub(super) activation: String,
    pub(super) tied: bool,
    /// Biases of q, k and v.
    pub(super) qkv_bias: bool,
    /// A bias of o.
    pub(super) o_bias: bool,
    /// Biases inside the MLP.
    pub(super) mlp_bias: bool,
    /// Norms of q and k.
    pub(super) qk_norm: bool,
    pub(super) window: Window,
    pub(super) rope: Rope,
}

/// How far back attention looks.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Window {
    /// To the beginning.
    None,
    /// So many tokens, in every layer.
    All(usize),
    /// Not alike in all layers.
    Some,
}

/// Rotary positions.
#[derive(Debug, Clone, PartialEq)]
pub(super) struct Rope {
    pub(super) theta: f64,
    /// What changes the frequencies, as transformers 4 wrote it; none if nothing does.
    pub(super) scaling: Option<Map<String, Value>>,
    /// The share of a head that is turned.
    pub(super) partial: f64,
}

impl Rope {
    /// From a config of transformers 4 (`rope_theta`, `rope_scaling`) or 5 (`rope_parameters`).
    fn read(config: &ModelConfig, default: f64) -> Rope {
        let object = |key: &str| config.get(key).and_then(Value::as_object);
        let parameters = object("rope_parameters").or_else(|| object("rope_scaling"));
        let number = |key: &str| {
            let inner = parameters.and_then(|parameters| parameters.get(key));
            inner
                .and_then(Value::as_f64)
                .or_else(|| config.get(key)?.as_f64())
        };
        let mut scaling = parameters.cloned().unwrap_or_default();
        let kind = ["rope_type", "type"];
        let kind = kind.iter().find_map(|key| scaling.get(*key)?.as_str());
        let kind = kind.unwrap_or("default").to_owned();
        for key in ["rope_theta", "partial_rotary_factor", "type", "rope_type"] {
            scaling.remove(key);
        }
        scaling.insert("rope_type".into(), kind.clone().into());
        Rope {
            theta: number("rope_theta").unwrap_or(default),
            scaling: (kind != "default").then_some(scaling),
            partial: number("partial_rotary_factor").unwrap_or(1.0),
        }
    }

    /// The kind of scaling, `default` if there is none.
    pub(super) fn kind(&self) -> &str {
        let kind = self
            .scaling
            .as_ref()
            .and_then(|scaling| scaling.get("rope_type"));
        kind.and_then(Value::as_str).unwrap_or("default")
    }
}

impl Dense {
    /// What a model is.
    ///
    /// # Errors
    /// In words for the user: it is no dense decoder of a family that is known, or its config lacks what must be
    /// known.
    pub(super) fn read(model: &Checkpoint) -> Result<Dense, Refusal> {
        let label = model.label();
        let Some(config) = model.config() else {
            return Err(no_config(label));
        };
        let model_type = config.model_type().unwrap_or_default();
        let Some(family) = Family::named(model_type) else {
            return Err(Refusal::new(format!(
                "`{label}` is of the family `{}`, expected one of {}",
                model_type.escape_debug(),
                Family::names().join(", ")
            ))
            .with_hint("experts are taken from dense models of these families"));
        };
        Dense::of(model, config, family, "intermediate_size")
    }

    /// What a model is, taken for one of a family, whose MLPs are as wide as that field says.
    pub(super) fn of(
        model: &Checkpoint,
        config: &ModelConfig,
        family: &'static Family,
        width: &str,
    ) -> Result<Dense, Refusal> {
        let label = model.label();
        let size = |key: &str| match config.get_usize(key).filter(|value| *value > 0) {
            Some(value) if value > LARGEST => Err(Refusal::new(format!(
                "the config of `{label}` has {value} for `{key}`, which no model has"
            ))
            .with_hint("correct its config.json")),
            value => Ok(value),
        };
        let need = |key: &str| {
            size(key)?.ok_or_else(|| {
                Refusal::new(format!(
                    "the config of `{label}` has no `{key}`, or none above 0"
                ))
                .with_hint("complete its config.json")
            })
        };
        let (layers, tensors) = (need("num_hidden_layers")?, model.tensors().len());
        if layers > tensors {
            return Err(Refusal::new(format!(
                "the config of `{label}` says {layers} layers (`num_hidden_layers`), and there are {tensors} tensors"
            ))
            .with_hint("the checkpoint is incomplete, or its config is of another model"));
        }
        let (hidden, heads) = (need("hidden_size")?, need("num_attention_heads")?);
        let head_dim = size("head_dim")?;
        let has = |suffix: &str| {
            model
                .tensors()
                .iter()
                .any(|tensor| tensor.name.ends_with(suffix))
        };
        let text = |key: &str| config.get_str(key).map(str::to_owned);
        // Gemma's `hidden_act` says gelu and was never what it was trained with.
        let activation = match family.model_type {
            "gemma" => text("hidden_activation")
                .or_else(|| text("hidden_act").filter(|activation| activation != "gelu")),
            _ => text("hidden_act"),
        };
        Ok(Dense {
            family,
            hidden,
            width: need(width)?,
            layers,
            heads,
            kv_heads: size("num_key_value_heads")?
                .or(family.kv_heads)
                .unwrap_or(heads),
            head_dim: head_dim.or(family.head_dim).unwrap_or(hidden / heads),
            activation: activation.unwrap_or_else(|| family.activation.to_owned()),
            tied: config.tie_word_embeddings().unwrap_or(family.tied),
            qkv_bias: has(".self_attn.q_proj.bias")
                || has(".self_attn.k_proj.bias")
                || has(".self_attn.v_proj.bias")
                || has(".self_attn.qkv_proj.bias"),
            o_bias: has(".self_attn.o_proj.bias"),
            mlp_bias: model
                .tensors()
                .iter()
                .any(|tensor| tensor.name.contains(".mlp.") && tensor.name.ends_with(".bias")),
            qk_norm: has(".self_attn.q_norm.weight") || has(".self_attn.query_layernorm.weight"),
            window: window(config, family),
            rope: Rope::read(config, family.theta),
        })
    }
}

/// Why nothing is known of a model without a config.
pub(super) fn no_config(label: &str) -> Refusal {
    Refusal::new(format!(
        "`{label}` has no config.json, which says how it is built"
    ))
    .with_hint("name its folder, not a file in it")
}

fn window(config: &ModelConfig, family: &Family) -> Window {
    let size = match config.value().get("sliding_window") {
        // What its class has where the config says nothing; null is said.
        None if family.model_type == "mistral" => Some(4096),
        _ => config.get_usize("sliding_window"),
    };
    let kinds = config.get("layer_types").and_then(Value::as_array);
    let sliding = |kind: &Value| kind.as_str() == Some("sliding_attention");
    match (family.model_type, size) {
        (_, None) => Window::None,
        // These have the field, and use it only if they are told to; then in some of the layers.
        ("qwen2" | "qwen3", Some(_)) if config.get_bool("use_sliding_window") != Some(true) => {
            match kinds.is_some_and(|kinds| kinds.iter().any(sliding)) {
                true => Window::Some,
                false => Window::None,
            }
        }
        ("qwen2" | "qwen3", Some(_)) => Window::Some,
        ("mistral" | "phi3", Some(size)) => match kinds {
            Some(kinds) if !kinds.iter().all(sliding) => Window::Some,
            _ => Window::All(size),
        },
        _ => Window::None,
    }
}
