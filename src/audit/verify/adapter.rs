//! Compares a LoRA adapter with what its recipe makes of the inputs. It was made again in memory, as its tensors are
//! known only then.

use std::collections::{BTreeMap, BTreeSet};

use numeric::FloatType;
use safetensors::SafeTensors;
use safetensors::tensor::TensorView;
use serde_json::{Value, json};

use super::folder::{FolderListing, judge_files};
use super::inputs::{self, Inputs};
use super::{FEW, MATRIX_BOUND, Proof, Verification, checks, locked, no_lock};
use crate::{CheckInfo, Command, Finding, Place, Report, Severity, Skipped, Verdict};
use checkpoint::{Checkpoint, TensorEntry, parse_json};
use engine::Observer;
use errors::{Refusal, in_one_line};
use run::{Lock, RunError};

/// The file of an adapter's weights.
pub const ADAPTER_WEIGHTS: &str = "adapter_model.safetensors";
/// The file of its config.
pub(super) const ADAPTER_CONFIG: &str = "adapter_config.json";
/// The field of the config that says where its maker's base was.
const BASE: &str = "base_model_name_or_path";

/// The inputs of a verification of an adapter.
pub struct AdapterRequest<'a> {
    /// What the report calls it.
    pub label: &'a str,
    /// Its folder, looked at before its weights were opened.
    pub folder: &'a FolderListing,
    /// Its weights.
    pub weights: &'a Checkpoint,
    /// Its lock, if it has one.
    pub lock: Option<&'a Lock>,
    /// The recipe's text as a lock has it, if it is not the lock's own.
    pub recipe: Option<String>,
    /// The models that were read, the base first.
    pub models: &'a [&'a Checkpoint],
    /// Where they were looked for.
    pub inputs: &'a Inputs,
    /// The files that the recipe makes, by name, or why it makes none.
    pub remade: Result<BTreeMap<String, Vec<u8>>, Refusal>,
    /// Whether last bits may differ.
    pub allow_step: bool,
    /// Number of worker threads.
    pub threads: usize,
}

/// How a tensor, or the two of a module, compare with those that were made again.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Found {
    Exact,
    WithinBound,
    Wrong,
}

/// Verifies an adapter.
///
/// # Errors
/// The work was cancelled, or the machine failed. Anything wrong with the adapter or its inputs is a finding.
pub fn verify_adapter(
    request: &AdapterRequest<'_>,
    observer: &dyn Observer,
) -> Result<Verification, RunError> {
    let mut report = Report::new(Command::Verify, request.label);
    report.checked = super::CHECKS.to_vec();
    report.extend(no_lock(request.lock));
    let intact = match request.lock {
        Some(lock) => locked::adapter(request, lock, &mut report, observer)?,
        None => false,
    };
    report.extend(inputs::own(request.models, request.weights));
    judge_files(request, ADAPTER_WEIGHTS, &mut report);
    let mut exact = false;
    match &request.remade {
        Ok(files) => exact = compare(request, files, intact, &mut report),
        Err(why) => report.skipped.push(Skipped {
            check: &checks::REPLAY,
            why: in_one_line(why),
            needed: true,
        }),
    }
    let base = request.models.first().map(|model| model.label());
    request.inputs.report(request.models, base, &mut report);
    report.extend(request.folder.changed(request.weights));
    let proof = match request.lock {
        None => Proof::NoLock,
        Some(_) if exact && report.verdict() == Verdict::Passed => Proof::Exact,
        Some(_) => Proof::Open,
    };
    Ok(Verification { report, proof })
}

/// Compares the config and every tensor; returns whether all are equal.
fn compare(
    request: &AdapterRequest<'_>,
    files: &BTreeMap<String, Vec<u8>>,
    intact: bool,
    report: &mut Report,
) -> bool {
    let expected = files.get(ADAPTER_CONFIG).map_or(&[][..], Vec::as_slice);
    report.extend(config(request.folder, expected));
    let weights = files.get(ADAPTER_WEIGHTS).map_or(&[][..], Vec::as_slice);
    // They were written by this process a moment ago.
    let Ok(expected) = SafeTensors::deserialize(weights) else {
        return false;
    };
    report.extend(accounting(&expected, request.weights));
    let mut counts: BTreeMap<&str, usize> = BTreeMap::new();
    let mut details = Vec::new();
    let mut exact = true;
    for module in modules(&expected) {
        let found = found(&module, &expected, request.weights);
        let Some((found, apart)) = found else {
            exact = false;
            continue;
        };
        exact &= found == Found::Exact;
        let outcome = match found {
            Found::Exact => "exact",
            Found::WithinBound => "within a step",
            Found::Wrong => "wrong",
        };
        *counts.entry(outcome).or_default() += 1;
        details.push(json!({"name": module.name, "outcome": outcome, "apart": apart}));
        report.extend(finding(request, &module, found, apart, intact));
    }
    let said = counts
        .iter()
        .map(|(outcome, count)| format!("{count} {outcome}"));
    report.say("modules", said.collect::<Vec<String>>().join(", "));
    report.detail(details.into_iter());
    if !exact {
        report.extend(request.lock.and_then(locked::other_arithmetic));
    }
    exact
}

/// A module's two factors, or a tensor that is saved whole.
struct Module<'t> {
    name: &'t str,
    tensors: Vec<String>,
}

/// The modules of an adapter. Factors are compared together: only their product says what the adapter does.
fn modules<'t>(expected: &'t SafeTensors<'_>) -> Vec<Module<'t>> {
    let mut names: Vec<&str> = expected.names();
    names.sort_unstable();
    let all: BTreeSet<&str> = names.iter().copied().collect();
    let module = |name: &'t str| {
        if let Some(module) = name.strip_suffix(".lora_A.weight") {
            let other = format!("{module}.lora_B.weight");
            return Some(Module {
                name: module,
                tensors: vec![name.to_owned(), other],
            });
        }
        let pair = name.strip_suffix(".lora_B.weight");
        let is_second =
            pair.is_some_and(|module| all.contains(format!("{module}.lora_A.weight").as_str()));
        (!is_second).then(|| Module {
            name,
            tensors: vec![name.to_owned()],
        })
    };
    names.into_iter().filter_map(module).collect()
}

/// How a module compares, and how far its values are apart as a share of the largest. `None` if a tensor is missing, or
/// has another shape or dtype, which was found before.
fn found(
    module: &Module<'_>,
    expected: &SafeTensors<'_>,
    weights: &Checkpoint,
) -> Option<(Found, f64)> {
    let mut pairs: Vec<(TensorView<'_>, &[u8])> = Vec::new();
    for name in &module.tensors {
        let view = expected.tensor(name).ok()?;
        let at = weights.find(name)?;
        let entry = &weights.tensors()[at];
        if entry.shape != view.shape() || entry.dtype != view.dtype() {
            return None;
        }
        pairs.push((view, weights.bytes(at)?));
    }
    if pairs.iter().all(|(view, bytes)| view.data() == *bytes) {
        return Some((Found::Exact, 0.0));
    }
    let [(a, found_a), (b, found_b)] = pairs.as_slice() else {
        // It is a copy, which depends on no arithmetic.
        return Some((Found::Wrong, f64::INFINITY));
    };
    let format = FloatType::from_dtype(a.dtype())?;
    let factors = [(a, a.data()), (b, b.data()), (a, found_a), (b, found_b)];
    let values = factors.map(|(view, bytes)| Factor::read(format, bytes, view.shape()));
    let [a, b, found_a, found_b] = &values;
    let apart = apart((b, a), (found_b, found_a));
    let is_step = |(view, bytes): &(TensorView<'_>, &[u8])| {
        let elements = view.data().chunks_exact(format.size());
        let mut pairs = elements.zip(bytes.chunks_exact(format.size()));
        pairs.all(|(expected, found)| format.ulps_between(expected, found) <= 1)
    };
    let outcome = match apart <= MATRIX_BOUND || pairs.iter().all(is_step) {
        true => Found::WithinBound,
        false => Found::Wrong,
    };
    Some((outcome, apart))
}

/// A factor, row by row.
struct Factor {
    columns: usize,
    values: Vec<f64>,
}

impl Factor {
    fn read(format: FloatType, bytes: &[u8], shape: &[usize]) -> Self {
        let mut values = vec![0.0; bytes.len() / format.size()];
        format.decode(bytes, &mut values);
        Self {
            columns: shape.last().copied().unwrap_or(1).max(1),
            values,
        }
    }

    fn rows(&self) -> impl Iterator<Item = &[f64]> {
        self.values.chunks_exact(self.columns)
    }
}

/// How far two products of factors are apart: the largest difference of two elements, as a share of the largest
/// expected one. NaN counts as infinitely far.
fn apart(expected: (&Factor, &Factor), found: (&Factor, &Factor)) -> f64 {
    let width = expected.1.columns;
    let (mut row, mut other) = (vec![0.0; width], vec![0.0; width]);
    let (mut most, mut largest) = (0.0f64, 0.0f64);
    for (b, found_b) in expected.0.rows().zip(found.0.rows()) {
        product_row(b, expected.1, &mut row);
        product_row(found_b, found.1, &mut other);
        for (expected, found) in row.iter().zip(&other) {
            let apart = (expected - found).abs();
            most = most.max(if apart.is_nan() { f64::INFINITY } else { apart });
            largest = largest.max(expected.abs());
        }
    }
    match most == 0.0 {
        true => 0.0,
        false => most / largest,
    }
}

/// A row of `b a`.
fn product_row(b: &[f64], a: &Factor, row: &mut [f64]) {
    row.fill(0.0);
    for (factor, values) in b.iter().zip(a.rows()) {
        for (sum, value) in row.iter_mut().zip(values) {
            *sum += factor * value;
        }
    }
}

fn finding(
    request: &AdapterRequest<'_>,
    module: &Module<'_>,
    found: Found,
    apart: f64,
    intact: bool,
) -> Option<Finding> {
    let entry = |name: &String| {
        request
            .weights
            .find(name)
            .map(|at| &request.weights.tensors()[at])
    };
    let place = module.tensors.first().and_then(entry);
    let place = place.map_or_else(
        || Place::tensor(module.name, None),
        |entry: &TensorEntry| Place::entry(request.weights, entry),
    );
    let how_much = format!("up to {apart:.1e} of the largest element of the product apart");
    let expected = "equal values";
    match found {
        Found::Exact => None,
        Found::WithinBound if intact || request.lock.is_none() => {
            let mut finding = Finding::new(&checks::ROUNDING, place, expected, how_much);
            if request.allow_step {
                finding.severity = Severity::Note;
            }
            Some(finding)
        }
        // What was changed later is not the work of another processor, however little it is.
        Found::WithinBound => Some(Finding::new(&checks::TAMPERED, place, expected, how_much)),
        Found::Wrong => {
            let check: &'static CheckInfo = match apart < FEW {
                true => &checks::TAMPERED,
                false => &checks::DIFFERS,
            };
            Some(Finding::new(check, place, expected, how_much))
        }
    }
}

/// Checks that the adapter has every tensor of the recipe, with the right dtype and shape, and no other.
fn accounting(expected: &SafeTensors<'_>, weights: &Checkpoint) -> Vec<Finding> {
    let mut findings = Vec::new();
    let mut names: Vec<&str> = expected.names();
    names.sort_unstable();
    for name in &names {
        let Ok(tensor) = expected.tensor(name) else {
            continue;
        };
        let wanted = format!("{:?} {:?}", tensor.dtype(), tensor.shape());
        let Some(at) = weights.find(name) else {
            let place = Place::tensor(*name, None);
            findings.push(Finding::new(&checks::MISSING, place, wanted, "none"));
            continue;
        };
        let found = &weights.tensors()[at];
        let check = if found.shape != tensor.shape() {
            &checks::SHAPE
        } else if found.dtype != tensor.dtype() {
            &checks::DTYPE
        } else {
            continue;
        };
        let there = format!("{:?} {:?}", found.dtype, found.shape);
        let place = Place::entry(weights, found);
        findings.push(Finding::new(check, place, wanted, there));
    }
    let made: BTreeSet<&str> = names.into_iter().collect();
    let others = weights.tensors().iter();
    let others = others.filter(|found| !made.contains(found.name.as_str()));
    findings.extend(others.map(|found| {
        let there = format!("{:?} {:?}", found.dtype, found.shape);
        let place = Place::entry(weights, found);
        Finding::new(&checks::UNACCOUNTED, place, "no such tensor", there)
    }));
    findings
}

/// Compares the config. Where the base lay on its maker's machine cannot be known.
fn config(folder: &FolderListing, expected: &[u8]) -> Vec<Finding> {
    let differs = |field: &str, expected: String, found: String| {
        let place = Place::field(ADAPTER_CONFIG, field);
        vec![Finding::new(&checks::CONFIG, place, expected, found)]
    };
    let found = match folder.read(ADAPTER_CONFIG) {
        Some(Ok(bytes)) => parse_json(&bytes).ok(),
        _ => None,
    };
    let Some(Value::Object(mut found)) = found else {
        return differs("", "a config".to_owned(), "none".to_owned());
    };
    let Ok(Value::Object(mut expected)) = serde_json::from_slice(expected) else {
        return Vec::new();
    };
    let is_path = |value: &Value| value.as_str().is_some_and(|text| text.starts_with('/'));
    if found.get(BASE).is_some_and(is_path) {
        found.remove(BASE);
        expected.remove(BASE);
    }
    let keys: BTreeSet<&String> = found.keys().chain(expected.keys()).collect();
    let other = |key: &&&String| found.get(key.as_str()) != expected.get(key.as_str());
    let shown = |value: Option<&Value>| value.map_or("none".to_owned(), Value::to_string);
    keys.iter()
        .filter(other)
        .flat_map(|key| {
            let [expected, found] = [expected.get(key.as_str()), found.get(key.as_str())];
            differs(key, shown(expected), shown(found))
        })
        .collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn factor(columns: usize, values: &[f64]) -> Factor {
        Factor {
            columns,
            values: values.to_vec(),
        }
    }

    #[test]
    fn only_the_product_counts() {
        let (b, a) = (
            factor(2, &[1.0, 2.0, 3.0, 4.0]),
            factor(2, &[0.5, -1.0, 2.0, 0.25]),
        );
        // Other signs, another order, another basis.
        for (other_b, other_a) in [
            (
                factor(2, &[-1.0, 2.0, -3.0, 4.0]),
                factor(2, &[-0.5, 1.0, 2.0, 0.25]),
            ),
            (
                factor(2, &[2.0, 1.0, 4.0, 3.0]),
                factor(2, &[2.0, 0.25, 0.5, -1.0]),
            ),
            (
                factor(2, &[3.0, 2.0, 7.0, 4.0]),
                factor(2, &[0.5, -1.0, 1.5, 1.25]),
            ),
        ] {
            assert_eq!(apart((&b, &a), (&other_b, &other_a)), 0.0);
        }
        // The product is [[4.5, -0.5], [9.5, -2]]; one element of it is off by 0.19.
        let off = factor(2, &[0.5, -1.0, 2.0, 0.25]);
        let moved = factor(2, &[1.38, 2.0, 3.0, 4.0]);
        let found = apart((&b, &a), (&moved, &off));
        assert!((found - 0.38 / 9.5).abs() < 1e-12, "{found}");
        let broken = factor(2, &[f64::NAN, 2.0, 3.0, 4.0]);
        assert_eq!(apart((&b, &a), (&broken, &a)), f64::INFINITY);
    }
}
