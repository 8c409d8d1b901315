//! Router rows from task vectors: the direction of a hidden state along which an expert's answer differs most from the
//! base's.
//!
//! Let `D` be the difference of the expert's gate and up matrices, one above the other, from the base's. The direction
//! is the first right singular vector of `D`, a truncated singular value decomposition of rank one. "Towards Modular
//! LLMs by Building and Reusing a Library of LoRAs" (Ostapenko et al. 2024) takes its prototypes from adapters in this
//! way. It is found by subspace iteration with projection (Saad, "Numerical Methods for Large Eigenvalue Problems",
//! chapter 5). Each step reads both models' matrices once, one tile at a time.
//!
//! The sign of a singular vector is arbitrary, that of a router row is not. With prompts, the row points to the side on
//! which their states lie; without prompts, to the side on which the expert's gates open further than the base's.

use std::sync::Arc;

use errors::Refusal;

use super::Recipe;
use super::rows::{Rows, normalize, project_out};
use architecture::Decoder;
use checkpoint::Checkpoint;
use engine::scan;
use matrix::{Eigen, Matrix, MatrixError};
use numeric::{NormalKey, View, dot, multiply};

/// Vectors iterated together. Convergence then depends on the gap to the ninth singular value, not to the second.
const VECTORS: usize = 8;
/// The limit on steps. If the first singular values are too close to be separated by then, the result still explains as
/// much of the difference as the first vector does, up to [`SETTLED`].
const STEPS: usize = 32;
/// The iteration ends when a step raises the explained share of the difference by less than this.
const SETTLED: f64 = 1e-6;
/// If orthogonalization leaves less than this share of a vector's length, the rest is rounding.
const DEPENDENT: f64 = 1e-5;
/// Rows per tile.
const TILE: usize = 256;

/// The models whose differences are taken.
#[derive(Debug)]
pub(in super::super) struct Changes {
    pub(in super::super) base: Changed,
    /// An expert for each row.
    pub(in super::super) experts: Vec<Changed>,
    /// Whether the expert's own norm is folded into its matrices; its difference is then taken after folding.
    pub(in super::super) fold_norms: bool,
}

/// A dense model.
#[derive(Debug)]
pub(in super::super) struct Changed {
    pub(in super::super) model: Arc<Checkpoint>,
    pub(in super::super) decoder: &'static Decoder,
    /// Neurons per MLP.
    pub(in super::super) width: usize,
}

impl Changes {
    pub(super) fn models(&self) -> impl Iterator<Item = &Arc<Checkpoint>> {
        let experts = self.experts.iter().map(|expert| &expert.model);
        std::iter::once(&self.base.model).chain(experts)
    }
}

/// The rows of all layers, each of unit length.
pub(super) fn rows(
    recipe: &Recipe,
    changes: &Changes,
    threads: usize,
    cancelled: &(dyn Fn() -> bool + Sync),
) -> Result<Vec<Rows>, Refusal> {
    let count = changes.experts.len();
    let places: Vec<(usize, usize)> = (0..recipe.names.len())
        .flat_map(|place| (0..count).map(move |expert| (place, expert)))
        .collect();
    let direction = |_: &mut (), &(place, expert): &(usize, usize)| {
        let layer = recipe.layers[place];
        let key = NormalKey::new(recipe.seed, &recipe.names[place], expert);
        let change = Change::open(changes, expert, layer, recipe.hidden)?;
        change.direction(key, cancelled)?.ok_or_else(|| {
            Refusal::new(format!(
                "expert {expert} (`{}`) has the base's gate and up matrices in layer {layer}, so no direction tells \
                 them apart",
                changes.experts[expert].model.label()
            ))
            .with_hint("choose another `gate_mode`")
        })
    };
    let found = scan(&places, threads, cancelled, direction)?;
    let layers = found.chunks(count).map(|rows| Rows {
        values: rows.concat(),
        hidden: recipe.hidden,
    });
    Ok(layers.collect())
}

/// The difference between an expert's gate and up matrices and the base's, in one layer.
struct Change<'a> {
    base: &'a Changed,
    expert: &'a Changed,
    layer: usize,
    hidden: usize,
    /// The factors on the columns of the expert's matrices.
    factors: Option<Vec<f32>>,
}

impl<'a> Change<'a> {
    fn open(
        changes: &'a Changes,
        expert: usize,
        layer: usize,
        hidden: usize,
    ) -> Result<Self, Refusal> {
        let (base, expert) = (&changes.base, &changes.experts[expert]);
        let norm = |of: &Changed| {
            let mut norm = vec![0f32; hidden];
            let name = of.decoder.mlp_norm().unwrap_or_default();
            let name = format!("model.layers.{layer}.{name}");
            let read = forward::read(&of.model, &name, 0, &mut norm);
            read.map_err(|error| Refusal::from(&error))?;
            let offset = of.decoder.norm_offset as f32;
            norm.iter_mut().for_each(|value| *value += offset);
            Ok::<_, Refusal>(norm)
        };
        let factors = match changes.fold_norms {
            true => Some(
                norm(expert)?
                    .iter()
                    .zip(norm(base)?)
                    .map(|(own, other)| own / other)
                    .collect(),
            ),
            false => None,
        };
        Ok(Self {
            base,
            expert,
            layer,
            hidden,
            factors,
        })
    }

    /// Why there is no direction.
    fn without_direction(&self, error: MatrixError) -> Refusal {
        let (expert, base) = (self.expert.model.label(), self.base.model.label());
        let layer = self.layer;
        Refusal::from(match error {
            MatrixError::NotFinite => {
                format!("`{expert}` or `{base}` holds NaN or infinity in the MLP of layer {layer}")
            }
            error => {
                format!("`{expert}` and `{base}`, in the MLP of layer {layer}: {error}")
            }
        })
    }

    /// The first right singular vector; `None` if the matrices are equal.
    fn direction(
        &self,
        key: NormalKey,
        cancelled: &(dyn Fn() -> bool + Sync),
    ) -> Result<Option<Vec<f64>>, Refusal> {
        let hidden = self.hidden;
        let vectors = VECTORS.min(hidden);
        let mut basis: Vec<f64> = (0..(vectors * hidden) as u64)
            .map(|place| key.draw(place))
            .collect();
        keep_independent(&mut basis, hidden);
        let mut explained = 0.0;
        for step in 0.. {
            if cancelled() {
                return Err("stopped".into());
            }
            let image = self.gram_times(&basis)?;
            let best = project(&basis, &image.products, hidden);
            let Some(best) = best.map_err(|error| self.without_direction(error))? else {
                break;
            };
            if step == STEPS || best.value - explained <= SETTLED * best.value {
                let mut row = combine(&basis, &best.vector, hidden);
                if dot(&image.opened, &best.vector) < 0.0 {
                    row.iter_mut().for_each(|value| *value = -*value);
                }
                return Ok(normalize(&mut row).then_some(row));
            }
            explained = best.value;
            basis = image.products;
            keep_independent(&mut basis, hidden);
        }
        Ok(None)
    }

    /// Computes `D^T D v` for each vector `v` of a basis.
    fn gram_times(&self, basis: &[f64]) -> Result<Image, Refusal> {
        let hidden = self.hidden;
        let count = basis.len() / hidden;
        let narrow: Vec<f32> = basis.iter().map(|value| *value as f32).collect();
        let vectors = View {
            down: 1,
            beside: hidden,
            ..View::rows(&narrow, hidden, count)
        };
        let mut image = Image {
            products: vec![0.0; basis.len()],
            opened: vec![0.0; count],
        };
        let mut tile = Tile::default();
        let (mut inner, mut outer) = (Vec::new(), vec![0f32; basis.len()]);
        for (up, first) in self.tiles() {
            let rows = self.read(up, first, &mut tile)?;
            let difference = View::rows(&tile.difference, rows, hidden);
            inner.resize(rows * count, 0.0);
            multiply(&mut inner, difference, vectors);
            if !up {
                for of_row in inner.chunks_exact(count.max(1)) {
                    let sums = image.opened.iter_mut().zip(of_row);
                    sums.for_each(|(sum, value)| *sum += f64::from(*value));
                }
            }
            let turned = View {
                down: 1,
                beside: count,
                ..View::rows(&inner, count, rows)
            };
            multiply(&mut outer, turned, difference);
            let sums = image.products.iter_mut().zip(&outer);
            sums.for_each(|(sum, value)| *sum += f64::from(*value));
        }
        Ok(image)
    }

    /// The tiles of the gate matrix, then those of the up matrix: whether it is the up matrix, and the first row.
    fn tiles(&self) -> impl Iterator<Item = (bool, usize)> {
        let width = self.expert.width;
        [false, true]
            .into_iter()
            .flat_map(move |up| (0..width).step_by(TILE).map(move |first| (up, first)))
    }

    /// Reads a tile of both models and returns its number of rows.
    fn read(&self, up: bool, first: usize, tile: &mut Tile) -> Result<usize, Refusal> {
        let rows = TILE.min(self.expert.width - first);
        let read = |of: &Changed, out: &mut Vec<f32>| {
            out.resize(rows * self.hidden, 0.0);
            let (name, stored, _) = of.decoder.input_matrix(up, of.width);
            let name = format!("model.layers.{}.mlp.{name}", self.layer);
            let start = (stored.start + first) * self.hidden;
            let read = forward::read(&of.model, &name, start, out);
            read.map_err(|error| {
                Refusal::from(&error).within(format_args!("`{}`", of.model.label()))
            })
        };
        read(self.base, &mut tile.base)?;
        read(self.expert, &mut tile.difference)?;
        if let Some(factors) = &self.factors {
            for row in tile.difference.chunks_exact_mut(self.hidden) {
                row.iter_mut()
                    .zip(factors)
                    .for_each(|(value, factor)| *value *= factor);
            }
        }
        let pairs = tile.difference.iter_mut().zip(&tile.base);
        pairs.for_each(|(value, base)| *value -= base);
        Ok(rows)
    }
}

/// Decoded rows: the base's, and the expert's minus the base's.
#[derive(Default)]
struct Tile {
    base: Vec<f32>,
    difference: Vec<f32>,
}

/// The products of a basis with the difference.
struct Image {
    /// `D^T D v` for each vector of the basis, one after another.
    products: Vec<f64>,
    /// For each vector, how much further the expert's gates open along it, summed over the gates.
    opened: Vec<f64>,
}

/// The best direction within the span of a basis.
struct Best {
    /// The square of its singular value.
    value: f64,
    /// The coefficient of each vector of the basis.
    vector: Vec<f64>,
}

/// The direction in the span of an orthonormal basis along which the difference is largest; none if there is no
/// difference. `products` are `D^T D v` of the basis.
fn project(basis: &[f64], products: &[f64], hidden: usize) -> Result<Option<Best>, MatrixError> {
    let count = basis.len() / hidden;
    let of = |a: usize, b: usize| {
        dot(
            &basis[a * hidden..][..hidden],
            &products[b * hidden..][..hidden],
        )
    };
    // The matrix is symmetric except for rounding.
    let inner = Matrix::from_fn(count, count, |a, b| f64::midpoint(of(a, b), of(b, a)))?;
    let Eigen { values, vectors } = Eigen::new(inner)?;
    let largest = values.first().filter(|value| **value > 0.0);
    Ok(largest.map(|value| Best {
        value: *value,
        vector: vectors.values()[..count].to_vec(),
    }))
}

/// The weighted sum of a basis's vectors.
fn combine(basis: &[f64], weights: &[f64], hidden: usize) -> Vec<f64> {
    let mut sum = vec![0.0; hidden];
    for (vector, weight) in basis.chunks_exact(hidden).zip(weights) {
        sum.iter_mut()
            .zip(vector)
            .for_each(|(sum, value)| *sum += weight * value);
    }
    sum
}

/// Makes vectors orthonormal by Gram-Schmidt, and drops those that depend on the ones before them.
fn keep_independent(vectors: &mut Vec<f64>, hidden: usize) {
    let mut kept = 0;
    for at in 0..vectors.len() / hidden {
        vectors.copy_within(at * hidden..(at + 1) * hidden, kept * hidden);
        let (before, rest) = vectors.split_at_mut(kept * hidden);
        let vector = &mut rest[..hidden];
        let mut independent = normalize(vector);
        // Two passes suffice (Kahan). Only the first shows whether the vector was independent.
        for _ in 0..2 {
            project_out(vector, before);
            independent &= dot(vector, vector).sqrt() > DEPENDENT && normalize(vector);
        }
        kept += usize::from(independent);
    }
    vectors.truncate(kept * hidden);
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn vectors_that_others_span_are_dropped() {
        let mut vectors = vec![
            3.0, 0.0, 0.0, //
            1.0, 1.0, 0.0, //
            5.0, -2.0, 0.0, //
            0.0, 0.0, 0.0, //
            0.0, 1.0, 1e-3,
        ];
        keep_independent(&mut vectors, 3);
        let expected = [1.0, 0.0, 0.0, 0.0, 1.0, 0.0, 0.0, 0.0, 1.0];
        assert_eq!(vectors.len(), expected.len());
        for (found, expected) in vectors.iter().zip(expected) {
            assert!((found - expected).abs() < 1e-9, "{vectors:?}");
        }
    }

    #[test]
    fn the_largest_direction_of_a_basis() {
        // A Gram matrix with eigenvalues 9, 4 and 1 along the axes, and the axes as basis.
        let basis = [1.0, 0.0, 0.0, 0.0, 1.0, 0.0, 0.0, 0.0, 1.0];
        let products = [4.0, 0.0, 0.0, 0.0, 9.0, 0.0, 0.0, 0.0, 1.0];
        let best = project(&basis, &products, 3).unwrap().unwrap();
        assert!((best.value - 9.0).abs() < 1e-12);
        let row = combine(&basis, &best.vector, 3);
        assert!((row[1].abs() - 1.0).abs() < 1e-12, "{row:?}");
        assert!(project(&[], &[], 3).unwrap().is_none());
        assert!(project(&basis, &[0.0; 9], 3).unwrap().is_none());
        assert!(project(&basis, &[f64::NAN; 9], 3).is_err());
    }
}
