//! An adapter's weight file: its header, and the names of its tensors.

use std::collections::BTreeMap;
use std::fs;
use std::path::{Path, PathBuf};

use super::config;
use super::error::AdapterError;
use crate::error::CheckpointError;
use crate::files::Files;
use crate::format::FileFormat;
use crate::shard::Shard;
use crate::source::{TensorEntry, TensorSource};
use numeric::{FloatType, Stored};

const FILE: &str = "adapter_model.safetensors";
const PICKLE: &str = "adapter_model.bin";
/// What diffusers writes where no other name is asked for.
const OF_DIFFUSERS: &str = "pytorch_lora_weights.safetensors";

/// The tensors of an adapter.
#[derive(Debug)]
pub(super) struct AdapterWeights {
    /// The file.
    pub(super) path: PathBuf,
    /// The file, mapped; the bytes of every tensor lie one after the other.
    pub(super) files: Files,
    /// Whether there is no config beside it.
    pub(super) is_single: bool,
}

/// Maps the weight file of an adapter: a folder of PEFT, or a file of factors without a config.
pub(super) fn open(path: &Path) -> Result<AdapterWeights, AdapterError> {
    let there = |name: &str| fs::metadata(path.join(name)).is_ok();
    let missing = |file, hint| AdapterError::FileMissing {
        path: path.into(),
        file,
        hint,
    };
    if let Some(format) = single_file(path) {
        if fs::metadata(path.with_file_name(config::FILE)).is_ok() {
            let hint = "its config lies beside it: name the adapter's folder, not the file";
            return Err(missing("folder of an adapter", hint));
        }
        return read(path.into(), format, true);
    }
    if !there(config::FILE) {
        if there(OF_DIFFUSERS) {
            return read(path.join(OF_DIFFUSERS), FileFormat::Safetensors, true);
        }
        let hint = match path.is_dir() {
            true => {
                "an adapter is a folder as PEFT's `save_pretrained` writes it, or a `.safetensors` file"
            }
            false => "name the adapter's folder, not a file in it",
        };
        return Err(missing(config::FILE, hint));
    }
    let (file, format) = match (there(FILE), there(PICKLE)) {
        (true, _) => (FILE, FileFormat::Safetensors),
        (false, true) => (PICKLE, FileFormat::Pickle),
        (false, false) => {
            let hint = "the adapter is incomplete, copy or download it again";
            return Err(missing(FILE, hint));
        }
    };
    read(path.join(file), format, false)
}

/// Whether an adapter can be for one model only, and not for the parts of a pipeline: all but files by themselves.
pub(super) fn is_for_one_model(path: &Path) -> bool {
    let there = |name: &str| fs::metadata(path.join(name)).is_ok();
    path.is_dir() && (there(config::FILE) || !there(OF_DIFFUSERS))
}

/// The format of a file that is an adapter by itself.
fn single_file(path: &Path) -> Option<FileFormat> {
    let name = path.file_name()?.to_str()?;
    FileFormat::named(name).filter(|_| path.is_file())
}

/// Maps a weight file.
fn read(
    path: PathBuf,
    format: FileFormat,
    is_single: bool,
) -> Result<AdapterWeights, AdapterError> {
    let (files, _) = Files::open(&path, format, None).map_err(Box::new)?;
    if files.tensors.is_empty() {
        return Err(Box::new(CheckpointError::NoTensors { path, beside: None }).into());
    }
    if let Some(tensor) = (0..files.tensors.len()).find(|&tensor| files.bytes(tensor).is_none()) {
        return Err(Box::new(CheckpointError::StridedView {
            tensor: files.tensors[tensor].name.clone(),
            why: "and those of adapters are read as they lie".into(),
            path,
        })
        .into());
    }
    Ok(AdapterWeights {
        path,
        files,
        is_single,
    })
}

impl AdapterWeights {
    /// What the file's header says beside its tensors.
    pub(super) fn metadata(&self) -> Option<&BTreeMap<String, String>> {
        self.files.shards.first().map(|shard| &shard.metadata)
    }

    /// Gives the file another name among those of a model: no two may have one.
    pub(super) fn name_apart(&mut self, others: &[&Shard]) {
        for shard in &mut self.files.shards {
            let mut number = 1;
            while others
                .iter()
                .any(|other| other.file_name() == shard.file_name())
            {
                number += 1;
                shard.put_in(&format!("+{number}/"));
            }
        }
    }

    /// Its tensors.
    pub(super) fn tensors(&self) -> &[TensorEntry] {
        &self.files.tensors
    }

    /// The name of a tensor.
    pub(super) fn key(&self, tensor: usize) -> &str {
        &self.tensors()[tensor].name
    }

    /// The shape of a tensor.
    pub(super) fn shape(&self, tensor: usize) -> &[usize] {
        &self.tensors()[tensor].shape
    }

    /// The bytes of a tensor.
    pub(super) fn bytes(&self, tensor: usize) -> &[u8] {
        self.files.bytes(tensor).unwrap_or_default()
    }

    /// Whether two tensors are the same to the byte.
    pub(super) fn are_equal(&self, one: usize, other: usize) -> bool {
        let (first, second) = (&self.tensors()[one], &self.tensors()[other]);
        first.dtype == second.dtype
            && first.shape == second.shape
            && self.bytes(one) == self.bytes(other)
    }

    /// The values of a tensor; every tensor used as numbers has been checked to be of a float type.
    pub(super) fn stored(&self, tensor: usize, otherwise: FloatType) -> Stored<'_> {
        Stored {
            bytes: self.bytes(tensor),
            format: FloatType::from_dtype(self.tensors()[tensor].dtype).unwrap_or(otherwise),
        }
    }

    /// Checks that a tensor holds numbers to compute with.
    pub(super) fn check_float(&self, tensor: usize) -> Result<(), AdapterError> {
        let dtype = self.tensors()[tensor].dtype;
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

pub(super) fn half(weights: &AdapterWeights, there: usize, missing: &'static str) -> AdapterError {
    AdapterError::Half {
        path: weights.path.clone(),
        key: weights.key(there).into(),
        missing,
    }
}

pub(super) fn bad_key(weights: &AdapterWeights, tensor: usize, why: &'static str) -> AdapterError {
    AdapterError::Key {
        path: weights.path.clone(),
        key: weights.key(tensor).into(),
        why,
    }
}

pub(super) fn twice(weights: &AdapterWeights, first: usize, second: usize) -> AdapterError {
    AdapterError::Twice {
        path: weights.path.clone(),
        first: weights.key(first).into(),
        second: weights.key(second).into(),
    }
}
