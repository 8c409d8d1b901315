//! Singular vectors and polar factors, from the eigenvectors of a square.

use numeric::NoMemory;

use super::{Eigen, Matrix, MatrixError, gram};

/// A singular value below this share of the largest counts as zero: the rounding of f32 matrices lies there.
pub const RANK: f64 = 1e-5;

/// The first singular values of a matrix with their vectors.
#[derive(Debug)]
pub struct Singular {
    /// The left singular vectors, as columns.
    pub left: Matrix<f32>,
    /// The singular values, descending; none is zero.
    pub values: Vec<f64>,
    /// The right singular vectors, as columns.
    pub right: Matrix<f32>,
}

impl Singular {
    /// The matrix that has these vectors, and these values in place of its own, one for each.
    ///
    /// # Errors
    /// There is no memory for it.
    pub fn with_values(mut self, values: &[f64]) -> Result<Matrix<f32>, NoMemory> {
        self.left.scale_columns(values);
        self.left.times_transposed(&self.right)
    }
}

/// The polar factor of a matrix, and what it left out.
#[derive(Debug)]
pub struct Polar {
    /// The factor.
    pub factor: Matrix<f32>,
    /// The singular values of the matrix that are not zero, descending.
    pub values: Vec<f64>,
}

/// The first `most` singular values of a matrix with their vectors; fewer if its rank is lower.
///
/// # Errors
/// If there is no memory, if the matrix holds NaN or infinity, or if the iteration does not end.
pub fn singular_vectors(matrix: &Matrix<f32>, most: usize) -> Result<Singular, MatrixError> {
    if matrix.rows() < matrix.columns() {
        let turned = singular_vectors(&matrix.transposed()?, most)?;
        return Ok(Singular {
            left: turned.right,
            values: turned.values,
            right: turned.left,
        });
    }
    let eigen = Eigen::new(gram(matrix)?)?;
    let rank = rank(&eigen.values).min(most);
    let right = eigen.basis(rank)?;
    drop(eigen);
    let mut left = matrix.times(&right)?;
    // More exact than the roots of the eigenvalues.
    let values = left.column_norms();
    let inverse: Vec<f64> = values.iter().map(|value| 1.0 / value).collect();
    left.scale_columns(&inverse);
    Ok(Singular {
        left,
        values,
        right,
    })
}

/// The nearest matrix whose singular values are all one, or zero where those of the matrix are.
///
/// # Errors
/// If there is no memory, if the matrix holds NaN or infinity, or if the iteration does not end.
pub fn polar(matrix: &Matrix<f32>) -> Result<Polar, MatrixError> {
    if matrix.rows() < matrix.columns() {
        let turned = polar(&matrix.transposed()?)?;
        return Ok(Polar {
            factor: turned.factor.transposed()?,
            values: turned.values,
        });
    }
    let eigen = Eigen::new(gram(matrix)?)?;
    let mut values = eigen.values.clone();
    values.truncate(rank(&values));
    values.iter_mut().for_each(|value| *value = value.sqrt());
    let basis = eigen.basis::<f32>(values.len())?;
    drop(eigen);
    let mut scaled = basis.clone();
    let inverse: Vec<f64> = values.iter().map(|value| 1.0 / value).collect();
    scaled.scale_columns(&inverse);
    let inverse = scaled.times_transposed(&basis)?;
    drop((basis, scaled));
    Ok(Polar {
        factor: matrix.times(&inverse)?,
        values,
    })
}

/// How many eigenvalues of a square, descending, are those of singular values that are not zero.
fn rank(values: &[f64]) -> usize {
    let least = values.first().map_or(0.0, |first| first * RANK * RANK);
    let first_zero = values.iter().position(|&value| value <= least.max(0.0));
    first_zero.unwrap_or(values.len())
}
