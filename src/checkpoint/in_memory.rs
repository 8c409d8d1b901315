//! Tensors in memory: those that a program holds itself, and those that a run keeps in a file of its own.

use std::collections::{BTreeMap, HashSet};
use std::fmt;
use std::fs::File;
use std::io;
use std::ops::Range;
use std::sync::Arc;

use memmap2::Mmap;
use safetensors::Dtype;

use super::header::tensor_bytes;
use super::shard::map;
use super::source::{TensorEntry, TensorSource};
use numeric::{Elements, FloatType, Stored};

/// Bytes with an owner: a vector, a map, or a part of either.
pub type Bytes = Box<dyn AsRef<[u8]> + Send + Sync>;

/// Tensors whose bytes are in memory.
#[derive(Default)]
pub struct InMemory {
    entries: Vec<TensorEntry>,
    bytes: Vec<Bytes>,
    metadata: BTreeMap<String, String>,
}

/// Why tensors cannot be taken from memory.
#[derive(Debug, thiserror::Error)]
pub enum InMemoryError {
    /// There are more or fewer bytes than dtype and shape need.
    #[error(
        "tensor `{tensor}` of dtype {dtype} and shape {shape:?}: expected {expected} bytes, found {found}"
    )]
    Length {
        /// The tensor.
        tensor: String,
        /// Its dtype.
        dtype: Dtype,
        /// Its shape.
        shape: Vec<usize>,
        /// Bytes that dtype and shape need.
        expected: u64,
        /// The bytes there are.
        found: u64,
    },
    /// A shape with more elements than can be counted.
    #[error("tensor `{tensor}`: the shape {shape:?} of dtype {dtype} {why}")]
    Shape {
        /// The tensor.
        tensor: String,
        /// Its dtype.
        dtype: Dtype,
        /// Its shape.
        shape: Vec<usize>,
        /// What is wrong with it.
        why: &'static str,
    },
    /// Two tensors have the same name.
    #[error("two tensors are called `{tensor}`")]
    Twice {
        /// The name.
        tensor: String,
    },
}

impl InMemory {
    /// Creates a source of tensors: the name, dtype, shape and bytes of each, little-endian and in C order.
    ///
    /// # Errors
    /// If the bytes of a tensor do not match its shape, or two tensors have the same name.
    pub fn new(
        tensors: impl IntoIterator<Item = (String, Dtype, Vec<usize>, Bytes)>,
    ) -> Result<InMemory, InMemoryError> {
        let mut memory = InMemory::default();
        let mut names = HashSet::new();
        for (name, dtype, shape, bytes) in tensors {
            let found = (*bytes).as_ref().len() as u64;
            let len = match tensor_bytes(dtype, &shape) {
                Ok(expected) if expected == found => found,
                Ok(expected) => {
                    return Err(InMemoryError::Length {
                        tensor: name,
                        dtype,
                        shape,
                        expected,
                        found,
                    });
                }
                Err(why) => {
                    return Err(InMemoryError::Shape {
                        tensor: name,
                        dtype,
                        shape,
                        why,
                    });
                }
            };
            if !names.insert(name.clone()) {
                return Err(InMemoryError::Twice { tensor: name });
            }
            memory.entries.push(TensorEntry {
                name,
                dtype,
                stored: dtype,
                shape,
                len,
            });
            memory.bytes.push(bytes);
        }
        Ok(memory)
    }

    /// The same with what a file of them would say of itself.
    #[must_use]
    pub fn with_metadata(self, metadata: BTreeMap<String, String>) -> InMemory {
        InMemory { metadata, ..self }
    }
}

impl fmt::Debug for InMemory {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let entries = &self.entries;
        f.debug_struct("InMemory")
            .field("entries", entries)
            .finish()
    }
}

impl TensorSource for InMemory {
    fn entries(&self) -> &[TensorEntry] {
        &self.entries
    }

    fn elements(&self, index: usize) -> Option<Box<dyn Elements + '_>> {
        Some(Box::new(Stored {
            format: FloatType::from_dtype(self.entries[index].dtype)?,
            bytes: self.bytes(index)?,
        }))
    }

    fn bytes(&self, index: usize) -> Option<&[u8]> {
        Some((*self.bytes[index]).as_ref())
    }

    fn metadata(&self, key: &str) -> Option<String> {
        self.metadata.get(key).cloned()
    }
}

/// Maps a file that nobody else knows and that is no longer written to, and returns parts of it. Parts outside of the
/// file are empty.
///
/// # Errors
/// If the system can't map it.
pub fn map_parts(
    file: &File,
    parts: impl IntoIterator<Item = Range<u64>>,
) -> io::Result<Vec<Bytes>> {
    // An empty file cannot be mapped.
    let map = match file.metadata()?.len() {
        0 => None,
        _ => Some(Arc::new(map(file)?)),
    };
    let part = |part: Range<u64>| -> Bytes {
        Box::new(MapPart {
            map: map.clone(),
            part: part.start as usize..part.end as usize,
        })
    };
    Ok(parts.into_iter().map(part).collect())
}

/// A part of a mapped file.
struct MapPart {
    map: Option<Arc<Mmap>>,
    part: Range<usize>,
}

impl AsRef<[u8]> for MapPart {
    fn as_ref(&self) -> &[u8] {
        let map = self.map.as_deref();
        map.and_then(|map| map.get(self.part.clone()))
            .unwrap_or_default()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn tensor(name: &str, shape: &[usize], bytes: usize) -> (String, Dtype, Vec<usize>, Bytes) {
        let bytes: Vec<u8> = (0..bytes).map(|at| at as u8).collect();
        (name.into(), Dtype::BF16, shape.into(), Box::new(bytes))
    }

    #[test]
    fn tensors_are_given_back_as_they_were_taken() {
        let memory = InMemory::new([
            tensor("a", &[2, 2], 8),
            tensor("b", &[], 2),
            tensor("c", &[0], 0),
        ]);
        let memory = memory.unwrap();
        let lens: Vec<u64> = memory.entries().iter().map(|entry| entry.len).collect();
        assert_eq!(lens, [8, 2, 0]);
        assert_eq!(memory.bytes(0).unwrap(), [0, 1, 2, 3, 4, 5, 6, 7]);
        let mut values = [0f32];
        numeric::Fill::fill(&*memory.elements(1).unwrap(), 0, &mut values).unwrap();
        assert_eq!(values[0].to_bits(), 0x0100_0000);
        assert!(memory.shards().is_empty() && memory.place(0).is_none());
        memory.check_unchanged().unwrap();
    }

    #[test]
    fn bytes_that_do_not_fit_are_refused() {
        let message = |tensors: Vec<_>| InMemory::new(tensors).unwrap_err().to_string();
        let short = message(vec![tensor("a", &[2, 2], 7)]);
        assert!(
            short.contains("`a`") && short.contains("expected 8 bytes, found 7"),
            "{short}"
        );
        let endless = message(vec![tensor("a", &[usize::MAX, usize::MAX], 7)]);
        assert!(endless.contains("`a`"), "{endless}");
        let twice = message(vec![tensor("a", &[1], 2), tensor("a", &[1], 2)]);
        assert!(twice.contains("two tensors are called `a`"), "{twice}");
    }
}
