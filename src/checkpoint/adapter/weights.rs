//! An adapter's weight file: its header, and the names of its tensors.

use std::fs;
use std::path::{Path, PathBuf};

use super::config;
use super::error::AdapterError;
use crate::error::CheckpointError;
use crate::header::HeaderTensor;
use crate::shard::Shard;
use numeric::{FloatType, Stored};

const FILE: &str = "adapter_model.safetensors";
const PICKLE: &str = "adapter_model.bin";

/// The tensors of an adapter.
#[derive(Debug)]
pub(super) struct AdapterWeights {
    /// The file.
    pub(super) path: PathBuf,
    /// By offset.
    pub(super) tensors: Vec<HeaderTensor>,
    /// The file, mapped.
    pub(super) shard: Shard,
}

/// Maps the weight file of an adapter's folder.
pub(super) fn open(folder: &Path) -> Result<AdapterWeights, AdapterError> {
    let there = |name: &str| fs::metadata(folder.join(name)).is_ok();
    let missing = |file, hint| AdapterError::FileMissing {
        path: folder.into(),
        file,
        hint,
    };
    if !there(config::FILE) {
        let hint = match folder.is_dir() {
            true => "an adapter is a folder as PEFT's `save_pretrained` writes it",
            false => "name the adapter's folder, not a file in it",
        };
        return Err(missing(config::FILE, hint));
    }
    if !there(FILE) {
        let hint = match there(PICKLE) {
            true => {
                "adapter_model.bin is a pickle, which is not read: load the adapter with PEFT and save it again, \
                 which writes safetensors"
            }
            false => "the adapter is incomplete, copy or download it again",
        };
        return Err(missing(FILE, hint));
    }
    let path = folder.join(FILE);
    let (shard, tensors) = Shard::open(&path).map_err(Box::new)?;
    if tensors.is_empty() {
        return Err(Box::new(CheckpointError::NoTensors { path, beside: None }).into());
    }
    Ok(AdapterWeights {
        path,
        tensors,
        shard,
    })
}

impl AdapterWeights {
    /// The name of a tensor.
    pub(super) fn key(&self, tensor: usize) -> &str {
        &self.tensors[tensor].name
    }

    /// The shape of a tensor.
    pub(super) fn shape(&self, tensor: usize) -> &[usize] {
        &self.tensors[tensor].shape
    }

    /// The bytes of a tensor.
    pub(super) fn bytes(&self, tensor: usize) -> &[u8] {
        let tensor = &self.tensors[tensor];
        self.shard.slice(tensor.offset, tensor.len)
    }

    /// The values of a tensor; every tensor used as numbers has been checked to be of a float type.
    pub(super) fn stored(&self, tensor: usize, otherwise: FloatType) -> Stored<'_> {
        Stored {
            bytes: self.bytes(tensor),
            format: FloatType::from_dtype(self.tensors[tensor].dtype).unwrap_or(otherwise),
        }
    }

    /// Checks that a tensor holds numbers to compute with.
    pub(super) fn check_float(&self, tensor: usize) -> Result<(), AdapterError> {
        let dtype = self.tensors[tensor].dtype;
        if FloatType::from_dtype(dtype).is_some() {
            return Ok(());
        }
        Err(AdapterError::Type {
            path: self.path.clone(),
            key: self.key(tensor).into(),
            expected: "a float".into(),
            found: format!("{dtype:?}"),
            hint: "dequantise the adapter first",
        })
    }

    /// The error for a tensor with a wrong shape.
    pub(super) fn shape_error(
        &self,
        tensor: usize,
        expected: String,
        hint: &'static str,
    ) -> AdapterError {
        AdapterError::Shape {
            path: self.path.clone(),
            key: self.key(tensor).into(),
            expected,
            found: self.shape(tensor).to_vec(),
            hint,
        }
    }
}
