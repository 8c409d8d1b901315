//! The small JSON files beside a tokenizer, and the chat template, wherever it is stored.

use serde_json::{Map, Value};

use super::super::bounded::{plain, read_bounded};
use super::super::error::CheckpointError;
use super::super::json::parse_json;
use super::super::limits::{MAX_CONFIG_BYTES, MAX_TOKENIZER_BYTES};
use super::super::reader::Checkpoint;

/// The entries of a JSON file of the checkpoint; `None` if there is no such file.
///
/// # Errors
/// If it is no file of the folder, too large, or not a JSON object.
pub fn settings(
    checkpoint: &Checkpoint,
    name: &str,
) -> Result<Option<Map<String, Value>>, CheckpointError> {
    let Some(path) = checkpoint.file_beside(name)? else {
        return Ok(None);
    };
    let bytes = read_bounded(&path, MAX_TOKENIZER_BYTES, "settings, in bytes")?;
    let malformed = |detail| CheckpointError::JsonMalformed { path, detail };
    match parse_json(&bytes) {
        Ok(Value::Object(entries)) => Ok(Some(entries)),
        Ok(_) => Err(malformed("expected an object".into())),
        Err(error) => Err(malformed(error)),
    }
}

/// The template that formats conversations: from `chat_template.jinja`, `tokenizer_config.json` or
/// `chat_template.json`, in this order, as in transformers. Of several templates, the one named `default`.
///
/// # Errors
/// If one of these files is no file of the folder, too large or malformed.
pub fn chat_template(checkpoint: &Checkpoint) -> Result<Option<String>, CheckpointError> {
    if let Some(path) = checkpoint.file_beside("chat_template.jinja")? {
        let bytes = read_bounded(&path, MAX_CONFIG_BYTES, "chat template, in bytes")?;
        let text = String::from_utf8(bytes).map_err(|error| CheckpointError::JsonMalformed {
            path,
            detail: plain(&error),
        })?;
        return Ok(Some(text));
    }
    for name in ["tokenizer_config.json", "chat_template.json"] {
        let found = settings(checkpoint, name)?;
        let template =
            found.and_then(|mut entries| default_template(entries.remove("chat_template")?));
        if template.is_some() {
            return Ok(template);
        }
    }
    Ok(None)
}

/// A template, or the one named `default` in a list or mapping of templates.
pub fn default_template(value: Value) -> Option<String> {
    let text = |value: Value| match value {
        Value::String(text) => Some(text),
        _ => None,
    };
    match value {
        Value::String(text) => Some(text),
        Value::Object(mut named) => named.remove("default").and_then(text),
        Value::Array(list) => list
            .into_iter()
            .filter_map(|entry| match entry {
                Value::Object(entry) => Some(entry),
                _ => None,
            })
            .find(|entry| entry.get("name").and_then(Value::as_str) == Some("default"))
            .and_then(|mut entry| entry.remove("template"))
            .and_then(text),
        _ => None,
    }
}

#[cfg(test)]
mod tests {
    use super::super::super::fixtures::{safetensors, write};
    use super::super::super::locate::Location;
    use super::*;

    type Files<'a> = &'a [(&'a str, &'a str)];

    fn template(files: Files<'_>) -> Result<Option<String>, CheckpointError> {
        let folder = tempfile::tempdir().unwrap();
        write(
            &folder.path().join("model.safetensors"),
            &safetensors(&[("w", "F32", &[1])]),
        );
        for (name, text) in files {
            write(&folder.path().join(name), text.as_bytes());
        }
        chat_template(&Checkpoint::open("m", &Location::local(folder.path())).unwrap())
    }

    #[test]
    fn templates_are_found_where_transformers_looks() {
        let config = |json| ("tokenizer_config.json", json);
        let cases: [(Files<'_>, Option<&str>); 8] = [
            (&[], None),
            (&[config("{}")], None),
            (&[config(r#"{"chat_template": null}"#)], None),
            (&[config(r#"{"chat_template": "a"}"#)], Some("a")),
            (
                &[
                    config(r#"{"chat_template": "a"}"#),
                    ("chat_template.jinja", "b"),
                ],
                Some("b"),
            ),
            (
                &[config(
                    r#"{"chat_template": [{"name": "tool"}, 3, {"name": "default", "template": "c"}]}"#,
                )],
                Some("c"),
            ),
            (
                &[config(r#"{"chat_template": {"default": "d"}}"#)],
                Some("d"),
            ),
            (
                &[("chat_template.json", r#"{"chat_template": "e"}"#)],
                Some("e"),
            ),
        ];
        for (files, expected) in cases {
            assert_eq!(template(files).unwrap().as_deref(), expected, "{files:?}");
        }
        for json in ["[]", "{", "3"] {
            let message = errors::in_one_line(&template(&[config(json)]).unwrap_err());
            assert!(
                message.contains("tokenizer_config.json is malformed"),
                "{message}"
            );
        }
    }
}
