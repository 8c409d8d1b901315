//! Finds the state dict in a pickle's value: names and tensors, ignored entries, and values that are not a state dict.

use std::collections::{HashSet, VecDeque};
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

/// How deep state dicts may lie that an error names.
const DEEPEST_NAMED: usize = 4;

/// The most entries that are searched for state dicts to name.
const SEARCHED: usize = 1 << 20;

/// The longest key that is named, in bytes.
const LONGEST_KEY: usize = 200;

/// Finds the tensors in a pickle's value: those under the keys of `entry`, or those of the only state dict.
pub(super) fn state_dict<'a>(
    path: &Path,
    pickle: &Unpickled<'a>,
    entry: Option<&str>,
) -> Result<State<'a>, CheckpointError> {
    let Some(root) = pickle.objects.dict(pickle.root) else {
        return Err(not_a_state_dict(
            path,
            pickle,
            pickle.objects.describe(pickle.root),
        ));
    };
    if let Some(entry) = entry {
        return selected(path, pickle, entry);
    }
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
            return Err(not_a_state_dict(path, pickle, listed(pickle, root)));
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
        let choice = match state_dicts(pickle).len() {
            0 | 1 => "",
            _ => "; `FILE#ENTRY` takes those of another entry",
        };
        notes.push(format!(
            "{}: the tensors are those of its entry `{wrapper}`{aside}{choice}",
            path.display()
        ));
        entries = inner;
    }
    finish(path, pickle, entries, notes)
}

/// The state of one dict, after notes on how it was found.
fn finish<'a>(
    path: &Path,
    pickle: &Unpickled<'a>,
    entries: Entries<'_, 'a>,
    mut notes: Vec<String>,
) -> Result<State<'a>, CheckpointError> {
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

/// The tensors under the keys of an entry, which are joined by dots; a key may have dots itself.
fn selected<'a>(
    path: &Path,
    pickle: &Unpickled<'a>,
    entry: &str,
) -> Result<State<'a>, CheckpointError> {
    let mut value = pickle.root;
    let mut rest = entry;
    while !rest.is_empty() {
        let entries = pickle.objects.dict(value).unwrap_or_default();
        let fits = |key: &str| match rest.strip_prefix(key) {
            Some("") => Some(""),
            Some(after) => after.strip_prefix('.'),
            None => None,
        };
        let longest = entries
            .iter()
            .filter_map(|(key, value)| match key {
                Value::Text(key) if !key.is_empty() => Some((fits(key)?, *value)),
                _ => None,
            })
            .min_by_key(|(after, _)| after.len());
        let Some((after, found)) = longest else {
            return Err(CheckpointError::NotStateDict {
                path: path.into(),
                found: format!("no entry `{}`", plain(&entry)),
                hint: choice_hint(path, pickle).unwrap_or_else(|| SAVE_AGAIN.into()),
            });
        };
        (rest, value) = (after, found);
    }
    let Some(entries) = pickle.objects.dict(value) else {
        let found = format!("{} at `{}`", pickle.objects.describe(value), plain(&entry));
        return Err(not_a_state_dict(path, pickle, found));
    };
    if !entries.iter().any(|(_, value)| is_tensor(pickle, *value)) {
        let found = format!("{} at `{}`", listed(pickle, entries), plain(&entry));
        return Err(not_a_state_dict(path, pickle, found));
    }
    finish(path, pickle, entries, Vec::new())
}

/// The entries that are state dicts, with their number of tensors: keys joined by dots, outer ones first.
fn state_dicts(pickle: &Unpickled) -> Vec<(String, usize)> {
    let mut found = Vec::new();
    let mut waiting = VecDeque::from([(String::new(), pickle.root, 0)]);
    let mut searched = 0;
    while let Some((before, value, depth)) = waiting.pop_front() {
        let entries = pickle.objects.dict(value).unwrap_or_default();
        searched += entries.len();
        if searched > SEARCHED || found.len() > NAMED {
            break;
        }
        let tensors = entries
            .iter()
            .filter(|(_, value)| is_tensor(pickle, *value));
        let tensors = tensors.count();
        if depth > 0 && tensors > 0 {
            found.push((before, tensors));
        } else if depth < DEEPEST_NAMED {
            for (key, value) in entries {
                if let Value::Text(key) = key
                    && key.len() <= LONGEST_KEY
                    && pickle.objects.dict(*value).is_some()
                {
                    let dot = if depth > 0 { "." } else { "" };
                    waiting.push_back((format!("{before}{dot}{key}"), *value, depth + 1));
                }
            }
        }
    }
    found
}

/// How to choose between the state dicts of a file, if it has any.
fn choice_hint(path: &Path, pickle: &Unpickled) -> Option<String> {
    let file = path.file_name().map(|name| name.to_string_lossy())?;
    let dicts: Vec<String> = state_dicts(pickle)
        .iter()
        .map(|(entry, tensors)| {
            let plural = if *tensors == 1 { "" } else { "s" };
            format!("`{file}#{}` ({tensors} tensor{plural})", plain(entry))
        })
        .collect();
    (!dicts.is_empty()).then(|| format!("choose its tensors by their entry: {}", some(&dicts)))
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
            _ => return Err(not_a_state_dict(path, pickle, listed(pickle, entries))),
        };
        let Value::Text(name) = key else {
            return Err(not_a_state_dict(path, pickle, listed(pickle, entries)));
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

fn not_a_state_dict(path: &Path, pickle: &Unpickled, found: String) -> CheckpointError {
    CheckpointError::NotStateDict {
        path: path.into(),
        found,
        hint: choice_hint(path, pickle).unwrap_or_else(|| SAVE_AGAIN.into()),
    }
}
