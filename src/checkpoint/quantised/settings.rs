//! What a config says about how its model is quantised.

use serde_json::Value;

use super::super::bounded::plain;
use super::super::config::ModelConfig;

/// Config entries that only quantised models have.
pub(crate) const CONFIG_KEYS: [&str; 3] =
    ["quantization_config", "compression_config", "quantization"];

/// The largest side of a block that is believed.
pub(super) const MAX_BLOCK: u64 = 1 << 16;

/// The block of `quant_method: fp8` where the config does not name one.
const FP8_BLOCK: [u64; 2] = [128, 128];

/// What a config says about how its model is quantised.
#[derive(Debug, Default)]
pub(super) struct Settings {
    /// The key that says so, if any does.
    key: Option<&'static str>,
    value: Value,
}

impl Settings {
    /// Reads a config; one that says nothing, or an empty object, is that of a plain model.
    pub(super) fn of(config: Option<&ModelConfig>) -> Settings {
        let found = CONFIG_KEYS
            .into_iter()
            .find_map(|key| Some((key, config?.get(key)?.clone())));
        match found {
            Some((_, Value::Object(object))) if object.is_empty() => Settings::default(),
            Some((key, value)) => Settings {
                key: Some(key),
                value,
            },
            None => Settings::default(),
        }
    }

    /// Names the entry in words for the user.
    pub(super) fn seen(&self) -> Option<String> {
        let key = self.key?;
        Some(
            match self.value.get("quant_method").and_then(Value::as_str) {
                Some(method) => format!("`{key}` with quant_method `{}`", plain(&method)),
                None => format!("a `{key}`"),
            },
        )
    }

    /// The method, in lower case.
    pub(super) fn method(&self) -> Option<String> {
        let method = self.value.get("quant_method")?.as_str()?;
        Some(method.to_ascii_lowercase())
    }

    /// A whole number.
    pub(super) fn number(&self, key: &str) -> Option<u64> {
        self.value.get(key)?.as_u64()
    }

    /// A string.
    pub(super) fn text(&self, key: &str) -> Option<&str> {
        self.value.get(key)?.as_str()
    }

    /// Rows and columns that share a scale, as `fp8` and compressed-tensors say it; `None` if nothing is said of blocks.
    ///
    /// # Errors
    /// It is no pair of numbers from 1 to 65,536; what was found.
    pub(super) fn block(&self) -> Result<Option<[u64; 2]>, String> {
        let of_groups = self.groups().find_map(|group| group.get("block_structure"));
        let found = match (self.value.get("weight_block_size"), of_groups) {
            (Some(Value::Null), _) => return Ok(None),
            (Some(found), _) | (None, Some(found)) => found,
            (None, None) if self.method().as_deref() == Some("fp8") => return Ok(Some(FP8_BLOCK)),
            (None, None) => return Ok(None),
        };
        if found.is_null() {
            return Ok(None);
        }
        let sides = found.as_array().map(Vec::as_slice).unwrap_or_default();
        let side = |value: &Value| {
            let side = value.as_u64();
            side.filter(|side| (1..=MAX_BLOCK).contains(side))
        };
        match sides {
            [rows, columns] => match (side(rows), side(columns)) {
                (Some(rows), Some(columns)) => Ok(Some([rows, columns])),
                _ => Err(plain(&found)),
            },
            _ => Err(plain(&found)),
        }
    }

    /// What the groups of compressed-tensors say of weights.
    fn groups(&self) -> impl Iterator<Item = &Value> {
        let groups = self.value.get("config_groups").and_then(Value::as_object);
        let groups = groups.into_iter().flat_map(|groups| groups.values());
        groups.filter_map(|group| group.get("weights"))
    }

    /// A whole number that each of these groups may say.
    pub(super) fn of_groups(&self, key: &str) -> impl Iterator<Item = u64> {
        self.groups()
            .filter_map(move |group| group.get(key)?.as_u64())
    }
}
