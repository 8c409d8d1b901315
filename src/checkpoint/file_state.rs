//! What tells a file from another, and whether it was written to.

use std::fmt;
use std::fs::{self, Metadata};
use std::io;
use std::os::unix::fs::MetadataExt;
use std::path::Path;

/// What tells whether a file is still the one that was opened, and whether it was written to.
///
/// The time of modification can be set back by whoever writes; that of the last change of the file's state cannot.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct FileState {
    device: u64,
    inode: u64,
    len: u64,
    /// Seconds and nanoseconds.
    modified: (i64, i64),
    changed: (i64, i64),
}

impl FileState {
    /// The state of the file at a path; links are followed.
    ///
    /// # Errors
    /// Nothing is there, or it cannot be looked at.
    pub fn at(path: &Path) -> io::Result<FileState> {
        fs::metadata(path).map(|metadata| FileState::new(&metadata))
    }

    pub(super) fn new(metadata: &Metadata) -> FileState {
        FileState {
            device: metadata.dev(),
            inode: metadata.ino(),
            len: metadata.len(),
            modified: (metadata.mtime(), metadata.mtime_nsec()),
            changed: (metadata.ctime(), metadata.ctime_nsec()),
        }
    }

    /// Whether this is the state of the same file, at this time or another, under this name or another.
    pub fn is_of_same_file(&self, other: &FileState) -> bool {
        (self.device, self.inode) == (other.device, other.inode)
    }
}

impl fmt::Display for FileState {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let FileState {
            inode,
            len,
            modified,
            changed,
            ..
        } = self;
        write!(
            f,
            "{len} bytes, inode {inode}, written at Unix time {}.{:09}",
            modified.0, modified.1
        )?;
        if changed != modified {
            write!(f, ", changed at {}.{:09}", changed.0, changed.1)?;
        }
        Ok(())
    }
}
