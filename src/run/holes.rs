//! Notes on inputs that look damaged: runs of zeros where others have weights, and values that no weight has.

use std::collections::{BTreeMap, BTreeSet};

use architecture::{
    is_derived_buffer, is_input_embedding, is_output_head, may_hold_zeros, module_index,
};
use numeric::Oddities;
use plan::{Plan, PlannedTensor, count};

/// Tensors that a note names.
const SHOWN: usize = 3;

/// What was odd in a source of an output tensor: their numbers, and what it was.
pub(super) type Odd = (usize, usize, Oddities);

/// The notes on each model, from what a run saw in the sources of its output.
pub(super) fn notes(plan: &Plan, odd: &[Odd]) -> Vec<String> {
    let (mut holes, mut absurd) = (Vec::new(), Vec::new());
    let whole: BTreeSet<(usize, usize)> = odd
        .iter()
        .filter(|(.., found)| found.zero_pieces == found.pieces)
        .map(|&(tensor, source, _)| (tensor, source))
        .collect();
    for &(number, source, found) in odd {
        let Some(tensor) = plan.tensors.get(number).filter(|tensor| is_weight(tensor)) else {
            continue;
        };
        let unchanged = matches!(tensor.views.get(source), None | Some(None));
        let Some(of) = tensor.sources.get(source).filter(|_| unchanged) else {
            continue;
        };
        if found.absurd > 0 {
            absurd.push((of.model, tensor.name.as_str()));
        }
        let tokens = is_input_embedding(&tensor.name) || is_output_head(&tensor.name);
        let mut sources = 0..tensor.sources.len();
        let others = sources.any(|other| !whole.contains(&(number, other)));
        // A matrix of zeros may be one that was never trained, unless another model has weights there.
        let is_hole = match whole.contains(&(number, source)) {
            true => others,
            false => found.zero_pieces > 0 && !tokens,
        };
        if is_hole {
            holes.push((of.model, tensor.name.as_str()));
        }
    }
    leave_out_habits(plan, &mut holes);
    let hole = |model: &str, names: String| {
        format!(
            "`{model}` has runs of zeros where other layers or models have weights, in {names}: a part of its file may \
             be missing; `weld check` looks closer"
        )
    };
    let value = |model: &str, names: String| {
        format!(
            "`{model}` has values far beyond those of any weight, in {names}; `weld check` looks closer"
        )
    };
    let mut notes = by_model(plan, &holes, &hole);
    notes.extend(by_model(plan, &absurd, &value));
    notes
}

/// Whether a tensor is a matrix of weights, which no model fills with zeros or huge values on purpose.
fn is_weight(tensor: &PlannedTensor) -> bool {
    let name = &tensor.name;
    let wide = tensor.shape.iter().filter(|&&dim| dim > 1).count() > 1;
    wide && !name.contains("bias") && !is_derived_buffer(name) && !may_hold_zeros(name)
}

/// Leaves out holes that most layers of a model have: they are padded or pruned so.
fn leave_out_habits(plan: &Plan, holes: &mut Vec<(usize, &str)>) {
    let mut layers: BTreeMap<String, usize> = BTreeMap::new();
    for tensor in &plan.tensors {
        *layers.entry(role(&tensor.name)).or_default() += 1;
    }
    let mut found: BTreeMap<(usize, String), usize> = BTreeMap::new();
    for (model, name) in holes.iter() {
        *found.entry((*model, role(name))).or_default() += 1;
    }
    holes.retain(|(model, name)| {
        let role = role(name);
        let all = layers.get(&role).copied().unwrap_or(1);
        let holes = found.get(&(*model, role)).copied().unwrap_or(0);
        all == 1 || 2 * holes <= all
    });
}

/// A tensor's name without the numbers of layer and expert.
fn role(name: &str) -> String {
    let parts = name.split('.').map(|part| match module_index(part) {
        Some(_) => "*",
        None => part,
    });
    parts.collect::<Vec<_>>().join(".")
}

/// A note for each model with such tensors.
fn by_model(
    plan: &Plan,
    found: &[(usize, &str)],
    note: &dyn Fn(&str, String) -> String,
) -> Vec<String> {
    let mut models: BTreeMap<usize, Vec<&str>> = BTreeMap::new();
    for (model, name) in found {
        models.entry(*model).or_default().push(name);
    }
    let note = |(model, names): (usize, Vec<&str>)| {
        let shown: Vec<String> = names
            .iter()
            .take(SHOWN)
            .map(|name| format!("`{name}`"))
            .collect();
        let more = match names.len().saturating_sub(SHOWN) {
            0 => String::new(),
            more => format!(" and {}", count(more, "more tensor")),
        };
        let label = plan.models.get(model)?.label();
        Some(note(label, format!("{}{more}", shown.join(", "))))
    };
    models.into_iter().filter_map(note).collect()
}
