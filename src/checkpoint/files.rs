//! The tensors of mapped files: safetensors, what torch.save writes, or GGUF as it is stored.
//!
//! It must not know which files belong together; that is the task of `folder.rs`.

use std::ops::Range;
use std::path::Path;

use super::behind::Reclaim;
use super::distributed;
use super::error::CheckpointError;
use super::format::FileFormat;
use super::gguf::container::{self, Container};
use super::gguf::kind::Kind;
use super::limits::MAX_TENSORS;
use super::pickle::Place;
use super::shard::Shard;
use super::source::{TensorEntry, TensorSource};
use numeric::{BoxPlace, Boxes, Elements, FloatType, Stored, Strided};
use safetensors::Dtype;

/// Mapped files and their tensors: files in the order they were opened, tensors by offset.
#[derive(Debug, Default)]
pub(super) struct Files {
    pub(super) shards: Vec<Shard>,
    pub(super) tensors: Vec<TensorEntry>,
    /// Where each tensor is.
    at: Vec<Where>,
    /// The headers of those that are GGUF files, in their order.
    pub(super) containers: Vec<Container>,
}

/// Where a tensor is.
#[derive(Debug)]
pub(super) enum Where {
    /// In one place.
    One(InFile),
    /// In several boxes, at least one, which together are all of it.
    Boxes(Vec<BoxInFile>),
}

/// A place in a file. Tensors of a pickle may share bytes.
#[derive(Debug)]
pub(super) struct InFile {
    /// Which of the files.
    pub(super) shard: usize,
    /// Where it starts in that file.
    pub(super) offset: u64,
    /// How its elements are laid out there.
    pub(super) place: Place,
}

/// A box of a tensor.
#[derive(Debug)]
pub(super) struct BoxInFile {
    /// Where it lies in the tensor.
    pub(super) place: BoxPlace,
    /// Where it is stored.
    pub(super) at: InFile,
    /// Its length in bytes.
    pub(super) len: u64,
}

impl Where {
    /// The place of its first box, or its only one.
    fn first(&self) -> &InFile {
        match self {
            Where::One(at) => at,
            Where::Boxes(boxes) => &boxes[0].at,
        }
    }

    /// The same where the files come behind so many others.
    fn behind(mut self, shards: usize) -> Self {
        match &mut self {
            Where::One(at) => at.shard += shards,
            Where::Boxes(boxes) => boxes.iter_mut().for_each(|part| part.at.shard += shards),
        }
        self
    }
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
                    files.add_next(entry, tensor.offset, Place::Contiguous);
                }
                (shard, Vec::new())
            }
            FileFormat::Gguf => {
                if let Some(entry) = entry {
                    return Err(CheckpointError::NoEntries {
                        path: path.into(),
                        entry: entry.into(),
                    });
                }
                let (shard, container) = Shard::open_gguf(path)?;
                for tensor in &container.tensors {
                    let entry = as_stored(tensor);
                    files.add_next(entry, tensor.offset, Place::Contiguous);
                }
                files.containers.push(container);
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
                    files.add_next(entry, tensor.offset, tensor.place);
                }
                (shard, pickled.notes)
            }
            FileFormat::Distributed => return distributed::open(path, entry),
        };
        files.shards.push(shard);
        Ok((files, notes))
    }

    /// Adds a tensor of the file that is being opened.
    fn add_next(&mut self, entry: TensorEntry, offset: u64, place: Place) {
        let shard = self.shards.len();
        let at = InFile {
            shard,
            offset,
            place,
        };
        self.add(entry, Where::One(at));
    }

    /// Adds a tensor.
    pub(super) fn add(&mut self, entry: TensorEntry, at: Where) {
        self.tensors.push(entry);
        self.at.push(at);
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
        self.containers.extend(other.containers);
        self.at
            .extend(other.at.into_iter().map(|at| at.behind(shards)));
        Ok(())
    }

    /// The file that a tensor is in.
    pub(super) fn shard_of(&self, index: usize) -> &Shard {
        &self.shards[self.at[index].first().shard]
    }

    /// The bytes of so many at a place, if they lie one after the other.
    pub(super) fn bytes_at<'a>(&'a self, at: &'a InFile, len: u64) -> Option<&'a [u8]> {
        match &at.place {
            Place::Contiguous => Some(self.shards[at.shard].slice(at.offset, len)),
            Place::Gathered(bytes) => Some(bytes),
            Place::Strided(_) => None,
        }
    }

    /// The values at a place, of so many bytes.
    fn elements_at<'a>(
        &'a self,
        at: &'a InFile,
        len: u64,
        format: FloatType,
    ) -> Option<Box<dyn Elements + 'a>> {
        if let Place::Strided(strides) = &at.place {
            return Some(Box::new(Strided {
                bytes: self.shards[at.shard].bytes_from(at.offset),
                format,
                strides,
            }));
        }
        Some(Box::new(Stored {
            bytes: self.bytes_at(at, len)?,
            format,
        }))
    }
}

/// A tensor of a GGUF file: bytes, where it is stored in blocks.
fn as_stored(tensor: &container::Tensor) -> TensorEntry {
    let (dtype, shape) = match tensor.kind {
        Kind::Plain(dtype) => (dtype, tensor.shape.clone()),
        Kind::Blocks(_) => (Dtype::U8, vec![tensor.len as usize]),
    };
    TensorEntry {
        name: tensor.name.clone(),
        dtype,
        stored: dtype,
        shape,
        len: tensor.len,
    }
}

impl TensorSource for Files {
    fn entries(&self) -> &[TensorEntry] {
        &self.tensors
    }

    fn elements(&self, index: usize) -> Option<Box<dyn Elements + '_>> {
        let format = FloatType::from_dtype(self.tensors[index].dtype)?;
        match &self.at[index] {
            Where::One(at) => self.elements_at(at, self.tensors[index].len, format),
            Where::Boxes(boxes) => {
                let mut all = Vec::with_capacity(boxes.len());
                for part in boxes {
                    all.push((&part.place, self.elements_at(&part.at, part.len, format)?));
                }
                Some(Box::new(Boxes { boxes: all, format }))
            }
        }
    }

    fn bytes(&self, index: usize) -> Option<&[u8]> {
        match &self.at[index] {
            Where::One(at) => self.bytes_at(at, self.tensors[index].len),
            Where::Boxes(_) => None,
        }
    }

    fn shards(&self) -> Vec<&Shard> {
        self.shards.iter().collect()
    }

    fn place(&self, index: usize) -> Option<(&Shard, u64)> {
        Some((self.shard_of(index), self.at[index].first().offset))
    }

    /// Asks the system to read in large pieces. Not for samples: the system would read much that is never used.
    fn read_ahead(&self) {
        self.shards.iter().for_each(Shard::read_ahead);
    }

    fn release(&self, index: usize, bytes: Range<u64>, reclaim: Reclaim) {
        let Where::One(InFile { offset, place, .. }) = &self.at[index] else {
            return;
        };
        if matches!(place, Place::Contiguous) {
            let end = self.tensors[index].len.min(bytes.end);
            let bytes = offset + bytes.start.min(end)..offset + end;
            self.shard_of(index).release(bytes, reclaim);
        }
    }
}
