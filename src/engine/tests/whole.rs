//! A program on whole matrices: the base plus the polar factor of the summed differences of the others from it.
//!
//! The factor is computed by the Newton-Schulz iteration, in products of f32 matrices; its twin uses singular
//! vectors in f64.

use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering::SeqCst};

use nalgebra::DMatrix;
use rayon::prelude::*;

use super::*;
use numeric::{NoMemory, Real, View, multiply};

const STEPS: usize = 40;
/// Rows of a product that are computed together, whatever the number of threads.
const BAND: usize = 16;

struct Polar {
    rows: usize,
    columns: usize,
    /// How many results are in memory now, and the most that ever were.
    held: Arc<[AtomicUsize; 2]>,
}

impl Polar {
    fn new(rows: usize, columns: usize) -> Self {
        Self {
            rows,
            columns,
            held: Arc::default(),
        }
    }
}

impl<R: Real> Program<R> for Polar {
    fn next(&self, measured: &[Measured]) -> Pass<R> {
        match measured {
            [] => Pass::Whole(
                self.columns,
                Box::new(Factor {
                    held: Arc::clone(&self.held),
                }),
            ),
            [factor, ..] => Pass::Apply(Box::new(Added {
                factor: Arc::clone(&factor.matrix),
                held: Arc::clone(&self.held),
            })),
        }
    }
}

impl AnyProgram for Polar {
    fn cost(&self) -> Cost {
        let square = self.columns * self.columns;
        Cost {
            measures: 1,
            // The factor, a source or a product, and the square matrix.
            matrix: 4 * (2 * self.rows * self.columns + square) as u64,
            ..Cost::default()
        }
    }
}

struct Factor {
    held: Arc<[AtomicUsize; 2]>,
}

/// Sets `out` to `left right`, with all threads of the pool.
fn product(out: &mut [f32], left: View, right: View) {
    let bands = out.par_chunks_mut(BAND * right.columns).enumerate();
    bands.for_each(|(number, out)| {
        let first = number * BAND;
        let band = View {
            values: &left.values[first * left.down..],
            rows: out.len() / right.columns,
            ..left
        };
        multiply(out, band, right);
    });
}

impl Whole for Factor {
    fn compute(&self, sources: &dyn Matrices, result: &mut [f32]) -> Result<(), EngineError> {
        let [now, most] = self.held.as_ref();
        most.fetch_max(now.fetch_add(1, SeqCst) + 1, SeqCst);
        let (rows, columns) = (sources.rows(), sources.columns());
        let mut other = vec![0f32; rows * columns];
        for source in 1..sources.count() {
            // A few rows at a time, which is allowed.
            for (band, values) in other.chunks_mut(7 * columns).enumerate() {
                sources.read(source, 7 * band, values)?;
            }
            result.iter_mut().zip(&other).for_each(|(x, y)| *x += y);
        }
        sources.read(0, 0, &mut other)?;
        let times = (sources.count() - 1) as f32;
        result
            .iter_mut()
            .zip(&other)
            .for_each(|(x, y)| *x -= times * y);
        let squares: f64 = result.iter().map(|x| f64::from(*x).powi(2)).sum();
        if squares == 0.0 {
            return Err(sources.refusal("nothing differs".into()));
        }
        let scale = (1.0 / squares.sqrt()) as f32;
        result.iter_mut().for_each(|x| *x *= scale);
        let mut square = vec![0f32; columns * columns];
        for _ in 0..STEPS {
            sources.check_running()?;
            let turned = View {
                down: 1,
                beside: columns,
                ..View::rows(result, columns, rows)
            };
            product(&mut square, turned, View::rows(result, rows, columns));
            let inner = View::rows(&square, columns, columns);
            product(&mut other, View::rows(result, rows, columns), inner);
            let pairs = result.iter_mut().zip(&other);
            pairs.for_each(|(x, cubed)| *x = 1.5 * *x - 0.5 * cubed);
        }
        Ok(())
    }
}

struct Added {
    factor: Arc<Vec<f32>>,
    held: Arc<[AtomicUsize; 2]>,
}

impl Drop for Added {
    fn drop(&mut self) {
        self.held[0].fetch_sub(1, SeqCst);
    }
}

impl<R: Real> Apply<R> for Added {
    fn block(&self, block: Block<'_, R>, out: &mut [R]) -> Result<(), NoMemory> {
        let factor = &self.factor[block.first as usize..];
        for ((out, base), factor) in out.iter_mut().zip(block.sources[0]).zip(factor) {
            *out = R::from_f64(base.to_f64() + f64::from(*factor));
        }
        Ok(())
    }
}

/// The same from singular vectors.
fn twin(sources: &[Vec<f64>], rows: usize, columns: usize) -> Vec<f64> {
    let matrix = |values: &Vec<f64>| DMatrix::from_row_slice(rows, columns, values);
    let base = matrix(&sources[0]);
    let mut sum = DMatrix::zeros(rows, columns);
    for other in &sources[1..] {
        sum += matrix(other) - &base;
    }
    let svd = sum.svd(true, true);
    let result = base + svd.u.unwrap() * svd.v_t.unwrap();
    result.transpose().iter().copied().collect()
}

fn sources(format: FloatType, seed: u64, elements: usize) -> Vec<Vec<u8>> {
    let source = |number| encode(format, &noise(seed + number, elements));
    (0..3).map(source).collect()
}

#[test]
fn polar_factors_are_the_same_at_any_threads_and_memory() {
    for format in [FloatType::Bf16, FloatType::F32] {
        let shapes = [(96, 40), (50, 50), (700, 33)];
        let stored: Vec<_> = (shapes.iter().zip(1..))
            .map(|((rows, columns), seed)| sources(format, 10 * seed, rows * columns))
            .collect();
        let programs = shapes.map(|(rows, columns)| Polar::new(rows, columns));
        let cost = (programs.iter()).fold(Cost::default(), |cost, of| cost.max(of.cost()));
        let mut first = None;
        for threads in [1, 2, 5] {
            for memory in [least(threads, 3, cost), 256 << 20] {
                let settings = settings(threads, memory);
                let limits = settings.limits(3, cost).unwrap();
                // In between, as many jobs of another program.
                let mut jobs = Vec::new();
                for (number, (stored, program)) in stored.iter().zip(&programs).enumerate() {
                    let target = |which| ResultUse::values(2 * number + which, format);
                    jobs.push(job(format, stored, &Mean, target(0)));
                    jobs.push(job(format, stored, program, target(1)));
                }
                let memory = Memory::default();
                execute(&jobs, &settings, &limits, &memory, &Nobody).unwrap();
                let found = memory.outputs();
                assert!(*first.get_or_insert_with(|| found.clone()) == found);
            }
        }
        for program in &programs {
            let [now, most] = program.held.as_ref();
            assert_eq!((now.load(SeqCst), most.load(SeqCst)), (0, 1));
        }
        let found = first.unwrap();
        for (number, (rows, columns)) in shapes.into_iter().enumerate() {
            let values: Vec<_> = stored[number].iter().map(|b| decode(format, b)).collect();
            let expected = twin(&values, rows, columns);
            let step = if format == FloatType::F32 { 1e-7 } else { 4e-3 };
            for (found, expected) in decode(format, &found[2 * number + 1]).iter().zip(expected) {
                let bound = 2e-4 + step * expected.abs();
                assert!((found - expected).abs() < bound, "{found} {expected}");
            }
        }
    }
}

/// Two matrices of one program: the second is not begun while the first is in memory.
#[test]
fn one_matrix_is_held_at_a_time() {
    let program = Polar::new(40, 30);
    let stored: Vec<_> = (0..4)
        .map(|seed| sources(FloatType::Bf16, 10 * seed, 40 * 30))
        .collect();
    let jobs: Vec<_> = stored
        .iter()
        .enumerate()
        .map(|(number, stored)| {
            let target = ResultUse::values(number, FloatType::Bf16);
            job(FloatType::Bf16, stored, &program, target)
        })
        .collect();
    let settings = settings(5, 256 << 20);
    let limits = settings.limits(3, program.cost()).unwrap();
    execute(&jobs, &settings, &limits, &Memory::default(), &Nobody).unwrap();
    assert_eq!(program.held[1].load(SeqCst), 1);
}

#[test]
fn what_is_not_finite_is_counted_before_anything_is_computed() {
    let program = Polar::new(200, 100);
    let mut stored = sources(FloatType::F32, 1, 200 * 100);
    let last = stored[1].len() - 4;
    stored[1][last..].copy_from_slice(&f32::NAN.to_le_bytes());
    stored[1][..4].copy_from_slice(&f32::INFINITY.to_le_bytes());
    let target = ResultUse::values(0, FloatType::F32);
    let jobs = [job(FloatType::F32, &stored, &program, target)];
    let settings = settings(2, 256 << 20);
    let limits = settings.limits(3, program.cost()).unwrap();
    let error = execute(&jobs, &settings, &limits, &Memory::default(), &Nobody).unwrap_err();
    // Counted over the whole source, although it was read row by row.
    assert_eq!(
        error.to_string(),
        "tensor `w` of model `1` holds 1 NaN and 1 infinite values"
    );
}

#[test]
fn a_program_may_have_no_result() {
    let program = Polar::new(20, 10);
    let one = encode(FloatType::Bf16, &noise(1, 200));
    let stored = [one.clone(), one.clone(), one];
    let target = ResultUse::values(0, FloatType::Bf16);
    let jobs = [job(FloatType::Bf16, &stored, &program, target)];
    let settings = settings(2, 256 << 20);
    let limits = settings.limits(3, program.cost()).unwrap();
    let error = execute(&jobs, &settings, &limits, &Memory::default(), &Nobody).unwrap_err();
    assert!(
        error.to_string() == "tensor `w`: nothing differs",
        "{error}"
    );
}

/// Stops the work at the n-th time it is asked.
struct Stops(AtomicUsize);

impl Observer for Stops {
    fn advance(&self, _bytes: u64) {}
    fn cancelled(&self) -> bool {
        let left = self.0.load(SeqCst);
        self.0.store(left.saturating_sub(1), SeqCst);
        left == 0
    }
}

#[test]
fn a_stop_is_heard_wherever_the_pass_is() {
    let program = Polar::new(20, 10);
    let stored = sources(FloatType::Bf16, 1, 200);
    let settings = settings(1, 256 << 20);
    let limits = settings.limits(3, program.cost()).unwrap();
    let mut stopped = 0;
    for after in 0.. {
        let target = ResultUse::values(0, FloatType::Bf16);
        let jobs = [job(FloatType::Bf16, &stored, &program, target)];
        let observer = Stops(AtomicUsize::new(after));
        match execute(&jobs, &settings, &limits, &Memory::default(), &observer) {
            Ok(_) => break,
            Err(error) => assert!(matches!(error, EngineError::Cancelled), "{error}"),
        }
        stopped += 1;
    }
    // Before the pass, at each read, at each step, before the tile.
    assert_eq!(stopped, 1 + 2 * 3 + 1 + STEPS + 1);
}
