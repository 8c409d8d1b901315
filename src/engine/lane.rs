//! What a worker holds: decoded blocks of its sources, the blocks that it computes, and what it met in the values.
//!
//! It knows neither passes nor tiles.

use super::active::{ActiveJob, lock};
use numeric::{Elements, Narrowed, NonFinite, Real};

/// One worker's buffers, kept for the whole execution.
#[derive(Default)]
pub(super) struct Scratch {
    pub(super) single: Lane<f32>,
    pub(super) double: Lane<f64>,
}

/// Decoded blocks of every source, and a block of every output.
#[derive(Default)]
pub(super) struct Lane<R> {
    pub(super) sources: Vec<Vec<R>>,
    pub(super) outputs: Vec<Vec<R>>,
}

impl<R: Real> Lane<R> {
    /// Decodes a run of elements of every source; gives the bytes read.
    pub(super) fn fill(
        &mut self,
        sources: &[Box<dyn Elements + '_>],
        first: u64,
        length: usize,
    ) -> usize {
        self.sources
            .resize_with(self.sources.len().max(sources.len()), Vec::new);
        let mut read = 0;
        for (source, values) in sources.iter().zip(&mut self.sources) {
            values.resize(length, R::ZERO);
            read += R::fill(source.as_ref(), first, values);
        }
        read
    }
}

/// What was decoded of the first so many sources.
pub(super) fn views<R>(decoded: &[Vec<R>], sources: usize) -> Vec<&[R]> {
    decoded.iter().take(sources).map(Vec::as_slice).collect()
}

/// How many of a source's values, those from number `first` on, are NaN or infinite: a look at the bytes, where they
/// are stored, which are fewer than what was decoded.
pub(super) fn non_finite<R: Real>(source: &dyn Elements, first: u64, values: &[R]) -> NonFinite {
    match source.stored(first, values.len()) {
        [] => NonFinite::count(values),
        bytes => source.format().non_finite(bytes),
    }
}

/// NaN and infinity that a worker met in the sources of a part.
pub(super) struct Found(Vec<NonFinite>);

impl Found {
    pub(super) fn new(sources: usize) -> Self {
        Self(vec![NonFinite::default(); sources])
    }

    /// Looks at the elements from number `first` on, if nobody has before.
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
            *found += non_finite(source.as_ref(), first, values);
        }
    }

    /// Adds what was met, and what came of each output's values, to what others met.
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
