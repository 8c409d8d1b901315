//! The files of a staged checkpoint: weights written at their places, small files written whole.

use std::fs::{self, File};
use std::io::{self, Read, Write};
use std::path::Path;

use super::error::{RunError, io_error};
use super::writer::{NewFile, Writer};
use checkpoint::ShardLayout;
use engine::{Sink, Tile};
use numeric::TreeDigest;

/// Bytes of a small file that are copied at a time.
const COPY_BYTES: usize = 128 << 10;

/// The weight files, at full length, headers written.
pub(super) struct OutputFiles {
    writer: Writer,
    /// For each tensor, its file and its offset there.
    places: Vec<(usize, u64)>,
    /// For each tensor, the digest of what is written.
    digests: Vec<TreeDigest>,
}

impl OutputFiles {
    /// Creates the files in a folder, with room for all that will be in them: tensors of these lengths.
    pub(super) fn create(
        folder: &Path,
        shards: &[ShardLayout],
        lens: &[u64],
    ) -> Result<Self, RunError> {
        let mut files = Vec::new();
        let mut places = vec![(0, 0); lens.len()];
        for (number, shard) in shards.iter().enumerate() {
            let path = folder.join(&shard.file_name);
            let file = NewFile::create(path.clone(), shard.file_size)
                .map_err(io_error("make room for", &path))?;
            file.write_header(&shard.header)
                .map_err(io_error("write", &path))?;
            for &(tensor, offset) in &shard.tensors {
                places[tensor] = (number, offset);
            }
            files.push(file);
        }
        Ok(Self {
            writer: Writer::new(files).map_err(io_error("start to write", folder))?,
            places,
            digests: lens.iter().map(|&len| TreeDigest::new(len)).collect(),
        })
    }

    /// Waits until all of it is on the disk; gives each tensor's digest.
    pub(super) fn finish(self) -> Result<Vec<blake3::Hash>, RunError> {
        self.writer
            .finish()
            .map_err(|(path, error)| io_error("write", &path)(error))?;
        let digests: Option<Vec<_>> = self.digests.into_iter().map(TreeDigest::finish).collect();
        // That all bytes were written was checked before.
        digests.ok_or(RunError::Incomplete {
            expected: 0,
            found: 0,
        })
    }
}

impl Sink for OutputFiles {
    fn start(&self, tensor: usize) -> u64 {
        self.places.get(tensor).map_or(0, |&(_, start)| start)
    }

    fn look(&self, tensor: usize, offset: u64, bytes: &[u8]) {
        if let Some(digest) = self.digests.get(tensor) {
            digest.update(offset, bytes);
        }
    }

    fn write(&self, tensor: usize, offset: u64, bytes: Tile) -> io::Result<()> {
        let Some(&(file, start)) = self.places.get(tensor) else {
            return Err(io::Error::other("no place is planned for these bytes"));
        };
        self.writer.write(file, start + offset, bytes)
    }
}

/// Writes and syncs a small file; gives its digest.
pub(super) fn write_file(
    folder: &Path,
    name: &str,
    bytes: &[u8],
) -> Result<blake3::Hash, RunError> {
    let path = folder.join(name);
    let write = || -> io::Result<()> {
        let mut file = File::create_new(&path)?;
        file.write_all(bytes)?;
        file.sync_all()
    };
    write().map_err(io_error("write", &path))?;
    Ok(blake3::hash(bytes))
}

/// Copies and syncs a file of the donor, and gives its digest; `name` is relative and may have a folder in it.
pub(super) fn copy_file(from: &Path, folder: &Path, name: &str) -> Result<blake3::Hash, RunError> {
    let path = folder.join(name);
    if let Some(parent) = path.parent() {
        fs::create_dir_all(parent).map_err(io_error("create", parent))?;
    }
    let copy = || -> io::Result<blake3::Hash> {
        let mut source = File::open(from)?;
        let mut file = File::create_new(&path)?;
        let mut digest = blake3::Hasher::new();
        let mut buffer = vec![0; COPY_BYTES];
        loop {
            let read = source.read(&mut buffer)?;
            if read == 0 {
                break;
            }
            digest.update(&buffer[..read]);
            file.write_all(&buffer[..read])?;
        }
        file.sync_all()?;
        Ok(digest.finalize())
    };
    copy().map_err(io_error("copy to", &path))
}
