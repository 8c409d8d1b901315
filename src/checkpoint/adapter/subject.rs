//! The model that an adapter is being applied to.

use std::collections::HashMap;

use crate::config::ModelConfig;
use crate::source::TensorEntry;

/// A model's tensors, names and config while an adapter is applied to it.
#[derive(Debug)]
pub(crate) struct Subject {
    /// Its tensors, including a head that was untied.
    pub(crate) tensors: Vec<TensorEntry>,
    /// For each tensor, the tensor of the model that it starts from.
    pub(crate) from: Vec<usize>,
    /// The tensors by name.
    pub(crate) by_name: HashMap<String, usize>,
    /// Its config.
    pub(crate) config: Option<ModelConfig>,
    /// Notes on what was odd but harmless.
    pub(crate) notes: Vec<String>,
    /// How many rows its embeddings had and have, if the adapter gave them another number.
    pub(crate) rows: Option<(usize, usize)>,
    /// The tensors that start as copies of others.
    pub(crate) copied: Vec<usize>,
}

impl Subject {
    /// A model before an adapter is applied.
    pub(crate) fn new(
        tensors: Vec<TensorEntry>,
        by_name: HashMap<String, usize>,
        config: Option<ModelConfig>,
        notes: Vec<String>,
    ) -> Subject {
        Subject {
            from: (0..tensors.len()).collect(),
            tensors,
            by_name,
            config,
            notes,
            rows: None,
            copied: Vec::new(),
        }
    }

    /// Adds a tensor of that name that starts as a copy of another; it replaces an existing one of the same name.
    pub(crate) fn copy(&mut self, tensor: usize, name: &str) -> usize {
        let entry = TensorEntry {
            name: name.into(),
            ..self.tensors[tensor].clone()
        };
        let from = self.from[tensor];
        let index = match self.by_name.get(name) {
            Some(&index) => {
                self.tensors[index] = entry;
                self.from[index] = from;
                index
            }
            None => {
                let index = self.tensors.len();
                self.tensors.push(entry);
                self.from.push(from);
                self.by_name.insert(name.into(), index);
                index
            }
        };
        self.copied.push(index);
        index
    }
}
