//! Exact formulas for means, shares and their errors.

use serde::{Deserialize, Serialize};

use crate::draw::Draw;

/// The mean of a sample, and its spread.
#[derive(Debug, Clone, Copy, PartialEq)]
pub(crate) struct Mean {
    count: usize,
    mean: f64,
    /// The sum of squared distances from the mean.
    squares: f64,
}

impl Mean {
    /// By Welford's sums, which lose no digits where values are large and near each other.
    pub(crate) fn of(values: impl Iterator<Item = f64>) -> Mean {
        let (mut count, mut mean, mut squares) = (0, 0.0, 0.0);
        for value in values {
            count += 1;
            let step = value - mean;
            mean += step / count as f64;
            squares += step * (value - mean);
        }
        Mean {
            count,
            mean,
            squares,
        }
    }

    /// The mean, and its standard error: that of the sample, with `count - 1`; none of fewer than two values.
    pub(crate) fn parts(self) -> (f64, Option<f64>) {
        let count = self.count as f64;
        let error = (self.squares / (count * (count - 1.0))).sqrt();
        (self.mean, (self.count > 1).then_some(error))
    }
}

/// The ratio of two sums, and its standard error by linearisation: that of the mean of `a - ratio b`, over the mean of `b`;
/// none of fewer than two pairs.
pub(crate) fn ratio(pairs: impl Iterator<Item = (f64, f64)> + Clone) -> (f64, Option<f64>) {
    let (above, below) = pairs
        .clone()
        .fold((0.0, 0.0), |(above, below), (a, b)| (above + a, below + b));
    let ratio = above / below;
    let rests = Mean::of(pairs.clone().map(|(a, b)| a - ratio * b));
    let mean = below / rests.count as f64;
    let (_, error) = rests.parts();
    (ratio, error.map(|error| error / mean))
}

/// The quantile of the normal distribution that leaves 2.5 % on either side.
pub const TWO_SIDED_95: f64 = 1.959_963_984_540_054;

/// How often a sample is drawn anew for an interval.
const RESAMPLES: usize = 1000;

/// Bounds that hold a number in 95 of 100 samples.
#[derive(Debug, Clone, Copy, PartialEq, Serialize, Deserialize)]
pub struct Interval {
    /// The lower bound.
    pub low: f64,
    /// The upper bound.
    pub high: f64,
}

/// Wilson's interval of a share: `right` of `count`.
///
/// Source: Wilson, "Probable inference, the law of succession, and statistical inference", 1927.
pub(crate) fn wilson(right: usize, count: usize) -> Interval {
    let (count, z) = (count as f64, TWO_SIDED_95);
    let share = right as f64 / count;
    let centre = share + z * z / (2.0 * count);
    let half = z * (share * (1.0 - share) / count + z * z / (4.0 * count * count)).sqrt();
    let scale = 1.0 + z * z / count;
    Interval {
        low: ((centre - half) / scale).max(0.0),
        high: ((centre + half) / scale).min(1.0),
    }
}

/// The probability that of `lost + won` fair coins the sides come out at least as unequal: McNemar's test, exact and
/// two-sided. 1 without any.
pub(crate) fn mcnemar(lost: usize, won: usize) -> f64 {
    let (fewer, all) = (lost.min(won), lost + won);
    // The logarithm of a term, all over k, over 2 to the power of all.
    let mut term = -(all as f64) * std::f64::consts::LN_2;
    let mut sum = 0.0;
    for k in 0..=fewer {
        sum += term.exp();
        term += ((all - k) as f64 / (k + 1) as f64).ln();
    }
    (2.0 * sum).min(1.0)
}

/// The interval of a number that is made of the sums of a sample's rows: rows are drawn with replacement, as many as there
/// are, again and again, and 2.5 % of the outcomes cut off at either end. The same seed gives the same interval.
///
/// Source: Efron, "Bootstrap methods: another look at the jackknife", 1979.
pub(crate) fn bootstrap<const N: usize>(
    rows: &[[f64; N]],
    seed: u64,
    of: impl Fn([f64; N]) -> f64,
) -> Interval {
    let mut draw = Draw::new(seed);
    let mut outcomes: Vec<f64> = (0..RESAMPLES)
        .map(|_| {
            let mut sums = [0.0; N];
            for _ in 0..rows.len() {
                let row = rows[draw.below(rows.len())];
                for (sum, value) in sums.iter_mut().zip(row) {
                    *sum += value;
                }
            }
            of(sums)
        })
        .collect();
    outcomes.sort_by(f64::total_cmp);
    let at = |share: f64| outcomes[(share * (RESAMPLES - 1) as f64).round() as usize];
    Interval {
        low: at(0.025),
        high: at(0.975),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn means_and_ratios_agree_with_two_passes() {
        let values = [3.0, -1.5, 4.25, 0.0, 2.5];
        let mean = values.iter().sum::<f64>() / 5.0;
        let squares: f64 = values.iter().map(|value| (value - mean).powi(2)).sum();
        let (found, error) = Mean::of(values.iter().copied()).parts();
        assert!((found - mean).abs() < 1e-15);
        assert!((error.unwrap() - (squares / 4.0 / 5.0).sqrt()).abs() < 1e-15);
        assert_eq!(Mean::of([7.0].into_iter()).parts(), (7.0, None));

        let pairs = [(4.0, 2.0), (9.0, 3.0), (2.0, 1.0)];
        let (found, error) = ratio(pairs.into_iter());
        assert_eq!(found, 2.5);
        // Rests of -1, 1.5 and -0.5, over the mean 2 of what is divided by.
        let spread: f64 = [-1.0f64, 1.5, -0.5].iter().map(|rest| rest * rest).sum();
        assert!((error.unwrap() - (spread / 2.0 / 3.0).sqrt() / 2.0).abs() < 1e-15);
        assert_eq!(ratio([(6.0, 2.0)].into_iter()), (3.0, None));
    }

    #[test]
    fn shares_have_wilson_s_interval() {
        // The bounds are the shares p of which the found one is 1.96 standard deviations away.
        for (right, count) in [(0, 5), (3, 10), (50, 100), (97, 100), (8, 8)] {
            let Interval { low, high } = wilson(right, count);
            let share = right as f64 / count as f64;
            for bound in [low, high] {
                let variance = bound * (1.0 - bound) / count as f64;
                let off = (share - bound).powi(2) - TWO_SIDED_95.powi(2) * variance;
                assert!(off.abs() < 1e-12, "{right} of {count}: {bound}");
            }
            assert!(low <= share + 1e-12 && share <= high + 1e-12);
        }
    }

    #[test]
    fn mcnemar_agrees_with_counted_coins() {
        // By hand: of 6 coins, at most 1 on one side: 2 (1 + 6) / 64.
        assert!((mcnemar(1, 5) - 14.0 / 64.0).abs() < 1e-12);
        assert_eq!(mcnemar(0, 0), 1.0);
        assert_eq!(mcnemar(3, 3), 1.0);
        for all in 1..12u32 {
            for lost in 0..=all {
                let fewer = lost.min(all - lost);
                let as_unequal = (0u32..1 << all).filter(|coins| {
                    let heads = coins.count_ones();
                    heads.min(all - heads) <= fewer
                });
                let counted = as_unequal.count() as f64 / f64::from(1u32 << all);
                let found = mcnemar(lost as usize, (all - lost) as usize);
                assert!((found - counted).abs() < 1e-12, "{lost} of {all}");
            }
        }
        // Of many coins no term is too small to be counted.
        assert!(mcnemar(40_000, 41_000) < 1e-3 && mcnemar(40_000, 40_100) > 0.5);
    }

    #[test]
    fn intervals_by_drawing_are_those_of_the_normal_distribution_where_it_fits() {
        let rows: Vec<[f64; 1]> = (0..900).map(|at| [f64::from(at % 30)]).collect();
        let mean = |sums: [f64; 1]| sums[0] / 900.0;
        let found = bootstrap(&rows, 1, mean);
        assert_eq!(found, bootstrap(&rows, 1, mean));
        assert_ne!(found, bootstrap(&rows, 2, mean));
        // The variance of 0 to 29 is (900 - 1) / 12.
        let half = TWO_SIDED_95 * (899.0f64 / 12.0 / 900.0).sqrt();
        assert!((found.low - (14.5 - half)).abs() < 0.08, "{found:?}");
        assert!((found.high - (14.5 + half)).abs() < 0.08, "{found:?}");
        let same = bootstrap(&[[2.0, 1.0], [4.0, 2.0]], 0, |[a, b]| a / b);
        assert_eq!(
            same,
            Interval {
                low: 2.0,
                high: 2.0
            }
        );
    }
}
