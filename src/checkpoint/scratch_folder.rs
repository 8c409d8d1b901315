//! Folders for what is here only while a process runs.

use std::fs::{self, File};
use std::io;
use std::path::Path;

use tempfile::TempDir;

/// A folder for what is there only while a process runs. What killed processes have left goes with the next.
#[derive(Debug)]
pub struct ScratchFolder {
    folder: TempDir,
    /// Locked as long as the folder is used.
    _lock: File,
}

/// What the names of such folders begin with.
const PREFIX: &str = ".weldment-scratch-";

/// The file in it that is locked.
const LOCK: &str = "lock";

impl ScratchFolder {
    /// Makes one in a cache, and removes those that nobody uses.
    ///
    /// # Errors
    /// The system refuses it.
    pub fn new(cache: &Path) -> io::Result<ScratchFolder> {
        fs::create_dir_all(cache)?;
        sweep(cache);
        let folder = tempfile::Builder::new().prefix(PREFIX).tempdir_in(cache)?;
        // Locked before it has its name: who sweeps must not find it free.
        let early = folder.path().join("new");
        let lock = File::create(&early)?;
        // Some network file systems have no locks. What cannot be locked is not swept either.
        let _ = lock.lock();
        fs::rename(&early, folder.path().join(LOCK))?;
        Ok(ScratchFolder {
            folder,
            _lock: lock,
        })
    }

    /// Where it is.
    pub fn path(&self) -> &Path {
        self.folder.path()
    }
}

/// Removes the folders of processes that are no more. What cannot be removed stays.
fn sweep(cache: &Path) {
    let Ok(entries) = fs::read_dir(cache) else {
        return;
    };
    for entry in entries.flatten() {
        let is_ours = entry.file_name().to_string_lossy().starts_with(PREFIX);
        let is_folder = entry.file_type().is_ok_and(|kind| kind.is_dir());
        let lock = entry.path().join(LOCK);
        if is_ours && is_folder && File::open(lock).is_ok_and(|lock| lock.try_lock().is_ok()) {
            let _ = fs::remove_dir_all(entry.path());
        }
    }
}
