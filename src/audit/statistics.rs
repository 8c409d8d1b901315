//! What is in the tensors of a checkpoint: one pass over its bytes, by all threads.

use rayon::iter::{IntoParallelRefIterator, ParallelIterator};

use crate::checkpoint::Checkpoint;
use crate::engine::{EngineError, Observer};
use crate::numeric::{Census, FloatType, NonFinite, TreeDigest, squares};
use crate::run::RunError;

/// Bytes that a worker goes through at a time: they stay in its cache between the hash and the statistics.
const PIECE: usize = 256 << 10;

/// Elements of each piece whose exponents are counted.
const SAMPLED: usize = 1024;

/// The least exponent that is counted apart.
const LEAST_EXPONENT: i32 = -40;

/// Exponents that are counted apart.
const EXPONENTS: usize = 64;

/// What is in a tensor.
#[derive(Debug, Clone, PartialEq)]
pub struct TensorStatistics {
    /// Elements.
    pub elements: u64,
    /// NaNs.
    pub nan: u64,
    /// Infinities.
    pub infinite: u64,
    /// Zeros.
    pub zeros: u64,
    /// Values too small for a full mantissa.
    pub subnormal: u64,
    /// The sum of squares of what is finite.
    pub squares: f64,
    /// The largest finite magnitude.
    pub largest: f64,
    /// Of a sample, elements by the exponent of two of their magnitude; see [`exponent_of`].
    pub exponents: Vec<u64>,
    /// The BLAKE3 digest of the stored bytes; none if they are not one after the other.
    pub digest: Option<blake3::Hash>,
}

impl TensorStatistics {
    /// The root of the mean square of what is finite.
    pub fn rms(&self) -> f64 {
        let finite = self.elements - self.nan - self.infinite;
        (self.squares / finite.max(1) as f64).sqrt()
    }
}

/// The exponent that a bar of [`TensorStatistics::exponents`] stands for: magnitudes from its power of two to the next.
pub fn exponent_of(bar: usize) -> i32 {
    LEAST_EXPONENT + bar as i32
}

/// What a piece adds.
#[derive(Default)]
struct Part {
    census: Census,
    non_finite: NonFinite,
    squares: f64,
    largest: f64,
    exponents: Vec<u64>,
}

/// Goes through all tensors of a checkpoint; integers and bools are only hashed.
///
/// Sums are folded in the order of the pieces, so they do not depend on threads.
///
/// # Errors
/// The observer stopped it, or the threads could not be started.
pub fn statistics(
    model: &Checkpoint,
    threads: usize,
    observer: &dyn Observer,
) -> Result<Vec<TensorStatistics>, RunError> {
    let pool = rayon::ThreadPoolBuilder::new().num_threads(threads).build();
    let pool = pool.map_err(|source| RunError::Engine(EngineError::Threads { threads, source }))?;
    let tensors = model.tensors();
    let bytes: Vec<Option<&[u8]>> = (0..tensors.len())
        .map(|tensor| model.stored(tensor))
        .collect();
    let trees: Vec<TreeDigest> = bytes
        .iter()
        .map(|bytes| TreeDigest::new(bytes.map_or(0, <[u8]>::len) as u64))
        .collect();
    let pieces: Vec<(usize, usize)> = bytes
        .iter()
        .enumerate()
        .flat_map(|(tensor, bytes)| {
            let len = bytes.map_or(0, <[u8]>::len);
            (0..len).step_by(PIECE).map(move |first| (tensor, first))
        })
        .collect();
    let parts: Vec<Part> = pool.install(|| {
        pieces
            .par_iter()
            .map(|&(tensor, first)| {
                if observer.cancelled() {
                    return Err(RunError::Cancelled);
                }
                let Some(bytes) = bytes[tensor] else {
                    return Ok(Part::default());
                };
                let piece = &bytes[first..bytes.len().min(first + PIECE)];
                trees[tensor].update(first as u64, piece);
                observer.advance(piece.len() as u64);
                Ok(FloatType::of(tensors[tensor].dtype)
                    .map_or_else(Part::default, |format| part(format, piece)))
            })
            .collect::<Result<_, _>>()
    })?;
    let mut found: Vec<TensorStatistics> = tensors
        .iter()
        .zip(trees)
        .zip(&bytes)
        .map(|((tensor, tree), bytes)| TensorStatistics {
            elements: tensor.elements(),
            nan: 0,
            infinite: 0,
            zeros: 0,
            subnormal: 0,
            squares: 0.0,
            largest: 0.0,
            exponents: vec![0; EXPONENTS],
            digest: bytes.and_then(|_| tree.finish()),
        })
        .collect();
    for (&(tensor, _), part) in pieces.iter().zip(&parts) {
        let total = &mut found[tensor];
        total.nan += part.non_finite.nan;
        total.infinite += part.non_finite.infinite;
        total.zeros += part.census.zeros;
        total.subnormal += part.census.subnormal;
        total.squares += part.squares;
        total.largest = total.largest.max(part.largest);
        let counts = total.exponents.iter_mut().zip(&part.exponents);
        counts.for_each(|(total, count)| *total += count);
    }
    Ok(found)
}

fn part(format: FloatType, bytes: &[u8]) -> Part {
    let census = Census::of(format, bytes);
    let mut part = Part {
        census,
        exponents: vec![0; EXPONENTS],
        ..Part::default()
    };
    let finite = census.is_finite(format);
    let mut single = [0f32; SAMPLED];
    let mut double = [0f64; SAMPLED];
    for (strip, bytes) in bytes.chunks(SAMPLED * format.size()).enumerate() {
        let length = bytes.len() / format.size();
        let double = &mut double[..length];
        if format.wants_f64() || !finite {
            format.decode(bytes, double);
            for value in double.iter_mut().filter(|value| !value.is_finite()) {
                part.non_finite.nan += u64::from(value.is_nan());
                part.non_finite.infinite += u64::from(value.is_infinite());
                *value = 0.0;
            }
            part.squares += squares(double);
            let magnitudes = double.iter().map(|value| value.abs());
            part.largest = magnitudes.fold(part.largest, f64::max);
        } else {
            let single = &mut single[..length];
            format.decode(bytes, single);
            part.squares += squares(single);
        }
        if strip == 0 {
            format.decode(bytes, double);
            for value in double
                .iter()
                .filter(|value| value.is_finite() && **value != 0.0)
            {
                // Those of the bits: the logarithm is slow, and rounds.
                let exponent = (value.to_bits() >> 52 & 0x7ff) as i32 - 1023 - LEAST_EXPONENT;
                part.exponents[exponent.clamp(0, EXPONENTS as i32 - 1) as usize] += 1;
            }
        }
    }
    if finite {
        let mut largest = [0f64];
        format.decode(&census.largest.to_le_bytes()[..format.size()], &mut largest);
        part.largest = largest[0];
    }
    part
}
