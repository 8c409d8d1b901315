//! Means, differences, and how far they may be off by the choice of items.

use super::trial::TaskResult;
use eval::TWO_SIDED_95;

/// A number and its standard error over the items as a sample.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Estimate {
    /// The number.
    pub value: f64,
    /// Its standard error; none of fewer than two items.
    pub error: Option<f64>,
}

impl Estimate {
    /// The mean of values.
    pub(crate) fn of(values: &[f64]) -> Estimate {
        let count = values.len() as f64;
        let mean = values.iter().sum::<f64>() / count;
        let squares: f64 = values
            .iter()
            .map(|value| (value - mean) * (value - mean))
            .sum();
        Estimate {
            value: mean,
            error: (values.len() > 1).then(|| (squares / (count * (count - 1.0))).sqrt()),
        }
    }

    /// Half the width of the interval that holds the number in 95 of 100 samples, by the normal distribution.
    pub fn half_width(&self) -> Option<f64> {
        self.error.map(|error| TWO_SIDED_95 * error)
    }
}

/// The mean of tasks, each counted alike; the items of a task are independent of another's.
pub(crate) fn mean_of_tasks(tasks: impl Iterator<Item = Estimate>) -> Estimate {
    let (mut sum, mut squares, mut count) = (0.0, Some(0.0), 0.0);
    for task in tasks {
        sum += task.value;
        squares = squares
            .zip(task.error)
            .map(|(squares, error)| squares + error * error);
        count += 1.0;
    }
    Estimate {
        value: sum / count,
        error: squares.map(|squares: f64| squares.sqrt() / count),
    }
}

/// The mean difference of two models on the same items, item by item; none if they were scored on others.
pub(crate) fn difference(a: &[TaskResult], b: &[TaskResult]) -> Option<Estimate> {
    if a.is_empty() || a.len() != b.len() {
        return None;
    }
    let tasks: Option<Vec<Estimate>> = a
        .iter()
        .zip(b)
        .map(|(a, b)| {
            let same = a.task == b.task && a.items == b.items;
            let (x, y) = (a.by_item(), b.by_item());
            if same && x.is_empty() && y.is_empty() {
                return Some(apart(a, b));
            }
            let paired: Vec<f64> = x.iter().zip(&y).map(|(x, y)| x - y).collect();
            (same && x.len() == y.len()).then(|| Estimate::of(&paired))
        })
        .collect();
    Some(mean_of_tasks(tasks?.into_iter()))
}

/// The difference of two scores whose items are not known: as if they were other items, which is less sure than it is.
fn apart(a: &TaskResult, b: &TaskResult) -> Estimate {
    let errors = a.standard_error.zip(b.standard_error);
    Estimate {
        value: a.score - b.score,
        error: errors.map(|(a, b)| (a * a + b * b).sqrt()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn task(verdicts: &str) -> TaskResult {
        TaskResult {
            task: "t".into(),
            items: verdicts.len(),
            score: 0.0,
            standard_error: None,
            verdicts: verdicts.into(),
            values: Vec::new(),
        }
    }

    #[test]
    fn a_paired_difference_is_surer_than_two_means() {
        let (a, b) = (task("1101101111"), task("1101100111"));
        let paired = difference(std::slice::from_ref(&a), std::slice::from_ref(&b)).unwrap();
        // One of ten differs: a mean of 0.1, and a variance of 0.1 over ten.
        assert!((paired.value - 0.1).abs() < 1e-12);
        assert!((paired.error.unwrap() - 0.1).abs() < 1e-12);
        let of = |task: &TaskResult| Estimate::of(&task.by_item()).error.unwrap();
        assert!(paired.error.unwrap() < (of(&a).powi(2) + of(&b).powi(2)).sqrt());
        assert_eq!(difference(&[a.clone(), a.clone()], &[b]), None);
        assert_eq!(difference(&[a], &[task("11")]), None);
    }

    #[test]
    fn tasks_count_alike() {
        let tasks = [
            Estimate {
                value: 1.0,
                error: Some(0.3),
            },
            Estimate {
                value: 0.0,
                error: Some(0.4),
            },
        ];
        let mean = mean_of_tasks(tasks.into_iter());
        assert_eq!(mean.value, 0.5);
        assert!((mean.error.unwrap() - 0.25).abs() < 1e-12);
        assert!((mean.half_width().unwrap() - 0.49).abs() < 1e-3);
        assert_eq!(
            Estimate::of(&[2.0]),
            Estimate {
                value: 2.0,
                error: None
            }
        );
    }
}
