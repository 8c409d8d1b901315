//! A model in which some tensors have other values, and another shape.

use std::collections::BTreeMap;
use std::ops::Range;
use std::sync::Arc;

use checkpoint::{InMemory, Reclaim, Shard, TensorEntry, TensorSource};
use numeric::Elements;

/// A source whose tensors are those of another, but for some.
#[derive(Debug)]
pub(super) struct Overlay {
    base: Arc<dyn TensorSource>,
    entries: Vec<TensorEntry>,
    /// The tensors that have others in their place, and these.
    replaced: BTreeMap<usize, usize>,
    values: InMemory,
}

impl Overlay {
    /// The tensors of `values` in the places of those of the same name.
    pub(super) fn new(base: Arc<dyn TensorSource>, values: InMemory) -> Self {
        let mut entries = base.entries().to_vec();
        let mut replaced = BTreeMap::new();
        for (place, entry) in entries.iter_mut().enumerate() {
            let same = |(_, new): &(usize, &TensorEntry)| new.name == entry.name;
            if let Some((number, new)) = values.entries().iter().enumerate().find(same) {
                *entry = new.clone();
                replaced.insert(place, number);
            }
        }
        Self {
            base,
            entries,
            replaced,
            values,
        }
    }
}

impl TensorSource for Overlay {
    fn base(&self) -> Option<&dyn TensorSource> {
        Some(self.base.as_ref())
    }

    fn entries(&self) -> &[TensorEntry] {
        &self.entries
    }

    fn elements(&self, index: usize) -> Option<Box<dyn Elements + '_>> {
        match self.replaced.get(&index) {
            Some(number) => self.values.elements(*number),
            None => self.base.elements(index),
        }
    }

    fn bytes(&self, index: usize) -> Option<&[u8]> {
        match self.replaced.get(&index) {
            Some(number) => self.values.bytes(*number),
            None => self.base.bytes(index),
        }
    }

    fn stored(&self, index: usize) -> Option<&[u8]> {
        match self.replaced.contains_key(&index) {
            true => self.bytes(index),
            false => self.base.stored(index),
        }
    }

    fn bytes_read(&self, index: usize) -> u64 {
        match self.replaced.contains_key(&index) {
            true => self.entries[index].len,
            false => self.base.bytes_read(index),
        }
    }

    fn place(&self, index: usize) -> Option<(&Shard, u64)> {
        match self.replaced.contains_key(&index) {
            true => None,
            false => self.base.place(index),
        }
    }

    fn release(&self, index: usize, bytes: Range<u64>, reclaim: Reclaim) {
        if !self.replaced.contains_key(&index) {
            self.base.release(index, bytes, reclaim);
        }
    }
}
