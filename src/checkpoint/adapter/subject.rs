//! The model that an adapter is put on, as it becomes with the adapter.

use std::collections::HashMap;

use crate::config::ModelConfig;
use crate::source::TensorEntry;

/// A model's tensors, names and config while an adapter is put on it.
#[derive(Debug)]
pub(crate) struct Subject {
    /// Its tensors, with a head that was untied.
    pub(crate) tensors: Vec<TensorEntry>,
    /// Which tensor of the model each starts as.
    pub(crate) from: Vec<usize>,
    /// The tensors by name.
    pub(crate) by_name: HashMap<String, usize>,
    /// Its config.
    pub(crate) config: Option<ModelConfig>,
    /// What was odd but harmless.
    pub(crate) notes: Vec<String>,
}

impl Subject {
    /// A model as it is without an adapter.
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
        }
    }

    /// Gives it a tensor of that name that starts as another's copy, in the place of one that it has.
    pub(crate) fn copy(&mut self, tensor: usize, name: &str) -> usize {
        let entry = TensorEntry {
            name: name.into(),
            ..self.tensors[tensor].clone()
        };
        let from = self.from[tensor];
        match self.by_name.get(name) {
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
        }
    }
}
