//! What can be wrong with an adapter: every message names its file, and the key or option in it.

use std::borrow::Cow;
use std::path::PathBuf;

use errors::{Hint, Refusal};

use crate::error::CheckpointError;

/// The hint for a file of weights that does not fit the config beside it.
pub(super) const OTHER_CONFIG: &str =
    "weights and adapter_config.json are not of one adapter, copy or download it again";

/// Why an adapter cannot be read, or does not fit its model.
#[derive(Debug, thiserror::Error)]
pub enum AdapterError {
    /// One of its files cannot be opened or trusted.
    #[error(transparent)]
    File(#[from] Box<CheckpointError>),
    /// It lies elsewhere, and cannot be fetched.
    #[error(transparent)]
    Fetch(Refusal),
    /// The folder lacks one of the two files that an adapter is made of.
    #[error("no {file} in {path}", path = .path.display())]
    FileMissing {
        /// The folder.
        path: PathBuf,
        /// The missing file.
        file: &'static str,
        /// What to do about it.
        hint: &'static str,
    },
    /// An option of the config has an invalid value.
    #[error("{path}: expected `{option}` to be {expected}, found {found}", path = .path.display())]
    Option {
        /// The config.
        path: PathBuf,
        /// The option.
        option: String,
        /// What it may be.
        expected: &'static str,
        /// What it is.
        found: String,
    },
    /// A pattern in the config cannot be parsed.
    #[error("{path}: can't read the pattern `{pattern}` of `{option}`: {detail}", path = .path.display())]
    Pattern {
        /// The config.
        path: PathBuf,
        /// The option.
        option: &'static str,
        /// The pattern, shortened.
        pattern: String,
        /// What is wrong with it.
        detail: String,
    },
    /// The adapter is of another kind, or uses an unsupported option.
    #[error("{path}: {what} {why}", path = .path.display())]
    Unsupported {
        /// The config.
        path: PathBuf,
        /// The option and its value.
        what: String,
        /// Why it is not supported.
        why: &'static str,
        /// What to do about it.
        hint: &'static str,
    },
    /// A tensor that no LoRA adapter has.
    #[error("{path}: tensor `{key}` {why}", path = .path.display())]
    Key {
        /// The weight file.
        path: PathBuf,
        /// The tensor.
        key: String,
        /// What is wrong with it.
        why: &'static str,
    },
    /// Two tensors are for the same part of the same module.
    #[error("{path}: `{first}` and `{second}` are both that part of the same module", path = .path.display())]
    Twice {
        /// The weight file.
        path: PathBuf,
        /// A tensor.
        first: String,
        /// The other.
        second: String,
    },
    /// One part of a module is present and another is missing.
    #[error("{path}: `{key}` is there without its {missing}", path = .path.display())]
    Half {
        /// The weight file.
        path: PathBuf,
        /// A tensor that is there.
        key: String,
        /// The missing part.
        missing: &'static str,
    },
    /// A tensor of the adapter is for a tensor that the model does not have.
    #[error("{path}: `{key}` is for tensor `{tensor}`, which the model does not have", path = .path.display())]
    NoTensor {
        /// The weight file.
        path: PathBuf,
        /// The adapter's tensor.
        key: String,
        /// The model's tensor.
        tensor: String,
        /// The most similar name, or what else to do.
        hint: String,
    },
    /// Modules of the adapter are none of the model's.
    #[error("{path}: `{key}`{} names no module of the model", and_more(*.further, *.of), path = .path.display())]
    NoModule {
        /// The weight file.
        path: PathBuf,
        /// A tensor of the first of them.
        key: String,
        /// How many there are beside it.
        further: usize,
        /// How many modules the adapter is for.
        of: usize,
    },
    /// A tensor of the adapter could be for several tensors of the model.
    #[error("{path}: `{key}` could be for {first} or {second}", path = .path.display())]
    Ambiguous {
        /// The weight file.
        path: PathBuf,
        /// The adapter's tensor.
        key: String,
        /// A tensor of the model.
        first: String,
        /// Another.
        second: String,
    },
    /// A tensor has a shape that does not fit its model or its config.
    #[error("{path}: `{key}` has shape {found:?}, expected {expected}", path = .path.display())]
    Shape {
        /// The weight file.
        path: PathBuf,
        /// The tensor.
        key: String,
        /// What would fit, and why.
        expected: String,
        /// Its shape.
        found: Vec<usize>,
        /// What to do about it.
        hint: &'static str,
    },
    /// A tensor has a dtype that is not computed with, or that cannot replace the model's.
    #[error("{path}: `{key}` is {found}, expected {expected}", path = .path.display())]
    Type {
        /// The weight file.
        path: PathBuf,
        /// The tensor.
        key: String,
        /// What would fit.
        expected: String,
        /// Its dtype.
        found: String,
        /// What to do about it.
        hint: &'static str,
    },
    /// The adapter changes the head of a model that ties it to its embedding, and the two cannot be untied.
    #[error("{path}: `{key}` adapts the output head, which the model ties to its embedding, and they can't be untied: {why}", path = .path.display())]
    Tied {
        /// The weight file.
        path: PathBuf,
        /// The tensor.
        key: String,
        /// Why not.
        why: &'static str,
    },
}

/// How many of the modules are meant beside the one that is named.
fn and_more(further: usize, of: usize) -> String {
    match further {
        0 => String::new(),
        further => format!(" (and {further} more of {of} modules)"),
    }
}

impl Hint for AdapterError {
    fn hint(&self) -> Option<Cow<'_, str>> {
        let hint: &str = match self {
            Self::File(source) => return source.hint(),
            Self::Fetch(refusal) => return refusal.hint(),
            Self::NoTensor { hint, .. } => hint,
            Self::FileMissing { hint, .. }
            | Self::Unsupported { hint, .. }
            | Self::Shape { hint, .. }
            | Self::Type { hint, .. } => hint,
            Self::Option { .. } => "correct it, or download it again",
            Self::Pattern { .. } => "name the modules one by one",
            Self::Key { .. } => {
                "merge the adapter with PEFT (`merge_and_unload`) and name the result"
            }
            Self::Twice { .. } => "the file holds several adapters, save each by itself",
            Self::Half { .. } => "the adapter is incomplete, copy or download it again",
            Self::NoModule { .. } => {
                "name the model that it was trained on: its pipeline, the component, or the single file; if it is for text \
                 encoders too, these must be in it"
            }
            Self::Ambiguous { .. } => "name the model that the adapter was trained on",
            Self::Tied { .. } => {
                "merge the adapter with PEFT (`merge_and_unload`) and compare what the result computes"
            }
        };
        Some(Cow::Borrowed(hint))
    }
}
