//! What is kept of an input: sums over tokens.

use matrix::{GramSum, Matrix};
use numeric::NoMemory;

use super::collection::Keep;
use super::error::StatsError;

/// Values that are encoded at a time.
const PIECE: usize = 1 << 16;

/// The sums of one input.
#[derive(Debug)]
pub(super) struct Sums {
    features: usize,
    gram: Option<GramSum>,
    magnitudes: Option<Vec<f64>>,
    pub(super) tokens: u64,
}

impl Sums {
    /// Empty ones.
    pub(super) fn new(features: usize, keep: Keep) -> Result<Self, NoMemory> {
        Ok(Self {
            features,
            gram: keep.gram.then(|| GramSum::new(features)).transpose()?,
            magnitudes: keep.magnitude.then(|| vec![0.0; features]),
            tokens: 0,
        })
    }

    /// Bytes of the sums of an input, and the most that adding to them takes beside.
    pub(super) fn bytes(features: usize, keep: Keep) -> (u64, u64) {
        let (gram, adding) = match keep.gram {
            true => GramSum::bytes(features),
            false => (0, 0),
        };
        (gram.saturating_add(features as u64 * 8), adding)
    }

    /// Adds tokens: `tokens x features`, in row order.
    pub(super) fn add(&mut self, values: Vec<f32>) -> Result<(), NoMemory> {
        let tokens = values.len() / self.features.max(1);
        self.tokens += tokens as u64;
        if let Some(sums) = &mut self.magnitudes {
            for token in values.chunks_exact(self.features) {
                for (sum, value) in sums.iter_mut().zip(token) {
                    *sum += f64::from(value.abs());
                }
            }
        }
        match &mut self.gram {
            Some(sum) => sum.add(&Matrix::from_values(tokens, self.features, values)),
            None => Ok(()),
        }
    }

    /// Writes what is kept, in the order of the file.
    pub(super) fn write(
        self,
        put: &mut dyn FnMut(&[u8]) -> Result<(), StatsError>,
    ) -> Result<(), StatsError> {
        // The states of more tokens fit into no memory.
        let tokens = i32::try_from(self.tokens).unwrap_or(i32::MAX);
        let (gram, magnitudes) = self.finish();
        let gram = gram.as_ref().map(Matrix::values);
        for values in [gram, magnitudes.as_deref()].into_iter().flatten() {
            for piece in values.chunks(PIECE) {
                let bytes = piece.iter().flat_map(|value| (*value as f32).to_le_bytes());
                put(&bytes.collect::<Vec<u8>>())?;
            }
        }
        put(&tokens.to_le_bytes())
    }

    /// The Gram matrix, and the mean magnitude of each feature; zeros if there were no tokens.
    fn finish(self) -> (Option<Matrix<f64>>, Option<Vec<f64>>) {
        let count = self.tokens.max(1) as f64;
        let mean = |sums: Vec<f64>| sums.into_iter().map(|sum| sum / count).collect();
        (self.gram.map(GramSum::finish), self.magnitudes.map(mean))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn sums_are_what_a_hand_works_out_however_tokens_come() {
        let keep = Keep {
            gram: true,
            magnitude: true,
        };
        let tokens = [[1.0, -2.0], [3.0, 4.0], [-5.0, 0.0f32]];
        for pieces in [vec![3], vec![1, 2], vec![1, 1, 1]] {
            let mut sums = Sums::new(2, keep).unwrap();
            let mut left = tokens.iter();
            for piece in pieces {
                let values = left.by_ref().take(piece).flatten().copied();
                sums.add(values.collect()).unwrap();
            }
            assert_eq!(sums.tokens, 3);
            let (gram, mean) = sums.finish();
            // 1 + 9 + 25, -2 + 12, 4 + 16.
            assert_eq!(gram.unwrap().values(), [35.0, 10.0, 10.0, 20.0]);
            assert_eq!(mean.unwrap(), [3.0, 2.0]);
        }
        let (gram, mean) = Sums::new(2, keep).unwrap().finish();
        assert_eq!(gram.unwrap().values(), [0.0; 4]);
        assert_eq!(mean.unwrap(), [0.0; 2]);
        let nothing = Keep {
            gram: false,
            magnitude: false,
        };
        assert!(matches!(
            Sums::new(2, nothing).unwrap().finish(),
            (None, None)
        ));
    }
}
