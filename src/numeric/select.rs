//! The k-th largest magnitude of a tensor, exact and without sorting: two histograms over float bits.
//!
//! A [magnitude key](super::Real::magnitude_key) has 31 bits and sorts as the magnitudes do. The first histogram
//! counts the upper 16 bits and finds the bin of the k-th largest; the second counts the lower 15 bits of the keys
//! in that bin. Ties with the k-th largest are broken by index.

/// Bins of the first histogram.
pub const HIGH_BINS: usize = 1 << 16;
/// Bins of the second histogram.
pub const LOW_BINS: usize = 1 << LOW_BITS;

const LOW_BITS: u32 = 15;

/// The bin of a magnitude key in the first histogram.
#[inline]
pub fn high_bin(key: u32) -> usize {
    (key >> LOW_BITS) as usize
}

/// The bin of a magnitude key in the second histogram.
#[inline]
pub fn low_bin(key: u32) -> usize {
    key as usize & (LOW_BINS - 1)
}

/// Where the k-th largest lies in a histogram.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Rank {
    /// Its bin; the elements of all higher bins are larger.
    pub bin: usize,
    /// How many elements of that bin are among the k largest.
    pub wanted: u64,
    /// How many elements the bin holds.
    pub held: u64,
}

/// Finds the bin of the k-th largest. `k` is at least 1 and at most the sum of `counts`.
pub fn rank_from_top(counts: &[u64], k: u64) -> Option<Rank> {
    let mut above = 0;
    for (bin, &held) in counts.iter().enumerate().rev() {
        if above + held >= k && held > 0 {
            return Some(Rank {
                bin,
                wanted: k - above,
                held,
            });
        }
        above += held;
    }
    None
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;
    use crate::Real;

    proptest! {
        #[test]
        fn finds_what_sorting_finds(values in prop::collection::vec(-3i16..=3, 1..200), scale in -9i32..9, pick: prop::sample::Index) {
            let values: Vec<f32> = values.iter().map(|&v| f32::from(v) * 10f32.powi(scale) * 1.000_01).collect();
            let k = pick.index(values.len()) as u64 + 1;
            let mut high = vec![0; HIGH_BINS];
            values.iter().for_each(|value| high[high_bin(value.magnitude_key())] += 1);
            let first = rank_from_top(&high, k).expect("k is within the values");
            let mut low = vec![0; LOW_BINS];
            values.iter().map(|v| v.magnitude_key()).filter(|&key| high_bin(key) == first.bin)
                .for_each(|key| low[low_bin(key)] += 1);
            let second = rank_from_top(&low, first.wanted).expect("the bin holds them");
            let key = (first.bin << LOW_BITS | second.bin) as u32;

            let mut sorted: Vec<f32> = values.iter().map(|v| v.abs()).collect();
            sorted.sort_by(|a, b| b.total_cmp(a));
            prop_assert_eq!(f32::from_bits(key), sorted[k as usize - 1]);
            let larger = sorted.iter().filter(|&&v| v > f32::from_bits(key)).count() as u64;
            prop_assert_eq!(second.wanted, k - larger);
        }
    }
}
