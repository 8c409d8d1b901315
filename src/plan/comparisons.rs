//! What comparing models and recipe as a whole shows: other depths, filters that fit nothing, near names.

use super::counterparts::Counterparts;
use super::layers::Wanted;
use super::models::Models;
use super::problems::{Problems, count};
use checkpoint::LayerStack;
use recipe::{Parameters, Recipe};

/// Refuses models of other depths, which only slices can bring together.
pub(super) fn different_depths(
    models: &Models,
    counterparts: &[Counterparts],
    stacks: &[LayerStack],
    problems: &mut Problems,
) {
    for (model, names) in counterparts.iter().enumerate() {
        for stack in stacks {
            let any = LayerStack {
                prefix: stack.prefix.clone(),
                layers: usize::MAX,
            };
            let last = names
                .names
                .iter()
                .filter_map(|name| any.split(name))
                .map(|(layer, _)| layer)
                .max();
            let layers = last.map_or(0, |last| last + 1);
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

/// Notes filters that fit no tensor: most are misspelt.
pub(super) fn unused_filters(recipe: &Recipe, wanted: &[Wanted], notes: &mut Vec<String>) {
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
    let names: Vec<&str> = wanted.iter().map(|wanted| wanted.name.as_str()).collect();
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

/// What the model has instead of the first missing name.
pub(super) fn nearest_names(counterparts: &Counterparts, missing: &[String]) -> String {
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
        // Names that share no more than their ends say nothing of each other.
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
