//! Finds out why a tensor differs from the recipe's result: a copy, other weights, another precision.
//!
//! Whether a tensor is right is decided by equality alone; the fit here only names the fault. Weights fitted to values
//! of few bits are biased towards the first source. They are therefore compared with weights fitted to the recomputed
//! values in the same way, not with the recipe's numbers.

use std::cmp::Ordering;

use super::checks;
use super::compare::There;
use crate::CheckInfo;
use numeric::{Elements, FloatType};
use plan::{Plan, PlannedTensor};

/// Two fitted weights count as different if they are this many standard errors apart.
const STANDARD_ERRORS: f64 = 5.0;

/// The smallest difference between weights that counts.
const LEAST_DIFFERENCE: f64 = 2e-3;

/// With more sources than this, no weights are fitted.
const MOST_SOURCES: usize = 64;

/// The cause of a difference: the check that reports it, and what was expected and found.
pub(super) struct Cause {
    pub(super) check: &'static CheckInfo,
    pub(super) expected: String,
    pub(super) found: String,
}

/// Looks for the cause of a difference in one window of a tensor: its first element, and the expected bytes.
pub(super) fn cause(
    plan: &Plan,
    tensor: &PlannedTensor,
    there: &There<'_>,
    first: u64,
    expected: &[u8],
) -> Option<Cause> {
    let format = there.format?;
    let start = first as usize * there.size;
    let found = there.bytes?.get(start..start + expected.len())?;
    let window = Window {
        labels: (tensor.sources.iter())
            .map(|source| plan.models[source.model].label().to_owned())
            .collect(),
        sources: (0..tensor.sources.len())
            .map(|source| {
                values(
                    plan.source_values(tensor, source)?.as_ref(),
                    first,
                    expected.len() / there.size,
                )
            })
            .collect::<Option<_>>()?,
        base: tensor.base,
        expected: decoded(format, expected),
        found: decoded(format, found),
        format,
    };
    window
        .copy()
        .or_else(|| window.precision())
        .or_else(|| window.weights())
}

fn values(elements: &dyn Elements, first: u64, count: usize) -> Option<Vec<f64>> {
    let mut values = numeric::filled(count, 0.0).ok()?;
    numeric::Fill::<f64>::fill(elements, first, &mut values).ok()?;
    Some(values)
}

fn decoded(format: FloatType, bytes: &[u8]) -> Vec<f64> {
    let mut values = vec![0.0; bytes.len() / format.size()];
    format.decode(bytes, &mut values);
    values
}

/// Neighbouring elements of a tensor: those of its sources, the expected and the found ones.
struct Window {
    labels: Vec<String>,
    sources: Vec<Vec<f64>>,
    base: Option<usize>,
    expected: Vec<f64>,
    found: Vec<f64>,
    format: FloatType,
}

impl Window {
    fn copy(&self) -> Option<Cause> {
        let equal = |source: &Vec<f64>| {
            self.rounded(source, self.format) == self.found && *source != self.expected
        };
        let index = self.sources.iter().position(equal)?;
        Some(Cause {
            check: &checks::COPY,
            expected: "a merge".to_owned(),
            found: format!("the values of `{}`", self.labels[index]),
        })
    }

    fn precision(&self) -> Option<Cause> {
        let narrow = [FloatType::Bf16, FloatType::F16, FloatType::F32];
        let through = narrow.into_iter().find(|&narrow| {
            narrow != self.format
                && self.rounded(&self.rounded(&self.expected, narrow), self.format) == self.found
        })?;
        Some(Cause {
            check: &checks::PRECISION,
            expected: format!("{:?}", self.format.dtype()),
            found: format!("the result rounded to {:?} on the way", through.dtype()),
        })
    }

    /// Values after rounding to a format.
    fn rounded(&self, values: &[f64], format: FloatType) -> Vec<f64> {
        let mut values = values.to_vec();
        let mut bytes = vec![0; values.len() * format.size()];
        format.encode(&mut values, false, &mut bytes);
        decoded(format, &bytes)
    }

    fn weights(&self) -> Option<Cause> {
        let (found, expected) = (self.fit(&self.found)?, self.fit(&self.expected)?);
        let tolerance = |source: usize| {
            LEAST_DIFFERENCE + STANDARD_ERRORS * (found.errors[source] + expected.errors[source])
        };
        let (of_found, of_expected) = (&found.weights, &expected.weights);
        let is =
            |source: usize, weight: f64, other: f64| (weight - other).abs() <= tolerance(source);
        // The base's own weight follows from the others.
        let merged: Vec<usize> = (0..self.sources.len())
            .filter(|&source| Some(source) != self.base)
            .collect();
        let differing: Vec<usize> = merged
            .iter()
            .copied()
            .filter(|&source| !is(source, of_found[source], of_expected[source]))
            .collect();
        // If no weighted sum of the sources explains the values, there is another cause.
        if differing.is_empty() || found.residual > 2.0 * expected.residual + 0.05 {
            return None;
        }
        let list = |weights: &[f64]| {
            let of = |&source: &usize| {
                format!("{} of `{}`", shown(weights[source]), self.labels[source])
            };
            merged.iter().map(of).collect::<Vec<_>>().join(", ")
        };
        let check = if let [a, b] = differing[..]
            && is(a, of_found[a], of_expected[b])
            && is(b, of_found[b], of_expected[a])
        {
            &checks::SWAPPED
        } else if differing
            .iter()
            .any(|&source| is(source, of_found[source], 0.0))
            && (self.base.is_some() || merged.len() > 2)
        {
            &checks::NOT_APPLIED
        } else if self.base.is_some() && self.scale(&merged, of_found, of_expected, &is) {
            &checks::SCALED
        } else {
            &checks::WEIGHTS
        };
        Some(Cause {
            check,
            expected: list(of_expected),
            found: list(of_found),
        })
    }

    /// Whether the found weights are the expected ones times a common factor.
    fn scale(
        &self,
        merged: &[usize],
        found: &[f64],
        expected: &[f64],
        is: &dyn Fn(usize, f64, f64) -> bool,
    ) -> bool {
        let dot = |a: &[f64], b: &[f64]| merged.iter().map(|&i| a[i] * b[i]).sum::<f64>();
        let scale = dot(found, expected) / dot(expected, expected);
        scale.is_finite() && merged.iter().all(|&i| is(i, found[i], scale * expected[i]))
    }

    /// Fits the weights of the sources by least squares, so that their sum is closest to `values`.
    ///
    /// Sources are close to each other. One is therefore taken as the origin, and of each other source its difference
    /// from the origin.
    fn fit(&self, values: &[f64]) -> Option<Fit> {
        let count = self.sources.len();
        if count > MOST_SOURCES {
            return None;
        }
        let origin = self.base.unwrap_or(0);
        let columns: Vec<Vec<f64>> = self
            .sources
            .iter()
            .enumerate()
            .map(|(source, column)| match source == origin {
                true => column.clone(),
                false => difference(column, &self.sources[origin]),
            })
            .collect();
        let target = difference(values, &self.sources[origin]);
        let gram: Vec<Vec<f64>> = columns
            .iter()
            .map(|a| columns.iter().map(|b| dot(a, b)).collect())
            .collect();
        let right: Vec<f64> = columns.iter().map(|column| dot(column, &target)).collect();
        let inverse = inverse(gram)?;
        let mut weights: Vec<f64> = inverse.iter().map(|row| dot(row, &right)).collect();
        let fitted = |index: usize| {
            let terms = columns.iter().zip(&weights);
            terms
                .map(|(column, weight)| column[index] * weight)
                .sum::<f64>()
        };
        let residual: f64 = (0..target.len())
            .map(|index| (target[index] - fitted(index)).powi(2))
            .sum();
        let variance = residual / (target.len().saturating_sub(count)).max(1) as f64;
        let errors = (0..count).map(|at| (variance * inverse[at][at]).max(0.0).sqrt());
        let mut errors: Vec<f64> = errors.collect();
        // The origin's weight is one minus those of the differences.
        weights[origin] += 1.0;
        for other in (0..count).filter(|&other| other != origin) {
            weights[origin] -= weights[other];
            errors[origin] += errors[other];
        }
        Some(Fit {
            errors,
            weights,
            residual: (residual / dot(&target, &target).max(f64::MIN_POSITIVE)).sqrt(),
        })
    }
}

/// Weights of the sources that were fitted to values.
struct Fit {
    weights: Vec<f64>,
    /// The standard errors of the weights.
    errors: Vec<f64>,
    /// The unexplained share of the variation.
    residual: f64,
}

fn difference(a: &[f64], b: &[f64]) -> Vec<f64> {
    a.iter().zip(b).map(|(a, b)| a - b).collect()
}

fn dot(a: &[f64], b: &[f64]) -> f64 {
    a.iter().zip(b).map(|(a, b)| a * b).sum()
}

/// A weight for display.
fn shown(weight: f64) -> String {
    format!("{weight:.3}")
}

/// The inverse of a symmetric matrix, by elimination with pivots; `None` if it is singular or nearly so.
fn inverse(mut matrix: Vec<Vec<f64>>) -> Option<Vec<Vec<f64>>> {
    let size = matrix.len();
    for (row, values) in matrix.iter_mut().enumerate() {
        values.extend((0..size).map(|column| f64::from(u8::from(row == column))));
    }
    for column in 0..size {
        let size_of = |row: &usize| matrix[*row][column].abs();
        let order = |a: &usize, b: &usize| {
            size_of(a)
                .partial_cmp(&size_of(b))
                .unwrap_or(Ordering::Equal)
        };
        let pivot = (column..size).max_by(order)?;
        matrix.swap(column, pivot);
        let head = matrix[column][column];
        if head == 0.0 || !head.is_finite() {
            return None;
        }
        matrix[column].iter_mut().for_each(|value| *value /= head);
        let pivot_row = matrix[column].clone();
        for (row, values) in matrix.iter_mut().enumerate() {
            let factor = values[column];
            if row != column && factor != 0.0 {
                for (value, pivot) in values.iter_mut().zip(&pivot_row) {
                    *value -= factor * pivot;
                }
            }
        }
    }
    Some(matrix.into_iter().map(|row| row[size..].to_vec()).collect())
}
