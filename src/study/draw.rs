//! Random numbers that depend on nothing but a seed and what they are for.

use std::f64::consts::TAU;

/// A stream of random numbers, the same for the same seed, number and purpose.
pub(crate) struct Draw(blake3::OutputReader);

impl Draw {
    /// The stream of a trial, for one purpose.
    pub(crate) fn new(seed: u64, number: usize, purpose: &str) -> Draw {
        let mut hasher = blake3::Hasher::new();
        hasher.update(&seed.to_le_bytes());
        hasher.update(&(number as u64).to_le_bytes());
        hasher.update(purpose.as_bytes());
        Draw(hasher.finalize_xof())
    }

    /// The next number of at least 0 and less than 1.
    pub(crate) fn unit(&mut self) -> f64 {
        let mut bytes = [0; 8];
        self.0.fill(&mut bytes);
        (u64::from_le_bytes(bytes) >> 11) as f64 / (1_u64 << 53) as f64
    }

    /// The next number of a normal distribution with mean 0 and variance 1 (Box and Muller).
    pub(crate) fn normal(&mut self) -> f64 {
        let radius = libm::sqrt(-2.0 * libm::log(1.0 - self.unit()));
        radius * libm::cos(TAU * self.unit())
    }

    /// The place of a weight, chosen in proportion to the weights.
    pub(crate) fn of_weights(&mut self, weights: &[f64]) -> usize {
        let mut rest = self.unit() * weights.iter().sum::<f64>();
        for (at, weight) in weights.iter().enumerate() {
            rest -= weight;
            if rest < 0.0 {
                return at;
            }
        }
        weights.len().saturating_sub(1)
    }
}
