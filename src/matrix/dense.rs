//! Matrices in row order, and their products.

use numeric::{NoMemory, Real, View, add_product, filled, multiply};
use rayon::prelude::*;

/// Rows of a product that one task computes.
const BAND: usize = 256;
/// Rows of a factor that are converted to f64 together.
const PANEL: usize = 512;
/// Columns that one task turns into rows.
const STRIPE: usize = 64;

/// A matrix in row order.
#[derive(Debug, Clone, PartialEq)]
pub struct Matrix<T> {
    values: Vec<T>,
    rows: usize,
    columns: usize,
}

impl<T: Real> Matrix<T> {
    /// A matrix of zeros.
    ///
    /// # Errors
    /// If there is no memory.
    pub fn zeros(rows: usize, columns: usize) -> Result<Self, NoMemory> {
        let length = rows.saturating_mul(columns);
        Ok(Self {
            values: filled(length, T::ZERO)?,
            rows,
            columns,
        })
    }

    /// The matrix of these elements, row by row.
    ///
    /// # Panics
    /// If they are not as many: an error of the caller.
    pub fn from_values(rows: usize, columns: usize, values: Vec<T>) -> Self {
        assert_eq!(Some(values.len()), rows.checked_mul(columns));
        Self {
            values,
            rows,
            columns,
        }
    }

    /// The matrix of what a function says of each row and column.
    ///
    /// # Errors
    /// If there is no memory.
    pub fn from_fn(
        rows: usize,
        columns: usize,
        of: impl Fn(usize, usize) -> T,
    ) -> Result<Self, NoMemory> {
        let mut out = Self::zeros(rows, columns)?;
        for (row, values) in out.values.chunks_mut(columns.max(1)).enumerate() {
            for (column, value) in values.iter_mut().enumerate() {
                *value = of(row, column);
            }
        }
        Ok(out)
    }

    /// How many rows.
    pub fn rows(&self) -> usize {
        self.rows
    }

    /// How many columns.
    pub fn columns(&self) -> usize {
        self.columns
    }

    /// One element.
    ///
    /// # Panics
    /// If there is no such row or column: an error of the caller.
    pub fn at(&self, row: usize, column: usize) -> T {
        assert!(column < self.columns);
        self.values[row * self.columns + column]
    }

    /// The elements, row by row.
    pub fn values(&self) -> &[T] {
        &self.values
    }

    /// The elements, row by row.
    pub fn values_mut(&mut self) -> &mut [T] {
        &mut self.values
    }

    /// The same with rows and columns exchanged.
    ///
    /// # Errors
    /// If there is no memory.
    pub fn transposed(&self) -> Result<Self, NoMemory> {
        let (rows, columns) = (self.rows, self.columns);
        let mut out = Self::zeros(columns, rows)?;
        let stripes = out
            .values
            .par_chunks_mut((STRIPE * rows).max(1))
            .enumerate();
        stripes.for_each(|(stripe, out)| {
            for (row, values) in self.values.chunks(columns.max(1)).enumerate() {
                let values = &values[stripe * STRIPE..];
                for (out, value) in out.chunks_mut(rows).zip(values) {
                    out[row] = *value;
                }
            }
        });
        Ok(out)
    }

    /// Adds `factor` times another matrix of the same shape.
    ///
    /// # Panics
    /// If the shapes differ: an error of the caller.
    pub fn add(&mut self, other: &Self, factor: f64) {
        assert!(self.rows == other.rows && self.columns == other.columns);
        let factor = T::from_f64(factor);
        let pairs = self.values.par_iter_mut().zip(&other.values);
        pairs.for_each(|(sum, value)| *sum += factor * *value);
    }

    /// Multiplies every element by the same factor.
    pub fn scale(&mut self, factor: f64) {
        let factor = T::from_f64(factor);
        let values = self.values.par_iter_mut();
        values.for_each(|value| *value = *value * factor);
    }

    /// Multiplies each column by its factor.
    ///
    /// # Panics
    /// If there are fewer factors than columns: an error of the caller.
    pub fn scale_columns(&mut self, factors: &[f64]) {
        let factors: Vec<T> = factors.iter().map(|&factor| T::from_f64(factor)).collect();
        let factors = &factors[..self.columns];
        let rows = self.values.par_chunks_mut(self.columns.max(1));
        rows.for_each(|row| {
            for (value, factor) in row.iter_mut().zip(factors) {
                *value = *value * *factor;
            }
        });
    }

    /// Sets the columns from `first` on to those of another matrix with as many rows.
    ///
    /// # Panics
    /// If they do not fit: an error of the caller.
    pub fn place(&mut self, first: usize, other: &Self) {
        assert!(self.rows == other.rows && first + other.columns <= self.columns);
        if other.columns == 0 {
            return;
        }
        let rows = self.values.par_chunks_mut(self.columns);
        rows.zip(other.values.par_chunks(other.columns))
            .for_each(|(row, values)| row[first..first + values.len()].copy_from_slice(values));
    }

    /// Leaves out all columns but the first ones.
    #[must_use]
    pub fn first_columns(mut self, count: usize) -> Self {
        if count < self.columns {
            for row in 1..self.rows {
                let start = row * self.columns;
                self.values.copy_within(start..start + count, row * count);
            }
            self.values.truncate(self.rows * count);
            self.columns = count;
        }
        self
    }

    /// The length of each column.
    pub fn column_norms(&self) -> Vec<f64> {
        let mut sums = vec![0.0; self.columns];
        for row in self.values.chunks(self.columns.max(1)) {
            for (sum, value) in sums.iter_mut().zip(row) {
                *sum += value.to_f64() * value.to_f64();
            }
        }
        sums.into_iter().map(f64::sqrt).collect()
    }

    /// The sum of the squares of all elements.
    pub fn squared_norm(&self) -> f64 {
        let bands = self.values.par_chunks((BAND * self.columns).max(1));
        let square = |value: &T| value.to_f64() * value.to_f64();
        let sums: Vec<f64> = bands.map(|band| band.iter().map(square).sum()).collect();
        sums.iter().sum()
    }

    /// Whether no element is NaN or infinite.
    pub fn is_finite(&self) -> bool {
        let mut values = self.values.iter();
        values.all(|value| value.to_f64().is_finite())
    }

    /// `self other`.
    ///
    /// # Errors
    /// If there is no memory.
    ///
    /// # Panics
    /// If the matrices do not fit together: an error of the caller.
    pub fn times(&self, other: &Self) -> Result<Self, NoMemory> {
        product(self.view(), other.view())
    }

    /// `self other'`.
    ///
    /// # Errors
    /// If there is no memory.
    ///
    /// # Panics
    /// If the matrices do not fit together: an error of the caller.
    pub fn times_transposed(&self, other: &Self) -> Result<Self, NoMemory> {
        product(self.view(), other.view().transposed())
    }

    /// `self' other`.
    ///
    /// # Errors
    /// If there is no memory.
    ///
    /// # Panics
    /// If the matrices do not fit together: an error of the caller.
    pub fn transposed_times(&self, other: &Self) -> Result<Self, NoMemory> {
        product(self.view().transposed(), other.view())
    }

    fn view(&self) -> View<'_, T> {
        View::rows(&self.values, self.rows, self.columns)
    }
}

impl Matrix<f64> {
    /// The nearest matrix of f32.
    ///
    /// # Errors
    /// If there is no memory.
    pub fn narrowed(&self) -> Result<Matrix<f32>, NoMemory> {
        let mut out = Matrix::zeros(self.rows, self.columns)?;
        let pairs = out.values.par_iter_mut().zip(&self.values);
        pairs.for_each(|(out, value)| *out = *value as f32);
        Ok(out)
    }
}

/// The rows of a view from `first` on, `count` of them.
fn band<T>(view: View<'_, T>, first: usize, count: usize) -> View<'_, T> {
    View {
        values: view.values.get(first * view.down..).unwrap_or_default(),
        rows: count,
        ..view
    }
}

fn product<T: Real>(left: View<'_, T>, right: View<'_, T>) -> Result<Matrix<T>, NoMemory> {
    let columns = right.columns;
    let mut out = Matrix::zeros(left.rows, columns)?;
    let bands = out
        .values
        .par_chunks_mut((BAND * columns).max(1))
        .enumerate();
    bands.for_each(|(number, out)| {
        multiply(out, band(left, number * BAND, out.len() / columns), right);
    });
    Ok(out)
}

/// The sum of the squares of `matrix - left right'`.
///
/// # Errors
/// If there is no memory.
///
/// # Panics
/// If the matrices do not fit together: an error of the caller.
pub fn squared_residual<T: Real>(
    matrix: &Matrix<T>,
    left: &Matrix<T>,
    right: &Matrix<T>,
) -> Result<f64, NoMemory> {
    let columns = matrix.columns.max(1);
    let bands = matrix.values.par_chunks(BAND * columns).enumerate();
    let sums = bands.map(|(number, values)| {
        let mut product = filled(values.len(), T::ZERO)?;
        let left = band(left.view(), number * BAND, values.len() / columns);
        multiply(&mut product, left, right.view().transposed());
        let squares = values.iter().zip(&product).map(|(value, product)| {
            let difference = value.to_f64() - product.to_f64();
            difference * difference
        });
        Ok(squares.sum())
    });
    let sums: Vec<f64> = sums.collect::<Result<_, NoMemory>>()?;
    Ok(sums.iter().sum())
}

/// `matrix' matrix`, in f64.
///
/// # Errors
/// If there is no memory.
pub fn gram<T: Real>(matrix: &Matrix<T>) -> Result<Matrix<f64>, NoMemory> {
    let mut square = Matrix::zeros(matrix.columns, matrix.columns)?;
    add_gram(&mut square, matrix, 1.0)?;
    Ok(square)
}

/// Adds `factor matrix' matrix` to a symmetric matrix.
///
/// # Errors
/// If there is no memory.
///
/// # Panics
/// If the square is not as wide as the matrix: an error of the caller.
pub fn add_gram<T: Real>(
    square: &mut Matrix<f64>,
    matrix: &Matrix<T>,
    factor: f64,
) -> Result<(), NoMemory> {
    add_below(square, matrix, factor)?;
    mirror(square);
    Ok(())
}

/// A sum of `matrix' matrix` over matrices that come one after the other.
#[derive(Debug)]
pub struct GramSum(Matrix<f64>);

impl GramSum {
    /// An empty sum, for matrices of that many columns.
    ///
    /// # Errors
    /// If there is no memory.
    pub fn new(columns: usize) -> Result<Self, NoMemory> {
        Ok(Self(Matrix::zeros(columns, columns)?))
    }

    /// Adds `matrix' matrix`.
    ///
    /// # Errors
    /// If there is no memory.
    ///
    /// # Panics
    /// If the matrix has another number of columns: an error of the caller.
    pub fn add<T: Real>(&mut self, matrix: &Matrix<T>) -> Result<(), NoMemory> {
        add_below(&mut self.0, matrix, 1.0)
    }

    /// The sum.
    pub fn finish(mut self) -> Matrix<f64> {
        mirror(&mut self.0);
        self.0
    }

    /// Bytes that a sum holds, and the most that adding to it takes beside it and the matrix.
    pub fn bytes(columns: usize) -> (u64, u64) {
        let row = (columns as u64).saturating_mul(8);
        (
            row.saturating_mul(columns as u64),
            row.saturating_mul(PANEL as u64),
        )
    }
}

/// Adds `factor matrix' matrix` on the diagonal and below it; what lies above it is then of no use.
fn add_below<T: Real>(
    square: &mut Matrix<f64>,
    matrix: &Matrix<T>,
    factor: f64,
) -> Result<(), NoMemory> {
    let size = matrix.columns;
    assert!(square.rows == size && square.columns == size);
    if size == 0 {
        return Ok(());
    }
    let mut wide = filled(PANEL.min(matrix.rows) * size, 0.0f64)?;
    for panel in matrix.values.chunks(PANEL * size) {
        let wide = &mut wide[..panel.len()];
        let pairs = wide.par_iter_mut().zip(panel);
        pairs.for_each(|(wide, value)| *wide = value.to_f64());
        let panel = View::rows(&*wide, panel.len() / size, size);
        let bands = square.values.par_chunks_mut(BAND * size).enumerate();
        bands.for_each(|(number, out)| {
            let (first, rows) = (number * BAND, out.len() / size);
            let left = band(panel.transposed(), first, rows);
            // Of each row, what lies on the diagonal or left of it, and a triangle more.
            let right = View {
                columns: first + rows,
                ..panel
            };
            add_product(out, size, left, right, factor);
        });
    }
    Ok(())
}

/// Copies what lies below the diagonal to its place above it.
fn mirror(square: &mut Matrix<f64>) {
    let size = square.rows;
    let mut rest = square.values.as_mut_slice();
    let mut above: Vec<&mut [f64]> = Vec::with_capacity(size);
    while !rest.is_empty() {
        let (row, below) = rest.split_at_mut(size);
        let at = above.len();
        for (column, other) in above.iter_mut().enumerate() {
            other[at] = row[column];
        }
        above.push(row);
        rest = below;
    }
}
