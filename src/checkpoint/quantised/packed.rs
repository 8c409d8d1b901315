//! Codes of a few bits, several in a word or byte: compressed-tensors' packed formats, GPTQ, AWQ.
//!
//! Sources: compressed-tensors 0.20, `pack_quantized`, `nvfp4`, `mxfp4`; AutoGPTQ, `qlinear_cuda_old.py`; AutoAWQ 0.2.9,
//! `utils/packing_utils.py`.

use safetensors::Dtype;

use super::super::source::TensorEntry;
use super::bytes::whole_numbers;
use super::dequantised::{CodedTensor, Scales, Stands, Storage, StoredCodes};
use super::look::{Contradiction, Look, Reading, Said};
use numeric::{FloatType, Grid, Packing};

/// Bits of the words that codes are packed in.
const WORD: u64 = 32;

/// Values that share a scale in NVFP4 and in MXFP4.
const NVFP4_GROUP: u64 = 16;
const MXFP4_GROUP: u64 = 32;

/// `module.weight_packed` of compressed-tensors.
pub(super) fn compressed(look: &Look<'_>, at: usize) -> Said {
    let entry = &look.source.entries()[at];
    let module = entry.name.strip_suffix(".weight_packed")?;
    let read = |()| match entry.dtype {
        Dtype::I32 => integers(look, at, module),
        Dtype::U8 => four_bit_floats(look, at, module),
        _ => Err(look.contradiction(at, "codes in I32 or U8")),
    };
    Some(look.is_of(at, &["compressed-tensors"]).and_then(read))
}

/// The two sides of a matrix.
fn matrix(look: &Look<'_>, at: usize, dtype: Dtype) -> Result<[u64; 2], Contradiction> {
    let entry = &look.source.entries()[at];
    match entry.shape.as_slice() {
        &[rows, columns] if entry.dtype == dtype => Ok([rows as u64, columns as u64]),
        _ => Err(look.contradiction(at, format!("a matrix of {dtype}"))),
    }
}

/// Scales that are floats of 16 or 32 bits.
fn float_scales(
    look: &Look<'_>,
    at: usize,
    entry: &TensorEntry,
    shape: [u64; 2],
) -> Result<Scales, Contradiction> {
    let is_float = FloatType::from_dtype(entry.dtype).is_some_and(|float| float.size() > 1);
    let found: Vec<u64> = entry.shape.iter().map(|&size| size as u64).collect();
    match is_float && found == shape {
        true => Ok(Scales::Floats(at)),
        false => Err(look.contradiction(at, format!("floats of shape {shape:?}"))),
    }
}

/// Codes that must lie in the bytes of their tensor.
fn fitting(look: &Look<'_>, codes: StoredCodes) -> Result<StoredCodes, Contradiction> {
    match look.holds(&codes) {
        true => Ok(codes),
        false => {
            let [_, rows, columns] = codes.shape;
            let expected = format!(
                "{rows} x {columns} codes of {} bits, one after the other",
                codes.bits
            );
            Err(look.contradiction(codes.tensor, expected))
        }
    }
}

/// The group of each column by `g_idx`, if it is more than columns in their order. Every group is checked.
fn groups(
    look: &Look<'_>,
    name: &str,
    columns: u64,
    groups: u64,
    width: u64,
    beside: &mut Vec<usize>,
) -> Result<Option<usize>, Contradiction> {
    let Some((at, entry)) = look.tensor(name) else {
        return Ok(None);
    };
    let expected = || {
        format!(
            "for each of {columns} columns a group from 0 to {}",
            groups - 1
        )
    };
    if entry.dtype != Dtype::I32 || entry.elements() != columns || groups == 0 {
        return Err(look.contradiction(at, expected()));
    }
    if !look.is_here {
        return Err(look.not_here(at));
    }
    beside.push(at);
    let bytes = look.source.bytes(at).unwrap_or_default();
    // compressed-tensors writes -1 everywhere where columns are in their order.
    if bytes.iter().all(|&byte| byte == u8::MAX) {
        return Ok(None);
    }
    let Some(found) = whole_numbers(look.source, at)
        .filter(|found| found.len() as u64 == columns && found.iter().all(|&group| group < groups))
    else {
        return Err(Contradiction {
            found: "another".into(),
            ..look.contradiction(at, expected())
        });
    };
    let in_order = (0..)
        .zip(&found)
        .all(|(column, &group)| group == column / width);
    Ok((!in_order).then_some(at))
}

/// A matrix of values of which the config and shapes say how many columns share a scale.
fn width_of(look: &Look<'_>, columns: u64, groups: u64, stated: Option<u64>) -> Option<u64> {
    let fits = |&size: &u64| size > 0 && columns.div_ceil(size) == groups;
    let of_groups = || look.settings.of_groups("group_size").find(fits);
    match groups {
        0 => None,
        1 => Some(columns.max(1)),
        _ => stated
            .filter(fits)
            .or_else(of_groups)
            .or_else(|| columns.is_multiple_of(groups).then(|| columns / groups)),
    }
}

/// Whole numbers in words of 32 bits: `pack-quantized`.
fn integers(look: &Look<'_>, at: usize, module: &str) -> Result<Reading, Contradiction> {
    let [rows, words] = matrix(look, at, Dtype::I32)?;
    let (shape_at, _) = look.needed(at, &format!("{module}.weight_shape"))?;
    if !look.is_here {
        return Err(look.not_here(shape_at));
    }
    let columns = match whole_numbers(look.source, shape_at).as_deref() {
        Some(&[of_rows, columns]) if of_rows == rows => columns,
        found => {
            return Err(Contradiction {
                tensor: shape_at,
                expected: format!("{rows} rows and a number of columns"),
                found: format!("{:?}", found.unwrap_or_default()),
            });
        }
    };
    let of_groups: Vec<u64> = look.settings.of_groups("num_bits").collect();
    let fits = |bits: &u64| {
        let needed = columns.checked_mul(*bits).map(|bits| bits.div_ceil(WORD));
        needed == Some(words) && (of_groups.is_empty() || of_groups.contains(bits))
    };
    let Some(bits) = [4, 8, 2, 1].into_iter().find(fits) else {
        return Err(look.contradiction(
            at,
            format!(
                "{rows} x {columns} codes of 1, 2, 4 or 8 bits, as config.json says, in words of 32 bits for each row"
            ),
        ));
    };
    let (scale, of_scale) = look.needed(at, &format!("{module}.weight_scale"))?;
    let across = of_scale.shape.get(1).map_or(1, |&across| across as u64);
    let scales = float_scales(look, scale, of_scale, [rows, across])?;
    let Some(width) = width_of(look, columns, across, None) else {
        return Err(look.contradiction(
            scale,
            format!("a scale for each group of {columns} columns"),
        ));
    };
    let mut beside = vec![shape_at];
    let name = format!("{module}.weight_g_idx");
    let groups = groups(look, &name, columns, across, width, &mut beside)?;
    let half = -(1i32 << (bits - 1));
    let zeros = match look.tensor(&format!("{module}.weight_zero_point")) {
        None => None,
        Some((zero, _)) => {
            matrix(look, zero, Dtype::I32)?;
            let codes = StoredCodes {
                tensor: zero,
                bits: bits as u32,
                packing: Packing::Words,
                shape: [1, across as usize, rows as usize],
                meaning: Stands::Plus(half),
            };
            Some((fitting(look, codes)?, true))
        }
    };
    let codes = StoredCodes {
        tensor: at,
        bits: bits as u32,
        packing: Packing::Rows {
            pitch: words * WORD,
        },
        shape: [1, rows as usize, columns as usize],
        meaning: Stands::Plus(half),
    };
    let grid = groups_of_rows(width, across);
    let coded = CodedTensor {
        codes: fitting(look, codes)?,
        scales,
        grid,
        zeros,
        groups,
    };
    let scheme = scheme(bits, width, "compressed-tensors");
    Ok(weight_of(module, coded, beside, scheme))
}

/// A scale for each so many values of a row, `across` for each row.
fn groups_of_rows(width: u64, across: u64) -> Grid {
    Grid {
        height: 1,
        width,
        row_step: across,
        column_step: 1,
        matrix_step: 0,
    }
}

/// The weight of a module: one matrix of codes.
fn weight_of(module: &str, coded: CodedTensor, beside: Vec<usize>, scheme: String) -> Reading {
    let [_, rows, columns] = coded.codes.shape;
    Reading {
        name: format!("{module}.weight"),
        shape: vec![rows, columns],
        dtype: None,
        storage: Storage::Coded(Box::new(coded)),
        beside,
        scheme,
    }
}

fn scheme(bits: u64, width: u64, of: &str) -> String {
    format!("INT{bits} with a scale for each {width} values of a row ({of})")
}

/// Floats of 4 bits: `nvfp4-pack-quantized` and `mxfp4-pack-quantized`.
fn four_bit_floats(look: &Look<'_>, at: usize, module: &str) -> Result<Reading, Contradiction> {
    let [rows, half] = matrix(look, at, Dtype::U8)?;
    let columns = half.saturating_mul(2);
    let (scale, of_scale) = look.needed(at, &format!("{module}.weight_scale"))?;
    let global = look.tensor(&format!("{module}.weight_global_scale"));
    let (width, what) = match (of_scale.dtype, global) {
        (Dtype::F8_E4M3, Some(_)) => (NVFP4_GROUP, "NVFP4"),
        (Dtype::U8 | Dtype::F8_E8M0, None) => (MXFP4_GROUP, "MXFP4"),
        _ => {
            let expected = "scales in F8_E4M3 with a `weight_global_scale`, or exponents in U8";
            return Err(look.contradiction(scale, expected));
        }
    };
    let shape = [rows, columns.div_ceil(width)];
    let found: Vec<u64> = of_scale.shape.iter().map(|&size| size as u64).collect();
    if found != shape || look.source.bytes(scale).is_none() {
        return Err(look.contradiction(
            scale,
            format!("shape {shape:?}, a scale for each {width} values of a row"),
        ));
    }
    let scales = match global {
        None => Scales::Powers(scale),
        Some((global, of_global)) => {
            if of_global.dtype != Dtype::F32 || of_global.elements() != 1 {
                return Err(look.contradiction(global, "one number in F32"));
            }
            Scales::Quotient(scale, global)
        }
    };
    let codes = StoredCodes {
        tensor: at,
        bits: 4,
        packing: Packing::Rows { pitch: half * 8 },
        shape: [1, rows as usize, columns as usize],
        meaning: Stands::E2m1,
    };
    let coded = CodedTensor {
        codes: fitting(look, codes)?,
        scales,
        grid: groups_of_rows(width, shape[1]),
        zeros: None,
        groups: None,
    };
    let scheme = format!("{what} (compressed-tensors)");
    Ok(weight_of(module, coded, Vec::new(), scheme))
}

/// The sizes of a matrix of GPTQ or AWQ: the tensors beside `qweight`, and how many columns share a scale.
struct Packed<'a> {
    module: &'a str,
    zeros: usize,
    scales: Scales,
    /// Rows and columns of the values.
    rows: u64,
    columns: u64,
    /// Groups of columns, and columns of a group.
    groups: u64,
    width: u64,
}

/// What `qweight` has beside it, for values of `rows` and `columns`.
fn beside_qweight<'a>(
    look: &Look<'_>,
    at: usize,
    module: &'a str,
    [rows, columns]: [u64; 2],
) -> Result<Packed<'a>, Contradiction> {
    let (zeros, _) = look.needed(at, &format!("{module}.qzeros"))?;
    let (scale, of_scale) = look.needed(at, &format!("{module}.scales"))?;
    let groups = of_scale.shape.first().map_or(0, |&groups| groups as u64);
    let scales = float_scales(look, scale, of_scale, [groups, rows])?;
    let stated = look.settings.number("group_size");
    let Some(width) = width_of(look, columns, groups, stated) else {
        return Err(look.contradiction(
            scale,
            format!("a scale for each group of {columns} columns, and of {rows} rows"),
        ));
    };
    Ok(Packed {
        module,
        zeros,
        scales,
        rows,
        columns,
        groups,
        width,
    })
}

impl Packed<'_> {
    /// Values whose codes and zeros are these.
    fn reading(
        self,
        look: &Look<'_>,
        codes: StoredCodes,
        zeros: (StoredCodes, bool),
        name: &str,
    ) -> Result<Reading, Contradiction> {
        let mut beside = Vec::new();
        let g_idx = format!("{}.g_idx", self.module);
        let groups = groups(
            look,
            &g_idx,
            self.columns,
            self.groups,
            self.width,
            &mut beside,
        )?;
        let bits = u64::from(codes.bits);
        let (zeros, by_group) = zeros;
        let coded = CodedTensor {
            codes: fitting(look, codes)?,
            scales: self.scales,
            grid: Grid {
                height: 1,
                width: self.width,
                row_step: 1,
                column_step: self.rows,
                matrix_step: 0,
            },
            zeros: Some((fitting(look, zeros)?, by_group)),
            groups,
        };
        let scheme = scheme(bits, self.width, name);
        Ok(weight_of(self.module, coded, beside, scheme))
    }
}

/// `module.qweight` of GPTQ.
pub(super) fn gptq(look: &Look<'_>, at: usize) -> Said {
    let module = qweight_of(look, at, "gptq")?;
    Some(gptq_module(look, at, module))
}

fn gptq_module(look: &Look<'_>, at: usize, module: &str) -> Result<Reading, Contradiction> {
    let [words, rows] = matrix(look, at, Dtype::I32)?;
    let bits = look.settings.number("bits").unwrap_or(4);
    if !matches!(bits, 2 | 4 | 8) {
        return Err(Contradiction {
            tensor: at,
            expected: "codes of 2, 4 or 8 bits".into(),
            found: format!("{bits} in config.json"),
        });
    }
    // What the first version stores as the zero is one less than it.
    let less = match look.settings.text("checkpoint_format") {
        None | Some("gptq") => 1,
        Some("gptq_v2") => 0,
        Some(other) => {
            return Err(Contradiction {
                tensor: at,
                expected: "checkpoint_format `gptq` or `gptq_v2`".into(),
                found: format!("{other:?}"),
            });
        }
    };
    let columns = words.saturating_mul(WORD / bits);
    let packed = beside_qweight(look, at, module, [rows, columns])?;
    let codes = StoredCodes {
        tensor: at,
        bits: bits as u32,
        packing: Packing::Words,
        shape: [1, rows as usize, columns as usize],
        meaning: Stands::Plus(0),
    };
    let [_, across] = matrix(look, packed.zeros, Dtype::I32)?;
    let zeros = StoredCodes {
        tensor: packed.zeros,
        bits: bits as u32,
        packing: Packing::Rows {
            pitch: across.saturating_mul(WORD),
        },
        shape: [1, packed.groups as usize, rows as usize],
        meaning: Stands::Plus(less),
    };
    packed.reading(look, codes, (zeros, true), "GPTQ")
}

/// `module.qweight` of AWQ.
pub(super) fn awq(look: &Look<'_>, at: usize) -> Said {
    let module = qweight_of(look, at, "awq")?;
    Some(awq_module(look, at, module))
}

fn awq_module(look: &Look<'_>, at: usize, module: &str) -> Result<Reading, Contradiction> {
    let [columns, words] = matrix(look, at, Dtype::I32)?;
    let bits = look
        .settings
        .number("bits")
        .or(look.settings.number("w_bit"));
    let version = look.settings.text("version").unwrap_or("gemm");
    if bits.is_some_and(|bits| bits != 4) || !version.eq_ignore_ascii_case("gemm") {
        return Err(Contradiction {
            tensor: at,
            expected: "4 bits in the layout `gemm`".into(),
            found: format!("{} bits in the layout {version:?}", bits.unwrap_or(4)),
        });
    }
    let rows = words.saturating_mul(8);
    let packed = beside_qweight(look, at, module, [rows, columns])?;
    let [_, across] = matrix(look, packed.zeros, Dtype::I32)?;
    if across != words {
        return Err(look.contradiction(packed.zeros, format!("{words} words for each group")));
    }
    let stored = |tensor, columns: u64| StoredCodes {
        tensor,
        bits: 4,
        packing: Packing::Awq,
        shape: [1, rows as usize, columns as usize],
        meaning: Stands::Plus(0),
    };
    let (codes, zeros) = (stored(at, columns), stored(packed.zeros, packed.groups));
    packed.reading(look, codes, (zeros, false), "AWQ")
}

/// The module of a `qweight`, if the model's method is this one.
fn qweight_of<'a>(look: &Look<'a>, at: usize, method: &str) -> Option<&'a str> {
    let module = look.source.entries()[at].name.strip_suffix(".qweight")?;
    (look.settings.method().as_deref() == Some(method)).then_some(module)
}
