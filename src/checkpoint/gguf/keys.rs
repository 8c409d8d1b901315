//! The metadata of a model by the keys of its architecture, each read as what it must be.

use std::collections::BTreeMap;

use errors::Refusal;

use super::container::Value;

/// What to do where metadata does not say what a config must.
pub(super) const TAKE_CONFIG: &str =
    "put the model's own config.json beside the file: what it says comes first";

/// The largest size that is believed.
const MAX_SIZE: i128 = 1 << 31;

/// The metadata of a file.
#[derive(Debug, Clone, Copy)]
pub(super) struct Keys<'a> {
    metadata: &'a BTreeMap<String, Value>,
    /// `general.architecture`.
    pub(super) architecture: &'a str,
}

impl<'a> Keys<'a> {
    pub(super) fn new(metadata: &'a BTreeMap<String, Value>) -> Result<Self, Refusal> {
        match metadata.get("general.architecture") {
            Some(Value::Text(architecture)) => Ok(Keys {
                metadata,
                architecture,
            }),
            _ => Err(Refusal::new(
                "the metadata has no text `general.architecture`, so it is no file of a model",
            )
            .with_hint("name a file of a model's weights")),
        }
    }

    /// A key of the architecture.
    pub(super) fn get(&self, key: &str) -> Option<&'a Value> {
        self.metadata.get(&format!("{}.{key}", self.architecture))
    }

    /// A key by its whole name.
    pub(super) fn whole(&self, key: &str) -> Option<&'a Value> {
        self.metadata.get(key)
    }

    fn wrong(&self, key: &str, expected: &str) -> Refusal {
        let found = match self.get(key) {
            None => "nothing".to_owned(),
            Some(found) => format!("{found:?}").chars().take(80).collect(),
        };
        let architecture = self.architecture;
        Refusal::new(format!(
            "metadata `{architecture}.{key}`: expected {expected}, found {found}"
        ))
        .with_hint(TAKE_CONFIG)
    }

    /// A size, or a list of the same one for each layer.
    pub(super) fn size(&self, key: &str) -> Result<Option<usize>, Refusal> {
        let size = |value: &Value| match value {
            Value::Whole(size) if (0..=MAX_SIZE).contains(size) => usize::try_from(*size).ok(),
            _ => None,
        };
        let Some(value) = self.get(key) else {
            return Ok(None);
        };
        let found = match value {
            Value::List(values) => {
                let first = values.first().and_then(size);
                first.filter(|first| values.iter().all(|value| size(value) == Some(*first)))
            }
            value => size(value),
        };
        match found {
            None => Err(self.wrong(key, "a size, the same for all layers")),
            found => Ok(found),
        }
    }

    /// A size that every file has.
    pub(super) fn required(&self, key: &str) -> Result<usize, Refusal> {
        let size = self.size(key)?.filter(|&size| size > 0);
        size.ok_or_else(|| self.wrong(key, "a size of at least one"))
    }

    /// A finite number.
    pub(super) fn number(&self, key: &str) -> Result<Option<f64>, Refusal> {
        let Some(value) = self.get(key) else {
            return Ok(None);
        };
        let number = match value {
            Value::Single(number) => Some(shortest(*number)),
            Value::Double(number) => Some(*number),
            Value::Whole(number) => Some(*number as f64),
            _ => None,
        };
        match number.filter(|number| number.is_finite()) {
            None => Err(self.wrong(key, "a finite number")),
            found => Ok(found),
        }
    }

    /// Yes or no.
    pub(super) fn flag(&self, key: &str) -> Result<Option<bool>, Refusal> {
        match self.get(key) {
            None => Ok(None),
            Some(Value::Bool(flag)) => Ok(Some(*flag)),
            Some(_) => Err(self.wrong(key, "true or false")),
        }
    }

    /// A text.
    pub(super) fn text(&self, key: &str) -> Result<Option<&'a str>, Refusal> {
        match self.get(key) {
            None => Ok(None),
            Some(Value::Text(text)) => Ok(Some(text)),
            Some(_) => Err(self.wrong(key, "a text")),
        }
    }

    /// A bool for each of so many layers, or what a number of layers says: of so many, the last is no.
    pub(super) fn each_layer(
        &self,
        key: &str,
        layers: usize,
    ) -> Result<Option<Vec<bool>>, Refusal> {
        let wrong = || self.wrong(key, &format!("{layers} of true and false, or a number"));
        match self.get(key) {
            None => Ok(None),
            Some(Value::List(values)) => {
                let flags = values.iter().map(|value| match value {
                    Value::Bool(flag) => Some(*flag),
                    Value::Whole(0) => Some(false),
                    Value::Whole(1) => Some(true),
                    _ => None,
                });
                let flags: Option<Vec<bool>> = flags.collect();
                let flags = flags.filter(|flags| flags.len() == layers);
                flags.ok_or_else(wrong).map(Some)
            }
            Some(_) => {
                let period = self
                    .size(key)?
                    .filter(|&period| period > 0)
                    .ok_or_else(wrong)?;
                Ok(Some(all_but_each(period, layers)))
            }
        }
    }
}

/// A yes for each of so many layers, but for the last of each so many.
pub(super) fn all_but_each(period: usize, layers: usize) -> Vec<bool> {
    (1..=layers)
        .map(|layer| !layer.is_multiple_of(period))
        .collect()
}

/// The shortest decimal that is this number in 32 bits, as people write it in a config.
pub(super) fn shortest(number: f32) -> f64 {
    format!("{number:e}").parse().unwrap_or(f64::from(number))
}
