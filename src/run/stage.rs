//! The folder that is filled beside the output and takes its place when it is whole.

use std::ffi::OsString;
use std::fs::{self, File, TryLockError};
use std::io;
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};

use rustix::fs::{CWD, RenameFlags, renameat_with, statvfs};

use super::error::{RunError, io_error};

/// What the staging folder's name ends in.
const SUFFIX: &str = ".weld-staging";

/// A folder being filled. Dropped without [`commit`](Self::commit), it is removed.
pub(super) struct Stage {
    out: PathBuf,
    path: PathBuf,
    committed: bool,
    /// Locked as long as the stage is open, so that two runs do not fill one folder.
    _lock: File,
}

impl Stage {
    /// Opens an empty folder beside `out`, after `out` was found free, or may be replaced by `force`.
    pub(super) fn open<'p>(
        out: &Path,
        force: bool,
        inputs: impl Iterator<Item = &'p Path>,
        needed: u64,
    ) -> Result<Self, RunError> {
        let out = resolve(out)?;
        check_inputs(&out, inputs)?;
        check_free(&out, force)?;
        let parent = parent_of(&out).to_owned();
        fs::create_dir_all(&parent).map_err(io_error("create", &parent))?;
        let mut name = OsString::from(".");
        name.push(out.file_name().unwrap_or_default());
        name.push(SUFFIX);
        let path = parent.join(name);
        let lock = lock_folder(&path, &out)?;
        let stage = Self {
            out,
            path,
            committed: false,
            _lock: lock,
        };
        // Another run may have finished while this one came to hold the lock.
        check_free(&stage.out, force)?;
        clear(&stage.path)?;
        check_space(&parent, needed)?;
        Ok(stage)
    }

    /// Where files are written.
    pub(super) fn path(&self) -> &Path {
        &self.path
    }

    /// Puts the folder, whose files are synced, at the output's place.
    pub(super) fn commit(mut self) -> Result<(), RunError> {
        sync_folder(&self.path)?;
        let replaces = fs::read_dir(&self.out).is_ok_and(|mut entries| entries.next().is_some());
        if replaces {
            // The exchange puts what it replaces in the staging folder's place, where another run would take it
            // for its own while it is being removed: locked, it is not. Whoever else may hold it does no harm.
            let replaced = File::open(&self.out).map_err(io_error("open", &self.out))?;
            let _ = replaced.try_lock();
            // One step where the system can: at no time is there no checkpoint.
            match renameat_with(CWD, &self.path, CWD, &self.out, RenameFlags::EXCHANGE) {
                Ok(()) => {}
                Err(_) => {
                    let aside = self.path.with_extension("weld-replaced");
                    clear_away(&aside)?;
                    fs::rename(&self.out, &aside).map_err(io_error("move aside", &self.out))?;
                    if let Err(error) = fs::rename(&self.path, &self.out) {
                        // Put back what was there.
                        let _ = fs::rename(&aside, &self.out);
                        return Err(io_error("rename the staged folder to", &self.out)(error));
                    }
                    fs::rename(&aside, &self.path).map_err(io_error("move", &aside))?;
                }
            }
            self.committed = true;
            sync_folder(parent_of(&self.out))?;
            return fs::remove_dir_all(&self.path)
                .map_err(io_error("remove the replaced", &self.path));
        }
        fs::rename(&self.path, &self.out)
            .map_err(io_error("rename the staged folder to", &self.out))?;
        self.committed = true;
        sync_folder(parent_of(&self.out))
    }
}

impl Drop for Stage {
    fn drop(&mut self) {
        if !self.committed {
            // What cannot be removed now is cleaned away by the next run.
            let _ = fs::remove_dir_all(&self.path);
        }
    }
}

/// The output's place with links followed, so that what is replaced is the folder and not a link to it.
fn resolve(out: &Path) -> Result<PathBuf, RunError> {
    match fs::canonicalize(out) {
        Ok(path) => Ok(path),
        Err(error) if error.kind() == io::ErrorKind::NotFound => match out.file_name() {
            Some(_) => std::path::absolute(out).map_err(io_error("resolve", out)),
            None => Err(RunError::OutputUnnamed {
                path: out.to_owned(),
            }),
        },
        Err(source) => Err(RunError::Io {
            action: "resolve",
            path: out.to_owned(),
            source,
        }),
    }
}

fn parent_of(out: &Path) -> &Path {
    out.parent().unwrap_or(Path::new("/"))
}

fn check_inputs<'p>(out: &Path, inputs: impl Iterator<Item = &'p Path>) -> Result<(), RunError> {
    for input in inputs {
        if fs::canonicalize(input).is_ok_and(|input| input.starts_with(out)) {
            return Err(RunError::OutputIsInput {
                path: out.to_owned(),
                input: input.to_owned(),
            });
        }
    }
    Ok(())
}

fn check_free(out: &Path, force: bool) -> Result<(), RunError> {
    if out.file_name().is_none() {
        return Err(RunError::OutputUnnamed {
            path: out.to_owned(),
        });
    }
    match fs::metadata(out) {
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(()),
        Err(source) => Err(RunError::Io {
            action: "look at",
            path: out.to_owned(),
            source,
        }),
        Ok(meta) if !meta.is_dir() => Err(RunError::OutputIsFile {
            path: out.to_owned(),
        }),
        Ok(_) => {
            let mut entries = fs::read_dir(out).map_err(io_error("list", out))?;
            match entries.next() {
                Some(_) if !force => Err(RunError::OutputExists {
                    path: out.to_owned(),
                }),
                _ => Ok(()),
            }
        }
    }
}

fn check_space(folder: &Path, needed: u64) -> Result<(), RunError> {
    // A file system that does not say is tried.
    let Ok(stat) = statvfs(folder) else {
        return Ok(());
    };
    let available = stat.f_bavail.saturating_mul(stat.f_frsize);
    if needed > available {
        return Err(RunError::DiskFull {
            path: folder.to_owned(),
            needed,
            available,
        });
    }
    Ok(())
}

/// Creates the folder if need be and locks it.
fn lock_folder(path: &Path, out: &Path) -> Result<File, RunError> {
    loop {
        match fs::create_dir(path) {
            Err(error) if error.kind() != io::ErrorKind::AlreadyExists => {
                return Err(RunError::Io {
                    action: "create",
                    path: path.to_owned(),
                    source: error,
                });
            }
            _ => {}
        }
        let folder = match File::open(path) {
            // Its owner has just renamed it to its place.
            Err(error) if error.kind() == io::ErrorKind::NotFound => continue,
            other => other.map_err(io_error("open", path))?,
        };
        match folder.try_lock() {
            Ok(()) => {}
            Err(TryLockError::WouldBlock) => {
                return Err(RunError::OutputLocked {
                    path: out.to_owned(),
                });
            }
            Err(TryLockError::Error(source)) => {
                return Err(RunError::Io {
                    action: "lock",
                    path: path.to_owned(),
                    source,
                });
            }
        }
        // Between open and lock its owner may have renamed it: then what is locked is a finished output.
        let locked = folder.metadata().map_err(io_error("look at", path))?;
        if fs::symlink_metadata(path)
            .is_ok_and(|meta| meta.ino() == locked.ino() && meta.dev() == locked.dev())
        {
            return Ok(folder);
        }
    }
}

/// Empties a folder that a killed run has left.
fn clear(path: &Path) -> Result<(), RunError> {
    for entry in fs::read_dir(path).map_err(io_error("list", path))? {
        let entry = entry.map_err(io_error("list", path))?;
        clear_away(&entry.path())?;
    }
    Ok(())
}

fn clear_away(path: &Path) -> Result<(), RunError> {
    let removed = match fs::symlink_metadata(path) {
        Err(_) => Ok(()),
        Ok(meta) if meta.is_dir() => fs::remove_dir_all(path),
        Ok(_) => fs::remove_file(path),
    };
    removed.map_err(io_error("remove", path))
}

fn sync_folder(path: &Path) -> Result<(), RunError> {
    File::open(path)
        .and_then(|folder| folder.sync_all())
        .map_err(io_error("sync", path))
}
