//! Runs the passes of a job over whole matrices: one matrix at a time, by all threads.

use std::sync::Arc;

use rayon::iter::{IndexedParallelIterator, ParallelIterator};
use rayon::slice::{ParallelSlice, ParallelSliceMut};

use super::EngineError;
use super::active::ActiveJob;
use super::execute::Engine;
use super::job::Work;
use super::lane::non_finite;
use super::program::Measured;
use super::whole::Matrices;
use errors::Refusal;
use numeric::{BLOCK, Elements, Fill, NonFinite, Product, filled};

/// The sources of a job at work, as a pass over whole matrices reads them.
struct Sources<'a> {
    engine: &'a Engine<'a>,
    job: &'a ActiveJob<'a>,
    sources: &'a [Box<dyn Elements + 'a>],
    rows: usize,
    columns: usize,
}

impl Matrices for Sources<'_> {
    fn count(&self) -> usize {
        self.sources.len()
    }

    fn rows(&self) -> usize {
        self.rows
    }

    fn columns(&self) -> usize {
        self.columns
    }

    fn read(&self, source: usize, first: usize, rows: &mut [f32]) -> Result<(), EngineError> {
        assert!(first * self.columns + rows.len() <= self.rows * self.columns);
        let elements = self.sources[source].as_ref();
        let first = (first * self.columns) as u64;
        let blocks = rows.par_chunks_mut(BLOCK).enumerate();
        let clean = blocks.map(|(number, values)| {
            self.check_running()?;
            let first = first + (number * BLOCK) as u64;
            let read = Fill::<f32>::fill(elements, first, values)?;
            self.engine.count_read(read);
            Ok::<bool, EngineError>(!non_finite(elements, first, values).any())
        });
        let clean = clean.try_reduce(|| true, |a, b| Ok(a && b))?;
        match clean || self.engine.settings.allow_non_finite {
            true => Ok(()),
            false => Err(self
                .job
                .non_finite(source, self.count_non_finite(elements)?)),
        }
    }

    fn product(&self, source: usize, base: usize) -> Result<Option<Product<'_>>, EngineError> {
        self.check_running()?;
        let count = self.rows * self.columns;
        let (source, base) = (self.sources[source].as_ref(), self.sources[base].as_ref());
        let (below, product) = source.product().unwrap_or((source, Product::NOTHING));
        let [bytes, other] = [below, base].map(|elements| elements.stored(0, count));
        // Opened twice, a base lies at two places. What is stored is compared fast.
        let blocks = bytes.par_chunks(BLOCK).zip(other.par_chunks(BLOCK));
        let same = below.format() == base.format()
            && !bytes.is_empty()
            && bytes.len() == other.len()
            && blocks.all(|(bytes, other)| bytes == other);
        self.engine.count_read(bytes.len());
        Ok(same.then_some(product))
    }

    fn check_running(&self) -> Result<(), EngineError> {
        match self.engine.observer.cancelled() {
            true => Err(EngineError::Cancelled),
            false => Ok(()),
        }
    }

    fn refusal(&self, reason: Refusal) -> EngineError {
        self.job.refused(reason)
    }
}

impl Sources<'_> {
    /// Counts NaN and infinity in the whole source.
    fn count_non_finite(&self, elements: &dyn Elements) -> Result<NonFinite, EngineError> {
        let mut found = NonFinite::default();
        let mut values = filled(BLOCK, 0f32)?;
        let end = (self.rows * self.columns) as u64;
        for first in (0..end).step_by(BLOCK) {
            self.check_running()?;
            let values = &mut values[..(end - first).min(BLOCK as u64) as usize];
            Fill::<f32>::fill(elements, first, values)?;
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
            let matrices = Sources {
                engine: self,
                job,
                sources,
                rows,
                columns,
            };
            matrices.check_running()?;
            let mut result = filled(rows * columns, 0f32)?;
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
