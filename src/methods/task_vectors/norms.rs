//! The pass that measures L1 norms before and after the masks, for `rescale: l1`.

use super::choice::Magnitudes;
use super::mask::{BlockMask, Masked};
use super::scheme::STRIP;
use super::sum::MaskedTerm;
use engine::{Block, Measure};
use numeric::{NoMemory, Real, abs_sum, reserve};

/// L1 norms below this are not rescaled; the value is mergekit's.
const LEAST_NORM: f64 = 1e-7;

/// The factor that restores the L1 norm; one if either norm is close to zero.
pub(super) fn l1_factor(before: f64, after: f64) -> f64 {
    if before < LEAST_NORM || after < LEAST_NORM {
        1.0
    } else {
        before / after
    }
}

/// Measures the L1 norm of each task vector, before and after its mask.
pub(super) struct TaskVectorNorms<R> {
    pub(super) base: usize,
    pub(super) terms: Vec<MaskedTerm<R>>,
}

impl<R: Real> Measure<R> for TaskVectorNorms<R> {
    fn sums(&self) -> usize {
        2 * self.terms.len()
    }

    fn counts(&self) -> usize {
        0
    }

    fn block(
        &self,
        block: Block<'_, R>,
        sums: &mut [f64],
        _counts: &mut [u64],
    ) -> Result<(), NoMemory> {
        let [mut whole, mut kept] = [[R::ZERO; STRIP]; 2];
        let mut numbers = [0; STRIP];
        let magnitudes = Magnitudes { base: self.base };
        let masks = self.terms.iter();
        let masks = masks.map(|term| term.mask.in_block(&block, magnitudes, term.source, None));
        let mut masks = masks.collect::<Result<Vec<_>, NoMemory>>()?;
        for start in (0..block.len()).step_by(STRIP) {
            let length = STRIP.min(block.len() - start);
            block.ahead(start..start + length);
            let base = &block.sources[self.base][start..][..length];
            let (whole, kept) = (&mut whole[..length], &mut kept[..length]);
            let numbers = &mut numbers[..length];
            let terms = self.terms.iter().zip(&mut masks);
            for ((term, mask), sums) in terms.zip(sums.chunks_exact_mut(2)) {
                let source = &block.sources[term.source][start..][..length];
                let choose = mask.choose(start, source, base, numbers);
                Masked::new(source, base, choose, numbers).fill_both(whole, kept);
                sums[0] += abs_sum(whole);
                sums[1] += abs_sum(kept);
            }
        }
        // Passes masks that took long to compute on to the pass that applies them.
        if let Some(carried) = block.carried {
            let known = masks.iter().filter_map(BlockMask::known);
            let words = masks
                .iter()
                .filter_map(BlockMask::known)
                .map(<[u64]>::len)
                .sum();
            let mut all = Vec::new();
            reserve(&mut all, words)?;
            all.extend(known.flatten());
            // Each block is measured only once, so the cell is still empty.
            let _ = carried.set(all.into());
        }
        Ok(())
    }
}
