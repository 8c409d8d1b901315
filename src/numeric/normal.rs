//! Normal and uniform draws by key and place, the same on every machine.

use std::f64::consts::TAU;

use super::random::MaskKey;

/// Selects one stream of normal draws.
///
/// The Box-Muller transform ("A note on the generation of random normal deviates", 1958) of two uniform draws of 32
/// bits each. Logarithm and cosine come from the crate `libm`: those of the system differ between machines in their
/// last bits.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct NormalKey(MaskKey);

impl NormalKey {
    /// The key of the `slot`-th stream for the tensor `name` under `seed`.
    pub fn new(seed: u64, name: &str, slot: usize) -> Self {
        Self(MaskKey::new(seed, name, slot))
    }

    /// The draw at one place, with mean zero and variance one.
    pub fn draw(self, index: u64) -> f64 {
        let [first, second] = [0, 1].map(|half| f64::from(self.0.draw(2 * index + half)));
        // The first uniform is never zero, as the logarithm of zero is infinite.
        let radius = libm::sqrt(-2.0 * libm::log((first + 1.0) / 4_294_967_296.0));
        radius * libm::cos(TAU * (second / 4_294_967_296.0))
    }

    /// The draw at one place, uniform from -1 to 1.
    pub fn uniform(self, index: u64) -> f64 {
        (f64::from(self.0.draw(index)) + 0.5) / 2_147_483_648.0 - 1.0
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn draws_have_the_moments_of_the_normal_distribution() {
        let key = NormalKey::new(3, "model.layers.0.mlp.gate.weight", 1);
        let count = 200_000;
        let mut moments = [0.0; 4];
        for index in 0..count {
            let draw = key.draw(index);
            assert!(draw.abs() < 6.7);
            for (power, moment) in (1..).zip(&mut moments) {
                *moment += draw.powi(power) / count as f64;
            }
        }
        // Five standard errors of each moment: sqrt(1, 2, 15, 96) over the square root of the count.
        for ((moment, expected), spread) in moments
            .iter()
            .zip([0.0, 1.0, 0.0, 3.0])
            .zip([1.0, 2.0, 15.0, 96.0f64])
        {
            let allowed = 5.0 * (spread / count as f64).sqrt();
            assert!((moment - expected).abs() < allowed, "{moments:?}");
        }
    }

    #[test]
    fn uniform_draws_fill_their_range() {
        let key = NormalKey::new(3, "a", 0);
        let draws: Vec<f64> = (0..100_000).map(|index| key.uniform(index)).collect();
        let (mean, square) = (
            draws.iter().sum::<f64>() / 1e5,
            draws.iter().map(|x| x * x).sum::<f64>() / 1e5,
        );
        assert!(mean.abs() < 0.01 && (square - 1.0 / 3.0).abs() < 0.01);
        assert!(draws.iter().all(|draw| draw.abs() < 1.0));
    }
}
