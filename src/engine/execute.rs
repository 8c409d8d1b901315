//! Runs jobs: batches of tensors, rounds of passes, tiles claimed in order by worker threads.
//!
//! A batch is a run of neighbouring jobs. In each round every job of the batch makes one pass; the tiles of
//! all of them form one queue, so that small tensors do not leave threads idle. Between rounds the
//! statistics are folded and each program decides on its next pass, serially.

use std::ops::Range;
use std::sync::atomic::{AtomicBool, AtomicU64, AtomicUsize, Ordering::Relaxed};
use std::sync::{Mutex, MutexGuard, PoisonError};

use rayon::ThreadPool;

use super::budget::{Limits, Settings, statistics};
use super::job::{COPY_BLOCK, Job, Target, Work};
use super::program::{Block, Cost, Measured, Pass, Program};
use super::{EngineError, Observer, Sink, Totals};
use crate::numeric::{BLOCK, FloatType, Narrowed, NonFinite, Real};

/// Tiles per thread in a batch of jobs that measure: enough to keep every thread busy, few enough that what
/// was measured is still in the cache when it is applied.
const MEASURED_TILES: usize = 8;

/// Runs the jobs in order and gives their bytes to the sink.
///
/// # Errors
/// The first failure met stops the work; what the sink has taken by then is incomplete.
pub fn execute(
    jobs: &[Job<'_>],
    settings: &Settings,
    limits: &Limits,
    sink: &dyn Sink,
    observer: &dyn Observer,
) -> Result<Totals, EngineError> {
    let pool = rayon::ThreadPoolBuilder::new()
        .num_threads(settings.threads)
        .thread_name(|index| format!("weld-{index}"))
        .build()
        .map_err(|source| EngineError::Threads {
            threads: settings.threads,
            source,
        })?;
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

/// All that the workers share.
struct Engine<'a> {
    jobs: &'a [Job<'a>],
    settings: &'a Settings,
    limits: &'a Limits,
    sink: &'a dyn Sink,
    observer: &'a dyn Observer,
    pool: ThreadPool,
    scratch: Vec<Mutex<Scratch>>,
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

/// One worker's buffers, kept for the whole execution.
#[derive(Default)]
struct Scratch {
    single: Lane<f32>,
    double: Lane<f64>,
    encoded: Vec<u8>,
}

/// Decoded blocks of every source, and the block that is computed.
#[derive(Default)]
struct Lane<R> {
    sources: Vec<Vec<R>>,
    out: Vec<R>,
}

/// A job of the batch at hand.
struct Flight<'a> {
    job: usize,
    work: &'a Work<'a>,
    output: Option<usize>,
    stage: Stage,
    measured: Vec<Measured>,
    pending: Mutex<Pending>,
    tiles_left: AtomicUsize,
    seen: Mutex<Seen>,
}

/// The pass that a job makes in the round at hand.
enum Stage {
    Copy,
    Single(Pass<f32>),
    Double(Pass<f64>),
    Done,
}

/// What the workers have measured in a round: counts, and sums by the first block of their tile.
#[derive(Default)]
struct Pending {
    counts: Vec<u64>,
    sums: Vec<(usize, Vec<f64>)>,
}

/// What was met in the values of a job.
#[derive(Default)]
struct Seen {
    sources: Vec<NonFinite>,
    results: Narrowed,
    differing: Option<usize>,
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    // A poisoned lock means that a worker panicked; rayon carries that panic on, so the data is never used.
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

fn cost(work: &Work<'_>) -> Cost {
    match work {
        Work::Copy { .. } => Cost::default(),
        Work::Compute { program, .. } => program.cost(),
    }
}

impl<'a> Flight<'a> {
    fn new(job: usize, jobs: &'a [Job<'a>]) -> Self {
        let Job { work, output, .. } = &jobs[job];
        let sources = match work {
            Work::Copy { sources, .. } => sources.len(),
            Work::Compute { sources, .. } => sources.len(),
        };
        let mut flight = Self {
            job,
            work,
            output: *output,
            stage: Stage::Done,
            measured: Vec::new(),
            pending: Mutex::default(),
            tiles_left: AtomicUsize::new(0),
            seen: Mutex::new(Seen {
                sources: vec![NonFinite::default(); sources],
                ..Seen::default()
            }),
        };
        // A tensor without elements has no pass to make.
        if work.blocks() > 0 {
            flight.decide();
        }
        flight
    }

    /// Sets the next pass from what has been measured.
    fn decide(&mut self) {
        self.stage = match self.work {
            Work::Copy { .. } => Stage::Copy,
            Work::Compute { program, .. } if self.work.wants_f64() => {
                Stage::Double(Program::<f64>::next(*program, &self.measured))
            }
            Work::Compute { program, .. } => {
                Stage::Single(Program::<f32>::next(*program, &self.measured))
            }
        };
        if let Work::Compute {
            target: Target::Decide(decided),
            ..
        } = self.work
        {
            match std::mem::replace(&mut self.stage, Stage::Done) {
                Stage::Single(Pass::Apply(apply)) => decided.set_single(apply),
                Stage::Double(Pass::Apply(apply)) => decided.set_double(apply),
                measures => self.stage = measures,
            }
        }
    }

    /// Folds what a round measured and goes on to the next pass, or is done.
    fn finish_round(&mut self) {
        let width = match &self.stage {
            Stage::Single(Pass::Measure(measure)) => measure.sums(),
            Stage::Double(Pass::Measure(measure)) => measure.sums(),
            _ => {
                self.stage = Stage::Done;
                return;
            }
        };
        let Pending {
            counts,
            sums: mut tiles,
        } = std::mem::take(&mut *lock(&self.pending));
        tiles.sort_unstable_by_key(|(first_block, _)| *first_block);
        let mut sums = vec![0.0; width];
        for block in tiles
            .iter()
            .flat_map(|(_, blocks)| blocks.chunks(width.max(1)))
        {
            sums.iter_mut()
                .zip(block)
                .for_each(|(sum, part)| *sum += part);
        }
        self.measured.push(Measured { sums, counts });
        self.decide();
    }

    /// Whether this is the first look at the sources, which counts NaN and infinity.
    fn first_look(&self) -> bool {
        self.measured.is_empty()
    }
}

impl<'a> Engine<'a> {
    /// The jobs from `start` on that are run together.
    fn batch_from(&self, start: usize) -> Range<usize> {
        let measures = cost(&self.jobs[start].work).measures > 0;
        let mut end = start;
        let (mut held, mut tiles) = (0, 0);
        while let Some(job) = self.jobs.get(end) {
            let cost = cost(&job.work);
            held += statistics(cost, job.work.blocks(), self.settings.threads);
            let full = measures
                && (tiles >= MEASURED_TILES * self.settings.threads
                    || held > self.limits.statistics);
            if end > start && (full || job.after_all || (cost.measures > 0) != measures) {
                break;
            }
            tiles += job.work.blocks().div_ceil(self.limits.tile_blocks);
            end += 1;
        }
        start..end
    }

    fn run_batch(&self, batch: Range<usize>) -> Result<(), EngineError> {
        let mut flights: Vec<Flight<'_>> = batch.map(|job| Flight::new(job, self.jobs)).collect();
        loop {
            let mut queue = Vec::new();
            for (index, flight) in flights.iter().enumerate() {
                if !matches!(flight.stage, Stage::Done) {
                    let tiles = flight.work.blocks().div_ceil(self.limits.tile_blocks);
                    flight.tiles_left.store(tiles, Relaxed);
                    queue.extend((0..tiles).map(|tile| (index, tile)));
                }
            }
            if queue.is_empty() {
                return Ok(());
            }
            self.run_round(&flights, &queue)?;
            flights.iter_mut().for_each(Flight::finish_round);
        }
    }

    /// Lets the workers empty the queue.
    fn run_round(
        &self,
        flights: &[Flight<'_>],
        queue: &[(usize, usize)],
    ) -> Result<(), EngineError> {
        let claimed = AtomicUsize::new(0);
        let stop = AtomicBool::new(false);
        let failure: Mutex<Option<EngineError>> = Mutex::new(None);
        self.pool.broadcast(|context| {
            let mut scratch = lock(&self.scratch[context.index()]);
            let mut counts: Vec<Vec<u64>> = vec![Vec::new(); flights.len()];
            while !stop.load(Relaxed) {
                let Some(&(index, tile)) = queue.get(claimed.fetch_add(1, Relaxed)) else {
                    break;
                };
                if let Err(error) =
                    self.run_tile(&flights[index], tile, &mut scratch, &mut counts[index])
                {
                    stop.store(true, Relaxed);
                    lock(&failure).get_or_insert(error);
                }
            }
            for (flight, counts) in flights.iter().zip(counts) {
                let mut pending = lock(&flight.pending);
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
        });
        failure
            .into_inner()
            .unwrap_or_else(PoisonError::into_inner)
            .map_or(Ok(()), Err)
    }

    fn run_tile(
        &self,
        flight: &Flight<'_>,
        tile: usize,
        scratch: &mut Scratch,
        counts: &mut Vec<u64>,
    ) -> Result<(), EngineError> {
        if self.observer.cancelled() {
            return Err(EngineError::Cancelled);
        }
        let first = tile * self.limits.tile_blocks;
        let blocks = first..flight.work.blocks().min(first + self.limits.tile_blocks);
        let Scratch {
            single,
            double,
            encoded,
        } = scratch;
        match (&flight.stage, flight.work) {
            (Stage::Copy, Work::Copy { sources, format }) => {
                self.copy_tile(flight, sources, *format, blocks, scratch)?;
            }
            (Stage::Single(pass), work) => {
                self.compute_tile(flight, work, pass, blocks, single, encoded, counts)?
            }
            (Stage::Double(pass), work) => {
                self.compute_tile(flight, work, pass, blocks, double, encoded, counts)?
            }
            (Stage::Copy | Stage::Done, _) => {}
        }
        if flight.tiles_left.fetch_sub(1, Relaxed) == 1 {
            self.judge(flight)?;
        }
        Ok(())
    }

    /// Decides, after the last tile of a pass, whether what was met in the values is let through.
    fn judge(&self, flight: &Flight<'_>) -> Result<(), EngineError> {
        let job = flight.job;
        let seen = lock(&flight.seen);
        if let Some(source_index) = seen.differing {
            return Err(EngineError::NotIdentical { job, source_index });
        }
        let allowed = self.settings.allow_non_finite;
        if let Some((source_index, &found)) = seen
            .sources
            .iter()
            .enumerate()
            .find(|(_, found)| found.any())
            && !allowed
        {
            return Err(EngineError::NonFinite {
                job,
                source_index,
                found,
            });
        }
        let Work::Compute {
            target: Target::Values(output),
            ..
        } = flight.work
        else {
            return Ok(());
        };
        let results = seen.results;
        if results.non_finite.nan > 0 && !allowed {
            return Err(EngineError::NotANumber {
                job,
                count: results.non_finite.nan,
            });
        }
        // Infinities that came in may go out; those that finite inputs gave are overflow.
        let count = results.overflowed
            + if allowed {
                0
            } else {
                results.non_finite.infinite
            };
        if count > 0 && !self.settings.saturate {
            return Err(EngineError::Overflow {
                job,
                count,
                format: *output,
            });
        }
        self.tally.saturated.fetch_add(count, Relaxed);
        Ok(())
    }

    fn copy_tile(
        &self,
        flight: &Flight<'_>,
        sources: &[&[u8]],
        format: Option<FloatType>,
        blocks: Range<usize>,
        scratch: &mut Scratch,
    ) -> Result<(), EngineError> {
        let Some((first, others)) = sources.split_first() else {
            return Ok(());
        };
        let bytes = blocks.start * COPY_BLOCK..first.len().min(blocks.end * COPY_BLOCK);
        let tile = &first[bytes.clone()];
        let differing = others
            .iter()
            .position(|other| other.get(bytes.clone()) != Some(tile));
        let mut found = NonFinite::default();
        if let Some(format) = format {
            for block in tile.chunks(COPY_BLOCK) {
                found += match format {
                    FloatType::F64 => scan(format, block, &mut scratch.double.out),
                    _ => scan(format, block, &mut scratch.single.out),
                };
            }
        }
        if differing.is_some() || found.any() {
            let mut seen = lock(&flight.seen);
            seen.differing = seen.differing.or(differing.map(|index| index + 1));
            seen.sources[0] += found;
        }
        self.count_read(tile.len() * sources.len());
        self.write(flight, bytes.start as u64, tile)
    }

    #[expect(
        clippy::too_many_arguments,
        reason = "the worker's buffers are lent separately"
    )]
    fn compute_tile<R: Real>(
        &self,
        flight: &Flight<'_>,
        work: &Work<'_>,
        pass: &Pass<R>,
        blocks: Range<usize>,
        lane: &mut Lane<R>,
        encoded: &mut Vec<u8>,
        counts: &mut Vec<u64>,
    ) -> Result<(), EngineError> {
        let Work::Compute {
            sources,
            elements,
            target,
            ..
        } = work
        else {
            return Ok(());
        };
        let block_len = work.block_len();
        let output = match target {
            Target::Values(format) => *format,
            // Only measures, and writes nothing.
            Target::Decide(_) => FloatType::F64,
        };
        let mut found = vec![NonFinite::default(); sources.len()];
        let mut results = Narrowed::default();
        let mut sums = Vec::new();
        let mut read = 0;
        encoded.clear();
        lane.sources
            .resize_with(lane.sources.len().max(sources.len()), Vec::new);
        for index in blocks.clone() {
            let first = index as u64 * block_len as u64;
            let length = (block_len as u64).min(elements - first) as usize;
            for (source, values) in sources.iter().zip(&mut lane.sources) {
                values.resize(length, R::ZERO);
                read += R::fill(source.as_ref(), first, values);
            }
            if flight.first_look() {
                for (found, values) in found.iter_mut().zip(&lane.sources) {
                    *found += NonFinite::count(values);
                }
            }
            let views: Vec<&[R]> = lane.sources[..sources.len()]
                .iter()
                .map(Vec::as_slice)
                .collect();
            let block = Block {
                index,
                first,
                sources: &views,
            };
            match pass {
                Pass::Measure(measure) => {
                    counts.resize(measure.counts(), 0);
                    let start = sums.len();
                    sums.resize(start + measure.sums(), 0.0);
                    measure.block(block, &mut sums[start..], counts);
                }
                Pass::Apply(apply) => {
                    lane.out.resize(length, R::ZERO);
                    apply.block(block, &mut lane.out);
                    let start = encoded.len();
                    encoded.resize(start + length * output.size(), 0);
                    let narrowed =
                        output.encode(&mut lane.out, self.settings.saturate, &mut encoded[start..]);
                    results.overflowed += narrowed.overflowed;
                    results.non_finite += narrowed.non_finite;
                }
            }
        }
        {
            let mut seen = lock(&flight.seen);
            seen.sources
                .iter_mut()
                .zip(found)
                .for_each(|(total, part)| *total += part);
            seen.results.overflowed += results.overflowed;
            seen.results.non_finite += results.non_finite;
        }
        self.count_read(read);
        if !sums.is_empty() {
            lock(&flight.pending).sums.push((blocks.start, sums));
        }
        self.write(
            flight,
            blocks.start as u64 * (block_len * output.size()) as u64,
            encoded,
        )
    }

    fn write(&self, flight: &Flight<'_>, offset: u64, bytes: &[u8]) -> Result<(), EngineError> {
        let Some(output) = flight.output.filter(|_| !bytes.is_empty()) else {
            return Ok(());
        };
        self.sink
            .write(output, offset, bytes)
            .map_err(|source| EngineError::Write {
                job: flight.job,
                source,
            })?;
        self.tally.written.fetch_add(bytes.len() as u64, Relaxed);
        self.observer.advance(bytes.len() as u64);
        Ok(())
    }

    fn count_read(&self, bytes: usize) {
        self.tally.read.fetch_add(bytes as u64, Relaxed);
        self.observer.advance(bytes as u64);
    }
}

/// Counts NaN and infinity in bytes that are only copied.
fn scan<R: Real>(format: FloatType, bytes: &[u8], values: &mut Vec<R>) -> NonFinite {
    let mut found = NonFinite::default();
    for bytes in bytes.chunks(BLOCK * format.size()) {
        values.resize(bytes.len() / format.size(), R::ZERO);
        format.decode(bytes, values);
        found += NonFinite::count(values);
    }
    found
}
