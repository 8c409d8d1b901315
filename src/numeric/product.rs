//! Products of small f32 matrices, by the crate gemm.

/// A matrix in a slice.
#[derive(Debug, Clone, Copy)]
pub struct View<'a> {
    /// Where its elements are.
    pub values: &'a [f32],
    /// How many rows.
    pub rows: usize,
    /// How many columns.
    pub columns: usize,
    /// From an element to that below it.
    pub down: usize,
    /// From an element to that beside it.
    pub beside: usize,
}

impl<'a> View<'a> {
    /// One whose rows follow one another.
    pub fn rows(values: &'a [f32], rows: usize, columns: usize) -> Self {
        View {
            values,
            rows,
            columns,
            down: columns,
            beside: 1,
        }
    }

    /// How long the slice must be.
    fn length(&self) -> usize {
        match self.rows == 0 || self.columns == 0 {
            true => 0,
            false => (self.rows - 1) * self.down + (self.columns - 1) * self.beside + 1,
        }
    }
}

/// Sets `out` to `left right`; its rows follow one another, and it is as long as they are.
///
/// # Panics
/// If the matrices do not fit each other or their slices: a mistake of the caller's.
pub fn multiply(out: &mut [f32], left: View, right: View) {
    multiply_into(out, right.columns, left, right);
}

/// Sets the first columns of `out`, whose rows are `stride` apart, to `left right`.
///
/// # Panics
/// If the matrices do not fit each other or their slices: a mistake of the caller's.
pub fn multiply_into(out: &mut [f32], stride: usize, left: View, right: View) {
    let (rows, columns, inner) = (left.rows, right.columns, left.columns);
    assert!(inner == right.rows && columns <= stride);
    assert!(left.length() <= left.values.len() && right.length() <= right.values.len());
    if rows == 0 || columns == 0 {
        return;
    }
    assert!((rows - 1) * stride + columns <= out.len());
    // SAFETY: the matrices lie within their slices, as was just checked; `out` is borrowed alone; f32 is one of
    // the types that the crate knows.
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
