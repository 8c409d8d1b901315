//! The pass that adds masked task vectors to the base.

use super::choice::Magnitudes;
use super::mask::{BlockMask, Choose, Mask, Masked};
use super::scheme::{Consensus, STRIP};
use crate::TensorParams;
use crate::interval::{Bounds, KeyInterval, one_if};
use crate::order::Keys;
use engine::{Apply, Block};
use errors::Refusal;
use numeric::{NoMemory, Real, WORD, vectorised};

/// A fine-tune whose mask is known.
#[derive(Debug, Clone)]
pub(crate) struct MaskedTerm<R> {
    pub(crate) source: usize,
    pub(crate) weight: R,
    /// The weight times the factor that rescales the masked task vector.
    pub(crate) scaled: R,
    pub(crate) mask: Mask,
}

/// How masked task vectors are added up.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Sum {
    pub(crate) consensus: Consensus,
    pub(crate) lambda: f64,
    pub(crate) normalize: bool,
    /// The sum of all weights.
    pub(crate) total: f64,
}

/// Uses the sum `t` only where at least `least` task vectors agree with it (a TALL mask). The whole task vector `d_i`
/// agrees where `|d_i| > factor_i * |t - d_i|`.
#[derive(Debug, Clone)]
pub(crate) struct Agreement {
    least: f64,
    /// One for each term.
    factors: Vec<f64>,
}

impl Agreement {
    /// From the parameters `k` and `lambda` of these sources.
    ///
    /// # Errors
    /// If `k` is not a whole number, differs between sources, or exceeds their number.
    pub(super) fn new(params: &TensorParams, sources: &[usize]) -> Result<Self, Refusal> {
        let number = |source: usize, name| params.source_number(source, name);
        let least = sources.first().map_or(1.0, |&source| number(source, "k"));
        if let Some(other) = sources
            .iter()
            .map(|&source| number(source, "k"))
            .find(|&other| other != least)
        {
            return Err(Refusal::new(format!(
                "`k` is {least} for one model and {other} for another, but all models share one `k`"
            ))
            .with_hint("give `k` once, in the `parameters` of the recipe"));
        }
        if least.fract() != 0.0 || least < 0.0 || least > sources.len() as f64 {
            return Err(Refusal::new(format!(
                "`k` is {least}; expected a whole number from 0 to the number of task vectors, which is {}",
                sources.len()
            ))
            .with_hint(
                "1 drops elements that no task vector agrees with, 2 also those that only one agrees with",
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

/// Adds masked task vectors to the base.
pub(crate) struct AddUp<R, K> {
    pub(crate) base: usize,
    pub(crate) terms: Vec<MaskedTerm<R>>,
    pub(crate) sum: Sum,
    pub(crate) agreement: Option<Agreement>,
    /// A mask for all terms, in place of their own: an interval, and the keys whose first stream it applies to.
    pub(crate) common: Option<(KeyInterval, K)>,
}

/// A term in a block, and its state for the current strip.
struct Vote<'b, R> {
    mask: BlockMask<'b>,
    /// The fine-tune's elements in the block.
    source: &'b [R],
    /// How elements of the strip are chosen.
    choose: Choose,
    /// The numbers by which they are chosen, if there are any.
    numbers: [u32; STRIP],
    /// The task vector in the strip, each element divided by its probability; empty if the mask does not
    /// divide.
    divided: Vec<R>,
    /// The factor of the task vector in the election of a sign.
    ballot: R,
    /// The factor of the task vector in the sum.
    scaled: R,
    /// What the term adds to the divisor.
    weight: R,
}

/// What is the same for all elements.
#[derive(Debug, Clone, Copy)]
struct Rule<R> {
    lambda: R,
    /// The divisor before the weights of the added terms are added to it.
    divisor: R,
}

/// Only votes with the elected sign are added.
const ELECTS: u8 = 1;
/// The sum is divided by the divisor, to which each added term adds its weight.
const DIVIDES: u8 = 2;
/// Where the weights add up to one, the result is a mean and is clamped to its sources.
const MEANS: u8 = 4;
/// Every vote keeps all elements.
const WHOLE: u8 = 8;
/// Each vote has the same factor in the sum and in the divisor, so the weights add up to one wherever anything is
/// added.
const EVEN: u8 = 16;

impl<R: Real, K: Keys<R>> Apply<R> for AddUp<R, K> {
    fn block(&self, block: Block<'_, R>, out: &mut [R]) -> Result<(), NoMemory> {
        let mut votes = self.votes(&block)?;
        let mut common = self
            .common
            .as_ref()
            .map(|(interval, keys)| (interval.in_block(block.index), keys));
        let mut numbers = [0; STRIP];
        let zeros = [R::ZERO; STRIP];
        let mut room = Vec::new();
        let rule = self.rule(R::from_f64(self.sum.lambda));
        let kernel = self.kernel(self.means());
        for (index, out) in out.chunks_mut(STRIP).enumerate() {
            let start = index * STRIP;
            let strip = start..start + out.len();
            block.ahead(strip.clone());
            let base = &block.sources[self.base][strip.clone()];
            let common = common.as_mut().map(|(interval, stream)| {
                let keys = &mut numbers[..out.len()];
                stream.fill(&block.part(strip, &mut room), 0, keys)?;
                Ok::<_, NoMemory>((Choose::given(interval.choose(keys)), &*keys))
            });
            let common = common.transpose()?;
            if common.is_none() {
                for vote in &mut votes {
                    vote.prepare(base, start);
                }
            }
            let strip = Strip {
                base,
                zeros: &zeros[..out.len()],
                start,
                common,
            };
            if let Some(agreement) = &self.agreement {
                let agreeing = self.count_agreeing(agreement, &strip, &votes);
                let least = R::from_f64(agreement.least);
                for vote in &mut votes {
                    vote.keep_agreed(&agreeing, least, &strip);
                }
            }
            kernel(base, &strip, &votes, rule, out);
        }
        Ok(())
    }
}

impl<R: Real> Vote<'_, R> {
    /// Chooses the elements of the strip that begins at `start`.
    fn prepare(&mut self, base: &[R], start: usize) {
        let length = base.len();
        let source = &self.source[start..][..length];
        let numbers = &mut self.numbers[..length];
        self.choose = self.mask.choose(start, source, base, numbers);
        if !self.divided.is_empty() {
            let divided = &mut self.divided[..length];
            Masked::new(source, base, self.choose, numbers).fill(divided);
            self.mask.scale(start, divided);
        }
    }

    /// Keeps an element only if it was kept before and at least `least` task vectors agree with the sum.
    fn keep_agreed(&mut self, agreeing: &[R], least: R, strip: &Strip<'_, R>) {
        let mut numbers = [0; STRIP];
        let masked = self.masked(strip);
        choose_agreed(masked, agreeing, least, &mut numbers[..strip.base.len()]);
        self.numbers = numbers;
        self.choose = Choose::given(Bounds::NON_ZERO);
    }

    /// The masked task vector in the strip.
    fn masked<'v>(&'v self, strip: &Strip<'v, R>) -> Masked<'v, R> {
        let length = strip.base.len();
        let own = (self.choose, &self.numbers[..length]);
        let (choose, numbers) = strip.common.unwrap_or(own);
        if self.divided.is_empty() {
            let source = &self.source[strip.start..][..length];
            Masked::new(source, strip.base, choose, numbers)
        } else {
            Masked::new(&self.divided[..length], strip.zeros, choose, numbers)
        }
    }
}

vectorised! {
    /// One where an element is kept and at least `least` task vectors agree with the sum, otherwise zero.
    fn choose_agreed<R: Real>(masked: Masked<'_, R>, agreeing: &[R], least: R, numbers: &mut [u32]) {
        let (masked, agreeing) = (masked.cut(numbers.len()), &agreeing[..numbers.len()]);
        for (at, number) in numbers.iter_mut().enumerate() {
            *number = u32::from(masked.keeps(at) & (agreeing[at] >= least));
        }
    }
}

/// What all votes share in a strip.
struct Strip<'s, R> {
    /// The base, which task vectors are differences from.
    base: &'s [R],
    /// As many zeros as the base has elements.
    zeros: &'s [R],
    /// Where the strip begins in the block.
    start: usize,
    /// How the common mask, if there is one, chooses elements, and their numbers.
    common: Option<(Choose, &'s [u32])>,
}

/// A vote in a strip.
#[derive(Clone, Copy)]
struct Cast<'v, R> {
    masked: Masked<'v, R>,
    ballot: R,
    scaled: R,
    weight: R,
}

impl<'v, R: Real> Cast<'v, R> {
    fn new(vote: &'v Vote<'_, R>, strip: &Strip<'v, R>) -> Self {
        Self {
            masked: vote.masked(strip),
            ballot: vote.ballot,
            scaled: vote.scaled,
            weight: vote.weight,
        }
    }

    /// The first `length` elements; tells the compiler that all slices have this length.
    #[inline(always)]
    fn cut(self, length: usize) -> Self {
        Self {
            masked: self.masked.cut(length),
            ..self
        }
    }

    #[inline(always)]
    fn keeps<const RULE: u8>(&self, at: usize) -> bool {
        RULE & WHOLE != 0 || self.masked.keeps(at)
    }

    /// The task vector's element, zero if it is dropped.
    #[inline(always)]
    fn delta<const RULE: u8>(&self, at: usize) -> R {
        if RULE & WHOLE != 0 {
            self.masked.whole(at)
        } else {
            self.masked.kept(at)
        }
    }

    /// Adds the vote to an element's tally; if a sign is elected, only if the vote has the sign of `ballot`.
    #[inline(always)]
    fn add<const RULE: u8>(&self, at: usize, ballot: R, mut tally: Tally<R>) -> Tally<R> {
        let added = if RULE & ELECTS != 0 {
            let voted = self.delta::<RULE>(at) * self.scaled;
            // A sum of zero elects plus; a vote of zero agrees with neither sign.
            let sign = R::from_f64(if ballot >= R::ZERO { 1.0 } else { -1.0 });
            let agrees = voted * sign > R::ZERO;
            tally.total += if agrees { voted } else { R::ZERO };
            agrees
        } else {
            self.keeps::<RULE>(at)
        };
        if RULE & DIVIDES != 0 {
            let weight = if added { self.weight } else { R::ZERO };
            tally.divisor += weight;
        }
        if RULE & MEANS != 0 {
            let source = self.masked.source[at];
            if RULE & EVEN == 0 {
                tally.share += if added { self.scaled } else { R::ZERO };
            }
            let low = if added { source } else { R::INFINITY };
            let high = if added { source } else { R::ZERO - R::INFINITY };
            tally.low = if low < tally.low { low } else { tally.low };
            tally.high = if high > tally.high { high } else { tally.high };
        }
        tally
    }
}

/// The votes on an element, added up.
#[derive(Debug, Clone, Copy)]
struct Tally<R> {
    total: R,
    divisor: R,
    /// The sum of the factors of the added votes.
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
            low: R::INFINITY,
            high: R::ZERO - R::INFINITY,
        }
    }

    /// The merged element.
    #[inline(always)]
    fn merge<const RULE: u8>(self, base: R, lambda: R) -> R {
        // If nothing is added, nothing is divided.
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
        // Adding a zero could change the sign of a zero.
        let merged = if difference == R::ZERO {
            base
        } else {
            base + difference
        };
        if RULE & MEANS == 0 {
            return merged;
        }
        let one = if RULE & EVEN != 0 {
            self.divisor != R::ZERO
        } else {
            // Weights that should add up to one may miss it by rounding.
            (divisor - lambda * self.share).abs() <= R::NOISE * divisor
        };
        // Replaces equal values too, since -0 equals +0.
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
    /// Adds the votes to the base. The compiler knows their number, so an element is computed in registers.
    fn add_some<R: Real, const RULE: u8, const VOTES: usize>(
        base: &[R], mut votes: [Cast<'_, R>; VOTES], rule: Rule<R>, out: &mut [R],
    ) {
        let length = out.len();
        let base = &base[..length];
        // A loop, because through `map` the compiler loses track of the length of the slices.
        for vote in &mut votes {
            *vote = vote.cut(length);
        }
        for at in 0..length {
            let mut ballot = R::ZERO;
            for vote in &votes {
                ballot += vote.delta::<RULE>(at) * vote.ballot;
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
    /// The same for any number of votes: each is added over the whole strip in turn.
    fn add_many<R: Real, const RULE: u8>(base: &[R], votes: &[Cast<'_, R>], rule: Rule<R>, out: &mut [R]) {
        let length = out.len().min(STRIP);
        let (base, out) = (&base[..length], &mut out[..length]);
        let mut ballots = [R::ZERO; STRIP];
        for vote in votes {
            let vote = vote.cut(length);
            for (at, ballot) in ballots[..length].iter_mut().enumerate() {
                *ballot += vote.delta::<RULE>(at) * vote.ballot;
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

/// Adds the votes of a strip to a base.
type Kernel<R> = fn(&[R], &Strip<'_, R>, &[Vote<'_, R>], Rule<R>, &mut [R]);

fn add_votes<R: Real, const RULE: u8>(
    base: &[R],
    strip: &Strip<'_, R>,
    votes: &[Vote<'_, R>],
    rule: Rule<R>,
    out: &mut [R],
) {
    let cast = |vote| Cast::new(vote, strip);
    match votes {
        [a] => add_some::<R, RULE, 1>(base, [a].map(cast), rule, out),
        [a, b] => add_some::<R, RULE, 2>(base, [a, b].map(cast), rule, out),
        [a, b, c] => add_some::<R, RULE, 3>(base, [a, b, c].map(cast), rule, out),
        votes => {
            let casts: Vec<Cast<'_, R>> = votes.iter().map(cast).collect();
            add_many::<R, RULE>(base, &casts, rule, out);
        }
    }
}

vectorised! {
    /// Counts the elements in which a whole task vector agrees with the mean.
    fn add_agreeing<R: Real>(masked: Masked<'_, R>, factor: R, mean: &[R], agreeing: &mut [R]) {
        let masked = masked.cut(mean.len());
        for (at, (&mean, agreeing)) in mean.iter().zip(agreeing).enumerate() {
            let delta = masked.whole(at);
            *agreeing += one_if(delta.abs() > factor * (mean - delta).abs());
        }
    }
}

impl<R: Real, K> AddUp<R, K> {
    fn votes<'b>(&'b self, block: &Block<'b, R>) -> Result<Vec<Vote<'b, R>>, NoMemory> {
        let magnitudes = Magnitudes { base: self.base };
        // Without an election, one divisor serves all elements, so votes add nothing to it.
        let divides = self.sum.normalize && self.sum.consensus != Consensus::None;
        let words = block.len().div_ceil(WORD);
        let carried = block.carried.and_then(|carried| carried.get());
        let mut known = carried.map(|carried| carried.chunks_exact(words.max(1)));
        let mut known = |mask: &Mask| match mask.is_remembered() {
            true => known.as_mut()?.next(),
            false => None,
        };
        let vote = |term: &'b MaskedTerm<R>| {
            Ok(Vote {
                mask: term
                    .mask
                    .in_block(block, magnitudes, term.source, known(&term.mask))?,
                source: block.sources[term.source],
                choose: Choose::ALL,
                numbers: [0; STRIP],
                divided: match term.mask.scales_each() {
                    true => vec![R::ZERO; STRIP],
                    false => Vec::new(),
                },
                ballot: match self.sum.consensus {
                    Consensus::Sign => R::ONE,
                    Consensus::None | Consensus::WeightedSign => term.scaled,
                },
                scaled: term.scaled,
                weight: if divides { term.weight } else { R::ZERO },
            })
        };
        self.terms.iter().map(vote).collect()
    }

    /// Whether results are means of the sources where the weights add up to one.
    fn means(&self) -> bool {
        // If each element has its own factor, the factors do not add up to a mean.
        !self.terms.iter().any(|term| term.mask.scales_each())
            && self.terms.iter().all(|term| term.scaled >= R::ZERO)
            && (self.sum.consensus != Consensus::None || self.may_make_up_one())
    }

    /// Whether the weights add up to one wherever anything is added, because the sum is divided by the same
    /// weights.
    fn is_even(&self) -> bool {
        let same = |term: &MaskedTerm<R>| term.scaled == term.weight;
        self.sum.lambda == 1.0 && self.terms.iter().all(same)
    }

    /// Whether the weights of some of the terms can add up to the divisor. If not, which is usual for rescaled
    /// masks, no element needs the check.
    fn may_make_up_one(&self) -> bool {
        // With more terms than this, the subsets are too many to try.
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
            // Looser than the check of an element, whose sums are rounded.
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

    /// The kernel for these terms; `means` tells whether it clamps means.
    fn kernel(&self, means: bool) -> Kernel<R> {
        let elects = self.sum.consensus != Consensus::None;
        let whole = self.terms.iter().all(|term| term.mask.keeps_all())
            && self.common.is_none()
            && self.agreement.is_none();
        match (elects, self.sum.normalize, means) {
            (false, false, false) if whole => add_votes::<R, WHOLE>,
            (false, false, true) if whole => add_votes::<R, { MEANS | WHOLE }>,
            (false, false, false) => add_votes::<R, 0>,
            (false, false, true) => add_votes::<R, MEANS>,
            (false, true, false) => add_votes::<R, DIVIDES>,
            (false, true, true) => add_votes::<R, { DIVIDES | MEANS }>,
            (true, false, false) => add_votes::<R, ELECTS>,
            (true, false, true) => add_votes::<R, { ELECTS | MEANS }>,
            (true, true, false) => add_votes::<R, { ELECTS | DIVIDES }>,
            (true, true, true) if self.is_even() => {
                add_votes::<R, { ELECTS | DIVIDES | MEANS | EVEN }>
            }
            (true, true, true) => add_votes::<R, { ELECTS | DIVIDES | MEANS }>,
        }
    }

    /// For each element of the strip, how many task vectors agree with the sum.
    fn count_agreeing(
        &self,
        agreement: &Agreement,
        strip: &Strip<'_, R>,
        votes: &[Vote<'_, R>],
    ) -> [R; STRIP] {
        let mut mean = [R::ZERO; STRIP];
        let mean = &mut mean[..strip.base.len()];
        self.kernel(false)(strip.zeros, strip, votes, self.rule(R::ONE), mean);
        let mut agreeing = [R::ZERO; STRIP];
        for (vote, &factor) in votes.iter().zip(&agreement.factors) {
            add_agreeing(vote.masked(strip), R::from_f64(factor), mean, &mut agreeing);
        }
        agreeing
    }
}
