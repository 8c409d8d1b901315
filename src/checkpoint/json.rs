//! JSON as Python reads and writes it: with `Infinity` and `NaN`. Unchanged parts keep their text.
//!
//! JSON has neither, so they are read as two numbers that no file contains, and written back as these words.

use std::borrow::Cow;
use std::collections::HashMap;

use serde::Deserialize;
use serde::de::{DeserializeOwned, IgnoredAny};
use serde_json::value::RawValue;
use serde_json::{Number, Value};

use super::bounded::plain;

/// The number that `Infinity` is read as: the largest, so that comparisons with it come out right.
const INFINITY: f64 = f64::MAX;

/// The number that `NaN` is read as: the smallest positive one.
const NAN: f64 = 5e-324;

/// Python's words, and the numbers for them in a spelling that no writer uses.
const WORDS: [(&str, &str); 2] = [("Infinity", "17.976931348623157e307"), ("NaN", "50.0e-325")];

/// The message on a Git LFS pointer in place of JSON.
pub(super) const LFS_POINTER: &str = "it is a Git LFS pointer, not the file: run `git lfs pull`";

/// Whether the bytes are a Git LFS pointer, which a checkout without LFS has in place of a file.
pub(crate) fn is_lfs_pointer(bytes: &[u8]) -> bool {
    bytes.starts_with(b"version https://git-lfs")
}

/// Parses JSON, Python's words included.
///
/// # Errors
/// What is malformed, safe for a terminal.
pub fn parse_json(bytes: &[u8]) -> Result<Value, String> {
    parse(bytes)
}

/// Looks whether bytes are JSON, Python's words included, and keeps nothing of it.
///
/// # Errors
/// What is malformed, safe for a terminal.
pub fn check_json(bytes: &[u8]) -> Result<(), String> {
    parse::<IgnoredAny>(bytes).map(drop)
}

fn parse<T: DeserializeOwned>(bytes: &[u8]) -> Result<T, String> {
    if is_lfs_pointer(bytes) {
        return Err(LFS_POINTER.to_owned());
    }
    serde_json::from_slice(bytes).or_else(|error| {
        let words = std::str::from_utf8(bytes)
            .map(|text| replaced(text, |(word, spelled)| (word, spelled)));
        match words {
            Ok(Cow::Owned(text)) => serde_json::from_str(&text).map_err(|error| plain(&error)),
            _ => Err(plain(&error)),
        }
    })
}

/// The text of a value, indented; parts that are equal in `original`, the text of another version, keep their text.
pub fn json_text(value: &Value, original: Option<&str>) -> String {
    let original = original.map(|text| replaced(text, |(word, spelled)| (word, spelled)));
    let raw = original
        .as_deref()
        .and_then(|text| serde_json::from_str::<&RawValue>(text).ok());
    let mut out = String::new();
    write(value, raw, 0, &mut out);
    out.push('\n');
    replaced(&out, |(word, spelled)| (spelled, word)).into_owned()
}

/// A value in one line, with Python's words for numbers that JSON has not; those in objects aside.
pub fn json_line(value: &Value) -> String {
    match value {
        Value::Number(number) => number_text(number),
        Value::Array(items) => {
            let items: Vec<String> = items.iter().map(json_line).collect();
            format!("[{}]", items.join(","))
        }
        other => other.to_string(),
    }
}

/// A number as Python writes it.
fn number_text(number: &Number) -> String {
    match number.as_f64() {
        Some(INFINITY) => "Infinity".to_owned(),
        Some(value) if value == -INFINITY => "-Infinity".to_owned(),
        Some(NAN) => "NaN".to_owned(),
        _ => number.to_string(),
    }
}

/// Replaces words in a text, except inside strings.
fn replaced(
    text: &str,
    pair: impl Fn((&'static str, &'static str)) -> (&'static str, &'static str),
) -> Cow<'_, str> {
    let pairs = WORDS.map(pair);
    let mut out = String::new();
    let (mut kept, mut at) = (0, 0);
    let mut in_string = false;
    let bytes = text.as_bytes();
    while at < bytes.len() {
        match bytes[at] {
            b'\\' if in_string => at += 1,
            b'"' => in_string = !in_string,
            _ if in_string => {}
            _ => {
                let found = pairs
                    .iter()
                    .find(|(from, _)| bytes[at..].starts_with(from.as_bytes()));
                if let Some((from, to)) = found {
                    out.push_str(&text[kept..at]);
                    out.push_str(to);
                    kept = at + from.len();
                    at = kept - 1;
                }
            }
        }
        at += 1;
    }
    match kept {
        0 => Cow::Borrowed(text),
        _ => Cow::Owned(out + &text[kept..]),
    }
}

fn write(value: &Value, original: Option<&RawValue>, indent: usize, out: &mut String) {
    let same = |raw: &&RawValue| {
        serde_json::from_str::<Value>(raw.get()).is_ok_and(|before| before == *value)
    };
    if let Some(raw) = original.filter(same) {
        out.push_str(raw.get());
        return;
    }
    let line = |out: &mut String, indent: usize| {
        out.push('\n');
        out.extend(std::iter::repeat_n("  ", indent));
    };
    match value {
        Value::Object(entries) if !entries.is_empty() => {
            let before: HashMap<Cow<'_, str>, &RawValue> = original
                .and_then(|raw| serde_json::from_str::<Entries<'_>>(raw.get()).ok())
                .map(|Entries(entries)| entries)
                .unwrap_or_default();
            out.push('{');
            for (at, (key, value)) in entries.iter().enumerate() {
                out.push_str(if at == 0 { "" } else { "," });
                line(out, indent + 1);
                out.push_str(&Value::from(key.as_str()).to_string());
                out.push_str(": ");
                write(value, before.get(key.as_str()).copied(), indent + 1, out);
            }
            line(out, indent);
            out.push('}');
        }
        Value::Array(items) if !items.is_empty() => {
            out.push('[');
            for (at, item) in items.iter().enumerate() {
                out.push_str(if at == 0 { "" } else { "," });
                line(out, indent + 1);
                write(item, None, indent + 1, out);
            }
            line(out, indent);
            out.push(']');
        }
        Value::Number(number) => out.push_str(&number_text(number)),
        other => out.push_str(&other.to_string()),
    }
}

/// The entries of an object, each with its text.
#[derive(Deserialize)]
struct Entries<'a>(#[serde(borrow)] HashMap<Cow<'a, str>, &'a RawValue>);

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn pythons_words_are_read_and_written_back() {
        let text = "{\n  \"a\": [0.0, Infinity],\n  \"b\": -Infinity,\n  \"c\": NaN,\n  \"d\": \"NaN \\\" Infinity\",\n  \"e\": 1e-05\n}";
        let mut value = parse_json(text.as_bytes()).unwrap();
        assert_eq!(value["a"][1], f64::MAX);
        assert_eq!(value["b"], -f64::MAX);
        assert_eq!(value["d"], "NaN \" Infinity");
        assert_eq!(json_text(&value, Some(text)), format!("{text}\n"));
        // A new list has them too.
        value["a"] = [f64::MAX, -f64::MAX, NAN].as_slice().into();
        let written = json_text(&value, Some(text));
        assert!(
            written.contains("[\n    Infinity,\n    -Infinity,\n    NaN\n  ]"),
            "{written}"
        );
        assert!(written.contains("\"e\": 1e-05"), "{written}");
        assert_eq!(parse_json(written.as_bytes()).unwrap(), value);
    }

    #[test]
    fn what_is_not_changed_keeps_its_text() {
        let text = r#"{"theta": 1e4, "x": {"big": 123456789012345678901234567890, "scale": 22.627416997969522, "n": 3}, "list": [1,2]}"#;
        let mut value = parse_json(text.as_bytes()).unwrap();
        value["x"]["n"] = 4.into();
        value["new"] = "é".into();
        let written = json_text(&value, Some(text));
        for part in [
            "\"theta\": 1e4",
            "\"big\": 123456789012345678901234567890",
            "\"scale\": 22.627416997969522",
            "\"n\": 4",
            "\"list\": [1,2]",
            "\"new\": \"é\"",
        ] {
            assert!(written.contains(part), "{part}\n{written}");
        }
        assert_eq!(
            json_text(&serde_json::json!({"a": {}}), None),
            "{\n  \"a\": {}\n}\n"
        );
    }

    #[test]
    fn floats_are_read_to_the_last_bit() {
        for text in [
            "22.627416997969522",
            "0.1",
            "1e-05",
            "9007199254740993.5",
            "2.2250738585072014e-308",
        ] {
            let value = parse_json(text.as_bytes()).unwrap();
            assert_eq!(value.as_f64(), Some(text.parse().unwrap()), "{text}");
        }
    }

    #[test]
    fn other_texts_stay_malformed() {
        for text in [
            "",
            "{",
            "Infinit",
            "[NaN",
            "{NaN: 1}",
            "InfinityInfinity",
            "nan",
            "\u{1}",
        ] {
            assert!(parse_json(text.as_bytes()).is_err(), "{text}");
        }
        assert!(parse_json(b"\xff NaN").is_err());
        let pointer = b"version https://git-lfs.github.com/spec/v1\noid sha256:0\nsize 1\n";
        assert!(parse_json(pointer).unwrap_err().contains("git lfs pull"));
    }
}
