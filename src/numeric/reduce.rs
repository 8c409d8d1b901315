//! Sums in f64, always in the same order, so that they do not depend on the processor or on threads.

use super::real::Real;
use super::vector::vectorised;

/// Partial sums kept side by side; fixed, whatever the width of the processor's registers.
const LANES: usize = 8;

vectorised! {
    /// The inner product of two slices of one length.
    pub fn dot<R: Real>(a: &[R], b: &[R]) -> f64 {
        striped(a.len().min(b.len()), |index| {
            a[index].to_f64() * b[index].to_f64()
        })
    }
}

vectorised! {
    /// The sum of magnitudes.
    pub fn abs_sum<R: Real>(values: &[R]) -> f64 {
        striped(values.len(), |index| values[index].abs().to_f64())
    }
}

/// Sums `term(0) .. term(length)`: lane `l` takes the terms `l, l + LANES, ...`, then lanes fold pairwise.
#[inline(always)]
fn striped(length: usize, term: impl Fn(usize) -> f64) -> f64 {
    let mut lanes = [0f64; LANES];
    let whole = length - length % LANES;
    for start in (0..whole).step_by(LANES) {
        for (lane, sum) in lanes.iter_mut().enumerate() {
            *sum += term(start + lane);
        }
    }
    for (lane, index) in (whole..length).enumerate() {
        lanes[lane] += term(index);
    }
    let [a, b, c, d, e, f, g, h] = lanes;
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
            let twin: f64 = values.iter().map(|value| value.abs()).sum();
            prop_assert!((abs_sum(&values) - twin).abs() <= 1e-12 * twin);
        }
    }

    #[test]
    fn sums_of_f32_are_kept_in_f64() {
        // In f32 the ones would vanish beside 2^24.
        let mut values = vec![1f32; 1 + 1024];
        values[0] = 16_777_216.0;
        assert_eq!(abs_sum(&values), 16_777_216.0 + 1024.0);
    }
}
