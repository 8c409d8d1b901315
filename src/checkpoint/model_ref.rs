//! How a recipe names a model: a path or a Hub id, at an optional revision, with an optional adapter.

use std::fmt;

use super::limits::MAX_MODEL_REF_BYTES;

/// A model as a recipe writes it: `path`, `org/name`, `org/name@revision`, `model+adapter`.
#[derive(Debug, Clone, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct ModelRef {
    /// A local path or a Hub id, without revision and adapter.
    pub path: String,
    /// The part after `@`: a branch, a tag or a commit of a Hub repository.
    pub revision: Option<String>,
    /// The part after `+`: a LoRA adapter, with its own `@revision` if it has one.
    pub adapter: Option<String>,
    text: String,
}

impl ModelRef {
    /// Parses a reference as mergekit does.
    ///
    /// Whether a path with an `@` or a `+` exists literally is decided by
    /// [`Locator::locate`](super::Locator::locate).
    ///
    /// # Errors
    /// The text is empty, too long, has control characters, or has an `@` or a `+` with nothing beside it, and is not
    /// plainly a path. The error says which.
    pub fn parse(text: &str) -> Result<ModelRef, String> {
        if text.trim().is_empty() {
            return Err("expected a model, found nothing".into());
        }
        if text.len() > MAX_MODEL_REF_BYTES {
            return Err(format!(
                "expected a model of at most {MAX_MODEL_REF_BYTES} bytes, found {}",
                text.len()
            ));
        }
        if text.chars().any(char::is_control) {
            return Err("expected a model, found a control character in it".into());
        }
        match split(text) {
            Ok((path, revision, adapter)) => Ok(ModelRef {
                path: path.into(),
                revision: revision.map(Into::into),
                adapter: adapter.map(Into::into),
                text: text.into(),
            }),
            // Text that can only be a path may contain any number of these characters.
            Err(_) if is_plainly_a_path(text) => Ok(ModelRef {
                path: text.into(),
                revision: None,
                adapter: None,
                text: text.into(),
            }),
            Err(reason) => Err(reason),
        }
    }

    /// The model without its adapter, and the adapter, if it has one.
    pub fn base_and_adapter(&self) -> Option<(ModelRef, ModelRef)> {
        let adapter = self.adapter.as_deref()?;
        // Both parts were checked when the whole reference was parsed.
        let (adapter_path, adapter_revision) = split_revision(adapter, "an adapter").ok()?;
        let part = |path: &str, revision: Option<&str>| ModelRef {
            path: path.into(),
            revision: revision.map(Into::into),
            adapter: None,
            text: revision.map_or(path.into(), |revision| format!("{path}@{revision}")),
        };
        Some((
            part(&self.path, self.revision.as_deref()),
            part(adapter_path, adapter_revision),
        ))
    }

    /// The reference as written.
    pub fn text(&self) -> &str {
        &self.text
    }
}

impl fmt::Display for ModelRef {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.text)
    }
}

/// Path, revision, adapter.
type Parts<'a> = (&'a str, Option<&'a str>, Option<&'a str>);

fn split(text: &str) -> Result<Parts<'_>, String> {
    let (model, adapter) = match text.split_once('+') {
        None => (text, None),
        Some((_, rest)) if rest.contains('+') => {
            return Err(format!(
                "expected `model+adapter`, found more than one `+` in `{text}`"
            ));
        }
        Some((model, adapter)) => (model, Some(adapter)),
    };
    if let Some(adapter) = adapter {
        split_revision(adapter, "an adapter")?;
    }
    let (path, revision) = split_revision(model, "a model")?;
    Ok((path, revision, adapter))
}

fn split_revision<'a>(text: &'a str, what: &str) -> Result<(&'a str, Option<&'a str>), String> {
    let (path, revision) = match text.split_once('@') {
        None => (text, None),
        Some((_, rest)) if rest.contains('@') => {
            return Err(format!(
                "expected `path@revision`, found more than one `@` in `{text}`"
            ));
        }
        Some((path, revision)) => (path, Some(revision)),
    };
    if path.is_empty() {
        return Err(format!("expected {what}, found nothing before `{text}`"));
    }
    if revision == Some("") {
        return Err(format!(
            "expected a revision after the `@` of `{text}`, found nothing"
        ));
    }
    Ok((path, revision))
}

fn is_plainly_a_path(text: &str) -> bool {
    text.starts_with('/') || text.starts_with("./") || text.starts_with("../")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn references_are_split_as_mergekit_splits_them() {
        let check = |text: &str, path: &str, revision: Option<&str>, adapter: Option<&str>| {
            let model = ModelRef::parse(text).unwrap();
            assert_eq!(model.path, path);
            assert_eq!(model.revision.as_deref(), revision);
            assert_eq!(model.adapter.as_deref(), adapter);
            assert_eq!(model.to_string(), text);
        };
        check("org/name", "org/name", None, None);
        check("org/name@main", "org/name", Some("main"), None);
        check("org/name@refs/pr/1", "org/name", Some("refs/pr/1"), None);
        check("./a+b", "./a", None, Some("b"));
        check("a@x+b@y", "a", Some("x"), Some("b@y"));
        check("/data/a+b+c@d@e", "/data/a+b+c@d@e", None, None);
        check("with space", "with space", None, None);
    }

    #[test]
    fn nonsense_is_refused_with_a_reason() {
        let long = "x".repeat(5000);
        for text in [
            "",
            "  ",
            "a+b+c",
            "a@b@c",
            "@main",
            "a@",
            "+b",
            "a+",
            "a+@x",
            "a\u{1b}[31m",
            &long,
        ] {
            assert!(ModelRef::parse(text).is_err(), "{text:?}");
        }
    }
}
