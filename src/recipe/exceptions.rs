//! `only:` and `except:`: the tensors that are not merged, and what happens to them instead.

use super::keys::Place;
use super::nearest::suggestion;
use super::problem::{Located, ProblemKind, quoted};
use super::walk::Walk;
use super::yaml::{Entry, Node, Value};
use checkpoint::Glob;

/// What happens to a tensor that is not merged.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Fallback {
    /// It is copied from the first of the models that would be merged.
    Copy,
    /// It is copied from the base model.
    Base,
    /// The output has no such tensor.
    Drop,
}

/// Tensors that are not merged.
#[derive(Debug)]
pub struct Exception {
    /// What happens to them.
    pub fallback: Fallback,
    patterns: Vec<Pattern>,
    /// Whether it applies to the tensors that no pattern matches.
    all_but: bool,
}

#[derive(Debug)]
struct Pattern {
    text: Located<String>,
    glob: Glob,
}

const FALLBACKS: [(&str, Fallback); 3] = [
    ("copy", Fallback::Copy),
    ("base", Fallback::Base),
    ("drop", Fallback::Drop),
];

const ONLY: Place = Place {
    name: "`only`",
    keys: &["tensors", "otherwise"],
};

const EXCEPT: Place = Place {
    name: "an entry of `except`",
    keys: &["tensors", "action"],
};

impl Exception {
    /// Whether it applies to the tensor of that name.
    pub fn applies(&self, tensor: &str) -> bool {
        self.matches(tensor) != self.all_but
    }

    /// Whether it applies to that tensor because a pattern matches.
    pub(super) fn names(&self, tensor: &str) -> bool {
        !self.all_but && self.matches(tensor)
    }

    fn matches(&self, tensor: &str) -> bool {
        let mut patterns = self.patterns.iter();
        patterns.any(|pattern| pattern.glob.is_match(tensor))
    }

    /// The patterns that match none of these names.
    pub fn idle<'a>(&'a self, names: &[&str]) -> impl Iterator<Item = &'a Located<String>> {
        self.patterns
            .iter()
            .filter(|pattern| !names.iter().any(|name| pattern.glob.is_match(name)))
            .map(|pattern| &pattern.text)
    }
}

impl Walk<'_> {
    /// `only: {tensors: ..., otherwise: ...}`.
    pub(super) fn only(&mut self, entry: &Entry) -> Option<Exception> {
        self.exception(&entry.node, &ONLY, true)
    }

    /// `except: [{tensors: ..., action: ...}, ...]`.
    pub(super) fn except(&mut self, entry: &Entry) -> Vec<Exception> {
        let items = self.items(entry, "except").unwrap_or_default();
        items
            .iter()
            .filter_map(|item| self.exception(item, &EXCEPT, false))
            .collect()
    }

    fn exception(&mut self, node: &Node, place: &Place, all_but: bool) -> Option<Exception> {
        let entries = self.entries(node, place)?;
        let mut patterns = None;
        let mut fallback = None;
        for entry in entries {
            match entry.key.as_str() {
                "tensors" => patterns = Some(self.patterns(entry)),
                "action" | "otherwise" if place.keys.contains(&entry.key.as_str()) => {
                    fallback = Some(self.fallback(entry));
                }
                _ => self.other_key(place, entry),
            }
        }
        let key = place.keys[1];
        if patterns.is_none() {
            self.missing("tensors", node, place);
        }
        if fallback.is_none() {
            let message = format!("missing `{key}` in {}", place.name);
            let hint = "what shall become of these tensors: `copy` (of the first model), `base` (of the base \
                        model) or `drop`?";
            self.refuse(ProblemKind::Missing, node.at, message, Some(hint));
        }
        Some(Exception {
            patterns: patterns??,
            fallback: fallback??,
            all_but,
        })
    }

    /// One pattern, or a list of them.
    fn patterns(&mut self, entry: &Entry) -> Option<Vec<Pattern>> {
        let nodes = match &entry.node.value {
            Value::List(_) => self.items(entry, "tensors")?,
            _ => std::slice::from_ref(&entry.node),
        };
        let read: Vec<Option<Pattern>> = nodes.iter().map(|node| self.pattern(node)).collect();
        read.into_iter().collect()
    }

    fn pattern(&mut self, node: &Node) -> Option<Pattern> {
        let Value::Text(text) = &node.value else {
            let message = format!("expected a pattern, found {}", node.value.found());
            let hint =
                "a pattern is a tensor's name, in which `*` stands for any characters: `*.mlp.*`";
            self.refuse(ProblemKind::Invalid, node.at, message, Some(hint));
            return None;
        };
        match Glob::parse(text) {
            Ok(glob) => Some(Pattern {
                text: Located {
                    value: text.clone(),
                    at: node.at,
                },
                glob,
            }),
            Err(why) => {
                let message = format!("{} is no pattern: {why}", quoted(text));
                self.problem(ProblemKind::Invalid, node.at, message);
                None
            }
        }
    }

    fn fallback(&mut self, entry: &Entry) -> Option<Fallback> {
        let text = self.text(entry)?;
        if let Some((_, fallback)) = FALLBACKS.iter().find(|(word, _)| *word == text) {
            return Some(*fallback);
        }
        let words = FALLBACKS.map(|(word, _)| word);
        let hint = suggestion(&text, "the words are", &words);
        let message = format!("unknown word {} for `{}`", quoted(&text), entry.key);
        self.refuse(
            ProblemKind::Unknown,
            entry.node.at,
            message,
            hint.as_deref(),
        );
        None
    }
}
