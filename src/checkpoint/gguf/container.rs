//! The container: a header of metadata and tensors, then the tensors' bytes.
//!
//! Source: ggml's `docs/gguf.md`, versions 2 and 3, little-endian. ggml reads tensors that lie one after the other in the
//! order of the header, each at a multiple of the alignment, so nothing else is believed.

use std::collections::{BTreeMap, BTreeSet};

use errors::Refusal;

use super::super::limits::{
    MAX_GGUF_KEYS, MAX_GGUF_LIST, MAX_GGUF_TEXT_BYTES, MAX_NAME_BYTES, MAX_TENSORS, MAX_TOKEN_ID,
};
use super::kind::Kind;

/// What every file begins with.
const MAGIC: &[u8] = b"GGUF";

/// Where tensors begin if the metadata does not say.
const ALIGNMENT: u64 = 32;

/// The largest alignment that is believed; every known file has 32.
const MAX_ALIGNMENT: u64 = 1 << 16;

/// The key of the vocabulary: a list of texts, by id.
pub(in super::super) const TOKENS: &str = "tokenizer.ggml.tokens";

/// The number of the type of lists.
const LIST: u32 = 9;

/// The number of the type of texts.
const TEXT: u32 = 8;

/// The most dimensions of a tensor of ggml.
const MAX_DIMENSIONS: u32 = 4;

/// How much of a key or name a message repeats, in characters.
const SHOWN: usize = 80;

const DAMAGED: &str = "the file is damaged: copy or download it again";

/// A value of the metadata.
#[derive(Debug, Clone, PartialEq)]
pub(in super::super) enum Value {
    /// A whole number.
    Whole(i128),
    /// A number of 32 bits.
    Single(f32),
    /// A number of 64 bits.
    Double(f64),
    /// Yes or no.
    Bool(bool),
    /// Text.
    Text(String),
    /// A list of numbers or bools; none of a long one is kept.
    List(Vec<Value>),
    /// The texts of the vocabulary.
    Tokens(Vec<String>),
    /// A list that is not kept: other texts, or more numbers than any parameter of a model has; and its length.
    Long(u64),
}

/// A tensor as the header has it.
#[derive(Debug, Clone, PartialEq)]
pub(in super::super) struct Tensor {
    pub(in super::super) name: String,
    /// In C order: the slowest dimension first.
    pub(in super::super) shape: Vec<usize>,
    pub(in super::super) kind: Kind,
    /// Where it begins in the file.
    pub(in super::super) offset: u64,
    /// Its bytes.
    pub(in super::super) len: u64,
}

/// The header of a file.
#[derive(Debug, Clone, Default, PartialEq)]
pub(in super::super) struct Container {
    pub(in super::super) metadata: BTreeMap<String, Value>,
    pub(in super::super) tensors: Vec<Tensor>,
}

/// Reads the header of a file.
///
/// # Errors
/// It is malformed, or has tensors of a type that is not read.
pub(in super::super) fn read(file: &[u8]) -> Result<Container, Refusal> {
    let mut reader = Reader { file, at: 0 };
    if reader.take(4, "its first bytes")? != MAGIC {
        return Err(
            Refusal::new("it does not begin as a GGUF file does").with_hint(
                "name it by what it is: `*.safetensors`, or `*.pt` if torch.save wrote it",
            ),
        );
    }
    check_version(reader.u32("version")?)?;
    let tensors = reader.count("number of tensors", MAX_TENSORS as u64)?;
    let keys = reader.count("number of keys", MAX_GGUF_KEYS)?;
    let mut metadata = BTreeMap::new();
    for _ in 0..keys {
        let key = reader.text("a key", MAX_NAME_BYTES as u64)?;
        let kind = reader.u32("the type of a value")?;
        let value = match (key.as_str(), kind) {
            (TOKENS, LIST) => reader.tokens(),
            _ => reader.value(kind),
        };
        let value = value.map_err(|error| error.within(named("key", &key)))?;
        if metadata.contains_key(&key) {
            return Err(damaged(format!("{} is there twice", named("key", &key))));
        }
        metadata.insert(key, value);
    }
    let alignment = alignment(&metadata)?;
    let mut found: Vec<(Tensor, u64)> = Vec::new();
    let mut names = BTreeSet::new();
    for _ in 0..tensors {
        let name = reader.text("the name of a tensor", MAX_NAME_BYTES as u64)?;
        let told = named("tensor", &name);
        if name.is_empty() || name.chars().any(char::is_control) {
            return Err(damaged(format!(
                "{told}: the name is empty or has control characters"
            )));
        }
        let tensor = reader.tensor(name).map_err(|error| error.within(&told))?;
        if !names.insert(tensor.0.name.clone()) {
            return Err(damaged(format!("{told} is there twice")));
        }
        found.push(tensor);
    }
    let start = (reader.at as u64).next_multiple_of(alignment);
    let tensors = placed(found, start, alignment, file.len() as u64)?;
    Ok(Container { metadata, tensors })
}

fn check_version(version: u32) -> Result<(), Refusal> {
    match version {
        2 | 3 => Ok(()),
        1 => Err(
            Refusal::new("expected version 2 or 3 of GGUF, found version 1").with_hint(
                "it is of 2023: take a newer file of the model, or the safetensors it was made from",
            ),
        ),
        _ if matches!(version.swap_bytes(), 1..=3) => Err(Refusal::new(
            "expected a little-endian file, found a big-endian one",
        )
        .with_hint("`gguf-convert-endian FILE little` of the Python package gguf turns it")),
        _ => Err(Refusal::new(format!(
            "expected version 2 or 3 of GGUF, found version {version}"
        ))
        .with_hint("if the file is sound, take the safetensors it was made from")),
    }
}

/// What tensors begin at multiples of.
fn alignment(metadata: &BTreeMap<String, Value>) -> Result<u64, Refusal> {
    let Some(value) = metadata.get("general.alignment") else {
        return Ok(ALIGNMENT);
    };
    let found = match value {
        Value::Whole(number) => u64::try_from(*number).ok(),
        _ => None,
    };
    let sound =
        found.filter(|number| number.is_power_of_two() && (8..=MAX_ALIGNMENT).contains(number));
    sound.ok_or_else(|| {
        damaged(format!(
            "general.alignment: expected a power of two from 8 to {MAX_ALIGNMENT}, found {value:?}"
        ))
    })
}

/// The tensors, each at the place that follows from those before it, which must be what the header says.
fn placed(
    tensors: Vec<(Tensor, u64)>,
    start: u64,
    alignment: u64,
    file: u64,
) -> Result<Vec<Tensor>, Refusal> {
    let mut end = start;
    let mut placed = Vec::with_capacity(tensors.len());
    for (mut tensor, offset) in tensors {
        let told = || named("tensor", &tensor.name);
        let expected = end.next_multiple_of(alignment) - start;
        if offset != expected {
            let what = match offset < expected {
                true => "overlaps the one before it, or is not in order",
                false => "does not follow the one before it",
            };
            return Err(damaged(format!(
                "{} {what}: expected to begin at byte {expected} of the data, found {offset}",
                told()
            )));
        }
        tensor.offset = start + offset;
        let after = tensor.offset.checked_add(tensor.len);
        end = after.filter(|end| *end <= file).ok_or_else(|| {
            let len = tensor.len;
            damaged(format!(
                "{} has {len} bytes from byte {} of the file on, which has {file}: it is truncated",
                told(),
                start + offset
            ))
        })?;
        placed.push(tensor);
    }
    let sound = end.next_multiple_of(alignment);
    if !placed.is_empty() && file > sound {
        return Err(damaged(format!(
            "it has bytes that belong to no tensor at its end: expected {sound} bytes, found {file}"
        )));
    }
    Ok(placed)
}

struct Reader<'a> {
    file: &'a [u8],
    at: usize,
}

impl<'a> Reader<'a> {
    /// The next bytes; that many are there.
    fn take(&mut self, count: u64, what: &str) -> Result<&'a [u8], Refusal> {
        let rest = &self.file[self.at..];
        let taken = usize::try_from(count)
            .ok()
            .and_then(|count| rest.get(..count));
        let taken = taken.ok_or_else(|| {
            damaged(format!(
                "it is truncated: {what}: expected {count} bytes from byte {} on, found {}",
                self.at,
                rest.len()
            ))
        })?;
        self.at += taken.len();
        Ok(taken)
    }

    fn array<const N: usize>(&mut self, what: &str) -> Result<[u8; N], Refusal> {
        let bytes = self.take(N as u64, what)?;
        Ok(std::array::from_fn(|at| bytes[at]))
    }

    fn u32(&mut self, what: &str) -> Result<u32, Refusal> {
        self.array(what).map(u32::from_le_bytes)
    }

    fn u64(&mut self, what: &str) -> Result<u64, Refusal> {
        self.array(what).map(u64::from_le_bytes)
    }

    fn count(&mut self, what: &str, most: u64) -> Result<u64, Refusal> {
        let count = self.u64(what)?;
        match count <= most {
            true => Ok(count),
            false => Err(damaged(format!(
                "{what}: expected at most {most}, found {count}"
            ))),
        }
    }

    /// A text of so many bytes at most.
    fn text(&mut self, what: &str, most: u64) -> Result<String, Refusal> {
        let bytes = self.text_bytes(what)?;
        if bytes.len() as u64 > most {
            let found = bytes.len();
            return Err(damaged(format!(
                "{what} has {found} bytes, expected at most {most}"
            )));
        }
        let text = std::str::from_utf8(bytes);
        text.map(str::to_owned)
            .map_err(|error| damaged(format!("{what} is no UTF-8: {error}")))
    }

    fn text_bytes(&mut self, what: &str) -> Result<&'a [u8], Refusal> {
        let len = self.u64(what)?;
        self.take(len, what)
    }

    fn value(&mut self, kind: u32) -> Result<Value, Refusal> {
        const WHAT: &str = "its value";
        Ok(match kind {
            0 => Value::Whole(self.array::<1>(WHAT)?[0].into()),
            1 => Value::Whole(i8::from_le_bytes(self.array(WHAT)?).into()),
            2 => Value::Whole(u16::from_le_bytes(self.array(WHAT)?).into()),
            3 => Value::Whole(i16::from_le_bytes(self.array(WHAT)?).into()),
            4 => Value::Whole(self.u32(WHAT)?.into()),
            5 => Value::Whole(i32::from_le_bytes(self.array(WHAT)?).into()),
            6 => Value::Single(f32::from_le_bytes(self.array(WHAT)?)),
            7 => match self.array::<1>(WHAT)? {
                [0] => Value::Bool(false),
                [1] => Value::Bool(true),
                [other] => {
                    return Err(damaged(format!("expected a bool of 0 or 1, found {other}")));
                }
            },
            TEXT => Value::Text(self.text(WHAT, MAX_GGUF_TEXT_BYTES)?),
            LIST => self.list()?,
            10 => Value::Whole(self.u64(WHAT)?.into()),
            11 => Value::Whole(i64::from_le_bytes(self.array(WHAT)?).into()),
            12 => Value::Double(f64::from_le_bytes(self.array(WHAT)?)),
            _ => {
                return Err(damaged(format!(
                    "expected a type from 0 to 12, found {kind}"
                )));
            }
        })
    }

    /// The list of tokens; other bytes than UTF-8 in one become marks.
    fn tokens(&mut self) -> Result<Value, Refusal> {
        let kind = self.u32("the type of a list")?;
        let count = self.count("the length of a list", u64::from(MAX_TOKEN_ID))?;
        if kind != TEXT {
            return Err(damaged(format!(
                "expected a list of texts, found type {kind}"
            )));
        }
        let mut tokens = Vec::new();
        for _ in 0..count {
            let token = self.text_bytes("a token")?;
            tokens.push(String::from_utf8_lossy(token).into_owned());
        }
        Ok(Value::Tokens(tokens))
    }

    /// A list of values of one type, which are kept if they may be parameters of a model.
    fn list(&mut self) -> Result<Value, Refusal> {
        let kind = self.u32("the type of a list")?;
        let count = self.u64("the length of a list")?;
        let size = match kind {
            0 | 1 | 7 => 1,
            2 | 3 => 2,
            4..=6 => 4,
            10..=12 => 8,
            TEXT => {
                for _ in 0..count {
                    self.text_bytes("a text of a list")?;
                }
                return Ok(Value::Long(count));
            }
            LIST => return Err(damaged("a list of lists, which GGUF does not have".into())),
            _ => {
                return Err(damaged(format!(
                    "expected a type from 0 to 12, found {kind}"
                )));
            }
        };
        if count > MAX_GGUF_LIST {
            let bytes = count.saturating_mul(size);
            self.take(bytes, "a list")?;
            return Ok(Value::Long(count));
        }
        let mut values = Vec::new();
        for _ in 0..count {
            values.push(self.value(kind)?);
        }
        Ok(Value::List(values))
    }

    /// A tensor, and where the header says that it begins.
    fn tensor(&mut self, name: String) -> Result<(Tensor, u64), Refusal> {
        let dimensions = self.u32("its number of dimensions")?;
        if dimensions > MAX_DIMENSIONS {
            return Err(damaged(format!(
                "expected at most {MAX_DIMENSIONS} dimensions, found {dimensions}"
            )));
        }
        let mut shape = Vec::new();
        for _ in 0..dimensions {
            let size = self.u64("a dimension")?;
            let size = usize::try_from(size)
                .ok()
                .filter(|&size| size <= isize::MAX as usize);
            shape.push(size.ok_or_else(|| damaged("a dimension is too large".into()))?);
        }
        shape.reverse();
        let kind = Kind::numbered(self.u32("its type")?).map_err(|name| {
            Refusal::new(format!("its type {name} is not read")).with_hint(
                "take a file in F16, BF16, Q8_0 or one of Q2_K to Q6_K, or the safetensors it was made from",
            )
        })?;
        let offset = self.u64("its place")?;
        let values = shape
            .iter()
            .try_fold(1u64, |values, &size| values.checked_mul(size as u64));
        let row = shape.last().copied().unwrap_or(1) as u64;
        let values =
            values.ok_or_else(|| damaged("it has more elements than can be counted".into()))?;
        let len = kind
            .bytes_of(values)
            .filter(|_| row.is_multiple_of(kind.block_values()));
        let len = len.ok_or_else(|| {
            damaged(format!(
                "its rows of {row} values are no whole blocks of {} values, as {} has them",
                kind.block_values(),
                kind.name()
            ))
        })?;
        let tensor = Tensor {
            name,
            shape,
            kind,
            offset: 0,
            len,
        };
        Ok((tensor, offset))
    }
}

fn damaged(message: String) -> Refusal {
    Refusal::new(message).with_hint(DAMAGED)
}

/// A key or a tensor in a message.
fn named(what: &str, name: &str) -> String {
    let shown: String = name
        .chars()
        .take(SHOWN)
        .flat_map(char::escape_debug)
        .collect();
    format!("{what} `{shown}`")
}

#[cfg(test)]
mod tests;
