//! Statistics of a checkpoint's tensors, in one pass over its bytes by all threads.

use std::ops::{Range, RangeInclusive};
use std::sync::{Mutex, PoisonError};

use checkpoint::Checkpoint;
use engine::{EngineError, Observer, Piece, pieces, scan};
use numeric::{BLOCK, Census, Fill, FloatType, NonFinite, ZeroRuns, squares, squares_bf16};
use run::{RunError, each_piece};

/// Bytes per piece of work. A piece stays in the worker's cache between hashing and the statistics.
const PIECE: u64 = 256 << 10;

/// Values per piece of work, where they are made as they are read.
const VALUES: u64 = 8 * BLOCK as u64;

/// Elements of each piece whose exponents are counted.
const SAMPLED: usize = 1024;

/// The smallest exponent with a count of its own.
const LEAST_EXPONENT: i32 = -40;

/// The number of exponents with a count of their own.
const EXPONENTS: usize = 64;

/// The range of the largest magnitude for which squares are summed in f32.
const PLAIN: RangeInclusive<f64> = 1e-12..=1e12;

/// Statistics of a tensor.
#[derive(Debug, Clone, PartialEq)]
pub struct TensorStatistics {
    /// Number of elements.
    pub elements: u64,
    /// Number of NaNs.
    pub nan: u64,
    /// Number of infinities.
    pub infinite: u64,
    /// Number of zeros.
    pub zeros: u64,
    /// Number of subnormal values: too small for a full mantissa.
    pub subnormal: u64,
    /// The sum of the squares of all finite values.
    pub squares: f64,
    /// The largest finite magnitude.
    pub largest: f64,
    /// The longest run of zeros; not looked for in tensors whose bytes are not contiguous.
    pub zero_run: Range<u64>,
    /// The BLAKE3 digest of the stored bytes; `None` if they are not contiguous.
    pub digest: Option<blake3::Hash>,
    /// Equal for two tensors of equal values: the digest, or where there is none, that of the values as they are read.
    /// `None` for integers and bools without a digest.
    pub values: Option<blake3::Hash>,
}

impl TensorStatistics {
    fn add(&mut self, part: &PieceStatistics) {
        self.nan += part.non_finite.nan;
        self.infinite += part.non_finite.infinite;
        self.zeros += part.census.zeros;
        self.subnormal += part.census.subnormal;
        self.squares += part.squares;
        self.largest = self.largest.max(part.largest);
    }

    /// The root mean square of the finite values.
    pub fn rms(&self) -> f64 {
        let finite = self.elements - self.nan - self.infinite;
        (self.squares / finite.max(1) as f64).sqrt()
    }
}

/// Statistics of a checkpoint's tensors.
#[derive(Debug, Clone, PartialEq)]
pub struct Statistics {
    /// In the checkpoint's order.
    pub tensors: Vec<TensorStatistics>,
    /// A histogram of binary exponents over a sample of all elements; see [`exponent_of`].
    pub exponents: Vec<u64>,
}

/// The exponent of a bar of [`Statistics::exponents`]: it counts magnitudes from that power of two up to the next.
pub fn exponent_of(bar: usize) -> i32 {
    LEAST_EXPONENT + bar as i32
}

/// Statistics of a piece.
#[derive(Default)]
struct PieceStatistics {
    census: Census,
    non_finite: NonFinite,
    squares: f64,
    largest: f64,
    zero_runs: ZeroRuns,
}

/// Counts by exponent, shared by the workers.
type Exponents = Mutex<[u64; EXPONENTS]>;

/// Reads all tensors of a checkpoint. Integers and bools are only hashed.
///
/// Sums are folded in the order of the pieces, so they do not depend on the number of threads.
///
/// # Errors
/// The observer cancelled the work, or the threads could not be started.
pub fn statistics(
    model: &Checkpoint,
    threads: usize,
    observer: &dyn Observer,
) -> Result<Statistics, RunError> {
    let tensors = model.tensors();
    let all: Vec<usize> = (0..tensors.len()).collect();
    let exponents = Mutex::new([0; EXPONENTS]);
    let look = |tensor: usize, piece: &[u8]| {
        let format = FloatType::from_dtype(tensors[tensor].dtype);
        format.map(|format| part(format, piece, &exponents))
    };
    let (digests, parts) = each_piece(model, &all, threads, PIECE, observer, look)?;
    let mut found: Vec<TensorStatistics> = tensors
        .iter()
        .zip(digests)
        .map(|(tensor, digest)| TensorStatistics {
            elements: tensor.elements(),
            nan: 0,
            infinite: 0,
            zeros: 0,
            subnormal: 0,
            squares: 0.0,
            largest: 0.0,
            zero_run: 0..0,
            digest,
            values: digest,
        })
        .collect();
    let mut runs = vec![ZeroRuns::default(); found.len()];
    for (tensor, part) in parts {
        if let Some(part) = part {
            found[tensor].add(&part);
            runs[tensor].append(&part.zero_runs);
        }
    }
    for (total, runs) in found.iter_mut().zip(runs) {
        total.zero_run = runs.longest();
    }
    read_values(model, &mut found, threads, &exponents, observer)?;
    let exponents = exponents
        .into_inner()
        .unwrap_or_else(PoisonError::into_inner);
    Ok(Statistics {
        tensors: found,
        exponents: exponents.to_vec(),
    })
}

/// Reads the tensors whose values do not lie in the file as they are: codes with scales, views in a pickle.
fn read_values(
    model: &Checkpoint,
    found: &mut [TensorStatistics],
    threads: usize,
    exponents: &Exponents,
    observer: &dyn Observer,
) -> Result<(), RunError> {
    let apart = (0..found.len()).filter(|&at| model.stored(at).is_none());
    let apart: Vec<usize> = apart.filter(|&at| model.elements(at).is_some()).collect();
    let lengths = apart.iter().map(|&at| found[at].elements);
    let look = |(values, bytes): &mut (Vec<f64>, Vec<u8>), Piece { of, range }: &Piece| {
        let mut parts = Vec::new();
        let mut hasher = blake3::Hasher::new();
        let Some(elements) = model.elements(apart[*of]) else {
            return Ok((apart[*of], parts, hasher.finalize()));
        };
        for first in range.clone().step_by(BLOCK) {
            values.resize((range.end - first).min(BLOCK as u64) as usize, 0.0);
            let read = Fill::<f64>::fill(&*elements, first, values).map_err(EngineError::from)?;
            observer.advance(read as u64);
            bytes.clear();
            bytes.extend(values.iter().flat_map(|value| value.to_le_bytes()));
            hasher.update(bytes);
            parts.push(doubles(values));
            if first == range.start {
                count_exponents(&values[..values.len().min(SAMPLED)], exponents);
            }
        }
        Ok::<_, RunError>((apart[*of], parts, hasher.finalize()))
    };
    let stopped = || observer.cancelled();
    let seen = scan(&pieces(lengths, VALUES), threads, &stopped, look)?;
    let mut hashers = vec![blake3::Hasher::new(); found.len()];
    for (at, parts, digest) in seen {
        parts.iter().for_each(|part| found[at].add(part));
        hashers[at].update(digest.as_bytes());
    }
    for at in apart {
        found[at].values = Some(hashers[at].finalize());
    }
    Ok(())
}

/// Statistics of some values; values that are not finite are set to zero.
fn doubles(values: &mut [f64]) -> PieceStatistics {
    let mut part = PieceStatistics::default();
    for value in values.iter_mut() {
        part.census.zeros += u64::from(*value == 0.0);
        if !value.is_finite() {
            part.non_finite.nan += u64::from(value.is_nan());
            part.non_finite.infinite += u64::from(value.is_infinite());
            *value = 0.0;
        }
        part.largest = part.largest.max(value.abs());
    }
    part.squares = squares(values);
    part
}

fn count_exponents(values: &[f64], exponents: &Exponents) {
    let mut counts = exponents.lock().unwrap_or_else(PoisonError::into_inner);
    for value in values
        .iter()
        .filter(|value| value.is_finite() && **value != 0.0)
    {
        // The exponent is taken from the bits: a logarithm would be slow and would round.
        let exponent = (value.to_bits() >> 52 & 0x7ff) as i32 - 1023 - LEAST_EXPONENT;
        counts[exponent.clamp(0, EXPONENTS as i32 - 1) as usize] += 1;
    }
}

fn part(format: FloatType, bytes: &[u8], exponents: &Exponents) -> PieceStatistics {
    let census = Census::count(format, bytes);
    let finite = census.is_finite(format);
    let mut largest = [0f64];
    if finite {
        format.decode(&census.largest.to_le_bytes()[..format.size()], &mut largest);
    }
    let mut part = PieceStatistics {
        census,
        largest: largest[0],
        zero_runs: ZeroRuns::count(format, bytes, census.zeros),
        ..PieceStatistics::default()
    };
    // Outside of this range, squares would leave the range of f32.
    let plain = finite && !format.wants_f64() && PLAIN.contains(&largest[0]);
    let mut single = [0f32; SAMPLED];
    let mut double = [0f64; SAMPLED];
    for (strip, bytes) in bytes.chunks(SAMPLED * format.size()).enumerate() {
        let length = bytes.len() / format.size();
        let (single, double) = (&mut single[..length], &mut double[..length]);
        if plain && format == FloatType::Bf16 {
            part.squares += squares_bf16(bytes);
        } else if plain {
            format.decode(bytes, single);
            part.squares += squares(single);
        } else {
            format.decode(bytes, double);
            let found = doubles(double);
            part.non_finite += found.non_finite;
            part.squares += found.squares;
            part.largest = part.largest.max(found.largest);
        }
        if strip == 0 {
            format.decode(bytes, double);
            count_exponents(double, exponents);
        }
    }
    part
}
