//! Rows from task vectors: the direction of a state along which an expert answers most differently from the base.
//!
//! For an expert whose gate and up matrices, one above the other, differ by `D` from the base's, that is the first
//! right singular vector of `D`: a truncated singular value decomposition of rank one (as the prototypes of
//! "Towards Modular LLMs by Building and Reusing a Library of LoRAs", Ostapenko et al. 2024, take it of an adapter).
//! It is found by subspace iteration with projection (Saad, "Numerical Methods for Large Eigenvalue Problems",
//! chapter 5): each step reads both models' matrices once, a tile at a time.
//!
//! A singular vector has no sign, a router's row has: where there are prompts, it points to the side on which their
//! states lie; without, to the side on which the expert's gates open further than the base's.

use std::sync::Arc;

use errors::Refusal;
use nalgebra::{DMatrix, SymmetricEigen};

use super::Recipe;
use super::rows::{Rows, normalize, project_out};
use architecture::Decoder;
use checkpoint::Checkpoint;
use engine::scan;
use numeric::{NormalKey, View, dot, multiply};

/// Vectors that are iterated together: the step to the next singular values that matters is the eighth's.
const VECTORS: usize = 8;
/// The most steps. Where the first singular values are so close that these do not part them, what is found explains
/// as much of the difference as the first vector does, to [`SETTLED`].
const STEPS: usize = 32;
/// The iteration ends when the explained share of the difference grows by less than this.
const SETTLED: f64 = 1e-6;
/// Below this share of its length, what is left of a vector is the rounding of those before it.
const DEPENDENT: f64 = 1e-5;
/// Rows of a tile.
const TILE: usize = 256;

/// The models whose differences are taken.
#[derive(Debug)]
pub(in super::super) struct Changes {
    pub(in super::super) base: Changed,
    /// An expert for each row.
    pub(in super::super) experts: Vec<Changed>,
    /// Whether an expert's matrices are seen through its own norm, as they are folded with it.
    pub(in super::super) fold_norms: bool,
}

/// A dense model.
#[derive(Debug)]
pub(in super::super) struct Changed {
    pub(in super::super) model: Arc<Checkpoint>,
    pub(in super::super) decoder: &'static Decoder,
    /// Neurons of its MLPs.
    pub(in super::super) width: usize,
}

impl Changes {
    pub(super) fn models(&self) -> impl Iterator<Item = &Arc<Checkpoint>> {
        let experts = self.experts.iter().map(|expert| &expert.model);
        std::iter::once(&self.base.model).chain(experts)
    }
}

/// The rows of all layers, each of length one.
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

/// The difference of an expert's gate and up matrices from the base's, in one layer.
struct Change<'a> {
    base: &'a Changed,
    expert: &'a Changed,
    layer: usize,
    hidden: usize,
    /// What the expert's columns are multiplied by.
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

    /// The first right singular vector; `None` if nothing differs.
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
            if !best.value.is_finite() {
                return Err(format!(
                    "`{}` or `{}` holds NaN or infinity in the MLP of layer {}",
                    self.expert.model.label(),
                    self.base.model.label(),
                    self.layer
                )
                .into());
            }
            if best.value <= 0.0 {
                break;
            }
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

    /// `D^T D v` for each vector `v` of a basis.
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

    /// The tiles of the gate matrix, then those of the up matrix: whether of the second, and the first row.
    fn tiles(&self) -> impl Iterator<Item = (bool, usize)> {
        let width = self.expert.width;
        [false, true]
            .into_iter()
            .flat_map(move |up| (0..width).step_by(TILE).map(move |first| (up, first)))
    }

    /// Reads a tile of both models; gives its number of rows.
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

/// Rows of both models, decoded.
#[derive(Default)]
struct Tile {
    base: Vec<f32>,
    difference: Vec<f32>,
}

/// What a basis becomes.
struct Image {
    /// `D^T D v` for each of its vectors, one after the other.
    products: Vec<f64>,
    /// For each, how much further all gates of the expert open along it.
    opened: Vec<f64>,
}

/// The best direction within a basis.
struct Best {
    /// The square of its singular value.
    value: f64,
    /// What each vector of the basis contributes.
    vector: Vec<f64>,
}

/// The direction of an orthonormal basis along which the difference is largest, by what the basis becomes.
fn project(basis: &[f64], products: &[f64], hidden: usize) -> Best {
    let without = |value| Best {
        value,
        vector: Vec::new(),
    };
    let count = basis.len() / hidden;
    if count == 0 {
        return without(0.0);
    }
    let inner = DMatrix::from_fn(count, count, |a, b| {
        dot(
            &basis[a * hidden..][..hidden],
            &products[b * hidden..][..hidden],
        )
    });
    if !inner.iter().all(|value| value.is_finite()) {
        return without(f64::NAN);
    }
    // Rounding alone keeps it from being symmetric.
    let symmetric = (&inner + inner.transpose()) / 2.0;
    let eigen = SymmetricEigen::new(symmetric);
    let values = eigen.eigenvalues.iter().enumerate();
    match values.max_by(|(_, a), (_, b)| a.total_cmp(b)) {
        Some((at, value)) => Best {
            value: *value,
            vector: eigen.eigenvectors.column(at).iter().copied().collect(),
        },
        None => without(0.0),
    }
}

/// The sum of a basis's vectors, each times its weight.
fn combine(basis: &[f64], weights: &[f64], hidden: usize) -> Vec<f64> {
    let mut sum = vec![0.0; hidden];
    for (vector, weight) in basis.chunks_exact(hidden).zip(weights) {
        sum.iter_mut()
            .zip(vector)
            .for_each(|(sum, value)| *sum += weight * value);
    }
    sum
}

/// Makes vectors orthonormal, Gram and Schmidt's way, and drops those that the ones before them span.
fn keep_independent(vectors: &mut Vec<f64>, hidden: usize) {
    let mut kept = 0;
    for at in 0..vectors.len() / hidden {
        vectors.copy_within(at * hidden..(at + 1) * hidden, kept * hidden);
        let (before, rest) = vectors.split_at_mut(kept * hidden);
        let vector = &mut rest[..hidden];
        let mut independent = normalize(vector);
        // Twice is enough (Kahan); only the first time shows what is left.
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
        // A Gram matrix with eigenvalues 9, 4 and 1 along the axes, seen in a basis of all three.
        let basis = [1.0, 0.0, 0.0, 0.0, 1.0, 0.0, 0.0, 0.0, 1.0];
        let products = [4.0, 0.0, 0.0, 0.0, 9.0, 0.0, 0.0, 0.0, 1.0];
        let best = project(&basis, &products, 3);
        assert!((best.value - 9.0).abs() < 1e-12);
        let row = combine(&basis, &best.vector, 3);
        assert!((row[1].abs() - 1.0).abs() < 1e-12, "{row:?}");
        assert_eq!(project(&[], &[], 3).value, 0.0);
        assert!(project(&basis, &[f64::NAN; 9], 3).value.is_nan());
    }
}
