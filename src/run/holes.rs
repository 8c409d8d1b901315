//! Notes on inputs that look damaged: runs of zeros where others have weights, and values that no weight has.

use std::collections::{BTreeMap, BTreeSet};

use serde::{Deserialize, Serialize};

use architecture::{
    is_derived_buffer, is_input_embedding, is_output_head, may_hold_zeros, module_index,
};
use numeric::Oddities;
use plan::{Plan, PlannedTensor, count};

/// Tensors that a note names.
const SHOWN: usize = 3;

/// What was odd in a source of an output tensor: their numbers, and what it was.
pub(super) type Odd = (usize, usize, Oddities);

/// A tensor of a model that looks damaged.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct Suspect {
    /// The model's place among the plan's.
    model: usize,
    /// What the model is called.
    label: String,
    /// The output's tensor that is made of it.
    tensor: String,
}

/// What looks damaged in the sources of some of the output's tensors.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct Suspects {
    /// Tensors with runs of zeros.
    holes: Vec<Suspect>,
    /// Tensors with values that no weight has.
    absurd: Vec<Suspect>,
}

/// What looks damaged, from what a run saw in the sources of its output.
pub(super) fn suspects(plan: &Plan, odd: &[Odd]) -> Suspects {
    let mut suspects = Suspects::default();
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
        let suspect = || {
            let label = plan.models.get(of.model)?.label().to_owned();
            Some(Suspect {
                model: of.model,
                label,
                tensor: tensor.name.clone(),
            })
        };
        if found.absurd > 0 {
            suspects.absurd.extend(suspect());
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
            suspects.holes.extend(suspect());
        }
    }
    suspects
}

impl Suspects {
    /// Adds those of other tensors of the same output.
    pub(super) fn extend(&mut self, others: Suspects) {
        self.holes.extend(others.holes);
        self.absurd.extend(others.absurd);
    }
}

/// The notes on each model. `tensors` are the names of all tensors of the output.
pub(super) fn notes<'t>(
    mut suspects: Suspects,
    tensors: impl Iterator<Item = &'t str>,
) -> Vec<String> {
    leave_out_habits(tensors, &mut suspects.holes);
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
    let mut notes = by_model(&suspects.holes, &hole);
    notes.extend(by_model(&suspects.absurd, &value));
    notes
}

/// Whether a tensor is a matrix of weights, which no model fills with zeros or huge values on purpose.
fn is_weight(tensor: &PlannedTensor) -> bool {
    let name = &tensor.name;
    let wide = tensor.shape.iter().filter(|&&dim| dim > 1).count() > 1;
    wide && !name.contains("bias") && !is_derived_buffer(name) && !may_hold_zeros(name)
}

/// Leaves out holes that most layers of a model have: they are padded or pruned so.
fn leave_out_habits<'t>(tensors: impl Iterator<Item = &'t str>, holes: &mut Vec<Suspect>) {
    let mut layers: BTreeMap<String, usize> = BTreeMap::new();
    for tensor in tensors {
        *layers.entry(role(tensor)).or_default() += 1;
    }
    let mut found: BTreeMap<(usize, String), usize> = BTreeMap::new();
    for hole in holes.iter() {
        *found.entry((hole.model, role(&hole.tensor))).or_default() += 1;
    }
    holes.retain(|hole| {
        let role = role(&hole.tensor);
        let all = layers.get(&role).copied().unwrap_or(1);
        let holes = found.get(&(hole.model, role)).copied().unwrap_or(0);
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
fn by_model(found: &[Suspect], note: &dyn Fn(&str, String) -> String) -> Vec<String> {
    let mut models: BTreeMap<(usize, &str), Vec<&str>> = BTreeMap::new();
    for suspect in found {
        let names = models.entry((suspect.model, &suspect.label)).or_default();
        names.push(&suspect.tensor);
    }
    let note = |((_, label), names): ((usize, &str), Vec<&str>)| {
        let shown: Vec<String> = names
            .iter()
            .take(SHOWN)
            .map(|name| format!("`{name}`"))
            .collect();
        let more = match names.len().saturating_sub(SHOWN) {
            0 => String::new(),
            more => format!(" and {}", count(more, "more tensor")),
        };
        note(label, format!("{}{more}", shown.join(", ")))
    };
    models.into_iter().map(note).collect()
}
