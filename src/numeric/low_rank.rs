//! A matrix plus a product of two thin ones, computed as it is read; the whole matrix is never in memory.
//!
//! Each element's product is summed by itself, in f64, over the rank in ascending order. So an element has the same
//! value whatever range is read. Only one tile is held at a time, about 200 KiB.

use std::sync::OnceLock;
use std::sync::atomic::{AtomicU64, Ordering::Relaxed};

use super::elements::{Elements, Factor, Fill, Product, Stored};
use super::format::FloatType;
use super::memory::{NoMemory, filled, resize, resize_with};
use super::real::Real;
use super::reduce::dot;

/// Rows of a tile.
const ROWS: usize = 32;
/// Columns of a tile.
const COLUMNS: usize = 512;
/// Ranks of the factors that are decoded at a time; a multiple of [`UNROLL`].
const RANKS: usize = 16;
/// Ranks added in one sweep over a row.
const UNROLL: usize = 4;

/// `base + scale * L R`, where each row or column of the sum may also be rescaled to a given length.
pub struct LowRank<'a> {
    /// The matrix that the product is added to: `[rows, columns]`, in row order.
    pub base: Box<dyn Elements + 'a>,
    /// How many rows.
    pub rows: usize,
    /// Elements per row, at least one.
    pub columns: usize,
    /// `L`: one vector of length `rank` for each row.
    pub left: Factor<'a>,
    /// `R`: one vector of length `rank` for each column.
    pub right: Factor<'a>,
    /// The rank.
    pub rank: usize,
    /// The factor of the product.
    pub scale: f64,
    /// The lengths that the rows or columns of the sum are rescaled to, if any.
    pub lengths: Option<Lengths<'a>>,
}

/// New lengths (2-norms) for the rows or columns of a matrix.
///
/// Source: Liu et al., "DoRA: Weight-Decomposed Low-Rank Adaptation", 2024, equation 5.
#[derive(Debug, Clone, Copy)]
pub struct Lengths<'a> {
    /// The length of each row or column.
    pub wanted: Stored<'a>,
    /// The lengths before rescaling, as far as they have been measured.
    pub found: &'a Norms,
}

/// The 2-norms of the rows or columns of a matrix. Each is measured when it is first needed, and kept.
#[derive(Debug)]
pub enum Norms {
    /// Of rows, each measured by itself; stored as the bits of an f64.
    Rows(OnceLock<Box<[AtomicU64]>>),
    /// Of columns, all measured at once.
    Columns(OnceLock<Box<[f64]>>),
}

impl Norms {
    /// Row norms, none of them measured yet.
    pub fn of_rows() -> Self {
        Self::Rows(OnceLock::new())
    }

    /// Column norms, none of them measured yet.
    pub fn of_columns() -> Self {
        Self::Columns(OnceLock::new())
    }
}

/// Stands for a norm that is not measured yet: a NaN that arithmetic never produces.
const UNKNOWN: u64 = u64::MAX;

/// A part of a matrix: half-open ranges of rows and columns.
#[derive(Debug, Clone, Copy)]
pub(super) struct MatrixRegion {
    pub(super) rows: (usize, usize),
    pub(super) columns: (usize, usize),
}

impl MatrixRegion {
    pub(super) fn height(self) -> usize {
        self.rows.1 - self.rows.0
    }

    pub(super) fn width(self) -> usize {
        self.columns.1 - self.columns.0
    }

    /// Cuts the part into tiles, row by row; their columns start at multiples of [`COLUMNS`] from the part's first
    /// column.
    pub(super) fn tiles(self) -> impl Iterator<Item = MatrixRegion> {
        cuts(self.rows, ROWS).flat_map(move |rows| {
            cuts(self.columns, COLUMNS).map(move |columns| MatrixRegion { rows, columns })
        })
    }
}

fn cuts((start, end): (usize, usize), size: usize) -> impl Iterator<Item = (usize, usize)> {
    (start..end)
        .step_by(size)
        .map(move |first| (first, end.min(first + size)))
}

/// Some ranks of two factors, decoded.
#[derive(Default)]
pub(super) struct FactorScratch {
    left: Vec<f64>,
    right: Vec<f64>,
}

/// The buffers of one call of [`Fill::fill`].
#[derive(Default)]
struct Scratch {
    factors: FactorScratch,
    /// The product of a tile, and then its sum with the base.
    tile: Vec<f64>,
    base: Vec<f64>,
}

impl Factor<'_> {
    /// Decodes the given ranks of the given rows or columns: one run of places for each rank.
    pub(super) fn decode(
        &self,
        rank: usize,
        ranks: (usize, usize),
        places: (usize, usize),
        out: &mut Vec<f64>,
    ) -> Result<(), NoMemory> {
        let length = places.1 - places.0;
        let depth = ranks.1 - ranks.0;
        resize(out, length * depth, 0.0)?;
        let strides = self.strides(rank);
        if strides.place == 1 {
            for (run, number) in out.chunks_mut(length).zip(ranks.0..) {
                let first = strides.first + number * strides.rank + places.0;
                self.values.fill(first as u64, run)?;
            }
            return Ok(());
        }
        let mut vector = [0.0; RANKS];
        for place in 0..length {
            let first = strides.first + (places.0 + place) * strides.place;
            if strides.rank == 1 {
                self.values
                    .fill((first + ranks.0) as u64, &mut vector[..depth])?;
            } else {
                for (value, number) in vector[..depth].iter_mut().zip(ranks.0..) {
                    let at = first + number * strides.rank;
                    self.values.fill(at as u64, std::slice::from_mut(value))?;
                }
            }
            for (run, value) in out.chunks_mut(length).zip(vector) {
                run[place] = value;
            }
        }
        Ok(())
    }
}

/// Computes `L R` for a part of the matrix into `out`; `part` has at least one column.
pub(super) fn product_of_factors(
    (left, right, rank): (&Factor<'_>, &Factor<'_>, usize),
    part: MatrixRegion,
    scratch: &mut FactorScratch,
    out: &mut Vec<f64>,
) -> Result<(), NoMemory> {
    out.clear();
    resize(out, part.height() * part.width(), 0.0)?;
    for ranks in cuts((0, rank), RANKS) {
        left.decode(rank, ranks, part.rows, &mut scratch.left)?;
        right.decode(rank, ranks, part.columns, &mut scratch.right)?;
        for (row, sums) in out.chunks_mut(part.width()).enumerate() {
            let factor = |rank: usize| scratch.left[rank * part.height() + row];
            add_ranks(ranks.1 - ranks.0, factor, &scratch.right, sums);
        }
    }
    Ok(())
}

impl LowRank<'_> {
    /// Computes `scale * L R` for a tile into `scratch.tile`.
    fn product(&self, part: MatrixRegion, scratch: &mut Scratch) -> Result<(), NoMemory> {
        let Scratch { factors, tile, .. } = scratch;
        let product = (&self.left, &self.right, self.rank);
        product_of_factors(product, part, factors, tile)?;
        tile.iter_mut().for_each(|sum| *sum *= self.scale);
        Ok(())
    }

    /// Computes `base + scale * L R` for a tile into `scratch.tile`; returns the bytes read from the base.
    fn sum(&self, part: MatrixRegion, scratch: &mut Scratch) -> Result<usize, NoMemory> {
        self.product(part, scratch)?;
        let width = part.width();
        resize(&mut scratch.base, width, 0.0)?;
        let mut read = 0;
        for (row, sums) in (part.rows.0..).zip(scratch.tile.chunks_mut(width)) {
            let first = row * self.columns + part.columns.0;
            read += Fill::<f64>::fill(self.base.as_ref(), first as u64, &mut scratch.base)?;
            sums.iter_mut()
                .zip(&scratch.base)
                .for_each(|(sum, base)| *sum += base);
        }
        Ok(read)
    }

    /// Measures the norms of rows that are not known yet.
    fn row_norms(
        &self,
        rows: (usize, usize),
        known: &[AtomicU64],
        scratch: &mut Scratch,
    ) -> Result<(), NoMemory> {
        for rows in cuts(rows, ROWS) {
            let missing = |known: &AtomicU64| known.load(Relaxed) == UNKNOWN;
            if !known[rows.0..rows.1].iter().any(missing) {
                continue;
            }
            let mut squares = [0.0; ROWS];
            for columns in cuts((0, self.columns), COLUMNS) {
                let part = MatrixRegion { rows, columns };
                self.sum(part, scratch)?;
                for (square, row) in squares.iter_mut().zip(scratch.tile.chunks(part.width())) {
                    *square += dot(row, row);
                }
            }
            // Two threads may measure the same row; both find the same norm.
            for (known, square) in known[rows.0..rows.1].iter().zip(squares) {
                known.store(square.sqrt().to_bits(), Relaxed);
            }
        }
        Ok(())
    }

    /// Measures the norms of all columns.
    fn column_norms(&self, scratch: &mut Scratch) -> Result<Box<[f64]>, NoMemory> {
        let mut squares = filled(self.columns, 0.0)?;
        let whole = MatrixRegion {
            rows: (0, self.rows),
            columns: (0, self.columns),
        };
        for part in whole.tiles() {
            self.sum(part, scratch)?;
            for row in scratch.tile.chunks(part.width()) {
                squares[part.columns.0..part.columns.1]
                    .iter_mut()
                    .zip(row)
                    .for_each(|(square, value)| *square += value * value);
            }
        }
        squares
            .iter_mut()
            .for_each(|square| *square = square.sqrt());
        Ok(squares.into())
    }

    /// The factors that rescale a tile, one for each row or for each column; `None` if nothing is rescaled.
    fn factors(
        &self,
        part: MatrixRegion,
        scratch: &mut Scratch,
    ) -> Result<Option<Factors>, NoMemory> {
        let Some(Lengths { wanted, found }) = &self.lengths else {
            return Ok(None);
        };
        let (of_rows, places) = match found {
            Norms::Rows(_) => (true, part.rows),
            Norms::Columns(_) => (false, part.columns),
        };
        let mut factors = filled(places.1 - places.0, 0.0)?;
        wanted.fill(places.0 as u64, &mut factors)?;
        match found {
            Norms::Rows(known) => {
                let known = match known.get() {
                    Some(known) => known,
                    None => {
                        let mut none = Vec::new();
                        resize_with(&mut none, self.rows, || AtomicU64::new(UNKNOWN))?;
                        known.get_or_init(|| none.into())
                    }
                };
                self.row_norms(part.rows, known, scratch)?;
                for (factor, norm) in factors.iter_mut().zip(&known[places.0..places.1]) {
                    *factor /= f64::from_bits(norm.load(Relaxed));
                }
            }
            Norms::Columns(known) => {
                let known = match known.get() {
                    Some(known) => known,
                    // Two threads may measure them; both find the same.
                    None => {
                        let norms = self.column_norms(scratch)?;
                        known.get_or_init(|| norms)
                    }
                };
                for (factor, norm) in factors.iter_mut().zip(&known[places.0..places.1]) {
                    *factor /= norm;
                }
            }
        }
        Ok(Some(Factors { factors, of_rows }))
    }
}

/// The factors of a tile: one for each row, or one for each column.
struct Factors {
    factors: Vec<f64>,
    of_rows: bool,
}

impl Factors {
    fn of(&self, row: usize, column: usize) -> f64 {
        self.factors[if self.of_rows { row } else { column }]
    }
}

/// Adds `factor(k) * right[k]` to a row for each rank `k` in turn.
fn add_ranks(ranks: usize, factor: impl Fn(usize) -> f64, right: &[f64], sums: &mut [f64]) {
    let width = sums.len();
    let run = |rank: usize| &right[rank * width..(rank + 1) * width];
    let whole = ranks - ranks % UNROLL;
    for rank in (0..whole).step_by(UNROLL) {
        let (a, b, c, d) = (
            factor(rank),
            factor(rank + 1),
            factor(rank + 2),
            factor(rank + 3),
        );
        let values = run(rank)
            .iter()
            .zip(run(rank + 1))
            .zip(run(rank + 2))
            .zip(run(rank + 3));
        for (sum, (((w, x), y), z)) in sums.iter_mut().zip(values) {
            // Added one after the other, so that the result does not depend on how ranks are grouped.
            *sum = *sum + a * w + b * x + c * y + d * z;
        }
    }
    for rank in whole..ranks {
        let factor = factor(rank);
        sums.iter_mut()
            .zip(run(rank))
            .for_each(|(sum, value)| *sum += factor * value);
    }
}

/// A range of elements as parts of the matrix: the end of a row, whole rows, the beginning of a row.
pub(super) fn parts(first: usize, length: usize, columns: usize) -> Vec<MatrixRegion> {
    let end = first + length;
    let (first_row, last_row) = (first / columns, end / columns);
    let (from, to) = (first % columns, end % columns);
    let part = |rows, columns| MatrixRegion { rows, columns };
    let mut parts = if first_row == last_row {
        vec![part((first_row, first_row + 1), (from, to))]
    } else {
        let whole = first_row + usize::from(from > 0);
        let mut parts = Vec::with_capacity(3);
        if from > 0 {
            parts.push(part((first_row, whole), (from, columns)));
        }
        parts.push(part((whole, last_row), (0, columns)));
        parts.push(part((last_row, last_row + 1), (0, to)));
        parts
    };
    parts.retain(|part| part.height() > 0 && part.width() > 0);
    parts
}

impl<R: Real> Fill<R> for LowRank<'_> {
    /// Only the bytes of the base are counted. The factors are read again for each tile, and the matrix
    /// once more where lengths are measured; these reads usually hit the cache.
    fn fill(&self, first: u64, out: &mut [R]) -> Result<usize, NoMemory> {
        let mut scratch = Scratch::default();
        let mut read = 0;
        let start = first as usize;
        for part in parts(start, out.len(), self.columns)
            .into_iter()
            .flat_map(MatrixRegion::tiles)
        {
            let factors = self.factors(part, &mut scratch)?;
            read += self.sum(part, &mut scratch)?;
            for (row, sums) in scratch.tile.chunks(part.width()).enumerate() {
                let place = (part.rows.0 + row) * self.columns + part.columns.0 - start;
                let out = &mut out[place..place + sums.len()];
                for (column, (out, sum)) in out.iter_mut().zip(sums).enumerate() {
                    *out = R::from_f64(match &factors {
                        Some(factors) => factors.of(row, column) * sum,
                        None => *sum,
                    });
                }
            }
        }
        Ok(read)
    }
}

impl Elements for LowRank<'_> {
    /// The format of the base, since the result takes its place.
    fn format(&self) -> FloatType {
        self.base.format()
    }

    fn product(&self) -> Option<(&dyn Elements, Product<'_>)> {
        let product = Product {
            left: self.left,
            right: self.right,
            rank: self.rank,
            scale: self.scale,
        };
        match self.lengths {
            None => Some((self.base.as_ref(), product)),
            // Rescaled rows are no sum of the base and a thin product.
            Some(_) => None,
        }
    }
}

#[cfg(test)]
mod tests {
    use ndarray::{Array1, Array2, Axis};
    use proptest::prelude::*;

    use super::super::elements::{FactorStrides, Order};
    use super::*;

    /// Values encoded in a format: the bytes, and the values as they were rounded.
    fn stored(format: FloatType, values: &[f64]) -> (Vec<u8>, Vec<f64>) {
        let mut bytes = vec![0; values.len() * format.size()];
        format.encode(&mut values.to_vec(), false, &mut bytes);
        let mut back = vec![0.0; values.len()];
        format.decode(&bytes, &mut back);
        (bytes, back)
    }

    fn noise(seed: u64, count: usize) -> Vec<f64> {
        let mut state = seed.wrapping_mul(0x9e37_79b9_7f4a_7c15) | 1;
        let next = |_| {
            state ^= state << 13;
            state ^= state >> 7;
            state ^= state << 17;
            (state >> 11) as f64 / 2f64.powi(53) - 0.5
        };
        (0..count).map(next).collect()
    }

    #[derive(Debug, Clone)]
    struct Case {
        rows: usize,
        columns: usize,
        rank: usize,
        base: FloatType,
        factors: FloatType,
        left: Order,
        right: Order,
        /// Rescale rows, columns, or nothing.
        lengths: Option<bool>,
        range: (usize, usize),
        seed: u64,
    }

    fn case() -> impl Strategy<Value = Case> {
        let size = prop_oneof![1usize..6, 30usize..40, 500usize..530];
        let order = prop::sample::select(vec![Order::ByRank, Order::ByPlace]);
        let format = prop::sample::select(vec![
            FloatType::Bf16,
            FloatType::F16,
            FloatType::F32,
            FloatType::F64,
        ]);
        (
            (size, 1usize..70, 1usize..40),
            (format.clone(), format),
            (order.clone(), order),
            any::<bool>(),
            prop::option::of(any::<bool>()),
            (0.0f64..1.0, 0.0f64..1.0),
            any::<u64>(),
        )
            .prop_map(
                |((a, b, rank), (base, factors), (left, right), wide, lengths, range, seed)| {
                    let (rows, columns) = if wide { (b, a) } else { (a, b) };
                    let place = |at: f64| (at * (rows * columns + 1) as f64) as usize;
                    let (from, to) = (place(range.0), place(range.1));
                    Case {
                        rows,
                        columns,
                        rank,
                        base,
                        factors,
                        left,
                        right,
                        lengths,
                        range: (from.min(to), from.max(to)),
                        seed,
                    }
                },
            )
    }

    proptest! {
        #![proptest_config(ProptestConfig::with_cases(200))]
        #[test]
        fn any_range_is_that_of_the_whole_in_f64(case in case()) {
            let Case { rows, columns, rank, range: (from, to), .. } = case;
            let (base_bytes, base) = stored(case.base, &noise(case.seed, rows * columns));
            let (left_bytes, left) = stored(case.factors, &noise(case.seed.wrapping_add(1), rows * rank));
            let (right_bytes, right) = stored(case.factors, &noise(case.seed.wrapping_add(2), columns * rank));
            let wanted: Vec<f64> = noise(case.seed.wrapping_add(3), rows.max(columns)).iter().map(|x| x + 1.0).collect();
            let places = if case.lengths == Some(true) { rows } else { columns };
            let (wanted_bytes, wanted) = stored(case.factors, &wanted[..places]);
            let norms = if case.lengths == Some(true) { Norms::of_rows() } else { Norms::of_columns() };
            let scale = 0.75;

            // The slow twin: whole matrices in f64.
            let matrix = |order, values: &[f64], places| match order == Order::ByPlace {
                true => Array2::from_shape_vec((places, rank), values.to_vec()).unwrap(),
                false => Array2::from_shape_vec((rank, places), values.to_vec()).unwrap().reversed_axes(),
            };
            let product = matrix(case.left, &left, rows).dot(&matrix(case.right, &right, columns).t());
            let mut twin = Array2::from_shape_vec((rows, columns), base).unwrap() + product * scale;
            if let Some(of_rows) = case.lengths {
                let axis = Axis(usize::from(of_rows));
                let found = twin.map_axis(axis, |line| line.dot(&line).sqrt());
                let factors = (Array1::from(wanted) / found).insert_axis(axis);
                twin *= &factors;
            }

            let elements = LowRank {
                base: Box::new(Stored { bytes: &base_bytes, format: case.base }),
                rows,
                columns,
                left: Factor { values: Stored { bytes: &left_bytes, format: case.factors }, order: case.left },
                right: Factor { values: Stored { bytes: &right_bytes, format: case.factors }, order: case.right },
                rank,
                scale,
                lengths: case.lengths.map(|_| Lengths {
                    wanted: Stored { bytes: &wanted_bytes, format: case.factors },
                    found: &norms,
                }),
            };
            let mut part = vec![f64::NAN; to - from];
            let read = Fill::<f64>::fill(&elements, from as u64, &mut part).unwrap();
            prop_assert_eq!(read, (to - from) * case.base.size());
            let mut whole = vec![f64::NAN; rows * columns];
            Fill::<f64>::fill(&elements, 0, &mut whole).unwrap();
            prop_assert_eq!(&whole[from..to], &part[..], "a range and the whole differ in their bits");
            for (found, twin) in whole.iter().zip(&twin) {
                prop_assert!((found - twin).abs() <= 1e-13 * (rank as f64 + twin.abs()), "{} for {}", found, twin);
            }
            let mut single = vec![0f32; to - from];
            Fill::<f32>::fill(&elements, from as u64, &mut single).unwrap();
            prop_assert!(single.iter().zip(&part).all(|(single, double)| *single == *double as f32));
        }
    }

    /// `[[1, 2], [3, 4]] + 0.5 [[1], [2]] [[10, 20]]`, by hand.
    #[test]
    fn two_by_two_by_hand() {
        let (base, _) = stored(FloatType::F32, &[1.0, 2.0, 3.0, 4.0]);
        let (left, _) = stored(FloatType::F32, &[1.0, 2.0]);
        let (right, _) = stored(FloatType::F32, &[10.0, 20.0]);
        let (wanted, _) = stored(FloatType::F32, &[20.0, 1.0]);
        let f32s = |bytes| Stored {
            bytes,
            format: FloatType::F32,
        };
        let factor = |bytes| Factor {
            values: f32s(bytes),
            order: Order::ByRank,
        };
        let norms = [Norms::of_rows(), Norms::of_columns()];
        let mut elements = LowRank {
            base: Box::new(f32s(&base)),
            rows: 2,
            columns: 2,
            left: factor(&left),
            right: factor(&right),
            rank: 1,
            scale: 0.5,
            lengths: None,
        };
        let values = |elements: &LowRank<'_>| {
            let mut out = [0f64; 4];
            Fill::<f64>::fill(elements, 0, &mut out).unwrap();
            out
        };
        let sum = [6.0, 12.0, 13.0, 24.0];
        assert_eq!(values(&elements), sum);
        // The first row has length sqrt(180) and becomes 20 long; the second has sqrt(745) and becomes 1.
        let (a, b) = (20.0 / 180f64.sqrt(), 1.0 / 745f64.sqrt());
        elements.lengths = Some(Lengths {
            wanted: f32s(&wanted),
            found: &norms[0],
        });
        assert_eq!(values(&elements), [a * 6.0, a * 12.0, b * 13.0, b * 24.0]);
        // Columns: sqrt(36 + 169) and sqrt(144 + 576).
        let (a, b) = (20.0 / 205f64.sqrt(), 1.0 / 720f64.sqrt());
        elements.lengths = Some(Lengths {
            wanted: f32s(&wanted),
            found: &norms[1],
        });
        assert_eq!(values(&elements), [a * 6.0, b * 12.0, a * 13.0, b * 24.0]);
    }
    /// The second of two experts: `A` is `[experts * rank, columns]`, and `B` `[rows, rank * experts]` with the expert's
    /// number last, as PEFT stores them.
    #[test]
    fn a_factor_may_be_a_part_of_a_larger_tensor() {
        let f32s = |values: &[f64]| stored(FloatType::F32, values).0;
        let a = f32s(&[9.0, 9.0, 9.0, 9.0, 9.0, 9.0, 1.0, 2.0, 3.0, 4.0, 5.0, 6.0]);
        let b = f32s(&[9.0, 1.0, 9.0, 2.0, 9.0, 3.0, 9.0, 4.0]);
        let base = f32s(&[0.0; 6]);
        let part = |bytes, first, place, rank| Factor {
            values: Stored {
                bytes,
                format: FloatType::F32,
            },
            order: Order::Strided(FactorStrides { first, place, rank }),
        };
        let elements = LowRank {
            base: Box::new(Stored {
                bytes: &base,
                format: FloatType::F32,
            }),
            rows: 2,
            columns: 3,
            left: part(&b, 1, 4, 2),
            right: part(&a, 6, 1, 3),
            rank: 2,
            scale: 1.0,
            lengths: None,
        };
        // [[1, 2], [3, 4]] [[1, 2, 3], [4, 5, 6]]
        let mut out = [0f64; 6];
        Fill::<f64>::fill(&elements, 0, &mut out).unwrap();
        assert_eq!(out, [9.0, 12.0, 15.0, 19.0, 26.0, 33.0]);
        let mut end = [0f64; 4];
        Fill::<f64>::fill(&elements, 2, &mut end).unwrap();
        assert_eq!(end, out[2..]);
    }
}
