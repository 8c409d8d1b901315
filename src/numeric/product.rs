//! Products of small f32 matrices, by the crate `gemm`.

/// A matrix within a slice.
#[derive(Debug, Clone, Copy)]
pub struct View<'a> {
    /// The slice.
    pub values: &'a [f32],
    /// How many rows.
    pub rows: usize,
    /// How many columns.
    pub columns: usize,
    /// The distance from an element to the one below it.
    pub down: usize,
    /// The distance from an element to the one to its right.
    pub beside: usize,
}

impl<'a> View<'a> {
    /// A matrix whose rows follow one another without gaps.
    pub fn rows(values: &'a [f32], rows: usize, columns: usize) -> Self {
        View {
            values,
            rows,
            columns,
            down: columns,
            beside: 1,
        }
    }

    /// The least length of the slice.
    fn length(&self) -> usize {
        match self.rows == 0 || self.columns == 0 {
            true => 0,
            false => (self.rows - 1) * self.down + (self.columns - 1) * self.beside + 1,
        }
    }
}

/// Sets `out` to `left right`. The rows of `out` follow one another, each as long as `right` is wide.
///
/// # Panics
/// If the matrices do not fit together or into their slices: an error of the caller.
pub fn multiply(out: &mut [f32], left: View, right: View) {
    multiply_into(out, right.columns, left, right);
}

/// Sets the first columns of `out`, whose rows are `stride` apart, to `left right`.
///
/// # Panics
/// If the matrices do not fit together or into their slices: an error of the caller.
pub fn multiply_into(out: &mut [f32], stride: usize, left: View, right: View) {
    let (rows, columns, inner) = (left.rows, right.columns, left.columns);
    assert!(inner == right.rows && columns <= stride);
    assert!(left.length() <= left.values.len() && right.length() <= right.values.len());
    if rows == 0 || columns == 0 {
        return;
    }
    assert!((rows - 1) * stride + columns <= out.len());
    // SAFETY: the asserts above checked that the matrices lie within their slices; `out` is borrowed exclusively;
    // `gemm` supports f32.
    unsafe {
        gemm::gemm(
            rows,
            columns,
            inner,
            out.as_mut_ptr(),
            1,
            stride as isize,
            false,
            left.values.as_ptr(),
            left.beside as isize,
            left.down as isize,
            right.values.as_ptr(),
            right.beside as isize,
            right.down as isize,
            0.0,
            1.0,
            false,
            false,
            false,
            gemm::Parallelism::None,
        );
    }
}
