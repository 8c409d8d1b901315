//! Small matrices that stand for what adapters add to a weight, so that any method can merge them.

use checkpoint::AdapterProduct;
use matrix::{Matrix, MatrixError, Singular, beside, factor_matrix, orthonormal, singular_vectors};
use numeric::NoMemory;
use recipe::AdapterWay;

/// What an adapter adds to a weight: `left right'`, with the scale in `left`.
pub(super) struct Update {
    /// A row for each output of the layer.
    pub(super) left: Matrix<f32>,
    /// A row for each of its inputs.
    pub(super) right: Matrix<f32>,
}

impl Update {
    /// Reads the factors of a product of this many rows and columns. `turned` is where the weight lies `[in, out]`.
    pub(super) fn read(
        product: &AdapterProduct<'_>,
        [rows, columns]: [usize; 2],
        turned: bool,
    ) -> Result<Self, NoMemory> {
        let AdapterProduct {
            left,
            right,
            rank,
            scale,
        } = *product;
        let of_rows = factor_matrix(left, rows, rank)?;
        let of_columns = factor_matrix(right, columns, rank)?;
        let (mut left, right) = match turned {
            true => (of_columns, of_rows),
            false => (of_rows, of_columns),
        };
        left.scale(scale);
        Ok(Self { left, right })
    }
}

/// The directions that the adapters of a weight use.
pub(super) struct Space {
    /// Directions of the outputs, as columns.
    left: Matrix<f32>,
    /// Directions of the inputs, as columns; all of them if there is nothing here.
    right: Option<Matrix<f32>>,
    /// Where the columns of each adapter begin, and where the last ends, if the columns are the adapters' factors.
    factors: Option<Vec<usize>>,
}

/// A weight's space, and each adapter's matrix in it; `None` for an adapter that does not change the weight.
pub(super) type Cores = (Space, Vec<Option<Matrix<f32>>>);

impl Space {
    /// The space of adapters; `None` if they add nothing but zeros.
    ///
    /// # Errors
    /// There is no memory, or the factors hold NaN or infinity.
    pub(super) fn new(
        way: AdapterWay,
        updates: &[Option<Update>],
    ) -> Result<Option<Cores>, MatrixError> {
        let left = beside(updates.iter().flatten().map(|update| &update.left))?;
        let right = beside(updates.iter().flatten().map(|update| &update.right))?;
        if way == AdapterWay::Cat {
            return Ok(Some(side_by_side(left, right, updates)?));
        }
        let left = orthonormal(&left)?;
        let right = match way {
            AdapterWay::Knots => None,
            _ => Some(orthonormal(&right)?),
        };
        if left.columns() == 0 || right.as_ref().is_some_and(|right| right.columns() == 0) {
            return Ok(None);
        }
        let mut space = Self {
            left,
            right,
            factors: None,
        };
        let mut cores = space.cores(updates)?;
        if way == AdapterWay::Knots {
            // The common directions of the outputs, by what the adapters do in them.
            let turned: Vec<Matrix<f32>> = cores.iter().flatten().cloned().collect();
            let common = singular_vectors(&beside(&turned)?, usize::MAX)?.left;
            space.left = space.left.times(&common)?;
            cores = space.cores(updates)?;
        }
        Ok((space.left.columns() > 0).then_some((space, cores)))
    }

    fn cores(&self, updates: &[Option<Update>]) -> Result<Vec<Option<Matrix<f32>>>, NoMemory> {
        let core = |update: &Update| {
            let left = self.left.transposed_times(&update.left)?;
            match &self.right {
                Some(right) => left.times_transposed(&right.transposed_times(&update.right)?),
                None => left.times_transposed(&update.right),
            }
        };
        let cores = updates
            .iter()
            .map(|update| update.as_ref().map(core).transpose());
        cores.collect()
    }

    /// Rows and columns of the matrices in it.
    pub(super) fn shape(&self, inputs: usize) -> [usize; 2] {
        let columns = self.right.as_ref().map_or(inputs, Matrix::columns);
        let probe = usize::from(self.factors.is_some());
        [self.left.columns() + probe, columns]
    }

    /// A matrix of the space as factors of the weight's update, of at most this rank; the square of the update, and of
    /// what that rank leaves out. `None` if it is no sum of whole adapters, where it must be.
    pub(super) fn factors(
        &self,
        merged: &Matrix<f32>,
        most: Option<usize>,
    ) -> Result<Option<(Update, f64, f64)>, MatrixError> {
        let Some(starts) = &self.factors else {
            let Singular {
                left,
                values,
                right,
            } = singular_vectors(merged, usize::MAX)?;
            let count = most.unwrap_or(usize::MAX).min(values.len());
            let roots: Vec<f64> = values.iter().map(|value| value.sqrt()).collect();
            let mut left = self.left.times(&left.first_columns(count))?;
            let right = right.first_columns(count);
            let mut right = match &self.right {
                Some(basis) => basis.times(&right)?,
                None => right,
            };
            left.scale_columns(&roots[..count]);
            right.scale_columns(&roots[..count]);
            let left_out = values[count..].iter().map(|value| value * value).sum();
            let change = merged.squared_norm();
            return Ok(Some((Update { left, right }, change, left_out)));
        };
        let Some(shares) = shares(merged, starts) else {
            return Ok(None);
        };
        let mut left = self.left.clone();
        left.scale_columns(&shares);
        let right = self.right.clone().map_or(Matrix::zeros(0, 0), Ok)?;
        let update = Update { left, right };
        if most.is_none_or(|most| self.left.columns() <= most) {
            // The shares do not say how large it is, and nothing is left out of it.
            return Ok(Some((update, 0.0, 0.0)));
        }
        let Some((space, cores)) = Self::new(AdapterWay::CoreSpace, &[Some(update)])? else {
            return Ok(Some((nothing(&self.left, self.right.as_ref())?, 0.0, 0.0)));
        };
        match cores.first() {
            Some(Some(core)) => space.factors(core, most),
            _ => Ok(None),
        }
    }
}

/// Factors of rank zero.
fn nothing(left: &Matrix<f32>, right: Option<&Matrix<f32>>) -> Result<Update, NoMemory> {
    Ok(Update {
        left: Matrix::zeros(left.rows(), 0)?,
        right: Matrix::zeros(right.map_or(0, Matrix::rows), 0)?,
    })
}

/// The factors as they are. Each adapter's matrix says which columns are its own, and has a row of numbers below, in which
/// all differ: only a sum of whole adapters has the same sum of those.
fn side_by_side(
    left: Matrix<f32>,
    right: Matrix<f32>,
    updates: &[Option<Update>],
) -> Result<Cores, NoMemory> {
    let whole = left.columns();
    let mut starts = vec![0];
    let mut cores = Vec::new();
    for update in updates {
        let Some(update) = update else {
            cores.push(None);
            continue;
        };
        let start = starts.last().copied().unwrap_or(0);
        let end = start + update.left.columns();
        let mut core = Matrix::zeros(whole + 1, whole)?;
        for place in start..end {
            core.values_mut()[place * whole + place] = 1.0;
        }
        let number = starts.len() - 1;
        for column in 0..whole {
            core.values_mut()[whole * whole + column] = probe(number, column);
        }
        cores.push(Some(core));
        starts.push(end);
    }
    let space = Space {
        left,
        right: Some(right),
        factors: Some(starts),
    };
    Ok((space, cores))
}

/// A number of the row below an adapter's matrix: a small one, of either sign.
fn probe(adapter: usize, column: usize) -> f32 {
    let mixed = adapter.wrapping_mul(5).wrapping_add(column.wrapping_mul(3)) % 7;
    mixed as f32 - 3.5
}

/// How much of each column a merge of such matrices keeps: the same of all columns of an adapter, and nothing else.
fn shares(merged: &Matrix<f32>, starts: &[usize]) -> Option<Vec<f64>> {
    let side = merged.columns();
    let value = |row: usize, column: usize| f64::from(merged.values()[row * side + column]);
    let mut shares = Vec::with_capacity(side);
    let mut of_adapters = Vec::new();
    for block in starts.windows(2) {
        let share = value(block[0], block[0]);
        of_adapters.push(share);
        for place in block[0]..block[1] {
            let apart = (0..side).any(|column| column != place && value(place, column) != 0.0);
            if apart || value(place, place) != share {
                return None;
            }
            shares.push(share);
        }
    }
    let is_sum = |column: usize| {
        let parts = of_adapters.iter().enumerate();
        let parts = parts.map(|(adapter, share)| share * f64::from(probe(adapter, column)));
        let (sum, size) = parts.fold((0.0, 0.0), |(sum, size), part: f64| {
            (sum + part, size + part.abs())
        });
        (value(side, column) - sum).abs() <= 1e-5 * size
    };
    (0..side).all(is_sum).then_some(shares)
}
