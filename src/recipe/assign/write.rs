//! YAML values as text.

use crate::yaml::{self, Node, Value};

impl Value {
    /// The value as YAML, in a single line.
    pub fn in_one_line(&self) -> String {
        flow(self)
    }
}

/// A value in a single line.
pub(super) fn flow(value: &Value) -> String {
    match value {
        Value::Null => "null".into(),
        Value::Bool(value) => value.to_string(),
        Value::Int(value) => value.to_string(),
        Value::Float(value) => float(*value),
        Value::Text(value) => text(value),
        Value::List(items) => {
            let items: Vec<String> = items.iter().map(|item| flow(&item.value)).collect();
            format!("[{}]", items.join(", "))
        }
        Value::Map(entries) => {
            let entry =
                |entry: &yaml::Entry| format!("{}: {}", text(&entry.key), flow(&entry.node.value));
            let entries: Vec<String> = entries.iter().map(entry).collect();
            format!("{{{}}}", entries.join(", "))
        }
    }
}

/// A number that every version of YAML reads as one.
fn float(value: f64) -> String {
    if value.is_nan() {
        return ".nan".into();
    }
    if value.is_infinite() {
        return if value > 0.0 { ".inf" } else { "-.inf" }.into();
    }
    let shortest = format!("{value:?}");
    let Some((mantissa, exponent)) = shortest.split_once('e') else {
        return shortest;
    };
    let point = if mantissa.contains('.') { "" } else { ".0" };
    let sign = if exponent.starts_with('-') { "" } else { "+" };
    format!("{mantissa}{point}e{sign}{exponent}")
}

/// A text, in quotes if it needs them.
pub(super) fn text(text: &str) -> String {
    let plain = |c: char| c.is_ascii_alphanumeric() || "_./-+@".contains(c);
    let simple = text.starts_with(|c: char| c.is_ascii_alphanumeric() || c == '.' || c == '/')
        && text.chars().all(plain);
    let same = |text: &str| match yaml::read(text).as_deref() {
        Ok(
            [
                Node {
                    value: Value::Text(read),
                    ..
                },
            ],
        ) => read == text,
        _ => false,
    };
    let words = ["y", "n", "yes", "no", "on", "off"];
    match simple && !words.contains(&text.to_ascii_lowercase().as_str()) && same(text) {
        true => text.to_owned(),
        false => serde_json::Value::from(text).to_string(),
    }
}

/// Whole documents: each key at the top on a line of its own. Comments are gone.
pub(super) fn documents(documents: &[Node]) -> String {
    let document = |document: &Node| match &document.value {
        Value::Map(entries) if !entries.is_empty() => {
            let line = |entry: &yaml::Entry| {
                format!("{}: {}\n", text(&entry.key), flow(&entry.node.value))
            };
            entries.iter().map(line).collect()
        }
        other => flow(other) + "\n",
    };
    let documents: Vec<String> = documents.iter().map(document).collect();
    documents.join("---\n")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_written_is_read_again() {
        for value in [
            Value::Null,
            Value::Bool(true),
            Value::Int(-3),
            Value::Float(0.1),
            Value::Float(1e-7),
            Value::Float(1e300),
            Value::Float(f64::INFINITY),
            Value::Text("0.3".into()),
            Value::Text("null".into()),
            Value::Text("../models/a-b_c".into()),
            Value::Text("a: {b} # \"c\"\n\tü".into()),
            Value::Text(String::new()),
        ] {
            let text = flow(&value);
            let read = yaml::read(&text).unwrap_or_else(|problem| panic!("{text}: {problem:?}"));
            let found = read.first().map_or(&Value::Null, |node| &node.value);
            assert!(super::super::same(found, &value), "{text}: {found:?}");
        }
        assert_eq!(float(1e-7), "1.0e-7");
        assert_eq!(float(2.5e20), "2.5e+20");
        assert_eq!(text("no"), "\"no\"");
    }
}
