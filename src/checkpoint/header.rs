//! The header of a safetensors file, checked before any of its data is trusted.
//!
//! The safetensors crate's own reader has the last word, but it runs second: it silently keeps one of two equal names,
//! orders empty tensors at random, and does not say which tensor is wrong or how.

use std::collections::{BTreeMap, HashSet};
use std::fmt;
use std::path::Path;

use safetensors::tensor::TensorInfo;
use safetensors::{Dtype, SafeTensors};
use serde::de::{Deserialize, Deserializer, Error, MapAccess, Visitor};

use super::bounded::plain;
use super::error::CheckpointError;
use super::limits::{MAX_HEADER_BYTES, MAX_NAME_BYTES, MAX_RANK, MAX_TENSORS};

/// The header's length precedes it, in this many bytes.
pub(super) const LENGTH_BYTES: u64 = 8;

/// The header key of a file's own metadata.
const METADATA_KEY: &str = "__metadata__";

/// A header that has been checked against its file.
#[derive(Debug)]
pub(super) struct Header {
    /// Bytes of JSON, padding included; the data starts after the length field and these.
    pub(super) len: u64,
    /// By offset; empty tensors at the same offset in the header's order.
    pub(super) tensors: Vec<HeaderTensor>,
    /// The file's own metadata.
    pub(super) metadata: BTreeMap<String, String>,
}

/// One tensor of a header.
#[derive(Debug)]
pub(super) struct HeaderTensor {
    pub(super) name: String,
    pub(super) dtype: Dtype,
    pub(super) shape: Vec<usize>,
    /// From the start of the file.
    pub(super) offset: u64,
    pub(super) len: u64,
}

/// Reads and checks the header of a whole mapped file.
pub(super) fn read(path: &Path, file: &[u8]) -> Result<Header, CheckpointError> {
    let json = header_text(path, file)?;
    let len = json.len() as u64;
    let raw: RawHeader = serde_json::from_str(json).map_err(|e| malformed(path, &e))?;
    check_names(path, &raw)?;
    let tensors = place(path, raw.tensors, LENGTH_BYTES + len, file.len() as u64)?;
    // In case the checks above miss something: whatever is accepted here, every other reader accepts too.
    SafeTensors::read_metadata(file).map_err(|e| malformed(path, &e))?;
    Ok(Header {
        len,
        tensors,
        metadata: raw.metadata,
    })
}

fn malformed(path: &Path, detail: &dyn fmt::Display) -> CheckpointError {
    CheckpointError::HeaderMalformed {
        path: path.into(),
        detail: plain(detail),
    }
}

fn header_text<'a>(path: &Path, file: &'a [u8]) -> Result<&'a str, CheckpointError> {
    let found = file.len() as u64;
    let truncated = |expected| CheckpointError::Truncated {
        path: path.into(),
        expected,
        found,
    };
    let Some((length, rest)) = file.split_first_chunk::<8>() else {
        return Err(truncated(LENGTH_BYTES));
    };
    let length = u64::from_le_bytes(*length);
    if length > MAX_HEADER_BYTES {
        if let Some(stand_in) = stand_in(path, file) {
            return Err(stand_in);
        }
        if let Some((what, hint)) = recognise(file) {
            return Err(CheckpointError::NotSafetensors {
                path: path.into(),
                what,
                hint,
            });
        }
        return Err(CheckpointError::HeaderTooLarge {
            path: path.into(),
            limit: MAX_HEADER_BYTES,
            found: length,
        });
    }
    let header = rest
        .get(..length as usize)
        .ok_or_else(|| truncated(LENGTH_BYTES + length))?;
    std::str::from_utf8(header).map_err(|e| malformed(path, &e))
}

/// What downloads leave in place of weights, by how it begins: what it is, and what to do.
const STAND_INS: [(&[u8], &str, &str); 10] = [
    (
        b"version https://git-lfs",
        "a Git LFS pointer, not the weights",
        "run `git lfs pull`",
    ),
    (b"<!", WEB_PAGE, FETCH),
    (b"<ht", WEB_PAGE, FETCH),
    (b"<HT", WEB_PAGE, FETCH),
    (b"<?xml", WEB_PAGE, FETCH),
    (b"{\"error\"", SERVER, FETCH),
    (b"Entry not found", SERVER, FETCH),
    (b"Repository not found", SERVER, FETCH),
    (b"Invalid username or password", SERVER, FETCH),
    (b"Access to model", SERVER, FETCH),
];
const WEB_PAGE: &str = "a web page";
const SERVER: &str = "what a server answered in place of the weights";
const FETCH: &str = "download the file itself; a gated model needs `hf auth login` first";

/// The error for a file that only stands for weights, if it is one.
pub(super) fn stand_in(path: &Path, file: &[u8]) -> Option<CheckpointError> {
    let mut stand_ins = STAND_INS.into_iter();
    let (_, what, hint) = stand_ins.find(|(start, ..)| file.starts_with(start))?;
    Some(CheckpointError::StandIn {
        path: path.into(),
        what,
        hint,
    })
}

/// Recognises files that have the name of a safetensors file but another format. Read as a length, each of these
/// beginnings is larger than any header.
fn recognise(file: &[u8]) -> Option<(&'static str, &'static str)> {
    let kinds: [(&[u8], &str, &str); 2] = [
        (
            b"PK\x03\x04",
            "a zip archive, as torch.save writes",
            "if torch.save wrote it, name it `*.pt`; else save its tensors as safetensors",
        ),
        (b"GGUF", "a GGUF file", "name it `*.gguf`"),
    ];
    kinds
        .into_iter()
        .find(|(magic, ..)| file.starts_with(magic))
        .map(|(_, what, hint)| (what, hint))
        .or_else(|| {
            is_text(file).then_some(("a text file", "name a model's folder or weight file"))
        })
}

/// Whether a file begins as a text does: a length with these bytes would be beyond any file.
fn is_text(file: &[u8]) -> bool {
    let begin = file.get(..LENGTH_BYTES as usize).unwrap_or_default();
    let plain = |byte: &u8| byte.is_ascii_graphic() || byte.is_ascii_whitespace();
    !begin.is_empty() && begin.iter().all(plain)
}

/// The header's JSON as written: every entry in its order, equal names included.
struct RawHeader {
    tensors: Vec<(String, TensorInfo)>,
    metadata: BTreeMap<String, String>,
    metadata_twice: bool,
}

impl<'de> Deserialize<'de> for RawHeader {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        struct Entries;

        impl<'de> Visitor<'de> for Entries {
            type Value = RawHeader;

            fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str("an object of tensors by name")
            }

            fn visit_map<A: MapAccess<'de>>(self, mut map: A) -> Result<RawHeader, A::Error> {
                let mut header = RawHeader {
                    tensors: Vec::new(),
                    metadata: BTreeMap::new(),
                    metadata_twice: false,
                };
                let mut metadata_seen = false;
                while let Some(name) = map.next_key::<String>()? {
                    let named = |e| A::Error::custom(format_args!("entry `{name}`: {e}"));
                    if name == METADATA_KEY {
                        header.metadata_twice |= metadata_seen;
                        metadata_seen = true;
                        let metadata: Option<_> = map.next_value().map_err(named)?;
                        header.metadata = metadata.unwrap_or_default();
                    } else {
                        let info = map.next_value().map_err(named)?;
                        if header.tensors.len() == MAX_TENSORS {
                            return Err(A::Error::custom(format_args!(
                                "more than {MAX_TENSORS} tensors, which no real file has"
                            )));
                        }
                        header.tensors.push((name, info));
                    }
                }
                Ok(header)
            }
        }

        deserializer.deserialize_map(Entries)
    }
}

fn check_names(path: &Path, header: &RawHeader) -> Result<(), CheckpointError> {
    let twice = |tensor: &str| CheckpointError::DuplicateKey {
        path: path.into(),
        tensor: tensor.into(),
    };
    if header.metadata_twice {
        return Err(twice(METADATA_KEY));
    }
    let mut seen = HashSet::with_capacity(header.tensors.len());
    for (name, _) in &header.tensors {
        check_name(path, name)?;
        if !seen.insert(name.as_str()) {
            return Err(twice(name));
        }
    }
    Ok(())
}

/// Refuses names that cannot be printed: after this check every name may be used in a message.
pub(super) fn check_name(path: &Path, name: &str) -> Result<(), CheckpointError> {
    let why = if name.is_empty() {
        "is empty"
    } else if name.len() > MAX_NAME_BYTES {
        "is longer than 4096 bytes"
    } else if name.chars().any(char::is_control) {
        "has control characters"
    } else {
        return Ok(());
    };
    Err(CheckpointError::BadTensorName {
        path: path.into(),
        tensor: plain(&name),
        why,
    })
}

/// Checks every tensor against its shape, its neighbours and the file; returns them by offset.
fn place(
    path: &Path,
    mut tensors: Vec<(String, TensorInfo)>,
    data_start: u64,
    file_len: u64,
) -> Result<Vec<HeaderTensor>, CheckpointError> {
    for (name, info) in &tensors {
        check_extent(path, name, info)?;
    }
    tensors.sort_by_key(|(_, info)| info.data_offsets);

    let mut placed = Vec::with_capacity(tensors.len());
    let mut expected = 0;
    for (name, info) in tensors {
        let (begin, end) = (info.data_offsets.0 as u64, info.data_offsets.1 as u64);
        if begin < expected {
            return Err(CheckpointError::Overlap {
                path: path.into(),
                tensor: name,
                expected,
                found: begin,
            });
        }
        if begin > expected {
            return Err(CheckpointError::Hole {
                path: path.into(),
                tensor: name,
                expected,
                found: begin,
            });
        }
        expected = end;
        placed.push(HeaderTensor {
            name,
            dtype: info.dtype,
            shape: info.shape,
            // A sum beyond u64 only occurs in a file that is too short, which is detected below.
            offset: data_start.saturating_add(begin),
            len: end - begin,
        });
    }

    let expected = data_start.saturating_add(expected);
    if file_len < expected {
        return Err(CheckpointError::Truncated {
            path: path.into(),
            expected,
            found: file_len,
        });
    }
    if file_len > expected {
        return Err(CheckpointError::TrailingBytes {
            path: path.into(),
            expected,
            found: file_len,
        });
    }
    Ok(placed)
}

fn check_extent(path: &Path, name: &str, info: &TensorInfo) -> Result<(), CheckpointError> {
    let (begin, end) = (info.data_offsets.0 as u64, info.data_offsets.1 as u64);
    if end < begin {
        return Err(CheckpointError::ReversedOffsets {
            path: path.into(),
            tensor: name.into(),
            begin,
            end,
        });
    }
    let expected =
        tensor_bytes(info.dtype, &info.shape).map_err(|why| CheckpointError::ImpossibleShape {
            path: path.into(),
            tensor: name.into(),
            dtype: info.dtype,
            shape: plain(&format_args!("{:?}", info.shape)),
            why,
        })?;
    if end - begin != expected {
        return Err(CheckpointError::SizeMismatch {
            path: path.into(),
            tensor: name.into(),
            dtype: info.dtype,
            shape: info.shape.clone(),
            expected,
            found: end - begin,
        });
    }
    Ok(())
}

/// The bytes that a tensor takes, or what is wrong with its shape.
///
/// A zero does not hide an overflow before it: the safetensors crate also multiplies from left to right.
pub(super) fn tensor_bytes(dtype: Dtype, shape: &[usize]) -> Result<u64, &'static str> {
    if shape.len() > MAX_RANK {
        return Err("has more than 64 dimensions");
    }
    let bits = shape
        .iter()
        .try_fold(1usize, |product, &dim| product.checked_mul(dim))
        .and_then(|elements| elements.checked_mul(dtype.bitsize()))
        .ok_or("has more elements than can be counted")?;
    if bits % 8 != 0 {
        return Err("ends within a byte");
    }
    Ok(bits as u64 / 8)
}

#[cfg(test)]
mod tests;
