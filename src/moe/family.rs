//! Reads from a model's config and tensor names what an assembly must know about a dense model.

use serde_json::{Map, Value};

use architecture::{Decoder, Family, FieldError, Fields, HeadDim, RopeFields, WindowRule};
use checkpoint::{Checkpoint, ModelConfig};
use errors::Refusal;

/// Upper bound of any size in a config. Products of two sizes and sums of three cannot overflow.
const LARGEST: usize = 1 << 31;

/// The family, if it is one of dense models that can supply experts.
fn donor(model_type: &str) -> Option<&'static Family> {
    Family::named(model_type).filter(|family| family.gives_experts())
}

/// The names of all such families, for messages.
fn donors() -> Vec<&'static str> {
    let donors = Family::all().filter(|family| family.gives_experts());
    donors.map(Family::name).collect()
}

/// A dense decoder.
#[derive(Debug)]
pub(super) struct Dense {
    pub(super) family: &'static Family,
    pub(super) decoder: &'static Decoder,
    pub(super) hidden: usize,
    pub(super) width: usize,
    pub(super) layers: usize,
    pub(super) heads: usize,
    pub(super) kv_heads: usize,
    pub(super) head_dim: usize,
    pub(super) activation: String,
    pub(super) tied: bool,
    /// Whether q, k and v have biases.
    pub(super) qkv_bias: bool,
    /// Whether o has a bias.
    pub(super) o_bias: bool,
    /// Whether the MLP has biases.
    pub(super) mlp_bias: bool,
    /// Whether q and k have norms.
    pub(super) qk_norm: bool,
    pub(super) window: Window,
    pub(super) rope: Rope,
}

/// How far back attention looks.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Window {
    /// No window: attention reaches back to the first token.
    None,
    /// A window of this many tokens in every layer.
    All(usize),
    /// A window in some layers only.
    Some,
}

/// Rotary positions.
#[derive(Debug, Clone, PartialEq)]
pub(super) struct Rope {
    pub(super) theta: f64,
    /// The scaling of the frequencies, in the fields of transformers 4; `None` if they are not scaled.
    pub(super) scaling: Option<Map<String, Value>>,
    /// The fraction of each head that is rotated.
    pub(super) partial: f64,
}

impl Rope {
    /// Reads a config of transformers 4 or 5; `default` is the base where it says none.
    fn read(config: &ModelConfig, default: f64) -> Result<Rope, FieldError> {
        let fields = RopeFields::read(Fields::new(config.value())?)?;
        Ok(Rope {
            theta: fields.number("rope_theta")?.unwrap_or(default),
            scaling: fields.scaling(),
            partial: fields.number("partial_rotary_factor")?.unwrap_or(1.0),
        })
    }

    /// The kind of scaling; `default` without one.
    pub(super) fn kind(&self) -> &str {
        let kind = self
            .scaling
            .as_ref()
            .and_then(|scaling| scaling.get("rope_type"));
        kind.and_then(Value::as_str).unwrap_or("default")
    }
}

impl Dense {
    /// Reads what a dense model is.
    ///
    /// # Errors
    ///
    /// The model is no dense decoder of a known family, or its config lacks a required field.
    pub(super) fn read(model: &Checkpoint) -> Result<Dense, Refusal> {
        let label = model.label();
        let Some(config) = model.config() else {
            return Err(no_config(label));
        };
        let model_type = config.model_type().unwrap_or_default();
        let Some(family) = donor(model_type) else {
            return Err(Refusal::new(format!(
                "`{label}` is of the family `{}`, expected one of {}",
                model_type.escape_debug(),
                donors().join(", ")
            ))
            .with_hint("experts are taken from dense models of these families"));
        };
        Dense::for_family(model, config, family, "intermediate_size")
    }

    /// Reads a model as one of `family`, with the MLP's width in the given config field.
    pub(super) fn for_family(
        model: &Checkpoint,
        config: &ModelConfig,
        family: &'static Family,
        width: &str,
    ) -> Result<Dense, Refusal> {
        let label = model.label();
        let Some(decoder) = &family.decoder else {
            let name = family.name();
            let message = format!("`{label}` is of the family `{name}`, which has no decoder");
            return Err(Refusal::new(message));
        };
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
        let named = decoder.activation_fields.iter().find_map(|field| {
            text(field).filter(|named| {
                !(decoder.gelu_is_tanh && *field == "hidden_act" && named == "gelu")
            })
        });
        let by_class = decoder.kv_heads;
        let kv_heads_by_class =
            by_class.filter(|_| config.value().get("num_key_value_heads").is_none());
        let head_dim_by_class = match decoder.head_dim {
            HeadDim::Of(size) => size,
            HeadDim::Share | HeadDim::AlwaysShare => hidden / heads,
        };
        let rope = Rope::read(config, decoder.theta).map_err(|error| {
            Refusal::new(format!("the config of `{label}`: {error}")).with_hint(error.hint)
        })?;
        Ok(Dense {
            family,
            decoder,
            hidden,
            width: need(width)?,
            layers,
            heads,
            kv_heads: size("num_key_value_heads")?
                .or(kv_heads_by_class)
                .unwrap_or(heads),
            head_dim: head_dim.unwrap_or(head_dim_by_class),
            activation: named.unwrap_or_else(|| decoder.activation.to_owned()),
            tied: config.tie_word_embeddings().unwrap_or(family.is_tied()),
            qkv_bias: has(".self_attn.q_proj.bias")
                || has(".self_attn.k_proj.bias")
                || has(".self_attn.v_proj.bias")
                || has(".self_attn.qkv_proj.bias"),
            o_bias: has(".self_attn.o_proj.bias"),
            mlp_bias: model
                .tensors()
                .iter()
                .any(|tensor| tensor.name.contains(".mlp.") && tensor.name.ends_with(".bias")),
            qk_norm: has(&format!(
                ".self_attn.{}.weight",
                decoder.query_norm_names[0]
            )),
            window: window(config, decoder),
            rope,
        })
    }
}

/// The refusal of a model without a config.
pub(super) fn no_config(label: &str) -> Refusal {
    Refusal::new(format!(
        "`{label}` has no config.json, which says how it is built"
    ))
    .with_hint("name its folder, not a file in it")
}

fn window(config: &ModelConfig, decoder: &Decoder) -> Window {
    let size = match (decoder.window, config.value().get("sliding_window")) {
        // The class's default applies only if the config has no such field; an explicit null means no window.
        (WindowRule::All(by_class), None) => by_class,
        _ => config.get_usize("sliding_window"),
    };
    let kinds = config.get("layer_types").and_then(Value::as_array);
    let sliding = |kind: &Value| kind.as_str() == Some("sliding_attention");
    let any_slides = kinds.is_some_and(|kinds| kinds.iter().any(sliding));
    match (decoder.window, size) {
        (WindowRule::None, _) | (_, None) => Window::None,
        (WindowRule::All(_), Some(size)) => match kinds {
            Some(kinds) if !kinds.iter().all(sliding) => Window::Some,
            _ => Window::All(size),
        },
        // These classes use the field only if another field turns the window on, and then only in some layers.
        (WindowRule::Switched | WindowRule::Listed { .. }, Some(_)) => {
            match any_slides || config.get_bool("use_sliding_window") == Some(true) {
                true => Window::Some,
                false => Window::None,
            }
        }
    }
}
