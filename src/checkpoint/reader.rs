//! An open model: its tensors by name, and the config and files beside them.

use std::collections::HashMap;
use std::ops::Range;
use std::path::PathBuf;
use std::sync::Arc;

use super::adapter::{Adapter, Subject};
use super::behind::Reclaim;
use super::config::ModelConfig;
use super::error::CheckpointError;
use super::home::file_in;
use super::left_out::LeftOut;
use super::locate::Location;
use super::renamed::Renamed;
use super::shard::Shard;
use super::sidecars::{Sidecar, SidecarKind, find_sidecars, left_out, unreadable};
use super::source::{TensorEntry, TensorSource};
use errors::Refusal;
use numeric::Elements;

/// A model: the tensors of one source by name, its config, and the files beside them.
///
/// All access to tensors goes through it, whatever their source; [`TensorSource`] says what an index means.
#[derive(Debug)]
pub struct Checkpoint {
    label: String,
    location: Location,
    config: Option<ModelConfig>,
    beside: SidecarsFrom,
    by_name: HashMap<String, usize>,
    source: Arc<dyn TensorSource>,
    adapter: Option<Arc<Adapter>>,
    notes: Vec<String>,
}

/// The files beside the tensors.
#[derive(Debug, Clone)]
pub enum SidecarsFrom {
    /// There are none.
    Nothing,
    /// Those of the model's folder that belong to it.
    Folder,
    /// These.
    Files(Vec<Sidecar>),
}

impl Checkpoint {
    /// A model with the tensors of a source; messages call it `label`, and `location` is where the files beside the
    /// tensors are.
    pub fn new(
        label: &str,
        location: Location,
        config: Option<ModelConfig>,
        beside: SidecarsFrom,
        source: Arc<dyn TensorSource>,
    ) -> Checkpoint {
        let mut by_name = HashMap::with_capacity(source.entries().len());
        for (at, tensor) in source.entries().iter().enumerate() {
            // When files are checked one by one, two may have a tensor of the same name: the first is used.
            by_name.entry(tensor.name.clone()).or_insert(at);
        }
        Checkpoint {
            label: label.into(),
            location,
            config,
            beside,
            by_name,
            source,
            adapter: None,
            notes: Vec::new(),
        }
    }

    /// The model with additional notes.
    pub(super) fn with_notes(self, notes: Vec<String>) -> Checkpoint {
        Checkpoint { notes, ..self }
    }

    /// The model with a LoRA adapter applied, whatever the source of its tensors.
    ///
    /// # Errors
    /// If the adapter cannot be read, or does not fit the model.
    pub fn adapted(self, adapter: &Location) -> Result<Checkpoint, CheckpointError> {
        let mut subject = Subject::new(
            self.source.entries().to_vec(),
            self.by_name,
            self.config,
            self.notes,
        );
        let attached = Adapter::attach(adapter, &self.location, &mut subject, self.source);
        let attached = attached.map_err(|source| CheckpointError::Adapter {
            model: self.label.clone(),
            source: Refusal::from(&source),
        })?;
        let adapter = Arc::new(attached);
        Ok(Checkpoint {
            by_name: subject.by_name,
            config: subject.config,
            notes: subject.notes,
            source: Arc::clone(&adapter) as Arc<dyn TensorSource>,
            adapter: Some(adapter),
            ..self
        })
    }

    /// The same model with other names for its tensors, in their order; names must be unique.
    pub fn renamed(&self, names: Vec<String>) -> Checkpoint {
        Checkpoint {
            by_name: (0..)
                .zip(&names)
                .map(|(at, name)| (name.clone(), at))
                .collect(),
            source: Arc::new(Renamed::new(Arc::clone(&self.source), names)),
            label: self.label.clone(),
            location: self.location.clone(),
            config: self.config.clone(),
            beside: self.beside.clone(),
            adapter: self.adapter.clone(),
            notes: self.notes.clone(),
        }
    }

    /// The model's name in the recipe.
    pub fn label(&self) -> &str {
        &self.label
    }

    /// Where the model is, or the files beside its tensors are.
    pub fn location(&self) -> &Location {
        &self.location
    }

    /// Its `config.json`; none for a single file, or a folder without one.
    pub fn config(&self) -> Option<&ModelConfig> {
        self.config.as_ref()
    }

    /// Whether it is a single file, without a config or other files beside it.
    pub fn is_single_file(&self) -> bool {
        matches!(self.beside, SidecarsFrom::Nothing)
    }

    /// The files beside the tensors that belong to the model, in name order.
    ///
    /// # Errors
    /// If its folder can't be read.
    pub fn sidecars(&self) -> Result<Vec<Sidecar>, CheckpointError> {
        match &self.beside {
            SidecarsFrom::Nothing => Ok(Vec::new()),
            SidecarsFrom::Folder => find_sidecars(&self.location.path, self.config.as_ref()),
            SidecarsFrom::Files(files) => Ok(files.clone()),
        }
    }

    /// The files beside the tensors that would belong to the model, but cannot be read as files of its folder.
    ///
    /// # Errors
    /// If its folder can't be read.
    pub fn unreadable_sidecars(
        &self,
    ) -> Result<Vec<(SidecarKind, CheckpointError)>, CheckpointError> {
        match &self.beside {
            SidecarsFrom::Folder => unreadable(&self.location.path, self.config.as_ref()),
            SidecarsFrom::Nothing | SidecarsFrom::Files(_) => Ok(Vec::new()),
        }
    }

    /// The files and folders beside the tensors that do not go along with the model, in name order, but for weights,
    /// hidden files, and what every output has of its own.
    ///
    /// # Errors
    /// If its folder can't be read.
    pub fn left_out(&self) -> Result<Vec<LeftOut>, CheckpointError> {
        match &self.beside {
            SidecarsFrom::Folder => left_out(&self.location.path, self.config.as_ref()),
            SidecarsFrom::Nothing | SidecarsFrom::Files(_) => Ok(Vec::new()),
        }
    }

    /// The path of a file of its folder, whatever it is for; `None` if there is none.
    ///
    /// # Errors
    /// It is a link to nothing or out of the folder, or no regular file.
    pub fn file_beside(&self, name: &str) -> Result<Option<PathBuf>, CheckpointError> {
        match self.is_single_file() {
            true => Ok(None),
            false => file_in(&self.location.path, name),
        }
    }

    /// The adapter that is applied to it.
    pub fn adapter(&self) -> Option<&Adapter> {
        self.adapter.as_deref()
    }

    /// Notes on what was odd but harmless: ignored files, a wrong total in an index.
    pub fn notes(&self) -> &[String] {
        &self.notes
    }

    /// The source of its tensors.
    pub fn source(&self) -> &Arc<dyn TensorSource> {
        &self.source
    }

    /// Whether its tensors are stored in files of its own.
    pub fn is_stored(&self) -> bool {
        !self.source.shards().is_empty()
    }

    /// The index of the tensor with that name in [`Checkpoint::tensors`].
    pub fn find(&self, name: &str) -> Option<usize> {
        self.by_name.get(name).copied()
    }

    /// Its tensors; see [`TensorSource::entries`].
    pub fn tensors(&self) -> &[TensorEntry] {
        self.source.entries()
    }

    /// See [`TensorSource::elements`].
    pub fn elements(&self, index: usize) -> Option<Box<dyn Elements + '_>> {
        self.source.elements(index)
    }

    /// See [`TensorSource::bytes`].
    pub fn bytes(&self, index: usize) -> Option<&[u8]> {
        self.source.bytes(index)
    }

    /// See [`TensorSource::stored`].
    pub fn stored(&self, index: usize) -> Option<&[u8]> {
        self.source.stored(index)
    }

    /// See [`TensorSource::bytes_read`].
    pub fn bytes_read(&self, index: usize) -> u64 {
        self.source.bytes_read(index)
    }

    /// See [`TensorSource::shards`].
    pub fn shards(&self) -> Vec<&Shard> {
        self.source.shards()
    }

    /// See [`TensorSource::place`].
    pub fn place(&self, index: usize) -> Option<(&Shard, u64)> {
        self.source.place(index)
    }

    /// See [`TensorSource::read_ahead`].
    pub fn read_ahead(&self) {
        self.source.read_ahead();
    }

    /// See [`TensorSource::release`].
    pub fn release(&self, index: usize, bytes: Range<u64>, reclaim: Reclaim) {
        self.source.release(index, bytes, reclaim);
    }

    /// See [`TensorSource::reads_results`].
    pub fn reads_results(&self) -> bool {
        self.source.reads_results()
    }

    /// See [`TensorSource::prepare`].
    ///
    /// # Errors
    /// The values could not be computed; the reason is in words for the user.
    pub fn prepare(
        &self,
        threads: usize,
        cancelled: &(dyn Fn() -> bool + Sync),
    ) -> Result<(), Refusal> {
        self.source.prepare(threads, cancelled)
    }

    /// See [`TensorSource::said`].
    pub fn said(&self) -> Vec<String> {
        self.source.said()
    }

    /// See [`TensorSource::held`].
    pub fn held(&self) -> u64 {
        self.source.held()
    }

    /// See [`TensorSource::check_unchanged`].
    ///
    /// # Errors
    /// If a file has changed in length or modification time, or is gone.
    pub fn check_unchanged(&self) -> Result<(), CheckpointError> {
        self.source.check_unchanged()
    }
}

#[cfg(test)]
mod tests;
