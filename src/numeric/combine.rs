//! Weighted sums of sources: the last step of every merge.

use super::lanes::{LANES, each, load};
use super::real::Real;
use super::vector::vectorised;

/// How a weighted sum is computed.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct SumRule<R> {
    /// The sum is divided by this; one for no division.
    pub divisor: R,
    /// Whether each term is added with one rounding. Otherwise its product is rounded first, so that terms which
    /// cancel sum to zero. mergekit does the first in `linear` and the second in `slerp`.
    pub fused: bool,
    /// Whether the result is a mean: its weights have one sign and add up to one. A mean lies between the least and
    /// the largest source value; rounding can push it out by one ULP, so it is clamped to them. As a consequence,
    /// an element on which all sources agree comes out unchanged, to the bit.
    pub mean: bool,
}

/// `out[i]` is the sum of `weight * sources[source][start + i]` over the terms `(source, weight)`, in their order.
///
/// A source in no term has no effect, even if it holds infinities. Without terms, the result is zeros.
pub fn weighted_sum<R: Real>(
    sources: &[&[R]],
    terms: &[(usize, R)],
    start: usize,
    rule: SumRule<R>,
    out: &mut [R],
) {
    let kernel = match (rule.fused, rule.mean) {
        (false, false) => sum_terms::<R, false, false>,
        (false, true) => sum_terms::<R, false, true>,
        (true, false) => sum_terms::<R, true, false>,
        (true, true) => sum_terms::<R, true, true>,
    };
    kernel(sources, terms, start, rule.divisor, out);
}

vectorised! {
    fn sum_terms<R: Real, const FUSED: bool, const MEAN: bool>(
        sources: &[&[R]], terms: &[(usize, R)], start: usize, divisor: R, out: &mut [R],
    ) {
        let (chunks, rest) = out.as_chunks_mut::<LANES>();
        let behind = start + chunks.len() * LANES;
        for (index, out) in chunks.iter_mut().enumerate() {
            *out = sum_lanes::<R, FUSED, MEAN, LANES>(sources, terms, start + index * LANES, divisor);
        }
        for (index, out) in rest.iter_mut().enumerate() {
            [*out] = sum_lanes::<R, FUSED, MEAN, 1>(sources, terms, behind + index, divisor);
        }
    }
}

#[inline(always)]
fn sum_lanes<R: Real, const FUSED: bool, const MEAN: bool, const N: usize>(
    sources: &[&[R]],
    terms: &[(usize, R)],
    at: usize,
    divisor: R,
) -> [R; N] {
    let Some((&(first, weight), others)) = terms.split_first() else {
        return [R::ZERO; N];
    };
    let first: [R; N] = load(sources[first], at);
    let mut sum: [R; N] = each(|i| weight * first[i]);
    let (mut low, mut high) = (first, first);
    for &(source, weight) in others {
        let value: [R; N] = load(sources[source], at);
        sum = each(|i| match FUSED {
            true => value[i].times_plus(weight, sum[i]),
            false => sum[i] + weight * value[i],
        });
        if MEAN {
            low = each(|i| if value[i] < low[i] { value[i] } else { low[i] });
            high = each(|i| {
                if value[i] > high[i] {
                    value[i]
                } else {
                    high[i]
                }
            });
        }
    }
    if divisor != R::ONE {
        sum = each(|i| sum[i] / divisor);
    }
    if !MEAN {
        return sum;
    }
    each(|i| {
        // A comparison with NaN is false, so a NaN stays. Equal values are replaced too, since -0 equals +0.
        let raised = if sum[i] <= low[i] { low[i] } else { sum[i] };
        if raised >= high[i] { high[i] } else { raised }
    })
}

#[cfg(test)]
mod tests {
    use ndarray::{Array1, Array2, Axis};
    use proptest::prelude::*;

    use super::*;

    proptest! {
        #[test]
        fn agrees_with_the_matrix_product_in_f64(
            length in 0usize..5000, count in 1usize..5, seed in 0u64..1000,
        ) {
            let value = |row: usize, column: usize| {
                ((row * 7919 + column * 104_729 + seed as usize * 31) % 2003) as f32 / 1000.0 - 1.0
            };
            let rows: Vec<Vec<f32>> = (0..count).map(|r| (0..length).map(|c| value(r, c)).collect()).collect();
            let weights: Vec<f32> = (0..count).map(|r| value(r, length + 1)).collect();
            let sources: Vec<&[f32]> = rows.iter().map(Vec::as_slice).collect();
            let mut out = vec![0f32; length];
            let terms: Vec<(usize, f32)> = weights.iter().copied().enumerate().collect();
            let rule = SumRule { divisor: 1.0, fused: seed % 2 == 0, mean: false };
            weighted_sum(&sources, &terms, 0, rule, &mut out);
            // Starting anywhere makes no difference.
            let start = seed as usize % (length + 1);
            let mut rest = vec![0f32; length - start];
            weighted_sum(&sources, &terms, start, rule, &mut rest);
            prop_assert_eq!(&rest, &out[start..]);

            let matrix = Array2::from_shape_fn((count, length), |(r, c)| f64::from(rows[r][c]));
            let twin = Array1::from_iter(weights.iter().map(|&w| f64::from(w))).dot(&matrix);
            for (fast, slow) in out.iter().zip(&twin) {
                prop_assert!((f64::from(*fast) - slow).abs() <= 1e-6);
            }

            let mut halves = out.clone();
            weighted_sum(&sources, &terms, 0, SumRule { divisor: 2.0, ..rule }, &mut halves);
            prop_assert!(out.iter().zip(&halves).all(|(sum, half)| sum / 2.0 == *half));

            weighted_sum(&sources, &terms, 0, SumRule { mean: true, ..rule }, &mut out);
            for (column, clamped) in matrix.axis_iter(Axis(1)).zip(&out) {
                let low = column.fold(f64::INFINITY, |a, &b| a.min(b));
                let high = column.fold(f64::NEG_INFINITY, |a, &b| a.max(b));
                prop_assert!((low..=high).contains(&f64::from(*clamped)));
            }
        }
    }

    const MEAN: SumRule<f64> = SumRule {
        divisor: 1.0,
        fused: true,
        mean: true,
    };

    #[test]
    fn a_source_in_no_term_does_not_matter() {
        let mut out = [0f64; 2];
        let sources: [&[f64]; 2] = [&[1.0, 2.0], &[f64::INFINITY, f64::NAN]];
        weighted_sum(&sources, &[(0, 1.0)], 0, MEAN, &mut out);
        assert_eq!(out, [1.0, 2.0]);
        weighted_sum(&sources, &[], 0, MEAN, &mut out);
        assert_eq!(out, [0.0, 0.0]);
    }

    #[test]
    fn copies_come_out_as_they_went_in() {
        let values = [0.1f64, -3.7e200, 5e-324, 1.0 / 3.0];
        let mut out = [0f64; 4];
        let terms = [(0, 0.1), (1, 0.2), (2, 0.7)];
        weighted_sum(&[&values, &values, &values], &terms, 0, MEAN, &mut out);
        assert_eq!(out, values);
    }
}
