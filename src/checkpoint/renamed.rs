//! A source whose tensors have other names.

use std::ops::Range;
use std::sync::Arc;

use super::behind::Reclaim;
use super::remote::RemotePlace;
use super::shard::Shard;
use super::source::{EncodedTensor, TensorEntry, TensorSource};
use numeric::Elements;

/// The tensors of a source under other names, in the same order.
#[derive(Debug)]
pub(super) struct Renamed {
    base: Arc<dyn TensorSource>,
    entries: Vec<TensorEntry>,
}

impl Renamed {
    /// Gives each tensor of the base the name at its place; `names` are unique, and as many as there are tensors.
    pub(super) fn new(base: Arc<dyn TensorSource>, names: Vec<String>) -> Renamed {
        let entries = base.entries().iter().zip(names);
        let entries = entries.map(|(entry, name)| TensorEntry {
            name,
            ..entry.clone()
        });
        Renamed {
            entries: entries.collect(),
            base,
        }
    }
}

impl TensorSource for Renamed {
    fn base(&self) -> Option<&dyn TensorSource> {
        Some(self.base.as_ref())
    }

    fn entries(&self) -> &[TensorEntry] {
        &self.entries
    }

    fn elements(&self, index: usize) -> Option<Box<dyn Elements + '_>> {
        self.base.elements(index)
    }

    fn bytes(&self, index: usize) -> Option<&[u8]> {
        self.base.bytes(index)
    }

    fn stored(&self, index: usize) -> Option<&[u8]> {
        self.base.stored(index)
    }

    fn encoded(&self, index: usize) -> Option<EncodedTensor<'_>> {
        self.base.encoded(index)
    }

    fn bytes_read(&self, index: usize) -> u64 {
        self.base.bytes_read(index)
    }

    fn place(&self, index: usize) -> Option<(&Shard, u64)> {
        self.base.place(index)
    }

    fn remote(&self, index: usize) -> Vec<RemotePlace> {
        self.base.remote(index)
    }

    fn release(&self, index: usize, bytes: Range<u64>, reclaim: Reclaim) {
        self.base.release(index, bytes, reclaim);
    }
}
