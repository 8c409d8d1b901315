//! Covariance matrix adaptation (Hansen, "The CMA evolution strategy: a tutorial", arXiv:1604.00772), in the unit cube.
//!
//! The distribution is computed from the trials of all generations before, which are proposed together. A draw out of the
//! cube is repeated, and at last moved to its edge.

use super::{Proposal, Seen};
use crate::draw::Draw;
use matrix::{Eigen, Matrix};

/// The standard deviation at the start, in a cube of side 1.
const WIDTH: f64 = 0.25;
/// The least standard deviation: below it nothing changes.
const LEAST_WIDTH: f64 = 1e-6;
/// How often a draw out of the cube is repeated.
const TRIES: usize = 20;

/// Trials in a generation, for so many dimensions.
pub(super) fn generation(dimensions: usize) -> usize {
    4 + libm::floor(3.0 * libm::log(dimensions.max(1) as f64)) as usize
}

pub(super) fn propose(dimensions: usize, seed: u64, number: usize, seen: &[Seen]) -> Proposal {
    if dimensions == 0 {
        return Proposal::Point(Vec::new());
    }
    let size = generation(dimensions);
    let mut state = State::new(dimensions, size);
    let mut by_number = vec![None; number / size * size];
    for one in seen {
        if let Some(place) = by_number.get_mut(one.number) {
            *place = Some(one);
        }
    }
    for generation in by_number.chunks_exact(size) {
        let Some(mut results) = generation.iter().copied().collect::<Option<Vec<&Seen>>>() else {
            return Proposal::Wait;
        };
        results.sort_by(|a, b| b.score.total_cmp(&a.score).then(a.number.cmp(&b.number)));
        state.update(&results);
    }
    Proposal::Point(state.draw(seed, number))
}

/// The distribution, and the paths by which it changes; names as in the tutorial.
struct State {
    /// Weights of the better half, best first.
    weights: Vec<f64>,
    mu_eff: f64,
    mean: Vec<f64>,
    sigma: f64,
    /// Row by row.
    covariance: Vec<Vec<f64>>,
    /// Eigenvectors of the covariance, each with the root of its eigenvalue.
    axes: Vec<(Vec<f64>, f64)>,
    path_sigma: Vec<f64>,
    path_c: Vec<f64>,
    generations: i32,
}

/// The vectors of the axes of a cube.
fn identity(dimensions: usize) -> Vec<Vec<f64>> {
    let row = |row| (0..dimensions).map(move |column| f64::from(u8::from(row == column)));
    (0..dimensions).map(|at| row(at).collect()).collect()
}

fn dot(a: &[f64], b: &[f64]) -> f64 {
    a.iter().zip(b).map(|(a, b)| a * b).sum()
}

/// `a` times one vector plus `b` times another.
fn sum(a: f64, x: &[f64], b: f64, y: &[f64]) -> Vec<f64> {
    x.iter().zip(y).map(|(x, y)| a * x + b * y).collect()
}

impl State {
    fn new(dimensions: usize, size: usize) -> State {
        let half = size / 2;
        let weight = |rank: usize| libm::log((size as f64 + 1.0) / 2.0) - libm::log(rank as f64);
        let weights: Vec<f64> = (1..=half).map(weight).collect();
        let total: f64 = weights.iter().sum();
        let weights: Vec<f64> = weights.iter().map(|weight| weight / total).collect();
        State {
            mu_eff: 1.0 / dot(&weights, &weights),
            weights,
            mean: vec![0.5; dimensions],
            sigma: WIDTH,
            covariance: identity(dimensions),
            axes: identity(dimensions)
                .into_iter()
                .map(|axis| (axis, 1.0))
                .collect(),
            path_sigma: vec![0.0; dimensions],
            path_c: vec![0.0; dimensions],
            generations: 0,
        }
    }

    fn draw(&self, seed: u64, number: usize) -> Vec<f64> {
        let mut draw = Draw::new(seed, number, "cma-es");
        let mut point = Vec::new();
        for _ in 0..TRIES {
            point = self.mean.clone();
            for (axis, length) in &self.axes {
                point = sum(1.0, &point, self.sigma * length * draw.normal(), axis);
            }
            if point.iter().all(|value| (0.0..=1.0).contains(value)) {
                return point;
            }
        }
        point.iter().map(|value| value.clamp(0.0, 1.0)).collect()
    }

    /// Moves the distribution by a generation, best first.
    fn update(&mut self, results: &[&Seen]) {
        let n = self.mean.len() as f64;
        let mu_eff = self.mu_eff;
        let c_sigma = (mu_eff + 2.0) / (n + mu_eff + 5.0);
        let d_sigma = 1.0 + 2.0 * (libm::sqrt((mu_eff - 1.0) / (n + 1.0)) - 1.0).max(0.0) + c_sigma;
        let c_c = (4.0 + mu_eff / n) / (n + 4.0 + 2.0 * mu_eff / n);
        let c_1 = 2.0 / ((n + 1.3) * (n + 1.3) + mu_eff);
        let c_mu = 2.0 * (mu_eff - 2.0 + 1.0 / mu_eff) / ((n + 2.0) * (n + 2.0) + mu_eff);
        let c_mu = c_mu.min(1.0 - c_1);
        // The expected length of a normal vector.
        let chi = libm::sqrt(n) * (1.0 - 1.0 / (4.0 * n) + 1.0 / (21.0 * n * n));

        let steps: Vec<Vec<f64>> = results
            .iter()
            .take(self.weights.len())
            .map(|one| sum(1.0 / self.sigma, &one.point, -1.0 / self.sigma, &self.mean))
            .collect();
        let mut step = vec![0.0; self.mean.len()];
        for (weight, y) in self.weights.iter().zip(&steps) {
            step = sum(1.0, &step, *weight, y);
        }
        self.mean = sum(1.0, &self.mean, self.sigma, &step);
        self.generations += 1;

        let mut whitened = vec![0.0; self.mean.len()];
        for (axis, length) in &self.axes {
            whitened = sum(1.0, &whitened, dot(axis, &step) / length, axis);
        }
        let gain = libm::sqrt(c_sigma * (2.0 - c_sigma) * mu_eff);
        self.path_sigma = sum(1.0 - c_sigma, &self.path_sigma, gain, &whitened);
        let length = libm::sqrt(dot(&self.path_sigma, &self.path_sigma));
        let decay = 1.0 - libm::pow(1.0 - c_sigma, f64::from(2 * self.generations));
        let steady = length / libm::sqrt(decay) < (1.4 + 2.0 / (n + 1.0)) * chi;
        let steady = f64::from(u8::from(steady));
        let gain = steady * libm::sqrt(c_c * (2.0 - c_c) * mu_eff);
        self.path_c = sum(1.0 - c_c, &self.path_c, gain, &step);

        let kept = 1.0 + c_1 * (1.0 - steady) * c_c * (2.0 - c_c) - c_1 - c_mu;
        for (row, values) in self.covariance.iter_mut().enumerate() {
            for (column, value) in values.iter_mut().enumerate() {
                let of_steps = self
                    .weights
                    .iter()
                    .zip(&steps)
                    .map(|(weight, y)| weight * (y[row] * y[column]));
                *value = kept * *value
                    + c_1 * (self.path_c[row] * self.path_c[column])
                    + c_mu * of_steps.sum::<f64>();
            }
        }
        let faster = libm::exp((c_sigma / d_sigma) * (length / chi - 1.0));
        self.sigma = (self.sigma * faster).clamp(LEAST_WIDTH, 1.0);
        self.find_axes();
    }

    /// The axes of the covariance. If they cannot be found, those before stay.
    fn find_axes(&mut self) {
        let n = self.mean.len();
        let square = Matrix::from_fn(n, n, |row, column| self.covariance[row][column]);
        let Ok(parts) = square.map_err(Into::into).and_then(Eigen::new) else {
            return;
        };
        let axis = |(row, value): (usize, &f64)| {
            let axis = (0..n).map(|column| parts.vectors.at(row, column)).collect();
            (axis, libm::sqrt(value.max(1e-20)))
        };
        self.axes = parts.values.iter().enumerate().map(axis).collect();
    }
}
