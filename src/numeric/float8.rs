//! The two 8-bit floats of checkpoints, `F8_E4M3` (no infinity, one NaN) and `F8_E5M2` (the top byte of an F16).
//!
//! Source: Micikevicius et al., "FP8 Formats for Deep Learning", arXiv:2209.05433, table 1.

use half::f16;

/// The value of an `F8_E4M3` byte.
pub(super) fn decode_e4m3(byte: u8) -> f32 {
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

/// The value of an `F8_E5M2` byte.
pub(super) fn decode_e5m2(byte: u8) -> f32 {
    f16::from_bits(u16::from(byte) << 8).to_f32()
}

/// Rounds to the nearest `F8_E4M3`, ties to even; beyond the range is NaN, as the format has no infinity.
pub(super) fn encode_e4m3(value: f64) -> u8 {
    let sign = u8::from(value.is_sign_negative()) << 7;
    let rounded = round_to_grid(value.abs(), 3, -6);
    if rounded.is_nan() || rounded > 448.0 {
        return sign | 0x7f;
    }
    let exponent = binade(rounded, -6);
    let mantissa = (rounded * 2f64.powi(3 - exponent)) as u8;
    // A normal number carries its hidden bit (8) into the exponent field.
    sign | if mantissa < 8 {
        mantissa
    } else {
        (((exponent + 7) as u8) << 3) + (mantissa - 8)
    }
}

/// Rounds to the nearest `F8_E5M2`, ties to even; beyond the range is infinity.
pub(super) fn encode_e5m2(value: f64) -> u8 {
    if value.is_nan() {
        return u8::from(value.is_sign_negative()) << 7 | 0x7f;
    }
    let rounded = round_to_grid(value.abs(), 2, -14);
    // `rounded` has two bits of mantissa, so the conversion is exact or overflows as it should.
    let bits = f16::from_f64(if rounded > 57_344.0 {
        f64::INFINITY
    } else {
        rounded
    })
    .to_bits();
    u8::from(value.is_sign_negative()) << 7 | (bits >> 8) as u8
}

/// Rounds a magnitude to a float grid of so many mantissa bits whose smallest normal is `2^min_exponent`.
fn round_to_grid(magnitude: f64, mantissa_bits: i32, min_exponent: i32) -> f64 {
    if !magnitude.is_finite() {
        return magnitude;
    }
    let step = 2f64.powi(binade(magnitude, min_exponent) - mantissa_bits);
    (magnitude / step).round_ties_even() * step
}

/// The exponent of the power of two at or below a magnitude, at least `min_exponent`.
fn binade(magnitude: f64, min_exponent: i32) -> i32 {
    let exponent = (magnitude.to_bits() >> 52) as i32 - 1023;
    exponent.max(min_exponent)
}

#[cfg(test)]
mod tests {
    use super::*;

    /// All finite values of a format with their bytes, ascending, positive half.
    fn table(decode: fn(u8) -> f32) -> Vec<(f64, u8)> {
        (0..=0x7f)
            .map(|byte| (f64::from(decode(byte)), byte))
            .filter(|(value, _)| value.is_finite())
            .collect()
    }

    fn check(decode: fn(u8) -> f32, encode: fn(f64) -> u8) {
        let table = table(decode);
        for window in table.windows(2) {
            let ((low, low_byte), (high, high_byte)) = (window[0], window[1]);
            assert!(low < high);
            assert_eq!(encode(low), low_byte);
            assert_eq!(encode(-low), low_byte | 0x80);
            let middle = (low + high) / 2.0;
            let even = if low_byte % 2 == 0 {
                low_byte
            } else {
                high_byte
            };
            assert_eq!(encode(middle), even, "tie between {low} and {high}");
            assert_eq!(encode(middle.next_down()), low_byte);
            assert_eq!(encode(middle.next_up()), high_byte);
        }
    }

    #[test]
    fn every_value_and_every_midpoint_rounds_to_nearest_even() {
        check(decode_e4m3, encode_e4m3);
        check(decode_e5m2, encode_e5m2);
    }

    #[test]
    fn limits_are_those_of_the_paper() {
        assert_eq!(decode_e4m3(0x7e), 448.0);
        assert!(decode_e4m3(0x7f).is_nan());
        assert_eq!(encode_e4m3(464.0), 0x7e);
        assert_eq!(encode_e4m3(464.1), 0x7f);
        assert_eq!(decode_e5m2(0x7b), 57_344.0);
        assert_eq!(decode_e5m2(0x7c), f32::INFINITY);
        assert_eq!(encode_e5m2(61_439.0), 0x7b);
        assert_eq!(encode_e5m2(61_440.0), 0x7c);
        assert_eq!(encode_e5m2(-1e9), 0xfc);
        assert!(decode_e5m2(encode_e5m2(f64::NAN)).is_nan());
    }
}
