//! Runs jobs: batches of tensors, rounds of passes, tiles that worker threads claim in order.
//!
//! A batch is a run of consecutive jobs. In each round every job of the batch makes one pass. The tiles of all jobs
//! form one queue, so that small tensors do not leave threads idle. Between rounds, statistics are folded and each
//! program decides its next pass.

use std::ops::Range;
use std::sync::Mutex;
use std::sync::atomic::{AtomicU64, Ordering::Relaxed};

use rayon::ThreadPool;
use rayon::iter::{IntoParallelRefMutIterator, ParallelIterator};

use super::active::{ActiveJob, cost, lock, tile_blocks};
use super::budget::{Limits, Settings, statistics};
use super::job::{Job, Work};
use super::lane::Scratch;
use super::program::{CarriedMask, Cost};
use super::scan::{in_order, pool};
use super::tile::Tiles;
use super::{EngineError, Observer, Sink, Totals};

/// Tiles per thread in a batch of jobs that measure. Enough that no thread waits long for another's last tile, few
/// enough that what passes keep for each other takes little memory.
const MEASURED_TILES: usize = 16;

/// Runs the jobs in order and passes their bytes to the sink.
///
/// # Errors
/// The first failure stops the work; the output that the sink has received by then is incomplete.
pub fn execute(
    jobs: &[Job<'_>],
    settings: &Settings,
    limits: &Limits,
    sink: &dyn Sink,
    observer: &dyn Observer,
) -> Result<Totals, EngineError> {
    let pool = pool(settings.threads)?;
    let scratch = (0..settings.threads)
        .map(|_| Mutex::new(Scratch::default()))
        .collect();
    let engine = Engine {
        jobs,
        settings,
        limits,
        sink,
        observer,
        pool,
        scratch,
        tiles: Tiles::new(limits.tile, limits.tiles),
        tally: Tally::default(),
    };
    let mut start = 0;
    while start < jobs.len() {
        let batch = engine.batch_from(start);
        start = batch.end;
        engine.run_batch(batch)?;
    }
    Ok(engine.tally.totals())
}

/// What all workers share.
pub(super) struct Engine<'a> {
    jobs: &'a [Job<'a>],
    pub(super) settings: &'a Settings,
    pub(super) limits: &'a Limits,
    pub(super) sink: &'a dyn Sink,
    pub(super) observer: &'a dyn Observer,
    pub(super) pool: ThreadPool,
    scratch: Vec<Mutex<Scratch>>,
    pub(super) tiles: Tiles,
    tally: Tally,
}

#[derive(Default)]
struct Tally {
    read: AtomicU64,
    written: AtomicU64,
    saturated: AtomicU64,
}

impl Tally {
    fn totals(&self) -> Totals {
        Totals {
            read: self.read.load(Relaxed),
            written: self.written.load(Relaxed),
            saturated: self.saturated.load(Relaxed),
        }
    }
}

impl<'a> Engine<'a> {
    /// The next batch: jobs from `start` on that run together.
    fn batch_from(&self, start: usize) -> Range<usize> {
        let Cost {
            measures, matrix, ..
        } = cost(&self.jobs[start].work);
        let (measures, matrix) = (measures > 0, matrix > 0);
        let mut end = start;
        let (mut held, mut tiles) = (0, 0);
        while let Some(job) = self.jobs.get(end) {
            let cost = cost(&job.work);
            held += statistics(cost, self.settings.threads);
            // A job with a whole matrix runs alone, so that only one matrix is in memory at a time.
            let alone = cost.matrix > 0 || matrix;
            let full = measures
                && (tiles >= MEASURED_TILES * self.settings.threads
                    || held > self.limits.statistics);
            if end > start && (full || alone || job.after_all || (cost.measures > 0) != measures) {
                break;
            }
            tiles += job.pieces().div_ceil(tile_blocks(&job.work, self.limits));
            end += 1;
        }
        start..end
    }

    fn run_batch(&self, batch: Range<usize>) -> Result<(), EngineError> {
        let mut active: Vec<_> = self.jobs[batch].iter().map(ActiveJob::new).collect();
        let mut carried = self.limits.carried;
        for job in &mut active {
            let wished = cost(job.work).carried;
            if wished > 0 && wished <= carried {
                carried -= wished;
                job.carried.resize_with(job.work.blocks(), CarriedMask::new);
            }
        }
        loop {
            for job in &mut active {
                self.run_whole(job)?;
            }
            let mut queue = Vec::new();
            for (index, job) in active.iter().enumerate() {
                if let Some(reason) = job.stage.refused() {
                    return Err(job.refused(reason.clone()));
                }
                let parts = job.parts(job.tile_blocks(self.limits));
                job.parts_left.store(parts, Relaxed);
                queue.extend((0..parts).map(|part| (index, part)));
            }
            if queue.is_empty() {
                let survived = active.iter().flat_map(|job| &job.survived);
                survived.for_each(|&(output, survival)| self.sink.survived(output, survival));
                let errors = active.iter().filter_map(|job| job.encoding_error);
                errors.for_each(|(output, error)| self.sink.encoded(output, error));
                for (output, source, found) in active.iter().flat_map(ActiveJob::odd) {
                    self.sink.odd(output, source, found);
                }
                return Ok(());
            }
            self.run_round(&active, &queue)?;
            let jobs = active.par_iter_mut();
            self.pool
                .install(|| jobs.try_for_each(ActiveJob::finish_round))?;
        }
    }

    /// Lets the workers empty the queue.
    fn run_round(
        &self,
        active: &[ActiveJob<'_>],
        queue: &[(usize, usize)],
    ) -> Result<(), EngineError> {
        let begin = |thread| (thread, vec![Vec::new(); active.len()]);
        let step = |(thread, counts): &mut (usize, Vec<Vec<u64>>), number: usize| {
            let (index, part) = queue[number];
            let mut scratch = lock(&self.scratch[*thread]);
            self.run_part(&active[index], part, &mut scratch, &mut counts[index])
        };
        for (_, counts) in in_order(&self.pool, queue.len(), begin, step)? {
            for (job, counts) in active.iter().zip(counts) {
                let mut pending = lock(&job.pending);
                if pending.counts.is_empty() {
                    pending.counts = counts;
                } else {
                    pending
                        .counts
                        .iter_mut()
                        .zip(counts)
                        .for_each(|(total, part)| *total += part);
                }
            }
        }
        Ok(())
    }

    /// After the last tile of a pass, decides whether the values that were seen are allowed.
    pub(super) fn judge(&self, active: &ActiveJob<'_>) -> Result<(), EngineError> {
        let (names, seen) = (active.names, lock(&active.seen));
        if let Some(source) = seen.differing {
            return Err(EngineError::NotIdentical {
                first: Box::new(names.source(0)),
                other: Box::new(names.source(source)),
            });
        }
        let allowed = self.settings.allow_non_finite;
        if let Some((source, &found)) = seen
            .sources
            .iter()
            .enumerate()
            .find(|(_, found)| found.non_finite.any())
            && !allowed
        {
            return Err(active.non_finite(source, found.non_finite));
        }
        let Work::Compute { target, .. } = active.work else {
            return Ok(());
        };
        for (output, results) in target.outputs().iter().zip(&seen.results) {
            if results.non_finite.nan > 0 && !allowed {
                return Err(EngineError::NotANumber {
                    tensor: names.result(),
                    count: results.non_finite.nan,
                });
            }
            // Infinity in the output is allowed if the input had it, and the format has it; if all inputs were finite, it
            // is an overflow.
            let infinite = match allowed && output.format.has_infinity() {
                true => 0,
                false => results.non_finite.infinite,
            };
            let count = results.overflowed + infinite;
            if count > 0 && !self.settings.saturate {
                return Err(EngineError::Overflow {
                    tensor: names.result(),
                    count,
                    format: output.format_name(),
                });
            }
            self.tally.saturated.fetch_add(count, Relaxed);
        }
        Ok(())
    }

    pub(super) fn count_read(&self, bytes: usize) {
        self.tally.read.fetch_add(bytes as u64, Relaxed);
        self.observer.advance(bytes as u64);
    }

    pub(super) fn count_written(&self, bytes: usize) {
        self.tally.written.fetch_add(bytes as u64, Relaxed);
        self.observer.advance(bytes as u64);
    }
}
