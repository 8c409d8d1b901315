//! `output: adapter`: recipes of adapters whose result is an adapter.

use std::collections::BTreeMap;

use ndarray::Array2;
use safetensors::Dtype;
use serde_json::{Value, json};

use weldment::checkpoint::Locator;
use weldment::engine::{Budget, Settings};
use weldment::lora::AdapterMerge;
use weldment::plan::Options;
use weldment::recipe::{self, AnyRecipe};

use crate::extract::fail_at_every_step;
use crate::fixtures::{Bench, Loaded, Spec, by_name, files, floats, noise, read_json};

pub(crate) const UP: (&str, usize, usize) = ("model.layers.0.mlp.up_proj", 12, 8);
pub(crate) const DOWN: (&str, usize, usize) = ("model.layers.1.mlp.down_proj", 8, 12);
pub(crate) const Q: (&str, usize, usize) = ("model.layers.1.self_attn.q_proj", 8, 8);

fn key(module: &str, part: &str) -> String {
    format!("base_model.model.{module}.{part}.weight")
}

/// Writes an adapter of rank 2 and scale 2 for some modules.
pub(crate) fn adapter(
    bench: &Bench,
    name: &str,
    seed: u64,
    modules: &[(&str, usize, usize)],
    more: Value,
) {
    let mut specs = Vec::new();
    for (index, &(module, outputs, inputs)) in modules.iter().enumerate() {
        let seed = seed * 100 + index as u64;
        let a = noise(seed, 2 * inputs);
        specs.push(floats(&key(module, "lora_A"), Dtype::F32, &[2, inputs], a));
        let b = noise(seed + 50, outputs * 2);
        specs.push(floats(&key(module, "lora_B"), Dtype::F32, &[outputs, 2], b));
        if more["use_dora"] == true {
            let name = format!("base_model.model.{module}.lora_magnitude_vector");
            let lengths = noise(seed + 70, outputs).map(|length| length.abs() + 0.1);
            specs.push(floats(&name, Dtype::F32, &[outputs], lengths));
        }
    }
    write(bench, name, modules, more, &specs);
}

fn write(bench: &Bench, name: &str, modules: &[(&str, usize, usize)], more: Value, specs: &[Spec]) {
    let modules: Vec<&str> = modules.iter().map(|(module, _, _)| *module).collect();
    let mut config = json!({
        "peft_type": "LORA", "r": 2, "lora_alpha": 4, "base_model_name_or_path": "base",
        "target_modules": modules, "task_type": "CAUSAL_LM",
    });
    for (option, value) in more.as_object().unwrap() {
        config[option] = value.clone();
    }
    bench.file(&format!("{name}/adapter_config.json"), config.to_string());
    bench.tensors(&format!("{name}/adapter_model.safetensors"), specs);
}

/// A base, and two adapters of it that share one module.
pub(crate) fn bench() -> Bench {
    let bench = Bench::new();
    bench.llama("base", 1, Dtype::F32);
    adapter(&bench, "x", 3, &[UP, DOWN], json!({}));
    adapter(&bench, "y", 4, &[DOWN, Q], json!({}));
    bench
}

fn matrix(tensor: &Loaded) -> Array2<f64> {
    Array2::from_shape_vec((tensor.shape[0], tensor.shape[1]), tensor.values()).unwrap()
}

/// What an adapter in a folder adds to each module, with its rank, at a scale.
fn products(bench: &Bench, name: &str, scale: f64) -> BTreeMap<String, (Array2<f64>, usize)> {
    let tensors = by_name(&bench.path(name));
    let mut products = BTreeMap::new();
    for (name, a) in &tensors {
        let Some(module) = name
            .strip_prefix("base_model.model.")
            .and_then(|name| name.strip_suffix(".lora_A.weight"))
        else {
            continue;
        };
        let b = matrix(&tensors[&key(module, "lora_B")]);
        let product = b.dot(&matrix(a)) * scale;
        products.insert(module.to_owned(), (product, b.ncols()));
    }
    products
}

fn close(found: &Array2<f64>, expected: &Array2<f64>, tolerance: f64) -> bool {
    let distance = (found - expected).mapv(|value| value * value).sum().sqrt();
    distance <= tolerance * expected.mapv(|value| value * value).sum().sqrt()
}

/// `0.6 x + 0.4 y`, by module.
fn weighted(bench: &Bench) -> BTreeMap<String, Array2<f64>> {
    let mut sums: BTreeMap<String, Array2<f64>> = BTreeMap::new();
    for (name, weight) in [("x", 0.6), ("y", 0.4)] {
        for (module, (product, _)) in products(bench, name, 2.0) {
            let product = product * weight;
            let sum = sums.remove(&module);
            sums.insert(module, sum.map_or(product.clone(), |sum| sum + &product));
        }
    }
    sums
}

pub(crate) const SUM: &str = "merge_method: task_arithmetic\nbase_model: base\nmodels:\n\
                   - {model: base+x, parameters: {weight: 0.6}}\n\
                   - {model: base+y, parameters: {weight: 0.4}}\n";

#[test]
fn sums_of_adapters_are_the_same_in_every_space_and_lose_nothing() {
    let bench = bench();
    let expected = weighted(&bench);
    let linear = SUM
        .replace("task_arithmetic\nbase_model: base", "linear")
        .to_owned();
    for (recipe, way, ranks) in [
        (SUM, "{adapter: cat}", [2, 4, 2]),
        (&linear, "{adapter: cat}", [2, 4, 2]),
        (SUM, "adapter", [2, 4, 2]),
        (&linear, "{adapter: core_space}", [2, 4, 2]),
        (SUM, "{adapter: knots}", [2, 4, 2]),
        (SUM, "{adapter: svd, rank: 4}", [2, 4, 2]),
    ] {
        let out = bench.merge(&format!("{recipe}output: {way}\n"), &[]);
        let found = products(&bench, "out", 1.0);
        let modules: Vec<&String> = found.keys().collect();
        assert_eq!(modules, expected.keys().collect::<Vec<_>>(), "{way}");
        for ((module, (product, rank)), expected_rank) in found.iter().zip(ranks) {
            assert!(close(product, &expected[module], 3e-6), "{way}: {module}");
            assert_eq!(*rank, expected_rank, "{way}: {module}");
        }
        // The base with it is what the recipe without `output` gives.
        let config = read_json(&out.join("adapter_config.json"));
        assert_eq!(config["base_model_name_or_path"], "base", "{way}");
        std::fs::rename(&out, bench.path("made")).unwrap();
        let model = by_name(&bench.merge(
            "merge_method: passthrough\nmodels: [{model: base+made}]\n",
            &[],
        ));
        let merged = by_name(&bench.merge(recipe, &[]));
        for (name, tensor) in &merged {
            for (a, b) in model[name].values().iter().zip(tensor.values()) {
                assert!((a - b).abs() < 1e-7, "{way}: {name}");
            }
        }
        std::fs::remove_dir_all(bench.path("made")).unwrap();
    }
}

#[test]
fn one_adapter_is_itself_by_any_method_that_keeps_one_model() {
    let bench = bench();
    let expected = products(&bench, "x", 2.0);
    for method in ["ties", "tsvm", "task_arithmetic", "karcher", "passthrough"] {
        let base = match method {
            "karcher" | "passthrough" => "",
            _ => "base_model: base\n",
        };
        let weight = match method {
            "ties" | "task_arithmetic" => "parameters: {weight: 1}\n",
            _ => "",
        };
        for way in ["core_space", "knots"] {
            bench.merge(
                &format!(
                    "merge_method: {method}\n{base}models: [{{model: base+x}}]\n{weight}output: {{adapter: {way}}}\n"
                ),
                &[],
            );
            let found = products(&bench, "out", 1.0);
            for (module, (product, rank)) in &expected {
                let (merged, merged_rank) = &found[module];
                assert!(close(merged, product, 3e-6), "{method}, {way}: {module}");
                assert_eq!(merged_rank, rank, "{method}, {way}: {module}");
            }
        }
    }
}

#[test]
fn methods_that_choose_elements_merge_matrices_of_the_space() {
    let bench = bench();
    let recipe = SUM.replace("task_arithmetic", "ties");
    let recipe = recipe.replace("models:", "parameters: {density: 0.5}\nmodels:");
    for (way, rank) in [("core_space", 4), ("knots", 4)] {
        let recipe = format!("{recipe}output: {{adapter: {way}}}\n");
        bench.merge(&recipe, &["--threads", "1"]);
        let once = files(&bench.path("out"));
        bench.merge(&recipe, &["--threads", "3"]);
        assert!(files(&bench.path("out")) == once, "{way}");
        let found = products(&bench, "out", 1.0);
        let (merged, found_rank) = &found[DOWN.0];
        assert!(*found_rank <= rank, "{way}");
        assert!(!close(merged, &weighted(&bench)[DOWN.0], 0.05), "{way}");
        let plan = bench.checked(&["plan", "recipe.yml"]).stdout;
        assert!(plan.contains("density=0.5"), "{plan}");
        assert!(plan.contains("an adapter of `base`"), "{plan}");
    }
}

#[test]
fn a_lower_rank_is_the_nearest_matrix_of_that_rank() {
    let bench = bench();
    let mut found = Vec::new();
    for way in ["cat", "core_space", "knots", "svd"] {
        let recipe = format!("{SUM}output: {{adapter: {way}, rank: 1}}\ndtype: float32\n");
        bench.merge(&recipe, &[]);
        found.push(products(&bench, "out", 1.0));
    }
    let expected = weighted(&bench);
    for (module, (nearest, rank)) in &found[3] {
        assert_eq!(*rank, 1);
        assert!(!close(nearest, &expected[module], 0.1));
        for other in &found[..3] {
            assert!(close(&other[module].0, nearest, 1e-5), "{module}");
            assert_eq!(other[module].1, 1);
        }
    }
}

#[test]
fn factors_are_written_in_the_dtype_of_the_recipe() {
    let bench = bench();
    let out = bench.merge(&format!("{SUM}output: adapter\ndtype: bfloat16\n"), &[]);
    assert!(
        by_name(&out)
            .values()
            .all(|tensor| tensor.dtype == Dtype::BF16)
    );
}

#[test]
fn what_is_no_sum_of_two_factors_is_refused_and_decomposed() {
    let bench = bench();
    adapter(&bench, "dora", 5, &[UP], json!({"use_dora": true}));
    let recipe = "merge_method: linear\nparameters: {weight: 1}\nmodels: [{model: base+dora}, {model: base+x}]\n";
    let refused = bench.refused(&format!("{recipe}output: adapter\n"), &[]);
    assert!(
        refused.contains("does more to `model.layers.0.mlp.up_proj.weight`"),
        "{refused}"
    );
    assert!(refused.contains("adapter: svd"), "{refused}");
    bench.merge(&format!("{recipe}output: {{adapter: svd, rank: 8}}\n"), &[]);
    let model = by_name(&bench.merge(recipe, &[]));
    let base = by_name(&bench.path("base"));
    bench.merge(&format!("{recipe}output: {{adapter: svd, rank: 8}}\n"), &[]);
    let name = format!("{}.weight", UP.0);
    let change = matrix(&model[&name]) - matrix(&base[&name]);
    assert!(close(&products(&bench, "out", 1.0)[UP.0].0, &change, 1e-5));
}

#[test]
fn what_makes_no_adapter_is_refused() {
    let bench = bench();
    bench.llama("other", 9, Dtype::F32);
    let ties = SUM
        .replace("task_arithmetic", "ties")
        .replace("models:", "parameters: {density: 0.5}\nmodels:");
    let slices =
        "merge_method: passthrough\nslices: [{sources: [{model: base+x, layer_range: [0, 2]}]}]\n";
    for (recipe, output, expected) in [
        (
            ties.as_str(),
            "{adapter: cat}",
            "does not add up whole adapters",
        ),
        (SUM, "{adapter: svd}", "needs a `rank`"),
        (
            SUM,
            "{adapter: dog, rank: 1}",
            "unknown way to make an adapter: `dog`",
        ),
        (SUM, "{adapter: cat, rank: 0}", "whole number from 1"),
        (SUM, "{rank: 4}", "missing `adapter`"),
        (SUM, "lora", "expected `adapter` for `output`"),
        (
            &SUM.replace("base+y", "other+y"),
            "adapter",
            "is no adapter of `base`",
        ),
        (
            &SUM.replace("base+x", "other").replace("base+y", "base"),
            "adapter",
            "is no adapter of",
        ),
        (
            &SUM.replace("- {model: base+x, parameters: {weight: 0.6}}\n", "")
                .replace("base+y", "base"),
            "adapter",
            "no model of the recipe has an adapter",
        ),
        (slices, "adapter", "can't be made with `slices`"),
        (
            &format!("{SUM}dtype: float64\n"),
            "adapter",
            "can't have the dtype",
        ),
    ] {
        let refused = bench.refused(&format!("{recipe}output: {output}\n"), &[]);
        assert!(refused.contains(expected), "{output}: {refused}");
    }
    let documents = format!(
        "name: first\n{SUM}output: adapter\n---\nmerge_method: passthrough\nmodels: [{{model: first}}]\n"
    );
    let refused = bench.refused(&documents, &[]);
    assert!(refused.contains("of one document"), "{refused}");
}

#[test]
fn every_step_of_an_adapter_of_adapters_fails_once() {
    let bench = Bench::on_disk();
    bench.llama("base", 1, Dtype::F32);
    adapter(&bench, "x", 3, &[UP, DOWN], json!({}));
    adapter(&bench, "y", 4, &[DOWN, Q], json!({}));
    for (output, replaces) in [("core_space", false), ("svd, rank: 2", true)] {
        let path = bench.recipe(&format!("{SUM}output: {{adapter: {output}}}\n"));
        let locator = Locator {
            working_dir: bench.path(""),
            ..Locator::default()
        };
        let options = Options {
            settings: Settings {
                threads: 2,
                memory: Budget::Limit(64 << 20),
                allow_non_finite: false,
                saturate: false,
            },
            seed: 0,
            shard_size: 1 << 30,
            tokenizer_from: None,
        };
        let AnyRecipe::Merge(recipe) = recipe::read_any(&path).unwrap() else {
            panic!("a merge");
        };
        let name = path.display().to_string();
        let merge = AdapterMerge::plan(*recipe, &name, &locator, &options).unwrap();
        fail_at_every_step(&bench, replaces, &|destination, observer| {
            merge.run(destination, &bench.path(""), false, observer)
        });
    }
}

#[test]
fn an_adapter_never_replaces_what_it_is_made_of() {
    let bench = bench();
    bench.recipe(&format!("{SUM}output: adapter\n"));
    let before = files(&bench.path("x"));
    let outcome = bench.weld(&["merge", "recipe.yml", "x", "--force"]);
    assert_eq!(outcome.code, Some(1), "{}", outcome.stderr);
    assert!(files(&bench.path("x")) == before);
}

#[test]
fn methods_on_whole_matrices_take_adapters_as_the_models_that_they_make() {
    let bench = bench();
    for name in ["x", "y"] {
        bench.recipe(&format!(
            "merge_method: passthrough\nmodels: [{{model: base+{name}}}]\nout_dtype: float64\n"
        ));
        let folder = format!("whole-{name}");
        let outcome = bench.weld(&["merge", "recipe.yml", &folder, "-q"]);
        assert_eq!(outcome.code, Some(0), "{}", outcome.stderr);
    }
    let base = by_name(&bench.path("base"));
    for method in ["tsvm", "iso_c", "cart", "star"] {
        let of = |models: [&str; 2], out: &str| {
            let [x, y] = models;
            bench.recipe(&format!(
                "merge_method: {method}\nbase_model: base\nmodels:\n- {{model: {x}, parameters: {{weight: 0.7}}}}\n\
                 - {{model: {y}}}\nout_dtype: float64\n"
            ));
            let outcome = bench.weld(&["merge", "recipe.yml", out, "-q", "--force"]);
            assert_eq!(outcome.code, Some(0), "{}", outcome.stderr);
            by_name(&bench.path(out))
        };
        let found = of(["base+x", "base+y"], "found");
        let expected = of(["whole-x", "whole-y"], "expected");
        for (module, _, _) in [UP, DOWN, Q] {
            let name = format!("{module}.weight");
            let base = matrix(&base[&name]);
            let [found, expected] = [&found, &expected].map(|model| matrix(&model[&name]) - &base);
            assert!(close(&found, &expected, 2e-5), "{method} {name}");
        }
    }
}
