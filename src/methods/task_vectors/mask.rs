//! Which elements of a task vector are kept, known for every element.

use std::borrow::Cow;
use std::sync::Arc;

use super::super::band::{Band, BlockBand, Bounds, one_if};
use super::super::order::Keys;
use super::STRIP;
use super::ranks::{Chances, RankedRows, rank_rows};
use super::sum::differences;
use crate::engine::Block;
use crate::numeric::{MaskKey, Real, WORD, pack, unpack, vectorised};

/// Which elements of a task vector are kept.
#[derive(Debug, Clone)]
pub(in crate::methods) enum Mask {
    All,
    Nothing,
    /// By the magnitude of the task vector.
    Magnitudes(Band),
    Random {
        key: MaskKey,
        bound: u64,
    },
    /// By a chance that rises with the rank in the row; `bounds` are of the draws, for each rank.
    ByRank {
        key: MaskKey,
        bounds: Arc<[u32]>,
    },
    /// The same, each element divided by its chance.
    ByRankScaled {
        key: MaskKey,
        chances: Chances,
        row: usize,
    },
}

/// A mask in one block, whose elements are asked for in order.
pub(in crate::methods) struct BlockMask<'m> {
    mask: &'m Mask,
    /// The number of the block's first element.
    first: u64,
    band: Option<BlockBand>,
    /// For each element of the block, whether it is kept; where that is known for all of them.
    kept: Option<Cow<'m, [u64]>>,
    /// For each element of the block, its rank in its row; where that scales it.
    ranks: Vec<u32>,
    /// Keys or draws of a strip.
    numbers: [u32; STRIP],
}

impl Mask {
    /// Whether each kept element is scaled by a factor of its own.
    pub(super) fn scales_each(&self) -> bool {
        matches!(self, Self::ByRankScaled { .. })
    }

    /// Whether finding it out takes so long that the pass that measures norms leaves it to the one that applies.
    pub(super) fn is_remembered(&self) -> bool {
        matches!(self, Self::ByRank { .. })
    }

    /// The mask of a source's task vector in a block; `known` is what it keeps, if a pass before has found that
    /// out.
    pub(in crate::methods) fn in_block<'m, R: Real>(
        &'m self,
        block: &Block<'_, R>,
        magnitudes: impl Keys<R>,
        source: usize,
        known: Option<&'m [u64]>,
    ) -> BlockMask<'m> {
        let mut mask = BlockMask {
            mask: self,
            first: block.first,
            band: None,
            kept: known.map(Cow::Borrowed),
            ranks: Vec::new(),
            numbers: [0; STRIP],
        };
        match self {
            _ if known.is_some() => {}
            Self::Magnitudes(band) => mask.band = Some(band.in_block(block.index)),
            Self::ByRank { key, bounds } => {
                let keys =
                    |row: &Block<'_, R>, keys: &mut [u32]| magnitudes.fill(row, source, keys);
                mask.kept = Some(Cow::Owned(keep_by_rank(*key, bounds, block, keys)));
            }
            Self::ByRankScaled { row, .. } => {
                mask.ranks.resize(block.len(), 0);
                magnitudes.fill(block, source, &mut mask.ranks);
                rank_rows(&mut mask.ranks, *row);
            }
            Self::All | Self::Nothing | Self::Random { .. } => {}
        }
        mask
    }
}

/// What is kept of the rows of a block by chances that rise with the rank; `fill` gives the keys of a row.
fn keep_by_rank<R: Real>(
    key: MaskKey,
    bounds: &[u32],
    block: &Block<'_, R>,
    fill: impl Fn(&Block<'_, R>, &mut [u32]),
) -> Vec<u64> {
    let row = bounds.len();
    let mut kept = vec![0; block.len()];
    let (mut keys, mut draws) = (vec![0; row], vec![0; row]);
    let mut room = Vec::new();
    let mut rows = RankedRows::new(bounds);
    for (index, kept) in kept.chunks_mut(row).enumerate() {
        let places = index * row..index * row + kept.len();
        let part = block.part(places, &mut room);
        key.fill(part.first, &mut draws);
        fill(&part, &mut keys);
        rows.keep(&keys, &draws, kept);
    }
    let mut words = vec![0; kept.len().div_ceil(WORD)];
    pack(&kept, &mut words);
    words
}

vectorised! {
    fn magnitude_keys<R: Real>(values: &[R], keys: &mut [u32]) {
        for (key, value) in keys.iter_mut().zip(values) {
            *key = value.magnitude_key();
        }
    }
}

vectorised! {
    /// The task vector where its magnitude is within the bounds, and one there, else zeros.
    fn keep_bounded<R: Real>(source: &[R], base: &[R], bounds: Bounds, kept: &mut [R], keep: &mut [R]) {
        let places = kept.iter_mut().zip(keep);
        for ((kept, keep), (&x, &base)) in places.zip(source.iter().zip(base)) {
            let delta = x - base;
            let stays = bounds.keep(delta.magnitude_key());
            *kept = if stays { delta } else { R::ZERO };
            *keep = one_if(stays);
        }
    }
}

vectorised! {
    /// The task vector where the draw is below the bound, and one there, else zeros.
    fn keep_drawn<R: Real>(
        source: &[R], base: &[R], draws: &[u32], bound: u32, kept: &mut [R], keep: &mut [R],
    ) {
        let places = kept.iter_mut().zip(keep).zip(draws);
        for (((kept, keep), &draw), (&x, &base)) in places.zip(source.iter().zip(base)) {
            *kept = if draw < bound { x - base } else { R::ZERO };
            *keep = one_if(draw < bound);
        }
    }
}

vectorised! {
    /// Zeros where an element is not kept.
    pub(in crate::methods) fn strike<R: Real>(deltas: &mut [R], keep: &[R]) {
        for (delta, &keep) in deltas.iter_mut().zip(keep) {
            *delta = if keep > R::ZERO { *delta } else { R::ZERO };
        }
    }
}

vectorised! {
    /// One where a draw is below the bound.
    fn keep_below<R: Real>(draws: &[u32], bound: u64, keep: &mut [R]) {
        match u32::try_from(bound) {
            Ok(bound) => {
                for (keep, &draw) in keep.iter_mut().zip(draws) {
                    *keep = one_if(draw < bound);
                }
            }
            // Above all draws.
            Err(_) => keep.fill(R::ONE),
        }
    }
}

impl BlockMask<'_> {
    /// Sets `keep` for the elements from number `start` of the block on, [`STRIP`] at the most: one where an
    /// element is kept, else zero. Strips are asked for in order, and all but the last are whole.
    pub(in crate::methods) fn fill<R: Real>(&mut self, start: usize, deltas: &[R], keep: &mut [R]) {
        if let Some(kept) = &self.kept {
            return unpack(&kept[start / WORD..], keep);
        }
        let first = self.first + start as u64;
        let numbers = &mut self.numbers[..keep.len()];
        match *self.mask {
            Mask::All => keep.fill(R::ONE),
            Mask::Nothing => keep.fill(R::ZERO),
            Mask::Magnitudes(_) => {
                if let Some(band) = &mut self.band {
                    magnitude_keys(deltas, numbers);
                    band.fill(numbers, keep);
                }
            }
            Mask::Random { key, bound } => {
                key.fill(first, numbers);
                keep_below(numbers, bound, keep);
            }
            // Known for the whole block.
            Mask::ByRank { .. } => {}
            Mask::ByRankScaled { key, chances, row } => {
                let ranks = &self.ranks[start..];
                for (offset, (keep, &rank)) in keep.iter_mut().zip(ranks).enumerate() {
                    let draw = key.draw(first + offset as u64);
                    *keep = one_if(draw < chances.bound(rank, row));
                }
            }
        }
    }

    /// Sets `kept` to the task vector, the source less the base, where an element is kept, else to zero; and `keep` as
    /// [`fill`](Self::fill) does.
    pub(in crate::methods) fn apply<R: Real>(
        &mut self,
        start: usize,
        source: &[R],
        base: &[R],
        kept: &mut [R],
        keep: &mut [R],
    ) {
        match (self.mask, self.band.and_then(|band| band.bounds())) {
            (Mask::All, _) => {
                differences(source, base, kept);
                keep.fill(R::ONE);
            }
            (Mask::Magnitudes(_), Some(bounds)) => keep_bounded(source, base, bounds, kept, keep),
            (&Mask::Random { key, bound }, _) if let Ok(bound) = u32::try_from(bound) => {
                let draws = &mut self.numbers[..keep.len()];
                key.fill(self.first + start as u64, draws);
                keep_drawn(source, base, draws, bound, kept, keep);
            }
            _ => {
                differences(source, base, kept);
                self.fill(start, kept, keep);
                strike(kept, keep);
            }
        }
    }

    /// What is kept of the whole block, if that is known: of masks that are [remembered](Mask::is_remembered).
    pub(super) fn known(&self) -> Option<&[u64]> {
        self.kept.as_deref()
    }

    /// Divides the task vector by the chance of each element, where the mask says so.
    pub(in crate::methods) fn scale<R: Real>(&self, start: usize, deltas: &mut [R]) {
        if let Mask::ByRankScaled { chances, row, .. } = *self.mask {
            for (delta, &rank) in deltas.iter_mut().zip(&self.ranks[start..]) {
                *delta = *delta / R::from_f64(chances.of(rank, row));
            }
        }
    }
}
