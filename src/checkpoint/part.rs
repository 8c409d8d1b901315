//! A part of a model whose weights lie apart from the others: a module behind it, a head beside it, a component of a
//! pipeline.

use std::sync::Arc;

use super::format::WrittenAs;
use super::layout::folder_of;
use super::reader::Checkpoint;
use super::weight_names::{is_index, is_model};

/// A part of a model, whose weights lie apart from the others.
#[derive(Debug, Clone)]
pub struct Part {
    /// What the names of its tensors begin with in the model: `unet/`, or nothing for the weights of the folder itself.
    pub prefix: String,
    /// The number of its first tensor in the model.
    pub first: usize,
    /// The part as a model of its own: its tensors by their own names, its config.
    pub model: Arc<Checkpoint>,
    /// What the paths of its weight files begin with, where they are written: `unet/diffusion_pytorch_model`.
    pub stem: String,
    /// The format in which they are written.
    pub format: WrittenAs,
}

impl Part {
    /// The name of one of its tensors in the model.
    pub fn qualified(&self, name: &str) -> String {
        format!("{}{name}", self.prefix)
    }

    /// What messages call it: `unet`, or nothing for the weights of the folder itself.
    pub fn name(&self) -> &str {
        self.prefix.trim_end_matches('/')
    }

    /// The folder of its files, from that of the model: `unet/`, or nothing.
    pub fn folder(&self) -> &str {
        folder_of(&self.stem)
    }

    /// Whether a file is of its weights by name; `name` is a path from the folder of the model.
    pub(super) fn has_file(&self, name: &str) -> bool {
        let shards = self.model.shards();
        if shards.iter().any(|shard| shard.file_name() == name) {
            return true;
        }
        // What lies in its folder beside the weights that were read are other forms of them.
        let inside = match self.folder() {
            "" => None,
            folder => name.strip_prefix(folder),
        };
        inside.is_some_and(|inside| !inside.contains('/') && (is_model(inside) || is_index(inside)))
    }
}
