//! Sums in f64, always in the same order, so that they depend neither on the processor nor on threads.

use super::real::Real;
use super::vector::vectorised;

/// Partial sums kept side by side; the same number for every register width.
pub(super) const LANES: usize = 8;

vectorised! {
    /// The inner product of two slices of equal length.
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

/// The inner products of two vectors with themselves and with each other, for elements that arrive strip by strip.
///
/// Equal to [`dot`] of the whole vectors to the last bit, if the length of every strip but the last is a multiple
/// of eight.
#[derive(Debug, Clone, Copy, Default)]
pub struct PairProducts {
    lanes: [[f64; LANES]; 3],
}

impl PairProducts {
    /// Adds the next elements of both vectors.
    pub fn add<R: Real>(&mut self, a: &[R], b: &[R]) {
        self.lanes = add_products(a, b, self.lanes);
    }

    /// Adds the next elements of `a - origin` and `b - origin`, subtracted in f64.
    pub fn add_from<R: Real>(&mut self, origin: &[R], a: &[R], b: &[R]) {
        self.lanes = add_products_from(origin, a, b, self.lanes);
    }

    /// The products `[a a, a b, b b]`.
    pub fn products(&self) -> [f64; 3] {
        self.lanes.map(fold)
    }
}

vectorised! {
    fn add_products<R: Real>(a: &[R], b: &[R], mut lanes: [[f64; LANES]; 3]) -> [[f64; LANES]; 3] {
        let (a, b) = (a.as_chunks::<LANES>(), b.as_chunks::<LANES>());
        for (a, b) in a.0.iter().zip(b.0) {
            lanes = add_product_lanes(a.map(R::to_f64), b.map(R::to_f64), lanes);
        }
        add_product_lanes(behind(a.1), behind(b.1), lanes)
    }
}

vectorised! {
    fn add_products_from<R: Real>(
        origin: &[R], a: &[R], b: &[R], mut lanes: [[f64; LANES]; 3],
    ) -> [[f64; LANES]; 3] {
        let (origin, a, b) = (origin.as_chunks::<LANES>(), a.as_chunks::<LANES>(), b.as_chunks::<LANES>());
        for ((origin, a), b) in origin.0.iter().zip(a.0).zip(b.0) {
            let origin = origin.map(R::to_f64);
            lanes = add_product_lanes(less(a.map(R::to_f64), origin), less(b.map(R::to_f64), origin), lanes);
        }
        let origin = behind(origin.1);
        add_product_lanes(less(behind(a.1), origin), less(behind(b.1), origin), lanes)
    }
}

/// The last elements, fewer than there are lanes, padded with zeros.
#[inline(always)]
fn behind<R: Real>(rest: &[R]) -> [f64; LANES] {
    let mut lanes = [0.0; LANES];
    for (lane, value) in lanes.iter_mut().zip(rest) {
        *lane = value.to_f64();
    }
    lanes
}

#[inline(always)]
fn less(a: [f64; LANES], b: [f64; LANES]) -> [f64; LANES] {
    let mut less = a;
    for (less, b) in less.iter_mut().zip(b) {
        *less -= b;
    }
    less
}

#[inline(always)]
fn add_product_lanes(
    a: [f64; LANES],
    b: [f64; LANES],
    [mut aa, mut ab, mut bb]: [[f64; LANES]; 3],
) -> [[f64; LANES]; 3] {
    for i in 0..LANES {
        aa[i] += a[i] * a[i];
    }
    for i in 0..LANES {
        ab[i] += a[i] * b[i];
    }
    for i in 0..LANES {
        bb[i] += b[i] * b[i];
    }
    [aa, ab, bb]
}

vectorised! {
    /// The sum of the magnitudes.
    pub fn abs_sum<R: Real>(values: &[R]) -> f64 {
        // One array of sums only: the compiler does not vectorise loops that add to two.
        let mut lanes = [0f64; LANES];
        let (values, rest) = values.as_chunks::<LANES>();
        for values in values {
            for (lane, value) in lanes.iter_mut().zip(values) {
                *lane += value.abs().to_f64();
            }
        }
        for (lane, value) in lanes.iter_mut().zip(rest) {
            *lane += value.abs().to_f64();
        }
        fold(lanes)
    }
}

/// Lane `l` has summed the terms `l, l + LANES, ...`; the lanes are added pairwise.
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
            let third: Vec<f64> = values.iter().map(|value| value * 0.5 + 1.0).collect();
            let from = |values: &[f64]| -> Vec<f64> {
                values.iter().zip(&third).map(|(value, third)| value - third).collect()
            };
            let (mut pair, mut apart) = (PairProducts::default(), PairProducts::default());
            for ((a, b), third) in values.chunks(48).zip(other.chunks(48)).zip(third.chunks(48)) {
                pair.add(a, b);
                apart.add_from(third, a, b);
            }
            let dots = |a: &[f64], b: &[f64]| [dot(a, a), dot(a, b), dot(b, b)];
            prop_assert_eq!(pair.products(), dots(&values, &other));
            prop_assert_eq!(apart.products(), dots(&from(&values), &from(&other)));
            let twin: f64 = values.iter().map(|value| value.abs()).sum();
            prop_assert!((abs_sum(&values) - twin).abs() <= 1e-12 * twin);
        }
    }

    #[test]
    fn sums_of_f32_are_kept_in_f64() {
        // In f32 the ones would be lost next to 2^24.
        let mut values = vec![1f32; 1 + 1024];
        values[0] = 16_777_216.0;
        assert_eq!(abs_sum(&values), 16_777_216.0 + 1024.0);
    }
}
