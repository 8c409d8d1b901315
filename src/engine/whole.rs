//! Passes over whole matrices: for singular values, polar factors, and all else that cannot be computed by blocks.
//!
//! One matrix is computed at a time, by all threads. Later passes read the result block by block.

use std::sync::Arc;

use rayon::iter::{IndexedParallelIterator, ParallelIterator};
use rayon::slice::ParallelSliceMut;

use super::EngineError;
use super::active::ActiveJob;
use super::execute::Engine;
use super::job::Work;
use super::lane::non_finite;
use super::program::Measured;
use errors::Refusal;
use numeric::{BLOCK, Elements, Fill, NonFinite};

/// Computes a matrix from whole matrices.
///
/// It runs in the engine's thread pool, so rayon uses all threads. The result must not depend on their number: cut
/// work by shapes only, and add up in a fixed order.
pub trait Whole: Send + Sync {
    /// Sets `result`, which has the shape of the sources, in row order; it is zero on entry.
    ///
    /// The memory held at a time, including `result`, is at most [`Cost::matrix`](super::Cost::matrix).
    ///
    /// # Errors
    /// Those of [`Matrices::read`], and [`Matrices::refusal`] if there is no result.
    fn compute(&self, sources: &Matrices<'_>, result: &mut [f32]) -> Result<(), EngineError>;
}

/// The sources of a pass over whole matrices, in the program's order. They are read on request, so that a pass
/// holds only what it needs at the moment.
pub struct Matrices<'a> {
    engine: &'a Engine<'a>,
    job: &'a ActiveJob<'a>,
    sources: &'a [Box<dyn Elements + 'a>],
    rows: usize,
    columns: usize,
}

impl Matrices<'_> {
    /// How many sources there are.
    pub fn len(&self) -> usize {
        self.sources.len()
    }

    /// Whether there are none.
    pub fn is_empty(&self) -> bool {
        self.sources.is_empty()
    }

    /// Rows of each source.
    pub fn rows(&self) -> usize {
        self.rows
    }

    /// Columns of each source.
    pub fn columns(&self) -> usize {
        self.columns
    }

    /// Reads some whole rows of a source, from row `first` on, into `rows`; uses all threads.
    ///
    /// # Errors
    /// If the work should stop, or if the source holds NaN or infinity and these are not allowed.
    ///
    /// # Panics
    /// If there is no such source, or it has no such rows: an error of the caller.
    pub fn read(&self, source: usize, first: usize, rows: &mut [f32]) -> Result<(), EngineError> {
        assert!(first * self.columns + rows.len() <= self.rows * self.columns);
        let elements = self.sources[source].as_ref();
        let first = (first * self.columns) as u64;
        let blocks = rows.par_chunks_mut(BLOCK).enumerate();
        let clean = blocks.map(|(number, values)| {
            self.check_running()?;
            let first = first + (number * BLOCK) as u64;
            let read = Fill::<f32>::fill(elements, first, values);
            self.engine.count_read(read);
            Ok(!non_finite(elements, first, values).any())
        });
        let clean = clean.try_reduce(|| true, |a, b| Ok(a && b))?;
        match clean || self.engine.settings.allow_non_finite {
            true => Ok(()),
            false => Err(self.job.non_finite(source, self.count(elements)?)),
        }
    }

    /// Checks that the work should go on; call it about every second.
    ///
    /// # Errors
    /// [`EngineError::Cancelled`] if it should stop.
    pub fn check_running(&self) -> Result<(), EngineError> {
        match self.engine.observer.cancelled() {
            true => Err(EngineError::Cancelled),
            false => Ok(()),
        }
    }

    /// The error for values that have no result; the reason is meant for the user.
    pub fn refusal(&self, reason: impl Into<Refusal>) -> EngineError {
        self.job.refused(reason.into())
    }

    /// Counts NaN and infinity in the whole source.
    fn count(&self, elements: &dyn Elements) -> Result<NonFinite, EngineError> {
        let mut found = NonFinite::default();
        let mut values = vec![0f32; BLOCK];
        let end = (self.rows * self.columns) as u64;
        for first in (0..end).step_by(BLOCK) {
            self.check_running()?;
            let values = &mut values[..(end - first).min(BLOCK as u64) as usize];
            Fill::<f32>::fill(elements, first, values);
            found += non_finite(elements, first, values);
        }
        Ok(found)
    }
}

impl Engine<'_> {
    /// Runs the job's passes over whole matrices until its next pass goes over blocks.
    pub(super) fn run_whole(&self, job: &mut ActiveJob<'_>) -> Result<(), EngineError> {
        while let Some((columns, whole)) = job.stage.whole() {
            let Work::Compute {
                sources, elements, ..
            } = job.work
            else {
                return Ok(());
            };
            let rows = *elements as usize / columns.max(1);
            let matrices = Matrices {
                engine: self,
                job,
                sources,
                rows,
                columns,
            };
            matrices.check_running()?;
            let mut result = vec![0f32; rows * columns];
            self.pool
                .install(|| whole.compute(&matrices, &mut result))?;
            job.measured.push(Measured {
                matrix: Arc::new(result),
                ..Measured::default()
            });
            job.decide();
        }
        Ok(())
    }
}
