//! Findings from comparing all models and the recipe: different depths, filters that match nothing, similar names.

use std::collections::BTreeMap;

use super::counterparts::Counterparts;
use super::layers::OutputTensor;
use super::models::Models;
use super::problems::{Problems, count};
use architecture::{LayerStack, decoder_layers};
use checkpoint::ModelConfig;
use recipe::{Parameters, Recipe};

/// Refuses models with different numbers of layers; only slices can combine them.
pub(super) fn different_depths(
    models: &Models,
    counterparts: &[Counterparts],
    stacks: &[LayerStack],
    problems: &mut Problems,
) {
    for (model, names) in counterparts.iter().enumerate() {
        for stack in stacks {
            let config = models.checkpoints[model].config().map(ModelConfig::value);
            let own = names.names.iter().map(String::as_str);
            let layers = decoder_layers(config, &stack.prefix, own);
            if layers > 0 && layers != stack.layers {
                let message = format!(
                    "`{}` has {} in `{}`, and `{}` has {}",
                    models.label(model),
                    count(layers, "layer"),
                    stack.prefix,
                    models.label(models.donor),
                    stack.layers
                );
                let hint = "models of different depths can be merged by `slices:`, which names the layers of each";
                problems.add(models.at[model], message, Some(hint.to_owned()));
            }
        }
    }
}

/// Notes filters that match no tensor: most are misspelt.
///
/// `own` are the names of all models as they write them.
pub(super) fn unused_filters(
    recipe: &Recipe,
    wanted: &[OutputTensor],
    own: &[&str],
    notes: &mut Vec<String>,
) {
    for (_, setting) in recipe.levels().flat_map(Parameters::iter) {
        for filter in setting.filters() {
            let text = filter.value.as_str();
            let fits = |name: &String| text == "*" || name.contains(text);
            if !wanted
                .iter()
                .any(|wanted| fits(&wanted.name) || wanted.picks.iter().any(fits))
            {
                notes.push(format!(
                    "line {}: the filter `{text}` fits no tensor",
                    filter.at.line
                ));
            }
        }
    }
    let wanted = wanted.iter().map(|wanted| wanted.name.as_str());
    let names: Vec<&str> = wanted.chain(own.iter().copied()).collect();
    for pattern in recipe
        .exceptions
        .iter()
        .flat_map(|exception| exception.idle(&names))
    {
        notes.push(format!(
            "line {}: the pattern `{}` fits no tensor",
            pattern.at.line, pattern.value
        ));
    }
}

/// Notes gradients of which only one value is used, because none of their tensors lies in a run of layers.
pub(super) fn flat_gradients(recipe: &Recipe, wanted: &[OutputTensor], notes: &mut Vec<String>) {
    for (name, setting) in recipe.levels().flat_map(Parameters::iter) {
        let mut depths: BTreeMap<usize, Vec<f64>> = BTreeMap::new();
        for wanted in wanted {
            let Some(list) = setting.list_for(&wanted.name) else {
                continue;
            };
            let depths = depths.entry(list).or_default();
            if !depths.contains(&wanted.depth) && depths.len() < 2 {
                depths.push(wanted.depth);
            }
        }
        for depths in depths.into_values() {
            if let [depth] = depths[..] {
                let value = if depth == 0.0 { "first" } else { "last" };
                notes.push(format!(
                    "line {}: of the values of `{name}` over depth only the {value} is used: the tensors that they are \
                     for are in no numbered run of layers",
                    setting.at().line
                ));
            }
        }
    }
}

/// The most names that are written out one by one for `except`.
const NAMED: usize = 4;

/// What `tensors:` of an `except` entry says to match all of these names: the only one, what they have in common, or a
/// list of them; none for many that have nothing in common.
pub(super) fn pattern_of<S: AsRef<str>>(names: &[S]) -> Option<String> {
    let names: Vec<&str> = names.iter().map(AsRef::as_ref).collect();
    let (first, others) = names.split_first()?;
    if others.is_empty() {
        return Some(format!("'{first}'"));
    }
    let common = others.iter().fold(*first, |common, name| {
        let same = common.bytes().zip(name.bytes());
        let len = same.take_while(|(ours, theirs)| ours == theirs).count();
        // They share these bytes, but the bytes may end within a character.
        common.get(..len).unwrap_or_default()
    });
    if let Some(end) = common.rfind(['.', '/']) {
        return Some(format!("'{}*'", &common[..=end]));
    }
    let listed = || {
        let quoted = names.iter().map(|name| format!("'{name}'"));
        format!("[{}]", quoted.collect::<Vec<String>>().join(", "))
    };
    (names.len() <= NAMED).then(listed)
}

/// What to do about tensors that the model lacks, and its nearest name to the first of them.
///
/// `prefix` is that of their part of the model, and `rules` are those of `rename` by which it would have them.
pub(super) fn missing_hint(
    counterparts: &Counterparts,
    missing: &[String],
    prefix: &str,
    rules: Option<String>,
) -> String {
    let nearest = match &counterparts.doubted {
        Some(alias) => format!(
            "it has tensors of these shapes as `{}*` in place of `{}*`, but another module's name may stand for \
             another module",
            alias.model_prefix, alias.reference_prefix
        ),
        None => nearest_names(counterparts, missing),
    };
    let nearest = match rules {
        Some(rules) => format!("{nearest}; if it only names them otherwise, add `{rules}`"),
        None => nearest,
    };
    let missing: Vec<String> = missing
        .iter()
        .map(|name| format!("{prefix}{name}"))
        .collect();
    match pattern_of(&missing) {
        Some(pattern) => format!(
            "{nearest}; `except: [{{tensors: {pattern}, action: drop}}]` leaves such tensors out of the merge"
        ),
        None => format!(
            "{nearest}; `except` with `action: drop` leaves tensors out of the merge, by pattern"
        ),
    }
}

/// The model's nearest names to the first missing one.
fn nearest_names(counterparts: &Counterparts, missing: &[String]) -> String {
    let Some(first) = missing.first() else {
        return String::new();
    };
    let last = first
        .rsplit_once('.')
        .map_or(first.as_str(), |(_, last)| last);
    let near = counterparts
        .names
        .iter()
        .filter(|name| name.ends_with(last))
        .map(|name| (strsim::damerau_levenshtein(name, first), name))
        .min_by_key(|(edits, _)| *edits)
        // Names that share only their ends have nothing to do with each other.
        .filter(|(edits, _)| edits * 2 < first.len())
        .map(|(_, name)| name);
    let letters = |name: &str| name.replace(|c: char| c.is_ascii_digit(), "");
    match near {
        Some(near) if letters(near) == letters(first) => {
            "it has them in other layers: the file is incomplete, or another model's".to_owned()
        }
        Some(near) => format!("the nearest to `{first}` that it has is `{near}`"),
        None => "it is another architecture, or the file is incomplete".to_owned(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_pattern_matches_the_names_and_no_more_than_they_have_in_common() {
        let of = |names: &[&str]| {
            let names: Vec<String> = names.iter().map(|name| (*name).to_owned()).collect();
            pattern_of(&names)
        };
        let pattern = |text: &str| Some(text.to_owned());
        assert_eq!(of(&["a.b"]), pattern("'a.b'"));
        assert_eq!(of(&["score.weight", "score.bias"]), pattern("'score.*'"));
        assert_eq!(of(&["a.b.c", "a.bd.e"]), pattern("'a.*'"));
        // `*` alone would drop the whole model.
        assert_eq!(
            of(&["score.weight", "value"]),
            pattern("['score.weight', 'value']")
        );
        assert_eq!(of(&["a", "b", "c", "d", "e"]), None);
        assert_eq!(of(&[]), None);
        assert_eq!(
            of(&["\u{e9}.a", "\u{e8}.a"]),
            pattern("['\u{e9}.a', '\u{e8}.a']")
        );
    }
}
