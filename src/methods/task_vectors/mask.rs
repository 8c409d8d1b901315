//! Which elements of a task vector are kept, known for every element.

use std::sync::Arc;

use super::super::band::{Band, BlockBand, one_if};
use super::super::order::Keys;
use super::STRIP;
use super::ranks::{Chances, RankedRows, rank_rows};
use crate::engine::Block;
use crate::numeric::{MaskKey, Real, vectorised};

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
    /// For each element of the block, whether it is kept; for a chance by rank.
    kept: Vec<bool>,
    /// For each element of the block, its rank in its row; where that scales it.
    ranks: Vec<u32>,
}

impl Mask {
    /// Whether each kept element is scaled by a factor of its own.
    pub(super) fn scales_each(&self) -> bool {
        matches!(self, Self::ByRankScaled { .. })
    }

    /// The mask of a source's task vector in a block.
    pub(in crate::methods) fn in_block<R: Real>(
        &self,
        block: &Block<'_, R>,
        magnitudes: impl Keys<R>,
        source: usize,
    ) -> BlockMask<'_> {
        let (mut kept, mut ranks) = (Vec::new(), Vec::new());
        match self {
            Self::ByRank { key, bounds } => {
                let mut keys = vec![0; block.len()];
                magnitudes.fill(block, source, &mut keys);
                kept.resize(block.len(), false);
                let row = bounds.len();
                let mut draws = vec![0; row];
                let mut rows = RankedRows::new(bounds);
                let places = (block.first..).step_by(row);
                for ((keys, kept), first) in keys.chunks(row).zip(kept.chunks_mut(row)).zip(places)
                {
                    key.fill(first, &mut draws);
                    rows.keep(keys, &draws, kept);
                }
            }
            Self::ByRankScaled { row, .. } => {
                ranks.resize(block.len(), 0);
                magnitudes.fill(block, source, &mut ranks);
                rank_rows(&mut ranks, *row);
            }
            _ => {}
        }
        BlockMask {
            mask: self,
            first: block.first,
            band: match self {
                Self::Magnitudes(band) => Some(band.in_block(block.index)),
                _ => None,
            },
            kept,
            ranks,
        }
    }
}

vectorised! {
    fn magnitude_keys<R: Real>(values: &[R], keys: &mut [u32]) {
        for (key, value) in keys.iter_mut().zip(values) {
            *key = value.magnitude_key();
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
    /// element is kept, else zero. Strips are asked for in order.
    pub(in crate::methods) fn fill<R: Real>(&mut self, start: usize, deltas: &[R], keep: &mut [R]) {
        let first = self.first + start as u64;
        match *self.mask {
            Mask::All => keep.fill(R::ONE),
            Mask::Nothing => keep.fill(R::ZERO),
            Mask::Magnitudes(_) => {
                if let Some(band) = &mut self.band {
                    let mut keys = [0; STRIP];
                    magnitude_keys(deltas, &mut keys);
                    band.fill(&keys[..deltas.len()], keep);
                }
            }
            Mask::Random { key, bound } => {
                let mut draws = [0; STRIP];
                let draws = &mut draws[..keep.len()];
                key.fill(first, draws);
                keep_below(draws, bound, keep);
            }
            Mask::ByRank { .. } => {
                for (keep, &kept) in keep.iter_mut().zip(&self.kept[start..]) {
                    *keep = one_if(kept);
                }
            }
            Mask::ByRankScaled { key, chances, row } => {
                let ranks = &self.ranks[start..];
                for (offset, (keep, &rank)) in keep.iter_mut().zip(ranks).enumerate() {
                    let draw = key.draw(first + offset as u64);
                    *keep = one_if(draw < chances.bound(rank, row));
                }
            }
        }
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
