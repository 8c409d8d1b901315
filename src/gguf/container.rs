//! The container: a header of metadata and tensors, then the tensors' bytes, each at a multiple of 32.
//!
//! Source: ggml's `docs/gguf.md`, version 3, little-endian.

use errors::Refusal;

/// Tensors begin at multiples of this many bytes, counted from the start of the data.
pub const ALIGNMENT: u64 = 32;

/// The longest name of a tensor that ggml reads, in bytes.
const MAX_NAME: usize = 63;

/// A value of the metadata.
#[derive(Debug, Clone, PartialEq)]
pub enum Value {
    /// A whole number.
    U32(u32),
    /// A whole number that may be negative.
    I32(i32),
    /// A number.
    F32(f32),
    /// Yes or no.
    Bool(bool),
    /// Text.
    Text(String),
    /// Texts.
    Texts(Vec<String>),
    /// Whole numbers.
    I32s(Vec<i32>),
    /// Numbers.
    F32s(Vec<f32>),
    /// Yes or no, several times.
    Bools(Vec<bool>),
    /// Bytes.
    Bytes(Vec<u8>),
}

impl Value {
    /// The number of its type in a file; of a list, that of an element.
    fn kind(&self) -> u32 {
        match self {
            Value::Bytes(_) => 0,
            Value::U32(_) => 4,
            Value::I32(_) | Value::I32s(_) => 5,
            Value::F32(_) | Value::F32s(_) => 6,
            Value::Bool(_) | Value::Bools(_) => 7,
            Value::Text(_) | Value::Texts(_) => 8,
        }
    }

    fn put(&self, out: &mut Vec<u8>) {
        let list = |out: &mut Vec<u8>, len: usize| {
            out.extend(LIST.to_le_bytes());
            out.extend(self.kind().to_le_bytes());
            out.extend((len as u64).to_le_bytes());
        };
        match self {
            Value::Texts(values) => list(out, values.len()),
            Value::I32s(values) => list(out, values.len()),
            Value::F32s(values) => list(out, values.len()),
            Value::Bools(values) => list(out, values.len()),
            Value::Bytes(values) => list(out, values.len()),
            _ => out.extend(self.kind().to_le_bytes()),
        }
        match self {
            Value::U32(value) => out.extend(value.to_le_bytes()),
            Value::I32(value) => out.extend(value.to_le_bytes()),
            Value::F32(value) => out.extend(value.to_le_bytes()),
            Value::Bool(value) => out.push(u8::from(*value)),
            Value::Text(value) => put_text(value, out),
            Value::Texts(values) => values.iter().for_each(|value| put_text(value, out)),
            Value::I32s(values) => out.extend(values.iter().flat_map(|value| value.to_le_bytes())),
            Value::F32s(values) => out.extend(values.iter().flat_map(|value| value.to_le_bytes())),
            Value::Bools(values) => out.extend(values.iter().map(|&value| u8::from(value))),
            Value::Bytes(values) => out.extend(values),
        }
    }
}

/// The number of the type of lists.
const LIST: u32 = 9;

fn put_text(text: &str, out: &mut Vec<u8>) {
    out.extend((text.len() as u64).to_le_bytes());
    out.extend(text.as_bytes());
}

/// The metadata: keys and values, in the order in which they are first set.
#[derive(Debug, Clone, Default)]
pub struct Metadata(Vec<(String, Value)>);

impl Metadata {
    /// Sets a key; what it had before is replaced in its place.
    pub fn set(&mut self, key: impl Into<String>, value: Value) {
        let key = key.into();
        match self.0.iter_mut().find(|(there, _)| *there == key) {
            Some((_, there)) => *there = value,
            None => self.0.push((key, value)),
        }
    }

    /// The value of a key.
    pub fn get(&self, key: &str) -> Option<&Value> {
        let found = self.0.iter().find(|(there, _)| there == key);
        found.map(|(_, value)| value)
    }
}

/// What the header says of a tensor.
#[derive(Debug, Clone, Copy)]
pub struct TensorInfo<'a> {
    /// Its name.
    pub name: &'a str,
    /// Its shape in C order; the file has it reversed.
    pub shape: &'a [usize],
    /// The number of its type.
    pub kind: u32,
    /// Its length in bytes.
    pub len: u64,
}

/// The header of a file, up to where the data begins.
///
/// # Errors
/// A name is longer than ggml reads, or the file's length does not fit in 64 bits.
pub fn header(metadata: &Metadata, tensors: &[TensorInfo<'_>]) -> Result<Vec<u8>, Refusal> {
    let mut out = b"GGUF".to_vec();
    out.extend(3u32.to_le_bytes());
    out.extend((tensors.len() as u64).to_le_bytes());
    out.extend((metadata.0.len() as u64).to_le_bytes());
    for (key, value) in &metadata.0 {
        put_text(key, &mut out);
        value.put(&mut out);
    }
    let mut at = 0u64;
    for tensor in tensors {
        if tensor.name.len() > MAX_NAME {
            let name = tensor.name;
            return Err(format!("{name}: the name is longer than {MAX_NAME} bytes").into());
        }
        put_text(tensor.name, &mut out);
        out.extend((tensor.shape.len() as u32).to_le_bytes());
        for &size in tensor.shape.iter().rev() {
            out.extend((size as u64).to_le_bytes());
        }
        out.extend(tensor.kind.to_le_bytes());
        out.extend(at.to_le_bytes());
        let end = at
            .checked_add(tensor.len)
            .and_then(|end| end.checked_next_multiple_of(ALIGNMENT));
        at = end.ok_or("the file would be longer than 2^64 bytes")?;
    }
    out.resize(out.len().next_multiple_of(ALIGNMENT as usize), 0);
    Ok(out)
}
