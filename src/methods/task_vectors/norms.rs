//! The pass that measures L1 norms before and after the masks, for `rescale: l1`.

use super::STRIP;
use super::choice::Magnitudes;
use super::mask::BlockMask;
use super::sum::{MaskedTerm, differences};
use crate::engine::{Block, Measure};
use crate::numeric::{Real, abs_sums};

/// L1 norms below this are not rescaled to or from; mergekit's value.
const LEAST_NORM: f64 = 1e-7;

/// What restores the L1 norm; one where there is next to nothing to restore.
pub(super) fn l1_factor(before: f64, after: f64) -> f64 {
    if before < LEAST_NORM || after < LEAST_NORM {
        1.0
    } else {
        before / after
    }
}

/// Measures each task vector's L1 norm, before and after its mask.
pub(super) struct Norms<R> {
    pub(super) base: usize,
    pub(super) terms: Vec<MaskedTerm<R>>,
}

impl<R: Real> Measure<R> for Norms<R> {
    fn sums(&self) -> usize {
        2 * self.terms.len()
    }

    fn counts(&self) -> usize {
        0
    }

    fn block(&self, block: Block<'_, R>, sums: &mut [f64], _counts: &mut [u64]) {
        let mut deltas = [R::ZERO; STRIP];
        let mut keep = [R::ZERO; STRIP];
        let magnitudes = Magnitudes { base: self.base };
        let mut masks: Vec<_> = self
            .terms
            .iter()
            .map(|term| term.mask.in_block(&block, magnitudes, term.source, None))
            .collect();
        for start in (0..block.len()).step_by(STRIP) {
            let length = STRIP.min(block.len() - start);
            block.ahead(start..start + length);
            let base = &block.sources[self.base][start..][..length];
            let (deltas, keep) = (&mut deltas[..length], &mut keep[..length]);
            let terms = self.terms.iter().zip(&mut masks);
            for ((term, mask), sums) in terms.zip(sums.chunks_exact_mut(2)) {
                differences(&block.sources[term.source][start..][..length], base, deltas);
                mask.fill(start, deltas, keep);
                let [before, after] = abs_sums(deltas, keep);
                sums[0] += before;
                sums[1] += after;
            }
        }
        // What took long to find out is left to the pass that applies it.
        if let Some(memo) = block.memo {
            let known = masks.iter().filter_map(BlockMask::known);
            // Each block is measured once.
            let _ = memo.set(known.flatten().copied().collect());
        }
    }
}
