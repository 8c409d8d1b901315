//! What is odd in a run of values: NaN and infinity, values that no weight has, and pieces that are all zeros.

use std::ops::AddAssign;

use super::format::{FloatType, NonFinite};
use super::real::Real;

/// Bytes that are looked at together for zeros.
const PIECE: usize = 512;

/// Values decoded at a time where some must be counted.
const COUNTED: usize = 512;

/// What is odd in a run of values.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Oddities {
    /// NaN and infinity.
    pub non_finite: NonFinite,
    /// Finite values from [`FloatType::absurd`] on.
    pub absurd: u64,
    /// Pieces of 512 stored bytes, or what is left at the end, that are all zeros.
    pub zero_pieces: u64,
    /// All such pieces.
    pub pieces: u64,
}

impl Oddities {
    /// Looks at stored bytes, of which hardly any are odd.
    pub fn of_stored(format: FloatType, bytes: &[u8]) -> Self {
        let mut found = Self::default();
        if format.may_be_absurd(bytes) {
            let mut values = [0f64; COUNTED];
            for bytes in bytes.chunks(COUNTED * format.size()) {
                let values = &mut values[..bytes.len() / format.size()];
                format.decode(bytes, values);
                let finite = values.iter().filter(|value| value.is_finite());
                let absurd = finite.filter(|value| value.abs() >= format.absurd());
                found.absurd += absurd.count() as u64;
                found.non_finite += NonFinite::count(values);
            }
        }
        for piece in bytes.chunks(PIECE) {
            found.pieces += 1;
            found.zero_pieces += u64::from(is_zero(piece));
        }
        found
    }

    /// Looks at values that are not stored as they are.
    pub fn of_values<R: Real>(values: &[R]) -> Self {
        Self {
            non_finite: NonFinite::count(values),
            ..Self::default()
        }
    }

    /// Whether there is anything but NaN and infinity, which are errors.
    pub fn any(self) -> bool {
        self.absurd + self.zero_pieces > 0
    }
}

impl AddAssign for Oddities {
    fn add_assign(&mut self, other: Self) {
        self.non_finite += other.non_finite;
        self.absurd += other.absurd;
        self.zero_pieces += other.zero_pieces;
        self.pieces += other.pieces;
    }
}

fn is_zero(piece: &[u8]) -> bool {
    // The first bytes tell nearly always.
    let (first, rest) = piece.split_at(piece.len().min(8));
    first.iter().all(|&byte| byte == 0) && rest.iter().all(|&byte| byte == 0)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_odd_is_counted_in_every_format() {
        for (format, absurd) in [
            (FloatType::F64, 2),
            (FloatType::F32, 2),
            (FloatType::Bf16, 2),
            (FloatType::F16, 2),
            (FloatType::F8E5m2, 2),
            (FloatType::F8E4m3, 0),
        ] {
            let limit = format.absurd().min(200.0 * 2.0);
            let mut values = vec![0.5f64; 2000];
            values[3] = format.absurd().min(format.largest());
            values[700] = -values[3];
            values[701] = limit / 2.0;
            values[1000..1900].fill(0.0);
            values[1999] = f64::NAN;
            let mut bytes = vec![0; values.len() * format.size()];
            format.encode(&mut values.clone(), false, &mut bytes);
            let found = Oddities::of_stored(format, &bytes);
            assert_eq!(found.absurd, absurd, "{format:?}");
            assert_eq!(
                found.non_finite,
                NonFinite {
                    nan: 1,
                    infinite: 0
                }
            );
            let zero = bytes
                .chunks(512)
                .filter(|piece| piece.iter().all(|byte| *byte == 0));
            assert_eq!(found.zero_pieces, zero.count() as u64);
            assert_eq!(found.pieces, bytes.len().div_ceil(512) as u64);
            assert!(found.zero_pieces > 0 && found.any());
        }
        assert!(!Oddities::of_stored(FloatType::Bf16, &[1, 0, 2, 0]).any());
    }
}
