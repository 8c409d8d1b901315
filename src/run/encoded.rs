//! How far the weights of a quantised output are from those that were computed.

use std::collections::BTreeMap;

use numeric::EncodingError;
use plan::Plan;

/// How far encoded weights are from the computed ones, measured in a sample of each tensor's elements.
///
/// An error is the length of the difference between what is written and what was computed, divided by the length of what
/// was computed.
#[derive(Debug, Clone, PartialEq)]
pub struct QuantizationError {
    /// Of all encoded weights together.
    pub relative: f64,
    /// The tensor with the largest, and its error.
    pub largest: (String, f64),
    /// How many tensors were encoded.
    pub tensors: usize,
}

impl QuantizationError {
    /// Sums up what was measured of each tensor of a plan, by number; `None` if none was encoded.
    pub fn new(plan: &Plan, found: &BTreeMap<usize, EncodingError>) -> Option<Self> {
        let mut sum = EncodingError::default();
        let mut largest: Option<(&str, f64)> = None;
        for (number, error) in found {
            sum += *error;
            let name = plan.tensors.get(*number)?.name.as_str();
            if largest.is_none_or(|(_, most)| error.relative() > most) {
                largest = Some((name, error.relative()));
            }
        }
        let (name, most) = largest?;
        Some(Self {
            relative: sum.relative(),
            largest: (name.to_owned(), most),
            tensors: found.len(),
        })
    }

    /// The error in percent, to three decimals.
    pub fn percent(&self) -> f64 {
        (1e5 * self.relative).round() / 1e3
    }

    /// The error, as a sentence without its full stop.
    pub fn said(&self) -> String {
        let (name, most) = &self.largest;
        format!(
            "{} tensors were encoded with a relative error of {:.2} %; the largest is {:.2} %, of `{name}`",
            self.tensors,
            100.0 * self.relative,
            100.0 * most
        )
    }
}
