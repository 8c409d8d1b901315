//! One tensor's work: where its sources lie in memory and what becomes of them.

use super::derived::Decided;
use super::program::AnyProgram;
use numeric::{BLOCK, Elements, FloatType};

/// One tensor's work.
pub struct Job<'a> {
    /// What is done.
    pub work: Work<'a>,
    /// The number by which the sink knows the result; a job without output only checks or measures.
    pub output: Option<usize>,
    /// Whether the jobs before it must be done first, as its sources are derived from what they decide.
    pub after_all: bool,
    /// The blocks that are wanted, ascending, if not all are: a look at a result that is there already. Passes
    /// that measure go over all of them, as the result depends on it.
    pub sample: Option<Vec<usize>>,
}

impl Job<'_> {
    /// Blocks of its tensor.
    pub fn blocks(&self) -> usize {
        self.work.blocks()
    }
}

/// What is done with the sources.
pub enum Work<'a> {
    /// The bytes of the first source, which all others must equal.
    Copy {
        /// The sources, of one length in bytes.
        sources: Vec<&'a [u8]>,
        /// The format, to look for NaN and infinity; `None` for integers and bools.
        format: Option<FloatType>,
    },
    /// Decode, compute, round once.
    Compute {
        /// The sources, of one number of elements.
        sources: Vec<Box<dyn Elements + 'a>>,
        /// Elements of the output and of every source.
        elements: u64,
        /// What is computed.
        program: &'a dyn AnyProgram,
        /// What it is computed for.
        target: Target<'a>,
    },
}

/// What a computation is for.
#[derive(Clone, Copy)]
pub enum Target<'a> {
    /// Values in this format.
    Values(FloatType),
    /// The last pass only, for the [`Derived`](super::Derived) values of a later job.
    Decide(&'a Decided),
}

impl Target<'_> {
    /// What a block is encoded in; nothing is where it only decides.
    pub(super) fn format(&self) -> FloatType {
        match self {
            Target::Values(format) => *format,
            Target::Decide(_) => FloatType::F64,
        }
    }
}

impl Work<'_> {
    /// Whether the work is computed in `f64`; see [`Real`](numeric::Real).
    pub(super) fn wants_f64(&self) -> bool {
        match self {
            Work::Copy { .. } => false,
            Work::Compute { sources, .. } => {
                sources.iter().any(|source| source.format().wants_f64())
            }
        }
    }

    /// Blocks of the tensor; bytes that are copied are cut into blocks of so many bytes.
    pub(super) fn blocks(&self) -> usize {
        match self {
            Work::Copy { sources, .. } => sources
                .first()
                .map_or(0, |bytes| bytes.len().div_ceil(COPY_BLOCK)),
            Work::Compute { elements, .. } => elements.div_ceil(self.block_len() as u64) as usize,
        }
    }

    /// Elements in each block but the last; bytes in it, if they are copied.
    pub(super) fn block_len(&self) -> usize {
        match self {
            Work::Copy { .. } => COPY_BLOCK,
            Work::Compute { program, .. } => program.cost().block_len(),
        }
    }
}

/// Bytes of a block that is copied; a multiple of every format's size.
pub(super) const COPY_BLOCK: usize = 4 * BLOCK;
