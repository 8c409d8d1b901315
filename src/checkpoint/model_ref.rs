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
    /// The parts after a `+`: LoRA adapters.
    pub adapters: Vec<AdapterRef>,
    text: String,
}

/// An adapter as a recipe writes it: `path`, `org/name@revision`, and `@0.7` at its end for its weight.
#[derive(Debug, Clone, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct AdapterRef {
    path: String,
    revision: Option<String>,
    /// The weight as it is written.
    weight: Option<String>,
    /// All but the weight, as it is written.
    text: String,
}

impl AdapterRef {
    /// What its update is multiplied with: one, if it is not said.
    pub fn weight(&self) -> f64 {
        let weight = self.weight.as_ref().and_then(|text| text.parse().ok());
        weight.unwrap_or(1.0)
    }

    /// The adapter as a reference by itself, without its weight.
    pub fn reference(&self) -> ModelRef {
        ModelRef {
            path: self.path.clone(),
            revision: self.revision.clone(),
            entry: None,
            adapters: Vec::new(),
            text: self.text.clone(),
        }
    }
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
                adapters: parts.adapters,
                text: text.into(),
            }),
            // Text that can only be a path may contain any number of these characters.
            Err(_) if is_plainly_a_path(text) => Ok(ModelRef {
                path: text.into(),
                revision: None,
                entry: None,
                adapters: Vec::new(),
                text: text.into(),
            }),
            Err(reason) => Err(reason),
        }
    }

    /// The model without its adapters, if it has any.
    pub fn base(&self) -> Option<ModelRef> {
        let (base, _) = self
            .text
            .split_once('+')
            .filter(|_| !self.adapters.is_empty())?;
        Some(ModelRef {
            adapters: Vec::new(),
            text: base.into(),
            ..self.clone()
        })
    }

    /// What it is made of, each by itself: the model, and its adapters without their weights.
    pub fn parts(&self) -> Vec<ModelRef> {
        let base = self.base().unwrap_or_else(|| self.clone());
        let adapters = self.adapters.iter().map(AdapterRef::reference);
        std::iter::once(base).chain(adapters).collect()
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
    adapters: Vec<AdapterRef>,
}

fn split(text: &str) -> Result<Parts<'_>, String> {
    let mut parts = text.split('+');
    let model = parts.next().unwrap_or_default();
    let adapter = |part: &str| match part {
        "" => Err(format!(
            "expected an adapter after the `+` of `{text}`, found nothing"
        )),
        part => split_weight(part),
    };
    let adapters: Vec<AdapterRef> = parts.map(adapter).collect::<Result<_, _>>()?;
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
        adapters,
    })
}

/// An adapter and its weight: a number after the last `@`. A revision that is a number is followed by a weight.
fn split_weight(text: &str) -> Result<AdapterRef, String> {
    let (name, weight) = match text.rsplit_once('@') {
        Some((name, last)) if is_weight(last) => (name, Some(last.to_owned())),
        _ => (text, None),
    };
    let (path, revision) = split_revision(name, "an adapter")?;
    Ok(AdapterRef {
        path: path.into(),
        revision: revision.map(Into::into),
        weight,
        text: name.into(),
    })
}

/// Whether a text is a decimal number: `0.7`, `-1`, `.5`. Commits have more digits.
fn is_weight(text: &str) -> bool {
    let digits = text.strip_prefix('-').unwrap_or(text);
    let plain = |byte: u8| byte.is_ascii_digit() || byte == b'.';
    digits.len() <= MAX_WEIGHT_BYTES
        && digits.bytes().all(plain)
        && digits.parse::<f64>().is_ok_and(f64::is_finite)
}

/// The longest weight; revisions of digits alone are longer, or are told by a weight behind them.
const MAX_WEIGHT_BYTES: usize = 24;

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
            let found = model.adapters.first().map(|adapter| adapter.text.as_str());
            assert_eq!(found, adapter);
            assert_eq!(model.entry, None);
            assert_eq!(model.to_string(), text);
        };
        check("org/name", "org/name", None, None);
        check("org/name@main", "org/name", Some("main"), None);
        check("org/name@refs/pr/1", "org/name", Some("refs/pr/1"), None);
        check("./a+b", "./a", None, Some("b"));
        check("a@x+b@y", "a", Some("x"), Some("b@y"));
        check("/data/a+b@c@d@e", "/data/a+b@c@d@e", None, None);
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
        let parts = ModelRef::parse("m.pt#net+lora@x").unwrap().parts();
        let base = &parts[0];
        assert_eq!((base.text(), parts[1].text()), ("m.pt#net", "lora@x"));
        let (whole, entry) = base.whole_and_entry().unwrap();
        assert_eq!((whole.text(), entry.as_str()), ("m.pt", "net"));
    }

    #[test]
    fn adapters_have_weights_and_there_may_be_several() {
        let of = |text: &str| -> Vec<(String, Option<String>, f64)> {
            let model = ModelRef::parse(text).unwrap();
            assert_eq!((model.path.as_str(), model.text()), ("m", text));
            let part = |adapter: &AdapterRef| {
                let reference = adapter.reference();
                (reference.path, reference.revision, adapter.weight())
            };
            model.adapters.iter().map(part).collect()
        };
        let part = |path: &str, revision: Option<&str>, weight| {
            (path.to_owned(), revision.map(str::to_owned), weight)
        };
        assert_eq!(
            of("m@v1+a@0.7+org/b@v2@-.25+c"),
            [
                part("a", None, 0.7),
                part("org/b", Some("v2"), -0.25),
                part("c", None, 1.0)
            ]
        );
        // A revision that is a number needs a weight behind it.
        assert_eq!(of("m+a@2"), [part("a", None, 2.0)]);
        assert_eq!(of("m+a@2.0@1"), [part("a", Some("2.0"), 1.0)]);
        for revision in [
            "v0.7",
            "1e5",
            "0x1",
            "inf",
            "1.2.3",
            "0123456789012345678901234567890123456789",
        ] {
            assert_eq!(
                of(&format!("m+a@{revision}")),
                [part("a", Some(revision), 1.0)]
            );
        }
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
            "a++c",
            "a+b@c@d",
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
