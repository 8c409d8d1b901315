//! What a worker does with one part of a job: copies or computes a tile, or sums some columns.

use std::ops::Range;
use std::sync::atomic::Ordering::Relaxed;

use super::EngineError;
use super::active::{ActiveJob, BAND, Stage, lock};
use super::execute::Engine;
use super::filling::Filling;
use super::job::{COPY_BLOCK, Output, Work};
use super::lane::{Found, Lane, Scratch, views};
use super::program::{Block, MeasureColumns, Pass};
use super::results::{Results, sampled_part};
use super::tile::PAGE;
use numeric::{Oddities, Real, filled, resize};

impl<'a> Engine<'a> {
    pub(super) fn run_part(
        &self,
        job: &ActiveJob<'_>,
        part: usize,
        scratch: &mut Scratch,
        counts: &mut Vec<u64>,
    ) -> Result<(), EngineError> {
        if self.observer.cancelled() {
            return Err(EngineError::Cancelled);
        }
        if let Some(encoded) = job.encoded() {
            self.encode_part(job, encoded, part, scratch)?;
            return self.finish_part(job);
        }
        let blocks = job.tile(part, job.tile_blocks(self.limits));
        let Scratch { single, double } = scratch;
        match &job.stage {
            Stage::Copy => self.copy_tile(job, blocks)?,
            Stage::Single(Pass::MeasureColumns(columns, measure)) => {
                self.measure_band(job, *columns, measure.as_ref(), part, single)?;
            }
            Stage::Double(Pass::MeasureColumns(columns, measure)) => {
                self.measure_band(job, *columns, measure.as_ref(), part, double)?;
            }
            Stage::Single(pass) => self.compute_tile(job, pass, blocks, single, counts)?,
            Stage::Double(pass) => self.compute_tile(job, pass, blocks, double, counts)?,
            Stage::Done => {}
        }
        self.finish_part(job)
    }

    /// After the last part of a pass, judges what was seen in it.
    fn finish_part(&self, job: &ActiveJob<'_>) -> Result<(), EngineError> {
        match job.parts_left.fetch_sub(1, Relaxed) {
            1 => self.judge(job),
            _ => Ok(()),
        }
    }

    fn copy_tile(&self, job: &ActiveJob<'_>, blocks: Range<usize>) -> Result<(), EngineError> {
        let Work::Copy {
            sources,
            format,
            output,
        } = job.work
        else {
            return Ok(());
        };
        let Some((first, others)) = sources.split_first() else {
            return Ok(());
        };
        let bytes = blocks.start * COPY_BLOCK..first.len().min(blocks.end * COPY_BLOCK);
        let range = &first[bytes.clone()];
        let differing = others
            .iter()
            .position(|other| other.get(bytes.clone()) != Some(range));
        let mut found = Oddities::default();
        let start = bytes.start as u64;
        let tile = output.map(|number| self.tile(job, number, start, range.len()));
        let mut tile = tile.transpose()?;
        for block in range.chunks(COPY_BLOCK) {
            if let Some(format) = format {
                found += Oddities::of_stored(*format, block);
            }
            if let Some(tile) = &mut tile {
                tile.set(block.len(), |bytes| bytes.copy_from_slice(block));
            }
        }
        if differing.is_some() || found.pieces > 0 {
            let mut seen = lock(&job.seen);
            seen.differing = seen.differing.or(differing.map(|index| index + 1));
            seen.sources[0] += found;
        }
        self.count_read(range.len() * sources.len());
        tile.map_or(Ok(()), |tile| self.write(job, tile))
    }

    fn compute_tile<R: Real>(
        &self,
        job: &ActiveJob<'_>,
        pass: &Pass<R>,
        blocks: Range<usize>,
        lane: &mut Lane<R>,
        counts: &mut Vec<u64>,
    ) -> Result<(), EngineError> {
        let work = job.work;
        let Work::Compute {
            sources, target, ..
        } = work
        else {
            return Ok(());
        };
        let outputs = match pass {
            Pass::Apply(_) => target.outputs(),
            _ => &[],
        };
        let mut results = self.results(job, outputs, &blocks)?;
        let mut found = Found::new(sources.len());
        let mut sums = Vec::new();
        let mut read = 0;
        let mut next: Vec<&[u8]> = Vec::with_capacity(sources.len());
        for index in blocks.clone() {
            let (mut first, mut length) = work.block(index);
            next.clear();
            if let Pass::Sample(sampled, _) = pass {
                let part = sampled_part(index, length, *sampled);
                first += part.start as u64;
                length = part.len();
            } else if index + 1 < blocks.end {
                let (first, length) = work.block(index + 1);
                next.extend(sources.iter().map(|source| source.stored(first, length)));
            }
            read += lane.fill(sources, first, length)?;
            let views = views(&lane.sources, sources.len());
            found.look(job, sources, first, &views);
            let block = Block {
                index,
                first,
                sources: &views,
                next: &next,
                carried: job.carried.get(index),
            };
            match pass {
                Pass::Measure(measure) | Pass::Sample(_, measure) => {
                    resize(counts, measure.counts(), 0)?;
                    let start = sums.len();
                    resize(&mut sums, start + measure.sums(), 0.0)?;
                    measure.block(block, &mut sums[start..], counts)?;
                }
                Pass::Apply(apply) => {
                    results.add(apply.as_ref(), block, &mut lane.outputs, &mut sums)?;
                }
                // Columns are measured in bands and matrices as a whole, and a refusal ends the run before any
                // tile.
                Pass::MeasureColumns(..) | Pass::Whole(..) | Pass::Refuse(_) => {}
            }
        }
        found.tell(job, &results.narrowed);
        self.count_read(read);
        if !sums.is_empty() {
            let width = sums.len() / blocks.len();
            lock(&job.pending).take(blocks.start, sums, width)?;
        }
        let mut tiles = results.tiles.into_iter();
        tiles.try_for_each(|tile| self.write(job, tile))
    }

    /// Sums a band of columns, row by row.
    fn measure_band<R: Real>(
        &self,
        job: &ActiveJob<'_>,
        columns: usize,
        measure: &dyn MeasureColumns<R>,
        band: usize,
        lane: &mut Lane<R>,
    ) -> Result<(), EngineError> {
        let Work::Compute {
            sources, elements, ..
        } = job.work
        else {
            return Ok(());
        };
        let first_column = band * BAND;
        let width = BAND.min(columns - first_column);
        let mut found = Found::new(sources.len());
        let mut sums = filled(width * measure.sums(), 0.0)?;
        let mut read = 0;
        for row in 0..elements / columns as u64 {
            let first = row * columns as u64 + first_column as u64;
            read += lane.fill(sources, first, width)?;
            let views = views(&lane.sources, sources.len());
            found.look(job, sources, first, &views);
            measure.row(&views, &mut sums);
        }
        found.tell(job, &[]);
        self.count_read(read);
        lock(&job.pending).bands.push((first_column, sums));
        Ok(())
    }

    /// A tile of every output, for a run of blocks.
    fn results<'r>(
        &self,
        job: &ActiveJob<'r>,
        outputs: &'r [Output],
        blocks: &Range<usize>,
    ) -> Result<Results<'r>, EngineError>
    where
        'a: 'r,
    {
        let tile = |output: &Output| {
            let place = job.work.place(output, blocks.clone());
            let size = output.format.size();
            let len = (place.end - place.start) as usize * size;
            self.tile(job, output.number, place.start * size as u64, len)
        };
        let tiles = outputs.iter().map(tile).collect::<Result<_, _>>()?;
        let whole = job.sample().is_none();
        Ok(Results::new(
            job.work,
            outputs,
            tiles,
            self.settings.saturate,
            whole,
        ))
    }

    /// A tile for `len` bytes of an output.
    pub(super) fn tile(
        &self,
        job: &ActiveJob<'_>,
        number: usize,
        offset: u64,
        len: usize,
    ) -> Result<Filling<'a>, EngineError> {
        let phase = (self.sink.start(number) + offset) % PAGE as u64;
        match self.tiles.take(phase as usize, len) {
            Ok(tile) => Ok(Filling::new(self.sink, number, offset, tile)),
            Err(source) => Err(job.no_tile(self.limits.tile, source)),
        }
    }

    pub(super) fn write(
        &self,
        job: &ActiveJob<'_>,
        filled: Filling<'_>,
    ) -> Result<(), EngineError> {
        let (number, offset) = (filled.number, filled.offset);
        let tile = filled.finish();
        let len = tile.len();
        let written = self.sink.write(number, offset, tile);
        written.map_err(|source| job.not_written(source))?;
        self.count_written(len);
        Ok(())
    }
}
