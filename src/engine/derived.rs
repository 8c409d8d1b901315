//! Values that a program computes as they are read: the result of one job as the source of another.
//!
//! A program that measures does so in its own job, [`ResultUse::Decide`](super::ResultUse::Decide), before the job that
//! reads its values. Values are rounded as if they had been written, so merging results equals merging files of
//! them.

use std::sync::OnceLock;

use super::program::{AnyProgram, Apply, Block, Pass, Program};
use numeric::{Elements, Fill, FloatType, NoMemory, NonFinite, Real, RoundingKey, resize};

/// The last pass of a program, decided after its measures.
#[derive(Default)]
pub struct Decided {
    single: OnceLock<Box<dyn Apply<f32>>>,
    double: OnceLock<Box<dyn Apply<f64>>>,
}

impl Decided {
    /// Whether it has been decided.
    pub fn is_made(&self) -> bool {
        self.single.get().is_some() || self.double.get().is_some()
    }

    pub(super) fn set_single(&self, apply: Box<dyn Apply<f32>>) {
        // If a second job decided the same program, its result is the same.
        let _ = self.single.set(apply);
    }

    pub(super) fn set_double(&self, apply: Box<dyn Apply<f64>>) {
        let _ = self.double.set(apply);
    }
}

/// The values of a computed tensor.
pub struct Derived<'a> {
    /// The sources, all with the same number of elements.
    pub sources: Vec<Box<dyn Elements + 'a>>,
    /// Elements of the tensor and of every source.
    pub elements: u64,
    /// The program that computes the values.
    pub program: &'a dyn AnyProgram,
    /// The format that the values are rounded to.
    pub output: FloatType,
    /// The draws by which they are rounded up or down; without them, they are rounded to the nearest.
    pub rounding: Option<RoundingKey>,
    /// The last pass of the program; set on first use if the program needs no measure.
    pub decided: &'a Decided,
    /// Whether NaN and infinity in sources are allowed.
    pub allow_non_finite: bool,
    /// Whether results out of range become the format's largest value.
    pub saturate: bool,
}

impl<R: Real> Fill<R> for Derived<'_> {
    fn fill(&self, first: u64, out: &mut [R]) -> Result<usize, NoMemory> {
        let single = || match Program::<f32>::next(self.program, &[]) {
            Pass::Apply(apply) => Some(apply),
            _ => None,
        };
        let double = || match Program::<f64>::next(self.program, &[]) {
            Pass::Apply(apply) => Some(apply),
            _ => None,
        };
        if self
            .sources
            .iter()
            .any(|source| source.format().wants_f64())
        {
            self.compute(decided(&self.decided.double, double), first, out)
        } else {
            self.compute(decided(&self.decided.single, single), first, out)
        }
    }
}

/// The last pass, if it has been decided or needs no measure.
fn decided<A: ?Sized>(
    cell: &OnceLock<Box<A>>,
    next: impl FnOnce() -> Option<Box<A>>,
) -> Option<&A> {
    if cell.get().is_none()
        && let Some(apply) = next()
    {
        let _ = cell.set(apply);
    }
    cell.get().map(AsRef::as_ref)
}

impl Derived<'_> {
    /// Computes whole blocks, as the program's own job would, and copies the wanted elements.
    ///
    /// Values that cannot be computed become NaN, which the job that reads them reports.
    fn compute<P: Real, R: Real>(
        &self,
        apply: Option<&dyn Apply<P>>,
        first: u64,
        out: &mut [R],
    ) -> Result<usize, NoMemory> {
        let nan = R::from_f64(f64::NAN);
        let Some(apply) = apply else {
            out.fill(nan);
            return Ok(0);
        };
        let block_len = self.program.cost().block_len();
        let end = first + out.len() as u64;
        let mut sources: Vec<Vec<P>> = vec![Vec::new(); self.sources.len()];
        let (mut result, mut bytes, mut rounded) = (Vec::new(), Vec::new(), Vec::new());
        let mut read = 0;
        let mut index = (first / block_len as u64) as usize;
        while (index as u64 * block_len as u64) < end {
            let start = index as u64 * block_len as u64;
            let length = (block_len as u64).min(self.elements - start) as usize;
            let mut found = NonFinite::default();
            for (source, values) in self.sources.iter().zip(&mut sources) {
                resize(values, length, P::ZERO)?;
                read += P::fill(source.as_ref(), start, values)?;
                found += NonFinite::count(values);
            }
            let views: Vec<&[P]> = sources.iter().map(Vec::as_slice).collect();
            result.clear();
            resize(&mut result, length, P::ZERO)?;
            let block = Block {
                index,
                first: start,
                sources: &views,
                next: &[],
                carried: None,
            };
            apply.block(block, &mut result)?;
            if let Some(rounding) = self.rounding {
                rounding.round(self.output, start, &mut result);
            }
            resize(&mut bytes, length * self.output.size(), 0)?;
            self.output.encode(&mut result, self.saturate, &mut bytes);
            resize(&mut rounded, length, R::ZERO)?;
            self.output.decode(&bytes, &mut rounded);
            if found.any() && !self.allow_non_finite {
                rounded.fill(nan);
            }
            let from = start.max(first);
            let to = (start + length as u64).min(end);
            out[(from - first) as usize..(to - first) as usize]
                .copy_from_slice(&rounded[(from - start) as usize..(to - start) as usize]);
            index += 1;
        }
        Ok(read)
    }
}

impl Elements for Derived<'_> {
    fn format(&self) -> FloatType {
        self.output
    }
}
