//! Types `parameters:`: every value must be of the parameter's kind, in its range, and at a level that is read.

use super::keys::Place;
use super::nearest::{nearest, suggestion};
use super::problem::{Located, Position, Problem, ProblemKind, listed, quoted};
use super::setting::{Choice, Curve, Parameters, Setting};
use super::walk::Walk;
use super::yaml::{Entry, Node, Value};
use methods::{MethodInfo, ParamInfo, ParamKind, ParamScope, ParamValue};

/// The owner of a `parameters:` mapping.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Level {
    Recipe,
    Module,
    Slice,
    /// A source of a slice.
    Source,
    /// An entry of `models:`.
    Model,
}

const CONDITIONAL: Place = Place {
    name: "a conditional value",
    keys: &["filter", "value"],
};

impl Walk<'_> {
    /// Types a `parameters:` mapping; for an unknown method it is not checked.
    pub(super) fn parameters(&mut self, node: &Node, level: Level) -> Parameters {
        let mut parameters = Parameters::default();
        let entries = match (&node.value, self.method) {
            (Value::Null, _) => return parameters,
            (Value::Map(entries), Some(_)) => entries,
            (Value::Map(_), None) => return parameters,
            (other, _) => {
                let message = format!("expected a mapping of parameters, found {}", other.found());
                let hint = "write `name: value`, one to a line";
                self.refuse(ProblemKind::Invalid, node.at, message, Some(hint));
                self.flawed.all = true;
                return parameters;
            }
        };
        let Some(method) = self.method else {
            return parameters;
        };
        for entry in entries {
            let Some(info) = method.params.iter().find(|info| info.name == entry.key) else {
                self.unknown_parameter(method, entry);
                continue;
            };
            let each = matches!(level, Level::Source | Level::Model);
            if each && info.scope == ParamScope::Tensor {
                self.misplaced(info, entry, level);
                continue;
            }
            match self.setting(info, entry) {
                Some(setting) => parameters.0.push((info.name, setting)),
                None => self.flawed.add(info.name),
            }
        }
        parameters
    }

    fn unknown_parameter(&mut self, method: &'static MethodInfo, entry: &Entry) {
        let name = entry.key.as_str();
        let known: Vec<&str> = method.params.iter().map(|info| info.name).collect();
        let others = self.methods_with(name);
        // mergekit ignores what the method does not read, and published recipes are full of it.
        if !others.is_empty() {
            let message = format!(
                "`{}` has no parameter {}: ignored",
                method.name,
                quoted(name)
            );
            let hint = format!("it is a parameter of {others}");
            self.warn(Problem::new(ProblemKind::Unknown, entry.key_at, message).with_hint(hint));
            return;
        }
        if let Some(near) = nearest(name, known.iter().copied()) {
            self.flawed.add(near);
        }
        if self.recorded {
            let message = format!(
                "`{}` has no parameter {}: ignored",
                method.name,
                quoted(name)
            );
            return self.warn(Problem::new(ProblemKind::Unknown, entry.key_at, message));
        }
        let whose = format!("the parameters of `{}` are", method.name);
        let hint = match known.is_empty() {
            true => Some(format!("`{}` takes none", method.name)),
            false => suggestion(name, &whose, &known),
        };
        let message = format!("`{}` has no parameter {}", method.name, quoted(name));
        self.refuse(ProblemKind::Unknown, entry.key_at, message, hint.as_deref());
    }

    /// The methods that have this parameter.
    fn methods_with(&self, name: &str) -> String {
        let has = |method: &&&MethodInfo| method.params.iter().any(|info| info.name == name);
        listed(self.methods.iter().filter(has).map(|method| method.name))
    }

    /// Reports a parameter at a level that mergekit silently ignores.
    fn misplaced(&mut self, info: &ParamInfo, entry: &Entry, level: Level) {
        let message = format!(
            "`{}` has one value for a tensor, not one for each model",
            info.name
        );
        if self.recorded {
            let message = format!("{message}: ignored");
            return self.warn(Problem::new(ProblemKind::Invalid, entry.key_at, message));
        }
        let hint = match level {
            Level::Source => "move it to the `parameters` of the slice or of the recipe",
            _ => "move it to the `parameters` of the recipe",
        };
        self.refuse(ProblemKind::Invalid, entry.key_at, message, Some(hint));
        self.flawed.add(info.name);
    }

    fn setting(&mut self, info: &'static ParamInfo, entry: &Entry) -> Option<Setting> {
        let node = &entry.node;
        let is_map = |node: &Node| matches!(node.value, Value::Map(_));
        let choices = match &node.value {
            Value::List(items) if items.iter().any(is_map) => {
                let read: Vec<_> = items.iter().map(|item| self.choice(info, item)).collect();
                read.into_iter().collect::<Option<Vec<Choice>>>()?
            }
            Value::Map(_) => vec![self.choice(info, node)?],
            _ => vec![Choice {
                filter: None,
                curve: self.curve(info, node)?,
            }],
        };
        self.warn_of_idle_choices(info, &choices, node);
        Some(Setting {
            choices,
            at: node.at,
        })
    }

    /// `{filter: ..., value: ...}`.
    fn choice(&mut self, info: &'static ParamInfo, node: &Node) -> Option<Choice> {
        let Value::Map(entries) = &node.value else {
            let message = format!(
                "expected `filter` and `value` in this list of `{}`, found {}",
                info.name,
                node.value.found()
            );
            let hint = "a list holds either values over depth or conditional values, not both";
            self.refuse(ProblemKind::Invalid, node.at, message, Some(hint));
            return None;
        };
        let before = self.problems.len();
        let mut filter = None;
        let mut value = None;
        for entry in entries {
            match entry.key.as_str() {
                "filter" if entry.node.is_null() => {}
                "filter" => filter = self.filter(entry),
                "value" => value = Some(self.curve(info, &entry.node)),
                _ => self.other_key(&CONDITIONAL, entry),
            }
        }
        if value.is_none() {
            let message = format!("missing `value` in a conditional value of `{}`", info.name);
            let hint = "write `- filter: part_of_a_tensor_name` and under it `value: ...`";
            self.refuse(ProblemKind::Missing, node.at, message, Some(hint));
        }
        if self.problems.len() != before {
            return None;
        }
        Some(Choice {
            filter,
            curve: value??,
        })
    }

    /// A part of tensor names; `*` is all of them.
    fn filter(&mut self, entry: &Entry) -> Option<Located<String>> {
        let at = entry.node.at;
        let value = self.text(entry)?;
        if value == "*" {
            return None;
        }
        if value.contains('*') {
            let message = format!("the filter {} matches no tensor", quoted(&value));
            let hint = "a filter is a part of a tensor's name, taken literally: `*` stands for all \
                        names only when it is the whole filter";
            self.warn(Problem::new(ProblemKind::Invalid, at, message).with_hint(hint));
        }
        Some(Located { value, at })
    }

    fn warn_of_idle_choices(&mut self, info: &ParamInfo, choices: &[Choice], node: &Node) {
        let Some(catch_all) = choices.iter().position(|choice| choice.filter.is_none()) else {
            return;
        };
        let Some(idle) = choices.len().checked_sub(catch_all + 2) else {
            return;
        };
        let at = match &node.value {
            Value::List(items) => items.get(catch_all + 1).map_or(node.at, |item| item.at),
            _ => node.at,
        };
        let unused = match idle {
            0 => "is never used",
            _ => "and those after it are never used",
        };
        let message = format!("this value of `{}` {unused}", info.name);
        self.warn(
            Problem::new(ProblemKind::Invalid, at, message)
                .with_hint("the one before it has no filter and takes every tensor: put it last"),
        );
    }

    /// One value, or a list of values over depth.
    fn curve(&mut self, info: &'static ParamInfo, node: &Node) -> Option<Curve> {
        let Value::List(items) = &node.value else {
            return self.scalar(info, node).map(Curve::Constant);
        };
        if items.is_empty() {
            let message = format!("expected values for `{}`, found an empty list", info.name);
            self.problem(ProblemKind::Invalid, node.at, message);
            return None;
        }
        let read: Vec<_> = items.iter().map(|item| self.scalar(info, item)).collect();
        let values = read.into_iter().collect::<Option<Vec<ParamValue>>>()?;
        let numbers = values.iter().map(|value| match value {
            ParamValue::Number(number) => Some(*number),
            ParamValue::Bool(_) | ParamValue::Word(_) => None,
        });
        Some(match numbers.collect::<Option<Vec<f64>>>() {
            Some(numbers) => Curve::Lines(numbers),
            None => Curve::Steps(values),
        })
    }

    fn scalar(&mut self, info: &'static ParamInfo, node: &Node) -> Option<ParamValue> {
        match scalar(info, &node.value, node.at) {
            Ok(value) => Some(value),
            Err(problem) => {
                self.problems.push(problem);
                None
            }
        }
    }
}

fn scalar(info: &'static ParamInfo, value: &Value, at: Position) -> Result<ParamValue, Problem> {
    match info.kind {
        ParamKind::Number => number(info, value, at).map(ParamValue::Number),
        ParamKind::Range { min, max } => {
            let number = number(info, value, at)?;
            if min <= number && number <= max {
                return Ok(ParamValue::Number(number));
            }
            let bounds = match max.is_infinite() {
                true => format!("{min} or more"),
                false => format!("between {min} and {max}"),
            };
            let message = format!("expected `{}` {bounds}, found {}", info.name, value.found());
            let problem = Problem::new(ProblemKind::Invalid, at, message);
            Err(match info.doc {
                "" => problem,
                doc => problem.with_hint(doc),
            })
        }
        ParamKind::Bool => match truth(value) {
            Some(truth) => Ok(ParamValue::Bool(truth)),
            None => Err(mismatch(info, "`true` or `false`", value, at)),
        },
        ParamKind::Word { words, booleans } => word(info, words, booleans, value, at),
    }
}

fn number(info: &ParamInfo, value: &Value, at: Position) -> Result<f64, Problem> {
    let number = match value {
        Value::Int(number) => Some(*number as f64),
        Value::Float(number) => Some(*number),
        // YAML 1.1 reads `1e-3` as text, and some people quote numbers: mergekit accepts both.
        Value::Text(text) => text.trim().parse().ok(),
        _ => None,
    };
    match number {
        Some(number) if number.is_finite() => Ok(number),
        Some(_) => Err(mismatch(info, "a finite number", value, at)),
        None => Err(mismatch(info, "a number", value, at)),
    }
}

/// A value that mergekit accepts as a bool.
fn truth(value: &Value) -> Option<bool> {
    match value {
        Value::Bool(truth) => Some(*truth),
        Value::Int(0) => Some(false),
        Value::Int(1) => Some(true),
        Value::Float(number) if *number == 0.0 => Some(false),
        Value::Float(number) if *number == 1.0 => Some(true),
        Value::Text(text) => match text.to_ascii_lowercase().as_str() {
            "true" | "yes" | "on" | "y" | "t" | "1" => Some(true),
            "false" | "no" | "off" | "n" | "f" | "0" => Some(false),
            _ => None,
        },
        _ => None,
    }
}

fn word(
    info: &ParamInfo,
    words: &'static [&'static str],
    booleans: Option<(&'static str, &'static str)>,
    value: &Value,
    at: Position,
) -> Result<ParamValue, Problem> {
    if let Value::Text(text) = value
        && let Some(word) = words.iter().find(|word| *word == text)
    {
        return Ok(ParamValue::Word(word));
    }
    match (booleans, truth(value), value) {
        (Some((yes, _)), Some(true), _) => Ok(ParamValue::Word(yes)),
        (Some((_, no)), Some(false), _) => Ok(ParamValue::Word(no)),
        (_, _, Value::Text(text)) => {
            let message = format!("unknown word {} for `{}`", quoted(text), info.name);
            let problem = Problem::new(ProblemKind::Unknown, at, message);
            Err(match suggestion(text, "the words are", words) {
                Some(hint) => problem.with_hint(hint),
                None => problem,
            })
        }
        _ => {
            let expected = format!("one of {}", listed(words.iter().copied()));
            Err(mismatch(info, &expected, value, at))
        }
    }
}

fn mismatch(info: &ParamInfo, expected: &str, value: &Value, at: Position) -> Problem {
    let message = format!(
        "expected {expected} for `{}`, found {}",
        info.name,
        value.found()
    );
    Problem::new(ProblemKind::Invalid, at, message)
}
