//! A checkpoint in memory: for tests, and for programs that use it at once.

use std::collections::BTreeMap;
use std::fs::File;
use std::io;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use super::{Chunks, Destination, DiskError, Layout, Staged, Step};
use crate::error::RunError;
use engine::Tile;

/// Files by name.
type Files = BTreeMap<String, Vec<u8>>;

/// Memory that holds the files of a checkpoint.
#[derive(Debug)]
pub struct Memory {
    name: PathBuf,
    files: Arc<Mutex<Files>>,
}

impl Memory {
    /// An empty destination in memory; messages and the model card call it `name`.
    pub fn new(name: &str) -> Self {
        Self {
            name: name.into(),
            files: Arc::default(),
        }
    }

    /// The files of the last commit, by name.
    pub fn into_files(self) -> BTreeMap<String, Vec<u8>> {
        std::mem::take(&mut locked(&self.files))
    }
}

impl Destination for Memory {
    fn path(&self) -> &Path {
        &self.name
    }

    fn begin(&self, layout: &Layout<'_>) -> Result<Box<dyn Staged>, RunError> {
        let mut shards = Vec::new();
        for shard in layout.shards {
            let len = usize::try_from(shard.file_size).unwrap_or(usize::MAX);
            let mut bytes = Vec::new();
            bytes.try_reserve_exact(len).map_err(|_| {
                let none = io::ErrorKind::OutOfMemory.into();
                DiskError::at(Step::Allocate, Path::new(&shard.file_name))(none)
            })?;
            bytes.extend_from_slice(&shard.header);
            bytes.resize(len, 0);
            shards.push((shard.file_name.clone(), Mutex::new(bytes)));
        }
        Ok(Box::new(StagedMemory {
            shards,
            side_files: Files::new(),
            files: Arc::clone(&self.files),
        }))
    }
}

/// The files before they are committed.
struct StagedMemory {
    shards: Vec<(String, Mutex<Vec<u8>>)>,
    side_files: Files,
    files: Arc<Mutex<Files>>,
}

impl Staged for StagedMemory {
    fn write(&self, shard: usize, start: u64, bytes: Tile) -> io::Result<()> {
        let beyond = || io::Error::other("no place is planned for these bytes");
        let (_, file) = self.shards.get(shard).ok_or_else(beyond)?;
        let mut file = locked(file);
        let start = usize::try_from(start).map_err(|_| beyond())?;
        let place = file.get_mut(start..).ok_or_else(beyond)?;
        let place = place.get_mut(..bytes.len()).ok_or_else(beyond)?;
        place.copy_from_slice(&bytes);
        Ok(())
    }

    fn finish(&mut self) -> Result<(), RunError> {
        Ok(())
    }

    fn side_file(&mut self, name: &str, chunks: &mut Chunks<'_>) -> Result<(), RunError> {
        let bytes = chunks.collect::<Result<Vec<_>, _>>()?.concat();
        self.side_files.insert(name.to_owned(), bytes);
        Ok(())
    }

    fn read(&self, name: &str, limit: u64) -> Result<(Vec<u8>, u64), RunError> {
        let first = |bytes: &[u8]| {
            let limit = usize::try_from(limit).unwrap_or(usize::MAX);
            let first = bytes.get(..limit).unwrap_or(bytes);
            (first.to_vec(), bytes.len() as u64)
        };
        if let Some(bytes) = self.side_files.get(name) {
            return Ok(first(bytes));
        }
        match self.shards.iter().find(|(shard, _)| shard == name) {
            Some((_, bytes)) => Ok(first(&locked(bytes))),
            None => {
                let none = io::ErrorKind::NotFound.into();
                Err(DiskError::at(Step::Read, Path::new(name))(none).into())
            }
        }
    }

    /// A file in memory, if the system supports that.
    fn scratch(&self) -> Result<File, RunError> {
        #[cfg(target_os = "linux")]
        let file = {
            let made = rustix::fs::memfd_create("results", rustix::fs::MemfdFlags::CLOEXEC);
            made.map(File::from).map_err(io::Error::from)
        };
        #[cfg(not(target_os = "linux"))]
        let file = tempfile::tempfile();
        Ok(file.map_err(DiskError::at(Step::Create, Path::new("a file in memory")))?)
    }

    fn commit(self: Box<Self>) -> Result<Vec<String>, RunError> {
        let mut files = self.side_files;
        let shards = self.shards.into_iter().map(|(name, bytes)| {
            let bytes = bytes.into_inner().unwrap_or_else(PoisonError::into_inner);
            (name, bytes)
        });
        files.extend(shards);
        *locked(&self.files) = files;
        Ok(Vec::new())
    }
}

fn locked<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}
