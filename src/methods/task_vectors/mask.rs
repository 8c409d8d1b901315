//! Which elements of a task vector are kept, known for every element.

use super::super::band::{Band, BlockBand, one_if};
use super::super::order::Keys;
use super::STRIP;
use super::ranks::{Chances, rank_rows};
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
    /// By a chance that rises with the rank in the row; `scaled`, divided by that chance.
    ByRank {
        key: MaskKey,
        chances: Chances,
        row: usize,
        scaled: bool,
    },
}

/// A mask in one block, whose elements are asked for in order.
pub(in crate::methods) struct BlockMask<'m> {
    mask: &'m Mask,
    /// The number of the block's first element.
    first: u64,
    band: Option<BlockBand>,
    /// For each element of the block, its rank in its row.
    ranks: Vec<u32>,
}

impl Mask {
    /// Whether each kept element is scaled by a factor of its own.
    pub(super) fn scales_each(&self) -> bool {
        matches!(self, Self::ByRank { scaled: true, .. })
    }

    /// The mask of a source's task vector in a block.
    pub(in crate::methods) fn in_block<R: Real>(
        &self,
        block: &Block<'_, R>,
        magnitudes: impl Keys<R>,
        source: usize,
    ) -> BlockMask<'_> {
        let mut ranks = Vec::new();
        if let Self::ByRank { row, .. } = *self {
            ranks.resize(block.len(), 0);
            magnitudes.fill(block, source, &mut ranks);
            rank_rows(&mut ranks, row);
        }
        BlockMask {
            mask: self,
            first: block.first,
            band: match self {
                Self::Magnitudes(band) => Some(band.in_block(block.index)),
                _ => None,
            },
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
            Mask::ByRank {
                key, chances, row, ..
            } => {
                let ranks = &self.ranks[start..];
                for (offset, (keep, &rank)) in keep.iter_mut().zip(ranks).enumerate() {
                    let draw = u64::from(key.draw(first + offset as u64));
                    *keep = one_if(draw < chances.bound(rank, row));
                }
            }
        }
    }

    /// Divides the task vector by the chance of each element, where the mask says so.
    pub(in crate::methods) fn scale<R: Real>(&self, start: usize, deltas: &mut [R]) {
        if let Mask::ByRank {
            chances,
            row,
            scaled: true,
            ..
        } = *self.mask
        {
            for (delta, &rank) in deltas.iter_mut().zip(&self.ranks[start..]) {
                *delta = *delta / R::from_f64(chances.of(rank, row));
            }
        }
    }
}
