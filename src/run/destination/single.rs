//! Writes a single file whole or not at all: signatures, attestations, reports, GGUF files.

use std::fs::{self, File, OpenOptions, Permissions};
use std::io::{self, Write};
use std::os::unix::fs::PermissionsExt;
use std::path::Path;

use super::disk::{Disk, DiskError, Step};

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
    fill: impl FnOnce(&mut dyn Write) -> Result<(), E>,
) -> Result<(), E> {
    // A link stays a link.
    let path = &fs::canonicalize(path).unwrap_or_else(|_| path.to_owned());
    if path.exists() && !path.is_file() {
        let open = || OpenOptions::new().write(true).open(path);
        let mut file = disk.step(Step::Write, path, open)?;
        return fill(&mut file);
    }
    let folder = match path.parent() {
        Some(folder) if !folder.as_os_str().is_empty() => folder,
        _ => Path::new("."),
    };
    let mut builder = tempfile::Builder::new();
    builder.prefix(".weld-staged-");
    // The mode of any new file; the umask applies.
    builder.permissions(Permissions::from_mode(0o666));
    let mut staged = disk.step(Step::Create, path, || builder.tempfile_in(folder))?;
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
