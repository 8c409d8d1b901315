//! Ranks within rows, and the probabilities that DELLA derives from them.

use std::sync::Arc;

use super::super::order::count_equal;
use errors::Refusal;
use numeric::{NoMemory, WORD, filled, keep_threshold, pack, reserve, vectorised};

/// The probability to keep an element, by its rank in the row: from `density - epsilon` for the smallest magnitude
/// to `density + epsilon` for the largest.
#[derive(Debug, Clone, Copy, PartialEq)]
pub(crate) struct Chances {
    density: f64,
    epsilon: f64,
}

impl Chances {
    /// # Errors
    /// If a probability is not between 0 and 1.
    pub(super) fn new(density: f64, epsilon: f64) -> Result<Self, Refusal> {
        if density + epsilon >= 1.0 || density - epsilon <= 0.0 {
            return Err(Refusal::new(format!(
                "`density` {density} and `epsilon` {epsilon} do not fit together: elements are kept with \
                 probabilities from density - epsilon to density + epsilon, which must lie between 0 and 1"
            ))
            .with_hint(format!(
                "choose `epsilon` below {:.4}, or `density: 1` to keep all",
                density.min(1.0 - density)
            )));
        }
        Ok(Self { density, epsilon })
    }

    /// The probability for a rank in a row of `row` elements. In a row of one there is no rank; it is the density.
    pub(super) fn of(self, rank: u32, row: usize) -> f64 {
        if row < 2 {
            return self.density;
        }
        let place = f64::from(rank) / (row - 1) as f64;
        (self.density - self.epsilon) + place * 2.0 * self.epsilon
    }

    /// Draws below this bound keep an element of this rank.
    pub(super) fn bound(self, rank: u32, row: usize) -> u32 {
        u32::try_from(keep_threshold(self.of(rank, row))).unwrap_or(u32::MAX)
    }

    /// The bounds of all ranks in a row.
    pub(super) fn bounds(self, row: usize) -> Arc<[u32]> {
        (0..row as u32).map(|rank| self.bound(rank, row)).collect()
    }
}

/// Decides which elements of a row are kept, and ranks only those whose rank matters.
///
/// Probabilities rise with the rank. So a draw below the bound of the lowest rank keeps any element, and one that
/// is not below the bound of the highest drops it. For the others, magnitudes are counted in bins, which limits
/// each element's rank to a range. If the draw is still undecided, the rank is found by a scan of the whole row.
pub(super) struct RankedRows<'b> {
    /// The bound of each rank.
    bounds: &'b [u32],
    /// For each element, its bin.
    bins: Vec<u8>,
    /// For each bin, the bounds of its lowest and its highest rank.
    ends: [[u32; 2]; BINS],
    /// For each element, one if the decision depends on its rank, otherwise zero; and the same as bits.
    flags: Vec<u8>,
    words: Vec<u64>,
    /// Elements that are still undecided after the bins.
    open: Vec<u32>,
    /// The same elements with their keys, for sorting.
    keyed: Vec<u64>,
}

/// Bins per row: as many as a byte can number.
const BINS: usize = 256;
/// If more than one in this many elements of a row is undecided, as in a row with one magnitude far above all
/// others, the row is sorted instead of scanned for each key.
const LOOKED_FOR: usize = 32;

impl<'b> RankedRows<'b> {
    /// For rows of as many elements as there are bounds.
    ///
    /// Fails if there is no memory for a row.
    pub(super) fn new(bounds: &'b [u32]) -> Result<Self, NoMemory> {
        let row = bounds.len();
        let mut keyed = Vec::new();
        reserve(&mut keyed, row)?;
        Ok(Self {
            bounds,
            bins: filled(row, 0)?,
            ends: [[0; 2]; BINS],
            flags: filled(row, 0)?,
            words: filled(row.div_ceil(WORD), 0)?,
            open: filled(row, 0)?,
            keyed,
        })
    }

    /// Sets `keep` for one row from its keys and draws: one if an element is kept, otherwise zero.
    pub(super) fn keep(
        &mut self,
        keys: &[u32],
        draws: &[u32],
        keep: &mut [u8],
    ) -> Result<(), NoMemory> {
        let (Some(&least), Some(&most)) = (self.bounds.first(), self.bounds.last()) else {
            return Ok(());
        };
        let row = keys.len().min(self.bounds.len());
        let (keys, draws, keep) = (&keys[..row], &draws[..row], &mut keep[..row]);
        let (bins, flags) = (&mut self.bins[..row], &mut self.flags[..row]);
        let words = &mut self.words[..row.div_ceil(WORD)];
        decide_by_draws(draws, least, most, keep, flags);
        assign_bins(keys, bins);
        find_ends(&count_bins(bins), self.bounds, &mut self.ends);
        pack(flags, words);
        let mut open = 0;
        for (word, first) in words.iter().zip((0..).step_by(WORD)) {
            let mut word = *word;
            while word != 0 {
                let index = first + word.trailing_zeros() as usize;
                word &= word - 1;
                let draw = draws[index];
                let [least, most] = self.ends[usize::from(bins[index])];
                keep[index] = u8::from(draw < least);
                // If this element is decided, the next one overwrites it.
                self.open[open] = index as u32;
                open += usize::from((draw >= least) & (draw < most));
            }
        }
        self.rank(keys, open, |index, bound| {
            keep[index] = u8::from(draws[index] < bound)
        })
    }

    /// Finds the ranks of the first `open` undecided elements, and calls `give` with the bound of each.
    fn rank(
        &mut self,
        keys: &[u32],
        open: usize,
        mut give: impl FnMut(usize, u32),
    ) -> Result<(), NoMemory> {
        // Sorted, so that equal keys are adjacent and in index order.
        let keyed = |&index: &u32| u64::from(keys[index as usize]) << 32 | u64::from(index);
        self.keyed.clear();
        self.keyed.extend(self.open[..open].iter().map(keyed));
        self.keyed.sort_unstable();
        let groups = || self.keyed.chunk_by(|a, b| a >> 32 == b >> 32);
        if groups().count() > 1 + keys.len() / LOOKED_FOR {
            let mut ranks = Vec::new();
            reserve(&mut ranks, keys.len())?;
            ranks.extend_from_slice(keys);
            rank_rows(&mut ranks, keys.len())?;
            for &index in &self.open[..open] {
                let rank = ranks[index as usize];
                give(index as usize, self.bounds[rank as usize]);
            }
            return Ok(());
        }
        for group in groups() {
            let mut ranked: Option<(usize, usize)> = None;
            for &keyed in group {
                let index = keyed as u32 as usize;
                let rank = match ranked {
                    None => count_smaller(keys, index) as usize,
                    Some((before, rank)) => {
                        rank + count_equal(&keys[before..index], keys[index]) as usize
                    }
                };
                ranked = Some((index, rank));
                give(index, self.bounds[rank]);
            }
        }
        Ok(())
    }
}

vectorised! {
    /// Sets `keep` to one if a draw is below `least`, and `open` to one if it is in `least..most`.
    fn decide_by_draws(draws: &[u32], least: u32, most: u32, keep: &mut [u8], open: &mut [u8]) {
        let width = most.saturating_sub(least);
        for ((&draw, keep), open) in draws.iter().zip(keep).zip(open) {
            *keep = u8::from(draw < least);
            *open = u8::from(draw.wrapping_sub(least) < width);
        }
    }
}

vectorised! {
    /// Assigns bins by magnitude, of equal width from zero to the largest.
    fn assign_bins(keys: &[u32], bins: &mut [u8]) {
        let most = keys.iter().fold(0, |most, &key| most.max(key));
        let width = (BINS - 1) as f32 / f32::from_bits(most);
        // If the largest magnitude is close to zero.
        let width = if width.is_finite() { width } else { 0.0 };
        // An f32 of this size has no fraction bits, so its low bits hold the integer that was added.
        const WHOLE: f32 = 8_388_608.0;
        for (bin, &key) in bins.iter_mut().zip(keys) {
            // Rounding never gives a larger key a lower bin. A NaN gets any bin; the run reports it elsewhere.
            let place = (f32::from_bits(key) * width + WHOLE).to_bits().wrapping_sub(WHOLE.to_bits());
            *bin = place.min(BINS as u32 - 1) as u8;
        }
    }
}

/// How many elements each bin has.
fn count_bins(bins: &[u8]) -> [u32; BINS] {
    // Four tables, so that successive equal bins do not wait for each other.
    let mut counts = [[0u32; BINS]; 4];
    let (fours, rest) = bins.as_chunks::<4>();
    for four in fours {
        for (counts, &bin) in counts.iter_mut().zip(four) {
            counts[usize::from(bin)] += 1;
        }
    }
    for &bin in rest {
        counts[0][usize::from(bin)] += 1;
    }
    let [mut total, others @ ..] = counts;
    for counts in others {
        total
            .iter_mut()
            .zip(counts)
            .for_each(|(total, count)| *total += count);
    }
    total
}

/// Sets the bounds of each bin's lowest and highest rank; an empty bin gets arbitrary ones.
fn find_ends(counts: &[u32; BINS], bounds: &[u32], ends: &mut [[u32; 2]; BINS]) {
    let mut below = 0;
    for (ends, &count) in ends.iter_mut().zip(counts) {
        let next = below + count as usize;
        let bound = |rank: usize| bounds.get(rank).copied().unwrap_or(u32::MAX);
        *ends = [bound(below), bound(next.saturating_sub(1))];
        below = next;
    }
}

/// The rank of an element: how many keys are smaller, or equal and before it.
fn count_smaller(keys: &[u32], index: usize) -> u32 {
    let key = keys[index];
    let (before, after) = keys.split_at(index);
    // A key has 31 bits, so the cast to a signed number is safe.
    count_up_to(before, key as i32) + count_up_to(after, key as i32 - 1)
}

vectorised! {
    /// How many keys are at most `key`. Compared as signed numbers, for which AVX2 has an instruction.
    fn count_up_to(keys: &[u32], key: i32) -> u32 {
        let mut count = 0;
        for &other in keys {
            count += u32::from(other as i32 <= key);
        }
        count
    }
}

/// Replaces keys by their ranks within their rows, 0 for the smallest. Ties are ranked by index.
///
/// Fails if there is no memory for a row.
pub(super) fn rank_rows(keys: &mut [u32], row: usize) -> Result<(), NoMemory> {
    let mut order = Vec::new();
    reserve(&mut order, row.min(keys.len()))?;
    for keys in keys.chunks_mut(row.max(1)) {
        order.clear();
        // A key has 31 bits; with the index below it, no two are equal.
        order.extend(
            keys.iter()
                .zip(0u64..)
                .map(|(&key, index)| u64::from(key) << 32 | index),
        );
        order.sort_unstable();
        for (rank, &keyed) in (0..).zip(&order) {
            keys[(keyed & u64::from(u32::MAX)) as usize] = rank;
        }
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;
    use numeric::{MaskKey, Real};

    #[test]
    fn ranks_by_hand() {
        let mut keys = [5, 1, 3, 9, 9, 9, 0];
        rank_rows(&mut keys, 3).unwrap();
        assert_eq!(keys, [2, 0, 1, 0, 1, 2, 0]);
        rank_rows(&mut [], 0).unwrap();
    }

    #[test]
    fn chances_by_hand() {
        let chances = Chances::new(0.5, 0.2).unwrap();
        let found: Vec<f64> = (0..5).map(|rank| chances.of(rank, 5)).collect();
        for (found, expected) in found.iter().zip([0.3, 0.4, 0.5, 0.6, 0.7]) {
            assert!((found - expected).abs() < 1e-15);
        }
        assert_eq!(chances.of(0, 1), 0.5);
        for (density, epsilon) in [(0.9, 0.1), (0.9, 0.15), (0.1, 0.15), (0.15, 0.15)] {
            let error = Chances::new(density, epsilon).unwrap_err().to_string();
            assert!(error.contains("`density`") && error.contains("`epsilon`"));
        }
    }

    proptest! {
        #[test]
        fn decides_as_ranks_do(
            values in prop::collection::vec(prop_oneof![Just(0f32), -1f32..1.0, (0..5i32).prop_map(|v| v as f32), Just(1e30)], 1..300),
            density in 0.2f64..0.8, epsilon in 0f64..0.19, seed in any::<u64>(),
        ) {
            let keys: Vec<u32> = values.iter().map(|value| value.magnitude_key()).collect();
            let row = keys.len();
            let mut draws = vec![0; row];
            MaskKey::new(seed, "a", 0).fill(0, &mut draws);
            let chances = Chances::new(density, epsilon).unwrap();
            let bounds = chances.bounds(row);
            let mut keep = vec![0; row];
            RankedRows::new(&bounds).unwrap().keep(&keys, &draws, &mut keep).unwrap();
            let mut ranks = keys;
            rank_rows(&mut ranks, row).unwrap();
            let twin: Vec<u8> = ranks.iter().zip(draws).map(|(&rank, draw)| u8::from(draw < chances.bound(rank, row))).collect();
            prop_assert_eq!(keep, twin);
        }

        #[test]
        fn a_rank_is_how_many_are_smaller(
            keys in prop::collection::vec(0u32..9, 0..80), row in 1usize..20,
        ) {
            let mut ranks = keys.clone();
            rank_rows(&mut ranks, row).unwrap();
            for (keys, ranks) in keys.chunks(row).zip(ranks.chunks(row)) {
                for (place, (&key, &rank)) in keys.iter().zip(ranks).enumerate() {
                    let smaller = keys.iter().filter(|&&other| other < key).count();
                    let before = keys[..place].iter().filter(|&&other| other == key).count();
                    prop_assert_eq!(rank as usize, smaller + before);
                }
            }
        }
    }
}
