//! Reads from a mixture's headers its layout, its experts, and the decoder around them.

use super::family::{Dense, Window, no_config};
use super::pieces::{Donor, ExpertMatrix, Pieces, layer_of};
use super::targets::Target;
use architecture::{Experts, Family, Fields, Matrix, Names, RopeFields, WindowRule};
use checkpoint::{Checkpoint, ModelConfig};
use errors::Refusal;
use numeric::FloatType;
use plan::{self, Models, Problems};
use recipe::{Located, Ranges};

/// A mixture of experts.
#[derive(Debug)]
pub(super) struct Mixture {
    pub(super) target: Target,
    pub(super) names: Names,
    /// Experts per layer.
    pub(super) experts: usize,
    /// The layers with experts, ascending.
    pub(super) layers: Vec<usize>,
    /// The decoder around the experts, described as a dense model whose MLPs are as wide as an expert.
    pub(super) dense: Dense,
}

/// Fields with different defaults in different classes; the config must state them.
const SAID: [&str; 3] = ["num_key_value_heads", "rms_norm_eps", "hidden_act"];

impl Mixture {
    /// Reads what a mixture is.
    ///
    /// # Errors
    ///
    /// The model is no mixture of a known kind, or does not match its config.
    pub(super) fn read(model: &Checkpoint) -> Result<Mixture, Refusal> {
        let label = model.label();
        let Some(config) = model.config() else {
            return Err(no_config(label));
        };
        let model_type = config.model_type().unwrap_or_default();
        let Some(target) = Target::all().find(|target| target.model_type == model_type) else {
            let names: Vec<&str> = Target::all().map(|target| target.model_type).collect();
            return Err(Refusal::new(format!(
                "`{label}` is of the family `{}`, expected a mixture of experts, one of {}",
                model_type.escape_debug(),
                names.join(", ")
            ))
            .with_hint("`source_model` takes the MLPs of a dense model"));
        };
        let silent = |field: &str| {
            Refusal::new(format!("the config of `{label}` has no `{field}`"))
                .with_hint("complete its config.json")
        };
        let unsaid = SAID.iter().find(|field| config.get(field).is_none());
        if let Some(field) = unsaid {
            return Err(silent(field));
        }
        if !says_theta(config) {
            return Err(silent("rope_theta"));
        }
        let mut counts = target
            .mixture
            .counts
            .experts
            .iter()
            .chain(&["num_local_experts"]);
        let experts = counts
            .find_map(|field| config.get_usize(field))
            .filter(|experts| *experts > 0);
        let experts = experts.ok_or_else(|| silent(target.mixture.counts.experts[0]))?;
        let tensors = model.tensors().iter();
        let suffixes = tensors.filter_map(|tensor| Some(layer_of(&tensor.name)?.1));
        let names = target.mixture.names_among(suffixes);
        let around = around(target, model).ok_or_else(|| {
            format!("`{label}` is of the family `{model_type}`, which holds no dense family")
        })?;
        let mut dense = Dense::for_family(model, config, around, target.mixture.counts.width)?;
        dense.window = window(target, config);
        if config.tie_word_embeddings().is_none() {
            dense.tied = model.find("lm_head.weight").is_none();
        }
        let mut layers = Vec::new();
        for tensor in model.tensors() {
            match layer_of(&tensor.name) {
                Some((layer, rest)) if rest == names.router => {
                    let expected = [experts, dense.hidden];
                    if tensor.shape != expected {
                        return Err(format!(
                            "`{}` of `{label}` has shape {:?}, expected {expected:?} by its config",
                            tensor.name, tensor.shape
                        )
                        .into());
                    }
                    layers.push(layer);
                }
                _ => {}
            }
        }
        layers.sort_unstable();
        layers.dedup();
        if layers.is_empty() {
            return Err(format!(
                "`{label}` has no router, such as `model.layers.0.{}`, though its config says `{model_type}`",
                names.router
            )
            .into());
        }
        Ok(Mixture {
            target,
            names,
            experts,
            layers,
            dense,
        })
    }

    /// Whether a layer has experts.
    pub(super) fn has(&self, layer: usize) -> bool {
        self.layers.binary_search(&layer).is_ok()
    }

    /// A matrix of one of its experts, unchanged.
    pub(super) fn expert(
        &self,
        pieces: &Pieces<'_>,
        donor: &Donor<'_>,
        layer: usize,
        expert: usize,
        matrix: Matrix,
        problems: &mut Problems,
    ) -> Option<ExpertMatrix> {
        let (hidden, width) = (self.dense.hidden, self.dense.width);
        let name = format!("model.layers.{layer}.{}", self.names.tensor(expert, matrix));
        let [rows, columns] = match matrix {
            Matrix::Down => [hidden, width],
            Matrix::Gate | Matrix::Up => [width, hidden],
        };
        if let Experts::Each { .. } = self.names.experts {
            let source = pieces.find(donor, &name, &[rows, columns], problems)?;
            return Some(ExpertMatrix {
                whole: true,
                ..pieces.cut(source, 0..rows, columns)
            });
        }
        let (all, first) = match matrix {
            Matrix::Down => (hidden, expert * hidden),
            Matrix::Gate => (2 * width, 2 * expert * width),
            Matrix::Up => (2 * width, (2 * expert + 1) * width),
        };
        let source = pieces.find(donor, &name, &[self.experts, all, columns], problems)?;
        Some(pieces.cut(source, first..first + rows, columns))
    }

    /// The numbers of the experts that a recipe names.
    pub(super) fn numbers(
        &self,
        experts: &Located<Ranges>,
        label: &str,
        problems: &mut Problems,
    ) -> Option<Vec<usize>> {
        let numbers = experts.value.of(self.experts);
        if numbers.is_none() {
            let message = format!(
                "`{label}` has {}, and they are counted from 0",
                plan::count(self.experts, "expert")
            );
            let hint = "a range is half-open: `0-4` is four experts, 0 to 3";
            problems.add(Some(experts.at), message, Some(hint.to_owned()));
        }
        numbers
    }

    /// Pieces in the dtype that the recipe asks for, or in that of the experts.
    pub(super) fn pieces<'a>(
        &self,
        models: &'a Models,
        base: usize,
        dtype: Option<FloatType>,
    ) -> Pieces<'a> {
        let model = &models.checkpoints[base];
        let first = self.layers.first().and_then(|layer| {
            let gate = self.names.tensor(0, Matrix::Gate);
            model.find(&format!("model.layers.{layer}.{gate}"))
        });
        let stored = first.and_then(|gate| FloatType::from_dtype(model.tensors()[gate].dtype));
        Pieces {
            models,
            dtype,
            main: dtype.or(stored).unwrap_or(FloatType::F32).dtype(),
            synthesized: models.checkpoints.len(),
        }
    }
}

/// Whether a config states the base of the rotary frequencies, in the fields of transformers 4 or 5.
fn says_theta(config: &ModelConfig) -> bool {
    let fields = Fields::new(config.value()).and_then(RopeFields::read);
    // What is not understood is refused where it is read.
    fields.is_ok_and(|fields| !matches!(fields.number("rope_theta"), Ok(None)))
}

/// The dense family that matches the decoder around the experts.
fn around(target: Target, model: &Checkpoint) -> Option<&'static Family> {
    let has = |suffix: &str| {
        let mut tensors = model.tensors().iter();
        tensors.any(|tensor| tensor.name.ends_with(suffix))
    };
    let (bias, norms) = (
        has(".self_attn.q_proj.bias"),
        has(".self_attn.q_norm.weight"),
    );
    let window = model
        .config()
        .is_some_and(|config| config.get_usize("sliding_window").is_some());
    let name = match target.model_type {
        "mixtral" if window => "mistral",
        "mixtral" => "llama",
        "qwen2_moe" | "glm4_moe" if bias && !norms => "qwen2",
        "qwen2_moe" => "llama",
        "glm4_moe" if norms => "qwen3",
        "glm4_moe" => "llama",
        _ => target.written.holds.first()?,
    };
    Family::named(name)
}

/// The window of the mixture's attention.
fn window(target: Target, config: &ModelConfig) -> Window {
    let size = config.get_usize("sliding_window");
    let kinds = config
        .get("layer_types")
        .and_then(serde_json::Value::as_array);
    let sliding = |kind: &serde_json::Value| kind.as_str() == Some("sliding_attention");
    match size {
        Some(size) if matches!(target.decoder.window, WindowRule::All(_)) => Window::All(size),
        Some(_) if config.get_bool("use_sliding_window") == Some(true) => Window::Some,
        Some(_) if kinds.is_some_and(|kinds| kinds.iter().any(sliding)) => Window::Some,
        _ => Window::None,
    }
}
