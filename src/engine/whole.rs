//! Passes over whole matrices: singular values, polar factors, and whatever else no block knows.
//!
//! One matrix is computed at a time, by all threads; what the pass gives is read by the block in the passes after it.

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
/// It runs within the engine's pool, so that what it does by rayon is done by all threads. The result must not depend
/// on how many those are: work is cut by shapes alone, and sums are made in one order.
pub trait Whole: Send + Sync {
    /// Sets `result`, which has the sources' shape, row after row. It is zeros before.
    ///
    /// What it holds at a time, `result` among it, is at most [`Cost::matrix`](super::Cost::matrix).
    ///
    /// # Errors
    /// Those of [`Matrices::read`], and what [`Matrices::refusal`] gives where there is no result.
    fn compute(&self, sources: &Matrices<'_>, result: &mut [f32]) -> Result<(), EngineError>;
}

/// The sources of a pass over whole matrices, in the program's order: they are read when they are asked for, so that
/// a pass holds only what it needs at a time.
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

    /// Sets `rows`, which is as long as some rows, to those of a source from `first` on; by all threads.
    ///
    /// # Errors
    /// The work shall stop, or the source holds NaN or infinity, which nobody let through.
    ///
    /// # Panics
    /// If there is no such source, or it has no such rows: a mistake of the caller's.
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

    /// That the work shall go on; to be asked every second or so.
    ///
    /// # Errors
    /// [`EngineError::Cancelled`] if not.
    pub fn check_running(&self) -> Result<(), EngineError> {
        match self.engine.observer.cancelled() {
            true => Err(EngineError::Cancelled),
            false => Ok(()),
        }
    }

    /// The error that there is no result for these values: why, in words for the user.
    pub fn refusal(&self, reason: impl Into<Refusal>) -> EngineError {
        self.job.refused(reason.into())
    }

    /// NaN and infinity in all of a source.
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
    /// Makes the passes over whole matrices that a job comes to, until its next pass goes over blocks.
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
