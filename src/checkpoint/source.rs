//! The one door through which tensors come: from files, from memory, or made from another source's.
//!
//! A source says what tensors it has and gives their values. One that lies on another (a LoRA adapter, block scales)
//! owns it and passes on what it does not change, so that sources compose without knowing each other.

use std::fmt::Debug;
use std::ops::Range;

use safetensors::Dtype;

use super::behind::Reclaim;
use super::error::CheckpointError;
use super::shard::Shard;
use errors::Refusal;
use numeric::Elements;

/// A tensor of a source.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct TensorEntry {
    /// Its name.
    pub name: String,
    /// The type of its values, however they are stored.
    pub dtype: Dtype,
    /// Its shape; empty for a scalar.
    pub shape: Vec<usize>,
    /// The length in bytes of its values in that type, one after the other.
    pub len: u64,
}

impl TensorEntry {
    /// How many elements it has; that this can be counted was checked when the source was opened.
    pub fn elements(&self) -> u64 {
        self.shape.iter().map(|&dim| dim as u64).product()
    }
}

/// Where tensors come from.
///
/// Tensors are numbered as in [`entries`](Self::entries). Every method that takes such a number may panic if there is
/// no tensor of that number.
pub trait TensorSource: Debug + Send + Sync {
    /// Its tensors, in order; no two have the same name.
    fn entries(&self) -> &[TensorEntry];

    /// The values of a tensor; `None` for integers and bools, and for values that [`prepare`](Self::prepare) makes and
    /// has not made yet.
    fn elements(&self, index: usize) -> Option<Box<dyn Elements + '_>>;

    /// The values as bytes, where they lie one after the other: little-endian, in C order, perhaps not aligned.
    fn bytes(&self, index: usize) -> Option<&[u8]>;

    /// The bytes of a tensor before an adapter changed it.
    fn stored(&self, index: usize) -> Option<&[u8]> {
        self.bytes(index)
    }

    /// How many bytes it takes to read a tensor once.
    fn bytes_read(&self, index: usize) -> u64 {
        self.entries()[index].len
    }

    /// The files that it reads, in a fixed order. They are what a lock says of it.
    fn shards(&self) -> Vec<&Shard> {
        Vec::new()
    }

    /// The file that a tensor is in, and where its first element begins there.
    fn place(&self, index: usize) -> Option<(&Shard, u64)> {
        let _ = index;
        None
    }

    /// Tells that all of it is going to be read.
    fn read_ahead(&self) {}

    /// Tells that a range of a tensor's bytes, as [`stored`](Self::stored) gives them, is not needed again. They can
    /// still be read.
    fn release(&self, index: usize, bytes: Range<u64>, reclaim: Reclaim) {
        let _ = (index, bytes, reclaim);
    }

    /// Whether [`prepare`](Self::prepare) reads results of merges, which must be decided by then.
    fn reads_results(&self) -> bool {
        false
    }

    /// Makes what must be there before values are read.
    ///
    /// # Errors
    /// What makes the values failed, in words for the user.
    fn prepare(
        &self,
        threads: usize,
        cancelled: &(dyn Fn() -> bool + Sync),
    ) -> Result<(), Refusal> {
        let _ = (threads, cancelled);
        Ok(())
    }

    /// What the user should know of the values that were prepared.
    fn said(&self) -> Vec<String> {
        Vec::new()
    }

    /// Bytes of memory that it holds at the end of a run at the most, mapped files not counted.
    fn held(&self) -> u64 {
        0
    }

    /// That every file it reads is as it was when it was opened. To be asked after the last read: a mapped file may be
    /// written to by others at any time.
    ///
    /// # Errors
    /// If a file is of another length or time, or gone.
    fn check_unchanged(&self) -> Result<(), CheckpointError> {
        let mut shards = self.shards().into_iter();
        shards.try_for_each(Shard::check_unchanged)
    }
}
