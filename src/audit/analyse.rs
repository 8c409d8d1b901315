//! `weld analyse`: fine-tunes of one base side by side, before they are merged: how their task vectors lie to each other.

mod subspaces;

use std::collections::BTreeMap;

use serde_json::{Value, json};

use super::{Command, HeatMap, Report, Table};
use architecture::{LayerStack, StackIndex, layer_stacks};
use checkpoint::{Checkpoint, Reclaim};
use engine::{EngineError, Observer, Piece, pieces, scan};
use numeric::{BLOCK, Elements, NoMemory, Real, resize};
use run::RunError;
use subspaces::Subspaces;

/// Blocks per piece, the unit of a worker's task.
const PIECE_BLOCKS: u64 = 64;
/// Rows of the table by role.
const SHOWN: usize = 20;

/// What is analysed.
pub struct Request<'a> {
    /// The fine-tunes, at least one.
    pub models: &'a [Checkpoint],
    /// The model that they were made from.
    pub base: &'a Checkpoint,
    /// Number of worker threads.
    pub threads: usize,
    /// Also measures how far the subspaces of so many leading singular vectors overlap: this decomposes every weight of a
    /// linear layer of every model.
    pub subspaces: Option<usize>,
}

/// A tensor that all models have.
struct Tensor<'a> {
    name: &'a str,
    elements: u64,
    base: Box<dyn Elements + 'a>,
    models: Vec<Box<dyn Elements + 'a>>,
    /// Its index in the base and in each model.
    places: Vec<(&'a Checkpoint, usize)>,
}

/// Sums over the task vectors of some elements. Matrices are model by model, in row order; only those with `row <= column`
/// are summed.
#[derive(Debug, Clone, PartialEq)]
struct Sums {
    /// Products of two task vectors.
    products: Vec<f64>,
    /// Elements that both change.
    both: Vec<u64>,
    /// Of these, elements that they change in opposite directions.
    opposite: Vec<u64>,
    /// The square of the base.
    base: f64,
    /// Elements that are NaN or infinite somewhere, and not counted.
    non_finite: u64,
}

impl Sums {
    fn new(models: usize) -> Sums {
        Sums {
            products: vec![0.0; models * models],
            both: vec![0; models * models],
            opposite: vec![0; models * models],
            base: 0.0,
            non_finite: 0,
        }
    }

    fn add(&mut self, next: &Sums) {
        let sum = |a: &mut Vec<u64>, b: &[u64]| a.iter_mut().zip(b).for_each(|(a, b)| *a += b);
        self.products
            .iter_mut()
            .zip(&next.products)
            .for_each(|(a, b)| *a += b);
        sum(&mut self.both, &next.both);
        sum(&mut self.opposite, &next.opposite);
        self.base += next.base;
        self.non_finite += next.non_finite;
    }

    /// The place of a pair.
    fn at(&self, a: usize, b: usize) -> usize {
        let models = self.products.len().isqrt();
        a.min(b) * models + a.max(b)
    }

    /// The length of a task vector.
    fn norm(&self, model: usize) -> f64 {
        self.products[self.at(model, model)].sqrt()
    }

    /// The cosine of two task vectors; none if one of them is zero.
    fn cosine(&self, a: usize, b: usize) -> Option<f64> {
        let norms = self.norm(a) * self.norm(b);
        (norms > 0.0).then(|| (self.products[self.at(a, b)] / norms).clamp(-1.0, 1.0))
    }

    /// The share of the elements that both change in which the directions are opposite; none if there are none.
    fn conflict(&self, a: usize, b: usize) -> Option<f64> {
        let at = self.at(a, b);
        (self.both[at] > 0).then(|| self.opposite[at] as f64 / self.both[at] as f64)
    }

    /// The mean cosine of all pairs.
    fn mean_cosine(&self, models: usize) -> Option<f64> {
        let pairs = (0..models).flat_map(|a| (a + 1..models).map(move |b| (a, b)));
        let cosines: Vec<f64> = pairs.filter_map(|(a, b)| self.cosine(a, b)).collect();
        (!cosines.is_empty()).then(|| cosines.iter().sum::<f64>() / cosines.len() as f64)
    }
}

/// Measures how the task vectors of fine-tunes lie to each other.
///
/// # Errors
/// The work was stopped, or the threads could not be started.
pub fn analyse(request: &Request<'_>, observer: &dyn Observer) -> Result<Report, RunError> {
    let Request {
        models,
        base,
        threads,
        subspaces,
    } = request;
    let tensors = tensors(models, base);
    models
        .iter()
        .chain([*base])
        .for_each(Checkpoint::read_ahead);
    let measured = measure(&tensors, models.len(), *threads, observer)?;
    let subspaces = subspaces.filter(|_| models.len() > 1);
    let subspaces = subspaces
        .map(|rank| Subspaces::measure(&tensors, rank, *threads, observer))
        .transpose()?;
    run::check_unchanged(models.iter().chain([*base]))?;
    let labels: Vec<&str> = models.iter().map(Checkpoint::label).collect();
    let mut total = Sums::new(models.len());
    measured.iter().for_each(|sums| total.add(sums));
    let mut report = Report::new(Command::Analyse, labels.join(", "));
    let elements: u64 = tensors.iter().map(|tensor| tensor.elements).sum();
    report.say("base", base.label());
    report.say(
        "tensors",
        format!("{} in all models, {elements} elements", tensors.len()),
    );
    let left_out = base.tensors().len() - tensors.len();
    if left_out > 0 {
        report.say(
            "left out",
            format!(
                "{left_out} that a model lacks, or has in another shape, or that are no floats"
            ),
        );
    }
    if total.non_finite > 0 {
        report.say(
            "left out",
            format!(
                "{} elements that are NaN or infinite somewhere",
                total.non_finite
            ),
        );
    }
    if let Some(mean) = total.mean_cosine(models.len()) {
        report.say("mean cosine", format!("{mean:.3}"));
    }
    report.tables.push(sizes(&labels, &total, elements));
    if models.len() > 1 {
        report
            .tables
            .push(matrix("cosine of task vectors", &labels, |a, b| {
                total.cosine(a, b).map(|cosine| format!("{cosine:.3}"))
            }));
        report.tables.push(matrix(
            "sign conflicts: elements that both change, in opposite directions",
            &labels,
            |a, b| {
                total
                    .conflict(a, b)
                    .map(|share| format!("{:.1} %", 100.0 * share))
            },
        ));
    }
    let stacks = layer_stacks(tensors.iter().map(|tensor| tensor.name));
    let index = StackIndex::new(&stacks);
    let overlaps = subspaces
        .as_ref()
        .map(|one| one.report(&labels, &tensors, &index));
    let roles = by_role(&tensors, &measured, &stacks, models.len());
    report.tables.push(energy(&labels, &roles, &total));
    if let (Some(subspaces), Some((tables, _))) = (&subspaces, &overlaps) {
        report.tables.extend(tables.iter().cloned());
        if subspaces.left_out > 0 {
            let why = format!("{} matrices without singular values", subspaces.left_out);
            report.say("subspaces left out", why);
        }
    }
    for stack in &stacks {
        let values = || tensors.iter().zip(&measured);
        let size = values().map(|(tensor, sums)| (tensor.name, relative(sums, models.len())));
        report.heat_maps.extend(HeatMap::new(
            "Size of the task vectors",
            "over the base, mean of the models",
            stack,
            size,
        ));
        if models.len() > 1 {
            let cosine =
                values().map(|(tensor, sums)| (tensor.name, sums.mean_cosine(models.len())));
            report.heat_maps.extend(HeatMap::new(
                "Cosine of the task vectors",
                "mean over pairs",
                stack,
                cosine,
            ));
        }
        if let Some(subspaces) = &subspaces {
            let overlaps = tensors.iter().zip(subspaces.by_tensor());
            report.heat_maps.extend(HeatMap::new(
                "Subspace overlap of the task vectors",
                "mean over pairs and both sides",
                stack,
                overlaps.map(|(tensor, overlap)| (tensor.name, overlap)),
            ));
        }
    }
    report.details = details(base, &labels, &total, &roles);
    if let Some((_, numbers)) = overlaps {
        report.details["subspaces"] = numbers;
    }
    Ok(report)
}

/// The tensors of floats that all models have in the shape of the base.
fn tensors<'a>(models: &'a [Checkpoint], base: &'a Checkpoint) -> Vec<Tensor<'a>> {
    let tensor = |(at, entry): (usize, &'a checkpoint::TensorEntry)| {
        let mut found = Tensor {
            name: &entry.name,
            elements: entry.elements(),
            base: base.elements(at)?,
            models: Vec::new(),
            places: vec![(base, at)],
        };
        for model in models {
            let at = model.find(&entry.name)?;
            if model.tensors()[at].shape != entry.shape {
                return None;
            }
            found.models.push(model.elements(at)?);
            found.places.push((model, at));
        }
        Some(found)
    };
    base.tensors()
        .iter()
        .enumerate()
        .filter_map(tensor)
        .collect()
}

fn measure(
    tensors: &[Tensor<'_>],
    models: usize,
    threads: usize,
    observer: &dyn Observer,
) -> Result<Vec<Sums>, RunError> {
    let lengths = tensors.iter().map(|tensor| tensor.elements);
    let pieces = pieces(lengths, PIECE_BLOCKS * BLOCK as u64);
    let look = |lanes: &mut Vec<Vec<f64>>, Piece { of, range }: &Piece| {
        let tensor = &tensors[*of];
        lanes.resize(models + 1, Vec::new());
        let mut sums = Sums::new(models);
        let mut at = range.start;
        while at < range.end {
            let length = (range.end - at).min(BLOCK as u64) as usize;
            block(tensor, at, length, lanes, &mut sums).map_err(EngineError::from)?;
            at += length as u64;
        }
        for (model, index) in &tensor.places {
            let entry = &model.tensors()[*index];
            let size = entry.len / entry.elements().max(1);
            model.release(*index, range.start * size..range.end * size, Reclaim::Map);
            observer.advance((range.end - range.start) * size);
        }
        Ok::<_, RunError>(sums)
    };
    let parts = scan(&pieces, threads, &|| observer.cancelled(), look)?;
    let mut measured = vec![Sums::new(models); tensors.len()];
    for (piece, part) in pieces.iter().zip(&parts) {
        measured[piece.of].add(part);
    }
    Ok(measured)
}

/// Adds a block; `lanes` are buffers for the base and each model.
fn block(
    tensor: &Tensor<'_>,
    first: u64,
    length: usize,
    lanes: &mut [Vec<f64>],
    sums: &mut Sums,
) -> Result<(), NoMemory> {
    let sources = std::iter::once(&tensor.base).chain(&tensor.models);
    for (lane, source) in lanes.iter_mut().zip(sources) {
        resize(lane, length, 0.0)?;
        <f64 as Real>::fill(source.as_ref(), first, lane)?;
    }
    if lanes
        .iter()
        .any(|lane| !lane.iter().sum::<f64>().is_finite())
    {
        for index in 0..length {
            if lanes.iter().any(|lane| !lane[index].is_finite()) {
                lanes.iter_mut().for_each(|lane| lane[index] = 0.0);
                sums.non_finite += 1;
            }
        }
    }
    let Some((base, models)) = lanes.split_first_mut() else {
        return Ok(());
    };
    sums.base += base.iter().map(|value| value * value).sum::<f64>();
    for lane in models.iter_mut() {
        lane.iter_mut()
            .zip(&*base)
            .for_each(|(value, base)| *value -= base);
    }
    for (a, first) in models.iter().enumerate() {
        for (b, second) in models.iter().enumerate().skip(a) {
            let at = sums.at(a, b);
            let (mut product, mut both, mut opposite) = (0.0, 0_u64, 0_u64);
            for (x, y) in first.iter().zip(second) {
                product += x * y;
                let change = (*x != 0.0) & (*y != 0.0);
                both += u64::from(change);
                opposite += u64::from(change & ((*x > 0.0) != (*y > 0.0)));
            }
            sums.products[at] += product;
            sums.both[at] += both;
            sums.opposite[at] += opposite;
        }
    }
    Ok(())
}

/// Sums by role, in the order of the tensors; a tensor in no layer is a role by itself.
fn by_role<'t>(
    tensors: &'t [Tensor<'_>],
    measured: &[Sums],
    stacks: &'t [LayerStack],
    models: usize,
) -> Vec<(&'t str, Sums)> {
    let index = StackIndex::new(stacks);
    let mut roles: Vec<(&str, Sums)> = Vec::new();
    let mut places: BTreeMap<&str, usize> = BTreeMap::new();
    for (tensor, sums) in tensors.iter().zip(measured) {
        let role = index
            .split(tensor.name)
            .map_or(tensor.name, |(_, _, role)| role);
        let at = *places.entry(role).or_insert_with(|| {
            roles.push((role, Sums::new(models)));
            roles.len() - 1
        });
        roles[at].1.add(sums);
    }
    roles
}

/// The mean over the models of the length of the task vector over that of the base.
fn relative(sums: &Sums, models: usize) -> Option<f64> {
    let base = sums.base.sqrt();
    let sum: f64 = (0..models).map(|model| sums.norm(model)).sum();
    (base > 0.0).then(|| sum / base / models as f64)
}

fn sizes(labels: &[&str], total: &Sums, elements: u64) -> Table {
    let row = |(model, label): (usize, &&str)| {
        let at = total.at(model, model);
        let share =
            |part: f64, whole: f64| format!("{:.2} %", 100.0 * part / whole.max(f64::MIN_POSITIVE));
        vec![
            (*label).to_owned(),
            format!("{:.4}", total.norm(model)),
            share(total.norm(model), total.base.sqrt()),
            share(total.both[at] as f64, elements as f64),
        ]
    };
    Table {
        title: "size of each task vector".into(),
        columns: ["model", "length", "over the base", "elements changed"]
            .map(str::to_owned)
            .to_vec(),
        rows: labels.iter().enumerate().map(row).collect(),
    }
}

fn matrix(title: &str, labels: &[&str], cell: impl Fn(usize, usize) -> Option<String>) -> Table {
    let row = |(a, label): (usize, &&str)| {
        let cells = (0..labels.len()).map(|b| match a == b {
            true => String::new(),
            false => cell(a, b).unwrap_or_else(|| "-".to_owned()),
        });
        std::iter::once((*label).to_owned()).chain(cells).collect()
    };
    Table {
        title: title.to_owned(),
        columns: std::iter::once("model")
            .chain(labels.iter().copied())
            .map(str::to_owned)
            .collect(),
        rows: labels.iter().enumerate().map(row).collect(),
    }
}

/// The share of each role in a task vector's square length, the largest first.
fn energy(labels: &[&str], roles: &[(&str, Sums)], total: &Sums) -> Table {
    let mut sorted: Vec<&(&str, Sums)> = roles.iter().collect();
    let all = |sums: &Sums| {
        (0..labels.len())
            .map(|model| sums.norm(model) * sums.norm(model))
            .sum::<f64>()
    };
    sorted.sort_by(|(_, a), (_, b)| all(b).total_cmp(&all(a)));
    let row = |(role, sums): &&(&str, Sums)| {
        let share = |model| {
            let whole = total.norm(model) * total.norm(model);
            format!(
                "{:.1} %",
                100.0 * sums.norm(model) * sums.norm(model) / whole.max(f64::MIN_POSITIVE)
            )
        };
        std::iter::once((*role).to_owned())
            .chain((0..labels.len()).map(share))
            .collect()
    };
    Table {
        title: "energy by role: the share of each task vector's square length".into(),
        columns: std::iter::once("role")
            .chain(labels.iter().copied())
            .map(str::to_owned)
            .collect(),
        rows: sorted.iter().take(SHOWN).map(row).collect(),
    }
}

fn details(base: &Checkpoint, labels: &[&str], total: &Sums, roles: &[(&str, Sums)]) -> Value {
    let models = labels.len();
    let square = |of: &dyn Fn(usize, usize) -> Option<f64>| -> Vec<Vec<Option<f64>>> {
        (0..models)
            .map(|a| (0..models).map(|b| of(a, b)).collect())
            .collect()
    };
    let numbers = |sums: &Sums| {
        json!({
            "lengths": (0..models).map(|model| sums.norm(model)).collect::<Vec<f64>>(),
            "base_length": sums.base.sqrt(),
            "cosines": square(&|a, b| sums.cosine(a, b)),
            "sign_conflicts": square(&|a, b| sums.conflict(a, b)),
        })
    };
    let role = |(role, sums): &(&str, Sums)| {
        let mut value = numbers(sums);
        value["role"] = (*role).into();
        value
    };
    let mut value = numbers(total);
    value["base"] = base.label().into();
    value["models"] = labels.into();
    value["roles"] = roles.iter().map(role).collect();
    value
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;

    use checkpoint::{Dtype, InMemory, Location, SidecarsFrom};

    use super::*;

    pub(super) struct Silent;

    impl Observer for Silent {
        fn advance(&self, _bytes: u64) {}

        fn cancelled(&self) -> bool {
            false
        }
    }

    fn model(name: &str, tensors: &[(&str, &[f32])]) -> Checkpoint {
        let tensors = tensors.iter().map(|(name, values)| {
            let bytes: Vec<u8> = values
                .iter()
                .flat_map(|value| value.to_le_bytes())
                .collect();
            (
                (*name).to_owned(),
                Dtype::F32,
                vec![values.len()],
                Box::new(bytes) as checkpoint::Bytes,
            )
        });
        let source = InMemory::new(tensors).unwrap();
        Checkpoint::new(
            name,
            Location::local(name),
            None,
            SidecarsFrom::Nothing,
            Arc::new(source),
        )
    }

    /// A model with a single matrix.
    pub(super) fn matrix_model(
        name: &str,
        tensor: &str,
        shape: [usize; 2],
        values: &[f32],
    ) -> Checkpoint {
        let bytes: Vec<u8> = values
            .iter()
            .flat_map(|value| value.to_le_bytes())
            .collect();
        let bytes = Box::new(bytes) as checkpoint::Bytes;
        let tensors = [(tensor.to_owned(), Dtype::F32, shape.to_vec(), bytes)];
        let source = InMemory::new(tensors).unwrap();
        let location = Location::local(name);
        Checkpoint::new(
            name,
            location,
            None,
            SidecarsFrom::Nothing,
            Arc::new(source),
        )
    }

    /// Task vectors (1, 1, 0), (1, -1, 0) and (2, 2, 0), by hand; what is NaN somewhere does not count, and a tensor that
    /// one lacks neither.
    #[test]
    fn task_vectors_are_compared_pair_by_pair() {
        let base = model("base", &[("w", &[1.0, 2.0, 3.0, 4.0]), ("x", &[1.0])]);
        let models = [
            model("a", &[("w", &[2.0, 3.0, 3.0, 5.0]), ("x", &[2.0])]),
            model("b", &[("w", &[2.0, 1.0, 3.0, f32::NAN])]),
            model("c", &[("w", &[3.0, 4.0, 3.0, 5.0]), ("x", &[1.0])]),
        ];
        let request = Request {
            models: &models,
            base: &base,
            threads: 2,
            subspaces: None,
        };
        let report = analyse(&request, &Silent).unwrap();
        let details = &report.details;
        let at = |key: &str, a: usize, b: usize| details[key][a][b].as_f64().unwrap();
        assert!(at("cosines", 0, 1).abs() < 1e-12);
        assert!((at("cosines", 2, 0) - 1.0).abs() < 1e-12);
        assert_eq!(at("sign_conflicts", 0, 1), 0.5);
        assert_eq!(at("sign_conflicts", 1, 0), 0.5);
        assert_eq!(at("sign_conflicts", 0, 2), 0.0);
        assert_eq!(details["lengths"][0].as_f64(), Some(2f64.sqrt()));
        assert_eq!(details["lengths"][2].as_f64(), Some(8f64.sqrt()));
        let said: Vec<&str> = report
            .summary
            .iter()
            .map(|(_, value)| value.as_str())
            .collect();
        assert!(
            said.contains(&"1 that a model lacks, or has in another shape, or that are no floats"),
            "{said:?}"
        );
        assert!(
            said.contains(&"1 elements that are NaN or infinite somewhere"),
            "{said:?}"
        );
        let none = Request {
            models: &[model("same", &[("w", &[1.0, 2.0, 3.0, 4.0])])],
            base: &base,
            threads: 1,
            subspaces: None,
        };
        assert_eq!(analyse(&none, &Silent).unwrap().tables.len(), 2);
    }
}
