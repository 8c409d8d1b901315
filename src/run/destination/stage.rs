//! The staging folder, which is filled beside the output and takes its place when it is complete: who may use the path,
//! and how two folders are exchanged.
//!
//! Whenever the process dies, the output is absent, old or new; the next run removes what is left beside it.

use std::ffi::OsString;
use std::fs::{self, File, OpenOptions, Permissions, TryLockError};
use std::io;
use std::os::unix::fs::{MetadataExt, OpenOptionsExt, PermissionsExt, chown};
use std::path::{Path, PathBuf};

use rustix::fs::{CWD, OFlags, RenameFlags, renameat_with, statvfs};
use rustix::io::Errno;
use rustix::process::geteuid;

use super::Layout;
use super::disk::{Disk, DiskError, Step};
use super::noted::Noted;
use crate::error::RunError;

/// The suffix of the staging folder's name.
const STAGING: &str = ".weld-staging";

/// The suffix of a folder that is being replaced, where two folders cannot be exchanged in one step.
const REPLACED: &str = ".weld-replaced";

/// How often a run tries to get the staging folder while other runs come and go.
const TRIES: usize = 100;

/// The permission bits of a mode.
const MODE_BITS: u32 = 0o7777;

/// The group's permissions, and the bit that gives new files the folder's group.
const GROUP_BITS: u32 = 0o2070;

/// The permissions that the owner needs to fill a folder.
const OWNER_BITS: u32 = 0o700;

/// A folder being filled. If it is dropped without [`commit`](Self::commit), it is removed.
pub(super) struct Stage {
    disk: Disk,
    out: PathBuf,
    path: PathBuf,
    force: bool,
    /// The mode of the folder that is replaced.
    mode: Option<u32>,
    committed: bool,
    /// Present until the folder is put in its place: then other runs may stage here.
    noted: Option<Noted>,
    /// Locked while the stage is open, so that two runs do not fill the same folder.
    _lock: File,
    /// Dropped last.
    parents: Parents,
}

/// How a folder was put in its place.
#[derive(Clone, Copy)]
enum Placed {
    /// Nothing was there, or an empty folder.
    New,
    /// It was exchanged with the old one, which is now at the staging path.
    Exchanged,
    /// The old one was moved aside first.
    Aside,
}

impl Stage {
    /// Opens an empty folder beside `out`, once `out` is known to be free, or replaceable because of `force`.
    pub(super) fn open(
        disk: &Disk,
        out: &Path,
        force: bool,
        layout: &Layout<'_>,
    ) -> Result<Self, RunError> {
        let out = resolve(out)?;
        check_reads(&out, &layout.reads)?;
        check_free(&out, force)?;
        let parent = parent_of(&out).to_owned();
        let parents = Parents::create(disk, &parent)?;
        let path = beside(&out, STAGING);
        let lock = lock_new(disk, &path, &out)?;
        let mut stage = Self {
            disk: disk.clone(),
            out,
            noted: Some(Noted::new(&path)),
            path,
            force,
            mode: None,
            committed: false,
            _lock: lock,
            parents,
        };
        stage.recover()?;
        // Another run may have finished while this one waited for the lock.
        check_free(&stage.out, force)?;
        stage.check_replaceable()?;
        let weights = layout.shards.iter().map(|shard| shard.file_size);
        check_space(
            &parent,
            weights.fold(layout.side_bytes, u64::saturating_add),
        )?;
        stage.take_mode()?;
        Ok(stage)
    }

    /// The path where files are written.
    pub(super) fn path(&self) -> &Path {
        &self.path
    }

    /// Puts the folder, whose files and subfolders are synced, in the output's place; returns notes for the user.
    pub(super) fn commit(mut self) -> Result<Vec<String>, RunError> {
        sync_folder(&self.disk, &self.path)?;
        if let Some(mode) = self.mode {
            self.set_mode(mode)?;
        }
        self.noted = None;
        let (placed, _lock) = self.place()?;
        if let Err(error) = sync_folder(&self.disk, parent_of(&self.out)) {
            // A power loss could undo the rename, so rather take it back now. If that fails too, both folders stay.
            self.committed = self.take_back(placed).is_err();
            return Err(error.into());
        }
        self.committed = true;
        self.parents.keep();
        let old = match placed {
            Placed::New => return Ok(Vec::new()),
            Placed::Exchanged => self.path.clone(),
            Placed::Aside => beside(&self.out, REPLACED),
        };
        let note =
            |error| format!("{error}: what was replaced; the next merge to there tries again");
        let left = remove(&self.disk, &old).err().map(note);
        Ok(left.into_iter().collect())
    }

    /// Renames the folder; returns how, and the lock on the folder that is replaced.
    fn place(&self) -> Result<(Placed, Option<File>), RunError> {
        let (staged, out) = (&self.path, &self.out);
        if !has_entries(out)? {
            self.rename(staged, out)?;
            return Ok((Placed::New, None));
        }
        // The path was free when the run began; whatever came there since must not be lost.
        check_free(out, self.force)?;
        // The old folder lies beside the output until it is removed. Another run would take it for the remains of a
        // killed run, unless it is locked. It does no harm if somebody else holds the lock.
        let old = self.disk.step(Step::Lock, out, || open_folder(out))?;
        let _ = old.try_lock();
        match self.exchange() {
            // One step: there is a checkpoint at every moment.
            Ok(()) => return Ok((Placed::Exchanged, Some(old))),
            Err(error) if is_unsupported(&error.source) => {}
            Err(error) => return Err(error.into()),
        }
        let aside = beside(out, REPLACED);
        self.rename(out, &aside)?;
        if let Err(error) = self.rename(staged, out) {
            let _ = self.rename(&aside, out);
            return Err(error.into());
        }
        Ok((Placed::Aside, Some(old)))
    }

    /// Undoes what [`place`](Self::place) did.
    fn take_back(&self, placed: Placed) -> Result<(), DiskError> {
        let (staged, out) = (&self.path, &self.out);
        match placed {
            Placed::New => self.rename(out, staged),
            Placed::Exchanged => self.exchange(),
            Placed::Aside => {
                let taken = self.rename(out, staged);
                taken.and_then(|()| self.rename(&beside(out, REPLACED), out))
            }
        }
    }

    fn exchange(&self) -> Result<(), DiskError> {
        let (staged, out) = (&self.path, &self.out);
        self.disk.step(Step::Exchange, out, || {
            Ok(renameat_with(CWD, staged, CWD, out, RenameFlags::EXCHANGE)?)
        })
    }

    fn rename(&self, from: &Path, to: &Path) -> Result<(), DiskError> {
        self.disk.step(Step::Rename, from, || fs::rename(from, to))
    }

    /// Cleans up after a run that was killed with the old folder moved aside: if there is no new one, it moves back.
    fn recover(&self) -> Result<(), RunError> {
        let aside = beside(&self.out, REPLACED);
        if is_absent(&aside) {
            return Ok(());
        }
        let old = open_own(&self.disk, &aside)?;
        if let Some(old) = &old {
            try_lock(&self.disk, old, &aside, &self.out)?;
        }
        match is_absent(&self.out) {
            true => self.rename(&aside, &self.out)?,
            false => remove(&self.disk, &aside)?,
        }
        Ok(())
    }

    /// Checks before the work that the system allows the output's folder to be replaced. To find out, it is renamed
    /// onto a folder that is not empty: every system refuses that, most of them for just that reason.
    fn check_replaceable(&self) -> Result<(), RunError> {
        if is_absent(&self.out) {
            return Ok(());
        }
        let obstacle = self.path.join("obstacle");
        let create = || fs::create_dir(&obstacle);
        self.disk.step(Step::CreateFolder, &obstacle, create)?;
        let moved = self.rename(&self.out, &self.path);
        let Err(error) = moved else {
            self.rename(&self.path, &self.out)?;
            return Err(fixed(&self.out, "its file system moves it onto others"));
        };
        remove(&self.disk, &obstacle)?;
        match Errno::from_io_error(&error.source) {
            Some(Errno::NOTEMPTY | Errno::EXIST) => Ok(()),
            Some(Errno::BUSY) => Err(RunError::OutputIsMountPoint {
                path: self.out.clone(),
            }),
            // An empty one can be replaced even there.
            Some(Errno::XDEV) if !has_entries(&self.out)? => Ok(()),
            Some(Errno::XDEV) => Err(fixed(
                &self.out,
                "it belongs to a lower layer of an overlay file system, which cannot move it",
            )),
            _ => Err(error.into()),
        }
    }

    /// Gives the folder the group and the mode of the one that it replaces, so that its files get that group.
    fn take_mode(&mut self) -> Result<(), RunError> {
        if is_absent(&self.out) {
            return Ok(());
        }
        let look = |path: &Path| self.disk.step(Step::Look, path, || fs::metadata(path));
        let (old, new) = (look(&self.out)?, look(&self.path)?);
        let mut mode = old.mode() & MODE_BITS;
        if old.gid() != new.gid() {
            let give = || chown(&self.path, None, Some(old.gid()));
            match self.disk.step(Step::SetMode, &self.path, give) {
                Ok(()) => {}
                // The user is not a member of that group: then no other group gets its permissions.
                Err(error) if error.source.kind() == io::ErrorKind::PermissionDenied => {
                    mode &= !GROUP_BITS;
                }
                Err(error) => return Err(error.into()),
            }
        }
        self.set_mode(mode | OWNER_BITS)?;
        self.mode = Some(mode).filter(|mode| mode & OWNER_BITS != OWNER_BITS);
        Ok(())
    }

    fn set_mode(&self, mode: u32) -> Result<(), DiskError> {
        self.disk.step(Step::SetMode, &self.path, || {
            fs::set_permissions(&self.path, Permissions::from_mode(mode))
        })
    }
}

impl Drop for Stage {
    fn drop(&mut self) {
        if !self.committed {
            // The next run removes what cannot be removed now.
            let _ = remove(&self.disk, &self.path);
        }
    }
}

/// The missing folders above the output. If this is dropped before they are kept, they are removed again.
struct Parents {
    disk: Disk,
    created: Vec<PathBuf>,
}

impl Parents {
    /// Creates a folder and its missing parents.
    fn create(disk: &Disk, folder: &Path) -> Result<Self, RunError> {
        let missing = folder.ancestors().take_while(|folder| is_absent(folder));
        let missing: Vec<&Path> = missing.collect();
        let mut parents = Self {
            disk: disk.clone(),
            created: Vec::new(),
        };
        for folder in missing.into_iter().rev() {
            match disk.step(Step::CreateFolder, folder, || fs::create_dir(folder)) {
                Ok(()) => parents.created.push(folder.to_owned()),
                Err(error) if error.source.kind() == io::ErrorKind::AlreadyExists => {}
                Err(error) => return Err(error.into()),
            }
        }
        Ok(parents)
    }

    fn keep(&mut self) {
        self.created.clear();
    }
}

impl Drop for Parents {
    fn drop(&mut self) {
        for folder in self.created.iter().rev() {
            // A folder into which somebody has put something meanwhile stays.
            let _ = self
                .disk
                .step(Step::Remove, folder, || fs::remove_dir(folder));
        }
    }
}

/// The output's path with links followed, so that the folder is replaced and not a link to it.
fn resolve(out: &Path) -> Result<PathBuf, RunError> {
    let found = match fs::canonicalize(out) {
        Err(error) if error.kind() == io::ErrorKind::NotFound => std::path::absolute(out),
        found => found,
    };
    let found = found.map_err(DiskError::at(Step::Look, out))?;
    match found.file_name() {
        Some(_) => Ok(found),
        None => Err(RunError::OutputUnnamed {
            path: out.to_owned(),
        }),
    }
}

fn parent_of(out: &Path) -> &Path {
    out.parent().unwrap_or(Path::new("/"))
}

/// A hidden name beside the output.
fn beside(out: &Path, ending: &str) -> PathBuf {
    let mut name = OsString::from(".");
    name.push(out.file_name().unwrap_or_default());
    name.push(ending);
    parent_of(out).join(name)
}

/// Checks, before the work, a folder that is filled later: it holds nothing that is read, and is free, if `force` does not
/// allow it to be replaced.
///
/// # Errors
/// It holds an input, or is taken.
pub(super) fn check_place(out: &Path, reads: &[PathBuf], force: bool) -> Result<(), RunError> {
    let out = resolve(out)?;
    check_reads(&out, reads)?;
    check_free(&out, force)
}

fn check_reads(out: &Path, reads: &[PathBuf]) -> Result<(), RunError> {
    for input in reads {
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
    // Links were followed: a link that is still there is dangling.
    match fs::symlink_metadata(out) {
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(()),
        Err(error) => Err(DiskError::at(Step::Look, out)(error).into()),
        Ok(meta) if !meta.is_dir() => Err(RunError::OutputIsFile {
            path: out.to_owned(),
        }),
        Ok(_) if !force && has_entries(out)? => Err(RunError::OutputExists {
            path: out.to_owned(),
        }),
        Ok(_) => Ok(()),
    }
}

/// Whether there is a folder that is not empty.
fn has_entries(folder: &Path) -> Result<bool, DiskError> {
    match fs::read_dir(folder) {
        Ok(mut entries) => Ok(entries.next().is_some()),
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(false),
        Err(error) => Err(DiskError::at(Step::Look, folder)(error)),
    }
}

fn is_absent(path: &Path) -> bool {
    fs::symlink_metadata(path).is_err_and(|error| error.kind() == io::ErrorKind::NotFound)
}

/// Checks that so many bytes can be written to a folder.
///
/// # Errors
/// There is less free space.
pub fn check_space(folder: &Path, needed: u64) -> Result<(), RunError> {
    // If the file system reports no free space, the run tries.
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

/// Creates a folder and locks it. The remains of a killed run are removed first; anything else stays.
fn lock_new(disk: &Disk, path: &Path, out: &Path) -> Result<File, RunError> {
    for _ in 0..TRIES {
        let create = || match fs::create_dir(path) {
            Ok(()) => Ok(true),
            Err(error) if error.kind() == io::ErrorKind::AlreadyExists => Ok(false),
            Err(error) => Err(error),
        };
        let is_new = disk.step(Step::CreateFolder, path, create)?;
        match (lock(disk, path, out), is_new) {
            (Ok(Some(folder)), true) => return Ok(folder),
            // The lock is held while the folder is removed.
            (Ok(Some(_left)), false) => remove(disk, path)?,
            (Ok(None), _) => {}
            (Err(error), is_new) => {
                // Whoever has locked it removes it.
                if is_new && !matches!(error, RunError::OutputLocked { .. }) {
                    let _ = disk.step(Step::Remove, path, || fs::remove_dir(path));
                }
                return Err(error);
            }
        }
    }
    Err(RunError::OutputLocked {
        path: out.to_owned(),
    })
}

/// Locks the folder at a path; none if another run has just renamed it to its place.
fn lock(disk: &Disk, path: &Path, out: &Path) -> Result<Option<File>, RunError> {
    let Some(folder) = open_own(disk, path)? else {
        return Ok(None);
    };
    try_lock(disk, &folder, path, out)?;
    // It may also be renamed between open and lock: then the locked folder is a finished output.
    Ok(Some(folder).filter(|folder| is_at(folder, path)))
}

/// Opens a folder that a run has created, without following a link; none if it is gone.
fn open_own(disk: &Disk, path: &Path) -> Result<Option<File>, RunError> {
    let taken = |found: String| RunError::StagingTaken {
        path: path.to_owned(),
        found,
    };
    let folder = match disk.step(Step::Lock, path, || open_folder(path)) {
        Ok(folder) => folder,
        Err(error) if error.source.kind() == io::ErrorKind::NotFound => return Ok(None),
        Err(error) => {
            return Err(match Errno::from_io_error(&error.source) {
                Some(Errno::LOOP | Errno::NOTDIR) => taken("a link or a file".to_owned()),
                _ => error.into(),
            });
        }
    };
    let owner = disk.step(Step::Look, path, || folder.metadata())?.uid();
    match owner == geteuid().as_raw() {
        true => Ok(Some(folder)),
        false => Err(taken(format!("a folder of the user {owner}"))),
    }
}

/// Opens a folder only: neither a link nor a pipe, which would wait for a writer.
fn open_folder(path: &Path) -> io::Result<File> {
    let flags = (OFlags::DIRECTORY | OFlags::NOFOLLOW).bits() as i32;
    OpenOptions::new().read(true).custom_flags(flags).open(path)
}

fn try_lock(disk: &Disk, folder: &File, path: &Path, out: &Path) -> Result<(), RunError> {
    let locked = disk.step(Step::Lock, path, || match folder.try_lock() {
        Ok(()) => Ok(true),
        Err(TryLockError::WouldBlock) => Ok(false),
        Err(TryLockError::Error(error)) => Err(error),
    })?;
    match locked {
        true => Ok(()),
        false => Err(RunError::OutputLocked {
            path: out.to_owned(),
        }),
    }
}

/// Whether an open folder is still the one at a path.
fn is_at(folder: &File, path: &Path) -> bool {
    let (Ok(folder), Ok(there)) = (folder.metadata(), fs::symlink_metadata(path)) else {
        return false;
    };
    (folder.ino(), folder.dev()) == (there.ino(), there.dev())
}

/// Removes a folder with its contents, if it exists.
fn remove(disk: &Disk, path: &Path) -> Result<(), DiskError> {
    disk.step(Step::Remove, path, || match fs::remove_dir_all(path) {
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(()),
        done => done,
    })
}

/// Forces the names in a folder to the disk.
pub(super) fn sync_folder(disk: &Disk, path: &Path) -> Result<(), DiskError> {
    disk.step(Step::Sync, path, || File::open(path)?.sync_all())
}

/// Whether the error says that the call is not supported, by the system or by this file system.
pub(super) fn is_unsupported(error: &io::Error) -> bool {
    let unsupported = [Errno::INVAL, Errno::NOSYS, Errno::NOTSUP, Errno::OPNOTSUPP];
    Errno::from_io_error(error).is_some_and(|error| unsupported.contains(&error))
}

fn fixed(out: &Path, why: &'static str) -> RunError {
    RunError::OutputFixed {
        path: out.to_owned(),
        why,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_no_disk_has_room_for_is_refused() {
        let folder = tempfile::tempdir().unwrap();
        check_space(folder.path(), 0).unwrap();
        let error = check_space(folder.path(), u64::MAX).unwrap_err();
        assert!(matches!(
            error,
            RunError::DiskFull {
                needed: u64::MAX,
                ..
            }
        ));
    }
}
