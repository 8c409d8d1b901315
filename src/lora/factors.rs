//! A matrix as the product of two factors of low rank, in the format in which they are written.

use matrix::{
    Matrix, MatrixError, Singular, leading_bytes, leading_singular_vectors, squared_residual,
};
use numeric::{FloatType, NoMemory, NormalKey};

use super::request::Rank;

/// A matrix as `left right'`.
pub(super) struct Factors {
    /// As many rows as the matrix, a column for each rank.
    pub(super) left: Matrix<f32>,
    /// As many rows as the matrix has columns, a column for each rank.
    pub(super) right: Matrix<f32>,
    /// The square of what they leave out.
    pub(super) left_out: f64,
}

/// The largest rank that may be needed for a matrix.
pub(super) fn most(rank: Rank, rows: usize, columns: usize) -> usize {
    let wanted = match rank {
        Rank::Fixed(rank) => rank,
        Rank::Energy { most, .. } => most.unwrap_or(usize::MAX),
    };
    wanted.min(rows).min(columns)
}

/// Bytes that are held at the most for a matrix, with the matrix.
pub(super) fn bytes(rank: Rank, rows: usize, columns: usize) -> u64 {
    let most = most(rank, rows, columns);
    let matrix = (rows as u64)
        .saturating_mul(columns as u64)
        .saturating_mul(4);
    matrix.saturating_add(leading_bytes(rows, columns, most))
}

/// The nearest factors of a matrix whose elements' squares add up to `whole`, rounded to a format. The tensor's name is
/// the key of what is random.
///
/// # Errors
/// If there is no memory, or if the decomposition does not end.
pub(super) fn factors(
    matrix: &Matrix<f32>,
    whole: f64,
    rank: Rank,
    name: &str,
    format: FloatType,
) -> Result<Factors, MatrixError> {
    let key = NormalKey::new(0, name, 0);
    let most = most(rank, matrix.rows(), matrix.columns());
    let Singular {
        mut left,
        mut values,
        mut right,
    } = leading_singular_vectors(matrix, most, |place| key.uniform(place))?;
    if let Rank::Energy { share, .. } = rank {
        let count = count_for(&values, share * whole);
        values.truncate(count);
        left = left.first_columns(count);
        right = right.first_columns(count);
    }
    let roots: Vec<f64> = values.iter().map(|value| value.sqrt()).collect();
    for factor in [&mut left, &mut right] {
        factor.scale_columns(&roots);
        round(factor, format)?;
    }
    let left_out = squared_residual(matrix, &left, &right)?;
    Ok(Factors {
        left,
        right,
        left_out,
    })
}

/// How many singular values it takes until their squares add up to a sum; all if they never do.
fn count_for(values: &[f64], wanted: f64) -> usize {
    let mut sum = 0.0;
    let enough = values.iter().position(|value| {
        sum += value * value;
        sum >= wanted
    });
    enough.map_or(values.len(), |last| last + 1)
}

/// The values as they are read again from a file of this format.
pub(super) fn round(factor: &mut Matrix<f32>, format: FloatType) -> Result<(), NoMemory> {
    if format == FloatType::F32 {
        return Ok(());
    }
    let mut bytes = numeric::filled(factor.values().len() * format.size(), 0u8)?;
    format.encode(factor.values_mut(), true, &mut bytes);
    format.decode(&bytes, factor.values_mut());
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn as_many_values_as_the_energy_needs() {
        let values = [3.0, 2.0, 1.0];
        for (wanted, expected) in [
            (0.0, 1),
            (9.0, 1),
            (9.5, 2),
            (13.0, 2),
            (14.0, 3),
            (99.0, 3),
        ] {
            assert_eq!(count_for(&values, wanted), expected, "{wanted}");
        }
        assert_eq!(count_for(&[], 1.0), 0);
    }
}
