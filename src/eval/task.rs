//! Tasks: files of items, each item with what is right.

use std::collections::HashMap;
use std::collections::hash_map::Entry;
use std::path::PathBuf;

use serde::{Deserialize, Serialize};

use crate::split::Digest;

/// Tasks, in the order of their files.
#[derive(Debug, Clone)]
pub struct Tasks {
    /// The tasks; each has a name of its own.
    pub tasks: Vec<Task>,
}

/// A file of items of one kind.
#[derive(Debug, Clone)]
pub struct Task {
    /// The file's name without its ending; the whole path where two files have the same.
    pub name: String,
    /// The file.
    pub file: PathBuf,
    /// What its items ask for.
    pub kind: Kind,
    /// The items, in the order of the file; at least one.
    pub items: Vec<Item>,
}

/// What an item asks for.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Kind {
    /// `{"prompt", "answer"}`: the model writes exactly the answer, and ends.
    Answer,
    /// `{"prompt", "choices", "answer"}`: the right choice is the likeliest.
    Choices,
    /// `{"text"}`: how likely the text is.
    Text,
}

impl Kind {
    /// The name in results.
    pub fn name(self) -> &'static str {
        match self {
            Kind::Answer => "answer",
            Kind::Choices => "choices",
            Kind::Text => "text",
        }
    }
}

/// One line of a task's file.
#[derive(Debug, Clone)]
pub struct Item {
    /// The line, from 1.
    pub line: usize,
    /// Names the item by its content: results of the same item are compared by it.
    pub digest: Digest,
    /// Names what the model is shown: by it an item is of the validation or of the test split.
    pub shown: Digest,
    /// What is asked, and what is right.
    pub content: Content,
}

/// What an item holds.
#[derive(Debug, Clone, PartialEq)]
pub enum Content {
    /// A prompt and its right answers.
    Answer {
        /// What the model is shown.
        prompt: Input,
        /// Any of these is right; at least one.
        answers: Vec<Input>,
        /// Texts that end an answer, beside the model's own end tokens.
        stop: Vec<String>,
    },
    /// A prompt and the choices of what follows.
    Choices {
        /// What the model is shown.
        prompt: Input,
        /// The choices, at least two.
        choices: Vec<Input>,
        /// The number of the right one, from 0.
        right: usize,
    },
    /// A text.
    Text(Input),
}

/// Text, or tokens of the model's vocabulary.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Input {
    /// Text, which the model's tokenizer cuts.
    Text(String),
    /// Tokens, taken as they are.
    Tokens(Vec<u32>),
}

impl Task {
    /// Items that stand in the file before: the line of each, and that of the first that is equal.
    pub fn repeated(&self) -> Vec<(usize, usize)> {
        let items = self.items.iter();
        repeated(items.map(|item| (item.digest, item.line)))
    }
}

/// Of items by digest and line: the line of each that stands before, and that of the first that is equal.
pub(crate) fn repeated(items: impl Iterator<Item = (Digest, usize)>) -> Vec<(usize, usize)> {
    let mut first = HashMap::new();
    let again = items.filter_map(|(digest, line)| match first.entry(digest) {
        Entry::Occupied(first) => Some((line, *first.get())),
        Entry::Vacant(place) => {
            place.insert(line);
            None
        }
    });
    again.collect()
}

impl Content {
    /// What kind of item it is.
    pub fn kind(&self) -> Kind {
        match self {
            Content::Answer { .. } => Kind::Answer,
            Content::Choices { .. } => Kind::Choices,
            Content::Text(_) => Kind::Text,
        }
    }
}
