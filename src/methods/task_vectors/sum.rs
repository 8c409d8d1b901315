//! The pass that applies: masked task vectors are added to the base.

use super::choice::Magnitudes;
use super::mask::{BlockMask, Mask};
use super::{Consensus, STRIP};
use crate::engine::{Apply, Block};
use crate::methods::TensorParams;
use crate::methods::band::{Band, one_if};
use crate::methods::order::Keys;
use crate::numeric::Real;

/// A fine-tune whose mask is known.
#[derive(Debug, Clone)]
pub(in crate::methods) struct MaskedTerm<R> {
    pub(in crate::methods) source: usize,
    pub(in crate::methods) weight: R,
    /// The weight times what the mask is rescaled by.
    pub(in crate::methods) scaled: R,
    pub(in crate::methods) mask: Mask,
}

/// How masked task vectors are added up.
#[derive(Debug, Clone, Copy)]
pub(in crate::methods) struct Sum {
    pub(in crate::methods) consensus: Consensus,
    pub(in crate::methods) lambda: f64,
    pub(in crate::methods) normalize: bool,
    /// The sum of all weights.
    pub(in crate::methods) total: f64,
}

/// Merges an element only where at least `least` task vectors agree with the sum `t`: where
/// `|d_i| > factor_i * |t - d_i|`, of the whole task vector `d_i` (a TALL mask).
#[derive(Debug, Clone)]
pub(in crate::methods) struct Agreement {
    least: f64,
    /// For each term.
    factors: Vec<f64>,
}

impl Agreement {
    /// From `k` and `lambda` of these sources.
    ///
    /// # Errors
    /// A `k` that is not one whole number, or more than there are.
    pub(super) fn new(params: &TensorParams, sources: &[usize]) -> Result<Self, String> {
        let number = |source: usize, name| params.source_number(source, name).unwrap_or(1.0);
        let least = sources.first().map_or(1.0, |&source| number(source, "k"));
        if let Some(other) = sources
            .iter()
            .map(|&source| number(source, "k"))
            .find(|&other| other != least)
        {
            return Err(format!(
                "`k` is {least} for one model and {other} for another, but one number holds for all; \
                 hint: give `k` once, in the `parameters` of the recipe"
            ));
        }
        if least.fract() != 0.0 || least < 0.0 || least > sources.len() as f64 {
            return Err(format!(
                "`k` is {least}; expected a whole number from 0 to the number of task vectors, which is {}; \
                 hint: 1 drops elements that no task vector agrees with, 2 those that at most one does",
                sources.len()
            ));
        }
        Ok(Self {
            least,
            factors: sources
                .iter()
                .map(|&source| number(source, "lambda"))
                .collect(),
        })
    }
}

/// Sets `deltas` to the task vector of `source` from element `start` of the block on.
pub(in crate::methods) fn subtract<R: Real>(
    block: &Block<'_, R>,
    source: usize,
    base: usize,
    start: usize,
    deltas: &mut [R],
) {
    let source = &block.sources[source][start..][..deltas.len()];
    let base = &block.sources[base][start..][..deltas.len()];
    deltas
        .iter_mut()
        .zip(source)
        .zip(base)
        .for_each(|((delta, &x), &base)| *delta = x - base);
}

/// Adds masked task vectors to the base.
pub(in crate::methods) struct AddUp<R, K> {
    pub(in crate::methods) base: usize,
    pub(in crate::methods) terms: Vec<MaskedTerm<R>>,
    pub(in crate::methods) sum: Sum,
    pub(in crate::methods) agreement: Option<Agreement>,
    /// A mask that holds for all terms, beside their own: the band, and keys whose first stream it is of.
    pub(in crate::methods) common: Option<(Band, K)>,
}

/// Partial results of a strip.
struct Strip<R> {
    /// For each term, its scaled and masked task vector; zero where it is masked.
    votes: Vec<[R; STRIP]>,
    /// For each term, one where it is added, else zero.
    added: Vec<[R; STRIP]>,
    /// The sum that decides on the sign.
    ballot: [R; STRIP],
    /// Sums over the added terms: of votes, of scaled weights, of weights.
    total: [R; STRIP],
    share: [R; STRIP],
    divisor: [R; STRIP],
    /// The least and the largest of the added sources.
    low: [R; STRIP],
    high: [R; STRIP],
    /// One where the common mask keeps an element, else zero.
    common: [R; STRIP],
}

impl<R: Real> Strip<R> {
    fn new(terms: usize) -> Self {
        let zeros = [R::ZERO; STRIP];
        Self {
            votes: vec![zeros; terms],
            added: vec![zeros; terms],
            ballot: zeros,
            total: zeros,
            share: zeros,
            divisor: zeros,
            low: zeros,
            high: zeros,
            common: zeros,
        }
    }
}

impl<R: Real, K: Keys<R>> Apply<R> for AddUp<R, K> {
    fn block(&self, block: Block<'_, R>, out: &mut [R]) {
        let mut strip = Strip::new(self.terms.len());
        let magnitudes = Magnitudes { base: self.base };
        let mut masks: Vec<BlockMask<'_>> = self
            .terms
            .iter()
            .map(|term| term.mask.in_block(&block, magnitudes, term.source))
            .collect();
        let mut common = self.common.as_ref().map(|(band, keys)| {
            let mut of_block = vec![0; block.len()];
            keys.fill(&block, 0, &mut of_block);
            (band.in_block(block.index), of_block)
        });
        for (index, out) in out.chunks_mut(STRIP).enumerate() {
            let start = index * STRIP;
            let length = out.len();
            if let Some((band, keys)) = &mut common {
                let keys = keys[start..][..length].iter().copied();
                band.fill(keys, &mut strip.common[..length]);
            }
            self.vote(&block, start, length, &mut masks, &mut strip);
            if self.sum.consensus != Consensus::None {
                strike_out(length, &mut strip);
            }
            self.add(&block, start, length, &mut strip);
            if let Some(agreement) = &self.agreement {
                self.agree(agreement, &block, start, length, &mut strip);
            }
            self.finish(&block.sources[self.base][start..][..length], &strip, out);
        }
    }
}

/// Strikes out the terms whose sign lost.
fn strike_out<R: Real>(length: usize, strip: &mut Strip<R>) {
    for (votes, added) in strip.votes.iter().zip(&mut strip.added) {
        for ((&vote, added), &ballot) in votes[..length].iter().zip(added).zip(&strip.ballot) {
            // A tie is a plus, and a vote of zero agrees with no sign.
            let plus = ballot >= R::ZERO;
            *added = one_if(((vote > R::ZERO) & plus) | ((vote < R::ZERO) & !plus));
        }
    }
}

// Short loops over few slices, which the compiler turns into vectors; over all of them at once it does not.

/// Adds the votes that count to their totals.
fn sum_added<R: Real>(votes: &[R], added: &[R], totals: &mut [R]) {
    for ((total, &vote), &added) in totals.iter_mut().zip(votes).zip(added) {
        *total += if added > R::ZERO { vote } else { R::ZERO };
    }
}

/// Adds the weight where the term is added.
fn sum_weights<R: Real>(added: &[R], weight: R, sums: &mut [R]) {
    for (sum, &added) in sums.iter_mut().zip(added) {
        *sum += added * weight;
    }
}

/// Widens the range to the values that are added.
fn widen<R: Real>(values: &[R], added: &[R], low: &mut [R], high: &mut [R]) {
    let bounds = low.iter_mut().zip(high);
    for ((&value, &added), (low, high)) in values.iter().zip(added).zip(bounds) {
        let yes = added > R::ZERO;
        *low = if yes & (value < *low) { value } else { *low };
        *high = if yes & (value > *high) { value } else { *high };
    }
}

impl<R: Real, K> AddUp<R, K> {
    /// Masks each term and sums the votes.
    fn vote(
        &self,
        block: &Block<'_, R>,
        start: usize,
        length: usize,
        masks: &mut [BlockMask<'_>],
        strip: &mut Strip<R>,
    ) {
        strip.ballot.fill(R::ZERO);
        let unweighted = self.sum.consensus == Consensus::Sign;
        let rows = strip.votes.iter_mut().zip(&mut strip.added);
        for ((term, mask), (votes, added)) in self.terms.iter().zip(masks).zip(rows) {
            let (votes, added) = (&mut votes[..length], &mut added[..length]);
            subtract(block, term.source, self.base, start, votes);
            mask.fill(start, votes, added);
            if self.common.is_some() {
                added
                    .iter_mut()
                    .zip(&strip.common)
                    .for_each(|(added, &common)| *added = one_if((*added * common) > R::ZERO));
            }
            mask.scale(start, votes);
            for ((vote, added), ballot) in votes.iter_mut().zip(added).zip(&mut strip.ballot) {
                let kept = *added > R::ZERO;
                let delta = *vote;
                *vote = if kept { delta * term.scaled } else { R::ZERO };
                let voice = if unweighted { delta } else { *vote };
                *ballot += if kept { voice } else { R::ZERO };
            }
        }
    }

    /// Sums the added terms.
    fn add(&self, block: &Block<'_, R>, start: usize, length: usize, strip: &mut Strip<R>) {
        let Strip {
            votes,
            added,
            total,
            share,
            divisor,
            low,
            high,
            ..
        } = strip;
        let [total, share, divisor, low, high] =
            [total, share, divisor, low, high].map(|values| &mut values[..length]);
        total.fill(R::ZERO);
        share.fill(R::ZERO);
        divisor.fill(R::ZERO);
        low.fill(R::from_f64(f64::INFINITY));
        high.fill(R::from_f64(f64::NEG_INFINITY));
        for ((term, votes), added) in self.terms.iter().zip(votes).zip(added) {
            let source = &block.sources[term.source][start..][..length];
            let (votes, added) = (&votes[..length], &added[..length]);
            sum_added(votes, added, total);
            sum_weights(added, term.scaled, share);
            sum_weights(added, term.weight, divisor);
            widen(source, added, low, high);
        }
        match (self.sum.normalize, self.sum.consensus) {
            (false, _) => divisor.fill(R::ONE),
            (true, Consensus::None) => divisor.fill(R::from_f64(self.sum.total)),
            (true, Consensus::WeightedSign | Consensus::Sign) => {
                for divisor in divisor {
                    *divisor = if *divisor == R::ZERO {
                        R::ONE
                    } else {
                        *divisor
                    };
                }
            }
        }
    }

    /// Takes back what too few task vectors agree with.
    fn agree(
        &self,
        agreement: &Agreement,
        block: &Block<'_, R>,
        start: usize,
        length: usize,
        strip: &mut Strip<R>,
    ) {
        let least = R::from_f64(agreement.least);
        let mut agreeing = [R::ZERO; STRIP];
        let mut deltas = [R::ZERO; STRIP];
        for (term, &factor) in self.terms.iter().zip(&agreement.factors) {
            let factor = R::from_f64(factor);
            subtract(block, term.source, self.base, start, &mut deltas[..length]);
            for (i, delta) in deltas[..length].iter().enumerate() {
                let rest = strip.total[i] / strip.divisor[i] - *delta;
                agreeing[i] += one_if(delta.abs() > factor * rest.abs());
            }
        }
        for (i, &agreeing) in agreeing[..length].iter().enumerate() {
            if agreeing < least {
                strip.total[i] = R::ZERO;
                // Nothing is added, so the result is no mean of what was.
                strip.share[i] = R::ZERO;
            }
        }
    }

    fn finish(&self, base: &[R], strip: &Strip<R>, out: &mut [R]) {
        let lambda = R::from_f64(self.sum.lambda);
        let one_sign = self.terms.iter().all(|term| term.scaled >= R::ZERO);
        // Elements that are scaled each by its own factor do not add up to a mean.
        let scaled_alike = !self.terms.iter().any(|term| term.mask.scales_each());
        let length = out.len();
        let [total, share, divisor, low, high] = [
            &strip.total,
            &strip.share,
            &strip.divisor,
            &strip.low,
            &strip.high,
        ]
        .map(|values| &values[..length]);
        for (i, (out, &base)) in out.iter_mut().zip(&base[..length]).enumerate() {
            let difference = lambda * (total[i] / divisor[i]);
            // Adding a zero could turn the sign of another.
            let merged = if difference == R::ZERO {
                base
            } else {
                base + difference
            };
            // What weights that make up one miss it by is rounding.
            let missing = R::ONE - lambda * (share[i] / divisor[i]);
            let mean = one_sign && scaled_alike && missing.abs() <= R::NOISE;
            // At equality too, as a minus zero equals a plus zero.
            let raised = if mean && merged <= low[i] {
                low[i]
            } else {
                merged
            };
            *out = if mean && raised >= high[i] {
                high[i]
            } else {
                raised
            };
        }
    }
}
