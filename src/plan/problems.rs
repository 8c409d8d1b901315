//! Collects what is wrong with a merge, so that all of it is reported at once.

use checkpoint::CheckpointError;
use errors::Hint;
use recipe::{Position, Problem, ProblemKind, RecipeError};

/// How many names a message lists.
const SHOWN: usize = 4;

/// What is wrong, in the order it was found.
#[derive(Default)]
pub struct Problems {
    list: Vec<Problem>,
    /// The commands that fetch the models that are not there.
    downloads: Vec<String>,
}

impl Problems {
    /// Adds a problem found at this position of the recipe.
    pub fn add(&mut self, at: Option<Position>, message: impl Into<String>, hint: Option<String>) {
        let problem = Problem::new(ProblemKind::Invalid, at, message.into());
        self.list.push(match hint {
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
        if let CheckpointError::NotFound {
            download: Some(download),
            ..
        } = error
        {
            self.downloads.push(download.clone());
        }
    }

    fn add_of_kind(&mut self, kind: ProblemKind, at: Option<Position>, error: &dyn Hint) {
        let problem = Problem::new(kind, at, error.to_string()).about(error.about());
        self.list.push(match error.hint() {
            Some(hint) => problem.with_hint(hint),
            None => problem,
        });
    }

    /// How many problems there are.
    pub fn count(&self) -> usize {
        self.list.len()
    }

    /// Whether there are no problems.
    pub fn is_empty(&self) -> bool {
        self.list.is_empty()
    }

    /// Adds all problems of another list.
    pub fn append(&mut self, mut others: Problems) {
        self.list.append(&mut others.list);
        self.downloads.append(&mut others.downloads);
    }

    /// The messages, without positions and hints.
    pub fn into_messages(self) -> Vec<String> {
        self.list
            .into_iter()
            .map(|problem| problem.message)
            .collect()
    }

    /// The error that shows all problems in the recipe's text.
    pub fn into_error(mut self, path: &str, text: &str) -> RecipeError {
        self.downloads.dedup();
        if self.downloads.len() > 1
            && let Some(hint) = self.list.iter_mut().rev().find_map(|last| {
                let hint = last.hint.as_mut()?;
                hint.contains("hf download").then_some(hint)
            })
        {
            hint.push_str(&format!(
                "; or all at once: `{}`",
                self.downloads.join(" && ")
            ));
        }
        RecipeError::new(path, text, self.list)
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
