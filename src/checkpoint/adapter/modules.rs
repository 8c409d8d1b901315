//! Finds the model's tensor for each piece of an adapter, and checks its shapes.

use std::collections::BTreeMap;

use super::config::AdapterConfig;
use super::conv1d::Conv1d;
use super::cuts::{Lies, Placement, placement};
use super::error::{AdapterError, OTHER_CONFIG};
use super::lycoris::PairPiece;
use super::pieces::{Placed, ProductPiece, TensorUpdate};
use super::subject::Subject;
use super::targets::{ChangedTensor, Targets};
use super::tied::{self, Copied, Embedding};
use super::vocabulary;
use super::weights::{AdapterWeights, twice};
use super::{Added, Change, Side, Update};
use crate::source::TensorEntry;
use architecture::{is_derived_buffer, is_input_embedding, is_output_head};
use numeric::{FloatType, Norms, Order};

pub(super) const OTHER_MODEL: &str = "name the model that the adapter was trained on";
const GROUPED: &str = "the update of a grouped convolution is no product of two matrices: merge the adapter with PEFT \
                       (`merge_and_unload`) and name the result";
pub(super) const RESIZED: &str = "the adapter was trained after tokens were added: resize the model's embeddings \
                                  (`resize_token_embeddings`), save it, and name that model";

/// The changes that the adapter makes, by tensor of the model.
pub(super) fn place(
    weights: &AdapterWeights,
    config: &AdapterConfig,
    mut placed: Vec<Placed>,
    model: &mut Subject,
) -> Result<BTreeMap<usize, Change>, AdapterError> {
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
    let resized = vocabulary::resize(weights, config, &placed, &found, model)?;
    untie(weights, config, resized, &mut placed, &mut found, model)?;

    let conv1d = Conv1d::new(weights, config, model, &placed, &found);
    let mut changes: BTreeMap<usize, Change> = BTreeMap::new();
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
        let change = changes.entry(tensor).or_default();
        match &piece.piece {
            TensorUpdate::Whole { tensor } => {
                check_whole(weights, *tensor, entry)?;
                if let Some(first) = change.whole.replace(*tensor) {
                    return Err(twice(weights, first, *tensor));
                }
            }
            TensorUpdate::Rows { tensor } => {
                let rows = vocabulary::rows(weights, config, *tensor, &piece.module, entry)?;
                if let Some((first, _)) = change.rows.replace((*tensor, rows)) {
                    return Err(twice(weights, first, *tensor));
                }
            }
            TensorUpdate::Product(product) => {
                let update = update(weights, piece, product, entry, &conv1d)?;
                change.updates.extend(update);
            }
            TensorUpdate::Pair(pair) => {
                let update = pair_update(weights, piece, pair, entry, &conv1d)?;
                change.updates.extend(update);
            }
            TensorUpdate::Bias { bias, scale } => {
                let update = bias_update(weights, *bias, *scale, entry)?;
                change.updates.extend(update);
            }
        }
    }
    for change in changes.values_mut() {
        in_order(weights, change)?;
    }
    vocabulary::check(weights, &changes, model)?;
    Ok(changes)
}

/// Sorts the updates of a tensor; no two may be for the same elements.
fn in_order(weights: &AdapterWeights, change: &mut Change) -> Result<(), AdapterError> {
    change.updates.sort_by_key(|update| update.first);
    for pair in change.updates.windows(2) {
        if let [one, other] = pair
            && other.first < one.end()
        {
            return Err(twice(weights, one.key, other.key));
        }
    }
    match (&change.rows, change.updates.first()) {
        (Some((rows, _)), Some(update)) => Err(twice(weights, *rows, update.key)),
        _ => Ok(()),
    }
}

/// The tensor of the model that a piece needs.
fn wanted<'a>(weights: &'a AdapterWeights, placed: &'a Placed) -> ChangedTensor<'a> {
    let piece = &placed.piece;
    ChangedTensor {
        name: placed.name.clone(),
        key: weights.key(piece.key()),
        fits: Box::new(move |shape| match piece {
            TensorUpdate::Product(piece) => [Lies::OutIn, Lies::InOut]
                .into_iter()
                .any(|lies| fits(weights, piece, shape, lies).is_some()),
            TensorUpdate::Pair(pair) => pair.fits(shape).is_some(),
            TensorUpdate::Bias { bias, .. } => shape == weights.shape(*bias),
            TensorUpdate::Whole { tensor } => {
                shape == weights.shape(*tensor)
                    || vocabulary::is_resized(&placed.name, shape, weights.shape(*tensor))
            }
            TensorUpdate::Rows { tensor } => shape.get(1) == weights.shape(*tensor).get(1),
        }),
    }
}

/// Where an update goes in a tensor of that shape, if it fits.
fn fits(
    weights: &AdapterWeights,
    piece: &ProductPiece,
    shape: &[usize],
    lies: Lies,
) -> Option<Placement> {
    if piece.is_embedding && lies == Lies::OutIn {
        return None;
    }
    let (a, b) = (weights.shape(piece.a), weights.shape(piece.b));
    placement(shape, a, b, &piece.cut, lies)
}

/// The error for an update of a tensor that holds no floats.
fn check_floats(
    weights: &AdapterWeights,
    key: usize,
    entry: &TensorEntry,
) -> Result<(), AdapterError> {
    if FloatType::from_dtype(entry.dtype).is_some() {
        return Ok(());
    }
    Err(AdapterError::Type {
        path: weights.path.clone(),
        key: weights.key(key).into(),
        expected: format!(
            "to be for floats, and `{}` is {:?}",
            entry.name, entry.dtype
        ),
        found: "an update".into(),
        hint: OTHER_MODEL,
    })
}

/// Checks the shape of a vector that is added to a bias; none for one without elements.
fn bias_update(
    weights: &AdapterWeights,
    bias: usize,
    scale: f64,
    entry: &TensorEntry,
) -> Result<Option<Update>, AdapterError> {
    check_floats(weights, bias, entry)?;
    if entry.shape != weights.shape(bias) {
        let expected = format!("{:?}, as `{}` has", entry.shape, entry.name);
        return Err(weights.shape_error(bias, expected, OTHER_MODEL));
    }
    Ok((entry.elements() > 0).then_some(Update {
        key: bias,
        first: 0,
        rows: 1,
        columns: entry.elements() as usize,
        scale,
        added: Added::Product {
            left: Side::One,
            right: Side::Tensor(bias, Order::ByRank),
            rank: 1,
            lengths: None,
        },
    }))
}

/// Checks the shape of a product of two matrices and returns its update; none for a tensor without elements.
fn pair_update(
    weights: &AdapterWeights,
    placed: &Placed,
    pair: &PairPiece,
    entry: &TensorEntry,
    conv1d: &Conv1d,
) -> Result<Option<Update>, AdapterError> {
    let key = pair.key();
    check_floats(weights, key, entry)?;
    if conv1d.lies(&placed.module) == Lies::InOut {
        let name = &entry.name;
        let expected = format!(
            "to be for a weight that is stored [out, in], and `{name}` is stored [in, out]"
        );
        return Err(weights.shape_error(key, expected, OTHER_MODEL));
    }
    let Some(at) = pair.fits(&entry.shape) else {
        let expected = format!(
            "a part of a product that fits `{}`, of shape {:?}, and the product is {:?}",
            entry.name,
            entry.shape,
            pair.shape()
        );
        return Err(weights.shape_error(key, expected, OTHER_MODEL));
    };
    Ok((entry.elements() > 0).then(|| Update {
        key,
        first: at.first,
        rows: at.rows,
        columns: at.columns,
        scale: pair.scale,
        added: Added::Pair {
            pair: Box::new(pair.clone()),
            first_row: at.from,
        },
    }))
}

/// Checks the shapes of two factors and returns their update; none for a tensor without elements.
fn update(
    weights: &AdapterWeights,
    placed: &Placed,
    piece: &ProductPiece,
    entry: &TensorEntry,
    conv1d: &Conv1d,
) -> Result<Option<Update>, AdapterError> {
    let ProductPiece { a, b, rank, .. } = *piece;
    check_floats(weights, a, entry)?;
    if is_grouped(weights.shape(a), weights.shape(b), rank, &entry.shape) {
        let expected = format!(
            "[..., {rank}], and `{}` is a grouped convolution",
            entry.name
        );
        return Err(weights.shape_error(b, expected, GROUPED));
    }
    check_ranks(weights, piece, &placed.module)?;
    let fitting = |lies| fits(weights, piece, &entry.shape, lies);
    let (lies, at) = match (fitting(Lies::OutIn), fitting(Lies::InOut)) {
        (Some(out_in), Some(in_out)) => {
            match placed.lies.unwrap_or_else(|| conv1d.lies(&placed.module)) {
                Lies::OutIn => (Lies::OutIn, out_in),
                Lies::InOut => (Lies::InOut, in_out),
            }
        }
        (Some(at), None) => (Lies::OutIn, at),
        (None, Some(at)) => (Lies::InOut, at),
        (None, None) => return Err(misfit(weights, a, b, entry)),
    };
    let out = weights.shape(b)[0];
    if let Some(magnitude) = piece.magnitude {
        // A convolution's norms have dimensions of size one around them.
        let long: Vec<usize> = (weights.shape(magnitude).iter().copied())
            .filter(|&dim| dim != 1)
            .collect();
        if weights.tensors()[magnitude].elements() != out as u64 || long.len() > 1 {
            let expected = format!("[{out}], a length for each output");
            return Err(weights.shape_error(magnitude, expected, OTHER_CONFIG));
        }
    }
    if entry.elements() == 0 {
        return Ok(None);
    }
    let (a, b) = (Side::Tensor(a, at.a), Side::Tensor(b, at.b));
    let (left, right, norms) = match lies {
        Lies::OutIn => (b, a, Norms::of_rows()),
        Lies::InOut => (a, b, Norms::of_columns()),
    };
    Ok(Some(Update {
        key: piece.a,
        first: at.first,
        rows: at.rows,
        columns: at.columns,
        scale: piece.scale,
        added: Added::Product {
            left,
            right,
            rank,
            lengths: piece.magnitude.map(|magnitude| (magnitude, norms)),
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
    piece: &ProductPiece,
    module: &str,
) -> Result<(), AdapterError> {
    let ProductPiece { a, b, rank, .. } = *piece;
    let (shape_a, shape_b) = (weights.shape(a), weights.shape(b));
    let ranks = rank.saturating_mul(piece.cut.experts());
    let (why, hint) = match weights.is_single {
        true => (
            format!("the rank of `{}`", weights.key(a)),
            "copy or download the file again",
        ),
        false => (
            format!("as adapter_config.json gives `{module}` rank {rank}"),
            OTHER_CONFIG,
        ),
    };
    if shape_a.len() < 2 || shape_a[0] != ranks {
        let expected = format!("[{ranks}, ...], {why}");
        return Err(weights.shape_error(a, expected, hint));
    }
    let ones = shape_b.get(2..).unwrap_or_default();
    if shape_b.len() < 2 || shape_b[1] != ranks || ones.iter().any(|&dim| dim != 1) {
        let expected = format!("[..., {ranks}], {why}");
        return Err(weights.shape_error(b, expected, hint));
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
    let found = weights.tensors()[whole].dtype;
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
    resized: bool,
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
    let embeds = |at: &usize| {
        found[*at].is_some_and(|tensor| is_input_embedding(&model.tensors[tensor].name))
    };
    let embedding = (0..placed.len()).find(embeds);
    let adapted = embedding.and_then(|at| found[at]).map(Embedding);
    if heads.is_empty() {
        // PEFT gives new rows for tokens to both.
        let rows =
            embedding.is_some_and(|at| matches!(placed[at].piece, TensorUpdate::Rows { .. }));
        if let Some(embedding) = adapted.filter(|_| !config.ensure_weight_tying && !rows) {
            match embedding.copied(model) {
                Copied::No => {}
                // The model's own embedding has no rows for the new tokens.
                Copied::Head(_) if resized => {
                    model.notes.push(tied::both_change(&weights.path));
                }
                Copied::Head(name) => {
                    embedding.untie(&name, model);
                    model.notes.push(tied::untied(&weights.path));
                }
                Copied::Unnamed => model.notes.push(tied::both_change(&weights.path)),
            }
        }
        return Ok(());
    }
    let is_copy = |&head: &usize| match embedding.map(|at| (&placed[at].piece, &placed[head].piece))
    {
        Some((TensorUpdate::Whole { tensor: one }, TensorUpdate::Whole { tensor: other })) => {
            weights.are_equal(*one, *other)
        }
        _ => false,
    };
    // PEFT trained one update for both, and stores it twice.
    let are_one = config.ensure_weight_tying && adapted.is_some();
    if are_one || heads.iter().all(is_copy) {
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
