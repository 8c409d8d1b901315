//! The rows of a router and operations on vectors. `modes` decides how rows are made.

use super::Recipe;
use numeric::dot;

/// A shorter row counts as zero and has no direction.
const NO_LENGTH: f64 = 1e-12;

/// The rows of one layer: `[experts, hidden]`, then the row of the shared expert's gate.
#[derive(Debug, Clone, PartialEq)]
pub(super) struct Rows {
    pub(super) values: Vec<f64>,
    pub(super) hidden: usize,
}

impl Rows {
    pub(super) fn zero(recipe: &Recipe) -> Self {
        Rows {
            values: vec![0.0; recipe.rows() * recipe.hidden],
            hidden: recipe.hidden,
        }
    }

    /// One row.
    pub(super) fn row(&self, row: usize) -> &[f64] {
        &self.values[row * self.hidden..][..self.hidden]
    }

    pub(super) fn iter_mut(&mut self) -> impl Iterator<Item = &mut [f64]> {
        self.values.chunks_exact_mut(self.hidden)
    }

    /// Negates each row that points away from the same row of `others`.
    pub(super) fn turn_towards(&mut self, others: &Rows) {
        for (row, other) in self
            .iter_mut()
            .zip(others.values.chunks_exact(others.hidden))
        {
            if dot(row, other) < 0.0 {
                row.iter_mut().for_each(|value| *value = -*value);
            }
        }
    }

    /// Subtracts from the first `count` rows their mean.
    pub(super) fn center(&mut self, count: usize) {
        let mut mean = vec![0.0; self.hidden];
        for row in self.values.chunks_exact(self.hidden).take(count) {
            for (mean, value) in mean.iter_mut().zip(row) {
                *mean += value / count as f64;
            }
        }
        for row in self.iter_mut().take(count) {
            for (value, mean) in row.iter_mut().zip(&mean) {
                *value -= mean;
            }
        }
    }
}

/// Scales a vector to unit length; returns false if it is too short to have a direction.
pub(super) fn normalize(row: &mut [f64]) -> bool {
    let length = dot(row, row).sqrt();
    if length.is_nan() || length <= NO_LENGTH || length.is_infinite() {
        return false;
    }
    row.iter_mut().for_each(|value| *value /= length);
    true
}

/// Subtracts from a row its projections on `others`, which are orthonormal and stand one after another.
pub(super) fn project_out(row: &mut [f64], others: &[f64]) {
    for other in others.chunks_exact(row.len()) {
        let inner = dot(row, other);
        for (value, of_other) in row.iter_mut().zip(other) {
            *value -= inner * of_other;
        }
    }
}
