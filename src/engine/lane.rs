//! A worker's buffers: decoded blocks of its sources, computed blocks, and what it has seen in the values.
//!
//! This file knows neither passes nor tiles.

use super::EngineError;
use super::active::{ActiveJob, lock};
use numeric::{Elements, Narrowed, NonFinite, Oddities, Real, resize};

/// One worker's buffers, kept for the whole execution.
#[derive(Default)]
pub(super) struct Scratch {
    pub(super) single: Lane<f32>,
    pub(super) double: Lane<f64>,
}

/// Decoded blocks of every source, a block of every output, and a band of one that is encoded.
#[derive(Default)]
pub(super) struct Lane<R> {
    pub(super) sources: Vec<Vec<R>>,
    pub(super) outputs: Vec<Vec<R>>,
    /// The values of a band until they are encoded.
    pub(super) band: Vec<R>,
}

impl<R: Real> Lane<R> {
    /// Decodes a run of elements of every source; returns the bytes read. Fails if there is no memory for them.
    pub(super) fn fill(
        &mut self,
        sources: &[Box<dyn Elements + '_>],
        first: u64,
        length: usize,
    ) -> Result<usize, EngineError> {
        self.sources
            .resize_with(self.sources.len().max(sources.len()), Vec::new);
        let mut read = 0;
        for (source, values) in sources.iter().zip(&mut self.sources) {
            resize(values, length, R::ZERO)?;
            read += R::fill(source.as_ref(), first, values)?;
        }
        Ok(read)
    }
}

/// The decoded elements of the first `sources` sources.
pub(super) fn views<R>(decoded: &[Vec<R>], sources: usize) -> Vec<&[R]> {
    decoded.iter().take(sources).map(Vec::as_slice).collect()
}

/// How many of a source's values, which start at index `first`, are NaN or infinite. Looks at the stored bytes if
/// there are any, since they are smaller than the decoded values.
pub(super) fn non_finite<R: Real>(source: &dyn Elements, first: u64, values: &[R]) -> NonFinite {
    match source.stored(first, values.len()) {
        [] => NonFinite::count(values),
        bytes => source.format().non_finite(bytes),
    }
}

/// What is odd in a source's values. Looks at the stored bytes if there are any.
fn oddities<R: Real>(source: &dyn Elements, first: u64, values: &[R]) -> Oddities {
    match source.stored(first, values.len()) {
        [] => Oddities::of_values(values),
        bytes => Oddities::of_stored(source.format(), bytes),
    }
}

/// What a worker found odd in the sources of a part.
pub(super) struct Found(Vec<Oddities>);

impl Found {
    pub(super) fn new(sources: usize) -> Self {
        Self(vec![Oddities::default(); sources])
    }

    /// Looks at elements from index `first` on, unless an earlier pass has.
    pub(super) fn look<R: Real>(
        &mut self,
        job: &ActiveJob<'_>,
        sources: &[Box<dyn Elements + '_>],
        first: u64,
        views: &[&[R]],
    ) {
        if !job.first_look() {
            return;
        }
        for ((found, source), values) in self.0.iter_mut().zip(sources).zip(views) {
            *found += oddities(source.as_ref(), first, values);
        }
    }

    /// Adds what this worker found, and the counts of each output, to those of the job.
    pub(super) fn tell(self, job: &ActiveJob<'_>, results: &[Narrowed]) {
        let mut seen = lock(&job.seen);
        seen.sources
            .iter_mut()
            .zip(self.0)
            .for_each(|(total, part)| *total += part);
        let outputs = seen.results.len().max(results.len());
        seen.results.resize(outputs, Narrowed::default());
        for (total, part) in seen.results.iter_mut().zip(results) {
            total.overflowed += part.overflowed;
            total.non_finite += part.non_finite;
        }
    }
}
