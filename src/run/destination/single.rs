//! Writes a single file whole or not at all: signatures, attestations, reports.

use std::fs::{self, OpenOptions, Permissions};
use std::io::Write;
use std::os::unix::fs::PermissionsExt;
use std::path::Path;

use super::disk::{Disk, DiskError, Step};

/// Writes a file whole or not at all: beside its path, then renamed. A pipe or other special file is written directly.
///
/// # Errors
/// The system refuses a step; the old content of `path` is still there, and nothing beside it.
pub fn write_whole(disk: &Disk, path: &Path, bytes: &[u8]) -> Result<(), DiskError> {
    // A link stays a link.
    let path = &fs::canonicalize(path).unwrap_or_else(|_| path.to_owned());
    if path.exists() && !path.is_file() {
        return disk.step(Step::Write, path, || {
            OpenOptions::new().write(true).open(path)?.write_all(bytes)
        });
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
    disk.step(Step::Write, path, || staged.write_all(bytes))?;
    disk.step(Step::Sync, path, || staged.as_file().sync_all())?;
    disk.step(Step::Rename, path, || {
        staged.persist(path).map_err(|error| error.error)
    })?;
    Ok(())
}
