//! Exact formulas for means, shares and their errors.

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
}
