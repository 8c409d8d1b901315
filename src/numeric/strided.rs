//! Values that are not stored in the order of the tensor: transposed, sliced and expanded views.

use super::elements::{Elements, Fill};
use super::format::FloatType;
use super::memory::NoMemory;
use super::real::Real;

/// Values gathered at a time before they are decoded.
const STRIP: usize = 256;

/// The most bytes that a value has.
const WIDEST: usize = 8;

/// For each dimension of a tensor, how far apart its elements are stored.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Strides {
    shape: Vec<usize>,
    strides: Vec<u64>,
}

impl Strides {
    /// A shape, and for each dimension the number of elements from one index to the next.
    ///
    /// # Panics
    ///
    /// If `shape` and `strides` differ in length.
    pub fn new(shape: Vec<usize>, strides: Vec<u64>) -> Self {
        assert_eq!(shape.len(), strides.len(), "a stride for each dimension");
        Self { shape, strides }
    }

    /// The number of elements from the first through the last as stored; 0 if there are none, `None` if the number
    /// overflows.
    pub fn span(&self) -> Option<u64> {
        if self.shape.contains(&0) {
            return Some(0);
        }
        let steps = self.shape.iter().zip(&self.strides);
        steps
            .map(|(&size, &stride)| (size as u64 - 1).checked_mul(stride))
            .try_fold(1u64, |span, step| span.checked_add(step?))
    }

    /// Whether the elements lie one after the other, in C order.
    pub fn is_contiguous(&self) -> bool {
        if self.shape.contains(&0) {
            return true;
        }
        let mut expected = 1u64;
        for (&size, &stride) in self.shape.iter().zip(&self.strides).rev() {
            if size != 1 && stride != expected {
                return false;
            }
            expected = expected.saturating_mul(size as u64);
        }
        true
    }

    /// All elements in order. `bytes` starts at the first of them.
    ///
    /// # Panics
    ///
    /// If `bytes` holds fewer than [`Strides::span`] elements of `size` bytes.
    pub fn gather(&self, bytes: &[u8], size: usize) -> Vec<u8> {
        let elements: usize = self.shape.iter().product();
        let mut out = Vec::with_capacity(elements * size);
        self.runs(0, elements, |start, step, count| {
            for at in 0..count {
                let at = (start + at * step) * size;
                out.extend_from_slice(&bytes[at..at + size]);
            }
        });
        out
    }

    /// Visits `count` elements from index `first` on in runs of constant stride; passes each run's start, stride
    /// and length.
    fn runs(&self, first: u64, count: usize, mut run: impl FnMut(usize, usize, usize)) {
        let (Some((&row, outer)), Some((&step, outer_strides))) =
            (self.shape.split_last(), self.strides.split_last())
        else {
            if count > 0 {
                run(0, 1, 1);
            }
            return;
        };
        let mut left = count;
        let mut column = (first % row.max(1) as u64) as usize;
        let mut line = first / row.max(1) as u64;
        while left > 0 && row > 0 {
            let mut rest = line;
            let mut start = 0;
            for (&size, &stride) in outer.iter().zip(outer_strides).rev() {
                start += rest % size.max(1) as u64 * stride;
                rest /= size.max(1) as u64;
            }
            let taken = left.min(row - column);
            let start = start + column as u64 * step;
            run(start as usize, step as usize, taken);
            left -= taken;
            column = 0;
            line += 1;
        }
    }
}

/// Little-endian values as a view sees them; they need not be aligned.
#[derive(Debug, Clone, Copy)]
pub struct Strided<'a> {
    /// The bytes from the view's first element on; at least as many as the view spans.
    pub bytes: &'a [u8],
    /// Their format.
    pub format: FloatType,
    /// The shape and strides of the view.
    pub strides: &'a Strides,
}

impl<R: Real> Fill<R> for Strided<'_> {
    fn fill(&self, first: u64, out: &mut [R]) -> Result<usize, NoMemory> {
        let size = self.format.size();
        let mut strip = [0; STRIP * WIDEST];
        let mut rest = &mut *out;
        self.strides.runs(first, rest.len(), |start, step, count| {
            let (run, later) = std::mem::take(&mut rest).split_at_mut(count);
            rest = later;
            if step == 1 {
                let bytes = &self.bytes[start * size..(start + count) * size];
                self.format.decode(bytes, run);
                return;
            }
            for (number, piece) in run.chunks_mut(STRIP).enumerate() {
                let strip = &mut strip[..piece.len() * size];
                for (at, value) in strip.chunks_exact_mut(size).enumerate() {
                    let from = (start + (number * STRIP + at) * step) * size;
                    value.copy_from_slice(&self.bytes[from..from + size]);
                }
                self.format.decode(strip, piece);
            }
        });
        Ok(out.len() * size)
    }
}

impl Elements for Strided<'_> {
    fn format(&self) -> FloatType {
        self.format
    }
}

#[cfg(test)]
mod tests {
    use ndarray::{ArrayD, Axis, IxDyn};
    use proptest::prelude::*;

    use super::*;

    /// The same view by ndarray.
    fn twin(values: &[f32], shape: &[usize], strides: &[u64]) -> Vec<f32> {
        ArrayD::from_shape_fn(IxDyn(shape), |index| {
            let at = (0..shape.len()).map(|axis| index[axis] * strides[axis] as usize);
            values[at.sum::<usize>()]
        })
        .into_raw_vec_and_offset()
        .0
    }

    proptest! {
        #[test]
        fn any_part_of_a_view_is_that_of_its_twin(
            dims in proptest::collection::vec((0usize..5, 0u64..6), 0..4),
            wide in 1usize..600,
            step in 1u64..3,
            cut in any::<(u16, u16)>(),
        ) {
            let (mut shape, mut strides): (Vec<usize>, Vec<u64>) = dims.into_iter().unzip();
            shape.push(wide);
            strides.push(step);
            let view = Strides::new(shape.clone(), strides.clone());
            let span = view.span().unwrap() as usize;
            let values: Vec<f32> = (0..span).map(|value| value as f32).collect();
            let bytes: Vec<u8> = values.iter().flat_map(|value| value.to_le_bytes()).collect();
            let expected = twin(&values, &shape, &strides);
            let strided = Strided { bytes: &bytes, format: FloatType::F32, strides: &view };
            let from = cut.0 as usize % (expected.len() + 1);
            let len = cut.1 as usize % (expected.len() - from + 1);
            let mut out = vec![0f64; len];
            strided.fill(from as u64, &mut out).unwrap();
            let wanted: Vec<f64> = expected[from..from + len].iter().map(|&value| value.into()).collect();
            prop_assert_eq!(&out, &wanted);
            let gathered: Vec<u8> = expected.iter().flat_map(|value| value.to_le_bytes()).collect();
            prop_assert_eq!(&view.gather(&bytes, 4), &gathered);
            if view.is_contiguous() {
                prop_assert_eq!(&gathered, &bytes);
            }
        }
    }

    #[test]
    fn a_transposed_matrix_is_that_of_ndarray() {
        let matrix = ArrayD::from_shape_fn(IxDyn(&[3, 4]), |at| (at[0] * 4 + at[1]) as f32);
        let bytes: Vec<u8> = matrix
            .iter()
            .flat_map(|value| value.to_le_bytes())
            .collect();
        let view = Strides::new(vec![4, 3], vec![1, 4]);
        assert!(!view.is_contiguous() && view.span() == Some(12));
        let mut out = [0f32; 12];
        Strided {
            bytes: &bytes,
            format: FloatType::F32,
            strides: &view,
        }
        .fill(0, &mut out)
        .unwrap();
        let mut turned = matrix;
        turned.swap_axes(0, 1);
        assert!(turned.iter().eq(&out) && turned.len_of(Axis(0)) == 4);
    }

    #[test]
    fn spans_that_cannot_be_counted_are_none() {
        assert_eq!(Strides::new(vec![3, 3], vec![u64::MAX, 1]).span(), None);
        assert_eq!(
            Strides::new(vec![2, 2], vec![u64::MAX / 2 + 1, u64::MAX / 2]).span(),
            None
        );
        assert_eq!(Strides::new(vec![0, 3], vec![u64::MAX, 9]).span(), Some(0));
    }
}
