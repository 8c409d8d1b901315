//! The task vectors of one matrix, read when they are needed.

use super::super::Linear;
use super::core::Core;
use engine::{EngineError, Matrices};
use matrix::Matrix;
use numeric::{Real, filled};
use rayon::prelude::*;

/// Elements that are read at a time; a longer row is read whole.
const BAND: usize = 1 << 18;

/// Bytes of the rows that are read at a time, of a model and of the base.
pub(super) fn reading(linear: Linear) -> u64 {
    let elements = (linear.rows as u64).saturating_mul(linear.columns as u64);
    let band = elements.min((BAND as u64).max(linear.columns as u64));
    band.saturating_mul(2 * 4)
}

/// A model that takes part, and how much of its task vector.
#[derive(Debug, Clone, Copy, PartialEq)]
pub(super) struct Task {
    pub(super) source: usize,
    pub(super) weight: f64,
}

/// The task vectors of one matrix: differences from the base, each times its weight.
pub(super) struct Tasks<'a> {
    pub(super) sources: &'a dyn Matrices,
    pub(super) base: usize,
    pub(super) tasks: &'a [Task],
    /// The row of the tensor at which the matrix begins.
    pub(super) first_row: usize,
    /// Rows and columns as they are stored.
    pub(super) shape: (usize, usize),
    /// Whether rows and columns are exchanged when they are handed over.
    pub(super) is_turned: bool,
    /// The task vectors between the directions that they use, where these stand for the whole ones.
    pub(super) core: Option<Core>,
}

impl Tasks<'_> {
    /// How many there are; one at least.
    pub(super) fn count(&self) -> usize {
        self.tasks.len()
    }

    /// The number of the matrix among those that the tensor stacks.
    pub(super) fn matrix(&self) -> usize {
        self.first_row / self.shape.0.max(1)
    }

    /// Rows and columns of each.
    pub(super) fn shape(&self) -> (usize, usize) {
        let (rows, columns) = self.shape;
        match self.is_turned {
            true => (columns, rows),
            false => (rows, columns),
        }
    }

    /// Rows and columns of what is [read](Self::read): fewer, where small matrices stand for the whole ones.
    pub(super) fn held(&self) -> (usize, usize) {
        self.core.as_ref().map_or(self.shape(), Core::shape)
    }

    /// One of them.
    pub(super) fn read<R: Real>(&self, task: usize) -> Result<Matrix<R>, EngineError> {
        let (rows, columns) = self.held();
        let mut out = Matrix::zeros(rows, columns)?;
        self.add(&mut out, task, 1.0)?;
        Ok(out)
    }

    /// Their sum, times a factor.
    pub(super) fn sum<R: Real>(&self, factor: f64) -> Result<Matrix<R>, EngineError> {
        let (rows, columns) = self.held();
        let mut out = Matrix::zeros(rows, columns)?;
        for task in 0..self.count() {
            self.add(&mut out, task, factor)?;
        }
        Ok(out)
    }

    /// Adds one of them, times a factor.
    pub(super) fn add<R: Real>(
        &self,
        out: &mut Matrix<R>,
        task: usize,
        factor: f64,
    ) -> Result<(), EngineError> {
        self.sources.check_running()?;
        let Task { source, weight } = self.tasks[task];
        if let Some(core) = &self.core {
            let pairs = out.values_mut().iter_mut().zip(core.task(task).values());
            let factor = R::from_f64(factor);
            pairs.for_each(|(out, value)| *out += factor * R::from_f32(*value));
            return Ok(());
        }
        let weight = R::from_f64(weight * factor);
        let (rows, columns) = self.shape;
        let at_once = (BAND / columns.max(1)).clamp(1, rows.max(1));
        let mut model = filled(at_once * columns, 0f32)?;
        let mut base = filled(at_once * columns, 0f32)?;
        let width = out.columns();
        for first in (0..rows).step_by(at_once) {
            let length = at_once.min(rows - first) * columns;
            let (model, base) = (&mut model[..length], &mut base[..length]);
            self.sources.read(source, self.first_row + first, model)?;
            self.sources.read(self.base, self.first_row + first, base)?;
            let (model, base) = (&*model, &*base);
            let difference = |at: usize| weight * (R::from_f32(model[at]) - R::from_f32(base[at]));
            match self.is_turned {
                true => {
                    out.values_mut()
                        .par_chunks_mut(width)
                        .enumerate()
                        .for_each(|(column, out)| {
                            let places = (column..length).step_by(columns);
                            let pairs = out[first..].iter_mut().zip(places);
                            pairs.for_each(|(out, at)| *out += difference(at));
                        })
                }
                false => {
                    let out = &mut out.values_mut()[first * columns..][..length];
                    let rows = out.par_chunks_mut(columns).enumerate();
                    rows.for_each(|(row, out)| {
                        let pairs = out.iter_mut().zip(row * columns..);
                        pairs.for_each(|(out, at)| *out += difference(at));
                    });
                }
            }
        }
        Ok(())
    }
}
