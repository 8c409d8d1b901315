//! Where a checkpoint goes: the interface between a run and the disk, memory, or anything else that holds files.
//!
//! A run passes bytes and names; a destination decides where they lie and when they become visible. It knows no tensor.

mod disk;
mod folder;
mod memory;
mod noted;
mod single;
mod stage;
mod writer;

use std::collections::{BTreeMap, BTreeSet};
use std::ffi::OsString;
use std::fs::File;
use std::io;
use std::path::{Path, PathBuf};

pub use disk::{Disk, DiskError, Step, Watch};
pub use folder::Folder;
pub use memory::Memory;
pub use noted::remove_staged;
pub use single::{folder_of, write_whole, write_with};
pub use stage::check_space;

use super::error::RunError;
use super::part_number::Part;
use checkpoint::ShardLayout;
use engine::Tile;

/// What a run is about to write.
#[derive(Debug)]
pub struct Layout<'a> {
    /// The weight files: names, lengths, headers.
    pub shards: &'a [ShardLayout],
    /// Bytes of all other files, including those that the run adds.
    pub side_bytes: u64,
    /// Files that the run reads or takes options from; they must not be replaced.
    pub reads: Vec<PathBuf>,
}

/// A place for a checkpoint, before anything is written to it.
pub trait Destination {
    /// What messages and the model card call it.
    fn path(&self) -> &Path;

    /// Reserves the path and the room for everything, and writes the headers of the weight files.
    ///
    /// # Errors
    /// The path is taken, cannot be replaced, or has too little room. Nothing is left there.
    fn begin(&self, layout: &Layout<'_>) -> Result<Box<dyn Staged>, RunError>;
}

/// A destination that may be written in parts, by several runs. Until they are joined, the parts lie beside it.
pub trait Parts: Destination {
    /// What messages call the place of all parts.
    fn parts_folder(&self) -> PathBuf {
        parts_folder(self.path())
    }

    /// What messages call the place of a part.
    fn part_folder(&self, part: Part) -> PathBuf {
        self.parts_folder().join(part.folder_name())
    }

    /// Checks before the work that the output would lose nothing: no file that is read, and, if it is not to be replaced,
    /// nothing that is there.
    ///
    /// # Errors
    /// It would.
    fn check(&self, reads: &[PathBuf], replace: bool) -> Result<(), RunError>;

    /// The parts that there are.
    ///
    /// # Errors
    /// It cannot be found out.
    fn parts(&self) -> Result<BTreeSet<Part>, RunError>;

    /// What there is of a part.
    ///
    /// # Errors
    /// It cannot be found out.
    fn look_at(&self, part: Part) -> Result<Held, RunError>;

    /// Begins a part; with `replace`, in place of what is there. It is there with its commit.
    ///
    /// # Errors
    /// As of [`Destination::begin`].
    fn begin_part(
        &self,
        part: Part,
        replace: bool,
        layout: &Layout<'_>,
    ) -> Result<Box<dyn Staged>, RunError>;

    /// Removes parts that are joined, and what else is left of runs of parts.
    ///
    /// # Errors
    /// Something could not be removed.
    fn remove_parts(&self, parts: &[Part]) -> Result<(), RunError>;
}

/// What there is of a part.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Held {
    /// Nothing.
    Nothing,
    /// Something without a manifest.
    Other,
    /// A part with its manifest.
    Part {
        /// The manifest's bytes.
        manifest: Vec<u8>,
        /// The files that are there, and their lengths.
        files: BTreeMap<String, u64>,
    },
}

/// The file name of a part's manifest.
pub const MANIFEST_FILE: &str = "weldment.part.json";

/// The largest manifest that is read: a lock, and a line for each tensor.
pub const MAX_MANIFEST_BYTES: u64 = 256 << 20;

/// The ending of the folder of an output's parts.
const ENDING: &str = ".weld-parts";

/// The folder of an output's parts, beside it.
pub fn parts_folder(out: &Path) -> PathBuf {
    // The working folder may be called `.`.
    let absolute = match out.file_name() {
        Some(_) => None,
        None => std::path::absolute(out).ok(),
    };
    let out = absolute.as_deref().unwrap_or(out);
    let mut name = OsString::from(out.file_name().unwrap_or_default());
    name.push(ENDING);
    out.with_file_name(name)
}

/// A checkpoint being written. It becomes visible with [`commit`](Self::commit); if dropped before, it leaves nothing.
pub trait Staged: Sync {
    /// Writes bytes of a weight file at offset `start`: each byte once, in any order, from any thread.
    ///
    /// # Errors
    /// This write or an earlier one failed; [`finish`](Self::finish) names the file.
    fn write(&self, shard: usize, start: u64, bytes: Tile) -> io::Result<()>;

    /// Waits until all weights are written.
    ///
    /// # Errors
    /// The first write that failed, with its file.
    fn finish(&mut self) -> Result<(), RunError>;

    /// Writes another file from chunks of bytes; `name` is relative and may contain folders.
    ///
    /// # Errors
    /// A chunk could not be read or written.
    fn side_file(&mut self, name: &str, chunks: &mut Chunks<'_>) -> Result<(), RunError>;

    /// Takes a finished file of a part of this output, of `bytes` bytes. The part stays as it is.
    ///
    /// # Errors
    /// It is not there, has another length, or cannot be taken; or the destination has no parts.
    fn adopt(&mut self, part: Part, name: &str, bytes: u64) -> Result<(), RunError> {
        let message =
            format!("{name} of part {part} ({bytes} bytes) has no place: this output has no parts");
        Err(RunError::NotJoined(message.into()))
    }

    /// The first bytes of a written file, at most `limit`, and its length.
    ///
    /// # Errors
    /// It does not exist, or cannot be read.
    fn read(&self, name: &str, limit: u64) -> Result<(Vec<u8>, u64), RunError>;

    /// The folder in which all files lie until they are committed, if there is one.
    fn folder(&self) -> Option<&Path> {
        None
    }

    /// An unnamed file, for data that the run keeps until it is done.
    ///
    /// # Errors
    /// It could not be created.
    fn scratch(&self) -> Result<File, RunError>;

    /// Puts the whole checkpoint in its place; returns notes for the user.
    ///
    /// # Errors
    /// It could not be put there. The destination is unchanged.
    fn commit(self: Box<Self>) -> Result<Vec<String>, RunError>;
}

/// The bytes of a file, chunk by chunk.
pub type Chunks<'a> = dyn Iterator<Item = Result<Vec<u8>, RunError>> + 'a;
