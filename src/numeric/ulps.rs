//! The distance between two values of a format in ULPs: how many values of the format lie between them, plus one.

use super::format::FloatType;

impl FloatType {
    /// The distance of two elements in ULPs: 1 from a value to the next; 0 between equal values, between the two
    /// zeros, and between NaNs; `u64::MAX` between NaN and a number.
    ///
    /// Each slice holds one little-endian element.
    pub fn ulps_between(self, a: &[u8], b: &[u8]) -> u64 {
        match (self.place(a), self.place(b)) {
            (Some(a), Some(b)) => a.abs_diff(b),
            (None, None) => 0,
            _ => u64::MAX,
        }
    }

    /// An element's place among the values of the format in ascending order, counted from zero; `None` for NaN.
    fn place(self, element: &[u8]) -> Option<i64> {
        let mut bits = [0; 8];
        let size = self.size().min(element.len());
        bits[..size].copy_from_slice(&element[..size]);
        let bits = u64::from_le_bytes(bits);
        let sign = 1u64 << (8 * self.size() - 1);
        let magnitude = bits & (sign - 1);
        if magnitude > self.infinity() {
            return None;
        }
        // A magnitude has at most 63 bits.
        let magnitude = magnitude as i64;
        Some(if bits & sign == 0 {
            magnitude
        } else {
            -magnitude
        })
    }

    /// The bits of infinity; of the largest number, if the format has no infinity. NaNs lie beyond.
    fn infinity(self) -> u64 {
        match self {
            FloatType::F64 => 0x7ff0_0000_0000_0000,
            FloatType::F32 => 0x7f80_0000,
            FloatType::F16 => 0x7c00,
            FloatType::Bf16 => 0x7f80,
            FloatType::F8E4m3 => 0x7e,
            FloatType::F8E5m2 => 0x7c,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn steps_are_counted_across_zero_and_exponents() {
        let bf16 = |value: f32| half::bf16::from_f32(value).to_le_bytes();
        let steps = |a: f32, b: f32| FloatType::Bf16.ulps_between(&bf16(a), &bf16(b));
        assert_eq!(steps(1.0, 1.0), 0);
        assert_eq!(steps(0.0, -0.0), 0);
        assert_eq!(steps(1.0, 1.0 + 1.0 / 128.0), 1);
        // Below one, an ULP is half as large.
        assert_eq!(steps(1.0 - 1.0 / 128.0, 1.0 + 1.0 / 128.0), 3);
        let least = f32::from_bits(0x1_0000);
        assert_eq!(steps(least, -least), 2);
        assert_eq!(steps(f32::NAN, f32::NAN), 0);
        assert_eq!(steps(f32::NAN, 1.0), u64::MAX);
        assert_eq!(
            steps(f32::INFINITY, half::bf16::MAX.to_f32()),
            1,
            "infinity follows the largest number"
        );
    }

    #[test]
    fn neighbours_are_one_step_apart_in_every_format() {
        for (format, size) in [
            (FloatType::F64, 8),
            (FloatType::F32, 4),
            (FloatType::F16, 2),
            (FloatType::Bf16, 2),
            (FloatType::F8E4m3, 1),
            (FloatType::F8E5m2, 1),
        ] {
            let bits = |bits: u64| bits.to_le_bytes()[..size].to_vec();
            let infinity = format.infinity();
            for magnitude in [0, 1, 5, infinity / 2, infinity - 1] {
                let (a, b) = (bits(magnitude), bits(magnitude + 1));
                assert_eq!(format.ulps_between(&a, &b), 1, "{format:?} {magnitude}");
                let mut values = [0.0f64];
                format.decode(&b, &mut values);
                assert!(!values[0].is_nan(), "{format:?} {magnitude}");
            }
            assert_eq!(format.ulps_between(&bits(0), &bits(infinity + 1)), u64::MAX);
            let mut values = [0.0f64];
            format.decode(&bits(infinity + 1), &mut values);
            assert!(values[0].is_nan(), "{format:?}");
        }
    }
}
