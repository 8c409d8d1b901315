//! GGUF files as models: llama.cpp's names, shapes, orders of rows and blocks of codes become a checkpoint's.
//!
//! `container` reads the header, `config` makes the config from its metadata unless one lies beside the file, `tensors`
//! finds where each tensor of the family lies, and `source` gives its values as they are read.

mod config;
pub(super) mod container;
mod keys;
pub(super) mod kind;
mod source;
mod tensors;

use std::collections::BTreeMap;
use std::path::Path;
use std::sync::Arc;

use errors::Refusal;
use safetensors::Dtype;

use self::config::{Known, Tensors};
use self::container::{Container, Tensor};
use self::keys::Keys;
use self::kind::Kind;
use self::source::{GgufValues, StoredTensor};
use self::tensors::{Model, Named, Shaped};
use super::config::ModelConfig;
use super::error::CheckpointError;
use super::source::TensorSource;

/// A model whose files are open: what is needed to read its tensors.
#[derive(Debug)]
pub(super) struct GgufModel {
    stored: Vec<StoredTensor>,
    tensors: Vec<Named>,
    narrow: Dtype,
    /// Its config: that beside the file, or what the metadata says.
    pub(super) config: ModelConfig,
    /// What its token ids mean, by the metadata; those that stand for no token are left out.
    pub(super) tokens: Option<BTreeMap<u64, String>>,
    /// What a user should know of how it was read.
    pub(super) notes: Vec<String>,
}

/// The tensors of files as they are stored.
struct Stored<'a> {
    containers: &'a [Container],
    files: &'a dyn TensorSource,
}

impl Stored<'_> {
    fn tensors(&self) -> impl Iterator<Item = &Tensor> {
        self.containers
            .iter()
            .flat_map(|container| &container.tensors)
    }

    fn find(&self, name: &str) -> Option<(usize, &Tensor)> {
        (0..)
            .zip(self.tensors())
            .find(|(_, tensor)| tensor.name == name)
    }
}

impl Tensors for Stored<'_> {
    fn has(&self, name: &str) -> bool {
        self.find(name).is_some()
    }

    fn floats(&self, name: &str) -> Option<Vec<f32>> {
        let (at, tensor) = self.find(name)?;
        let sound = tensor.kind == Kind::Plain(Dtype::F32) && tensor.shape.len() == 1;
        let bytes = self.files.bytes(at).filter(|_| sound)?;
        let (numbers, _) = bytes.as_chunks::<4>();
        Some(
            numbers
                .iter()
                .map(|number| f32::from_le_bytes(*number))
                .collect(),
        )
    }

    fn rows(&self, name: &str) -> Option<usize> {
        let (_, tensor) = self.find(name)?;
        match *tensor.shape {
            [rows, _] => Some(rows),
            _ => None,
        }
    }

    fn same(&self, one: &str, other: &str) -> bool {
        match (self.find(one), self.find(other)) {
            (Some((one, of_one)), Some((other, of_other))) => {
                (of_one.kind, &of_one.shape) == (of_other.kind, &of_other.shape)
                    && self.files.bytes(one) == self.files.bytes(other)
            }
            _ => false,
        }
    }
}

/// Finds out what the model of open files is. `files` has the tensors of the containers as they are stored, in their
/// order; `beside` is the config.json beside them.
///
/// # Errors
/// The family is not known, the metadata or the config does not say what it must, or a tensor is missing or not one of
/// the family's.
pub(super) fn model(
    path: &Path,
    files: &dyn TensorSource,
    containers: &[Container],
    beside: Option<ModelConfig>,
) -> Result<GgufModel, CheckpointError> {
    let stored = Stored { containers, files };
    found(path, &stored, beside).map_err(|source| CheckpointError::Gguf {
        path: path.into(),
        source,
    })
}

fn found(
    path: &Path,
    stored: &Stored<'_>,
    beside: Option<ModelConfig>,
) -> Result<GgufModel, Refusal> {
    let first = stored.containers.first().ok_or("there is no file")?;
    let keys = Keys::new(&first.metadata)?;
    check_split(stored.containers)?;
    let layers = config::layers(&keys)?;
    let mut notes = Vec::new();
    let (known, config) = match beside {
        Some(config) => {
            let known = family_of(&config, &keys)?;
            (known, config)
        }
        None => {
            let known = Known::of_file(&keys)?;
            let dtype = narrow_dtype(stored, None);
            let made = config::config(&keys, known, stored, dtype_name(dtype))?;
            notes.push(format!(
                "{}: its config is made from the metadata of the file, as a model of type {}",
                path.display(),
                known.family.name()
            ));
            let folder = path.parent().filter(|_| path.is_file()).unwrap_or(path);
            (known, ModelConfig::made(folder.join("config.json"), made))
        }
    };
    let narrow = narrow_dtype(stored, Some(&config));
    let file: Vec<Shaped<'_>> = stored
        .tensors()
        .map(|tensor| (tensor.name.as_str(), tensor.shape.as_slice()))
        .collect();
    let Model { tensors, left_out } = tensors::find(known, config.value(), &file, layers)?;
    notes.push(how_stored(path, stored));
    if left_out > 0 {
        notes.push(format!(
            "{}: {left_out} tensors of layers that predict further tokens are not read",
            path.display()
        ));
    }
    let stored = stored.tensors().map(|tensor| StoredTensor {
        kind: tensor.kind,
        shape: tensor.shape.clone(),
    });
    Ok(GgufModel {
        tokens: tokens(first),
        stored: stored.collect(),
        tensors,
        narrow,
        config,
        notes,
    })
}

/// The vocabulary of a file. Converters call a row without a token `[PAD17]`.
fn tokens(container: &Container) -> Option<BTreeMap<u64, String>> {
    let Some(container::Value::Tokens(tokens)) = container.metadata.get(container::TOKENS) else {
        return None;
    };
    let tokens = (0..).zip(tokens);
    let real = tokens.filter(|(id, text)| **text != format!("[PAD{id}]"));
    Some(real.map(|(id, text)| (id, text.clone())).collect())
}

/// The family of a config beside a file, which must be that of the file.
fn family_of(config: &ModelConfig, keys: &Keys<'_>) -> Result<Known, Refusal> {
    let named = config.model_type().unwrap_or_default();
    let known = Known::named(named)
        .filter(|known| known.dialect.name == keys.architecture && known.family.bodies.len() == 1);
    known.ok_or_else(|| {
        Refusal::new(format!(
            "the file is of architecture `{}`, and {} beside it of type `{named}`",
            keys.architecture,
            config.path().display()
        ))
        .with_hint("if they are of different models, move the file into a folder of its own; without a config.json one is made from its metadata")
    })
}

/// The files of a set must be all of it, in its order.
fn check_split(containers: &[Container]) -> Result<(), Refusal> {
    for (at, container) in containers.iter().enumerate() {
        let said = |key: &str| match container.metadata.get(key) {
            Some(container::Value::Whole(number)) => usize::try_from(*number).ok(),
            _ => None,
        };
        let (number, count) = (
            said("split.no").unwrap_or(0),
            said("split.count").unwrap_or(1),
        );
        if (number, count.max(1)) != (at, containers.len()) {
            return Err(Refusal::new(format!(
                "the metadata of file {} says that it is file {} of {count}, and {} files are there",
                at + 1,
                number + 1,
                containers.len()
            ))
            .with_hint("name any file of a whole set `model-00001-of-00003.gguf`, by the names that the set was written with"));
        }
    }
    Ok(())
}

/// The dtype that values in blocks get: that of the config beside, or BF16. Without blocks it is the narrowest of the
/// matrices'.
fn narrow_dtype(stored: &Stored<'_>, config: Option<&ModelConfig>) -> Dtype {
    let matrices = || stored.tensors().filter(|tensor| tensor.shape.len() > 1);
    if matrices().any(|tensor| matches!(tensor.kind, Kind::Blocks(_))) {
        let said =
            config.and_then(|config| config.get_str("dtype").or(config.get_str("torch_dtype")));
        return match said.map(|said| said.trim_start_matches("torch.")) {
            Some("float16") => Dtype::F16,
            Some("float32") => Dtype::F32,
            _ => Dtype::BF16,
        };
    }
    let has = |dtype| matrices().any(|tensor| tensor.kind == Kind::Plain(dtype));
    match (has(Dtype::BF16), has(Dtype::F16)) {
        (true, false) => Dtype::BF16,
        (false, true) => Dtype::F16,
        _ => Dtype::F32,
    }
}

fn dtype_name(dtype: Dtype) -> &'static str {
    match dtype {
        Dtype::F16 => "float16",
        Dtype::BF16 => "bfloat16",
        _ => "float32",
    }
}

/// How many tensors are stored in which type.
fn how_stored(path: &Path, stored: &Stored<'_>) -> String {
    let mut kinds: Vec<(String, usize)> = Vec::new();
    for tensor in stored.tensors() {
        let name = tensor.kind.name();
        match kinds.iter_mut().find(|(known, _)| *known == name) {
            Some((_, count)) => *count += 1,
            None => kinds.push((name, 1)),
        }
    }
    let kinds: Vec<String> = kinds
        .into_iter()
        .map(|(name, count)| format!("{count} in {name}"))
        .collect();
    format!(
        "{}: a GGUF file, its tensors {}",
        path.display(),
        kinds.join(", ")
    )
}

impl GgufModel {
    /// Its tensors over those of the files.
    pub(super) fn source(self, files: Arc<dyn TensorSource>) -> Arc<dyn TensorSource> {
        Arc::new(GgufValues::new(
            files,
            self.stored,
            self.tensors,
            self.narrow,
        ))
    }
}
