//! The outputs of a job while a worker computes a tile of them: blocks are computed, rounded and measured.

use std::ops::Range;

use super::EngineError;
use super::filling::Filling;
use super::job::{Output, Work};
use super::program::{Apply, Block};
use numeric::{Narrowed, Real, Survival, resize};

/// Values that are rounded at a time.
const STRIP: usize = 1024;

/// Elements of a tensor in which it is measured how much of an update survives the rounding; more, if this gives less
/// than [`LEAST_MEASURED`] in each block.
const MEASURED: usize = 1 << 16;
const LEAST_MEASURED: usize = 512;

/// Which elements of a block are sampled: `sampled` adjacent ones, at a place that depends only on the block's
/// index.
pub(super) fn sampled_part(index: usize, length: usize, sampled: usize) -> Range<usize> {
    let sampled = sampled.min(length);
    // Multiples of the golden ratio are spread evenly and do not resonate with any row length.
    let share = (index as u64 + 1).wrapping_mul(0x9e37_79b9_7f4a_7c15) >> 32;
    let start = ((share * (length - sampled) as u64) >> 32) as usize;
    start..start + sampled
}

/// In how many elements of each block it is measured what is lost by rounding.
pub(super) fn measured_in_block(work: &Work<'_>) -> usize {
    MEASURED.div_ceil(work.blocks().max(1)).max(LEAST_MEASURED)
}

/// The tiles of all outputs of a computation while they are filled.
pub(super) struct Results<'a> {
    work: &'a Work<'a>,
    outputs: &'a [Output],
    pub(super) tiles: Vec<Filling<'a>>,
    /// For each output, how many values did not fit its format.
    pub(super) narrowed: Vec<Narrowed>,
    saturate: bool,
    /// In how many elements of each block it is measured how much of an update survives.
    measured: usize,
}

impl<'a> Results<'a> {
    /// The outputs and their tiles. `whole` says whether all blocks are computed, so that updates can be measured.
    pub(super) fn new(
        work: &'a Work<'a>,
        outputs: &'a [Output],
        tiles: Vec<Filling<'a>>,
        saturate: bool,
        whole: bool,
    ) -> Self {
        Self {
            work,
            outputs,
            tiles,
            narrowed: vec![Narrowed::default(); outputs.len()],
            saturate,
            measured: if whole { measured_in_block(work) } else { 0 },
        }
    }

    /// Computes a block of every output and rounds it into its tile. Adds two sums for each output with a base: those
    /// of a [`Survival`]. Fails if there is no memory for them.
    pub(super) fn add<R: Real>(
        &mut self,
        apply: &dyn Apply<R>,
        block: Block<'_, R>,
        computed: &mut Vec<Vec<R>>,
        sums: &mut Vec<f64>,
    ) -> Result<(), EngineError> {
        let Block { index, sources, .. } = block;
        computed.resize_with(self.outputs.len(), Vec::new);
        for (values, output) in computed.iter_mut().zip(self.outputs) {
            let place = self.work.place(output, index..index + 1);
            resize(values, (place.end - place.start) as usize, R::ZERO)?;
        }
        apply.outputs(block, computed)?;
        let tiles = self.tiles.iter_mut().zip(&mut self.narrowed);
        for ((values, output), (tile, narrowed)) in computed.iter_mut().zip(self.outputs).zip(tiles)
        {
            let base = output.base.and_then(|base| sources.get(base).copied());
            let base = base.filter(|base| self.measured > 0 && base.len() == values.len());
            let update = base.map(|base| Update {
                base,
                measured: sampled_part(index, values.len(), self.measured),
            });
            let first = self.work.place(output, index..index + 1).start;
            let len = values.len() * output.format.size();
            let (found, survival) = tile.set(len, |bytes| {
                round(output, first, values, self.saturate, update, bytes)
            });
            narrowed.overflowed += found.overflowed;
            narrowed.non_finite += found.non_finite;
            if output.base.is_some() && self.measured > 0 {
                sums.extend([survival.kept, survival.meant]);
            }
        }
        Ok(())
    }
}

/// The elements of a block in which an update is measured, and the base that they change.
struct Update<'a, R> {
    base: &'a [R],
    measured: Range<usize>,
}

/// Rounds a block's values to bytes. `first` is the first one's place in the output.
fn round<R: Real>(
    output: &Output,
    first: u64,
    values: &mut [R],
    saturate: bool,
    update: Option<Update<'_, R>>,
    bytes: &mut [u8],
) -> (Narrowed, Survival) {
    let Output {
        format, rounding, ..
    } = *output;
    let (mut narrowed, mut survival) = (Narrowed::default(), Survival::default());
    let [mut meant, mut written] = [[R::ZERO; STRIP]; 2];
    let starts = (0..).step_by(STRIP);
    let strips = values
        .chunks_mut(STRIP)
        .zip(bytes.chunks_mut(STRIP * format.size()));
    for (start, (values, bytes)) in starts.zip(strips) {
        // The part of this strip that is measured.
        let measured = update.as_ref().and_then(|Update { base, measured }| {
            let of_strip = measured.start.max(start)..measured.end.min(start + values.len());
            (!of_strip.is_empty()).then(|| {
                let base = &base[of_strip.clone()];
                (base, of_strip.start - start..of_strip.end - start)
            })
        });
        if let Some((_, places)) = &measured {
            meant[..places.len()].copy_from_slice(&values[places.clone()]);
        }
        if let Some(rounding) = rounding {
            rounding.round(format, first + start as u64, values);
        }
        let found = format.encode(values, saturate, bytes);
        narrowed.overflowed += found.overflowed;
        narrowed.non_finite += found.non_finite;
        if let Some((base, places)) = measured {
            let (meant, written) = (&meant[..places.len()], &mut written[..places.len()]);
            let size = format.size();
            format.decode(&bytes[places.start * size..places.end * size], written);
            survival += Survival::measure(meant, base, written);
        }
    }
    (narrowed, survival)
}
