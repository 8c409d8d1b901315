//! Linear equations with a symmetric, positive definite matrix, by its Cholesky factor.

use faer::dyn_stack::{MemBuffer, MemStack, StackReq};
use faer::linalg::cholesky::llt::factor::{cholesky_in_place, cholesky_in_place_scratch};
use faer::linalg::cholesky::llt::solve::solve_in_place;
use faer::{MatMut, MatRef, Par};
use numeric::NoMemory;

use super::eigen::TASKS;
use super::{Matrix, MatrixError};

/// The least square of a pivot, as a share of its element on the diagonal, that is not taken for rounding of f32 values.
const LEAST_PIVOT: f64 = 1e-6;

/// `right square^-1`, in the place of `right`; of a symmetric matrix, the elements below the diagonal and on it are read.
///
/// # Errors
/// If there is no memory, or the matrix holds NaN or infinity, or is not positive definite by more than rounding.
///
/// # Panics
/// If the matrices do not fit together: an error of the caller.
pub fn solve_on_the_right(
    mut square: Matrix<f64>,
    right: &mut Matrix<f64>,
) -> Result<(), MatrixError> {
    let size = square.rows();
    assert!(size == square.columns() && size == right.columns());
    if !square.is_finite() || !right.is_finite() {
        return Err(MatrixError::NotFinite);
    }
    let diagonal: Vec<f64> = (0..size).map(|at| square.at(at, at)).collect();
    let request = scratch(size);
    let mut memory = MemBuffer::try_new(request).map_err(|_| NoMemory {
        bytes: request.unaligned_bytes_required(),
    })?;
    let memory = MemStack::new(&mut memory);
    let par = Par::rayon(TASKS);
    let factor = MatMut::from_row_major_slice_mut(square.values_mut(), size, size);
    let done = cholesky_in_place(factor, Default::default(), par, memory, Default::default());
    done.map_err(|_| MatrixError::Singular)?;
    let pivots = (0..size).map(|at| square.at(at, at));
    if pivots
        .zip(&diagonal)
        .any(|(pivot, element)| pivot * pivot <= LEAST_PIVOT * element)
    {
        return Err(MatrixError::Singular);
    }
    // What is a row here is a column there.
    let rows = right.rows();
    let right = MatMut::from_column_major_slice_mut(right.values_mut(), size, rows);
    let factor = MatRef::from_row_major_slice(square.values(), size, size);
    solve_in_place(factor, right, par, memory);
    Ok(())
}

fn scratch(size: usize) -> StackReq {
    cholesky_in_place_scratch::<f64>(size, Par::rayon(TASKS), Default::default())
}

/// Bytes that [`solve_on_the_right`] holds at the most beside its matrices.
pub fn solve_bytes(size: usize) -> u64 {
    match size < 1 << 20 {
        true => scratch(size).unaligned_bytes_required() as u64,
        false => (size as u64).saturating_mul(64),
    }
}
