//! Makes the rows of every router in any mode: made, centred, normalised, divided by the temperature.

use super::rows::{Rows, normalize};
use super::{Recipe, directions, drawn, states};
use checkpoint::Checkpoint;
use errors::Refusal;
use numeric::{Fill, dot, filled};
use recipe::GateMode;

/// Makes the rows of each layer with experts.
///
/// # Errors
///
/// A row has no direction, the rows file does not fit, or states cannot be computed.
pub(super) fn make(
    recipe: &Recipe,
    threads: usize,
    cancelled: &(dyn Fn() -> bool + Sync),
) -> Result<Vec<Rows>, Refusal> {
    let mut layers: Vec<Rows> = match recipe.mode {
        GateMode::Zero => return Ok(vec![Rows::zero(recipe); recipe.names.len()]),
        GateMode::Random | GateMode::UniformRandom | GateMode::Orthogonal => recipe
            .names
            .iter()
            .map(|name| drawn::rows(recipe, name))
            .collect::<Result<_, _>>()?,
        GateMode::File => {
            let Some(file) = &recipe.file else {
                return Err("no file of rows was opened".into());
            };
            let rows = recipe
                .names
                .iter()
                .map(|name| from_file(recipe, file, name));
            rows.collect::<Result<_, _>>()?
        }
        GateMode::CheapEmbed => {
            let rows = states::embedded(recipe, dense(recipe)?)?;
            vec![rows; recipe.names.len()]
        }
        GateMode::Hidden | GateMode::HiddenAvg | GateMode::GateInput => {
            states::hidden(recipe, dense(recipe)?, threads, cancelled)?
        }
        GateMode::TaskVector => {
            let Some(changes) = &recipe.changes else {
                return Err("no models were opened for the routers".into());
            };
            let mut layers = directions::rows(recipe, changes, threads, cancelled)?;
            if !recipe.prompts.is_empty() {
                let states = states::hidden(recipe, dense(recipe)?, threads, cancelled)?;
                for (rows, states) in layers.iter_mut().zip(&states) {
                    rows.turn_towards(states);
                }
            }
            layers
        }
    };
    for (place, (rows, name)) in layers.iter_mut().zip(&recipe.names).enumerate() {
        if recipe.center {
            rows.center(recipe.experts);
        }
        let length = match recipe.beside.as_ref().filter(|_| recipe.normalize) {
            Some(beside) => mean_length(dense(recipe)?, &beside.routers[place], recipe.hidden)?,
            None => 1.0,
        };
        for (expert, row) in rows.iter_mut().enumerate() {
            if recipe.normalize && !normalize(row) {
                return Err(Refusal::new(format!(
                    "the row of expert {expert} of `{name}` has no direction"
                ))
                .with_hint(
                    "its prompts give nothing that tells it from the others: change them, or use `normalize: false`",
                ));
            }
            row.iter_mut()
                .for_each(|value| *value *= length / recipe.temperature);
        }
    }
    Ok(layers)
}

fn dense(recipe: &Recipe) -> Result<&Checkpoint, &'static str> {
    recipe
        .model
        .as_deref()
        .ok_or("no model was opened for the routers")
}

/// The mean length of the rows of an existing router.
fn mean_length(model: &Checkpoint, name: &str, hidden: usize) -> Result<f64, String> {
    let values = values(model, name)?;
    let rows = values.chunks_exact(hidden.max(1));
    let count = rows.len().max(1) as f64;
    Ok(rows.map(|row| dot(row, row).sqrt()).sum::<f64>() / count)
}

/// For each layer with experts, the mean of the mixture's corrections, which added rows get.
pub(super) fn corrections(recipe: &Recipe) -> Result<Vec<f64>, Refusal> {
    let names = recipe
        .beside
        .as_ref()
        .and_then(|beside| beside.corrections.as_ref());
    let mean = |name: &String| -> Result<f64, Refusal> {
        let values = values(dense(recipe)?, name)?;
        Ok(values.iter().sum::<f64>() / values.len().max(1) as f64)
    };
    names.into_iter().flatten().map(mean).collect()
}

/// Reads all values of a small tensor.
fn values(model: &Checkpoint, name: &str) -> Result<Vec<f64>, String> {
    let found = model
        .find(name)
        .and_then(|at| Some((at, model.elements(at)?)));
    let Some((at, elements)) = found else {
        return Err(format!("`{}` has no floats `{name}`", model.label()));
    };
    let length = model.tensors()[at].elements() as usize;
    let mut values = filled(length, 0.0).map_err(|error| error.to_string())?;
    let read = Fill::<f64>::fill(elements.as_ref(), 0, &mut values);
    read.map_err(|error| error.to_string())?;
    match values.iter().all(|value| value.is_finite()) {
        true => Ok(values),
        false => Err(format!(
            "`{name}` of `{}` holds NaN or infinity",
            model.label()
        )),
    }
}

/// The name of a table in the rows file that serves all layers.
const ALL_LAYERS: &str = "rows";

/// Reads the rows of a layer from a file, under the router's name or under `rows`.
fn from_file(recipe: &Recipe, file: &Checkpoint, name: &str) -> Result<Rows, Refusal> {
    let found = file.find(name).or_else(|| file.find(ALL_LAYERS));
    let Some(at) = found else {
        return Err(Refusal::new(format!(
            "`{}` has neither `{name}` nor `{ALL_LAYERS}`",
            file.label()
        ))
        .with_hint(format!(
            "name each layer's rows as the output does, or give `{ALL_LAYERS}` for all layers"
        )));
    };
    let entry = &file.tensors()[at];
    let expected = [recipe.rows(), recipe.hidden];
    if entry.shape != expected {
        return Err(format!(
            "`{}` of `{}` has shape {:?}, expected {expected:?}: a row for each expert",
            entry.name,
            file.label(),
            entry.shape
        )
        .into());
    }
    let Some(elements) = file.elements(at) else {
        return Err(format!("`{}` of `{}` holds no floats", entry.name, file.label()).into());
    };
    let mut rows = Rows::zero(recipe);
    let read = Fill::<f64>::fill(elements.as_ref(), 0, &mut rows.values);
    read.map_err(|error| error.to_string())?;
    match rows.values.iter().all(|value| value.is_finite()) {
        true => Ok(rows),
        false => Err(format!(
            "`{}` of `{}` holds NaN or infinity",
            entry.name,
            file.label()
        )
        .into()),
    }
}
