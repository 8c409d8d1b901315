//! Which module of the recipe each tensor belongs to: the towers of a vision-language model, encoder and decoder.
//!
//! A module is a part of tensor names, such as `visual` or `model.encoder`, or one of mergekit's names for such
//! parts. Tensors of no other module belong to the language model, if the recipe has a module for it.

use super::problems::{Problems, count, some_of};
use recipe::{Located, Module};

/// mergekit's names, and the parts of tensor names that they mean.
const KNOWN: [(&str, &[&str]); 5] = [
    (
        "vision_tower",
        &["vision_tower", "vision_model", "visual", "vision_encoder"],
    ),
    (
        "vision_model",
        &["vision_model", "vision_tower", "visual", "vision_encoder"],
    ),
    (
        "multi_modal_projector",
        &[
            "multi_modal_projector",
            "mm_projector",
            "connector",
            "visual.merger",
            "visual.deepstack_merger_list",
        ],
    ),
    (
        "audio_tower",
        &["audio_tower", "audio_model", "audio_encoder"],
    ),
    // T5's embedding, and the head, which mergekit counts as part of the same module.
    ("shared", &["shared", "lm_head"]),
];

/// Modules that take the remaining tensors, in order of preference.
const REST: [&str; 4] = ["default", "text_decoder", "language_model", "decoder"];

/// For each name, the module it belongs to. The modules `elsewhere` are those of other parts of the model.
///
/// Every name must belong to a module, and every module must have a name.
pub(super) fn assign(
    (modules, elsewhere): (&[Module], &[usize]),
    names: &[String],
    label: &str,
    notes: &mut Vec<String>,
    problems: &mut Problems,
) -> Vec<usize> {
    let named: Vec<&Located<String>> = modules
        .iter()
        .filter_map(|module| module.name.as_ref())
        .collect();
    // A recipe without `modules:` has a single one, which is the whole model.
    if named.len() < modules.len() {
        return vec![0; names.len()];
    }
    let rest = rest(modules);
    let claims: Vec<Option<usize>> = names
        .iter()
        .map(|name| {
            // The longest part wins: `visual.merger` before `visual`.
            (0..named.len())
                .filter(|index| !elsewhere.contains(index))
                .filter_map(|index| Some((claim(&named[index].value, name)?, index)))
                .max_by_key(|&(length, index)| (length, std::cmp::Reverse(index)))
                .map(|(_, index)| index)
        })
        .collect();
    let unclaimed: Vec<&str> = names
        .iter()
        .zip(&claims)
        .filter(|(_, claim)| claim.is_none())
        .map(|(name, _)| name.as_str())
        .collect();
    match rest {
        None if !unclaimed.is_empty() => {
            let message = format!(
                "{} of `{label}` are in none of the modules: {}",
                count(unclaimed.len(), "tensor"),
                some_of(&unclaimed)
            );
            let hint = "a module is a part of tensor names between dots, and `text_decoder` takes what no other \
                        does: add one for these";
            problems.add(
                named.first().map(|module| module.at),
                message,
                Some(hint.to_owned()),
            );
        }
        Some(rest) if !unclaimed.is_empty() => {
            let claimed = claims.contains(&Some(rest));
            if claimed {
                notes.push(format!(
                    "the module `{}` also takes what no other module does: {}",
                    named[rest].value,
                    some_of(&unclaimed)
                ));
            }
        }
        _ => {}
    }
    let assigned: Vec<usize> = claims
        .into_iter()
        .map(|claim| claim.or(rest).unwrap_or_default())
        .collect();
    for (index, module) in named.iter().enumerate() {
        if !assigned.contains(&index) && !elsewhere.contains(&index) && problems.is_empty() {
            let message = format!("`{label}` has no tensors in the module `{}`", module.value);
            let mut parts: Vec<&str> = names
                .iter()
                .map(|name| name.split('.').next().unwrap_or_default())
                .collect();
            parts.dedup();
            let hint = format!(
                "a module is a part of tensor names between dots; these begin with {}",
                some_of(&parts)
            );
            problems.add(Some(module.at), message, Some(hint));
        }
    }
    assigned
}

/// Whether the tensor belongs to a tower or projector whose output is inserted among the embeddings.
pub(super) fn feeds_embeddings(name: &str) -> bool {
    ["vision_tower", "audio_tower", "multi_modal_projector"]
        .iter()
        .any(|module| claim(module, name).is_some())
}

/// The module that takes what no other does.
pub(super) fn rest(modules: &[Module]) -> Option<usize> {
    let is =
        |module: &Module, rest: &str| module.name.as_ref().is_some_and(|name| name.value == rest);
    let mut names = REST.iter();
    names.find_map(|rest| modules.iter().position(|module| is(module, rest)))
}

/// How many characters of the name the module matches, if it matches.
fn claim(module: &str, name: &str) -> Option<usize> {
    let known = KNOWN.iter().find(|(known, _)| *known == module);
    let parts: &[&str] = known.map_or(&[], |(_, parts)| parts);
    parts
        .iter()
        .copied()
        .chain([module.trim_end_matches('.')])
        .filter(|part| !part.is_empty() && holds(name, part))
        .map(str::len)
        .max()
}

/// Whether a name has this part between dots.
fn holds(name: &str, part: &str) -> bool {
    name.match_indices(part).any(|(start, _)| {
        let end = start + part.len();
        let before = start == 0 || name.as_bytes()[start - 1] == b'.';
        let after = end == name.len() || name.as_bytes()[end] == b'.';
        before && after
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn parts_are_whole_components() {
        assert!(holds("model.visual.blocks.0.attn", "visual"));
        assert!(holds("visual.merger.mlp.0.weight", "visual.merger"));
        assert!(!holds("model.visualizer.weight", "visual"));
        assert!(!holds("model.audiovisual.weight", "visual"));
        assert!(!holds("model.decoder.layers.0.encoder_attn.k", "encoder"));
        assert!(holds("shared.weight", "shared"));
        assert!(holds("a.b", "b"));
    }

    #[test]
    fn the_longest_part_claims() {
        let name = "model.visual.merger.linear_fc1.weight";
        assert!(claim("multi_modal_projector", name) > claim("vision_tower", name));
        assert_eq!(claim("text_decoder", name), None);
        assert_eq!(claim("model.visual.merger", name), Some(19));
    }
}
