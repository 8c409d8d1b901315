//! The fields of a config, each read as what it must be, with an error that names it.

use serde_json::{Map, Value};

use super::error::ForwardError;

/// The largest size that is believed; products of two fit in 64 bits.
const MAX_SIZE: u64 = 1 << 31;
/// How much of a wrong value a message repeats, in characters.
const SHOWN: usize = 80;

/// An object of the config.
#[derive(Debug, Clone, Copy)]
pub(super) struct Fields<'a> {
    entries: &'a Map<String, Value>,
    /// What the object is in: nothing, or a name with its dot.
    within: &'static str,
}

impl<'a> Fields<'a> {
    /// The fields of the config itself.
    pub(super) fn new(config: &'a Value) -> Result<Self, ForwardError> {
        let Some(entries) = config.as_object() else {
            return Err(ForwardError::Field {
                field: "(the whole)".into(),
                expected: "an object".into(),
                found: shown(Some(config)),
                hint: "correct config.json, or download it again",
            });
        };
        Ok(Fields {
            entries,
            within: "",
        })
    }

    /// The fields of a field that is an object; none if it is absent or null.
    pub(super) fn object(
        &self,
        name: &str,
        within: &'static str,
    ) -> Result<Option<Self>, ForwardError> {
        match self.get(name) {
            None => Ok(None),
            Some(Value::Object(entries)) => Ok(Some(Fields { entries, within })),
            Some(_) => Err(self.wrong(name, "an object")),
        }
    }

    /// All names and values.
    pub(super) fn entries(&self) -> impl Iterator<Item = (&'a String, &'a Value)> {
        self.entries.iter()
    }

    /// A field; null counts as absent.
    pub(super) fn get(&self, name: &str) -> Option<&'a Value> {
        self.entries.get(name).filter(|value| !value.is_null())
    }

    /// Whether a field is written down, be it null.
    pub(super) fn is_written(&self, name: &str) -> bool {
        self.entries.contains_key(name)
    }

    /// The error that a field is not what it must be.
    pub(super) fn wrong(&self, name: &str, expected: impl Into<String>) -> ForwardError {
        self.wrong_with(name, expected, "correct config.json, or take another model")
    }

    /// The error that a field is not what it must be, with a hint of its own.
    pub(super) fn wrong_with(
        &self,
        name: &str,
        expected: impl Into<String>,
        hint: &'static str,
    ) -> ForwardError {
        ForwardError::Field {
            field: format!("{}{name}", self.within),
            expected: expected.into(),
            found: shown(self.entries.get(name)),
            hint,
        }
    }

    /// A size of at least one; none if it is absent.
    pub(super) fn size(&self, name: &str) -> Result<Option<usize>, ForwardError> {
        match self.size_or_zero(name)? {
            Some(0) => Err(self.wrong(name, "a size of at least one")),
            size => Ok(size),
        }
    }

    /// A size; none if it is absent.
    pub(super) fn size_or_zero(&self, name: &str) -> Result<Option<usize>, ForwardError> {
        let Some(value) = self.get(name) else {
            return Ok(None);
        };
        let size = value.as_u64().filter(|&size| size <= MAX_SIZE);
        match size.and_then(|size| usize::try_from(size).ok()) {
            Some(size) => Ok(Some(size)),
            None => Err(self.wrong(name, format!("a whole number up to {MAX_SIZE}"))),
        }
    }

    /// A size that must be there.
    pub(super) fn required(&self, name: &str) -> Result<usize, ForwardError> {
        self.size(name)?
            .ok_or_else(|| self.wrong(name, "a whole number"))
    }

    /// A finite number; none if it is absent.
    pub(super) fn number(&self, name: &str) -> Result<Option<f64>, ForwardError> {
        let Some(value) = self.get(name) else {
            return Ok(None);
        };
        match value.as_f64().filter(|number| number.is_finite()) {
            Some(number) => Ok(Some(number)),
            None => Err(self.wrong(name, "a finite number")),
        }
    }

    /// A number above zero; none if it is absent.
    pub(super) fn positive(&self, name: &str) -> Result<Option<f64>, ForwardError> {
        match self.number(name)? {
            Some(number) if number <= 0.0 => Err(self.wrong(name, "a number above zero")),
            number => Ok(number),
        }
    }

    /// A truth value, or what it is when it is absent.
    pub(super) fn flag(&self, name: &str, default: bool) -> Result<bool, ForwardError> {
        match self.get(name) {
            None => Ok(default),
            Some(Value::Bool(flag)) => Ok(*flag),
            Some(_) => Err(self.wrong(name, "true or false")),
        }
    }

    /// A text; none if it is absent.
    pub(super) fn text(&self, name: &str) -> Result<Option<&'a str>, ForwardError> {
        match self.get(name) {
            None => Ok(None),
            Some(Value::String(text)) => Ok(Some(text)),
            Some(_) => Err(self.wrong(name, "a text")),
        }
    }

    /// A list; none if it is absent.
    pub(super) fn list(&self, name: &str) -> Result<Option<&'a [Value]>, ForwardError> {
        match self.get(name) {
            None => Ok(None),
            Some(Value::Array(list)) => Ok(Some(list)),
            Some(_) => Err(self.wrong(name, "a list")),
        }
    }
}

/// A value as messages repeat it.
fn shown(value: Option<&Value>) -> String {
    let Some(value) = value else {
        return "nothing".into();
    };
    let text = match value {
        Value::Object(_) => "an object".into(),
        Value::Array(list) => format!("a list of {}", list.len()),
        value => value.to_string(),
    };
    text.chars().take(SHOWN).collect()
}
