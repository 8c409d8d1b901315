//! Which keys each mapping of a recipe takes, and what is said of the others.

use super::nearest::{nearest, suggestion};
use super::problem::{ProblemKind, quoted};
use super::walk::Walk;
use super::yaml::Entry;

/// A kind of mapping: its name in messages, and its keys.
pub(super) struct Place {
    pub(super) name: &'static str,
    pub(super) keys: &'static [&'static str],
}

pub(super) const RECIPE: Place = Place {
    name: "a recipe",
    keys: &[
        "name",
        "merge_method",
        "models",
        "slices",
        "modules",
        "base_model",
        "parameters",
        "dtype",
        "out_dtype",
        "only",
        "except",
        "tokenizer",
        "tokenizer_source",
        "chat_template",
    ],
};

pub(super) const MODULE: Place = Place {
    name: "a module",
    keys: &["models", "slices", "parameters"],
};

pub(super) const MODEL: Place = Place {
    name: "an entry of `models`",
    keys: &["model", "parameters"],
};

pub(super) const SLICE: Place = Place {
    name: "a slice",
    keys: &["sources", "base_model", "parameters", "residual_weight"],
};

pub(super) const SOURCE: Place = Place {
    name: "a source of a slice",
    keys: &["model", "layer_range", "parameters"],
};

impl Walk<'_> {
    /// A key that the place does not take.
    pub(super) fn other_key(&mut self, place: &Place, entry: &Entry) {
        let key = entry.key.as_str();
        let hint = self.unknown_key_hint(place, key);
        let message = format!("unknown key {} in {}", quoted(key), place.name);
        self.refuse(ProblemKind::Unknown, entry.key_at, message, hint.as_deref());
    }

    fn unknown_key_hint(&mut self, place: &Place, key: &str) -> Option<String> {
        let takes_parameters = place.keys.contains(&"parameters");
        if let Some(method) = self.method.filter(|_| takes_parameters) {
            let near = nearest(key, place.keys.iter().copied());
            let names = method.params.iter().map(|info| info.name);
            // A short parameter such as `t` is near to anything: only for itself.
            let parameter = names.clone().find(|name| *name == key).or_else(|| {
                let close = nearest(key, names.filter(|name| 3 < name.len()));
                close.filter(|_| near.is_none())
            });
            if let Some(parameter) = parameter {
                self.flawed.add(parameter);
                return Some(format!(
                    "`{parameter}` is a parameter of `{}`: put it under `parameters:`",
                    method.name
                ));
            }
            self.flawed.all |= near == Some("parameters");
        }
        let elsewhere = [SOURCE, SLICE, MODEL, RECIPE]
            .into_iter()
            .find(|other| other.name != place.name && other.keys.contains(&key));
        match elsewhere {
            Some(other) => Some(format!("`{key}` is a key of {}", other.name)),
            None => suggestion(key, "the keys are", place.keys),
        }
    }
}
