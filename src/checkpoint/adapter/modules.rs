//! Groups the parts of each module, checks their shapes, and finds the model's tensor for each.

use std::collections::BTreeMap;

use super::config::AdapterConfig;
use super::error::AdapterError;
use super::keys::{self, FactorPart, Key};
use super::subject::Subject;
use super::targets::{ChangedTensor, Targets};
use super::tied::{self, Copied, Embedding};
use super::weights::AdapterWeights;
use super::{Change, Side, Update};
use crate::source::TensorEntry;
use architecture::{
    has_conv1d, is_conv1d_module, is_derived_buffer, is_input_embedding, is_output_head,
};
use numeric::{FloatType, Norms, Order};

const OTHER_MODEL: &str = "name the model that the adapter was trained on";
const OTHER_CONFIG: &str =
    "weights and adapter_config.json are not of one adapter, copy or download it again";
const GROUPED: &str = "the update of a grouped convolution is no product of two matrices: merge the adapter with PEFT \
                       (`merge_and_unload`) and name the result";
const RESIZED: &str = "the adapter was trained after tokens were added: resize the model's embeddings \
                       (`resize_token_embeddings`), save it, and name that model";

/// What the adapter holds for one tensor of the model.
#[derive(Debug, Clone, Copy)]
enum TensorUpdate {
    /// The `A`, `B` and DoRA norms of a linear map or a convolution.
    Linear {
        a: usize,
        b: usize,
        magnitude: Option<usize>,
    },
    /// The factors of an embedding.
    Embedding {
        a: usize,
        b: usize,
        magnitude: Option<usize>,
    },
    /// A vector added to a bias.
    Bias { bias: usize },
    /// A whole tensor.
    Whole { tensor: usize },
}

/// A piece and its target.
struct Placed {
    /// The module, as `rank_pattern` matches it.
    module: String,
    /// The tensor's name in the model that the adapter was trained on.
    name: String,
    piece: TensorUpdate,
}

/// How a matrix of the model is stored.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Lies {
    /// `[out, in]`, as linear maps are; with more dimensions, a convolution.
    OutIn,
    /// `[in, out]`, as GPT-2's Conv1D and embeddings are.
    InOut,
}

/// The changes that the adapter makes, by tensor of the model.
pub(super) fn place(
    weights: &AdapterWeights,
    config: &AdapterConfig,
    model: &mut Subject,
) -> Result<BTreeMap<usize, Change>, AdapterError> {
    let mut placed = gather(weights, config)?;
    let mut found = {
        let targets = Targets {
            tensors: &model.tensors,
            by_name: &model.by_name,
        };
        let wanted: Vec<ChangedTensor<'_>> =
            placed.iter().map(|piece| wanted(weights, piece)).collect();
        let (found, notes) = targets.find(&weights.path, &wanted)?;
        model.notes.extend(notes);
        found
    };
    untie(weights, config, &mut placed, &mut found, model)?;

    let conv1d = Conv1d::new(weights, config, model, &placed, &found);
    let mut changes: BTreeMap<usize, Change> = BTreeMap::new();
    let mut keys: BTreeMap<(usize, bool), usize> = BTreeMap::new();
    for (piece, found) in placed.iter().zip(&found) {
        let key = piece.piece.key();
        let Some(tensor) = *found else {
            let targets = Targets {
                tensors: &model.tensors,
                by_name: &model.by_name,
            };
            return Err(AdapterError::NoTensor {
                path: weights.path.clone(),
                key: weights.key(key).into(),
                tensor: piece.name.clone(),
                hint: targets.nearest(&piece.name),
            });
        };
        let entry = &model.tensors[tensor];
        let whole = matches!(piece.piece, TensorUpdate::Whole { .. });
        if let Some(first) = keys.insert((tensor, whole), key) {
            return Err(twice(weights, first, key));
        }
        let change = changes.entry(tensor).or_default();
        match piece.piece {
            TensorUpdate::Whole { tensor } => {
                check_whole(weights, tensor, entry)?;
                change.whole = Some(tensor);
            }
            _ => change.update = update(weights, config, piece, entry, &conv1d)?,
        }
    }
    Ok(changes)
}

impl TensorUpdate {
    /// One of its adapter tensors, to name it by.
    fn key(self) -> usize {
        match self {
            TensorUpdate::Linear { a, .. } | TensorUpdate::Embedding { a, .. } => a,
            TensorUpdate::Bias { bias } => bias,
            TensorUpdate::Whole { tensor } => tensor,
        }
    }
}

/// Parses every name and groups the parts.
fn gather(weights: &AdapterWeights, config: &AdapterConfig) -> Result<Vec<Placed>, AdapterError> {
    let mut modules: BTreeMap<String, BTreeMap<FactorPart, usize>> = BTreeMap::new();
    let mut wholes: BTreeMap<String, usize> = BTreeMap::new();
    for (index, tensor) in weights.tensors.iter().enumerate() {
        let key = keys::parse(&tensor.name).map_err(|why| bad_key(weights, index, why))?;
        let before = match key {
            Key::FactorPart { module, part } => {
                modules.entry(module).or_default().insert(part, index)
            }
            Key::Whole { name } => wholes.insert(name, index),
        };
        if let Some(first) = before {
            return Err(twice(weights, first, index));
        }
    }
    let mut placed = Vec::with_capacity(modules.len() + wholes.len());
    for (module, parts) in modules {
        for part in parts.values() {
            weights.check_float(*part)?;
        }
        for piece in pieces(weights, config, &parts)? {
            let end = match piece {
                TensorUpdate::Bias { .. } => "bias",
                _ => "weight",
            };
            placed.push(Placed {
                name: format!("{module}.{end}"),
                module: module.clone(),
                piece,
            });
        }
    }
    placed.extend(wholes.into_iter().map(|(name, tensor)| Placed {
        module: String::new(),
        name,
        piece: TensorUpdate::Whole { tensor },
    }));
    Ok(placed)
}

/// The update of a module's weight, and that of its bias.
fn pieces(
    weights: &AdapterWeights,
    config: &AdapterConfig,
    parts: &BTreeMap<FactorPart, usize>,
) -> Result<Vec<TensorUpdate>, AdapterError> {
    let part = |part| parts.get(&part).copied();
    let half = |there: usize, missing| AdapterError::Half {
        path: weights.path.clone(),
        key: weights.key(there).into(),
        missing,
    };
    let magnitude = part(FactorPart::Magnitude);
    let linear = (part(FactorPart::A), part(FactorPart::B));
    let embedding = (part(FactorPart::EmbeddingA), part(FactorPart::EmbeddingB));
    let (a, b) = match (linear, embedding) {
        ((Some(a), Some(b)), (None, None)) | ((None, None), (Some(a), Some(b))) => (a, b),
        ((Some(a), None), _) => return Err(half(a, "lora_B")),
        ((None, Some(b)), _) => return Err(half(b, "lora_A")),
        (_, (Some(a), None)) => return Err(half(a, "lora_embedding_B")),
        (_, (None, Some(b))) => return Err(half(b, "lora_embedding_A")),
        ((Some(first), _), (Some(second), _)) => return Err(twice(weights, first, second)),
        ((None, None), (None, None)) => {
            let there = parts.values().next().copied().unwrap_or_default();
            return Err(half(there, "lora_A and lora_B"));
        }
    };
    match magnitude {
        None if config.dora => return Err(half(a, "lora_magnitude_vector (`use_dora` is true)")),
        Some(magnitude) if !config.dora => {
            let why = "is there though `use_dora` is not set in adapter_config.json";
            return Err(bad_key(weights, magnitude, why));
        }
        _ => {}
    }
    let mut pieces = vec![match linear {
        (Some(_), _) => TensorUpdate::Linear { a, b, magnitude },
        _ => TensorUpdate::Embedding { a, b, magnitude },
    }];
    pieces.extend(part(FactorPart::BiasOfB).map(|bias| TensorUpdate::Bias { bias }));
    Ok(pieces)
}

/// The tensor of the model that a piece needs.
fn wanted<'a>(weights: &'a AdapterWeights, placed: &Placed) -> ChangedTensor<'a> {
    let piece = placed.piece;
    ChangedTensor {
        name: placed.name.clone(),
        key: weights.key(piece.key()),
        fits: Box::new(move |shape| match piece {
            TensorUpdate::Linear { a, b, .. } => [Lies::OutIn, Lies::InOut]
                .into_iter()
                .any(|lies| fits(shape, weights.shape(a), weights.shape(b), lies)),
            TensorUpdate::Embedding { a, b, .. } => {
                fits(shape, weights.shape(a), weights.shape(b), Lies::InOut)
            }
            TensorUpdate::Bias { bias } => shape == weights.shape(bias),
            TensorUpdate::Whole { tensor } => shape == weights.shape(tensor),
        }),
    }
}

/// Whether a matrix of the model has the shape of the product of `b`, `[out, rank]`, and `a`, `[rank, in]`.
///
/// A convolution's `a` has the shape of its kernel, and `b` one of ones.
fn fits(shape: &[usize], a: &[usize], b: &[usize], lies: Lies) -> bool {
    let (Some(&out), Some(inputs)) = (b.first(), a.get(1..)) else {
        return false;
    };
    match lies {
        Lies::OutIn => shape.len() >= 2 && shape[0] == out && shape[1..] == *inputs,
        Lies::InOut => inputs.len() == 1 && *shape == [inputs[0], out],
    }
}

/// Checks the shapes of a piece and returns its update; none for a tensor without elements.
fn update(
    weights: &AdapterWeights,
    config: &AdapterConfig,
    placed: &Placed,
    entry: &TensorEntry,
    conv1d: &Conv1d,
) -> Result<Option<Update>, AdapterError> {
    if FloatType::from_dtype(entry.dtype).is_none() {
        return Err(AdapterError::Type {
            path: weights.path.clone(),
            key: weights.key(placed.piece.key()).into(),
            expected: format!(
                "to be for floats, and `{}` is {:?}",
                entry.name, entry.dtype
            ),
            found: "an update".into(),
            hint: OTHER_MODEL,
        });
    }
    let (rank, scale) = config.rank_and_scale(&placed.module);
    let (a, b, magnitude) = match placed.piece {
        TensorUpdate::Linear { a, b, magnitude } | TensorUpdate::Embedding { a, b, magnitude } => {
            (a, b, magnitude)
        }
        TensorUpdate::Bias { bias } => {
            if entry.shape != weights.shape(bias) {
                let expected = format!("{:?}, as `{}` has", entry.shape, entry.name);
                return Err(weights.shape_error(bias, expected, OTHER_MODEL));
            }
            return Ok((entry.elements() > 0).then_some(Update {
                left: Side::One,
                right: Side::Tensor(bias, Order::ByRank),
                rank: 1,
                scale,
                columns: entry.elements() as usize,
                lengths: None,
            }));
        }
        TensorUpdate::Whole { .. } => return Ok(None),
    };
    if is_grouped(weights.shape(a), weights.shape(b), rank, &entry.shape) {
        let expected = format!(
            "[..., {rank}], and `{}` is a grouped convolution",
            entry.name
        );
        return Err(weights.shape_error(b, expected, GROUPED));
    }
    check_ranks(weights, a, b, rank, &placed.module)?;
    let embedding = matches!(placed.piece, TensorUpdate::Embedding { .. });
    let fitting = |lies| fits(&entry.shape, weights.shape(a), weights.shape(b), lies);
    let lies = match (fitting(Lies::OutIn) && !embedding, fitting(Lies::InOut)) {
        (true, true) => conv1d.lies(&placed.module),
        (true, false) => Lies::OutIn,
        (false, true) => Lies::InOut,
        (false, false) => return Err(misfit(weights, a, b, entry)),
    };
    let out = weights.shape(b)[0];
    if let Some(magnitude) = magnitude {
        // A convolution's norms have dimensions of size one around them.
        let long: Vec<usize> = (weights.shape(magnitude).iter().copied())
            .filter(|&dim| dim != 1)
            .collect();
        if weights.tensors[magnitude].elements() != out as u64 || long.len() > 1 {
            let expected = format!("[{out}], a length for each output");
            return Err(weights.shape_error(magnitude, expected, OTHER_CONFIG));
        }
    }
    if entry.elements() == 0 {
        return Ok(None);
    }
    let a = Side::Tensor(a, Order::ByRank);
    let b = Side::Tensor(b, Order::ByPlace);
    Ok(Some(match lies {
        Lies::OutIn => Update {
            left: b,
            right: a,
            rank,
            scale,
            columns: entry.shape[1..].iter().product(),
            lengths: magnitude.map(|magnitude| (magnitude, Norms::of_rows())),
        },
        Lies::InOut => Update {
            left: a,
            right: b,
            rank,
            scale,
            columns: out,
            lengths: magnitude.map(|magnitude| (magnitude, Norms::of_columns())),
        },
    }))
}

/// Whether the factors are those of a grouped convolution: one of them sees all inputs or ranks, and the other, or the
/// kernel, those of its group.
fn is_grouped(a: &[usize], b: &[usize], rank: usize, kernel: &[usize]) -> bool {
    let (&[_, inputs, _, ..], &[_, ranks, _, ..], &[_, of_group, _, ..]) = (a, b, kernel) else {
        return false;
    };
    let is_part =
        |part: usize, whole: usize| part > 0 && part < whole && whole.is_multiple_of(part);
    let kernels = a.get(2..) == kernel.get(2..);
    kernels && (is_part(ranks, rank) || is_part(of_group, inputs))
}

/// Checks that both factors have the rank from the config.
fn check_ranks(
    weights: &AdapterWeights,
    a: usize,
    b: usize,
    rank: usize,
    module: &str,
) -> Result<(), AdapterError> {
    let (shape_a, shape_b) = (weights.shape(a), weights.shape(b));
    if shape_a.len() < 2 || shape_a[0] != rank {
        let expected =
            format!("[{rank}, ...], as adapter_config.json gives `{module}` rank {rank}");
        return Err(weights.shape_error(a, expected, OTHER_CONFIG));
    }
    let ones = shape_b.get(2..).unwrap_or_default();
    if shape_b.len() < 2 || shape_b[1] != rank || ones.iter().any(|&dim| dim != 1) {
        let expected =
            format!("[..., {rank}], as adapter_config.json gives `{module}` rank {rank}");
        return Err(weights.shape_error(b, expected, OTHER_CONFIG));
    }
    Ok(())
}

/// The error for factors whose product has a different shape from the tensor.
fn misfit(weights: &AdapterWeights, a: usize, b: usize, entry: &TensorEntry) -> AdapterError {
    let vocabulary = is_input_embedding(&entry.name) || is_output_head(&entry.name);
    let hint = if vocabulary { RESIZED } else { OTHER_MODEL };
    let expected = format!(
        "a product with {:?} that fits `{}`, of shape {:?}",
        weights.shape(b),
        entry.name,
        entry.shape
    );
    weights.shape_error(a, expected, hint)
}

/// Checks that a tensor of the adapter can replace one of the model.
fn check_whole(
    weights: &AdapterWeights,
    whole: usize,
    entry: &TensorEntry,
) -> Result<(), AdapterError> {
    if weights.shape(whole) != entry.shape {
        let vocabulary = is_input_embedding(&entry.name) || is_output_head(&entry.name);
        let hint = if vocabulary { RESIZED } else { OTHER_MODEL };
        let expected = format!("{:?}, as `{}` has", entry.shape, entry.name);
        return Err(weights.shape_error(whole, expected, hint));
    }
    let found = weights.tensors[whole].dtype;
    let floats =
        FloatType::from_dtype(entry.dtype).is_some() && FloatType::from_dtype(found).is_some();
    // Tensors that are not computed with are copied as bytes.
    if found == entry.dtype || (floats && !is_derived_buffer(&entry.name)) {
        return Ok(());
    }
    Err(AdapterError::Type {
        path: weights.path.clone(),
        key: weights.key(whole).into(),
        expected: format!("{:?}, as `{}` is", entry.dtype, entry.name),
        found: format!("{found:?}"),
        hint: OTHER_MODEL,
    })
}

/// Unties an output head from its embedding if the adapter changes one of them.
fn untie(
    weights: &AdapterWeights,
    config: &AdapterConfig,
    placed: &mut Vec<Placed>,
    found: &mut Vec<Option<usize>>,
    model: &mut Subject,
) -> Result<(), AdapterError> {
    let tied = model
        .config
        .as_ref()
        .and_then(|config| config.tie_word_embeddings());
    let heads: Vec<usize> = (0..placed.len())
        .filter(|&piece| {
            let name = &placed[piece].name;
            is_output_head(name)
                && name.ends_with(".weight")
                && (found[piece].is_none() && tied != Some(false)
                    || found[piece].is_some() && tied == Some(true))
        })
        .collect();
    let embeds = |tensor: &usize| is_input_embedding(&model.tensors[*tensor].name);
    let adapted = found.iter().flatten().copied().find(embeds).map(Embedding);
    if heads.is_empty() {
        if let Some(embedding) = adapted.filter(|_| !config.ensure_weight_tying) {
            match embedding.copied(model) {
                Copied::No => {}
                Copied::Head(name) => {
                    embedding.untie(&name, model);
                    model.notes.push(tied::untied(&weights.path));
                }
                Copied::Unnamed => model.notes.push(tied::both_change(&weights.path)),
            }
        }
        return Ok(());
    }
    if config.ensure_weight_tying && adapted.is_some() {
        // PEFT trained one update for both, and stores it twice.
        let mut at = 0..;
        placed.retain(|_| at.next().is_none_or(|at| !heads.contains(&at)));
        let mut at = 0..;
        found.retain(|_| at.next().is_none_or(|at| !heads.contains(&at)));
        return Ok(());
    }
    for head in heads {
        let piece = &placed[head];
        let wanted = wanted(weights, piece);
        let embedding = Embedding::find(&weights.path, &wanted, model)?;
        found[head] = Some(embedding.untie(&piece.name, model));
    }
    model.notes.push(tied::untied(&weights.path));
    Ok(())
}

/// Decides how square matrices are stored, because their shape does not tell.
struct Conv1d {
    /// Whether the model is of a family whose layers use GPT-2's Conv1D.
    family: bool,
    /// How the adapter's other matrices are stored, if all in the same way; else what its config says.
    otherwise: Lies,
}

impl Conv1d {
    /// The config's `fan_in_fan_out` comes last: PEFT corrects it module by module during training, so it only
    /// describes the last module.
    fn new(
        weights: &AdapterWeights,
        config: &AdapterConfig,
        model: &Subject,
        placed: &[Placed],
        found: &[Option<usize>],
    ) -> Self {
        let kind = model.config.as_ref().and_then(|config| config.model_type());
        let mut seen: Vec<Lies> = Vec::new();
        for (piece, found) in placed.iter().zip(found) {
            let (TensorUpdate::Linear { a, b, .. }, Some(tensor)) = (piece.piece, *found) else {
                continue;
            };
            let shape = &model.tensors[tensor].shape;
            let fitting = |lies| fits(shape, weights.shape(a), weights.shape(b), lies);
            match (fitting(Lies::OutIn), fitting(Lies::InOut)) {
                (true, false) => seen.push(Lies::OutIn),
                (false, true) => seen.push(Lies::InOut),
                _ => {}
            }
        }
        let said = match config.fan_in_fan_out {
            true => Lies::InOut,
            false => Lies::OutIn,
        };
        let unanimous = seen
            .first()
            .filter(|first| seen.iter().all(|lies| lies == *first));
        Self {
            family: kind.is_some_and(has_conv1d),
            otherwise: unanimous.copied().unwrap_or(said),
        }
    }

    fn lies(&self, module: &str) -> Lies {
        let last = module.rsplit('.').next().unwrap_or(module);
        match (self.family, is_conv1d_module(last)) {
            (true, true) => Lies::InOut,
            (true, false) => Lies::OutIn,
            (false, _) => self.otherwise,
        }
    }
}

fn bad_key(weights: &AdapterWeights, tensor: usize, why: &'static str) -> AdapterError {
    AdapterError::Key {
        path: weights.path.clone(),
        key: weights.key(tensor).into(),
        why,
    }
}

fn twice(weights: &AdapterWeights, first: usize, second: usize) -> AdapterError {
    AdapterError::Twice {
        path: weights.path.clone(),
        first: weights.key(first).into(),
        second: weights.key(second).into(),
    }
}
