//! One mapped file of weights, and the check that it has not changed since it was mapped.

use std::collections::BTreeMap;
use std::fs::{self, File};
use std::io;
use std::ops::Range;
use std::path::{Path, PathBuf};

use memmap2::Mmap;

use super::behind::{Behind, Reclaim, reclaim};
use super::error::CheckpointError;
use super::file_state::FileState;
use super::gguf::container::{self, Container};
use super::header::{self, HeaderTensor};
use super::hub::listed_sha256;
use super::pickle::{self, Pickled};

/// The hint for a folder that has the name of a weight file.
pub(super) const FOLDER_NAMED_AS_A_FILE: &str = "it is a folder, as DeepSpeed's `zero_to_fp32.py` makes one by the \
                                                 name that it is given: move the files in it up, beside config.json";

/// A file of a checkpoint.
#[derive(Debug)]
pub struct Shard {
    /// Where it is.
    pub path: PathBuf,
    /// Its length in bytes.
    pub file_size: u64,
    /// The length of its header's JSON, padding included; the data starts 8 bytes after that. 0 for a pickle.
    pub header_len: u64,
    /// Its `__metadata__`; pickles have none.
    pub metadata: BTreeMap<String, String>,
    /// The folder that it is in, from that of its model: `unet/`, or nothing.
    folder: String,
    state: FileState,
    map: Mmap,
    behind: Behind,
}

impl Shard {
    /// Maps a safetensors file, and returns the tensors of its header by offset.
    pub(super) fn open(path: &Path) -> Result<(Shard, Vec<HeaderTensor>), CheckpointError> {
        let mut shard = Shard::map(path)?;
        let header = header::read(path, &shard.map)?;
        shard.header_len = header.len;
        shard.metadata = header.metadata;
        Ok((shard, header.tensors))
    }

    /// Maps a file of torch.save, and returns the tensors of its pickle by offset: those of one entry, if it is given.
    pub(super) fn open_pickle(
        path: &Path,
        entry: Option<&str>,
    ) -> Result<(Shard, Pickled), CheckpointError> {
        let shard = Shard::map(path)?;
        let pickled = pickle::read(path, &shard.map, entry)?;
        Ok((shard, pickled))
    }

    /// Maps a file of a distributed checkpoint, whatever is in it.
    pub(super) fn open_plain(path: &Path) -> Result<Shard, CheckpointError> {
        Shard::map(path)
    }

    /// Maps a GGUF file, and returns its header.
    pub(super) fn open_gguf(path: &Path) -> Result<(Shard, Container), CheckpointError> {
        let shard = Shard::map(path)?;
        let container = container::read(&shard.map).map_err(|source| CheckpointError::Gguf {
            path: path.into(),
            source,
        })?;
        Ok((shard, container))
    }

    /// The bytes of any file.
    pub(super) fn map_bytes(path: &Path) -> Result<Mmap, CheckpointError> {
        Shard::map(path).map(|shard| shard.map)
    }

    fn map(path: &Path) -> Result<Shard, CheckpointError> {
        let io = |source| CheckpointError::io("open", path, source);
        // Checked before opening: opening a FIFO for reading would block forever.
        let found = fs::metadata(path).map_err(io)?;
        if !found.is_file() {
            return Err(CheckpointError::NotAFile {
                path: path.into(),
                hint: match found.is_dir() {
                    true => FOLDER_NAMED_AS_A_FILE,
                    false => "name a folder with weight files, or one such file",
                },
            });
        }
        let file = File::open(path).map_err(io)?;
        let metadata = file.metadata().map_err(io)?;
        if metadata.len() == 0 {
            return Err(CheckpointError::Truncated {
                path: path.into(),
                expected: header::LENGTH_BYTES,
                found: 0,
            });
        }
        let map = map(&file).map_err(|source| CheckpointError::io("map", path, source))?;
        Ok(Shard {
            path: path.into(),
            file_size: map.len() as u64,
            header_len: 0,
            metadata: BTreeMap::new(),
            folder: String::new(),
            state: FileState::new(&metadata),
            behind: Behind::new(map.len() as u64),
            map,
        })
    }

    /// The bytes of one of its tensors.
    pub(super) fn slice(&self, offset: u64, len: u64) -> &[u8] {
        let start = offset as usize;
        &self.map[start..start + len as usize]
    }

    /// Tells the system that the whole file will be read, in large pages if it has them for files. Does nothing if the
    /// system has no such advice, or refuses it.
    pub(super) fn read_ahead(&self) {
        #[cfg(target_os = "linux")]
        let _ = self.map.advise(memmap2::Advice::HugePage);
    }

    /// Notes that bytes are not needed again, and reclaims the pieces that are now complete.
    pub(super) fn release(&self, bytes: Range<u64>, what: Reclaim) {
        for piece in self.behind.note(bytes) {
            reclaim(&self.map[piece.start as usize..piece.end as usize], what);
        }
    }

    /// The bytes of the file from an offset on.
    pub(super) fn bytes_from(&self, offset: u64) -> &[u8] {
        &self.map[offset as usize..]
    }

    /// Its path from the folder of its model: a plain name, but in the folder of a part of the model.
    pub fn file_name(&self) -> String {
        let name = self.path.file_name().unwrap_or_default();
        format!("{}{}", self.folder, name.to_string_lossy())
    }

    /// Says that it is in this folder of its model.
    pub(super) fn put_in(&mut self, folder: &str) {
        self.folder = folder.to_owned();
    }

    /// The BLAKE3 digest of its header, length and padding included; pickles have none.
    pub fn header_digest(&self) -> Option<blake3::Hash> {
        let header = self
            .map
            .get(..header::LENGTH_BYTES as usize + self.header_len as usize)?;
        (self.header_len > 0).then(|| blake3::hash(header))
    }

    /// The SHA-256 of the file, from its name in the Hub's cache, which names large files by it; where the cache has
    /// copies in place of links, from its list of the commit's files.
    ///
    /// The Hub stated it at the download; it was not computed from the present content of the file.
    pub fn hub_sha256(&self) -> Option<String> {
        let Ok(blob) = fs::read_link(&self.path) else {
            return listed_sha256(&self.path, self.file_size);
        };
        let parent = blob.parent()?.file_name()?;
        let name = blob.file_name()?.to_str()?;
        let hex = |b: u8| b.is_ascii_digit() || matches!(b, b'a'..=b'f');
        (parent == "blobs" && name.len() == 64 && name.bytes().all(hex)).then(|| name.to_owned())
    }

    /// Compares the file's state with that at opening.
    pub(super) fn check_unchanged(&self) -> Result<(), CheckpointError> {
        let io = |source| CheckpointError::io("look at", &self.path, source);
        let now = FileState::at(&self.path).map_err(io)?;
        if now == self.state {
            return Ok(());
        }
        Err(CheckpointError::Changed {
            path: self.path.clone(),
            expected: self.state.to_string(),
            found: now.to_string(),
        })
    }
}

/// Maps a file for reading.
pub(super) fn map(file: &File) -> io::Result<Mmap> {
    // SAFETY: the map is only ever read, as bytes, for which every value is valid. What can't be ruled out
    // is that somebody else writes to the file or truncates it meanwhile: lengths and times are compared
    // before a run is believed (`check_unchanged`), and the command line turns the SIGBUS of a truncated
    // map into an error. Files that are fetched while they are used are written and cut short by us, when
    // nothing reads them (`remote.rs`, `run/feed.rs`).
    unsafe { Mmap::map(file) }
}
