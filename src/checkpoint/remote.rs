//! Weight files that lie elsewhere: only their headers are here, and the rest is fetched when it is needed.

use std::collections::HashMap;
use std::fmt::Debug;
use std::ops::Range;
use std::path::PathBuf;
use std::sync::Arc;

use super::behind::Reclaim;
use super::error::CheckpointError;
use super::files::Files;
use super::shard::Shard;
use super::source::{TensorEntry, TensorSource};
use errors::Refusal;
use numeric::Elements;

/// Follows transfers. All methods may be called by several threads.
pub trait Transfer: Send + Sync {
    /// A transfer of so many bytes begins; `what` is the repository or the address.
    fn begin(&self, what: &str, bytes: u64);
    /// So many bytes more have come or gone.
    fn advance(&self, bytes: u64);
    /// The transfer is over, done or not.
    fn finish(&self);
    /// Whether the user wants to stop.
    fn stopped(&self) -> bool;
}

/// A weight file that lies elsewhere. Here is a file of its length that holds its header and reads as zeros after it.
pub trait RemoteFile: Debug + Send + Sync {
    /// Its name, and that of the repository, for messages.
    fn name(&self) -> String;

    /// Its length in bytes: the room that it takes once it is fetched.
    fn size(&self) -> u64;

    /// Whether it stays so: for a plan that is shown and not run.
    fn is_header_only(&self) -> bool;

    /// Fetches ranges of a few bytes each; they stay.
    ///
    /// # Errors
    /// They cannot be fetched. [`begin`](Self::begin) then fails too, as what was decided without them may be wrong.
    fn peek(&self, ranges: &[Range<u64>]) -> Result<(), Refusal>;

    /// Begins a run: from now on nothing is left of the file when the process ends, however it ends.
    ///
    /// # Errors
    /// The disk refuses it, or an earlier [`peek`](Self::peek) has failed.
    fn begin(&self) -> Result<(), Refusal>;

    /// Fetches all of it, and checks its digest. Nothing may read it meanwhile.
    ///
    /// # Errors
    /// It cannot be fetched, is not what was listed, or `stopped` says so.
    fn fetch(&self, stopped: &(dyn Fn() -> bool + Sync)) -> Result<(), Refusal>;

    /// Drops what was fetched, so that it takes no room. Nothing may read it meanwhile.
    ///
    /// # Errors
    /// The disk refuses it.
    fn drop_content(&self) -> Result<(), Refusal>;

    /// Bytes that are free where it is kept, if the system can tell.
    fn room(&self) -> Option<u64>;
}

/// The weight files of a model that lie elsewhere, by their paths here.
#[derive(Debug, Clone, Default)]
pub struct RemoteFiles(Vec<(PathBuf, Arc<dyn RemoteFile>)>);

impl RemoteFiles {
    /// Whether there are none.
    pub fn is_empty(&self) -> bool {
        self.0.is_empty()
    }

    /// The files.
    pub fn iter(&self) -> impl Iterator<Item = &Arc<dyn RemoteFile>> {
        self.0.iter().map(|(_, file)| file)
    }
}

impl FromIterator<(PathBuf, Arc<dyn RemoteFile>)> for RemoteFiles {
    fn from_iter<I: IntoIterator<Item = (PathBuf, Arc<dyn RemoteFile>)>>(files: I) -> Self {
        RemoteFiles(files.into_iter().collect())
    }
}

impl PartialEq for RemoteFiles {
    /// Whether they are the same files.
    fn eq(&self, other: &RemoteFiles) -> bool {
        let paths = |files: &RemoteFiles| -> Vec<PathBuf> {
            files.0.iter().map(|(path, _)| path.clone()).collect()
        };
        paths(self) == paths(other)
    }
}

impl Eq for RemoteFiles {}

/// A file that must be fetched before a tensor is read, and where the tensor begins in it.
#[derive(Debug, Clone)]
pub struct RemotePlace {
    /// The file.
    pub file: Arc<dyn RemoteFile>,
    /// The offset of the tensor's first byte.
    pub offset: u64,
}

/// The tensors of files some of which lie elsewhere.
#[derive(Debug)]
pub(super) struct Remote {
    files: Files,
    by_path: HashMap<PathBuf, Arc<dyn RemoteFile>>,
}

impl Remote {
    pub(super) fn new(files: Files, remote: &RemoteFiles) -> Remote {
        Remote {
            files,
            by_path: remote.0.iter().cloned().collect(),
        }
    }

    fn is_remote(&self, shard: &Shard) -> bool {
        self.by_path.contains_key(&shard.path)
    }
}

impl TensorSource for Remote {
    fn base(&self) -> Option<&dyn TensorSource> {
        Some(&self.files)
    }

    fn entries(&self) -> &[TensorEntry] {
        self.files.entries()
    }

    fn elements(&self, index: usize) -> Option<Box<dyn Elements + '_>> {
        self.files.elements(index)
    }

    fn bytes(&self, index: usize) -> Option<&[u8]> {
        self.files.bytes(index)
    }

    fn place(&self, index: usize) -> Option<(&Shard, u64)> {
        self.files.place(index)
    }

    fn remote(&self, index: usize) -> Vec<RemotePlace> {
        let place = self.files.place(index);
        let remote = place.and_then(|(shard, offset)| {
            let file = Arc::clone(self.by_path.get(&shard.path)?);
            Some(RemotePlace { file, offset })
        });
        remote.into_iter().collect()
    }

    fn release(&self, index: usize, bytes: Range<u64>, reclaim: Reclaim) {
        self.files.release(index, bytes, reclaim);
    }

    /// What is fetched is written by nobody else, and compared with its digest.
    fn check_unchanged(&self) -> Result<(), CheckpointError> {
        let shards = self.files.shards.iter();
        let mut here = shards.filter(|shard| !self.is_remote(shard));
        here.try_for_each(Shard::check_unchanged)
    }
}
