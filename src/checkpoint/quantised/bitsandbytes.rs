//! The 4-bit weights of bitsandbytes: codes, a table of what they stand for, and a largest magnitude for each block.
//!
//! Source: bitsandbytes 0.50, `functional.py` and `backends/default/ops.py`.

use safetensors::Dtype;
use serde_json::Value;

use super::bytes::{json, table};
use super::dequantised::{CodedTensor, Scales, Stands, Storage, StoredCodes};
use super::look::{Contradiction, Look, Reading, Said, float_named};
use super::settings::MAX_BLOCK;
use numeric::{Grid, Packing};

/// Endings of the tensor that says how a weight is stored, and what the storage is called.
const STATES: [(&str, &str); 2] = [
    (".quant_state.bitsandbytes__nf4", "NF4"),
    (".quant_state.bitsandbytes__fp4", "FP4"),
];

pub(super) fn read(look: &Look<'_>, at: usize) -> Said {
    let name = &look.source.entries()[at].name;
    let state = STATES.iter().find_map(|(end, what)| {
        let (state, _) = look.tensor(&format!("{name}{end}"))?;
        Some((state, *what))
    });
    let (state, what) = state?;
    let read = |()| four_bits(look, at, state, what);
    Some(look.is_of(at, &["bitsandbytes"]).and_then(read))
}

/// A weight, by what its state says.
fn four_bits(
    look: &Look<'_>,
    at: usize,
    state: usize,
    what: &str,
) -> Result<Reading, Contradiction> {
    if !look.is_here {
        return Err(look.not_here(state));
    }
    let entry = &look.source.entries()[at];
    let malformed = |tensor: usize, expected: &str| look.contradiction(tensor, expected);
    let said =
        json(look.source, state).ok_or_else(|| malformed(state, "settings in JSON, as bytes"))?;
    let of_state = |what: &str| Contradiction {
        tensor: state,
        expected: what.into(),
        found: "settings without, or of another kind".into(),
    };
    let shape = said.get("shape").and_then(shape_of);
    let shape = shape.ok_or_else(|| of_state("a `shape` that can be counted"))?;
    let block = block(&said, "blocksize").ok_or_else(|| of_state("a `blocksize`"))?;
    let dtype = said
        .get("dtype")
        .and_then(Value::as_str)
        .and_then(float_named);
    let dtype = dtype.ok_or_else(|| of_state("a `dtype` of floats"))?;
    let elements: usize = shape.iter().product();
    let (map, values) = part(look, at, "quant_map", 16)?;
    let codes = StoredCodes {
        tensor: at,
        bits: 4,
        packing: Packing::HighFirst,
        shape: [1, 1, elements],
        meaning: Stands::Table(values),
    };
    let is_whole = entry.dtype == Dtype::U8 && entry.len == elements.div_ceil(2) as u64;
    if !is_whole || !look.holds(&codes) {
        return Err(malformed(
            at,
            &format!("U8, two codes in a byte, for {shape:?}"),
        ));
    }
    let mut beside = vec![state, map];
    let blocks = (elements as u64).div_ceil(block);
    let scales = absmax(look, at, &said, blocks, &mut beside)?;
    Ok(Reading {
        name: entry.name.clone(),
        shape,
        dtype: Some(dtype.dtype()),
        storage: Storage::Coded(Box::new(CodedTensor {
            codes,
            scales,
            grid: flat(block),
            zeros: None,
            groups: None,
        })),
        beside,
        scheme: format!("{what} with a scale for each {block} values (bitsandbytes)"),
    })
}

/// The largest magnitudes of `blocks` blocks: floats, or codes of their own.
fn absmax(
    look: &Look<'_>,
    at: usize,
    said: &Value,
    blocks: u64,
    beside: &mut Vec<usize>,
) -> Result<Scales, Contradiction> {
    let name = &look.source.entries()[at].name;
    let find = |end: &str| look.needed(at, &format!("{name}.{end}"));
    let (absmax, entry) = find("absmax")?;
    if entry.elements() != blocks {
        return Err(look.contradiction(absmax, format!("{blocks} magnitudes, one for each block")));
    }
    match entry.dtype {
        Dtype::F32 => Ok(Scales::Floats(absmax)),
        Dtype::U8 => {
            let nested = block(said, "nested_blocksize").zip(offset(said));
            let (block, offset) = nested.ok_or_else(|| Contradiction {
                tensor: absmax,
                expected: "`nested_blocksize` and `nested_offset` in the settings".into(),
                found: "none".into(),
            })?;
            let (map, table) = part(look, at, "nested_quant_map", 256)?;
            beside.push(map);
            let (scales, of_scales) = find("nested_absmax")?;
            let needed = blocks.div_ceil(block);
            if of_scales.dtype != Dtype::F32 || of_scales.elements() != needed {
                return Err(look.contradiction(scales, format!("{needed} numbers in F32")));
            }
            let codes = StoredCodes {
                tensor: absmax,
                bits: 8,
                packing: Packing::Rows {
                    pitch: blocks.saturating_mul(8),
                },
                shape: [1, 1, blocks as usize],
                meaning: Stands::Table(table),
            };
            if !look.holds(&codes) {
                return Err(look.contradiction(absmax, "codes that lie one after the other"));
            }
            Ok(Scales::Nested(
                Box::new(CodedTensor {
                    codes,
                    scales: Scales::Floats(scales),
                    grid: flat(block),
                    zeros: None,
                    groups: None,
                }),
                offset,
            ))
        }
        _ => Err(look.contradiction(absmax, "magnitudes in F32, or codes in U8")),
    }
}

/// A scale for each run of so many values, whatever the rows.
fn flat(block: u64) -> Grid {
    Grid {
        height: 1,
        width: block,
        row_step: 0,
        column_step: 1,
        matrix_step: 0,
    }
}

/// A table beside a weight: its number, and what it holds.
fn part(
    look: &Look<'_>,
    at: usize,
    end: &str,
    length: usize,
) -> Result<(usize, Vec<f32>), Contradiction> {
    let name = format!("{}.{end}", look.source.entries()[at].name);
    let (number, _) = look.needed(at, &name)?;
    let values = table(look.source, number, length);
    let values =
        values.ok_or_else(|| look.contradiction(number, format!("{length} numbers in F32")));
    Ok((number, values?))
}

fn shape_of(value: &Value) -> Option<Vec<usize>> {
    let sizes = value.as_array()?.iter();
    let shape: Vec<usize> = sizes
        .map(|size| usize::try_from(size.as_u64()?).ok())
        .collect::<Option<_>>()?;
    shape
        .iter()
        .try_fold(1usize, |all, &size| all.checked_mul(size))?;
    Some(shape)
}

fn block(said: &Value, key: &str) -> Option<u64> {
    said.get(key)?
        .as_u64()
        .filter(|block| (1..=MAX_BLOCK).contains(block))
}

fn offset(said: &Value) -> Option<f32> {
    let offset = said.get("nested_offset")?.as_f64()? as f32;
    offset.is_finite().then_some(offset)
}
