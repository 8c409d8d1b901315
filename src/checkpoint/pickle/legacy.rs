//! The files of torch.save before 1.6: four pickles one after the other, then the bytes of every storage.
//!
//! The pickles: magic number, protocol version, facts about the system, the object, the keys of its storages. Then, for
//! each key, the number of elements (8 bytes) and the elements.

use std::collections::HashMap;
use std::ops::Range;
use std::path::Path;

use super::machine::{Imports, Unpickled, unpickle};
use super::objects::{Object, Value};
use super::torch::SAVE_AGAIN;
use crate::bounded::plain;
use crate::error::CheckpointError;

/// The opcodes that push torch's magic number, 0x1950a86a20f9469cfc6c, after the protocol.
const MAGIC: &[u8] = b"\x8a\x0a\x6c\xfc\x9c\x46\xf9\x20\x6a\xa8\x50\x19.";

/// The version of the format, which torch has never changed.
const VERSION: i64 = 1001;

/// Whether a file begins like one of this format.
pub(super) fn is_legacy(file: &[u8]) -> bool {
    match file {
        [0x80, _, rest @ ..] => {
            // Protocols from 4 on announce the length of the following opcodes: FRAME.
            let framed = rest.strip_prefix(b"\x95").and_then(|rest| rest.get(8..));
            framed.unwrap_or(rest).starts_with(MAGIC)
        }
        _ => false,
    }
}

/// The content of a file: its object, and where each storage is.
#[derive(Debug)]
pub(super) struct Legacy<'a> {
    pub(super) object: Unpickled<'a>,
    /// The bytes of every storage.
    pub(super) storages: HashMap<&'a str, Range<usize>>,
}

/// Reads a whole file, without the numbers.
pub(super) fn read<'a>(path: &Path, file: &'a [u8]) -> Result<Legacy<'a>, CheckpointError> {
    let mut at = 0;
    let mut next = || {
        let rest = file.get(at..).unwrap_or_default();
        let unpickled = unpickle(path, rest, at as u64, Imports::Torch)?;
        at += unpickled.len;
        Ok::<_, CheckpointError>((unpickled, at))
    };
    let malformed = |detail: &str| CheckpointError::ArchiveMalformed {
        path: path.into(),
        detail: detail.into(),
    };
    next()?;
    let (version, _) = next()?;
    if version.root != Value::Int(VERSION) {
        return Err(malformed("expected version 1001 of torch's format"));
    }
    let (system, _) = next()?;
    let facts = system.objects.dict(system.root).unwrap_or_default();
    if !facts.contains(&(Value::Text("little_endian"), Value::Bool(true))) {
        return Err(CheckpointError::NotSafetensors {
            path: path.into(),
            what: "a file of numbers that are not little-endian",
            hint: "convert it to safetensors where it was made",
        });
    }
    let (object, end) = next()?;
    let (keys, start) = next()?;
    let keys = match keys.objects.get(keys.root) {
        Some(Object::List(keys)) => keys.clone(),
        _ => return Err(malformed("expected a list of storages")),
    };
    let sizes = element_sizes(path, &object, end)?;
    let mut at = start;
    let mut storages = HashMap::with_capacity(keys.len());
    for key in keys {
        let Value::Text(key) = key else {
            return Err(malformed("expected a list of storages"));
        };
        let shown = || plain(&key);
        // A storage without a tensor could have any size.
        let &size = sizes
            .get(key)
            .ok_or_else(|| malformed(&format!("storage `{}` belongs to nothing", shown())))?;
        let rest = file.get(at..).unwrap_or_default();
        let short = |expected: u64| CheckpointError::Truncated {
            path: path.into(),
            expected: (at as u64).saturating_add(expected),
            found: file.len() as u64,
        };
        let (numel, data) = rest.split_first_chunk::<8>().ok_or_else(|| short(8))?;
        let len = u64::from_le_bytes(*numel).saturating_mul(size);
        if len > data.len() as u64 {
            return Err(short(len.saturating_add(8)));
        }
        let begin = at + 8;
        at = begin + len as usize;
        if storages.insert(key, begin..at).is_some() {
            return Err(malformed(&format!("storage `{}` is there twice", shown())));
        }
    }
    if at != file.len() {
        return Err(CheckpointError::TrailingBytes {
            path: path.into(),
            expected: at as u64,
            found: file.len() as u64,
        });
    }
    Ok(Legacy { object, storages })
}

/// Bytes per element, by key of the storage.
fn element_sizes<'a>(
    path: &Path,
    object: &Unpickled<'a>,
    end: usize,
) -> Result<HashMap<&'a str, u64>, CheckpointError> {
    let mut sizes = HashMap::new();
    for storage in object.objects.storages() {
        let size = storage.element_size();
        if *sizes.entry(storage.key).or_insert(size) != size {
            return Err(CheckpointError::PickleRefused {
                path: path.into(),
                offset: end as u64,
                what: format!("storage `{}` of two types", plain(&storage.key)),
                hint: SAVE_AGAIN,
            });
        }
    }
    Ok(sizes)
}
