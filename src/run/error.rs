//! Why a run failed, in words that name tensor, model and remedy.

use std::borrow::Cow;
use std::path::{Path, PathBuf};

use super::destination::{DiskError, Step};
use super::work::Purpose;
use checkpoint::CheckpointError;
use engine::EngineError;
use errors::{Hint, Refusal};
use plan::View;

/// Why a run failed. The output's place is as it was before.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum RunError {
    /// Something is already at the output's place.
    #[error("{} is not empty", path.display())]
    OutputExists {
        /// The output.
        path: PathBuf,
    },
    /// The output's place is a file.
    #[error("{} is a file, and a checkpoint is a folder", path.display())]
    OutputIsFile {
        /// The output.
        path: PathBuf,
    },
    /// The output's place is, or holds, an input.
    #[error("{} is or holds the input {}, which would be lost", path.display(), input.display())]
    OutputIsInput {
        /// The output.
        path: PathBuf,
        /// The input.
        input: PathBuf,
    },
    /// The output has no name to stage beside.
    #[error("{} does not name a folder", path.display())]
    OutputUnnamed {
        /// The output.
        path: PathBuf,
    },
    /// Another process is at it.
    #[error("another weld is writing to {}", path.display())]
    OutputLocked {
        /// The output.
        path: PathBuf,
    },
    /// The disk is too small.
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
    /// What is in the place of the staging folder was not left by a run of this user.
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
    /// The output's place is a mount point.
    #[error("{} is a mount point, and cannot be put in place as a whole", path.display())]
    OutputIsMountPoint {
        /// The output.
        path: PathBuf,
    },
    /// The system does not let the output be replaced.
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
        /// The most that is copied.
        limit: u64,
        /// Bytes found.
        found: u64,
    },
    /// What lies at the destination is not what was written.
    #[error(
        "{file} was written, and is not as it was written: expected {expected}, found {found}; nothing was put in \
         place"
    )]
    Damaged {
        /// The file, by its name in the checkpoint.
        file: String,
        /// What it must be.
        expected: String,
        /// What it is.
        found: String,
    },
    /// The operating system said no.
    #[error(transparent)]
    Disk(#[from] DiskError),
    /// An input holds NaN or infinity.
    #[error("tensor `{tensor}` of model `{model}` holds {nan} NaN and {infinite} infinite values")]
    NonFinite {
        /// The tensor, as the model names it.
        tensor: String,
        /// The model.
        model: String,
        /// How many NaNs.
        nan: u64,
        /// How many infinities.
        infinite: u64,
    },
    /// Results do not fit the output's dtype.
    #[error("{count} values of tensor `{tensor}` are too large for {dtype}")]
    Overflow {
        /// The output tensor.
        tensor: String,
        /// How many values.
        count: u64,
        /// The output's dtype.
        dtype: String,
    },
    /// Finite inputs gave NaN.
    #[error("{count} values of tensor `{tensor}` came out as NaN though the inputs are finite")]
    NotANumber {
        /// The output tensor.
        tensor: String,
        /// How many values.
        count: u64,
    },
    /// The method has no result for these values.
    #[error("tensor `{tensor}`: {reason}")]
    NoResult {
        /// The output tensor.
        tensor: String,
        /// Why.
        reason: Refusal,
    },
    /// Integers or bools differ between models.
    #[error("`{tensor}` holds integers or bools that differ between `{model}` and `{other}`")]
    NotIdentical {
        /// The tensor.
        tensor: String,
        /// The first model.
        model: String,
        /// The one that differs from it.
        other: String,
    },
    /// A tied head is no copy of its embedding.
    #[error("`{head}` of `{model}` differs from `{embedding}`, though the output ties them")]
    NotTied {
        /// The model.
        model: String,
        /// Its head.
        head: String,
        /// Its embedding.
        embedding: String,
    },
    /// Not every byte of the output was computed: a fault of this program.
    #[error("{found} of {expected} bytes were computed; nothing was written")]
    Incomplete {
        /// Bytes of tensors that the plan has.
        expected: u64,
        /// Bytes that were written.
        found: u64,
    },
    /// An input was written to while it was read.
    #[error("model `{model}`: {source}")]
    InputChanged {
        /// The model.
        model: String,
        /// Which file, and how.
        source: Box<CheckpointError>,
    },
    /// What the output needs beside its inputs could not be made.
    #[error("{0}")]
    NotPrepared(Refusal),
    /// The engine could not work.
    #[error("cannot run the merge")]
    Engine(#[source] EngineError),
    /// The user stopped it.
    #[error("stopped; nothing was written")]
    Cancelled,
}

impl Hint for RunError {
    fn hint(&self) -> Option<Cow<'_, str>> {
        let hint = match self {
            Self::NoResult { reason, .. } => return reason.hint(),
            Self::InputChanged { source, .. } => return source.hint(),
            Self::NotPrepared(why) => return why.hint(),
            Self::OutputExists { .. } => "choose another folder, or replace it with --force",
            Self::OutputIsFile { .. } => "choose another name",
            Self::OutputIsInput { .. } => "choose another folder",
            Self::OutputUnnamed { .. } => "give a name, such as `merged`",
            Self::OutputLocked { .. } => "wait for it, or stop it",
            Self::DiskFull { .. } => "free some space, or write elsewhere",
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
            Self::Disk(_) | Self::Engine(_) | Self::Cancelled => return None,
        };
        Some(Cow::Borrowed(hint))
    }
}

impl RunError {
    /// Whether the input is at fault, and not the tool or the machine.
    pub fn is_users(&self) -> bool {
        !matches!(
            self,
            Self::Disk(_)
                | Self::Damaged { .. }
                | Self::StagingTaken { .. }
                | Self::Engine(_)
                | Self::Incomplete { .. }
                | Self::Cancelled
                | Self::InputChanged { .. }
                | Self::DiskFull { .. }
        )
    }

    /// Names what the engine knows only by number.
    pub(super) fn from_engine(error: EngineError, purposes: &[Purpose<'_>], out: &Path) -> Self {
        let of_job = |job: usize| match purposes.get(job)? {
            Purpose::Tensor(plan, index) => Some((*plan, plan.tensors.get(*index)?)),
            Purpose::Equal(..) => None,
        };
        let source_of = |job: usize, source: usize| {
            let (plan, tensor) = of_job(job)?;
            let view = tensor.views.get(source).and_then(Option::as_ref);
            let source = tensor.sources.get(source)?;
            let model = &plan.models[source.model];
            let mut labels = vec![model.label()];
            // What is read in the source's place may be of others too.
            for part in view.into_iter().flat_map(View::inputs) {
                let label = plan.models[part.model].label();
                if !labels.contains(&label) {
                    labels.push(label);
                }
            }
            Some((
                model.tensors()[source.tensor].name.clone(),
                labels.join("` or `"),
            ))
        };
        match error {
            EngineError::NonFinite {
                job,
                source_index,
                found,
            } => match source_of(job, source_index) {
                Some((tensor, model)) => Self::NonFinite {
                    tensor,
                    model,
                    nan: found.nan,
                    infinite: found.infinite,
                },
                None => Self::Engine(error),
            },
            EngineError::Overflow { job, count, format } => match of_job(job) {
                Some((_, tensor)) => Self::Overflow {
                    tensor: tensor.name.clone(),
                    count,
                    dtype: format!("{:?}", format.dtype()),
                },
                None => Self::Engine(error),
            },
            EngineError::NotANumber { job, count } => match of_job(job) {
                Some((_, tensor)) => Self::NotANumber {
                    tensor: tensor.name.clone(),
                    count,
                },
                None => Self::Engine(error),
            },
            EngineError::Refused { job, reason } => match of_job(job) {
                Some((_, tensor)) => Self::NoResult {
                    tensor: tensor.name.clone(),
                    reason,
                },
                None => Self::Engine(EngineError::Refused { job, reason }),
            },
            EngineError::NotIdentical { job, source_index } => {
                if let Some(Purpose::Equal(plan, index)) = purposes.get(job)
                    && let Some(&(model, head, embedding)) = plan.equal.get(*index)
                {
                    let model = &plan.models[model];
                    let name = |tensor: usize| model.tensors()[tensor].name.clone();
                    return Self::NotTied {
                        model: model.label().to_owned(),
                        head: name(head),
                        embedding: name(embedding),
                    };
                }
                match (source_of(job, 0), source_of(job, source_index)) {
                    (Some((tensor, model)), Some((_, other))) => Self::NotIdentical {
                        tensor,
                        model,
                        other,
                    },
                    _ => Self::Engine(error),
                }
            }
            EngineError::Write { source, .. } => Self::Disk(DiskError {
                step: Step::Write,
                path: out.to_owned(),
                source,
            }),
            EngineError::Cancelled => Self::Cancelled,
            other => Self::Engine(other),
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
