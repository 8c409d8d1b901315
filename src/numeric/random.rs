//! Counter-based randomness: a draw depends on its key and its place, never on earlier draws.
//!
//! So masks do not depend on thread count, tile size or order of work, and a second pass can draw them again
//! instead of storing them. The generator is SplitMix64, read at position `index / 2` (Steele, Lea and Flood, "Fast
//! splittable pseudorandom number generators", OOPSLA 2014), with 32 bits per draw.

use super::vector::vectorised;

/// The increment of SplitMix64: 2^64 divided by the golden ratio, made odd.
const GOLDEN: u64 = 0x9e37_79b9_7f4a_7c15;

/// Selects one stream of draws: the key of one model's mask of one tensor.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct MaskKey(u64);

impl MaskKey {
    /// The key of the `slot`-th model's mask of the tensor `name` under `seed`.
    pub fn new(seed: u64, name: &str, slot: usize) -> Self {
        let mut hasher = blake3::Hasher::new_derive_key("weldment 2026-11 mask key");
        hasher.update(&seed.to_le_bytes());
        hasher.update(&(slot as u64).to_le_bytes());
        hasher.update(name.as_bytes());
        let mut key = [0; 8];
        hasher.finalize_xof().fill(&mut key);
        Self(u64::from_le_bytes(key))
    }

    /// The draw at one place, uniform in 32 bits.
    #[inline]
    pub fn draw(self, index: u64) -> u32 {
        let word = mix(self
            .0
            .wrapping_add((index >> 1).wrapping_add(1).wrapping_mul(GOLDEN)));
        (word >> (32 * (index & 1))) as u32
    }

    /// The draws from place `first` on.
    pub fn fill(self, first: u64, draws: &mut [u32]) {
        // A word holds the draws of an even place and of the next.
        let last_place = (first + draws.len() as u64).wrapping_sub(1);
        let (head, rest) = draws.split_at_mut(draws.len().min((first & 1) as usize));
        for draw in head {
            *draw = self.draw(first);
        }
        fill_pairs(self.0, first.div_ceil(2), rest);
        if rest.len() % 2 == 1
            && let Some(last) = rest.last_mut()
        {
            *last = self.draw(last_place);
        }
    }
}

/// The offset of each word from the first of a run. A table, because vectors add faster than they multiply.
const STEPS: [u64; 256] = {
    let mut steps = [0u64; 256];
    let mut index = 1;
    while index < steps.len() {
        steps[index] = steps[index - 1].wrapping_add(GOLDEN);
        index += 1;
    }
    steps
};

vectorised! {
    /// Sets pairs of draws to the words from index `first` on; half a pair at the end is left unset.
    fn fill_pairs(key: u64, first: u64, draws: &mut [u32]) {
        let mut start = key.wrapping_add(first.wrapping_add(1).wrapping_mul(GOLDEN));
        for pairs in draws.as_chunks_mut::<2>().0.chunks_mut(STEPS.len()) {
            for (pair, step) in pairs.iter_mut().zip(&STEPS) {
                let word = mix(start.wrapping_add(*step));
                *pair = [word as u32, (word >> 32) as u32];
            }
            start = start.wrapping_add(GOLDEN.wrapping_mul(STEPS.len() as u64));
        }
    }
}

/// Draws below this threshold keep their element, so that a fraction `density` in `[0, 1]` is kept.
pub fn keep_threshold(density: f64) -> u64 {
    (density * 2f64.powi(32)).round() as u64
}

/// The output function of SplitMix64.
#[inline(always)]
fn mix(mut word: u64) -> u64 {
    word = (word ^ (word >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
    word = (word ^ (word >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
    word ^ (word >> 31)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn is_splitmix64_read_at_a_position() {
        // The first outputs of the reference implementation seeded with 1234567.
        let key = MaskKey(1_234_567);
        let word =
            |index: u64| u64::from(key.draw(2 * index)) | u64::from(key.draw(2 * index + 1)) << 32;
        assert_eq!(word(0), 6_457_827_717_110_365_317);
        assert_eq!(word(1), 3_203_168_211_198_807_973);
        assert_eq!(word(2), 9_817_491_932_198_370_423);
    }

    #[test]
    fn many_draws_are_those_at_each_place() {
        let key = MaskKey::new(7, "a", 1);
        for first in [0, 1, 2, 16_383, 16_384, u64::MAX - 2000] {
            for length in (0..40).chain(1020..1030) {
                let mut draws = vec![0; length];
                key.fill(first, &mut draws);
                let each: Vec<u32> = (0..length as u64).map(|i| key.draw(first + i)).collect();
                assert_eq!(draws, each, "{first} {length}");
            }
        }
    }

    #[test]
    fn the_kept_share_is_the_density() {
        for density in [0.0, 0.1, 0.53, 0.9, 1.0] {
            let bound = keep_threshold(density);
            let count = 1_000_000u64;
            for slot in 0..3 {
                let key = MaskKey::new(42, "model.layers.0.mlp.up_proj.weight", slot);
                let kept = (0..count)
                    .filter(|&index| u64::from(key.draw(index)) < bound)
                    .count() as f64;
                // Five standard deviations of the binomial.
                let allowed = 5.0 * (count as f64 * density * (1.0 - density)).sqrt();
                assert!(
                    (kept - count as f64 * density).abs() <= allowed,
                    "{density}: {kept}"
                );
            }
        }
    }

    #[test]
    fn keys_differ_by_seed_name_and_slot() {
        let key = MaskKey::new(1, "a", 0);
        assert_ne!(key, MaskKey::new(2, "a", 0));
        assert_ne!(key, MaskKey::new(1, "b", 0));
        assert_ne!(key, MaskKey::new(1, "a", 1));
        // The masks of two slots are independent: they agree on about half of the elements.
        let other = MaskKey::new(1, "a", 1);
        let agree = (0..100_000)
            .filter(|&i| (key.draw(i) ^ other.draw(i)) >> 31 == 0)
            .count();
        assert!((49_000..51_000).contains(&agree), "{agree}");
    }
}
