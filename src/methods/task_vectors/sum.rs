//! The pass that applies: masked task vectors are added to the base.

use super::choice::Magnitudes;
use super::mask::{BlockMask, Mask};
use super::{Consensus, STRIP};
use crate::engine::{Apply, Block};
use crate::methods::TensorParams;
use crate::methods::band::{Band, one_if};
use crate::methods::order::Keys;
use crate::numeric::{Real, clamp_to_hull, vectorised};

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
    differences(source, base, deltas);
}

vectorised! {
    fn differences<R: Real>(source: &[R], base: &[R], deltas: &mut [R]) {
        for ((delta, &x), &base) in deltas.iter_mut().zip(source).zip(base) {
            *delta = x - base;
        }
    }
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
    /// Sums over the added terms: of votes, of weights, of scaled weights.
    total: [R; STRIP],
    divisor: [R; STRIP],
    share: [R; STRIP],
    /// The least and the largest of the added sources, and room for those that are made from them.
    bounds: [Bounds<R>; 2],
    /// One where the common mask keeps an element, else zero.
    common: [R; STRIP],
}

/// Between what results must lie.
struct Bounds<R> {
    low: [R; STRIP],
    high: [R; STRIP],
}

impl<R: Real> Strip<R> {
    fn new(terms: usize, divisor: R) -> Self {
        let zeros = [R::ZERO; STRIP];
        let bounds = || Bounds {
            low: zeros,
            high: zeros,
        };
        Self {
            votes: vec![zeros; terms],
            added: vec![zeros; terms],
            ballot: zeros,
            total: zeros,
            divisor: [divisor; STRIP],
            share: zeros,
            bounds: [bounds(), bounds()],
            common: zeros,
        }
    }
}

impl<R: Real, K: Keys<R>> Apply<R> for AddUp<R, K> {
    fn block(&self, block: Block<'_, R>, out: &mut [R]) {
        if self.adds_everything() {
            return self.add_everything(&block, out);
        }
        let mut strip = Strip::new(self.terms.len(), self.divisor().unwrap_or(R::ONE));
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
                band.fill(&keys[start..][..length], &mut strip.common[..length]);
            }
            self.vote(&block, start, length, &mut masks, &mut strip);
            if self.sum.consensus != Consensus::None {
                for (votes, added) in strip.votes.iter().zip(&mut strip.added) {
                    strike_out(&strip.ballot[..length], votes, added);
                }
            }
            self.add(&block, start, length, &mut strip);
            self.finish(&block.sources[self.base][start..][..length], &strip, out);
        }
    }
}

// Short loops over few slices, which the compiler turns into vectors; over all of them at once it does not.
// What is chosen between an old value and a new one goes to another slice: in place, only the new ones would be
// stored, and stores under a mask are slow.

vectorised! {
    /// Adds a scaled task vector.
    fn add_scaled<R: Real>(source: &[R], base: &[R], scaled: R, total: &mut [R]) {
        for ((total, &x), &base) in total.iter_mut().zip(source).zip(base) {
            *total += (x - base) * scaled;
        }
    }
}

vectorised! {
    /// Keeps what both masks keep.
    fn keep_common<R: Real>(common: &[R], added: &mut [R]) {
        for (added, &common) in added.iter_mut().zip(common) {
            *added = *added * common;
        }
    }
}

vectorised! {
    /// Turns task vectors into votes, scaled and masked, and adds them to the ballot.
    fn cast<R: Real>(scaled: R, added: &[R], votes: &mut [R], ballot: &mut [R]) {
        for ((vote, &added), ballot) in votes.iter_mut().zip(added).zip(ballot) {
            *vote = if added > R::ZERO { *vote * scaled } else { R::ZERO };
            *ballot += *vote;
        }
    }
}

vectorised! {
    /// The same, where the ballot is of task vectors before they are scaled.
    fn cast_unweighted<R: Real>(scaled: R, added: &[R], votes: &mut [R], ballot: &mut [R]) {
        for ((vote, &added), ballot) in votes.iter_mut().zip(added).zip(ballot) {
            let delta = if added > R::ZERO { *vote } else { R::ZERO };
            *ballot += delta;
            *vote = if added > R::ZERO { delta * scaled } else { R::ZERO };
        }
    }
}

vectorised! {
    /// Strikes out the votes whose sign lost.
    fn strike_out<R: Real>(ballot: &[R], votes: &[R], added: &mut [R]) {
        for ((&vote, added), &ballot) in votes.iter().zip(added).zip(ballot) {
            // A tie is a plus, and a vote of zero agrees with no sign.
            let plus = ballot >= R::ZERO;
            *added = one_if(((vote > R::ZERO) & plus) | ((vote < R::ZERO) & !plus));
        }
    }
}

vectorised! {
    /// Adds the votes that count.
    fn sum_added<R: Real>(votes: &[R], added: &[R], total: &mut [R]) {
        for ((total, &vote), &added) in total.iter_mut().zip(votes).zip(added) {
            *total += if added > R::ZERO { vote } else { R::ZERO };
        }
    }
}

vectorised! {
    /// Adds the weight where the term is added.
    fn sum_weights<R: Real>(added: &[R], weight: R, weights: &mut [R]) {
        for (weights, &added) in weights.iter_mut().zip(added) {
            *weights += added * weight;
        }
    }
}

vectorised! {
    /// The least of the values that are added and what was the least before.
    fn widen_down<R: Real>(values: &[R], added: &[R], below: &[R], low: &mut [R]) {
        for ((low, &below), (&value, &added)) in low.iter_mut().zip(below).zip(values.iter().zip(added)) {
            *low = if (added > R::ZERO) & (value < below) { value } else { below };
        }
    }
}

vectorised! {
    /// The largest of the values that are added and what was the largest before.
    fn widen_up<R: Real>(values: &[R], added: &[R], above: &[R], high: &mut [R]) {
        for ((high, &above), (&value, &added)) in high.iter_mut().zip(above).zip(values.iter().zip(added)) {
            *high = if (added > R::ZERO) & (value > above) { value } else { above };
        }
    }
}

vectorised! {
    /// Counts the task vectors that agree with the mean of the sum.
    fn count_agreeing<R: Real>(
        deltas: &[R], factor: R, total: &[R], divisor: &[R], agreeing: &mut [R],
    ) {
        let sums = total.iter().zip(divisor);
        for ((&delta, (&total, &divisor)), agreeing) in deltas.iter().zip(sums).zip(agreeing) {
            let rest = total / nonzero(divisor) - delta;
            *agreeing += one_if(delta.abs() > factor * rest.abs());
        }
    }
}

vectorised! {
    /// Adds `lambda * total / divisor` to the base.
    fn add_difference<R: Real>(
        lambda: R, base: &[R], total: &[R], divisor: &[R], out: &mut [R],
    ) {
        let sums = total.iter().zip(divisor);
        for ((out, &base), (&total, &divisor)) in out.iter_mut().zip(base).zip(sums) {
            let difference = lambda * (total / nonzero(divisor));
            // Adding a zero could turn the sign of another.
            *out = if difference == R::ZERO { base } else { base + difference };
        }
    }
}

vectorised! {
    /// Adds `lambda * total / divisor` to the base; where the weights make up one, the result is a mean, and
    /// is put between the bounds.
    fn add_mean<R: Real>(
        lambda: R, base: &[R], total: &[R], divisor: &[R], share: &[R], bounds: [&[R]; 2], out: &mut [R],
    ) {
        let [low, high] = bounds;
        let sums = total.iter().zip(divisor).zip(share);
        let bounds = low.iter().zip(high);
        for (((out, &base), ((&total, &divisor), &share)), (&low, &high)) in
            out.iter_mut().zip(base).zip(sums).zip(bounds)
        {
            let divisor = nonzero(divisor);
            let difference = lambda * (total / divisor);
            // Adding a zero could turn the sign of another.
            let merged = if difference == R::ZERO { base } else { base + difference };
            let mean = is_mean(lambda, share, divisor);
            // At equality too, as a minus zero equals a plus zero.
            let raised = if mean & (merged <= low) { low } else { merged };
            *out = if mean & (raised >= high) { high } else { raised };
        }
    }
}

/// Whether weights make up one; what they miss it by then is rounding.
#[inline(always)]
fn is_mean<R: Real>(lambda: R, share: R, divisor: R) -> bool {
    (R::ONE - lambda * (share / divisor)).abs() <= R::NOISE
}

/// Where nothing is added, nothing is divided.
#[inline(always)]
fn nonzero<R: Real>(divisor: R) -> R {
    if divisor == R::ZERO { R::ONE } else { divisor }
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
                keep_common(&strip.common, added);
            }
            mask.scale(start, votes);
            match unweighted {
                true => cast_unweighted(term.scaled, added, votes, &mut strip.ballot),
                false => cast(term.scaled, added, votes, &mut strip.ballot),
            }
        }
    }

    /// Whether there is nothing to choose: every element of every task vector is added.
    fn adds_everything(&self) -> bool {
        self.sum.consensus == Consensus::None
            && self.common.is_none()
            && self.agreement.is_none()
            && self.terms.iter().all(|term| matches!(term.mask, Mask::All))
    }

    fn add_everything(&self, block: &Block<'_, R>, out: &mut [R]) {
        let base = block.sources[self.base];
        let lambda = R::from_f64(self.sum.lambda);
        let divisor = self.divisor().unwrap_or(R::ONE);
        let share = self
            .terms
            .iter()
            .fold(R::ZERO, |sum, term| sum + term.scaled);
        let mean = is_mean(lambda, share, divisor) && self.means();
        let mut total = [R::ZERO; STRIP];
        let mut hull = Vec::with_capacity(self.terms.len());
        for (index, out) in out.chunks_mut(STRIP).enumerate() {
            let strip = index * STRIP..index * STRIP + out.len();
            total.fill(R::ZERO);
            let base = &base[strip.clone()];
            for term in &self.terms {
                let source = block.sources[term.source];
                add_scaled(&source[strip.clone()], base, term.scaled, &mut total);
            }
            add_difference(lambda, base, &total, &[divisor; STRIP], out);
            if mean {
                hull.clear();
                let sources = self.terms.iter().map(|term| block.sources[term.source]);
                hull.extend(sources.map(|source| &source[strip.clone()]));
                clamp_to_hull(&hull, out);
            }
        }
    }

    /// What the sum is divided by, if it is not the weights that were added.
    fn divisor(&self) -> Option<R> {
        match (self.sum.normalize, self.sum.consensus) {
            (false, _) => Some(R::ONE),
            (true, Consensus::None) => Some(R::from_f64(self.sum.total)),
            (true, Consensus::WeightedSign | Consensus::Sign) => None,
        }
    }

    /// Whether results are means of the sources where the weights make up one.
    fn means(&self) -> bool {
        // Elements that are scaled each by its own factor do not add up to a mean.
        !self.terms.iter().any(|term| term.mask.scales_each())
            && self.terms.iter().all(|term| term.scaled >= R::ZERO)
    }

    /// Sums the added terms.
    fn add(&self, block: &Block<'_, R>, start: usize, length: usize, strip: &mut Strip<R>) {
        let (means, divided) = (self.means(), self.divisor().is_none());
        let elected = self.sum.consensus != Consensus::None;
        match elected {
            true => strip.total.fill(R::ZERO),
            // All votes count.
            false => strip.total = strip.ballot,
        }
        if divided {
            strip.divisor.fill(R::ZERO);
        }
        // Then both sums of weights are one.
        let alike = divided && self.terms.iter().all(|term| term.scaled == term.weight);
        let [from, to] = &mut strip.bounds;
        let (mut from, mut to) = (from, to);
        if means {
            if !alike {
                strip.share.fill(R::ZERO);
            }
            from.low.fill(R::from_f64(f64::INFINITY));
            from.high.fill(R::from_f64(f64::NEG_INFINITY));
        }
        for ((term, votes), added) in self.terms.iter().zip(&strip.votes).zip(&strip.added) {
            let (votes, added) = (&votes[..length], &added[..length]);
            if elected {
                sum_added(votes, added, &mut strip.total);
            }
            if divided {
                sum_weights(added, term.weight, &mut strip.divisor);
            }
            if means {
                let source = &block.sources[term.source][start..][..length];
                if !alike {
                    sum_weights(added, term.scaled, &mut strip.share);
                }
                widen_down(source, added, &from.low, &mut to.low);
                widen_up(source, added, &from.high, &mut to.high);
                std::mem::swap(&mut from, &mut to);
            }
        }
        if alike {
            strip.share = strip.divisor;
        }
        if let Some(agreement) = &self.agreement {
            self.agree(agreement, block, start, length, strip);
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
            let Strip { total, divisor, .. } = &*strip;
            count_agreeing(&deltas[..length], factor, total, divisor, &mut agreeing);
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
        let Strip {
            total,
            divisor,
            share,
            bounds,
            ..
        } = strip;
        match self.means() {
            true => {
                // Each term has put them to the other place.
                let Bounds { low, high } = &bounds[self.terms.len() % 2];
                let bounds = [&low[..], &high[..]];
                add_mean(lambda, base, total, divisor, share, bounds, out);
            }
            false => add_difference(lambda, base, total, divisor, out),
        }
    }
}
