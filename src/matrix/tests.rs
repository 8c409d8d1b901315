//! Every decomposition puts its matrix together again, and gives the same bits at any number of threads.

use super::*;

/// A matrix of some rank, whose singular values fall by two from one to the next.
fn matrix(rows: usize, columns: usize, rank: usize) -> Matrix<f32> {
    let mut out = Matrix::zeros(rows, columns).unwrap();
    let wave = |a: usize, b: usize| {
        (((a + 1) * (a + 1) * 37 + (b + 1) * 101 * (a + 3)) as f64 * 0.61).sin()
    };
    for (at, value) in out.values_mut().iter_mut().enumerate() {
        let (row, column) = (at / columns, at % columns);
        let terms = (0..rank).map(|k| 0.5f64.powi(k as i32) * wave(row, k) * wave(k + 7, column));
        *value = terms.sum::<f64>() as f32;
    }
    out
}

fn threads<T: Send>(count: usize, work: impl FnOnce() -> T + Send) -> T {
    let pool = rayon::ThreadPoolBuilder::new().num_threads(count);
    pool.build().unwrap().install(work)
}

/// The largest difference between elements.
fn distance(a: &Matrix<f32>, b: &Matrix<f32>) -> f32 {
    assert_eq!((a.rows(), a.columns()), (b.rows(), b.columns()));
    let pairs = a.values().iter().zip(b.values());
    pairs.map(|(a, b)| (a - b).abs()).fold(0.0, f32::max)
}

fn identity(size: usize) -> Matrix<f32> {
    let mut out = Matrix::zeros(size, size).unwrap();
    out.values_mut()
        .iter_mut()
        .step_by(size + 1)
        .for_each(|one| *one = 1.0);
    out
}

#[test]
fn singular_vectors_put_the_matrix_together_whatever_its_shape_and_rank() {
    for (rows, columns, rank) in [
        (40, 23, 9),
        (23, 40, 9),
        (1, 5, 1),
        (5, 1, 1),
        (300, 290, 8),
    ] {
        let matrix = matrix(rows, columns, rank);
        let found = singular_vectors(&matrix, usize::MAX).unwrap();
        assert_eq!(found.values.len(), rank, "{rows} x {columns}");
        assert!(found.values.is_sorted_by(|a, b| a >= b));
        let orthonormal = found.left.transposed_times(&found.left).unwrap();
        assert!(distance(&orthonormal, &identity(rank)) < 1e-4);
        let orthonormal = found.right.transposed_times(&found.right).unwrap();
        assert!(distance(&orthonormal, &identity(rank)) < 1e-5);
        let mut scaled = found.left.clone();
        scaled.scale_columns(&found.values);
        let back = scaled.times_transposed(&found.right).unwrap();
        assert!(distance(&back, &matrix) < 1e-5, "{rows} x {columns}");
        let first = singular_vectors(&matrix, 1).unwrap();
        assert_eq!((first.values.len(), first.right.columns()), (1, 1));
    }
}

#[test]
fn the_polar_factor_keeps_the_vectors_and_no_value() {
    for (rows, columns) in [(30, 20), (20, 30)] {
        let matrix = matrix(rows, columns, 6);
        let found = singular_vectors(&matrix, usize::MAX).unwrap();
        let expected = found.left.times_transposed(&found.right).unwrap();
        let polar = polar(&matrix).unwrap();
        assert!(distance(&polar.factor, &expected) < 1e-4);
        assert_eq!(polar.values.len(), 6);
        let pairs = polar.values.iter().zip(&found.values);
        pairs.for_each(|(a, b)| assert!((a - b).abs() < 1e-6 * b, "{a} {b}"));
    }
}

#[test]
fn matrices_of_zeros_or_of_no_size_have_no_singular_vectors() {
    for (rows, columns) in [(4, 3), (0, 3), (3, 0), (0, 0)] {
        let zeros = Matrix::<f32>::zeros(rows, columns).unwrap();
        assert!(singular_vectors(&zeros, 9).unwrap().values.is_empty());
        let polar = polar(&zeros).unwrap();
        assert!(polar.values.is_empty() && polar.factor.values().iter().all(|value| *value == 0.0));
    }
}

#[test]
fn what_is_not_finite_is_refused() {
    for value in [f32::NAN, f32::INFINITY] {
        let mut matrix = matrix(5, 4, 3);
        matrix.values_mut()[7] = value;
        assert_eq!(
            singular_vectors(&matrix, 4).unwrap_err(),
            MatrixError::NotFinite
        );
        assert_eq!(polar(&matrix).unwrap_err(), MatrixError::NotFinite);
    }
}

#[test]
fn the_number_of_threads_changes_no_bit() {
    // Larger than what is done by one task.
    let matrix = matrix(700, 300, 12);
    let first = threads(1, || singular_vectors(&matrix, 40).unwrap());
    let factor = threads(1, || polar(&matrix).unwrap());
    for count in [2, 3, 5] {
        let other = threads(count, || singular_vectors(&matrix, 40).unwrap());
        assert!(other.left == first.left && other.right == first.right);
        assert_eq!(other.values, first.values);
        assert!(threads(count, || polar(&matrix).unwrap().factor == factor.factor));
    }
}

#[test]
fn an_eigenvector_is_a_row_and_the_largest_value_comes_first() {
    let mut square = Matrix::zeros(2, 2).unwrap();
    square
        .values_mut()
        .copy_from_slice(&[1.0, f64::NAN, 2.0, 1.0]);
    assert_eq!(
        Eigen::new(square.clone()).unwrap_err(),
        MatrixError::NotFinite
    );
    square.values_mut()[1] = 2.0;
    let eigen = Eigen::new(square).unwrap();
    assert!((eigen.values[0] - 3.0).abs() < 1e-14 && (eigen.values[1] + 1.0).abs() < 1e-14);
    let half = 0.5f64.sqrt();
    let expected = [half, half, half, -half].map(f64::abs);
    let found = eigen.vectors.values();
    let pairs = found.iter().zip(expected);
    pairs.for_each(|(found, expected)| assert!((found.abs() - expected).abs() < 1e-14));
    assert!(found[0] * found[1] > 0.0 && found[2] * found[3] < 0.0);
}

#[test]
fn products_of_either_orientation_agree_with_loops() {
    let (a, b) = (matrix(300, 20, 5), matrix(20, 270, 5));
    let product = a.times(&b).unwrap();
    let turned = a.transposed().unwrap();
    assert!(distance(&product, &turned.transposed_times(&b).unwrap()) < 1e-6);
    let same = a.times_transposed(&b.transposed().unwrap()).unwrap();
    assert!(distance(&product, &same) < 1e-6);
    for (row, column) in [(0, 0), (299, 269), (257, 3)] {
        let terms = (0..20).map(|k| a.values()[row * 20 + k] * b.values()[k * 270 + column]);
        let expected: f32 = terms.sum();
        assert!((product.values()[row * 270 + column] - expected).abs() < 1e-5);
    }
    let square = gram(&a).unwrap();
    for (row, column) in [(0, 0), (3, 19), (19, 3)] {
        let rows = a
            .values()
            .chunks(20)
            .map(|values| f64::from(values[row]) * f64::from(values[column]));
        assert!((square.values()[row * 20 + column] - rows.sum::<f64>()).abs() < 1e-9);
    }
}

#[test]
fn memory_for_eigenvectors_is_stated_for_any_size() {
    let square = 8 * 1024 * 1024;
    assert!(eigen_bytes(1024) >= 4 * square && eigen_bytes(1024) < 6 * square);
    assert_eq!(eigen_bytes(usize::MAX), u64::MAX);
}

/// A matrix whose singular values fall slowly: nothing tells where to cut.
fn noisy(rows: usize, columns: usize) -> Matrix<f32> {
    let key = numeric::NormalKey::new(1, "noisy", 0);
    let mut out = Matrix::zeros(rows, columns).unwrap();
    for (place, value) in out.values_mut().iter_mut().enumerate() {
        *value = key.draw(place as u64) as f32;
    }
    out
}

/// The square of what the first singular vectors leave out.
fn left_out(matrix: &Matrix<f32>, found: &Singular) -> f64 {
    let mut scaled = found.left.clone();
    scaled.scale_columns(&found.values);
    let left_out = squared_residual(matrix, &scaled, &found.right).unwrap();
    let back = scaled.times_transposed(&found.right).unwrap();
    let mut by_hand = matrix.clone();
    by_hand.add(&back, -1.0);
    let by_hand = by_hand.squared_norm();
    assert!((left_out - by_hand).abs() <= 1e-5 * by_hand.max(1e-9));
    left_out
}

#[test]
fn leading_vectors_leave_out_hardly_more_than_the_best_do() {
    for (rows, columns, most) in [(300, 500, 8), (640, 200, 20)] {
        for matrix in [noisy(rows, columns), matrix(rows, columns, 30)] {
            let draws = numeric::NormalKey::new(0, "draws", 0);
            let draw = |place| draws.uniform(place);
            let of = |count| {
                threads(count, || {
                    leading_singular_vectors(&matrix, most, draw).unwrap()
                })
            };
            let (found, best) = (of(2), singular_vectors(&matrix, most).unwrap());
            assert!(found.values.len() <= most);
            let (found_out, best_out) = (left_out(&matrix, &found), left_out(&matrix, &best));
            let rounding = 1e-8 * matrix.squared_norm();
            assert!(
                found_out <= 1.01 * best_out + rounding,
                "{found_out} {best_out}"
            );
            let other = of(3);
            assert_eq!((found.left, found.right), (other.left, other.right));
            assert!(
                found
                    .values
                    .iter()
                    .zip(&other.values)
                    .all(|(a, b)| a.to_bits() == b.to_bits())
            );
        }
    }
}

#[test]
fn leading_vectors_of_a_matrix_of_low_rank_are_all_that_it_has() {
    let draws = numeric::NormalKey::new(0, "draws", 0);
    let low = matrix(400, 300, 5);
    let found = leading_singular_vectors(&low, 20, |place| draws.uniform(place)).unwrap();
    assert_eq!(found.values.len(), 5);
    assert!(left_out(&low, &found) <= 1e-12 * low.squared_norm());
    let nothing = Matrix::<f32>::zeros(400, 300).unwrap();
    let found = leading_singular_vectors(&nothing, 20, |place| draws.uniform(place)).unwrap();
    assert_eq!(found.values.len(), 0);
    let mut broken = low;
    broken.values_mut()[7] = f32::NAN;
    let found = leading_singular_vectors(&broken, 20, |place| draws.uniform(place));
    assert_eq!(found.unwrap_err(), MatrixError::NotFinite);
}

#[test]
fn equations_are_solved_and_singular_ones_refused() {
    for (rows, size) in [(7, 5), (3, 130), (40, 257)] {
        let factor = matrix(size + 3, size, 40);
        let mut square = gram(&factor).unwrap();
        (0..size).for_each(|at| square.values_mut()[at * size + at] += 1.0);
        let wanted = Matrix::from_fn(rows, size, |a, b| ((a * 31 + b * 7) as f64).sin()).unwrap();
        let product = wanted.times(&square).unwrap();
        let solved = |count| {
            let mut right = product.clone();
            threads(count, || solve_on_the_right(square.clone(), &mut right)).unwrap();
            right
        };
        let found = solved(2);
        for (found, wanted) in found.values().iter().zip(wanted.values()) {
            assert!((found - wanted).abs() < 1e-9, "{size}");
        }
        assert!(
            [1, 5].map(solved).iter().all(|again| *again == found),
            "{size}"
        );
        assert!(solve_bytes(size) < 64 * (size as u64 + 64));
        // Of less than full rank.
        let singular = gram(&matrix(size, size, 2)).unwrap();
        let refused = solve_on_the_right(singular, &mut product.clone());
        assert_eq!(refused, Err(MatrixError::Singular), "{size}");
        square.values_mut()[0] = f64::NAN;
        let refused = solve_on_the_right(square, &mut product.clone());
        assert_eq!(refused, Err(MatrixError::NotFinite));
    }
    let mut nothing = Matrix::zeros(2, 0).unwrap();
    assert_eq!(
        solve_on_the_right(Matrix::zeros(0, 0).unwrap(), &mut nothing),
        Ok(())
    );
    let mut zero = Matrix::zeros(1, 1).unwrap();
    let refused = solve_on_the_right(Matrix::zeros(1, 1).unwrap(), &mut zero);
    assert_eq!(refused, Err(MatrixError::Singular));
}
