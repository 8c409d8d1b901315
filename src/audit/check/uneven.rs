//! Layers that lack a tensor which nearly all others of their stack have.

use std::collections::{BTreeMap, BTreeSet, HashMap};

use serde_json::Value;

use super::structure::UNEVEN;
use crate::{Finding, Place, Report};
use checkpoint::{Checkpoint, ModelConfig};

/// By prefix and suffix: the number of layers of the stack, and the layer and index of each tensor in that role.
pub(super) type Roles = BTreeMap<(String, String), (usize, Vec<(usize, usize)>)>;

/// With fewer layers, one layer is not reported as the exception: first and last layers often differ.
const EVEN_LAYERS: usize = 4;

/// With fewer layers, two are not reported as the exceptions.
const EVEN_BUT_TWO: usize = 6;

/// Reports a tensor that is missing from a single layer in the middle of a stack. If it is missing from the last layer,
/// or from two layers, it is reported only if those layers lack nothing else: the ends of a stack, or every other
/// layer, may be built differently, but then in more than one tensor. A layer that the config gives a kind of its own may
/// be built differently too. Layers whose tensors have different shapes are stages, each built in its own way.
pub(super) fn uneven_layers(
    roles: &Roles,
    model: &Checkpoint,
    missing_is_known: bool,
    report: &mut Report,
) {
    if !missing_is_known {
        return;
    }
    let config = model.config().map(ModelConfig::value);
    let shape = |&(_, at): &(usize, usize)| &model.tensors()[at].shape;
    let stages: BTreeSet<&str> = roles
        .iter()
        .filter(|(_, (_, having))| {
            having
                .windows(2)
                .any(|two| shape(&two[0]) != shape(&two[1]))
        })
        .map(|((prefix, _), _)| prefix.as_str())
        .collect();
    // For each layer, how many of the roles that nearly all layers have it lacks.
    let mut lacks: HashMap<(&str, usize), usize> = HashMap::new();
    let lacking = |layers: usize, having: &[(usize, usize)]| -> Vec<usize> {
        let having: BTreeSet<usize> = having.iter().map(|&(layer, _)| layer).collect();
        (0..layers)
            .filter(|layer| !having.contains(layer))
            .collect()
    };
    let nearly_all = |layers: usize, having: &[(usize, usize)]| {
        let without = layers - having.len().min(layers);
        without == 1 && layers >= EVEN_LAYERS || without == 2 && layers >= EVEN_BUT_TWO
    };
    for ((prefix, _), &(layers, ref having)) in roles {
        if nearly_all(layers, having) {
            for layer in lacking(layers, having) {
                *lacks.entry((prefix, layer)).or_default() += 1;
            }
        }
    }
    for ((prefix, suffix), &(layers, ref having)) in roles {
        if !nearly_all(layers, having) || stages.contains(prefix.as_str()) {
            continue;
        }
        let without = lacking(layers, having);
        let one_in_the_middle = without.len() == 1 && (1..layers - 1).contains(&without[0]);
        let alone = |layer: &usize| *layer > 0 && lacks.get(&(prefix.as_str(), *layer)) == Some(&1);
        if !one_in_the_middle && !without.iter().all(alone) {
            continue;
        }
        let is_explained = config.is_some_and(|config| {
            let kinds = Kinds::read(config, layers);
            kinds.tell_apart(&without)
                || kinds.vary && have_tensors_of_their_own(roles, prefix, &without)
        });
        if is_explained {
            continue;
        }
        for layer in without {
            report.add(Finding::new(
                &UNEVEN,
                Place::tensor(format!("{prefix}{layer}.{suffix}"), None),
                format!("a tensor that {} of {layers} layers have", having.len()),
                "none",
            ));
        }
    }
}

/// The deepest part of a config that is searched for lists.
const DEPTH: usize = 3;

/// How many entries more than layers a list may have: for layers that predict further tokens.
const FURTHER: usize = 4;

/// The ends of the names of fields that say that every so many layers are of a kind.
const STEPS: [&str; 7] = [
    "_step",
    "_period",
    "_interval",
    "_freq",
    "_frequency",
    "_every_n_layers",
    "_pattern",
];

/// What a config says of the kinds of layers.
#[derive(Default)]
struct Kinds {
    /// For each field that says it: the kind of each layer.
    fields: Vec<Vec<String>>,
    /// Whether any field lets layers differ, even if not which.
    vary: bool,
}

impl Kinds {
    fn read(config: &Value, layers: usize) -> Kinds {
        let mut kinds = Kinds::default();
        kinds.collect(config, layers, DEPTH);
        kinds.vary |= !kinds.fields.is_empty();
        kinds
    }

    fn collect(&mut self, config: &Value, layers: usize, depth: usize) {
        for (name, value) in config.as_object().into_iter().flatten() {
            match value {
                Value::Array(list) => self.list(name, list, layers),
                Value::Number(number) => self.number(name, number.as_u64(), layers),
                Value::Object(_) if depth > 0 => self.collect(value, layers, depth - 1),
                _ => {}
            }
        }
    }

    /// One in so many layers, or so many at the beginning.
    fn number(&mut self, name: &str, number: Option<u64>, layers: usize) {
        let is_step = STEPS.iter().any(|end| name.ends_with(end));
        self.vary |= is_step && number.is_some_and(|step| step > 1);
        let counts = name.starts_with("num_") && name.ends_with("_layers");
        let first = number.and_then(|first| usize::try_from(first).ok());
        if let Some(first) = first.filter(|first| (1..layers).contains(first))
            && (counts || name.starts_with("first_"))
        {
            let kind = |layer: usize| (layer < first).to_string();
            self.fields.push((0..layers).map(kind).collect());
        }
    }

    /// A list with an entry for each layer, one that begins again, or one of numbers of layers.
    fn list(&mut self, name: &str, list: &[Value], layers: usize) {
        if list.is_empty()
            || list
                .iter()
                .any(|entry| entry.is_array() || entry.is_object())
        {
            return;
        }
        let is_of_layers = ["layer", "block", "ratio"]
            .iter()
            .any(|part| name.contains(part));
        let each = |entries: &mut dyn Iterator<Item = &Value>| -> Vec<String> {
            entries.take(layers).map(Value::to_string).collect()
        };
        let number = |entry: &Value| entry.as_u64().is_some_and(|number| number < layers as u64);
        if list.len() == layers || is_of_layers && (layers..=layers + FURTHER).contains(&list.len())
        {
            self.fields.push(each(&mut list.iter()));
        } else if is_of_layers && list.iter().all(Value::is_string) {
            self.fields.push(each(&mut list.iter().cycle()));
        } else if (is_of_layers || name.contains("idx") || name.contains("indices"))
            && list.iter().all(number)
        {
            let kind = |layer: usize| list.contains(&layer.into()).to_string();
            self.fields.push((0..layers).map(kind).collect());
        }
    }

    /// Whether some field gives these layers kinds that no other layer has.
    fn tell_apart(&self, these: &[usize]) -> bool {
        self.fields.iter().any(|kinds| {
            let own: BTreeSet<&String> =
                these.iter().filter_map(|&layer| kinds.get(layer)).collect();
            let others = (0..kinds.len()).filter(|layer| !these.contains(layer));
            !own.is_empty() && others.into_iter().all(|layer| !own.contains(&kinds[layer]))
        })
    }
}

/// Whether each of these layers has tensors that no other layer of the stack has.
fn have_tensors_of_their_own(roles: &Roles, prefix: &str, these: &[usize]) -> bool {
    let own: BTreeSet<usize> = roles
        .iter()
        .filter(|((other, _), (_, having))| {
            other == prefix && having.iter().all(|(layer, _)| these.contains(layer))
        })
        .flat_map(|(_, (_, having))| having.iter().map(|(layer, _)| *layer))
        .collect();
    these.iter().all(|layer| own.contains(layer))
}
