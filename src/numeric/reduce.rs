//! Sums in f64, always in the same order, so that they do not depend on the processor or on threads.

use super::real::Real;
use super::vector::vectorised;

/// Partial sums kept side by side; fixed, whatever the width of the processor's registers.
pub(super) const LANES: usize = 8;

vectorised! {
    /// The inner product of two slices of one length.
    pub fn dot<R: Real>(a: &[R], b: &[R]) -> f64 {
        let length = a.len().min(b.len());
        let mut lanes = [0f64; LANES];
        let (a, b) = (a[..length].as_chunks::<LANES>(), b[..length].as_chunks::<LANES>());
        for (a, b) in a.0.iter().zip(b.0) {
            for ((lane, a), b) in lanes.iter_mut().zip(a).zip(b) {
                *lane += a.to_f64() * b.to_f64();
            }
        }
        for ((lane, a), b) in lanes.iter_mut().zip(a.1).zip(b.1) {
            *lane += a.to_f64() * b.to_f64();
        }
        fold(lanes)
    }
}

vectorised! {
    /// The sum of magnitudes, and that of those that are kept: where `keep` is above zero.
    pub fn abs_sums<R: Real>(values: &[R], keep: &[R]) -> [f64; 2] {
        let length = values.len().min(keep.len());
        let (mut all, mut kept) = ([0f64; LANES], [0f64; LANES]);
        let values = values[..length].as_chunks::<LANES>();
        let keep = keep[..length].as_chunks::<LANES>();
        for (values, keep) in values.0.iter().zip(keep.0) {
            for i in 0..LANES {
                let chosen = if keep[i] > R::ZERO { values[i].abs() } else { R::ZERO };
                all[i] += values[i].abs().to_f64();
                kept[i] += chosen.to_f64();
            }
        }
        for (i, (value, keep)) in values.1.iter().zip(keep.1).enumerate() {
            let chosen = if *keep > R::ZERO { value.abs() } else { R::ZERO };
            all[i] += value.abs().to_f64();
            kept[i] += chosen.to_f64();
        }
        [fold(all), fold(kept)]
    }
}

/// Lane `l` has summed the terms `l, l + LANES, ...`; lanes fold pairwise.
#[inline(always)]
pub(super) fn fold([a, b, c, d, e, f, g, h]: [f64; LANES]) -> f64 {
    ((a + b) + (c + d)) + ((e + f) + (g + h))
}

#[cfg(test)]
mod tests {
    use ndarray::ArrayView1;
    use proptest::prelude::*;

    use super::*;

    proptest! {
        #[test]
        fn agree_with_ndarray(values in prop::collection::vec(-1e3f64..1e3, 0..300)) {
            let other: Vec<f64> = values.iter().rev().copied().collect();
            let twin = ArrayView1::from(&values).dot(&ArrayView1::from(&other));
            prop_assert!((dot(&values, &other) - twin).abs() <= 1e-12 * 1e6 * values.len() as f64);
            let [all, kept] = abs_sums(&values, &other);
            let twin: f64 = values.iter().map(|value| value.abs()).sum();
            prop_assert!((all - twin).abs() <= 1e-12 * twin);
            let positive = values.iter().zip(&other).filter(|&(_, &keep)| keep > 0.0);
            let twin: f64 = positive.map(|(value, _)| value.abs()).sum();
            prop_assert!((kept - twin).abs() <= 1e-12 * twin);
        }
    }

    #[test]
    fn sums_of_f32_are_kept_in_f64() {
        // In f32 the ones would vanish beside 2^24.
        let mut values = vec![1f32; 1 + 1024];
        values[0] = 16_777_216.0;
        assert_eq!(abs_sums(&values, &values), [16_777_216.0 + 1024.0; 2]);
    }
}
