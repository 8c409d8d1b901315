//! Runs jobs: batches of tensors, rounds of passes, tiles claimed in order by worker threads.
//!
//! A batch is a run of neighbouring jobs. In each round every job of the batch makes one pass; the tiles of
//! all of them form one queue, so that small tensors do not leave threads idle. Between rounds the
//! statistics are folded and each program decides on its next pass.

use std::collections::BTreeMap;
use std::io;
use std::ops::Range;
use std::sync::atomic::{AtomicU64, AtomicUsize, Ordering::Relaxed};
use std::sync::{Mutex, MutexGuard, PoisonError};

use rayon::ThreadPool;
use rayon::iter::{IntoParallelRefMutIterator, ParallelIterator};

use super::budget::{Limits, MEASURED_BLOCKS, Settings, statistics};
use super::job::{COPY_BLOCK, Job, Target, Work};
use super::program::{Block, Cost, MeasureColumns, Measured, Memo, Pass, Program};
use super::scan::in_order;
use super::tile::{PAGE, Tile, Tiles};
use super::{EngineError, Observer, Sink, Totals};
use numeric::{Elements, FloatType, Narrowed, NonFinite, Real};

/// Tiles per thread in a batch of jobs that measure: enough that no thread waits long for another's last one, few
/// enough that what passes leave to each other takes little memory.
const MEASURED_TILES: usize = 16;
/// Bytes of output after which the sink has a look: they stay in a worker's second cache until then.
const LOOK: usize = 256 << 10;
/// Columns that a worker sums at a time: its sums stay in the first cache, and what it reads of a row is a
/// few lines of it. Sums do not depend on it.
const BAND: usize = 512;

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

/// So many worker threads.
///
/// # Errors
/// The system does not give them.
pub fn pool(threads: usize) -> Result<ThreadPool, EngineError> {
    rayon::ThreadPoolBuilder::new()
        .num_threads(threads)
        .thread_name(|index| format!("weld-{index}"))
        .build()
        .map_err(|source| EngineError::Threads { threads, source })
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
    tiles: Tiles,
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
}

/// Decoded blocks of every source, and the block that is computed.
#[derive(Default)]
struct Lane<R> {
    sources: Vec<Vec<R>>,
    out: Vec<R>,
}

impl<R: Real> Lane<R> {
    /// Decodes a run of elements of every source; gives the bytes read.
    fn fill(&mut self, sources: &[Box<dyn Elements + '_>], first: u64, length: usize) -> usize {
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
fn views<R>(decoded: &[Vec<R>], sources: usize) -> Vec<&[R]> {
    decoded.iter().take(sources).map(Vec::as_slice).collect()
}

/// NaN and infinity that a worker met in the sources of a part.
struct Found(Vec<NonFinite>);

impl Found {
    fn new(sources: usize) -> Self {
        Self(vec![NonFinite::default(); sources])
    }

    /// Looks at the elements from number `first` on, if nobody has before: at the bytes, where they are stored, which
    /// are fewer than what was decoded.
    fn look<R: Real>(
        &mut self,
        flight: &Flight<'_>,
        sources: &[Box<dyn Elements + '_>],
        first: u64,
        views: &[&[R]],
    ) {
        if !flight.first_look() {
            return;
        }
        for ((found, source), values) in self.0.iter_mut().zip(sources).zip(views) {
            *found += match source.stored(first, values.len()) {
                [] => NonFinite::count(values),
                bytes => source.format().non_finite(bytes),
            };
        }
    }

    /// Adds what was met to what others met.
    fn tell(self, flight: &Flight<'_>, results: Narrowed) {
        let mut seen = lock(&flight.seen);
        seen.sources
            .iter_mut()
            .zip(self.0)
            .for_each(|(total, part)| *total += part);
        seen.results.overflowed += results.overflowed;
        seen.results.non_finite += results.non_finite;
    }
}

/// A tile of output while it is filled, block by block.
struct Output<'a> {
    sink: &'a dyn Sink,
    /// The number by which the sink knows it.
    number: usize,
    /// Where the tile begins in it.
    offset: u64,
    tile: Tile,
    filled: usize,
    /// How many bytes the sink has seen.
    shown: usize,
}

impl Output<'_> {
    /// Where the next bytes, so many, are put down.
    fn next(&mut self, len: usize) -> &mut [u8] {
        let start = self.filled;
        self.filled += len;
        &mut self.tile[start..start + len]
    }

    /// Shows the sink what it has not seen, if that is so much.
    fn show(&mut self, least: usize) {
        if self.filled - self.shown >= least {
            let offset = self.offset + self.shown as u64;
            let bytes = &self.tile[self.shown..self.filled];
            self.sink.look(self.number, offset, bytes);
            self.shown = self.filled;
        }
    }
}

/// A job of the batch at hand.
struct Flight<'a> {
    job: usize,
    work: &'a Work<'a>,
    output: Option<usize>,
    sample: Option<&'a [usize]>,
    stage: Stage,
    measured: Vec<Measured>,
    /// One for each block, if there is memory for them.
    memos: Vec<Memo>,
    /// Whether a pass has been through all elements, and has counted NaN and infinity.
    looked: bool,
    pending: Mutex<Pending>,
    parts_left: AtomicUsize,
    seen: Mutex<Seen>,
}

/// The pass that a job makes in the round at hand.
enum Stage {
    Copy,
    Single(Pass<f32>),
    Double(Pass<f64>),
    Done,
}

impl Stage {
    /// Columns, if the pass goes over those.
    fn columns(&self) -> Option<usize> {
        match self {
            Stage::Single(Pass::MeasureColumns(columns, _))
            | Stage::Double(Pass::MeasureColumns(columns, _)) => Some(*columns),
            _ => None,
        }
    }

    /// Sums in each block, or of each column.
    fn sums(&self) -> Option<usize> {
        match self {
            Stage::Single(Pass::Measure(measure) | Pass::Sample(_, measure)) => {
                Some(measure.sums())
            }
            Stage::Double(Pass::Measure(measure) | Pass::Sample(_, measure)) => {
                Some(measure.sums())
            }
            Stage::Single(Pass::MeasureColumns(_, measure)) => Some(measure.sums()),
            Stage::Double(Pass::MeasureColumns(_, measure)) => Some(measure.sums()),
            _ => None,
        }
    }

    /// Whether the pass gives the output.
    fn is_last(&self) -> bool {
        matches!(
            self,
            Stage::Copy | Stage::Single(Pass::Apply(_)) | Stage::Double(Pass::Apply(_))
        )
    }

    /// Whether the pass sees only some of the elements.
    fn samples(&self) -> bool {
        matches!(
            self,
            Stage::Single(Pass::Sample(..)) | Stage::Double(Pass::Sample(..))
        )
    }

    fn refused(&self) -> Option<&str> {
        match self {
            Stage::Single(Pass::Refuse(reason)) | Stage::Double(Pass::Refuse(reason)) => {
                Some(reason)
            }
            _ => None,
        }
    }
}

/// What the workers have measured in a round.
#[derive(Default)]
struct Pending {
    counts: Vec<u64>,
    /// The sums of the first `folded` blocks.
    sums: Vec<f64>,
    folded: usize,
    /// The sums of tiles that were done before their turn, by their first block.
    waiting: BTreeMap<usize, Vec<f64>>,
    /// The sums over columns, by the first column of a band.
    bands: Vec<(usize, Vec<f64>)>,
}

impl Pending {
    /// Takes the sums of a tile's blocks, so many for each, and folds those whose turn it is.
    fn take(&mut self, first_block: usize, tile: Vec<f64>, width: usize) {
        self.sums.resize(width, 0.0);
        self.waiting.insert(first_block, tile);
        while let Some(tile) = self.waiting.remove(&self.folded) {
            for block in tile.chunks(width) {
                self.sums
                    .iter_mut()
                    .zip(block)
                    .for_each(|(sum, part)| *sum += part);
                self.folded += 1;
            }
        }
    }
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
        let Job {
            work,
            output,
            sample,
            ..
        } = &jobs[job];
        let sources = match work {
            Work::Copy { sources, .. } => sources.len(),
            Work::Compute { sources, .. } => sources.len(),
        };
        let mut flight = Self {
            job,
            work,
            output: *output,
            sample: sample.as_deref(),
            stage: Stage::Done,
            measured: Vec::new(),
            memos: Vec::new(),
            looked: false,
            pending: Mutex::default(),
            parts_left: AtomicUsize::new(0),
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
        let Some(width) = self.stage.sums() else {
            self.stage = Stage::Done;
            return;
        };
        let Pending {
            counts,
            mut sums,
            bands,
            ..
        } = std::mem::take(&mut *lock(&self.pending));
        if let Some(columns) = self.stage.columns() {
            sums = beside_each_other(columns, width, bands);
        }
        self.measured.push(Measured { sums, counts });
        self.looked |= !self.stage.samples();
        self.decide();
    }

    /// Blocks that a worker takes at a time: in the last pass, as many as its output's tile holds.
    fn tile_blocks(&self, limits: &Limits) -> usize {
        match self.stage.is_last() {
            true => tile_blocks(self.work, limits),
            false => MEASURED_BLOCKS,
        }
    }

    /// Parts that the workers claim in this round: bands of columns, or tiles.
    fn parts(&self, tile_blocks: usize) -> usize {
        match (&self.stage, self.stage.columns(), self.sample()) {
            (Stage::Done, ..) => 0,
            (_, Some(columns), _) => columns.div_ceil(BAND),
            (_, _, Some(sample)) => sample.len(),
            (_, None, None) => self.work.blocks().div_ceil(tile_blocks),
        }
    }

    /// The blocks of a part that is a tile: one, where only some are wanted.
    fn tile(&self, part: usize, tile_blocks: usize) -> Range<usize> {
        let blocks = self.work.blocks();
        match self.sample() {
            Some(sample) => sample
                .get(part)
                .map_or(0..0, |&block| block.min(blocks)..blocks.min(block + 1)),
            None => {
                let first = part.saturating_mul(tile_blocks);
                first..blocks.min(first + tile_blocks)
            }
        }
    }

    /// The blocks that are wanted of the pass at hand, if not all are.
    fn sample(&self) -> Option<&'a [usize]> {
        self.sample.filter(|_| self.stage.is_last())
    }

    /// Whether this is the first look at the sources, which counts NaN and infinity.
    fn first_look(&self) -> bool {
        !self.looked && !self.stage.samples()
    }
}

/// Blocks of output in a tile.
fn tile_blocks(work: &Work<'_>, limits: &Limits) -> usize {
    let size = match work {
        Work::Copy { .. } => 1,
        Work::Compute { target, .. } => target.format().size(),
    };
    let block = work.block_len().saturating_mul(size);
    ((limits.tile - PAGE) / block.max(1)).max(1)
}

/// Which elements of a block are sampled: so many, at a place that depends on the block's number only.
fn sampled_part(index: usize, length: usize, sampled: usize) -> Range<usize> {
    let sampled = sampled.min(length);
    // Multiples of the golden ratio are spread evenly, and keep step with no row length.
    let share = (index as u64 + 1).wrapping_mul(0x9e37_79b9_7f4a_7c15) >> 32;
    let start = ((share * (length - sampled) as u64) >> 32) as usize;
    start..start + sampled
}

/// The sums of all bands, each kind of sum over all columns.
fn beside_each_other(columns: usize, kinds: usize, bands: Vec<(usize, Vec<f64>)>) -> Vec<f64> {
    let mut sums = vec![0.0; columns * kinds];
    for (first, band) in bands {
        let width = band.len() / kinds.max(1);
        for (kind, part) in band.chunks(width.max(1)).enumerate() {
            sums[kind * columns + first..][..part.len()].copy_from_slice(part);
        }
    }
    sums
}

impl<'a> Engine<'a> {
    /// The jobs from `start` on that are run together.
    fn batch_from(&self, start: usize) -> Range<usize> {
        let measures = cost(&self.jobs[start].work).measures > 0;
        let mut end = start;
        let (mut held, mut tiles) = (0, 0);
        while let Some(job) = self.jobs.get(end) {
            let cost = cost(&job.work);
            held += statistics(cost, self.settings.threads);
            let full = measures
                && (tiles >= MEASURED_TILES * self.settings.threads
                    || held > self.limits.statistics);
            if end > start && (full || job.after_all || (cost.measures > 0) != measures) {
                break;
            }
            tiles += job
                .work
                .blocks()
                .div_ceil(tile_blocks(&job.work, self.limits));
            end += 1;
        }
        start..end
    }

    fn run_batch(&self, batch: Range<usize>) -> Result<(), EngineError> {
        let mut flights: Vec<Flight<'_>> = batch.map(|job| Flight::new(job, self.jobs)).collect();
        let mut memo = self.limits.memo;
        for flight in &mut flights {
            let wished = cost(flight.work).memo;
            if wished > 0 && wished <= memo {
                memo -= wished;
                flight.memos.resize_with(flight.work.blocks(), Memo::new);
            }
        }
        loop {
            let mut queue = Vec::new();
            for (index, flight) in flights.iter().enumerate() {
                if let Some(reason) = flight.stage.refused() {
                    return Err(EngineError::Refused {
                        job: flight.job,
                        reason: reason.to_owned(),
                    });
                }
                let parts = flight.parts(flight.tile_blocks(self.limits));
                flight.parts_left.store(parts, Relaxed);
                queue.extend((0..parts).map(|part| (index, part)));
            }
            if queue.is_empty() {
                return Ok(());
            }
            self.run_round(&flights, &queue)?;
            self.pool
                .install(|| flights.par_iter_mut().for_each(Flight::finish_round));
        }
    }

    /// Lets the workers empty the queue.
    fn run_round(
        &self,
        flights: &[Flight<'_>],
        queue: &[(usize, usize)],
    ) -> Result<(), EngineError> {
        let begin = |thread| (thread, vec![Vec::new(); flights.len()]);
        let step = |(thread, counts): &mut (usize, Vec<Vec<u64>>), number: usize| {
            let (index, part) = queue[number];
            let mut scratch = lock(&self.scratch[*thread]);
            self.run_part(&flights[index], part, &mut scratch, &mut counts[index])
        };
        for (_, counts) in in_order(&self.pool, queue.len(), begin, step)? {
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
        }
        Ok(())
    }

    fn run_part(
        &self,
        flight: &Flight<'_>,
        part: usize,
        scratch: &mut Scratch,
        counts: &mut Vec<u64>,
    ) -> Result<(), EngineError> {
        if self.observer.cancelled() {
            return Err(EngineError::Cancelled);
        }
        let blocks = flight.tile(part, flight.tile_blocks(self.limits));
        let Scratch { single, double } = scratch;
        match (&flight.stage, flight.work) {
            (Stage::Copy, Work::Copy { sources, format }) => {
                self.copy_tile(flight, sources, *format, blocks)?;
            }
            (Stage::Single(Pass::MeasureColumns(columns, measure)), work) => {
                self.measure_band(flight, work, *columns, measure.as_ref(), part, single);
            }
            (Stage::Double(Pass::MeasureColumns(columns, measure)), work) => {
                self.measure_band(flight, work, *columns, measure.as_ref(), part, double);
            }
            (Stage::Single(pass), work) => {
                self.compute_tile(flight, work, pass, blocks, single, counts)?
            }
            (Stage::Double(pass), work) => {
                self.compute_tile(flight, work, pass, blocks, double, counts)?
            }
            (Stage::Copy | Stage::Done, _) => {}
        }
        if flight.parts_left.fetch_sub(1, Relaxed) == 1 {
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
    ) -> Result<(), EngineError> {
        let Some((first, others)) = sources.split_first() else {
            return Ok(());
        };
        let bytes = blocks.start * COPY_BLOCK..first.len().min(blocks.end * COPY_BLOCK);
        let range = &first[bytes.clone()];
        let differing = others
            .iter()
            .position(|other| other.get(bytes.clone()) != Some(range));
        let mut found = NonFinite::default();
        let mut output = self.output(flight, bytes.start as u64, range.len())?;
        for block in range.chunks(COPY_BLOCK) {
            if let Some(format) = format {
                found += format.non_finite(block);
            }
            if let Some(output) = &mut output {
                output.next(block.len()).copy_from_slice(block);
                output.show(LOOK);
            }
        }
        if differing.is_some() || found.any() {
            let mut seen = lock(&flight.seen);
            seen.differing = seen.differing.or(differing.map(|index| index + 1));
            seen.sources[0] += found;
        }
        self.count_read(range.len() * sources.len());
        self.write(flight, output)
    }

    fn compute_tile<R: Real>(
        &self,
        flight: &Flight<'_>,
        work: &Work<'_>,
        pass: &Pass<R>,
        blocks: Range<usize>,
        lane: &mut Lane<R>,
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
        let format = target.format();
        let mut found = Found::new(sources.len());
        let mut results = Narrowed::default();
        let mut sums = Vec::new();
        let mut read = 0;
        let extent = |index: usize| {
            let first = index as u64 * block_len as u64;
            (first, (block_len as u64).min(elements - first) as usize)
        };
        let mut output = None;
        if let Pass::Apply(_) = pass {
            let end = (blocks.end as u64 * block_len as u64).min(*elements);
            let (first, _) = extent(blocks.start);
            let len = (end - first) as usize * format.size();
            output = self.output(flight, first * format.size() as u64, len)?;
        }
        let mut next: Vec<&[u8]> = Vec::with_capacity(sources.len());
        for index in blocks.clone() {
            let (mut first, mut length) = extent(index);
            if let Pass::Sample(sampled, _) = pass {
                let part = sampled_part(index, length, *sampled);
                first += part.start as u64;
                length = part.len();
            } else if index + 1 < blocks.end {
                let (first, length) = extent(index + 1);
                next.clear();
                next.extend(sources.iter().map(|source| source.stored(first, length)));
            } else {
                next.clear();
            }
            read += lane.fill(sources, first, length);
            let views = views(&lane.sources, sources.len());
            found.look(flight, sources, first, &views);
            let block = Block {
                index,
                first,
                sources: &views,
                next: &next,
                memo: flight.memos.get(index),
            };
            match pass {
                Pass::Measure(measure) | Pass::Sample(_, measure) => {
                    counts.resize(measure.counts(), 0);
                    let start = sums.len();
                    sums.resize(start + measure.sums(), 0.0);
                    measure.block(block, &mut sums[start..], counts);
                }
                Pass::Apply(apply) => {
                    lane.out.resize(length, R::ZERO);
                    apply.block(block, &mut lane.out);
                    if let Some(output) = &mut output {
                        let bytes = output.next(length * format.size());
                        let narrowed = format.encode(&mut lane.out, self.settings.saturate, bytes);
                        results.overflowed += narrowed.overflowed;
                        results.non_finite += narrowed.non_finite;
                        output.show(LOOK);
                    }
                }
                // Columns are measured in bands, and a refusal ends the run before any tile.
                Pass::MeasureColumns(..) | Pass::Refuse(_) => {}
            }
        }
        found.tell(flight, results);
        self.count_read(read);
        if !sums.is_empty() {
            let width = sums.len() / blocks.len();
            lock(&flight.pending).take(blocks.start, sums, width);
        }
        self.write(flight, output)
    }

    /// Sums some columns, row by row.
    fn measure_band<R: Real>(
        &self,
        flight: &Flight<'_>,
        work: &Work<'_>,
        columns: usize,
        measure: &dyn MeasureColumns<R>,
        band: usize,
        lane: &mut Lane<R>,
    ) {
        let Work::Compute {
            sources, elements, ..
        } = work
        else {
            return;
        };
        let first_column = band * BAND;
        let width = BAND.min(columns - first_column);
        let mut found = Found::new(sources.len());
        let mut sums = vec![0.0; width * measure.sums()];
        let mut read = 0;
        for row in 0..elements / columns as u64 {
            let first = row * columns as u64 + first_column as u64;
            read += lane.fill(sources, first, width);
            let views = views(&lane.sources, sources.len());
            found.look(flight, sources, first, &views);
            measure.row(&views, &mut sums);
        }
        found.tell(flight, Narrowed::default());
        self.count_read(read);
        lock(&flight.pending).bands.push((first_column, sums));
    }

    /// A tile for so many bytes of a job's output, if it has one.
    fn output(
        &self,
        flight: &Flight<'_>,
        offset: u64,
        len: usize,
    ) -> Result<Option<Output<'a>>, EngineError> {
        let Some(number) = flight.output.filter(|_| len > 0) else {
            return Ok(None);
        };
        let phase = (self.sink.start(number) + offset) % PAGE as u64;
        let tile = self.tiles.take(phase as usize, len);
        Ok(Some(Output {
            sink: self.sink,
            number,
            offset,
            tile: tile.map_err(|source| self.not_written(flight, source))?,
            filled: 0,
            shown: 0,
        }))
    }

    fn write(&self, flight: &Flight<'_>, output: Option<Output<'_>>) -> Result<(), EngineError> {
        let Some(mut output) = output else {
            return Ok(());
        };
        output.show(1);
        let len = output.tile.len() as u64;
        self.sink
            .write(output.number, output.offset, output.tile)
            .map_err(|source| self.not_written(flight, source))?;
        self.tally.written.fetch_add(len, Relaxed);
        self.observer.advance(len);
        Ok(())
    }

    fn not_written(&self, flight: &Flight<'_>, source: io::Error) -> EngineError {
        EngineError::Write {
            job: flight.job,
            source,
        }
    }

    fn count_read(&self, bytes: usize) {
        self.tally.read.fetch_add(bytes as u64, Relaxed);
        self.observer.advance(bytes as u64);
    }
}
