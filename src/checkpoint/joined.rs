//! A source made of several: the tensors of each part of a model under names that say which part they are of.

use std::ops::Range;

use super::behind::Reclaim;
use super::error::CheckpointError;
use super::part::Part;
use super::remote::RemotePlace;
use super::shard::Shard;
use super::source::{EncodedTensor, TensorEntry, TensorSource};
use errors::Refusal;
use numeric::Elements;

/// The tensors of all parts, one part after the other.
#[derive(Debug)]
pub(super) struct Joined {
    parts: Vec<Part>,
    entries: Vec<TensorEntry>,
}

impl Joined {
    /// Joins parts, each of which begins where the one before it ends.
    pub(super) fn new(parts: Vec<Part>) -> Joined {
        let named = |part: &Part| -> Vec<TensorEntry> {
            let own = part.model.tensors().iter();
            let named = own.map(|entry| TensorEntry {
                name: part.qualified(&entry.name),
                ..entry.clone()
            });
            named.collect()
        };
        Joined {
            entries: parts.iter().flat_map(named).collect(),
            parts,
        }
    }

    fn sources(&self) -> impl Iterator<Item = &dyn TensorSource> {
        self.parts.iter().map(|part| part.model.source().as_ref())
    }

    /// The source of a tensor, and the tensor's number there.
    fn at(&self, index: usize) -> (&dyn TensorSource, usize) {
        let part = self.parts.partition_point(|part| part.first <= index) - 1;
        let part = &self.parts[part];
        (part.model.source().as_ref(), index - part.first)
    }
}

impl TensorSource for Joined {
    fn entries(&self) -> &[TensorEntry] {
        &self.entries
    }

    fn elements(&self, index: usize) -> Option<Box<dyn Elements + '_>> {
        let (source, index) = self.at(index);
        source.elements(index)
    }

    fn bytes(&self, index: usize) -> Option<&[u8]> {
        let (source, index) = self.at(index);
        source.bytes(index)
    }

    fn stored(&self, index: usize) -> Option<&[u8]> {
        let (source, index) = self.at(index);
        source.stored(index)
    }

    fn encoded(&self, index: usize) -> Option<EncodedTensor<'_>> {
        let (source, index) = self.at(index);
        source.encoded(index)
    }

    fn left_out(&self) -> usize {
        self.sources().map(TensorSource::left_out).sum()
    }

    fn bytes_read(&self, index: usize) -> u64 {
        let (source, index) = self.at(index);
        source.bytes_read(index)
    }

    fn shards(&self) -> Vec<&Shard> {
        self.sources().flat_map(|source| source.shards()).collect()
    }

    fn place(&self, index: usize) -> Option<(&Shard, u64)> {
        let (source, index) = self.at(index);
        source.place(index)
    }

    fn remote(&self, index: usize) -> Vec<RemotePlace> {
        let (source, index) = self.at(index);
        source.remote(index)
    }

    fn read_ahead(&self) {
        self.sources().for_each(TensorSource::read_ahead);
    }

    fn release(&self, index: usize, bytes: Range<u64>, reclaim: Reclaim) {
        let (source, index) = self.at(index);
        source.release(index, bytes, reclaim);
    }

    fn reads_results(&self) -> bool {
        self.sources().any(TensorSource::reads_results)
    }

    fn prepare(
        &self,
        threads: usize,
        cancelled: &(dyn Fn() -> bool + Sync),
    ) -> Result<(), Refusal> {
        self.sources()
            .try_for_each(|source| source.prepare(threads, cancelled))
    }

    fn said(&self) -> Vec<String> {
        self.sources().flat_map(TensorSource::said).collect()
    }

    fn held(&self) -> u64 {
        self.sources().map(TensorSource::held).sum()
    }

    fn check_unchanged(&self) -> Result<(), CheckpointError> {
        self.sources().try_for_each(TensorSource::check_unchanged)
    }
}
