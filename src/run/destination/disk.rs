//! The file system, as far as files are put in place: every call to it is a step, which a test may fail.
//!
//! Knows no checkpoint.

use std::fmt;
use std::io;
use std::path::{Path, PathBuf};
use std::sync::Arc;

/// What is done to a file or a folder.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Step {
    /// Its path or its attributes are looked at.
    Look,
    /// A folder is made.
    CreateFolder,
    /// A folder is locked, so that no second run writes there.
    Lock,
    /// A file is made.
    Create,
    /// A file gets the room that it needs.
    Allocate,
    /// Bytes are written.
    Write,
    /// What was written is forced to the disk.
    Sync,
    /// A file is read.
    Read,
    /// A folder gets the mode and the group of the one that it replaces.
    SetMode,
    /// A file or a folder is renamed.
    Rename,
    /// Two folders change places.
    Exchange,
    /// A file or a folder is removed.
    Remove,
}

impl Step {
    /// The step as messages say it, before a path.
    fn verb(self) -> &'static str {
        match self {
            Self::Look => "look at",
            Self::CreateFolder => "create the folder",
            Self::Lock => "lock",
            Self::Create => "create",
            Self::Allocate => "make room for",
            Self::Write => "write",
            Self::Sync => "sync",
            Self::Read => "read",
            Self::SetMode => "set the mode of",
            Self::Rename => "move",
            Self::Exchange => "exchange",
            Self::Remove => "remove",
        }
    }
}

impl fmt::Display for Step {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.verb())
    }
}

/// A step that failed.
#[derive(Debug, thiserror::Error)]
#[error("cannot {step} {}: {source}", path.display())]
pub struct DiskError {
    /// What was tried.
    pub step: Step,
    /// With which file or folder.
    pub path: PathBuf,
    /// What the system said.
    pub source: io::Error,
}

impl DiskError {
    /// For `map_err`: a step with a file, and what the system said.
    pub(crate) fn at(step: Step, path: &Path) -> impl FnOnce(io::Error) -> Self + '_ {
        move |source| Self {
            step,
            path: path.to_owned(),
            source,
        }
    }
}

/// Is told of every step before it is done.
pub trait Watch: Send + Sync {
    /// Lets a step happen, or makes it fail.
    ///
    /// # Errors
    /// The step fails with this error and is not done.
    fn before(&self, step: Step, path: &Path) -> io::Result<()>;
}

/// The file system; for tests with somebody who watches it.
#[derive(Clone, Default)]
pub struct Disk {
    watch: Option<Arc<dyn Watch>>,
}

impl Disk {
    /// The file system under a watch.
    pub fn watched(watch: Arc<dyn Watch>) -> Self {
        Self { watch: Some(watch) }
    }

    /// Does a step.
    pub(crate) fn step<T>(
        &self,
        step: Step,
        path: &Path,
        call: impl FnOnce() -> io::Result<T>,
    ) -> Result<T, DiskError> {
        let allowed = match &self.watch {
            Some(watch) => watch.before(step, path),
            None => Ok(()),
        };
        allowed
            .and_then(|()| call())
            .map_err(DiskError::at(step, path))
    }
}

impl fmt::Debug for Disk {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Disk")
            .field("watched", &self.watch.is_some())
            .finish()
    }
}
