//! Finds, for each tensor of the donor, its counterpart in another model: by name, by alias, or tied.

use std::collections::{HashMap, HashSet};

use super::models::Models;
use architecture::{
    LayerStack, is_input_embedding, is_number, is_output_head, other_spelling, unwrapped,
};
use checkpoint::{AliasSearch, Checkpoint, PrefixAlias, find_alias};
use recipe::{Exception, Fallback, Recipe};

/// The most prefixes that a model may spell differently from the donor.
const ALIASES: usize = 4;

/// A model's tensors under the donor's names.
pub(super) struct Counterparts {
    /// For each tensor of the model, in file order, its name in the donor's spelling.
    pub(super) names: Vec<String>,
    by_name: HashMap<String, usize>,
    /// Which prefixes differ.
    pub(super) aliases: Vec<PrefixAlias>,
    /// A prefix that would match names and shapes, but is not certain enough to use.
    pub(super) doubted: Option<PrefixAlias>,
    /// Whether the output head is the input embedding: as the config says, or, if it does not say, whether the file
    /// lacks a head.
    pub(super) tied: bool,
    /// What the config says about that.
    pub(super) tied_by_config: Option<bool>,
    /// The tensors that are a head and an embedding, if there are any.
    pub(super) embedding: Option<usize>,
}

impl Counterparts {
    /// A tensor that the recipe drops has no counterpart, whatever its name in other models.
    pub(super) fn new(
        recipe: &Recipe,
        models: &Models,
        stacks: &[LayerStack],
        model: &Checkpoint,
    ) -> Self {
        let donor = models.donor();
        let of_donor = unwrapped_names(donor);
        let donor_names: HashSet<&str> = of_donor.iter().map(String::as_str).collect();
        let mut names = unwrapped_names(model);
        for name in &mut names {
            let other = other_spelling(name).filter(|_| !donor_names.contains(name.as_str()));
            if let Some(other) = other.filter(|other| donor_names.contains(other.as_str())) {
                *name = other;
            }
        }
        let mut aliases = Vec::new();
        let mut doubted = None;
        let drops = |exception: Option<&Exception>| {
            exception.is_some_and(|exception| exception.fallback == Fallback::Drop)
        };
        let dropped: Vec<bool> = names
            .iter()
            .map(|name| drops(recipe.named_exception(&models.qualified(name))))
            .collect();
        for _ in 0..ALIASES {
            let reference: Vec<(&str, &[usize])> = donor
                .tensors()
                .iter()
                .zip(&of_donor)
                .filter(|(_, name)| !drops(recipe.exception(&models.qualified(name))))
                .map(|(tensor, name)| (name.as_str(), tensor.shape.as_slice()))
                .collect();
            let other: Vec<(&str, &[usize])> = names
                .iter()
                .zip(model.tensors())
                .zip(&dropped)
                .filter(|(_, dropped)| !**dropped)
                .map(|((name, tensor), _)| (name.as_str(), tensor.shape.as_slice()))
                .collect();
            let alias = match find_alias(&reference, &other) {
                AliasSearch::Found(alias) => alias,
                AliasSearch::TooWeak(alias) => {
                    doubted = Some(alias);
                    break;
                }
                AliasSearch::Nothing => break,
            };
            let back = PrefixAlias {
                reference_prefix: alias.model_prefix.clone(),
                model_prefix: alias.reference_prefix.clone(),
            };
            let renamed: Vec<Option<String>> = names
                .iter()
                .zip(&dropped)
                .map(|(name, dropped)| {
                    let theirs = back
                        .apply(name)
                        .filter(|_| !dropped && !donor_names.contains(name.as_str()))?;
                    // A name that the donor lacks is renamed only if it belongs to a layer stack: a model may have more
                    // layers than the donor.
                    let known = donor_names.contains(theirs.as_str())
                        || stacks.iter().any(|stack| theirs.starts_with(&stack.prefix));
                    known.then_some(theirs)
                })
                .collect();
            if renamed.iter().all(Option::is_none) {
                break;
            }
            for (name, renamed) in names.iter_mut().zip(renamed) {
                if let Some(renamed) = renamed {
                    *name = renamed;
                }
            }
            aliases.push(alias);
        }
        let by_name = names
            .iter()
            .enumerate()
            .map(|(index, name)| (name.clone(), index))
            .collect();
        let tied_by_config = model
            .config()
            .and_then(|config| config.tie_word_embeddings());
        let has_head = names.iter().any(|name| is_head(name));
        Self {
            tied: tied_by_config.unwrap_or(!has_head),
            tied_by_config,
            embedding: names.iter().position(|name| is_input_embedding(name)),
            names,
            by_name,
            aliases,
            doubted,
        }
    }

    /// Whether the model has an output head, by its name, or by its place and shape: a matrix outside of the layers that
    /// is called a head and has the embedding's shape.
    pub(super) fn has_head(&self, model: &Checkpoint) -> bool {
        let tensors = model.tensors();
        let shape = self.embedding.map(|embedding| &tensors[embedding].shape);
        let by_shape = |name: &str, of: &Vec<usize>| {
            let module = name.strip_suffix(".weight").unwrap_or(name);
            let last = module.rsplit('.').next().unwrap_or(module);
            let numbered = name.split('.').any(is_number);
            last.ends_with("head") && !numbered && Some(of) == shape
        };
        let mut names = self.names.iter().zip(tensors);
        names.any(|(name, tensor)| is_head(name) || by_shape(name, &tensor.shape))
    }

    /// The model's tensor of that name.
    pub(super) fn find(&self, name: &str) -> Option<usize> {
        self.by_name.get(name).copied()
    }

    /// The model's tensor of that name; for the head of a tied model, its embedding.
    pub(super) fn find_or_tied(&self, name: &str) -> Option<usize> {
        self.find(name).or_else(|| {
            if self.tied && is_head(name) {
                self.embedding
            } else {
                None
            }
        })
    }
}

/// The names of a model's tensors, without what wrappers of training put into them.
pub(super) fn unwrapped_names(model: &Checkpoint) -> Vec<String> {
    unwrapped(model.tensors().iter().map(|tensor| tensor.name.as_str()))
}

/// Whether the tensor is the head's matrix, which a tied model does not store; its bias is stored.
pub(super) fn is_head(name: &str) -> bool {
    is_output_head(name) && name.ends_with(".weight")
}
