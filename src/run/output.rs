//! Writes a plan's output to a destination: tensors at their offsets in weight files, and the files beside them.

use std::collections::BTreeMap;
use std::fs::{self, File};
use std::io::{self, Read};
use std::path::Path;
use std::sync::{Mutex, PoisonError};

use super::destination::{DiskError, Staged, Step};
use super::error::RunError;
use super::holes::Odd;
use super::share::Share;
use checkpoint::{MAX_SIDECAR_BYTES, Sidecar};
use engine::{Observer, Sink, Tile};
use numeric::{EncodingError, Oddities, Survival, TreeDigest};
use plan::Plan;

/// Bytes copied at a time.
const COPY_BYTES: usize = 128 << 10;

/// Where each tensor is written, and what is learned meanwhile: the digests of the written bytes, what survives of
/// updates, how exact codes are, and what is odd in sources.
pub(super) struct WrittenWeights<'a> {
    staged: &'a dyn Staged,
    /// The tensors by number.
    weights: BTreeMap<usize, Weight>,
    survived: Mutex<BTreeMap<usize, Survival>>,
    errors: Mutex<BTreeMap<usize, EncodingError>>,
    odd: Mutex<Vec<Odd>>,
}

/// A tensor that is written.
struct Weight {
    /// Its file, and its offset there.
    place: (usize, u64),
    digest: TreeDigest,
}

impl<'a> WrittenWeights<'a> {
    /// The weights of a share of a plan, whose files the stage holds.
    pub(super) fn new(plan: &Plan, share: &Share, staged: &'a dyn Staged) -> Self {
        let files = plan.shards[share.shards.clone()].iter().enumerate();
        let tensors = files.flat_map(|(number, file)| {
            let tensors = file.tensors.iter();
            tensors.map(move |&(tensor, offset)| (tensor, (number, offset)))
        });
        let weights = tensors.map(|(tensor, place)| {
            let digest = TreeDigest::new(plan.tensors[tensor].bytes());
            (tensor, Weight { place, digest })
        });
        Self {
            staged,
            weights: weights.collect(),
            survived: Mutex::default(),
            errors: Mutex::default(),
            odd: Mutex::default(),
        }
    }

    /// How much of each tensor's update survives the rounding, by the tensor's number.
    pub(super) fn survived(&self) -> BTreeMap<usize, Survival> {
        let survived = self.survived.lock();
        survived.unwrap_or_else(PoisonError::into_inner).clone()
    }

    /// How far the codes of each encoded tensor are from its values, by the tensor's number.
    pub(super) fn errors(&self) -> BTreeMap<usize, EncodingError> {
        let errors = self.errors.lock();
        errors.unwrap_or_else(PoisonError::into_inner).clone()
    }

    /// What was odd in the sources.
    pub(super) fn odd(&self) -> Vec<Odd> {
        let odd = self.odd.lock();
        odd.unwrap_or_else(PoisonError::into_inner).clone()
    }

    /// Each tensor's digest, by its number.
    pub(super) fn digests(self) -> Result<BTreeMap<usize, blake3::Hash>, RunError> {
        let weights = self.weights.into_iter();
        let digests: Option<BTreeMap<_, _>> = weights
            .map(|(tensor, weight)| Some((tensor, weight.digest.finish()?)))
            .collect();
        // An earlier check made sure that all bytes were written.
        digests.ok_or(RunError::Incomplete {
            expected: 0,
            found: 0,
        })
    }
}

impl Sink for WrittenWeights<'_> {
    fn start(&self, tensor: usize) -> u64 {
        self.weights.get(&tensor).map_or(0, |weight| weight.place.1)
    }

    fn look(&self, tensor: usize, offset: u64, bytes: &[u8]) {
        if let Some(weight) = self.weights.get(&tensor) {
            weight.digest.update(offset, bytes);
        }
    }

    fn write(&self, tensor: usize, offset: u64, bytes: Tile) -> io::Result<()> {
        let Some(weight) = self.weights.get(&tensor) else {
            return Err(io::Error::other("no place is planned for these bytes"));
        };
        let (file, start) = weight.place;
        self.staged.write(file, start + offset, bytes)
    }

    fn survived(&self, tensor: usize, survival: Survival) {
        let survived = self.survived.lock();
        let mut survived = survived.unwrap_or_else(PoisonError::into_inner);
        survived.insert(tensor, survival);
    }

    fn encoded(&self, tensor: usize, error: EncodingError) {
        let errors = self.errors.lock();
        let mut errors = errors.unwrap_or_else(PoisonError::into_inner);
        errors.insert(tensor, error);
    }

    fn odd(&self, tensor: usize, source: usize, found: Oddities) {
        let odd = self.odd.lock();
        let mut odd = odd.unwrap_or_else(PoisonError::into_inner);
        odd.push((tensor, source, found));
    }
}

/// A file that was written.
#[derive(Debug, Clone, Copy)]
pub(super) struct Written {
    pub(super) bytes: u64,
    pub(super) digest: blake3::Hash,
}

/// Writes the files beside the weights.
pub(super) struct SideFiles<'a> {
    staged: &'a mut dyn Staged,
    observer: &'a dyn Observer,
    /// The files written so far, by name.
    pub(super) written: BTreeMap<String, Written>,
}

impl<'a> SideFiles<'a> {
    /// Goes on after the files `written`.
    pub(super) fn new(
        staged: &'a mut dyn Staged,
        observer: &'a dyn Observer,
        written: BTreeMap<String, Written>,
    ) -> Self {
        Self {
            staged,
            observer,
            written,
        }
    }

    /// Writes indexes, configs, and the generated and copied files.
    pub(super) fn write_all(&mut self, plan: &Plan) -> Result<(), RunError> {
        for (name, index) in plan.indexes() {
            self.write(&name, index.into_bytes())?;
        }
        for (name, _, text) in plan.configs() {
            self.write(&name, text.into_bytes())?;
        }
        for (name, bytes) in &plan.made {
            self.write(name, bytes.clone())?;
        }
        plan.sidecars
            .iter()
            .try_for_each(|(_, file)| self.copy(file))
    }

    /// Writes a file.
    pub(super) fn write(&mut self, name: &str, bytes: Vec<u8>) -> Result<(), RunError> {
        let written = Written {
            bytes: bytes.len() as u64,
            digest: blake3::hash(&bytes),
        };
        let mut chunks = std::iter::once(Ok(bytes));
        self.staged.side_file(name, &mut chunks)?;
        self.written.insert(name.to_owned(), written);
        Ok(())
    }

    /// Copies a file of a model.
    fn copy(&mut self, file: &Sidecar) -> Result<(), RunError> {
        let path = &file.path;
        let source = File::open(path).map_err(DiskError::at(Step::Read, path))?;
        let mut chunks = Copied {
            path,
            source,
            bytes: 0,
            digest: blake3::Hasher::new(),
            observer: self.observer,
        };
        self.staged.side_file(&file.name, &mut chunks)?;
        let written = Written {
            bytes: chunks.bytes,
            digest: chunks.digest.finalize(),
        };
        self.written.insert(file.name.clone(), written);
        Ok(())
    }
}

/// The chunks of a model's file, as they are read.
struct Copied<'a> {
    path: &'a Path,
    source: File,
    /// Bytes read.
    bytes: u64,
    digest: blake3::Hasher,
    observer: &'a dyn Observer,
}

impl Copied<'_> {
    fn chunk(&mut self) -> Result<Vec<u8>, RunError> {
        if self.observer.cancelled() {
            return Err(RunError::Cancelled);
        }
        let mut chunk = vec![0; COPY_BYTES];
        let read = self.source.read(&mut chunk);
        chunk.truncate(read.map_err(DiskError::at(Step::Read, self.path))?);
        self.digest.update(&chunk);
        self.bytes += chunk.len() as u64;
        // The file may have grown since its size was checked.
        check_size(self.path, self.bytes)?;
        Ok(chunk)
    }
}

impl Iterator for Copied<'_> {
    type Item = Result<Vec<u8>, RunError>;

    fn next(&mut self) -> Option<Self::Item> {
        let chunk = self.chunk();
        match &chunk {
            Ok(bytes) if bytes.is_empty() => None,
            _ => Some(chunk),
        }
    }
}

/// Bytes of all files beside the weights that are known before the run.
pub(super) fn side_bytes(plan: &Plan) -> Result<u64, RunError> {
    let made = plan.made.iter().map(|(_, bytes)| bytes.len() as u64);
    let mut sum: u64 = made.sum();
    for (_, file) in &plan.sidecars {
        let meta = fs::metadata(&file.path).map_err(DiskError::at(Step::Look, &file.path))?;
        check_size(&file.path, meta.len())?;
        sum += meta.len();
    }
    Ok(sum)
}

/// Checks that a file is no larger than any file that belongs beside weights.
fn check_size(path: &Path, found: u64) -> Result<(), RunError> {
    match found > MAX_SIDECAR_BYTES {
        true => Err(RunError::SideFileTooLarge {
            path: path.to_owned(),
            limit: MAX_SIDECAR_BYTES,
            found,
        }),
        false => Ok(()),
    }
}
