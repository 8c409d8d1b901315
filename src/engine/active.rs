//! A job while it runs: its current pass, what earlier passes measured, and what was seen in its values.
//!
//! This file knows no threads and no tile memory.

use std::collections::BTreeMap;
use std::io;
use std::ops::Range;
use std::sync::atomic::{AtomicU64, AtomicUsize};
use std::sync::{Mutex, MutexGuard, PoisonError};

use super::EngineError;
use super::budget::{Limits, MEASURED_BLOCKS};
use super::job::{Encoded, Job, Names, ResultUse, Work};
use super::program::{CarriedMask, Cost, Measured, Pass, Program};
use super::tile::PAGE;
use super::whole::Whole;
use errors::Refusal;
use numeric::{Encoding, EncodingError, Narrowed, NonFinite, Oddities, Survival, filled, resize};

/// Columns that a worker sums at a time: its sums stay in the first-level cache, and it reads a few cache lines of
/// each row. The sums do not depend on this number.
pub(super) const BAND: usize = 512;

/// A job of the current batch.
pub(super) struct ActiveJob<'a> {
    pub(super) names: &'a dyn Names,
    pub(super) work: &'a Work<'a>,
    pub(super) sample: Option<&'a [usize]>,
    pub(super) stage: Stage,
    pub(super) measured: Vec<Measured>,
    /// One for each block, if there is memory for them.
    pub(super) carried: Vec<CarriedMask>,
    /// Whether a pass has read all elements and counted NaN and infinity.
    pub(super) looked: bool,
    pub(super) pending: Mutex<Pending>,
    pub(super) parts_left: AtomicUsize,
    pub(super) seen: Mutex<Seen>,
    /// For each output with a base, how much of its update survives the rounding, after the last pass.
    pub(super) survived: Vec<(usize, Survival)>,
    /// How far the codes of an encoded output are from its values, after the last pass.
    pub(super) encoding_error: Option<(usize, EncodingError)>,
    /// The largest magnitude of an output with one scale for all, as the bits of an `f64`, while a pass looks for it.
    pub(super) most: AtomicU64,
    /// The same, once it is known.
    pub(super) largest: Option<f64>,
}

/// The pass that a job makes in the current round.
pub(super) enum Stage {
    Copy,
    Single(Pass<f32>),
    Double(Pass<f64>),
    Done,
}

impl Stage {
    /// The number of columns, if the pass sums columns.
    pub(super) fn columns(&self) -> Option<usize> {
        match self {
            Stage::Single(Pass::MeasureColumns(columns, _))
            | Stage::Double(Pass::MeasureColumns(columns, _)) => Some(*columns),
            _ => None,
        }
    }

    /// The number of sums for each block, or for each column.
    pub(super) fn sums(&self) -> Option<usize> {
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

    /// Whether the pass writes the output.
    pub(super) fn is_last(&self) -> bool {
        matches!(
            self,
            Stage::Copy | Stage::Single(Pass::Apply(_)) | Stage::Double(Pass::Apply(_))
        )
    }

    /// Whether the pass reads only some of the elements.
    pub(super) fn samples(&self) -> bool {
        matches!(
            self,
            Stage::Single(Pass::Sample(..)) | Stage::Double(Pass::Sample(..))
        )
    }

    /// The number of columns and the computation, if the pass is over whole matrices.
    pub(super) fn whole(&self) -> Option<(usize, &dyn Whole)> {
        match self {
            Stage::Single(Pass::Whole(columns, whole))
            | Stage::Double(Pass::Whole(columns, whole)) => Some((*columns, whole.as_ref())),
            _ => None,
        }
    }

    /// The reason, if there is no result.
    pub(super) fn refused(&self) -> Option<&Refusal> {
        match self {
            Stage::Single(Pass::Refuse(reason)) | Stage::Double(Pass::Refuse(reason)) => {
                Some(reason)
            }
            _ => None,
        }
    }
}

/// What the workers have measured in the current round.
#[derive(Default)]
pub(super) struct Pending {
    pub(super) counts: Vec<u64>,
    /// The sums of the first `folded` blocks.
    pub(super) sums: Vec<f64>,
    pub(super) folded: usize,
    /// The sums of tiles that were finished before their turn, by first block.
    pub(super) waiting: BTreeMap<usize, Vec<f64>>,
    /// Sums over columns, by the first column of each band.
    pub(super) bands: Vec<(usize, Vec<f64>)>,
}

impl Pending {
    /// Takes the sums of a tile's blocks, `width` for each, and folds all whose turn it is.
    ///
    /// Fails if there is no memory for the folded sums.
    pub(super) fn take(
        &mut self,
        first_block: usize,
        tile: Vec<f64>,
        width: usize,
    ) -> Result<(), EngineError> {
        resize(&mut self.sums, width, 0.0)?;
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
        Ok(())
    }
}

/// What was seen in the values of a job.
#[derive(Default)]
pub(super) struct Seen {
    pub(super) sources: Vec<Oddities>,
    /// One for each output.
    pub(super) results: Vec<Narrowed>,
    pub(super) differing: Option<usize>,
}

pub(super) fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    // A poisoned lock means that a worker panicked; rayon passes that panic on, so the data is never used.
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

pub(super) fn cost(work: &Work<'_>) -> Cost {
    match work {
        Work::Copy { .. } => Cost::default(),
        Work::Compute { program, .. } => program.cost(),
    }
}

impl<'a> ActiveJob<'a> {
    pub(super) fn new(job: &'a Job<'a>) -> Self {
        let Job {
            names,
            work,
            sample,
            ..
        } = job;
        let sources = match work {
            Work::Copy { sources, .. } => sources.len(),
            Work::Compute { sources, .. } => sources.len(),
        };
        let mut active = Self {
            names: names.as_ref(),
            work,
            sample: sample.as_deref(),
            stage: Stage::Done,
            measured: Vec::new(),
            carried: Vec::new(),
            looked: false,
            pending: Mutex::default(),
            parts_left: AtomicUsize::new(0),
            seen: Mutex::new(Seen {
                sources: vec![Oddities::default(); sources],
                ..Seen::default()
            }),
            survived: Vec::new(),
            encoding_error: None,
            most: AtomicU64::new(0),
            largest: None,
        };
        // A tensor without elements needs no pass.
        if work.blocks() > 0 {
            active.decide();
        }
        active
    }

    /// The error for a source that holds NaN or infinity.
    pub(super) fn non_finite(&self, source: usize, found: NonFinite) -> EngineError {
        let name = Box::new(self.names.source(source));
        EngineError::NonFinite { name, found }
    }

    /// The error for a program that has no result.
    pub(super) fn refused(&self, reason: Refusal) -> EngineError {
        let tensor = self.names.result();
        EngineError::Refused { tensor, reason }
    }

    /// The error if there is no tile for the job's output.
    pub(super) fn no_tile(&self, bytes: usize, source: io::Error) -> EngineError {
        match source.kind() {
            io::ErrorKind::OutOfMemory => EngineError::Memory { bytes },
            _ => self.not_written(source),
        }
    }

    /// The error if the job's output cannot be written.
    pub(super) fn not_written(&self, source: io::Error) -> EngineError {
        let tensor = self.names.result();
        EngineError::Write { tensor, source }
    }

    /// Decides the next pass from what has been measured.
    pub(super) fn decide(&mut self) {
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
            target: ResultUse::Decide(decided),
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

    /// Folds what a round measured and decides the next pass, or marks the job as done. Fails if there is no memory
    /// for the folded sums.
    pub(super) fn finish_round(&mut self) -> Result<(), EngineError> {
        let Some(width) = self.stage.sums() else {
            if self.looks_for_scale() {
                self.largest = Some(f64::from_bits(*self.most.get_mut()));
                self.looked = true;
                return Ok(());
            }
            if self.stage.is_last() {
                self.sum_up();
            }
            self.stage = Stage::Done;
            return Ok(());
        };
        let Pending {
            counts,
            mut sums,
            bands,
            ..
        } = std::mem::take(&mut *lock(&self.pending));
        if let Some(columns) = self.stage.columns() {
            sums = beside_each_other(columns, width, bands)?;
        }
        self.measured.push(Measured {
            sums,
            counts,
            ..Measured::default()
        });
        self.looked |= !self.stage.samples();
        self.decide();
        Ok(())
    }

    /// What is odd in the sources, for the job's first output; nothing if only a sample was read.
    pub(super) fn odd(&self) -> Vec<(usize, usize, Oddities)> {
        let output = match self.work {
            Work::Copy { output, .. } => *output,
            Work::Compute { .. } => self.work.outputs().first().map(|output| output.number),
        };
        let seen = lock(&self.seen);
        let odd = seen.sources.iter().enumerate();
        let odd = odd.filter(|(_, found)| found.any() && self.sample.is_none());
        odd.filter_map(|(source, found)| Some((output?, source, *found)))
            .collect()
    }

    /// Takes what the last pass summed: how much of each update survives the rounding, then how far codes are from values.
    fn sum_up(&mut self) {
        let sums = std::mem::take(&mut lock(&self.pending).sums);
        let mut pairs = sums.as_chunks::<2>().0.iter();
        for output in self.work.outputs() {
            if output.base.is_some()
                && let Some(&[kept, meant]) = pairs.next()
            {
                let survival = Survival { kept, meant };
                self.survived.push((output.number, survival));
            }
            if output.encoded.is_some()
                && let Some(&[differences, values]) = pairs.next()
                && let Some(&[parts, flushed]) = pairs.next()
            {
                let error = EncodingError {
                    differences,
                    values,
                    parts,
                    flushed,
                };
                self.encoding_error = Some((output.number, error));
            }
        }
    }

    /// Whether the pass computes the output to find its largest magnitude, and writes nothing.
    pub(super) fn looks_for_scale(&self) -> bool {
        let whole = self.encoded().is_some_and(|encoded| encoded.encoding.whole);
        whole && self.largest.is_none()
    }

    /// How the output is encoded, if the pass writes it so.
    pub(super) fn encoded(&self) -> Option<&'a Encoded> {
        self.work.encoded().filter(|_| self.stage.is_last())
    }

    /// How many blocks a worker takes at a time, or bands that it encodes: in the last pass, as many as a tile of output
    /// holds.
    pub(super) fn tile_blocks(&self, limits: &Limits) -> usize {
        match self.stage.is_last() {
            true => tile_blocks(self.work, limits),
            false => MEASURED_BLOCKS,
        }
    }

    /// The bands that a part encodes; a single one if only a sample is wanted.
    pub(super) fn bands(
        &self,
        part: usize,
        tile_bands: usize,
        encoding: &Encoding,
    ) -> Range<usize> {
        let all = encoding.bands();
        match self.sample() {
            Some(sample) => sample
                .get(part)
                .map_or(0..0, |&band| band.min(all)..all.min(band + 1)),
            None => {
                let first = part.saturating_mul(tile_bands);
                first..all.min(first + tile_bands)
            }
        }
    }

    /// How many parts the workers can claim in this round: bands of columns, or tiles of `tile_blocks` blocks, or bands
    /// that are encoded.
    pub(super) fn parts(&self, tile_blocks: usize) -> usize {
        if let Some(encoded) = self.encoded() {
            return match self.sample() {
                Some(sample) => sample.len(),
                None => encoded.encoding.bands().div_ceil(tile_blocks),
            };
        }
        match (&self.stage, self.stage.columns(), self.sample()) {
            (Stage::Done, ..) => 0,
            (_, Some(columns), _) => columns.div_ceil(BAND),
            (_, _, Some(sample)) => sample.len(),
            (_, None, None) => self.work.blocks().div_ceil(tile_blocks),
        }
    }

    /// The blocks of a tile; a single block if only a sample of blocks is wanted.
    pub(super) fn tile(&self, part: usize, tile_blocks: usize) -> Range<usize> {
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

    /// The blocks that the current pass should compute, if not all.
    pub(super) fn sample(&self) -> Option<&'a [usize]> {
        let is_written = self.stage.is_last() && !self.looks_for_scale();
        self.sample.filter(|_| is_written)
    }

    /// Whether this is the first pass over all elements, which counts NaN and infinity.
    pub(super) fn first_look(&self) -> bool {
        !self.looked && !self.stage.samples()
    }
}

/// How many blocks fill a tile of output, or bands that are encoded; if there are several outputs, of the one with the
/// most bytes per block.
pub(super) fn tile_blocks(work: &Work<'_>, limits: &Limits) -> usize {
    let bytes = match work.encoded() {
        Some(Encoded { encoding, .. }) => {
            let longest = encoding.longest() as u64;
            (encoding.code_bytes(longest) as usize).max(encoding.scale_bytes())
        }
        None => work.block_bytes(),
    };
    ((limits.tile - PAGE) / bytes.max(1)).max(1)
}

/// Joins the sums of all bands: for each kind of sum, all columns in order.
fn beside_each_other(
    columns: usize,
    kinds: usize,
    bands: Vec<(usize, Vec<f64>)>,
) -> Result<Vec<f64>, EngineError> {
    let mut sums = filled(columns * kinds, 0.0)?;
    for (first, band) in bands {
        let width = band.len() / kinds.max(1);
        for (kind, part) in band.chunks(width.max(1)).enumerate() {
            sums[kind * columns + first..][..part.len()].copy_from_slice(part);
        }
    }
    Ok(sums)
}
