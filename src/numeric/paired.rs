//! A matrix plus a product of two others: element by element (LoHa), or Kronecker's (LoKr). It is computed as it is read,
//! and neither of the two is ever whole in memory.
//!
//! Each element is summed by itself, in f64, in an order that does not depend on the range that is read.

use super::elements::{Elements, Factor, Fill, Stored};
use super::format::FloatType;
use super::low_rank::{FactorScratch, MatrixRegion, parts, product_of_factors};
use super::memory::{NoMemory, resize};
use super::real::Real;

/// `base + scale * (first * second)`.
pub struct Paired<'a> {
    /// The matrix that the product is added to: `[rows, columns]`, in row order.
    pub base: Box<dyn Elements + 'a>,
    /// Elements per row, at least one.
    pub columns: usize,
    /// The row of the product that is added to the first row of the base.
    pub first_row: usize,
    /// How the two are multiplied.
    pub pairing: Pairing,
    /// The first of the two.
    pub first: PairedMatrix<'a>,
    /// The second.
    pub second: PairedMatrix<'a>,
    /// The factor of the product.
    pub scale: f64,
}

/// How two matrices are multiplied.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Pairing {
    /// Element by element.
    ///
    /// Source: Hyeon-Woo et al., "FedPara: Low-Rank Hadamard Product for Communication-Efficient Federated Learning",
    /// 2022, equation 1.
    Hadamard,
    /// Kronecker's product: every element of the first times all of the second.
    ///
    /// Source: Yeh et al., "Navigating Text-To-Image Customization: From LyCORIS Fine-Tuning to Model Evaluation", 2024,
    /// equation 5.
    Kronecker {
        /// The second's rows, at least one.
        rows: usize,
        /// The second's columns, at least one.
        columns: usize,
    },
}

/// One of the two: stored as it is, or as a product.
#[derive(Debug, Clone, Copy)]
pub enum PairedMatrix<'a> {
    /// All of it, in row order.
    Whole {
        /// The numbers.
        values: Stored<'a>,
        /// Elements per row.
        columns: usize,
    },
    /// `L R`.
    Product {
        /// A vector of length `rank` for each row.
        left: Factor<'a>,
        /// A vector of length `rank` for each column.
        right: Factor<'a>,
        /// The rank.
        rank: usize,
    },
    /// A kernel in Tucker's form: `sum over i, j of core[i, j, k] * left[i, row] * right[j, input]`, where a column is
    /// an input and a place `k` in the kernel.
    Tucker {
        /// `[rank, rank, kernel]`.
        core: Stored<'a>,
        /// `[rank, rows]`.
        left: Factor<'a>,
        /// `[rank, inputs]`.
        right: Factor<'a>,
        /// The rank.
        rank: usize,
        /// How many elements the kernel has, at least one.
        kernel: usize,
    },
}

/// The buffers of one call of [`Fill::fill`].
#[derive(Default)]
struct Scratch {
    tile: Vec<f64>,
    first: Vec<f64>,
    second: Vec<f64>,
    base: Vec<f64>,
    matrix: MatrixScratch,
}

/// The buffers that the values of one of the two are made in.
#[derive(Default)]
struct MatrixScratch {
    factors: FactorScratch,
    left: Vec<f64>,
    right: Vec<f64>,
    core: Vec<f64>,
    line: Vec<f64>,
}

impl PairedMatrix<'_> {
    /// Computes a part of the matrix into `out`.
    fn values(
        &self,
        part: MatrixRegion,
        scratch: &mut MatrixScratch,
        out: &mut Vec<f64>,
    ) -> Result<(), NoMemory> {
        match self {
            PairedMatrix::Whole { values, columns } => {
                resize(out, part.height() * part.width(), 0.0)?;
                for (row, out) in (part.rows.0..).zip(out.chunks_mut(part.width())) {
                    values.fill((row * columns + part.columns.0) as u64, out)?;
                }
                Ok(())
            }
            PairedMatrix::Product { left, right, rank } => {
                product_of_factors((left, right, *rank), part, &mut scratch.factors, out)
            }
            PairedMatrix::Tucker {
                core,
                left,
                right,
                rank,
                kernel,
            } => {
                out.clear();
                resize(out, part.height() * part.width(), 0.0)?;
                let inputs = (part.columns.0 / kernel, (part.columns.1 - 1) / kernel + 1);
                let count = inputs.1 - inputs.0;
                let MatrixScratch {
                    left: of_rows,
                    right: of_inputs,
                    core: slice,
                    line,
                    ..
                } = scratch;
                right.decode(*rank, (0, *rank), inputs, of_inputs)?;
                resize(slice, rank * kernel, 0.0)?;
                for i in 0..*rank {
                    core.fill((i * rank * kernel) as u64, slice)?;
                    line.clear();
                    resize(line, part.width(), 0.0)?;
                    for (j, core) in slice.chunks(*kernel).enumerate() {
                        let of_inputs = &of_inputs[j * count..(j + 1) * count];
                        for (sum, column) in line.iter_mut().zip(part.columns.0..) {
                            *sum += core[column % kernel] * of_inputs[column / kernel - inputs.0];
                        }
                    }
                    left.decode(*rank, (i, i + 1), part.rows, of_rows)?;
                    for (sums, factor) in out.chunks_mut(part.width()).zip(&*of_rows) {
                        sums.iter_mut()
                            .zip(&*line)
                            .for_each(|(sum, value)| *sum += factor * value);
                    }
                }
                Ok(())
            }
        }
    }
}

/// The places of a range by the second matrix's length: which of the first's places, and which range of the second's.
fn cells(
    (start, end): (usize, usize),
    length: usize,
) -> impl Iterator<Item = (usize, (usize, usize))> {
    (start / length..=(end - 1) / length).map(move |cell| {
        let origin = cell * length;
        let from = start.max(origin) - origin;
        (cell, (from, end.min(origin + length) - origin))
    })
}

impl Paired<'_> {
    /// Computes `scale * (first * second)` for a part of the product into `scratch.tile`; the part is not empty.
    fn product(&self, part: MatrixRegion, scratch: &mut Scratch) -> Result<(), NoMemory> {
        let Scratch {
            tile,
            first,
            second,
            matrix,
            ..
        } = scratch;
        match self.pairing {
            Pairing::Hadamard => {
                self.first.values(part, matrix, tile)?;
                self.second.values(part, matrix, second)?;
                tile.iter_mut()
                    .zip(&*second)
                    .for_each(|(value, other)| *value *= other * self.scale);
            }
            Pairing::Kronecker { rows, columns } => {
                resize(tile, part.height() * part.width(), 0.0)?;
                let of_first = MatrixRegion {
                    rows: (part.rows.0 / rows, (part.rows.1 - 1) / rows + 1),
                    columns: (part.columns.0 / columns, (part.columns.1 - 1) / columns + 1),
                };
                self.first.values(of_first, matrix, first)?;
                let mut down = 0;
                for (row, rows) in cells(part.rows, rows) {
                    let mut across = 0;
                    for (column, columns) in cells(part.columns, columns) {
                        let of_second = MatrixRegion { rows, columns };
                        self.second.values(of_second, matrix, second)?;
                        let at = (row - of_first.rows.0) * of_first.width();
                        let factor = first[at + column - of_first.columns.0] * self.scale;
                        let lines = tile.chunks_mut(part.width()).skip(down);
                        for (line, values) in lines.zip(second.chunks(of_second.width())) {
                            line[across..across + of_second.width()]
                                .iter_mut()
                                .zip(values)
                                .for_each(|(out, value)| *out = factor * value);
                        }
                        across += of_second.width();
                    }
                    down += rows.1 - rows.0;
                }
            }
        }
        Ok(())
    }
}

impl<R: Real> Fill<R> for Paired<'_> {
    /// Only the bytes of the base are counted.
    fn fill(&self, first: u64, out: &mut [R]) -> Result<usize, NoMemory> {
        let mut scratch = Scratch::default();
        let mut read = 0;
        let start = first as usize;
        for part in parts(start, out.len(), self.columns)
            .into_iter()
            .flat_map(MatrixRegion::tiles)
        {
            let rows = (part.rows.0 + self.first_row, part.rows.1 + self.first_row);
            self.product(MatrixRegion { rows, ..part }, &mut scratch)?;
            let width = part.width();
            resize(&mut scratch.base, width, 0.0)?;
            for (row, product) in (part.rows.0..).zip(scratch.tile.chunks(width)) {
                let place = row * self.columns + part.columns.0;
                read += Fill::<f64>::fill(self.base.as_ref(), place as u64, &mut scratch.base)?;
                out[place - start..place - start + width]
                    .iter_mut()
                    .zip(product.iter().zip(&scratch.base))
                    .for_each(|(out, (product, base))| *out = R::from_f64(base + product));
            }
        }
        Ok(read)
    }
}

impl Elements for Paired<'_> {
    /// The format of the base, since the result takes its place.
    fn format(&self) -> FloatType {
        self.base.format()
    }
}

#[cfg(test)]
mod tests;
