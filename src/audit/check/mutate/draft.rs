//! The copy of a checkpoint that defects are planted in: the content of the original, and the folder that is damaged.

use std::collections::BTreeMap;
use std::fs;
use std::io;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use serde_json::{Map, Value};

use super::{MAX_MUTATED_BYTES, MutateError, Obstacle};
use architecture::{is_input_embedding, layer_stacks};
use checkpoint::{
    Checkpoint, Dtype, Location, ShardLayout, Tokenizer, TokenizerKind, index_json, read_sidecar,
    shard_layout,
};
use numeric::FloatType;

pub(super) const CONFIG: &str = "config.json";
pub(super) const INDEX: &str = "model.safetensors.index.json";

/// A tensor in memory.
#[derive(Debug, Clone)]
pub(super) struct Tensor {
    pub(super) name: String,
    pub(super) dtype: Dtype,
    pub(super) shape: Vec<usize>,
    pub(super) bytes: Arc<Vec<u8>>,
}

impl Tensor {
    /// Bytes per element.
    pub(super) fn size(&self) -> usize {
        (self.dtype.bitsize() / 8).max(1)
    }

    /// Bytes per row: the stride of the first axis.
    pub(super) fn row(&self) -> usize {
        self.bytes.len() / self.shape.first().copied().unwrap_or(1).max(1)
    }

    /// Its values; `None` if they are not floats.
    pub(super) fn values(&self) -> Option<Vec<f64>> {
        let format = FloatType::from_dtype(self.dtype)?;
        let mut values = vec![0.0; self.bytes.len() / format.size()];
        format.decode(&self.bytes, &mut values);
        Some(values)
    }

    /// Sets its values, rounded to its dtype.
    pub(super) fn set(&mut self, mut values: Vec<f64>) {
        if let Some(format) = FloatType::from_dtype(self.dtype) {
            let mut bytes = vec![0; values.len() * format.size()];
            format.encode(&mut values, false, &mut bytes);
            self.bytes = Arc::new(bytes);
        }
    }

    /// The root mean square of its values; 0 if they are not floats.
    pub(super) fn rms(&self) -> f64 {
        let values = self.values().unwrap_or_default();
        let sum: f64 = values.iter().map(|value| value * value).sum();
        (sum / values.len().max(1) as f64).sqrt()
    }
}

/// The tensors with the same role in each layer of a stack: pairs of a layer and the tensor's index in the checkpoint.
pub(super) type Role = Vec<(usize, usize)>;

/// The checkpoint that is copied.
pub(super) struct Original {
    pub(super) tensors: Vec<Tensor>,
    /// Every file other than the weights, including `config.json`.
    files: BTreeMap<String, Vec<u8>>,
    /// The content of `config.json`; null if there is none.
    pub(super) config: Value,
    /// The part of tensor names before the layer's number, in the deepest stack.
    pub(super) layers_before: String,
    /// The tensors of that stack, by the part of their names after the layer's number.
    pub(super) roles: BTreeMap<String, Role>,
    shards: Vec<ShardLayout>,
    index: String,
}

impl Original {
    /// Reads a checkpoint into memory.
    pub(super) fn read(model: &Checkpoint) -> Result<Original, MutateError> {
        let mut left = MAX_MUTATED_BYTES;
        let mut take = |bytes: u64| {
            left = left.checked_sub(bytes)?;
            Some(())
        };
        let too_large = || MutateError::TooLarge {
            label: model.label().to_owned(),
            limit: MAX_MUTATED_BYTES,
        };
        let mut tensors = Vec::new();
        for (at, tensor) in model.tensors().iter().enumerate() {
            take(tensor.len).ok_or_else(too_large)?;
            let bytes = model.stored(at).ok_or_else(|| MutateError::Scattered {
                tensor: tensor.name.clone(),
            })?;
            tensors.push(Tensor {
                name: tensor.name.clone(),
                dtype: tensor.dtype,
                shape: tensor.shape.clone(),
                bytes: Arc::new(bytes.to_vec()),
            });
        }
        let mut files = BTreeMap::new();
        for file in model.sidecars().map_err(MutateError::Unreadable)? {
            let bytes = read_sidecar(&file.path).map_err(MutateError::Unreadable)?;
            take(bytes.len() as u64).ok_or_else(too_large)?;
            files.insert(file.name, bytes);
        }
        let config = model.config().map(|config| config.value().clone());
        let text = config
            .as_ref()
            .map(|config| (CONFIG.to_owned(), config.to_string().into_bytes()));
        files.extend(text);
        let (shards, index) = lay_out(&tensors)?;
        let stack = layer_stacks(tensors.iter().map(|tensor| tensor.name.as_str()))
            .into_iter()
            .next();
        let mut roles: BTreeMap<String, Role> = BTreeMap::new();
        for (at, tensor) in tensors.iter().enumerate() {
            if let Some((layer, role)) = stack.as_ref().and_then(|stack| stack.split(&tensor.name))
            {
                roles.entry(role.to_owned()).or_default().push((layer, at));
            }
        }
        Ok(Original {
            config: config.unwrap_or_default(),
            layers_before: stack.map_or(String::new(), |stack| stack.prefix),
            tensors,
            files,
            roles,
            shards,
            index,
        })
    }

    /// The token embedding with the most rows.
    pub(super) fn embedding(&self) -> Result<&Tensor, Obstacle> {
        let embeddings = self
            .tensors
            .iter()
            .filter(|tensor| is_input_embedding(&tensor.name));
        embeddings
            .max_by_key(|tensor| tensor.shape.first().copied())
            .filter(|tensor| tensor.shape.len() == 2 && tensor.shape[0] > 1)
            .ok_or_else(|| Obstacle::model("it has no embedding of tokens"))
    }

    /// All tensors in one file.
    pub(super) fn whole_file(&self) -> Result<Vec<u8>, Obstacle> {
        let tensors = self.tensors.iter();
        let listed: Vec<(String, Dtype, Vec<usize>)> = tensors
            .map(|tensor| (tensor.name.clone(), tensor.dtype, tensor.shape.clone()))
            .collect();
        let shards = shard_layout(&listed, u64::MAX, "model")
            .map_err(|error| Obstacle::Model(error.to_string()))?;
        let mut bytes = Vec::new();
        for shard in shards {
            bytes.extend_from_slice(&shard.header);
            for (tensor, _) in shard.tensors {
                bytes.extend_from_slice(&self.tensors[tensor].bytes);
            }
        }
        Ok(bytes)
    }

    /// The number of rows of that embedding.
    pub(super) fn rows(&self) -> Result<usize, Obstacle> {
        Ok(self.embedding()?.shape[0])
    }
}

/// Lays the tensors out in at least two shards if possible, with an index.
fn lay_out(tensors: &[Tensor]) -> Result<(Vec<ShardLayout>, String), MutateError> {
    let total: usize = tensors.iter().map(|tensor| tensor.bytes.len()).sum();
    let listed: Vec<(String, Dtype, Vec<usize>)> = tensors
        .iter()
        .map(|tensor| (tensor.name.clone(), tensor.dtype, tensor.shape.clone()))
        .collect();
    let shard = (total / 2 + 1) as u64;
    let shards = shard_layout(&listed, shard, "model").map_err(MutateError::Unreadable)?;
    let index = index_json(&shards, 0, &listed);
    Ok((shards, index))
}

/// A folder with a copy of an original.
pub(super) struct Draft<'a> {
    pub(super) original: &'a Original,
    folder: PathBuf,
}

impl<'a> Draft<'a> {
    /// Writes an intact copy into a folder that does not exist yet.
    pub(super) fn new(original: &'a Original, folder: &Path) -> io::Result<Draft<'a>> {
        fs::create_dir(folder)?;
        let draft = Draft {
            original,
            folder: folder.to_owned(),
        };
        for (name, bytes) in &original.files {
            draft.put(name, bytes)?;
        }
        draft.put_shards(&original.shards, &original.index, &original.tensors)?;
        Ok(draft)
    }

    pub(super) fn path(&self, name: &str) -> PathBuf {
        self.folder.join(name)
    }

    /// Writes a file, and creates its folders.
    pub(super) fn put(&self, name: &str, bytes: impl AsRef<[u8]>) -> io::Result<()> {
        let path = self.path(name);
        if let Some(folder) = path.parent() {
            fs::create_dir_all(folder)?;
        }
        fs::write(path, bytes)
    }

    pub(super) fn remove(&self, name: &str) -> io::Result<()> {
        fs::remove_file(self.path(name))
    }

    fn put_shards(
        &self,
        shards: &[ShardLayout],
        index: &str,
        tensors: &[Tensor],
    ) -> io::Result<()> {
        for shard in shards {
            let mut bytes = shard.header.clone();
            for &(tensor, _) in &shard.tensors {
                bytes.extend_from_slice(&tensors[tensor].bytes);
            }
            self.put(&shard.file_name, bytes)?;
        }
        if shards.len() > 1 {
            self.put(INDEX, index)?;
        }
        Ok(())
    }

    /// The names of the first and the last shard.
    pub(super) fn shards(&self) -> Result<[&'a str; 2], Obstacle> {
        match &self.original.shards[..] {
            [first, .., last] => Ok([&first.file_name, &last.file_name]),
            _ => Err(Obstacle::model(
                "it has one tensor, so that it cannot be cut into shards",
            )),
        }
    }

    /// Removes its weights.
    pub(super) fn remove_weights(&self) -> io::Result<()> {
        for shard in &self.original.shards {
            self.remove(&shard.file_name)?;
        }
        if self.original.shards.len() > 1 {
            self.remove(INDEX)?;
        }
        Ok(())
    }

    /// Writes the weights again, after `edit` has changed them.
    pub(super) fn rewrite(
        &self,
        edit: impl FnOnce(&mut Vec<Tensor>) -> Result<(), Obstacle>,
    ) -> Result<(), Obstacle> {
        let mut tensors = self.original.tensors.clone();
        edit(&mut tensors)?;
        let (shards, index) =
            lay_out(&tensors).map_err(|error| Obstacle::Model(error.to_string()))?;
        self.remove_weights()?;
        Ok(self.put_shards(&shards, &index, &tensors)?)
    }

    /// Changes one tensor and all tensors equal to it, so that a tied head that is stored stays tied.
    pub(super) fn change(
        &self,
        at: usize,
        edit: impl FnOnce(&mut Tensor),
    ) -> Result<String, Obstacle> {
        let before = &self.original.tensors[at];
        let mut changed = before.clone();
        edit(&mut changed);
        self.rewrite(|tensors| {
            let same = |tensor: &&mut Tensor| {
                tensor.shape == before.shape
                    && tensor.bytes == before.bytes
                    && before.row() > before.size()
            };
            tensors
                .iter_mut()
                .filter(same)
                .for_each(|tensor| tensor.bytes = changed.bytes.clone());
            tensors[at] = changed;
            Ok(())
        })?;
        Ok(before.name.clone())
    }

    /// Edits a JSON file; a missing file counts as an empty object.
    pub(super) fn edit_json(
        &self,
        name: &str,
        edit: impl FnOnce(&mut Map<String, Value>),
    ) -> Result<(), Obstacle> {
        let value = match fs::read(self.path(name)) {
            Ok(bytes) => serde_json::from_slice(&bytes).unwrap_or_default(),
            Err(error) if error.kind() == io::ErrorKind::NotFound => Value::Null,
            Err(error) => return Err(error.into()),
        };
        let mut entries = match value {
            Value::Object(entries) => entries,
            _ => Map::new(),
        };
        edit(&mut entries);
        Ok(self.put(name, Value::Object(entries).to_string())?)
    }

    /// Whether the original has this file.
    pub(super) fn has(&self, name: &str) -> bool {
        self.original.files.contains_key(name)
    }

    /// Sets a field of config.json where it already is: at the top or in the language model's part. A new field goes to
    /// the top.
    pub(super) fn set_config(&self, field: &str, value: Value) -> Result<String, Obstacle> {
        if self.original.config.is_null() {
            return Err(Obstacle::model("it has no config.json"));
        }
        self.edit_json(CONFIG, |config| {
            let there =
                |part: &Map<String, Value>| part.get(field).is_some_and(|value| !value.is_null());
            if !there(config) {
                let parts = ["text_config", "llm_config", "language_config"];
                for part in parts {
                    if let Some(Value::Object(part)) = config.get_mut(part)
                        && there(part)
                    {
                        part.insert(field.to_owned(), value);
                        return;
                    }
                }
            }
            config.insert(field.to_owned(), value);
        })?;
        Ok(format!("{CONFIG}: {field}"))
    }

    /// Its tokenizer.json, if there is one that can be read.
    pub(super) fn tokenizer(&self) -> Result<Option<Tokenizer>, Obstacle> {
        let opened = Checkpoint::open("the copy", &Location::local(&self.folder));
        let found = opened.and_then(|model| Tokenizer::open(&model));
        match found.map_err(|error| Obstacle::Model(error.to_string()))? {
            TokenizerKind::Fast(tokenizer) => Ok(Some(*tokenizer)),
            _ => Ok(None),
        }
    }

    /// Edits the bytes of a file.
    pub(super) fn edit_bytes(
        &self,
        name: &str,
        edit: impl FnOnce(&mut Vec<u8>),
    ) -> Result<(), Obstacle> {
        let mut bytes = fs::read(self.path(name))?;
        edit(&mut bytes);
        Ok(fs::write(self.path(name), bytes)?)
    }

    /// Writes a weight file again with an edited header and the same data.
    pub(super) fn edit_header(
        &self,
        name: &str,
        edit: impl FnOnce(&str) -> String,
    ) -> Result<(), Obstacle> {
        self.edit_bytes(name, |bytes| {
            let layout = self
                .original
                .shards
                .iter()
                .find(|shard| shard.file_name == name);
            let end = layout.map_or(8, |layout| layout.header.len());
            let header = edit(&String::from_utf8_lossy(&bytes[8..end]));
            let mut out = (header.len() as u64).to_le_bytes().to_vec();
            out.extend_from_slice(header.as_bytes());
            out.extend_from_slice(&bytes[end..]);
            *bytes = out;
        })
    }

    /// The tensors of a shard, in the order of their bytes.
    pub(super) fn tensors_of(&self, name: &str) -> Vec<&'a Tensor> {
        let shard = self
            .original
            .shards
            .iter()
            .find(|shard| shard.file_name == name);
        let tensors = shard.into_iter().flat_map(|shard| &shard.tensors);
        tensors.map(|&(at, _)| &self.original.tensors[at]).collect()
    }
}
