//! What the errors of all layers have in common: a message says what is wrong, and a hint, apart from it, what to do.
//!
//! It also makes text from untrusted files [printable]. This crate knows no layer.

mod printable;

pub use printable::{Printable, printable, printable_in_place, printable_json, printable_lines};

use std::borrow::Cow;
use std::error::Error;
use std::fmt;
use std::path::PathBuf;

/// A list in a message: its first `most` entries, and how many more there are.
pub fn some_of<T: fmt::Display>(
    entries: impl IntoIterator<Item = T, IntoIter: ExactSizeIterator>,
    most: usize,
) -> String {
    let mut entries = entries.into_iter();
    let shown = entries.by_ref().take(most).map(|entry| entry.to_string());
    let shown = shown.collect::<Vec<String>>().join(", ");
    match entries.len() {
        0 => shown,
        more => format!("{shown} and {more} more"),
    }
}

/// An error that may know what to do about it. Its `Display` is the message alone.
pub trait Hint: Error {
    /// What to do about it.
    fn hint(&self) -> Option<Cow<'_, str>>;

    /// What it is about, for programs; its message names that too.
    fn about(&self) -> About {
        About::default()
    }
}

/// What an error is about, as far as it knows.
#[derive(Debug, Clone, Default, PartialEq, Eq, PartialOrd, Ord)]
pub struct About {
    /// The file or folder.
    pub file: Option<PathBuf>,
    /// The tensor's name.
    pub tensor: Option<String>,
    /// The model, as the user wrote it.
    pub model: Option<String>,
    /// The line of the file, from 1.
    pub line: Option<usize>,
}

impl About {
    /// A file or folder.
    pub fn file(path: impl Into<PathBuf>) -> Self {
        Self {
            file: Some(path.into()),
            ..Self::default()
        }
    }

    /// The same with a tensor.
    #[must_use]
    pub fn tensor(self, name: impl Into<String>) -> Self {
        Self {
            tensor: Some(name.into()),
            ..self
        }
    }

    /// The same with a model.
    #[must_use]
    pub fn model(self, model: impl Into<String>) -> Self {
        Self {
            model: Some(model.into()),
            ..self
        }
    }
}

/// A message for the user and what to do about it, where nobody asks for the kind of error.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord)]
pub struct Refusal {
    message: String,
    hint: Option<String>,
    about: Box<About>,
}

impl Refusal {
    /// One without a hint.
    pub fn new(message: impl Into<String>) -> Self {
        Self {
            message: message.into(),
            hint: None,
            about: Box::default(),
        }
    }

    /// The same with a hint.
    #[must_use]
    pub fn with_hint(self, hint: impl Into<String>) -> Self {
        let hint = Some(hint.into());
        Self { hint, ..self }
    }

    /// The same, knowing what it is about.
    #[must_use]
    pub fn about(self, about: About) -> Self {
        let about = Box::new(about);
        Self { about, ..self }
    }

    /// The same with the place, file or model before its message: `context: message`.
    #[must_use]
    pub fn within(self, context: impl fmt::Display) -> Self {
        let message = format!("{context}: {}", self.message);
        Self { message, ..self }
    }

    /// Message and hint.
    pub fn into_parts(self) -> (String, Option<String>) {
        (self.message, self.hint)
    }
}

impl fmt::Display for Refusal {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.message)
    }
}

impl Error for Refusal {}

impl Hint for Refusal {
    fn hint(&self) -> Option<Cow<'_, str>> {
        self.hint.as_deref().map(Cow::Borrowed)
    }

    fn about(&self) -> About {
        (*self.about).clone()
    }
}

impl From<String> for Refusal {
    fn from(message: String) -> Self {
        Self::new(message)
    }
}

impl From<&str> for Refusal {
    fn from(message: &str) -> Self {
        Self::new(message)
    }
}

/// Message and hint of any error.
impl<E: Hint + ?Sized> From<&E> for Refusal {
    fn from(error: &E) -> Self {
        Self {
            message: error.to_string(),
            hint: error.hint().map(Cow::into_owned),
            about: Box::new(error.about()),
        }
    }
}

/// Message and hint on one line, for where there is no place for two.
pub fn in_one_line(error: &(impl Hint + ?Sized)) -> String {
    match error.hint() {
        Some(hint) => format!("{error}; hint: {hint}"),
        None => error.to_string(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_long_list_ends_with_a_count() {
        assert_eq!(some_of(["a", "b"], 2), "a, b");
        assert_eq!(some_of(["a", "b", "c", "d"], 2), "a, b and 2 more");
        assert_eq!(some_of([0; 0], 2), "");
    }

    #[test]
    fn a_message_for_people_keeps_what_it_is_about_for_programs() {
        let about = About::file("a/model.safetensors").tensor("head.weight");
        let refusal = Refusal::new("a hole").about(about.clone());
        let passed_on = Refusal::from(&refusal).within("model `a`");
        assert_eq!(Hint::about(&passed_on), about);
    }

    #[test]
    fn a_hint_stays_apart_from_the_message() {
        let refusal = Refusal::new("no weights").with_hint("name a folder");
        assert_eq!(refusal.to_string(), "no weights");
        assert_eq!(refusal.hint().as_deref(), Some("name a folder"));
        let within = Refusal::from(&refusal).within("model `a`");
        assert_eq!(
            in_one_line(&within),
            "model `a`: no weights; hint: name a folder"
        );
        assert_eq!(in_one_line(&Refusal::from("stopped")), "stopped");
    }
}
