//! The file system, as far as putting files in place needs it: every call is a step, which a test may let fail.
//!
//! Knows no checkpoint.

use std::fmt;
use std::io;
use std::path::{Path, PathBuf};
use std::sync::Arc;

/// An operation on a file or a folder.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Step {
    /// Reads the attributes of a path, or resolves it.
    Look,
    /// Creates a folder.
    CreateFolder,
    /// Locks a folder, so that no second run writes there.
    Lock,
    /// Creates a file.
    Create,
    /// Reserves the room that a file needs.
    Allocate,
    /// Writes bytes.
    Write,
    /// Gives a file a second name.
    Link,
    /// Forces written data to the disk.
    Sync,
    /// Reads a file.
    Read,
    /// Gives a folder the mode and the group of the one that it replaces.
    SetMode,
    /// Renames a file or a folder.
    Rename,
    /// Exchanges two folders.
    Exchange,
    /// Removes a file or a folder.
    Remove,
}

impl Step {
    /// The step in words, as messages put it before a path.
    fn verb(self) -> &'static str {
        match self {
            Self::Look => "look at",
            Self::CreateFolder => "create the folder",
            Self::Lock => "lock",
            Self::Create => "create",
            Self::Allocate => "make room for",
            Self::Write => "write",
            Self::Link => "link",
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
    /// The file or folder.
    pub path: PathBuf,
    /// What the system said.
    pub source: io::Error,
}

impl DiskError {
    /// For `map_err`: adds the step and the path to the system's error.
    pub(crate) fn at(step: Step, path: &Path) -> impl FnOnce(io::Error) -> Self + '_ {
        move |source| Self {
            step,
            path: path.to_owned(),
            source,
        }
    }
}

/// Observes every step before it happens.
pub trait Watch: Send + Sync {
    /// Allows a step, or makes it fail.
    ///
    /// # Errors
    /// The step fails with this error and does not happen.
    fn before(&self, step: Step, path: &Path) -> io::Result<()>;
}

/// The file system; tests can watch it.
#[derive(Clone, Default)]
pub struct Disk {
    watch: Option<Arc<dyn Watch>>,
}

impl Disk {
    /// The file system with a watch.
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
