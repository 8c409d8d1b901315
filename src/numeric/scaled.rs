//! Matrices times a scale for each of their blocks, computed as it is read: how 8-bit weights are stored.

use super::elements::{Elements, Fill};
use super::format::FloatType;
use super::memory::{NoMemory, resize};
use super::real::Real;
use super::vector::vectorised;

/// Values of matrices, each multiplied by the scale of the block that it lies in.
pub struct Scaled<'a> {
    /// The values as stored: matrices of `[rows, columns]`, in row order.
    pub values: Box<dyn Elements + 'a>,
    /// One scale for each block: for each matrix `[rows / block[0], columns / block[1]]`, both rounded up, in row order.
    pub scales: Box<dyn Elements + 'a>,
    /// Rows of a matrix, at least one.
    pub rows: usize,
    /// Elements per row, at least one.
    pub columns: usize,
    /// Rows and columns of a block, at least one each; blocks at the edges may be smaller.
    pub block: [usize; 2],
    /// The format that the products are to be written in; decides their precision.
    pub format: FloatType,
}

impl<R: Real> Fill<R> for Scaled<'_> {
    /// Only the bytes of the values are counted.
    fn fill(&self, first: u64, out: &mut [R]) -> Result<usize, NoMemory> {
        let mut read = 0;
        let [height, width] = self.block;
        let blocks = self.columns.div_ceil(width);
        let mut scales = Vec::new();
        let (mut row, mut column) = (first as usize / self.columns, first as usize % self.columns);
        let (mut rest, mut at) = (out, first);
        while !rest.is_empty() {
            let (run, after) = rest.split_at_mut(rest.len().min(self.columns - column));
            let block = column / width;
            let end = (column + run.len()).div_ceil(width);
            resize(&mut scales, end - block, R::ZERO)?;
            let (matrix, within) = (row / self.rows, row % self.rows);
            let place = (matrix * self.rows.div_ceil(height) + within / height) * blocks + block;
            R::fill(self.scales.as_ref(), place as u64, &mut scales)?;
            // Row by row, so that what is multiplied is still in the first-level cache.
            read += R::fill(self.values.as_ref(), at, run)?;
            at += run.len() as u64;
            multiply(run, width - column % width, width, &scales);
            (rest, row, column) = (after, row + 1, 0);
        }
        Ok(read)
    }
}

vectorised! {
    /// Multiplies part of a row by the scales of its blocks: the first `left` values by the first, then `width` by each.
    fn multiply<R: Real>(values: &mut [R], left: usize, width: usize, scales: &[R]) {
        let (mut rest, mut left) = (values, left);
        for scale in scales {
            let (here, next) = rest.split_at_mut(rest.len().min(left));
            for value in here {
                *value = *value * *scale;
            }
            (rest, left) = (next, width);
        }
    }
}

impl Elements for Scaled<'_> {
    fn format(&self) -> FloatType {
        self.format
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;
    use crate::Stored;

    proptest! {
        /// Any part of any matrices equals each element times the scale of its block; edge blocks are ragged.
        #[test]
        fn any_range_is_that_of_each_element_by_itself(
            matrices in 1usize..4,
            rows in 1usize..9,
            columns in 1usize..40,
            height in 1usize..5,
            width in 1usize..17,
            from in 0.0..1.0,
            length in 0.0..1.0,
        ) {
            let count = matrices * rows * columns;
            let (down, across) = (rows.div_ceil(height), columns.div_ceil(width));
            // E4M3 bytes of finite numbers, and scales that are not powers of two.
            let values: Vec<u8> = (0..count).map(|at| (at * 37 % 120) as u8 | (at as u8 & 1) << 7).collect();
            let scales: Vec<f32> = (0..matrices * down * across).map(|at| 0.37 + at as f32 * 1.3).collect();
            let scale_bytes: Vec<u8> = scales.iter().flat_map(|scale| scale.to_le_bytes()).collect();
            let stored = Stored { bytes: &values, format: FloatType::F8E4m3 };
            let mut plain = vec![0f64; count];
            stored.fill(0, &mut plain).unwrap();
            let scaled = Scaled {
                values: Box::new(stored),
                scales: Box::new(Stored { bytes: &scale_bytes, format: FloatType::F32 }),
                rows,
                columns,
                block: [height, width],
                format: FloatType::Bf16,
            };
            let first = (from * count as f64) as usize;
            let length = (length * (count - first) as f64) as usize;
            let (mut double, mut single) = (vec![f64::NAN; length], vec![f32::NAN; length]);
            let read = Fill::<f64>::fill(&scaled, first as u64, &mut double).unwrap();
            prop_assert_eq!(read, length);
            Fill::<f32>::fill(&scaled, first as u64, &mut single).unwrap();
            for (at, (double, single)) in (first..).zip(double.iter().zip(&single)) {
                let (row, column) = (at / columns, at % columns);
                let down_to = row / rows * down + row % rows / height;
                let scale = scales[down_to * across + column / width];
                prop_assert_eq!(*double, plain[at] * f64::from(scale));
                prop_assert_eq!(*single, plain[at] as f32 * scale);
            }
        }
    }
}
