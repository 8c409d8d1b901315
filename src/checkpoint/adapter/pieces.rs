//! What an adapter's tensors are, module by module: PEFT's names, grouped.

use std::collections::BTreeMap;

use super::config::AdapterConfig;
use super::cuts::{Cut, Lies};
use super::error::AdapterError;
use super::experts::ModelExperts;
use super::keys::{self, FactorPart, Key};
use super::lycoris::{PairParts, PairPiece};
use super::subject::Subject;
use super::weights::{AdapterWeights, bad_key, half, twice};

/// What the adapter holds for one tensor of the model, or for a part of it.
#[derive(Debug, Clone)]
pub(super) enum TensorUpdate {
    /// A product of two factors.
    Product(ProductPiece),
    /// A product of two matrices: LoHa or LoKr.
    Pair(Box<PairPiece>),
    /// A vector added to a bias.
    Bias {
        /// The vector.
        bias: usize,
        /// What it is multiplied with.
        scale: f64,
    },
    /// A whole tensor.
    Whole {
        /// The tensor.
        tensor: usize,
    },
    /// Rows for some tokens.
    Rows {
        /// The rows.
        tensor: usize,
    },
}

/// Two factors, with the norms of DoRA.
#[derive(Debug, Clone)]
pub(super) struct ProductPiece {
    pub(super) a: usize,
    pub(super) b: usize,
    pub(super) magnitude: Option<usize>,
    /// Of an embedding, not of a linear map or a convolution.
    pub(super) is_embedding: bool,
    pub(super) rank: usize,
    pub(super) scale: f64,
    pub(super) cut: Cut,
}

/// A piece and its target.
#[derive(Debug, Clone)]
pub(super) struct Placed {
    /// The module or parameter, as `rank_pattern` matches it.
    pub(super) module: String,
    /// The tensor's name in the model that the adapter was trained on.
    pub(super) name: String,
    /// How the matrix lies, where that is known.
    pub(super) lies: Option<Lies>,
    pub(super) piece: TensorUpdate,
}

impl TensorUpdate {
    /// One of its adapter tensors, to name it by.
    pub(super) fn key(&self) -> usize {
        match self {
            TensorUpdate::Product(ProductPiece { a, .. }) => *a,
            TensorUpdate::Pair(pair) => pair.key(),
            TensorUpdate::Bias { bias, .. } => *bias,
            TensorUpdate::Whole { tensor } | TensorUpdate::Rows { tensor } => *tensor,
        }
    }
}

/// The parts of a module's update, by what they are.
type Parts = BTreeMap<FactorPart, usize>;

/// The keys of an adapter, grouped.
#[derive(Default)]
struct Keys {
    /// By module, and by how deep PEFT wrapped it.
    modules: BTreeMap<(String, usize), Parts>,
    /// LoHa's and LoKr's.
    pairs: BTreeMap<String, PairParts>,
    wholes: BTreeMap<String, usize>,
    originals: Vec<(String, usize)>,
    rows: BTreeMap<String, usize>,
}

impl Keys {
    fn read(weights: &AdapterWeights) -> Result<Keys, AdapterError> {
        let mut keys = Keys::default();
        for (index, tensor) in weights.tensors().iter().enumerate() {
            let key = keys::parse(&tensor.name).map_err(|why| bad_key(weights, index, why))?;
            let before = match key {
                Key::FactorPart {
                    module,
                    depth,
                    part,
                } => {
                    let parts = keys.modules.entry((module, depth)).or_default();
                    parts.insert(part, index)
                }
                Key::PairPart { module, part } => {
                    keys.pairs.entry(module).or_default().insert(part, index)
                }
                // Trainers save some modules under two names.
                Key::Whole { name } => (keys.wholes.insert(name, index))
                    .filter(|&before| !weights.are_equal(before, index)),
                Key::TokenRows { module } => keys.rows.insert(module, index),
                Key::Original { name } => {
                    keys.originals.push((name, index));
                    None
                }
            };
            if let Some(first) = before {
                return Err(twice(weights, first, index));
            }
        }
        for (name, index) in &keys.originals {
            if !keys.wholes.contains_key(name) {
                let why = "is the model's own tensor, and the one that replaces it is not there";
                return Err(bad_key(weights, *index, why));
            }
        }
        Ok(keys)
    }
}

/// Parses every name and groups the parts.
pub(super) fn gather(
    weights: &AdapterWeights,
    config: &AdapterConfig,
    model: &Subject,
) -> Result<Vec<Placed>, AdapterError> {
    let keys = Keys::read(weights)?;
    let experts = ModelExperts::of(model);
    let mut placed = Vec::with_capacity(keys.modules.len() + keys.wholes.len());
    for ((module, depth), parts) in keys.modules {
        for part in parts.values() {
            weights.check_float(*part)?;
        }
        let weight = format!("{module}.weight");
        let mut parameters = config.parameters_of(&module);
        // `down_proj` may be a parameter of every module, by its name.
        parameters.retain(|name| experts.has(name));
        if depth > 0 && parameters.is_empty() {
            let a = parts.values().next().copied().unwrap_or_default();
            let why = "is for one of several parameters of a module, and the model has none that \
                       `target_parameters` names";
            return Err(bad_key(weights, a, why));
        }
        if !parameters.is_empty() {
            let (a, b) = factors_of_parameter(weights, &parts)?;
            placed.extend(experts.of_parameter(weights, config, &parameters, (a, b))?);
            continue;
        }
        // A parameter that is a module's `weight` has a rank by its own name.
        let ranked = match config.is_target(&weight) {
            true => weight.clone(),
            false => module.clone(),
        };
        for piece in pieces(weights, config, &ranked, &parts)? {
            let end = match piece {
                TensorUpdate::Bias { .. } => "bias",
                _ => "weight",
            };
            let name = format!("{module}.{end}");
            placed.push(moved(&experts, ranked.clone(), name, piece));
        }
    }
    for (module, parts) in keys.pairs {
        let piece = pair(weights, config, &module, &parts)?;
        let name = format!("{module}.weight");
        placed.push(moved(
            &experts,
            module,
            name,
            TensorUpdate::Pair(Box::new(piece)),
        ));
    }
    placed.extend(keys.wholes.into_iter().map(|(name, tensor)| Placed {
        module: String::new(),
        name,
        lies: None,
        piece: TensorUpdate::Whole { tensor },
    }));
    for (module, tensor) in keys.rows {
        weights.check_float(tensor)?;
        placed.push(Placed {
            name: format!("{module}.weight"),
            module,
            lies: None,
            piece: TensorUpdate::Rows { tensor },
        });
    }
    Ok(placed)
}

/// A piece where the model has its tensor: of a mixture in the other layout, it is for a part of a fused one.
fn moved(experts: &ModelExperts<'_>, module: String, name: String, piece: TensorUpdate) -> Placed {
    let elsewhere = match &piece {
        TensorUpdate::Product(piece) if piece.magnitude.is_none() => experts.elsewhere(&name),
        TensorUpdate::Pair(_) => experts.elsewhere(&name),
        _ => None,
    };
    let (name, piece) = match (elsewhere, piece) {
        (Some((name, cut)), TensorUpdate::Product(piece)) => {
            (name, TensorUpdate::Product(ProductPiece { cut, ..piece }))
        }
        (Some((name, cut)), TensorUpdate::Pair(piece)) => {
            (name, TensorUpdate::Pair(Box::new(piece.with_cut(cut))))
        }
        (_, piece) => (name, piece),
    };
    Placed {
        module,
        name,
        lies: None,
        piece,
    }
}

/// The factors of a parameter that is adapted by its own name: there is nothing else.
fn factors_of_parameter(
    weights: &AdapterWeights,
    parts: &Parts,
) -> Result<(usize, usize), AdapterError> {
    let mut other = (parts.iter())
        .filter(|(part, _)| !matches!(part, FactorPart::A | FactorPart::B))
        .map(|(_, index)| *index);
    if let Some(other) = other.next() {
        let why = "is for a parameter (`target_parameters`), of which only factors are adapted";
        return Err(bad_key(weights, other, why));
    }
    match (parts.get(&FactorPart::A), parts.get(&FactorPart::B)) {
        (Some(&a), Some(&b)) => Ok((a, b)),
        (Some(&a), None) => Err(half(weights, a, "lora_B")),
        (None, b) => Err(half(weights, b.copied().unwrap_or_default(), "lora_A")),
    }
}

/// The update of a module's weight by LoHa or LoKr.
fn pair(
    weights: &AdapterWeights,
    config: &AdapterConfig,
    module: &str,
    parts: &PairParts,
) -> Result<PairPiece, AdapterError> {
    let piece = PairPiece::read(weights, parts)?;
    if config.pair != Some(piece.kind) {
        let why = "is of a kind of adapter other than the `peft_type` of adapter_config.json";
        return Err(bad_key(weights, piece.key(), why));
    }
    let (rank, scale) = config.rank_and_scale(module);
    piece.check_rank(weights, module, rank)?;
    Ok(piece.with_scale(scale))
}

/// The update of a module's weight, and that of its bias.
fn pieces(
    weights: &AdapterWeights,
    config: &AdapterConfig,
    module: &str,
    parts: &Parts,
) -> Result<Vec<TensorUpdate>, AdapterError> {
    if let (Some(_), Some(&there)) = (config.pair, parts.values().next()) {
        let why = "is of LoRA, and the `peft_type` of adapter_config.json is another";
        return Err(bad_key(weights, there, why));
    }
    let part = |part| parts.get(&part).copied();
    let magnitude = part(FactorPart::Magnitude);
    let linear = (part(FactorPart::A), part(FactorPart::B));
    let embedding = (part(FactorPart::EmbeddingA), part(FactorPart::EmbeddingB));
    let (a, b) = match (linear, embedding) {
        ((Some(a), Some(b)), (None, None)) | ((None, None), (Some(a), Some(b))) => (a, b),
        ((Some(a), None), _) => return Err(half(weights, a, "lora_B")),
        ((None, Some(b)), _) => return Err(half(weights, b, "lora_A")),
        (_, (Some(a), None)) => return Err(half(weights, a, "lora_embedding_B")),
        (_, (None, Some(b))) => return Err(half(weights, b, "lora_embedding_A")),
        ((Some(first), _), (Some(second), _)) => return Err(twice(weights, first, second)),
        ((None, None), (None, None)) => {
            let there = parts.values().next().copied().unwrap_or_default();
            return Err(half(weights, there, "lora_A and lora_B"));
        }
    };
    match magnitude {
        None if config.dora => {
            return Err(half(
                weights,
                a,
                "lora_magnitude_vector (`use_dora` is true)",
            ));
        }
        Some(magnitude) if !config.dora => {
            let why = "is there though `use_dora` is not set in adapter_config.json";
            return Err(bad_key(weights, magnitude, why));
        }
        _ => {}
    }
    let (rank, scale) = config.rank_and_scale(module);
    let mut pieces = vec![TensorUpdate::Product(ProductPiece {
        a,
        b,
        magnitude,
        is_embedding: linear.0.is_none(),
        rank,
        scale,
        cut: Cut::WHOLE,
    })];
    pieces.extend(part(FactorPart::BiasOfB).map(|bias| TensorUpdate::Bias { bias, scale }));
    Ok(pieces)
}
