//! The float formats of checkpoints: decoded to the precision of the merge, rounded once on the way out.

use half::bf16;
use safetensors::Dtype;

use super::narrow::{F8E4m3, F8E5m2, F16, Narrow};
use super::real::Real;
use super::vector::vectorised;

/// A float format that can be read and written.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum FloatType {
    /// IEEE 754 double precision.
    F64,
    /// IEEE 754 single precision.
    F32,
    /// IEEE 754 half precision.
    F16,
    /// The top half of an F32.
    Bf16,
    /// 8 bits, 4 of exponent; no infinity.
    F8E4m3,
    /// 8 bits, 5 of exponent.
    F8E5m2,
}

/// How many values of a slice are not finite.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct NonFinite {
    /// NaNs.
    pub nan: u64,
    /// Infinities of either sign.
    pub infinite: u64,
}

impl NonFinite {
    /// Whether there is any such value.
    pub fn any(self) -> bool {
        self.nan + self.infinite > 0
    }

    /// Counts NaN and infinity in a slice.
    pub fn count<R: Real>(values: &[R]) -> Self {
        let limit = R::from_f64(f64::INFINITY);
        let mut found = Self::default();
        // Usually there are none; a branchless sweep confirms that at memory speed.
        if !all_below(values, limit) {
            for value in values {
                let value = value.to_f64();
                found.nan += u64::from(value.is_nan());
                found.infinite += u64::from(value.is_infinite());
            }
        }
        found
    }
}

impl std::ops::AddAssign for NonFinite {
    fn add_assign(&mut self, other: Self) {
        self.nan += other.nan;
        self.infinite += other.infinite;
    }
}

/// The values that an encoding could not represent as finite numbers.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Narrowed {
    /// Finite values too large to round to a finite value of the format.
    pub overflowed: u64,
    /// Values that were already NaN or infinite.
    pub non_finite: NonFinite,
}

impl FloatType {
    /// Whether it can say infinity. In a format that cannot, it becomes NaN.
    pub fn has_infinity(self) -> bool {
        self != FloatType::F8E4m3
    }

    /// The float format of a dtype; `None` for integers, bools and packed types.
    pub fn from_dtype(dtype: Dtype) -> Option<Self> {
        Some(match dtype {
            Dtype::F64 => Self::F64,
            Dtype::F32 => Self::F32,
            Dtype::F16 => Self::F16,
            Dtype::BF16 => Self::Bf16,
            Dtype::F8_E4M3 => Self::F8E4m3,
            Dtype::F8_E5M2 => Self::F8E5m2,
            _ => return None,
        })
    }

    /// The dtype as safetensors names it.
    pub fn dtype(self) -> Dtype {
        match self {
            Self::F64 => Dtype::F64,
            Self::F32 => Dtype::F32,
            Self::F16 => Dtype::F16,
            Self::Bf16 => Dtype::BF16,
            Self::F8E4m3 => Dtype::F8_E4M3,
            Self::F8E5m2 => Dtype::F8_E5M2,
        }
    }

    /// Bytes of one value.
    pub fn size(self) -> usize {
        match self {
            Self::F64 => 8,
            Self::F32 => 4,
            Self::F16 | Self::Bf16 => 2,
            Self::F8E4m3 | Self::F8E5m2 => 1,
        }
    }

    /// The smallest format that holds every value of both, by torch's promotion rules.
    pub fn promote(self, other: Self) -> Self {
        use FloatType::*;
        match (self, other) {
            (a, b) if a == b => a,
            (F64, _) | (_, F64) => F64,
            (F32, _) | (_, F32) => F32,
            (F16, Bf16) | (Bf16, F16) => F32,
            // F16 holds every 8-bit float exactly, and so does BF16.
            (F16, _) | (_, F16) => F16,
            (Bf16, _) | (_, Bf16) => Bf16,
            (F8E4m3 | F8E5m2, F8E4m3 | F8E5m2) => F16,
        }
    }

    /// Whether sources of this format are computed in `f64`.
    pub fn wants_f64(self) -> bool {
        matches!(self, Self::F64 | Self::F32)
    }

    /// The largest finite value, and the smallest magnitude, in precision `R`, that does not round to a finite one.
    fn limits<R: Real>(self) -> (f64, f64) {
        match self {
            Self::F64 => (f64::MAX, f64::INFINITY),
            Self::F32 => (f64::from(f32::MAX), (2.0 - 2f64.powi(-24)) * 2f64.powi(127)),
            Self::F16 => (65_504.0, 65_520.0),
            Self::Bf16 => (
                f64::from(bf16::MAX.to_f32()),
                (2.0 - 2f64.powi(-8)) * 2f64.powi(127),
            ),
            // 464 lies half-way between 448 and the NaN's place, and rounds to even: to 448. The next value above
            // 464 no longer does; at 464 the ULP is 2^8 times that of one.
            Self::F8E4m3 => (448.0, 464.0 + 256.0 / 4.0 * R::NOISE.to_f64()),
            Self::F8E5m2 => (57_344.0, 61_440.0),
        }
    }

    /// The largest finite value.
    pub fn largest(self) -> f64 {
        self.limits::<f64>().0
    }

    /// A magnitude that no weight of a trained model reaches in this format; infinity for a format of small numbers.
    pub fn absurd(self) -> f64 {
        match self {
            Self::F64 | Self::F32 | Self::Bf16 => 2f64.powi(20),
            Self::F16 | Self::F8E5m2 => 2f64.powi(14),
            Self::F8E4m3 => f64::INFINITY,
        }
    }

    /// Decodes little-endian bytes. Both slices should hold the same number of values; any excess is ignored.
    pub fn decode<R: Real>(self, bytes: &[u8], values: &mut [R]) {
        match self {
            Self::F64 => decode_f64(bytes, values),
            Self::F32 => decode_f32(bytes, values),
            Self::Bf16 => decode_bf16(bytes, values),
            Self::F16 => decode_narrow(F16, bytes, values),
            Self::F8E4m3 => decode_narrow(F8E4m3, bytes, values),
            Self::F8E5m2 => decode_narrow(F8E5m2, bytes, values),
        }
    }

    /// Counts NaN and infinity in stored bytes. Decodes them only if there are any, which is rare.
    pub fn non_finite(self, bytes: &[u8]) -> NonFinite {
        let mut found = NonFinite::default();
        if reaches_exponent(bytes, self.exponent_bits(), 1) {
            let mut values = [0f64; 512];
            for bytes in bytes.chunks(values.len() * self.size()) {
                let values = &mut values[..bytes.len() / self.size()];
                self.decode(bytes, values);
                found += NonFinite::count(values);
            }
        }
        found
    }

    /// Whether some stored value is not finite, or as large as no weight is; see [`absurd`](Self::absurd).
    pub(super) fn may_be_absurd(self, bytes: &[u8]) -> bool {
        // How many exponents are at least that of an absurd value.
        let last = match self {
            Self::F64 => 1024 - 20 + 1,
            Self::F32 | Self::Bf16 => 128 - 20 + 1,
            Self::F16 | Self::F8E5m2 => 16 - 14 + 1,
            Self::F8E4m3 => 1,
        };
        reaches_exponent(bytes, self.exponent_bits(), last)
    }

    /// The bits of a stored value that are all set if and only if it is not finite.
    fn exponent_bits(self) -> u64 {
        match self {
            Self::F64 => 0x7ff0 << 48,
            Self::F32 => 0x7f80 << 16,
            Self::F16 => 0x7c00,
            Self::Bf16 => 0x7f80,
            Self::F8E4m3 => 0x7f,
            Self::F8E5m2 => 0x7c,
        }
    }

    /// Encodes to little-endian bytes, rounding once to nearest even.
    ///
    /// With `saturate`, values out of range become the largest finite value of their sign. Without it, they become
    /// infinity, or NaN in `F8_E4M3`, which has no infinity. Both are counted.
    pub fn encode<R: Real>(self, values: &mut [R], saturate: bool, bytes: &mut [u8]) -> Narrowed {
        let (largest, beyond) = self.limits::<R>();
        // In f32, the limit of a wider format is infinity, which no finite value reaches.
        let limit = R::from_f64(beyond);
        if self.store(values, limit, bytes) {
            return Narrowed::default();
        }
        let inside = values.iter().filter(|value| value.abs() < limit).count();
        let outside = (values.len() - inside) as u64;
        let non_finite = NonFinite::count(values);
        if saturate {
            let largest = R::from_f64(largest);
            for value in values.iter_mut().filter(|value| value.abs() >= limit) {
                *value = if *value < R::ZERO {
                    R::ZERO - largest
                } else {
                    largest
                };
            }
            self.store(values, limit, bytes);
        }
        Narrowed {
            overflowed: outside - non_finite.nan - non_finite.infinite,
            non_finite,
        }
    }

    /// Encodes; returns whether all magnitudes are below the limit (false for a NaN).
    fn store<R: Real>(self, values: &[R], limit: R, bytes: &mut [u8]) -> bool {
        match self {
            Self::F64 => encode_f64(values, limit, bytes),
            Self::F32 => encode_f32(values, limit, bytes),
            Self::Bf16 => encode_bf16(values, limit, bytes),
            Self::F16 => encode_narrow(F16, values, limit, bytes),
            Self::F8E4m3 => encode_narrow(F8E4m3, values, limit, bytes),
            Self::F8E5m2 => encode_narrow(F8E5m2, values, limit, bytes),
        }
    }
}

vectorised! {
    /// Whether all magnitudes are below the limit; false for a NaN.
    fn all_below<R: Real>(values: &[R], limit: R) -> bool {
        values.iter().fold(true, |all, value| all & (value.abs() < limit))
    }
}

/// Whether the number that `bits` of some stored value make is one of the `last` largest that they can make; with 1,
/// whether all are set. The bits are contiguous, just below the sign. Works word by word.
fn reaches_exponent(bytes: &[u8], bits: u64, last: u64) -> bool {
    let sign = (bits << 1) & !bits;
    // The sign bit of each value in a word.
    let every = (0..u64::BITS)
        .step_by(sign.trailing_zeros() as usize + 1)
        .fold(0, |every, at| every | 1 << at);
    let (words, rest) = bytes.as_chunks();
    let mut rest_of = [0; 8];
    rest_of[..rest.len()].copy_from_slice(rest);
    let added = last * (bits & bits.wrapping_neg());
    let carries = carries(words, every * bits, every * added)
        | carries(&[rest_of], every * bits, every * added);
    carries & (every * sign) != 0
}

vectorised! {
    /// Adds to the masked bits of each value. Where they are large enough, this carries into the bit above; the result
    /// is the OR of all words.
    fn carries(words: &[[u8; 8]], mask: u64, added: u64) -> u64 {
        words.iter().fold(0, |carries, word| carries | ((u64::from_le_bytes(*word) & mask) + added))
    }
}

vectorised! {
    fn decode_f64<R: Real>(bytes: &[u8], values: &mut [R]) {
        for (value, raw) in values.iter_mut().zip(bytes.as_chunks::<8>().0) {
            *value = R::from_f64(f64::from_le_bytes(*raw));
        }
    }
}

vectorised! {
    fn decode_f32<R: Real>(bytes: &[u8], values: &mut [R]) {
        for (value, raw) in values.iter_mut().zip(bytes.as_chunks::<4>().0) {
            *value = R::from_f32(f32::from_le_bytes(*raw));
        }
    }
}

vectorised! {
    fn decode_bf16<R: Real>(bytes: &[u8], values: &mut [R]) {
        for (value, raw) in values.iter_mut().zip(bytes.as_chunks::<2>().0) {
            *value = from_bf16(raw);
        }
    }
}

/// A stored bf16 element is the upper half of an f32.
#[inline(always)]
fn from_bf16<R: Real>(raw: &[u8; 2]) -> R {
    R::from_f32(f32::from_bits(u32::from(u16::from_le_bytes(*raw)) << 16))
}

vectorised! {
    fn encode_f64<R: Real>(values: &[R], limit: R, bytes: &mut [u8]) -> bool {
        let mut below = true;
        for (value, raw) in values.iter().zip(bytes.as_chunks_mut::<8>().0) {
            *raw = value.to_f64().to_le_bytes();
            below &= value.abs() < limit;
        }
        below
    }
}

vectorised! {
    fn encode_f32<R: Real>(values: &[R], limit: R, bytes: &mut [u8]) -> bool {
        let mut below = true;
        for (value, raw) in values.iter().zip(bytes.as_chunks_mut::<4>().0) {
            *raw = value.to_f32().to_le_bytes();
            below &= value.abs() < limit;
        }
        below
    }
}

vectorised! {
    fn encode_bf16<R: Real>(values: &[R], limit: R, bytes: &mut [u8]) -> bool {
        let mut below = true;
        for (value, raw) in values.iter().zip(bytes.as_chunks_mut::<2>().0) {
            *raw = round_to_bf16(round_to_odd(*value)).to_le_bytes();
            below &= value.abs() < limit;
        }
        below
    }
}

vectorised! {
    fn decode_narrow<R: Real, const BYTES: usize, F: Narrow<BYTES>>(format: F, bytes: &[u8], values: &mut [R]) {
        for (value, raw) in values.iter_mut().zip(bytes.as_chunks::<BYTES>().0) {
            *value = R::from_f32(format.decode(*raw));
        }
    }
}

vectorised! {
    fn encode_narrow<R: Real, const BYTES: usize, F: Narrow<BYTES>>(format: F, values: &[R], limit: R, bytes: &mut [u8]) -> bool {
        let mut below = true;
        for (value, raw) in values.iter().zip(bytes.as_chunks_mut::<BYTES>().0) {
            *raw = format.encode(round_to_odd(*value));
            below &= value.abs() < limit;
        }
        below
    }
}

/// Converts to `f32` such that a second rounding, to 16 bits or fewer, has the result of a single rounding.
///
/// Rounding to odd records in the last bit whether anything was cut off. Source: Boldo and Melquiond, "When double
/// rounding is odd", IMACS 2005. It keeps twelve bits of mantissa, two more than F16 has; an `f32` has these even
/// where BF16 is subnormal, down to values that round to zero. An `f32` is returned unchanged.
#[inline(always)]
fn round_to_odd<R: Real>(value: R) -> f32 {
    const CUT: u64 = (1 << 40) - 1;
    if size_of::<R>() == size_of::<f32>() {
        return value.to_f32();
    }
    let bits = value.to_f64().to_bits();
    let odd = u64::from(bits & CUT != 0) << 40;
    f64::from_bits(bits & !CUT | odd) as f32
}

/// The bits of the nearest BF16, ties to even; a NaN stays a NaN.
#[inline(always)]
fn round_to_bf16(value: f32) -> u16 {
    let bits = value.to_bits();
    let rounded = (bits.wrapping_add(0x7fff + (bits >> 16 & 1)) >> 16) as u16;
    let quiet_nan = (bits >> 16) as u16 | 0x40;
    if value.is_nan() { quiet_nan } else { rounded }
}

#[cfg(test)]
mod tests {
    use half::f16;
    use proptest::prelude::*;

    use super::*;

    const ALL: [FloatType; 6] = [
        FloatType::F64,
        FloatType::F32,
        FloatType::F16,
        FloatType::Bf16,
        FloatType::F8E4m3,
        FloatType::F8E5m2,
    ];

    fn round_trip<R: Real>(format: FloatType, raw: &[u8]) -> Vec<u8> {
        let mut values = vec![R::ZERO; raw.len() / format.size()];
        format.decode(raw, &mut values);
        let mut back = vec![0; raw.len()];
        format.encode(&mut values, false, &mut back);
        back
    }

    fn is_nan(format: FloatType, raw: &[u8]) -> bool {
        let mut value = [0f64];
        format.decode(raw, &mut value);
        value[0].is_nan()
    }

    #[test]
    fn every_narrow_value_survives_a_round_trip() {
        for format in ALL.into_iter().filter(|format| format.size() <= 2) {
            for bits in 0..1u32 << (8 * format.size()) {
                let raw = &bits.to_le_bytes()[..format.size()];
                if is_nan(format, raw) {
                    assert!(
                        is_nan(format, &round_trip::<f32>(format, raw)),
                        "{format:?} {bits:#x}"
                    );
                } else {
                    assert_eq!(round_trip::<f32>(format, raw), raw, "{format:?} {bits:#x}");
                    assert_eq!(round_trip::<f64>(format, raw), raw, "{format:?} {bits:#x}");
                }
            }
        }
    }

    /// The slow twin of `encode`: the nearest of all values of the format, ties to the even mantissa.
    fn nearest(format: FloatType, value: f64) -> f64 {
        let mut candidates = Vec::new();
        for bits in 0..1u32 << (8 * format.size() - 1) {
            let mut decoded = [0f64];
            format.decode(&bits.to_le_bytes()[..format.size()], &mut decoded);
            if decoded[0].is_finite() {
                candidates.push((decoded[0], bits));
            }
        }
        let magnitude = value.abs();
        let (best, _) = candidates
            .into_iter()
            .min_by(|(a, a_bits), (b, b_bits)| {
                (a - magnitude)
                    .abs()
                    .total_cmp(&(b - magnitude).abs())
                    .then((a_bits & 1).cmp(&(b_bits & 1)))
            })
            .expect("a format has values");
        best.copysign(value)
    }

    proptest! {
        #![proptest_config(ProptestConfig::with_cases(64))]
        #[test]
        fn encoding_rounds_once_to_nearest_even(
            format in prop::sample::select(vec![FloatType::F16, FloatType::Bf16, FloatType::F8E4m3, FloatType::F8E5m2]),
            mantissa in 1f64..2.0, low in 0u64..4, exponent in -20i32..8, negative: bool,
        ) {
            // A second rounding would show on values a hair from a tie.
            let coarse = f64::from((mantissa * 512.0).round() as f32) / 512.0 * 2f64.powi(exponent);
            let value = f64::from_bits(coarse.to_bits() + low) * if negative { -1.0 } else { 1.0 };
            let mut bytes = vec![0; format.size()];
            format.encode(&mut [value], false, &mut bytes);
            let mut decoded = [0f64];
            format.decode(&bytes, &mut decoded);
            prop_assert_eq!(decoded[0], nearest(format, value));
        }
    }

    #[test]
    fn a_value_just_above_a_tie_is_not_rounded_twice() {
        // 1 + 2^-8 is a tie between two BF16 values. The extra 2^-50 breaks it, and would be lost on a detour
        // through f32.
        let mut bytes = [0; 2];
        FloatType::Bf16.encode(
            &mut [1.0 + 2f64.powi(-8) + 2f64.powi(-50)],
            false,
            &mut bytes,
        );
        assert_eq!(bf16::from_le_bytes(bytes).to_f64(), 1.0 + 2f64.powi(-7));
        FloatType::Bf16.encode(&mut [1.0 + 2f64.powi(-8)], false, &mut bytes);
        assert_eq!(bf16::from_le_bytes(bytes).to_f64(), 1.0);
        // The same among subnormal values, where f32 has fewer bits: these lie at ties between two BF16 values.
        for step in 0..128u16 {
            let tie = f64::from(2 * step + 1) * 2f64.powi(-134);
            for (value, code) in [
                (tie.next_down(), step),
                (tie, step.next_multiple_of(2)),
                (tie.next_up(), step + 1),
            ] {
                FloatType::Bf16.encode(&mut [value], false, &mut bytes);
                assert_eq!(u16::from_le_bytes(bytes), code, "{value:e}");
            }
        }
    }

    #[test]
    fn overflow_is_counted_and_saturates_on_demand() {
        for (format, fits, too_large, largest) in [
            (FloatType::F16, 65_519.0, 65_520.0, 65_504.0),
            (FloatType::F8E4m3, 464.0, 465.0, 448.0),
            (FloatType::F8E5m2, 61_439.0, 61_440.0, 57_344.0),
            (
                FloatType::Bf16,
                3.3e38,
                3.4e38,
                f64::from(bf16::MAX.to_f32()),
            ),
        ] {
            let mut bytes = vec![0; 3 * format.size()];
            let narrowed = format.encode(&mut [fits, too_large, -too_large], false, &mut bytes);
            assert_eq!(narrowed.overflowed, 2, "{format:?}");
            assert_eq!(narrowed.non_finite, NonFinite::default());
            let narrowed = format.encode(&mut [fits, too_large, -too_large], true, &mut bytes);
            assert_eq!(narrowed.overflowed, 2);
            let mut back = [0f64; 3];
            format.decode(&bytes, &mut back);
            assert_eq!(back[1..], [largest, -largest], "{format:?}");
        }
        // The values just above the tie of the format without infinity, in both precisions.
        let mut bytes = [0; 2];
        let format = FloatType::F8E4m3;
        let narrowed = format.encode(&mut [464f64, 464f64.next_up()], true, &mut bytes);
        assert_eq!((narrowed.overflowed, bytes), (1, [0x7e, 0x7e]));
        let narrowed = format.encode(&mut [464f32, 464f32.next_up()], true, &mut bytes);
        assert_eq!((narrowed.overflowed, bytes), (1, [0x7e, 0x7e]));
        let narrowed =
            FloatType::F16.encode(&mut [f32::NAN, f32::INFINITY, 1e6], false, &mut [0; 6]);
        assert_eq!(
            narrowed,
            Narrowed {
                overflowed: 1,
                non_finite: NonFinite {
                    nan: 1,
                    infinite: 1
                }
            }
        );
    }

    #[test]
    fn what_is_not_finite_is_found_without_decoding_wherever_it_lies() {
        for format in ALL {
            let size = format.size();
            let mut bytes = vec![0; 37 * size];
            let codes: Vec<[u8; 8]> = match size {
                1 | 2 => (0..1u64 << (8 * size)).map(u64::to_le_bytes).collect(),
                _ => [f64::NAN, f64::INFINITY, -f64::INFINITY, f64::MAX, -1.0, 0.0]
                    .map(|value| {
                        let mut code = [0; 8];
                        format.encode(&mut [value], false, &mut code);
                        code
                    })
                    .into(),
            };
            for (index, code) in codes.iter().enumerate() {
                let at = index % 37 * size;
                bytes[at..at + size].copy_from_slice(&code[..size]);
                let mut value = [0f64];
                format.decode(code, &mut value);
                assert_eq!(
                    format.non_finite(&bytes),
                    NonFinite::count(&value),
                    "{format:?} {code:x?}"
                );
                bytes[at..at + size].fill(0x5a);
            }
        }
    }

    #[test]
    fn unaligned_bytes_decode() {
        let mut raw = vec![0u8; 1 + 2 * 600];
        for (index, half) in raw[1..].chunks_exact_mut(2).enumerate() {
            half.copy_from_slice(&f16::from_f32(index as f32).to_le_bytes());
        }
        let mut values = vec![0f32; 600];
        FloatType::F16.decode(&raw[1..], &mut values);
        assert!(
            values
                .iter()
                .enumerate()
                .all(|(index, value)| *value == index as f32)
        );
    }

    #[test]
    fn promotion_is_symmetric_and_exact() {
        for a in ALL {
            for b in ALL {
                assert_eq!(a.promote(b), b.promote(a));
                let wide = a.promote(b);
                for format in [a, b].into_iter().filter(|format| format.size() == 1) {
                    for byte in 0..=255u8 {
                        let mut value = [0f32];
                        format.decode(&[byte], &mut value);
                        let mut bytes = [0; 8];
                        wide.encode(&mut value.clone(), false, &mut bytes);
                        let mut back = [0f32];
                        wide.decode(&bytes, &mut back);
                        assert!(back[0] == value[0] || value[0].is_nan());
                    }
                }
            }
        }
    }
}
