//! The pass that applies: masked task vectors are added to the base.

use super::choice::Magnitudes;
use super::mask::{BlockMask, Mask, strike};
use super::{Consensus, STRIP};
use crate::engine::{Apply, Block};
use crate::methods::TensorParams;
use crate::methods::band::{Band, one_if};
use crate::methods::order::Keys;
use crate::numeric::{Real, WORD, vectorised};

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

vectorised! {
    /// Sets `deltas` to the task vector of a source.
    pub(in crate::methods) fn differences<R: Real>(source: &[R], base: &[R], deltas: &mut [R]) {
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

/// A term in a block, and what is held of it strip by strip.
struct Vote<'b, R> {
    mask: BlockMask<'b>,
    /// The fine-tune's elements in the block.
    source: &'b [R],
    /// Its task vector in the strip where it is kept, divided by the chance of each element where the mask says so;
    /// else zero.
    deltas: [R; STRIP],
    /// One where the element is kept, else zero.
    keep: [R; STRIP],
    /// What the task vector is multiplied by where the sign is elected.
    ballot: R,
    /// What it is multiplied by where it is added.
    scaled: R,
    /// What it adds to the divisor.
    weight: R,
}

/// What is the same for all elements.
#[derive(Debug, Clone, Copy)]
struct Rule<R> {
    lambda: R,
    /// What the weights of the added terms are added to.
    divisor: R,
}

/// Only votes of the elected sign are added.
const ELECTS: u8 = 1;
/// The sum is divided by the divisor, to which each added term adds its weight.
const DIVIDES: u8 = 2;
/// Where the weights make up one, the result is a mean, and is put between its sources.
const MEANS: u8 = 4;

impl<R: Real, K: Keys<R>> Apply<R> for AddUp<R, K> {
    fn block(&self, block: Block<'_, R>, out: &mut [R]) {
        let mut votes = self.votes(&block);
        let mut common = self
            .common
            .as_ref()
            .map(|(band, keys)| (band.in_block(block.index), keys));
        let (mut keys, mut kept) = ([0; STRIP], [R::ZERO; STRIP]);
        let mut room = Vec::new();
        for (index, out) in out.chunks_mut(STRIP).enumerate() {
            let start = index * STRIP;
            let strip = start..start + out.len();
            block.ahead(strip.clone());
            let common = common.as_mut().map(|(band, stream)| {
                let (keys, kept) = (&mut keys[..out.len()], &mut kept[..out.len()]);
                stream.fill(&block.part(strip.clone(), &mut room), 0, keys);
                band.fill(keys, kept);
                &*kept
            });
            let base = &block.sources[self.base][strip];
            for vote in &mut votes {
                vote.prepare(base, start, common);
            }
            if let Some(agreement) = &self.agreement {
                self.agree(agreement, base, start, &mut votes);
            }
            let rule = self.rule(R::from_f64(self.sum.lambda));
            self.add(base, start, &votes, rule, self.means(), out);
        }
    }
}

impl<R: Real> Vote<'_, R> {
    /// Sets the task vector and the mask of the strip that begins at `start`.
    fn prepare(&mut self, base: &[R], start: usize, common: Option<&[R]>) {
        let length = base.len();
        let (deltas, keep) = (&mut self.deltas[..length], &mut self.keep[..length]);
        let source = &self.source[start..][..length];
        self.mask.apply(start, source, base, deltas, keep);
        if let Some(common) = common {
            keep_common(common, keep);
            strike(deltas, keep);
        }
        self.mask.scale(start, deltas);
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

/// A vote in a strip: all slices are of its length.
#[derive(Clone, Copy)]
struct Cast<'v, R> {
    source: &'v [R],
    deltas: &'v [R],
    keep: &'v [R],
    ballot: R,
    scaled: R,
    weight: R,
}

impl<'v, R: Real> Cast<'v, R> {
    /// So many elements of a vote, of its block from `start` on.
    fn of(vote: &'v Vote<'_, R>, start: usize, length: usize) -> Self {
        Self {
            source: &vote.source[start..start + length],
            deltas: &vote.deltas[..length],
            keep: &vote.keep[..length],
            ballot: vote.ballot,
            scaled: vote.scaled,
            weight: vote.weight,
        }
    }

    /// The same slices again, of a length that the compiler sees.
    #[inline(always)]
    fn cut(self, length: usize) -> Self {
        Self {
            source: &self.source[..length],
            deltas: &self.deltas[..length],
            keep: &self.keep[..length],
            ..self
        }
    }

    /// What a vote adds to an element's tally, where it has been elected: with the sign of the ballot, if one is.
    #[inline(always)]
    fn add<const RULE: u8>(&self, at: usize, ballot: R, mut tally: Tally<R>) -> Tally<R> {
        let added = if RULE & ELECTS != 0 {
            let voted = self.deltas[at] * self.scaled;
            // A tie is a plus; a vote of zero agrees with no sign.
            let opposite = R::ZERO - voted;
            let agrees = if ballot >= R::ZERO { voted } else { opposite } > R::ZERO;
            tally.total += if agrees { voted } else { R::ZERO };
            agrees
        } else {
            self.keep[at] > R::ZERO
        };
        if RULE & DIVIDES != 0 {
            let weight = if added { self.weight } else { R::ZERO };
            tally.divisor += weight;
        }
        if RULE & MEANS != 0 {
            let source = self.source[at];
            tally.share += if added { self.scaled } else { R::ZERO };
            let (lower, higher) = (source < tally.low, source > tally.high);
            tally.low = if added & lower { source } else { tally.low };
            tally.high = if added & higher { source } else { tally.high };
        }
        tally
    }
}

/// What the votes of an element make up.
#[derive(Debug, Clone, Copy)]
struct Tally<R> {
    total: R,
    divisor: R,
    /// The weights of those that are added.
    share: R,
    /// The least and the largest of their sources.
    low: R,
    high: R,
}

impl<R: Real> Tally<R> {
    #[inline(always)]
    fn new(divisor: R, total: R) -> Self {
        Self {
            total,
            divisor,
            share: R::ZERO,
            low: R::from_f64(f64::INFINITY),
            high: R::from_f64(f64::NEG_INFINITY),
        }
    }

    /// The merged element.
    #[inline(always)]
    fn merge<const RULE: u8>(self, base: R, lambda: R) -> R {
        // Where nothing is added, nothing is divided.
        let divisor = if self.divisor == R::ZERO {
            R::ONE
        } else {
            self.divisor
        };
        let mean = if RULE & DIVIDES != 0 {
            self.total / divisor
        } else {
            self.total
        };
        let difference = lambda * mean;
        // Adding a zero could turn the sign of another.
        let merged = if difference == R::ZERO {
            base
        } else {
            base + difference
        };
        if RULE & MEANS == 0 {
            return merged;
        }
        // What weights that make up one miss it by is rounding.
        let one = (divisor - lambda * self.share).abs() <= R::NOISE * divisor;
        // At equality too, as a minus zero equals a plus zero.
        let raised = if one & (merged <= self.low) {
            self.low
        } else {
            merged
        };
        if one & (raised >= self.high) {
            self.high
        } else {
            raised
        }
    }
}

vectorised! {
    /// Sets `out` to the base and what is added of so many votes, which the compiler knows: then an element is made
    /// in registers.
    fn add_some<R: Real, const RULE: u8, const VOTES: usize>(
        base: &[R], votes: [Cast<'_, R>; VOTES], rule: Rule<R>, out: &mut [R],
    ) {
        let length = out.len();
        let (base, votes) = (&base[..length], votes.map(|vote| vote.cut(length)));
        for at in 0..length {
            let mut ballot = R::ZERO;
            for vote in &votes {
                ballot += vote.deltas[at] * vote.ballot;
            }
            let mut tally = Tally::new(rule.divisor, if RULE & ELECTS != 0 { R::ZERO } else { ballot });
            for vote in &votes {
                tally = vote.add::<RULE>(at, ballot, tally);
            }
            out[at] = tally.merge::<RULE>(base[at], rule.lambda);
        }
    }
}

vectorised! {
    /// The same for any number of votes, one after the other over the whole strip.
    fn add_many<R: Real, const RULE: u8>(base: &[R], votes: &[Cast<'_, R>], rule: Rule<R>, out: &mut [R]) {
        let length = out.len().min(STRIP);
        let (base, out) = (&base[..length], &mut out[..length]);
        let mut ballots = [R::ZERO; STRIP];
        for vote in votes {
            let vote = vote.cut(length);
            for (ballot, &delta) in ballots[..length].iter_mut().zip(vote.deltas) {
                *ballot += delta * vote.ballot;
            }
        }
        let [mut totals, mut shares] = [[R::ZERO; STRIP]; 2];
        let mut divisors = [rule.divisor; STRIP];
        let Tally { low, high, .. } = Tally::new(R::ZERO, R::ZERO);
        let (mut lows, mut highs) = ([low; STRIP], [high; STRIP]);
        if RULE & ELECTS == 0 {
            totals = ballots;
        }
        for vote in votes {
            let vote = vote.cut(length);
            for at in 0..length {
                let tally = Tally {
                    total: totals[at],
                    divisor: divisors[at],
                    share: shares[at],
                    low: lows[at],
                    high: highs[at],
                };
                let tally = vote.add::<RULE>(at, ballots[at], tally);
                totals[at] = tally.total;
                divisors[at] = tally.divisor;
                shares[at] = tally.share;
                lows[at] = tally.low;
                highs[at] = tally.high;
            }
        }
        for at in 0..length {
            let tally = Tally {
                total: totals[at],
                divisor: divisors[at],
                share: shares[at],
                low: lows[at],
                high: highs[at],
            };
            out[at] = tally.merge::<RULE>(base[at], rule.lambda);
        }
    }
}

/// Sets `out` to the base and what is added of the votes.
fn add_votes<R: Real, const RULE: u8>(
    base: &[R],
    votes: &[Cast<'_, R>],
    rule: Rule<R>,
    out: &mut [R],
) {
    match *votes {
        [a] => add_some::<R, RULE, 1>(base, [a], rule, out),
        [a, b] => add_some::<R, RULE, 2>(base, [a, b], rule, out),
        [a, b, c] => add_some::<R, RULE, 3>(base, [a, b, c], rule, out),
        [a, b, c, d] => add_some::<R, RULE, 4>(base, [a, b, c, d], rule, out),
        _ => add_many::<R, RULE>(base, votes, rule, out),
    }
}

vectorised! {
    /// Counts a task vector where it agrees with the mean of the sum.
    fn count_agreeing<R: Real>(deltas: &[R], factor: R, mean: &[R], agreeing: &mut [R]) {
        for ((&delta, &mean), agreeing) in deltas.iter().zip(mean).zip(agreeing) {
            *agreeing += one_if(delta.abs() > factor * (mean - delta).abs());
        }
    }
}

vectorised! {
    /// One where so many agree, else zero.
    fn keep_agreed<R: Real>(agreeing: &[R], least: R, keep: &mut [R]) {
        for (keep, &agreeing) in keep.iter_mut().zip(agreeing) {
            *keep = one_if(agreeing >= least);
        }
    }
}

impl<R: Real, K> AddUp<R, K> {
    fn votes<'b>(&'b self, block: &Block<'b, R>) -> Vec<Vote<'b, R>> {
        let magnitudes = Magnitudes { base: self.base };
        // A sum of all terms has one divisor for all elements.
        let divides = self.sum.normalize && self.sum.consensus != Consensus::None;
        let words = block.len().div_ceil(WORD);
        let memo = block.memo.and_then(|memo| memo.get());
        let mut known = memo.map(|memo| memo.chunks_exact(words.max(1)));
        let mut known = |mask: &Mask| match mask.is_remembered() {
            true => known.as_mut()?.next(),
            false => None,
        };
        let vote = |term: &'b MaskedTerm<R>| Vote {
            mask: term
                .mask
                .in_block(block, magnitudes, term.source, known(&term.mask)),
            source: block.sources[term.source],
            deltas: [R::ZERO; STRIP],
            keep: [R::ONE; STRIP],
            ballot: match self.sum.consensus {
                Consensus::Sign => R::ONE,
                Consensus::None | Consensus::WeightedSign => term.scaled,
            },
            scaled: term.scaled,
            weight: if divides { term.weight } else { R::ZERO },
        };
        self.terms.iter().map(vote).collect()
    }

    /// Whether results are means of the sources where the weights make up one.
    fn means(&self) -> bool {
        // Elements that are scaled each by its own factor do not add up to a mean.
        !self.terms.iter().any(|term| term.mask.scales_each())
            && self.terms.iter().all(|term| term.scaled >= R::ZERO)
            && (self.sum.consensus != Consensus::None || self.may_make_up_one())
    }

    /// Whether the weights of some of the terms may make up what their sum is divided by: where not, as mostly with
    /// masks that are rescaled, nobody need look at each element.
    fn may_make_up_one(&self) -> bool {
        // More are not tried one by one.
        const FEW: usize = 10;
        if self.terms.len() > FEW {
            return true;
        }
        let divisor = self.rule(R::ONE).divisor.to_f64();
        let scaled: Vec<f64> = self.terms.iter().map(|term| term.scaled.to_f64()).collect();
        (1u32..1 << scaled.len()).any(|chosen| {
            let chosen = scaled
                .iter()
                .enumerate()
                .filter(|(at, _)| chosen >> at & 1 == 1);
            let share = self.sum.lambda * chosen.map(|(_, scaled)| scaled).sum::<f64>();
            // Looser than the look at an element, whose sums are rounded.
            (divisor - share).abs() <= 1e-4 * (divisor.abs() + share.abs())
        })
    }

    fn rule(&self, lambda: R) -> Rule<R> {
        Rule {
            lambda,
            divisor: match (self.sum.normalize, self.sum.consensus) {
                (false, _) => R::ONE,
                (true, Consensus::None) => R::from_f64(self.sum.total),
                (true, Consensus::WeightedSign | Consensus::Sign) => R::ZERO,
            },
        }
    }

    /// Sets `out` to the base and what is added of the votes.
    fn add(
        &self,
        base: &[R],
        start: usize,
        votes: &[Vote<'_, R>],
        rule: Rule<R>,
        means: bool,
        out: &mut [R],
    ) {
        let elects = self.sum.consensus != Consensus::None;
        let kernel = match (elects, self.sum.normalize, means) {
            (false, false, false) => add_votes::<R, 0>,
            (false, false, true) => add_votes::<R, MEANS>,
            (false, true, false) => add_votes::<R, DIVIDES>,
            (false, true, true) => add_votes::<R, { DIVIDES | MEANS }>,
            (true, false, false) => add_votes::<R, ELECTS>,
            (true, false, true) => add_votes::<R, { ELECTS | MEANS }>,
            (true, true, false) => add_votes::<R, { ELECTS | DIVIDES }>,
            (true, true, true) => add_votes::<R, { ELECTS | DIVIDES | MEANS }>,
        };
        let casts: Vec<Cast<'_, R>> = votes
            .iter()
            .map(|vote| Cast::of(vote, start, out.len()))
            .collect();
        kernel(base, &casts, rule, out);
    }

    /// Masks what too few task vectors agree with.
    fn agree(&self, agreement: &Agreement, base: &[R], start: usize, votes: &mut [Vote<'_, R>]) {
        let length = base.len();
        let mut mean = [R::ZERO; STRIP];
        let mean = &mut mean[..length];
        let zeros = [R::ZERO; STRIP];
        self.add(
            &zeros[..length],
            start,
            votes,
            self.rule(R::ONE),
            false,
            mean,
        );
        let mut agreeing = [R::ZERO; STRIP];
        let mut deltas = [R::ZERO; STRIP];
        for (vote, &factor) in votes.iter().zip(&agreement.factors) {
            differences(&vote.source[start..][..length], base, &mut deltas[..length]);
            let factor = R::from_f64(factor);
            count_agreeing(&deltas[..length], factor, mean, &mut agreeing);
        }
        let mut agreed = [R::ZERO; STRIP];
        keep_agreed(&agreeing, R::from_f64(agreement.least), &mut agreed);
        for vote in votes {
            keep_common(&agreed, &mut vote.keep);
            strike(&mut vote.deltas, &vote.keep);
        }
    }
}
