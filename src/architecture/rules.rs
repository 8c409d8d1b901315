//! The lines of a family's table: a tensor's name, its sizes by letters, and when it is there.
//!
//! In a name `*` is the number of a layer and `#` that of an expert; the letters of sizes are those of
//! [`Sizes`](super::sizes::Sizes). A line as text is `name letters...`; `?` before it: it may be left out, in all
//! layers or in none; `if` behind it: so too, unless a field of the config promises it (`if field` a number above
//! zero, `if field=text`, `if field=null`, `if field^start`, `if field!start`).

use serde_json::Value;

use super::fields::Fields;

/// Which layers have a tensor.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Layers {
    /// All.
    All,
    /// Those with experts.
    Sparse,
    /// Those without.
    Dense,
}

/// What a tensor is for, as far as anybody must know.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Role {
    /// A row for each token.
    Embedding,
    /// A row for each expert.
    Router,
    /// A matrix of an expert, or of all experts of a layer.
    Expert,
    /// Anything else.
    Other,
}

/// When a tensor is there.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Condition {
    Always,
    /// It may be left out.
    Never,
    /// A field is true, or this is where the config does not say.
    Flag(&'static str, bool),
    /// A field is a number above zero.
    Positive(&'static str),
    /// A field is written, as null.
    Null(&'static str),
    /// A field is that text.
    Equals(&'static str, &'static str),
    /// A field is a text that begins so.
    Begins(&'static str, &'static str),
    /// A field is no text that begins so.
    BeginsNot(&'static str, &'static str),
}

impl Condition {
    /// Whether a config promises the tensor.
    pub(super) fn holds(self, config: &Fields<'_>) -> bool {
        let begins = |field: &str, start: &str| {
            let text = config.get(field).and_then(Value::as_str);
            text.is_some_and(|text| text.starts_with(start))
        };
        match self {
            Condition::Always => true,
            Condition::Never => false,
            Condition::Flag(field, default) => config
                .get(field)
                .map_or(default, |value| value.as_bool() == Some(true)),
            Condition::Positive(field) => config
                .get(field)
                .and_then(Value::as_u64)
                .is_some_and(|number| number > 0),
            Condition::Null(field) => config.is_written(field) && config.get(field).is_none(),
            Condition::Equals(field, text) => {
                config.get(field).and_then(Value::as_str) == Some(text)
            }
            Condition::Begins(field, start) => begins(field, start),
            Condition::BeginsNot(field, start) => !begins(field, start),
        }
    }

    fn parsed(text: &'static str) -> Condition {
        if let Some((field, start)) = text.split_once('^') {
            return Condition::Begins(field, start);
        }
        if let Some((field, start)) = text.split_once('!') {
            return Condition::BeginsNot(field, start);
        }
        match text.split_once('=') {
            Some((field, "null")) => Condition::Null(field),
            Some((field, text)) => Condition::Equals(field, text),
            None => Condition::Positive(text),
        }
    }
}

/// One line.
#[derive(Debug, Clone)]
pub(super) struct Line {
    /// Behind the body's prefix.
    pub(super) name: String,
    pub(super) letters: Vec<String>,
    pub(super) when: Condition,
    pub(super) layers: Layers,
    pub(super) role: Role,
}

impl Line {
    /// A tensor that all layers have, or that stands outside of them.
    pub(super) fn new(name: impl Into<String>, letters: &str) -> Line {
        Line {
            name: name.into(),
            letters: letters.split_whitespace().map(Into::into).collect(),
            when: Condition::Always,
            layers: Layers::All,
            role: Role::Other,
        }
    }

    pub(super) fn when(self, when: Condition) -> Line {
        Line { when, ..self }
    }

    pub(super) fn on(self, layers: Layers) -> Line {
        Line { layers, ..self }
    }

    pub(super) fn of(self, role: Role) -> Line {
        Line { role, ..self }
    }

    /// The lines of a text.
    pub(super) fn parsed(text: &'static str) -> impl Iterator<Item = Line> {
        text.lines().map(|line| {
            let (line, when) = match line.split_once(" if ") {
                Some((line, condition)) => (line, Condition::parsed(condition)),
                None if line.starts_with('?') => (line, Condition::Never),
                None => (line, Condition::Always),
            };
            let line = line.trim_start_matches('?');
            let (name, letters) = line.split_once(' ').unwrap_or((line, ""));
            let role = match letters {
                "V H" => Role::Embedding,
                _ if name.contains(".experts.") => Role::Expert,
                _ => Role::Other,
            };
            Line::new(name, letters).when(when).of(role)
        })
    }
}
