//! Why a run failed, in words that name tensor, model and remedy.

use std::borrow::Cow;
use std::path::PathBuf;

use bytesize::ByteSize;

use super::destination::DiskError;
use architecture::is_observed_range;
use checkpoint::CheckpointError;
use engine::{BudgetError, EngineError};
use errors::{About, Hint, Refusal, printable};

/// Why a run failed. The destination is unchanged.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum RunError {
    /// The destination exists already.
    #[error("{} is not empty", path.display())]
    OutputExists {
        /// The output.
        path: PathBuf,
    },
    /// The destination is a file.
    #[error("{} is a file, and a checkpoint is a folder", path.display())]
    OutputIsFile {
        /// The output.
        path: PathBuf,
    },
    /// The destination is an input, or contains one.
    #[error("{} is or holds the input {}, which would be lost", path.display(), input.display())]
    OutputIsInput {
        /// The output.
        path: PathBuf,
        /// The input.
        input: PathBuf,
    },
    /// The output path has no last component, so no staging folder can be placed beside it.
    #[error("{} does not name a folder", path.display())]
    OutputUnnamed {
        /// The output.
        path: PathBuf,
    },
    /// Another process is writing to the same destination.
    #[error("another weld is writing to {}", path.display())]
    OutputLocked {
        /// The output.
        path: PathBuf,
    },
    /// The disk has too little room.
    #[error(
        "the output needs {needed} bytes, and {} has {available} bytes free",
        path.display()
    )]
    DiskFull {
        /// The folder that the output is in.
        path: PathBuf,
        /// Bytes needed.
        needed: u64,
        /// Bytes free.
        available: u64,
    },
    /// The path of the staging folder is taken by something that no run of this user has left.
    #[error(
        "{} is in the way: expected nothing, or a folder that weld has left there, found {found}",
        path.display()
    )]
    StagingTaken {
        /// Where the output is staged.
        path: PathBuf,
        /// What is there.
        found: String,
    },
    /// The destination is a mount point.
    #[error("{} is a mount point, and cannot be put in place as a whole", path.display())]
    OutputIsMountPoint {
        /// The output.
        path: PathBuf,
    },
    /// The system does not allow the output to be replaced.
    #[error("{} cannot be replaced: {why}", path.display())]
    OutputFixed {
        /// The output.
        path: PathBuf,
        /// Why.
        why: &'static str,
    },
    /// A file beside a model's weights is larger than any real one.
    #[error(
        "{}: expected at most {limit} bytes in a file beside the weights, found {found}",
        path.display()
    )]
    SideFileTooLarge {
        /// The file.
        path: PathBuf,
        /// The size limit of a copied file.
        limit: u64,
        /// Bytes found.
        found: u64,
    },
    /// A written file does not hold what was written.
    #[error(
        "{file} was written, and is not as it was written: expected {expected}, found {found}; nothing was put in \
         place"
    )]
    Damaged {
        /// The file, by its name in the checkpoint.
        file: String,
        /// What it should hold.
        expected: String,
        /// What it holds.
        found: String,
    },
    /// The operating system reported an error.
    #[error(transparent)]
    Disk(#[from] DiskError),
    /// A head said to be tied is not a copy of its embedding.
    #[error("`{head}` of `{model}` differs from `{embedding}`, though the output ties them")]
    NotTied {
        /// The model.
        model: String,
        /// Its head.
        head: String,
        /// Its embedding.
        embedding: String,
    },
    /// Not every byte of the output was computed: a bug in this program.
    #[error("{found} of {expected} bytes were computed; nothing was written")]
    Incomplete {
        /// Tensor bytes in the plan.
        expected: u64,
        /// Bytes that were written.
        found: u64,
    },
    /// A file of the Hub's cache is not what its name claims.
    #[error(
        "{file} of model `{model}`: expected SHA-256 {expected}, as the Hub's cache claims, found {found}"
    )]
    OtherDigest {
        /// The model.
        model: String,
        /// Its file.
        file: String,
        /// The digest that the cache claims.
        expected: String,
        /// The digest of the file's bytes.
        found: String,
    },
    /// The memory limit is too low.
    #[error(transparent)]
    Memory(#[from] BudgetError),
    /// An input was written to while it was read.
    #[error("model `{model}`: {source}")]
    InputChanged {
        /// The model.
        model: String,
        /// Which file, and how.
        source: Box<CheckpointError>,
    },
    /// The room for weights that are fetched while they are used is too little for one tensor, or for a look at the whole
    /// model.
    #[error(
        "{} {} at once ({}), more than the limit of {}",
        wants_room(.tensor.as_deref()),
        ByteSize(*.needed).display().si(),
        errors::some_of(.files, 4),
        ByteSize(*.limit).display().si()
    )]
    ScratchTooSmall {
        /// The tensor; none if the method looks at the whole model before it computes the first.
        tensor: Option<String>,
        /// The files that hold what is read.
        files: Vec<String>,
        /// Their bytes.
        needed: u64,
        /// The limit.
        limit: u64,
    },
    /// The disk has too little room for weights that are fetched while they are used.
    #[error(
        "weights that are fetched may take {} at once, and where the Hub's cache is there are {} left",
        ByteSize(*.wanted).display().si(),
        ByteSize(*.free).display().si()
    )]
    NoScratch {
        /// The room that they may take.
        wanted: u64,
        /// The room that is there.
        free: u64,
    },
    /// Weights that lie elsewhere did not come.
    #[error("{0}")]
    NotFetched(Refusal),
    /// The output did not come to the store where it should go.
    #[error("{0}")]
    NotStored(Refusal),
    /// The digests of inputs are asked for, which are dropped while they are used, or read in parts.
    #[error(
        "digests of inputs cannot be taken of inputs that are read in parts, or dropped as they are used"
    )]
    NotHashed,
    /// A plan has too few weight files for so many parts.
    #[error("the output has too few weight files for {parts} parts: it can be cut into {most}")]
    TooManyParts {
        /// The parts that were asked for.
        parts: usize,
        /// The most parts that there can be.
        most: usize,
    },
    /// The parts of a plan cannot be used or joined.
    #[error("{0}")]
    NotJoined(Refusal),
    /// Something that the output needs besides its inputs could not be computed.
    #[error("{0}")]
    NotPrepared(Refusal),
    /// The look at what is to be written found errors.
    #[error("{0}")]
    Unsound(Refusal),
    /// The engine failed: because of the values, or of the machine.
    #[error(transparent)]
    Engine(EngineError),
    /// The user cancelled the run.
    #[error("stopped; nothing was written")]
    Cancelled,
}

/// What needs room for weights: a tensor, or a method that looks at all of them first.
fn wants_room(tensor: Option<&str>) -> String {
    match tensor {
        Some(tensor) => format!("`{}` needs", printable(tensor)),
        None => {
            "the method looks at the whole model before it computes the first tensor, and needs"
                .to_owned()
        }
    }
}

impl Hint for RunError {
    fn hint(&self) -> Option<Cow<'_, str>> {
        let hint = match self {
            Self::Engine(EngineError::NonFinite { name, .. })
                if is_observed_range(&name.tensor) =>
            {
                "it is the range of an observer that has seen no value, which quantisation-aware training leaves: drop \
                 such tensors with `except: [{tensors: ['*.min_val', '*.max_val'], action: drop}]`, or carry them \
                 through with --allow-nonfinite"
            }
            Self::Engine(error) => return error.hint(),
            Self::InputChanged { source, .. } => return source.hint(),
            Self::NotPrepared(why)
            | Self::Unsound(why)
            | Self::NotFetched(why)
            | Self::NotStored(why)
            | Self::NotJoined(why) => {
                return why.hint();
            }
            Self::ScratchTooSmall { needed, .. } => {
                // Rounded up, so that it is enough.
                let needed = needed.div_ceil(1_000_000);
                return Some(format!("give at least --scratch-limit {needed}MB").into());
            }
            Self::NoScratch { .. } => {
                "give a lower --scratch-limit, or set HF_HUB_CACHE to a folder on a larger disk"
            }
            Self::NotHashed => "leave out --hash-inputs, or --scratch-limit, --part and --resume",
            Self::TooManyParts { .. } => "ask for fewer parts, or give a lower --shard-size",
            Self::Memory(source) => return source.hint(),
            Self::OtherDigest { .. } => {
                "the file was damaged or replaced: delete it from the cache and download it again"
            }
            Self::OutputExists { .. } => "choose another folder, or replace it with --force",
            Self::OutputIsFile { .. } => "choose another name",
            Self::OutputIsInput { .. } => "choose another folder",
            Self::OutputUnnamed { .. } => "give a name, such as `merged`",
            Self::OutputLocked { .. } => "wait for it, or stop it",
            Self::DiskFull { .. } => "free some space, or write elsewhere",
            Self::NotTied { .. } => {
                "the model was trained with a head of its own: set `tie_word_embeddings` to false in the configs of \
                 all models, or remove the head"
            }
            Self::Incomplete { .. } => "report this recipe",
            Self::StagingTaken { .. } => "see what it is, and remove it",
            Self::OutputIsMountPoint { path } => {
                let inside = path.join("merged");
                return Some(format!("name a folder in it, such as {}", inside.display()).into());
            }
            Self::OutputFixed { .. } => "remove it first, or choose another folder",
            Self::SideFileTooLarge { .. } => "take it out of the model's folder",
            Self::Damaged { .. } => {
                "see that nothing else writes there, and that the disk is sound"
            }
            Self::Disk(_) | Self::Cancelled => return None,
        };
        Some(Cow::Borrowed(hint))
    }

    fn about(&self) -> About {
        match self {
            Self::Engine(error) => error.about(),
            Self::InputChanged { model, source } => source.about().model(model),
            Self::NotPrepared(why)
            | Self::Unsound(why)
            | Self::NotFetched(why)
            | Self::NotStored(why)
            | Self::NotJoined(why) => Hint::about(why),
            Self::ScratchTooSmall { tensor, .. } => match tensor {
                Some(tensor) => About::default().tensor(tensor),
                None => About::default(),
            },
            Self::Disk(error) => About::file(&error.path),
            Self::NotTied { model, head, .. } => About::default().tensor(head).model(model),
            Self::OtherDigest { model, file, .. } => About::file(file).model(model),
            Self::Damaged { file, .. } => About::file(file),
            Self::OutputExists { path }
            | Self::OutputIsFile { path }
            | Self::OutputIsInput { path, .. }
            | Self::OutputUnnamed { path }
            | Self::OutputLocked { path }
            | Self::DiskFull { path, .. }
            | Self::StagingTaken { path, .. }
            | Self::OutputIsMountPoint { path }
            | Self::OutputFixed { path, .. }
            | Self::SideFileTooLarge { path, .. } => About::file(path),
            Self::Incomplete { .. }
            | Self::Memory(_)
            | Self::NoScratch { .. }
            | Self::NotHashed
            | Self::TooManyParts { .. }
            | Self::Cancelled => About::default(),
        }
    }
}

impl RunError {
    /// Whether the cause is the input, and not the tool or the machine.
    pub fn is_users(&self) -> bool {
        match self {
            Self::Engine(error) => error.is_values(),
            Self::Disk(_)
            | Self::Memory(_)
            | Self::Damaged { .. }
            | Self::StagingTaken { .. }
            | Self::Incomplete { .. }
            | Self::Cancelled
            | Self::NoScratch { .. }
            | Self::NotFetched(_)
            | Self::NotStored(_)
            | Self::InputChanged { .. }
            | Self::DiskFull { .. } => false,
            _ => true,
        }
    }
}

impl From<EngineError> for RunError {
    fn from(error: EngineError) -> Self {
        match error {
            EngineError::Cancelled => Self::Cancelled,
            error => Self::Engine(error),
        }
    }
}
