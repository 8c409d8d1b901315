//! Checkpoints written by torch.save, read without running the code in them.
//!
//! A pickle is a program for Python, and unpickling a hostile one runs whatever it likes. Here a small machine knows
//! the opcodes that torch writes and the few names that build tensors, and refuses anything else by name; the numbers
//! stay in the file. It knows one file at a time, and no folder.

mod allowed;
mod distributed;
mod globals;
mod legacy;
mod machine;
mod objects;
mod state;
mod torch;
mod zip;

use std::collections::HashMap;
use std::ops::Range;
use std::path::Path;

use safetensors::Dtype;

pub(super) use self::distributed::{
    Distributed, DistributedTensor, StoredBox, read_distributed, shown,
};
pub use self::globals::PickleImports;
pub(super) use self::globals::globals;
use self::machine::{Imports, Unpickled};
use self::objects::{Object, Storage, Tensor, Value};
use super::bounded::plain;
use super::error::CheckpointError;
use super::header::{stand_in, tensor_bytes};
use super::limits::{MAX_CLAIMED_BYTES, MAX_GATHERED_BYTES};
use numeric::{FloatType, Strides};

/// The content of a file of torch.
#[derive(Debug)]
pub(super) struct Pickled {
    /// By offset in the file; tensors at the same offset in the pickle's order.
    pub(super) tensors: Vec<PickledTensor>,
    /// Notes on what was ignored.
    pub(super) notes: Vec<String>,
}

/// A tensor that is known to lie within the file.
#[derive(Debug)]
pub(super) struct PickledTensor {
    pub(super) name: String,
    pub(super) dtype: Dtype,
    pub(super) shape: Vec<usize>,
    /// The offset of its first element, from the start of the file.
    pub(super) offset: u64,
    /// Bytes of its elements, without gaps.
    pub(super) len: u64,
    pub(super) place: Place,
}

/// How the elements of a tensor are laid out in a file.
#[derive(Debug)]
pub(super) enum Place {
    /// Contiguous.
    Contiguous,
    /// With gaps, or in another order.
    Strided(Strides),
    /// Strided and small, so they were copied: in order.
    Gathered(Vec<u8>),
}

/// Reads a whole mapped file, without the numbers: the state dict under the keys of `entry`, or the only one.
pub(super) fn read(
    path: &Path,
    file: &[u8],
    entry: Option<&str>,
) -> Result<Pickled, CheckpointError> {
    if file.starts_with(zip::MAGIC) {
        let archive = zip::Archive::read(path, file)?;
        let pickle = archive.pickle();
        let bytes = file.get(pickle.clone()).unwrap_or_default();
        let unpickled = machine::unpickle(path, bytes, pickle.start as u64, Imports::Torch)?;
        if unpickled.len != bytes.len() {
            return Err(CheckpointError::PickleMalformed {
                path: path.into(),
                offset: pickle.start.saturating_add(unpickled.len) as u64,
                detail: "it goes on after its end".into(),
            });
        }
        return place(path, file, &unpickled, entry, |key| archive.storage(key));
    }
    if legacy::is_legacy(file) {
        let legacy = legacy::read(path, file)?;
        return place(path, file, &legacy.object, entry, |key| {
            legacy.storages.get(key).cloned()
        });
    }
    Err(stand_in(path, file).unwrap_or_else(|| foreign(path, file)))
}

/// Reads what torch.save wrote of one tensor into a range of a file.
pub(super) fn read_tensor(
    path: &Path,
    file: &[u8],
    range: Range<usize>,
    gathered: &mut u64,
    name: &str,
) -> Result<PickledTensor, CheckpointError> {
    let start = range.start as u64;
    let file = file.get(range).unwrap_or_default();
    let wrong = |why: String| CheckpointError::PickledTensor {
        path: path.into(),
        tensor: name.into(),
        why,
    };
    if !file.starts_with(zip::MAGIC) {
        let why = format!("is no archive of torch.save, at byte {start}");
        return Err(wrong(why));
    }
    let archive = zip::Archive::read(path, file)?;
    let pickle = archive.pickle();
    let bytes = file.get(pickle.clone()).unwrap_or_default();
    let base = start.saturating_add(pickle.start as u64);
    let unpickled = machine::unpickle(path, bytes, base, Imports::Torch)?;
    let objects = &unpickled.objects;
    let Some(Object::Tensor(tensor)) = objects.get(unpickled.root) else {
        let found = objects.describe(unpickled.root);
        return Err(wrong(format!("is stored as {found}")));
    };
    let Some(Object::Storage(storage)) = objects.get(Value::Object(tensor.storage)) else {
        return Err(wrong("has no storage".into()));
    };
    let extent = extent(storage, &|key: &str| archive.storage(key)).map_err(wrong)?;
    let found = view(file, extent, tensor, &unpickled, gathered).map_err(wrong)?;
    if matches!(found.place, Place::Strided(_)) && FloatType::from_dtype(found.dtype).is_none() {
        return Err(wrong(format!("of {} is stored with gaps", found.dtype)));
    }
    Ok(PickledTensor {
        name: name.into(),
        offset: found.offset.saturating_add(start),
        ..found
    })
}

/// Where a tar archive has its mark.
const TAR: (usize, &[u8]) = (257, b"ustar");

/// The error for a file that torch did not write, with what it seems to be.
fn foreign(path: &Path, file: &[u8]) -> CheckpointError {
    let (what, hint) = match file {
        _ if file
            .get(TAR.0..)
            .is_some_and(|rest| rest.starts_with(TAR.1)) =>
        {
            (
                "a tar archive",
                "unpack it, and name the file of weights in it",
            )
        }
        [0x1f, 0x8b, ..] => ("a file that is compressed by gzip", "unpack it"),
        [0x89, b'H', b'D', b'F', ..] => (
            "an HDF5 file, as TensorFlow and Keras write",
            "convert it to safetensors",
        ),
        [b'G', b'G', b'U', b'F', ..] => ("a GGUF file", "name it `*.gguf`"),
        [_, _, _, _, _, _, _, _, b'{', ..] => (
            "a safetensors file by another name",
            "name it `*.safetensors`",
        ),
        [0x80, ..] => (
            "a pickle that torch.save did not write",
            "load it where you trust it, and save its tensors as safetensors",
        ),
        _ => ("no file of torch.save", "copy or download it again"),
    };
    CheckpointError::NotSafetensors {
        path: path.into(),
        what,
        hint,
    }
}

/// Finds every tensor of a state dict in the file.
fn place<'a>(
    path: &Path,
    file: &[u8],
    unpickled: &Unpickled<'a>,
    entry: Option<&str>,
    storages: impl Fn(&str) -> Option<Range<usize>>,
) -> Result<Pickled, CheckpointError> {
    let state = state::state_dict(path, unpickled, entry)?;
    let mut ranges: HashMap<usize, Range<usize>> = HashMap::new();
    let mut tensors = Vec::with_capacity(state.tensors.len());
    let mut gathered = 0;
    let mut claimed = 0u64;
    for (name, tensor) in &state.tensors {
        let wrong = |why: String| CheckpointError::PickledTensor {
            path: path.into(),
            tensor: (*name).into(),
            why,
        };
        let Some(Object::Storage(storage)) = unpickled.objects.get(Value::Object(tensor.storage))
        else {
            return Err(wrong("has no storage".into()));
        };
        let range = match ranges.get(&tensor.storage) {
            Some(range) => range.clone(),
            None => {
                let range = extent(storage, &storages).map_err(wrong)?;
                ranges.entry(tensor.storage).or_insert(range).clone()
            }
        };
        let found = view(file, range, tensor, unpickled, &mut gathered).map_err(wrong)?;
        claimed = claimed.saturating_add(found.len);
        if claimed > MAX_CLAIMED_BYTES.saturating_add(file.len() as u64 * 4) {
            return Err(wrong(format!(
                "makes the tensors {claimed} bytes, in a file of {}: views of the same bytes, more than any model has",
                file.len()
            )));
        }
        if matches!(found.place, Place::Strided(_)) && FloatType::from_dtype(found.dtype).is_none()
        {
            return Err(CheckpointError::StridedView {
                path: path.into(),
                tensor: (*name).into(),
                why: format!(
                    "and {} is no float type: of such, {MAX_GATHERED_BYTES} bytes of a file are copied at most",
                    found.dtype
                ),
            });
        }
        tensors.push(PickledTensor {
            name: (*name).into(),
            ..found
        });
    }
    tensors.sort_by_key(|tensor| tensor.offset);
    Ok(Pickled {
        tensors,
        notes: state.notes,
    })
}

/// Where a storage lies, after checking that it has the size that the pickle states.
fn extent(
    storage: &Storage,
    storages: &impl Fn(&str) -> Option<Range<usize>>,
) -> Result<Range<usize>, String> {
    let key = plain(&storage.key);
    let range = storages(storage.key)
        .ok_or_else(|| format!("is in storage `{key}`, which is not there"))?;
    let size = storage.element_size();
    if storage.numel.checked_mul(size) != Some(range.len() as u64) {
        return Err(format!(
            "is in storage `{key}` of {} elements of {size} bytes, which has {} bytes",
            storage.numel,
            range.len()
        ));
    }
    let Some((first, len)) = storage.part else {
        return Ok(range);
    };
    let part = first.checked_add(len).filter(|&end| end <= storage.numel);
    if part.is_none() {
        return Err(format!("is in a part of storage `{key}` beyond its end"));
    }
    // Below the length of the storage, and so of the file.
    let start = range.start + (first * size) as usize;
    Ok(start..start + (len * size) as usize)
}

/// Checks a tensor against its storage.
fn view(
    file: &[u8],
    storage: Range<usize>,
    tensor: &Tensor,
    unpickled: &Unpickled,
    gathered: &mut u64,
) -> Result<PickledTensor, String> {
    let dtype = tensor.dtype;
    let shape: Vec<usize> = unpickled
        .objects
        .sizes(tensor.shape)
        .into_iter()
        .map(|size| usize::try_from(size).unwrap_or(usize::MAX))
        .collect();
    let strides = unpickled.objects.sizes(tensor.strides);
    let len = tensor_bytes(dtype, &shape).map_err(|why| {
        format!(
            "of dtype {dtype} and shape {} {why}",
            plain(&format_args!("{shape:?}"))
        )
    })?;
    let size = dtype.bitsize() as u64 / 8;
    let strides = Strides::new(shape.clone(), strides);
    let beyond = || {
        format!(
            "of dtype {dtype} and shape {} goes beyond its storage of {} bytes",
            plain(&format_args!("{shape:?}")),
            storage.len()
        )
    };
    // One past the last element, counted from the start of the storage.
    let end = strides
        .span()
        .and_then(|span| span.checked_add(tensor.offset))
        .and_then(|end| end.checked_mul(size))
        .filter(|&end| len == 0 || end <= storage.len() as u64);
    if end.is_none() {
        return Err(beyond());
    }
    // An empty tensor may begin anywhere.
    let first = tensor.offset.saturating_mul(size).min(storage.len() as u64);
    let offset = storage.start as u64 + first;
    let small = gathered.saturating_add(len) <= MAX_GATHERED_BYTES;
    let place = if strides.is_contiguous() {
        Place::Contiguous
    } else if FloatType::from_dtype(dtype).is_none() && small {
        *gathered += len;
        let from = offset as usize..storage.end;
        Place::Gathered(strides.gather(file.get(from).unwrap_or_default(), size as usize))
    } else {
        Place::Strided(strides)
    };
    Ok(PickledTensor {
        name: String::new(),
        dtype,
        shape,
        offset,
        len,
        place,
    })
}

#[cfg(test)]
pub(crate) mod tests;
