//! Finds the model's tensor for each of the adapter's names: by the name itself, or by the one prefix that explains
//! all.

use std::collections::{BTreeMap, HashMap};
use std::path::Path;

use super::error::AdapterError;
use crate::source::TensorEntry;
use architecture::is_number;

/// The most stacks, and the most names outside of stacks, that are looked for under other prefixes; a real adapter has
/// a few.
const ODD: usize = 256;

/// Two names are similar if fewer than one in this many characters differ.
const NEAR: usize = 2;

/// The tensors of the model.
pub(super) struct Targets<'a> {
    pub(super) tensors: &'a [TensorEntry],
    pub(super) by_name: &'a HashMap<String, usize>,
}

/// Whether a shape fits.
pub(super) type Fits<'a> = Box<dyn Fn(&[usize]) -> bool + 'a>;

/// A tensor of the model that the adapter changes.
pub(super) struct ChangedTensor<'a> {
    /// Its name in the model that the adapter was trained on.
    pub(super) name: String,
    /// One of the adapter's tensors for it.
    pub(super) key: &'a str,
    /// Which shapes it may have.
    pub(super) fits: Fits<'a>,
}

/// Prefixes that differ between the adapter and the model.
#[derive(Debug, Clone, PartialEq, Eq)]
struct Renaming {
    adapter: String,
    model: String,
}

impl Renaming {
    fn apply(&self, name: &str) -> Option<String> {
        let rest = name.strip_prefix(self.adapter.as_str())?;
        Some(format!("{}{rest}", self.model))
    }
}

impl Targets<'_> {
    /// Finds the tensor for each wanted name, if there is one, and returns the renamed prefixes.
    ///
    /// Composite models moved their parts between versions, and a bare model lacks the prefix that the same model with
    /// a head has. Layers are looked for stack by stack: the whole stack must lie under one other prefix, with matching
    /// shapes, and under no second one.
    pub(super) fn find(
        &self,
        path: &Path,
        wanted: &[ChangedTensor<'_>],
    ) -> Result<(Vec<Option<usize>>, Vec<String>), AdapterError> {
        let mut found: Vec<Option<usize>> = wanted
            .iter()
            .map(|wanted| self.by_name.get(&wanted.name).copied())
            .collect();
        let mut stacks: BTreeMap<&str, Vec<usize>> = BTreeMap::new();
        for (index, wanted) in wanted.iter().enumerate() {
            if found[index].is_none()
                && let Some(stack) = stack_of(&wanted.name)
            {
                stacks.entry(stack).or_default().push(index);
            }
        }
        let mut renamings: Vec<Renaming> = Vec::new();
        for (stack, members) in stacks.into_iter().take(ODD) {
            let members: Vec<(usize, &ChangedTensor<'_>)> = members
                .into_iter()
                .map(|index| (index, &wanted[index]))
                .collect();
            let Some(renaming) = self.renaming(path, stack, &members)? else {
                continue;
            };
            for (index, member) in members {
                found[index] = self.renamed(&renaming, member);
            }
            if !renamings.contains(&renaming) {
                renamings.push(renaming);
            }
        }
        let outside = (found.iter_mut().zip(wanted))
            .filter(|(found, wanted)| found.is_none() && stack_of(&wanted.name).is_none());
        for (found, wanted) in outside.take(ODD) {
            let renamed = renamings
                .iter()
                .find_map(|renaming| self.renamed(renaming, wanted));
            *found = match renamed {
                Some(tensor) => Some(tensor),
                None => self.under_a_prefix(path, wanted)?,
            };
        }
        let note = |renaming: &Renaming| {
            format!(
                "{}: names that start with `{}` are taken for the model's that start with `{}`",
                path.display(),
                renaming.adapter,
                renaming.model
            )
        };
        let notes = renamings.iter().map(note).collect();
        Ok((found, notes))
    }

    /// The tensor of that name, or the only one whose name ends so from some part of the stack's prefix on.
    pub(super) fn lookup(&self, name: &str) -> Option<usize> {
        if let Some(&tensor) = self.by_name.get(name) {
            return Some(tensor);
        }
        let only = |cut: usize| {
            let mut fitting = self.ending_in(&name[cut..]);
            fitting.next().filter(|_| fitting.next().is_none())
        };
        cuts(stack_of(name)?).find_map(only)
    }

    fn renamed(&self, renaming: &Renaming, wanted: &ChangedTensor<'_>) -> Option<usize> {
        let tensor = *self.by_name.get(&renaming.apply(&wanted.name)?)?;
        (wanted.fits)(&self.tensors[tensor].shape).then_some(tensor)
    }

    /// The only other prefix under which all members of a stack exist.
    fn renaming(
        &self,
        path: &Path,
        stack: &str,
        members: &[(usize, &ChangedTensor<'_>)],
    ) -> Result<Option<Renaming>, AdapterError> {
        let Some((_, first)) = members.first() else {
            return Ok(None);
        };
        for cut in cuts(stack) {
            let suffix = &first.name[cut..];
            let mut fitting = self.ending_in(suffix).filter_map(|tensor| {
                let name = &self.tensors[tensor].name;
                let renaming = Renaming {
                    adapter: stack[..cut].into(),
                    model: name[..name.len() - suffix.len()].into(),
                };
                members
                    .iter()
                    .all(|(_, member)| self.renamed(&renaming, member).is_some())
                    .then_some(renaming)
            });
            if let Some(renaming) = fitting.next() {
                return match fitting.next() {
                    None => Ok(Some(renaming)),
                    Some(other) => Err(ambiguous(path, first, &renaming, &other)),
                };
            }
        }
        Ok(None)
    }

    /// The only tensor whose name is the wanted one under an additional prefix.
    fn under_a_prefix(
        &self,
        path: &Path,
        wanted: &ChangedTensor<'_>,
    ) -> Result<Option<usize>, AdapterError> {
        let mut fitting = self
            .ending_in(&wanted.name)
            .filter(|&tensor| (wanted.fits)(&self.tensors[tensor].shape));
        match (fitting.next(), fitting.next()) {
            (Some(first), Some(second)) => Err(AdapterError::Ambiguous {
                path: path.into(),
                key: wanted.key.into(),
                first: self.tensors[first].name.clone(),
                second: self.tensors[second].name.clone(),
            }),
            (found, _) => Ok(found),
        }
    }

    /// Tensors whose names end in whole components equal to the suffix.
    fn ending_in(&self, suffix: &str) -> impl Iterator<Item = usize> {
        self.tensors
            .iter()
            .enumerate()
            .filter(move |(_, tensor)| {
                tensor
                    .name
                    .strip_suffix(suffix)
                    .is_some_and(|prefix| prefix.is_empty() || prefix.ends_with('.'))
            })
            .map(|(index, _)| index)
    }

    /// The hint for a tensor that does not exist.
    pub(super) fn nearest(&self, name: &str) -> String {
        let last = name.rsplit('.').next().unwrap_or(name);
        let near = self
            .tensors
            .iter()
            .map(|tensor| &tensor.name)
            .filter(|other| other.ends_with(last))
            .map(|other| (strsim::damerau_levenshtein(other, name), other))
            .min_by_key(|(edits, _)| *edits)
            .filter(|(edits, _)| edits * NEAR < name.len());
        match near {
            Some((_, near)) => format!(
                "the nearest that it has is `{near}`: name the model that the adapter was trained on"
            ),
            None => "name the model that the adapter was trained on".into(),
        }
    }
}

/// The name up to its first number: `model.layers.` of `model.layers.0.mlp.up_proj.weight`.
fn stack_of(name: &str) -> Option<&str> {
    let mut start = 0;
    for word in name.split('.') {
        if is_number(word) {
            return (start > 0).then(|| &name[..start]);
        }
        start += word.len() + 1;
    }
    None
}

/// Where the prefix of a stack may be cut: before each component, the shortest prefix first.
fn cuts(stack: &str) -> impl Iterator<Item = usize> {
    let ends = stack.trim_end_matches('.').match_indices('.');
    std::iter::once(0).chain(ends.map(|(dot, _)| dot + 1))
}

fn ambiguous(
    path: &Path,
    first: &ChangedTensor<'_>,
    one: &Renaming,
    other: &Renaming,
) -> AdapterError {
    let name = |renaming: &Renaming| renaming.apply(&first.name).unwrap_or_default();
    AdapterError::Ambiguous {
        path: path.into(),
        key: first.key.into(),
        first: format!("`{}`", name(one)),
        second: format!("`{}`", name(other)),
    }
}

#[cfg(test)]
mod tests {
    use safetensors::Dtype;

    use super::*;

    type Outcome = Result<Vec<Option<String>>, String>;

    fn find(model: &[(&str, &[usize])], wanted: &[&str]) -> Outcome {
        let tensors: Vec<TensorEntry> = model
            .iter()
            .map(|(name, shape)| TensorEntry {
                name: (*name).into(),
                dtype: Dtype::F32,
                stored: Dtype::F32,
                shape: shape.to_vec(),
                len: 0,
            })
            .collect();
        let by_name = (tensors.iter().enumerate())
            .map(|(index, tensor)| (tensor.name.clone(), index))
            .collect();
        let targets = Targets {
            tensors: &tensors,
            by_name: &by_name,
        };
        let wanted: Vec<ChangedTensor<'_>> = wanted
            .iter()
            .map(|name| ChangedTensor {
                name: (*name).into(),
                key: name,
                fits: Box::new(|shape| shape == [2, 3]),
            })
            .collect();
        let (found, _) = targets
            .find(Path::new("a"), &wanted)
            .map_err(|e| errors::in_one_line(&e))?;
        Ok(found
            .into_iter()
            .map(|found| Some(tensors[found?].name.clone()))
            .collect())
    }

    const S: &[usize] = &[2, 3];
    const OTHER: &[usize] = &[4, 3];

    #[test]
    fn names_are_found_as_they_are_or_under_another_prefix() {
        let model = [
            ("model.language_model.layers.0.q.weight", S),
            ("model.language_model.layers.1.q.weight", S),
            ("model.visual.blocks.0.q.weight", S),
            ("model.visual.layers.0.q.weight", OTHER),
            ("model.language_model.embed_tokens.weight", S),
            ("lm_head.weight", S),
        ];
        let wanted = [
            "language_model.model.layers.0.q.weight",
            "language_model.model.layers.1.q.weight",
            "visual.blocks.0.q.weight",
            "language_model.model.embed_tokens.weight",
            "lm_head.weight",
            "score.weight",
        ];
        let expected: Vec<Option<String>> = [
            Some("model.language_model.layers.0.q.weight"),
            Some("model.language_model.layers.1.q.weight"),
            Some("model.visual.blocks.0.q.weight"),
            Some("model.language_model.embed_tokens.weight"),
            Some("lm_head.weight"),
            None,
        ]
        .into_iter()
        .map(|name| name.map(Into::into))
        .collect();
        assert_eq!(find(&model, &wanted), Ok(expected));
        // A bare model against a model with a head, and the reverse.
        let one = |model: &str, wanted: &str| find(&[(model, S)], &[wanted]).unwrap().remove(0);
        for (model, wanted) in [
            ("bert.encoder.layer.0.q.weight", "encoder.layer.0.q.weight"),
            ("h.0.c_attn.weight", "transformer.h.0.c_attn.weight"),
            ("bert.pooler.dense.weight", "pooler.dense.weight"),
        ] {
            assert_eq!(one(model, wanted).as_deref(), Some(model));
        }
    }

    #[test]
    fn weak_or_ambiguous_evidence_is_not_enough() {
        let twice = [
            ("vision.layers.0.q.weight", S),
            ("text.layers.0.q.weight", S),
        ];
        let message = find(&twice, &["model.layers.0.q.weight"]).unwrap_err();
        assert!(message.contains("could be for"), "{message}");
        // The whole stack must exist, with its shapes, under a single stack.
        for (model, wanted) in [
            (
                vec![("a.layers.0.q.weight", S)],
                vec!["b.layers.0.q.weight", "b.layers.1.q.weight"],
            ),
            (
                vec![("a.layers.0.q.weight", OTHER)],
                vec!["b.layers.0.q.weight"],
            ),
            (
                vec![("a.blocks.0.q.weight", S)],
                vec!["a.layers.0.q.weight"],
            ),
            (vec![("alayers.0.q.weight", S)], vec!["b.layers.0.q.weight"]),
        ] {
            let found = find(&model, &wanted).unwrap();
            assert!(found.iter().all(Option::is_none), "{wanted:?}: {found:?}");
        }
    }
}
