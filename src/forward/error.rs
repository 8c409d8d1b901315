//! Why a model cannot be run: one error type, which names the field, the tensor or the prompt.

use std::borrow::Cow;
use std::path::PathBuf;

use architecture::FieldError;
use checkpoint::CheckpointError;
use errors::Hint;

/// Why a decoder cannot be built or run. It does not name the model; the caller does.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum ForwardError {
    /// The model is of an unsupported kind.
    #[error("config.json: can't run model_type `{found}`, expected one of {expected}")]
    Family {
        /// The kind that the config names.
        found: String,
        /// All supported kinds.
        expected: String,
    },
    /// A field of the config is missing, malformed, or has an unsupported meaning.
    #[error("config.json: `{field}`: expected {expected}, found {found}")]
    Field {
        /// The field, with the object that contains it.
        field: String,
        /// The values that are supported.
        expected: String,
        /// Its value, shortened.
        found: String,
        /// What to do about it.
        hint: &'static str,
    },
    /// A tensor that the config calls for is missing.
    #[error("tensor `{tensor}` is missing, expected shape {expected:?}")]
    Missing {
        /// Its name.
        tensor: String,
        /// The shape that follows from the config.
        expected: Vec<usize>,
    },
    /// A tensor has a different shape from the one that the config calls for.
    #[error("tensor `{tensor}`: expected shape {expected:?}, found {found:?}")]
    Shape {
        /// Its name.
        tensor: String,
        /// The shape that follows from the config.
        expected: Vec<usize>,
        /// Its shape.
        found: Vec<usize>,
    },
    /// A tensor that would change the result, but that the config does not mention.
    #[error("tensor `{tensor}` is there, but config.json says nothing of it")]
    Surplus {
        /// Its name.
        tensor: String,
    },
    /// A tensor's values cannot be read.
    #[error("tensor `{tensor}` can't be read: {detail}")]
    Read {
        /// Its name.
        tensor: String,
        /// Why.
        detail: String,
    },
    /// The config says that the head is the embedding, but the stored head differs.
    #[error("`lm_head.weight` differs from `{embedding}`, though config.json ties them")]
    HeadsDiffer {
        /// The name of the embedding.
        embedding: String,
    },
    /// There are no prompts.
    #[error("no prompt was given")]
    NoPrompt,
    /// A prompt has no tokens.
    #[error("prompt {prompt} has no tokens")]
    EmptyPrompt {
        /// Its number, from zero.
        prompt: usize,
    },
    /// A token has no embedding.
    #[error(
        "token {token} of prompt {prompt}: expected one below {vocabulary}, the rows of the embedding"
    )]
    Token {
        /// The prompt's number, from zero.
        prompt: usize,
        /// The token.
        token: u32,
        /// Number of tokens in the vocabulary.
        vocabulary: usize,
    },
    /// A prompt is so long that the frequencies of positions would change.
    #[error("prompt {prompt} has {found} tokens, expected at most {limit} with {why}")]
    TooLong {
        /// The prompt's number, from zero.
        prompt: usize,
        /// The most tokens of a prompt.
        limit: usize,
        /// Number of its tokens.
        found: usize,
        /// What sets the limit.
        why: &'static str,
    },
    /// A layer that the model does not have.
    #[error("layer {asked} was asked for, expected one below {layers}")]
    Layer {
        /// The layer.
        asked: usize,
        /// Number of layers.
        layers: usize,
    },
    /// States became NaN or infinite.
    #[error("the states {place} hold {nan} NaN and {infinite} infinite values")]
    NotFinite {
        /// Where.
        place: String,
        /// How many NaNs.
        nan: u64,
        /// How many infinities.
        infinite: u64,
    },
    /// The states do not fit into memory.
    #[error("can't hold {rows} x {tokens} values")]
    Memory {
        /// Values per token.
        rows: usize,
        /// Number of tokens.
        tokens: usize,
    },
    /// Worker threads could not be started.
    #[error("can't start {threads} worker threads")]
    Threads {
        /// The requested number of threads.
        threads: usize,
        /// Why.
        #[source]
        source: rayon::ThreadPoolBuildError,
    },
    /// A tokenizer cannot be read, or is of an unsupported kind.
    #[error("{path}: {detail}", path = .path.display())]
    Tokenizer {
        /// The file.
        path: PathBuf,
        /// What is wrong.
        detail: String,
        /// What to do about it.
        hint: &'static str,
    },
    /// A file beside the weights cannot be read.
    #[error(transparent)]
    Checkpoint(#[from] CheckpointError),
}

impl Hint for ForwardError {
    fn hint(&self) -> Option<Cow<'_, str>> {
        let hint = match self {
            Self::Checkpoint(source) => return source.hint(),
            Self::Field { hint, .. } | Self::Tokenizer { hint, .. } => hint,
            Self::Family { .. } => "take a model of one of these for what needs states",
            Self::Missing { .. } => {
                "config.json and the weights are not of one model, or a file is lacking"
            }
            Self::Shape { .. } => "config.json and the weights are not of one model",
            Self::Surplus { .. } => {
                "correct the config (attention_bias, mlp_bias, use_qk_norm), or remove the tensor"
            }
            Self::Read { .. } => "only models of floats can be run",
            Self::HeadsDiffer { .. } => "set tie_word_embeddings to false, or remove the head",
            Self::NoPrompt => "give one at least",
            Self::EmptyPrompt { .. } => "give it a text, or add the beginning token",
            Self::Token { .. } => "the tokenizer is of another model",
            Self::TooLong { .. } => "shorten it",
            Self::Layer { .. } => "layers count from zero",
            Self::NotFinite { .. } => "`weld check` finds the tensors that hold such values",
            Self::Memory { .. } => "run fewer prompts at a time",
            Self::Threads { .. } => "ask for fewer",
        };
        Some(Cow::Borrowed(hint))
    }
}

impl From<FieldError> for ForwardError {
    fn from(error: FieldError) -> ForwardError {
        let FieldError {
            field,
            expected,
            found,
            hint,
        } = error;
        ForwardError::Field {
            field,
            expected,
            found,
            hint,
        }
    }
}
