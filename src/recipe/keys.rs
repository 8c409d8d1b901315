//! The keys that each mapping of a recipe accepts, and the messages on other keys.

use super::nearest::{nearest, suggestion};
use super::problem::{Problem, ProblemKind, quoted};
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
        "statistics",
        "parameters",
        "dtype",
        "out_dtype",
        "output",
        "quantization",
        "expert_layout",
        "rounding",
        "keep_dtype",
        "only",
        "except",
        "rename",
        "allow_config_differences",
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
    keys: &["model", "parameters", "statistics"],
};

pub(super) const SLICE: Place = Place {
    name: "a slice",
    keys: &["sources", "base_model", "parameters", "residual_weight"],
};

pub(super) const SOURCE: Place = Place {
    name: "a source of a slice",
    keys: &["model", "layer_range", "parameters", "statistics"],
};

impl Walk<'_> {
    /// Whether an unknown key only holds anchors that aliases elsewhere refer to, or begins with `x-`, as such keys
    /// usually do. Its value is not read, which is noted. `end` is where the next key begins.
    pub(super) fn is_home_of_anchors(&mut self, entry: &Entry, end: usize) -> bool {
        let own = self.text.get(entry.key_at.start..end).unwrap_or_default();
        let used: Vec<&str> = anchors(own)
            .filter(|name| has_alias(self.text, name))
            .collect();
        if used.is_empty() && !entry.key.starts_with("x-") {
            return false;
        }
        let message = format!("{} is not read", quoted(&entry.key));
        let hint = match used.first() {
            Some(name) => format!(
                "it only gives a name to what stands elsewhere as {}",
                quoted(&format!("*{name}"))
            ),
            None => "keys that begin with `x-` are for values that are used elsewhere by alias"
                .to_owned(),
        };
        self.warn(Problem::new(ProblemKind::Unknown, entry.key_at, message).with_hint(hint));
        true
    }

    /// Reports a key that the mapping does not accept.
    pub(super) fn other_key(&mut self, place: &Place, entry: &Entry) {
        let key = entry.key.as_str();
        if self.recorded {
            let message = format!("unknown key {} in {}: ignored", quoted(key), place.name);
            return self.warn(Problem::new(ProblemKind::Unknown, entry.key_at, message));
        }
        let hint = self.unknown_key_hint(place, key);
        let message = format!("unknown key {} in {}", quoted(key), place.name);
        self.refuse(ProblemKind::Unknown, entry.key_at, message, hint.as_deref());
    }

    fn unknown_key_hint(&mut self, place: &Place, key: &str) -> Option<String> {
        if place.name == RECIPE.name && key == "random_seed" {
            return Some(
                "the seed is no part of a recipe: say `--seed` when you run it".to_owned(),
            );
        }
        let takes_parameters = place.keys.contains(&"parameters");
        if let Some(method) = self.method.filter(|_| takes_parameters) {
            let near = nearest(key, place.keys.iter().copied());
            let names = method.params.iter().map(|info| info.name);
            // A short parameter such as `t` is similar to anything, so only an exact match counts.
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
        let mut methods = self.methods.iter().flat_map(|method| method.params);
        if takes_parameters && methods.any(|info| info.name == key) {
            return Some(format!(
                "`{key}` is a parameter of other methods: put it under `parameters:`, or remove it"
            ));
        }
        if key == "quantization" && place.name.starts_with("a recipe ") {
            return Some(
                "make the mixture first, then merge it alone by `passthrough` with `quantization`"
                    .to_owned(),
            );
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

/// The anchors that a text defines: `&name` before a value.
fn anchors(text: &str) -> impl Iterator<Item = &str> {
    let words = text.split(|c: char| c.is_whitespace() || "[]{},".contains(c));
    words.filter_map(|word| word.strip_prefix('&').filter(|name| !name.is_empty()))
}

/// Whether a text has an alias of that name.
fn has_alias(text: &str, name: &str) -> bool {
    let mut words = text.split(|c: char| c.is_whitespace() || "[]{},:".contains(c));
    words.any(|word| word.strip_prefix('*') == Some(name))
}
