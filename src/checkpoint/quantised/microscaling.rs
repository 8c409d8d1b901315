//! Experts in MXFP4, as gpt-oss stores them: `experts.gate_up_proj_blocks` and `experts.gate_up_proj_scales`.
//!
//! Source: transformers 5.24, `integrations/mxfp4.py`. The values are those of the transpose.

use safetensors::Dtype;

use super::dequantised::{CodedTensor, Scales, Stands, Storage, StoredCodes};
use super::look::{Contradiction, Look, Reading, Said};
use numeric::{Grid, Packing};

/// Values that share a scale, and the bytes that hold them.
const GROUP: usize = 32;
const GROUP_BYTES: usize = 16;

pub(super) fn read(look: &Look<'_>, at: usize) -> Said {
    let entry = &look.source.entries()[at];
    let name = entry.name.strip_suffix("_blocks")?;
    let (scale, of_scale) = look.tensor(&format!("{name}_scales"))?;
    if entry.dtype != Dtype::U8 {
        return None;
    }
    let &[experts, rows, groups, GROUP_BYTES] = entry.shape.as_slice() else {
        return Some(Err(
            look.contradiction(at, "U8 of shape [experts, rows, groups, 16]")
        ));
    };
    if let Err(other) = look.is_of(at, &["mxfp4"]) {
        return Some(Err(other));
    }
    if entry.elements() == 0 {
        return Some(Err(look.contradiction(at, "values")));
    }
    if !matches!(of_scale.dtype, Dtype::U8 | Dtype::F8_E8M0)
        || of_scale.shape != [experts, rows, groups]
        || look.source.bytes(scale).is_none()
    {
        return Some(Err(look.contradiction(
            scale,
            format!("U8 of shape {:?}", [experts, rows, groups]),
        )));
    }
    Some(experts_of(look, at, scale, name, [experts, rows, groups]))
}

fn experts_of(
    look: &Look<'_>,
    at: usize,
    scale: usize,
    name: &str,
    [experts, outputs, groups]: [usize; 3],
) -> Result<Reading, Contradiction> {
    let inputs = groups.saturating_mul(GROUP);
    let codes = StoredCodes {
        tensor: at,
        bits: 4,
        packing: Packing::Columns {
            pitch: (inputs as u64).saturating_mul(4),
        },
        shape: [experts, inputs, outputs],
        meaning: Stands::E2m1,
    };
    if !look.holds(&codes) {
        return Err(look.contradiction(at, "codes that lie one after the other"));
    }
    Ok(Reading {
        name: name.to_owned(),
        shape: vec![experts, inputs, outputs],
        dtype: None,
        storage: Storage::Coded(Box::new(CodedTensor {
            codes,
            scales: Scales::Powers(scale),
            grid: Grid {
                height: GROUP as u64,
                width: 1,
                row_step: 1,
                column_step: groups as u64,
                matrix_step: (outputs * groups) as u64,
            },
            zeros: None,
            groups: None,
        })),
        beside: Vec::new(),
        scheme: "MXFP4 (gpt-oss)".into(),
    })
}
