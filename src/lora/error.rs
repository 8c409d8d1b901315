//! Why no adapter was written.

use std::borrow::Cow;

use engine::EngineError;
use errors::{About, Hint, Refusal};
use run::RunError;

/// Why no adapter was written. The destination is unchanged.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum ExtractError {
    /// The models, or what is asked for.
    #[error("{0}")]
    Refused(Refusal),
    /// Reading or writing.
    #[error(transparent)]
    Run(#[from] RunError),
}

impl ExtractError {
    /// Whether the user's files or words are to blame, not the machine.
    pub fn is_users(&self) -> bool {
        match self {
            Self::Refused(_) => true,
            Self::Run(error) => error.is_users(),
        }
    }
}

impl From<Refusal> for ExtractError {
    fn from(why: Refusal) -> Self {
        Self::Refused(why)
    }
}

impl From<EngineError> for ExtractError {
    fn from(error: EngineError) -> Self {
        Self::Run(error.into())
    }
}

impl Hint for ExtractError {
    fn hint(&self) -> Option<Cow<'_, str>> {
        match self {
            Self::Refused(why) => why.hint(),
            Self::Run(error) => error.hint(),
        }
    }

    fn about(&self) -> About {
        match self {
            Self::Refused(why) => Hint::about(why),
            Self::Run(error) => error.about(),
        }
    }
}
