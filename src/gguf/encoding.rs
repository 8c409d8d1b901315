//! How a tensor's values are stored: F32, F16, BF16, and Q8_0, blocks of 32 values with one scale.

use half::f16;
use numeric::FloatType;

/// Values in a block of Q8_0.
const BLOCK: usize = 32;

/// Bytes of such a block: the scale as F16, then a byte for each value.
const BLOCK_BYTES: usize = 2 + BLOCK;

/// The type of a tensor in a file.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Encoding {
    /// IEEE 754 single precision.
    F32,
    /// IEEE 754 half precision.
    F16,
    /// The top half of an F32.
    Bf16,
    /// 8 bits and a scale for 32 values.
    Q8_0,
}

impl Encoding {
    /// The number of the type in a tensor's entry.
    pub fn kind(self) -> u32 {
        match self {
            Encoding::F32 => 0,
            Encoding::F16 => 1,
            Encoding::Q8_0 => 8,
            Encoding::Bf16 => 30,
        }
    }

    /// The number in `general.file_type` of a file whose matrices have this type.
    pub fn file_type(self) -> u32 {
        match self {
            Encoding::F32 => 0,
            Encoding::F16 => 1,
            Encoding::Q8_0 => 7,
            Encoding::Bf16 => 32,
        }
    }

    /// The type that rows of so many values get: Q8_0 needs whole blocks, and F16 stands in for it where they are not.
    pub fn for_rows_of(self, columns: usize) -> Encoding {
        match self {
            Encoding::Q8_0 if !columns.is_multiple_of(BLOCK) => Encoding::F16,
            _ => self,
        }
    }

    /// Bytes of so many values, a multiple of 32 of them in Q8_0.
    pub fn bytes(self, values: u64) -> Option<u64> {
        match self {
            Encoding::F32 => values.checked_mul(4),
            Encoding::F16 | Encoding::Bf16 => values.checked_mul(2),
            Encoding::Q8_0 => (values / BLOCK as u64).checked_mul(BLOCK_BYTES as u64),
        }
    }

    /// Encodes values, rounded to nearest; returns how many are too large for the type.
    pub fn encode(self, values: &mut [f32], out: &mut Vec<u8>) -> u64 {
        let format = match self {
            Encoding::F32 => FloatType::F32,
            Encoding::F16 => FloatType::F16,
            Encoding::Bf16 => FloatType::Bf16,
            Encoding::Q8_0 => return quantise(values, out),
        };
        let start = out.len();
        out.resize(start + values.len() * format.size(), 0);
        format.encode(values, false, &mut out[start..]).overflowed
    }
}

/// Q8_0: the scale is the largest magnitude over 127, and a value is what is nearest to value over scale, halves away
/// from zero. The quotient is a product with the scale's inverse in f32, as in the reference, which decides ties.
fn quantise(values: &[f32], out: &mut Vec<u8>) -> u64 {
    let mut too_large = 0;
    for block in values.chunks_exact(BLOCK) {
        let largest = block
            .iter()
            .fold(0f32, |largest, value| largest.max(value.abs()));
        let scale = largest / 127.0;
        let inverse = if scale == 0.0 { 0.0 } else { 1.0 / scale };
        let stored = f16::from_f32(scale);
        too_large += u64::from(stored.is_infinite());
        out.extend(stored.to_le_bytes());
        out.extend(
            block
                .iter()
                .map(|value| (value * inverse).round() as i8 as u8),
        );
    }
    too_large
}

#[cfg(test)]
mod tests {
    use super::*;

    fn encoded(encoding: Encoding, values: &[f32]) -> Vec<u8> {
        let mut out = Vec::new();
        assert_eq!(encoding.encode(&mut values.to_vec(), &mut out), 0);
        assert_eq!(
            out.len() as u64,
            encoding.bytes(values.len() as u64).unwrap()
        );
        out
    }

    #[test]
    fn blocks_by_hand() {
        // The largest is 127 halves, so the scale is 0.5: F16 0x3800. 1.25 is two and a half: away from zero.
        let mut block = [0f32; 32];
        block[..5].copy_from_slice(&[63.5, -63.5, 1.25, -1.25, 0.2]);
        let mut expected = vec![0x00, 0x38, 127, 129, 3, 253, 0];
        expected.resize(34, 0);
        assert_eq!(encoded(Encoding::Q8_0, &block), expected);
        assert_eq!(encoded(Encoding::Q8_0, &[0.0; 32]), [0; 34]);
        // So small that the scale rounds to zero: nothing is left, and nothing panics.
        let tiny = encoded(Encoding::Q8_0, &[1e-40; 32]);
        assert_eq!(tiny[..2], [0, 0]);
    }

    #[test]
    fn blocks_agree_with_f64() {
        let mut state = 1u64;
        for round in 0..2000 {
            let values: Vec<f32> = (0..32)
                .map(|_| {
                    state = state
                        .wrapping_mul(6_364_136_223_846_793_005)
                        .wrapping_add(1);
                    ((state >> 40) as f32 / 8_388_608.0 - 1.0) * 1.1f32.powi(round % 60 - 30)
                })
                .collect();
            let bytes = encoded(Encoding::Q8_0, &values);
            let largest = values.iter().fold(0f64, |l, v| l.max(f64::from(*v).abs()));
            let scale = largest / 127.0;
            assert_eq!(bytes[..2], f16::from_f64(scale).to_le_bytes());
            for (value, &code) in values.iter().zip(&bytes[2..]) {
                let quotient = f64::from(*value) / scale;
                let error = (quotient - f64::from(code as i8)).abs();
                assert!(error <= 0.5 + 1e-4, "{value} {scale} {code}");
            }
        }
    }

    #[test]
    fn what_does_not_fit_is_counted() {
        let mut out = Vec::new();
        assert_eq!(Encoding::F16.encode(&mut [65_504.0, 65_520.0], &mut out), 1);
        assert_eq!(Encoding::Q8_0.encode(&mut [1e9; 32], &mut out), 1);
        assert_eq!(Encoding::Q8_0.for_rows_of(48), Encoding::F16);
        assert_eq!(Encoding::Q8_0.for_rows_of(64), Encoding::Q8_0);
    }
}
