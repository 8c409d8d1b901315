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
mod execute;
mod filling;
mod job;
mod lane;
mod part;
mod program;
mod scan;
#[cfg(test)]
mod tests;
mod tile;
mod whole;

use std::borrow::Cow;
use std::io;

pub use budget::{BudgetError, Limits, Settings};
pub use derived::{Decided, Derived};
pub use execute::execute;
pub use job::{Job, Length, Output, Target, Work};
pub use program::{
    AnyProgram, Apply, Block, CarriedMask, Cost, Measure, MeasureColumns, Measured, Pass, Program,
};
pub use scan::{Piece, pieces, scan};
pub use tile::{PAGE, Tile, Tiles};
pub use whole::{Matrices, Whole};

use errors::{Hint, Refusal};
use numeric::{FloatType, NonFinite};

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
    fn write(&self, output: usize, offset: u64, bytes: Tile) -> io::Result<()>;
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
    /// An input holds NaN or infinity.
    #[error("source {source_index} of job {job} holds {} NaN and {} infinite values", found.nan, found.infinite)]
    NonFinite {
        /// The job.
        job: usize,
        /// Which of its sources.
        source_index: usize,
        /// How many of them the whole tensor holds.
        found: NonFinite,
    },
    /// Results do not fit the output's format.
    #[error("{count} values of job {job} do not fit {format:?}")]
    Overflow {
        /// The job.
        job: usize,
        /// How many values.
        count: u64,
        /// The output's format.
        format: FloatType,
    },
    /// Finite inputs resulted in NaN.
    #[error("{count} values of job {job} came out as NaN from finite inputs")]
    NotANumber {
        /// The job.
        job: usize,
        /// How many values.
        count: u64,
    },
    /// Sources that must be equal are not.
    #[error("source {source_index} of job {job} differs from source 0")]
    NotIdentical {
        /// The job.
        job: usize,
        /// The first source that differs from source 0.
        source_index: usize,
    },
    /// The program has no result for these values.
    #[error("job {job} has no result: {reason}")]
    Refused {
        /// The job.
        job: usize,
        /// Why.
        reason: Refusal,
    },
    /// The sink could not take the bytes.
    #[error("cannot write the output of job {job}")]
    Write {
        /// The job.
        job: usize,
        /// Why.
        #[source]
        source: io::Error,
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

impl Hint for EngineError {
    fn hint(&self) -> Option<Cow<'_, str>> {
        match self {
            Self::Refused { reason, .. } => reason.hint(),
            Self::Threads { .. } => Some("ask for fewer".into()),
            _ => None,
        }
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
