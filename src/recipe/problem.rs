//! What is wrong with a recipe, and where: positions, problems, and the error that holds all of them.

use std::fmt;

use errors::{About, printable};

/// A position in a recipe's text.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub struct Position {
    /// Line, from 1.
    pub line: usize,
    /// Column in characters, from 1.
    pub column: usize,
    /// Byte offset of the first byte in [`RecipeError::text`].
    pub start: usize,
    /// Byte offset past the last byte; never beyond the line of `start`.
    pub end: usize,
}

/// A value and its position in the recipe.
#[derive(Debug, Clone, PartialEq)]
pub struct Located<T> {
    /// The value.
    pub value: T,
    /// Its position.
    pub at: Position,
}

/// The kind of a problem, for programs.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum ProblemKind {
    /// The file cannot be read, is not text, or is too large.
    Unreadable,
    /// A model that it names is not there.
    Absent,
    /// It is not YAML.
    Syntax,
    /// A key, parameter, method or word does not exist.
    Unknown,
    /// A required part is missing.
    Missing,
    /// A value has the wrong type, is out of range, or contradicts another part.
    Invalid,
}

/// One thing that is wrong with a recipe, or, as a warning, has no effect.
#[derive(Debug, Clone, PartialEq)]
pub struct Problem {
    /// The kind of problem.
    pub kind: ProblemKind,
    /// Its position; `None` for the recipe as a whole.
    pub at: Option<Position>,
    /// What was expected and what was found: lowercase, user text in backticks, no full stop.
    pub message: String,
    /// What to do about it.
    pub hint: Option<String>,
    /// The model and tensor that it is about, if it knows them.
    pub about: Box<About>,
}

impl Problem {
    /// A problem at a position. Characters that could disturb a terminal are escaped.
    pub fn new(
        kind: ProblemKind,
        at: impl Into<Option<Position>>,
        message: impl AsRef<str>,
    ) -> Problem {
        Problem {
            kind,
            at: at.into(),
            message: printable(message.as_ref()).into_owned(),
            hint: None,
            about: Box::default(),
        }
    }

    /// The same problem with a hint.
    pub fn with_hint(mut self, hint: impl AsRef<str>) -> Problem {
        self.hint = Some(printable(hint.as_ref()).into_owned());
        self
    }

    /// The same problem, knowing what it is about.
    pub fn about(mut self, about: About) -> Problem {
        self.about = Box::new(about);
        self
    }
}

/// Everything that is wrong with one recipe, sorted by position.
#[derive(Debug, Clone, PartialEq)]
pub struct RecipeError {
    /// The recipe's path, as the user gave it.
    pub path: String,
    /// The recipe's text, which positions refer to; empty if it could not be read.
    pub text: String,
    /// The problems; never empty if this layer created the error.
    pub problems: Vec<Problem>,
}

impl RecipeError {
    /// The error with these problems, sorted by position, without duplicates.
    pub fn new(
        path: impl Into<String>,
        text: impl Into<String>,
        mut problems: Vec<Problem>,
    ) -> RecipeError {
        sort(&mut problems);
        RecipeError {
            path: path.into(),
            text: text.into(),
            problems,
        }
    }
}

impl RecipeError {
    /// Whether the recipe could not be judged, because it or a model that it names is not there or cannot be read.
    pub fn could_not_read(&self) -> bool {
        let cannot = |kind| matches!(kind, ProblemKind::Unreadable | ProblemKind::Absent);
        self.problems.iter().any(|problem| cannot(problem.kind))
    }

    /// What the first problem is about: the recipe, its line, and perhaps a model and a tensor.
    pub fn about(&self) -> About {
        let first = self.problems.first();
        let about = first.map_or_else(About::default, |problem| (*problem.about).clone());
        About {
            file: Some((&self.path).into()),
            line: first.and_then(|problem| Some(problem.at?.line)),
            ..about
        }
    }
}

impl std::error::Error for RecipeError {}

impl fmt::Display for RecipeError {
    /// One line per problem, `path:line:column: message`, and one for its hint.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let path = printable(&self.path);
        for (index, problem) in self.problems.iter().enumerate() {
            if 0 < index {
                writeln!(f)?;
            }
            match problem.at {
                Some(at) => write!(f, "{path}:{}:{}: {}", at.line, at.column, problem.message)?,
                None => write!(f, "{path}: {}", problem.message)?,
            }
            if let Some(hint) = &problem.hint {
                write!(f, "\n  hint: {hint}")?;
            }
        }
        Ok(())
    }
}

/// Sorts problems by position, those of the whole recipe first. A mapping that is used twice through an alias reports
/// its problems twice at the same position: duplicates are removed.
pub(super) fn sort(problems: &mut Vec<Problem>) {
    problems.sort_by_key(|problem| problem.at.map(|at| (at.start, at.end)));
    problems.dedup();
}

/// The most characters of a user's text that a message quotes.
const MAX_QUOTED_CHARS: usize = 80;

/// A user's text in backticks, shortened if it is long.
pub(super) fn quoted(text: &str) -> String {
    match text.char_indices().nth(MAX_QUOTED_CHARS) {
        Some((end, _)) => format!("`{}…`", text.get(..end).unwrap_or_default()),
        None => format!("`{text}`"),
    }
}

/// Names in backticks, separated by commas.
pub(super) fn listed<'a>(names: impl IntoIterator<Item = &'a str>) -> String {
    let names: Vec<String> = names.into_iter().map(quoted).collect();
    names.join(", ")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn hostile_text_is_escaped_and_cut() {
        let problem = Problem::new(ProblemKind::Invalid, None, "a\u{1b}[31m\n\u{202e}ü");
        assert_eq!(problem.message, "a\\u{1b}[31m\\n\\u{202e}ü");
        assert_eq!(quoted(&"ü".repeat(100)).chars().count(), 83);
    }

    #[test]
    fn problems_come_in_order_and_once() {
        let at = |start| Position {
            line: 1,
            column: start + 1,
            start,
            end: start,
        };
        let problem = |start| Problem::new(ProblemKind::Invalid, at(start), format!("p{start}"));
        let whole = Problem::new(ProblemKind::Missing, None, "whole").with_hint("add it");
        let error = RecipeError::new("r.yml", "", vec![problem(4), problem(2), whole, problem(2)]);
        insta::assert_snapshot!(error, @r"
        r.yml: whole
          hint: add it
        r.yml:1:3: p2
        r.yml:1:5: p4
        ");
    }
}
