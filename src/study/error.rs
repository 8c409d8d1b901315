//! Why a study cannot go on.

use std::borrow::Cow;
use std::io;
use std::path::{Path, PathBuf};

use checkpoint::CheckpointError;
use errors::{About, Hint, Refusal};
use eval::EvalError;
use recipe::RecipeError;
use run::RunError;

/// Why a study cannot go on.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum StudyError {
    /// The study's file or a recipe is wrong, or a model that it names is not there.
    #[error(transparent)]
    Recipe(Box<RecipeError>),
    /// A merge failed that is not one of many to try.
    #[error(transparent)]
    Run(#[from] RunError),
    /// A file of tasks, or one beside a model, cannot be read.
    #[error(transparent)]
    Checkpoint(CheckpointError),
    /// Tasks are wrong, or a model cannot be scored.
    #[error(transparent)]
    Eval(EvalError),
    /// A file of the study's folder.
    #[error("cannot {action} {path}: {source}", path = .path.display())]
    File {
        /// What was tried.
        action: &'static str,
        /// The file or folder.
        path: PathBuf,
        /// The system's answer.
        source: io::Error,
    },
    /// There is no study where one was to be.
    #[error("{0}")]
    Absent(Refusal),
    /// Anything else that is wrong with what was given.
    #[error("{0}")]
    Refused(Refusal),
    /// The listener asked to stop.
    #[error("stopped")]
    Stopped,
}

impl StudyError {
    pub(crate) fn file(action: &'static str, path: &Path) -> impl FnOnce(io::Error) -> StudyError {
        let path = path.to_owned();
        move |source| StudyError::File {
            action,
            path,
            source,
        }
    }

    /// Whether the trial alone is at fault, and the study may go on with others: its merge or its scores fail.
    pub(crate) fn is_of_trial(&self) -> bool {
        match self {
            Self::Recipe(error) => !error.could_not_read(),
            Self::Run(error) => error.is_users() && !matches!(error, RunError::Cancelled),
            Self::Eval(error) => {
                matches!(error, EvalError::Forward { .. } | EvalError::Command { .. })
            }
            Self::Checkpoint(_)
            | Self::File { .. }
            | Self::Absent(_)
            | Self::Refused(_)
            | Self::Stopped => false,
        }
    }

    /// Whether it was stopped on request.
    pub fn is_stopped(&self) -> bool {
        matches!(
            self,
            Self::Stopped | Self::Run(RunError::Cancelled) | Self::Eval(EvalError::Stopped)
        )
    }
}

impl From<CheckpointError> for StudyError {
    fn from(error: CheckpointError) -> Self {
        Self::Checkpoint(error)
    }
}

impl From<EvalError> for StudyError {
    fn from(error: EvalError) -> Self {
        match error {
            EvalError::Checkpoint(error) => Self::Checkpoint(error),
            error => Self::Eval(error),
        }
    }
}

impl From<RecipeError> for StudyError {
    fn from(error: RecipeError) -> Self {
        Self::Recipe(Box::new(error))
    }
}

impl From<Refusal> for StudyError {
    fn from(why: Refusal) -> Self {
        Self::Refused(why)
    }
}

impl Hint for StudyError {
    fn hint(&self) -> Option<Cow<'_, str>> {
        match self {
            Self::Run(error) => error.hint(),
            Self::Checkpoint(error) => error.hint(),
            Self::Eval(error) => error.hint(),
            Self::Absent(why) | Self::Refused(why) => why.hint(),
            Self::Recipe(_) | Self::File { .. } | Self::Stopped => None,
        }
    }

    fn about(&self) -> About {
        match self {
            Self::Recipe(error) => error.about(),
            Self::Run(error) => error.about(),
            Self::Checkpoint(error) => error.about(),
            Self::Eval(error) => error.about(),
            Self::File { path, .. } => About::file(path),
            Self::Absent(why) | Self::Refused(why) => Hint::about(why),
            Self::Stopped => About::default(),
        }
    }
}
