//! The tensors of mapped files: safetensors, or what torch.save writes.
//!
//! It must not know which files belong together; that is the task of `folder.rs`.

use std::ops::Range;
use std::path::Path;

use super::behind::Reclaim;
use super::error::CheckpointError;
use super::format::FileFormat;
use super::limits::MAX_TENSORS;
use super::pickle::Place;
use super::shard::Shard;
use super::source::{TensorEntry, TensorSource};
use numeric::{Elements, FloatType, Stored, Strided};

/// Mapped files and their tensors: files in the order they were opened, tensors by offset.
#[derive(Debug, Default)]
pub(super) struct Files {
    pub(super) shards: Vec<Shard>,
    pub(super) tensors: Vec<TensorEntry>,
    /// Where each tensor is.
    at: Vec<InFile>,
}

/// Where a tensor is. Tensors of a pickle may share bytes.
#[derive(Debug)]
struct InFile {
    /// Which of the files.
    shard: usize,
    /// Where it starts in that file.
    offset: u64,
    /// How its elements are laid out there.
    place: Place,
}

impl Files {
    /// Opens one file; also returns notes on what was odd about it. An entry selects tensors of a pickle.
    ///
    /// # Errors
    /// If the file cannot be read, or it has no such entry.
    pub(super) fn open(
        path: &Path,
        format: FileFormat,
        entry: Option<&str>,
    ) -> Result<(Files, Vec<String>), CheckpointError> {
        let mut files = Files::default();
        let (shard, notes) = match format {
            FileFormat::Safetensors => {
                if let Some(entry) = entry {
                    return Err(CheckpointError::NoEntries {
                        path: path.into(),
                        entry: entry.into(),
                    });
                }
                let (shard, tensors) = Shard::open(path)?;
                for tensor in tensors {
                    let entry = TensorEntry {
                        name: tensor.name,
                        dtype: tensor.dtype,
                        stored: tensor.dtype,
                        shape: tensor.shape,
                        len: tensor.len,
                    };
                    files.add(entry, tensor.offset, Place::Contiguous);
                }
                (shard, Vec::new())
            }
            FileFormat::Pickle => {
                let (shard, pickled) = Shard::open_pickle(path, entry)?;
                for tensor in pickled.tensors {
                    let entry = TensorEntry {
                        name: tensor.name,
                        dtype: tensor.dtype,
                        stored: tensor.dtype,
                        shape: tensor.shape,
                        len: tensor.len,
                    };
                    files.add(entry, tensor.offset, tensor.place);
                }
                (shard, pickled.notes)
            }
        };
        files.shards.push(shard);
        Ok((files, notes))
    }

    /// Adds a tensor of the file that is being opened.
    fn add(&mut self, entry: TensorEntry, offset: u64, place: Place) {
        self.tensors.push(entry);
        self.at.push(InFile {
            shard: self.shards.len(),
            offset,
            place,
        });
    }

    /// Drops the tensors of which `keep`, which is given their index, is false.
    pub(super) fn retain(&mut self, keep: impl Fn(usize) -> bool) {
        let mut index = 0..self.tensors.len();
        self.tensors.retain(|_| index.next().is_some_and(&keep));
        let mut index = 0..self.at.len();
        self.at.retain(|_| index.next().is_some_and(&keep));
    }

    /// Appends another file to these.
    ///
    /// # Errors
    /// If together they have more tensors than any real checkpoint.
    pub(super) fn append(&mut self, path: &Path, other: Files) -> Result<(), CheckpointError> {
        let found = self.tensors.len() + other.tensors.len();
        if found > MAX_TENSORS {
            return Err(CheckpointError::TooLarge {
                path: path.into(),
                what: "number of tensors of a checkpoint",
                limit: MAX_TENSORS as u64,
                found: found as u64,
            });
        }
        let shards = self.shards.len();
        self.shards.extend(other.shards);
        self.tensors.extend(other.tensors);
        self.at.extend(other.at.into_iter().map(|at| InFile {
            shard: at.shard + shards,
            ..at
        }));
        Ok(())
    }

    /// The file that a tensor is in.
    pub(super) fn shard_of(&self, index: usize) -> &Shard {
        &self.shards[self.at[index].shard]
    }
}

impl TensorSource for Files {
    fn entries(&self) -> &[TensorEntry] {
        &self.tensors
    }

    fn elements(&self, index: usize) -> Option<Box<dyn Elements + '_>> {
        let format = FloatType::from_dtype(self.tensors[index].dtype)?;
        let InFile { offset, place, .. } = &self.at[index];
        if let Place::Strided(strides) = place {
            return Some(Box::new(Strided {
                bytes: self.shard_of(index).bytes_from(*offset),
                format,
                strides,
            }));
        }
        Some(Box::new(Stored {
            bytes: self.bytes(index)?,
            format,
        }))
    }

    fn bytes(&self, index: usize) -> Option<&[u8]> {
        let InFile { offset, place, .. } = &self.at[index];
        match place {
            Place::Contiguous => {
                Some((self.shard_of(index)).slice(*offset, self.tensors[index].len))
            }
            Place::Gathered(bytes) => Some(bytes),
            Place::Strided(_) => None,
        }
    }

    fn shards(&self) -> Vec<&Shard> {
        self.shards.iter().collect()
    }

    fn place(&self, index: usize) -> Option<(&Shard, u64)> {
        Some((self.shard_of(index), self.at[index].offset))
    }

    /// Asks the system to read in large pieces. Not for samples: the system would read much that is never used.
    fn read_ahead(&self) {
        self.shards.iter().for_each(Shard::read_ahead);
    }

    fn release(&self, index: usize, bytes: Range<u64>, reclaim: Reclaim) {
        let InFile { offset, place, .. } = &self.at[index];
        if matches!(place, Place::Contiguous) {
            let end = self.tensors[index].len.min(bytes.end);
            let bytes = offset + bytes.start.min(end)..offset + end;
            self.shard_of(index).release(bytes, reclaim);
        }
    }
}
