//! One tensor's work: its sources, the computation, and the outputs.

use std::ops::Range;

use super::derived::Decided;
use super::program::{AnyProgram, Survey};
use numeric::{BLOCK, CodeFormat, Elements, Encoding, FloatType, RoundingKey};

/// One tensor's work.
pub struct Job<'a> {
    /// The names of its result and its sources in messages.
    pub names: Box<dyn Names + 'a>,
    /// What is done.
    pub work: Work<'a>,
    /// Whether all jobs before this one must finish first, because its sources are derived from what they decide.
    pub after_all: bool,
    /// The [pieces](Self::pieces) to compute, ascending; `None` for all. For checking samples of an existing result.
    /// Passes that measure still read all blocks, since the result depends on them.
    pub sample: Option<Vec<usize>>,
}

impl Job<'_> {
    /// How many pieces a [`sample`](Self::sample) chooses from: blocks, or bands if the output is encoded band by band.
    pub fn pieces(&self) -> usize {
        match self.work.encoded() {
            Some(encoded) => encoded.encoding.bands(),
            None => self.work.blocks(),
        }
    }
}

/// The names of a job's tensors in messages; called only to report an error.
pub trait Names: Send + Sync {
    /// The name of the result.
    fn result(&self) -> String;

    /// The name of a source, by its index.
    fn source(&self, index: usize) -> SourceName;
}

/// A source as messages name it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct SourceName {
    /// The tensor's name in its model.
    pub tensor: String,
    /// The model, or the models that are read as one.
    pub model: String,
    /// The file of the tensor, if it is in a single file.
    pub file: Option<String>,
}

/// The same tensor name for all, for jobs without a plan; models are named by the index of their source.
impl Names for &str {
    fn result(&self) -> String {
        (*self).to_owned()
    }

    fn source(&self, index: usize) -> SourceName {
        SourceName {
            tensor: (*self).to_owned(),
            model: index.to_string(),
            file: None,
        }
    }
}

impl SourceName {
    /// `, in FILE` if the file is known, otherwise empty.
    pub(super) fn place(&self) -> String {
        let place = self.file.as_ref().map(|file| format!(", in {file}"));
        place.unwrap_or_default()
    }
}

/// What to do with the sources.
pub enum Work<'a> {
    /// Copy the bytes of the first source; all others must be equal to it.
    Copy {
        /// The sources, all of the same length in bytes.
        sources: Vec<&'a [u8]>,
        /// The format, so that NaN and infinity are found; `None` for integers and bools.
        format: Option<FloatType>,
        /// The sink's number for the copy; `None` only compares the sources.
        output: Option<usize>,
    },
    /// Decode, compute, round once.
    Compute {
        /// The sources, all with the same number of elements.
        sources: Vec<Box<dyn Elements + 'a>>,
        /// The number of elements of each source, and of an output without a [`Length`].
        elements: u64,
        /// The computation.
        program: &'a dyn AnyProgram,
        /// What its result is used for.
        target: ResultUse<'a>,
    },
}

/// What the result of a computation is used for.
pub enum ResultUse<'a> {
    /// It is written to these outputs, in the program's order.
    Outputs(Vec<Output>),
    /// Only its last pass is decided, for the [`Derived`](super::Derived) values of a later job.
    Decide(&'a Decided),
}

/// One output of a computation: values, rounded to a format.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Output {
    /// The sink's number for the output.
    pub number: usize,
    /// The format that its values are rounded to.
    pub format: FloatType,
    /// Its length, if that differs from the length of the sources.
    pub length: Option<Length>,
    /// The draws by which values are rounded up or down; without them, they are rounded to the nearest.
    pub rounding: Option<RoundingKey>,
    /// The source whose update the output is, if how much of it survives the rounding is to be measured.
    pub base: Option<usize>,
    /// How values become codes and scales; without it, each is rounded to the format. The format is that of the codes.
    /// Such an output is the only one, and has no length of its own.
    pub encoded: Option<Encoded>,
}

/// Codes in place of values, and where their scales go.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Encoded {
    /// How values are encoded.
    pub encoding: Encoding,
    /// The sink's number for the scales.
    pub scales: usize,
}

impl Output {
    /// Values as long as the sources, rounded to the nearest.
    pub fn new(number: usize, format: FloatType) -> Self {
        Self {
            number,
            format,
            length: None,
            rounding: None,
            base: None,
            encoded: None,
        }
    }

    /// What its values become, in words.
    pub(super) fn format_name(&self) -> String {
        match &self.encoded {
            Some(encoded) if encoded.encoding.format == CodeFormat::Mxfp4 => "MXFP4".to_owned(),
            _ => format!("{:?}", self.format.dtype()),
        }
    }
}

/// The length of an output for which each block computes a fixed number of elements; for example, one scale each.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Length {
    /// The total number of elements.
    pub elements: u64,
    /// Elements that each block computes; the last block computes the rest. At most as many as it reads of a
    /// source.
    pub block: usize,
}

impl ResultUse<'_> {
    /// One output, as long as the sources.
    pub fn values(number: usize, format: FloatType) -> Self {
        ResultUse::Outputs(vec![Output::new(number, format)])
    }

    /// The outputs; empty if the program only decides.
    pub(super) fn outputs(&self) -> &[Output] {
        match self {
            ResultUse::Outputs(outputs) => outputs,
            ResultUse::Decide(_) => &[],
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

    /// What the program must know of all tensors first.
    pub(super) fn survey(&self) -> Option<&dyn Survey> {
        match self {
            Work::Copy { .. } => None,
            Work::Compute { program, .. } => program.survey(),
        }
    }

    /// The outputs that are computed; none for a copy.
    pub(super) fn outputs(&self) -> &[Output] {
        match self {
            Work::Copy { .. } => &[],
            Work::Compute { target, .. } => target.outputs(),
        }
    }

    /// How the output is encoded, if its values become codes and scales.
    pub(super) fn encoded(&self) -> Option<&Encoded> {
        self.outputs().first()?.encoded.as_ref()
    }

    /// The number of blocks. For a copy, a block is [`COPY_BLOCK`] bytes.
    pub(super) fn blocks(&self) -> usize {
        match self {
            Work::Copy { sources, .. } => sources
                .first()
                .map_or(0, |bytes| bytes.len().div_ceil(COPY_BLOCK)),
            Work::Compute { elements, .. } => elements.div_ceil(self.block_len() as u64) as usize,
        }
    }

    /// Elements in each block but the last; bytes, for a copy.
    pub(super) fn block_len(&self) -> usize {
        match self {
            Work::Copy { .. } => COPY_BLOCK,
            Work::Compute { program, .. } => program.cost().block_len(),
        }
    }

    /// The elements of a source that a block reads: the index of the first, and how many.
    pub(super) fn block(&self, index: usize) -> (u64, usize) {
        let (elements, block_len) = (self.elements(), self.block_len() as u64);
        let first = (index as u64 * block_len).min(elements);
        (first, block_len.min(elements - first) as usize)
    }

    /// The elements of an output that a run of blocks computes.
    pub(super) fn place(&self, output: &Output, blocks: Range<usize>) -> Range<u64> {
        let Length { elements, block } = self.length(output);
        let place = |at: usize| (at as u64).saturating_mul(block as u64).min(elements);
        place(blocks.start)..place(blocks.end)
    }

    /// The most bytes of one output that a block computes. If the program only decides, those of the widest format.
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

    /// Elements of each source; zero for a copy.
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

/// Bytes per block of a copy; a multiple of every format's size.
pub(super) const COPY_BLOCK: usize = 4 * BLOCK;
