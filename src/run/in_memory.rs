//! A plan's output as a model in memory: for scores, and for whatever reads it at once.

use std::collections::BTreeMap;
use std::io;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, PoisonError};

use super::destination::{DiskError, Step};
use super::error::RunError;
use super::replay;
use checkpoint::{
    Bytes, Checkpoint, InMemory, Location, MAX_SIDECAR_BYTES, ModelConfig, SidecarsFrom,
    read_bounded,
};
use engine::{Observer, Sink, Tile};
use errors::Refusal;
use plan::Plan;

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
    replay(plan, None, scratch, &sink, observer)?;
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
