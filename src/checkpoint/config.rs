//! `config.json`: what it says about the model, at the top or in a nested part.

use std::path::{Path, PathBuf};

use architecture::{LAYER_COUNTS, TEXT_PARTS, field, in_all_layers};
use serde_json::Value;

use super::bounded::read_bounded;
use super::error::CheckpointError;
use super::home::file_in;
use super::json::parse_json;
use super::limits::MAX_CONFIG_BYTES;

/// A parsed `config.json`; the order of its keys is kept.
#[derive(Debug, Clone)]
pub struct ModelConfig {
    path: PathBuf,
    value: Value,
    /// The text as read; none if the config was generated.
    text: Option<String>,
    /// What it said of how weights are quantised, before that was taken out.
    quantization: Option<Quantization>,
}

/// The entry of a config that says how weights are quantised.
#[derive(Debug, Clone, PartialEq)]
pub struct Quantization {
    /// The part of the config that it stands in; none: its top.
    pub part: Option<&'static str>,
    /// Its key.
    pub key: String,
    /// What it says.
    pub value: Value,
}

impl ModelConfig {
    /// Reads the config of a folder, if it has one.
    pub(super) fn read(folder: &Path) -> Result<Option<ModelConfig>, CheckpointError> {
        let Some(path) = file_in(folder, "config.json")? else {
            return Ok(None);
        };
        let bytes = read_bounded(&path, MAX_CONFIG_BYTES, "config, in bytes")?;
        let malformed = |detail| CheckpointError::JsonMalformed {
            path: path.clone(),
            detail,
        };
        let value = parse_json(&bytes).map_err(malformed)?;
        if !value.is_object() {
            return Err(malformed("expected an object".into()));
        }
        let text = String::from_utf8(bytes).ok();
        Ok(Some(ModelConfig {
            path,
            value,
            text,
            quantization: None,
        }))
    }

    /// A config that was generated, not read; `path` is where it would be.
    pub fn made(path: PathBuf, value: Value) -> ModelConfig {
        ModelConfig {
            path,
            value,
            text: None,
            quantization: None,
        }
    }

    /// The same config with the text to write it as.
    pub fn with_text(self, text: Option<String>) -> ModelConfig {
        ModelConfig { text, ..self }
    }

    /// Whether diffusers reads the model, by the class that the config names; `false`: transformers does; none if it says
    /// both or nothing.
    pub fn is_of_diffusers(&self) -> Option<bool> {
        let names = |key: &str| self.value.get(key).is_some_and(|value| !value.is_null());
        match (
            names("_class_name"),
            names("model_type") || names("architectures"),
        ) {
            (true, false) => Some(true),
            (false, true) => Some(false),
            _ => None,
        }
    }

    /// Where it was read from.
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// The whole config: always an object.
    pub fn value(&self) -> &Value {
        &self.value
    }

    /// The text as read; none if the config was generated.
    pub fn text(&self) -> Option<&str> {
        self.text.as_deref()
    }

    /// Marks the output head as untied from the input embedding, at the top and wherever the config says it is tied.
    pub(super) fn untie(&mut self) {
        const KEY: &str = "tie_word_embeddings";
        for part in TEXT_PARTS {
            if let Some(tied) = self.value.get_mut(part).and_then(|part| part.get_mut(KEY)) {
                *tied = false.into();
            }
        }
        if let Some(top) = self.value.as_object_mut() {
            top.insert(KEY.into(), false.into());
        }
    }

    /// Says that the embeddings have another number of rows, wherever the config says how many there are.
    pub(super) fn set_vocabulary(&mut self, before: usize, rows: usize) {
        const KEY: &str = "vocab_size";
        let parts = TEXT_PARTS.iter().copied().map(Some);
        for part in parts.chain([None]) {
            let object = match part {
                Some(part) => self.value.get_mut(part),
                None => Some(&mut self.value),
            };
            if let Some(size) = object.and_then(|object| object.get_mut(KEY))
                && size.as_u64() == Some(before as u64)
            {
                *size = rows.into();
            }
        }
    }

    /// Says how many input channels a UNet has, if the config says it.
    pub(super) fn set_unet_inputs(&mut self, inputs: usize) {
        if let Some(found) = self.value.get_mut("in_channels") {
            *found = inputs.into();
            self.text = None;
        }
    }

    /// The config of the same model with plain weights: without these entries, at the top and in its parts.
    pub(super) fn without(mut self, keys: &[&str]) -> ModelConfig {
        let parts = TEXT_PARTS.iter().copied().map(Some);
        for part in [None].into_iter().chain(parts) {
            let object = match part {
                Some(part) => self.value.get_mut(part).and_then(Value::as_object_mut),
                None => self.value.as_object_mut(),
            };
            for key in keys {
                let found = object.as_ref().and_then(|object| object.get(*key)).cloned();
                if let (None, Some(value)) = (&self.quantization, found) {
                    self.quantization = Some(Quantization {
                        part,
                        key: (*key).to_owned(),
                        value,
                    });
                }
            }
            if let Some(object) = object {
                object.retain(|key, _| !keys.contains(&key.as_str()));
            }
        }
        self.text = None;
        self
    }

    /// The config with what it said of how weights are quantised.
    pub(super) fn as_read(&self) -> ModelConfig {
        let mut config = self.clone();
        if let Some(Quantization { part, key, value }) = config.quantization.take() {
            let object = match part {
                Some(part) => config.value.get_mut(part).and_then(Value::as_object_mut),
                None => config.value.as_object_mut(),
            };
            if let Some(object) = object {
                object.insert(key, value);
            }
        }
        config
    }

    /// What it said of how weights are quantised, if it is the config of a model whose codes are decoded.
    pub fn quantization(&self) -> Option<&Quantization> {
        self.quantization.as_ref()
    }

    /// The value of a key at the top, or else in the language model's part; null counts as absent.
    pub fn get(&self, key: &str) -> Option<&Value> {
        field(&self.value, key)
    }

    /// A whole number that is not negative, be it said once or the same for each layer in a list.
    pub fn get_usize(&self, key: &str) -> Option<usize> {
        usize::try_from(in_all_layers(self.get(key)?).as_u64()?).ok()
    }

    /// A bool.
    pub fn get_bool(&self, key: &str) -> Option<bool> {
        self.get(key)?.as_bool()
    }

    /// A string.
    pub fn get_str(&self, key: &str) -> Option<&str> {
        self.get(key)?.as_str()
    }

    /// The number of layers of the language model, under any of the names for it.
    pub fn num_hidden_layers(&self) -> Option<usize> {
        LAYER_COUNTS.iter().find_map(|key| self.get_usize(key))
    }

    /// Whether the output head is the input embedding; none if the config leaves that to the architecture.
    pub fn tie_word_embeddings(&self) -> Option<bool> {
        self.get_bool("tie_word_embeddings")
    }

    /// The number of rows of the embeddings.
    pub fn vocab_size(&self) -> Option<usize> {
        self.get_usize("vocab_size")
    }

    /// The classes that load it.
    pub fn architectures(&self) -> Vec<String> {
        let list = self.get("architectures").and_then(Value::as_array);
        let names = list.into_iter().flatten().filter_map(Value::as_str);
        names.map(Into::into).collect()
    }

    /// The family, as transformers names it.
    pub fn model_type(&self) -> Option<&str> {
        self.get_str("model_type")
    }
}

#[cfg(test)]
mod tests {
    use super::super::fixtures::write;
    use super::*;

    fn config(json: &str) -> Result<Option<ModelConfig>, CheckpointError> {
        let folder = tempfile::tempdir().unwrap();
        write(&folder.path().join("config.json"), json.as_bytes());
        ModelConfig::read(folder.path())
    }

    #[test]
    fn values_are_found_at_the_top_then_in_the_language_model() {
        let cases = [
            (
                r#"{"num_hidden_layers": 3, "text_config": {"n_layer": 4}}"#,
                Some(3),
            ),
            (
                r#"{"num_hidden_layers": null, "text_config": {"num_hidden_layers": 4}}"#,
                Some(4),
            ),
            (r#"{"llm_config": {"num_layers": 5}}"#, Some(5)),
            (r#"{"language_config": {"n_layers": 6}}"#, Some(6)),
            (r#"{"num_hidden_layers": -1}"#, None),
            (r#"{"num_hidden_layers": "3"}"#, None),
            (r#"{"text_config": 7}"#, None),
            (r#"{"text_config": []}"#, None),
            ("{}", None),
        ];
        for (json, expected) in cases {
            let config = config(json).unwrap().unwrap();
            assert_eq!(config.num_hidden_layers(), expected, "{json}");
        }
        let json = r#"{"architectures": ["A", 1], "model_type": "llama", "vocab_size": 9,
                       "text_config": {"tie_word_embeddings": true}}"#;
        let config = config(json).unwrap().unwrap();
        assert_eq!(config.architectures(), ["A"]);
        assert_eq!(config.model_type(), Some("llama"));
        assert_eq!(config.vocab_size(), Some(9));
        assert_eq!(config.tie_word_embeddings(), Some(true));
    }

    #[test]
    fn hostile_configs_are_errors() {
        let deep = format!("{}{}", "[".repeat(100_000), "]".repeat(100_000));
        for json in ["", "[]", "3", "{", "{\"a\":\u{1}}", "\u{feff}{}", &deep] {
            let message = errors::in_one_line(&config(json).unwrap_err());
            assert!(message.contains("config.json is malformed"), "{message}");
        }
        let none = tempfile::tempdir().unwrap();
        assert!(ModelConfig::read(none.path()).unwrap().is_none());
    }
}
