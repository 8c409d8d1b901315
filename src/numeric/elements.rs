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

    /// The values as others plus a product of two thin matrices, if they are made so.
    fn product(&self) -> Option<(&dyn Elements, Product<'_>)> {
        None
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

/// `scale * L R`.
#[derive(Debug, Clone, Copy)]
pub struct Product<'a> {
    /// `L`: one vector of length `rank` for each row.
    pub left: Factor<'a>,
    /// `R`: one vector of length `rank` for each column.
    pub right: Factor<'a>,
    /// The rank.
    pub rank: usize,
    /// The factor of the product.
    pub scale: f64,
}

impl Product<'_> {
    /// The product of rank zero, which adds nothing.
    pub const NOTHING: Product<'static> = {
        let values = Stored {
            bytes: &[],
            format: FloatType::F32,
        };
        let none = Factor {
            values,
            order: Order::ByPlace,
        };
        Product {
            left: none,
            right: none,
            rank: 0,
            scale: 1.0,
        }
    };
}

/// One vector of length `rank` for each row, or for each column, of a matrix.
#[derive(Debug, Clone, Copy)]
pub struct Factor<'a> {
    /// The numbers.
    pub values: Stored<'a>,
    /// Their order.
    pub order: Order,
}

/// How the numbers of a [`Factor`] are stored.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Order {
    /// `[rank, rows]` or `[rank, columns]`.
    ByRank,
    /// `[rows, rank]` or `[columns, rank]`.
    ByPlace,
    /// A part of a larger tensor.
    Strided(FactorStrides),
}

/// Where the numbers of a [`Factor`] lie that is a part of a larger tensor.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct FactorStrides {
    /// The index of its first number.
    pub first: usize,
    /// The distance from a row or column to the next.
    pub place: usize,
    /// The distance from a rank to the next.
    pub rank: usize,
}

impl Factor<'_> {
    /// Where its numbers lie; `rank` is that of the product.
    pub fn strides(&self, rank: usize) -> FactorStrides {
        match self.order {
            Order::ByRank => FactorStrides {
                first: 0,
                place: 1,
                rank: self.values.bytes.len() / self.values.format.size() / rank.max(1),
            },
            Order::ByPlace => FactorStrides {
                first: 0,
                place: rank,
                rank: 1,
            },
            Order::Strided(strides) => strides,
        }
    }
}
