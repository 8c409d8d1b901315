//! The program of the geometric methods: measure inner products of the models, solve, combine.
//!
//! All of them measure the Gram matrix and differ only in how a [`Solve`] turns it into one weight for each model.
//! With a base, the vectors are the differences from it: the inner products of models that are nearly equal say
//! nothing about the angles between their updates.
//!
//! A vector is the whole tensor, or one of its rows or columns. A row never crosses a block boundary, so rows are
//! measured and combined in one pass.

use super::weighted_sum::Combination;
use engine::{AnyProgram, Apply, Block, Cost, Measure, MeasureColumns, Measured, Pass, Program};
use errors::Refusal;
use numeric::{NoMemory, PairProducts, Real, dot};

/// Elements subtracted at a time, so that the differences stay in the first-level cache.
const STRIP: usize = 1024;
/// How far a mean's weights may be from one in sum, because the solve rounds.
const ROUNDING: f64 = 1e-12;

/// Turns inner products into weights.
pub(super) trait Solve: Send + Sync {
    /// One weight for each vector. If there is a base, it gets one minus their sum.
    fn weights(&self, gram: &Gram) -> Vec<f64>;

    /// Why there are no weights, in words for the user. Called for whole tensors only.
    fn refusal(&self, _gram: &Gram) -> Option<Refusal> {
        None
    }
}

/// The Gram matrix: the inner products of some vectors.
pub(super) struct Gram {
    count: usize,
    /// The upper triangle, row by row.
    products: Vec<f64>,
}

impl Gram {
    /// How many vectors there are.
    pub(super) fn count(&self) -> usize {
        self.count
    }

    /// The inner product of vectors `i` and `j`.
    pub(super) fn inner(&self, i: usize, j: usize) -> f64 {
        let (i, j) = (i.min(j), i.max(j));
        self.products[i * (2 * self.count - i + 1) / 2 + j - i]
    }

    /// The 2-norm of a vector.
    pub(super) fn norm(&self, i: usize) -> f64 {
        self.inner(i, i).sqrt()
    }

    /// The cosine of the angle between two vectors; `None` if one of them is zero.
    pub(super) fn cosine(&self, i: usize, j: usize) -> Option<f64> {
        let norms = self.norm(i) * self.norm(j);
        (norms != 0.0).then(|| (self.inner(i, j) / norms).clamp(-1.0, 1.0))
    }

    /// Whether all vectors are zero.
    pub(super) fn all_zero(&self) -> bool {
        (0..self.count).all(|i| self.inner(i, i) == 0.0)
    }
}

/// The number of inner products of `count` vectors.
fn pairs(count: usize) -> usize {
    count * (count + 1) / 2
}

/// Which part of a tensor is one vector.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Extent {
    /// The whole tensor.
    Whole,
    /// Each row: a run of this many elements, the last dimension.
    Rows(usize),
    /// Each column, along the first dimension; there are this many columns.
    Columns(usize),
}

impl Extent {
    /// One vector along the last dimension for each index in the others. A tensor of one row is one vector.
    pub(super) fn rows(shape: &[usize]) -> Self {
        match shape.split_last() {
            Some((&row, others)) if row > 0 && others.iter().product::<usize>() > 1 => {
                Self::Rows(row)
            }
            _ => Self::Whole,
        }
    }

    /// One vector along the first dimension for each index in the others. A tensor of one column is one vector.
    pub(super) fn columns(shape: &[usize]) -> Self {
        match shape.split_first() {
            Some((&rows, others)) if rows > 0 => match others.iter().product() {
                0 | 1 => Self::Whole,
                columns => Self::Columns(columns),
            },
            _ => Self::Whole,
        }
    }
}

/// Which sources are the vectors, and what is subtracted from them.
#[derive(Debug, Clone)]
pub(super) struct Vectors {
    /// The sources, in the order in which [`Solve`] sees them.
    pub(super) members: Vec<usize>,
    /// The base that is subtracted, if any.
    pub(super) origin: Option<usize>,
}

impl Vectors {
    /// All sources except the base. If there is a base, it is subtracted from each.
    pub(super) fn from_base(sources: usize, base: Option<usize>) -> Self {
        Self {
            members: (0..sources)
                .filter(|&source| base != Some(source))
                .collect(),
            origin: base,
        }
    }

    fn count(&self) -> usize {
        self.members.len()
    }

    /// Adds the inner products of the block's elements.
    fn measure<R: Real>(&self, block: &Block<'_, R>, products: &mut [f64]) {
        let origin = self.origin.map(|origin| block.sources[origin]);
        match (self.members.as_slice(), origin) {
            (&[a, b], None) => self.measure_pair([a, b], block, products),
            (_, None) => {
                let sources = self.members.iter().map(|&member| block.sources[member]);
                let vectors: Vec<&[R]> = sources.collect();
                // Prefetches the next block piece by piece, between the products.
                let piece = block.len().div_ceil(products.len().max(1));
                add_products(&vectors, products, |place| {
                    block.ahead(place * piece..(place + 1) * piece);
                });
            }
            (_, Some(base)) => self.measure_differences(base, block, products),
        }
    }

    /// The usual case, two vectors, in a single sweep.
    fn measure_pair<R: Real>(
        &self,
        [a, b]: [usize; 2],
        block: &Block<'_, R>,
        products: &mut [f64],
    ) {
        let mut pair = PairProducts::default();
        for start in (0..block.len()).step_by(STRIP) {
            let strip = start..block.len().min(start + STRIP);
            block.ahead(strip.clone());
            pair.add(&block.sources[a][strip.clone()], &block.sources[b][strip]);
        }
        add(products, &pair.products());
    }

    /// Subtracts in f64, so that differences of values in f32 or narrower are exact unless their ratio is huge.
    fn measure_differences<R: Real>(&self, base: &[R], block: &Block<'_, R>, products: &mut [f64]) {
        let mut differences = vec![[0.0; STRIP]; self.count()];
        for start in (0..base.len()).step_by(STRIP) {
            let strip = start..base.len().min(start + STRIP);
            let base = &base[strip.clone()];
            block.ahead(strip.clone());
            if let &[a, b] = self.members.as_slice() {
                let mut pair = PairProducts::default();
                let [a, b] = [a, b].map(|member| &block.sources[member][strip.clone()]);
                pair.add_from(base, a, b);
                add(products, &pair.products());
                continue;
            }
            for (difference, &member) in differences.iter_mut().zip(&self.members) {
                let source = &block.sources[member][strip.clone()];
                for ((difference, x), base) in difference.iter_mut().zip(source).zip(base) {
                    *difference = x.to_f64() - base.to_f64();
                }
            }
            let vectors: Vec<&[f64]> = differences
                .iter()
                .map(|difference| &difference[..base.len()])
                .collect();
            add_products(&vectors, products, |_| {});
        }
    }

    /// Turns one weight for each vector into one for each source.
    fn weights(&self, of_vectors: &[f64]) -> Vec<f64> {
        let mut weights = vec![0.0; self.count() + usize::from(self.origin.is_some())];
        for (&member, &weight) in self.members.iter().zip(of_vectors) {
            weights[member] = weight;
        }
        if let Some(origin) = self.origin {
            let rest = 1.0 - of_vectors.iter().sum::<f64>();
            // Rounding must not add a trace of the base to a mean of the models.
            weights[origin] = if rest.abs() <= ROUNDING { 0.0 } else { rest };
        }
        weights
    }
}

fn add(sums: &mut [f64], parts: &[f64]) {
    sums.iter_mut()
        .zip(parts)
        .for_each(|(sum, part)| *sum += part);
}

/// Adds the inner products of all pairs; calls `before` with the index of each pair first.
fn add_products<R: Real>(vectors: &[&[R]], products: &mut [f64], before: impl Fn(usize)) {
    let mut products = products.iter_mut().enumerate();
    for (index, a) in vectors.iter().enumerate() {
        for (b, (place, product)) in vectors[index..].iter().zip(&mut products) {
            before(place);
            *product += dot(a, b);
        }
    }
}

/// Measures inner products, solves, combines.
pub(super) struct GramProgram {
    pub(super) vectors: Vectors,
    pub(super) extent: Extent,
    pub(super) solve: std::sync::Arc<dyn Solve>,
}

impl GramProgram {
    fn solved<R: Real>(&self, gram: &Gram) -> Combination<R> {
        let weights = self.vectors.weights(&self.solve.weights(gram));
        Combination::new(&weights, false, false)
    }
}

impl AnyProgram for GramProgram {
    fn cost(&self) -> Cost {
        let pairs = pairs(self.vectors.count());
        match self.extent {
            Extent::Whole => Cost {
                measures: 1,
                sums: pairs,
                ..Cost::default()
            },
            Extent::Rows(row) => Cost {
                row,
                ..Cost::default()
            },
            Extent::Columns(columns) => Cost {
                measures: 1,
                column_sums: pairs.saturating_mul(columns),
                ..Cost::default()
            },
        }
    }
}

impl<R: Real> Program<R> for GramProgram {
    fn next(&self, measured: &[Measured]) -> Pass<R> {
        match (self.extent, measured.first()) {
            (Extent::Whole, None) => Pass::Measure(Box::new(Products(self.vectors.clone()))),
            (Extent::Whole, Some(measured)) => {
                let gram = Gram {
                    count: self.vectors.count(),
                    products: measured.sums.clone(),
                };
                match self.solve.refusal(&gram) {
                    Some(reason) => Pass::Refuse(reason),
                    None => Pass::Apply(Box::new(self.solved::<R>(&gram))),
                }
            }
            (Extent::Rows(row), _) => Pass::Apply(Box::new(EachRow {
                row,
                program: Self {
                    vectors: self.vectors.clone(),
                    extent: self.extent,
                    solve: self.solve.clone(),
                },
            })),
            (Extent::Columns(columns), None) => {
                Pass::MeasureColumns(columns, Box::new(Products(self.vectors.clone())))
            }
            (Extent::Columns(columns), Some(measured)) => {
                Pass::Apply(Box::new(EachColumn::new(self, columns, &measured.sums)))
            }
        }
    }
}

/// Measures the inner products of whole tensors or of columns.
struct Products(Vectors);

impl<R: Real> Measure<R> for Products {
    fn sums(&self) -> usize {
        pairs(self.0.count())
    }

    fn counts(&self) -> usize {
        0
    }

    fn block(
        &self,
        block: Block<'_, R>,
        sums: &mut [f64],
        _counts: &mut [u64],
    ) -> Result<(), NoMemory> {
        self.0.measure(&block, sums);
        Ok(())
    }
}

impl<R: Real> MeasureColumns<R> for Products {
    fn sums(&self) -> usize {
        pairs(self.0.count())
    }

    fn row(&self, sources: &[&[R]], sums: &mut [f64]) {
        let members = &self.0.members;
        let base = self.0.origin.map(|origin| sources[origin]);
        let value = |member: usize, column: usize| {
            let base = base.map_or(0.0, |base| base[column].to_f64());
            sources[member][column].to_f64() - base
        };
        let width = sources.first().map_or(0, |source| source.len());
        let mut sums = sums.chunks_exact_mut(width.max(1));
        for (index, &a) in members.iter().enumerate() {
            for (&b, sums) in members[index..].iter().zip(&mut sums) {
                for (column, sum) in sums.iter_mut().enumerate() {
                    *sum += value(a, column) * value(b, column);
                }
            }
        }
    }
}

/// Measures, solves and combines each row by itself.
struct EachRow {
    row: usize,
    program: GramProgram,
}

impl<R: Real> Apply<R> for EachRow {
    fn block(&self, block: Block<'_, R>, out: &mut [R]) -> Result<(), NoMemory> {
        let vectors = &self.program.vectors;
        let mut room = Vec::new();
        for (index, out) in out.chunks_mut(self.row).enumerate() {
            let start = index * self.row;
            block.ahead(start..start + out.len());
            let row = block.part(start..start + out.len(), &mut room);
            let mut gram = Gram {
                count: vectors.count(),
                products: vec![0.0; pairs(vectors.count())],
            };
            vectors.measure(&row, &mut gram.products);
            self.program
                .solved(&gram)
                .combine(block.sources, start, out);
        }
        Ok(())
    }
}

/// Combines each column with its own weights.
struct EachColumn<R> {
    columns: usize,
    /// For each source, its weight in each column.
    weights: Vec<Vec<R>>,
    /// For each column, whether its result is a mean of the sources that have a weight.
    mean: Vec<bool>,
}

impl<R: Real> EachColumn<R> {
    fn new(program: &GramProgram, columns: usize, sums: &[f64]) -> Self {
        let vectors = &program.vectors;
        let sources = vectors.count() + usize::from(vectors.origin.is_some());
        let mut gram = Gram {
            count: vectors.count(),
            products: vec![0.0; pairs(vectors.count())],
        };
        let mut each = Self {
            columns,
            weights: vec![vec![R::ZERO; columns]; sources],
            mean: vec![false; columns],
        };
        for column in 0..columns {
            for (product, sums) in gram.products.iter_mut().zip(sums.chunks_exact(columns)) {
                *product = sums[column];
            }
            let exact = vectors.weights(&program.solve.weights(&gram));
            each.mean[column] = (exact.iter().sum::<f64>() - 1.0).abs() <= ROUNDING
                && exact.iter().all(|&weight| weight >= 0.0);
            for (weights, weight) in each.weights.iter_mut().zip(exact) {
                weights[column] = R::from_f64(weight);
            }
        }
        each
    }
}

impl<R: Real> Apply<R> for EachColumn<R> {
    fn block(&self, block: Block<'_, R>, out: &mut [R]) -> Result<(), NoMemory> {
        let first = (block.first % self.columns as u64) as usize;
        let columns = (first..self.columns).chain((0..self.columns).cycle());
        for ((index, out), column) in out.iter_mut().enumerate().zip(columns) {
            let terms = || {
                let weights = self.weights.iter().map(|weights| weights[column]);
                let values = block.sources.iter().map(|source| source[index]);
                weights.zip(values).filter(|&(weight, _)| weight != R::ZERO)
            };
            let sum = terms()
                .map(|(weight, value)| weight * value)
                .reduce(|sum, term| sum + term)
                .unwrap_or(R::ZERO);
            *out = sum;
            if self.mean[column] {
                let bounds =
                    terms()
                        .map(|(_, value)| (value, value))
                        .reduce(|(low, high), (value, _)| {
                            (
                                if value < low { value } else { low },
                                if value > high { value } else { high },
                            )
                        });
                // Replaces equal values too, since -0 equals +0.
                if let Some((low, high)) = bounds {
                    let raised = if sum <= low { low } else { sum };
                    *out = if raised >= high { high } else { raised };
                }
            }
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_upper_triangle_is_found() {
        let gram = Gram {
            count: 3,
            products: vec![1.0, 2.0, 3.0, 4.0, 5.0, 9.0],
        };
        let rows: Vec<Vec<f64>> = (0..3)
            .map(|i| (0..3).map(|j| gram.inner(i, j)).collect())
            .collect();
        assert_eq!(rows, [[1.0, 2.0, 3.0], [2.0, 4.0, 5.0], [3.0, 5.0, 9.0]]);
        assert_eq!(gram.norm(1), 2.0);
        assert_eq!(gram.cosine(0, 1), Some(1.0));
    }

    #[test]
    fn vectors_follow_the_shape() {
        assert_eq!(Extent::rows(&[3, 4]), Extent::Rows(4));
        assert_eq!(Extent::columns(&[3, 4]), Extent::Columns(4));
        assert_eq!(Extent::rows(&[2, 3, 4]), Extent::Rows(4));
        assert_eq!(Extent::columns(&[2, 3, 4]), Extent::Columns(12));
        for shape in [&[][..], &[5], &[1, 5], &[0, 5], &[5, 0], &[0]] {
            assert_eq!(Extent::rows(shape), Extent::Whole, "{shape:?}");
        }
        for shape in [&[][..], &[5], &[5, 1], &[0, 5], &[5, 0], &[0]] {
            assert_eq!(Extent::columns(shape), Extent::Whole, "{shape:?}");
        }
    }
}
