//! Parts of matrices, stacked or placed side by side: how experts are cut out and put together.

use std::ops::Range;
use std::sync::Arc;

use super::elements::{Elements, Fill};
use super::format::FloatType;
use super::memory::{NoMemory, resize};
use super::real::Real;

/// A choice of rows, or of columns, of a matrix.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Picks {
    /// Adjacent ones.
    Range(Range<usize>),
    /// Any of them, in this order.
    List {
        /// Their indices.
        picks: Arc<[u32]>,
        /// How many the matrix has.
        of: usize,
    },
}

impl Picks {
    /// How many are chosen.
    pub fn len(&self) -> usize {
        match self {
            Picks::Range(range) => range.len(),
            Picks::List { picks, .. } => picks.len(),
        }
    }

    /// Whether none is chosen.
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }

    fn get(&self, index: usize) -> usize {
        match self {
            Picks::Range(range) => range.start + index,
            Picks::List { picks, .. } => picks[index] as usize,
        }
    }
}

/// Some rows and columns of a matrix; each column may be scaled by a factor.
pub struct Submatrix<'a> {
    /// The matrix. In a tensor of more dimensions, a row runs along the last one.
    pub matrix: Box<dyn Elements + 'a>,
    /// Elements per row of the matrix.
    pub width: usize,
    /// The rows that are taken.
    pub rows: Picks,
    /// The columns that are taken.
    pub columns: Picks,
    /// One factor for each column of the matrix.
    pub factors: Option<Vec<f64>>,
}

impl Submatrix<'_> {
    fn elements(&self) -> u64 {
        self.rows.len() as u64 * self.columns.len() as u64
    }

    /// Sets `out` to the elements of one row, from its column `first` on; returns the bytes read.
    fn row<R: Real>(
        &self,
        row: usize,
        first: usize,
        out: &mut [R],
        scratch: &mut Vec<R>,
    ) -> Result<usize, NoMemory> {
        let start = self.rows.get(row) as u64 * self.width as u64;
        let read = match &self.columns {
            Picks::Range(range) => R::fill(
                self.matrix.as_ref(),
                start + (range.start + first) as u64,
                out,
            )?,
            Picks::List { picks, .. } => {
                resize(scratch, self.width, R::ZERO)?;
                let read = R::fill(self.matrix.as_ref(), start, scratch)?;
                for (value, pick) in out.iter_mut().zip(&picks[first..]) {
                    *value = scratch[*pick as usize];
                }
                read
            }
        };
        if let Some(factors) = &self.factors {
            for (index, value) in out.iter_mut().enumerate() {
                *value = R::from_f64(value.to_f64() * factors[self.columns.get(first + index)]);
            }
        }
        Ok(read)
    }

    /// Whether these are whole adjacent rows, unchanged.
    fn is_run(&self) -> bool {
        matches!((&self.rows, &self.columns), (Picks::Range(_), Picks::Range(columns)) if *columns == (0..self.width))
            && self.factors.is_none()
    }

    fn fill_from<R: Real>(&self, first: u64, out: &mut [R]) -> Result<usize, NoMemory> {
        if self.is_run() {
            let start = self.rows.get(0) as u64 * self.width as u64;
            return R::fill(self.matrix.as_ref(), start + first, out);
        }
        let columns = self.columns.len();
        let (mut row, mut column) = (
            (first / columns as u64) as usize,
            (first % columns as u64) as usize,
        );
        let (mut read, mut rest, mut scratch) = (0, out, Vec::new());
        while !rest.is_empty() {
            let (here, after) = rest.split_at_mut((columns - column).min(rest.len()));
            read += self.row(row, column, here, &mut scratch)?;
            (rest, row, column) = (after, row + 1, 0);
        }
        Ok(read)
    }
}

/// Parts of matrices, one after the other.
pub struct Joined<'a> {
    /// Each part with the index of its first element.
    parts: Vec<(u64, Submatrix<'a>)>,
    format: FloatType,
}

impl<'a> Joined<'a> {
    /// Joins the parts. Each part's rows and columns must lie within its matrix.
    pub fn new(parts: Vec<Submatrix<'a>>) -> Self {
        let formats = parts.iter().map(|part| part.matrix.format());
        let format = formats.reduce(FloatType::promote).unwrap_or(FloatType::F32);
        let mut first = 0;
        let place = |part: Submatrix<'a>| {
            let start = first;
            first += part.elements();
            (start, part)
        };
        Self {
            parts: parts.into_iter().map(place).collect(),
            format,
        }
    }
}

impl<R: Real> Fill<R> for Joined<'_> {
    fn fill(&self, first: u64, out: &mut [R]) -> Result<usize, NoMemory> {
        let (mut first, mut rest, mut read) = (first, out, 0);
        // The last part that starts at or before the first element; empty parts come before it.
        let index = self.parts.partition_point(|(start, _)| *start <= first);
        for (start, part) in &self.parts[index.saturating_sub(1)..] {
            let left = (start + part.elements()).saturating_sub(first);
            let (here, after) = rest.split_at_mut(rest.len().min(left as usize));
            if !here.is_empty() {
                read += part.fill_from(first - start, here)?;
                first += here.len() as u64;
            }
            rest = after;
        }
        Ok(read)
    }
}

impl Elements for Joined<'_> {
    fn format(&self) -> FloatType {
        self.format
    }
}

/// Parts of matrices with the same number of rows, side by side.
pub struct HConcat<'a> {
    /// Each part with the index of its first column; no part is empty.
    parts: Vec<(usize, Submatrix<'a>)>,
    /// Elements per row of the result.
    width: usize,
    format: FloatType,
}

impl<'a> HConcat<'a> {
    /// Joins the parts. Each part's rows and columns must lie within its matrix.
    pub fn new(parts: Vec<Submatrix<'a>>) -> Self {
        let formats = parts.iter().map(|part| part.matrix.format());
        let format = formats.reduce(FloatType::promote).unwrap_or(FloatType::F32);
        let mut width = 0;
        let place = |part: Submatrix<'a>| {
            let start = width;
            width += part.columns.len();
            (start, part)
        };
        let parts = parts.into_iter().filter(|part| !part.columns.is_empty());
        Self {
            parts: parts.map(place).collect(),
            width,
            format,
        }
    }
}

impl<R: Real> Fill<R> for HConcat<'_> {
    fn fill(&self, first: u64, out: &mut [R]) -> Result<usize, NoMemory> {
        let width = self.width.max(1) as u64;
        let (mut row, mut column) = ((first / width) as usize, (first % width) as usize);
        let (mut read, mut rest, mut scratch) = (0, out, Vec::new());
        while !rest.is_empty() {
            let index = self.parts.partition_point(|(start, _)| *start <= column);
            let Some((start, part)) = self.parts.get(index.saturating_sub(1)) else {
                return Ok(read);
            };
            let left = start + part.columns.len() - column;
            let (here, after) = rest.split_at_mut(rest.len().min(left));
            read += part.row(row, column - start, here, &mut scratch)?;
            column += here.len();
            if column == self.width {
                (row, column) = (row + 1, 0);
            }
            rest = after;
        }
        Ok(read)
    }
}

impl Elements for HConcat<'_> {
    fn format(&self) -> FloatType {
        self.format
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::Stored;
    use proptest::prelude::*;

    fn list(picks: &[u32], of: usize) -> Picks {
        Picks::List {
            picks: picks.into(),
            of,
        }
    }

    /// A matrix in which each element is its own index.
    fn numbers(rows: usize, width: usize) -> Vec<u8> {
        let values = (0..rows * width).map(|number| number as f32);
        values.flat_map(f32::to_le_bytes).collect()
    }

    proptest! {
        /// Every window of a join equals what joining element by element returns.
        #[test]
        fn windows_are_those_of_the_whole(
            picked_rows in prop::collection::vec(0u32..5, 0..6),
            picked_columns in prop::collection::vec(0u32..7, 0..8),
            range in (0usize..5, 0usize..5),
            columns in (0usize..7, 0usize..7),
            scaled in any::<bool>(),
            window in (0usize..200, 0usize..200),
        ) {
            let bytes = numbers(5, 7);
            let stored = || Box::new(Stored { bytes: &bytes, format: FloatType::F32 });
            let ordered = |(a, b): (usize, usize)| Picks::Range(a.min(b)..a.max(b));
            let factors: Vec<f64> = (0..7).map(|column| 1.0 + column as f64).collect();
            let parts = [
                (list(&picked_rows, 5), list(&picked_columns, 7)),
                (ordered(range), Picks::Range(0..7)),
                (ordered(range), ordered(columns)),
            ];
            let mut whole = Vec::new();
            for (rows, columns) in &parts {
                for row in 0..rows.len() {
                    for column in 0..columns.len() {
                        let column = columns.get(column);
                        let factor = if scaled { factors[column] } else { 1.0 };
                        whole.push((rows.get(row) * 7 + column) as f64 * factor);
                    }
                }
            }
            let joined = Joined::new(parts.map(|(rows, columns)| Submatrix {
                matrix: stored(), width: 7, rows, columns, factors: scaled.then(|| factors.clone()),
            }).into());
            let (start, end) = (window.0.min(whole.len()), window.1.min(whole.len()));
            let (start, end) = (start.min(end), start.max(end));
            let mut out = vec![-1.0f64; end - start];
            Fill::<f64>::fill(&joined, start as u64, &mut out).unwrap();
            prop_assert_eq!(out, &whole[start..end]);
        }

        /// The same for parts side by side.
        #[test]
        fn windows_of_parts_side_by_side_are_those_of_the_whole(
            picked_rows in prop::collection::vec(0u32..5, 0..6),
            picked_columns in prop::collection::vec(0u32..7, 0..8),
            columns in (0usize..7, 0usize..7),
            window in (0usize..200, 0usize..200),
        ) {
            let bytes = numbers(5, 7);
            let factors: Vec<f64> = (0..7).map(|column| 1.0 + column as f64).collect();
            let parts = [
                (list(&picked_columns, 7), None),
                (Picks::Range(columns.0.min(columns.1)..columns.0.max(columns.1)), Some(factors)),
                (Picks::Range(0..7), None),
            ];
            let mut whole = Vec::new();
            for row in &picked_rows {
                for (columns, factors) in &parts {
                    for column in (0..columns.len()).map(|column| columns.get(column)) {
                        let factor = factors.as_ref().map_or(1.0, |factors| factors[column]);
                        whole.push((*row as usize * 7 + column) as f64 * factor);
                    }
                }
            }
            let beside = HConcat::new(parts.map(|(columns, factors)| Submatrix {
                matrix: Box::new(Stored { bytes: &bytes, format: FloatType::F32 }),
                width: 7, rows: list(&picked_rows, 5), columns, factors,
            }).into());
            let (start, end) = (window.0.min(whole.len()), window.1.min(whole.len()));
            let (start, end) = (start.min(end), start.max(end));
            let mut out = vec![-1.0f64; end - start];
            Fill::<f64>::fill(&beside, start as u64, &mut out).unwrap();
            prop_assert_eq!(out, &whole[start..end]);
        }
    }
}
