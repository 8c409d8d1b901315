//! Which tensors have a row for each token, and how each of them is aligned.

use std::sync::Arc;

use serde_json::Value;

use super::Alignment;
use crate::{SourceTensor, StackedRows, View};
use architecture::{is_input_embedding, is_output_head};
use checkpoint::TensorEntry;
use numeric::FloatType;

/// A tensor whose sources are aligned by token.
pub(crate) struct Aligned {
    /// Its shape in the output.
    pub(crate) shape: Vec<usize>,
    /// For each source, its rows; `None` if they are already right.
    pub(crate) views: Vec<Option<View>>,
}

/// Which axis of a shape is the vocabulary.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Axis {
    First,
    /// The second of two; the first has size one.
    Row,
}

/// Whether the config has a number of this value under a name other than the vocabulary's.
fn is_said_of_something_else(config: &Value, number: usize) -> bool {
    let equal = |value: &Value| value.as_u64() == Some(number as u64);
    match config {
        Value::Object(entries) => entries.iter().any(|(key, value)| {
            (equal(value) && !key.contains("vocab") && !key.contains("token"))
                || is_said_of_something_else(value, number)
        }),
        Value::Array(items) => items
            .iter()
            .any(|item| is_said_of_something_else(item, number)),
        _ => false,
    }
}

fn is_in_a_layer(name: &str) -> bool {
    name.split('.')
        .any(|part| !part.is_empty() && part.bytes().all(|byte| byte.is_ascii_digit()))
}

impl Alignment<'_> {
    /// The alignment of one output tensor; `None` if it has no rows for tokens, or if all sources have the right rows.
    ///
    /// `find` returns the tensor of a model that goes into it.
    ///
    /// # Errors
    /// Why the alignment is impossible, in words.
    pub(crate) fn tensor(
        &self,
        name: &str,
        group: &[usize],
        base: Option<usize>,
        find: &dyn Fn(usize) -> Option<usize>,
    ) -> Result<Option<Aligned>, String> {
        let found: Vec<(usize, usize)> = group
            .iter()
            .filter_map(|&model| Some((model, find(model)?)))
            .collect();
        let entry = |(model, tensor): (usize, usize)| -> &TensorEntry {
            &self.models.checkpoints[model].tensors()[tensor]
        };
        let rows_of = |model: usize| self.tokens[model].as_ref().map_or(0, |tokens| tokens.rows);
        let all = |fits: &dyn Fn(&[usize], usize) -> bool| {
            !found.is_empty()
                && found
                    .iter()
                    .all(|&(model, tensor)| fits(&entry((model, tensor)).shape, rows_of(model)))
        };
        let by_name = is_input_embedding(name) || is_output_head(name);
        let first = all(&|shape, rows| shape.first() == Some(&rows));
        let row = all(&|shape, rows| shape == [1, rows]);
        let touches = first || row || all(&|shape, rows| shape.contains(&rows));
        if !by_name && (!touches || is_in_a_layer(name) || self.is_ambiguous(group)) {
            return Ok(None);
        }
        let group_rows = self.group_rows(group, base);
        let trivial = group
            .iter()
            .zip(&group_rows.maps)
            .all(|(&model, map)| rows_of(model) == self.rows && map.is_identity(self.rows));
        if trivial {
            return Ok(None);
        }
        let axis = match (first, row) {
            (true, _) => Axis::First,
            (_, true) => Axis::Row,
            _ if by_name => {
                let odd = found
                    .iter()
                    .find(|&&(model, tensor)| {
                        entry((model, tensor)).shape.first() != Some(&rows_of(model))
                    })
                    .map(|&(model, tensor)| (model, entry((model, tensor))));
                let Some((model, odd)) = odd else {
                    return Ok(None);
                };
                let label = self.models.label(model);
                return Err(format!(
                    "`{}` of `{label}` should have a row for each token, has shape {:?}, and the embedding of `{label}` \
                     has {} rows: it can't be aligned",
                    odd.name,
                    odd.shape,
                    rows_of(model)
                ));
            }
            _ => {
                self.alike.borrow_mut().push(name.to_owned());
                return Ok(None);
            }
        };
        if !by_name {
            self.by_shape.borrow_mut().push(name.to_owned());
        }
        let Some(rest) = found.first().map(|&found| rest(entry(found), axis)) else {
            return Ok(None);
        };
        // Other shapes are reported elsewhere, as for any tensor.
        if found
            .iter()
            .any(|&found| self::rest(entry(found), axis) != rest)
        {
            return Ok(None);
        }
        let mut shape = match axis {
            Axis::First => vec![self.rows],
            Axis::Row => vec![1, self.rows],
        };
        shape.extend(rest);
        let width = rest.iter().product();
        let mut aligned = Vec::with_capacity(group.len());
        for (&model, map) in group.iter().zip(&group_rows.maps) {
            let Some(own) = find(model) else {
                aligned.push(None);
                continue;
            };
            if rows_of(model) == self.rows && map.is_identity(self.rows) {
                aligned.push(None);
                continue;
            }
            let own = SourceTensor { model, tensor: own };
            let mut parts = vec![own];
            for part in &group_rows.parts {
                parts.push(match *part {
                    None => own,
                    Some(other) => self.part(name, other, axis, rest, find)?,
                });
            }
            for part in &parts {
                let of = entry((part.model, part.tensor));
                if FloatType::from_dtype(of.dtype).is_none() {
                    return Err(format!(
                        "`{}` of `{}` holds {:?}, expected floats to align by token",
                        of.name,
                        self.models.label(part.model),
                        of.dtype
                    ));
                }
            }
            aligned.push(Some(View::StackedRows(StackedRows {
                parts,
                map: Arc::clone(map),
                width,
            })));
        }
        Ok(Some(Aligned {
            shape,
            views: aligned,
        }))
    }

    /// Whether something else has the same number of rows, so that the shape alone does not identify a vocabulary.
    fn is_ambiguous(&self, group: &[usize]) -> bool {
        group.iter().any(|&model| {
            let rows = self.tokens[model].as_ref().map_or(0, |tokens| tokens.rows);
            let config = self.models.checkpoints[model].config();
            rows < 2 || config.is_none_or(|config| is_said_of_something_else(config.value(), rows))
        })
    }

    /// The tensor of another model from which rows are taken.
    fn part(
        &self,
        name: &str,
        model: usize,
        axis: Axis,
        rest: &[usize],
        find: &dyn Fn(usize) -> Option<usize>,
    ) -> Result<SourceTensor, String> {
        let (label, tokens) = (self.models.label(model), self.tokens[model].as_ref());
        let checkpoint = &self.models.checkpoints[model];
        let head_or_embedding = || {
            // A model that is not merged may spell its names differently, or tie its head.
            let tensors = checkpoint.tensors().iter();
            let head = tensors.clone().position(|tensor| {
                is_output_head(&tensor.name) && tensor.name.ends_with(".weight")
            });
            let embedding = tokens.map(|tokens| tokens.embedding);
            match is_output_head(name) && name.ends_with(".weight") {
                true => head.or(embedding),
                false => embedding.filter(|_| is_input_embedding(name)),
            }
        };
        let tensor = find(model)
            .or_else(|| checkpoint.find(name))
            .or_else(head_or_embedding);
        let Some(tensor) = tensor else {
            return Err(format!("`{label}` has no `{name}` to take rows from"));
        };
        let entry = &checkpoint.tensors()[tensor];
        let rows = tokens.map_or(0, |tokens| tokens.rows);
        let expected: Vec<usize> = match axis {
            Axis::First => [&[rows], rest].concat(),
            Axis::Row => vec![1, rows],
        };
        if entry.shape != expected {
            return Err(format!(
                "`{}` of `{label}` has shape {:?}, expected {expected:?} to take rows from",
                entry.name, entry.shape
            ));
        }
        Ok(SourceTensor { model, tensor })
    }
}

/// The shape of a row.
fn rest(entry: &TensorEntry, axis: Axis) -> &[usize] {
    match axis {
        Axis::First => entry.shape.get(1..).unwrap_or_default(),
        Axis::Row => &[],
    }
}
