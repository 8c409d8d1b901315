//! Small tensors that say how others are stored: shapes, tables, settings in JSON.

use safetensors::Dtype;
use serde_json::Value;

use super::super::json::parse_json;
use super::super::source::{TensorEntry, TensorSource};

/// The most bytes of a JSON text that a tensor holds.
const MAX_JSON_BYTES: usize = 4096;

/// The values of a tensor of whole numbers; `None` if it is none, or not contiguous, or one is below zero.
pub(super) fn whole_numbers(source: &dyn TensorSource, index: usize) -> Option<Vec<u64>> {
    let bytes = source.bytes(index)?;
    let numbers: Option<Vec<u64>> = match source.entries()[index].dtype {
        Dtype::I64 => bytes
            .chunks_exact(8)
            .map(|bytes| u64::try_from(i64::from_le_bytes(bytes.try_into().ok()?)).ok())
            .collect(),
        Dtype::I32 => bytes
            .chunks_exact(4)
            .map(|bytes| u64::try_from(i32::from_le_bytes(bytes.try_into().ok()?)).ok())
            .collect(),
        _ => None,
    };
    numbers
}

/// The values of a tensor of so many `F32`.
pub(super) fn table(source: &dyn TensorSource, index: usize, length: usize) -> Option<Vec<f32>> {
    let bytes = source.bytes(index)?;
    let is_table = source.entries()[index].dtype == Dtype::F32 && bytes.len() == 4 * length;
    let values = bytes
        .chunks_exact(4)
        .map(|bytes| Some(f32::from_le_bytes(bytes.try_into().ok()?)));
    values.collect::<Option<Vec<f32>>>().filter(|_| is_table)
}

/// The JSON object that a tensor of bytes holds.
pub(super) fn json(source: &dyn TensorSource, index: usize) -> Option<Value> {
    let is_text = source.entries()[index].dtype == Dtype::U8;
    let bytes = source.bytes(index).filter(|_| is_text)?;
    let value = parse_json(bytes.get(..bytes.len().min(MAX_JSON_BYTES))?).ok()?;
    value.is_object().then_some(value)
}

/// `dtype [shape]`, as messages say it.
pub(super) fn words(entry: &TensorEntry) -> String {
    format!("{} {:?}", entry.dtype, entry.shape)
}
