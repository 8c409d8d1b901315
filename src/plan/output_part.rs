//! A part of the output whose weights lie apart from the others.

use std::ops::Range;

use serde_json::Value;

use super::planned::PlannedTensor;
use checkpoint::{Dtype, WrittenAs, folder_of};

/// A part of the output whose weights lie apart from the others.
#[derive(Debug, Clone)]
pub struct OutputPart {
    /// What the names of its tensors begin with in the output: `unet/`, or nothing for the weights of the folder itself.
    pub prefix: String,
    /// What the paths of its weight files begin with: `unet/diffusion_pytorch_model`.
    pub stem: String,
    /// The format of its weight files.
    pub format: WrittenAs,
    /// Its tensors among those of the output.
    pub tensors: Range<usize>,
    /// Its files among the weight files of the output.
    pub shards: Range<usize>,
    /// Its own config, if it has one and is not the folder itself.
    pub config: Option<Value>,
}

impl OutputPart {
    /// The weights of the folder itself, which begin with `stem`.
    pub(super) fn whole(stem: &str, tensors: usize) -> OutputPart {
        OutputPart {
            prefix: String::new(),
            stem: stem.to_owned(),
            format: WrittenAs::Safetensors,
            tensors: 0..tensors,
            shards: 0..0,
            config: None,
        }
    }

    /// The folder of its files, from that of the output: `unet/`, or nothing.
    pub fn folder(&self) -> &str {
        folder_of(&self.stem)
    }

    /// Whether its weights are one file, whatever their size: a head beside the weights, which no loader looks for in
    /// shards.
    pub(super) fn is_one_file(&self) -> bool {
        !self.prefix.is_empty() && self.folder().is_empty()
    }

    /// Names, dtypes and shapes of its tensors, as its own files name them.
    pub(super) fn signatures(&self, tensors: &[PlannedTensor]) -> Vec<(String, Dtype, Vec<usize>)> {
        let tensors = tensors[self.tensors.clone()].iter();
        let own = |name: &str| name.strip_prefix(&self.prefix).unwrap_or(name).to_owned();
        tensors
            .map(|tensor| (own(&tensor.name), tensor.dtype, tensor.shape.clone()))
            .collect()
    }
}
