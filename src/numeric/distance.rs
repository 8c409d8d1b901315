//! How far two tensors are apart: sums over differences, and distances in steps of their format.

use super::format::{FloatType, from_bf16};
use super::real::Real;
use super::reduce::{LANES, fold};
use super::vector::vectorised;

/// Elements whose places are held at a time.
const STRIP: usize = 1024;

/// The least numbers of steps that are counted apart.
pub const STEP_BOUNDS: [u64; 8] = [1, 2, 3, 5, 9, 17, 257, 4097];

/// Sums over two runs of finite elements of one length.
#[derive(Debug, Clone, Copy, Default, PartialEq)]
pub struct Distance {
    /// The largest magnitude of a difference.
    pub largest: f64,
    /// The sum of the magnitudes of differences.
    pub absolute: f64,
    /// The sum of squared differences.
    pub squared: f64,
    /// The sum of squares of the first.
    pub first: f64,
    /// The sum of squares of the second.
    pub second: f64,
}

impl Distance {
    /// Adds what was found in the elements that follow.
    pub fn add(&mut self, next: &Distance) {
        self.largest = self.largest.max(next.largest);
        self.absolute += next.absolute;
        self.squared += next.squared;
        self.first += next.first;
        self.second += next.second;
    }

    /// The Euclidean norm of the difference as a part of the first's; of the second's, if the first is zero.
    pub fn relative(&self) -> f64 {
        match (self.squared, self.first, self.second) {
            (0.0, ..) => 0.0,
            (squared, 0.0, second) => (squared / second).sqrt(),
            (squared, first, _) => (squared / first).sqrt(),
        }
    }

    /// Whether all sums are numbers: then all that was added is finite.
    pub fn is_finite(&self) -> bool {
        let sums = [
            self.largest,
            self.absolute,
            self.squared,
            self.first,
            self.second,
        ];
        sums.into_iter().all(f64::is_finite)
    }

    /// The cosine of the angle between the two; 1 if both are zero, 0 if one is.
    pub fn cosine(&self) -> f64 {
        match self.first * self.second {
            0.0 if self.first == self.second => 1.0,
            0.0 => 0.0,
            _ => {
                // By the law of cosines: precise where the two are close, as they mostly are.
                let product = (self.first + self.second - self.squared) / 2.0;
                (product / self.first.sqrt() / self.second.sqrt()).clamp(-1.0, 1.0)
            }
        }
    }
}

/// Sums over what two runs of elements differ by from a third.
#[derive(Debug, Clone, Copy, Default, PartialEq)]
pub struct TaskSums {
    /// The sum of squares of the first task vector.
    pub first: f64,
    /// The sum of squares of the second.
    pub second: f64,
    /// The inner product of the two.
    pub product: f64,
    /// Elements where the two have different signs.
    pub conflicts: f64,
    /// Elements where neither is zero.
    pub both: f64,
}

impl TaskSums {
    /// Adds what was found in the elements that follow.
    pub fn add(&mut self, next: &TaskSums) {
        self.first += next.first;
        self.second += next.second;
        self.product += next.product;
        self.conflicts += next.conflicts;
        self.both += next.both;
    }

    /// Whether all sums are numbers: then all that was added is finite.
    pub fn is_finite(&self) -> bool {
        let sums = [self.first, self.second, self.product];
        sums.into_iter().all(f64::is_finite)
    }

    /// The cosine of the angle between the task vectors; `None` if one is zero.
    pub fn cosine(&self) -> Option<f64> {
        let cosine = self.product / self.first.sqrt() / self.second.sqrt();
        cosine.is_finite().then(|| cosine.clamp(-1.0, 1.0))
    }
}

/// Elements that sums are begun of in the values' own precision, one after the other in each lane: nine squares of
/// 16-bit values are exact there.
const RUN: usize = 16 * LANES;
/// Sums that are kept apart.
const WIDE: usize = 2 * LANES;

/// [`Distance`] of two slices of one length, all of whose elements are finite.
pub fn distance<R: Real>(a: &[R], b: &[R]) -> Distance {
    let mut sum = Distance::default();
    let mut apart = [R::ZERO; STRIP];
    for (a, b) in a.chunks(STRIP).zip(b.chunks(STRIP)) {
        let apart = &mut apart[..a.len().min(b.len())];
        differences(a, b, apart);
        sum.add(&of_strip(apart, squares(a), squares(b)));
    }
    sum
}

/// [`distance`] of stored bf16 elements, without decoding them first; not finite where they are not.
pub fn distance_bf16<R: Real>(a: &[u8], b: &[u8]) -> Distance {
    let mut sum = Distance::default();
    let mut apart = [R::ZERO; STRIP];
    for (a, b) in a.chunks(2 * STRIP).zip(b.chunks(2 * STRIP)) {
        let apart = &mut apart[..a.len().min(b.len()) / 2];
        differences_bf16(a, b, apart);
        sum.add(&of_strip(apart, squares_bf16::<R>(a), squares_bf16::<R>(b)));
    }
    sum
}

/// One kernel for each sum: with all of them in one loop the compiler keeps none in registers.
fn of_strip<R: Real>(apart: &[R], first: f64, second: f64) -> Distance {
    let (absolute, largest) = magnitudes(apart);
    Distance {
        largest,
        absolute,
        squared: squares(apart),
        first,
        second,
    }
}

vectorised! {
    /// The magnitudes of differences.
    fn differences<R: Real>(a: &[R], b: &[R], apart: &mut [R]) {
        for (apart, (a, b)) in apart.iter_mut().zip(a.iter().zip(b)) {
            *apart = (*a - *b).abs();
        }
    }
}

vectorised! {
    /// The magnitudes of differences of stored bf16 elements.
    fn differences_bf16<R: Real>(a: &[u8], b: &[u8], apart: &mut [R]) {
        let (a, b) = (a.as_chunks::<2>().0, b.as_chunks::<2>().0);
        for (apart, (a, b)) in apart.iter_mut().zip(a.iter().zip(b)) {
            *apart = (from_bf16::<R>(a) - from_bf16::<R>(b)).abs();
        }
    }
}

vectorised! {
    /// The sum of values that are not negative, and the largest of them.
    fn magnitudes<R: Real>(values: &[R]) -> (f64, f64) {
        let (runs, rest) = values.as_chunks::<RUN>();
        let mut sums = [0f64; WIDE];
        let mut largest = [R::ZERO; WIDE];
        for run in runs {
            largest = add_run(run, largest, &mut sums);
        }
        if !rest.is_empty() {
            largest = add_run(&padded(rest, |value| *value), largest, &mut sums);
        }
        let largest = largest.iter().map(|value| value.to_f64());
        (sums.into_iter().sum(), largest.fold(0.0, f64::max))
    }
}

/// Adds the values of a run; gives the largest ones.
#[inline(always)]
fn add_run<R: Real>(run: &[R; RUN], mut largest: [R; WIDE], sums: &mut [f64; WIDE]) -> [R; WIDE] {
    let mut parts = [R::ZERO; WIDE];
    for chunk in run.as_chunks::<WIDE>().0 {
        for (part, value) in parts.iter_mut().zip(chunk) {
            *part += *value;
        }
        largest = larger(&largest, chunk);
    }
    widen(sums, &parts);
    largest
}

/// The larger one of each lane.
#[inline(always)]
fn larger<R: Real>(a: &[R; WIDE], b: &[R; WIDE]) -> [R; WIDE] {
    let mut larger = [R::ZERO; WIDE];
    for (larger, (a, b)) in larger.iter_mut().zip(a.iter().zip(b)) {
        *larger = if *a > *b { *a } else { *b };
    }
    larger
}

vectorised! {
    /// The sum of squares.
    pub fn squares<R: Real>(values: &[R]) -> f64 {
        add_squares(values, |value| *value)
    }
}

vectorised! {
    /// The sum of squares of stored bf16 elements: the same as of the decoded ones.
    pub fn squares_bf16<R: Real>(bytes: &[u8]) -> f64 {
        add_squares(bytes.as_chunks::<2>().0, from_bf16::<R>)
    }
}

/// Adds squares up, a run at a time in the values' own precision, all else in f64.
#[inline(always)]
fn add_squares<T, R: Real>(values: &[T], value: impl Fn(&T) -> R + Copy) -> f64 {
    let (runs, rest) = values.as_chunks::<RUN>();
    let mut sums = [0f64; WIDE];
    for run in runs {
        square_run(run, value, &mut sums);
    }
    if !rest.is_empty() {
        square_run(&padded(rest, value), |value| *value, &mut sums);
    }
    sums.into_iter().sum()
}

/// All runs are of a length that the compiler knows: else it keeps the sums in memory.
#[inline(always)]
fn square_run<T, R: Real>(run: &[T; RUN], value: impl Fn(&T) -> R, sums: &mut [f64; WIDE]) {
    let mut parts = [R::ZERO; WIDE];
    for chunk in run.as_chunks::<WIDE>().0 {
        for (part, raw) in parts.iter_mut().zip(chunk) {
            let value = value(raw);
            *part += value * value;
        }
    }
    widen(sums, &parts);
}

/// The values of a shorter run, and zeros behind them.
#[inline(always)]
fn padded<T, R: Real>(rest: &[T], value: impl Fn(&T) -> R) -> [R; RUN] {
    let mut run = [R::ZERO; RUN];
    for (lane, raw) in run.iter_mut().zip(rest) {
        *lane = value(raw);
    }
    run
}

/// Adds sums that were begun in the values' own precision.
#[inline(always)]
fn widen<R: Real>(sums: &mut [f64; WIDE], parts: &[R; WIDE]) {
    for (sum, part) in sums.iter_mut().zip(parts) {
        *sum += part.to_f64();
    }
}

vectorised! {
    /// [`TaskSums`] of three slices of one length, all of whose elements are finite; the third is the base.
    pub fn task_sums<R: Real>(a: &[R], b: &[R], base: &[R]) -> TaskSums {
        let mut sums = [[0f64; LANES]; 5];
        let length = a.len().min(b.len()).min(base.len());
        let chunks = length / LANES;
        let (a, b, base) = (&a[..length], &b[..length], &base[..length]);
        for chunk in 0..chunks {
            let at = chunk * LANES..(chunk + 1) * LANES;
            task_lanes(&a[at.clone()], &b[at.clone()], &base[at], &mut sums);
        }
        let rest = chunks * LANES..length;
        task_lanes(&a[rest.clone()], &b[rest.clone()], &base[rest], &mut sums);
        let [first, second, product, conflicts, both] = sums;
        TaskSums {
            first: fold(first),
            second: fold(second),
            product: fold(product),
            conflicts: fold(conflicts),
            both: fold(both),
        }
    }
}

#[inline(always)]
fn task_lanes<R: Real>(a: &[R], b: &[R], base: &[R], sums: &mut [[f64; LANES]; 5]) {
    for (lane, ((a, b), base)) in a.iter().zip(b).zip(base).enumerate() {
        let base = base.to_f64();
        let (a, b) = (a.to_f64() - base, b.to_f64() - base);
        let product = a * b;
        sums[0][lane] += a * a;
        sums[1][lane] += b * b;
        sums[2][lane] += product;
        // Signs, and not the product, which may be too small for a number.
        let conflict = (a > 0.0) & (b < 0.0) | (a < 0.0) & (b > 0.0);
        let both = (a != 0.0) & (b != 0.0);
        sums[3][lane] += if conflict { 1.0 } else { 0.0 };
        sums[4][lane] += if both { 1.0 } else { 0.0 };
    }
}

/// Distances in steps of a format; see [`FloatType::steps`].
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct StepCounts {
    /// For each of [`STEP_BOUNDS`], the elements that are at least so many steps apart.
    pub at_least: [u64; STEP_BOUNDS.len()],
    /// The most steps between two elements. A NaN lies beyond infinity, by as much as its bits say.
    pub largest: u64,
}

impl StepCounts {
    /// Adds what was found in other elements.
    pub fn add(&mut self, next: &StepCounts) {
        let counts = self.at_least.iter_mut().zip(&next.at_least);
        counts.for_each(|(count, next)| *count += next);
        self.largest = self.largest.max(next.largest);
    }

    /// Counts the distances of two runs of elements of a format.
    pub fn of(format: FloatType, a: &[u8], b: &[u8]) -> StepCounts {
        let mut counts = StepCounts::default();
        if format == FloatType::F64 {
            let pairs = a.as_chunks::<8>().0.iter().zip(b.as_chunks::<8>().0);
            for (a, b) in pairs.filter(|(a, b)| a != b) {
                counts.count(place64(*a).abs_diff(place64(*b)));
            }
            return counts;
        }
        let size = format.size();
        for (a, b) in a.chunks(STRIP * size).zip(b.chunks(STRIP * size)) {
            let (at_least, largest) = match size {
                4 => steps32(a, b),
                2 => steps16(a, b),
                _ => steps8(a, b),
            };
            let totals = counts.at_least.iter_mut().zip(at_least);
            totals.for_each(|(total, count)| *total += u64::from(count));
            counts.largest = counts.largest.max(largest.into());
        }
        counts
    }

    fn count(&mut self, steps: u64) {
        self.largest = self.largest.max(steps);
        for (count, bound) in self.at_least.iter_mut().zip(STEP_BOUNDS) {
            *count += u64::from(steps >= bound);
        }
    }
}

/// The place of a value among all of its format, from zero; it may be that of a NaN.
fn place64(raw: [u8; 8]) -> i64 {
    let bits = i64::from_le_bytes(raw);
    let magnitude = bits & i64::MAX;
    if bits < 0 { -magnitude } else { magnitude }
}

/// How many elements of a strip are at least so many steps apart, and the most steps.
type StripCounts = ([u32; STEP_BOUNDS.len()], u32);

/// A kernel that counts the steps of a strip of elements, of a width that has the format's bits and a sign; so many
/// at a time.
macro_rules! strip_steps {
    ($name:ident, $lanes:ident, $raw:ty, $place:ty, $steps:ty, $bytes:literal, $wide:literal) => {
        vectorised! {
            fn $name(a: &[u8], b: &[u8]) -> StripCounts {
                let mut counts = [[0 as $steps; $wide]; STEP_BOUNDS.len()];
                let mut largest = [0 as $steps; $wide];
                let (a, b) = (a.as_chunks::<$bytes>().0, b.as_chunks::<$bytes>().0);
                let ((a, rest_of_a), (b, rest_of_b)) = (a.as_chunks::<$wide>(), b.as_chunks::<$wide>());
                for (a, b) in a.iter().zip(b) {
                    $lanes(a, b, &mut largest, &mut counts);
                }
                $lanes(rest_of_a, rest_of_b, &mut largest, &mut counts);
                let mut totals = [0; STEP_BOUNDS.len()];
                for (total, counts) in totals.iter_mut().zip(counts) {
                    for count in counts {
                        *total += u32::from(count);
                    }
                }
                (totals, largest.into_iter().fold(0, <$steps>::max).into())
            }
        }

        #[inline(always)]
        fn $lanes(
            a: &[[u8; $bytes]],
            b: &[[u8; $bytes]],
            largest: &mut [$steps; $wide],
            counts: &mut [[$steps; $wide]; STEP_BOUNDS.len()],
        ) {
            let mut steps = [0 as $steps; $wide];
            for ((steps, a), b) in steps.iter_mut().zip(a).zip(b) {
                let a = <$place>::from(<$raw>::from_le_bytes(*a));
                let b = <$place>::from(<$raw>::from_le_bytes(*b));
                let (of_a, of_b) = (a >> (<$place>::BITS - 1), b >> (<$place>::BITS - 1));
                let a = ((a & <$place>::from(<$raw>::MAX)) ^ of_a).wrapping_sub(of_a);
                let b = ((b & <$place>::from(<$raw>::MAX)) ^ of_b).wrapping_sub(of_b);
                *steps = a.abs_diff(b);
            }
            // Signed numbers are compared in one instruction, and no bound is as large.
            let mut signed = [0 as $place; $wide];
            for ((largest, signed), steps) in largest.iter_mut().zip(&mut signed).zip(steps) {
                *largest = if steps > *largest { steps } else { *largest };
                let most = <$steps>::MAX >> 1;
                *signed = (if steps < most { steps } else { most }) as $place;
            }
            for (counts, bound) in counts.iter_mut().zip(STEP_BOUNDS) {
                for (count, steps) in counts.iter_mut().zip(signed) {
                    // A strip has fewer elements than the narrowest of these counts to.
                    *count += <$steps>::from(steps >= bound as $place);
                }
            }
        }
    };
}

strip_steps!(steps32, lanes32, i32, i32, u32, 4, 16);
strip_steps!(steps16, lanes16, i16, i16, u16, 2, 32);
strip_steps!(steps8, lanes8, i8, i16, u16, 1, 32);

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn near(a: f64, b: f64) -> bool {
        (a - b).abs() <= 1e-9 * (a.abs() + b.abs() + 1e-300)
    }

    proptest! {
        #[test]
        fn sums_agree_with_their_twins(
            rows in prop::collection::vec((-1e3f32..1e3, -1e3f32..1e3, -1e3f32..1e3), 0..200),
        ) {
            let column = |at: usize| -> Vec<f64> {
                rows.iter().map(|row| f64::from([row.0, row.1, row.2][at])).collect()
            };
            let single = |at: usize| -> Vec<f32> {
                column(at).into_iter().map(|value| value as f32).collect()
            };
            let (a, b, c) = (column(0), column(1), column(2));
            let sum = |term: &dyn Fn(usize) -> f64| (0..a.len()).map(term).sum::<f64>();
            let close = |a: f64, b: f64| (a - b).abs() <= 1e-6 * (a.abs() + b.abs() + 1e-300);
            let stored = |at: usize| -> Vec<u8> {
                let values = single(at).into_iter();
                values.flat_map(|value| half::bf16::from_f32(value).to_le_bytes()).collect()
            };
            let decoded = |bytes: &[u8]| {
                let mut values = vec![0f32; bytes.len() / 2];
                FloatType::Bf16.decode(bytes, &mut values);
                values
            };
            let (first, second) = (stored(0), stored(1));
            let found = distance_bf16::<f32>(&first, &second);
            prop_assert_eq!(found, distance(&decoded(&first), &decoded(&second)));
            prop_assert_eq!(squares_bf16::<f32>(&first), squares(&decoded(&first)));
            for found in [distance(&a, &b), distance(&single(0), &single(1))] {
                let largest = (0..a.len()).map(|at| (a[at] - b[at]).abs()).fold(0.0, f64::max);
                prop_assert!(close(found.largest, largest));
                prop_assert!(close(found.absolute, sum(&|at| (a[at] - b[at]).abs())));
                prop_assert!(close(found.squared, sum(&|at| (a[at] - b[at]).powi(2))));
                prop_assert!(close(found.first, sum(&|at| a[at].powi(2))));
                prop_assert!(close(found.second, sum(&|at| b[at].powi(2))));
                let cosine = sum(&|at| a[at] * b[at]) / found.first.sqrt() / found.second.sqrt();
                prop_assert!(cosine.is_nan() || (found.cosine() - cosine).abs() < 1e-5);
            }
            for found in [task_sums(&a, &b, &c), task_sums(&single(0), &single(1), &single(2))] {
                let (x, y) = (|at: usize| a[at] - c[at], |at: usize| b[at] - c[at]);
                prop_assert!(near(found.first, sum(&|at| x(at).powi(2))));
                prop_assert!(near(found.second, sum(&|at| y(at).powi(2))));
                prop_assert!((found.product - sum(&|at| x(at) * y(at))).abs() < 1e-2);
                let conflicts = (0..a.len()).filter(|&at| x(at) * y(at) < 0.0).count();
                prop_assert_eq!(found.conflicts, conflicts as f64);
                let both = (0..a.len()).filter(|&at| x(at) != 0.0 && y(at) != 0.0).count();
                prop_assert_eq!(found.both, both as f64);
            }
        }

        #[test]
        fn steps_agree_with_those_of_single_elements(
            bytes in prop::collection::vec(any::<u8>(), 0..400),
            flips in prop::collection::vec((0usize..400, any::<u8>()), 0..20),
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
                let mut expected = StepCounts::default();
                for (a, b) in a.chunks(size).zip(b.chunks(size)) {
                    // NaNs are told apart here, and are not there.
                    let steps = format.steps(a, b);
                    let is_nan = |raw: &[u8]| {
                        let mut value = [0f64];
                        format.decode(raw, &mut value);
                        value[0].is_nan()
                    };
                    if is_nan(a) || is_nan(b) {
                        prop_assume!(a == b);
                    }
                    expected.count(steps);
                }
                prop_assert_eq!(StepCounts::of(format, a, b), expected, "{:?}", format);
            }
        }
    }

    #[test]
    fn angles_and_lengths_by_hand() {
        let found = distance(&[3.0f32, 0.0, 4.0], &[3.0, 0.0, 0.0]);
        assert_eq!(
            (found.largest, found.squared, found.first),
            (4.0, 16.0, 25.0)
        );
        assert_eq!(found.relative(), 0.8);
        assert_eq!(found.cosine(), 0.6);
        assert_eq!(distance(&[0f32; 3], &[0.0; 3]).cosine(), 1.0);
        assert_eq!(distance(&[0f32; 3], &[1.0; 3]).cosine(), 0.0);
        assert_eq!(distance(&[0f32; 3], &[2.0; 3]).relative(), 1.0);
        // Task vectors (1, 0) and (1, 1), and a conflict.
        let found = task_sums(&[2.0f32, 1.0, 0.0], &[2.0, 2.0, 2.0], &[1.0, 1.0, 1.0]);
        assert_eq!((found.conflicts, found.both), (1.0, 2.0));
        assert_eq!((found.first, found.second, found.product), (2.0, 3.0, 0.0));
    }
}
