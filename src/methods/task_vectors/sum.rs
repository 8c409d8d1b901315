//! The pass that applies: masked task vectors are added to the base.

use super::choice::Magnitudes;
use super::mask::{BlockMask, Mask};
use super::{Consensus, STRIP};
use crate::engine::{Apply, Block};
use crate::methods::TensorParams;
use crate::methods::band::{Band, one_if};
use crate::methods::order::Keys;
use crate::numeric::{LANES, Real, WORD, each, load, select, vectorised};

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
    /// Its task vector in the strip, divided by the chance of each element where the mask says so.
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
        differences(&self.source[start..][..length], base, deltas);
        self.mask.fill(start, deltas, keep);
        if let Some(common) = common {
            keep_common(common, keep);
        }
        self.mask.scale(start, deltas);
    }

    /// What is added of some elements, and one where it is added, else zero.
    #[inline(always)]
    fn elected<const RULE: u8, const N: usize>(&self, at: usize, sign: &[R; N]) -> [[R; N]; 2] {
        let keep = load(&self.keep, at);
        if RULE & ELECTS == 0 {
            return [keep, keep];
        }
        let (delta, scaled): ([R; N], R) = (load(&self.deltas, at), self.scaled);
        let voted = each(|i| delta[i] * scaled);
        let voted = select(&keep, voted, [R::ZERO; N]);
        // A vote of zero agrees with no sign.
        let agrees = each(|i| one_if(voted[i] * sign[i] > R::ZERO));
        [voted, agrees]
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
    /// Sets `out` to the base and what is added of the votes, whose strip begins at `start` of their block.
    fn add_votes<R: Real, const RULE: u8>(
        base: &[R], votes: &[Vote<'_, R>], start: usize, rule: Rule<R>, out: &mut [R],
    ) {
        let (chunks, rest) = out.as_chunks_mut::<LANES>();
        let whole = chunks.len() * LANES;
        for (index, out) in chunks.iter_mut().enumerate() {
            *out = add_lanes::<R, RULE, LANES>(base, votes, start, index * LANES, rule);
        }
        for (index, out) in rest.iter_mut().enumerate() {
            [*out] = add_lanes::<R, RULE, 1>(base, votes, start, whole + index, rule);
        }
    }
}

/// The result for the elements from number `at` of the strip on.
#[inline(always)]
fn add_lanes<R: Real, const RULE: u8, const N: usize>(
    base: &[R],
    votes: &[Vote<'_, R>],
    start: usize,
    at: usize,
    rule: Rule<R>,
) -> [R; N] {
    let mut ballot = [R::ZERO; N];
    for vote in votes {
        let (delta, keep): ([R; N], [R; N]) = (load(&vote.deltas, at), load(&vote.keep, at));
        let weight = vote.ballot;
        let cast = each(|i| delta[i] * weight);
        let cast = select(&keep, cast, [R::ZERO; N]);
        ballot = each(|i| ballot[i] + cast[i]);
    }
    // A tie is a plus.
    let sign = each(|i| {
        if ballot[i] >= R::ZERO {
            R::ONE
        } else {
            R::ZERO - R::ONE
        }
    });
    let mut total = if RULE & ELECTS != 0 {
        [R::ZERO; N]
    } else {
        ballot
    };
    let mut divisor = [rule.divisor; N];
    if RULE & (ELECTS | DIVIDES) != 0 {
        for vote in votes {
            let [voted, added] = vote.elected::<RULE, N>(at, &sign);
            let weight = vote.weight;
            if RULE & ELECTS != 0 {
                let counted = select(&added, voted, [R::ZERO; N]);
                total = each(|i| total[i] + counted[i]);
            }
            if RULE & DIVIDES != 0 {
                let part = select(&added, [weight; N], [R::ZERO; N]);
                divisor = each(|i| divisor[i] + part[i]);
            }
        }
    }
    let mut share = [R::ZERO; N];
    let mut low = [R::from_f64(f64::INFINITY); N];
    let mut high = [R::from_f64(f64::NEG_INFINITY); N];
    if RULE & MEANS != 0 {
        for vote in votes {
            let [_, added] = vote.elected::<RULE, N>(at, &sign);
            let (source, scaled): ([R; N], R) = (load(vote.source, start + at), vote.scaled);
            let part = select(&added, [scaled; N], [R::ZERO; N]);
            share = each(|i| share[i] + part[i]);
            low = each(|i| {
                if (added[i] > R::ZERO) & (source[i] < low[i]) {
                    source[i]
                } else {
                    low[i]
                }
            });
            high = each(|i| {
                if (added[i] > R::ZERO) & (source[i] > high[i]) {
                    source[i]
                } else {
                    high[i]
                }
            });
        }
    }
    // Where nothing is added, nothing is divided.
    let divisor: [R; N] = each(|i| {
        if divisor[i] == R::ZERO {
            R::ONE
        } else {
            divisor[i]
        }
    });
    let base: [R; N] = load(base, at);
    each(|i| {
        let mean = if RULE & DIVIDES != 0 {
            total[i] / divisor[i]
        } else {
            total[i]
        };
        let difference = rule.lambda * mean;
        // Adding a zero could turn the sign of another.
        let merged = if difference == R::ZERO {
            base[i]
        } else {
            base[i] + difference
        };
        if RULE & MEANS == 0 {
            return merged;
        }
        // What weights that make up one miss it by is rounding.
        let one = (divisor[i] - rule.lambda * share[i]).abs() <= R::NOISE * divisor[i];
        // At equality too, as a minus zero equals a plus zero.
        let raised = if one & (merged <= low[i]) {
            low[i]
        } else {
            merged
        };
        if one & (raised >= high[i]) {
            high[i]
        } else {
            raised
        }
    })
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
        kernel(base, votes, start, rule, out);
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
        }
    }
}
