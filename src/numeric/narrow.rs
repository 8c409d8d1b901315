//! Floats of 16 and 8 bits, converted by branchless arithmetic on the bits of an `f32`: `F16`, `F8_E4M3` (no
//! infinity, one NaN) and `F8_E5M2` (the top byte of an `F16`).
//!
//! Source: IEEE 754-2019, 3.4; Micikevicius et al., "FP8 Formats for Deep Learning", arXiv:2209.05433, table 1.

/// A format of sign, exponent and mantissa, stored in `BYTES` bytes, whose values an `f32` holds exactly.
pub(super) trait Narrow<const BYTES: usize>: Copy {
    /// Bits of the mantissa.
    const MANTISSA: u32;
    /// The exponent of the smallest normal value.
    const LEAST: i32;
    /// The code after that of the largest value; values out of range round to it.
    const BEYOND: u32;
    /// Whether that code is infinity; otherwise it is NaN.
    const INFINITE: bool;
    /// The code for a NaN with these `f32` bits.
    fn nan(bits: u32) -> u32;

    /// The value of the stored bytes; a NaN becomes quiet.
    #[inline(always)]
    fn decode(self, raw: [u8; BYTES]) -> f32 {
        let mut code = [0; 4];
        code[..BYTES].copy_from_slice(&raw);
        let code = u32::from_le_bytes(code);
        let sign = code >> (8 * BYTES - 1) << 31;
        let magnitude = code & ((1 << (8 * BYTES - 1)) - 1);
        let shifted = magnitude << (23 - Self::MANTISSA);
        let least = power_of_two(Self::LEAST);
        // Adds a hidden bit and subtracts it again: exact, and fast on processors that are slow with subnormal
        // operands.
        let subnormal = f32::from_bits(shifted + least) - f32::from_bits(least);
        let finite = if magnitude < 1 << Self::MANTISSA {
            subnormal.to_bits()
        } else {
            shifted + power_of_two(Self::LEAST - 1)
        };
        let special = match Self::INFINITE {
            true if magnitude == Self::BEYOND => INFINITY,
            true => QUIET_NAN | shifted,
            false => QUIET_NAN,
        };
        let is_finite = magnitude < Self::BEYOND;
        f32::from_bits(sign | if is_finite { finite } else { special })
    }

    /// The bytes of the nearest value; ties go to the even mantissa.
    #[inline(always)]
    fn encode(self, value: f32) -> [u8; BYTES] {
        let bits = value.to_bits();
        let sign = bits >> 31 << (8 * BYTES - 1);
        let magnitude = bits & !(1 << 31);
        let cut = 23 - Self::MANTISSA;
        let half = (1 << (cut - 1)) - 1 + (magnitude >> cut & 1);
        let bias = power_of_two(Self::LEAST - 1) >> cut;
        let normal = ((magnitude + half) >> cut).wrapping_sub(bias);
        // The last bit of this sum has the weight of a subnormal's last bit, so the addition does the rounding.
        let unit = power_of_two(Self::LEAST - Self::MANTISSA as i32 + 23);
        let sum = f32::from_bits(magnitude) + f32::from_bits(unit);
        let subnormal = sum.to_bits().wrapping_sub(unit);
        let nearest = if magnitude < power_of_two(Self::LEAST) {
            subnormal
        } else {
            normal.min(Self::BEYOND)
        };
        let is_nan = magnitude > INFINITY;
        let code = if is_nan { Self::nan(bits) } else { nearest };
        let mut raw = [0; BYTES];
        raw.copy_from_slice(&(sign | code).to_le_bytes()[..BYTES]);
        raw
    }
}

const INFINITY: u32 = 0x7f80_0000;
const QUIET_NAN: u32 = 0x7fc0_0000;

/// The bits of a power of two as an `f32`.
#[inline(always)]
const fn power_of_two(exponent: i32) -> u32 {
    ((exponent + 127) as u32) << 23
}

/// 5 bits of exponent, 10 of mantissa.
#[derive(Clone, Copy)]
pub(super) struct F16;

impl Narrow<2> for F16 {
    const MANTISSA: u32 = 10;
    const LEAST: i32 = -14;
    const BEYOND: u32 = 0x7c00;
    const INFINITE: bool = true;
    #[inline(always)]
    fn nan(bits: u32) -> u32 {
        // Keeps the top of the NaN's payload, as processors do.
        0x7e00 | bits >> 13 & 0x3ff
    }
}

/// 4 bits of exponent, 3 of mantissa.
#[derive(Clone, Copy)]
pub(super) struct F8E4m3;

impl Narrow<1> for F8E4m3 {
    const MANTISSA: u32 = 3;
    const LEAST: i32 = -6;
    const BEYOND: u32 = 0x7f;
    const INFINITE: bool = false;
    #[inline(always)]
    fn nan(_: u32) -> u32 {
        0x7f
    }
}

/// 5 bits of exponent, 2 of mantissa.
#[derive(Clone, Copy)]
pub(super) struct F8E5m2;

impl Narrow<1> for F8E5m2 {
    const MANTISSA: u32 = 2;
    const LEAST: i32 = -14;
    const BEYOND: u32 = 0x7c;
    const INFINITE: bool = true;
    #[inline(always)]
    fn nan(_: u32) -> u32 {
        0x7f
    }
}

#[cfg(test)]
mod tests {
    use half::f16;

    use super::*;

    /// The slow twin of `F8E4m3::decode`.
    fn decode_e4m3(byte: u8) -> f32 {
        let exponent = i32::from(byte >> 3 & 0xf);
        let mantissa = f32::from(byte & 7);
        let magnitude = match (exponent, byte & 7) {
            (15, 7) => f32::NAN,
            (0, _) => mantissa * 2f32.powi(-9),
            _ => (8.0 + mantissa) * 2f32.powi(exponent - 10),
        };
        if byte >> 7 == 1 {
            -magnitude
        } else {
            magnitude
        }
    }

    /// The slow twin of `F8E5m2::decode`.
    fn decode_e5m2(byte: u8) -> f32 {
        f16::from_bits(u16::from(byte) << 8).to_f32()
    }

    /// The slow twin of `F8E4m3::encode`.
    fn encode_e4m3(value: f32) -> u8 {
        let sign = u8::from(value.is_sign_negative()) << 7;
        let rounded = round_to_grid(value.abs(), 3, -6);
        if rounded.is_nan() || rounded > 448.0 {
            return sign | 0x7f;
        }
        let exponent = binade(rounded, -6);
        let mantissa = (rounded * 2f64.powi(3 - exponent)) as u8;
        // A normal number has its hidden bit (8) added into the exponent field.
        sign | if mantissa < 8 {
            mantissa
        } else {
            (((exponent + 7) as u8) << 3) + (mantissa - 8)
        }
    }

    /// The slow twin of `F8E5m2::encode`.
    fn encode_e5m2(value: f32) -> u8 {
        let sign = u8::from(value.is_sign_negative()) << 7;
        if value.is_nan() {
            return sign | 0x7f;
        }
        let rounded = round_to_grid(value.abs(), 2, -14);
        // `rounded` has two bits of mantissa, so the conversion is exact or overflows as it should.
        let bits = f16::from_f64(if rounded > 57_344.0 {
            f64::INFINITY
        } else {
            rounded
        })
        .to_bits();
        sign | (bits >> 8) as u8
    }

    /// Rounds a magnitude to floats of `mantissa_bits` bits whose smallest normal number is `2^least`.
    fn round_to_grid(magnitude: f32, mantissa_bits: i32, least: i32) -> f64 {
        let magnitude = f64::from(magnitude);
        if !magnitude.is_finite() {
            return magnitude;
        }
        let step = 2f64.powi(binade(magnitude, least) - mantissa_bits);
        (magnitude / step).round_ties_even() * step
    }

    /// The exponent of the largest power of two not above the magnitude; at least `least`.
    fn binade(magnitude: f64, least: i32) -> i32 {
        let exponent = (magnitude.to_bits() >> 52) as i32 - 1023;
        exponent.max(least)
    }

    fn encodes_as_the_twins(bits: u32) {
        let value = f32::from_bits(bits);
        let half = f16::from_f32(value).to_le_bytes();
        assert_eq!(F16.encode(value), half, "{bits:#x}");
        assert_eq!(F8E4m3.encode(value), [encode_e4m3(value)], "{bits:#x}");
        assert_eq!(F8E5m2.encode(value), [encode_e5m2(value)], "{bits:#x}");
    }

    #[test]
    fn every_code_decodes_as_its_twin_does() {
        for code in 0..=u16::MAX {
            let twin = f16::from_bits(code).to_f32();
            let found = F16.decode(code.to_le_bytes());
            assert_eq!(found.to_bits(), twin.to_bits(), "{code:#x}");
        }
        for code in 0..=u8::MAX {
            let found = F8E4m3.decode([code]).to_bits();
            assert_eq!(found, decode_e4m3(code).to_bits(), "{code:#x}");
            let found = F8E5m2.decode([code]).to_bits();
            assert_eq!(found, decode_e5m2(code).to_bits(), "{code:#x}");
        }
    }

    #[test]
    fn values_around_every_tie_encode_as_their_twins_do() {
        // Any upper half will do: the ties of all three formats end in zeros, or in a one and zeros.
        for upper in 0..=u16::MAX {
            for lower in [
                0, 1, 0xfff, 0x1000, 0x1001, 0x1fff, 0x3000, 0x7fff, 0x8000, 0xffff,
            ] {
                encodes_as_the_twins(u32::from(upper) << 16 | lower);
            }
        }
    }

    #[test]
    #[ignore = "all 2^32 values take minutes"]
    fn every_value_encodes_as_its_twin_does() {
        (0..=u32::MAX).for_each(encodes_as_the_twins);
    }

    #[test]
    fn limits_are_those_of_the_paper() {
        assert_eq!(F8E4m3.decode([0x7e]), 448.0);
        assert!(F8E4m3.decode([0x7f]).is_nan());
        assert_eq!(F8E4m3.encode(464.0), [0x7e]);
        assert_eq!(F8E4m3.encode(464f32.next_up()), [0x7f]);
        assert_eq!(F8E5m2.decode([0x7b]), 57_344.0);
        assert_eq!(F8E5m2.decode([0x7c]), f32::INFINITY);
        assert_eq!(F8E5m2.encode(61_439.0), [0x7b]);
        assert_eq!(F8E5m2.encode(61_440.0), [0x7c]);
        assert_eq!(F8E5m2.encode(-1e9), [0xfc]);
        assert!(F8E5m2.decode(F8E5m2.encode(f32::NAN)).is_nan());
    }
}
