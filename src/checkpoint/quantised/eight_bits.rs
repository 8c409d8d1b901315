//! 8-bit floats and integers with scales: FP8 of DeepSeek and transformers, compressed-tensors, ComfyUI, modelopt and
//! fbgemm, INT8 of compressed-tensors and bitsandbytes, and the FP4 that `fp8` models have for experts.
//!
//! Sources: transformers 5.24, `integrations/finegrained_fp8.py`; compressed-tensors 0.20, `naive_quantized`;
//! ComfyUI, `QUANTIZATION.md`; bitsandbytes 0.50, `functional.py`.

use safetensors::Dtype;

use super::super::source::TensorEntry;
use super::bytes::{json, words};
use super::dequantised::{CodedTensor, Scales, Stands, Storage, StoredCodes, is_float8};
use super::look::{Contradiction, Look, Reading, Said};
use numeric::{FloatType, Grid, Packing};

/// Endings of a scale's name, for a weight `module.weight`, and the methods that call it so.
const ENDS: [(&str, &[&str]); 5] = [
    (".weight_scale_inv", &["fp8"]),
    (
        ".weight_scale",
        &["compressed-tensors", "fbgemm_fp8", "modelopt", "fp8"],
    ),
    (".scale_weight", &[]),
    (".scale", &["fp8"]),
    (".SCB", &["bitsandbytes"]),
];

/// The same for experts that are fused in `experts.gate_up_proj`.
const FUSED_ENDS: [(&str, &[&str]); 2] = [
    ("_scale_inv", &["fp8"]),
    ("_scale", &["compressed-tensors", "fp8"]),
];

/// The largest code of an 8-bit integer: bitsandbytes keeps the largest magnitude of a row as its scale.
const LARGEST_CODE: f64 = 127.0;

/// Columns that share a scale where `fp8` models store experts in four bits.
const FP4_GROUP: u64 = 32;

pub(super) fn read(look: &Look<'_>, at: usize) -> Said {
    let entry = &look.source.entries()[at];
    if !is_float8(entry.dtype) && entry.dtype != Dtype::I8 {
        return None;
    }
    let found = scales_of(look, &entry.name);
    let (scale, methods) = match found.as_slice() {
        [] => return None,
        [one] => *one,
        [(first, _), (second, _), ..] => {
            return Some(Err(Contradiction {
                tensor: *second,
                expected: format!("one tensor of scales for `{}`", entry.name),
                found: format!(
                    "`{}` beside `{}`",
                    look.source.entries()[*second].name,
                    look.source.entries()[*first].name
                ),
            }));
        }
    };
    Some(
        look.is_of(scale, methods)
            .and_then(|()| scaled(look, at, scale)),
    )
}

/// The scales that a tensor has, by their names.
fn scales_of(look: &Look<'_>, name: &str) -> Vec<(usize, &'static [&'static str])> {
    let of = |stem: &str, ends: &'static [(&str, &[&str])]| -> Vec<_> {
        let found = ends.iter().filter_map(|(end, methods)| {
            let (at, _) = look.tensor(&format!("{stem}{end}"))?;
            Some((at, *methods))
        });
        found.collect()
    };
    match name.strip_suffix(".weight") {
        Some(module) => of(module, &ENDS),
        None => of(name, &FUSED_ENDS),
    }
}

/// A tensor and its scales.
fn scaled(look: &Look<'_>, at: usize, scale: usize) -> Result<Reading, Contradiction> {
    let (entry, of_scale) = (&look.source.entries()[at], &look.source.entries()[scale]);
    let is_fp4 = entry.dtype == Dtype::I8 && look.settings.method().as_deref() == Some("fp8");
    let mut shape = entry.shape.clone();
    if let Some(columns) = shape.last_mut().filter(|_| is_fp4) {
        *columns = columns.saturating_mul(2);
    }
    let Some(&columns) = shape.last() else {
        return Err(look.contradiction(at, "values of one dimension at least"));
    };
    // Convolutions and the like have one scale; theirs are matrices of one row for each output.
    let elements: usize = shape.iter().product();
    if elements == 0 {
        return Err(look.contradiction(at, "values"));
    }
    let matrices = match shape.as_slice() {
        [matrices, _, _] => *matrices,
        _ => 1,
    };
    let rows = elements / columns / matrices;
    let groups = Groups {
        matrices,
        rows,
        columns,
        of_values: shape.len(),
    };
    let width = is_fp4.then_some([1, FP4_GROUP]);
    let group_size = look
        .settings
        .of_groups("group_size")
        .next()
        .filter(|&size| size > 0);
    let Some((grid, grouped)) = groups.grid(&of_scale.shape, width.or(look.block), group_size)
    else {
        let expected = match width.or(look.block) {
            Some([height, width]) => format!(
                "a scale for each {height} x {width} values of `{}`, which is {}",
                entry.name,
                words(entry)
            ),
            None => format!(
                "a scale for `{}`, which is {}, or one for each row; scales of blocks need a config.json that says how \
                 large they are",
                entry.name,
                words(entry)
            ),
        };
        return Err(look.contradiction(scale, expected));
    };
    let name = entry.name.as_str();
    let scales = scales(look, at, scale, of_scale)?;
    let mut beside = Vec::new();
    comfy(look, name, &mut beside)?;
    let zeros = zeros(look, entry, of_scale, &groups, &grid)?;
    let storage = if is_float8(entry.dtype) {
        let whole = matches!(grouped, Grouped::Tensor);
        Storage::Scaled {
            values: at,
            scales,
            rows: if whole { rows * matrices } else { rows },
            columns,
            block: [side(grid.height), side(grid.width)],
        }
    } else {
        let bits = if is_fp4 { 4 } else { 8 };
        let codes = StoredCodes {
            tensor: at,
            bits,
            packing: Packing::Rows {
                pitch: columns as u64 * u64::from(bits),
            },
            shape: [matrices, rows, columns],
            meaning: if is_fp4 { Stands::E2m1 } else { Stands::Signed },
        };
        if !look.holds(&codes) {
            return Err(look.contradiction(at, "codes that lie one after the other"));
        }
        beside.extend(name.strip_suffix(".weight").and_then(|module| {
            let (at, format) = look.tensor(&format!("{module}.weight_format"))?;
            (format.dtype == Dtype::U8).then_some(at)
        }));
        Storage::Coded(Box::new(CodedTensor {
            codes,
            scales,
            grid,
            zeros,
            groups: None,
        }))
    };
    let what = match entry.dtype {
        Dtype::F8_E4M3 => "FP8 (E4M3)",
        Dtype::F8_E5M2 => "FP8 (E5M2)",
        _ if is_fp4 => "FP4 (E2M1)",
        _ => "INT8",
    };
    Ok(Reading {
        name: name.to_owned(),
        shape,
        dtype: None,
        storage,
        beside,
        scheme: format!("{what} with {}", grouped.words()),
    })
}

/// Where the scales of a tensor come from.
fn scales(
    look: &Look<'_>,
    at: usize,
    scale: usize,
    of_scale: &TensorEntry,
) -> Result<Scales, Contradiction> {
    let is_powers = matches!(of_scale.dtype, Dtype::F8_E8M0 | Dtype::U8);
    let is_whole = FloatType::from_dtype(of_scale.dtype).is_some_and(|float| float.size() > 1);
    let is_here = look.source.bytes(scale).is_some();
    if is_powers && is_here {
        Ok(Scales::Powers(scale))
    } else if is_whole && of_scale.name.ends_with(".SCB") {
        Ok(Scales::Divided(scale, LARGEST_CODE))
    } else if is_whole {
        Ok(Scales::Floats(scale))
    } else {
        let name = &look.source.entries()[at].name;
        Err(look.contradiction(scale, format!("floats, or exponents of two, for `{name}`")))
    }
}

/// What ComfyUI says of how a weight is stored: nothing but 8-bit floats is read.
fn comfy(look: &Look<'_>, name: &str, beside: &mut Vec<usize>) -> Result<(), Contradiction> {
    let module = name.strip_suffix(".weight").unwrap_or(name);
    let Some((at, _)) = look.tensor(&format!("{module}.comfy_quant")) else {
        return Ok(());
    };
    if !look.is_here {
        return Err(look.not_here(at));
    }
    let said = json(look.source, at);
    let format = said.as_ref().and_then(|said| said.get("format")?.as_str());
    match format {
        Some("float8_e4m3fn" | "float8_e5m2") => {
            beside.push(at);
            Ok(())
        }
        _ => Err(Contradiction {
            tensor: at,
            expected: "the format float8_e4m3fn or float8_e5m2".into(),
            found: format.map_or("no format".into(), |format| format!("{format:?}")),
        }),
    }
}

/// The zeros of INT8 weights whose smallest value is no mirror of the largest.
fn zeros(
    look: &Look<'_>,
    entry: &TensorEntry,
    of_scale: &TensorEntry,
    groups: &Groups,
    grid: &Grid,
) -> Result<Option<(StoredCodes, bool)>, Contradiction> {
    let name = entry.name.as_str();
    let module = name.strip_suffix(".weight").unwrap_or(name);
    let Some((at, of_zeros)) = look.tensor(&format!("{module}.weight_zero_point")) else {
        return Ok(None);
    };
    let expected = format!(
        "I8 of shape {:?}, as the scales of `{name}`",
        of_scale.shape
    );
    let is_int8 = entry.dtype == Dtype::I8 && of_zeros.dtype == Dtype::I8;
    if !is_int8 || of_zeros.shape != of_scale.shape {
        return Err(look.contradiction(at, expected));
    }
    let rows = groups.rows.div_ceil(side(grid.height));
    let columns = groups.columns.div_ceil(side(grid.width));
    let codes = StoredCodes {
        tensor: at,
        bits: 8,
        packing: Packing::Rows {
            pitch: columns as u64 * 8,
        },
        shape: [groups.matrices, rows, columns],
        meaning: Stands::Signed,
    };
    match look.holds(&codes) {
        true => Ok(Some((codes, false))),
        false => Err(look.contradiction(at, expected)),
    }
}

fn side(side: u64) -> usize {
    usize::try_from(side).unwrap_or(usize::MAX).max(1)
}

/// Values that may share scales.
struct Groups {
    matrices: usize,
    rows: usize,
    columns: usize,
    /// How many dimensions the values have.
    of_values: usize,
}

/// What shares a scale.
enum Grouped {
    Tensor,
    Row,
    Matrix,
    Block([u64; 2]),
}

impl Grouped {
    fn words(&self) -> String {
        match self {
            Grouped::Tensor => "one scale".into(),
            Grouped::Row => "a scale for each row".into(),
            Grouped::Matrix => "a scale for each expert".into(),
            Grouped::Block([height, width]) => {
                format!("a scale for each {height} x {width} values")
            }
        }
    }
}

impl Groups {
    /// Which scale an element has, if scales of this shape fit: one for all, one for each block of a known size, for each
    /// matrix or row, or for each so many columns of a row.
    fn grid(
        &self,
        scales: &[usize],
        block: Option<[u64; 2]>,
        group_size: Option<u64>,
    ) -> Option<(Grid, Grouped)> {
        let (rows, columns) = (self.rows as u64, self.columns as u64);
        let of_block = |[height, width]: [u64; 2]| {
            let across = columns.div_ceil(width);
            Grid {
                height,
                width,
                row_step: across,
                column_step: 1,
                matrix_step: rows.div_ceil(height) * across,
            }
        };
        let whole = [rows, columns];
        if scales.iter().product::<usize>() == 1 && scales.len() <= self.of_values.max(1) {
            let grid = Grid {
                matrix_step: 0,
                ..of_block(whole)
            };
            return Some((grid, Grouped::Tensor));
        }
        // A scale for each matrix, or rows and groups within.
        let within = match self.of_values {
            2 => scales,
            3 if scales.first() == Some(&self.matrices) => &scales[1..],
            _ => return None,
        };
        let within: Vec<u64> = within.iter().map(|&size| size as u64).collect();
        if let Some([height, width]) = block {
            let expected = [rows.div_ceil(height), columns.div_ceil(width)];
            let fits = within == expected;
            return fits.then(|| (of_block([height, width]), Grouped::Block([height, width])));
        }
        match within.as_slice() {
            [] | [1, 1] if self.of_values == 3 => Some((of_block(whole), Grouped::Matrix)),
            &[of_rows] | &[of_rows, 1] if of_rows == rows => {
                Some((of_block([1, whole[1]]), Grouped::Row))
            }
            &[of_rows, across] if of_rows == rows && across > 0 => {
                let width = group_size.filter(|&size| columns.div_ceil(size) == across)?;
                Some((of_block([1, width]), Grouped::Block([1, width])))
            }
            _ => None,
        }
    }
}
