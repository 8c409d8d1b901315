//! How a recipe names a model: a path or a Hub id, at an optional revision, with an optional adapter.

use std::fmt;

use super::limits::MAX_MODEL_REF_BYTES;

/// A model as a recipe writes it: `path`, `org/name`, `org/name@revision`, `file#entry`, `model+adapter`.
#[derive(Debug, Clone, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct ModelRef {
    /// A local path or a Hub id, without revision and adapter.
    pub path: String,
    /// The part after `@`: a branch, a tag or a commit of a Hub repository.
    pub revision: Option<String>,
    /// The part after `#`: the entry of a file of torch.save that holds the tensors, its keys joined by dots.
    pub entry: Option<String>,
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
            Ok(parts) => Ok(ModelRef {
                path: parts.path.into(),
                revision: parts.revision.map(Into::into),
                entry: parts.entry.map(Into::into),
                adapter: parts.adapter.map(Into::into),
                text: text.into(),
            }),
            // Text that can only be a path may contain any number of these characters.
            Err(_) if is_plainly_a_path(text) => Ok(ModelRef {
                path: text.into(),
                revision: None,
                entry: None,
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
        let (base, _) = self.text.split_once('+')?;
        Some((
            ModelRef {
                adapter: None,
                text: base.into(),
                ..self.clone()
            },
            ModelRef {
                path: adapter_path.into(),
                revision: adapter_revision.map(Into::into),
                entry: None,
                adapter: None,
                text: adapter.into(),
            },
        ))
    }

    /// The model without its entry, and the entry, if it has one; without an adapter.
    pub(super) fn whole_and_entry(&self) -> Option<(ModelRef, String)> {
        let entry = self.entry.clone()?;
        let (text, _) = self.text.rsplit_once('#')?;
        let whole = ModelRef {
            entry: None,
            text: text.into(),
            ..self.clone()
        };
        Some((whole, entry))
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

/// The parts of a reference.
struct Parts<'a> {
    path: &'a str,
    revision: Option<&'a str>,
    entry: Option<&'a str>,
    adapter: Option<&'a str>,
}

fn split(text: &str) -> Result<Parts<'_>, String> {
    let (model, adapter) = match text.split_once('+') {
        None => (text, None),
        Some((_, rest)) if rest.contains('+') => {
            return Err(format!(
                "expected `model+adapter`, found more than one `+` in `{text}`"
            ));
        }
        Some((_, "")) => {
            return Err(format!(
                "expected an adapter after the `+` of `{text}`, found nothing"
            ));
        }
        Some((model, adapter)) => (model, Some(adapter)),
    };
    if let Some(adapter) = adapter {
        split_revision(adapter, "an adapter")?;
    }
    // A `#` at the end is a part of the name.
    let (whole, entry) = match model.rsplit_once('#') {
        Some((whole, entry)) if !whole.is_empty() && !entry.is_empty() => (whole, Some(entry)),
        _ => (model, None),
    };
    let (path, revision) = split_revision(whole, "a model")?;
    Ok(Parts {
        path,
        revision,
        entry,
        adapter,
    })
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
        return Err(match revision {
            Some(revision) => format!("expected {what}, found nothing before `@{revision}`"),
            None => format!("expected {what}, found nothing before the `+`"),
        });
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
            assert_eq!(model.entry, None);
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
    fn an_entry_follows_the_last_number_sign() {
        let check = |text: &str, path: &str, revision: Option<&str>, entry: Option<&str>| {
            let model = ModelRef::parse(text).unwrap();
            assert_eq!(model.path, path, "{text}");
            assert_eq!(model.revision.as_deref(), revision, "{text}");
            assert_eq!(model.entry.as_deref(), entry, "{text}");
        };
        check("m.pt#params_ema", "m.pt", None, Some("params_ema"));
        check("org/name@v1#a.b", "org/name", Some("v1"), Some("a.b"));
        check("dir#1/m.pt#net", "dir#1/m.pt", None, Some("net"));
        check("m.pt#net+lora@x", "m.pt", None, Some("net"));
        check("C#", "C#", None, None);
        check("#x", "#x", None, None);
        let (base, adapter) = ModelRef::parse("m.pt#net+lora@x")
            .unwrap()
            .base_and_adapter()
            .unwrap();
        assert_eq!((base.text(), adapter.text()), ("m.pt#net", "lora@x"));
        let (whole, entry) = base.whole_and_entry().unwrap();
        assert_eq!((whole.text(), entry.as_str()), ("m.pt", "net"));
    }

    #[test]
    fn what_is_missing_is_said() {
        let said = |text: &str| ModelRef::parse(text).unwrap_err();
        assert_eq!(
            said("a+"),
            "expected an adapter after the `+` of `a+`, found nothing"
        );
        assert_eq!(said("+b"), "expected a model, found nothing before the `+`");
        assert_eq!(
            said("a+@x"),
            "expected an adapter, found nothing before `@x`"
        );
        assert_eq!(
            said("@main"),
            "expected a model, found nothing before `@main`"
        );
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
