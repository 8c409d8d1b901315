//! Covariance matrix adaptation (Hansen, "The CMA evolution strategy: a tutorial", arXiv:1604.00772), in the unit cube.
//!
//! The distribution is computed from the trials of all generations before, which are proposed together. A draw out of the
//! cube is repeated, and at last moved to its edge.

use nalgebra::{DMatrix, DVector, SymmetricEigen};

use super::{Proposal, Seen};
use crate::draw::Draw;

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
    mean: DVector<f64>,
    sigma: f64,
    covariance: DMatrix<f64>,
    /// Eigenvectors of the covariance, and the roots of its eigenvalues.
    axes: DMatrix<f64>,
    lengths: DVector<f64>,
    path_sigma: DVector<f64>,
    path_c: DVector<f64>,
    generations: i32,
}

impl State {
    fn new(dimensions: usize, size: usize) -> State {
        let half = size / 2;
        let weight = |rank: usize| libm::log((size as f64 + 1.0) / 2.0) - libm::log(rank as f64);
        let weights: Vec<f64> = (1..=half).map(weight).collect();
        let sum: f64 = weights.iter().sum();
        let weights: Vec<f64> = weights.iter().map(|weight| weight / sum).collect();
        let squares: f64 = weights.iter().map(|weight| weight * weight).sum();
        State {
            weights,
            mu_eff: 1.0 / squares,
            mean: DVector::repeat(dimensions, 0.5),
            sigma: WIDTH,
            covariance: DMatrix::identity(dimensions, dimensions),
            axes: DMatrix::identity(dimensions, dimensions),
            lengths: DVector::repeat(dimensions, 1.0),
            path_sigma: DVector::zeros(dimensions),
            path_c: DVector::zeros(dimensions),
            generations: 0,
        }
    }

    fn draw(&self, seed: u64, number: usize) -> Vec<f64> {
        let mut draw = Draw::new(seed, number, "cma-es");
        let mut point = Vec::new();
        for _ in 0..TRIES {
            let z = DVector::from_fn(self.mean.len(), |_, _| draw.normal());
            let step = &self.axes * z.component_mul(&self.lengths);
            let x = &self.mean + self.sigma * step;
            point = x.iter().copied().collect();
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

        let steps: Vec<DVector<f64>> = results
            .iter()
            .take(self.weights.len())
            .map(|one| (DVector::from_column_slice(&one.point) - &self.mean) / self.sigma)
            .collect();
        let mut step = DVector::zeros(self.mean.len());
        for (weight, y) in self.weights.iter().zip(&steps) {
            step += *weight * y;
        }
        self.mean += self.sigma * &step;
        self.generations += 1;

        let along = self.axes.transpose() * &step;
        let whitened = &self.axes * along.component_div(&self.lengths);
        self.path_sigma = (1.0 - c_sigma) * &self.path_sigma
            + libm::sqrt(c_sigma * (2.0 - c_sigma) * mu_eff) * whitened;
        let length = self.path_sigma.norm();
        let decay = 1.0 - libm::pow(1.0 - c_sigma, f64::from(2 * self.generations));
        let steady = length / libm::sqrt(decay) < (1.4 + 2.0 / (n + 1.0)) * chi;
        let steady = f64::from(u8::from(steady));
        self.path_c =
            (1.0 - c_c) * &self.path_c + steady * libm::sqrt(c_c * (2.0 - c_c) * mu_eff) * &step;

        let lost = (1.0 - steady) * c_c * (2.0 - c_c);
        let mut covariance = (1.0 + c_1 * lost - c_1 - c_mu) * &self.covariance
            + c_1 * &self.path_c * self.path_c.transpose();
        for (weight, y) in self.weights.iter().zip(&steps) {
            covariance += c_mu * *weight * y * y.transpose();
        }
        let faster = libm::exp((c_sigma / d_sigma) * (length / chi - 1.0));
        self.sigma = (self.sigma * faster).clamp(LEAST_WIDTH, 1.0);
        // Symmetric to the last bit.
        self.covariance = 0.5 * (&covariance + covariance.transpose());
        let parts = SymmetricEigen::new(self.covariance.clone());
        self.axes = parts.eigenvectors;
        self.lengths = parts.eigenvalues.map(|value| libm::sqrt(value.max(1e-20)));
    }
}
