//! A checkpoint that another program reads and that then goes: written to a folder of its own, in memory if it fits.

use std::fs::{self, File};
use std::io;
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};

use rustix::fs::statvfs;
use rustix::process::geteuid;

use super::destination::{DiskError, Folder, Step};
use super::{RunError, RunOptions, run};
use engine::Observer;
use plan::Plan;

/// How the names of these folders begin. One that is being made has another, so that it is not taken for one that was left
/// behind.
const PREFIX: &str = "weldment-scratch-";
const NEW: &str = "weldment-new-scratch-";
/// The file that is locked by the process to which the folder belongs.
const LOCK: &str = "lock";
/// The checkpoint in the folder.
const MODEL: &str = "model";

/// Where scratch may lie.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ScratchRoots {
    /// The folder that was asked for.
    pub chosen: Option<PathBuf>,
    /// One in memory, and how many bytes may go there.
    pub memory: Option<(PathBuf, u64)>,
    /// The usual one for temporary files.
    pub usual: PathBuf,
}

impl ScratchRoots {
    /// The folder for this many bytes: the one in memory if they fit.
    pub fn root(&self, bytes: u64) -> &Path {
        if let Some(chosen) = &self.chosen {
            return chosen;
        }
        match &self.memory {
            Some((folder, most)) if bytes <= *most && has_free(folder, bytes) => folder,
            _ => &self.usual,
        }
    }
}

/// Whether a file system has this much free.
fn has_free(folder: &Path, bytes: u64) -> bool {
    statvfs(folder).is_ok_and(|found| bytes <= found.f_bavail.saturating_mul(found.f_frsize))
}

/// A folder of this process alone, removed when it is dropped. What a killed process left is removed by the next.
#[derive(Debug)]
pub struct Scratch {
    path: PathBuf,
    _lock: File,
}

impl Scratch {
    /// Makes one below a folder, and removes there what killed processes left.
    ///
    /// # Errors
    /// The system refuses.
    pub fn new(root: &Path) -> Result<Scratch, RunError> {
        let made = || -> io::Result<Scratch> {
            let root = std::path::absolute(root)?;
            sweep(&root);
            let new = tempfile::Builder::new().prefix(NEW).tempdir_in(&root)?;
            let lock = File::create_new(new.path().join(LOCK))?;
            lock.lock()?;
            let name = new.path().file_name().unwrap_or_default().to_string_lossy();
            let path = root.join(name.replacen(NEW, PREFIX, 1));
            fs::rename(new.path(), &path)?;
            // Under its first name it is gone.
            let _ = new.keep();
            Ok(Scratch { path, _lock: lock })
        };
        Ok(made().map_err(DiskError::at(Step::CreateFolder, root))?)
    }

    /// The folder.
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// Writes the checkpoint of a plan into it; returns where.
    ///
    /// # Errors
    /// As of [`run`].
    pub fn write(&self, plan: &Plan, observer: &dyn Observer) -> Result<PathBuf, RunError> {
        let model = self.path.join(MODEL);
        run(
            plan,
            &Folder::new(&model, false),
            RunOptions::default(),
            observer,
        )?;
        Ok(model)
    }
}

impl Drop for Scratch {
    fn drop(&mut self) {
        // If something of it cannot be removed, the next process tries again.
        let _ = fs::remove_dir_all(&self.path);
    }
}

/// Removes the folders of this user's processes that were killed.
fn sweep(root: &Path) {
    for entry in fs::read_dir(root).into_iter().flatten().flatten() {
        let begins = entry
            .file_name()
            .as_encoded_bytes()
            .starts_with(PREFIX.as_bytes());
        let found = fs::symlink_metadata(entry.path());
        let is_own = found.is_ok_and(|found| found.is_dir() && found.uid() == geteuid().as_raw());
        if !begins || !is_own {
            continue;
        }
        if let Ok(lock) = File::open(entry.path().join(LOCK))
            && lock.try_lock().is_ok()
        {
            // What cannot be removed stays for the next process; the lock is held until then.
            let _ = fs::remove_dir_all(entry.path());
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_a_killed_process_left_is_removed_and_what_lives_stays() {
        let root = tempfile::tempdir().unwrap();
        let names = || {
            let entries = fs::read_dir(root.path()).unwrap();
            let mut names: Vec<_> = entries.map(|entry| entry.unwrap().file_name()).collect();
            names.sort();
            names
        };
        let left = root.path().join("weldment-scratch-left");
        fs::create_dir_all(left.join("model")).unwrap();
        fs::write(left.join(LOCK), "").unwrap();
        // What looks alike and is no folder of ours stays, and so does what a link leads to.
        fs::write(root.path().join("weldment-scratch-file"), "").unwrap();
        let elsewhere = tempfile::tempdir().unwrap();
        fs::write(elsewhere.path().join(LOCK), "").unwrap();
        std::os::unix::fs::symlink(elsewhere.path(), root.path().join("weldment-scratch-link"))
            .unwrap();
        fs::create_dir(root.path().join("weldment-scratch-unlocked")).unwrap();
        let first = Scratch::new(root.path()).unwrap();
        let second = Scratch::new(root.path()).unwrap();
        assert!(first.path().is_dir() && second.path().is_dir() && !left.exists());
        assert_eq!(names().len(), 5);
        drop((first, second));
        let expected = [
            "weldment-scratch-file",
            "weldment-scratch-link",
            "weldment-scratch-unlocked",
        ];
        assert_eq!(names(), expected);
        assert!(elsewhere.path().join(LOCK).exists());
    }

    #[test]
    fn memory_is_taken_if_it_fits() {
        let usual = tempfile::tempdir().unwrap();
        let roots = |chosen: Option<&Path>, most| ScratchRoots {
            chosen: chosen.map(Path::to_owned),
            memory: Some((usual.path().join(".").clone(), most)),
            usual: "/usual".into(),
        };
        assert_eq!(roots(None, 100).root(100), usual.path());
        assert_eq!(roots(None, 100).root(101), Path::new("/usual"));
        assert_eq!(roots(None, u64::MAX).root(u64::MAX), Path::new("/usual"));
        assert_eq!(
            roots(Some(Path::new("/mine")), 100).root(1),
            Path::new("/mine")
        );
    }
}
