//! mergekit's `task_arithmetic` and `ties`.
//!
//! Among elements whose magnitude equals the threshold, mergekit keeps as many as k needs; nothing says which. Such
//! an element is correct if some choice results in its value, and the tensor is if a choice for all of them keeps
//! exactly k elements of each task vector.

use super::rounding::{Profile, inner_sum, single};
use super::{Evidence, Most, Replay, stored};
use engine::{AnyProgram, Apply, Block, Cost, Measure, Measured, Pass, Program};
use methods::{Tensor, TensorParams};
use numeric::{FloatType, HIGH_BINS, LOW_BINS, NoMemory, Real, high_bin, low_bin, rank_from_top};

/// The most task vectors that may tie at one element, so that all choices can be tried.
const MOST_TIED: usize = 10;

/// Bits of a key within one bin of the first histogram.
const LOW_BITS: u32 = LOW_BINS.trailing_zeros();

/// The method applied to one tensor.
#[derive(Debug, Clone)]
pub(super) struct Tasks {
    pub(super) profile: Profile,
    pub(super) base: usize,
    pub(super) terms: Vec<Term>,
    pub(super) elected: bool,
    pub(super) normalize: bool,
    pub(super) lambda: f64,
}

/// A fine-tune.
#[derive(Debug, Clone)]
pub(super) struct Term {
    pub(super) source: usize,
    pub(super) weight: f32,
    /// How many elements are kept; `None` for all.
    pub(super) kept: Option<u64>,
}

impl Tasks {
    pub(super) fn new(
        profile: Profile,
        params: &TensorParams,
        tensor: &Tensor<'_>,
        elected: bool,
    ) -> Option<Self> {
        let base = tensor.base?;
        let others = (0..tensor.sources).filter(|&source| source != base);
        let weight = |source| params.source_number(source, "weight");
        let terms = others.map(|source| Term {
            source,
            weight: profile.scalar(weight(source)),
            kept: None,
        });
        Some(Self {
            profile,
            base,
            terms: terms.collect(),
            elected,
            normalize: params.flag("normalize"),
            lambda: params.number("lambda"),
        })
    }

    /// The difference between a term's element and the base's.
    pub(super) fn delta<R: Real>(&self, term: &Term, sources: &[&[R]], at: usize) -> R {
        let value = self.profile.step(sources[term.source][at]);
        self.profile
            .step(value - self.profile.step(sources[self.base][at]))
    }

    /// The result for an element, from the differences that are kept; the others are zero.
    pub(super) fn element<R: Real>(&self, base: R, deltas: &[R], terms: &mut Vec<R>) -> R {
        let step = |value: R| self.profile.step(value);
        terms.clear();
        let weighted = deltas.iter().zip(&self.terms);
        terms.extend(weighted.map(|(delta, term)| step(*delta * R::from_f32(term.weight))));
        let sum = |terms: &mut dyn Iterator<Item = R>| {
            step(terms.fold(R::ZERO, |sum, term| single(sum + term)))
        };
        let (mut mixed, divisor);
        if self.elected {
            let positive = sum(&mut terms.iter().copied()) >= R::ZERO;
            let agrees = |term: R| match positive {
                true => term > R::ZERO,
                false => term < R::ZERO,
            };
            let weights = self.terms.iter().zip(terms.iter());
            let mut weights = weights.map(|(term, &value)| match agrees(value) {
                true => R::from_f32(term.weight),
                false => R::ZERO,
            });
            let of_agreeing = sum(&mut weights);
            divisor = match of_agreeing == R::ZERO {
                true => R::ONE,
                false => of_agreeing,
            };
            mixed = sum(&mut terms.iter().copied().filter(|&term| agrees(term)));
        } else {
            let weights: Vec<f32> = self.terms.iter().map(|term| term.weight).collect();
            let total: R = step(R::from_f32(inner_sum(&weights)));
            divisor = match total.to_f32().abs() < 1e-8 {
                true => R::ONE,
                false => total,
            };
            mixed = sum(&mut terms.iter().copied());
        }
        if self.normalize {
            mixed = step(mixed / divisor);
        }
        if self.lambda != 1.0 {
            mixed = step(mixed * R::from_f32(self.lambda as f32));
        }
        step(base + mixed)
    }
}

/// Replays both methods: histograms of magnitudes, a pass over the elements that tie, the result.
pub(super) struct TaskReplay {
    tasks: Tasks,
    output: FloatType,
    tied: Most,
}

/// Keeps all elements of every task vector.
pub(super) fn replay(
    profile: Profile,
    params: &TensorParams,
    tensor: &Tensor<'_>,
    output: FloatType,
    elected: bool,
) -> Option<Box<dyn Replay>> {
    let tasks = Tasks::new(profile, params, tensor, elected)?;
    Some(Box::new(TaskReplay::new(tasks, output)))
}

/// Keeps the largest elements of each task vector, and elects a sign by majority.
pub(super) fn trimmed(
    profile: Profile,
    params: &TensorParams,
    tensor: &Tensor<'_>,
    output: FloatType,
) -> Option<Box<dyn Replay>> {
    if params.word("rescale") == "l1" {
        return None;
    }
    let mut tasks = Tasks::new(profile, params, tensor, true)?;
    let elements = tensor.elements();
    for term in &mut tasks.terms {
        let density = params.source_number(term.source, "density");
        if density <= 0.0 || elements == 0 {
            term.kept = Some(0);
        } else if density < 1.0 {
            term.kept = Some(((density * elements as f64) as u64).max(1));
        }
    }
    Some(Box::new(TaskReplay::new(tasks, output)))
}

impl TaskReplay {
    fn new(tasks: Tasks, output: FloatType) -> Self {
        Self {
            tasks,
            output,
            tied: Most::default(),
        }
    }

    /// The terms that have a threshold, by index.
    fn ranked(&self) -> impl Iterator<Item = (usize, u64)> + '_ {
        let terms = self.tasks.terms.iter().enumerate();
        terms.filter_map(|(number, term)| Some((number, term.kept.filter(|&kept| kept > 0)?)))
    }

    /// Which elements of each term are kept, from the histograms.
    fn cuts(&self, high: &Measured, low: &Measured) -> Vec<KeptElements> {
        let all = |term: &Term| match term.kept {
            Some(0) => KeptElements::NONE,
            _ => KeptElements::ALL,
        };
        let mut cuts: Vec<KeptElements> = self.tasks.terms.iter().map(all).collect();
        let high = high.counts.chunks_exact(HIGH_BINS);
        let low = low.counts.chunks_exact(LOW_BINS);
        for (((number, kept), high), low) in self.ranked().zip(high).zip(low) {
            let cut = rank_from_top(high, kept).and_then(|first| {
                let second = rank_from_top(low, first.wanted)?;
                Some(KeptElements {
                    threshold: ((first.bin as u32) << LOW_BITS) | second.bin as u32,
                    wanted: second.wanted,
                    open: second.wanted < second.held,
                })
            });
            cuts[number] = cut.unwrap_or(KeptElements::ALL);
        }
        cuts
    }
}

/// Which elements of a task vector are kept.
#[derive(Debug, Clone, Copy)]
struct KeptElements {
    /// Elements with a larger key are kept, those with a smaller key are not.
    threshold: u32,
    /// How many of the elements with this key are kept.
    wanted: u64,
    /// Whether that is fewer than all of them.
    open: bool,
}

impl KeptElements {
    const ALL: KeptElements = KeptElements {
        threshold: 0,
        wanted: 0,
        open: false,
    };
    const NONE: KeptElements = KeptElements {
        threshold: u32::MAX,
        ..KeptElements::ALL
    };
}

impl<R: Real> Program<R> for TaskReplay {
    fn next(&self, measured: &[Measured]) -> Pass<R> {
        let terms: Vec<usize> = self.ranked().map(|(number, _)| number).collect();
        let tasks = self.tasks.clone();
        let histogram = |bins: Vec<Option<usize>>| {
            Pass::Measure(Box::new(Histogram {
                tasks: self.tasks.clone(),
                terms: terms.clone(),
                bins,
            }))
        };
        if terms.is_empty() {
            let cuts = self.cuts(&Measured::default(), &Measured::default());
            return Pass::Apply(Box::new(Choices {
                tasks,
                cuts,
                output: self.output,
                believed: false,
            }));
        }
        let (high, low, looked) = match measured {
            [] => return histogram(vec![None; terms.len()]),
            [high] => {
                let counts = high.counts.chunks_exact(HIGH_BINS);
                let bins = self.ranked().zip(counts).map(|((_, kept), counts)| {
                    rank_from_top(counts, kept).map_or(Some(0), |rank| Some(rank.bin))
                });
                return histogram(bins.collect());
            }
            [high, low, looked @ ..] => (high, low, looked.first()),
        };
        let mut choices = Choices {
            tasks,
            cuts: self.cuts(high, low),
            output: self.output,
            believed: false,
        };
        if !choices.cuts.iter().any(|cut| cut.open) {
            return Pass::Apply(Box::new(choices));
        }
        let Some(looked) = looked else {
            return Pass::Measure(Box::new(choices));
        };
        // For each task vector, it must be possible to keep exactly as many elements as k asks for.
        let kept = looked.counts[1..].chunks_exact(2);
        choices.believed = choices
            .cuts
            .iter()
            .zip(kept)
            .all(|(cut, kept)| !cut.open || (kept[0]..=kept[1]).contains(&cut.wanted));
        if choices.believed {
            self.tied.see(looked.counts[0]);
        }
        Pass::Apply(Box::new(choices))
    }
}

impl AnyProgram for TaskReplay {
    fn cost(&self) -> Cost {
        let ranked = self.ranked().count();
        Cost {
            measures: if ranked > 0 { 3 } else { 0 },
            counts: if ranked > 0 {
                (ranked * HIGH_BINS.max(LOW_BINS)).max(1 + 2 * self.tasks.terms.len())
            } else {
                0
            },
            ..Cost::default()
        }
    }
}

impl Replay for TaskReplay {
    fn evidence(&self) -> Evidence {
        Evidence {
            tied: self.tied.get(),
            ..Evidence::default()
        }
    }
}

/// Counts the magnitudes of some terms: by the upper bits of their keys, or by the lower bits within one bin.
struct Histogram {
    tasks: Tasks,
    terms: Vec<usize>,
    bins: Vec<Option<usize>>,
}

impl<R: Real> Measure<R> for Histogram {
    fn sums(&self) -> usize {
        0
    }

    fn counts(&self) -> usize {
        let each = |bin: &Option<usize>| if bin.is_some() { LOW_BINS } else { HIGH_BINS };
        self.bins.iter().map(each).sum()
    }

    fn block(
        &self,
        block: Block<'_, R>,
        _sums: &mut [f64],
        counts: &mut [u64],
    ) -> Result<(), NoMemory> {
        let mut rest = counts;
        for (&number, &bin) in self.terms.iter().zip(&self.bins) {
            let term = &self.tasks.terms[number];
            let size = if bin.is_some() { LOW_BINS } else { HIGH_BINS };
            let (counts, after) = rest.split_at_mut(size);
            rest = after;
            for at in 0..block.len() {
                let key = self.tasks.delta(term, block.sources, at).magnitude_key();
                match bin {
                    None => counts[high_bin(key)] += 1,
                    Some(bin) if bin == high_bin(key) => counts[low_bin(key)] += 1,
                    Some(_) => {}
                }
            }
        }
        Ok(())
    }
}

/// Computes the result; where elements tie, takes the checkpoint's values.
struct Choices {
    tasks: Tasks,
    cuts: Vec<KeptElements>,
    output: FloatType,
    /// Whether the checkpoint's values can keep exactly as many elements as they should.
    believed: bool,
}

/// What was found out about an element.
struct Seen<R> {
    /// Its value if all that tie are kept.
    value: R,
    /// Which terms tie, one bit each.
    tied: u32,
    /// The terms kept in every choice that results in the checkpoint's value, and those kept in at least one; `None`
    /// if no choice does.
    kept: Option<(u32, u32)>,
}

/// Buffers for the work on an element.
#[derive(Default)]
struct Room<R> {
    deltas: Vec<R>,
    chosen: Vec<R>,
    terms: Vec<R>,
}

impl Choices {
    fn look<R: Real>(&self, sources: &[&[R]], at: usize, room: &mut Room<R>) -> Seen<R> {
        let Tasks {
            profile,
            base,
            terms,
            ..
        } = &self.tasks;
        room.deltas.clear();
        let mut tied = 0u32;
        for (number, (term, cut)) in terms.iter().zip(&self.cuts).enumerate() {
            let delta = self.tasks.delta(term, sources, at);
            let key = delta.magnitude_key();
            let open = cut.open && key == cut.threshold;
            if open && number < 32 {
                tied |= 1 << number;
            }
            // A difference that is not kept is multiplied by zero.
            let stays = key >= cut.threshold;
            room.deltas
                .push(if stays { delta } else { delta * R::ZERO });
        }
        let base = profile.step(sources[*base][at]);
        if tied == 0 || tied.count_ones() as usize > MOST_TIED {
            let value = self.tasks.element(base, &room.deltas, &mut room.terms);
            return Seen {
                value,
                tied,
                kept: None,
            };
        }
        let found = sources.last().map_or(R::ZERO, |found| found[at]);
        let mut kept: Option<(u32, u32)> = None;
        let mut of_all = None;
        // Tries every subset of the terms that tie, the full set first.
        let mut subset = tied;
        loop {
            room.chosen.clear();
            let deltas = room.deltas.iter().enumerate();
            room.chosen.extend(deltas.map(|(number, &delta)| {
                match number < 32 && tied & !subset & (1 << number) != 0 {
                    true => delta * R::ZERO,
                    false => delta,
                }
            }));
            let value = self.tasks.element(base, &room.chosen, &mut room.terms);
            of_all.get_or_insert(value);
            if stored(self.output, value) == found {
                kept =
                    Some(kept.map_or((subset, subset), |(all, any)| (all & subset, any | subset)));
            }
            if subset == 0 {
                break;
            }
            subset = (subset - 1) & tied;
        }
        Seen {
            value: of_all.unwrap_or(R::ZERO),
            tied,
            kept,
        }
    }
}

impl<R: Real> Measure<R> for Choices {
    fn sums(&self) -> usize {
        0
    }

    /// The number of elements that tie; then, for each term, the fewest and the most tied elements that may be
    /// kept.
    fn counts(&self) -> usize {
        1 + 2 * self.cuts.len()
    }

    fn block(
        &self,
        block: Block<'_, R>,
        _sums: &mut [f64],
        counts: &mut [u64],
    ) -> Result<(), NoMemory> {
        let mut room = Room::default();
        for at in 0..block.len() {
            let Seen { tied, kept, .. } = self.look(block.sources, at, &mut room);
            if tied == 0 {
                continue;
            }
            counts[0] += 1;
            // If no choice results in the value, it is reported as wrong; here the element may count either way.
            let (all, any) = kept.unwrap_or((0, tied));
            for (number, kept) in counts[1..].chunks_exact_mut(2).enumerate().take(32) {
                kept[0] += u64::from(all >> number & 1);
                kept[1] += u64::from(any >> number & 1);
            }
        }
        Ok(())
    }
}

impl<R: Real> Apply<R> for Choices {
    fn block(&self, block: Block<'_, R>, out: &mut [R]) -> Result<(), NoMemory> {
        let mut room = Room::default();
        for (at, out) in out.iter_mut().enumerate() {
            let seen = self.look(block.sources, at, &mut room);
            *out = match (self.believed && seen.kept.is_some(), block.sources) {
                (true, [.., found]) => found[at],
                _ => seen.value,
            };
        }
        Ok(())
    }
}
