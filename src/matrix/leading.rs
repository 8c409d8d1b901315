//! The first singular vectors of a matrix that has many more, from products alone.

use rayon::prelude::*;

use super::{Matrix, MatrixError, Singular, singular_vectors};

/// Vectors that are followed beside those that are wanted: with them the wanted ones settle in a few steps.
const SPARE: usize = 16;
/// How many times more a matrix must have than are followed. Otherwise all are found, which takes no longer.
const FEW: usize = 4;
/// The most steps.
const STEPS: usize = 12;
/// A step that takes less than this share off the square of what is left out is the last.
const GAIN: f64 = 1e-3;

/// The first `most` singular values of a matrix with their vectors; fewer if its rank is lower.
///
/// Where they are few, they come from a randomised subspace iteration (Halko, Martinsson, Tropp, "Finding structure
/// with randomness", 2011), which stops when a step takes less than a thousandth off the square of what is left out;
/// otherwise they are those of [`singular_vectors`]. `draw` gives the random numbers by their place, around zero.
///
/// # Errors
/// If there is no memory, if the matrix holds NaN or infinity, or if an iteration does not end.
pub fn leading_singular_vectors(
    matrix: &Matrix<f32>,
    most: usize,
    draw: impl Fn(u64) -> f64 + Sync,
) -> Result<Singular, MatrixError> {
    let Some(followed) = followed(matrix.rows(), matrix.columns(), most) else {
        return singular_vectors(matrix, most);
    };
    let whole = matrix.squared_norm();
    if !whole.is_finite() {
        return Err(MatrixError::NotFinite);
    }
    let mut right = Matrix::zeros(matrix.columns(), followed)?;
    let values = right.values_mut().par_iter_mut().enumerate();
    values.for_each(|(place, value)| *value = draw(place as u64) as f32);
    let mut before = f64::INFINITY;
    let mut step = 1;
    loop {
        let left = orthonormal(&matrix.times(&right)?)?;
        // Of the matrix, what lies in the space of these columns.
        let found = singular_vectors(&matrix.transposed_times(&left)?, followed)?;
        let kept: f64 = found
            .values
            .iter()
            .take(most)
            .map(|value| value * value)
            .sum();
        let left_out = (whole - kept).max(0.0);
        if step == STEPS || left_out >= (1.0 - GAIN) * before {
            let count = found.values.len().min(most);
            return Ok(Singular {
                left: left.times(&found.right.first_columns(count))?,
                values: found.values[..count].to_vec(),
                right: found.left.first_columns(count),
            });
        }
        before = left_out;
        right = found.left;
        step += 1;
    }
}

/// Bytes that [`leading_singular_vectors`] holds at the most beside the matrix, with its result.
pub fn leading_bytes(rows: usize, columns: usize, most: usize) -> u64 {
    let size = |rows: usize, columns: usize| (rows as u64).saturating_mul(columns as u64);
    let floats = |count: u64| count.saturating_mul(4);
    let squares = |side: usize| {
        let panel = size(512.min(rows.max(columns)), side).saturating_mul(8);
        super::eigen_bytes(side).saturating_add(panel)
    };
    match followed(rows, columns, most) {
        // Three times as many columns as are followed, on either side.
        Some(followed) => floats(size(rows.saturating_add(columns), followed))
            .saturating_mul(3)
            .saturating_add(squares(followed)),
        None => {
            let side = rows.min(columns);
            let turned = if rows < columns {
                floats(size(rows, columns))
            } else {
                0
            };
            let vectors = floats(size(rows.saturating_add(columns), most.min(side)));
            turned.saturating_add(squares(side)).saturating_add(vectors)
        }
    }
}

/// How many vectors are followed; none where all are found.
fn followed(rows: usize, columns: usize, most: usize) -> Option<usize> {
    let followed = most.saturating_add(SPARE);
    (followed.saturating_mul(FEW) <= rows.min(columns)).then_some(followed)
}

/// Columns of length one, at right angles, that span what the columns of a tall matrix do.
fn orthonormal(matrix: &Matrix<f32>) -> Result<Matrix<f32>, MatrixError> {
    let most = matrix.columns();
    let once = singular_vectors(matrix, most)?.left;
    // The angles of the shortest ones are rounded; of columns that are almost so, hardly.
    Ok(singular_vectors(&once, most)?.left)
}
