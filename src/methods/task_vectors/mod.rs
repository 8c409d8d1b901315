//! The program of every method that adds task vectors to a base: mask, rescale, elect a sign, add.
//!
//! mergekit calls this generalised task arithmetic. For each fine-tune `i`, `d_i = x_i - base` is masked and
//! rescaled; `u_i = w_i * d_i`; where a sign is elected, only the `u_i` of that sign stay; their sum, divided
//! by the weights if normalised, times lambda, is added to the base.
//!
//! Where the weights that are added make up one, the result is a mean of the models, and is held between the
//! least and the largest of them: so copies of a model give that model to the bit, however small an element
//! is beside the base's.

use std::sync::Arc;

use super::{Action, ParamInfo, ParamKind, ParamScope, ParamValue, Tensor, TensorParams};
use crate::engine::{AnyProgram, Apply, Block, Cost, Measure, Measured, Pass, Program};
use crate::numeric::{
    BLOCK, HIGH_BINS, LOW_BINS, MaskKey, Rank, Real, abs_sum, high_bin, keep_threshold, low_bin,
    rank_from_top,
};

/// Elements handled at a time, so that the partial results stay in the first cache.
const STRIP: usize = 1024;
/// L1 norms below this are not rescaled to or from; mergekit's value.
const LEAST_NORM: f64 = 1e-7;

pub(super) const WEIGHT: ParamInfo = ParamInfo {
    name: "weight",
    kind: ParamKind::Number,
    scope: ParamScope::EachButBase,
    default: None,
    required: true,
    doc: "What the model's task vector is multiplied by.",
};

pub(super) const DENSITY: ParamInfo = ParamInfo {
    name: "density",
    kind: ParamKind::Range { min: 0.0, max: 1.0 },
    scope: ParamScope::EachButBase,
    default: Some(ParamValue::Number(1.0)),
    required: false,
    doc: "The share of the task vector's elements that is kept.",
};

pub(super) const UNUSED_DENSITY: ParamInfo = ParamInfo {
    doc: "No effect here; accepted because mergekit accepts it.",
    ..DENSITY
};

pub(super) const LAMBDA: ParamInfo = ParamInfo {
    name: "lambda",
    kind: ParamKind::Number,
    scope: ParamScope::Tensor,
    default: Some(ParamValue::Number(1.0)),
    required: false,
    doc: "What the sum of task vectors is multiplied by before it is added to the base.",
};

pub(super) const INT8_MASK: ParamInfo = ParamInfo {
    name: "int8_mask",
    kind: ParamKind::Bool,
    scope: ParamScope::Tensor,
    default: Some(ParamValue::Bool(false)),
    required: false,
    doc: "No effect; accepted because mergekit accepts it (there it saves memory).",
};

pub(super) const UNUSED_RESCALE: ParamInfo = ParamInfo {
    doc: "No effect here; accepted because mergekit accepts it.",
    ..rescale_by_word("false", true)
};

pub(super) const fn normalize(default: bool) -> ParamInfo {
    ParamInfo {
        name: "normalize",
        kind: ParamKind::Bool,
        scope: ParamScope::Tensor,
        default: Some(ParamValue::Bool(default)),
        required: false,
        doc: "Divide by the sum of the weights (with an elected sign: of those that agree).",
    }
}

/// `rescale` of the methods whose masks are random, or of those whose masks are not.
pub(super) const fn rescale(default: &'static str) -> ParamInfo {
    // Only a random mask has an expectation to restore; those rescale by default.
    rescale_by_word(default, matches!(default.as_bytes(), b"l1"))
}

const fn rescale_by_word(default: &'static str, expectation: bool) -> ParamInfo {
    ParamInfo {
        name: "rescale",
        kind: ParamKind::Word {
            words: if expectation {
                &["l1", "expectation", "false"]
            } else {
                &["l1", "false"]
            },
            booleans: Some(("l1", "false")),
        },
        scope: ParamScope::Tensor,
        default: Some(ParamValue::Word(default)),
        required: false,
        doc: if expectation {
            "How masked task vectors are scaled: `l1` (or true) to their L1 norm before, `expectation` by 1/density, \
             `false` not at all."
        } else {
            "How masked task vectors are scaled: `l1` (or true) to their L1 norm before, `false` not at all."
        },
    }
}

/// What a method makes of task vectors.
#[derive(Debug, Clone, Copy)]
pub(super) struct Scheme {
    pub(super) sparsifier: Sparsifier,
    pub(super) consensus: Consensus,
}

/// Which elements of a task vector are kept.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Sparsifier {
    /// All.
    None,
    /// The largest of the tensor.
    Magnitude,
    /// Each by chance.
    Random,
}

/// Which of the weighted task vectors are added.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Consensus {
    /// All.
    None,
    /// Those that have the sign of the sum.
    WeightedSign,
}

/// What becomes of one tensor under such a scheme.
pub(super) fn action(
    scheme: Scheme,
    params: &TensorParams,
    tensor: &Tensor<'_>,
) -> Result<Action, String> {
    let base = tensor.base.ok_or("the method needs a base model")?;
    let others: Vec<usize> = (0..tensor.sources)
        .filter(|&source| source != base)
        .collect();
    if others.is_empty() {
        return Ok(Action::Copy(base));
    }
    let terms: Vec<Term> = others
        .iter()
        .enumerate()
        .map(|(slot, &source)| {
            let density = params.source_number(source, "density").unwrap_or(1.0);
            Term {
                source,
                weight: params.source_number(source, "weight").unwrap_or(0.0),
                choice: Choice::new(scheme.sparsifier, density, tensor, slot),
            }
        })
        .collect();
    let lambda = params.number("lambda").unwrap_or(1.0);
    let normalize = params.flag("normalize");
    let total: f64 = terms.iter().map(|term| term.weight).sum();
    let size: f64 = terms.iter().map(|term| term.weight.abs()).sum();
    if normalize && scheme.consensus == Consensus::None && total.abs() <= 1e-9 * size {
        return Err(
            "the weights sum to zero, and `normalize` divides by their sum; \
                    hint: choose weights with another sum, or set `normalize: false`"
                .into(),
        );
    }
    let rescale = match params.word("rescale") {
        "l1" => Rescale::L1,
        "expectation" => Rescale::Expectation,
        _ => Rescale::Off,
    };
    Ok(Action::Compute(Box::new(TaskVectors {
        base,
        terms,
        rescale,
        sum: Sum {
            consensus: scheme.consensus,
            lambda,
            normalize,
            total,
        },
        blocks: tensor.elements().div_ceil(BLOCK as u64) as usize,
    })))
}

/// One fine-tune.
#[derive(Debug, Clone)]
struct Term {
    source: usize,
    weight: f64,
    choice: Choice,
}

/// Which elements of a task vector shall be kept.
#[derive(Debug, Clone, Copy)]
enum Choice {
    All,
    Nothing,
    Largest { count: u64 },
    Random { key: MaskKey, density: f64 },
}

impl Choice {
    fn new(sparsifier: Sparsifier, density: f64, tensor: &Tensor<'_>, slot: usize) -> Self {
        match sparsifier {
            _ if density >= 1.0 || sparsifier == Sparsifier::None => Self::All,
            _ if density <= 0.0 => Self::Nothing,
            Sparsifier::Random => Self::Random {
                key: MaskKey::new(tensor.seed, tensor.name, slot),
                density,
            },
            _ => Self::Largest {
                count: ((density * tensor.elements() as f64) as u64).max(1),
            },
        }
    }
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Rescale {
    Off,
    L1,
    Expectation,
}

/// How masked task vectors are added up.
#[derive(Debug, Clone, Copy)]
struct Sum {
    consensus: Consensus,
    lambda: f64,
    normalize: bool,
    /// The sum of all weights.
    total: f64,
}

/// The program: find the thresholds, measure the norms, apply.
struct TaskVectors {
    base: usize,
    terms: Vec<Term>,
    rescale: Rescale,
    sum: Sum,
    blocks: usize,
}

impl AnyProgram for TaskVectors {
    fn cost(&self) -> Cost {
        let largest = self
            .terms
            .iter()
            .filter(|term| matches!(term.choice, Choice::Largest { .. }))
            .count();
        let norms = usize::from(self.rescale == Rescale::L1);
        Cost {
            // Two histograms, and one more pass where magnitudes tie at a threshold.
            measures: if largest > 0 { 3 } else { 0 } + norms,
            counts: largest * HIGH_BINS.max(self.blocks),
            sums: norms * 2 * self.terms.len(),
            row: 0,
        }
    }
}

impl<R: Real> Program<R> for TaskVectors {
    fn next(&self, measured: &[Measured]) -> Pass<R> {
        let mut measured = measured.iter();
        let masks = match self.masks(&mut measured) {
            Ok(masks) => masks,
            Err(measure) => return Pass::Measure(Box::new(measure)),
        };
        let masked: Vec<MaskedTerm<R>> = self
            .terms
            .iter()
            .zip(masks)
            .map(|(term, mask)| MaskedTerm {
                source: term.source,
                weight: R::from_f64(term.weight),
                scaled: R::from_f64(term.weight),
                mask,
            })
            .collect();
        let factors: Vec<f64> = match self.rescale {
            Rescale::Off => vec![1.0; masked.len()],
            Rescale::Expectation => self
                .terms
                .iter()
                .map(|term| term.choice.expectation())
                .collect(),
            Rescale::L1 => {
                let Some(norms) = measured.next() else {
                    return Pass::Measure(Box::new(Norms {
                        base: self.base,
                        terms: masked,
                    }));
                };
                norms
                    .sums
                    .chunks_exact(2)
                    .map(|pair| l1_factor(pair[0], pair[1]))
                    .collect()
            }
        };
        let terms = masked
            .into_iter()
            .zip(&self.terms)
            .zip(factors)
            .map(|((masked, term), factor)| MaskedTerm {
                scaled: R::from_f64(term.weight * factor),
                ..masked
            })
            .collect();
        Pass::Apply(Box::new(AddUp {
            base: self.base,
            terms,
            sum: self.sum,
        }))
    }
}

impl Choice {
    /// What a random mask is scaled by so that it keeps its expectation.
    fn expectation(self) -> f64 {
        match self {
            Self::Random { density, .. } => 1.0 / density,
            _ => 1.0,
        }
    }
}

/// What restores the L1 norm; one where there is next to nothing to restore.
fn l1_factor(before: f64, after: f64) -> f64 {
    if before < LEAST_NORM || after < LEAST_NORM {
        1.0
    } else {
        before / after
    }
}

impl TaskVectors {
    /// The masks, or the measure that is still missing.
    fn masks<'m>(
        &self,
        measured: &mut impl Iterator<Item = &'m Measured>,
    ) -> Result<Vec<Mask>, MagnitudeCounts> {
        let largest: Vec<(usize, usize, u64)> = self
            .terms
            .iter()
            .enumerate()
            .filter_map(|(index, term)| match term.choice {
                Choice::Largest { count } => Some((index, term.source, count)),
                _ => None,
            })
            .collect();
        let mut masks: Vec<Mask> = self.terms.iter().map(|term| term.choice.mask()).collect();
        if largest.is_empty() {
            return Ok(masks);
        }

        let high = self.counted(
            measured,
            largest
                .iter()
                .map(|&(_, source, _)| (source, Target::HighBins)),
        )?;
        let mut split = Vec::new();
        for (&(index, source, count), counts) in
            largest.iter().zip(high.counts.chunks_exact(HIGH_BINS))
        {
            match rank_from_top(counts, count) {
                Some(Rank { bin, wanted, held }) if wanted < held => {
                    split.push((index, source, bin, wanted))
                }
                Some(Rank { bin, .. }) => masks[index] = Mask::from_key(key(bin, 0)),
                None => masks[index] = Mask::All,
            }
        }
        if split.is_empty() {
            return Ok(masks);
        }

        let bins = split
            .iter()
            .map(|&(_, source, bin, _)| (source, Target::LowBins { bin }));
        let low = self.counted(measured, bins)?;
        let mut tied = Vec::new();
        for (&(index, source, bin, wanted), counts) in
            split.iter().zip(low.counts.chunks_exact(LOW_BINS))
        {
            let Some(rank) = rank_from_top(counts, wanted) else {
                continue;
            };
            let key = key(bin, rank.bin);
            masks[index] = Mask::from_key(key);
            if rank.wanted < rank.held {
                tied.push((index, source, key, rank.wanted));
            }
        }
        if tied.is_empty() {
            return Ok(masks);
        }

        let keys = tied
            .iter()
            .map(|&(_, source, key, _)| (source, Target::Equal { key }));
        let ties = self.counted(measured, keys)?;
        for (&(index, _, key, wanted), counts) in
            tied.iter().zip(ties.counts.chunks_exact(self.blocks))
        {
            let mut before = 0;
            let quota = counts.iter().map(|held| {
                let quota = wanted.saturating_sub(before);
                before += held;
                quota
            });
            masks[index] = Mask::Largest {
                above: key,
                quota: Some(quota.collect()),
            };
        }
        Ok(masks)
    }

    /// The counts of these targets, or the measure that makes them.
    fn counted<'m>(
        &self,
        measured: &mut impl Iterator<Item = &'m Measured>,
        targets: impl Iterator<Item = (usize, Target)>,
    ) -> Result<&'m Measured, MagnitudeCounts> {
        measured.next().ok_or_else(|| MagnitudeCounts {
            base: self.base,
            blocks: self.blocks,
            targets: targets.collect(),
        })
    }
}

/// The magnitude key of a bin of the first histogram and one of the second.
fn key(high: usize, low: usize) -> u32 {
    (high * LOW_BINS + low) as u32
}

impl Choice {
    /// The mask, where it needs no measure; where it does, a placeholder.
    fn mask(self) -> Mask {
        match self {
            Self::All | Self::Largest { .. } => Mask::All,
            Self::Nothing => Mask::Nothing,
            Self::Random { key, density } => Mask::Random {
                key,
                bound: keep_threshold(density),
            },
        }
    }
}

/// Which elements of a task vector are kept.
#[derive(Debug, Clone)]
enum Mask {
    All,
    Nothing,
    /// Magnitude keys above `above`; and of those equal to it, in each block the first `quota`, or all.
    Largest {
        above: u32,
        quota: Option<Arc<[u64]>>,
    },
    Random {
        key: MaskKey,
        bound: u64,
    },
}

impl Mask {
    /// Keeps magnitude keys from `key` on.
    fn from_key(key: u32) -> Self {
        Self::Largest {
            above: key,
            quota: None,
        }
    }

    /// How many elements that equal the threshold a block keeps.
    fn ties_in(&self, block: usize) -> u64 {
        match self {
            Self::Largest {
                quota: Some(quota), ..
            } => quota[block],
            _ => u64::MAX,
        }
    }

    /// Fills `keep` for the elements from `first` on; `ties` is what is left of the block's quota.
    ///
    /// One where an element is kept, zero where not: a number of the same width as the values lets the
    /// compiler work on many at once, where a `bool` makes it branch.
    fn fill<R: Real>(&self, first: u64, ties: &mut u64, deltas: &[R], keep: &mut [R]) {
        let places = keep.iter_mut().zip(deltas);
        match *self {
            Self::All => keep.fill(R::ONE),
            Self::Nothing => keep.fill(R::ZERO),
            Self::Largest { above, quota: None } => {
                places.for_each(|(keep, delta)| *keep = one_if(delta.magnitude_key() >= above));
            }
            Self::Largest {
                above,
                quota: Some(_),
            } => places.for_each(|(keep, delta)| {
                let key = delta.magnitude_key();
                let tie = (key == above) & (*ties > 0);
                *ties -= u64::from(tie);
                *keep = one_if((key > above) | tie);
            }),
            Self::Random { key, bound } => {
                places.enumerate().for_each(|(offset, (keep, _))| {
                    *keep = one_if(u64::from(key.draw(first + offset as u64)) < bound);
                });
            }
        }
    }
}

/// One for yes, zero for no.
#[inline(always)]
fn one_if<R: Real>(yes: bool) -> R {
    if yes { R::ONE } else { R::ZERO }
}

/// A fine-tune whose mask is known.
#[derive(Debug, Clone)]
struct MaskedTerm<R> {
    source: usize,
    weight: R,
    /// The weight times what the mask is rescaled by.
    scaled: R,
    mask: Mask,
}

/// What is counted of a task vector's magnitude keys.
#[derive(Debug, Clone, Copy)]
enum Target {
    HighBins,
    LowBins {
        bin: usize,
    },
    /// Those equal to a key, by block.
    Equal {
        key: u32,
    },
}

/// Counts magnitudes of task vectors.
struct MagnitudeCounts {
    base: usize,
    blocks: usize,
    targets: Vec<(usize, Target)>,
}

impl<R: Real> Measure<R> for MagnitudeCounts {
    fn sums(&self) -> usize {
        0
    }

    fn counts(&self) -> usize {
        self.targets
            .iter()
            .map(|(_, target)| match target {
                Target::HighBins => HIGH_BINS,
                Target::LowBins { .. } => LOW_BINS,
                Target::Equal { .. } => self.blocks,
            })
            .sum()
    }

    fn block(&self, block: Block<'_, R>, _sums: &mut [f64], mut counts: &mut [u64]) {
        let base = block.sources[self.base];
        for &(source, target) in &self.targets {
            let keys = block.sources[source]
                .iter()
                .zip(base)
                .map(|(&x, &base)| (x - base).magnitude_key());
            let width = match target {
                Target::HighBins => {
                    keys.for_each(|key| counts[high_bin(key)] += 1);
                    HIGH_BINS
                }
                Target::LowBins { bin } => {
                    keys.filter(|&key| high_bin(key) == bin)
                        .for_each(|key| counts[low_bin(key)] += 1);
                    LOW_BINS
                }
                Target::Equal { key: wanted } => {
                    counts[block.index] += keys.filter(|&key| key == wanted).count() as u64;
                    self.blocks
                }
            };
            counts = &mut counts[width..];
        }
    }
}

/// Measures each task vector's L1 norm, before and after its mask.
struct Norms<R> {
    base: usize,
    terms: Vec<MaskedTerm<R>>,
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
        for (term, sums) in self.terms.iter().zip(sums.chunks_exact_mut(2)) {
            let mut ties = term.mask.ties_in(block.index);
            for start in (0..block.len()).step_by(STRIP) {
                let length = STRIP.min(block.len() - start);
                let (deltas, keep) = (&mut deltas[..length], &mut keep[..length]);
                subtract(&block, term.source, self.base, start, deltas);
                term.mask
                    .fill(block.first + start as u64, &mut ties, deltas, keep);
                sums[0] += abs_sum(deltas);
                deltas.iter_mut().zip(keep).for_each(|(delta, keep)| {
                    *delta = if *keep > R::ZERO { *delta } else { R::ZERO }
                });
                sums[1] += abs_sum(deltas);
            }
        }
    }
}

fn subtract<R: Real>(
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
struct AddUp<R> {
    base: usize,
    terms: Vec<MaskedTerm<R>>,
    sum: Sum,
}

/// Partial results of a strip.
struct Strip<R> {
    /// For each term, its scaled and masked task vector; zero where it is masked.
    votes: Vec<[R; STRIP]>,
    /// For each term, one where it is added, else zero.
    added: Vec<[R; STRIP]>,
    /// The sum of votes.
    ballot: [R; STRIP],
    /// Sums over the added terms: of votes, of scaled weights, of weights.
    total: [R; STRIP],
    share: [R; STRIP],
    divisor: [R; STRIP],
    /// The least and the largest of the added sources.
    low: [R; STRIP],
    high: [R; STRIP],
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
        }
    }
}

impl<R: Real> Apply<R> for AddUp<R> {
    fn block(&self, block: Block<'_, R>, out: &mut [R]) {
        let mut strip = Strip::new(self.terms.len());
        let mut ties: Vec<u64> = self
            .terms
            .iter()
            .map(|term| term.mask.ties_in(block.index))
            .collect();
        for (index, out) in out.chunks_mut(STRIP).enumerate() {
            let start = index * STRIP;
            self.vote(&block, start, out.len(), &mut ties, &mut strip);
            if self.sum.consensus == Consensus::WeightedSign {
                strike_out(out.len(), &mut strip);
            }
            self.add(&block, start, out.len(), &mut strip);
            self.finish(&block.sources[self.base][start..][..out.len()], &strip, out);
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

impl<R: Real> AddUp<R> {
    /// Masks each term and sums the votes.
    fn vote(
        &self,
        block: &Block<'_, R>,
        start: usize,
        length: usize,
        ties: &mut [u64],
        strip: &mut Strip<R>,
    ) {
        strip.ballot.fill(R::ZERO);
        let rows = strip.votes.iter_mut().zip(&mut strip.added);
        for ((term, ties), (votes, added)) in self.terms.iter().zip(ties).zip(rows) {
            let (votes, added) = (&mut votes[..length], &mut added[..length]);
            subtract(block, term.source, self.base, start, votes);
            term.mask
                .fill(block.first + start as u64, ties, votes, added);
            for ((vote, added), ballot) in votes.iter_mut().zip(added).zip(&mut strip.ballot) {
                *vote = if *added > R::ZERO {
                    *vote * term.scaled
                } else {
                    R::ZERO
                };
                *ballot += *vote;
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
        // Slices of one known length need no check at each element.
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
            for i in 0..length {
                let yes = added[i] > R::ZERO;
                total[i] += if yes { votes[i] } else { R::ZERO };
                share[i] += added[i] * term.scaled;
                divisor[i] += added[i] * term.weight;
                let source = source[i];
                low[i] = if yes & (source < low[i]) {
                    source
                } else {
                    low[i]
                };
                high[i] = if yes & (source > high[i]) {
                    source
                } else {
                    high[i]
                };
            }
        }
        match (self.sum.normalize, self.sum.consensus) {
            (false, _) => divisor.fill(R::ONE),
            (true, Consensus::None) => divisor.fill(R::from_f64(self.sum.total)),
            (true, Consensus::WeightedSign) => {
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

    fn finish(&self, base: &[R], strip: &Strip<R>, out: &mut [R]) {
        let lambda = R::from_f64(self.sum.lambda);
        let one_sign = self.terms.iter().all(|term| term.scaled >= R::ZERO);
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
            let mean = one_sign && missing.abs() <= R::NOISE;
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
