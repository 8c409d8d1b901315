//! Orthogonal matching pursuit: vectors as sums of a few of many points.
//!
//! Source: Pati, Rezaiifar and Krishnaprasad, "Orthogonal Matching Pursuit", 1993; for vocabularies, Goddard and
//! Fernandes Neto, "Training-Free Tokenizer Transplantation via Orthogonal Matching Pursuit", arXiv:2506.06607.

use matrix::Matrix;
use numeric::NoMemory;
use rayon::prelude::*;

/// A point that is so nearly a sum of those chosen before, as a share of its length, adds only rounding.
const DEPENDENT: f64 = 1e-6;
/// What is left of a target, as a share of its length, when nothing is worth adding.
const NOTHING: f64 = 1e-7;

/// A vector as a sum of points.
#[derive(Debug, Default, Clone)]
pub(super) struct Sum {
    /// The points, and how much of each.
    pub(super) parts: Vec<(usize, f64)>,
    /// The length of what they leave out, as a share of the vector's.
    pub(super) left_out: f64,
}

/// Each target (a row) as a sum of at most `most` points (rows). At each step the point is chosen whose product with what
/// is left is the largest; then all shares are fitted anew.
///
/// # Errors
/// There is no memory.
pub(super) fn pursue(
    targets: &Matrix<f32>,
    points: &Matrix<f32>,
    most: usize,
) -> Result<Vec<Sum>, NoMemory> {
    let width = targets.columns();
    let rows = targets.values().chunks(width.max(1));
    let mut follows: Vec<Follow> = rows.map(Follow::new).collect();
    let mut left = targets.clone();
    for _ in 0..most.min(points.rows()) {
        if follows.iter().all(|follow| follow.done) {
            break;
        }
        let rows = left.values_mut().par_chunks_mut(width.max(1));
        rows.zip(&follows).for_each(|(row, follow)| {
            let pairs = row.iter_mut().zip(&follow.residual);
            pairs.for_each(|(row, value)| *row = *value as f32);
        });
        let products = left.times_transposed(points)?;
        let count = points.rows();
        let products = products.values().par_chunks(count);
        follows
            .par_iter_mut()
            .zip(products)
            .for_each(|(follow, products)| follow.step(products, points));
    }
    Ok(follows.iter().map(Follow::sum).collect())
}

/// A target on its way.
struct Follow {
    length: f64,
    residual: Vec<f64>,
    /// Orthonormal directions of the chosen points.
    basis: Vec<Vec<f64>>,
    /// Each chosen point in that basis.
    columns: Vec<Vec<f64>>,
    /// The target in that basis.
    target: Vec<f64>,
    chosen: Vec<usize>,
    done: bool,
}

impl Follow {
    fn new(target: &[f32]) -> Self {
        let residual: Vec<f64> = target.iter().map(|value| f64::from(*value)).collect();
        let length = dot(&residual, &residual).sqrt();
        Self {
            length,
            residual,
            basis: Vec::new(),
            columns: Vec::new(),
            target: Vec::new(),
            chosen: Vec::new(),
            done: length == 0.0,
        }
    }

    fn step(&mut self, products: &[f32], points: &Matrix<f32>) {
        if self.done {
            return;
        }
        let mut best: Option<(usize, f32)> = None;
        for (place, product) in products.iter().map(|product| product.abs()).enumerate() {
            if best.is_none_or(|(_, most)| product > most) && !self.chosen.contains(&place) {
                best = Some((place, product));
            }
        }
        let Some((place, _)) = best else {
            self.done = true;
            return;
        };
        let width = points.columns();
        let point = &points.values()[place * width..][..width];
        let mut direction: Vec<f64> = point.iter().map(|value| f64::from(*value)).collect();
        let whole = dot(&direction, &direction).sqrt();
        let mut column = vec![0.0; self.basis.len()];
        // Once more, as the first time leaves rounding.
        for _ in 0..2 {
            for (basis, share) in self.basis.iter().zip(&mut column) {
                let found = dot(basis, &direction);
                add(&mut direction, basis, -found);
                *share += found;
            }
        }
        let length = dot(&direction, &direction).sqrt();
        if length <= DEPENDENT * whole {
            self.done = true;
            return;
        }
        direction.iter_mut().for_each(|value| *value /= length);
        column.push(length);
        let share = dot(&direction, &self.residual);
        add(&mut self.residual, &direction, -share);
        self.target.push(share);
        self.basis.push(direction);
        self.columns.push(column);
        self.chosen.push(place);
        self.done = self.left() <= NOTHING * self.length;
    }

    fn left(&self) -> f64 {
        dot(&self.residual, &self.residual).sqrt()
    }

    /// How much of each point: solves the triangle from its last row.
    fn sum(&self) -> Sum {
        let mut rest = self.target.clone();
        let mut parts = Vec::with_capacity(rest.len());
        for (index, column) in self.columns.iter().enumerate().rev() {
            let share = rest[index] / column[index];
            for (rest, value) in rest.iter_mut().zip(&column[..index]) {
                *rest -= share * value;
            }
            parts.push((self.chosen[index], share));
        }
        parts.reverse();
        let left_out = match self.length == 0.0 {
            true => 0.0,
            false => self.left() / self.length,
        };
        Sum { parts, left_out }
    }
}

fn dot(a: &[f64], b: &[f64]) -> f64 {
    a.iter().zip(b).map(|(a, b)| a * b).sum()
}

fn add(to: &mut [f64], what: &[f64], times: f64) {
    to.iter_mut()
        .zip(what)
        .for_each(|(to, what)| *to += times * what);
}

#[cfg(test)]
mod tests {
    use super::*;

    fn matrix(rows: &[&[f32]]) -> Matrix<f32> {
        let mut matrix = Matrix::zeros(rows.len(), rows[0].len()).unwrap();
        matrix.values_mut().copy_from_slice(&rows.concat());
        matrix
    }

    #[test]
    fn a_sum_of_points_is_found() {
        let points = matrix(&[
            &[1.0, 0.0, 0.0],
            &[1.0, 1.0, 0.0],
            &[0.0, 1.0, 1.0],
            &[0.0, 0.0, 2.0],
        ]);
        // 2 a - 3 d, and 5 b; nothing; a vector that needs three.
        let targets = matrix(&[
            &[2.0, 0.0, -6.0],
            &[5.0, 5.0, 0.0],
            &[0.0; 3],
            &[1.0, 2.0, 7.0],
        ]);
        let sums = pursue(&targets, &points, 3).unwrap();
        let parts = |index: usize| -> Vec<(usize, f64)> {
            let mut parts = sums[index].parts.clone();
            parts.sort_by_key(|(place, _)| *place);
            parts
        };
        let close = |found: &[(usize, f64)], expected: &[(usize, f64)]| {
            found.len() == expected.len()
                && found
                    .iter()
                    .zip(expected)
                    .all(|(a, b)| a.0 == b.0 && (a.1 - b.1).abs() < 1e-6)
        };
        assert!(close(&parts(0), &[(0, 2.0), (3, -3.0)]), "{sums:?}");
        assert!(close(&parts(1), &[(1, 5.0)]), "{sums:?}");
        assert!(parts(2).is_empty() && sums[2].left_out == 0.0);
        assert!(sums.iter().all(|sum| sum.left_out < 1e-6), "{sums:?}");
        for (target, sum) in [[2.0, 0.0, -6.0], [5.0, 5.0, 0.0], [0.0; 3], [1.0, 2.0, 7.0]]
            .iter()
            .zip(&sums)
        {
            for (column, target) in target.iter().enumerate() {
                let made: f64 = sum
                    .parts
                    .iter()
                    .map(|&(place, share)| share * f64::from(points.values()[place * 3 + column]))
                    .sum();
                assert!((made - target).abs() < 1e-6, "{sum:?}");
            }
        }
    }

    #[test]
    fn what_is_left_out_is_told_and_is_at_right_angles_to_the_points() {
        let points = matrix(&[&[1.0, 0.0, 0.0], &[1.0, 1e-9, 0.0]]);
        let sums = pursue(&matrix(&[&[3.0, 0.0, 4.0]]), &points, 2).unwrap();
        // The second point adds nothing to the first.
        assert_eq!(sums[0].parts.len(), 1);
        assert!((sums[0].left_out - 0.8).abs() < 1e-12, "{sums:?}");
    }
}
