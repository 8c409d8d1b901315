//! What a model keeps outside of a stack that slices cut, and has a part for each of its layers.

use std::collections::{BTreeMap, BTreeSet};

use serde_json::{Map, Value};

use super::config::{Counts, has_part_of_its_own};
use super::layers::LayerMap;
use super::problems::Problems;
use architecture::{LayerStack, is_number};

/// A model whose layers are put together anew.
pub(super) struct Around<'a> {
    /// What messages call it.
    pub(super) label: &'a str,
    pub(super) config: Option<&'a Map<String, Value>>,
    /// All its numbered runs of modules.
    pub(super) runs: &'a [LayerStack],
    /// Its tensors of floats with their shapes.
    pub(super) tensors: Vec<(&'a str, &'a [usize])>,
}

impl Around<'_> {
    /// Adds a problem for each stack that what stands around it does not follow.
    pub(super) fn check(&self, maps: &[LayerMap], problems: &mut Problems) {
        for map in maps.iter().filter(|map| map.is_changed()) {
            let (message, hint) = if let Some(found) = self.left_behind(map, maps) {
                found
            } else if let Some(found) = self.by_layer(map) {
                (found, "merge such models whole, with `models:`")
            } else {
                continue;
            };
            problems.add(None, message, Some(hint.to_owned()));
        }
    }

    /// A run of as many modules that the config counts by the same field, or that lies beside the stack and is not
    /// counted at all, and is not cut alike.
    fn left_behind(&self, map: &LayerMap, maps: &[LayerMap]) -> Option<(String, &'static str)> {
        let nothing = Map::new();
        let config = self.config.unwrap_or(&nothing);
        let own = Counts::count(config, &map.prefix, map.before);
        let follows = |run: &&LayerStack| {
            maps.iter()
                .any(|other| other.prefix == run.prefix && other.from == map.from)
        };
        let others = self.runs.iter().filter(|run| run.layers == map.before);
        // Stages of different widths are no layers, and a part of the config counts what is called as it is.
        let is_other = |run: &&LayerStack| {
            self.is_uneven(&run.prefix) && !map.uneven
                || has_part_of_its_own(config, &run.prefix, &map.prefix)
        };
        for run in others.filter(|run| !follows(run) && !is_other(run)) {
            let counts = Counts::count(config, &run.prefix, run.layers);
            let (stack, beside, label) = (&map.prefix, &run.prefix, self.label);
            if let Some(field) = own.shared(&counts) {
                let message = format!(
                    "`{field}` in the config of `{label}` counts the {} layers of `{stack}` and of `{beside}`, which the \
                     slices leave as they are",
                    map.before
                );
                return Some((
                    message,
                    "merge such models whole, with `models:`, or cut both alike, each in a module of its own under `modules:`",
                ));
            }
            if counts.fields.is_empty() && is_sibling(run, stack) {
                let message = format!(
                    "`{label}` keeps parts of its {} layers of `{stack}` in `{beside}` too, which slices do not cut",
                    map.before
                );
                return Some((message, "merge such models whole, with `models:`"));
            }
        }
        None
    }

    /// A tensor, or a list of them, with an entry for each layer.
    fn by_layer(&self, map: &LayerMap) -> Option<String> {
        let outside = || {
            let tensors = self.tensors.iter();
            tensors.filter(|(name, _)| !name.starts_with(&map.prefix))
        };
        let layers = map.before;
        // One more or less, as where the embeddings count as a layer; a table of vectors has other reasons to have it.
        let of_layers = |shape: &[usize]| {
            let entries = shape.first().filter(|&&entries| entries > 1);
            let off = entries.map(|entries| entries.abs_diff(layers));
            off == Some(0) || off == Some(1) && shape.len() != 2
        };
        let mut lists: BTreeMap<&str, BTreeSet<&str>> = BTreeMap::new();
        for (name, shape) in outside() {
            let (module, last) = name.rsplit_once('.').unwrap_or(("", name));
            if is_number(last) {
                lists.entry(module).or_default().insert(last);
            } else if !matches!(last, "weight" | "bias") {
                // A parameter of a module that holds the stack.
                let holds = module.is_empty() || map.prefix.starts_with(&format!("{module}."));
                if holds && of_layers(shape) && !self.is_counted(last, shape[0]) {
                    return Some(format!(
                        "`{name}` of `{}` has {} entries, as if for each of the {layers} layers of `{}`, which slices do \
                         not cut",
                        self.label, shape[0], map.prefix
                    ));
                }
            } else if self.is_over_heads(shape, layers) {
                return Some(format!(
                    "`{name}` of `{}` has a column for each attention head of each of the {layers} layers of `{}`, which \
                     slices do not cut",
                    self.label, map.prefix
                ));
            }
        }
        let list = lists.into_iter().find(|(module, entries)| {
            // A module beside the stack may hold them: `attn_res.queries` beside `layers`.
            let above = module.rmatch_indices('.').nth(1);
            let above = above.map_or("", |(dot, _)| &module[..dot]);
            let holds = above.is_empty() || map.prefix.starts_with(&format!("{above}."));
            holds && entries.len() == layers && layers > 1
        });
        list.map(|(module, _)| {
            format!(
                "`{module}` of `{}` has an entry for each of the {layers} layers of `{}`, which slices do not cut",
                self.label, map.prefix
            )
        })
    }

    /// Whether the config counts the entries of a parameter by a field with a word of its name: the levels of
    /// `level_embed` are `num_feature_levels`.
    fn is_counted(&self, name: &str, entries: usize) -> bool {
        let named = |field: &String| {
            let mut words = name.split('_').filter(|word| word.len() > 3);
            words.any(|word| field.contains(word))
        };
        let fields = self.config.into_iter().flatten();
        let mut counts = fields.filter(|(_, value)| value.as_u64() == Some(entries as u64));
        counts.any(|(field, _)| named(field))
    }

    /// Whether tensors of one name have other shapes in other modules of a run.
    pub(super) fn is_uneven(&self, prefix: &str) -> bool {
        let mut shapes: BTreeMap<&str, &[usize]> = BTreeMap::new();
        self.tensors.iter().any(|(name, shape)| {
            let inside = name
                .strip_prefix(prefix)
                .and_then(|rest| rest.split_once('.'));
            inside.is_some_and(|(_, suffix)| *shapes.entry(suffix).or_insert(shape) != *shape)
        })
    }

    /// Whether a matrix has one row, over all heads of all layers: a contact head of protein models.
    fn is_over_heads(&self, shape: &[usize], layers: usize) -> bool {
        let number = |value: &Value| {
            value
                .as_u64()
                .and_then(|number| usize::try_from(number).ok())
        };
        let (Some(config), [1, columns]) = (self.config, shape) else {
            return false;
        };
        let heads = config.get("num_attention_heads").and_then(number);
        let all = heads.and_then(|heads| heads.checked_mul(layers));
        all == Some(*columns) && !config.values().any(|value| number(value) == Some(*columns))
    }
}

/// Whether a run of modules lies beside a stack: in the same module, or in one that is called after it, as
/// `decoder_order_head` is after `decoder`.
pub(super) fn is_sibling(run: &LayerStack, stack: &str) -> bool {
    let list = stack.trim_end_matches('.');
    let parent = list.rfind('.').map_or("", |dot| &list[..dot]);
    let Some(rest) = run.prefix.strip_prefix(parent) else {
        return false;
    };
    let named = !parent.is_empty() && rest.starts_with('_');
    let inside = parent.is_empty() || rest.starts_with('.');
    let parts = rest.trim_matches('.').split('.').count();
    run.prefix != stack && (named || inside) && parts == 1
}
