//! Matrices written as MXFP4: 4-bit floats, each 32 rows of a column with a power of two as their scale.
//!
//! The rounding is that of OCP Microscaling Formats 1.0, 6.3: a scale is the power of two below the largest magnitude,
//! divided by that below the largest code; a value is divided by its scale, rounded once to the nearest code (of two, the
//! even one), and beyond the largest code becomes it.

use super::encoding::Coding;
use super::format::Narrowed;
use super::real::Real;
use super::vector::vectorised;

/// The numbers that the 16 codes of E2M1 stand for: OCP Microscaling Formats 1.0, 5.3.3.
pub const E2M1: [f32; 16] = [
    0.0, 0.5, 1.0, 1.5, 2.0, 3.0, 4.0, 6.0, -0.0, -0.5, -1.0, -1.5, -2.0, -3.0, -4.0, -6.0,
];

/// Values that share a scale.
pub(super) const GROUP: usize = 32;

/// The exponent of the largest code.
const LARGEST: i32 = 2;

/// What is added to the exponent of a scale, and the scale that stands for NaN.
const BIAS: i32 = 127;
const NAN: u8 = 255;

/// Values that are divided and rounded at a time.
const STRIP: usize = 1024;

/// Writes a matrix whose rows are a multiple of [`GROUP`]: columns one after the other, of two codes the first in the low
/// bits of a byte; and a scale for each group of a column. `first` is the place of the first value in the tensor.
pub(super) fn encode<R: Real>(
    values: &[R],
    columns: usize,
    first: u64,
    coding: Coding,
    codes: &mut [u8],
    scales: &mut [u8],
) -> Narrowed {
    let columns = columns.max(1);
    let groups = values.len() / columns / GROUP;
    let mut narrowed = Narrowed::default();
    let mut of_columns = vec![R::ZERO; columns];
    let (mut strip, mut found) = ([R::ZERO; STRIP], [0; STRIP]);
    for (group, rows) in values.chunks(GROUP * columns).enumerate() {
        of_columns.fill(R::ZERO);
        rows.chunks(columns)
            .for_each(|row| largest(row, &mut of_columns));
        for (scale, column) in of_columns.iter_mut().zip(0..) {
            let stored = stored_scale(scale.to_f64());
            scales[column * groups + group] = stored;
            *scale = R::from_f64(power(stored));
        }
        for (row, values) in rows.chunks(columns).enumerate() {
            let place = first + ((group * GROUP + row) * columns) as u64;
            for (at, values) in values.chunks(STRIP).enumerate() {
                let column = at * STRIP;
                let (strip, found) = (&mut strip[..values.len()], &mut found[..values.len()]);
                divide(values, &of_columns[column..], strip);
                if let Some(rounding) = coding.rounding {
                    rounding.round_to_e2m1(place + column as u64, strip);
                }
                if to_codes(strip, found) {
                    for (value, column) in strip.iter().zip(column..) {
                        let value = value.to_f64();
                        narrowed.non_finite.nan += u64::from(value.is_nan());
                        narrowed.overflowed += u64::from(value.abs() >= 8.0);
                        if value.is_nan() {
                            scales[column * groups + group] = NAN;
                        }
                    }
                }
                for (code, column) in found.iter().zip(column..) {
                    let byte = &mut codes[(column * groups + group) * GROUP / 2 + row / 2];
                    match row % 2 {
                        0 => *byte = *code,
                        _ => *byte |= code << 4,
                    }
                }
            }
        }
    }
    narrowed
}

/// The scale of a group by its largest finite magnitude, as it is stored; one if all is zero.
fn stored_scale(largest: f64) -> u8 {
    if largest == 0.0 {
        return BIAS as u8;
    }
    let exponent = (largest.to_bits() >> 52) as i32 - 1023;
    (exponent - LARGEST + BIAS).clamp(0, i32::from(NAN) - 1) as u8
}

fn power(stored: u8) -> f64 {
    f64::from_bits((u64::from(stored) + 1023 - BIAS as u64) << 52)
}

vectorised! {
    /// Raises the largest finite magnitude of each column to that of a row.
    fn largest<R: Real>(row: &[R], most: &mut [R]) {
        for (value, most) in row.iter().zip(most) {
            let value = value.abs();
            let value = if value < R::INFINITY { value } else { R::ZERO };
            *most = if value > *most { value } else { *most };
        }
    }
}

vectorised! {
    fn divide<R: Real>(values: &[R], scales: &[R], out: &mut [R]) {
        for ((out, value), scale) in out.iter_mut().zip(values).zip(scales) {
            *out = *value / *scale;
        }
    }
}

vectorised! {
    /// The nearest code of each value. Tells whether one is not finite, or so large that no scale reaches it.
    fn to_codes<R: Real>(values: &[R], codes: &mut [u8]) -> bool {
        let mut odd = false;
        for (code, value) in codes.iter_mut().zip(values) {
            let magnitude = value.abs();
            let is_negative = *value < R::ZERO || (R::ONE / *value) < R::ZERO;
            let has_code = magnitude < R::from_f32(8.0);
            odd |= !has_code;
            // Half way between two codes, the even one.
            *code = u8::from(magnitude > R::from_f32(0.25))
                + u8::from(magnitude >= R::from_f32(0.75))
                + u8::from(magnitude > R::from_f32(1.25))
                + u8::from(magnitude >= R::from_f32(1.75))
                + u8::from(magnitude > R::from_f32(2.5))
                + u8::from(magnitude >= R::from_f32(3.5))
                + u8::from(magnitude > R::from_f32(5.0))
                + 8 * u8::from(is_negative);
        }
        odd
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;
    use crate::rounding::RoundingKey;
    use crate::{Encoding, FloatType, Real};

    fn encoding(rows: usize, columns: usize) -> Encoding {
        Encoding::mxfp4(1, rows, columns)
    }

    fn written<R: Real>(
        rows: usize,
        columns: usize,
        values: &[R],
        coding: Coding,
    ) -> (Vec<u8>, Vec<u8>, Narrowed) {
        let encoding = encoding(rows, columns);
        let mut codes = vec![0x5a; encoding.code_bytes(values.len() as u64) as usize];
        let mut scales = vec![0x5a; encoding.scale_bytes()];
        let narrowed = encoding.encode(values, 0, coding, &mut codes, &mut scales);
        (codes, scales, narrowed)
    }

    fn read(rows: usize, columns: usize, codes: &[u8], scales: &[u8]) -> Vec<f64> {
        let decoded = encoding(rows, columns).decoded(rows, codes, scales);
        let mut values = vec![0f64; rows * columns];
        f64::fill(decoded.unwrap().as_ref(), 0, &mut values).unwrap();
        values
    }

    /// The slow twin of a group: its scale, and the nearest of all codes; of two, the even one.
    fn twin(group: &[f64]) -> (u8, Vec<u8>) {
        let largest = group.iter().fold(0f64, |most, value| most.max(value.abs()));
        let exponent = match largest == 0.0 {
            true => 0,
            false => (largest.log2().floor() as i32 - 2).clamp(-127, 127),
        };
        let nearest = |value: &f64| {
            let quotient = value / 2f64.powi(exponent);
            let apart = |code: &u8| (quotient.abs() - f64::from(E2M1[usize::from(*code)])).abs();
            let order = |a: &u8, b: &u8| apart(a).total_cmp(&apart(b)).then((a % 2).cmp(&(b % 2)));
            (0..8u8).min_by(order).unwrap() | u8::from(value.is_sign_negative()) << 3
        };
        ((exponent + 127) as u8, group.iter().map(nearest).collect())
    }

    proptest! {
        #![proptest_config(ProptestConfig::with_cases(48))]
        /// Scales and codes are those of each group by itself, computed one element at a time.
        #[test]
        fn each_group_is_written_as_its_twin_is(
            groups in 1usize..4, columns in 1usize..9, exponent in -60i32..60, grid: bool,
            mantissas in prop::collection::vec(-1f32..1.0, 768),
        ) {
            let rows = groups * GROUP;
            let values: Vec<f32> = (0..rows * columns)
                .map(|at| {
                    // On a grid of quarters there are values half way between codes.
                    let value = mantissas[at % 768] * 8.0;
                    let value = if grid { (value * 4.0).round() / 4.0 } else { value };
                    value * 2f32.powi(exponent + (at % columns) as i32)
                })
                .collect();
            let (codes, scales, narrowed) = written(rows, columns, &values, Coding::default());
            prop_assert_eq!(narrowed, Narrowed::default());
            let wide: Vec<f64> = values.iter().map(|value| f64::from(*value)).collect();
            prop_assert_eq!(&written(rows, columns, &wide, Coding::default()), &(codes.clone(), scales.clone(), narrowed));
            for column in 0..columns {
                for group in 0..groups {
                    let of_group: Vec<f64> = (0..GROUP).map(|at| wide[(group * GROUP + at) * columns + column]).collect();
                    let (scale, expected) = twin(&of_group);
                    let place = column * groups + group;
                    prop_assert_eq!(scales[place], scale);
                    let bytes = &codes[place * 16..][..16];
                    let found: Vec<u8> = bytes.iter().flat_map(|byte| [byte & 15, byte >> 4]).collect();
                    prop_assert_eq!(found, expected);
                }
            }
            // What it stands for is written as itself.
            let back = read(rows, columns, &codes, &scales);
            let again = written(rows, columns, &back, Coding::default());
            prop_assert_eq!(read(rows, columns, &again.0, &again.1), back);
        }
    }

    #[test]
    fn a_group_by_hand() {
        let mut values = [0f32; 32];
        // The largest is between 4 and 8 times the scale, which is 2.
        values[..8].copy_from_slice(&[15.0, -12.0, 0.4, 0.5, -0.6, 1.5, -0.0, 10.0]);
        let (codes, scales, narrowed) = written(32, 1, &values, Coding::default());
        assert_eq!((scales, narrowed), (vec![128], Narrowed::default()));
        // 7.5 becomes 6; 0.2 and 0.25 become 0, -0.3 becomes -0.5, 0.75 becomes 1; 5 becomes 4.
        assert_eq!(codes[..4], [0xf7, 0x00, 0x29, 0x68]);
        assert_eq!(written(32, 1, &[0f32; 32], Coding::default()).1, [127]);
    }

    #[test]
    fn what_has_no_code_is_counted() {
        let mut values = [1f64; 64];
        (values[2], values[4]) = (f64::NAN, f64::INFINITY);
        values[1] = 1e300;
        let (codes, scales, narrowed) = written(32, 2, &values, Coding::default());
        assert_eq!((narrowed.non_finite.nan, narrowed.overflowed), (1, 2));
        assert_eq!(scales, [255, 254]);
        assert_eq!(codes[1] & 15, 7);
        assert!(read(32, 2, &codes, &scales)[2].is_nan());
        // The smallest numbers have the smallest scale.
        let (_, scales, narrowed) = written(32, 1, &[5e-324f64; 32], Coding::default());
        assert_eq!((scales, narrowed), (vec![0], Narrowed::default()));
    }

    #[test]
    fn draws_round_up_as_often_as_far() {
        let mut values = [2.25f32; 32 * 512];
        values[..512].fill(4.0);
        let coding = Coding {
            rounding: Some(RoundingKey::new(1, "a")),
            ..Coding::default()
        };
        let (codes, scales, _) = written(32, 512, &values, coding);
        assert!(scales.iter().all(|scale| *scale == 127));
        let found = read(32, 512, &codes, &scales);
        let mean = found[512..].iter().sum::<f64>() / (31.0 * 512.0);
        assert!((mean - 2.25).abs() < 0.02, "{mean}");
        assert!(found[512..].iter().all(|value| [2.0, 3.0].contains(value)));
        assert_eq!(encoding(32, 512).scale_shape(&[3, 32, 512]), [3, 512, 1]);
        assert_eq!(encoding(32, 512).code_shape(&[3, 32, 512]), [3, 512, 1, 16]);
        assert_eq!(FloatType::from_dtype(encoding(32, 512).code_dtype()), None);
    }
}
