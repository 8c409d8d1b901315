//! A tensor put together from boxes, each of which is stored by itself.

use super::elements::{Elements, Fill};
use super::format::FloatType;
use super::memory::NoMemory;
use super::real::Real;

/// Where a box lies in a tensor. The elements of the box follow one another in its own order.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct BoxPlace {
    /// The index of its first element in the tensor.
    first: u64,
    /// How many of its elements follow one another in the tensor too.
    run: usize,
    /// How many such runs it has.
    runs: usize,
    /// The dimensions before a run, the outermost first: the size of the box, and the stride in the tensor.
    outer: Vec<(usize, u64)>,
}

impl BoxPlace {
    /// The place of a box with these offsets and sizes in a tensor of that shape; `None` if it does not lie within it,
    /// or if the tensor has more elements than can be counted.
    pub fn new(shape: &[usize], offsets: &[usize], sizes: &[usize]) -> Option<Self> {
        if offsets.len() != shape.len() || sizes.len() != shape.len() {
            return None;
        }
        let mut dims = Vec::with_capacity(shape.len());
        let (mut stride, mut first) = (1u64, 0u64);
        for ((&size, &offset), &length) in shape.iter().zip(offsets).zip(sizes).rev() {
            offset.checked_add(length).filter(|end| *end <= size)?;
            first = first.checked_add(stride.checked_mul(offset as u64)?)?;
            dims.push((length, stride, length == size));
            stride = stride.checked_mul(size as u64)?;
        }
        // From the innermost dimension on, up to and with the first that the box does not fill.
        let filled = dims.iter().take_while(|(_, _, is_all)| *is_all).count();
        let inner = (filled + 1).min(dims.len());
        let product = |dims: &[(usize, u64, bool)]| -> Option<usize> {
            let mut sizes = dims.iter().map(|(length, _, _)| *length);
            sizes.try_fold(1usize, |all, length| all.checked_mul(length))
        };
        let (run, mut runs) = (product(&dims[..inner])?, product(&dims[inner..])?);
        if run == 0 {
            runs = 0;
        }
        let outer = dims[inner..].iter().rev();
        Some(BoxPlace {
            first,
            run,
            runs,
            outer: outer
                .map(|(length, stride, _)| (*length, *stride))
                .collect(),
        })
    }

    /// Where a run begins in the tensor. Later runs begin later.
    fn start(&self, run: usize) -> u64 {
        let mut rest = run;
        let mut at = self.first;
        for (length, stride) in self.outer.iter().rev() {
            at += (rest % length) as u64 * stride;
            rest /= length;
        }
        at
    }

    /// Visits the box's elements among `count` of the tensor from index `first` on: where they begin in the box, where
    /// among the `count`, and how many.
    ///
    /// # Errors
    /// The first that `visit` returns.
    pub fn visit<E>(
        &self,
        first: u64,
        count: usize,
        mut visit: impl FnMut(u64, usize, usize) -> Result<(), E>,
    ) -> Result<(), E> {
        let end = first + count as u64;
        let (mut low, mut high) = (0, self.runs);
        while low < high {
            let middle = low + (high - low) / 2;
            match self.start(middle) + self.run as u64 <= first {
                true => low = middle + 1,
                false => high = middle,
            }
        }
        for run in low..self.runs {
            let start = self.start(run);
            if start >= end {
                break;
            }
            let (from, to) = (start.max(first), (start + self.run as u64).min(end));
            let in_box = run as u64 * self.run as u64 + (from - start);
            visit(in_box, (from - first) as usize, (to - from) as usize)?;
        }
        Ok(())
    }
}

/// The values of a tensor in boxes, which together are all of it, each element once.
pub struct Boxes<'a> {
    /// Where each box lies, and its values.
    pub boxes: Vec<(&'a BoxPlace, Box<dyn Elements + 'a>)>,
    /// The format of the values.
    pub format: FloatType,
}

impl<R: Real> Fill<R> for Boxes<'_> {
    fn fill(&self, first: u64, out: &mut [R]) -> Result<usize, NoMemory> {
        let mut read = 0;
        for (place, values) in &self.boxes {
            place.visit(first, out.len(), |from, at, count| {
                read += R::fill(values.as_ref(), from, &mut out[at..at + count])?;
                Ok(())
            })?;
        }
        Ok(read)
    }
}

impl Elements for Boxes<'_> {
    fn format(&self) -> FloatType {
        self.format
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::super::elements::Stored;
    use super::*;

    /// Cuts along each dimension, as sizes that add up to its length.
    fn cuts() -> impl Strategy<Value = Vec<Vec<usize>>> {
        prop::collection::vec(prop::collection::vec(0usize..5, 1..4), 0..4)
    }

    proptest! {
        #[test]
        fn any_range_of_a_grid_of_boxes_is_that_of_the_tensor(
            cuts in cuts(),
            range in (0.0f64..1.0, 0.0f64..1.0),
        ) {
            let shape: Vec<usize> = cuts.iter().map(|sizes| sizes.iter().sum()).collect();
            let elements: usize = shape.iter().product();
            // Each value is its own index, so that the twin is the index.
            let mut boxes = vec![(Vec::new(), Vec::new())];
            for sizes in &cuts {
                let before = std::mem::take(&mut boxes);
                for (offsets, lengths) in before {
                    let mut at = 0;
                    for &size in sizes {
                        let longer = |list: &Vec<usize>, value| [list.as_slice(), &[value]].concat();
                        boxes.push((longer(&offsets, at), longer(&lengths, size)));
                        at += size;
                    }
                }
            }
            let bytes: Vec<Vec<u8>> = boxes.iter().map(|(offsets, lengths)| {
                let count: usize = lengths.iter().product();
                (0..count).flat_map(|number| {
                    let (mut rest, mut at, mut stride) = (number, 0, 1);
                    for ((length, offset), size) in lengths.iter().zip(offsets).zip(&shape).rev() {
                        at += (rest % length + offset) * stride;
                        rest /= length;
                        stride *= size;
                    }
                    (at as f32).to_le_bytes()
                }).collect()
            }).collect();
            let places: Vec<BoxPlace> = boxes
                .iter()
                .map(|(offsets, lengths)| BoxPlace::new(&shape, offsets, lengths).unwrap())
                .collect();
            let stored = |bytes| -> Box<dyn Elements> { Box::new(Stored { bytes, format: FloatType::F32 }) };
            let tensor = Boxes {
                boxes: places.iter().zip(&bytes).map(|(place, bytes)| (place, stored(bytes))).collect(),
                format: FloatType::F32,
            };
            let place = |at: f64| (at * (elements + 1) as f64) as usize;
            let (from, to) = (place(range.0.min(range.1)), place(range.0.max(range.1)));
            let mut out = vec![f64::NAN; to - from];
            Fill::<f64>::fill(&tensor, from as u64, &mut out).unwrap();
            let expected: Vec<f64> = (from..to).map(|at| at as f64).collect();
            prop_assert_eq!(out, expected);
        }
    }

    #[test]
    fn boxes_outside_have_no_place() {
        assert!(BoxPlace::new(&[4, 3], &[2, 0], &[2, 3]).is_some());
        for (offsets, sizes) in [
            ([3, 0], [2, 3]),
            ([0, 1], [4, 3]),
            ([usize::MAX, 0], [2, 3]),
        ] {
            assert!(BoxPlace::new(&[4, 3], &offsets, &sizes).is_none());
        }
        assert!(BoxPlace::new(&[4, 3], &[0], &[4]).is_none());
        let huge = [1 << 62, 4];
        assert!(BoxPlace::new(&huge, &[0, 0], &huge).is_none());
    }
}
