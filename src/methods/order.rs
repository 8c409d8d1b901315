//! Order statistics over passes: the exact k-th largest key of a tensor, and which of the elements equal to it are
//! kept.
//!
//! This file knows keys and blocks, not what the keys are computed from. There are two ways to find a cut:
//!
//! - **A checked guess.** Differences of 16-bit values take few distinct values, each many times, so a sample tells
//!   which key is the k-th largest. One pass counts, for a few candidates, the elements above each one and, block
//!   by block, those equal to it. If k falls among these, that is the cut, and no further pass is needed.
//! - **Two histograms** over float bits, see [`numeric`](numeric), if a guess is not possible or was wrong; then,
//!   if elements tie at the cut, a pass that counts those block by block.
//!
//! Both are exact and have the same result.

use engine::{Block, Measure, Measured, Pass};
use numeric::{
    HIGH_BINS, LOW_BINS, NoMemory, Rank, Real, filled, high_bin, low_bin, rank_from_top, vectorised,
};

/// The most passes over the tensor that [`Order::cuts`] takes.
pub(super) const CUTS: usize = 2;
/// The most passes over the tensor that [`Order::found`] takes: a guess, the cuts, the ties.
pub(super) const PASSES: usize = CUTS + 2;
/// Elements of a tensor that are sampled for a guess.
const SAMPLE: usize = 1 << 14;
/// Keys computed at a time, so that they stay in the first-level cache.
const STRIP: usize = 1024;
/// Keys that one pass tries.
const CANDIDATES: usize = 3;
/// How far from its expected place in the sample a rank is searched for, in standard deviations.
const DEVIATIONS: f64 = 4.0;

/// Computes the [magnitude keys](Real::magnitude_key) of a tensor's elements, in one or more streams.
pub(super) trait Keys<R>: Clone + Send + Sync + 'static {
    /// Sets `keys`, one for each element of the block.
    ///
    /// # Errors
    /// If there is no memory for what it holds.
    fn fill(&self, block: &Block<'_, R>, stream: usize, keys: &mut [u32]) -> Result<(), NoMemory>;

    /// Whether a key depends on more than its element, so that keys can be computed for whole blocks only.
    fn need_blocks(&self) -> bool {
        false
    }
}

/// The keys of a tensor, the number of its elements, and the number of its blocks.
pub(super) struct Order<K> {
    pub(super) keys: K,
    pub(super) elements: u64,
    pub(super) blocks: usize,
}

/// The k-th largest key of a stream.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct KthLargest {
    pub(super) key: u32,
    /// How many elements of this key are among the k largest.
    pub(super) inside: u64,
    /// How many elements have this key.
    pub(super) held: u64,
}

/// A cut and, for each block, how many elements have its key. The counts may be empty where they do not matter.
pub(super) struct Found<'m> {
    pub(super) cut: KthLargest,
    pub(super) equal: &'m [u64],
}

impl<K: Clone> Order<K> {
    /// The length of the longest vector of counts for this many ranks.
    pub(super) fn counts(&self, ranks: usize) -> usize {
        ranks
            * HIGH_BINS
                .max(CANDIDATES * (1 + self.blocks) + self.blocks)
                .max(SAMPLE + self.blocks)
    }

    /// The cuts at these ranks with the ties of each block, or the measure that is needed next.
    ///
    /// Ranks of one stream must be adjacent. If all elements with the key are on the same side of the cut, their
    /// counts may be omitted.
    pub(super) fn found<'m>(
        &self,
        measured: &mut impl Iterator<Item = &'m Measured>,
        ranks: &[(usize, u64)],
    ) -> Result<Vec<Found<'m>>, Counts<K>> {
        match self.guessed(measured, ranks)? {
            Some(found) => Ok(found),
            None => self.exact(measured, ranks),
        }
    }

    /// The same without a guess.
    fn exact<'m>(
        &self,
        measured: &mut impl Iterator<Item = &'m Measured>,
        ranks: &[(usize, u64)],
    ) -> Result<Vec<Found<'m>>, Counts<K>> {
        let cuts = self.cuts(measured, ranks)?;
        let parted = |cut: &KthLargest| cut.inside < cut.held;
        let keys: Vec<(usize, u32)> = ranks
            .iter()
            .zip(&cuts)
            .filter(|(_, cut)| parted(cut))
            .map(|(&(stream, _), cut)| (stream, cut.key))
            .collect();
        let mut counts = self.equal(measured, &keys)?.into_iter();
        let mut equal = |cut: &KthLargest| parted(cut).then(|| counts.next()).flatten();
        Ok(cuts
            .into_iter()
            .map(|cut| Found {
                equal: equal(&cut).unwrap_or_default(),
                cut,
            })
            .collect())
    }

    /// The cuts, if a sample suggests them and a count of all elements confirms them.
    fn guessed<'m>(
        &self,
        measured: &mut impl Iterator<Item = &'m Measured>,
        ranks: &[(usize, u64)],
    ) -> Result<Option<Vec<Found<'m>>>, Counts<K>> {
        if ranks.is_empty() {
            return Ok(None);
        }
        let streams = streams(ranks);
        let samples = self.samples(measured, &streams)?;
        let mut targets = Vec::new();
        for &(stream, rank) in ranks {
            let place = streams.iter().position(|&other| other == stream);
            let sample = place.and_then(|place| samples.get(place));
            let keys = sample.map_or_else(Vec::new, |sample| {
                candidates(sample.clone(), rank, self.elements)
            });
            if keys.is_empty() {
                return Ok(None);
            }
            targets.extend(keys.into_iter().map(|key| (stream, rank, key)));
        }
        let guesses = targets
            .iter()
            .map(|&(stream, _, key)| (stream, Counted::Guess { key }));
        let counted = self.counted(measured, guesses)?;
        let counts = counted.counts.chunks_exact(1 + self.blocks);
        let mut found: Vec<Option<Found<'m>>> = ranks.iter().map(|_| None).collect();
        for (&(stream, rank, key), counts) in targets.iter().zip(counts) {
            if let Some(confirmed) = confirmed(counts, key, rank)
                && let Some(place) = ranks.iter().position(|&other| other == (stream, rank))
            {
                found[place] = Some(confirmed);
            }
        }
        Ok(found.into_iter().collect())
    }

    /// The cut that separates the largest fraction `share` of the first stream's elements whose key is not zero;
    /// `None` if that is no element.
    pub(super) fn share<'m>(
        &self,
        measured: &mut impl Iterator<Item = &'m Measured>,
        share: f64,
    ) -> Result<Option<Found<'m>>, Counts<K>> {
        let rank = |zeros: u64| (share * self.elements.saturating_sub(zeros) as f64) as u64;
        let samples = self.samples(measured, &[0])?;
        let sample = samples.into_iter().next().unwrap_or_default();
        let zeros = sample.iter().filter(|&&key| key == 0).count() as f64;
        // An estimate of the rank, from the sample.
        let zeros = zeros / sample.len().max(1) as f64 * self.elements as f64;
        let keys = candidates(sample, rank(zeros as u64).max(1), self.elements);
        let guesses = keys.iter().map(|&key| Counted::Guess { key });
        let targets = std::iter::once(Counted::Equal { key: 0 }).chain(guesses);
        let counted = self.counted(measured, targets.map(|target| (0, target)))?;
        let (zeros, counts) = counted.counts.split_at(self.blocks);
        let rank = rank(zeros.iter().sum());
        if rank == 0 {
            return Ok(None);
        }
        let mut guesses = keys.iter().zip(counts.chunks_exact(1 + self.blocks));
        match guesses.find_map(|(&key, counts)| confirmed(counts, key, rank)) {
            Some(found) => Ok(Some(found)),
            None => Ok(self.exact(measured, &[(0, rank)])?.into_iter().next()),
        }
    }

    /// A sample of the keys of each of these streams.
    fn samples<'m>(
        &self,
        measured: &mut impl Iterator<Item = &'m Measured>,
        streams: &[usize],
    ) -> Result<Vec<Vec<u32>>, Counts<K>> {
        let each = SAMPLE.div_ceil(self.blocks.max(1));
        let sampled = streams
            .iter()
            .map(|&stream| (stream, Counted::Sampled { each }));
        let sample = self.counted(measured, sampled)?;
        let recorded = sample.counts.chunks_exact((each * self.blocks).max(1));
        let keys = |recorded: &[u64]| {
            let keys = recorded
                .iter()
                .filter_map(|recorded| recorded.checked_sub(1));
            keys.map(|key| key as u32).collect()
        };
        Ok(recorded.map(keys).collect())
    }

    /// The cuts at these ranks, or the measure that is needed next. A rank is a stream and a place from the top,
    /// from 1 on.
    ///
    /// Ranks of one stream must be adjacent.
    pub(super) fn cuts<'m>(
        &self,
        measured: &mut impl Iterator<Item = &'m Measured>,
        ranks: &[(usize, u64)],
    ) -> Result<Vec<KthLargest>, Counts<K>> {
        if ranks.is_empty() {
            return Ok(Vec::new());
        }
        let streams = streams(ranks);
        let high = self.counted(
            measured,
            streams.iter().map(|&stream| (stream, Counted::HighBins)),
        )?;
        let tops: Vec<_> = ranks
            .iter()
            .map(|&(stream, rank)| {
                let place = streams.iter().position(|&other| other == stream)?;
                let counts = high.counts.chunks_exact(HIGH_BINS).nth(place)?;
                rank_from_top(counts, rank)
            })
            .collect();
        let low = self.counted(
            measured,
            ranks.iter().zip(&tops).map(|(&(stream, _), top)| {
                let bin = top.map_or(0, |top| top.bin);
                (stream, Counted::LowBins { bin })
            }),
        )?;
        let cut = |(top, counts): (&Option<_>, &[u64])| {
            let top: Rank = (*top)?;
            let rank = rank_from_top(counts, top.wanted)?;
            Some(KthLargest {
                key: (top.bin * LOW_BINS + rank.bin) as u32,
                inside: rank.wanted,
                held: rank.held,
            })
        };
        // A rank beyond the last element cuts nothing off.
        let all = KthLargest {
            key: 0,
            inside: 0,
            held: 0,
        };
        Ok(tops
            .iter()
            .zip(low.counts.chunks_exact(LOW_BINS))
            .map(|pair| cut(pair).unwrap_or(all))
            .collect())
    }

    /// For each (stream, key), how many elements have it, block by block; or the measure that is needed next.
    pub(super) fn equal<'m>(
        &self,
        measured: &mut impl Iterator<Item = &'m Measured>,
        keys: &[(usize, u32)],
    ) -> Result<Vec<&'m [u64]>, Counts<K>> {
        if keys.is_empty() {
            return Ok(Vec::new());
        }
        let targets = keys
            .iter()
            .map(|&(stream, key)| (stream, Counted::Equal { key }));
        let counted = self.counted(measured, targets)?;
        Ok(counted.counts.chunks_exact(self.blocks.max(1)).collect())
    }

    /// The counts of these targets, or the measure that counts them.
    fn counted<'m>(
        &self,
        measured: &mut impl Iterator<Item = &'m Measured>,
        targets: impl Iterator<Item = (usize, Counted)>,
    ) -> Result<&'m Measured, Counts<K>> {
        measured.next().ok_or_else(|| Counts {
            keys: self.keys.clone(),
            blocks: self.blocks,
            targets: targets.collect(),
        })
    }
}

/// The streams of the ranks, each once.
fn streams(ranks: &[(usize, u64)]) -> Vec<usize> {
    let mut streams: Vec<usize> = ranks.iter().map(|&(stream, _)| stream).collect();
    streams.dedup();
    streams
}

/// The cut at `key`, if the element of this rank has it. `counts` holds the number of elements above the key and
/// then, block by block, of those equal to it.
fn confirmed(counts: &[u64], key: u32, rank: u64) -> Option<Found<'_>> {
    let (&above, equal) = counts.split_first()?;
    let held = equal.iter().sum();
    let inside = rank.checked_sub(above)?;
    (1..=held).contains(&inside).then_some(Found {
        cut: KthLargest { key, inside, held },
        equal,
    })
}

/// The keys that the element of this rank may have, judging by a sample; empty if a guess would probably be wrong.
fn candidates(mut keys: Vec<u32>, rank: u64, elements: u64) -> Vec<u32> {
    let share = rank as f64 / elements as f64;
    let size = keys.len() as f64;
    let spread = 1.0 + DEVIATIONS * (size * share * (1.0 - share)).max(0.0).sqrt();
    // Counted from the top.
    let first = (share * size - spread).max(0.0) as usize;
    let last = ((share * size + spread) as usize).min(keys.len().saturating_sub(1));
    if first > last || keys.is_empty() {
        return Vec::new();
    }
    let descending = |a: &u32, b: &u32| b.cmp(a);
    let (_, _, below) = keys.select_nth_unstable_by(first, descending);
    if last > first {
        below.select_nth_unstable_by(last - first - 1, descending);
    }
    let window = &mut keys[first..=last];
    window.sort_unstable();
    let mut runs: Vec<(usize, u32)> = window
        .chunk_by(|a, b| a == b)
        .map(|run| (run.len(), run[0]))
        .collect();
    runs.sort_unstable_by(|a, b| b.cmp(a));
    runs.truncate(CANDIDATES);
    let likely: usize = runs.iter().map(|&(count, _)| count).sum();
    if 2 * likely < window.len() {
        return Vec::new();
    }
    runs.into_iter().map(|(_, key)| key).collect()
}

/// What is counted of a stream's keys.
#[derive(Debug, Clone, Copy)]
enum Counted {
    /// Nothing: records the keys themselves, plus one, of this many elements of each block.
    Sampled {
        each: usize,
    },
    /// The keys above this one; then, by block, those equal to it.
    Guess {
        key: u32,
    },
    HighBins,
    LowBins {
        bin: usize,
    },
    /// The keys equal to this one, by block.
    Equal {
        key: u32,
    },
}

/// The measure that counts keys.
pub(super) struct Counts<K> {
    keys: K,
    blocks: usize,
    targets: Vec<(usize, Counted)>,
}

impl<K> Counts<K> {
    /// The pass that runs this measure.
    pub(super) fn pass<R: Real>(self) -> Pass<R>
    where
        K: Keys<R>,
    {
        match self.targets.first() {
            Some(&(_, Counted::Sampled { each })) => Pass::Sample(each, Box::new(self)),
            _ => Pass::Measure(Box::new(self)),
        }
    }
}

vectorised! {
    /// How many keys are above this one, and how many are equal to it.
    fn count_above(keys: &[u32], key: u32) -> (u64, u64) {
        let (mut above, mut equal) = (0, 0);
        // Keys have 31 bits, so they can be compared as signed numbers, for which AVX2 has an instruction.
        let key = key as i32;
        // In pieces that a 32-bit counter can count.
        for keys in keys.chunks(1 << 20) {
            let (mut more, mut same) = (0u32, 0u32);
            for &other in keys {
                more += u32::from(other as i32 > key);
                same += u32::from(other as i32 == key);
            }
            above += u64::from(more);
            equal += u64::from(same);
        }
        (above, equal)
    }
}

impl<R: Real, K: Keys<R>> Measure<R> for Counts<K> {
    fn sums(&self) -> usize {
        0
    }

    fn counts(&self) -> usize {
        self.targets
            .iter()
            .map(|(_, target)| match target {
                Counted::Sampled { each } => each * self.blocks,
                Counted::Guess { .. } => 1 + self.blocks,
                Counted::HighBins => HIGH_BINS,
                Counted::LowBins { .. } => LOW_BINS,
                Counted::Equal { .. } => self.blocks,
            })
            .sum()
    }

    fn block(
        &self,
        block: Block<'_, R>,
        _sums: &mut [f64],
        counts: &mut [u64],
    ) -> Result<(), NoMemory> {
        let strip = match self.keys.need_blocks() {
            true => block.len(),
            false => STRIP.min(block.len()),
        };
        let mut keys = filled(strip, 0)?;
        let mut room = Vec::new();
        for start in (0..block.len()).step_by(strip.max(1)) {
            let places = start..block.len().min(start + strip);
            block.ahead(places.clone());
            let keys = &mut keys[..places.len()];
            self.count(&block.part(places, &mut room), start, keys, counts)?;
        }
        Ok(())
    }
}

impl<K> Counts<K> {
    /// Counts the keys of a run of elements that begins at `start` in its block.
    fn count<R: Real>(
        &self,
        part: &Block<'_, R>,
        start: usize,
        keys: &mut [u32],
        mut counts: &mut [u64],
    ) -> Result<(), NoMemory>
    where
        K: Keys<R>,
    {
        let mut held = None;
        for &(stream, target) in &self.targets {
            if held != Some(stream) {
                self.keys.fill(part, stream, keys)?;
                held = Some(stream);
            }
            let width = match target {
                Counted::Sampled { each } => {
                    let places = &mut counts[part.index * each + start..][..keys.len()];
                    for (place, &key) in places.iter_mut().zip(&*keys) {
                        *place = u64::from(key) + 1;
                    }
                    each * self.blocks
                }
                Counted::Guess { key } => {
                    let (above, equal) = count_above(keys, key);
                    counts[0] += above;
                    counts[1 + part.index] += equal;
                    1 + self.blocks
                }
                Counted::HighBins => {
                    keys.iter().for_each(|&key| counts[high_bin(key)] += 1);
                    HIGH_BINS
                }
                Counted::LowBins { bin } => {
                    keys.iter()
                        .filter(|&&key| high_bin(key) == bin)
                        .for_each(|&key| counts[low_bin(key)] += 1);
                    LOW_BINS
                }
                Counted::Equal { key: wanted } => {
                    counts[part.index] += count_equal(keys, wanted);
                    self.blocks
                }
            };
            counts = &mut counts[width..];
        }
        Ok(())
    }
}

vectorised! {
    /// How many keys are equal to this one.
    pub(super) fn count_equal(keys: &[u32], key: u32) -> u64 {
        let mut count = 0;
        // In pieces that a 32-bit counter can count.
        for keys in keys.chunks(1 << 20) {
            let mut equal = 0u32;
            for &other in keys {
                equal += u32::from(other == key);
            }
            count += u64::from(equal);
        }
        count
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    /// Each source is a stream.
    #[derive(Clone)]
    struct Values;

    impl Keys<f32> for Values {
        fn fill(
            &self,
            block: &Block<'_, f32>,
            stream: usize,
            keys: &mut [u32],
        ) -> Result<(), NoMemory> {
            for (key, value) in keys.iter_mut().zip(block.sources[stream]) {
                *key = value.magnitude_key();
            }
            Ok(())
        }
    }

    const BLOCK: usize = 1000;

    /// Finds cuts as the engine would, with the first elements of each block as the sample; returns the number of
    /// passes too.
    fn find(values: &[f32], ranks: &[u64]) -> (Vec<(KthLargest, Vec<u64>)>, usize) {
        let order = Order {
            keys: Values,
            elements: values.len() as u64,
            blocks: values.len().div_ceil(BLOCK),
        };
        let ranks: Vec<(usize, u64)> = ranks.iter().map(|&rank| (0, rank)).collect();
        let mut measured: Vec<Measured> = Vec::new();
        loop {
            let missing = match order.found(&mut measured.iter(), &ranks) {
                Ok(found) => {
                    let found = found.iter().map(|found| (found.cut, found.equal.to_vec()));
                    return (found.collect(), measured.len());
                }
                Err(missing) => missing,
            };
            let (each, measure) = match missing.pass::<f32>() {
                Pass::Sample(each, measure) => (each, measure),
                Pass::Measure(measure) => (BLOCK, measure),
                _ => panic!("no other pass is made"),
            };
            let mut counts = vec![0; measure.counts()];
            assert!(counts.len() <= order.counts(ranks.len()));
            for (index, block) in values.chunks(BLOCK).enumerate() {
                let sources = [&block[..each.min(block.len())]];
                let first = (index * BLOCK) as u64;
                let block = Block {
                    index,
                    first,
                    sources: &sources,
                    next: &[],
                    carried: None,
                };
                measure.block(block, &mut [], &mut counts).unwrap();
            }
            let sums = Vec::new();
            measured.push(Measured {
                sums,
                counts,
                ..Measured::default()
            });
        }
    }

    /// The cut and its ties, by sorting.
    fn twin(values: &[f32], rank: u64) -> (KthLargest, Vec<u64>) {
        let keys: Vec<u32> = values.iter().map(|value| value.magnitude_key()).collect();
        let mut sorted = keys.clone();
        sorted.sort_unstable_by(|a, b| b.cmp(a));
        let key = sorted[rank as usize - 1];
        let above = sorted.iter().filter(|&&other| other > key).count() as u64;
        let equal = |keys: &[u32]| keys.iter().filter(|&&other| other == key).count() as u64;
        let cut = KthLargest {
            key,
            inside: rank - above,
            held: equal(&keys),
        };
        (cut, keys.chunks(BLOCK).map(equal).collect())
    }

    fn check(values: &[f32], ranks: &[u64]) -> usize {
        let (found, passes) = find(values, ranks);
        for (&rank, (cut, equal)) in ranks.iter().zip(found) {
            let (expected, counts) = twin(values, rank);
            assert_eq!(cut, expected);
            if cut.inside < cut.held || !equal.is_empty() {
                assert_eq!(equal, counts);
            }
        }
        passes
    }

    fn noise(index: usize) -> f32 {
        let word = (index as u64 + 1).wrapping_mul(0x9e37_79b9_7f4a_7c15);
        ((word ^ (word >> 29)).wrapping_mul(0xbf58_476d_1ce4_e5b9) >> 40) as f32 / (1 << 24) as f32
    }

    #[test]
    fn few_values_are_guessed_in_one_pass_after_the_sample() {
        let values: Vec<f32> = (0..50_000).map(|i| (noise(i) * 20.0).floor()).collect();
        assert_eq!(check(&values, &[10_100]), 2);
        assert_eq!(check(&values, &[30_100, 600]), 2);
    }

    #[test]
    fn many_values_are_not_guessed() {
        let values: Vec<f32> = (0..50_000).map(noise).collect();
        assert_eq!(check(&values, &[10_000]), 3);
    }

    #[test]
    fn a_sample_that_misleads_costs_a_pass_and_nothing_else() {
        // All samples are zero.
        let values: Vec<f32> = (0..50_000)
            .map(|i| {
                if i % BLOCK < 400 {
                    0.0
                } else {
                    1.0 + (noise(i) * 8.0).floor()
                }
            })
            .collect();
        assert_eq!(check(&values, &[10_000]), 5);
    }

    proptest! {
        #![proptest_config(ProptestConfig::with_cases(64))]
        #[test]
        fn finds_what_sorting_finds(
            length in 1usize..40_000, steps in prop::sample::select(vec![1.0f32, 3.0, 30.0, 1e4, 1e9]),
            one: prop::sample::Index, other: prop::sample::Index, shift in 0usize..100_000,
        ) {
            let values: Vec<f32> = (0..length).map(|i| (noise(i + shift) * steps).floor() - steps / 3.0).collect();
            let (one, other) = (one.index(length) as u64 + 1, other.index(length) as u64 + 1);
            check(&values, &[one.max(other), one.min(other)]);
        }
    }
}
