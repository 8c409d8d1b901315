//! Kernels on one block, in bytes of stored values a second.
//!
//! ```sh
//! cargo bench --bench kernels
//! cargo bench --bench kernels -- decode
//! ```

use divan::counter::BytesCount;
use divan::{Bencher, black_box};
use weldment::numeric::{
    BLOCK, FloatType, HIGH_BINS, MaskKey, NonFinite, PairProducts, Real, SumRule, abs_sum,
    high_bin, weighted_sum,
};

fn main() {
    divan::main();
}

const FORMATS: [FloatType; 6] = [
    FloatType::F64,
    FloatType::F32,
    FloatType::F16,
    FloatType::Bf16,
    FloatType::F8E4m3,
    FloatType::F8E5m2,
];

/// Weights of a model: normal enough, with a standard deviation of 0.02.
fn weights<R: Real>(seed: u64) -> Vec<R> {
    let mut draws = vec![0; 4 * BLOCK];
    MaskKey::new(seed, "weights", 0).fill(0, &mut draws);
    let uniform = |draw: &u32| f64::from(*draw) / 2f64.powi(32) - 0.5;
    let normal = |draws: &[u32]| draws.iter().map(uniform).sum::<f64>() * 0.02 * 3f64.sqrt();
    draws
        .chunks(4)
        .map(|draws| R::from_f64(normal(draws)))
        .collect()
}

/// So many values, as they are stored.
fn stored(format: FloatType, values: usize) -> BytesCount {
    BytesCount::new(values * format.size())
}

#[divan::bench(args = FORMATS, types = [f32, f64])]
fn decode<R: Real>(bencher: Bencher<'_, '_>, format: FloatType) {
    let mut values: Vec<R> = weights(1);
    let mut bytes = vec![0; BLOCK * format.size()];
    format.encode(&mut values, false, &mut bytes);
    bencher
        .counter(stored(format, BLOCK))
        .bench_local(|| format.decode(black_box(&bytes), black_box(&mut values)));
}

#[divan::bench(args = FORMATS, types = [f32, f64])]
fn encode<R: Real>(bencher: Bencher<'_, '_>, format: FloatType) {
    let mut values: Vec<R> = weights(1);
    let mut bytes = vec![0; BLOCK * format.size()];
    bencher
        .counter(stored(format, BLOCK))
        .bench_local(|| format.encode(black_box(&mut values), false, black_box(&mut bytes)));
}

// From here on, bytes are those of two sources (one, where there is one) in BF16.

#[divan::bench(types = [f32, f64])]
fn linear<R: Real>(bencher: Bencher<'_, '_>) {
    let (a, b): (Vec<R>, Vec<R>) = (weights(1), weights(2));
    let terms = [(0, R::from_f64(0.6)), (1, R::from_f64(0.4))];
    let rule = SumRule {
        divisor: R::ONE,
        fused: true,
        mean: true,
    };
    let mut out = vec![R::ZERO; BLOCK];
    bencher
        .counter(stored(FloatType::Bf16, 2 * BLOCK))
        .bench_local(|| {
            let sources = [black_box(a.as_slice()), black_box(b.as_slice())];
            weighted_sum(&sources, &terms, 0, rule, black_box(&mut out));
        });
}

#[divan::bench(types = [f32, f64])]
fn gram<R: Real>(bencher: Bencher<'_, '_>) {
    let (a, b): (Vec<R>, Vec<R>) = (weights(1), weights(2));
    bencher
        .counter(stored(FloatType::Bf16, 2 * BLOCK))
        .bench_local(|| {
            let (a, b) = (black_box(&a), black_box(&b));
            let mut products = PairProducts::default();
            products.add(a, b);
            products.products()
        });
}

#[divan::bench(types = [f32, f64])]
fn norms<R: Real>(bencher: Bencher<'_, '_>) {
    let values: Vec<R> = weights(1);
    bencher
        .counter(stored(FloatType::Bf16, BLOCK))
        .bench_local(|| abs_sum(black_box(&values)));
}

#[divan::bench]
fn non_finite(bencher: Bencher<'_, '_>) {
    let values: Vec<f32> = weights(1);
    bencher
        .counter(stored(FloatType::Bf16, BLOCK))
        .bench_local(|| NonFinite::count(black_box(&values)));
}

#[divan::bench(args = FORMATS)]
fn non_finite_stored(bencher: Bencher<'_, '_>, format: FloatType) {
    let mut values: Vec<f64> = weights(1);
    let mut bytes = vec![0; BLOCK * format.size()];
    format.encode(&mut values, false, &mut bytes);
    bencher
        .counter(stored(format, BLOCK))
        .bench_local(|| format.non_finite(black_box(&bytes)));
}

#[divan::bench]
fn masks(bencher: Bencher<'_, '_>) {
    let key = MaskKey::new(1, "a", 0);
    let mut draws = vec![0; BLOCK];
    bencher
        .counter(stored(FloatType::Bf16, BLOCK))
        .bench_local(|| key.fill(black_box(0), black_box(&mut draws)));
}

#[divan::bench]
fn histogram(bencher: Bencher<'_, '_>) {
    let values: Vec<f32> = weights(1);
    let mut counts = vec![0u64; HIGH_BINS];
    bencher
        .counter(stored(FloatType::Bf16, BLOCK))
        .bench_local(|| {
            for value in black_box(&values) {
                counts[high_bin(value.magnitude_key())] += 1;
            }
        });
}
