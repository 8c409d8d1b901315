//! Computes tensors block by block, straight from mapped bytes to where they are written.
//!
//! The engine gets [`Job`]s in output order and a [`Sink`] for the bytes. A job is cut into tiles. Workers claim
//! tiles in order, so that files are read and written front to back. A job that computes is a [`Program`]: any
//! number of passes that measure, each followed by a small serial decision, then one that applies. Sums are folded
//! in block order, so the bytes do not depend on threads, tiles or memory.
//!
//! This layer knows no method by name, no recipe and no file.

mod active;
mod budget;
mod derived;
mod encoded;
mod execute;
mod filling;
mod job;
mod lane;
mod matrices;
mod part;
mod program;
mod results;
mod scan;
mod survey;
#[cfg(test)]
mod tests;
mod tile;
mod whole;

use std::borrow::Cow;
use std::io;
use std::path::PathBuf;

pub use budget::{Budget, BudgetError, Limits, Settings};
pub use derived::{Decided, Derived};
pub use execute::execute;
pub use job::{Encoded, Job, Length, Names, Output, ResultUse, SourceName, Work};
pub use program::{
    AnyProgram, Apply, Block, CarriedMask, Cost, Measure, MeasureColumns, Measured, Pass, Program,
    Survey,
};
pub use scan::{Piece, pieces, scan};
pub use survey::survey;
pub use tile::{PAGE, Tile, Tiles};
pub use whole::{Matrices, Whole};

use errors::{About, Hint, Refusal};
use numeric::{EncodingError, NoMemory, NonFinite, Oddities, Survival};

/// Where computed bytes go.
pub trait Sink: Sync {
    /// Where in its file an output begins, if it is written to a file. A tile's bytes then have the same offset
    /// within a page in memory as in the file. Outputs are numbered by [`Output::number`].
    fn start(&self, _output: usize) -> u64 {
        0
    }

    /// Called with bytes of an output, `offset` bytes after its start, while they are in the cache, before they are
    /// written.
    ///
    /// Calls come from several threads, once for each byte, in no particular order.
    fn look(&self, _output: usize, _offset: u64, _bytes: &[u8]) {}

    /// Takes bytes of an output, `offset` bytes after its start. Dropping the tile makes its memory available
    /// again.
    ///
    /// Called from several threads, like [`look`](Self::look).
    ///
    /// # Errors
    /// The bytes cannot be written, or an earlier write that had not ended yet has failed.
    fn write(&self, output: usize, offset: u64, bytes: Tile) -> io::Result<()>;

    /// Called once for an output with a [base](Output::base), when it is complete: how much of the update survives
    /// the rounding, by a sample of its elements.
    fn survived(&self, _output: usize, _survival: Survival) {}

    /// Called once for an output that is [encoded](Output::encoded), when it is complete: how far the codes and scales are
    /// from the values, by a sample of its elements.
    fn encoded(&self, _output: usize, _error: EncodingError) {}

    /// Called once for each source of an output in which something odd was seen, when the output is complete. Sources
    /// are numbered as in the job.
    fn odd(&self, _output: usize, _source: usize, _found: Oddities) {}
}

/// Receives progress, and can stop the work.
pub trait Observer: Sync {
    /// This many more bytes were read or written.
    fn advance(&self, bytes: u64);
    /// Whether to stop the work; called before every tile.
    fn cancelled(&self) -> bool;
}

/// Why an execution stopped.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum EngineError {
    /// A source holds NaN or infinity.
    #[error(
        "tensor `{}` of model `{}` holds {} NaN and {} infinite values{}",
        name.tensor, name.model, found.nan, found.infinite, name.place()
    )]
    NonFinite {
        /// The source.
        name: Box<SourceName>,
        /// How many of them the whole tensor holds.
        found: NonFinite,
    },
    /// Results do not fit the output's format.
    #[error("{count} values of tensor `{tensor}` are too large for {format}")]
    Overflow {
        /// The tensor of the result.
        tensor: String,
        /// How many values.
        count: u64,
        /// The output's format.
        format: String,
    },
    /// Finite sources resulted in NaN.
    #[error("{count} values of tensor `{tensor}` came out as NaN though the inputs are finite")]
    NotANumber {
        /// The tensor of the result.
        tensor: String,
        /// How many values.
        count: u64,
    },
    /// Sources that are copied differ.
    #[error(
        "`{}` holds integers or bools that differ between `{}` and `{}`",
        first.tensor, first.model, other.model
    )]
    NotIdentical {
        /// The first source.
        first: Box<SourceName>,
        /// The one that differs from it.
        other: Box<SourceName>,
    },
    /// The program has no result for these values.
    #[error("tensor `{tensor}`: {reason}")]
    Refused {
        /// The tensor of the result.
        tensor: String,
        /// Why.
        reason: Refusal,
    },
    /// The sink could not take the bytes.
    #[error("cannot write tensor `{tensor}`")]
    Write {
        /// The tensor of the result.
        tensor: String,
        /// Why.
        #[source]
        source: io::Error,
    },
    /// The system has no memory for a buffer.
    #[error("not enough memory: the system refused {bytes} bytes")]
    Memory {
        /// Bytes of the buffer.
        bytes: usize,
    },
    /// A worker thread could not be started.
    #[error("cannot start {threads} worker threads")]
    Threads {
        /// How many were asked for.
        threads: usize,
        /// Why.
        #[source]
        source: rayon::ThreadPoolBuildError,
    },
    /// The observer asked to stop.
    #[error("stopped")]
    Cancelled,
}

impl From<NoMemory> for EngineError {
    fn from(NoMemory { bytes }: NoMemory) -> Self {
        Self::Memory { bytes }
    }
}

impl Hint for EngineError {
    fn hint(&self) -> Option<Cow<'_, str>> {
        let hint = match self {
            Self::Refused { reason, .. } => return reason.hint(),
            Self::NonFinite { .. } => {
                "the checkpoint is damaged: leave the model out, or carry them through with --allow-nonfinite"
            }
            Self::Overflow { .. } => {
                "write another dtype (`dtype: bfloat16` has the range of float32), or clamp them to the largest value \
                 with --saturate"
            }
            Self::NotANumber { .. } => "its weights overflow the arithmetic: use smaller ones",
            Self::NotIdentical { .. } => {
                "such tensors are carried through only when all models agree"
            }
            Self::Memory { .. } => {
                "ask for less with --memory or for fewer --threads, or raise the limit (`ulimit`, or that of the \
                 container)"
            }
            Self::Threads { .. } => "ask for fewer",
            Self::Write { .. } | Self::Cancelled => return None,
        };
        Some(Cow::Borrowed(hint))
    }

    fn about(&self) -> About {
        match self {
            Self::NonFinite { name, .. } | Self::NotIdentical { first: name, .. } => {
                let SourceName {
                    tensor,
                    model,
                    file,
                } = name.as_ref();
                let about = About::default().tensor(tensor).model(model);
                let file = file.as_ref().map(PathBuf::from);
                About { file, ..about }
            }
            Self::Overflow { tensor, .. }
            | Self::NotANumber { tensor, .. }
            | Self::Refused { tensor, .. }
            | Self::Write { tensor, .. } => About::default().tensor(tensor),
            Self::Memory { .. } | Self::Threads { .. } | Self::Cancelled => About::default(),
        }
    }
}

impl EngineError {
    /// Whether the cause is in the values, and not in the machine or a request to stop.
    pub fn is_values(&self) -> bool {
        !matches!(
            self,
            Self::Write { .. } | Self::Memory { .. } | Self::Threads { .. } | Self::Cancelled
        )
    }
}

impl From<EngineError> for Refusal {
    fn from(error: EngineError) -> Self {
        Self::from(&error)
    }
}

/// The totals of an execution.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Totals {
    /// Bytes read from sources, in all passes.
    pub read: u64,
    /// Bytes passed to the sink.
    pub written: u64,
    /// Values that were saturated.
    pub saturated: u64,
}

impl std::ops::AddAssign for Totals {
    fn add_assign(&mut self, other: Totals) {
        self.read += other.read;
        self.written += other.written;
        self.saturated += other.saturated;
    }
}
