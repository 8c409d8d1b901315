//! How far the leading singular subspaces of task vectors overlap, by weight of a linear layer.
//!
//! With `U_a` and `U_b`, the first `k` left singular vectors of two task vectors as columns, the overlap on the output side
//! is `||U_a' U_b||^2 / k` (Frobenius): the mean squared cosine of the angles between the two subspaces. It is 1 if they are
//! the same, 0 if they are at right angles, and `k / rows` on average if their directions are drawn at random. The input
//! side is the same of the right singular vectors. If a task vector has fewer than `k` singular values that are not zero,
//! the smaller of the two counts is taken.

use serde_json::{Value, json};

use super::Tensor;
use crate::report::Table;
use architecture::{StackIndex, WeightOrder, linear_weight};
use checkpoint::Reclaim;
use engine::{EngineError, Observer};
use matrix::{Matrix, MatrixError, leading_singular_vectors};
use numeric::{BLOCK, NoMemory, NormalKey, resize};
use run::RunError;

/// The two sides of a linear layer.
const SIDES: [&str; 2] = ["output", "input"];

/// Sums of overlaps over matrices: by side and pair, in row order.
#[derive(Debug, Clone, PartialEq)]
pub(super) struct Overlaps {
    models: usize,
    /// By side: for each pair the sum, and how many matrices it is over.
    pairs: [Vec<(f64, u64)>; 2],
    /// By side: the sum of what is expected of random directions, and the matrices.
    chance: [(f64, u64); 2],
}

/// The overlaps of each tensor that is the weight of a linear layer.
pub(super) struct Subspaces {
    rank: usize,
    by_tensor: Vec<Option<Overlaps>>,
    /// Matrices with NaN or infinity, or without singular values.
    pub(super) left_out: usize,
}

impl Overlaps {
    fn new(models: usize) -> Overlaps {
        let pairs = vec![(0.0, 0); models * models];
        Overlaps {
            models,
            pairs: [pairs.clone(), pairs],
            chance: [(0.0, 0); 2],
        }
    }

    fn add(&mut self, next: &Overlaps) {
        let sum = |a: &mut (f64, u64), b: &(f64, u64)| (a.0, a.1) = (a.0 + b.0, a.1 + b.1);
        let pairs = self.pairs.iter_mut().flatten();
        pairs
            .zip(next.pairs.iter().flatten())
            .for_each(|(a, b)| sum(a, b));
        let chance = self.chance.iter_mut().zip(&next.chance);
        chance.for_each(|(a, b)| sum(a, b));
    }

    /// The mean overlap of a pair on a side; none if it is over nothing.
    fn of(&self, side: usize, a: usize, b: usize) -> Option<f64> {
        mean(self.pairs[side][a.min(b) * self.models + a.max(b)])
    }

    /// The mean over all pairs.
    pub(super) fn mean(&self, side: usize) -> Option<f64> {
        let overlaps = pairs(self.models).filter_map(|(a, b)| self.of(side, a, b));
        let overlaps: Vec<f64> = overlaps.collect();
        (!overlaps.is_empty()).then(|| overlaps.iter().sum::<f64>() / overlaps.len() as f64)
    }

    fn json(&self) -> Value {
        let square = |side: usize| -> Vec<Vec<Option<f64>>> {
            let row = |a| (0..self.models).map(|b| self.of(side, a, b)).collect();
            (0..self.models).map(row).collect()
        };
        let mut value = json!({});
        for (side, name) in SIDES.iter().enumerate() {
            value[*name] = json!(square(side));
            value[format!("{name}_by_chance")] = json!(mean(self.chance[side]));
        }
        value
    }
}

/// Each pair of models once, the smaller place first.
fn pairs(models: usize) -> impl Iterator<Item = (usize, usize)> {
    (0..models).flat_map(move |a| (a + 1..models).map(move |b| (a, b)))
}

fn min_max(a: usize, b: usize) -> (usize, usize) {
    (a.min(b), a.max(b))
}

fn mean((sum, count): (f64, u64)) -> Option<f64> {
    (count > 0).then(|| sum / count as f64)
}

impl Subspaces {
    /// Measures the subspaces of so many singular vectors, a matrix at a time by all threads.
    pub(super) fn measure(
        tensors: &[Tensor<'_>],
        rank: usize,
        threads: usize,
        observer: &dyn Observer,
    ) -> Result<Subspaces, RunError> {
        let pool = rayon::ThreadPoolBuilder::new().num_threads(threads).build();
        let pool = pool.map_err(|source| EngineError::Threads { threads, source })?;
        let mut measured = Subspaces {
            rank,
            by_tensor: Vec::new(),
            left_out: 0,
        };
        for tensor in tensors {
            if observer.cancelled() {
                return Err(RunError::Cancelled);
            }
            let found = pool.install(|| measured.of_tensor(tensor))?;
            measured.by_tensor.push(found);
        }
        Ok(measured)
    }

    fn of_tensor(&mut self, tensor: &Tensor<'_>) -> Result<Option<Overlaps>, RunError> {
        let Some((base, index)) = tensor.places.first() else {
            return Ok(None);
        };
        let shape = &base.tensors()[*index].shape;
        let config = base.config().map(|config| config.value());
        let Some(order) = linear_weight(tensor.name, shape, config) else {
            return Ok(None);
        };
        let [experts @ .., rows, columns] = &shape[..] else {
            return Ok(None);
        };
        let (rows, columns) = (*rows, *columns);
        let mut sum = Overlaps::new(tensor.models.len());
        for expert in 0..experts.iter().product::<usize>() {
            let first = (expert * rows * columns) as u64;
            match self.of_matrix(tensor, first, rows, columns, order) {
                Ok(found) => sum.add(&found),
                Err(MatrixError::Memory(error)) => return Err(EngineError::from(error).into()),
                Err(_) => self.left_out += 1,
            }
        }
        for (model, index) in &tensor.places {
            let bytes = model.tensors()[*index].len;
            model.release(*index, 0..bytes, Reclaim::Map);
        }
        Ok(Some(sum))
    }

    fn of_matrix(
        &self,
        tensor: &Tensor<'_>,
        first: u64,
        rows: usize,
        columns: usize,
        order: WeightOrder,
    ) -> Result<Overlaps, MatrixError> {
        let models = tensor.models.len();
        let mut sides = [Vec::new(), Vec::new()];
        for model in 0..models {
            let key = NormalKey::new(0, tensor.name, model);
            let change = task_vector(tensor, model, first, rows, columns)?;
            let found = leading_singular_vectors(&change, self.rank, |place| key.uniform(place))?;
            sides[0].push(found.left);
            sides[1].push(found.right);
        }
        if order == WeightOrder::InOut {
            sides.reverse();
        }
        let mut overlaps = Overlaps::new(models);
        for (side, vectors) in sides.iter().enumerate() {
            for (a, b) in pairs(models) {
                let (first, second) = (&vectors[a], &vectors[b]);
                let (least, most) = min_max(first.columns(), second.columns());
                if least == 0 {
                    continue;
                }
                let overlap = first.transposed_times(second)?.squared_norm() / least as f64;
                overlaps.pairs[side][a * models + b] = (overlap, 1);
                let (sum, count) = overlaps.chance[side];
                overlaps.chance[side] = (sum + most as f64 / first.rows() as f64, count + 1);
            }
        }
        Ok(overlaps)
    }

    /// The sum over all matrices.
    pub(super) fn total(&self, models: usize) -> Overlaps {
        let mut total = Overlaps::new(models);
        self.by_tensor
            .iter()
            .flatten()
            .for_each(|one| total.add(one));
        total
    }

    /// The mean over pairs and both sides, tensor by tensor.
    pub(super) fn by_tensor(&self) -> impl Iterator<Item = Option<f64>> {
        let both = |one: &Overlaps| Some((one.mean(0)? + one.mean(1)?) / 2.0);
        self.by_tensor
            .iter()
            .map(move |one| one.as_ref().and_then(both))
    }

    /// By role, in the order of the tensors.
    fn by_role<'t>(
        &self,
        tensors: &'t [Tensor<'_>],
        index: &StackIndex<'t>,
    ) -> Vec<(&'t str, Overlaps)> {
        let mut roles: Vec<(&str, Overlaps)> = Vec::new();
        for (tensor, found) in tensors.iter().zip(&self.by_tensor) {
            let Some(found) = found else { continue };
            let role = index
                .split(tensor.name)
                .map_or(tensor.name, |(_, _, role)| role);
            match roles.iter_mut().find(|(known, _)| *known == role) {
                Some((_, sum)) => sum.add(found),
                None => roles.push((role, found.clone())),
            }
        }
        roles
    }

    /// The tables of the report, and the numbers for programs.
    pub(super) fn report(
        &self,
        labels: &[&str],
        tensors: &[Tensor<'_>],
        index: &StackIndex<'_>,
    ) -> (Vec<Table>, Value) {
        let (total, roles) = (self.total(labels.len()), self.by_role(tensors, index));
        let rank = self.rank;
        let shown =
            |value: Option<f64>| value.map_or("-".to_owned(), |value| format!("{value:.3}"));
        let mut tables: Vec<Table> = (0..2)
            .map(|side| {
                let title = format!(
                    "subspace overlap, {} side: the leading {rank} singular vectors (1 the same, {} by chance)",
                    SIDES[side],
                    shown(mean(total.chance[side]))
                );
                super::matrix(&title, labels, |a, b| total.of(side, a, b).map(|one| format!("{one:.3}")))
            })
            .collect();
        let row = |(role, found): &(&str, Overlaps)| {
            let cells = (0..2).flat_map(|side| [found.mean(side), mean(found.chance[side])]);
            std::iter::once((*role).to_owned())
                .chain(cells.map(shown))
                .collect()
        };
        tables.push(Table {
            title: "subspace overlap by role, mean over pairs".to_owned(),
            columns: [
                "role",
                "output side",
                "by chance",
                "input side",
                "by chance",
            ]
            .map(str::to_owned)
            .to_vec(),
            rows: roles.iter().map(row).collect(),
        });
        let mut value = total.json();
        value["rank"] = rank.into();
        let role = |(role, found): &(&str, Overlaps)| {
            let mut value = found.json();
            value["role"] = (*role).into();
            value
        };
        value["roles"] = roles.iter().map(role).collect();
        (tables, value)
    }
}

/// What a model changed in a matrix of the base.
fn task_vector(
    tensor: &Tensor<'_>,
    model: usize,
    first: u64,
    rows: usize,
    columns: usize,
) -> Result<Matrix<f32>, NoMemory> {
    let mut change = Matrix::zeros(rows, columns)?;
    let mut lanes = [Vec::new(), Vec::new()];
    let mut at = first;
    for part in change.values_mut().chunks_mut(BLOCK) {
        for (lane, source) in lanes.iter_mut().zip([&tensor.models[model], &tensor.base]) {
            resize(lane, part.len(), 0.0_f64)?;
            source.fill(at, lane)?;
        }
        let [tuned, base] = &lanes;
        let values = part.iter_mut().zip(tuned.iter().zip(base));
        values.for_each(|(value, (tuned, base))| *value = (tuned - base) as f32);
        at += part.len() as u64;
    }
    Ok(change)
}

#[cfg(test)]
mod tests {
    use super::super::tests::{Silent, matrix_model};
    use super::super::{Request, analyse};

    const WEIGHT: &str = "model.layers.0.mlp.up_proj.weight";

    fn subspaces(
        base: &[f32],
        models: &[&[f32]],
        shape: [usize; 2],
        rank: usize,
    ) -> serde_json::Value {
        let base = matrix_model("base", WEIGHT, shape, base);
        let models = models
            .iter()
            .map(|values| matrix_model("m", WEIGHT, shape, values));
        let models: Vec<_> = models.collect();
        let request = Request {
            models: &models,
            base: &base,
            threads: 2,
            subspaces: Some(rank),
        };
        analyse(&request, &Silent).unwrap().details["subspaces"].clone()
    }

    /// Task vectors e1 e1', e1 e2' and (e1 + e2) e1' in the plane: by hand. One of rank 0 has no subspace.
    #[test]
    fn overlaps_of_rank_one_are_squared_cosines() {
        let a = [1.0, 0.0, 0.0, 0.0, 0.0, 0.0];
        let b = [0.0, 1.0, 0.0, 0.0, 0.0, 0.0];
        let c = [2.0, 0.0, 0.0, 2.0, 0.0, 0.0];
        let found = subspaces(&[0.0; 6], &[&a, &b, &c, &[0.0; 6]], [2, 3], 1);
        let near = |side: &str, a: usize, b: usize, expected: f64| {
            let overlap = found[side][a][b].as_f64().unwrap();
            assert!(
                (overlap - expected).abs() < 1e-6,
                "{side} {a} {b}: {overlap}"
            );
        };
        near("output", 0, 1, 1.0);
        near("input", 0, 1, 0.0);
        near("output", 0, 2, 0.5);
        near("input", 2, 0, 1.0);
        near("input", 1, 2, 0.0);
        assert!(found["output"][0][3].is_null() && found["output"][0][0].is_null());
        assert_eq!(found["output_by_chance"], 0.5);
        assert!((found["input_by_chance"].as_f64().unwrap() - 1.0 / 3.0).abs() < 1e-12);
        assert_eq!(found["roles"][0]["role"], "mlp.up_proj.weight");
        // Where singular values are missing, the smaller count is taken: e1 lies in the plane whole.
        let plane = [1.0, 0.0, 0.0, 0.0, 2.0, 0.0];
        let found = subspaces(&[0.0; 6], &[&a, &plane], [2, 3], 2);
        assert!((found["input"][0][1].as_f64().unwrap() - 1.0).abs() < 1e-6);
    }

    /// Against the singular vectors of nalgebra in f64.
    #[test]
    fn overlaps_are_those_of_a_twin() {
        let (rows, columns, rank) = (12, 9, 3);
        let noise = |seed: u64| -> Vec<f32> {
            let mut state = seed;
            let mut next = || {
                state = state
                    .wrapping_mul(6_364_136_223_846_793_005)
                    .wrapping_add(1_442_695_040_888_963_407);
                ((state >> 40) as f32) / (1 << 23) as f32 - 1.0
            };
            (0..rows * columns).map(|_| next()).collect()
        };
        let (base, a, b) = (noise(1), noise(2), noise(3));
        let found = subspaces(&base, &[&a, &b], [rows, columns], rank);
        let vectors = |tuned: &[f32]| {
            let change = tuned
                .iter()
                .zip(&base)
                .map(|(x, y)| f64::from(*x) - f64::from(*y));
            let change = nalgebra::DMatrix::from_row_iterator(rows, columns, change);
            let svd = change.svd(true, true);
            let (u, v) = (svd.u.unwrap(), svd.v_t.unwrap().transpose());
            (
                u.columns(0, rank).into_owned(),
                v.columns(0, rank).into_owned(),
            )
        };
        let ((ua, va), (ub, vb)) = (vectors(&a), vectors(&b));
        for (side, a, b) in [("output", ua, ub), ("input", va, vb)] {
            let expected = (a.transpose() * b).norm_squared() / rank as f64;
            let overlap = found[side][0][1].as_f64().unwrap();
            assert!(
                (overlap - expected).abs() < 1e-5,
                "{side}: {overlap} {expected}"
            );
        }
    }
}
