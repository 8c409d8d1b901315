//! The path to a value of a recipe: `parameters.density`, `models[1].parameters.weight`.

use std::fmt;
use std::iter::Peekable;
use std::str::CharIndices;

/// The most steps of a path: no recipe is as deep.
const MAX_STEPS: usize = 64;

/// A path to a value, or to several where it holds `[*]`.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct KeyPath {
    /// As the user wrote it.
    text: String,
    /// Where the user wrote it: behind a flag, or in a file.
    pub(super) flag: &'static str,
    /// The document that it begins in, by its `name:`; none is the one whose result is written.
    pub(super) document: Option<String>,
    /// Never empty.
    pub(super) steps: Vec<Step>,
}

/// A step from a value into it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) enum Step {
    /// The value of a key.
    Key(String),
    /// An entry of a list, from 0.
    Item(usize),
    /// Every entry of a list.
    All,
}

impl fmt::Display for KeyPath {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.text)
    }
}

impl KeyPath {
    /// Whether a value at one of two paths lies in what the other sets.
    pub(super) fn overlaps(&self, other: &KeyPath) -> bool {
        let same = |(a, b): (&Step, &Step)| match (a, b) {
            (Step::All, Step::Item(_)) | (Step::Item(_), Step::All) => true,
            (a, b) => a == b,
        };
        self.document == other.document && self.steps.iter().zip(&other.steps).all(same)
    }

    /// What messages call it.
    pub(super) fn given(&self) -> String {
        format!("`{}{}`", self.flag, self.text)
    }

    /// Parses a path.
    ///
    /// # Errors
    /// A key is empty, a bracket is not closed, or it holds neither a number, `*` nor a key in quotes; or there are too
    /// many steps.
    pub(super) fn parse(text: &str) -> Result<KeyPath, String> {
        let (document, path) = match outside_brackets(text, ':') {
            Some(colon) => (text.get(..colon), text.get(colon + 1..).unwrap_or_default()),
            None => (None, text),
        };
        Ok(KeyPath {
            text: text.to_owned(),
            flag: "--set ",
            document: document.map(str::to_owned),
            steps: steps(path)?,
        })
    }
}

/// The first place of a character that stands in no bracket.
pub(super) fn outside_brackets(text: &str, wanted: char) -> Option<usize> {
    let mut quoted = false;
    let mut escaped = false;
    let mut within = false;
    for (at, c) in text.char_indices() {
        match c {
            _ if escaped => escaped = false,
            '\\' if quoted => escaped = true,
            '"' if within => quoted = !quoted,
            '[' if !quoted => within = true,
            ']' if !quoted => within = false,
            _ if c == wanted && !within => return Some(at),
            _ => {}
        }
    }
    None
}

fn steps(path: &str) -> Result<Vec<Step>, String> {
    let mut steps = Vec::new();
    let mut chars = path.char_indices().peekable();
    while let Some(&(at, c)) = chars.peek() {
        if steps.len() == MAX_STEPS {
            return Err(format!("expected at most {MAX_STEPS} keys and brackets"));
        }
        if c == '[' {
            chars.next();
            steps.push(bracket(path, &mut chars)?);
            continue;
        }
        if c == '.' && at > 0 {
            chars.next();
        } else if at > 0 {
            return Err(format!("expected `.` or `[` before `{}`", rest(path, at)));
        }
        steps.push(Step::Key(key(&mut chars)?));
    }
    match steps.is_empty() {
        true => Err("expected a key, as in parameters.density".into()),
        false => Ok(steps),
    }
}

fn rest(path: &str, from: usize) -> &str {
    path.get(from..).unwrap_or_default()
}

fn key(chars: &mut Peekable<CharIndices<'_>>) -> Result<String, String> {
    let mut key = String::new();
    while let Some((_, c)) = chars.next_if(|&(_, c)| c != '.' && c != '[') {
        key.push(c);
    }
    match key.is_empty() {
        true => Err("a key is empty".into()),
        false => Ok(key),
    }
}

/// What stands in brackets, of which the first is read.
fn bracket(path: &str, chars: &mut Peekable<CharIndices<'_>>) -> Result<Step, String> {
    let start = chars.peek().map_or(path.len(), |&(at, _)| at);
    let inner = rest(path, start);
    if inner.starts_with('"') {
        let mut read = serde_json::Deserializer::from_str(inner).into_iter::<String>();
        let key = match read.next() {
            Some(Ok(key)) => key,
            _ => return Err(format!("`[{inner}`: the key in quotes does not end")),
        };
        let end = start + read.byte_offset();
        while chars.next_if(|&(at, _)| at < end).is_some() {}
        return match chars.next() {
            Some((_, ']')) => Ok(Step::Key(key)),
            _ => Err(format!("`[{inner}`: expected `]` after the key in quotes")),
        };
    }
    let Some(len) = inner.find(']') else {
        return Err(format!("`[{inner}` has no `]`"));
    };
    while chars.next_if(|&(at, _)| at <= start + len).is_some() {}
    let number = inner.get(..len).unwrap_or_default();
    match number {
        "*" => Ok(Step::All),
        number if number.bytes().all(|byte| byte.is_ascii_digit()) && !number.is_empty() => number
            .parse()
            .map(Step::Item)
            .map_err(|_| format!("[{number}] is too large")),
        other => Err(format!(
            "[{other}]: expected the number of an entry from 0 on, `*` for all, or a key in double quotes"
        )),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn key(name: &str) -> Step {
        Step::Key(name.into())
    }

    #[test]
    fn paths_have_keys_numbers_stars_and_quotes() {
        for (text, expected) in [
            ("dtype", vec![key("dtype")]),
            (
                "models[10].parameters.weight",
                vec![
                    key("models"),
                    Step::Item(10),
                    key("parameters"),
                    key("weight"),
                ],
            ),
            (
                "models[*].model",
                vec![key("models"), Step::All, key("model")],
            ),
            (
                r#"tokenizer.tokens["<|a.b]=:\"|>"].source"#,
                vec![
                    key("tokenizer"),
                    key("tokens"),
                    key("<|a.b]=:\"|>"),
                    key("source"),
                ],
            ),
        ] {
            let path = KeyPath::parse(text).unwrap();
            assert_eq!((path.document, path.steps), (None, expected), "{text}");
        }
        let path = KeyPath::parse("v1.5:dtype").unwrap();
        assert_eq!(path.document.as_deref(), Some("v1.5"));
        assert_eq!(path.steps, vec![key("dtype")]);
    }

    #[test]
    fn what_is_no_path_is_refused() {
        for text in [
            "",
            ".a",
            "a.",
            "a..b",
            "a[",
            "a[]",
            "a[-1]",
            "a[x]",
            "a[1",
            "a[1]b",
            "a[\"b]",
            "a[\"b\"x]",
            "a[99999999999999999999999]",
            "skills:",
        ] {
            assert!(KeyPath::parse(text).is_err(), "{text}");
        }
        // Values are walked along a path one call deeper for each step.
        for step in [".a", "[0]", "[*]"] {
            assert!(KeyPath::parse(&format!("a{}", step.repeat(MAX_STEPS - 1))).is_ok());
            assert!(KeyPath::parse(&format!("a{}", step.repeat(30_000))).is_err());
        }
    }
}
