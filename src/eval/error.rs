//! Why a model cannot be scored.

use std::borrow::Cow;
use std::path::PathBuf;

use checkpoint::CheckpointError;
use errors::{About, Hint, Refusal};
use forward::ForwardError;

/// Why tasks cannot be read, or a model cannot be scored.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum EvalError {
    /// A line of a task's file.
    #[error("{path}:{line}: {why}", path = .path.display())]
    Line {
        /// The file.
        path: PathBuf,
        /// The line, from 1.
        line: usize,
        /// What is wrong, and what to do about it.
        why: Refusal,
    },
    /// The tasks as a whole, or what is asked for.
    #[error("{0}")]
    Refused(Refusal),
    /// A file cannot be read.
    #[error(transparent)]
    Checkpoint(#[from] CheckpointError),
    /// The model cannot be run.
    #[error("model `{model}`: {source}")]
    Forward {
        /// The model, as the user wrote it.
        model: String,
        /// Why.
        source: Box<ForwardError>,
    },
    /// A command that was to score a model.
    #[error("the command `{program}`: {why}")]
    Command {
        /// Its program: the other words may be secret.
        program: String,
        /// What is wrong, and what to do about it.
        why: Refusal,
    },
    /// The listener asked to stop.
    #[error("stopped")]
    Stopped,
}

impl EvalError {
    pub(crate) fn forward(model: &str) -> impl Fn(ForwardError) -> EvalError + Copy + '_ {
        move |source| EvalError::Forward {
            model: model.to_owned(),
            source: Box::new(source),
        }
    }
}

impl From<Refusal> for EvalError {
    fn from(why: Refusal) -> Self {
        Self::Refused(why)
    }
}

impl Hint for EvalError {
    fn hint(&self) -> Option<Cow<'_, str>> {
        match self {
            Self::Line { why, .. } | Self::Command { why, .. } | Self::Refused(why) => why.hint(),
            Self::Checkpoint(error) => error.hint(),
            Self::Forward { source, .. } => source.hint(),
            Self::Stopped => None,
        }
    }

    fn about(&self) -> About {
        match self {
            Self::Line { path, line, .. } => About {
                line: Some(*line),
                ..About::file(path)
            },
            Self::Refused(why) | Self::Command { why, .. } => Hint::about(why),
            Self::Checkpoint(error) => error.about(),
            Self::Forward { model, .. } => About::default().model(model),
            Self::Stopped => About::default(),
        }
    }
}
