//! mergekit's `slerp`, `nuslerp` and `model_stock`.
//!
//! Each computes an element by a few operations with numbers that hold for a whole tensor or row. These come from
//! norms and inner products, whose last bits depend on the order in which the other machine added. They are
//! recomputed here, and values near them are tried: the numbers are found if they reproduce every value of the
//! checkpoint.

use std::ops::Range;

use super::rounding::Profile;
use super::{Evidence, Most, Replay, stored};
use engine::{AnyProgram, Apply, Block, Cost, Measure, Measured, Pass, Program};
use methods::{Tensor, TensorParams};
use numeric::{FloatType, NoMemory, Real};

/// How many float32 values around a recomputed cosine are tried, and how many around functions of it.
#[derive(Debug, Clone, Copy)]
struct Window {
    cosines: i32,
    functions: i32,
}

/// Only the recomputed numbers.
const CENTRE: Window = Window {
    cosines: 0,
    functions: 0,
};
/// The error of a short sum in float32.
const CLOSE: Window = Window {
    cosines: 24,
    functions: 1,
};
/// The error of a long sum: about 3e-5.
const WIDE: Window = Window {
    cosines: 512,
    functions: 0,
};
/// Around the cosine that fits the checkpoint best.
const FITTED: Window = Window {
    cosines: 8,
    functions: 1,
};
/// How many values of a 16-bit dtype cosines are moved either way.
const COARSE_COSINES: i32 = 2;
/// How many float32 values the weight of model_stock is moved either way; if updates are nearly orthogonal, it has
/// few significant digits.
const STOCK_WEIGHTS: i32 = 2048;
/// Blocks that are sampled to choose between numbers, and the elements sampled in all of them together.
const SAMPLED: [usize; 2] = [64, 4096];
/// After this many mismatches in a block, its sample says nothing more about the numbers.
const ENOUGH: u64 = 4;
/// How many candidates are tried on the whole tensor.
const FINALISTS: usize = 8;
/// The cosine above which slerp is linear.
const LINEAR_ABOVE: f32 = 0.9995;

/// Numbers that hold for a whole vector, and their distance from the recomputed ones.
#[derive(Debug, Clone, Copy)]
struct Numbers {
    of: [f32; 3],
    distance: f64,
}

/// The formula of a method.
#[derive(Debug, Clone)]
enum Formula {
    /// `a * x + b * y` in float32.
    Slerp { t: f32, models: [usize; 2] },
    /// `(a * x + b * y) / c`; with a base, of the differences from it.
    Nuslerp {
        t: f64,
        models: [usize; 2],
        base: Option<usize>,
    },
    /// `t * mean + (1 - t) * base`.
    Stock { base: usize, others: Vec<usize> },
}

/// A formula, the dtype it is computed in, and the format of the result.
#[derive(Debug, Clone)]
struct Kernel {
    formula: Formula,
    profile: Profile,
    output: FloatType,
}

/// Replays a tensor as one vector, or row by row; `row` is the length of a row.
struct Search {
    kernel: Kernel,
    row: Option<usize>,
    blocks: usize,
    shifted: std::sync::Arc<Most>,
}

pub(super) fn replay(
    profile: Profile,
    method: &str,
    params: &TensorParams,
    tensor: &Tensor<'_>,
    output: FloatType,
) -> Option<Box<dyn Replay>> {
    let others = (0..tensor.sources).filter(|&source| Some(source) != tensor.base);
    let others: Vec<usize> = others.collect();
    let pair = || <[usize; 2]>::try_from(others.as_slice()).ok();
    let mut by_row = false;
    let formula = match method {
        "slerp" => Formula::Slerp {
            t: params.number("t") as f32,
            models: [tensor.base?, *others.first()?],
        },
        "nuslerp" => {
            let models = pair()?;
            let [first, second] = models.map(|source| params.source_number(source, "weight"));
            let total = first + second;
            if !params.flag("nuslerp_flatten") {
                if params.flag("nuslerp_row_wise") && tensor.shape.len() > 1 {
                    return None;
                }
                by_row = true;
            }
            Formula::Nuslerp {
                t: match total.abs() < 1e-6 {
                    true => 0.5,
                    false => second / total,
                },
                models,
                base: tensor.base,
            }
        }
        _ => {
            by_row = params.flag("filter_wise");
            Formula::Stock {
                base: tensor.base?,
                others,
            }
        }
    };
    let row = tensor.row();
    let row = (by_row && row > 0 && tensor.elements() > row as u64).then_some(row);
    let search = Search {
        kernel: Kernel {
            formula,
            profile,
            output,
        },
        row,
        blocks: 0,
        shifted: Default::default(),
    };
    let block = search.cost().block_len() as u64;
    Some(Box::new(Search {
        blocks: tensor.elements().div_ceil(block) as usize,
        ..search
    }))
}

impl Kernel {
    /// The dtype of norms, cosines and weights.
    fn inner(&self) -> Profile {
        match self.formula {
            Formula::Slerp { .. } => Profile::Float32,
            _ => self.profile,
        }
    }

    /// How many vectors are measured.
    fn vectors(&self) -> usize {
        match &self.formula {
            Formula::Slerp { .. } | Formula::Nuslerp { .. } => 2,
            Formula::Stock { others, .. } => others.len(),
        }
    }

    fn pairs(&self) -> usize {
        self.vectors() * self.vectors().saturating_sub(1) / 2
    }

    /// An element of one of the measured vectors.
    fn vector<R: Real>(&self, number: usize, sources: &[&[R]], at: usize) -> R {
        let value = |source: usize| self.profile.step(sources[source][at]);
        let from = |source, base| self.profile.step(value(source) - value(base));
        match &self.formula {
            Formula::Slerp { models, .. } => value(models[number]),
            Formula::Nuslerp { models, base, .. } => match *base {
                Some(base) => from(models[number], base),
                None => value(models[number]),
            },
            Formula::Stock { base, others } => from(others[number], *base),
        }
    }

    /// Adds to the squared 2-norm of each vector.
    fn squares<R: Real>(&self, sources: &[&[R]], elements: Range<usize>, sums: &mut [f64]) {
        for (number, sum) in sums.iter_mut().enumerate() {
            for at in elements.clone() {
                *sum += self.vector(number, sources, at).to_f64().powi(2);
            }
        }
    }

    /// The norms as the method divides by them, from their squares.
    fn norms(&self, squares: &[f64]) -> Vec<f64> {
        let norm = |square: &f64| {
            let norm: f64 = self.inner().step(square.sqrt());
            match self.formula {
                Formula::Slerp { .. } if norm <= f64::from(1e-8f32) => 1.0,
                Formula::Slerp { .. } | Formula::Stock { .. } => norm,
                Formula::Nuslerp { .. } => norm.max(self.inner().scalar(1e-7)),
            }
        };
        squares.iter().map(norm).collect()
    }

    /// Adds to the inner product of each pair of vectors; of unit vectors, except in model_stock.
    fn products<R: Real>(
        &self,
        norms: &[f64],
        sources: &[&[R]],
        elements: Range<usize>,
        sums: &mut [f64],
    ) {
        let inner = self.inner();
        let part = |number: usize, at: usize| -> f64 {
            let value = self.vector(number, sources, at).to_f64();
            match self.formula {
                Formula::Stock { .. } => value,
                _ => inner.step(value / norms[number]),
            }
        };
        let mut sums = sums.iter_mut();
        for a in 0..norms.len() {
            for b in a + 1..norms.len() {
                let Some(sum) = sums.next() else { return };
                for at in elements.clone() {
                    *sum += inner.step(part(a, at) * part(b, at));
                }
            }
        }
    }

    /// The numbers that mergekit may have used, nearest to the recomputed ones first. For rows, nothing is fitted.
    fn numbers(&self, norms: &[f64], products: &[f64], fitted: Option<[f64; 2]>) -> Vec<Numbers> {
        let mut all = self.around(norms, products, CENTRE);
        let Some(of) = all.first().copied() else {
            return Vec::new();
        };
        all.extend(self.around(norms, products, CLOSE));
        if let (Some(fitted), Profile::Float32) = (fitted, self.inner())
            && !matches!(self.formula, Formula::Stock { .. })
        {
            let cosines = angles(self.inner(), products, WIDE);
            let wide = self.around(norms, products, WIDE);
            let off = |numbers: &[f32; 3]| {
                let [a, b, c] = numbers.map(f64::from);
                (a / c - fitted[0]).abs() + (b / c - fitted[1]).abs()
            };
            let pairs = cosines.iter().zip(&wide);
            let best = pairs.min_by(|(_, a), (_, b)| off(a).total_cmp(&off(b)));
            if let Some((&(_, angle), _)) = best {
                let cosine = [f64::from(angle).cos()];
                all.extend(self.around(norms, &cosine, FITTED));
            }
            all.extend(wide);
        }
        let numbers = all.into_iter().map(|numbers| {
            let parts = numbers.iter().zip(&of);
            let parts = parts.map(|(a, b)| f64::from((a - b).abs()));
            Numbers {
                of: numbers,
                distance: parts.fold(0.0, f64::max),
            }
        });
        let mut numbers: Vec<Numbers> = numbers
            .filter(|numbers| numbers.of.iter().all(|number| number.is_finite()))
            .collect();
        numbers.sort_by(|a, b| {
            let place = |numbers: &Numbers| (numbers.distance, numbers.of);
            place(a)
                .partial_cmp(&place(b))
                .unwrap_or(std::cmp::Ordering::Equal)
        });
        numbers.dedup_by(|a, b| a.of == b.of);
        numbers
    }

    /// How many sums it takes to fit the checkpoint by multiples of two vectors.
    fn fitted_sums(&self) -> usize {
        match self.formula {
            Formula::Slerp { .. } | Formula::Nuslerp { .. } => 3,
            Formula::Stock { .. } => 0,
        }
    }

    /// Adds to the inner products of the two vectors with each other and with the checkpoint.
    fn fit<R: Real>(&self, sources: &[&[R]], sums: &mut [f64]) {
        let ([of_both, of_first, of_second], Some(found)) = (sums, sources.last()) else {
            return;
        };
        for at in 0..found.len() {
            let base = match self.formula {
                Formula::Nuslerp { base, .. } => {
                    base.map_or(0.0, |base| sources[base][at].to_f64())
                }
                _ => 0.0,
            };
            let found = found[at].to_f64() - base;
            let first = self.vector(0, sources, at).to_f64();
            let second = self.vector(1, sources, at).to_f64();
            *of_both += first * second;
            *of_first += first * found;
            *of_second += second * found;
        }
    }

    /// The recomputed numbers, and those in a window around them.
    fn around(&self, norms: &[f64], products: &[f64], window: Window) -> Vec<[f32; 3]> {
        let inner = self.inner();
        let step = |value: f32| inner.step(value);
        let fine = inner == Profile::Float32;
        // Functions in float32 are off by at most one ULP; in 16 bits, they are rounded from float32.
        let slack = if fine { window.functions } else { 0 };
        match &self.formula {
            Formula::Slerp { t, .. } => {
                let mut found = Vec::new();
                for (cosine, angle) in angles(inner, products, window) {
                    if cosine.abs() > LINEAR_ABOVE {
                        found.push([1.0 - t, *t, 1.0]);
                        continue;
                    }
                    let sine = angle.sin();
                    let a = ((1.0 - t) * angle).sin() / sine;
                    let b = (t * angle).sin() / sine;
                    for (a, b) in near(inner, a, slack)
                        .flat_map(|a| near(inner, b, slack).map(move |b| (a, b)))
                    {
                        found.push([a, b, 1.0]);
                    }
                }
                found
            }
            Formula::Nuslerp { t, .. } => {
                let [rest, t] = [(1.0 - t) as f32, *t as f32];
                let mut found = Vec::new();
                for (cosine, angle) in angles(inner, products, window) {
                    if f64::from(step(1.0 - step(cosine * cosine))) <= 1e-16 {
                        found.push([rest, t, 1.0]);
                        continue;
                    }
                    let sine = |angle: f32| step(step(angle).sin());
                    let (a, b, c) = (sine(rest * angle), sine(t * angle), sine(angle));
                    for a in near(inner, a, slack) {
                        for b in near(inner, b, slack) {
                            found.extend(near(inner, c, slack).map(|c| [a, b, c]));
                        }
                    }
                }
                found
            }
            Formula::Stock { others, .. } => {
                let count = others.len() as f32;
                let mut cosines = Vec::new();
                let mut products = products.iter();
                for a in 0..norms.len() {
                    for b in a + 1..norms.len() {
                        let floor = inner.scalar::<f32>(1e-6);
                        let norms = step(norms[a] as f32 * norms[b] as f32).max(floor);
                        let product = step(products.next().map_or(0.0, |&product| product as f32));
                        cosines.push(step(product / norms).clamp(-1.0, 1.0));
                    }
                }
                let sum = cosines.iter().fold(0f32, |sum, cosine| sum + cosine);
                let mean = step(sum / cosines.len().max(1) as f32);
                let weight = |cosine: f32| {
                    let divisor = step(1.0 + step((count - 1.0) * cosine));
                    match divisor.abs() < inner.scalar::<f32>(1e-6) {
                        true => 0.0,
                        false => step(step(count * cosine) / divisor),
                    }
                };
                let weights: Vec<f32> = match fine {
                    true => near(inner, weight(mean), window.functions * STOCK_WEIGHTS).collect(),
                    false => near(inner, mean, window.functions * COARSE_COSINES)
                        .map(weight)
                        .collect(),
                };
                let pair = |weight: f32| [weight, step(1.0 - weight), 1.0];
                weights.into_iter().map(pair).collect()
            }
        }
    }

    /// The result for an element.
    fn element<R: Real>(&self, numbers: &[f32; 3], sources: &[&[R]], at: usize) -> R {
        let inner = self.inner();
        let step = |value: R| inner.step(value);
        let [a, b, c] = numbers.map(R::from_f32);
        match &self.formula {
            Formula::Slerp { .. } => {
                let sum =
                    step(a * self.vector(0, sources, at)) + step(b * self.vector(1, sources, at));
                self.profile.step(step(sum))
            }
            Formula::Nuslerp { base, .. } => {
                let sum =
                    step(a * self.vector(0, sources, at)) + step(b * self.vector(1, sources, at));
                let result = step(step(sum) / c);
                match *base {
                    Some(base) => step(step(sources[base][at]) + result),
                    None => result,
                }
            }
            Formula::Stock { base, others } => {
                let models = others.iter().map(|&source| step(sources[source][at]));
                let sum = models.fold(R::ZERO, |sum, model| step(sum + model));
                let mean = step(sum / R::from_f32(others.len() as f32));
                step(step(a * mean) + step(b * step(sources[*base][at])))
            }
        }
    }

    /// Whether the numbers reproduce the checkpoint's value.
    fn fits<R: Real>(&self, numbers: &[f32; 3], sources: &[&[R]], at: usize) -> bool {
        let found = sources.last().map_or(R::ZERO, |found| found[at]);
        let value = self.element(numbers, sources, at);
        let written = match self.output {
            FloatType::F32 | FloatType::F64 => value,
            FloatType::Bf16 => Profile::Bfloat16.step(value),
            FloatType::F16 => Profile::Float16.step(value),
            FloatType::F8E4m3 | FloatType::F8E5m2 => stored(self.output, value),
        };
        written == found
    }

    /// How many elements the numbers fail to reproduce; stops counting at `most`.
    fn misses<R: Real>(
        &self,
        numbers: &[f32; 3],
        sources: &[&[R]],
        elements: Range<usize>,
        most: u64,
    ) -> u64 {
        let mut misses = 0;
        for at in elements {
            if !self.fits(numbers, sources, at) {
                misses += 1;
                if misses >= most {
                    break;
                }
            }
        }
        misses
    }
}

/// A value and those around it.
fn near(profile: Profile, value: f32, window: i32) -> impl Iterator<Item = f32> {
    (-window..=window).map(move |places| profile.neighbour(value, places))
}

/// The cosine and the angle of a pair of unit vectors, and those around them.
fn angles(inner: Profile, products: &[f64], window: Window) -> Vec<(f32, f32)> {
    let product = products.first().map_or(0.0, |&product| product as f32);
    let cosine = inner.step(product).clamp(-1.0, 1.0);
    let angle = |cosine: f32| inner.step(cosine.acos());
    if inner == Profile::Float32 && cosine.abs() < 0.5 {
        // Near zero, a cosine has more digits than its angle.
        let angles = near(inner, angle(cosine), window.cosines);
        return angles.map(|angle| (cosine, angle)).collect();
    }
    let (reach, slack) = match inner {
        Profile::Float32 => (window.cosines, window.functions),
        _ => (window.cosines.min(COARSE_COSINES), 0),
    };
    let cosines = near(inner, cosine, reach).map(|cosine| cosine.clamp(-1.0, 1.0));
    let pairs = cosines
        .flat_map(|cosine| near(inner, angle(cosine), slack).map(move |angle| (cosine, angle)));
    pairs.collect()
}

/// The multiples of two vectors whose sum is closest to a third, from the squared 2-norms of the two, their inner
/// product, and their inner products with the third.
fn least_squares(squares: &[f64], sums: &[f64]) -> Option<[f64; 2]> {
    let ([xx, yy], [xy, xf, yf]) = (squares, sums) else {
        return None;
    };
    let determinant = xx * yy - xy * xy;
    let a = (yy * xf - xy * yf) / determinant;
    let b = (xx * yf - xy * xf) / determinant;
    (determinant > 1e-9 * xx * yy).then_some([a, b])
}

impl Search {
    /// How many elements of each block are sampled.
    fn sampled(&self) -> usize {
        let [blocks, elements] = SAMPLED;
        elements / self.blocks.clamp(1, blocks)
    }
}

impl<R: Real> Program<R> for Search {
    fn next(&self, measured: &[Measured]) -> Pass<R> {
        let kernel = self.kernel.clone();
        if let Some(row) = self.row {
            let shifted = self.shifted.clone();
            return Pass::Apply(Box::new(RowSearch {
                kernel,
                row,
                shifted,
            }));
        }
        let [squares, rest @ ..] = measured else {
            return Pass::Measure(Box::new(Squares(kernel)));
        };
        let norms = kernel.norms(&squares.sums);
        let [products, rest @ ..] = rest else {
            return Pass::Measure(Box::new(Products { kernel, norms }));
        };
        let (products, sums) = products.sums.split_at(kernel.pairs());
        let fitted = least_squares(&squares.sums, sums);
        let numbers = kernel.numbers(&norms, products, fitted);
        let trial = |numbers: Vec<Numbers>, most| {
            Box::new(Trial {
                kernel: self.kernel.clone(),
                numbers,
                most,
            })
        };
        let best = |numbers: &[Numbers], measured: &Measured| {
            let mut best: Vec<(u64, Numbers)> = (measured.counts.iter().copied())
                .zip(numbers.iter().copied())
                .collect();
            // A stable sort: among equals, the nearest to the recomputed numbers comes first.
            best.sort_by_key(|(misses, _)| *misses);
            best.truncate(FINALISTS);
            best.into_iter()
                .map(|(_, numbers)| numbers)
                .collect::<Vec<_>>()
        };
        let chosen = match (&numbers[..], rest) {
            ([] | [_], _) => numbers.first().copied(),
            (_, []) => return Pass::Sample(self.sampled(), trial(numbers, ENOUGH)),
            (_, [sampled]) => {
                return Pass::Measure(trial(best(&numbers, sampled), u64::MAX));
            }
            (_, [sampled, whole, ..]) => best(&best(&numbers, sampled), whole).first().copied(),
        };
        let Some(chosen) = chosen else {
            return Pass::Refuse("norms or angles of the inputs are not finite".into());
        };
        self.shifted.see(chosen.distance.to_bits());
        Pass::Apply(Box::new(Trial {
            kernel,
            numbers: vec![chosen],
            most: 0,
        }))
    }
}

impl AnyProgram for Search {
    fn cost(&self) -> Cost {
        match self.row {
            Some(row) => Cost {
                row,
                ..Cost::default()
            },
            None => Cost {
                measures: 4,
                sums: (self.kernel.vectors()).max(self.kernel.pairs() + self.kernel.fitted_sums()),
                counts: MOST_NUMBERS,
                ..Cost::default()
            },
        }
    }
}

/// The most candidates that are tried: those of nuslerp, with 3 angles for each cosine and 27 triples of sines for
/// each.
const MOST_NUMBERS: usize =
    81 * (2 * (CLOSE.cosines + FITTED.cosines) as usize + 2) + 2 * WIDE.cosines as usize + 2;
const _: () = assert!(2 * STOCK_WEIGHTS < MOST_NUMBERS as i32);

impl Replay for Search {
    fn evidence(&self) -> Evidence {
        Evidence {
            shifted: f64::from_bits(self.shifted.get()),
            ..Evidence::default()
        }
    }
}

/// Measures the squared 2-norm of each vector.
struct Squares(Kernel);

impl<R: Real> Measure<R> for Squares {
    fn sums(&self) -> usize {
        self.0.vectors()
    }

    fn counts(&self) -> usize {
        0
    }

    fn block(
        &self,
        block: Block<'_, R>,
        sums: &mut [f64],
        _counts: &mut [u64],
    ) -> Result<(), NoMemory> {
        self.0.squares(block.sources, 0..block.len(), sums);
        Ok(())
    }
}

/// Measures the inner products of the vectors.
struct Products {
    kernel: Kernel,
    norms: Vec<f64>,
}

impl<R: Real> Measure<R> for Products {
    fn sums(&self) -> usize {
        self.kernel.pairs() + self.kernel.fitted_sums()
    }

    fn counts(&self) -> usize {
        0
    }

    fn block(
        &self,
        block: Block<'_, R>,
        sums: &mut [f64],
        _counts: &mut [u64],
    ) -> Result<(), NoMemory> {
        let (products, sums) = sums.split_at_mut(self.kernel.pairs());
        self.kernel
            .products(&self.norms, block.sources, 0..block.len(), products);
        self.kernel.fit(block.sources, sums);
        Ok(())
    }
}

/// Tries candidates, or applies the chosen one.
struct Trial {
    kernel: Kernel,
    numbers: Vec<Numbers>,
    /// After how many mismatches the count of a block stops. When sampling, only the first blocks are used.
    most: u64,
}

impl<R: Real> Measure<R> for Trial {
    fn sums(&self) -> usize {
        0
    }

    fn counts(&self) -> usize {
        self.numbers.len()
    }

    fn block(
        &self,
        block: Block<'_, R>,
        _sums: &mut [f64],
        counts: &mut [u64],
    ) -> Result<(), NoMemory> {
        if self.most == ENOUGH && block.index >= SAMPLED[0] {
            return Ok(());
        }
        for (numbers, count) in self.numbers.iter().zip(counts) {
            *count += self
                .kernel
                .misses(&numbers.of, block.sources, 0..block.len(), self.most);
        }
        Ok(())
    }
}

impl<R: Real> Apply<R> for Trial {
    fn block(&self, block: Block<'_, R>, out: &mut [R]) -> Result<(), NoMemory> {
        for numbers in self.numbers.iter().take(1) {
            for (at, out) in out.iter_mut().enumerate() {
                *out = self.kernel.element(&numbers.of, block.sources, at);
            }
        }
        Ok(())
    }
}

/// Finds and applies the numbers of each row.
struct RowSearch {
    kernel: Kernel,
    row: usize,
    shifted: std::sync::Arc<Most>,
}

impl<R: Real> Apply<R> for RowSearch {
    fn block(&self, block: Block<'_, R>, out: &mut [R]) -> Result<(), NoMemory> {
        for (index, out) in out.chunks_mut(self.row).enumerate() {
            let first = index * self.row;
            let row = first..first + out.len();
            let mut sums = vec![0.0; self.kernel.vectors()];
            self.kernel.squares(block.sources, row.clone(), &mut sums);
            let norms = self.kernel.norms(&sums);
            let mut products = vec![0.0; self.kernel.pairs()];
            self.kernel
                .products(&norms, block.sources, row.clone(), &mut products);
            let mut least = u64::MAX;
            let mut chosen = None;
            let centre = self.kernel.around(&norms, &products, CENTRE);
            let centre = centre.into_iter().map(|of| Numbers { of, distance: 0.0 });
            // Other candidates are computed only if the recomputed numbers do not fit.
            let others =
                std::iter::once_with(|| self.kernel.numbers(&norms, &products, None)).flatten();
            for numbers in centre.chain(others) {
                let misses = self
                    .kernel
                    .misses(&numbers.of, block.sources, row.clone(), least);
                if misses < least {
                    least = misses;
                    chosen = Some(numbers);
                }
                if least == 0 {
                    break;
                }
            }
            let Some(chosen) = chosen else { continue };
            self.shifted.see(chosen.distance.to_bits());
            for (out, at) in out.iter_mut().zip(row) {
                *out = self.kernel.element(&chosen.of, block.sources, at);
            }
        }
        Ok(())
    }
}
