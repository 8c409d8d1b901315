//! Matrices that are products of two thin ones, and the directions that their columns span.

use numeric::{Factor, Fill, NoMemory, Order};

use super::{Matrix, MatrixError, polar, singular_vectors};

/// A factor of a product, as a matrix with a row for each of so many places and a column for each rank.
///
/// # Errors
/// There is no memory for it.
pub fn factor_matrix(
    factor: Factor<'_>,
    places: usize,
    rank: usize,
) -> Result<Matrix<f32>, NoMemory> {
    let read = |rows, columns| {
        let mut matrix = Matrix::zeros(rows, columns)?;
        factor.values.fill(0, matrix.values_mut())?;
        Ok(matrix)
    };
    match factor.order {
        Order::ByPlace => read(places, rank),
        Order::ByRank => read(rank, places)?.transposed(),
        Order::Strided(strides) => {
            let mut matrix = Matrix::zeros(places, rank)?;
            for (index, value) in matrix.values_mut().iter_mut().enumerate() {
                let (place, number) = (index / rank, index % rank);
                let at = strides.first + place * strides.place + number * strides.rank;
                factor.values.fill(at as u64, std::slice::from_mut(value))?;
            }
            Ok(matrix)
        }
    }
}

/// Matrices with as many rows, one beside the other.
///
/// # Errors
/// There is no memory for it.
pub fn beside<'m>(
    matrices: impl IntoIterator<Item = &'m Matrix<f32>, IntoIter: Clone>,
) -> Result<Matrix<f32>, NoMemory> {
    let matrices = matrices.into_iter();
    let rows = matrices.clone().next().map_or(0, Matrix::rows);
    let columns = matrices.clone().map(Matrix::columns).sum();
    let mut all = Matrix::zeros(rows, columns)?;
    let mut first = 0;
    for matrix in matrices {
        all.place(first, matrix);
        first += matrix.columns();
    }
    Ok(all)
}

/// The left singular vectors of a matrix: columns of length one, at right angles, that span what its columns do. Which
/// ones they are matters to methods that choose elements.
///
/// # Errors
/// If there is no memory, if the matrix holds NaN or infinity, or if the iteration does not end.
pub fn orthonormal(matrix: &Matrix<f32>) -> Result<Matrix<f32>, MatrixError> {
    let vectors = singular_vectors(matrix, usize::MAX)?.left;
    if vectors.columns() == 0 {
        return Ok(vectors);
    }
    // The angles of those with the smallest values are rounded: the nearest columns at right angles.
    Ok(polar(&vectors)?.factor)
}
