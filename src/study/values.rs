//! Values of recipes as JSON, as trials keep them, and back.

use recipe::Value;
use serde_json::Value as Json;

/// A YAML value as JSON.
pub(crate) fn json(value: &Value) -> Json {
    match value {
        Value::Null => Json::Null,
        Value::Bool(value) => (*value).into(),
        Value::Int(value) => (*value).into(),
        Value::Float(value) => (*value).into(),
        Value::Text(value) => value.as_str().into(),
        Value::List(items) => items.iter().map(|item| json(&item.value)).collect(),
        Value::Map(entries) => {
            let entries = entries
                .iter()
                .map(|entry| (entry.key.clone(), json(&entry.node.value)));
            Json::Object(entries.collect())
        }
    }
}

/// JSON as YAML in a single line: what [`json`] was made of, word for word.
pub(crate) fn yaml(value: &Json) -> String {
    let text = |text: &str| Value::Text(text.to_owned()).in_one_line();
    match value {
        Json::Number(number) if number.as_i64().is_none() => {
            Value::Float(number.as_f64().unwrap_or(f64::NAN)).in_one_line()
        }
        Json::Null | Json::Bool(_) | Json::Number(_) => value.to_string(),
        Json::String(word) => text(word),
        Json::Array(items) => {
            let items: Vec<String> = items.iter().map(yaml).collect();
            format!("[{}]", items.join(", "))
        }
        Json::Object(entries) => {
            let entry = |(key, value): (&String, &Json)| format!("{}: {}", text(key), yaml(value));
            let entries: Vec<String> = entries.iter().map(entry).collect();
            format!("{{{}}}", entries.join(", "))
        }
    }
}

/// A JSON value as it is read from YAML.
fn read(value: &Json) -> Value {
    let read = recipe::read_yaml(&yaml(value)).unwrap_or_default();
    read.into_iter()
        .next()
        .map_or(Value::Null, |node| node.value)
}

/// Lists of values in JSON files.
pub(crate) mod list {
    use recipe::Value;
    use serde::{Deserialize, Deserializer, Serialize, Serializer};

    pub(crate) fn serialize<S: Serializer>(
        values: &[Value],
        serializer: S,
    ) -> Result<S::Ok, S::Error> {
        let values: Vec<serde_json::Value> = values.iter().map(super::json).collect();
        values.serialize(serializer)
    }

    pub(crate) fn deserialize<'de, D: Deserializer<'de>>(
        deserializer: D,
    ) -> Result<Vec<Value>, D::Error> {
        let values = Vec::<serde_json::Value>::deserialize(deserializer)?;
        Ok(values.iter().map(super::read).collect())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn values_come_back_word_for_word() {
        for text in [
            "3",
            "-2.5",
            "1.0e-5",
            "3.1623e-5",
            "true",
            "ties",
            "\"0.3\"",
            "null",
            "[0, 0.25]",
            "{a: [x]}",
        ] {
            let read = recipe::read_yaml(text).unwrap();
            let value = read.first().map_or(Json::Null, |node| json(&node.value));
            let stored: Json = serde_json::from_str(&value.to_string()).unwrap();
            assert_eq!(yaml(&stored), text);
        }
    }
}
