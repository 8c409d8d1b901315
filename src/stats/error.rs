//! Why there are no statistics.

use std::borrow::Cow;

use checkpoint::CheckpointError;
use errors::{About, Hint, Refusal};
use eval::EvalError;
use forward::ForwardError;
use numeric::NoMemory;
use run::RunError;
use run::destination::DiskError;

/// Why there are no statistics of a model.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum StatsError {
    /// What is asked for cannot be done.
    #[error("{0}")]
    Refused(Refusal),
    /// The texts cannot be cut into tokens, or the model cannot be run on them.
    #[error(transparent)]
    Texts(EvalError),
    /// The model cannot be run; which one is not said.
    #[error(transparent)]
    Forward(#[from] ForwardError),
    /// The file cannot be laid out.
    #[error(transparent)]
    Layout(#[from] CheckpointError),
    /// The file cannot be written.
    #[error(transparent)]
    Disk(#[from] DiskError),
    /// The model was written to meanwhile, there is no room for the file, or a layer of the models cannot be merged.
    #[error(transparent)]
    Run(#[from] RunError),
    /// There is no memory for the sums of a layer.
    #[error(transparent)]
    Memory(#[from] NoMemory),
    /// It was asked to stop.
    #[error("stopped")]
    Stopped,
}

impl From<EvalError> for StatsError {
    fn from(error: EvalError) -> Self {
        match error {
            EvalError::Stopped => Self::Stopped,
            error => Self::Texts(error),
        }
    }
}

impl From<Refusal> for StatsError {
    fn from(why: Refusal) -> Self {
        Self::Refused(why)
    }
}

impl Hint for StatsError {
    fn hint(&self) -> Option<Cow<'_, str>> {
        match self {
            Self::Refused(why) => why.hint(),
            Self::Texts(error) => error.hint(),
            Self::Forward(error) => error.hint(),
            Self::Layout(error) => error.hint(),
            Self::Run(error) => error.hint(),
            Self::Disk(_) | Self::Memory(_) | Self::Stopped => None,
        }
    }

    fn about(&self) -> About {
        match self {
            Self::Refused(why) => Hint::about(why),
            Self::Texts(error) => error.about(),
            Self::Layout(error) => error.about(),
            Self::Run(error) => error.about(),
            Self::Disk(error) => About::file(&error.path),
            Self::Forward(_) | Self::Memory(_) | Self::Stopped => About::default(),
        }
    }
}
