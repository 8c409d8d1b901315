//! Values some ranges of which come from elsewhere: a fused tensor of which single experts are adapted.

use std::ops::Range;
use std::sync::Arc;

use super::elements::{Elements, Fill};
use super::format::FloatType;
use super::memory::NoMemory;
use super::real::Real;

/// The values of a base, but for some ranges.
pub struct Patched<'a> {
    base: Arc<dyn Elements + 'a>,
    /// In ascending order, without overlaps.
    patches: Vec<Patch<'a>>,
}

/// A range of elements, and its values.
pub struct Patch<'a> {
    /// The elements.
    pub range: Range<u64>,
    /// Their values, the first of the range at zero.
    pub values: Box<dyn Elements + 'a>,
}

impl<'a> Patched<'a> {
    /// The values of `base` with other values in some ranges, which must not overlap.
    pub fn new(base: Arc<dyn Elements + 'a>, mut patches: Vec<Patch<'a>>) -> Self {
        patches.sort_by_key(|patch| patch.range.start);
        Self { base, patches }
    }
}

impl<R: Real> Fill<R> for Patched<'_> {
    fn fill(&self, first: u64, out: &mut [R]) -> Result<usize, NoMemory> {
        let end = first + out.len() as u64;
        let (mut at, mut rest, mut read) = (first, out, 0);
        let after = self
            .patches
            .partition_point(|patch| patch.range.end <= first);
        for patch in &self.patches[after..] {
            let start = patch.range.start.clamp(at, end);
            let (before, tail) = rest.split_at_mut((start - at) as usize);
            if !before.is_empty() {
                read += R::fill(self.base.as_ref(), at, before)?;
            }
            let stop = patch.range.end.clamp(start, end);
            let (inside, tail) = tail.split_at_mut((stop - start) as usize);
            if !inside.is_empty() {
                read += R::fill(patch.values.as_ref(), start - patch.range.start, inside)?;
            }
            (at, rest) = (stop, tail);
            if rest.is_empty() {
                break;
            }
        }
        if !rest.is_empty() {
            read += R::fill(self.base.as_ref(), at, rest)?;
        }
        Ok(read)
    }
}

impl Elements for Patched<'_> {
    fn format(&self) -> FloatType {
        self.base.format()
    }
}

/// The values from one place on.
pub struct Tail<'a> {
    /// All of them.
    pub base: Arc<dyn Elements + 'a>,
    /// The place of the first.
    pub first: u64,
}

impl<R: Real> Fill<R> for Tail<'_> {
    fn fill(&self, first: u64, out: &mut [R]) -> Result<usize, NoMemory> {
        R::fill(self.base.as_ref(), self.first + first, out)
    }
}

impl Elements for Tail<'_> {
    fn format(&self) -> FloatType {
        self.base.format()
    }
}

#[cfg(test)]
mod tests {
    use super::super::elements::Constant;
    use super::*;

    struct Index;

    impl<R: Real> Fill<R> for Index {
        fn fill(&self, first: u64, out: &mut [R]) -> Result<usize, NoMemory> {
            let values = out.iter_mut().zip(first..);
            values.for_each(|(value, at)| *value = R::from_f64(at as f64));
            Ok(out.len())
        }
    }

    impl Elements for Index {
        fn format(&self) -> FloatType {
            FloatType::F32
        }
    }

    #[test]
    fn every_range_is_that_of_the_whole() {
        let base: Arc<dyn Elements> = Arc::new(Index);
        let patch = |range: Range<u64>, values: Box<dyn Elements>| Patch { range, values };
        let shifted = Tail {
            base: Arc::clone(&base),
            first: 100,
        };
        let patches = vec![
            patch(6..8, Box::new(Constant(-1.0))),
            patch(2..4, Box::new(shifted)),
            patch(4..5, Box::new(Constant(-2.0))),
        ];
        let patched = Patched::new(base, patches);
        let whole = [0.0, 1.0, 100.0, 101.0, -2.0, 5.0, -1.0, -1.0, 8.0, 9.0];
        for start in 0..=whole.len() {
            for end in start..=whole.len() {
                let mut out = vec![f64::NAN; end - start];
                Fill::<f64>::fill(&patched, start as u64, &mut out).unwrap();
                assert_eq!(out, whole[start..end], "{start}..{end}");
            }
        }
    }
}
