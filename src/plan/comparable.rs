//! Whether models of equal shapes mean the same by their weights: what their configs say, their labels, and the files
//! beside them.

use std::borrow::Cow;
use std::collections::BTreeMap;
use std::iter;
use std::sync::Arc;

use serde_json::Value;

use super::models::Models;
use super::planned::{Operation, PlannedTensor};
use super::problems::{Problems, some_of};
use super::views::{StackedRows, View};
use architecture::{Difference, differences, is_number};
use checkpoint::{Checkpoint, ModelConfig, SidecarKind, json_line, parse_json, read_sidecar};
use errors::printable;
use numeric::RowMap;
use recipe::Recipe;

/// The most characters of a value that a message shows.
const SHOWN: usize = 40;

/// The key of a recipe that allows differences.
const KEY: &str = "allow_config_differences";

/// Compares the config of each merged model with the donor's, which the output will have.
///
/// Returns whether all are of one architecture, or may differ in it: else nothing more can be said of their tensors.
/// Fields that differ and are allowed to are added to `allowed`.
pub(super) fn compare_configs(
    recipe: &Recipe,
    models: &Models,
    allowed: &mut Vec<String>,
    notes: &mut Vec<String>,
    problems: &mut Problems,
) -> bool {
    let Some(ours) = models.donor().config() else {
        return true;
    };
    let mut one_architecture = true;
    for model in (0..models.merged).filter(|&model| model != models.donor) {
        let Some(theirs) = models.checkpoints[model].config() else {
            continue;
        };
        let found = differences(ours.value(), theirs.value());
        let (refused, others): (Vec<Difference>, Vec<Difference>) = found
            .into_iter()
            .partition(|found| found.is_arithmetic && !recipe.allows(&found.field));
        one_architecture &= refused
            .first()
            .is_none_or(|found| found.field != "model_type");
        allowed.extend(others.iter().map(|found| found.field.clone()));
        note(models, model, &others, notes);
        refuse(models, model, &refused, problems);
    }
    one_architecture
}

/// Notes fields that the recipe allows to differ and in which no configs do.
pub(super) fn unused_allowances(recipe: &Recipe, allowed: &[String], notes: &mut Vec<String>) {
    for field in &recipe.allowed {
        // Labels are compared once it is known which tensors are merged.
        if !allowed.contains(&field.value) && field.value != LABELS {
            notes.push(format!(
                "line {}: no model's config differs in `{}`",
                field.at.line,
                field.value.escape_debug()
            ));
        }
    }
}

fn note(models: &Models, model: usize, found: &[Difference], notes: &mut Vec<String>) {
    if found.is_empty() {
        return;
    }
    let fields: Vec<String> = found
        .iter()
        .map(|found| {
            let [ours, theirs] = found.values.each_ref().map(shown);
            format!("{}: {theirs}, not {ours}", found.field.escape_debug())
        })
        .collect();
    notes.push(format!(
        "the output gets the config of `{}`; that of `{}` says {}",
        models.label(models.donor),
        models.label(model),
        some_of(&fields)
    ));
}

fn refuse(models: &Models, model: usize, found: &[Difference], problems: &mut Problems) {
    let (donor, label) = (models.label(models.donor), models.label(model));
    let names: Vec<&str> = found.iter().map(|found| found.field.as_str()).collect();
    let allow = format!("`{KEY}: [{}]`", names.join(", "));
    let (message, why) = match found {
        [] => return,
        [first, ..] if first.field == "model_type" => {
            let [ours, theirs] = first.values.each_ref().map(shown);
            (
                format!("`{donor}` is a {ours} and `{label}` a {theirs}, as their configs say"),
                "models of different architectures cannot be merged",
            )
        }
        found => {
            let fields = found.iter().map(|found| {
                let [ours, theirs] = found.values.each_ref().map(shown);
                format!("`{}` is {ours} and {theirs}", found.field.escape_debug())
            });
            let fields: Vec<String> = fields.collect();
            (
                format!(
                    "the weights of `{donor}` and `{label}` do not mean the same, as their configs say: {}",
                    fields.join(", ")
                ),
                "the output would use all weights as the first one does",
            )
        }
    };
    let hint = format!("{why}; if it is meant, add {allow} to the recipe");
    problems.add(models.at[model], message, Some(hint));
}

/// A value as messages show it.
fn shown(value: &Option<Value>) -> String {
    let Some(value) = value else {
        return "none".to_owned();
    };
    let text = match value {
        Value::String(text) => Cow::Borrowed(text.as_str()),
        value => Cow::Owned(json_line(value)),
    };
    let shown: String = text.chars().take(SHOWN).collect();
    let more = if shown.len() < text.len() { "..." } else { "" };
    format!("{}{more}", printable(&shown))
}

/// The field of labels, as a recipe allows it.
const LABELS: &str = "id2label";

/// Compares what rows of classifiers stand for, where rows of several models are merged. Where only their order differs,
/// the rows are read in the order of the donor, whose labels the output has, or of the first model with labels where
/// the donor has none; else the merge is refused.
pub(super) fn compare_labels(
    recipe: &Recipe,
    models: &Models,
    tensors: &mut [PlannedTensor],
    notes: &mut Vec<String>,
    problems: &mut Problems,
) {
    let as_they_are = recipe.is_allowed(LABELS) || !recipe.rows_by_label;
    let labels_of = |model: usize| labels(models.checkpoints[model].config()?);
    let labelled = iter::once(models.donor).chain(0..models.merged);
    let labelled = labelled.filter_map(|model| Some((model, labels_of(model)?)));
    // The numbers by which transformers names labels say less than names.
    let first = labelled.min_by_key(|(_, labels)| is_numbered(labels));
    let Some((first_of_all, ours)) = first.filter(|_| !as_they_are) else {
        return;
    };
    for model in (0..models.merged).filter(|&model| model != first_of_all) {
        let theirs = labels_of(model).filter(|theirs| is_numbered(theirs) == is_numbered(&ours));
        let Some(theirs) = theirs else {
            if !is_numbered(&ours) && !recipe.recorded {
                note_unnamed(models, [first_of_all, model], ours.len(), tensors, notes);
            }
            continue;
        };
        let differing = ours
            .iter()
            .filter(|(id, label)| theirs.get(id).is_some_and(|other| other != *label));
        let Some((id, label)) = differing.clone().next() else {
            continue;
        };
        let by_label =
            |tensor: &&mut PlannedTensor| is_by_label(tensor, ours.len(), [first_of_all, model]);
        let mut heads: Vec<&mut PlannedTensor> = tensors.iter_mut().filter(by_label).collect();
        let Some(first) = heads.first().map(|head| head.name.clone()) else {
            continue;
        };
        let order = order_of(&ours, &theirs).map(Arc::new);
        let order = order.filter(|_| heads.iter().all(|head| can_be_ordered(head, model)));
        if let Some(order) = order {
            for head in &mut heads {
                put_in_order(head, model, &order);
            }
            notes.push(format!(
                "the labels of `{}` are those of `{}` in another order: its rows of {} are merged by label",
                models.label(model),
                models.label(first_of_all),
                some_of(&heads.iter().map(|head| head.name.as_str()).collect::<Vec<_>>())
            ));
            continue;
        }
        if recipe.recorded {
            continue;
        }
        let message = format!(
            "row {id} of `{first}` stands for `{}` in `{}` and for `{}` in `{}`",
            label.escape_debug(),
            models.label(first_of_all),
            theirs[id].escape_debug(),
            models.label(model)
        );
        let hint = format!(
            "classifiers of other labels cannot be merged; `except: [{{tensors: '{}', action: copy}}]` keeps the \
             first model's; if the labels mean the same, add `{KEY}: [{LABELS}]` to the recipe",
            models.qualified(&first)
        );
        problems.add(models.at[model], message, Some(hint));
    }
}

/// Where each row of a classifier is in another that has the same labels; none if it has others.
fn order_of(ours: &BTreeMap<u64, String>, theirs: &BTreeMap<u64, String>) -> Option<RowMap> {
    let by_label: BTreeMap<&String, u64> = theirs.iter().map(|(id, label)| (label, *id)).collect();
    let all = 0..ours.len() as u64;
    let whole = |labels: &BTreeMap<u64, String>| labels.keys().copied().eq(all.clone());
    if !whole(ours) || !whole(theirs) || by_label.len() != ours.len() {
        return None;
    }
    let mut map = RowMap::new();
    for label in ours.values() {
        map.push(&[(0, u32::try_from(*by_label.get(label)?).ok()?)]);
    }
    Some(map)
}

/// Whether only rows of a classifier are by label, and those of a model are read as they are.
fn can_be_ordered(head: &PlannedTensor, model: usize) -> bool {
    let labels = head.shape.first();
    let others = head.shape.iter().skip(1);
    let of_model = head.sources.iter().zip(0..);
    let mut of_model = of_model.filter(|(source, _)| source.model == model);
    let as_it_is = |at: usize| head.views.get(at).is_none_or(Option::is_none);
    others.into_iter().all(|size| Some(size) != labels) && of_model.all(|(_, at)| as_it_is(at))
}

/// Reads the rows of a model's classifier in another order.
fn put_in_order(head: &mut PlannedTensor, model: usize, order: &Arc<RowMap>) {
    head.views.resize(head.sources.len(), None);
    for (source, view) in head.sources.iter().zip(&mut head.views) {
        if source.model == model {
            *view = Some(View::StackedRows(StackedRows {
                parts: vec![*source],
                map: order.clone(),
                width: head.shape.iter().skip(1).product(),
            }));
        }
    }
}

/// The labels of a classifier by number, in small letters.
fn labels(config: &ModelConfig) -> Option<BTreeMap<u64, String>> {
    let text = |label: &Value| match label {
        Value::String(label) => label.to_lowercase(),
        label => label.to_string(),
    };
    // By number or in order; timm has `label_names`.
    let by_number = [LABELS, "label_names", "labels"]
        .into_iter()
        .find_map(|field| {
            Some(match config.get(field)? {
                Value::Object(map) => {
                    let entry =
                        |(id, label): (&String, &Value)| Some((id.parse().ok()?, text(label)));
                    map.iter().filter_map(entry).collect()
                }
                Value::Array(list) => (0..).zip(list.iter().map(text)).collect(),
                _ => return None,
            })
        });
    let by_label = || {
        let map = config.get("label2id")?.as_object()?.iter();
        Some(
            map.filter_map(|(label, id)| Some((id.as_u64()?, label.to_lowercase())))
                .collect(),
        )
    };
    let found: BTreeMap<u64, String> = by_number.or_else(by_label)?;
    (!found.is_empty()).then_some(found)
}

/// Whether labels are called by numbers alone, as transformers does where nobody names them.
fn is_numbered(labels: &BTreeMap<u64, String>) -> bool {
    let is_numbered = |label: &String| label.strip_prefix("label_").is_some_and(is_number);
    labels.values().all(is_numbered)
}

/// Notes that rows of a classifier are merged in their order, as only the first of the two models names its labels.
fn note_unnamed(
    models: &Models,
    pair: [usize; 2],
    labels: usize,
    tensors: &[PlannedTensor],
    notes: &mut Vec<String>,
) {
    let heads = tensors
        .iter()
        .filter(|tensor| is_by_label(tensor, labels, pair));
    let heads: Vec<&str> = heads.map(|head| head.name.as_str()).collect();
    if !heads.is_empty() {
        let [named, unnamed] = pair.map(|model| models.label(model));
        notes.push(format!(
            "`{named}` names its labels and `{unnamed}` does not: rows of {} are merged in their order; make sure that \
             it is the same in both",
            some_of(&heads)
        ));
    }
}

/// Whether a tensor is merged of these models and has a row for each label: one of a head, no embedding, no layer's.
fn is_by_label(tensor: &PlannedTensor, labels: usize, models: [usize; 2]) -> bool {
    let merged = matches!(tensor.operation, Operation::Compute { .. });
    let has = |model: usize| tensor.sources.iter().any(|source| source.model == model);
    let head = !tensor.name.contains("embed") && !tensor.name.split('.').any(is_number);
    head && merged && tensor.shape.first() == Some(&labels) && models.into_iter().all(has)
}

/// Notes settings of processors, pooling and prompts that differ: the output has the donor's.
pub(super) fn compare_side_configs(models: &Models, notes: &mut Vec<String>) {
    let ours = side_configs(models.donor());
    for model in (0..models.merged).filter(|&model| model != models.donor) {
        let theirs = side_configs(&models.checkpoints[model]);
        for (name, ours) in &ours {
            let Some(theirs) = theirs.get(name).filter(|theirs| *theirs != ours) else {
                continue;
            };
            let fields: Vec<String> = match (ours, theirs) {
                (Value::Object(ours), Value::Object(theirs)) => {
                    let other = |key: &&String| ours.get(*key) != theirs.get(*key);
                    let keys: std::collections::BTreeSet<&String> =
                        ours.keys().chain(theirs.keys()).collect();
                    keys.into_iter()
                        .filter(other)
                        .map(|key| key.escape_debug().to_string())
                        .collect()
                }
                _ => Vec::new(),
            };
            let of = match fields.is_empty() {
                true => String::new(),
                false => format!(" in {}", some_of(&fields)),
            };
            notes.push(format!(
                "`{name}` of `{}` differs from that of `{}`{of}: the output has the latter",
                models.label(model),
                models.label(models.donor)
            ));
        }
    }
}

/// The settings beside a model that change what it computes of an input, without what only names code and versions.
fn side_configs(model: &Checkpoint) -> BTreeMap<String, Value> {
    // What cannot be read is reported where it is carried or checked.
    let files = model.sidecars().unwrap_or_default().into_iter();
    let files = files.filter(|file| {
        let known = file.kind == SidecarKind::Processor || file.kind == SidecarKind::Module;
        known && file.name.ends_with(".json")
    });
    files
        .filter_map(|file| {
            let mut value = parse_json(&read_sidecar(&file.path).ok()?).ok()?;
            if let Some(fields) = value.as_object_mut() {
                fields.retain(|name, value| {
                    let code = name.starts_with('_')
                        || name.ends_with("_type")
                        || name.ends_with("_class");
                    !code && name != "auto_map" && !value.is_null()
                });
            }
            Some((file.name, value))
        })
        .collect()
}
