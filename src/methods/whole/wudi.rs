//! `wudi`, `swudi_a` and `actmat`: the update that each task vector's own inputs tell least from that task vector.
//!
//! All three minimise `sum of a_i |(M - D_i) D_i^T|^2`. Its minimum is `R C^-1` with `C = sum(a_i D_i^T D_i)` and `R =
//! sum(a_i D_i D_i^T D_i)`; they differ in how far they go there along each eigenvector of C.

use std::sync::Arc;

use super::super::{
    Arity, BaseRule, MethodInfo, ParamInfo, ParamKind, ParamScope, ParamValue, TensorParams,
};
use super::others::OTHERS;
use super::{Failure, LAMBDA, Merger, Size, Tasks, Turn, WEIGHT, WholeMethod};
use matrix::{Eigen, Matrix, RANK, add_gram, gram};

static WUDI_INFO: MethodInfo = MethodInfo {
    name: "wudi",
    summary: "the sum of the task vectors, moved along the flow that lowers their interference",
    formula: "a_i = 1 / |D_i|^2 and f_k = 1 - exp(-time * w_k) for the `keep` largest w_k, else 0, in: D_i = w_i * (x_i \
              - base); C = sum(a_i * D_i^T D_i) = Q diag(w) Q^T, R = sum(a_i * D_i D_i^T D_i), S = sum(D_i); out = base \
              + lambda * (S + (R Q diag(f / w) - S Q diag(f)) Q^T)",
    when: "full fine-tunes, each with a skill of its own; also try lambda below 1",
    departs: "The default is the closed form of the later paper, which a gradient flow reaches at `time`. `form: \
              adam` is the loop of the first paper, 300 steps of Adam. One model comes out as it is, times lambda.",
    source: "Cheng et al., Whoever Started the Interference Should End It, arXiv:2503.08099; SWUDI, arXiv:2606.07289",
    models: Arity { min: 1, max: None },
    base: BaseRule::Required,
    params: &[
        WEIGHT,
        LAMBDA,
        ParamInfo {
            name: "time",
            kind: ParamKind::Range {
                min: 0.0,
                max: f64::INFINITY,
            },
            scope: ParamScope::Tensor,
            default: Some(ParamValue::Number(300.0)),
            required: false,
            doc: "How long the flow lasts; 0 leaves the sum.",
        },
        ParamInfo {
            name: "keep",
            kind: ParamKind::Range { min: 0.0, max: 1.0 },
            scope: ParamScope::Tensor,
            default: Some(ParamValue::Number(0.85)),
            required: false,
            doc: "The sum is moved along this share of the eigenvectors of C, the strongest first: 0.85 for full \
                  fine-tunes of language models, 0.65 for CLIP.",
        },
        ParamInfo {
            name: "form",
            kind: ParamKind::Word {
                words: &["spectral", "adam"],
                booleans: None,
            },
            scope: ParamScope::Tensor,
            default: Some(ParamValue::Word("spectral")),
            required: false,
            doc: "`spectral` is the closed form. `adam` takes 300 steps of Adam from the sum, at a rate of 1e-5. It \
                  has no `time` and no `keep`, and needs 300 matrix products.",
        },
        OTHERS,
    ],
    random: false,
    statistics: None,
};

static SWUDI_A_INFO: MethodInfo = MethodInfo {
    name: "swudi_a",
    summary: "like wudi, but moved all the way along the eigenvectors that matter by a rule",
    formula: "a_i = 1 / |D_i|^2 and f_k = 1 for the K largest w_k, else 0, in: D_i = w_i * (x_i - base); C = sum(a_i * \
              D_i^T D_i) = Q diag(w) Q^T, R = sum(a_i * D_i D_i^T D_i), S = sum(D_i); out = base + lambda * (S + (R Q \
              diag(f / w) - S Q diag(f)) Q^T); K = ceil(sum(sqrt(w))^2 / sum(w)) by `participation`",
    when: "the same as wudi, without its `time` and `keep`",
    departs: "One model comes out as it is, times lambda.",
    source: "SWUDI, arXiv:2606.07289",
    models: Arity { min: 1, max: None },
    base: BaseRule::Required,
    params: &[
        WEIGHT,
        LAMBDA,
        ParamInfo {
            name: "rule",
            kind: ParamKind::Word {
                words: &["participation", "gavish_donoho"],
                booleans: None,
            },
            scope: ParamScope::Tensor,
            default: Some(ParamValue::Word("participation")),
            required: false,
            doc: "How many eigenvectors matter: `participation` counts them by how evenly sqrt(w) is spread, \
                  `gavish_donoho` counts those whose sqrt(w) stands out from noise.",
        },
        OTHERS,
    ],
    random: false,
    statistics: None,
};

static ACTMAT_INFO: MethodInfo = MethodInfo {
    name: "actmat",
    summary: "the update that, in least squares, does to each task vector's own inputs what that task vector does",
    formula: "D_i = w_i * (x_i - base); out = base + lambda * sum(D_i D_i^T D_i) * pinv(sum(D_i^T D_i))",
    when: "the same as regmean, if there is no data: the task vectors stand for their inputs",
    departs: "Eigenvalues below 1e-10 of the largest count as zero in the inverse. One model comes out as it is, times \
              lambda.",
    source: "ACTMat, arXiv:2604.01329",
    models: Arity { min: 1, max: None },
    base: BaseRule::Required,
    params: &[WEIGHT, LAMBDA, OTHERS],
    random: false,
    statistics: None,
};

/// Gradient flow, in closed form or by Adam.
pub(in super::super) static WUDI: WholeMethod = WholeMethod {
    info: &WUDI_INFO,
    merger: |params| {
        Ok(match params.word("form") {
            "adam" => Arc::new(Adam),
            _ => Arc::new(Spectral {
                filter: Filter::Flow {
                    time: params.number("time"),
                    keep: params.number("keep"),
                },
                is_normalised: true,
            }),
        })
    },
    keeps_one: true,
};

/// A filter that finds its own rank.
pub(in super::super) static SWUDI_A: WholeMethod = WholeMethod {
    info: &SWUDI_A_INFO,
    merger: |params| {
        let filter = Filter::of_rule(params);
        Ok(Arc::new(Spectral {
            filter,
            is_normalised: true,
        }))
    },
    keeps_one: true,
};

/// No filter.
pub(in super::super) static ACTMAT: WholeMethod = WholeMethod {
    info: &ACTMAT_INFO,
    merger: |_| {
        Ok(Arc::new(Spectral {
            filter: Filter::All,
            is_normalised: false,
        }))
    },
    keeps_one: true,
};

/// How far the sum is moved along each eigenvector.
#[derive(Debug, Clone, Copy, PartialEq)]
enum Filter {
    /// All the way along all; what has no eigenvalue is left out.
    All,
    /// As far as a flow comes in this time, along this share of the eigenvectors.
    Flow { time: f64, keep: f64 },
    /// All the way along as many as the spread of the roots of the eigenvalues says.
    Participation,
    /// All the way along those that stand out from noise.
    GavishDonoho,
}

impl Filter {
    fn of_rule(params: &TensorParams) -> Self {
        match params.word("rule") {
            "gavish_donoho" => Filter::GavishDonoho,
            _ => Filter::Participation,
        }
    }

    /// For the first eigenvalues, descending, how far the sum is moved; none of them is zero.
    fn shares(self, values: &[f64], shape: (usize, usize)) -> Vec<f64> {
        let least = values.first().map_or(0.0, |first| first * RANK * RANK);
        let rank = values.iter().take_while(|value| **value > least).count();
        let count = match self {
            Filter::All => values.len(),
            Filter::Flow { keep, .. } => (keep * values.len() as f64).ceil() as usize,
            Filter::Participation => participation(values),
            Filter::GavishDonoho => standing_out(values, shape),
        };
        let share = |value: &f64| match self {
            Filter::Flow { time, .. } => -libm::expm1(-time * value),
            _ => 1.0,
        };
        values.iter().take(count.min(rank)).map(share).collect()
    }
}

/// The roots of eigenvalues, which the authors' code bounds from below.
fn roots(values: &[f64]) -> Vec<f64> {
    values.iter().map(|value| value.max(1e-8).sqrt()).collect()
}

fn participation(values: &[f64]) -> usize {
    let roots = roots(values);
    let sum: f64 = roots.iter().sum();
    let squares: f64 = roots.iter().map(|root| root * root).sum();
    (sum * sum / squares.max(f64::MIN_POSITIVE)).ceil() as usize
}

/// How many roots of eigenvalues lie above the threshold of Gavish and Donoho for unknown noise, with the authors'
/// estimate of the median.
fn standing_out(values: &[f64], (rows, columns): (usize, usize)) -> usize {
    let roots = roots(values);
    let (low, high) = (roots.len().saturating_sub(1) / 2, roots.len() / 2);
    let median = match (roots.get(low), roots.get(high)) {
        (Some(low), Some(high)) => (low + high) / 2.0,
        _ => 0.0,
    };
    let beta = rows.min(columns) as f64 / rows.max(columns).max(1) as f64;
    let root = (beta * beta + 14.0 * beta + 1.0).sqrt();
    let threshold = (2.0 * (beta + 1.0) + 8.0 * beta / (beta + 1.0 + root)).sqrt();
    let spread = match beta >= 0.9999 {
        true => (2.0 + 3f64.sqrt()).sqrt(),
        false => threshold / ((1.0 - beta) * (1.0 - beta) + beta).max(1e-3).sqrt(),
    };
    roots.iter().filter(|root| **root > spread * median).count()
}

/// The sums that the loss is made of, but C.
struct Sums {
    /// R.
    right: Matrix<f64>,
    /// S.
    start: Matrix<f64>,
}

/// The sums, while each task vector is given to `square` with its factor, for C; it may give back the square of the task
/// vector, if it has it.
fn sums(
    tasks: &Tasks<'_>,
    is_normalised: bool,
    mut square: impl FnMut(usize, &Matrix<f64>, f64) -> Result<Option<Matrix<f64>>, Failure>,
) -> Result<Sums, Failure> {
    let (rows, columns) = tasks.shape();
    let mut sums = Sums {
        right: Matrix::zeros(rows, columns)?,
        start: Matrix::zeros(rows, columns)?,
    };
    for task in 0..tasks.count() {
        let difference = tasks.read::<f64>(task)?;
        let norm = difference.squared_norm();
        if norm == 0.0 {
            continue;
        }
        let factor = if is_normalised { 1.0 / norm } else { 1.0 };
        sums.start.add(&difference, 1.0);
        let known = square(task, &difference, factor)?;
        tasks.sources.check_running()?;
        // By the smaller of the two squares.
        let cubed = match known {
            Some(square) => difference.times(&square)?,
            None if rows < columns => difference
                .times_transposed(&difference)?
                .times(&difference)?,
            None => difference.times(&gram(&difference)?)?,
        };
        sums.right.add(&cubed, factor);
    }
    Ok(sums)
}

/// Adds the square of a task vector, times a factor, and gives it back where it is the smaller of the two.
fn add_square(
    sum: &mut Matrix<f64>,
    difference: &Matrix<f64>,
    factor: f64,
) -> Result<Option<Matrix<f64>>, Failure> {
    if difference.rows() < difference.columns() {
        add_gram(sum, difference, factor)?;
        return Ok(None);
    }
    let square = gram(difference)?;
    sum.add(&square, factor);
    Ok(Some(square))
}

/// The sums, and the eigenvalues of C, descending, with the first eigenvectors as columns: as many as `wanted` says.
fn decomposed(
    tasks: &Tasks<'_>,
    is_normalised: bool,
    wanted: impl FnOnce(&[f64]) -> usize,
) -> Result<(Sums, Vec<f64>, Matrix<f64>), Failure> {
    let (rows, columns) = tasks.shape();
    if !is_low(rows, columns, tasks.count()) {
        let mut square = Matrix::zeros(columns, columns)?;
        let sums = sums(tasks, is_normalised, |_, difference, factor| {
            add_square(&mut square, difference, factor)
        })?;
        tasks.sources.check_running()?;
        let eigen = Eigen::new(square)?;
        let basis = eigen.basis(wanted(&eigen.values))?;
        return Ok((sums, eigen.values, basis));
    }
    // With fewer rows in all task vectors than columns, by the other square of them, one below the other.
    let mut stack = Matrix::zeros(columns, rows * tasks.count())?;
    let sums = sums(tasks, is_normalised, |task, difference, factor| {
        let mut turned = difference.transposed()?;
        turned.scale(factor.sqrt());
        stack.place(task * rows, &turned);
        Ok(None)
    })?;
    tasks.sources.check_running()?;
    let Eigen {
        mut values,
        vectors,
    } = Eigen::new(gram(&stack)?)?;
    values.resize(columns, 0.0);
    let count = wanted(&values);
    let inner = Eigen {
        values: Vec::new(),
        vectors,
    };
    let mut basis = stack.times(&inner.basis(count)?)?;
    let lengths: Vec<f64> = values
        .iter()
        .take(count)
        .map(|value| 1.0 / value.sqrt())
        .collect();
    basis.scale_columns(&lengths);
    Ok((sums, values, basis))
}

/// Whether all task vectors together have fewer rows than columns.
fn is_low(rows: usize, columns: usize, tasks: usize) -> bool {
    rows.saturating_mul(tasks) < columns
}

/// The update along each eigenvector.
struct Spectral {
    filter: Filter,
    /// Whether each task vector counts by its direction alone.
    is_normalised: bool,
}

impl Merger for Spectral {
    fn merge(&self, tasks: &Tasks<'_>) -> Result<Matrix<f32>, Failure> {
        let mut shares = Vec::new();
        let (sums, values, basis) = decomposed(tasks, self.is_normalised, |values| {
            shares = self.filter.shares(values, tasks.shape());
            shares.len()
        })?;
        let Sums {
            mut right,
            mut start,
        } = sums;
        let inverse = shares.iter().zip(&values);
        let inverse: Vec<f64> = inverse.map(|(share, value)| share / value).collect();
        right = right.times(&basis)?;
        right.scale_columns(&inverse);
        if self.filter == Filter::All {
            return Ok(right.times_transposed(&basis)?.narrowed()?);
        }
        let mut along = start.times(&basis)?;
        along.scale_columns(&shares);
        right.add(&along, -1.0);
        drop(along);
        start.add(&right.times_transposed(&basis)?, 1.0);
        Ok(start.narrowed()?)
    }

    fn bytes(&self, size: Size) -> u64 {
        // In f64: the two sums, a task vector and its cube, or what is projected and put back.
        let held = size.matrix().saturating_mul(2 * 5);
        let wide = |side: u64| side.saturating_mul(side).saturating_mul(8);
        let stacked = size.rows.saturating_mul(size.tasks);
        let decomposition = match stacked < size.columns {
            // The stack, the task vector turned round; the basis.
            true => size
                .matrix()
                .saturating_mul(2 * (2 * size.tasks + 1))
                .saturating_add(wide(stacked))
                .saturating_add(size.squares(stacked)),
            false => wide(size.columns).saturating_add(size.squares(size.columns)),
        };
        held.saturating_add(wide(size.least()))
            .saturating_add(decomposition)
    }

    fn turn(&self) -> Turn {
        Turn::OutIn
    }
}

/// Adam's steps, its rate and its constants.
const STEPS: i32 = 300;
const RATE: f32 = 1e-5;
const DECAYS: [f32; 2] = [0.9, 0.999];
const EPSILON: f32 = 1e-8;

/// The paper's loop: Adam on the loss, from the sum.
struct Adam;

impl Merger for Adam {
    fn merge(&self, tasks: &Tasks<'_>) -> Result<Matrix<f32>, Failure> {
        let (rows, columns) = tasks.shape();
        let mut square = Matrix::zeros(columns, columns)?;
        let sums = sums(tasks, true, |_, difference, factor| {
            add_square(&mut square, difference, factor)
        })?;
        let square = square.narrowed()?;
        let right = sums.right.narrowed()?;
        let mut update = sums.start.narrowed()?;
        let mut first = Matrix::<f32>::zeros(rows, columns)?;
        let mut second = Matrix::<f32>::zeros(rows, columns)?;
        for step in 1..=STEPS {
            tasks.sources.check_running()?;
            let gradient = update.times(&square)?;
            let [first_share, second_share] = DECAYS.map(|decay| 1.0 - decay.powi(step));
            let moments = first.values_mut().iter_mut().zip(second.values_mut());
            let gradients = gradient.values().iter().zip(right.values());
            let values = update.values_mut().iter_mut().zip(moments).zip(gradients);
            for ((value, (first, second)), (product, right)) in values {
                let gradient = 2.0 * (product - right);
                *first = DECAYS[0] * *first + (1.0 - DECAYS[0]) * gradient;
                *second = DECAYS[1] * *second + (1.0 - DECAYS[1]) * gradient * gradient;
                let size = (*second / second_share).sqrt() + EPSILON;
                *value -= RATE * (*first / first_share) / size;
            }
        }
        Ok(update)
    }

    fn bytes(&self, size: Size) -> u64 {
        // In f64: the two sums, a task vector and its cube; of which the sums are narrowed to f32 while they are held.
        let held = size.matrix().saturating_mul(2 * 4);
        let square = size.columns.saturating_mul(size.columns).saturating_mul(8);
        held.saturating_add(square.saturating_mul(2))
    }

    fn turn(&self) -> Turn {
        Turn::OutIn
    }
}
