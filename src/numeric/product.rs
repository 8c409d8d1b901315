//! Products of matrices, by the crate `gemm`, by one thread.

use super::real::Real;

/// A matrix within a slice.
#[derive(Debug, Clone, Copy)]
pub struct View<'a, T = f32> {
    /// The slice.
    pub values: &'a [T],
    /// How many rows.
    pub rows: usize,
    /// How many columns.
    pub columns: usize,
    /// The distance from an element to the one below it.
    pub down: usize,
    /// The distance from an element to the one to its right.
    pub beside: usize,
}

impl<'a, T> View<'a, T> {
    /// A matrix whose rows follow one another without gaps.
    pub fn rows(values: &'a [T], rows: usize, columns: usize) -> Self {
        View {
            values,
            rows,
            columns,
            down: columns,
            beside: 1,
        }
    }

    /// The same elements with rows and columns exchanged.
    #[must_use]
    pub fn transposed(self) -> Self {
        View {
            values: self.values,
            rows: self.columns,
            columns: self.rows,
            down: self.beside,
            beside: self.down,
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
pub fn multiply<T: Real>(out: &mut [T], left: View<T>, right: View<T>) {
    multiply_into(out, right.columns, left, right);
}

/// Sets the first columns of `out`, whose rows are `stride` apart, to `left right`.
///
/// # Panics
/// If the matrices do not fit together or into their slices: an error of the caller.
pub fn multiply_into<T: Real>(out: &mut [T], stride: usize, left: View<T>, right: View<T>) {
    product(out, stride, None, left, right, T::ONE);
}

/// Adds `factor left right` to the first columns of `out`, whose rows are `stride` apart.
///
/// # Panics
/// If the matrices do not fit together or into their slices: an error of the caller.
pub fn add_product<T: Real>(
    out: &mut [T],
    stride: usize,
    left: View<T>,
    right: View<T>,
    factor: T,
) {
    product(out, stride, Some(T::ONE), left, right, factor);
}

/// Sets `out` to `kept out + factor left right`; without `kept`, what `out` held is not read.
fn product<T: Real>(
    out: &mut [T],
    stride: usize,
    kept: Option<T>,
    left: View<T>,
    right: View<T>,
    factor: T,
) {
    let (rows, columns, inner) = (left.rows, right.columns, left.columns);
    assert!(inner == right.rows && columns <= stride);
    assert!(left.length() <= left.values.len() && right.length() <= right.values.len());
    if rows == 0 || columns == 0 {
        return;
    }
    assert!((rows - 1) * stride + columns <= out.len());
    // SAFETY: the asserts above checked that the matrices lie within their slices; `out` is borrowed exclusively;
    // `gemm` supports f32 and f64, which are all that `Real` is implemented for.
    unsafe {
        gemm::gemm(
            rows,
            columns,
            inner,
            out.as_mut_ptr(),
            1,
            stride as isize,
            kept.is_some(),
            left.values.as_ptr(),
            left.beside as isize,
            left.down as isize,
            right.values.as_ptr(),
            right.beside as isize,
            right.down as isize,
            kept.unwrap_or(T::ZERO),
            factor,
            false,
            false,
            false,
            gemm::Parallelism::None,
        );
    }
}

/// The instructions that products are computed with: the width of their vectors decides the order in which products are
/// summed, and so the last bits of a result.
pub fn product_instructions() -> &'static str {
    #[cfg(target_arch = "x86_64")]
    let found = match () {
        () if is_x86_feature_detected!("avx512f") => "x86-64 with AVX-512F",
        () if is_x86_feature_detected!("avx2") && is_x86_feature_detected!("fma") => {
            "x86-64 with AVX2"
        }
        () => "x86-64",
    };
    #[cfg(not(target_arch = "x86_64"))]
    let found = std::env::consts::ARCH;
    found
}

#[cfg(test)]
mod tests {
    use super::*;

    fn values(seed: usize, length: usize) -> Vec<f64> {
        (0..length)
            .map(|at| ((at * 7 + seed * 13) % 11) as f64 - 5.0)
            .collect()
    }

    #[test]
    fn products_in_f64_are_set_or_added_with_either_factor_transposed() {
        let (rows, inner, columns, stride) = (5, 7, 3, 4);
        let (left, right) = (values(1, rows * inner), values(2, inner * columns));
        let expected = |i: usize, j: usize| -> f64 {
            (0..inner)
                .map(|k| left[i * inner + k] * right[j * inner + k])
                .sum()
        };
        let a = View::rows(&left, rows, inner);
        let b = View::rows(&right, columns, inner).transposed();
        let mut out = vec![9.0; rows * stride];
        multiply_into(&mut out, stride, a, b);
        add_product(&mut out, stride, a, b, -3.0);
        for (at, found) in out.iter().enumerate() {
            let (i, j) = (at / stride, at % stride);
            let expected = if j < columns {
                -2.0 * expected(i, j)
            } else {
                9.0
            };
            assert_eq!(*found, expected, "{i} {j}");
        }
    }
}
