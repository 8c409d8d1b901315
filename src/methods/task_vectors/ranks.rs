//! Ranks within rows, and the chances that DELLA gives by them.

use std::sync::Arc;

use crate::numeric::{keep_threshold, vectorised};

/// The chance to be kept, by rank in the row: from `density - epsilon` for the smallest magnitude to
/// `density + epsilon` for the largest.
#[derive(Debug, Clone, Copy, PartialEq)]
pub(in crate::methods) struct Chances {
    density: f64,
    epsilon: f64,
}

impl Chances {
    /// # Errors
    /// Chances that are not all between 0 and 1.
    pub(super) fn new(density: f64, epsilon: f64) -> Result<Self, String> {
        if density + epsilon >= 1.0 || density - epsilon <= 0.0 {
            return Err(format!(
                "`density` {density} and `epsilon` {epsilon} do not fit: elements are kept with chances from \
                 density - epsilon to density + epsilon, which must lie between 0 and 1; \
                 hint: choose `epsilon` below {:.4}, or `density: 1` to keep all",
                density.min(1.0 - density)
            ));
        }
        Ok(Self { density, epsilon })
    }

    /// The chance of an element of a row of so many; in a row of one there is no rank, and it is the density.
    pub(super) fn of(self, rank: u32, row: usize) -> f64 {
        if row < 2 {
            return self.density;
        }
        let place = f64::from(rank) / (row - 1) as f64;
        (self.density - self.epsilon) + place * 2.0 * self.epsilon
    }

    /// The draws below which such an element is kept.
    pub(super) fn bound(self, rank: u32, row: usize) -> u32 {
        u32::try_from(keep_threshold(self.of(rank, row))).unwrap_or(u32::MAX)
    }

    /// The bounds of all ranks of a row.
    pub(super) fn bounds(self, row: usize) -> Arc<[u32]> {
        (0..row as u32).map(|rank| self.bound(rank, row)).collect()
    }
}

/// Decides which elements of rows are kept, and ranks only those on whose rank it depends.
///
/// Chances rise with the rank, so a draw below the least bound of some ranks keeps an element of any of them,
/// and one above the largest drops it. Magnitudes are counted in bins, which gives each element a range of
/// ranks; what its draw does not decide is ranked by a look at the whole row.
pub(super) struct RankedRows<'b> {
    /// The bound of each rank.
    bounds: &'b [u32],
    /// For each element, its bin: zeros have the first for themselves.
    bins: Vec<u32>,
    counts: Vec<u32>,
    /// For each bin, the bounds of its first rank and of its last.
    ends: Vec<[u32; 2]>,
    undecided: Vec<u32>,
}

impl<'b> RankedRows<'b> {
    /// For rows with as many elements as there are bounds.
    pub(super) fn new(bounds: &'b [u32]) -> Self {
        let row = bounds.len();
        let bins = 1 + (row / 2).clamp(1, MOST_BINS);
        Self {
            bounds,
            bins: vec![0; row],
            counts: vec![0; bins],
            ends: vec![[0; 2]; bins],
            undecided: vec![0; row],
        }
    }

    /// Sets `keep` for one row, by its keys and draws.
    pub(super) fn keep(&mut self, keys: &[u32], draws: &[u32], keep: &mut [bool]) {
        assign_bins(keys, self.counts.len() as u32, &mut self.bins);
        let bins = &self.bins[..keys.len()];
        self.counts.fill(0);
        for &bin in bins {
            self.counts[bin as usize] += 1;
        }
        let mut below = 0;
        for (ends, &count) in self.ends.iter_mut().zip(&self.counts) {
            if count > 0 {
                let last = below + count as usize - 1;
                *ends = [self.bounds[below], self.bounds[last]];
                below = last + 1;
            }
        }
        let (mut undecided, mut zeros) = (0, 0);
        for ((keep, &bin), (&draw, index)) in keep.iter_mut().zip(bins).zip(draws.iter().zip(0..)) {
            let [mut least, mut most] = self.ends[bin as usize];
            if bin == 0 {
                // The zeros come first, in their order.
                least = self.bounds[zeros];
                most = least;
                zeros += 1;
            }
            *keep = draw < least;
            self.undecided[undecided] = index;
            undecided += usize::from((draw >= least) & (draw < most));
        }
        for &index in &self.undecided[..undecided] {
            let index = index as usize;
            let rank = count_smaller(keys, index);
            keep[index] = draws[index] < self.bounds[rank as usize];
        }
    }
}

/// Bins of a row at the most, beside that of the zeros.
const MOST_BINS: usize = 4096;

vectorised! {
    /// Bins by magnitude, of equal width from zero to the largest, beside the first for zeros.
    fn assign_bins(keys: &[u32], bins: u32, places: &mut [u32]) {
        let most = keys.iter().fold(0, |most, &key| most.max(key));
        let last = bins.saturating_sub(2) as i32;
        let width = last as f32 / f32::from_bits(most);
        for (place, &key) in places.iter_mut().zip(keys) {
            // Larger keys never get a lower bin, whatever the rounding; a NaN, of which the run tells, gets any.
            let bin = (f32::from_bits(key) * width) as i32;
            let bin = 1 + bin.clamp(0, last) as u32;
            *place = if key == 0 { 0 } else { bin };
        }
    }
}

vectorised! {
    /// The rank of an element: how many keys are smaller, or equal and before it.
    fn count_smaller(keys: &[u32], index: usize) -> u32 {
        let key = keys[index];
        let (before, after) = keys.split_at(index);
        let mut rank = 0;
        for &other in before {
            rank += u32::from(other <= key);
        }
        for &other in after {
            rank += u32::from(other < key);
        }
        rank
    }
}

/// Turns keys into ranks within their rows: 0 for the smallest; of equal ones, the first is the smaller.
pub(super) fn rank_rows(keys: &mut [u32], row: usize) {
    let mut order = Vec::with_capacity(row);
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
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;
    use crate::numeric::{MaskKey, Real};

    #[test]
    fn ranks_by_hand() {
        let mut keys = [5, 1, 3, 9, 9, 9, 0];
        rank_rows(&mut keys, 3);
        assert_eq!(keys, [2, 0, 1, 0, 1, 2, 0]);
        rank_rows(&mut [], 0);
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
            let error = Chances::new(density, epsilon).unwrap_err();
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
            let mut keep = vec![false; row];
            RankedRows::new(&bounds).keep(&keys, &draws, &mut keep);
            let mut ranks = keys;
            rank_rows(&mut ranks, row);
            let twin: Vec<bool> = ranks.iter().zip(draws).map(|(&rank, draw)| draw < chances.bound(rank, row)).collect();
            prop_assert_eq!(keep, twin);
        }

        #[test]
        fn a_rank_is_how_many_are_smaller(
            keys in prop::collection::vec(0u32..9, 0..80), row in 1usize..20,
        ) {
            let mut ranks = keys.clone();
            rank_rows(&mut ranks, row);
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
