//! The last pass of a job whose output is encoded: values are held until a band of them is complete, then become codes
//! and scales.
//!
//! A band is the rows whose scales lie side by side. Where all bands share one scale, a pass before computes everything
//! once for the largest magnitude.
//! Blocks are those of every other pass, so what is encoded does not
//! depend on how; a block that lies in the bands of two workers is computed by both.

use std::ops::Range;
use std::sync::atomic::Ordering::Relaxed;

use super::EngineError;
use super::active::{ActiveJob, Stage, lock};
use super::execute::Engine;
use super::filling::Filling;
use super::job::{Encoded, Output, Work};
use super::lane::{Found, Lane, Scratch, views};
use super::program::{Apply, Block, Pass};
use super::results::{measured_in_block, sampled_part};
use numeric::{Coding, Encoding, EncodingError, Narrowed, NoMemory, Real, Survival, resize};

impl<'a> Engine<'a> {
    /// Computes and encodes a part of the output: as many bands as fit into a tile.
    pub(super) fn encode_part(
        &self,
        job: &ActiveJob<'_>,
        encoded: &Encoded,
        part: usize,
        scratch: &mut Scratch,
    ) -> Result<(), EngineError> {
        let bands = job.bands(part, job.tile_blocks(self.limits), &encoded.encoding);
        let Scratch { single, double } = scratch;
        match &job.stage {
            Stage::Single(Pass::Apply(apply)) => {
                self.encode_bands(job, encoded, apply.as_ref(), bands, single)
            }
            Stage::Double(Pass::Apply(apply)) => {
                self.encode_bands(job, encoded, apply.as_ref(), bands, double)
            }
            _ => Ok(()),
        }
    }

    fn encode_bands<R: Real>(
        &self,
        job: &ActiveJob<'_>,
        encoded: &Encoded,
        apply: &dyn Apply<R>,
        bands: Range<usize>,
        lane: &mut Lane<R>,
    ) -> Result<(), EngineError> {
        let work = job.work;
        let (Work::Compute { sources, .. }, [output]) = (work, work.outputs()) else {
            return Ok(());
        };
        if job.looks_for_scale() {
            return self.look_for_scale(job, encoded, apply, bands, lane);
        }
        let mut values = std::mem::take(&mut lane.band);
        let mut band = self.band(job, encoded, output, bands.clone(), &mut values)?;
        let whole = encoded.encoding.elements(bands);
        let block_len = work.block_len() as u64;
        let blocks = whole.start / block_len..whole.end.div_ceil(block_len);
        let mut found = Found::new(sources.len());
        let (mut read, mut next) = (0, Vec::with_capacity(sources.len()));
        for index in blocks.clone() {
            let (first, length) = work.block(index as usize);
            next.clear();
            if index + 1 < blocks.end {
                let (first, length) = work.block(index as usize + 1);
                next.extend(sources.iter().map(|source| source.stored(first, length)));
            }
            let bytes = lane.fill(sources, first, length)?;
            let views = views(&lane.sources, sources.len());
            // Another worker counts the block that begins before this part.
            if first >= whole.start {
                read += bytes;
                found.look(job, sources, first, &views);
            }
            let block = Block {
                index: index as usize,
                first,
                sources: &views,
                next: &next,
                carried: job.carried.get(index as usize),
            };
            band.add(apply, block, &mut lane.outputs)?;
        }
        found.tell(job, &[band.narrowed]);
        self.count_read(read);
        let Band {
            codes,
            scales,
            sums,
            sampled,
            ..
        } = band;
        if let Some(width) = sums.len().checked_div(sampled) {
            let first = whole.start.div_ceil(block_len) as usize;
            lock(&job.pending).take(first, sums, width)?;
        }
        self.write(job, codes)?;
        if let Some(scales) = scales {
            self.write(job, scales)?;
        }
        lane.band = values;
        Ok(())
    }

    /// Computes the blocks that begin in some bands, for the largest magnitude of all.
    fn look_for_scale<R: Real>(
        &self,
        job: &ActiveJob<'_>,
        encoded: &Encoded,
        apply: &dyn Apply<R>,
        bands: Range<usize>,
        lane: &mut Lane<R>,
    ) -> Result<(), EngineError> {
        let Work::Compute { sources, .. } = job.work else {
            return Ok(());
        };
        let whole = encoded.encoding.elements(bands);
        let block_len = job.work.block_len() as u64;
        let mut found = Found::new(sources.len());
        let (mut read, mut most) = (0, 0f64);
        lane.outputs
            .resize_with(lane.outputs.len().max(1), Vec::new);
        for index in whole.start.div_ceil(block_len)..whole.end.div_ceil(block_len) {
            let (first, length) = job.work.block(index as usize);
            read += lane.fill(sources, first, length)?;
            let views = views(&lane.sources, sources.len());
            found.look(job, sources, first, &views);
            let block = Block {
                index: index as usize,
                first,
                sources: &views,
                next: &[],
                carried: job.carried.get(index as usize),
            };
            let results = &mut lane.outputs[0];
            resize(results, length, R::ZERO)?;
            apply.block(block, results)?;
            most = most.max(Encoding::largest_of(results));
        }
        // Magnitudes are in the order of their bits.
        job.most.fetch_max(most.to_bits(), Relaxed);
        found.tell(job, &[]);
        self.count_read(read);
        Ok(())
    }

    /// The first of some bands, and the tiles of all.
    fn band<'b, R: Real>(
        &self,
        job: &ActiveJob<'b>,
        encoded: &'b Encoded,
        output: &'b Output,
        bands: Range<usize>,
        values: &'b mut Vec<R>,
    ) -> Result<Band<'b, R>, EngineError>
    where
        'a: 'b,
    {
        let encoding = &encoded.encoding;
        resize(values, encoding.longest(), R::ZERO)?;
        let of_codes = encoding.elements(bands.clone());
        let len = of_codes.end - of_codes.start;
        let start = encoding.code_bytes(of_codes.start);
        let codes = self.tile(job, output.number, start, encoding.code_bytes(len) as usize)?;
        let of_band = encoding.scale_bytes();
        let scales = match (encoding.whole, bands.start) {
            (false, start) => Some(((start * of_band) as u64, bands.len() * of_band)),
            // The one scale is written with the first band.
            (true, 0) => Some((0, encoding.scales.size())),
            (true, _) => None,
        };
        let scales = scales.map(|(start, len)| self.tile(job, encoded.scales, start, len));
        let scales = scales.transpose()?;
        Ok(Band {
            encoded,
            output,
            coding: Coding {
                rounding: output.rounding,
                saturate: self.settings.saturate,
                largest: job.largest.unwrap_or_default(),
            },
            measured: match job.sample() {
                None => measured_in_block(job.work),
                Some(_) => 0,
            },
            number: bands.start,
            last: bands.end,
            values,
            codes,
            scales,
            of_band: vec![0; of_band],
            samples: Vec::new(),
            narrowed: Narrowed::default(),
            sums: Vec::new(),
            sampled: 0,
        })
    }
}

/// A band while it is filled, and what came of those before it.
struct Band<'a, R> {
    encoded: &'a Encoded,
    output: &'a Output,
    coding: Coding,
    /// In how many elements of each block it is measured what is lost.
    measured: usize,
    number: usize,
    /// The band after the last.
    last: usize,
    values: &'a mut [R],
    codes: Filling<'a>,
    scales: Option<Filling<'a>>,
    /// The scales of the band.
    of_band: Vec<u8>,
    samples: Vec<Sample<R>>,
    narrowed: Narrowed,
    /// For each block that begins in these bands, the sums of a [`Survival`] if there is a base, and of an
    /// [`EncodingError`].
    sums: Vec<f64>,
    /// How many such blocks there are.
    sampled: usize,
}

/// Elements of a band in which it is measured what is lost.
struct Sample<R> {
    /// Their places in the tensor.
    places: Range<u64>,
    /// Those of the base, if there is one.
    base: Vec<R>,
}

impl<R: Real> Band<'_, R> {
    fn places(&self) -> Range<u64> {
        self.encoded.encoding.elements(self.number..self.number + 1)
    }

    /// Computes a block, and encodes all bands that are complete then. `room` is for a block that is not in one band.
    fn add(
        &mut self,
        apply: &dyn Apply<R>,
        block: Block<'_, R>,
        room: &mut Vec<Vec<R>>,
    ) -> Result<(), EngineError> {
        let (first, end) = (block.first, block.first + block.len() as u64);
        let places = self.places();
        if first >= places.start && self.measured > 0 {
            let length = (end.min(places.end) - first) as usize;
            let part = sampled_part(block.index, length, self.measured);
            let base = self.output.base.and_then(|base| block.sources.get(base));
            self.samples.push(Sample {
                places: first + part.start as u64..first + part.end as u64,
                base: base.map_or(Vec::new(), |base| base[part].to_vec()),
            });
        }
        if first >= places.start && end <= places.end {
            let start = (first - places.start) as usize;
            let here = start..start + block.len();
            apply.block(block, &mut self.values[here])?;
            if end == places.end {
                self.encode()?;
            }
            return Ok(());
        }
        room.resize_with(room.len().max(1), Vec::new);
        let results = &mut room[0];
        resize(results, block.len(), R::ZERO)?;
        apply.block(block, results)?;
        let mut at = first.max(places.start);
        while at < end && self.number < self.last {
            let places = self.places();
            let until = end.min(places.end);
            let to = (at - places.start) as usize..(until - places.start) as usize;
            let from = (at - first) as usize..(until - first) as usize;
            self.values[to].copy_from_slice(&results[from]);
            at = until;
            if at == places.end {
                self.encode()?;
            }
        }
        Ok(())
    }

    /// Encodes the band, measures what is lost in its samples, and goes on to the next.
    fn encode(&mut self) -> Result<(), NoMemory> {
        let places = self.places();
        let encoding = self.encoded.encoding;
        let len = (places.end - places.start) as usize;
        let Self {
            codes,
            scales,
            of_band,
            values,
            samples,
            narrowed,
            sums,
            coding,
            ..
        } = self;
        let values = &values[..len];
        let bytes = encoding.code_bytes(len as u64) as usize;
        codes.set(bytes, |codes| {
            let found = encoding.encode(values, places.start, *coding, codes, of_band);
            narrowed.overflowed += found.overflowed;
            narrowed.non_finite += found.non_finite;
            let Some(decoded) = encoding.decoded(len / encoding.columns, codes, of_band) else {
                return Ok(());
            };
            let mut written = Vec::new();
            for Sample { places: of, base } in samples.iter() {
                let start = (of.start - places.start) as usize;
                let meant = &values[start..start + (of.end - of.start) as usize];
                resize(&mut written, meant.len(), R::ZERO)?;
                R::fill(decoded.as_ref(), start as u64, &mut written)?;
                if base.len() == meant.len() {
                    let Survival { kept, meant } = Survival::measure(meant, base, &written);
                    sums.extend([kept, meant]);
                }
                let error = EncodingError::measure(meant, &written, encoding.flushed_above());
                sums.extend([error.differences, error.values]);
                sums.extend([error.parts, error.flushed]);
            }
            Ok(())
        })?;
        if let Some(scales) = scales
            && (!encoding.whole || self.number == 0)
        {
            let len = match encoding.whole {
                true => encoding.scales.size(),
                false => of_band.len(),
            };
            scales.set(len, |bytes| bytes.copy_from_slice(&of_band[..len]));
        }
        self.sampled += self.samples.len();
        self.samples.clear();
        self.number += 1;
        Ok(())
    }
}
