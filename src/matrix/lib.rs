//! Whole matrices: products, eigenvectors, singular vectors and polar factors, by all threads of the pool.
//!
//! Work is cut by shapes alone, so results are the same bits at any number of threads. They do depend on the
//! processor: the width of its vectors decides the order in which products are summed.
//!
//! Singular vectors come from the eigenvectors of the smaller of the two squares of a matrix, in f64. A square in f64
//! loses singular values below 1e-8 of the largest; those of an f32 matrix are rounding below [`RANK`] anyway.
//!
//! This layer knows no tensor, no method and no file. It is the only one that uses `faer`, whose generic code is
//! compiled here once, for f64.

mod dense;
mod eigen;
mod factor;
mod leading;
mod singular;
mod solve;
#[cfg(test)]
mod tests;

pub use dense::{GramSum, Matrix, add_gram, gram, squared_residual};
pub use eigen::{Eigen, eigen_bytes};
pub use factor::{beside, factor_matrix, orthonormal};
pub use leading::{leading_bytes, leading_singular_vectors};
pub use singular::{Polar, RANK, Singular, polar, singular_vectors};
pub use solve::{solve_bytes, solve_on_the_right};

use numeric::NoMemory;

/// Why a matrix has no such decomposition.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum MatrixError {
    /// There is no memory for it.
    #[error(transparent)]
    Memory(#[from] NoMemory),
    /// It holds NaN or infinity, or squares of its values do.
    #[error("it holds NaN or infinity")]
    NotFinite,
    /// It has no inverse, within the rounding of f32 values that it is made of.
    #[error("it has no inverse")]
    Singular,
    /// The iteration for its eigenvalues did not end.
    #[error("its eigenvalues do not converge")]
    NotConverged,
}
