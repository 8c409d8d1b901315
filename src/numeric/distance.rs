//! How far two tensors are apart: sums over their differences.

use super::real::Real;
use super::reduce::{LANES, fold};
use super::vector::vectorised;

/// Sums over two runs of finite elements of equal length.
#[derive(Debug, Clone, Copy, Default, PartialEq)]
pub struct Distance {
    /// The largest magnitude of a difference.
    pub largest: f64,
    /// The sum of the magnitudes of the differences.
    pub absolute: f64,
    /// The sum of the squared differences.
    pub squared: f64,
    /// The sum of squares of the first run.
    pub first: f64,
    /// The sum of squares of the second run.
    pub second: f64,
}

impl Distance {
    /// Adds the sums of other elements.
    pub fn add(&mut self, next: &Distance) {
        self.largest = self.largest.max(next.largest);
        self.absolute += next.absolute;
        self.squared += next.squared;
        self.first += next.first;
        self.second += next.second;
    }

    /// The 2-norm of the difference, relative to that of the first run; relative to the second, if the first is
    /// zero.
    pub fn relative(&self) -> f64 {
        match (self.squared, self.first, self.second) {
            (0.0, ..) => 0.0,
            (squared, 0.0, second) => (squared / second).sqrt(),
            (squared, first, _) => (squared / first).sqrt(),
        }
    }

    /// Whether all sums are finite; if so, all elements were.
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
                // The law of cosines is precise for similar vectors, the usual case.
                let product = (self.first + self.second - self.squared) / 2.0;
                (product / self.first.sqrt() / self.second.sqrt()).clamp(-1.0, 1.0)
            }
        }
    }
}

/// Sums over two task vectors: the differences of two runs of elements from a third.
#[derive(Debug, Clone, Copy, Default, PartialEq)]
pub struct TaskSums {
    /// The sum of squares of the first task vector.
    pub first: f64,
    /// The sum of squares of the second.
    pub second: f64,
    /// The inner product of the two.
    pub product: f64,
    /// Elements in which the two have opposite signs.
    pub conflicts: f64,
    /// Elements in which neither is zero.
    pub both: f64,
}

impl TaskSums {
    /// Adds the sums of other elements.
    pub fn add(&mut self, next: &TaskSums) {
        self.first += next.first;
        self.second += next.second;
        self.product += next.product;
        self.conflicts += next.conflicts;
        self.both += next.both;
    }

    /// Whether all sums are finite; if so, all elements were.
    pub fn is_finite(&self) -> bool {
        let sums = [self.first, self.second, self.product];
        sums.into_iter().all(f64::is_finite)
    }

    /// The cosine of the angle between the task vectors; `None` if one of them is zero.
    pub fn cosine(&self) -> Option<f64> {
        let cosine = self.product / self.first.sqrt() / self.second.sqrt();
        cosine.is_finite().then(|| cosine.clamp(-1.0, 1.0))
    }
}

/// Pairs of elements side by side: twice the widest register.
const WIDE: usize = 16;
/// Pairs per run. Within a run, sums are kept in the precision of the values. A lane adds 32 terms, so an f32 sum
/// has a relative error of at most 2^-19.
const RUN: usize = 16 * WIDE;

/// The [`Distance`] of finite elements that arrive strip by strip. If an element is not finite, neither is the
/// result.
#[derive(Debug, Clone, Copy)]
pub struct DistanceSums<R> {
    largest: [R; WIDE],
    absolute: [f64; WIDE],
    squared: [f64; WIDE],
    first: [f64; WIDE],
    second: [f64; WIDE],
}

impl<R: Real> Default for DistanceSums<R> {
    fn default() -> Self {
        Self {
            largest: [R::ZERO; WIDE],
            absolute: [0.0; WIDE],
            squared: [0.0; WIDE],
            first: [0.0; WIDE],
            second: [0.0; WIDE],
        }
    }
}

impl<R: Real> DistanceSums<R> {
    /// The sums so far.
    pub fn distance(&self) -> Distance {
        let sum = |lanes: [f64; WIDE]| lanes.into_iter().sum();
        let largest = self.largest.iter().map(|largest| largest.to_f64());
        Distance {
            largest: largest.fold(0.0, f64::max),
            absolute: sum(self.absolute),
            squared: sum(self.squared),
            first: sum(self.first),
            second: sum(self.second),
        }
    }

    /// Adds two slices of equal length.
    pub fn add(&mut self, a: &[R], b: &[R]) {
        let ((runs_of_a, rest_of_a), (runs_of_b, rest_of_b)) = (runs(a), runs(b));
        add_runs(runs_of_a, runs_of_b, self);
        if !rest_of_a.is_empty() {
            add_runs(&[filled_up(rest_of_a)], &[filled_up(rest_of_b)], self);
        }
    }
}

impl DistanceSums<f32> {
    /// Adds two runs of stored bf16 elements of equal length, with the result of decoding them for
    /// [`DistanceSums::add`].
    pub fn add_bf16(&mut self, a: &[u8], b: &[u8]) {
        let ((runs_of_a, rest_of_a), (runs_of_b, rest_of_b)) = (runs_bf16(a), runs_bf16(b));
        add_runs_bf16(runs_of_a, runs_of_b, self);
        if !rest_of_a.is_empty() {
            add_runs_bf16(
                &[filled_up_bf16(rest_of_a)],
                &[filled_up_bf16(rest_of_b)],
                self,
            );
        }
    }
}

/// The [`Distance`] of two slices of finite elements of equal length.
pub fn distance<R: Real>(a: &[R], b: &[R]) -> Distance {
    let mut sums = DistanceSums::default();
    sums.add(a, b);
    sums.distance()
}

/// Pairs of elements, in runs of constant length: otherwise the compiler keeps the sums in memory.
type Runs<'a, P> = &'a [[P; RUN]];

/// Whole runs of pairs, and the elements after the last one.
fn runs<R>(values: &[R]) -> (Runs<'_, [R; 2]>, &[R]) {
    let runs = values.as_chunks::<2>().0.as_chunks::<RUN>().0;
    (runs, &values[2 * RUN * runs.len()..])
}

fn runs_bf16(bytes: &[u8]) -> (Runs<'_, [u8; 4]>, &[u8]) {
    let runs = bytes.as_chunks::<4>().0.as_chunks::<RUN>().0;
    (runs, &bytes[4 * RUN * runs.len()..])
}

/// An incomplete run, padded with zeros.
#[cold]
fn filled_up<R: Real>(values: &[R]) -> [[R; 2]; RUN] {
    let mut run = [[R::ZERO; 2]; RUN];
    let places = run.as_flattened_mut().iter_mut();
    places
        .zip(values)
        .for_each(|(place, value)| *place = *value);
    run
}

#[cold]
fn filled_up_bf16(bytes: &[u8]) -> [[u8; 4]; RUN] {
    let mut run = [[0; 4]; RUN];
    let places = run.as_flattened_mut().iter_mut();
    places.zip(bytes).for_each(|(place, byte)| *place = *byte);
    run
}

/// The two bf16 elements in four bytes.
#[inline(always)]
fn halves(word: &[u8; 4]) -> [f32; 2] {
    let word = u32::from_le_bytes(*word);
    [
        f32::from_bits(word << 16),
        f32::from_bits(word & 0xffff_0000),
    ]
}

vectorised! {
    fn add_runs<R: Real>(a: Runs<'_, [R; 2]>, b: Runs<'_, [R; 2]>, sums: &mut DistanceSums<R>) {
        for (a, b) in a.iter().zip(b) {
            add_run(a, b, |pair| *pair, sums);
        }
    }
}

vectorised! {
    fn add_runs_bf16(a: Runs<'_, [u8; 4]>, b: Runs<'_, [u8; 4]>, sums: &mut DistanceSums<f32>) {
        for (a, b) in a.iter().zip(b) {
            add_run(a, b, halves, sums);
        }
    }
}

#[inline(always)]
fn add_run<P, R: Real>(
    a: &[P; RUN],
    b: &[P; RUN],
    values: impl Fn(&P) -> [R; 2],
    sums: &mut DistanceSums<R>,
) {
    let mut largest = sums.largest;
    let [mut absolute, mut squared, mut first, mut second] = [[R::ZERO; WIDE]; 4];
    for (a, b) in a.as_chunks::<WIDE>().0.iter().zip(b.as_chunks::<WIDE>().0) {
        for i in 0..WIDE {
            let ([a, other_a], [b, other_b]) = (values(&a[i]), values(&b[i]));
            let (apart, other) = ((a - b).abs(), (other_a - other_b).abs());
            first[i] = a.times_plus(a, other_a.times_plus(other_a, first[i]));
            second[i] = b.times_plus(b, other_b.times_plus(other_b, second[i]));
            squared[i] = apart.times_plus(apart, other.times_plus(other, squared[i]));
            absolute[i] += apart + other;
            let larger = if apart > other { apart } else { other };
            largest[i] = if larger > largest[i] {
                larger
            } else {
                largest[i]
            };
        }
    }
    sums.largest = largest;
    widen(&mut sums.absolute, &absolute);
    widen(&mut sums.squared, &squared);
    widen(&mut sums.first, &first);
    widen(&mut sums.second, &second);
}

/// The sum of squares.
pub fn squares<R: Real>(values: &[R]) -> f64 {
    let (runs, rest) = runs(values);
    let mut sum = square_runs(runs);
    if !rest.is_empty() {
        sum += square_runs(&[filled_up(rest)]);
    }
    sum
}

/// The sum of squares of stored bf16 elements; equal to [`squares`] of the decoded ones.
pub fn squares_bf16(bytes: &[u8]) -> f64 {
    let (runs, rest) = runs_bf16(bytes);
    let mut sum = square_runs_bf16(runs);
    if !rest.is_empty() {
        sum += square_runs_bf16(&[filled_up_bf16(rest)]);
    }
    sum
}

vectorised! {
    fn square_runs<R: Real>(runs: Runs<'_, [R; 2]>) -> f64 {
        let mut sums = [0f64; WIDE];
        for run in runs {
            square_run(run, |pair| *pair, &mut sums);
        }
        sums.into_iter().sum()
    }
}

vectorised! {
    fn square_runs_bf16(runs: Runs<'_, [u8; 4]>) -> f64 {
        let mut sums = [0f64; WIDE];
        for run in runs {
            square_run(run, halves, &mut sums);
        }
        sums.into_iter().sum()
    }
}

#[inline(always)]
fn square_run<P, R: Real>(run: &[P; RUN], values: impl Fn(&P) -> [R; 2], sums: &mut [f64; WIDE]) {
    let mut parts = [R::ZERO; WIDE];
    for pairs in run.as_chunks::<WIDE>().0 {
        for (part, pair) in parts.iter_mut().zip(pairs) {
            let [value, other] = values(pair);
            *part = value.times_plus(value, other.times_plus(other, *part));
        }
    }
    widen(sums, &parts);
}

/// Adds the sums of one run, kept in the precision of the values, to sums in f64.
#[inline(always)]
fn widen<R: Real>(sums: &mut [f64; WIDE], parts: &[R; WIDE]) {
    for (sum, part) in sums.iter_mut().zip(parts) {
        *sum += part.to_f64();
    }
}

vectorised! {
    /// The [`TaskSums`] of three slices of finite elements of equal length; the third is the base.
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
        // Compares signs rather than the product, which may underflow.
        let conflict = (a > 0.0) & (b < 0.0) | (a < 0.0) & (b > 0.0);
        let both = (a != 0.0) & (b != 0.0);
        sums[3][lane] += if conflict { 1.0 } else { 0.0 };
        sums[4][lane] += if both { 1.0 } else { 0.0 };
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;
    use crate::FloatType;

    fn near(a: f64, b: f64) -> bool {
        (a - b).abs() <= 1e-9 * (a.abs() + b.abs() + 1e-300)
    }

    proptest! {
        #[test]
        fn sums_agree_with_their_twins(
            rows in prop::collection::vec((-1e3f32..1e3, -1e3f32..1e3, -1e3f32..1e3), 0..1200),
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
            let mut sums = DistanceSums::default();
            sums.add_bf16(&first, &second);
            prop_assert_eq!(sums.distance(), distance(&decoded(&first), &decoded(&second)));
            prop_assert_eq!(squares_bf16(&first), squares(&decoded(&first)));
            for found in [distance(&a, &b), distance(&single(0), &single(1))] {
                let largest = (0..a.len()).map(|at| (a[at] - b[at]).abs()).fold(0.0, f64::max);
                prop_assert!(close(found.largest, largest));
                prop_assert!(close(found.absolute, sum(&|at| (a[at] - b[at]).abs())));
                prop_assert!(close(found.squared, sum(&|at| (a[at] - b[at]).powi(2))));
                prop_assert!(close(found.first, sum(&|at| a[at].powi(2))));
                prop_assert!(close(squares(&a), found.first) && close(squares(&single(0)), found.first));
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
        // Task vectors (1, 0) and (1, 1), and one sign conflict.
        let found = task_sums(&[2.0f32, 1.0, 0.0], &[2.0, 2.0, 2.0], &[1.0, 1.0, 1.0]);
        assert_eq!((found.conflicts, found.both), (1.0, 2.0));
        assert_eq!((found.first, found.second, found.product), (2.0, 3.0, 0.0));
    }
}
