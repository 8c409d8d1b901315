//! Adapters that were trained after tokens were added, and new rows for single tokens.

use std::collections::BTreeMap;

use super::Change;
use super::config::AdapterConfig;
use super::error::AdapterError;
use super::modules::{OTHER_MODEL, RESIZED};
use super::pieces::{Placed, TensorUpdate};
use super::subject::Subject;
use super::weights::AdapterWeights;
use crate::source::TensorEntry;
use architecture::{is_input_embedding, is_output_head};

/// Whether a tensor of the adapter is that of the model with more or fewer rows, one for each token.
pub(super) fn is_resized(name: &str, of_model: &[usize], of_adapter: &[usize]) -> bool {
    is_of_vocabulary(name)
        && !of_model.is_empty()
        && !of_adapter.is_empty()
        && of_model[0] != of_adapter[0]
        && of_model[1..] == of_adapter[1..]
}

fn is_of_vocabulary(name: &str) -> bool {
    is_input_embedding(name) || is_output_head(name)
}

/// Gives the embeddings and heads that the adapter holds as a whole the adapter's number of rows, and the config too;
/// returns whether any has changed.
pub(super) fn resize(
    weights: &AdapterWeights,
    config: &AdapterConfig,
    placed: &[Placed],
    found: &[Option<usize>],
    model: &mut Subject,
) -> Result<bool, AdapterError> {
    let mut rows: Option<(usize, usize)> = None;
    for (piece, tensor) in placed.iter().zip(found) {
        let Some(tensor) = *tensor else { continue };
        let entry = &model.tensors[tensor];
        let (key, new) = match piece.piece {
            TensorUpdate::Whole { tensor: whole }
                if is_resized(&entry.name, &entry.shape, weights.shape(whole)) =>
            {
                (whole, weights.shape(whole)[0])
            }
            TensorUpdate::Rows { tensor: new } => match added(config, &piece.module, entry) {
                Some(rows) => (new, rows),
                None => continue,
            },
            _ => continue,
        };
        let before = entry.shape[0];
        let (_, wanted) = *rows.get_or_insert((before, new));
        if wanted != new {
            let expected = format!("{wanted} rows, as another tensor of it has");
            return Err(weights.shape_error(key, expected, OTHER_MODEL));
        }
        give_rows(&mut model.tensors[tensor], new);
        if let Some(config) = &mut model.config {
            config.set_vocabulary(before, new);
        }
    }
    model.rows = rows;
    Ok(rows.is_some())
}

/// How many rows an embedding has once rows for new tokens are added: all from its end on.
fn added(config: &AdapterConfig, module: &str, entry: &TensorEntry) -> Option<usize> {
    let tokens = config.tokens_of(module)?;
    let rows = *entry.shape.first()?;
    let mut new: Vec<usize> = tokens
        .iter()
        .copied()
        .filter(|&token| token >= rows)
        .collect();
    new.sort_unstable();
    let is_end = new.iter().copied().eq(rows..rows + new.len());
    (!new.is_empty() && is_end).then(|| rows + new.len())
}

fn give_rows(entry: &mut TensorEntry, rows: usize) {
    let before = entry.shape[0] as u64;
    entry.shape[0] = rows;
    // A tensor without elements has no bytes in a row either.
    entry.len = entry.len.checked_div(before).unwrap_or(0) * rows as u64;
}

/// The tokens whose rows a tensor of the adapter replaces.
pub(super) fn rows(
    weights: &AdapterWeights,
    config: &AdapterConfig,
    tensor: usize,
    module: &str,
    entry: &TensorEntry,
) -> Result<Vec<usize>, AdapterError> {
    let tokens = config.tokens_of(module).unwrap_or_default();
    let &[all, width] = entry.shape.as_slice() else {
        let expected = format!("to be for a matrix, and `{}` is none", entry.name);
        return Err(weights.shape_error(tensor, expected, OTHER_MODEL));
    };
    if weights.shape(tensor) != [tokens.len(), width] {
        let expected = format!(
            "[{}, {width}], a row for each token of `trainable_token_indices`",
            tokens.len()
        );
        return Err(weights.shape_error(tensor, expected, OTHER_MODEL));
    }
    if let Some(token) = tokens.iter().find(|&&token| token >= all) {
        let expected = format!(
            "rows for tokens below {all}, as `{}` has, and one is for {token}",
            entry.name
        );
        return Err(weights.shape_error(tensor, expected, RESIZED));
    }
    Ok(tokens.to_vec())
}

/// Checks that nothing has the model's number of rows where other tensors have the adapter's.
pub(super) fn check(
    weights: &AdapterWeights,
    changes: &BTreeMap<usize, Change>,
    model: &Subject,
) -> Result<(), AdapterError> {
    let Some((before, rows)) = model.rows else {
        return Ok(());
    };
    let new_of = |change: &Change| change.whole.or(change.rows.as_ref().map(|(key, _)| *key));
    for (index, entry) in model.tensors.iter().enumerate() {
        let found = entry.shape.first().copied();
        let is_left = found == Some(before) && is_of_vocabulary(&entry.name);
        // A copy of an embedding has the new rows only by name, until it gets them too.
        let is_new = changes.get(&index).and_then(new_of).is_some();
        let is_short = found == Some(rows) && model.copied.contains(&index) && !is_new;
        if is_left || is_short {
            let expected = format!("rows of the new tokens for `{}` too", entry.name);
            let key = changes.values().find_map(new_of).unwrap_or_default();
            return Err(weights.shape_error(key, expected, RESIZED));
        }
    }
    Ok(())
}
