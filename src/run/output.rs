//! The files of a staged checkpoint: weights written at their places, small files written whole.

use std::fs::{self, File};
use std::io::{self, Write};
use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};

use rustix::fs::{FallocateFlags, fallocate};

use super::error::{RunError, io_error};
use crate::checkpoint::ShardLayout;
use crate::engine::Sink;

/// The weight files, at full length, headers written.
pub(super) struct OutputFiles {
    files: Vec<(PathBuf, File)>,
    /// For each tensor, its file and its offset there.
    places: Vec<(usize, u64)>,
}

impl OutputFiles {
    /// Creates the files in a folder, with room for all that will be in them.
    pub(super) fn create(folder: &Path, shards: &[ShardLayout]) -> Result<Self, RunError> {
        let mut files = Vec::new();
        let mut places = vec![(0, 0); shards.iter().map(|shard| shard.tensors.len()).sum()];
        for (number, shard) in shards.iter().enumerate() {
            let path = folder.join(&shard.file_name);
            let file = File::create_new(&path).map_err(io_error("create", &path))?;
            reserve(&file, shard.file_size).map_err(io_error("make room for", &path))?;
            file.write_all_at(&shard.header, 0)
                .map_err(io_error("write", &path))?;
            for &(tensor, offset) in &shard.tensors {
                places[tensor] = (number, offset);
            }
            files.push((path, file));
        }
        Ok(Self { files, places })
    }

    /// Waits until all of it is on the disk.
    pub(super) fn sync(&self) -> Result<(), RunError> {
        self.files
            .iter()
            .try_for_each(|(path, file)| file.sync_all().map_err(io_error("sync", path)))
    }
}

impl Sink for OutputFiles {
    fn write(&self, tensor: usize, offset: u64, bytes: &[u8]) -> io::Result<()> {
        let Some(&(file, start)) = self.places.get(tensor) else {
            return Err(io::Error::other("no place is planned for these bytes"));
        };
        self.files[file].1.write_all_at(bytes, start + offset)
    }
}

/// Sets the file's length, and its blocks aside where the file system can, so that a full disk shows at once.
fn reserve(file: &File, length: u64) -> io::Result<()> {
    match fallocate(file, FallocateFlags::empty(), 0, length) {
        Ok(()) => Ok(()),
        Err(rustix::io::Errno::NOSPC) => Err(rustix::io::Errno::NOSPC.into()),
        Err(_) => file.set_len(length),
    }
}

/// Writes and syncs a small file.
pub(super) fn write_file(folder: &Path, name: &str, bytes: &[u8]) -> Result<(), RunError> {
    let path = folder.join(name);
    let write = || -> io::Result<()> {
        let mut file = File::create_new(&path)?;
        file.write_all(bytes)?;
        file.sync_all()
    };
    write().map_err(io_error("write", &path))
}

/// Copies and syncs a file of the donor; `name` is relative and may have a folder in it.
pub(super) fn copy_file(from: &Path, folder: &Path, name: &str) -> Result<(), RunError> {
    let path = folder.join(name);
    if let Some(parent) = path.parent() {
        fs::create_dir_all(parent).map_err(io_error("create", parent))?;
    }
    let copy = || -> io::Result<()> {
        let mut source = File::open(from)?;
        let mut file = File::create_new(&path)?;
        io::copy(&mut source, &mut file)?;
        file.sync_all()
    };
    copy().map_err(io_error("copy to", &path))
}
