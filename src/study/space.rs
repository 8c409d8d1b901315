//! What is searched: values of a recipe, and the points of a unit cube that stand for them.

use std::ops::Range;

use recipe::{Position, Value};
use serde::{Deserialize, Serialize};

use super::values;

/// The path that stands for the seed of random masks, which is no value of a recipe.
pub(crate) const SEED: &str = "random_seed";

/// The values that are searched, in the order of the study's file.
#[derive(Debug, Clone, Default, Serialize, Deserialize)]
#[serde(transparent)]
pub struct Space {
    /// The parameters.
    pub parameters: Vec<Parameter>,
}

/// A value of the recipe, or several weights of one sum.
#[derive(Debug, Clone, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Parameter {
    /// Its key in the study's file.
    pub name: String,
    /// The paths into the recipe: one, or one for each weight of a simplex.
    pub paths: Vec<String>,
    /// What values it may have.
    pub domain: Domain,
    /// Number of values over the depth of the model; none for one value for all layers.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub layers: Option<usize>,
    /// The position of its key.
    #[serde(skip)]
    pub at: Option<Position>,
}

/// The values that a parameter may have.
#[derive(Debug, Clone, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Domain {
    /// These, in an order that means something.
    #[serde(with = "values::list")]
    Grid(Vec<Value>),
    /// These, in no order.
    #[serde(with = "values::list")]
    Choice(Vec<Value>),
    /// Any number between two.
    Uniform {
        /// The least.
        low: f64,
        /// The largest.
        high: f64,
    },
    /// Any number between two that are more than 0; each order of magnitude is as likely.
    Log {
        /// The least.
        low: f64,
        /// The largest.
        high: f64,
    },
    /// Weights of at least 0 with this sum.
    Simplex {
        /// The sum.
        total: f64,
    },
}

/// A coordinate of the unit cube.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Dimension {
    /// Any number.
    Continuous,
    /// One of so many values in order.
    Ordered(usize),
    /// One of so many values.
    Unordered(usize),
}

impl Dimension {
    /// The number of values, if it is finite.
    pub fn count(self) -> Option<usize> {
        match self {
            Dimension::Continuous => None,
            Dimension::Ordered(count) | Dimension::Unordered(count) => Some(count),
        }
    }
}

impl Space {
    /// The coordinates of a point, in order.
    pub fn dimensions(&self) -> Vec<Dimension> {
        let of = |parameter: &Parameter| {
            let dimension = match &parameter.domain {
                Domain::Grid(values) => Dimension::Ordered(values.len()),
                Domain::Choice(values) => Dimension::Unordered(values.len()),
                _ => Dimension::Continuous,
            };
            vec![dimension; parameter.dimensions()]
        };
        self.parameters.iter().flat_map(of).collect()
    }

    /// What is searched: the paths of each value, and its domain in words.
    pub fn in_words(&self) -> Vec<(String, String)> {
        let words = |one: &Parameter| (one.paths.join(" "), one.in_words());
        self.parameters.iter().map(words).collect()
    }

    /// How many values there are to search.
    pub(crate) fn count(&self) -> usize {
        let each = self.parameters.iter().map(Parameter::dimensions);
        each.fold(0, usize::saturating_add)
    }

    /// Each parameter with its share of the coordinates.
    pub(crate) fn shares(&self) -> impl Iterator<Item = (&Parameter, Range<usize>)> {
        let mut start = 0;
        self.parameters.iter().map(move |parameter| {
            let end = start + parameter.dimensions();
            let share = start..end;
            start = end;
            (parameter, share)
        })
    }

    /// The values that a point stands for: a path into the recipe, and the value in YAML.
    pub fn values(&self, point: &[f64]) -> Vec<(String, String)> {
        let mut point = point.iter().copied();
        let mut values = Vec::new();
        for parameter in &self.parameters {
            parameter.values(&mut point, &mut values);
        }
        values
    }
}

impl Parameter {
    /// How many coordinates stand for it.
    fn dimensions(&self) -> usize {
        let each = match self.domain {
            Domain::Simplex { .. } => self.paths.len(),
            _ => 1,
        };
        each.saturating_mul(self.layers.unwrap_or(1))
    }

    /// What is searched, in words.
    pub fn in_words(&self) -> String {
        let list = |values: &[Value]| {
            let values: Vec<String> = values.iter().map(Value::in_one_line).collect();
            values.join(", ")
        };
        let words = match &self.domain {
            Domain::Grid(values) => format!("grid of {}", list(values)),
            Domain::Choice(values) => format!("one of {}", list(values)),
            Domain::Uniform { low, high } => format!("uniform from {low} to {high}"),
            Domain::Log { low, high } => format!("logarithmic from {low} to {high}"),
            Domain::Simplex { total } => format!("weights with the sum {total}"),
        };
        match self.layers {
            Some(layers) => format!("{words}, for {layers} groups of layers"),
            None => words,
        }
    }

    /// The values that its coordinates stand for, by path.
    pub(crate) fn values_at(&self, units: &[f64]) -> Vec<(String, String)> {
        let mut values = Vec::new();
        self.values(&mut units.iter().copied(), &mut values);
        values
    }

    fn values(&self, point: &mut impl Iterator<Item = f64>, values: &mut Vec<(String, String)>) {
        // By path, one value for each group of layers.
        let mut of_paths = vec![Vec::new(); self.paths.len()];
        for _ in 0..self.layers.unwrap_or(1) {
            match &self.domain {
                Domain::Simplex { total } => {
                    let units: Vec<f64> = point.by_ref().take(self.paths.len()).collect();
                    for (of_path, weight) in of_paths.iter_mut().zip(simplex(&units, *total)) {
                        of_path.push(number(weight));
                    }
                }
                domain => {
                    let value = domain.value(point.next().unwrap_or(0.5));
                    of_paths
                        .iter_mut()
                        .for_each(|of_path| of_path.push(value.clone()));
                }
            }
        }
        for (path, of_path) in self.paths.iter().zip(of_paths) {
            let value = match (self.layers, of_path.first()) {
                (None, Some(only)) => only.clone(),
                _ => format!("[{}]", of_path.join(", ")),
            };
            values.push((path.clone(), value));
        }
    }
}

impl Domain {
    fn value(&self, unit: f64) -> String {
        match self {
            Domain::Grid(values) | Domain::Choice(values) => {
                let at = index(unit, values.len());
                values.get(at).map_or_else(String::new, Value::in_one_line)
            }
            Domain::Uniform { low, high } => {
                let step = step(high - low);
                let value = libm::round((low + unit * (high - low)) / step) * step;
                number(value.clamp(*low, *high))
            }
            Domain::Log { low, high } => {
                let (least, most) = (libm::log(*low), libm::log(*high));
                let value = libm::exp(least + unit * (most - least));
                number(value.clamp(*low, *high))
            }
            Domain::Simplex { .. } => String::new(),
        }
    }
}

/// The number of the value that a coordinate stands for, of so many.
pub(crate) fn index(unit: f64, count: usize) -> usize {
    ((unit * count as f64) as usize).min(count.saturating_sub(1))
}

/// The coordinate in the middle of a value's share, of so many.
pub(crate) fn middle(index: usize, count: usize) -> f64 {
    (index as f64 + 0.5) / count as f64
}

/// Weights with this sum: uniform on the simplex where the units are uniform.
fn simplex(units: &[f64], total: f64) -> Vec<f64> {
    let parts: Vec<f64> = units
        .iter()
        .map(|unit| -libm::log1p(-unit.clamp(0.0, 1.0 - 1e-12)))
        .collect();
    let sum: f64 = parts.iter().sum();
    if sum <= 0.0 {
        return vec![total / units.len() as f64; units.len()];
    }
    parts.iter().map(|part| part / sum * total).collect()
}

/// The largest power of ten that is at most a ten-thousandth of a range.
fn step(range: f64) -> f64 {
    match range > 0.0 {
        true => libm::pow(10.0, libm::floor(libm::log10(range)) - 4.0),
        false => 1.0,
    }
}

/// A number of at most five digits that count, as text: what a person would write.
fn number(value: f64) -> String {
    if value == 0.0 {
        return "0".into();
    }
    // Formatted and read again, it has the digits that count and no more.
    let short = format!("{value:.4e}").parse().unwrap_or(value);
    let in_yaml = match short {
        whole if whole == libm::trunc(whole) && whole.abs() < 1e15 => return format!("{whole}"),
        short => Value::Float(short),
    };
    in_yaml.in_one_line()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn parameter(domain: Domain, paths: &[&str], layers: Option<usize>) -> Parameter {
        Parameter {
            name: "p".into(),
            paths: paths.iter().map(|&path| path.to_owned()).collect(),
            domain,
            layers,
            at: None,
        }
    }

    #[test]
    fn a_point_is_values_that_a_person_would_write() {
        let words = ["ties", "linear"]
            .map(|word| Value::Text(word.into()))
            .to_vec();
        let space = Space {
            parameters: vec![
                parameter(
                    Domain::Uniform {
                        low: 0.0,
                        high: 2.0,
                    },
                    &["a"],
                    None,
                ),
                parameter(
                    Domain::Log {
                        low: 1e-5,
                        high: 1.0,
                    },
                    &["b"],
                    None,
                ),
                parameter(Domain::Choice(words), &["c"], None),
                parameter(
                    Domain::Grid(vec![Value::Int(1), Value::Float(0.5)]),
                    &["d"],
                    None,
                ),
                parameter(
                    Domain::Uniform {
                        low: 0.0,
                        high: 1.0,
                    },
                    &["e"],
                    Some(2),
                ),
                parameter(Domain::Simplex { total: 1.0 }, &["f", "g"], None),
            ],
        };
        let point = [1.0 / 3.0, 0.1, 0.9, 0.2, 0.0, 0.25, 0.5, 0.5];
        assert_eq!(space.dimensions().len(), point.len());
        let values: Vec<String> = space
            .values(&point)
            .iter()
            .map(|(path, value)| format!("{path}={value}"))
            .collect();
        insta::assert_snapshot!(values.join("\n"), @"
        a=0.6667
        b=3.1623e-5
        c=linear
        d=1
        e=[0, 0.25]
        f=0.5
        g=0.5
        ");
        assert_eq!(space.values(&[0.0; 8])[0].1, "0");
        assert_eq!(space.values(&[1.0; 8])[0].1, "2");
        assert_eq!(space.values(&[1.0; 8])[1].1, "1");
    }

    /// The share of the simplex in which the first weight is at least a half is a quarter, of three.
    #[test]
    fn weights_on_a_simplex_are_uniform() {
        let mut draw = crate::draw::Draw::new(1, 0, "test");
        let (mut large, count) = (0, 20_000);
        for _ in 0..count {
            let weights = simplex(&[draw.unit(), draw.unit(), draw.unit()], 2.0);
            assert!((weights.iter().sum::<f64>() - 2.0).abs() < 1e-12);
            large += usize::from(weights[0] >= 1.0);
        }
        let share = large as f64 / f64::from(count);
        assert!((share - 0.25).abs() < 0.015, "{share}");
    }
}
