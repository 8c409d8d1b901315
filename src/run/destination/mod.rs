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

use std::fs::File;
use std::io;
use std::path::{Path, PathBuf};

pub use disk::{Disk, DiskError, Step, Watch};
pub use folder::Folder;
pub use memory::Memory;
pub use noted::remove_staged;
pub use single::{folder_of, write_whole, write_with};
pub use stage::{check_place, check_space};

use super::error::RunError;
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

    /// Takes a finished file, which is synced and stays where it is: by a link where that is possible, else by a copy.
    ///
    /// # Errors
    /// It could not be linked, and neither read nor written.
    fn adopt(&mut self, name: &str, file: &Path) -> Result<(), RunError>;

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
