//! The values of a tensor, wherever they are: stored as they are, or made while they are read.

use super::format::FloatType;
use super::real::Real;

/// Values read by their place in a tensor.
///
/// What is given for a place depends on that place only, not on what is read before or together with it.
pub trait Fill<R>: Send + Sync {
    /// Sets `out` to the elements from number `first` on; gives the bytes read for it.
    ///
    /// `first + out.len()` is at most the number of elements.
    fn fill(&self, first: u64, out: &mut [R]) -> usize;
}

/// The values of a tensor in both precisions; implement [`Fill<R>`] for every [`Real`].
pub trait Elements: Fill<f32> + Fill<f64> {
    /// The format of the values: that of the bytes if they are stored, else the narrowest that they are
    /// meant to be written in. Decides the precision they are computed in.
    fn format(&self) -> FloatType;

    /// The bytes of so many elements from number `first` on, where they are stored one after the other: what
    /// may be asked for before it is read. `first + count` is at most the number of elements.
    fn stored(&self, first: u64, count: usize) -> &[u8] {
        let _ = (first, count);
        &[]
    }
}

/// Little-endian values in order, perhaps not aligned.
#[derive(Debug, Clone, Copy)]
pub struct Stored<'a> {
    /// The values.
    pub bytes: &'a [u8],
    /// Their format.
    pub format: FloatType,
}

impl<R: Real> Fill<R> for Stored<'_> {
    fn fill(&self, first: u64, out: &mut [R]) -> usize {
        let bytes = self.stored(first, out.len());
        self.format.decode(bytes, out);
        bytes.len()
    }
}

impl Elements for Stored<'_> {
    fn format(&self) -> FloatType {
        self.format
    }

    fn stored(&self, first: u64, count: usize) -> &[u8] {
        let size = self.format.size();
        let start = first as usize * size;
        &self.bytes[start..start + count * size]
    }
}

/// Zeros.
#[derive(Debug, Clone, Copy)]
pub struct Zeros;

impl<R: Real> Fill<R> for Zeros {
    fn fill(&self, _first: u64, out: &mut [R]) -> usize {
        out.fill(R::ZERO);
        0
    }
}

impl Elements for Zeros {
    fn format(&self) -> FloatType {
        FloatType::F32
    }
}
