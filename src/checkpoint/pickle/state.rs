//! Finds the state dict in a pickle's value: names and tensors, ignored entries, and values that are not a state dict.

use std::collections::HashSet;
use std::path::Path;

use super::machine::Unpickled;
use super::objects::{Object, Tensor, Value};
use super::torch::SAVE_AGAIN;
use crate::bounded::plain;
use crate::error::CheckpointError;
use crate::header::check_name;

/// The keys under which trainers save the state dict.
const WRAPPERS: [&str; 4] = ["state_dict", "model_state_dict", "model", "module"];

/// The most entries that a note or an error names.
const NAMED: usize = 4;

/// Tensors by name, in the order of the file, and notes.
#[derive(Debug)]
pub(super) struct State<'a> {
    pub(super) tensors: Named<'a>,
    pub(super) notes: Vec<String>,
}

/// Tensors and their names.
type Named<'a> = Vec<(&'a str, Tensor)>;

/// The entries of a dict.
type Entries<'o, 'a> = &'o [(Value<'a>, Value<'a>)];

/// Finds the tensors in a pickle's value.
pub(super) fn state_dict<'a>(
    path: &Path,
    pickle: &Unpickled<'a>,
) -> Result<State<'a>, CheckpointError> {
    let Some(root) = pickle.objects.dict(pickle.root) else {
        return Err(not_a_state_dict(path, pickle.objects.describe(pickle.root)));
    };
    let mut notes = Vec::new();
    let has_tensors =
        |entries: Entries<'_, 'a>| entries.iter().any(|(_, value)| is_tensor(pickle, *value));
    let mut entries = root;
    if !has_tensors(root) {
        let mut wrapped = root.iter().filter_map(|(key, value)| match key {
            Value::Text(key) if WRAPPERS.contains(key) => {
                let entries = pickle.objects.dict(*value)?;
                has_tensors(entries).then_some((*key, entries))
            }
            _ => None,
        });
        let (Some((wrapper, inner)), None) = (wrapped.next(), wrapped.next()) else {
            return Err(not_a_state_dict(path, listed(pickle, root)));
        };
        let others: Vec<String> = root
            .iter()
            .filter(|(key, _)| *key != Value::Text(wrapper))
            .map(|(key, _)| key_name(pickle, *key))
            .collect();
        let aside = match others.is_empty() {
            true => String::new(),
            false => format!("; left aside: {}", some(&others)),
        };
        notes.push(format!(
            "{}: the tensors are those of its entry `{wrapper}`{aside}",
            path.display()
        ));
        entries = inner;
    }
    let (tensors, aside) = tensors(path, pickle, entries)?;
    if !aside.is_empty() {
        notes.push(format!(
            "{}: left aside, as they are no tensors: {}",
            path.display(),
            some(&aside)
        ));
    }
    Ok(State { tensors, notes })
}

/// The tensors of a dict, and the names of plain values beside them.
fn tensors<'a>(
    path: &Path,
    pickle: &Unpickled<'a>,
    entries: Entries<'_, 'a>,
) -> Result<(Named<'a>, Vec<String>), CheckpointError> {
    let mut tensors = Vec::new();
    let mut aside = Vec::new();
    let mut seen = HashSet::with_capacity(entries.len());
    for &(key, value) in entries {
        let tensor = match pickle.objects.get(value) {
            Some(Object::Tensor(tensor)) => *tensor,
            Some(Object::Dict(inner)) if inner.is_empty() => {
                aside.push(key_name(pickle, key));
                continue;
            }
            None if !matches!(value, Value::Global(_)) => {
                aside.push(key_name(pickle, key));
                continue;
            }
            _ => return Err(not_a_state_dict(path, listed(pickle, entries))),
        };
        let Value::Text(name) = key else {
            return Err(not_a_state_dict(path, listed(pickle, entries)));
        };
        check_name(path, name)?;
        if !seen.insert(name) {
            return Err(CheckpointError::DuplicateKey {
                path: path.into(),
                tensor: name.into(),
            });
        }
        tensors.push((name, tensor));
    }
    Ok((tensors, aside))
}

fn is_tensor(pickle: &Unpickled, value: Value) -> bool {
    matches!(pickle.objects.get(value), Some(Object::Tensor(_)))
}

fn key_name(pickle: &Unpickled, key: Value) -> String {
    match key {
        Value::Text(key) => format!("`{}`", plain(&key)),
        Value::Int(key) => format!("`{key}`"),
        other => pickle.objects.describe(other),
    }
}

/// Lists the content of a dict, entries that are not tensors first.
fn listed(pickle: &Unpickled, entries: Entries) -> String {
    if entries.is_empty() {
        return "an empty dict".into();
    }
    let mut order: Vec<_> = entries.iter().collect();
    order.sort_by_key(|(_, value)| is_tensor(pickle, *value));
    let entries: Vec<String> = order
        .into_iter()
        .take(NAMED + 1)
        .map(|&(key, value)| {
            format!(
                "{}: {}",
                key_name(pickle, key),
                pickle.objects.describe(value)
            )
        })
        .collect();
    format!("a dict of {}", some(&entries))
}

fn some(names: &[String]) -> String {
    let shown = &names[..names.len().min(NAMED)];
    match names.len() - shown.len() {
        0 => shown.join(", "),
        _ => format!("{}, ...", shown.join(", ")),
    }
}

fn not_a_state_dict(path: &Path, found: String) -> CheckpointError {
    CheckpointError::NotStateDict {
        path: path.into(),
        found,
        hint: SAVE_AGAIN,
    }
}
