//! The fields of a config, each read as what it must be, with an error that names it.

use serde_json::{Map, Value};

use super::config::in_all_layers;

/// The largest size that is believed; products of two fit in 64 bits.
const MAX_SIZE: u64 = 1 << 31;
/// How much of a wrong value a message repeats, in characters.
const SHOWN: usize = 80;

/// A field of a config that is missing, malformed, or means something that is not understood.
#[derive(Debug, Clone, thiserror::Error)]
#[error("`{field}`: expected {expected}, found {found}")]
pub struct FieldError {
    /// The field, with what it is in.
    pub field: String,
    /// What it may be.
    pub expected: String,
    /// What it is, shortened.
    pub found: String,
    /// What to do about it.
    pub hint: &'static str,
}

/// An object of the config.
#[derive(Debug, Clone, Copy)]
pub struct Fields<'a> {
    entries: Option<&'a Map<String, Value>>,
    /// What the object is in: nothing, or a name with its dot.
    within: &'static str,
}

impl<'a> Fields<'a> {
    /// The fields of the config itself.
    ///
    /// # Errors
    /// If it is no object.
    pub fn new(config: &'a Value) -> Result<Self, FieldError> {
        let Some(entries) = config.as_object() else {
            return Err(FieldError {
                field: "(the whole)".into(),
                expected: "an object".into(),
                found: shown(Some(config)),
                hint: "correct config.json, or download it again",
            });
        };
        Ok(Fields {
            entries: Some(entries),
            within: "",
        })
    }

    /// The fields of a part of a config; none where it is no object.
    pub fn of_part(part: &'a Value) -> Self {
        Fields {
            entries: part.as_object(),
            within: "",
        }
    }

    /// The fields of a field that is an object; none if it is absent or null.
    ///
    /// # Errors
    /// If it is there and no object.
    pub fn object(&self, name: &str, within: &'static str) -> Result<Option<Self>, FieldError> {
        match self.get(name) {
            None => Ok(None),
            Some(Value::Object(entries)) => Ok(Some(Fields {
                entries: Some(entries),
                within,
            })),
            Some(_) => Err(self.wrong(name, "an object")),
        }
    }

    /// All names and values.
    pub fn entries(&self) -> impl Iterator<Item = (&'a String, &'a Value)> {
        self.entries.into_iter().flatten()
    }

    /// A field; null counts as absent.
    pub fn get(&self, name: &str) -> Option<&'a Value> {
        self.entries?.get(name).filter(|value| !value.is_null())
    }

    /// Whether a field is written down, be it null.
    pub fn is_written(&self, name: &str) -> bool {
        self.entries
            .is_some_and(|entries| entries.contains_key(name))
    }

    /// The error that a field is not what it must be.
    pub fn wrong(&self, name: &str, expected: impl Into<String>) -> FieldError {
        self.wrong_with(name, expected, "correct config.json, or take another model")
    }

    /// The error that a field is not what it must be, with a hint of its own.
    pub fn wrong_with(
        &self,
        name: &str,
        expected: impl Into<String>,
        hint: &'static str,
    ) -> FieldError {
        FieldError {
            field: format!("{}{name}", self.within),
            expected: expected.into(),
            found: shown(self.entries.and_then(|entries| entries.get(name))),
            hint,
        }
    }

    /// A size of at least one; none if it is absent.
    ///
    /// # Errors
    /// If it is no whole number of at least one, or larger than any size.
    pub fn size(&self, name: &str) -> Result<Option<usize>, FieldError> {
        match self.size_or_zero(name)? {
            Some(0) => Err(self.wrong(name, "a size of at least one")),
            size => Ok(size),
        }
    }

    /// A size, be it said once or the same for each layer in a list; none if it is absent.
    ///
    /// # Errors
    /// If it is no whole number, or larger than any size.
    pub fn size_or_zero(&self, name: &str) -> Result<Option<usize>, FieldError> {
        let Some(value) = self.get(name) else {
            return Ok(None);
        };
        let size = in_all_layers(value).as_u64();
        let size = size.filter(|&size| size <= MAX_SIZE);
        match size.and_then(|size| usize::try_from(size).ok()) {
            Some(size) => Ok(Some(size)),
            None => Err(self.wrong(name, format!("a whole number up to {MAX_SIZE}"))),
        }
    }

    /// A size of at least one that goes by several names; none if all of them are absent.
    ///
    /// # Errors
    /// If it is no such size, or not the same under all names that are there.
    pub fn same_size(&self, names: &[&str]) -> Result<Option<usize>, FieldError> {
        let mut found: Option<(&str, usize)> = None;
        for name in names {
            match (self.size(name)?, found) {
                (Some(size), None) => found = Some((name, size)),
                (Some(size), Some((first, other))) if size != other => {
                    let hint = "keep the one that the model was trained with";
                    return Err(self.wrong_with(name, format!("{other}, as `{first}` says"), hint));
                }
                _ => {}
            }
        }
        Ok(found.map(|(_, size)| size))
    }

    /// A size that must be there.
    ///
    /// # Errors
    /// If it is absent, or no whole number of at least one.
    pub fn required(&self, name: &str) -> Result<usize, FieldError> {
        self.size(name)?
            .ok_or_else(|| self.wrong(name, "a whole number"))
    }

    /// A number that is finite in f32 too, in which models compute; none if it is absent.
    ///
    /// # Errors
    /// If it is no such number.
    pub fn number(&self, name: &str) -> Result<Option<f64>, FieldError> {
        let Some(value) = self.get(name) else {
            return Ok(None);
        };
        match value.as_f64().filter(|number| (*number as f32).is_finite()) {
            Some(number) => Ok(Some(number)),
            None => Err(self.wrong(name, "a number that is finite in float32")),
        }
    }

    /// Numbers that are finite in f32 too; none if the list is absent.
    ///
    /// # Errors
    /// If it is no list of such numbers.
    pub fn numbers(&self, name: &str) -> Result<Option<Vec<f64>>, FieldError> {
        let Some(list) = self.list(name)? else {
            return Ok(None);
        };
        let numbers = list.iter().map(Value::as_f64);
        let numbers = numbers.map(|number| number.filter(|number| (*number as f32).is_finite()));
        match numbers.collect::<Option<Vec<f64>>>() {
            Some(numbers) => Ok(Some(numbers)),
            None => Err(self.wrong(name, "a list of numbers that are finite in float32")),
        }
    }

    /// A number that is above zero in f32 too; none if it is absent.
    ///
    /// # Errors
    /// If it is no such number.
    pub fn positive(&self, name: &str) -> Result<Option<f64>, FieldError> {
        match self.number(name)? {
            Some(number) if number as f32 > 0.0 => Ok(Some(number)),
            None => Ok(None),
            Some(_) => Err(self.wrong(name, "a number that is above zero in float32")),
        }
    }

    /// A truth value, or what it is when it is absent.
    ///
    /// # Errors
    /// If it is neither true nor false.
    pub fn flag(&self, name: &str, default: bool) -> Result<bool, FieldError> {
        match self.get(name) {
            None => Ok(default),
            Some(Value::Bool(flag)) => Ok(*flag),
            Some(_) => Err(self.wrong(name, "true or false")),
        }
    }

    /// A text; none if it is absent.
    ///
    /// # Errors
    /// If it is no text.
    pub fn text(&self, name: &str) -> Result<Option<&'a str>, FieldError> {
        match self.get(name) {
            None => Ok(None),
            Some(Value::String(text)) => Ok(Some(text)),
            Some(_) => Err(self.wrong(name, "a text")),
        }
    }

    /// A list; none if it is absent.
    ///
    /// # Errors
    /// If it is no list.
    pub fn list(&self, name: &str) -> Result<Option<&'a [Value]>, FieldError> {
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

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn a_size_may_be_said_for_each_layer_if_all_say_the_same() {
        let config = json!({"once": 2, "all": [2, 2], "differ": [2, 3], "none": []});
        let fields = Fields::new(&config).unwrap();
        assert_eq!(fields.size("once").unwrap(), Some(2));
        assert_eq!(fields.size("all").unwrap(), Some(2));
        for name in ["differ", "none"] {
            let told = fields.size(name).unwrap_err().to_string();
            assert!(told.contains("a list of"), "{told}");
        }
    }

    #[test]
    fn a_size_with_two_names_is_one_size() {
        let config = json!({"a": 2, "b": 2, "c": 3, "none": null});
        let fields = Fields::new(&config).unwrap();
        assert_eq!(fields.same_size(&["none", "a", "b"]).unwrap(), Some(2));
        assert_eq!(fields.same_size(&["none"]).unwrap(), None);
        let told = fields.same_size(&["a", "c"]).unwrap_err().to_string();
        assert_eq!(told, "`c`: expected 2, as `a` says, found 3");
    }

    #[test]
    fn numbers_are_those_of_f32() {
        let config = json!({"large": 1e300, "tiny": 1e-60, "good": 1e-30, "list": [1.0, -1e39], "all": [1, 2.5]});
        let fields = Fields::new(&config).unwrap();
        assert_eq!(fields.number("tiny").unwrap(), Some(1e-60));
        assert_eq!(fields.positive("good").unwrap(), Some(1e-30));
        assert_eq!(fields.numbers("all").unwrap(), Some(vec![1.0, 2.5]));
        let told = [
            fields.number("large").err(),
            fields.positive("tiny").err(),
            fields.numbers("list").err(),
        ];
        for (told, expected) in told.into_iter().zip([
            "is finite in float32",
            "above zero in float32",
            "finite in float32",
        ]) {
            assert!(told.unwrap().to_string().contains(expected));
        }
    }
}
