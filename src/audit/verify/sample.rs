//! Chooses the blocks of a tensor that a sample compares, and computes what it can overlook.

/// How much of a checkpoint is recomputed.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Coverage {
    /// Every byte.
    Full,
    /// This many blocks of 16,384 elements of each tensor, chosen by a seed.
    Sample {
        /// Blocks per tensor; a tensor with fewer is compared completely.
        blocks: usize,
        /// The seed that chooses the blocks. If it is known beforehand, a forger knows which blocks are not compared.
        seed: u64,
    },
}

/// The blocks of a tensor to compare, ascending: the first, the last, and one from each of equal parts of the rest. No
/// long run of rows can therefore be left out by chance.
pub(super) fn blocks(wanted: usize, seed: u64, tensor: usize, blocks: usize) -> Vec<usize> {
    if blocks <= wanted.max(2) {
        return (0..blocks).collect();
    }
    let parts = wanted.max(3) - 2;
    let inner = blocks - 2;
    let key = draws(seed, tensor);
    let mut chosen = vec![0];
    for part in 0..parts {
        let (from, to) = (inner * part / parts, inner * (part + 1) / parts);
        chosen.push(1 + from + key(part) as usize % (to - from).max(1));
    }
    chosen.push(blocks - 1);
    chosen.dedup();
    chosen
}

/// Numbers that depend only on the seed, the tensor and their position.
fn draws(seed: u64, tensor: usize) -> impl Fn(usize) -> u64 {
    move |place| {
        let mut hasher = blake3::Hasher::new_derive_key("weldment verify sample");
        for number in [seed, tensor as u64, place as u64] {
            hasher.update(&number.to_le_bytes());
        }
        let mut bytes = [0; 8];
        hasher.finalize_xof().fill(&mut bytes);
        u64::from_le_bytes(bytes)
    }
}

/// The share of a tensor's blocks that a fault must affect to be found with a probability of 99 %, if `drawn` of
/// `blocks` are compared.
pub(super) fn found_for_sure(drawn: usize, blocks: usize) -> f64 {
    if drawn >= blocks {
        return 1.0 / blocks.max(1) as f64;
    }
    1.0 - 0.01f64.powf(1.0 / drawn as f64)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn samples_are_ascending_and_spread_over_the_tensor() {
        for count in [1, 2, 3, 31, 32, 33, 100, 5000] {
            for wanted in [1, 2, 3, 32] {
                let chosen = blocks(wanted, 7, 3, count);
                assert!(
                    chosen.is_sorted_by(|a, b| a < b),
                    "{count} {wanted} {chosen:?}"
                );
                assert_eq!(chosen.first(), Some(&0));
                assert_eq!(chosen.last(), Some(&(count - 1)));
                assert!(chosen.len() >= wanted.min(count) && chosen.len() <= wanted.max(3));
            }
        }
        let chosen = blocks(32, 1, 0, 3000);
        assert_ne!(chosen, blocks(32, 2, 0, 3000));
        assert_ne!(chosen, blocks(32, 1, 1, 3000));
        // Neighbouring blocks are at most two parts apart.
        assert!(chosen.windows(2).all(|pair| pair[1] - pair[0] <= 200));
    }

    #[test]
    fn what_is_missed_follows_from_the_draws() {
        // (1 - p)^n = 0.01
        let share = found_for_sure(32, 1000);
        assert!(((1.0 - share).powi(32) - 0.01).abs() < 1e-12);
        assert_eq!(found_for_sure(4, 4), 0.25);
    }
}
