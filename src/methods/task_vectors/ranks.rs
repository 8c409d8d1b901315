//! Ranks within rows, and the chances that DELLA gives by them.

use crate::numeric::keep_threshold;

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
    pub(super) fn bound(self, rank: u32, row: usize) -> u64 {
        keep_threshold(self.of(rank, row))
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
