//! Task vectors that are products of thin factors, as those of LoRA adapters: small matrices between the directions that
//! all of them use. What a method makes of the small ones is what it makes of the whole, between the same directions, if
//! it works on singular vectors alone.

use super::tasks::Tasks;
use super::{Failure, Task};
use matrix::{Matrix, beside, factor_matrix, orthonormal};
use numeric::NoMemory;

/// The small matrices, and the directions that they are between, as columns.
pub(super) struct Core {
    left: Matrix<f32>,
    right: Matrix<f32>,
    tasks: Vec<Matrix<f32>>,
}

impl Core {
    /// Those of task vectors. `None` if one is no product, or if together they have too many ranks to save anything.
    pub(super) fn new(tasks: &Tasks<'_>) -> Result<Option<Self>, Failure> {
        let (rows, columns) = tasks.shape;
        let mut products = Vec::new();
        for &Task { source, weight } in tasks.tasks {
            match tasks.sources.product(source, tasks.base)? {
                Some(product) => products.push((product, weight)),
                None => return Ok(None),
            }
        }
        let ranks = products.iter().map(|(product, _)| product.rank);
        let ranks = ranks.fold(0, usize::saturating_add);
        if ranks == 0 || ranks > rows.min(columns) / 2 {
            return Ok(None);
        }
        let mut factors = Vec::new();
        for (product, weight) in products {
            let mut left = factor_matrix(product.left, rows, product.rank)?;
            let right = factor_matrix(product.right, columns, product.rank)?;
            left.scale(product.scale * weight);
            if !left.is_finite() || !right.is_finite() {
                // Reading them whole tells which is not.
                return Ok(None);
            }
            factors.push(match tasks.is_turned {
                true => (right, left),
                false => (left, right),
            });
        }
        let left = directions(factors.iter().map(|(left, _)| left))?;
        let right = directions(factors.iter().map(|(_, right)| right))?;
        if left.columns() == 0 || right.columns() == 0 {
            return Ok(None);
        }
        let core = |(own, other): &(Matrix<f32>, Matrix<f32>)| {
            let rows = left.transposed_times(own)?;
            rows.times_transposed(&right.transposed_times(other)?)
        };
        let cores: Result<Vec<Matrix<f32>>, NoMemory> = factors.iter().map(core).collect();
        Ok(Some(Self {
            tasks: cores?,
            left,
            right,
        }))
    }

    /// One of the task vectors.
    pub(super) fn task(&self, number: usize) -> &Matrix<f32> {
        &self.tasks[number]
    }

    /// Rows and columns of each.
    pub(super) fn shape(&self) -> (usize, usize) {
        (self.left.columns(), self.right.columns())
    }

    /// What was made of the small matrices, whole.
    pub(super) fn expanded(&self, merged: &Matrix<f32>) -> Result<Matrix<f32>, NoMemory> {
        self.left.times(merged)?.times_transposed(&self.right)
    }
}

/// The directions that the columns of matrices span, however long each is.
fn directions<'m>(
    matrices: impl Iterator<Item = &'m Matrix<f32>> + Clone,
) -> Result<Matrix<f32>, Failure> {
    let mut all = beside(matrices)?;
    let inverse = |length: &f64| if *length > 0.0 { 1.0 / length } else { 0.0 };
    let lengths: Vec<f64> = all.column_norms().iter().map(inverse).collect();
    all.scale_columns(&lengths);
    Ok(orthonormal(&all)?)
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;

    use super::super::super::{Linear, ParamValue, TensorParams};
    use super::super::{CART, ISO_C, TSVM, Turn, Update, WholeMethod};
    use super::*;
    use engine::{EngineError, Matrices};
    use errors::Refusal;
    use numeric::{Factor, FloatType, Order, Product, Stored};

    /// A base of zeros and updates `scale L R`: read whole, or known as products only.
    struct Sources {
        shape: (usize, usize),
        /// `L` by place, `R` by rank, the rank.
        factors: Vec<(Vec<f32>, Vec<f32>, usize)>,
        bytes: Vec<(Vec<u8>, Vec<u8>)>,
        whole: bool,
    }

    const SCALE: f64 = 0.5;

    fn noise(seed: usize, count: usize) -> Vec<f32> {
        let mut state = seed as u64 * 7919 + 1;
        let mut next = || {
            state = state
                .wrapping_mul(6_364_136_223_846_793_005)
                .wrapping_add(1);
            (state >> 40) as f32 / (1 << 23) as f32 - 1.0
        };
        (0..count).map(|_| next()).collect()
    }

    impl Sources {
        /// Updates of these ranks; each is ten times as large as the one before.
        fn new(shape: (usize, usize), ranks: &[usize], whole: bool) -> Self {
            let (rows, columns) = shape;
            let factor = |(number, &rank): (usize, &usize)| {
                let mut left = noise(number, rows * rank);
                left.iter_mut()
                    .for_each(|value| *value *= 10f32.powi(number as i32));
                (left, noise(100 + number, rank * columns), rank)
            };
            let factors: Vec<(Vec<f32>, Vec<f32>, usize)> =
                ranks.iter().enumerate().map(factor).collect();
            let bytes = |values: &[f32]| -> Vec<u8> {
                values
                    .iter()
                    .flat_map(|value| value.to_le_bytes())
                    .collect()
            };
            let stored = factors.iter();
            let stored = stored.map(|(left, right, _)| (bytes(left), bytes(right)));
            Self {
                shape,
                bytes: stored.collect(),
                factors,
                whole,
            }
        }
    }

    impl Matrices for Sources {
        fn count(&self) -> usize {
            1 + self.factors.len()
        }

        fn rows(&self) -> usize {
            self.shape.0
        }

        fn columns(&self) -> usize {
            self.shape.1
        }

        fn read(&self, source: usize, first: usize, rows: &mut [f32]) -> Result<(), EngineError> {
            assert!(self.whole, "a product is read whole");
            let columns = self.shape.1;
            let Some(number) = source.checked_sub(1) else {
                rows.fill(0.0);
                return Ok(());
            };
            let (left, right, rank) = &self.factors[number];
            for (at, out) in rows.iter_mut().enumerate() {
                let (row, column) = (first + at / columns, at % columns);
                let part = |k: usize| {
                    f64::from(left[row * rank + k]) * f64::from(right[k * columns + column])
                };
                *out = (SCALE * (0..*rank).map(part).sum::<f64>()) as f32;
            }
            Ok(())
        }

        fn product(&self, source: usize, _: usize) -> Result<Option<Product<'_>>, EngineError> {
            if self.whole {
                return Ok(None);
            }
            let factor = |bytes, order| Factor {
                values: Stored {
                    bytes,
                    format: FloatType::F32,
                },
                order,
            };
            let (left, right) = &self.bytes[source - 1];
            Ok(Some(Product {
                left: factor(left, Order::ByPlace),
                right: factor(right, Order::ByRank),
                rank: self.factors[source - 1].2,
                scale: SCALE,
            }))
        }

        fn check_running(&self) -> Result<(), EngineError> {
            Ok(())
        }

        fn refusal(&self, reason: Refusal) -> EngineError {
            panic!("{reason}")
        }
    }

    fn merged(method: &WholeMethod, sources: &Sources) -> Matrix<f32> {
        let number = |(name, value)| (name, ParamValue::Number(value));
        let params = TensorParams {
            tensor: [("lambda", 1.3), ("rank_ratio", 0.1)].map(number).to_vec(),
            sources: Vec::new(),
        };
        let (rows, columns) = sources.shape;
        let merger = (method.merger)(&params).unwrap();
        assert_eq!(merger.turn(), Turn::Tall);
        let weights = [1.0, 0.8, 1.3];
        let tasks = (1..sources.count()).map(|source| Task {
            source,
            weight: weights[source - 1],
        });
        let update = Update {
            base: 0,
            tasks: tasks.collect(),
            lambda: 1.0,
            linear: Linear::new(&[rows, columns], false).unwrap(),
            merger: Arc::clone(&merger),
        };
        let mut tasks = Tasks {
            sources,
            base: 0,
            tasks: &update.tasks,
            first_row: 0,
            shape: (rows, columns),
            is_turned: update.is_turned(),
            core: None,
        };
        update.merged(&mut tasks).unwrap()
    }

    #[test]
    fn products_are_merged_as_the_whole_and_never_read_whole() {
        for shape in [(40, 24), (24, 40)] {
            for ranks in [&[2usize, 3, 1][..], &[4, 0, 4], &[1, 1]] {
                for method in [&TSVM, &ISO_C, &CART] {
                    let whole = merged(method, &Sources::new(shape, ranks, true));
                    let found = merged(method, &Sources::new(shape, ranks, false));
                    let size = whole.squared_norm().sqrt();
                    let mut apart = found;
                    apart.add(&whole, -1.0);
                    let apart = apart.squared_norm().sqrt() / size;
                    let name = method.info.name;
                    assert!(apart < 2e-5, "{name} {shape:?} {ranks:?}: {apart:e}");
                }
            }
        }
    }

    #[test]
    fn products_of_many_ranks_are_read_whole() {
        let sources = Sources::new((24, 40), &[6, 7], true);
        let params = [1, 2].map(|source| Task {
            source,
            weight: 1.0,
        });
        let tasks = Tasks {
            sources: &sources,
            base: 0,
            tasks: &params,
            first_row: 0,
            shape: (24, 40),
            is_turned: true,
            core: None,
        };
        assert!(Core::new(&tasks).unwrap().is_none());
        let thick = Sources::new((24, 40), &[6, 7], false);
        let tasks = Tasks {
            sources: &thick,
            ..tasks
        };
        assert!(Core::new(&tasks).unwrap().is_none());
    }
}
