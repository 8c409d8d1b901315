//! Passes over whole matrices: for singular values, polar factors, and all else that cannot be computed by blocks.
//!
//! One matrix is computed at a time, by all threads. Later passes read the result block by block.

use super::EngineError;
use errors::Refusal;
use numeric::Product;

/// Computes a matrix from whole matrices.
///
/// It runs in the engine's thread pool, so rayon uses all threads. The result must not depend on their number: cut
/// work by shapes only, and add up in a fixed order.
pub trait Whole: Send + Sync {
    /// Sets `result`, which has the shape of the sources, in row order; it is zero on entry.
    ///
    /// The memory held at a time, including `result`, is at most [`Cost::matrix`](super::Cost::matrix).
    ///
    /// # Errors
    /// Those of [`Matrices::read`], and [`Matrices::refusal`] if there is no result.
    fn compute(&self, sources: &dyn Matrices, result: &mut [f32]) -> Result<(), EngineError>;
}

/// The sources of a pass over whole matrices, in the program's order. They are read on request, so that a pass
/// holds only what it needs at the moment.
pub trait Matrices: Sync {
    /// How many sources there are.
    fn count(&self) -> usize;

    /// Rows of each source.
    fn rows(&self) -> usize;

    /// Columns of each source.
    fn columns(&self) -> usize;

    /// Reads some whole rows of a source, from row `first` on, into `rows`; uses all threads.
    ///
    /// # Errors
    /// If the work should stop, or if the source holds NaN or infinity and these are not allowed.
    ///
    /// # Panics
    /// If there is no such source, or it has no such rows: an error of the caller.
    fn read(&self, source: usize, first: usize, rows: &mut [f32]) -> Result<(), EngineError>;

    /// What a source adds to another, if that is known to be a product of two thin matrices; of rank zero if they are
    /// equal. Neither is read as numbers.
    ///
    /// # Errors
    /// If the work should stop.
    fn product(&self, source: usize, base: usize) -> Result<Option<Product<'_>>, EngineError>;

    /// Checks that the work should go on; call it about every second.
    ///
    /// # Errors
    /// [`EngineError::Cancelled`] if it should stop.
    fn check_running(&self) -> Result<(), EngineError>;

    /// The error for values that have no result; the reason is meant for the user.
    fn refusal(&self, reason: Refusal) -> EngineError;
}
