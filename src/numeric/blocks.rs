//! Values in the blocks of ggml: codes of a few bits that share scales, decoded as they are read.
//!
//! Each value is computed in f32 as ggml's own reader does, one product and at most one difference, so it has the same
//! bits. Source: `dequantize_row_*` of ggml's `ggml-quants.c`, and `quants.py` of the Python package `gguf`.

use half::f16;

use super::elements::{Elements, Fill};
use super::format::FloatType;
use super::memory::NoMemory;
use super::real::Real;

/// The most values in a block.
const MOST: usize = 256;

/// Values in the blocks of formats without `K` in their name.
const SMALL: usize = 32;

/// Twice the values of FP4 (E2M1), by code.
const TWICE_FP4: [i8; 16] = [0, 1, 2, 3, 4, 6, 8, 12, 0, -1, -2, -3, -4, -6, -8, -12];

/// How the values of a block are stored, by ggml's name.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
#[allow(non_camel_case_types, reason = "ggml's names")]
pub enum BlockFormat {
    /// 4 bits and a scale.
    Q4_0,
    /// 4 bits, a scale and a minimum.
    Q4_1,
    /// 5 bits and a scale.
    Q5_0,
    /// 5 bits, a scale and a minimum.
    Q5_1,
    /// 8 bits and a scale.
    Q8_0,
    /// 2 bits; scales and minimums of 4 bits for 16 values.
    Q2_K,
    /// 3 bits; scales of 6 bits for 16 values.
    Q3_K,
    /// 4 bits; scales and minimums of 6 bits for 32 values.
    Q4_K,
    /// 5 bits; scales and minimums of 6 bits for 32 values.
    Q5_K,
    /// 6 bits; scales of 8 bits for 16 values.
    Q6_K,
    /// FP4 (E2M1) and an exponent for 32 values.
    MXFP4,
}

impl BlockFormat {
    /// All of them.
    pub const ALL: [BlockFormat; 11] = [
        BlockFormat::Q4_0,
        BlockFormat::Q4_1,
        BlockFormat::Q5_0,
        BlockFormat::Q5_1,
        BlockFormat::Q8_0,
        BlockFormat::Q2_K,
        BlockFormat::Q3_K,
        BlockFormat::Q4_K,
        BlockFormat::Q5_K,
        BlockFormat::Q6_K,
        BlockFormat::MXFP4,
    ];

    /// Values in a block.
    pub fn values(self) -> usize {
        match self {
            BlockFormat::Q2_K
            | BlockFormat::Q3_K
            | BlockFormat::Q4_K
            | BlockFormat::Q5_K
            | BlockFormat::Q6_K => MOST,
            _ => SMALL,
        }
    }

    /// Bytes of a block.
    pub fn bytes(self) -> usize {
        match self {
            BlockFormat::Q4_0 => 2 + 16,
            BlockFormat::Q4_1 => 4 + 16,
            BlockFormat::Q5_0 => 2 + 4 + 16,
            BlockFormat::Q5_1 => 4 + 4 + 16,
            BlockFormat::Q8_0 => 2 + 32,
            BlockFormat::Q2_K => 16 + 64 + 4,
            BlockFormat::Q3_K => 32 + 64 + 12 + 2,
            BlockFormat::Q4_K => 4 + 12 + 128,
            BlockFormat::Q5_K => 4 + 12 + 32 + 128,
            BlockFormat::Q6_K => 128 + 64 + 16 + 2,
            BlockFormat::MXFP4 => 1 + 16,
        }
    }

    /// Sets `out`, as long as a block has values, to those of `block`, as long as a block has bytes.
    fn decode(self, block: &[u8], out: &mut [f32]) {
        match self {
            BlockFormat::Q4_0 => {
                let scale = half(block, 0);
                nibbles(&block[2..], out, |code| scale * (code as f32 - 8.0));
            }
            BlockFormat::Q4_1 => {
                let (scale, least) = (half(block, 0), half(block, 2));
                nibbles(&block[4..], out, |code| scale * code as f32 + least);
            }
            BlockFormat::Q5_0 => {
                let scale = half(block, 0);
                nibbles(&block[6..], out, f32::from);
                with_fifth_bits(&block[2..6], out, |code| scale * (code - 16.0));
            }
            BlockFormat::Q5_1 => {
                let (scale, least) = (half(block, 0), half(block, 2));
                nibbles(&block[8..], out, f32::from);
                with_fifth_bits(&block[4..8], out, |code| scale * code + least);
            }
            BlockFormat::Q8_0 => {
                let scale = half(block, 0);
                for (value, &code) in out.iter_mut().zip(&block[2..]) {
                    *value = f32::from(code as i8) * scale;
                }
            }
            BlockFormat::Q2_K => two_bits(block, out),
            BlockFormat::Q3_K => three_bits(block, out),
            BlockFormat::Q4_K => four_or_five_bits(block, &[], &block[16..], out),
            BlockFormat::Q5_K => four_or_five_bits(block, &block[16..48], &block[48..], out),
            BlockFormat::Q6_K => six_bits(block, out),
            BlockFormat::MXFP4 => {
                let scale = half_of_power(block[0]);
                let code = |code: u8| f32::from(TWICE_FP4[usize::from(code)]) * scale;
                nibbles(&block[1..], out, code);
            }
        }
    }
}

fn half(block: &[u8], at: usize) -> f32 {
    f16::from_le_bytes([block[at], block[at + 1]]).to_f32()
}

/// `2^(exponent - 128)`: half of what the exponent of a scale says, as the codes are twice their values.
fn half_of_power(exponent: u8) -> f32 {
    f32::from_bits(match exponent {
        0 => 0x0020_0000,
        1 => 0x0040_0000,
        exponent => (u32::from(exponent) - 1) << 23,
    })
}

/// The low halves of the bytes, then the high ones.
fn nibbles(bytes: &[u8], out: &mut [f32], value: impl Fn(u8) -> f32) {
    let (low, high) = out.split_at_mut(SMALL / 2);
    for ((low, high), byte) in low.iter_mut().zip(high).zip(bytes) {
        *low = value(byte & 15);
        *high = value(byte >> 4);
    }
}

/// Adds the fifth bit to codes of four, and makes values of them.
fn with_fifth_bits(bits: &[u8], out: &mut [f32], value: impl Fn(f32) -> f32) {
    for (at, out) in out.iter_mut().enumerate() {
        let bit = bits[at / 8] >> (at % 8) & 1;
        *out = value(*out + f32::from(bit * 16));
    }
}

/// Sixteen scales and minimums, then codes: in each 32 bytes the lowest two bits of the first 32 values, and so on.
fn two_bits(block: &[u8], out: &mut [f32]) {
    let (scales, codes) = (&block[..16], &block[16..80]);
    let (scale, least) = (half(block, 80), half(block, 82));
    for (group, out) in out.chunks_exact_mut(16).enumerate() {
        let step = scale * f32::from(scales[group] & 15);
        let below = least * f32::from(scales[group] >> 4);
        for (value, &byte) in out.iter_mut().zip(codes_of(codes, group)) {
            let code = byte >> (group / 2 % 4 * 2) & 3;
            *value = step * f32::from(code) - below;
        }
    }
}

/// The bytes that hold two bits of each value of a group of 16.
fn codes_of(codes: &[u8], group: usize) -> &[u8] {
    let start = group / 8 * 32 + group % 2 * 16;
    &codes[start..start + 16]
}

/// The third bits, the lower two, scales of six bits, and their scale. A third bit that is not set takes four away.
fn three_bits(block: &[u8], out: &mut [f32]) {
    let (high, codes, scales) = (&block[..32], &block[32..96], &block[96..108]);
    let scale = half(block, 108);
    for (group, out) in out.chunks_exact_mut(16).enumerate() {
        let low = scales[group % 8] >> (group / 8 * 4) & 15;
        let top = scales[8 + group % 4] >> (group / 4 * 2) & 3;
        let step = scale * (f32::from(low | top << 4) - 32.0);
        let bits = &high[group % 2 * 16..];
        for ((value, &byte), bit) in out.iter_mut().zip(codes_of(codes, group)).zip(bits) {
            let code = f32::from(byte >> (group / 2 % 4 * 2) & 3);
            let bit = bit >> (group / 2) & 1;
            *value = step * (code - f32::from(4 * (1 - bit)));
        }
    }
}

/// Scale and minimum, the six bits of each group's own, and codes; fifth bits where there are some.
fn four_or_five_bits(block: &[u8], fifth: &[u8], codes: &[u8], out: &mut [f32]) {
    let (scale, least) = (half(block, 0), half(block, 2));
    let packed = &block[4..16];
    for (group, out) in out.chunks_exact_mut(32).enumerate() {
        let (own, below) = match group {
            0..4 => (packed[group] & 63, packed[group + 4] & 63),
            _ => (
                packed[group + 4] & 15 | packed[group - 4] >> 6 << 4,
                packed[group + 4] >> 4 | packed[group] >> 6 << 4,
            ),
        };
        let (step, below) = (scale * f32::from(own), least * f32::from(below));
        let bytes = &codes[group / 2 * 32..];
        for (at, (value, byte)) in out.iter_mut().zip(bytes).enumerate() {
            let bit = fifth.get(at).map_or(0, |bits| bits >> group & 1);
            let code = byte >> (group % 2 * 4) & 15 | bit << 4;
            *value = step * f32::from(code) - below;
        }
    }
}

/// The lower four bits, the upper two, scales, and their scale.
fn six_bits(block: &[u8], out: &mut [f32]) {
    let (low, high) = (&block[..128], &block[128..192]);
    let (scales, scale) = (&block[192..208], half(block, 208));
    for (group, out) in out.chunks_exact_mut(16).enumerate() {
        let step = scale * f32::from(scales[group] as i8);
        // In each half of 128 values: 64 bytes of low bits, first those of the first 64 values, and 32 bytes of high bits.
        let (part, within) = (group / 8, group % 8);
        let low = &low[part * 64 + within % 4 * 16..];
        let high = &high[part * 32 + within % 2 * 16..];
        for ((value, low), high) in out.iter_mut().zip(low).zip(high) {
            let code = low >> (within / 4 * 4) & 15 | (high >> (within / 2 * 2) & 3) << 4;
            *value = step * (f32::from(code) - 32.0);
        }
    }
}

/// Values in blocks, one after the other.
#[derive(Debug, Clone, Copy)]
pub struct Blocks<'a> {
    bytes: &'a [u8],
    format: BlockFormat,
}

impl<'a> Blocks<'a> {
    /// The values of `bytes`; `None` if these are no whole number of blocks.
    pub fn new(bytes: &'a [u8], format: BlockFormat) -> Option<Blocks<'a>> {
        let whole = bytes.len().is_multiple_of(format.bytes());
        whole.then_some(Blocks { bytes, format })
    }

    /// Calls `each` with the values, run by run, and their place in what is asked for; returns the bytes read.
    fn runs(&self, first: u64, count: usize, mut each: impl FnMut(usize, &[f32])) -> usize {
        let (values, bytes) = (self.format.values(), self.format.bytes());
        let mut buffer = [0f32; MOST];
        let buffer = &mut buffer[..values];
        let (mut block, mut within) = (first as usize / values, first as usize % values);
        let (mut done, mut read) = (0, 0);
        while done < count {
            let stored = &self.bytes[block * bytes..(block + 1) * bytes];
            self.format.decode(stored, buffer);
            let run = (values - within).min(count - done);
            each(done, &buffer[within..within + run]);
            (block, within, done, read) = (block + 1, 0, done + run, read + bytes);
        }
        read
    }
}

impl<R: Real> Fill<R> for Blocks<'_> {
    fn fill(&self, first: u64, out: &mut [R]) -> Result<usize, NoMemory> {
        Ok(self.runs(first, out.len(), |at, values| {
            for (out, value) in out[at..].iter_mut().zip(values) {
                *out = R::from_f32(*value);
            }
        }))
    }
}

impl Elements for Blocks<'_> {
    fn format(&self) -> FloatType {
        FloatType::F32
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    /// Where a block has numbers in F16.
    fn halves(format: BlockFormat) -> &'static [usize] {
        match format {
            BlockFormat::Q4_0 | BlockFormat::Q5_0 | BlockFormat::Q8_0 => &[0],
            BlockFormat::Q4_1 | BlockFormat::Q5_1 | BlockFormat::Q4_K | BlockFormat::Q5_K => {
                &[0, 2]
            }
            BlockFormat::Q2_K => &[80, 82],
            BlockFormat::Q3_K => &[108],
            BlockFormat::Q6_K => &[208],
            BlockFormat::MXFP4 => &[],
        }
    }

    /// Three blocks of mixed bytes with scales that are numbers.
    fn three(format: BlockFormat) -> Vec<u8> {
        let size = format.bytes();
        let mut bytes = Vec::new();
        for block in 0..3 {
            let byte = |at: usize| ((at * at * 31 + at * 151 + block * 77 + 43) % 251) as u8;
            let mut one: Vec<u8> = (0..size).map(byte).collect();
            for &at in halves(format) {
                let scale = (0x2e66 - block * 0x0111 + at) as u16;
                one[at..at + 2].copy_from_slice(&scale.to_le_bytes());
            }
            if format == BlockFormat::MXFP4 {
                one[0] = [0, 1, 120][block];
            }
            bytes.extend(one);
        }
        bytes
    }

    fn decoded(format: BlockFormat) -> Vec<f32> {
        let bytes = three(format);
        let mut values = vec![f32::NAN; 3 * format.values()];
        let read = Blocks::new(&bytes, format)
            .unwrap()
            .fill(0, &mut values)
            .unwrap();
        assert_eq!(read, bytes.len());
        values
    }

    /// By `quants.dequantize` of the Python package gguf 0.19.0: of the same bytes, FNV-1a of the values' bits, and the
    /// second and the last but one.
    #[test]
    fn values_have_the_bits_of_the_reference() {
        let expected = [
            (
                BlockFormat::Q4_0,
                0xcd7f_b3db_8357_76a5,
                [-0.199_951_17, -0.533_203_1],
            ),
            (
                BlockFormat::Q4_1,
                0x2446_ad07_81bc_b6a5,
                [0.400_024_4, 0.666_626],
            ),
            (
                BlockFormat::Q5_0,
                0xb965_c9ab_067b_f4a5,
                [1.299_682_6, 0.199_951_17],
            ),
            (
                BlockFormat::Q5_1,
                0x80db_ec87_bb59_d6a5,
                [2.099_609_4, 0.866_577_15],
            ),
            (
                BlockFormat::Q8_0,
                0xe7dc_a61d_a3d4_6b65,
                [2.199_463, 8.464_6],
            ),
            (
                BlockFormat::Q2_K,
                0x012b_dae7_7210_1a25,
                [3.250_366_2, -0.644_897_46],
            ),
            (
                BlockFormat::Q3_K,
                0x85a1_a70b_978c_ed25,
                [-2.877_319_3, -4.687_5],
            ),
            (
                BlockFormat::Q4_K,
                0x7c90_1090_ab3d_ccdd,
                [4.595_093, 1.929_809_6],
            ),
            (
                BlockFormat::Q5_K,
                0x2aa1_7a7c_3efa_ae3d,
                [30.988_647, 9.128_052],
            ),
            (
                BlockFormat::Q6_K,
                0x36e9_204d_12c1_adc1,
                [-11.830_444, 42.053_223],
            ),
            (
                BlockFormat::MXFP4,
                0x53f8_f7a7_8398_5aa5,
                [-5.877_472e-39, -0.003_906_25],
            ),
        ];
        assert_eq!(expected.map(|(format, ..)| format), BlockFormat::ALL);
        for (format, hash, some) in expected {
            let values = decoded(format);
            let found: [f32; 2] = [values[1], values[values.len() - 2]];
            assert_eq!(found, some, "{format:?}");
            let mix = |hash: u64, value: &f32| {
                (hash ^ u64::from(value.to_bits())).wrapping_mul(0x0100_0000_01b3)
            };
            let bits = values.iter().fold(0xcbf2_9ce4_8422_2325, mix);
            assert_eq!(bits, hash, "{format:?}");
        }
    }

    #[test]
    fn what_is_no_whole_number_of_blocks_is_refused() {
        for format in BlockFormat::ALL {
            let bytes = three(format);
            assert!(Blocks::new(&bytes[1..], format).is_none());
            assert!(Blocks::new(&[], format).is_some());
        }
    }

    proptest! {
        /// Any range equals that part of all values, in both precisions.
        #[test]
        fn any_range_is_a_part_of_the_whole(format in 0usize..11, from in 0.0..1.0, length in 0.0..1.0) {
            let format = BlockFormat::ALL[format];
            let (bytes, whole) = (three(format), decoded(format));
            let first = (from * whole.len() as f64) as usize;
            let length = (length * (whole.len() - first) as f64) as usize;
            let (mut single, mut double) = (vec![f32::NAN; length], vec![f64::NAN; length]);
            let blocks = Blocks::new(&bytes, format).unwrap();
            Fill::<f32>::fill(&blocks, first as u64, &mut single).unwrap();
            Fill::<f64>::fill(&blocks, first as u64, &mut double).unwrap();
            for (at, (single, double)) in single.iter().zip(&double).enumerate() {
                prop_assert_eq!(single.to_bits(), whole[first + at].to_bits());
                prop_assert_eq!(*double, f64::from(*single));
            }
        }
    }
}
