//! Statistics from data that a method reads beside weights.

use std::fmt::Debug;

use numeric::NoMemory;

/// The statistics of one model for one tensor, of the kind that the method needs.
pub trait TensorStatistics: Debug + Send + Sync {
    /// Sets `out` to values of the statistic from index `first` on, in row order. Of a tensor that stacks several matrices,
    /// those of matrix number `matrix`.
    ///
    /// # Errors
    /// If there is no memory.
    fn read(&self, matrix: usize, first: u64, out: &mut [f64]) -> Result<(), NoMemory>;

    /// How many tokens they were taken of; `None` if that is not known.
    fn tokens(&self, matrix: usize) -> Option<u64>;
}
