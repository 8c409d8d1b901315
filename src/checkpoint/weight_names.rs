//! What the names of weight files tell: adapters, states of a training run, numbered shards, other formats.

use std::collections::BTreeSet;

use super::format::{FileFormat, WrittenAs};

/// The names of a LoRA adapter's weights.
pub(super) const ADAPTERS: [&str; 2] = ["adapter_model.safetensors", "adapter_model.bin"];

/// How downloaders call what is not finished: aria2's control file, the others the file itself.
pub(super) const UNFINISHED: [&str; 7] = [
    ".aria2",
    ".crdownload",
    ".download",
    ".incomplete",
    ".part",
    ".partial",
    ".!qB",
];

/// How many numbers of an incomplete set are named.
const MISSING_SHOWN: usize = 3;

/// Whether a trainer keeps the file to resume from: it ends like a pickle, but holds no weights.
pub fn is_of_training(name: &str) -> bool {
    let starts = [
        "optimizer",
        "scheduler",
        "scaler",
        "sampler",
        "rng_state",
        "random_states",
        "training_args",
    ];
    starts.iter().any(|start| name.starts_with(start)) || name.contains("optim_states")
}

/// Heads that are kept in a file of their own beside the weights: the file's name, the endings that it may have, and the
/// format in which loaders look for it.
pub(super) const HEADS: [(&str, &[&str], WrittenAs); 3] = [
    ("colbert_linear", &[".pt"], WrittenAs::Torch),
    ("sparse_linear", &[".pt"], WrittenAs::Torch),
    (
        "value_head",
        &[".safetensors", ".bin"],
        WrittenAs::Safetensors,
    ),
];

/// Whether a file has the name of a model's weights.
pub(super) fn is_model(name: &str) -> bool {
    FileFormat::named(name).is_some() && !is_of_training(name) && !ADAPTERS.contains(&name)
}

/// Whether a file has the name of an index of weights, in the folder itself.
pub(super) fn is_index(name: &str) -> bool {
    let ends = [FileFormat::Safetensors, FileFormat::Pickle].map(FileFormat::index_end);
    !name.contains('/') && ends.iter().any(|end| name.ends_with(end))
}

/// Whether a file has the name of a head beside the weights.
pub fn is_head_file(name: &str) -> bool {
    HEADS.iter().any(|(stem, ends, _)| {
        let end = name.strip_prefix(stem);
        end.is_some_and(|end| ends.contains(&end))
    })
}

/// A set of shards by the names of its files.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub(super) struct NumberedSet<'n> {
    pub(super) stem: &'n str,
    /// How many shards it has.
    pub(super) of: usize,
    pub(super) end: &'n str,
}

impl NumberedSet<'_> {
    /// The names of the first few shards that are not among these numbers. Most sets count from one, some from zero.
    pub(super) fn missing(&self, numbers: &BTreeSet<usize>) -> Vec<String> {
        let first = usize::from(!numbers.contains(&0));
        (first..self.of.saturating_add(first))
            .filter(|number| !numbers.contains(number))
            .take(MISSING_SHOWN)
            .map(|number| format!("{}-{number:05}-of-{:05}{}", self.stem, self.of, self.end))
            .collect()
    }
}

/// Parses `model-00002-of-00003.safetensors`: number 2 of the 3 files of `model` that end in `.safetensors`.
pub(super) fn numbered(file: &str) -> Option<(NumberedSet<'_>, usize)> {
    let (rest, end) = file.split_at(file.rfind('.')?);
    let (rest, of) = rest.rsplit_once("-of-")?;
    let (stem, number) = rest.rsplit_once('-')?;
    let count = |digits: &str| {
        digits
            .bytes()
            .all(|b| b.is_ascii_digit())
            .then(|| digits.parse().ok())
            .flatten()
    };
    let (number, of) = (count(number)?, count(of)?);
    Some((NumberedSet { stem, of, end }, number))
}

/// Weights of other formats, by the endings of their names.
const OTHER_FORMATS: [(&[&str], &str, &str); 4] = [
    (
        &[".pkl", ".pickle", ".tar", ".jit", ".torchscript"],
        "a file that torch.save does not name so",
        "if torch.save wrote it, name the file itself",
    ),
    (
        &[".ggml"],
        "a GGML file",
        "take a GGUF file of the model, or the safetensors it was made from",
    ),
    (
        &[".h5", ".msgpack"],
        "a TensorFlow or Flax file",
        "convert it to safetensors",
    ),
    (
        &[".onnx"],
        "an ONNX file",
        "use the safetensors it was exported from",
    ),
];

/// The unsupported format that a file's name indicates, and what to do.
pub(super) fn other_format(name: &str) -> Option<(&'static str, &'static str)> {
    OTHER_FORMATS
        .into_iter()
        .find(|(ends, ..)| ends.iter().any(|end| name.ends_with(end)))
        .map(|(_, what, hint)| (what, hint))
}
