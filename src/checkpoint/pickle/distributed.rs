//! What `.metadata` of a distributed checkpoint says: tensors, the boxes that each is cut into, and where these lie.
//!
//! It is a pickle of dataclasses of `torch.distributed.checkpoint.metadata`. Their fields are read; nothing is called.

use std::collections::{HashMap, HashSet};
use std::path::Path;

use safetensors::Dtype;

use super::machine::{self, Imports, Unpickled};
use super::objects::{Object, Value};
use super::torch::{Class, Global};
use crate::bounded::plain;
use crate::error::CheckpointError;
use crate::header::check_name;
use crate::limits::MAX_TENSORS;

/// What a distributed checkpoint holds.
#[derive(Debug)]
pub(crate) struct Distributed {
    pub(crate) tensors: Vec<DistributedTensor>,
    /// How many entries are no tensors.
    pub(crate) others: usize,
}

/// A tensor of a distributed checkpoint.
#[derive(Debug)]
pub(crate) struct DistributedTensor {
    /// The keys of the dicts that it lies in, the outermost first, and its own.
    pub(crate) keys: Vec<String>,
    pub(crate) dtype: Dtype,
    pub(crate) shape: Vec<usize>,
    pub(crate) boxes: Vec<StoredBox>,
}

/// A box of a tensor, and where it is stored.
#[derive(Debug)]
pub(crate) struct StoredBox {
    pub(crate) offsets: Vec<usize>,
    pub(crate) sizes: Vec<usize>,
    /// The file, as the checkpoint names it.
    pub(crate) file: String,
    /// Where it begins in the file, and its length.
    pub(crate) first: u64,
    pub(crate) len: u64,
}

/// Where something is stored.
#[derive(Debug, Clone, Copy)]
struct Stored<'a> {
    file: &'a str,
    first: u64,
    len: u64,
    is_transformed: bool,
}

/// Reads the bytes of `.metadata`.
pub(crate) fn read_distributed(path: &Path, bytes: &[u8]) -> Result<Distributed, CheckpointError> {
    let unpickled = machine::unpickle(path, bytes, 0, Imports::Distributed)?;
    let reader = Reader {
        path,
        unpickled: &unpickled,
    };
    reader.read()
}

struct Reader<'r, 'a> {
    path: &'r Path,
    unpickled: &'r Unpickled<'a>,
}

impl<'a> Reader<'_, 'a> {
    fn read(&self) -> Result<Distributed, CheckpointError> {
        let root = self.unpickled.root;
        let metadata = self.fields(root, Class::Metadata);
        let entries =
            metadata.and_then(|fields| self.dict(self.field(fields, "state_dict_metadata")?));
        let Some((metadata, entries)) = metadata.zip(entries) else {
            let found = self.unpickled.objects.describe(root);
            return Err(self.malformed(format!(
                "expected the metadata of a checkpoint, found {found}"
            )));
        };
        let stored = self.stored(self.field(metadata, "storage_data"))?;
        let keys = self
            .field(metadata, "planner_data")
            .and_then(|keys| self.dict(keys));
        let keys: HashMap<&str, Value<'a>> = keys
            .unwrap_or_default()
            .iter()
            .filter_map(|(name, keys)| text(*name).map(|name| (name, *keys)))
            .collect();
        let mut seen = HashSet::new();
        let mut others = 0;
        let mut tensors = Vec::new();
        for (name, value) in entries {
            let Some(name) = text(*name) else {
                return Err(self.malformed("an entry that has no name".into()));
            };
            check_name(self.path, name)?;
            if !seen.insert(name) {
                return Err(CheckpointError::DuplicateKey {
                    path: self.path.into(),
                    tensor: name.into(),
                });
            }
            let Some(fields) = self.fields(*value, Class::Tensor) else {
                if self.fields(*value, Class::Bytes).is_none() {
                    return Err(self.wrong(name, "is neither a tensor nor bytes"));
                }
                others += 1;
                continue;
            };
            if tensors.len() == MAX_TENSORS {
                return Err(CheckpointError::TooLarge {
                    path: self.path.into(),
                    what: "number of tensors of a checkpoint",
                    limit: MAX_TENSORS as u64,
                    found: MAX_TENSORS as u64 + 1,
                });
            }
            let keys = keys.get(name).and_then(|keys| self.keys(*keys));
            let keys = keys.unwrap_or_else(|| vec![name.to_owned()]);
            // The keys become the tensor's name.
            keys.iter().try_for_each(|key| check_name(self.path, key))?;
            tensors.push(self.tensor(name, keys, fields, &stored)?);
        }
        Ok(Distributed { tensors, others })
    }

    /// Where everything is stored, by its name and the offsets of the box.
    fn stored(
        &self,
        all: Option<Value<'a>>,
    ) -> Result<HashMap<(&'a str, Vec<usize>), Stored<'a>>, CheckpointError> {
        let entries = all.and_then(|all| self.dict(all)).unwrap_or_default();
        let mut stored = HashMap::with_capacity(entries.len());
        for (key, value) in entries {
            let place = || {
                let key = self.fields(*key, Class::Index)?;
                let name = text(self.field(key, "fqn")?)?;
                let offsets = match self.field(key, "offset") {
                    None | Some(Value::None) => Vec::new(),
                    Some(offsets) => self.sizes(offsets)?,
                };
                let fields = self.fields(*value, Class::Stored)?;
                let number = |name| match self.field(fields, name) {
                    Some(Value::Int(number)) => u64::try_from(number).ok(),
                    _ => None,
                };
                let transformed = self.field(fields, "transform_descriptors");
                let at = Stored {
                    file: text(self.field(fields, "relative_path")?)?,
                    first: number("offset")?,
                    len: number("length")?,
                    is_transformed: !matches!(transformed, None | Some(Value::None)),
                };
                Some(((name, offsets), at))
            };
            let Some((key, at)) = place() else {
                return Err(self.malformed("a place of storage that can't be read".into()));
            };
            if let Some(before) = stored.insert(key.clone(), at)
                && (before.file, before.first) != (at.file, at.first)
            {
                return Err(self.wrong(key.0, "has two places for one box"));
            }
        }
        Ok(stored)
    }

    fn tensor(
        &self,
        name: &'a str,
        keys: Vec<String>,
        fields: &[(Value<'a>, Value<'a>)],
        stored: &HashMap<(&'a str, Vec<usize>), Stored<'a>>,
    ) -> Result<DistributedTensor, CheckpointError> {
        let properties = self.field(fields, "properties");
        let dtype = match properties.map(|properties| self.state(properties, Class::Properties)) {
            // The state of the properties is a tuple, in some versions a dict.
            Some(Some(state)) => match self.unpickled.objects.get(state) {
                Some(Object::Tuple(items)) => items.first().copied(),
                Some(Object::Dict(fields)) => self.field(fields, "dtype"),
                _ => None,
            },
            _ => None,
        };
        let Some(Value::Global(Global::Dtype(dtype))) = dtype else {
            return Err(self.wrong(name, "has no dtype that is known"));
        };
        let shape = self.field(fields, "size").and_then(|size| self.sizes(size));
        let boxes = self
            .field(fields, "chunks")
            .and_then(|chunks| self.list(chunks));
        let (Some(shape), Some(boxes)) = (shape, boxes) else {
            return Err(self.wrong(name, "has no shape or no boxes"));
        };
        let stored_box = |value: &Value<'a>| {
            let fields = self.fields(*value, Class::Box);
            let sizes = |name| fields.and_then(|fields| self.sizes(self.field(fields, name)?));
            let (Some(offsets), Some(sizes)) = (sizes("offsets"), sizes("sizes")) else {
                return Err(self.wrong(name, "has a box without offsets or sizes"));
            };
            let Some(at) = stored.get(&(name, offsets.clone())) else {
                return Err(self.wrong(
                    name,
                    format!("has a box at {} that is stored nowhere", shown(&offsets)),
                ));
            };
            if at.is_transformed {
                return Err(self.wrong(
                    name,
                    "is stored in a form that is not read: compressed, or encrypted",
                ));
            }
            Ok(StoredBox {
                offsets,
                sizes,
                file: at.file.to_owned(),
                first: at.first,
                len: at.len,
            })
        };
        Ok(DistributedTensor {
            keys,
            dtype,
            boxes: boxes.iter().map(stored_box).collect::<Result<_, _>>()?,
            shape,
        })
    }

    /// The keys of the dicts that an entry lies in; `None` if these are not all text.
    fn keys(&self, keys: Value<'a>) -> Option<Vec<String>> {
        let key = |key: &Value<'a>| match key {
            Value::Text(key) => Some((*key).to_owned()),
            Value::Int(number) => Some(number.to_string()),
            _ => None,
        };
        let keys = self.unpickled.objects.tuple(keys)?;
        let keys: Vec<String> = keys.iter().map(key).collect::<Option<_>>()?;
        (!keys.is_empty()).then_some(keys)
    }

    /// The state of an object of that class.
    fn state(&self, value: Value<'a>, class: Class) -> Option<Value<'a>> {
        match self.unpickled.objects.get(value) {
            Some(Object::Instance {
                class: found,
                state,
            }) if *found == class => Some(*state),
            _ => None,
        }
    }

    /// The fields of an object of that class.
    fn fields(&self, value: Value<'a>, class: Class) -> Option<&[(Value<'a>, Value<'a>)]> {
        match self.state(value, class)? {
            // One without fields has no state.
            Value::None => Some(&[]),
            state => self.dict(state),
        }
    }

    fn field(&self, fields: &[(Value<'a>, Value<'a>)], name: &str) -> Option<Value<'a>> {
        let found = fields.iter().find(|(key, _)| *key == Value::Text(name));
        found.map(|(_, value)| *value)
    }

    fn dict(&self, value: Value<'a>) -> Option<&[(Value<'a>, Value<'a>)]> {
        self.unpickled.objects.dict(value)
    }

    fn list(&self, value: Value<'a>) -> Option<&[Value<'a>]> {
        match self.unpickled.objects.get(value) {
            Some(Object::List(items)) => Some(items),
            _ => None,
        }
    }

    fn sizes(&self, value: Value<'a>) -> Option<Vec<usize>> {
        let size = |size: &Value<'a>| match size {
            Value::Int(size) => usize::try_from(*size).ok(),
            _ => None,
        };
        self.unpickled
            .objects
            .tuple(value)?
            .iter()
            .map(size)
            .collect()
    }

    fn malformed(&self, detail: String) -> CheckpointError {
        CheckpointError::PickleMalformed {
            path: self.path.into(),
            offset: 0,
            detail,
        }
    }

    fn wrong(&self, tensor: &str, why: impl Into<String>) -> CheckpointError {
        CheckpointError::PickledTensor {
            path: self.path.into(),
            tensor: tensor.into(),
            why: why.into(),
        }
    }
}

fn text<'a>(value: Value<'a>) -> Option<&'a str> {
    match value {
        Value::Text(text) => Some(text),
        _ => None,
    }
}

/// Numbers for a message.
pub(crate) fn shown(numbers: &[usize]) -> String {
    plain(&format_args!("{numbers:?}"))
}
