//! A plan's output as a model in memory: for scores, and for whatever reads it at once.

use std::collections::{BTreeMap, BTreeSet};
use std::io;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, PoisonError};

use super::destination::{DiskError, Step};
use super::error::RunError;
use super::{replay, replay_some};
use checkpoint::{
    Bytes, Checkpoint, InMemory, Location, MAX_SIDECAR_BYTES, ModelConfig, SidecarsFrom,
    TensorEntry, TensorSource, read_bounded,
};
use engine::{Observer, Sink, Tile};
use errors::Refusal;
use numeric::{Elements, FloatType, Stored};
use plan::{Plan, PlannedTensor};

/// A merged model, of which nothing was written.
pub struct Merged {
    /// The model: its tensors and its config.
    pub model: Checkpoint,
    /// The files that would lie beside the weights, by name.
    pub files: BTreeMap<String, Vec<u8>>,
}

/// Computes a plan's output into memory, all of it at once; messages call the model `label`.
///
/// Results that several documents of the recipe read are kept in an unnamed file in `scratch`.
///
/// # Errors
/// There is not enough memory, a file of a model cannot be read, or as of [`replay`].
pub fn in_memory(
    plan: &Plan,
    label: &str,
    scratch: &Path,
    observer: &dyn Observer,
) -> Result<Merged, RunError> {
    let files = files_beside(plan)?;
    let sink = Tensors {
        bytes: plan
            .tensors
            .iter()
            .map(|tensor| allocated(&tensor.name, tensor.bytes()))
            .collect::<Result<_, _>>()?,
    };
    replay(plan, None, None, scratch, &sink, observer)?;
    let tensors = plan.tensors.iter().zip(sink.bytes).map(|(tensor, bytes)| {
        let bytes = bytes.into_inner().unwrap_or_else(PoisonError::into_inner);
        let bytes: Bytes = Box::new(bytes);
        (
            tensor.name.clone(),
            tensor.dtype,
            tensor.shape.clone(),
            bytes,
        )
    });
    let source = InMemory::new(tensors)
        .map_err(|error| RunError::NotPrepared(Refusal::new(error.to_string())))?;
    let place = PathBuf::from(format!("{label}/config.json"));
    let config = plan.config.clone();
    let config = config.map(|value| ModelConfig::made(place, value));
    let model = match plan.quantization {
        None => Checkpoint::new(
            label,
            Location::local(label),
            config,
            SidecarsFrom::Nothing,
            Arc::new(source),
        ),
        // Codes and scales, which are decoded where they are read.
        Some(_) => Checkpoint::in_memory(label, config, Arc::new(source))
            .map_err(|error| RunError::NotPrepared(Refusal::from(&error)))?,
    };
    Ok(Merged { model, files })
}

/// Computes some tensors of a plan's output into memory. The model has all tensors, and the values of those whose names
/// are `wanted`.
///
/// # Errors
/// As of [`in_memory`].
pub fn some_in_memory(
    plan: &Plan,
    wanted: &BTreeSet<&str>,
    label: &str,
    scratch: &Path,
    observer: &dyn Observer,
) -> Result<Checkpoint, RunError> {
    let tensors = plan.tensors.iter();
    let is_wanted = |tensor: &PlannedTensor| wanted.contains(tensor.name.as_str());
    let numbers: Vec<usize> = (0..plan.tensors.len())
        .filter(|&number| is_wanted(&plan.tensors[number]))
        .collect();
    let sink = Tensors {
        bytes: tensors
            .clone()
            .map(|tensor| match is_wanted(tensor) {
                true => allocated(&tensor.name, tensor.bytes()),
                false => Ok(Mutex::default()),
            })
            .collect::<Result<_, _>>()?,
    };
    if !numbers.is_empty() {
        replay_some(plan, &numbers, scratch, &sink, observer)?;
    }
    let bytes = sink.bytes.into_iter();
    let bytes = bytes.map(|bytes| bytes.into_inner().unwrap_or_else(PoisonError::into_inner));
    let values = tensors.clone().zip(bytes);
    let source = SomeValues {
        values: values
            .map(|(tensor, bytes)| is_wanted(tensor).then_some(bytes))
            .collect(),
        entries: tensors.map(entry).collect(),
    };
    let config = plan.config.clone();
    let place = PathBuf::from(format!("{label}/config.json"));
    Ok(Checkpoint::new(
        label,
        Location::local(label),
        config.map(|value| ModelConfig::made(place, value)),
        SidecarsFrom::Nothing,
        Arc::new(source),
    ))
}

fn entry(tensor: &PlannedTensor) -> TensorEntry {
    TensorEntry {
        name: tensor.name.clone(),
        dtype: tensor.dtype,
        stored: tensor.dtype,
        shape: tensor.shape.clone(),
        len: tensor.bytes(),
    }
}

/// Tensors of which some have values.
#[derive(Debug)]
struct SomeValues {
    entries: Vec<TensorEntry>,
    values: Vec<Option<Vec<u8>>>,
}

impl TensorSource for SomeValues {
    fn entries(&self) -> &[TensorEntry] {
        &self.entries
    }

    fn elements(&self, index: usize) -> Option<Box<dyn Elements + '_>> {
        Some(Box::new(Stored {
            format: FloatType::from_dtype(self.entries[index].dtype)?,
            bytes: self.bytes(index)?,
        }))
    }

    fn bytes(&self, index: usize) -> Option<&[u8]> {
        self.values[index].as_deref()
    }
}

/// The files that a plan writes beside the weights, by name.
///
/// # Errors
/// A file of a model cannot be read.
pub fn files_beside(plan: &Plan) -> Result<BTreeMap<String, Vec<u8>>, RunError> {
    let configs = plan
        .configs()
        .map(|(name, _, text)| (name, text.into_bytes()));
    let mut files: BTreeMap<String, Vec<u8>> = configs.collect();
    files.extend(plan.made.iter().cloned());
    for (_, file) in &plan.sidecars {
        let read = read_bounded(&file.path, MAX_SIDECAR_BYTES, "file, in bytes");
        let bytes = read.map_err(|error| RunError::NotPrepared(Refusal::from(&error)))?;
        files.insert(file.name.clone(), bytes);
    }
    Ok(files)
}

fn allocated(tensor: &str, bytes: u64) -> Result<Mutex<Vec<u8>>, RunError> {
    let none =
        || DiskError::at(Step::Allocate, Path::new(tensor))(io::ErrorKind::OutOfMemory.into());
    let len = usize::try_from(bytes).map_err(|_| none())?;
    let mut memory = Vec::new();
    memory.try_reserve_exact(len).map_err(|_| none())?;
    memory.resize(len, 0);
    Ok(Mutex::new(memory))
}

/// A sink that keeps every tensor.
struct Tensors {
    bytes: Vec<Mutex<Vec<u8>>>,
}

impl Sink for Tensors {
    fn write(&self, output: usize, offset: u64, bytes: Tile) -> io::Result<()> {
        let beyond = || io::Error::other("no place is planned for these bytes");
        let tensor = self.bytes.get(output).ok_or_else(beyond)?;
        let mut tensor = tensor.lock().unwrap_or_else(PoisonError::into_inner);
        let start = usize::try_from(offset).map_err(|_| beyond())?;
        let place = tensor
            .get_mut(start..)
            .and_then(|rest| rest.get_mut(..bytes.len()));
        place.ok_or_else(beyond)?.copy_from_slice(&bytes);
        Ok(())
    }
}
