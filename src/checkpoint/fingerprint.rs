//! Tells models apart by a look at each tensor, without reading all of any.

use super::reader::Checkpoint;
use numeric::{Fill, FloatType};

/// How many values are looked at in each place of a tensor.
const PROBE: u64 = 64;

impl Checkpoint {
    /// A digest of every tensor's dtype and shape, and of its values at the start, in the middle and at the end. `None` if
    /// there are values that are computed later. It is the same whatever the tensors are called, however they lie in
    /// files, and whether an adapter is applied when they are read or was before.
    ///
    /// Two models that differ elsewhere only have the same.
    pub fn fingerprint(&self) -> Option<String> {
        let tensors = 0..self.tensors().len();
        let digests = tensors.map(|index| self.tensor_fingerprint(index));
        let mut digests = digests.collect::<Option<Vec<[u8; 32]>>>()?;
        digests.sort_unstable();
        let mut hasher = blake3::Hasher::new();
        digests.iter().for_each(|digest| {
            hasher.update(digest);
        });
        Some(hasher.finalize().to_string())
    }

    fn tensor_fingerprint(&self, index: usize) -> Option<[u8; 32]> {
        let entry = &self.tensors()[index];
        let mut hasher = blake3::Hasher::new();
        hasher.update(format!("{:?} {:?}", entry.dtype, entry.shape).as_bytes());
        // Integers and bools are no weights.
        if FloatType::from_dtype(entry.dtype).is_some() {
            let values = self.elements(index)?;
            let all = entry.elements();
            let length = all.min(PROBE);
            let last = all - length;
            for first in [0, last / 2, last] {
                let mut probe = vec![0f64; length as usize];
                Fill::<f64>::fill(values.as_ref(), first, &mut probe).ok()?;
                probe.iter().for_each(|value| {
                    hasher.update(&value.to_le_bytes());
                });
            }
        }
        Some(*hasher.finalize().as_bytes())
    }
}
