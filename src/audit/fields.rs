//! Compares two JSON values field by field.

use serde_json::{Map, Value};

/// The most characters of a value that are shown.
const SHOWN: usize = 80;

/// A field whose values differ.
#[derive(Debug, PartialEq)]
pub(super) struct Field {
    /// Its path, with dots.
    pub(super) path: String,
    /// The first value; `None` if there is none.
    pub(super) first: Option<Value>,
    /// The second value; `None` if there is none.
    pub(super) second: Option<Value>,
}

/// Returns the fields that differ, in the order of the first value, then those that only the second has.
///
/// `dtype` and `torch_dtype` are two spellings of one field; numbers are equal by value.
pub(super) fn differences(first: &Value, second: &Value) -> Vec<Field> {
    let mut fields = Vec::new();
    collect(Some(first), Some(second), String::new(), &mut fields);
    fields
}

fn collect(first: Option<&Value>, second: Option<&Value>, path: String, fields: &mut Vec<Field>) {
    if let (Some(Value::Object(a)), Some(Value::Object(b))) = (first, second) {
        let only_b = b.keys().filter(|key| find(a, key).is_none());
        for key in a.keys().chain(only_b) {
            let path = match path.as_str() {
                "" => key.clone(),
                path => format!("{path}.{key}"),
            };
            collect(find(a, key), find(b, key), path, fields);
        }
        return;
    }
    let equal = match (first, second) {
        (Some(a), Some(b)) => a == b || a.is_number() && a.as_f64() == b.as_f64(),
        _ => false,
    };
    if !equal {
        fields.push(Field {
            path,
            first: first.cloned(),
            second: second.cloned(),
        });
    }
}

/// Finds a field by its name or its other spelling.
fn find<'m>(map: &'m Map<String, Value>, key: &str) -> Option<&'m Value> {
    let other = match key {
        "dtype" => "torch_dtype",
        "torch_dtype" => "dtype",
        key => key,
    };
    map.get(key).or_else(|| map.get(other))
}

/// A value for display: JSON, cut if it is long; `none` for a missing value.
pub(super) fn shown(value: Option<&Value>) -> String {
    let Some(value) = value else {
        return "none".to_owned();
    };
    let text = value.to_string();
    match text.char_indices().nth(SHOWN) {
        Some((end, _)) => format!("{}...", &text[..end]),
        None => text,
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn fields_are_compared_by_path_and_value() {
        let a = json!({"a": 1, "b": {"c": [1, 2], "d": null}, "torch_dtype": "float16", "x": 1.0});
        let b = json!({"b": {"c": [1, 3], "d": null, "e": 5}, "dtype": "float16", "x": 1});
        let found: Vec<_> = differences(&a, &b)
            .into_iter()
            .map(|field| {
                let (first, second) = (shown(field.first.as_ref()), shown(field.second.as_ref()));
                (field.path, first, second)
            })
            .collect();
        let expected = [
            ("a", "1", "none"),
            ("b.c", "[1,2]", "[1,3]"),
            ("b.e", "none", "5"),
        ]
        .map(|(path, first, second)| (path.into(), first.into(), second.into()));
        assert_eq!(found, expected);
        assert_eq!(differences(&a, &a), []);
        assert_eq!(shown(Some(&"ä".repeat(200).into())).chars().count(), 83);
    }
}
