//! An opened checkpoint: every tensor by name, its bytes mapped, its shards and index known to agree.

use std::collections::{HashMap, HashSet};
use std::fs;
use std::ops::Range;
use std::path::{Path, PathBuf};

use safetensors::Dtype;

use super::adapter::Adapter;
use super::behind::Leave;
use super::config::ModelConfig;
use super::error::CheckpointError;
use super::folder::{Format, Weights, find_weights, other_format};
use super::limits::MAX_TENSORS;
use super::locate::Location;
use super::made::Made;
use super::pickle::Place;
use super::quantised::refuse_quantised;
use super::shard::Shard;
use super::sidecars::{Sidecar, find_sidecars};
use errors::Refusal;
use numeric::{Elements, FloatType, Stored, Strided};

/// A checkpoint whose headers were checked and whose shards are mapped.
#[derive(Debug)]
pub struct Checkpoint {
    label: String,
    location: Location,
    single_file: bool,
    pub(super) config: Option<ModelConfig>,
    pub(super) shards: Vec<Shard>,
    pub(super) tensors: Vec<TensorEntry>,
    pub(super) by_name: HashMap<String, usize>,
    /// Of the tensors whose bytes are not one after the other in their shard.
    places: HashMap<usize, Place>,
    pub(super) notes: Vec<String>,
    adapter: Option<Adapter>,
    made: Option<(Box<dyn Made>, Vec<Sidecar>)>,
}

/// A tensor of a checkpoint.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct TensorEntry {
    /// Its name.
    pub name: String,
    /// The type of its elements.
    pub dtype: Dtype,
    /// Its shape; empty for a scalar.
    pub shape: Vec<usize>,
    /// Its shard, as an index into [`Checkpoint::shards`].
    pub shard: usize,
    /// Where it starts in its shard's file. Tensors of a pickle may share their bytes, or parts of them.
    pub offset: u64,
    /// Its length in bytes, one element after the other.
    pub len: u64,
}

impl TensorEntry {
    /// How many elements it has; that this can be counted was checked at open.
    pub fn elements(&self) -> u64 {
        self.shape.iter().map(|&dim| dim as u64).product()
    }
}

impl Checkpoint {
    /// Opens a located model, which messages will call `label`; no weight is read.
    pub fn open(label: &str, location: &Location) -> Result<Checkpoint, CheckpointError> {
        let path = &location.path;
        let is_dir = fs::metadata(path)
            .map_err(|source| CheckpointError::io("open", path, source))?
            .is_dir();
        let (weights, config) = if is_dir {
            (find_weights(location)?, ModelConfig::read(path)?)
        } else {
            (single_file(path)?, None)
        };
        let mut notes = weights.notes;
        let opened = match weights.format {
            Format::Safetensors => open_shards(&weights.shards)?,
            Format::Pickle => open_pickles(&weights.shards, &mut notes)?,
        };
        let (shards, tensors) = (&opened.shards, &opened.tensors);
        if tensors.is_empty() {
            return Err(CheckpointError::NoTensors { path: path.clone() });
        }
        let by_name = index_names(path, shards, tensors)?;
        if let Some(index) = &weights.index {
            index.check(shards, tensors, &by_name)?;
            notes.extend(index.total_size_note(tensors));
        }
        refuse_quantised(label, config.as_ref(), shards, tensors, &by_name)?;
        let mut checkpoint =
            Checkpoint::of_opened(label, location, !is_dir, config, opened, by_name);
        checkpoint.notes = notes;
        if let Some(adapter) = &location.adapter {
            let attached = Adapter::attach(adapter, &mut checkpoint);
            checkpoint.adapter = Some(attached.map_err(|source| CheckpointError::Adapter {
                model: label.into(),
                source: Box::new(source),
            })?);
            checkpoint.refuse_adapted_views()?;
        }
        Ok(checkpoint)
    }

    /// A checkpoint of files that were opened one by one, and of the tensors whose names are `by_name`.
    pub(super) fn of_opened(
        label: &str,
        location: &Location,
        single_file: bool,
        config: Option<ModelConfig>,
        opened: Opened,
        by_name: HashMap<String, usize>,
    ) -> Checkpoint {
        Checkpoint {
            label: label.into(),
            location: location.clone(),
            single_file,
            config,
            shards: opened.shards,
            tensors: opened.tensors,
            by_name,
            places: opened.places,
            notes: Vec::new(),
            adapter: None,
            made: None,
        }
    }

    /// Refuses an adapter that changes a strided view, or a head untied from one: it adds to stored values.
    fn refuse_adapted_views(&self) -> Result<(), CheckpointError> {
        let views: HashSet<(usize, u64)> = self
            .places
            .iter()
            .filter(|(_, place)| matches!(place, Place::Strided(_)))
            .map(|(&at, _)| (self.tensors[at].shard, self.tensors[at].offset))
            .collect();
        let mut changed = self.adapter.iter().flat_map(Adapter::changed);
        let found = changed.find(|&at| {
            let tensor = &self.tensors[at];
            views.contains(&(tensor.shard, tensor.offset))
        });
        match found {
            None => Ok(()),
            Some(at) => Err(CheckpointError::StridedView {
                path: self.shards[self.tensors[at].shard].path.clone(),
                tensor: self.tensors[at].name.clone(),
                why: "and no adapter is added to such".into(),
            }),
        }
    }

    /// A checkpoint that no file holds; `location` is that of the files beside it.
    pub fn made(
        label: &str,
        location: &Location,
        config: Option<ModelConfig>,
        tensors: Vec<TensorEntry>,
        sidecars: Vec<Sidecar>,
        values: Box<dyn Made>,
    ) -> Checkpoint {
        Checkpoint {
            label: label.into(),
            location: location.clone(),
            single_file: config.is_none(),
            config,
            shards: Vec::new(),
            by_name: (0..)
                .zip(&tensors)
                .map(|(at, tensor)| (tensor.name.clone(), at))
                .collect(),
            tensors,
            places: HashMap::new(),
            notes: Vec::new(),
            adapter: None,
            made: Some((values, sidecars)),
        }
    }

    /// Whether no file holds it.
    pub fn is_made(&self) -> bool {
        self.made.is_some()
    }

    /// The model as the recipe writes it.
    pub fn label(&self) -> &str {
        &self.label
    }

    /// Where it is.
    pub fn location(&self) -> &Location {
        &self.location
    }

    /// Its tensors in file order: shards by name, tensors by offset.
    pub fn tensors(&self) -> &[TensorEntry] {
        &self.tensors
    }

    /// The tensor of that name, as an index into [`Checkpoint::tensors`].
    pub fn find(&self, name: &str) -> Option<usize> {
        self.by_name.get(name).copied()
    }

    /// The bytes of a tensor, if they are in a file as they are: little-endian, in C order, perhaps not aligned.
    ///
    /// # Panics
    ///
    /// If `index` is none of [`Checkpoint::tensors`].
    pub fn bytes(&self, index: usize) -> Option<&[u8]> {
        match &self.adapter {
            Some(adapter) if adapter.changes(index) => adapter.bytes(index, self),
            _ => self.stored(index),
        }
    }

    /// The bytes of a tensor as [`bytes`](Self::bytes) gives them, whatever an adapter makes of it.
    ///
    /// # Panics
    ///
    /// If `index` is none of [`Checkpoint::tensors`].
    pub fn stored(&self, index: usize) -> Option<&[u8]> {
        if let Some((made, _)) = &self.made {
            return made.bytes(index);
        }
        let tensor = &self.tensors[index];
        match self.places.get(&index) {
            None | Some(Place::Contiguous) => {}
            Some(Place::Gathered(bytes)) => return Some(bytes),
            Some(Place::Strided(_)) => return None,
        }
        Some(self.shards[tensor.shard].slice(tensor.offset, tensor.len))
    }

    /// Tells the system that all of it is going to be read, so that it comes from the disk in large pieces. Not for
    /// samples: the system would read much that nobody looks at.
    pub fn read_ahead(&self) {
        self.shards.iter().for_each(Shard::read_ahead);
    }

    /// Tells that these bytes of a tensor, as they are stored, are not needed again, so that they may leave. They can
    /// still be read.
    ///
    /// # Panics
    ///
    /// If `index` is none of [`Checkpoint::tensors`].
    pub fn done_with(&self, index: usize, bytes: Range<u64>, leave: Leave) {
        let tensor = &self.tensors[index];
        let in_file = matches!(self.places.get(&index), None | Some(Place::Contiguous));
        if let Some(shard) = self.shards.get(tensor.shard).filter(|_| in_file) {
            let end = tensor.len.min(bytes.end);
            shard.done_with(
                tensor.offset + bytes.start.min(end)..tensor.offset + end,
                leave,
            );
        }
    }

    /// The values of a tensor; `None` for integers and bools.
    ///
    /// # Panics
    ///
    /// If `index` is none of [`Checkpoint::tensors`].
    pub fn elements(&self, index: usize) -> Option<Box<dyn Elements + '_>> {
        if let Some((made, _)) = &self.made {
            return made.elements(index);
        }
        let tensor = &self.tensors[index];
        let format = FloatType::of(tensor.dtype)?;
        // No adapter changes it: that was seen to at open.
        if let Some(Place::Strided(strides)) = self.places.get(&index) {
            return Some(Box::new(Strided {
                bytes: self.shards[tensor.shard].bytes_from(tensor.offset),
                format,
                strides,
            }));
        }
        let stored = Stored {
            bytes: self.stored(index)?,
            format,
        };
        match &self.adapter {
            Some(adapter) => Some(adapter.elements(index, stored, self)),
            None => Some(Box::new(stored)),
        }
    }

    /// How many bytes it takes to read a tensor once; the factors of an adapter are not counted.
    ///
    /// # Panics
    ///
    /// If `index` is none of [`Checkpoint::tensors`].
    pub fn bytes_read(&self, index: usize) -> u64 {
        let whole = self
            .adapter
            .as_ref()
            .and_then(|adapter| adapter.replaced(index));
        whole.unwrap_or(self.tensors[index].len)
    }

    /// The adapter that it is read with.
    pub fn adapter(&self) -> Option<&Adapter> {
        self.adapter.as_ref()
    }

    /// Bytes that it holds in memory at the end of a run at the most, maps not counted.
    pub fn held(&self) -> u64 {
        match &self.made {
            Some((made, _)) => made.held(),
            None => self.adapter.as_ref().map_or(0, Adapter::held),
        }
    }

    /// Whether [`prepare`](Self::prepare) reads results of merges.
    pub fn reads_results(&self) -> bool {
        self.made
            .as_ref()
            .is_some_and(|(made, _)| made.reads_results())
    }

    /// What there is to be said of values that were made.
    pub fn said(&self) -> Vec<String> {
        let made = self.made.as_ref();
        made.map_or(Vec::new(), |(made, _)| made.said())
    }

    /// Makes what must be there before values are read; what files hold is there.
    ///
    /// # Errors
    /// What makes the values failed, in words for the user.
    pub fn prepare(
        &self,
        threads: usize,
        cancelled: &(dyn Fn() -> bool + Sync),
    ) -> Result<(), Refusal> {
        match &self.made {
            Some((made, _)) => made.prepare(threads, cancelled),
            None => Ok(()),
        }
    }

    /// Its files, in name order; its adapter's last.
    pub fn shards(&self) -> &[Shard] {
        &self.shards
    }

    /// Its `config.json`; none for a single file, or a folder without one.
    pub fn config(&self) -> Option<&ModelConfig> {
        self.config.as_ref()
    }

    /// Whether it is one file that was named itself.
    pub fn is_single_file(&self) -> bool {
        self.single_file
    }

    /// What was odd but harmless: files left aside, an index's wrong total.
    pub fn notes(&self) -> &[String] {
        &self.notes
    }

    /// Whether every shard still has the length and time of modification that it had at open.
    ///
    /// To be asked after the last read: a mapped file may be written to by others at any time.
    pub fn check_unchanged(&self) -> Result<(), CheckpointError> {
        if let Some((made, _)) = &self.made {
            return made.check_unchanged();
        }
        self.shards.iter().try_for_each(Shard::check_unchanged)
    }

    /// The files beside the weights that belong to the checkpoint, in name order; none for a single file.
    pub fn sidecars(&self) -> Result<Vec<Sidecar>, CheckpointError> {
        if let Some((_, sidecars)) = &self.made {
            return Ok(sidecars.clone());
        }
        if self.single_file {
            return Ok(Vec::new());
        }
        find_sidecars(&self.location.path, self.config.as_ref())
    }
}

pub(super) fn single_file(path: &Path) -> Result<Weights, CheckpointError> {
    let name = path.to_string_lossy();
    if let Some((what, hint)) = other_format(&name) {
        return Err(CheckpointError::NotSafetensors {
            path: path.into(),
            what,
            hint,
        });
    }
    Ok(Weights {
        shards: vec![path.into()],
        index: None,
        format: Format::of(&name),
        notes: Vec::new(),
    })
}

/// Mapped files, and what is in them.
#[derive(Default)]
pub(super) struct Opened {
    pub(super) shards: Vec<Shard>,
    pub(super) tensors: Vec<TensorEntry>,
    places: HashMap<usize, Place>,
}

impl Opened {
    /// Refuses a checkpoint of more tensors than any real one has, of which `more` are in a file still to be added.
    pub(super) fn check_count(&self, path: &Path, more: usize) -> Result<(), CheckpointError> {
        match self.tensors.len() + more {
            0..=MAX_TENSORS => Ok(()),
            found => Err(CheckpointError::TooLarge {
                path: path.into(),
                what: "number of tensors of a checkpoint",
                limit: MAX_TENSORS as u64,
                found: found as u64,
            }),
        }
    }

    /// Puts the files of another behind these.
    pub(super) fn append(&mut self, other: Opened) {
        let (shards, tensors) = (self.shards.len(), self.tensors.len());
        self.shards.extend(other.shards);
        self.tensors
            .extend(other.tensors.into_iter().map(|tensor| TensorEntry {
                shard: tensor.shard + shards,
                ..tensor
            }));
        let places = other.places.into_iter();
        self.places
            .extend(places.map(|(at, place)| (at + tensors, place)));
    }
}

/// Opens one file of a checkpoint by itself.
pub(super) fn open_one(path: &Path, format: Format) -> Result<Opened, CheckpointError> {
    match format {
        Format::Safetensors => open_shards(&[path.into()]),
        Format::Pickle => open_pickles(&[path.into()], &mut Vec::new()),
    }
}

fn open_pickles(paths: &[PathBuf], notes: &mut Vec<String>) -> Result<Opened, CheckpointError> {
    let mut opened = Opened {
        shards: Vec::with_capacity(paths.len()),
        tensors: Vec::new(),
        places: HashMap::new(),
    };
    for path in paths {
        let (shard, pickled) = Shard::open_pickle(path)?;
        opened.check_count(path, pickled.tensors.len())?;
        for tensor in pickled.tensors {
            if !matches!(tensor.place, Place::Contiguous) {
                opened.places.insert(opened.tensors.len(), tensor.place);
            }
            opened.tensors.push(TensorEntry {
                name: tensor.name,
                dtype: tensor.dtype,
                shape: tensor.shape,
                shard: opened.shards.len(),
                offset: tensor.offset,
                len: tensor.len,
            });
        }
        notes.extend(pickled.notes);
        opened.shards.push(shard);
    }
    if let [first, others @ ..] = paths {
        let others = match others.len() {
            0 => String::new(),
            more => format!(" and {more} more"),
        };
        notes.push(format!(
            "{}{others}: read as pickles; nothing in them is executed",
            first.display()
        ));
    }
    Ok(opened)
}

fn open_shards(paths: &[PathBuf]) -> Result<Opened, CheckpointError> {
    let mut opened = Opened::default();
    for path in paths {
        let (shard, found) = Shard::open(path)?;
        opened.check_count(path, found.len())?;
        let shards = opened.shards.len();
        opened
            .tensors
            .extend(found.into_iter().map(|tensor| TensorEntry {
                name: tensor.name,
                dtype: tensor.dtype,
                shape: tensor.shape,
                shard: shards,
                offset: tensor.offset,
                len: tensor.len,
            }));
        opened.shards.push(shard);
    }
    Ok(opened)
}

fn index_names(
    path: &Path,
    shards: &[Shard],
    tensors: &[TensorEntry],
) -> Result<HashMap<String, usize>, CheckpointError> {
    let mut by_name = HashMap::with_capacity(tensors.len());
    for (at, tensor) in tensors.iter().enumerate() {
        if let Some(first) = by_name.insert(tensor.name.clone(), at) {
            return Err(CheckpointError::DuplicateTensor {
                path: path.into(),
                tensor: tensor.name.clone(),
                first: shards[tensors[first].shard].file_name(),
                second: shards[tensor.shard].file_name(),
            });
        }
    }
    Ok(by_name)
}

#[cfg(test)]
mod tests;
