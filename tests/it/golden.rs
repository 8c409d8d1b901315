//! Held to mergekit 0.1.5: small merges that it made in float32, committed with their inputs.
//!
//! `tests/peer/` makes them and runs the full matrix. The bounds are those of the project: F32 within 4e-6 of
//! the tensor's largest value; 16 bits equal in 99 % of elements and never more than one step off. Which of
//! several equal magnitudes at a TIES threshold stay is undefined in mergekit, so those elements are left out.

use std::collections::BTreeMap;
use std::fs;
use std::path::{Path, PathBuf};

use safetensors::Dtype;
use weldment::checkpoint::Locator;
use weldment::engine::{Budget, Settings};
use weldment::plan::{Options, Plan, PlannedTensor, plan};
use weldment::recipe;

use crate::fixtures::{Bench, Loaded, load};

fn golden() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/peer/golden")
}

fn planned(recipe_path: &Path) -> Plan {
    let recipe = recipe::read(recipe_path).unwrap();
    let locator = Locator {
        working_dir: golden(),
        recipe_dir: recipe_path.parent().map(Path::to_owned),
        hub_cache: None,
        ..Locator::default()
    };
    let settings = Settings {
        threads: 1,
        memory: Budget::Limit(256 << 20),
        allow_non_finite: false,
        saturate: false,
    };
    let options = Options {
        settings,
        seed: 0,
        shard_size: 1 << 40,
        tokenizer_from: None,
    };
    plan(&recipe, "recipe.yml", &locator, &options).unwrap()
}

/// A source tensor in f32, as mergekit's float32 path has it.
fn source(plan: &Plan, tensor: &PlannedTensor, source: usize) -> Vec<f32> {
    let place = tensor.sources[source];
    let model = &plan.models[place.model];
    let mut values = vec![0f32; tensor.elements() as usize];
    let elements = model.elements(place.tensor).unwrap();
    elements.fill(0, &mut values).unwrap();
    values
}

/// The elements whose magnitude in some task vector equals the threshold, where not all such elements stay.
fn undecided(plan: &Plan, tensor: &PlannedTensor) -> Vec<bool> {
    let mut undecided = vec![false; tensor.elements() as usize];
    let Some(base) = tensor.base.filter(|_| plan.method.name == "ties") else {
        return undecided;
    };
    let base_values = source(plan, tensor, base);
    for index in (0..tensor.sources.len()).filter(|&index| index != base) {
        let density = tensor.params.source_number(index, "density");
        if density >= 1.0 {
            continue;
        }
        let values = source(plan, tensor, index);
        let magnitudes: Vec<f32> = values
            .iter()
            .zip(&base_values)
            .map(|(x, base)| (x - base).abs())
            .collect();
        let mut sorted = magnitudes.clone();
        sorted.sort_by(|a, b| b.total_cmp(a));
        let k = ((density * sorted.len() as f64) as usize).max(1);
        let threshold = sorted[k - 1];
        // Whether a difference of zero stays makes no difference.
        if threshold > 0.0 && sorted.get(k) == Some(&threshold) {
            for (flag, magnitude) in undecided.iter_mut().zip(&magnitudes) {
                *flag |= *magnitude == threshold;
            }
        }
    }
    undecided
}

/// How many values of a 16-bit dtype lie from one to the other.
fn steps(dtype: Dtype, a: f64, b: f64) -> i32 {
    let place = |value: f64| {
        let bits = match dtype {
            Dtype::F16 => half::f16::from_f64(value).to_bits(),
            _ => half::bf16::from_f64(value).to_bits(),
        };
        let magnitude = i32::from(bits & 0x7fff);
        if bits >> 15 == 1 {
            -magnitude
        } else {
            magnitude
        }
    };
    (place(a) - place(b)).abs()
}

fn compare(case: &str, name: &str, ours: &Loaded, theirs: &Loaded, undecided: &[bool]) {
    assert_eq!(
        (ours.dtype, &ours.shape),
        (theirs.dtype, &theirs.shape),
        "{case}: {name}"
    );
    let pairs: Vec<(f64, f64)> = ours
        .values()
        .into_iter()
        .zip(theirs.values())
        .zip(undecided)
        .filter(|(_, undecided)| !**undecided)
        .map(|(pair, _)| pair)
        .collect();
    if theirs.dtype == Dtype::F32 {
        let largest = pairs.iter().fold(0f64, |most, (_, b)| most.max(b.abs()));
        for (a, b) in pairs {
            assert!(
                (a - b).abs() <= 4e-6 * largest,
                "{case}: {name}: {a} and {b}"
            );
        }
        return;
    }
    let odd = pairs.iter().filter(|(a, b)| a != b).count();
    assert!(
        odd <= pairs.len().div_ceil(100),
        "{case}: {name}: {odd} of {} differ",
        pairs.len()
    );
    for (a, b) in pairs {
        assert!(
            steps(theirs.dtype, a, b) <= 1,
            "{case}: {name}: {a} and {b}"
        );
    }
}

#[test]
fn merges_agree_with_mergekit() {
    let mut cases = 0;
    for entry in fs::read_dir(golden()).unwrap() {
        let folder = entry.unwrap().path();
        let recipe = folder.join("recipe.yml");
        if !recipe.exists() {
            continue;
        }
        cases += 1;
        let case = folder.file_name().unwrap().to_string_lossy().into_owned();
        let bench = Bench::new();
        let outcome = bench.weld(&["merge", "-q", recipe.to_str().unwrap(), "out"]);
        assert_eq!(outcome.code, Some(0), "{case}: {}", outcome.stderr);
        let ours: BTreeMap<String, Loaded> = load(&bench.path("out")).into_iter().collect();
        let theirs: BTreeMap<String, Loaded> = load(&folder.join("expected.safetensors"))
            .into_iter()
            .collect();
        assert!(ours.keys().eq(theirs.keys()), "{case}: names differ");
        let plan = planned(&recipe);
        let (mut left_out, mut elements) = (0, 0);
        for tensor in &plan.tensors {
            let name = &tensor.name;
            let undecided = undecided(&plan, tensor);
            compare(&case, name, &ours[name], &theirs[name], &undecided);
            left_out += undecided.iter().filter(|flag| **flag).count();
            elements += undecided.len();
        }
        // A test that leaves out much would not test much.
        assert!(
            left_out * 10 <= elements,
            "{case}: {left_out} of {elements} elements left out"
        );
    }
    assert!(cases >= 45, "only {cases} golden cases found");
}
