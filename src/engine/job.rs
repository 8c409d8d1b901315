//! One tensor's work: where its sources lie in memory and what becomes of them.

use std::ops::Range;

use super::derived::Decided;
use super::program::AnyProgram;
use numeric::{BLOCK, Elements, FloatType};

/// One tensor's work.
pub struct Job<'a> {
    /// What is done.
    pub work: Work<'a>,
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
        /// The number by which the sink knows the copy; where there is none, the sources are only compared.
        output: Option<usize>,
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
pub enum Target<'a> {
    /// Outputs, in the program's order.
    Outputs(Vec<Output>),
    /// The last pass only, for the [`Derived`](super::Derived) values of a later job.
    Decide(&'a Decided),
}

/// One of the outputs of a computation: values, rounded to a format.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Output {
    /// The number by which the sink knows it.
    pub number: usize,
    /// What its values are rounded to.
    pub format: FloatType,
    /// How long it is, where that is not the length of the sources.
    pub length: Option<Length>,
}

/// The length of an output of which each block gives so many elements, whatever it reads: a scale for each, say.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Length {
    /// All elements.
    pub elements: u64,
    /// Those that a block gives; the last gives what is left. At most as many as it reads of a source.
    pub block: usize,
}

impl Target<'_> {
    /// One output, as long as the sources.
    pub fn values(number: usize, format: FloatType) -> Self {
        Target::Outputs(vec![Output {
            number,
            format,
            length: None,
        }])
    }

    /// The outputs; none where the program only decides.
    pub(super) fn outputs(&self) -> &[Output] {
        match self {
            Target::Outputs(outputs) => outputs,
            Target::Decide(_) => &[],
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

    /// The elements of a source that a block reads: the first, and how many.
    pub(super) fn block(&self, index: usize) -> (u64, usize) {
        let (elements, block_len) = (self.elements(), self.block_len() as u64);
        let first = (index as u64 * block_len).min(elements);
        (first, block_len.min(elements - first) as usize)
    }

    /// The elements of an output that a run of blocks gives.
    pub(super) fn place(&self, output: &Output, blocks: Range<usize>) -> Range<u64> {
        let Length { elements, block } = self.length(output);
        let place = |at: usize| (at as u64).saturating_mul(block as u64).min(elements);
        place(blocks.start)..place(blocks.end)
    }

    /// Bytes that a block gives, of the output that it gives most of; where it only decides, of the widest format.
    pub(super) fn block_bytes(&self) -> usize {
        match self {
            Work::Copy { .. } => COPY_BLOCK,
            Work::Compute { target, .. } => {
                let bytes = |output| {
                    self.length(output)
                        .block
                        .saturating_mul(output.format.size())
                };
                let most = target.outputs().iter().map(bytes).max();
                most.unwrap_or(self.block_len().saturating_mul(FloatType::F64.size()))
            }
        }
    }

    /// Elements of each source that are computed with.
    pub(super) fn elements(&self) -> u64 {
        match self {
            Work::Copy { .. } => 0,
            Work::Compute { elements, .. } => *elements,
        }
    }

    fn length(&self, output: &Output) -> Length {
        output.length.unwrap_or_else(|| Length {
            elements: self.elements(),
            block: self.block_len(),
        })
    }
}

/// Bytes of a block that is copied; a multiple of every format's size.
pub(super) const COPY_BLOCK: usize = 4 * BLOCK;
