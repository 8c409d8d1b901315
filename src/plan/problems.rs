//! Collects what is wrong with a merge, so that all of it is reported at once.

use checkpoint::CheckpointError;
use errors::Hint;
use recipe::{Position, Problem, ProblemKind, RecipeError};

/// How many names a message lists.
const SHOWN: usize = 4;

/// What is wrong, in the order it was found.
#[derive(Default)]
pub struct Problems(Vec<Problem>);

impl Problems {
    /// Adds a problem found at this position of the recipe.
    pub fn add(&mut self, at: Option<Position>, message: impl Into<String>, hint: Option<String>) {
        let problem = Problem::new(ProblemKind::Invalid, at, message.into());
        self.0.push(match hint {
            Some(hint) => problem.with_hint(hint),
            None => problem,
        });
    }

    /// Adds an error of a lower layer, with its hint.
    pub fn add_error(&mut self, at: Option<Position>, error: &dyn Hint) {
        self.add_of_kind(ProblemKind::Invalid, at, error);
    }

    /// Adds the error of a model that could not be opened.
    pub fn add_unopened(&mut self, at: Option<Position>, error: &CheckpointError) {
        let kind = match error.is_absent() {
            true => ProblemKind::Absent,
            false => ProblemKind::Invalid,
        };
        self.add_of_kind(kind, at, error);
    }

    fn add_of_kind(&mut self, kind: ProblemKind, at: Option<Position>, error: &dyn Hint) {
        let problem = Problem::new(kind, at, error.to_string()).about(error.about());
        self.0.push(match error.hint() {
            Some(hint) => problem.with_hint(hint),
            None => problem,
        });
    }

    /// How many problems there are.
    pub fn count(&self) -> usize {
        self.0.len()
    }

    /// Whether there are no problems.
    pub fn is_empty(&self) -> bool {
        self.0.is_empty()
    }

    /// Adds all problems of another list.
    pub fn append(&mut self, mut others: Problems) {
        self.0.append(&mut others.0);
    }

    /// The messages, without positions and hints.
    pub fn into_messages(self) -> Vec<String> {
        self.0.into_iter().map(|problem| problem.message).collect()
    }

    /// The error that shows all problems in the recipe's text.
    pub fn into_error(self, path: &str, text: &str) -> RecipeError {
        RecipeError::new(path, text, self.0)
    }
}

/// The warnings of a recipe as notes of its plan.
pub fn warnings(warnings: &[Problem]) -> Vec<String> {
    let note = |warning: &Problem| {
        let line = |at: Position| format!("line {}: ", at.line);
        let hint = |hint: &String| format!(" ({hint})");
        format!(
            "{}{}{}",
            warning.at.map_or(String::new(), line),
            warning.message,
            warning.hint.as_ref().map_or(String::new(), hint)
        )
    };
    warnings.iter().map(note).collect()
}

/// A number with its noun: `1 tensor`, `2 tensors`.
pub fn count(number: usize, thing: &str) -> String {
    let plural = if number == 1 { "" } else { "s" };
    format!("{number} {thing}{plural}")
}

/// The first few names of a list in backticks, and how many more there are.
pub(super) fn some_of<S: AsRef<str>>(names: &[S]) -> String {
    let names = names.iter().map(|name| format!("`{}`", name.as_ref()));
    errors::some_of(names, SHOWN)
}
