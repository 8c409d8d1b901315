//! What a fine-tune changed in one tensor.

use matrix::Matrix;
use numeric::{BLOCK, Elements, NoMemory, filled};
use rayon::prelude::*;

/// Two tensors of the same shape.
pub(super) struct Pair<'a> {
    pub(super) base: Box<dyn Elements + 'a>,
    pub(super) tuned: Box<dyn Elements + 'a>,
}

/// Sums over all elements of two tensors.
#[derive(Debug, Clone, Copy, Default, PartialEq)]
pub(super) struct Sums {
    /// The squares of the base's values.
    pub(super) base: f64,
    /// The squares of the differences.
    pub(super) change: f64,
    /// Whether the base, and whether the fine-tune, holds NaN or infinity.
    pub(super) non_finite: [bool; 2],
}

impl Pair<'_> {
    /// The difference of a matrix, with its sums.
    ///
    /// # Errors
    /// If there is no memory.
    pub(super) fn matrix(
        &self,
        rows: usize,
        columns: usize,
    ) -> Result<(Matrix<f32>, Sums), NoMemory> {
        let mut difference = Matrix::zeros(rows, columns)?;
        let blocks = difference.values_mut().par_chunks_mut(BLOCK).enumerate();
        let sums = blocks.map(|(number, out)| {
            self.block(number, out.len(), |place, change| {
                out[place] = change as f32
            })
        });
        let sums: Vec<Sums> = sums.collect::<Result<_, _>>()?;
        Ok((difference, added(&sums)))
    }

    /// The sums alone.
    ///
    /// # Errors
    /// If there is no memory.
    pub(super) fn sums(&self, elements: u64) -> Result<Sums, NoMemory> {
        let blocks = elements.div_ceil(BLOCK as u64) as usize;
        let sums = (0..blocks).into_par_iter().map(|number| {
            let rest = elements - number as u64 * BLOCK as u64;
            self.block(number, rest.min(BLOCK as u64) as usize, |_, _| {})
        });
        let sums: Vec<Sums> = sums.collect::<Result<_, _>>()?;
        Ok(added(&sums))
    }

    fn block(
        &self,
        number: usize,
        count: usize,
        mut take: impl FnMut(usize, f64),
    ) -> Result<Sums, NoMemory> {
        let first = number as u64 * BLOCK as u64;
        let (mut base, mut tuned) = (filled(count, 0.0f64)?, filled(count, 0.0f64)?);
        self.base.fill(first, &mut base)?;
        self.tuned.fill(first, &mut tuned)?;
        let mut sums = Sums::default();
        for (place, (base, tuned)) in base.iter().zip(&tuned).enumerate() {
            let change = tuned - base;
            take(place, change);
            sums.base += base * base;
            sums.change += change * change;
        }
        if !(sums.base.is_finite() && sums.change.is_finite()) {
            let holds = |values: &[f64]| values.iter().any(|value| !value.is_finite());
            sums.non_finite = [holds(&base), holds(&tuned)];
        }
        Ok(sums)
    }
}

fn added(sums: &[Sums]) -> Sums {
    sums.iter().fold(Sums::default(), |all, next| Sums {
        base: all.base + next.base,
        change: all.change + next.change,
        non_finite: [0, 1].map(|model| all.non_finite[model] || next.non_finite[model]),
    })
}
