//! Counts how many elements of two tensors are how many ULPs of their format apart.

use super::format::FloatType;
use super::vector::vectorised;

/// Distances in ULPs at which counting starts: elements at least 1 apart, at least 2 apart, and so on.
pub const ULP_BOUNDS: [u64; 8] = [1, 2, 3, 5, 9, 17, 257, 4097];

/// How many of the bounds fit into a signed byte.
const SMALL: usize = 6;
/// How many of the bounds do not.
const BEYOND: usize = ULP_BOUNDS.len() - SMALL;
/// Elements side by side: one byte each, as many as the widest register holds.
const WIDE: usize = 64;
/// Rows in a strip. Few enough that a strip stays in the first-level cache and a lane's count fits into a byte.
const ROWS: usize = 16;

/// Distances in ULPs of a format; see [`FloatType::ulps_between`].
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct UlpCounts {
    /// For each bound in [`ULP_BOUNDS`], the number of elements that are at least that far apart.
    pub at_least: [u64; ULP_BOUNDS.len()],
    /// The largest distance between two elements. A NaN lies beyond infinity, at a distance that depends on its
    /// bits.
    pub largest: u64,
}

impl UlpCounts {
    /// Adds the counts of other elements.
    pub fn add(&mut self, next: &UlpCounts) {
        let counts = self.at_least.iter_mut().zip(&next.at_least);
        counts.for_each(|(count, next)| *count += next);
        self.largest = self.largest.max(next.largest);
    }

    /// Counts the distances between two runs of elements of a format.
    pub fn count(format: FloatType, a: &[u8], b: &[u8]) -> UlpCounts {
        match format.size() {
            8 => bits64::count(a, b),
            4 => bits32::count(a, b),
            2 => bits16::count(a, b),
            _ => bits8::count(a, b),
        }
    }
}

/// Elements counted before the counters, which are as wide as the format, are added up: 2^10 rows.
const COUNTED: usize = 1 << 16;

/// The distances of a strip, capped at [`MOST`].
type Strip = [[i8; WIDE]; ROWS];

/// Stands for all larger distances; above every bound that is counted from a strip.
const MOST: u8 = i8::MAX as u8;

/// For each small bound, counts the elements of a strip that reach it.
///
/// Not compiled for AVX-512: its comparisons produce bit masks, which take longer to count.
#[multiversion::multiversion(targets("x86_64+avx2+fma+f16c+bmi1+bmi2"))]
fn count_small(strip: &Strip, at_least: &mut [u64; ULP_BOUNDS.len()]) {
    for (total, bound) in at_least.iter_mut().zip(ULP_BOUNDS).take(SMALL) {
        let mut counts = [0u8; WIDE];
        for row in strip {
            for (count, steps) in counts.iter_mut().zip(row) {
                *count += u8::from(*steps >= bound as i8);
            }
        }
        let mut sum = 0;
        for count in counts {
            sum += u32::from(count);
        }
        *total += u64::from(sum);
    }
}

/// Folds all lanes into eight.
#[inline(always)]
fn joined<T: Copy>(lanes: [T; WIDE], join: impl Fn(T, T) -> T) -> [T; 8] {
    let (eights, _) = lanes.as_chunks::<8>();
    let mut joined = eights[0];
    for eight in &eights[1..] {
        for (joined, lane) in joined.iter_mut().zip(eight) {
            *joined = join(*joined, *lane);
        }
    }
    joined
}

/// The kernels for one element width, on the bits as a signed number.
macro_rules! width {
    ($width:ident, $bits:ty, $steps:ty, $bytes:literal) => {
        mod $width {
            use super::*;

            type Raw = [u8; $bytes];

            /// A value's place among those of its format in ascending order, counted from zero. A NaN has a place too.
            #[inline(always)]
            fn place(raw: &Raw) -> $bits {
                let bits = <$bits>::from_le_bytes(*raw);
                if bits < 0 { <$bits>::MIN.wrapping_sub(bits) } else { bits }
            }

            vectorised! {
                pub(super) fn count(a: &[u8], b: &[u8]) -> UlpCounts {
                    let mut counts = UlpCounts::default();
                    let (a, b) = (a.as_chunks::<$bytes>().0, b.as_chunks::<$bytes>().0);
                    for (a, b) in a.chunks(COUNTED).zip(b.chunks(COUNTED)) {
                        let mut beyond = [[0 as $steps; WIDE]; BEYOND];
                        let mut largest = [0 as $steps; WIDE];
                        for (a, b) in a.chunks(ROWS * WIDE).zip(b.chunks(ROWS * WIDE)) {
                            let mut strip: Strip = [[0; WIDE]; ROWS];
                            let ((a, rest_of_a), (b, rest_of_b)) = (a.as_chunks::<WIDE>(), b.as_chunks::<WIDE>());
                            for ((a, b), row) in a.iter().zip(b).zip(&mut strip) {
                                count_row(a, b, row, &mut beyond, &mut largest);
                            }
                            if let Some(row) = strip.get_mut(a.len()).filter(|_| !rest_of_a.is_empty()) {
                                count_row(rest_of_a, rest_of_b, row, &mut beyond, &mut largest);
                            }
                            count_small(&strip, &mut counts.at_least);
                        }
                        for (total, beyond) in counts.at_least[SMALL..].iter_mut().zip(beyond) {
                            let eight = joined(beyond, |a, b| a + b);
                            *total += eight.into_iter().map(u64::from).sum::<u64>();
                        }
                        let eight = joined(largest, |a, b| if a > b { a } else { b });
                        counts.largest = eight.into_iter().map(u64::from).fold(counts.largest, u64::max);
                    }
                    counts
                }
            }

            /// Stores the distances of one row, capped, and counts those that reach the larger bounds.
            #[inline(always)]
            fn count_row(
                a: &[Raw],
                b: &[Raw],
                row: &mut [i8; WIDE],
                beyond: &mut [[$steps; WIDE]; BEYOND],
                largest: &mut [$steps; WIDE],
            ) {
                let mut steps = [0 as $steps; WIDE];
                for ((steps, a), b) in steps.iter_mut().zip(a).zip(b) {
                    *steps = place(a).abs_diff(place(b));
                }
                for (counts, bound) in beyond.iter_mut().zip(&ULP_BOUNDS[SMALL..]) {
                    // Elements of 8 bits are never as far apart as the largest number of their width.
                    let bound = if <$steps>::BITS > 8 { *bound as $steps } else { <$steps>::MAX };
                    for (count, steps) in counts.iter_mut().zip(steps) {
                        let one_more = *count + 1;
                        *count = if steps >= bound { one_more } else { *count };
                    }
                }
                for ((row, largest), steps) in row.iter_mut().zip(largest).zip(steps) {
                    *largest = if steps > *largest { steps } else { *largest };
                    *row = (if steps < MOST as $steps { steps } else { MOST as $steps }) as i8;
                }
            }
        }
    };
}

width!(bits64, i64, u64, 8);
width!(bits32, i32, u32, 4);
width!(bits16, i16, u16, 2);
width!(bits8, i8, u8, 1);

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    proptest! {
        #[test]
        fn steps_agree_with_those_of_single_elements(
            bytes in prop::collection::vec(any::<u8>(), 0..3000),
            flips in prop::collection::vec((0usize..3000, any::<u8>()), 0..20),
        ) {
            let mut other = bytes.clone();
            for (at, flip) in flips {
                if let Some(byte) = other.get_mut(at) {
                    *byte ^= flip;
                }
            }
            for format in [
                FloatType::F64, FloatType::F32, FloatType::F16,
                FloatType::Bf16, FloatType::F8E4m3, FloatType::F8E5m2,
            ] {
                let size = format.size();
                let whole = bytes.len() / size * size;
                let (a, b) = (&bytes[..whole], &other[..whole]);
                let mut expected = UlpCounts::default();
                for (a, b) in a.chunks(size).zip(b.chunks(size)) {
                    // `FloatType::ulps_between` treats NaNs apart and this kernel does not, so NaNs must be equal here.
                    let steps = format.ulps_between(a, b);
                    let is_nan = |raw: &[u8]| {
                        let mut value = [0f64];
                        format.decode(raw, &mut value);
                        value[0].is_nan()
                    };
                    if is_nan(a) || is_nan(b) {
                        prop_assume!(a == b);
                    }
                    expected.largest = expected.largest.max(steps);
                    for (count, bound) in expected.at_least.iter_mut().zip(ULP_BOUNDS) {
                        *count += u64::from(steps >= bound);
                    }
                }
                prop_assert_eq!(UlpCounts::count(format, a, b), expected, "{:?}", format);
            }
        }
    }
}
