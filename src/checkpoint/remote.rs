//! Weight files that lie elsewhere: only their headers are here, and the rest is fetched when it is needed.

use std::fmt::Debug;
use std::ops::Range;
use std::path::PathBuf;
use std::sync::Arc;

use errors::Refusal;

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
pub struct RemoteFiles(pub(super) Vec<(PathBuf, Arc<dyn RemoteFile>)>);

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
