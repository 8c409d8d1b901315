//! Writes a single file whole or not at all: signatures, attestations, reports, GGUF files.
//!
//! What a killed process leaves beside the file is removed when another file is written there: it is told by its name, and
//! by its lock whether somebody still writes it.

use std::fs::{self, File, OpenOptions, Permissions};
use std::io::{self, Write};
use std::os::unix::fs::{MetadataExt, OpenOptionsExt, PermissionsExt};
use std::path::Path;

use rustix::fs::OFlags;
use tempfile::NamedTempFile;

use super::disk::{Disk, DiskError, Step};

/// How the name of a file begins that is being written.
const STAGED: &str = ".weld-staged-";

/// How often a file is made again that another process took for what is left of a killed one.
const TRIES: usize = 10;

/// Writes a file whole or not at all: beside its path, then renamed. A pipe or other special file is written directly.
///
/// # Errors
/// The system refuses a step; the old content of `path` is still there, and nothing beside it.
pub fn write_whole(disk: &Disk, path: &Path, bytes: &[u8]) -> Result<(), DiskError> {
    write_with(disk, path, |out| {
        out.write_all(bytes)
            .map_err(DiskError::at(Step::Write, path))
    })
}

/// The same for a file that is made piece by piece: `fill` writes it in order.
///
/// # Errors
/// The system refuses a step, or `fill` fails; the old content of `path` is still there, and nothing beside it.
pub fn write_with<E: From<DiskError>>(
    disk: &Disk,
    path: &Path,
    fill: impl FnOnce(&mut (dyn Write + Send)) -> Result<(), E>,
) -> Result<(), E> {
    // A link stays a link.
    let path = &fs::canonicalize(path).unwrap_or_else(|_| path.to_owned());
    if path.exists() && !path.is_file() {
        let open = || OpenOptions::new().write(true).open(path);
        let mut file = disk.step(Step::Write, path, open)?;
        return fill(&mut file);
    }
    let folder = folder_of(path);
    remove_left(folder);
    let mut staged = disk.step(Step::Create, path, || staged_in(folder))?;
    fill(&mut Steps {
        disk,
        path,
        file: staged.as_file_mut(),
    })?;
    disk.step(Step::Sync, path, || staged.as_file().sync_all())?;
    disk.step(Step::Rename, path, || {
        staged.persist(path).map_err(|error| error.error)
    })?;
    Ok(())
}

/// The folder that contains a file.
pub fn folder_of(file: &Path) -> &Path {
    match file.parent() {
        Some(folder) if !folder.as_os_str().is_empty() => folder,
        _ => Path::new("."),
    }
}

/// A new file in the folder, locked as long as it is open, where the file system has locks.
fn staged_in(folder: &Path) -> io::Result<NamedTempFile> {
    let mut builder = tempfile::Builder::new();
    builder.prefix(STAGED);
    // The mode of any new file; the umask applies.
    builder.permissions(Permissions::from_mode(0o666));
    let mut staged = builder.tempfile_in(folder)?;
    for _ in 0..TRIES {
        let _ = staged.as_file().try_lock();
        // Before it was locked, another process may have removed it.
        if staged.as_file().metadata()?.nlink() > 0 {
            break;
        }
        staged = builder.tempfile_in(folder)?;
    }
    Ok(staged)
}

/// Removes files that killed processes left in the folder. What cannot be removed does no harm.
fn remove_left(folder: &Path) {
    let entries = fs::read_dir(folder).into_iter().flatten().flatten();
    let is_staged = |name: &std::ffi::OsStr| name.as_encoded_bytes().starts_with(STAGED.as_bytes());
    for entry in entries.filter(|entry| is_staged(&entry.file_name())) {
        let mut options = OpenOptions::new();
        let flags = OFlags::NOFOLLOW | OFlags::NONBLOCK;
        options.read(true).custom_flags(flags.bits() as i32);
        let Ok(file) = options.open(entry.path()) else {
            continue;
        };
        let is_file = file.metadata().is_ok_and(|found| found.is_file());
        if is_file && file.try_lock().is_ok() {
            let _ = fs::remove_file(entry.path());
        }
    }
}

/// A file each of whose writes is a step.
struct Steps<'a> {
    disk: &'a Disk,
    path: &'a Path,
    file: &'a mut File,
}

impl Write for Steps<'_> {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        let write = || self.file.write(bytes);
        let written = self.disk.step(Step::Write, self.path, write);
        written.map_err(|error| error.source)
    }

    fn flush(&mut self) -> io::Result<()> {
        self.file.flush()
    }
}
