//! Where a checkpoint goes: the door between a run and the disk, memory, or whatever else can hold files.
//!
//! A run gives bytes and names; a destination decides where they lie and when they can be seen. It knows no tensor.

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
pub use single::write_whole;

use super::error::RunError;
use checkpoint::ShardLayout;
use engine::Tile;

/// What is going to be written.
#[derive(Debug)]
pub struct Layout<'a> {
    /// The weight files: names, lengths, headers.
    pub shards: &'a [ShardLayout],
    /// Bytes of all other files, those of the run itself included.
    pub side_bytes: u64,
    /// Files that the run reads or was told by, which must not be replaced.
    pub reads: Vec<PathBuf>,
}

/// A place for a checkpoint, where nothing has been written yet.
pub trait Destination {
    /// What messages and the model card call it.
    fn path(&self) -> &Path;

    /// Reserves the place and the room for everything, and writes the headers of the weight files.
    ///
    /// # Errors
    /// The place is taken, cannot be replaced, or has too little room. Nothing is left there.
    fn begin(&self, layout: &Layout<'_>) -> Result<Box<dyn Staged>, RunError>;
}

/// A checkpoint that is being written. Nobody sees it before [`commit`](Self::commit); dropped, it leaves nothing.
pub trait Staged: Sync {
    /// Takes bytes of a weight file, the first of which lies at `start`: each byte once, in any order, by any thread.
    ///
    /// # Errors
    /// This write or an earlier one failed; [`finish`](Self::finish) names the file.
    fn write(&self, shard: usize, start: u64, bytes: Tile) -> io::Result<()>;

    /// Waits until all weights are where they belong.
    ///
    /// # Errors
    /// The first write that failed, with its file.
    fn finish(&mut self) -> Result<(), RunError>;

    /// Writes another file, whose bytes come in chunks; `name` is relative and may have folders in it.
    ///
    /// # Errors
    /// A chunk could not be had, or not be written.
    fn side_file(&mut self, name: &str, chunks: &mut Chunks<'_>) -> Result<(), RunError>;

    /// The first bytes of a file as it lies there, at most `limit`, and the length of the file.
    ///
    /// # Errors
    /// It is not there, or cannot be read.
    fn read(&self, name: &str, limit: u64) -> Result<(Vec<u8>, u64), RunError>;

    /// A file without a name, for what the run itself keeps until it is done.
    ///
    /// # Errors
    /// It could not be made.
    fn scratch(&self) -> Result<File, RunError>;

    /// Puts the checkpoint in its place, whole; gives what the user should know.
    ///
    /// # Errors
    /// It could not be put there. The place is as it was.
    fn commit(self: Box<Self>) -> Result<Vec<String>, RunError>;
}

/// The bytes of a file, chunk by chunk.
pub type Chunks<'a> = dyn Iterator<Item = Result<Vec<u8>, RunError>> + 'a;
