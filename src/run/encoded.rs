//! How far the weights of a quantised output are from those that were computed.

use std::collections::BTreeMap;

use serde::{Deserialize, Serialize};

use numeric::EncodingError;
use plan::Plan;

/// What was measured of an encoded tensor.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct MeasuredError {
    /// Its number in the output.
    pub(super) number: usize,
    tensor: String,
    differences: f64,
    values: f64,
    parts: f64,
    flushed: f64,
}

impl MeasuredError {
    fn error(&self) -> EncodingError {
        EncodingError {
            differences: self.differences,
            values: self.values,
            parts: self.parts,
            flushed: self.flushed,
        }
    }
}

/// What was measured of each encoded tensor of a plan, by number.
pub(super) fn measured(plan: &Plan, found: &BTreeMap<usize, EncodingError>) -> Vec<MeasuredError> {
    let measured = |(&number, error): (&usize, &EncodingError)| {
        Some(MeasuredError {
            number,
            tensor: plan.tensors.get(number)?.name.clone(),
            differences: error.differences,
            values: error.values,
            parts: error.parts,
            flushed: error.flushed,
        })
    };
    found.iter().filter_map(measured).collect()
}

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
    /// The tensor of which the largest share of parts has many values that became zero, and that share; none if no tensor
    /// has any.
    pub flushed: Option<(String, f64)>,
}

impl QuantizationError {
    /// Sums up what was measured of each tensor of a plan, by number; `None` if none was encoded.
    pub fn new(plan: &Plan, found: &BTreeMap<usize, EncodingError>) -> Option<Self> {
        Self::of(&measured(plan, found))
    }

    /// Sums up what was measured of tensors, in the order of the output; `None` if none was encoded.
    pub(super) fn of(tensors: &[MeasuredError]) -> Option<Self> {
        let mut sum = EncodingError::default();
        let mut largest: Option<(&str, f64)> = None;
        let mut flushed: Option<(&str, f64)> = None;
        for tensor in tensors {
            let (name, error) = (tensor.tensor.as_str(), tensor.error());
            sum += error;
            if largest.is_none_or(|(_, most)| error.relative() > most) {
                largest = Some((name, error.relative()));
            }
            let share = error.flushed_share();
            if share > flushed.map_or(0.0, |(_, most)| most) {
                flushed = Some((name, share));
            }
        }
        let (name, most) = largest?;
        Some(Self {
            relative: sum.relative(),
            largest: (name.to_owned(), most),
            tensors: tensors.len(),
            flushed: flushed.map(|(name, share)| (name.to_owned(), share)),
        })
    }

    /// The error in percent, to three decimals.
    pub fn percent(&self) -> f64 {
        (1e5 * self.relative).round() / 1e3
    }

    /// The error, as a sentence without its full stop.
    pub fn said(&self) -> String {
        let (name, most) = &self.largest;
        let flushed = self.flushed.as_ref().map(|(name, share)| {
            format!(
                "; in {:.2} % of `{name}`, many values became zero, as a far larger one shares their scale",
                100.0 * share
            )
        });
        let flushed = flushed.unwrap_or_default();
        format!(
            "{} tensors were encoded with a relative error of {:.2} %; the largest is {:.2} %, of `{name}`{flushed}",
            self.tensors,
            100.0 * self.relative,
            100.0 * most
        )
    }
}
