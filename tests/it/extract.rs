//! `weld extract-lora`: what a fine-tune changed, as an adapter that gives it back.

use std::collections::BTreeMap;
use std::fs;
use std::io;
use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering::SeqCst};

use nalgebra::DMatrix;
use rustix::io::Errno;
use safetensors::Dtype;
use serde_json::{Value, json};
use weldment::checkpoint::{Checkpoint, Location};
use weldment::engine::Observer;
use weldment::lora::{ExtractError, Extraction, ExtractionRecipe, Made};
use weldment::run::destination::{Destination, Disk, Folder, Step, Watch};

use crate::fixtures::{
    Bench, Loaded, Spec, by_name, files, floats, llama_config, noise, read_json,
};

const Q: &str = "model.layers.0.self_attn.q_proj";
const UP: &str = "model.layers.1.mlp.up_proj";
const EMBEDDING: &str = "model.embed_tokens";

/// A model whose matrices are large enough for the randomised way: hidden 128, two layers.
fn model(seed: u64) -> BTreeMap<String, (Vec<usize>, Vec<f64>)> {
    let mut shapes = vec![(format!("{EMBEDDING}.weight"), vec![16, 128])];
    for layer in 0..2 {
        for (suffix, shape) in [
            ("input_layernorm", vec![128]),
            ("mlp.down_proj", vec![128, 192]),
            ("mlp.up_proj", vec![192, 128]),
            ("self_attn.q_proj", vec![128, 128]),
        ] {
            shapes.push((format!("model.layers.{layer}.{suffix}.weight"), shape));
        }
    }
    shapes.push(("model.norm.weight".into(), vec![128]));
    shapes.push(("lm_head.weight".into(), vec![16, 128]));
    let values = |(at, (name, shape)): (usize, (String, Vec<usize>))| {
        let count = shape.iter().product();
        (
            name,
            (shape, noise(seed * 100 + at as u64, count).collect()),
        )
    };
    shapes.into_iter().enumerate().map(values).collect()
}

fn config() -> Value {
    let mut config = llama_config(2);
    config["hidden_size"] = json!(128);
    config["intermediate_size"] = json!(192);
    config
}

fn write(
    bench: &Bench,
    name: &str,
    config: &Value,
    dtype: Dtype,
    tensors: &BTreeMap<String, (Vec<usize>, Vec<f64>)>,
) {
    let specs: Vec<Spec> = tensors
        .iter()
        .map(|(name, (shape, values))| floats(name, dtype, shape, values.iter().copied()))
        .collect();
    bench.model(name, config, &specs);
}

/// Adds a product of this rank to a matrix.
fn update(values: &mut [f64], shape: &[usize], rank: usize, seed: u64) {
    let (rows, columns) = (shape[0], shape[1]);
    let left = DMatrix::from_row_iterator(rows, rank, noise(seed, rows * rank));
    let right = DMatrix::from_row_iterator(rank, columns, noise(seed + 1, rank * columns));
    let product = left * right;
    for (at, value) in values.iter_mut().enumerate() {
        *value += product[(at / columns, at % columns)];
    }
}

/// `base`, and `tuned`: updates of rank 8 of all linear layers.
fn bench_of_rank_8(dtype: Dtype) -> Bench {
    let bench = Bench::new();
    let mut tensors = model(1);
    write(&bench, "base", &config(), dtype, &tensors);
    for (at, (name, (shape, values))) in tensors.iter_mut().enumerate() {
        if name.contains("proj") {
            update(values, shape, 8, 500 + 2 * at as u64);
        }
    }
    write(&bench, "tuned", &config(), dtype, &tensors);
    bench
}

/// Extracts to `adapter` and returns the report.
#[track_caller]
fn extract(bench: &Bench, more: &[&str]) -> Value {
    let words = [
        "extract-lora",
        "base",
        "tuned",
        "adapter",
        "--force",
        "-q",
        "--format",
        "json",
    ];
    let outcome = bench.weld(&[&words, more].concat());
    assert_eq!(outcome.code, Some(0), "{}", outcome.stderr);
    serde_json::from_str(&outcome.stdout).unwrap()
}

/// Expects that nothing is extracted; returns the message.
#[track_caller]
fn refused(bench: &Bench, more: &[&str]) -> String {
    let words = ["extract-lora", "base", "tuned", "adapter", "-q"];
    let outcome = bench.weld(&[&words, more].concat());
    assert_eq!(
        outcome.code,
        Some(1),
        "{}{}",
        outcome.stdout,
        outcome.stderr
    );
    assert!(!bench.path("adapter").exists());
    outcome.stderr
}

/// The base with the adapter.
fn merged(bench: &Bench) -> BTreeMap<String, Loaded> {
    let recipe = "merge_method: passthrough\nmodels: [{model: base+adapter}]\n";
    by_name(&bench.merge(recipe, &[]))
}

fn matrix(tensor: &Loaded) -> DMatrix<f64> {
    DMatrix::from_row_iterator(tensor.shape[0], tensor.shape[1], tensor.values())
}

/// The product of a module's factors.
fn product(bench: &Bench, module: &str) -> DMatrix<f64> {
    let adapter = by_name(&bench.path("adapter"));
    let part = |part: &str| matrix(&adapter[&format!("base_model.model.{module}.{part}.weight")]);
    part("lora_B") * part("lora_A")
}

/// What the fine-tune changed in a tensor.
fn change(bench: &Bench, tensor: &str) -> DMatrix<f64> {
    let [base, tuned] = ["base", "tuned"].map(|model| matrix(&by_name(&bench.path(model))[tensor]));
    tuned - base
}

#[track_caller]
fn assert_near(found: &Loaded, expected: &Loaded, most: f64) {
    let pairs = found.values().into_iter().zip(expected.values());
    let largest = pairs.map(|(a, b)| (a - b).abs()).fold(0.0, f64::max);
    assert_eq!(found.shape, expected.shape);
    assert!(largest <= most, "{largest}");
}

#[test]
fn an_update_of_rank_8_comes_back_within_the_rounding_of_f32() {
    let bench = bench_of_rank_8(Dtype::F32);
    let report = extract(&bench, &["--rank", "8"]);
    assert_eq!(report["modules"].as_array().unwrap().len(), 6);
    assert!(report["error"].as_f64().unwrap() < 2e-6, "{report:#}");
    assert_eq!(report["left_out"], json!([]));
    let (merged, tuned) = (merged(&bench), by_name(&bench.path("tuned")));
    assert_eq!(merged.len(), tuned.len());
    for (name, tensor) in &merged {
        // Half an ULP of the largest weight, twice: the fine-tune's own rounding is in its change.
        assert_near(tensor, &tuned[name], 3e-8);
    }
    let config = read_json(&bench.path("adapter/adapter_config.json"));
    assert_eq!(config["r"], 8);
    assert_eq!(config["lora_alpha"], 8);
    assert_eq!(
        config["target_modules"],
        json!(["down_proj", "q_proj", "up_proj"])
    );
    assert_eq!(config["base_model_name_or_path"], "base");
    assert_eq!(config["task_type"], "CAUSAL_LM");
    assert_eq!(config["rank_pattern"], json!({}));
}

#[test]
fn the_error_is_as_it_is_told_and_hardly_above_the_least() {
    let bench = Bench::new();
    let mut tensors = model(1);
    write(&bench, "base", &config(), Dtype::BF16, &tensors);
    for (name, (_, values)) in &mut tensors {
        let seed = name.len() as u64;
        let count = values.len();
        values
            .iter_mut()
            .zip(noise(900 + seed, count))
            .for_each(|(value, change)| *value += change);
    }
    write(&bench, "tuned", &config(), Dtype::BF16, &tensors);
    for dtype in ["float32", "bfloat16"] {
        let report = extract(&bench, &["--rank", "8", "--dtype", dtype]);
        for module in report["modules"].as_array().unwrap() {
            let change = change(&bench, module["tensor"].as_str().unwrap());
            let found = product(&bench, module["module"].as_str().unwrap());
            let error = (&change - found).norm() / change.norm();
            let told = module["error"].as_f64().unwrap();
            assert!((error - told).abs() < 1e-5, "{error} {told}");
            let mut values: Vec<f64> = change.singular_values().iter().copied().collect();
            values.sort_by(|a, b| b.total_cmp(a));
            let least = values[8..]
                .iter()
                .map(|value| value * value)
                .sum::<f64>()
                .sqrt();
            assert!(error <= 1.005 * least / change.norm(), "{error}");
        }
    }
    // What no adapter holds is told, with its size.
    let left = json!(
        by_name(&bench.path("base"))
            .keys()
            .filter(|name| !name.contains("proj"))
            .collect::<Vec<_>>()
    );
    let report = extract(&bench, &["--rank", "8"]);
    let told = report["left_out"].as_array().unwrap();
    let mut names: Vec<&str> = told
        .iter()
        .map(|left| left["tensor"].as_str().unwrap())
        .collect();
    names.sort_unstable();
    assert_eq!(json!(names), left);
    for tensor in told {
        let name = tensor["tensor"].as_str().unwrap();
        let [base, tuned] =
            ["base", "tuned"].map(|model| by_name(&bench.path(model))[name].values());
        let norm =
            |values: &mut dyn Iterator<Item = f64>| values.map(|x| x * x).sum::<f64>().sqrt();
        let change = norm(&mut base.iter().zip(&tuned).map(|(a, b)| a - b));
        let expected = change / norm(&mut base.iter().copied());
        assert!((tensor["change"].as_f64().unwrap() - expected).abs() < 1e-9);
    }
    let said = bench.weld(&["extract-lora", "base", "tuned", "other", "--rank", "4"]);
    assert!(
        said.stderr
            .contains("not in the adapter, though it differs: lm_head.weight"),
        "{}",
        said.stderr
    );
}

#[test]
fn the_energy_decides_the_rank_of_each_matrix() {
    let bench = Bench::new();
    let mut tensors = model(1);
    write(&bench, "base", &config(), Dtype::F32, &tensors);
    for (at, (name, (shape, values))) in tensors.iter_mut().enumerate() {
        if name.contains("proj") {
            update(values, shape, 2 + at, 500 + 2 * at as u64);
        }
    }
    write(&bench, "tuned", &config(), Dtype::F32, &tensors);
    let report = extract(&bench, &["--energy", "0.9"]);
    let config = read_json(&bench.path("adapter/adapter_config.json"));
    for module in report["modules"].as_array().unwrap() {
        let change = change(&bench, module["tensor"].as_str().unwrap());
        let mut energies: Vec<f64> = change
            .singular_values()
            .iter()
            .map(|value| value * value)
            .collect();
        energies.sort_by(|a, b| b.total_cmp(a));
        let rank = module["rank"].as_u64().unwrap() as usize;
        let kept =
            |rank: usize| energies[..rank].iter().sum::<f64>() / energies.iter().sum::<f64>();
        assert!(
            kept(rank) >= 0.9 - 1e-6 && kept(rank - 1) < 0.9 + 1e-6,
            "{module}"
        );
        let name = module["module"].as_str().unwrap();
        let said = config["rank_pattern"].get(name).unwrap_or(&config["r"]);
        assert_eq!(said, rank);
    }
    assert!(!config["rank_pattern"].as_object().unwrap().is_empty());
    assert_eq!(config["rank_pattern"], config["alpha_pattern"]);
    let tuned = by_name(&bench.path("tuned"));
    for (name, tensor) in merged(&bench) {
        let largest = tensor
            .values()
            .iter()
            .zip(tuned[&name].values())
            .map(|(a, b)| (a - b).abs())
            .fold(0.0, f64::max);
        assert!(largest < 0.05, "{name} {largest}");
    }
    let bounded = extract(&bench, &["--energy", "0.9", "--max-rank", "3"]);
    let ranks = bounded["modules"]
        .as_array()
        .unwrap()
        .iter()
        .map(|module| module["rank"].as_u64().unwrap());
    assert_eq!(ranks.max(), Some(3));
}

#[test]
fn the_bytes_do_not_depend_on_threads() {
    let bench = bench_of_rank_8(Dtype::BF16);
    let of = |threads: &str, more: &[&str]| {
        extract(&bench, &[&["--threads", threads], more].concat());
        files(&bench.path("adapter"))
    };
    for more in [["--rank", "8"], ["--rank", "100"], ["--energy", "0.5"]] {
        let one = of("1", &more);
        assert_eq!(one.len(), 4);
        assert!(
            ["2", "5"].iter().all(|threads| of(threads, &more) == one),
            "{more:?}"
        );
    }
}

#[test]
fn models_without_a_difference_are_refused() {
    let bench = bench_of_rank_8(Dtype::F32);
    let outcome = bench.weld(&["extract-lora", "base", "base", "adapter", "--rank", "8"]);
    assert_eq!(outcome.code, Some(1));
    assert!(
        outcome.stderr.contains("there is nothing to extract"),
        "{}",
        outcome.stderr
    );
    assert!(!bench.path("adapter").exists());
    // Where only a norm differs, no factors hold it.
    let mut tensors = model(1);
    tensors.get_mut("model.norm.weight").unwrap().1[3] = 9.0;
    write(&bench, "tuned", &config(), Dtype::F32, &tensors);
    let said = refused(&bench, &["--rank", "8"]);
    assert!(
        said.contains("no linear layer that would be adapted differs"),
        "{said}"
    );
}

#[test]
fn tensors_that_do_not_fit_are_refused_or_excluded() {
    let bench = bench_of_rank_8(Dtype::F32);
    let mut tensors = model(1);
    let (shape, values) = &mut tensors.get_mut(&format!("{EMBEDDING}.weight")).unwrap();
    shape[0] = 17;
    values.extend(noise(3, 128));
    tensors.get_mut(&format!("{Q}.weight")).unwrap().1[0] = 1.0;
    write(&bench, "tuned", &config(), Dtype::F32, &tensors);
    let said = refused(&bench, &["--rank", "8"]);
    assert!(
        said.contains("has the shape [16, 128] in base, and [17, 128] in tuned"),
        "{said}"
    );
    let report = extract(&bench, &["--rank", "8", "--exclude", EMBEDDING]);
    assert_eq!(
        report["left_out"][0]["tensor"],
        format!("{EMBEDDING}.weight")
    );
    assert_eq!(report["left_out"][0]["change"], Value::Null);
    fs::remove_dir_all(bench.path("adapter")).unwrap();
    let extra = tensors.remove("model.norm.weight").unwrap();
    write(&bench, "tuned", &config(), Dtype::F32, &tensors);
    let said = refused(&bench, &["--rank", "8", "--exclude", EMBEDDING]);
    assert!(
        said.contains("base has `model.norm.weight`, and tuned does not"),
        "{said}"
    );
    tensors.insert("model.norm.weight".into(), extra.clone());
    tensors.insert("model.norm2.weight".into(), extra);
    write(&bench, "tuned", &config(), Dtype::F32, &tensors);
    let said = refused(&bench, &["--rank", "8", "--exclude", EMBEDDING]);
    assert!(
        said.contains("tuned has `model.norm2.weight`, and base does not"),
        "{said}"
    );
}

#[test]
fn conv1d_weights_of_gpt2_lie_the_other_way_round() {
    let bench = Bench::new();
    let config = json!({"model_type": "gpt2", "architectures": ["GPT2LMHeadModel"], "n_embd": 16, "n_layer": 1,
        "n_head": 1, "vocab_size": 8});
    let shapes: [(&str, &[usize]); 5] = [
        ("h.0.attn.c_attn.weight", &[16, 48]),
        ("h.0.attn.c_attn.bias", &[48]),
        ("h.0.attn.c_proj.weight", &[16, 16]),
        ("h.0.mlp.c_fc.weight", &[16, 64]),
        ("wte.weight", &[8, 16]),
    ];
    let mut tensors: BTreeMap<String, (Vec<usize>, Vec<f64>)> = (1..)
        .zip(shapes)
        .map(|(seed, (name, shape))| {
            (
                name.to_owned(),
                (
                    shape.to_vec(),
                    noise(seed, shape.iter().product()).collect(),
                ),
            )
        })
        .collect();
    write(&bench, "base", &config, Dtype::F32, &tensors);
    for (name, (shape, values)) in &mut tensors {
        if name.contains("c_") && shape.len() == 2 {
            update(values, shape, 3, 77);
        }
    }
    write(&bench, "tuned", &config, Dtype::F32, &tensors);
    extract(&bench, &["--rank", "3"]);
    let adapter = by_name(&bench.path("adapter"));
    // As GPT2LMHeadModel names them, though the body was saved alone.
    let key = |part: &str| format!("base_model.model.transformer.h.0.attn.c_attn.{part}.weight");
    assert_eq!(adapter[&key("lora_A")].shape, [3, 16]);
    assert_eq!(adapter[&key("lora_B")].shape, [48, 3]);
    let written = read_json(&bench.path("adapter/adapter_config.json"));
    assert_eq!(written["fan_in_fan_out"], true);
    let (merged, tuned) = (merged(&bench), by_name(&bench.path("tuned")));
    for (name, tensor) in &merged {
        assert_near(tensor, &tuned[name], 3e-8);
    }
}

#[test]
fn a_tied_embedding_is_left_out_or_saved_for_both() {
    let bench = Bench::new();
    let mut config = config();
    config["tie_word_embeddings"] = json!(true);
    let mut tensors = model(1);
    tensors.remove("lm_head.weight");
    write(&bench, "base", &config, Dtype::BF16, &tensors);
    tensors.get_mut(&format!("{EMBEDDING}.weight")).unwrap().1[5] = 1.0;
    let (shape, values) = tensors.get_mut(&format!("{UP}.weight")).unwrap();
    update(values, shape, 2, 5);
    // A stored copy of the head says nothing.
    let head = tensors[&format!("{EMBEDDING}.weight")].clone();
    tensors.insert("lm_head.weight".into(), head);
    write(&bench, "tuned", &config, Dtype::BF16, &tensors);
    let report = extract(&bench, &["--rank", "8"]);
    assert_eq!(
        report["left_out"][0]["tensor"],
        format!("{EMBEDDING}.weight")
    );
    let report = extract(&bench, &["--rank", "8", "--save", "embed_tokens"]);
    assert_eq!(report["left_out"], json!([]));
    assert_eq!(report["saved"], json!([format!("{EMBEDDING}.weight")]));
    let written = read_json(&bench.path("adapter/adapter_config.json"));
    assert_eq!(written["modules_to_save"], json!([EMBEDDING]));
    assert_eq!(written["ensure_weight_tying"], true);
    // PEFT reads the embedding by both names.
    let adapter = by_name(&bench.path("adapter"));
    let whole = |name: &str| &adapter[&format!("base_model.model.{name}.weight")];
    assert_eq!(whole("lm_head"), whole(EMBEDDING));
    // Not all layers' are adapted, so that their common name would not do.
    assert_eq!(written["target_modules"], json!([UP]));
    let (merged, tuned) = (merged(&bench), by_name(&bench.path("tuned")));
    assert!(!merged.contains_key("lm_head.weight"));
    let name = format!("{EMBEDDING}.weight");
    assert_eq!(merged[&name], tuned[&name]);
}

#[test]
fn modules_are_chosen_by_name() {
    let bench = bench_of_rank_8(Dtype::F32);
    let modules = |more: &[&str]| -> Vec<String> {
        let report = extract(&bench, &[&["--rank", "2"], more].concat());
        let modules = report["modules"].as_array().unwrap().iter();
        modules
            .map(|module| module["module"].as_str().unwrap().to_owned())
            .collect()
    };
    assert_eq!(
        modules(&["--module", "layers.0.*", "--exclude", "{up,down}_proj"]),
        [Q]
    );
    assert_eq!(
        modules(&["--module", "q_proj", "--module", "up_proj"]).len(),
        4
    );
    let report = extract(
        &bench,
        &["--rank", "2", "--save", "q_proj", "--save", "model.norm"],
    );
    assert_eq!(report["saved"].as_array().unwrap().len(), 3);
    let (found, tuned) = (merged(&bench), by_name(&bench.path("tuned")));
    let name = format!("{Q}.weight");
    assert_eq!(found[&name], tuned[&name]);
    for option in ["--module", "--exclude", "--save"] {
        let said = bench.weld(&[
            "extract-lora",
            "base",
            "tuned",
            "new",
            "--rank",
            "2",
            option,
            "k_proj",
        ]);
        assert_eq!(said.code, Some(1));
        let expected = format!("no module of base matches `k_proj` of {option}");
        assert!(said.stderr.contains(&expected), "{}", said.stderr);
    }
}

#[test]
fn experts_and_routers_are_adapted_where_they_are_named() {
    let bench = Bench::new();
    let config =
        json!({"model_type": "mixtral", "architectures": ["MixtralForCausalLM"], "hidden_size": 8});
    let mut tensors: BTreeMap<String, (Vec<usize>, Vec<f64>)> = BTreeMap::new();
    for (seed, name) in (1..).zip([
        "self_attn.q_proj",
        "block_sparse_moe.gate",
        "block_sparse_moe.experts.0.w1",
    ]) {
        let name = format!("model.layers.0.{name}.weight");
        tensors.insert(name, (vec![8, 8], noise(seed, 64).collect()));
    }
    write(&bench, "base", &config, Dtype::F32, &tensors);
    for (shape, values) in tensors.values_mut() {
        update(values, shape, 2, 9);
    }
    write(&bench, "tuned", &config, Dtype::F32, &tensors);
    let report = extract(&bench, &["--rank", "2"]);
    assert_eq!(report["modules"].as_array().unwrap().len(), 1);
    assert_eq!(report["left_out"].as_array().unwrap().len(), 2);
    let report = extract(&bench, &["--rank", "2", "--module", "*"]);
    assert_eq!(report["modules"].as_array().unwrap().len(), 3);
    assert!(report["error_of_the_whole"].as_f64().unwrap() < 1e-5);
}

#[test]
fn values_that_are_no_numbers_are_refused_where_they_would_count() {
    let bench = bench_of_rank_8(Dtype::F32);
    for (name, module) in [
        (format!("{UP}.weight"), UP),
        ("model.norm.weight".into(), "model.norm"),
    ] {
        let mut tensors = model(1);
        tensors.get_mut(&name).unwrap().1[2] = f64::NAN;
        let (shape, values) = tensors.get_mut(&format!("{Q}.weight")).unwrap();
        update(values, shape, 2, 5);
        write(&bench, "tuned", &config(), Dtype::F32, &tensors);
        let said = refused(&bench, &["--rank", "8"]);
        assert!(
            said.contains(&format!("`{name}` of tuned holds NaN or infinity")),
            "{said}"
        );
        extract(&bench, &["--rank", "8", "--exclude", module]);
        fs::remove_dir_all(bench.path("adapter")).unwrap();
    }
}

#[test]
fn options_that_make_no_sense_are_refused() {
    let bench = bench_of_rank_8(Dtype::F32);
    for more in [
        &[][..],
        &["--rank", "0"],
        &["--rank", "9999999999"],
        &["--energy", "0"],
        &["--energy", "1.5"],
        &["--energy", "NaN"],
        &["--rank", "4", "--energy", "0.5"],
        &["--rank", "4", "--max-rank", "8"],
    ] {
        let outcome = bench.weld(&[&["extract-lora", "base", "tuned", "adapter"], more].concat());
        assert_eq!(outcome.code, Some(2), "{more:?}: {}", outcome.stderr);
    }
    let said = refused(&bench, &["--rank", "4", "--module", "a["]);
    assert!(said.contains("`a[` is no pattern"), "{said}");
    // Never over an input, nor over anything unasked.
    for (out, more) in [("base", "--force"), ("tuned", "--quiet")] {
        let outcome = bench.weld(&["extract-lora", "base", "tuned", out, "--rank", "4", more]);
        assert_eq!(outcome.code, Some(1), "{}", outcome.stderr);
        assert!(bench.path(out).join("model.safetensors").is_file());
    }
}

#[test]
fn an_adapter_on_the_base_comes_back_as_a_fine_tune() {
    let bench = bench_of_rank_8(Dtype::BF16);
    extract(&bench, &["--rank", "8"]);
    fs::rename(bench.path("adapter"), bench.path("first")).unwrap();
    let words = [
        "extract-lora",
        "base",
        "base+first",
        "second",
        "--rank",
        "8",
        "--format",
        "json",
    ];
    let outcome = bench.weld(&words);
    assert_eq!(outcome.code, Some(0), "{}", outcome.stderr);
    let report: Value = serde_json::from_str(&outcome.stdout).unwrap();
    assert!(report["error"].as_f64().unwrap() < 1e-5, "{report}");
}

/// Lets one step fail, by its number.
struct Door {
    fails: usize,
    steps: AtomicUsize,
}

impl Watch for Door {
    fn before(&self, _: Step, _: &Path) -> io::Result<()> {
        match self.steps.fetch_add(1, SeqCst) == self.fails {
            true => Err(Errno::IO.into()),
            false => Ok(()),
        }
    }
}

/// Stops at a call.
struct Stop(AtomicUsize);

impl Observer for Stop {
    fn advance(&self, _: u64) {}

    fn cancelled(&self) -> bool {
        self.0.fetch_sub(1, SeqCst) == 0
    }
}

/// Makes an adapter at a destination.
type Run<'r> = dyn Fn(&dyn Destination, &dyn Observer) -> Result<Made, ExtractError> + 'r;

/// Runs what makes an adapter at `out`: every step fails once, and it is stopped at every moment. Each time the place is
/// as it was, and at the end the adapter is there. Some old folder is there before, if the run may replace it.
pub(crate) fn fail_at_every_step(bench: &Bench, replaces: bool, run: &Run<'_>) {
    let out = bench.path("adapter");
    let reset = || {
        let _ = fs::remove_dir_all(&out);
        if replaces {
            bench.file("adapter/old", "old");
        }
    };
    let left = || {
        let names = fs::read_dir(bench.path("")).unwrap();
        let mut names: Vec<String> = names
            .map(|entry| entry.unwrap().file_name().into_string().unwrap())
            .collect();
        names.sort_unstable();
        let old = fs::read(bench.path("adapter/old")).is_ok();
        (
            names,
            old,
            bench.path("adapter/adapter_config.json").exists(),
        )
    };
    reset();
    let before = left();
    let never = || Stop(AtomicUsize::new(usize::MAX));
    let mut failed = 0;
    loop {
        reset();
        let door = Arc::new(Door {
            fails: failed,
            steps: AtomicUsize::new(0),
        });
        let disk = Disk::watched(Arc::clone(&door) as Arc<dyn Watch>);
        let done = run(&Folder::on(disk, &out, replaces), &never());
        if door.steps.load(SeqCst) <= failed {
            done.unwrap();
            break;
        }
        match done {
            // It was in place already; only the old one could not be removed, and a note says so.
            Ok(made) => assert!(replaces && !made.recorded.notes.is_empty(), "step {failed}"),
            Err(_) => assert_eq!(left(), before, "step {failed}"),
        }
        failed += 1;
    }
    assert!(failed > 20, "{failed}");
    let written = files(&out);
    let mut names: Vec<&str> = written.iter().map(|(name, _)| name.as_str()).collect();
    names.sort_unstable();
    let expected = [
        "README.md",
        "adapter_config.json",
        "adapter_model.safetensors",
        "weldment.lock.json",
    ];
    assert_eq!(names, expected);
    for call in 0.. {
        reset();
        let done = run(&Folder::new(&out, replaces), &Stop(AtomicUsize::new(call)));
        if done.is_ok() {
            assert!(call > 1, "{call}");
            assert!(files(&out) == written);
            break;
        }
        assert_eq!(left(), before, "call {call}");
    }
}

#[test]
fn every_step_fails_once_and_a_run_is_stopped_at_every_moment() {
    let bench = Bench::on_disk();
    let mut tensors = model(1);
    write(&bench, "base", &config(), Dtype::F32, &tensors);
    let (shape, values) = tensors.get_mut(&format!("{Q}.weight")).unwrap();
    update(values, shape, 2, 5);
    write(&bench, "tuned", &config(), Dtype::F32, &tensors);
    let open = |name: &str| Checkpoint::open(name, &Location::local(bench.path(name))).unwrap();
    let (base, tuned) = (open("base"), open("tuned"));
    let recipe = ExtractionRecipe {
        base: "base".to_owned(),
        finetune: "tuned".to_owned(),
        rank: Some(2),
        energy: None,
        max_rank: None,
        modules: Vec::new(),
        exclude: Vec::new(),
        save: Vec::new(),
        dtype: "float32".to_owned(),
    };
    let extraction = Extraction::plan(recipe.request(&base, &tuned, 2).unwrap()).unwrap();
    for replaces in [false, true] {
        fail_at_every_step(&bench, replaces, &|destination, observer| {
            let origin = recipe.origin(&base, &tuned, 2);
            let made = extraction.run(origin, destination, observer)?;
            assert_eq!(made.report.fits.len(), 1);
            Ok(made)
        });
    }
}
