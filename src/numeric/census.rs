//! Counts kinds of values (zero, subnormal, not finite) from their bits alone.

use super::format::FloatType;
use super::vector::vectorised;

/// Elements per strip; small enough that the narrowest counter cannot overflow.
const STRIP: usize = 1024;

/// What the bits of a run of elements tell.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Census {
    /// The largest magnitude, as bits; that of infinity or NaN if one occurs.
    pub largest: u64,
    /// Zeros of either sign.
    pub zeros: u64,
    /// Values smaller than the smallest normal number, without the zeros.
    pub subnormal: u64,
}

impl Census {
    /// The census of the little-endian elements in `bytes`.
    pub fn count(format: FloatType, bytes: &[u8]) -> Census {
        let normal = format.least_normal();
        let mut census = Census::default();
        for strip in bytes.chunks(STRIP * format.size()) {
            let (largest, zeros, below) = match format.size() {
                8 => census8(strip, normal),
                4 => census4(strip, normal),
                2 => census2(strip, normal),
                _ => census1(strip, normal),
            };
            census.largest = census.largest.max(largest);
            census.zeros += zeros;
            census.subnormal += below - zeros;
        }
        census
    }

    /// Whether no element is NaN or infinite.
    pub fn is_finite(&self, format: FloatType) -> bool {
        self.largest <= format.largest_finite()
    }
}

impl FloatType {
    /// The bits of the smallest normal number.
    fn least_normal(self) -> u64 {
        match self {
            FloatType::F64 => 1 << 52,
            FloatType::F32 => 1 << 23,
            FloatType::F16 => 1 << 10,
            FloatType::Bf16 => 1 << 7,
            FloatType::F8E4m3 => 1 << 3,
            FloatType::F8E5m2 => 1 << 2,
        }
    }

    /// The bits of the largest finite number.
    fn largest_finite(self) -> u64 {
        match self {
            FloatType::F64 => 0x7fef_ffff_ffff_ffff,
            FloatType::F32 => 0x7f7f_ffff,
            FloatType::F16 => 0x7bff,
            FloatType::Bf16 => 0x7f7f,
            FloatType::F8E4m3 => 0x7e,
            FloatType::F8E5m2 => 0x7b,
        }
    }
}

/// A kernel that returns a strip's largest magnitude, its zeros, and its values below a bound.
macro_rules! strip_census {
    ($name:ident, $raw:ty, $count:ty, $bytes:literal) => {
        vectorised! {
            fn $name(bytes: &[u8], bound: u64) -> (u64, u64, u64) {
                let bound = bound as $raw;
                let bytes = bytes.as_chunks::<$bytes>().0;
                let magnitude = |raw: &[u8; $bytes]| <$raw>::from_le_bytes(*raw) & (<$raw>::MAX >> 1);
                let (mut largest, mut least) = (0, <$raw>::MAX);
                for raw in bytes {
                    let magnitude = magnitude(raw);
                    largest = if magnitude > largest { magnitude } else { largest };
                    least = if magnitude < least { magnitude } else { least };
                }
                // Usually there is nothing to count.
                if least >= bound {
                    return (largest.into(), 0, 0);
                }
                let (mut zeros, mut below) = (0 as $count, 0 as $count);
                for raw in bytes {
                    let magnitude = magnitude(raw);
                    zeros += <$count>::from(magnitude == 0);
                    below += <$count>::from(magnitude < bound);
                }
                (largest.into(), zeros.into(), below.into())
            }
        }
    };
}

strip_census!(census8, u64, u64, 8);
strip_census!(census4, u32, u32, 4);
strip_census!(census2, u16, u16, 2);
strip_census!(census1, u8, u16, 1);

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    proptest! {
        #[test]
        fn agrees_with_the_decoded_values(
            bytes in prop::collection::vec(prop_oneof![Just(0u8), Just(0x80), any::<u8>()], 0..600),
        ) {
            for (format, least_normal) in [
                (FloatType::F64, f64::MIN_POSITIVE),
                (FloatType::F32, f64::from(f32::MIN_POSITIVE)),
                (FloatType::F16, 2f64.powi(-14)),
                (FloatType::Bf16, f64::from(f32::MIN_POSITIVE)),
                (FloatType::F8E4m3, 2f64.powi(-6)),
                (FloatType::F8E5m2, 2f64.powi(-14)),
            ] {
                let bytes = &bytes[..bytes.len() / format.size() * format.size()];
                let mut values = vec![0f64; bytes.len() / format.size()];
                format.decode(bytes, &mut values);
                let census = Census::count(format, bytes);
                let zeros = values.iter().filter(|value| **value == 0.0).count();
                prop_assert_eq!(census.zeros, zeros as u64);
                let small = |value: &&f64| **value != 0.0 && value.abs() < least_normal;
                prop_assert_eq!(census.subnormal, values.iter().filter(small).count() as u64);
                let finite = values.iter().all(|value| value.is_finite());
                prop_assert_eq!(census.is_finite(format), finite, "{:?}", format);
            }
        }
    }
}
