//! Compares what the engine recomputes with what the checkpoint holds, instead of writing it.

use std::collections::BTreeMap;
use std::io;
use std::sync::atomic::{AtomicU64, AtomicUsize, Ordering::Relaxed};
use std::sync::{Mutex, MutexGuard, PoisonError};

use engine::{Sink, Tile};
use numeric::{EncodingError, FloatType, Survival};

/// Elements per window that is kept for the diagnosis.
const WINDOW: usize = 16_384;

/// The most windows that are kept, so that a checkpoint that is all wrong does not fill the memory.
const MOST_WINDOWS: usize = 512;

/// The most places of differing elements that are kept.
pub(super) const PLACES: usize = 5;

/// A tensor of the checkpoint.
pub(super) struct There<'a> {
    /// Its bytes; `None` if the tensor is missing or has another dtype or shape.
    pub(super) bytes: Option<&'a [u8]>,
    /// Bytes per element.
    pub(super) size: usize,
    /// Its format; `None` for integers and bools.
    pub(super) format: Option<FloatType>,
}

/// The result of comparing a tensor.
#[derive(Debug, Default)]
pub(super) struct Difference {
    /// Number of elements that differ.
    pub(super) differing: u64,
    /// The largest distance between two elements in ULPs; `u64::MAX` if one is NaN or not a float.
    pub(super) steps: u64,
    /// The largest difference of two elements that are more than one ULP apart; infinite if one is NaN or not a float.
    pub(super) beyond: f64,
    /// The largest magnitude of an expected element in the blocks that differ.
    pub(super) largest: f64,
    /// The places of the first differing elements, ascending.
    pub(super) places: Vec<u64>,
    /// A block of expected elements that differs from the checkpoint's: its first element, its bytes.
    pub(super) window: Option<(u64, Vec<u8>)>,
}

/// A sink that compares what it receives.
pub(super) struct Comparison<'a> {
    tensors: &'a [There<'a>],
    differences: Vec<Mutex<Difference>>,
    compared: Vec<AtomicU64>,
    windows: AtomicUsize,
    survived: Mutex<BTreeMap<usize, Survival>>,
    errors: Mutex<BTreeMap<usize, EncodingError>>,
}

impl<'a> Comparison<'a> {
    pub(super) fn new(tensors: &'a [There<'a>]) -> Self {
        Self {
            differences: tensors.iter().map(|_| Mutex::default()).collect(),
            compared: tensors.iter().map(|_| AtomicU64::new(0)).collect(),
            tensors,
            windows: AtomicUsize::new(0),
            survived: Mutex::default(),
            errors: Mutex::default(),
        }
    }

    /// How much of each tensor's update survives the rounding, by number, of those that were computed whole.
    pub(super) fn survived(&self) -> BTreeMap<usize, Survival> {
        lock(&self.survived).clone()
    }

    /// How far the codes of each encoded tensor are from its values, by number, of those that were computed whole.
    pub(super) fn errors(&self) -> BTreeMap<usize, EncodingError> {
        lock(&self.errors).clone()
    }

    /// For each tensor, the number of elements that were compared, and how they differ.
    pub(super) fn finish(self) -> Vec<(u64, Difference)> {
        let differences = self.differences.into_iter().map(Mutex::into_inner);
        let differences =
            differences.map(|difference| difference.unwrap_or_else(PoisonError::into_inner));
        let compared = self.compared.into_iter().zip(self.tensors);
        let elements = compared.map(|(bytes, there)| bytes.into_inner() / there.size as u64);
        elements.zip(differences).collect()
    }
}

/// One element's value.
fn value(format: FloatType, bytes: &[u8]) -> f64 {
    let mut value = [0.0f64];
    format.decode(bytes, &mut value);
    value[0]
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

impl Sink for Comparison<'_> {
    fn survived(&self, tensor: usize, survival: Survival) {
        lock(&self.survived).insert(tensor, survival);
    }

    fn encoded(&self, tensor: usize, error: EncodingError) {
        lock(&self.errors).insert(tensor, error);
    }

    fn write(&self, tensor: usize, offset: u64, expected: Tile) -> io::Result<()> {
        let expected: &[u8] = &expected;
        let Some(there) = self.tensors.get(tensor) else {
            return Ok(());
        };
        let start = offset as usize;
        let found = there
            .bytes
            .and_then(|bytes| bytes.get(start..start + expected.len()));
        let Some(found) = found else { return Ok(()) };
        self.compared[tensor].fetch_add(expected.len() as u64, Relaxed);
        if found == expected {
            return Ok(());
        }
        let first = offset / there.size as u64;
        let mut part = Difference::default();
        for (index, (expected, found)) in expected
            .chunks_exact(there.size)
            .zip(found.chunks_exact(there.size))
            .enumerate()
        {
            if expected == found {
                continue;
            }
            part.differing += 1;
            let steps = there
                .format
                .map_or(u64::MAX, |format| format.ulps_between(expected, found));
            part.steps = part.steps.max(steps);
            if steps > 1 {
                let apart = there.format.map_or(f64::INFINITY, |format| {
                    let [a, b] = [expected, found].map(|bytes| value(format, bytes));
                    let apart = (a - b).abs();
                    if apart.is_nan() { f64::INFINITY } else { apart }
                });
                part.beyond = part.beyond.max(apart);
            }
            if part.places.len() < PLACES {
                part.places.push(first + index as u64);
            }
        }
        if part.steps > 1
            && let Some(format) = there.format
        {
            let values = expected.chunks_exact(there.size);
            let largest = values.map(|bytes| value(format, bytes).abs());
            part.largest = largest.fold(0.0, f64::max);
        }
        let mut total = lock(&self.differences[tensor]);
        total.differing += part.differing;
        total.beyond = total.beyond.max(part.beyond);
        total.largest = total.largest.max(part.largest);
        total.steps = total.steps.max(part.steps);
        let places = &mut total.places;
        places.extend(&part.places);
        places.sort_unstable();
        places.truncate(PLACES);
        // Keeps the window that comes first in the tensor, whichever thread is first.
        let sooner = match &total.window {
            None => self.windows.fetch_add(1, Relaxed) < MOST_WINDOWS,
            Some((known, _)) => first < *known,
        };
        if sooner && let Some(&place) = part.places.first() {
            let skipped = (place - first) as usize / WINDOW * WINDOW;
            let bytes = skipped * there.size..expected.len().min((skipped + WINDOW) * there.size);
            total.window = Some((first + skipped as u64, expected[bytes].to_vec()));
        }
        Ok(())
    }
}
