//! Parameter settings and their values for one tensor: filters, gradients over depth, precedence.

use super::problem::{Located, Position};
use methods::{ParamInfo, ParamValue};

/// The settings of one `parameters:` mapping.
#[derive(Debug, Clone, Default, PartialEq)]
pub struct Parameters(pub(super) Vec<(&'static str, Setting)>);

impl Parameters {
    /// The setting of a parameter.
    pub fn get(&self, name: &str) -> Option<&Setting> {
        let found = self.0.iter().find(|(known, _)| *known == name);
        found.map(|(_, setting)| setting)
    }

    /// The parameters set here, in the order of the recipe.
    pub fn iter(&self) -> impl Iterator<Item = (&'static str, &Setting)> {
        self.0.iter().map(|(name, setting)| (*name, setting))
    }
}

/// The setting of one parameter at one level; every value is of the parameter's kind and in its range.
#[derive(Debug, Clone, PartialEq)]
pub struct Setting {
    pub(super) choices: Vec<Choice>,
    pub(super) at: Position,
}

/// A value for the tensors that a filter matches.
#[derive(Debug, Clone, PartialEq)]
pub(super) struct Choice {
    /// A part of the tensor's name; `None` matches every tensor.
    pub(super) filter: Option<Located<String>>,
    pub(super) curve: Curve,
}

/// A value over depth.
#[derive(Debug, Clone, PartialEq)]
pub(super) enum Curve {
    /// One value at every depth.
    Constant(ParamValue),
    /// Numbers at equal distances, interpolated linearly.
    Lines(Vec<f64>),
    /// Values that cannot be interpolated: each holds until the next.
    Steps(Vec<ParamValue>),
}

impl Setting {
    /// The value for a tensor at a relative depth in `0..=1`: the first choice whose filter is part of the name wins.
    /// `None` if there is none.
    pub(crate) fn value_at(&self, tensor_name: &str, depth: f64) -> Option<ParamValue> {
        self.choices
            .iter()
            .find(|choice| choice.lets_through(tensor_name))
            .and_then(|choice| choice.curve.value_at(depth))
    }

    /// The list of values over depth that applies to a tensor of that name, by its index among the choices.
    pub fn list_for(&self, tensor_name: &str) -> Option<usize> {
        let mut choices = self.choices.iter();
        let place = choices.position(|choice| choice.lets_through(tensor_name))?;
        match &self.choices[place].curve {
            Curve::Lines(values) => values.windows(2).any(|two| two[0] != two[1]),
            Curve::Steps(values) => values.windows(2).any(|two| two[0] != two[1]),
            Curve::Constant(_) => false,
        }
        .then_some(place)
    }

    /// The filters, in order; a filter that no tensor's name contains has no effect.
    pub fn filters(&self) -> impl Iterator<Item = &Located<String>> {
        self.choices
            .iter()
            .filter_map(|choice| choice.filter.as_ref())
    }

    /// Its position in the recipe.
    pub fn at(&self) -> Position {
        self.at
    }
}

impl Choice {
    fn lets_through(&self, tensor_name: &str) -> bool {
        match &self.filter {
            Some(filter) => tensor_name.contains(filter.value.as_str()),
            None => true,
        }
    }
}

impl Curve {
    fn value_at(&self, depth: f64) -> Option<ParamValue> {
        match self {
            Curve::Constant(value) => Some(*value),
            Curve::Lines(values) => line_value(values, depth).map(ParamValue::Number),
            Curve::Steps(values) => values.get(scaled(depth, values.len()) as usize).copied(),
        }
    }
}

/// Scales a depth to `count` points: 0 is the first, `count - 1` the last.
fn scaled(depth: f64, count: usize) -> f64 {
    let depth = if depth.is_nan() { 0.0 } else { depth };
    depth.clamp(0.0, 1.0) * count.saturating_sub(1) as f64
}

fn line_value(values: &[f64], depth: f64) -> Option<f64> {
    let scaled = scaled(depth, values.len());
    let index = scaled as usize;
    let from = *values.get(index)?;
    let to = values.get(index + 1).copied().unwrap_or(from);
    let part = scaled - index as f64;
    let value = (1.0 - part) * from + part * to;
    // Rounding must not move a value out of the parameter's range.
    Some(value.max(from.min(to)).min(from.max(to)))
}

/// The value of a parameter for one tensor. `levels` are ordered from most to least specific: source, slice, recipe.
/// The first level whose setting has a value wins, then the default. `None` means "unset", or missing if the parameter
/// is required.
pub fn resolve(
    info: &ParamInfo,
    levels: &[&Parameters],
    tensor_name: &str,
    depth: f64,
) -> Option<ParamValue> {
    levels
        .iter()
        .filter_map(|level| level.get(info.name))
        .find_map(|setting| setting.value_at(tensor_name, depth))
        .or(info.default)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn gradients_are_what_a_hand_works_out() {
        let lines = Curve::Lines(vec![0.0, 0.5, 0.3, 0.7, 1.0]);
        let check = |curve: &Curve, depth: f64, expected: f64| match curve.value_at(depth) {
            Some(ParamValue::Number(value)) => {
                assert!(
                    (value - expected).abs() < 1e-15,
                    "{depth}: {value}, not {expected}"
                );
            }
            other => panic!("{other:?}"),
        };
        check(&lines, 0.0, 0.0);
        check(&lines, 0.125, 0.25);
        check(&lines, 0.25, 0.5);
        // 1/3 of the depth is 4/3 of the way along the points: a third of the way from 0.5 to 0.3.
        check(&lines, 1.0 / 3.0, 0.5 - 0.2 / 3.0);
        check(&lines, 0.9, 0.7 + 0.3 * 0.6);
        check(&lines, 1.0, 1.0);
        check(&lines, f64::NAN, 0.0);
        check(&lines, 7.0, 1.0);
        check(&lines, -7.0, 0.0);
        check(&Curve::Lines(vec![3.0]), 0.5, 3.0);
        check(&Curve::Lines(vec![-1.0, 1.0]), 0.5, 0.0);
    }

    #[test]
    fn what_is_no_number_holds_until_the_next() {
        let steps = Curve::Steps(["a", "b", "c"].map(ParamValue::Word).to_vec());
        let check = |depth: f64, expected| {
            assert_eq!(
                steps.value_at(depth),
                Some(ParamValue::Word(expected)),
                "{depth}"
            );
        };
        check(0.0, "a");
        check(0.49, "a");
        check(0.5, "b");
        check(0.99, "b");
        check(1.0, "c");
    }
}
