//! Measures pairs of tensors in one pass: all threads measure pieces, which are folded in order.

use std::ops::Range;

use super::Request;
use checkpoint::{Checkpoint, Reclaim};
use engine::{EngineError, Observer, Piece, pieces, scan};
use numeric::{
    BLOCK, Distance, DistanceSums, Elements, FloatType, NoMemory, Real, TaskSums, ULP_BOUNDS,
    UlpCounts, distance, resize, task_sums,
};
use run::RunError;

/// Blocks per piece, the unit of a worker's task.
const PIECE_BLOCKS: u64 = 64;
/// Elements per strip where nothing needs decoding; a strip fits into the first-level cache.
const STRIP: usize = 2048;

/// A tensor in both checkpoints, and in the base if it has it in the same shape.
pub(super) struct Triple<'a> {
    elements: u64,
    /// The bytes of both, if they have the same dtype and are stored contiguously.
    bytes: Option<(&'a [u8], &'a [u8])>,
    /// Bytes per element, if there are such bytes.
    size: usize,
    /// The format of both, if they are floats of the same dtype.
    format: Option<FloatType>,
    values: Option<[Box<dyn Elements + 'a>; 2]>,
    base: Option<Box<dyn Elements + 'a>>,
    /// The tensor's index in each checkpoint.
    places: [(&'a Checkpoint, usize); 2],
}

impl<'a> Triple<'a> {
    pub(super) fn new(request: &Request<'a>, a: usize, b: usize) -> Self {
        let (first, second) = (&request.a.tensors()[a], &request.b.tensors()[b]);
        let same = first.dtype == second.dtype;
        let base = request.base.and_then(|base| {
            let at = base.find(&first.name)?;
            let fits = base.tensors()[at].shape == first.shape;
            fits.then(|| base.elements(at)).flatten()
        });
        Self {
            elements: first.elements(),
            bytes: request.a.bytes(a).zip(request.b.bytes(b)).filter(|_| same),
            size: (first.dtype.bitsize() / 8).max(1),
            format: FloatType::from_dtype(first.dtype).filter(|_| same),
            values: (request.a.elements(a))
                .zip(request.b.elements(b))
                .map(|(a, b)| [a, b]),
            base,
            places: [(request.a, a), (request.b, b)],
        }
    }

    /// Announces that these elements are not needed again.
    fn release(&self, elements: Range<u64>) {
        for (model, index) in self.places {
            let tensor = &model.tensors()[index];
            let size = tensor.len / tensor.elements().max(1);
            let bytes = elements.start * size..elements.end * size;
            model.release(index, bytes, Reclaim::Map);
        }
    }

    /// Whether the base has the tensor.
    pub(super) fn has_base(&self) -> bool {
        self.base.is_some()
    }

    fn wants_f64(&self) -> bool {
        let sources = self.values.iter().flatten().chain(&self.base);
        sources
            .into_iter()
            .any(|source| source.format().wants_f64())
    }
}

/// The measurements of a pair.
#[derive(Debug, Clone, Default, PartialEq)]
pub(super) struct Measured {
    /// Whether any byte differs; for different dtypes, whether any value does.
    pub(super) differs: bool,
    /// Number of elements that differ.
    pub(super) differing: u64,
    /// Elements that are NaN or infinite in any of the tensors. They do not count in the sums below.
    pub(super) non_finite: u64,
    /// Sums over the values; `None` for integers and bools.
    pub(super) distance: Option<Distance>,
    /// Distances in ULPs, if both have the same float dtype.
    pub(super) steps: Option<UlpCounts>,
    /// Sums over the task vectors, if the base has the tensor.
    pub(super) tasks: TaskSums,
}

impl Measured {
    /// Adds the measurements of the elements that follow.
    pub(super) fn add(&mut self, next: &Measured) {
        self.differs |= next.differs;
        self.differing += next.differing;
        self.non_finite += next.non_finite;
        if let Some(distance) = &next.distance {
            self.distance.get_or_insert_default().add(distance);
        }
        if let Some(steps) = &next.steps {
            self.steps.get_or_insert_default().add(steps);
        }
        self.tasks.add(&next.tasks);
    }

    /// Whether the sums, which were taken in f32, are well within its range.
    fn is_plain(&self) -> bool {
        const PLAIN: std::ops::Range<f64> = 1e-24..1e30;
        self.distance.as_ref().is_none_or(|distance| {
            let sums = [distance.first, distance.second, distance.squared];
            let equal = self.differing == 0 && distance.squared == 0.0;
            let of_values = sums[..2].iter().all(|sum| PLAIN.contains(sum));
            self.non_finite == 0 && of_values && (equal || PLAIN.contains(&sums[2]))
        })
    }

    /// Describes in words how much differs, for a message.
    pub(super) fn in_words(&self, elements: u64) -> String {
        let share = 100.0 * self.differing as f64 / elements.max(1) as f64;
        let mut text = format!("{share:.2} % of the elements differ");
        if self.differing == 0 {
            text = "only signs of zeros or bits of NaN differ".to_owned();
        } else if let Some(distance) = &self.distance {
            text += &format!(
                ", by {:.3e} at the most; relative L2 {:.3e}",
                distance.largest,
                distance.relative()
            );
        }
        if let Some(steps) = self.steps.filter(|steps| steps.at_least[0] > 0) {
            text += &format!("; up to {} ULPs", steps.largest);
        }
        text
    }
}

/// Measures all pairs.
pub(super) fn measure(
    triples: &[Triple<'_>],
    threads: usize,
    observer: &dyn Observer,
) -> Result<Vec<Measured>, RunError> {
    let lengths = triples.iter().map(|triple| triple.elements);
    let pieces = pieces(lengths, PIECE_BLOCKS * BLOCK as u64);
    let look = |lanes: &mut Lanes, Piece { of, range }: &Piece| {
        let triple = &triples[*of];
        let part = lanes
            .piece(triple, range.start, range.end)
            .map_err(EngineError::from)?;
        triple.release(range.clone());
        observer.advance(2 * (range.end - range.start) * triple.size as u64);
        Ok::<_, RunError>(part)
    };
    let parts = scan(&pieces, threads, &|| observer.cancelled(), look)?;
    let mut measured = vec![Measured::default(); triples.len()];
    for (piece, part) in pieces.iter().zip(&parts) {
        measured[piece.of].add(part);
    }
    Ok(measured)
}

/// A worker's buffers.
#[derive(Default)]
struct Lanes {
    single: [Vec<f32>; 3],
    double: [Vec<f64>; 3],
}

impl Lanes {
    fn piece(&mut self, triple: &Triple<'_>, first: u64, end: u64) -> Result<Measured, NoMemory> {
        let mut sum = Measured::default();
        let mut at = first;
        while at < end {
            let length = (end - at).min(BLOCK as u64) as usize;
            let mut found = None;
            if !triple.wants_f64() {
                found = match block_bf16(triple, at, length) {
                    None => Some(block(&mut self.single, triple, at, length)?),
                    found => found,
                };
            }
            // If squares leave the range of f32, the block is measured again in f64.
            let found = match found.filter(Measured::is_plain) {
                None => block(&mut self.double, triple, at, length)?,
                Some(found) => found,
            };
            sum.add(&found);
            at += length as u64;
        }
        Ok(sum)
    }
}

fn block<R: Real>(
    lanes: &mut [Vec<R>; 3],
    triple: &Triple<'_>,
    first: u64,
    length: usize,
) -> Result<Measured, NoMemory> {
    let mut found = Measured::default();
    let bytes = triple.bytes.map(|(a, b)| {
        let range = first as usize * triple.size..(first as usize + length) * triple.size;
        (&a[range.clone()], &b[range])
    });
    if let Some((a, b)) = bytes {
        found.differs = a != b;
        match triple.format {
            Some(format) => {
                let steps = match found.differs {
                    true => UlpCounts::count(format, a, b),
                    false => UlpCounts::default(),
                };
                found.differing = steps.at_least[0];
                found.steps = Some(steps);
            }
            None if found.differs => {
                let pairs = a.chunks_exact(triple.size).zip(b.chunks_exact(triple.size));
                found.differing = pairs.filter(|(a, b)| a != b).count() as u64;
            }
            None => {}
        }
    }
    let Some([a, b]) = &triple.values else {
        return Ok(found);
    };
    let [of_a, of_b, of_base] = lanes;
    for (values, source) in [(&mut *of_a, a), (&mut *of_b, b)] {
        resize(values, length, R::ZERO)?;
        R::fill(source.as_ref(), first, values)?;
    }
    if bytes.is_none() {
        found.differing = of_a.iter().zip(&*of_b).filter(|(a, b)| a != b).count() as u64;
        found.differs = found.differing > 0;
    }
    if let Some(base) = &triple.base {
        resize(of_base, length, R::ZERO)?;
        R::fill(base.as_ref(), first, of_base)?;
    }
    let measured = |a: &[R], b: &[R], base: &[R]| {
        let tasks = match triple.base {
            Some(_) => task_sums(a, b, base),
            None => TaskSums::default(),
        };
        (distance(a, b), tasks)
    };
    let (mut apart, mut tasks) = measured(of_a, of_b, of_base);
    // Values that are not finite show up in the sums, so the elements are searched for them only then.
    if !apart.is_finite() || !tasks.is_finite() {
        for index in 0..length {
            let base = triple.base.is_some().then(|| of_base[index]);
            let finite = |value: R| value.to_f64().is_finite();
            if !finite(of_a[index]) || !finite(of_b[index]) || !base.is_none_or(finite) {
                found.non_finite += 1;
                (of_a[index], of_b[index]) = (R::ZERO, R::ZERO);
                if base.is_some() {
                    of_base[index] = R::ZERO;
                }
            }
        }
        (apart, tasks) = measured(of_a, of_b, of_base);
    }
    found.distance = Some(apart);
    found.tasks = tasks;
    Ok(found)
}

/// The fast path of [`block`], which decodes nothing: two contiguous bf16 tensors without a base. Returns `None` for
/// any other pair, and if a value is not finite.
fn block_bf16(triple: &Triple<'_>, first: u64, length: usize) -> Option<Measured> {
    if triple.format != Some(FloatType::Bf16) || triple.base.is_some() {
        return None;
    }
    let (a, b) = triple.bytes?;
    let block = 2 * first as usize..2 * (first as usize + length);
    let (a, b) = (a.get(block.clone())?, b.get(block)?);
    let (mut sums, mut steps) = (DistanceSums::default(), UlpCounts::default());
    let mut differs = false;
    // One strip at a time, so that the next one is being loaded while this one is read for the second time.
    for (a, b) in a.chunks(2 * STRIP).zip(b.chunks(2 * STRIP)) {
        sums.add_bf16(a, b);
        if a != b {
            differs = true;
            steps.add(&UlpCounts::count(FloatType::Bf16, a, b));
        }
    }
    let apart = sums.distance();
    apart.is_finite().then_some(Measured {
        differs,
        differing: steps.at_least[0],
        distance: Some(apart),
        steps: Some(steps),
        ..Measured::default()
    })
}

/// The bars of a histogram of ULPs: lower bound, upper bound, number of elements.
pub(super) fn step_bars(steps: &UlpCounts, elements: u64) -> Vec<(f64, f64, u64)> {
    let mut bars = vec![(0.0, 0.0, elements - steps.at_least[0])];
    for (at, bound) in ULP_BOUNDS.iter().enumerate() {
        let beyond = steps.at_least.get(at + 1).copied().unwrap_or(0);
        let upper = ULP_BOUNDS
            .get(at + 1)
            .map_or(steps.largest, |next| next - 1);
        let count = steps.at_least[at] - beyond;
        if count > 0 {
            bars.push((*bound as f64, upper as f64, count));
        }
    }
    bars
}
