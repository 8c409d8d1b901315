//! The values of a tensor, whether stored or computed as they are read.

use super::format::FloatType;
use super::memory::NoMemory;
use super::real::Real;

/// Values read by their place in a tensor.
///
/// The value at a place depends on that place only, not on what is read before it or along with it.
pub trait Fill<R>: Send + Sync {
    /// Sets `out` to the elements from index `first` on; returns the bytes read for them.
    ///
    /// `first + out.len()` is at most the number of elements.
    ///
    /// # Errors
    /// If there is no memory for what the values are made from.
    fn fill(&self, first: u64, out: &mut [R]) -> Result<usize, NoMemory>;
}

/// The values of a tensor in both precisions; implement [`Fill<R>`] for every [`Real`].
pub trait Elements: Fill<f32> + Fill<f64> {
    /// The format of the values: that of the bytes if they are stored, otherwise the narrowest format that they are
    /// to be written in. It decides the precision of the computation.
    fn format(&self) -> FloatType;

    /// The bytes of `count` elements from index `first` on, if they are stored one after the other; empty if not.
    /// Used to request them before they are read. `first + count` is at most the number of elements.
    fn stored(&self, first: u64, count: usize) -> &[u8] {
        let _ = (first, count);
        &[]
    }
}

/// Little-endian values in order; they need not be aligned.
#[derive(Debug, Clone, Copy)]
pub struct Stored<'a> {
    /// The values.
    pub bytes: &'a [u8],
    /// Their format.
    pub format: FloatType,
}

impl<R: Real> Fill<R> for Stored<'_> {
    fn fill(&self, first: u64, out: &mut [R]) -> Result<usize, NoMemory> {
        let bytes = self.stored(first, out.len());
        self.format.decode(bytes, out);
        Ok(bytes.len())
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

/// A tensor of one value.
#[derive(Debug, Clone, Copy)]
pub struct Constant(pub f64);

impl<R: Real> Fill<R> for Constant {
    fn fill(&self, _first: u64, out: &mut [R]) -> Result<usize, NoMemory> {
        out.fill(R::from_f64(self.0));
        Ok(0)
    }
}

impl Elements for Constant {
    fn format(&self) -> FloatType {
        FloatType::F32
    }
}
