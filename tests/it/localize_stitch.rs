//! `localize_stitch`, whose threshold is one of the whole model, and `lines`, whose factor is one of the layer.

use std::collections::BTreeMap;

use safetensors::Dtype;
use serde_json::json;

use crate::fixtures::{Bench, by_name, config_with, floats, load, noise};

const LAYERS: usize = 3;
const NAMES: [&str; 2] = ["self_attn.q_proj.weight", "mlp.up_proj.weight"];

/// A base and three fine-tunes, whose updates are of another size in each tensor.
fn family(dtype: Dtype) -> Bench {
    let bench = Bench::new();
    for (name, seed) in [("base", 1), ("a", 2), ("b", 3), ("c", 4)] {
        let tensor = |name: &str, at: u64, shape: &[usize]| {
            let count = shape.iter().product();
            let base: Vec<f64> = noise(90 + at, count).collect();
            let size = if seed == 1 {
                0.0
            } else {
                0.05 * (at + 1) as f64
            };
            let update = noise(100 * seed + at, count);
            let values = base
                .iter()
                .zip(update)
                .map(|(base, update)| base + size * update);
            floats(name, dtype, shape, values)
        };
        let mut tensors = vec![tensor("model.embed_tokens.weight", 0, &[40, 16])];
        for layer in 0..LAYERS {
            for (number, part) in NAMES.iter().enumerate() {
                let name = format!("model.layers.{layer}.{part}");
                let at = (1 + 2 * layer + number) as u64;
                tensors.push(tensor(&name, at, &[16 + 8 * number, 16]));
            }
        }
        bench.model(
            name,
            &config_with(LAYERS, json!({"tie_word_embeddings": true})),
            &tensors,
        );
    }
    bench
}

type Values = BTreeMap<String, Vec<f64>>;

fn values(bench: &Bench, model: &str) -> Values {
    let tensors = load(&bench.path(model)).into_iter();
    tensors
        .map(|(name, tensor)| (name, tensor.values()))
        .collect()
}

/// The least magnitude among the largest of a whole model's changes.
fn threshold(base: &Values, model: &Values, sparsity: f64) -> f64 {
    let pairs = base
        .iter()
        .flat_map(|(name, base)| base.iter().zip(&model[name]));
    let mut changes: Vec<f64> = pairs.map(|(base, model)| (model - base).abs()).collect();
    changes.sort_by(f64::total_cmp);
    let kept = (sparsity * changes.len() as f64) as usize;
    changes[changes.len() - kept.max(1)]
}

fn twin(base: &Values, models: &[(&Values, f64)], sparsity: f64) -> Values {
    let cuts: Vec<f64> = models
        .iter()
        .map(|(model, _)| threshold(base, model, sparsity))
        .collect();
    let of_tensor = |(name, values): (&String, &Vec<f64>)| {
        let element = |(at, base): (usize, &f64)| {
            let changes = models
                .iter()
                .zip(&cuts)
                .map(|((model, weight), cut)| (model[name][at] - base, weight, cut));
            let kept: Vec<f64> = changes
                .filter(|(change, _, cut)| change.abs() >= **cut && *change != 0.0)
                .map(|(change, weight, _)| weight * change)
                .collect();
            base + kept.iter().sum::<f64>() / kept.len().max(1) as f64
        };
        (
            name.clone(),
            values.iter().enumerate().map(element).collect(),
        )
    };
    base.iter().map(of_tensor).collect()
}

#[track_caller]
fn near(found: &Values, expected: &Values) {
    assert!(found.keys().eq(expected.keys()));
    for (name, found) in found {
        for (at, (found, expected)) in found.iter().zip(&expected[name]).enumerate() {
            let error = (found - expected).abs();
            assert!(error < 1e-6, "{name}[{at}]: {found}, not {expected}");
        }
    }
}

const RECIPE: &str = "merge_method: localize_stitch\nbase_model: base\nmodels: [{model: a}, {model: b, parameters: {weight: 0.8}}, {model: c}]\nout_dtype: float64\n";

#[test]
fn the_threshold_is_one_of_the_whole_model() {
    for dtype in [Dtype::F32, Dtype::BF16] {
        let bench = family(dtype);
        let [base, a, b, c] = ["base", "a", "b", "c"].map(|model| values(&bench, model));
        for sparsity in [0.003, 0.1, 0.6, 1.0] {
            let recipe = format!("{RECIPE}parameters: {{sparsity: {sparsity}}}\n");
            bench.merge(&recipe, &[]);
            let expected = twin(&base, &[(&a, 1.0), (&b, 0.8), (&c, 1.0)], sparsity);
            near(&values(&bench, "out"), &expected);
            // Small updates have no part in a small share of the whole, where a share of each tensor would have.
            let small = "model.embed_tokens.weight";
            if sparsity < 0.01 {
                assert_eq!(expected[small], base[small]);
            }
        }
        bench.passes(&["verify", "out"]);
        // What is kept of one model is kept as it is.
        bench.merge("merge_method: localize_stitch\nbase_model: base\nmodels: [{model: a}]\nparameters: {sparsity: 1}\n", &[]);
        assert_eq!(values(&bench, "out"), a);
    }
}

#[test]
fn a_sliced_model_has_a_threshold_for_each_model() {
    let bench = family(Dtype::F32);
    let [base, a, b] = ["base", "a", "b"].map(|model| values(&bench, model));
    // The first layer is of `a`, the others of `b`; the embeddings come with the first slice.
    let slice = |model: &str, from: usize, to: usize| {
        format!(
            "- sources:\n  - {{model: base, layer_range: [{from}, {to}]}}\n  - {{model: {model}, layer_range: [{from}, {to}]}}\n"
        )
    };
    let slices = slice("a", 0, 1) + &slice("b", 1, 3);
    let recipe = format!(
        "merge_method: localize_stitch\nbase_model: base\nout_dtype: float64\nparameters: {{sparsity: 0.2}}\nslices:\n{slices}"
    );
    bench.merge(&recipe, &[]);
    let is_first = |name: &str| name.contains("embed") || name.contains("layers.0.");
    let part = |values: &Values, first: bool| -> Values {
        let mine = values.iter().filter(|(name, _)| is_first(name) == first);
        mine.map(|(name, values)| (name.clone(), values.clone()))
            .collect()
    };
    let mut expected = Values::new();
    for (model, first) in [(&a, true), (&b, false)] {
        expected.extend(twin(
            &part(&base, first),
            &[(&part(model, first), 1.0)],
            0.2,
        ));
    }
    near(&values(&bench, "out"), &expected);
}

#[test]
fn results_of_other_documents_are_looked_at_and_its_own_is_read_by_them() {
    let bench = family(Dtype::F32);
    let [base, a, b] = ["base", "a", "b"].map(|model| values(&bench, model));
    let ties = "merge_method: ties\nbase_model: base\nmodels: [{model: a}, {model: b}]\nparameters: {weight: 1, density: 0.5}\nout_dtype: float32\n";
    let stitched = "merge_method: localize_stitch\nbase_model: base\nmodels: [{model: ties}, {model: b}]\nparameters: {sparsity: 0.3}\nout_dtype: float32\n";
    let lines = "merge_method: lines\nbase_model: base\nmodels: [{model: stitched}]\nparameters: {alpha: 0.5, beta: 0.25}\nout_dtype: float64\n";
    bench.merge(&format!("name: ties\n{ties}---\n{stitched}"), &[]);
    let of_ties = {
        let bench = family(Dtype::F32);
        bench.merge(ties, &[]);
        values(&bench, "out")
    };
    assert_ne!(of_ties, a);
    let expected = twin(&base, &[(&of_ties, 1.0), (&b, 1.0)], 0.3);
    near(&values(&bench, "out"), &expected);

    bench.merge(
        &format!("name: ties\n{ties}---\nname: stitched\n{stitched}---\n{lines}"),
        &[],
    );
    let scaled = |(name, values): (&String, &Vec<f64>)| {
        let factor = match name
            .split('.')
            .nth(2)
            .and_then(|layer| layer.parse::<f64>().ok())
        {
            Some(layer) => 0.5 + 0.25 * layer / (LAYERS - 1) as f64,
            None => 0.5,
        };
        let pairs = values.iter().zip(&base[name]);
        let values = pairs.map(|(model, base)| base + factor * (model - base));
        (name.clone(), values.collect())
    };
    near(
        &values(&bench, "out"),
        &expected.iter().map(scaled).collect(),
    );
    bench.passes(&["verify", "out"]);
}

#[test]
fn lines_of_one_is_the_model_and_of_zero_the_base() {
    let bench = family(Dtype::BF16);
    for (alpha, beta, model) in [(1, 0, "a"), (0, 0, "base")] {
        let recipe = format!(
            "merge_method: lines\nbase_model: base\nmodels: [{{model: a}}]\nparameters: {{alpha: {alpha}, beta: {beta}}}\n"
        );
        let out = bench.merge(&recipe, &[]);
        let bytes = |model: &std::path::Path| -> Vec<(String, Vec<u8>)> {
            by_name(model)
                .into_iter()
                .map(|(name, tensor)| (name, tensor.bytes))
                .collect()
        };
        assert!(bytes(&out) == bytes(&bench.path(model)), "{model}");
    }
}

#[test]
fn a_share_of_the_whole_model_has_one_value() {
    let bench = family(Dtype::F32);
    let values = "parameters:\n  sparsity:\n  - {filter: mlp, value: 0.2}\n  - value: 0.1\n";
    let told = bench.refused(&format!("{RECIPE}{values}"), &[]);
    assert!(
        told.contains("`sparsity` is a share of the whole model, and has two values: 0.1 and 0.2"),
        "{told}"
    );
    assert!(told.contains("hint: give it once"), "{told}");
}
