//! The one interface through which all tensors come: from files, from memory, or computed from another source.
//!
//! A source lists its tensors and returns their values. A source on top of another (a LoRA adapter, block scales) owns
//! it and passes on what it does not change, so that sources compose without knowing each other.

use std::fmt::Debug;
use std::ops::Range;
use std::sync::Arc;

use safetensors::Dtype;

use super::behind::Reclaim;
use super::error::CheckpointError;
use super::remote::RemotePlace;
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
    /// The type that it is stored in: another than that of its values where these are made of codes and scales.
    pub stored: Dtype,
    /// Its shape; empty for a scalar.
    pub shape: Vec<usize>,
    /// The length of its values in bytes, in that type and contiguous.
    pub len: u64,
}

impl TensorEntry {
    /// Number of elements; opening the source made sure that it does not overflow.
    pub fn elements(&self) -> u64 {
        self.shape.iter().map(|&dim| dim as u64).product()
    }
}

/// A tensor whose values are made of codes and scales: how it is stored.
#[derive(Debug, Clone)]
pub struct EncodedTensor<'a> {
    /// The name of the values in their file; a source above may have another.
    pub name: &'a str,
    /// How they are stored, in words: `FP8 (E4M3) with a scale for each 128 x 128 values`.
    pub scheme: &'a str,
    /// Whether its codes are FP8 (E4M3) and its scales floats.
    pub is_fp8: bool,
    /// Whether it is MXFP4 as gpt-oss has it, [as it is written](numeric::CodeFormat::Mxfp4).
    pub is_mxfp4: bool,
    /// The stored tensors, in the order of their file; none if a source above changes the values.
    pub parts: Vec<StoredPart<'a>>,
}

/// A stored tensor that others are made of.
#[derive(Debug, Clone, Copy)]
pub struct StoredPart<'a> {
    /// Its name.
    pub name: &'a str,
    /// Its dtype.
    pub dtype: Dtype,
    /// Its shape.
    pub shape: &'a [usize],
    /// Its bytes, if they lie one after the other.
    pub bytes: Option<&'a [u8]>,
}

/// A source of tensors.
///
/// Tensors are numbered as in [`entries`](Self::entries). Every method that takes such a number may panic if there is
/// no tensor with it.
pub trait TensorSource: Debug + Send + Sync {
    /// The source that it lies on, if any. Whatever is asked of all tensors together and not answered here is asked
    /// of the base.
    fn base(&self) -> Option<&dyn TensorSource> {
        None
    }

    /// Its tensors, in order; names are unique.
    fn entries(&self) -> &[TensorEntry];

    /// The values of a tensor; `None` for integers and bools, and for values that [`prepare`](Self::prepare) has not
    /// computed yet.
    fn elements(&self, index: usize) -> Option<Box<dyn Elements + '_>>;

    /// The values as bytes, if they are contiguous: little-endian, in C order, perhaps not aligned.
    fn bytes(&self, index: usize) -> Option<&[u8]>;

    /// The bytes of a tensor before an adapter changed it.
    fn stored(&self, index: usize) -> Option<&[u8]> {
        self.bytes(index)
    }

    /// How a tensor is stored, if its values are made of codes and scales.
    fn encoded(&self, index: usize) -> Option<EncodedTensor<'_>> {
        let _ = index;
        None
    }

    /// The stored tensors, if this source or one below makes its values of codes and scales.
    fn as_stored(&self) -> Option<Arc<dyn TensorSource>> {
        self.base()?.as_stored()
    }

    /// How many stored tensors no value depends on: scales of activations.
    fn left_out(&self) -> usize {
        self.base().map_or(0, |base| base.left_out())
    }

    /// The number of bytes read in one pass over a tensor.
    fn bytes_read(&self, index: usize) -> u64 {
        self.entries()[index].len
    }

    /// The files that it reads, in a fixed order. A lock records them.
    fn shards(&self) -> Vec<&Shard> {
        self.base().map_or(Vec::new(), |base| base.shards())
    }

    /// What its files say of themselves under a key.
    fn metadata(&self, key: &str) -> Option<String> {
        let shards = self.shards();
        shards
            .iter()
            .find_map(|shard| shard.metadata.get(key).cloned())
    }

    /// The file that holds a tensor, and the offset of its first element there.
    fn place(&self, index: usize) -> Option<(&Shard, u64)> {
        let _ = index;
        None
    }

    /// The files that must be fetched before the tensor is read: none if it is here.
    fn remote(&self, index: usize) -> Vec<RemotePlace> {
        let _ = index;
        Vec::new()
    }

    /// Announces that all of it will be read.
    fn read_ahead(&self) {
        if let Some(base) = self.base() {
            base.read_ahead();
        }
    }

    /// Announces that a range of a tensor's bytes, in the numbering of [`stored`](Self::stored), is not needed again.
    /// The bytes can still be read.
    fn release(&self, index: usize, bytes: Range<u64>, reclaim: Reclaim) {
        let _ = (index, bytes, reclaim);
    }

    /// Whether [`prepare`](Self::prepare) reads results of merges, which must be decided before.
    fn reads_results(&self) -> bool {
        self.base().is_some_and(|base| base.reads_results())
    }

    /// Computes what must exist before values are read.
    ///
    /// # Errors
    /// The values could not be computed; the reason is in words for the user.
    fn prepare(
        &self,
        threads: usize,
        cancelled: &(dyn Fn() -> bool + Sync),
    ) -> Result<(), Refusal> {
        self.base()
            .map_or(Ok(()), |base| base.prepare(threads, cancelled))
    }

    /// Notes for the user on the prepared values.
    fn said(&self) -> Vec<String> {
        self.base().map_or(Vec::new(), |base| base.said())
    }

    /// The most bytes of memory that it holds by the end of a run, without mapped files.
    fn held(&self) -> u64 {
        self.base().map_or(0, |base| base.held())
    }

    /// Checks that every file it reads is unchanged since it was opened. Call it after the last read, because others
    /// may write to a mapped file at any time.
    ///
    /// # Errors
    /// If a file has changed in length or modification time, or is gone.
    fn check_unchanged(&self) -> Result<(), CheckpointError> {
        match self.base() {
            Some(base) => base.check_unchanged(),
            None => (self.shards().into_iter()).try_for_each(Shard::check_unchanged),
        }
    }
}
