//! Eigenvalues and eigenvectors of symmetric matrices.

use faer::dyn_stack::{MemBuffer, MemStack, StackReq};
use faer::linalg::evd::{ComputeEigenvectors, self_adjoint_evd, self_adjoint_evd_scratch};
use faer::{ColMut, MatMut, MatRef, Par};
use numeric::{NoMemory, Real, filled};
use rayon::prelude::*;

use super::{Matrix, MatrixError};

/// The number of tasks that work is cut into. It is fixed, so that results do not depend on the number of threads.
pub(super) const TASKS: usize = 8;

/// Eigenvalues with their eigenvectors.
#[derive(Debug)]
pub struct Eigen {
    /// The eigenvalues, descending.
    pub values: Vec<f64>,
    /// A row for each: its eigenvector, of length one.
    pub vectors: Matrix<f64>,
}

impl Eigen {
    /// Those of a symmetric matrix; of its elements, those below the diagonal and on it are read.
    ///
    /// # Errors
    /// If there is no memory, if the matrix holds NaN or infinity, or if the iteration does not end.
    ///
    /// # Panics
    /// If the matrix is not square: an error of the caller.
    pub fn new(square: Matrix<f64>) -> Result<Self, MatrixError> {
        let size = square.rows();
        assert_eq!(size, square.columns());
        if !square.is_finite() {
            return Err(MatrixError::NotFinite);
        }
        let mut vectors = Matrix::zeros(size, size)?;
        let mut values = filled(size, 0.0f64)?;
        if size == 0 {
            return Ok(Self { values, vectors });
        }
        let request = scratch(size);
        let mut memory = MemBuffer::try_new(request).map_err(|_| NoMemory {
            bytes: request.unaligned_bytes_required(),
        })?;
        // What is a column there is a row here.
        let done = self_adjoint_evd(
            MatRef::from_row_major_slice(square.values(), size, size),
            ColMut::from_slice_mut(&mut values).as_diagonal_mut(),
            Some(MatMut::from_column_major_slice_mut(
                vectors.values_mut(),
                size,
                size,
            )),
            Par::rayon(TASKS),
            MemStack::new(&mut memory),
            Default::default(),
        );
        done.map_err(|_| MatrixError::NotConverged)?;
        values.reverse();
        reverse_rows(vectors.values_mut(), size);
        Ok(Self { values, vectors })
    }

    /// The first eigenvectors, as the columns of a matrix.
    ///
    /// # Errors
    /// If there is no memory.
    pub fn basis<T: Real>(&self, count: usize) -> Result<Matrix<T>, NoMemory> {
        let size = self.vectors.columns();
        let mut out = Matrix::zeros(size, count)?;
        let rows = out.values_mut().par_chunks_mut(count.max(1)).enumerate();
        rows.for_each(|(row, out)| {
            let column = self.vectors.values()[row..].iter().step_by(size.max(1));
            for (out, value) in out.iter_mut().zip(column) {
                *out = T::from_f64(*value);
            }
        });
        Ok(out)
    }
}

fn reverse_rows(values: &mut [f64], size: usize) {
    let half = size / 2 * size;
    let (first, last) = values.split_at_mut(half);
    let pairs = first
        .chunks_mut(size.max(1))
        .zip(last.rchunks_mut(size.max(1)));
    for (a, b) in pairs {
        a.swap_with_slice(b);
    }
}

fn scratch(size: usize) -> StackReq {
    let vectors = ComputeEigenvectors::Yes;
    self_adjoint_evd_scratch::<f64>(size, vectors, Par::rayon(TASKS), Default::default())
}

/// Bytes that [`Eigen::new`] holds at the most for a matrix of this size, with the matrix.
pub fn eigen_bytes(size: usize) -> u64 {
    let square = (size as u64).saturating_mul(size as u64).saturating_mul(8);
    // The scratch of faer is some three squares; a size for which it cannot be stated is too large anyway.
    let scratch = match size < 1 << 20 {
        true => scratch(size).unaligned_bytes_required() as u64,
        false => square.saturating_mul(3),
    };
    square.saturating_mul(2).saturating_add(scratch)
}
