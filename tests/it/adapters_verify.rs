//! `weld verify` of LoRA adapters that weld wrote: they are made again from what their lock says, and compared.

use std::fs;

use safetensors::Dtype;
use serde_json::{Value, json};

use crate::adapters::{DOWN, Q, SUM, UP, adapter, bench};
use crate::fixtures::{Bench, by_name, files, floats, read_json};
use crate::verify::{errors, finding, verify};

const WEIGHTS: &str = "out/adapter_model.safetensors";
const LOCK: &str = "out/weldment.lock.json";

/// Merges the adapters to `out`.
fn merged(bench: &Bench, output: &str) {
    bench.recipe(&format!("{SUM}output: {output}\n"));
    let outcome = bench.weld(&["merge", "recipe.yml", "out", "--force", "--hash-inputs"]);
    assert_eq!(outcome.code, Some(0), "{}", outcome.stderr);
    assert!(
        outcome.stderr.contains("weld verify out"),
        "{}",
        outcome.stderr
    );
}

#[track_caller]
fn passes(bench: &Bench, more: &[&str]) -> Value {
    let (code, report) = verify(bench, more);
    assert_eq!(code, Some(0), "{report:#}");
    report
}

#[track_caller]
fn fails(bench: &Bench, more: &[&str], expected: &[&str]) -> Value {
    let (code, report) = verify(bench, more);
    assert_eq!(code, Some(1), "{report:#}");
    assert_eq!(errors(&report), expected, "{report:#}");
    report
}

fn edit(bench: &Bench, file: &str, edit: impl FnOnce(&mut Value)) {
    let mut json = read_json(&bench.path(file));
    edit(&mut json);
    fs::write(bench.path(file), json.to_string()).unwrap();
}

/// Writes the weights again with other values.
fn change(bench: &Bench, edit: impl Fn(&str, &mut Vec<f64>)) {
    let tensors = by_name(&bench.path("out"));
    let specs: Vec<_> = tensors
        .iter()
        .map(|(name, tensor)| {
            let mut values = tensor.values();
            edit(name, &mut values);
            floats(name, tensor.dtype, &tensor.shape, values)
        })
        .collect();
    bench.tensors(WEIGHTS, &specs);
}

/// Puts the digests of what is there now into the lock, as somebody would who hides a change.
fn forge(bench: &Bench) {
    let tensors = by_name(&bench.path("out"));
    let config = fs::read(bench.path("out/adapter_config.json")).unwrap();
    edit(bench, LOCK, |lock| {
        for (name, tensor) in &tensors {
            lock["outputs"]["tensors"][name] = blake3::hash(&tensor.bytes).to_string().into();
        }
        let config = blake3::hash(&config).to_string();
        lock["outputs"]["files"]["adapter_config.json"] = config.into();
    });
}

#[test]
fn adapters_of_adapters_are_made_again_and_are_equal() {
    let bench = bench();
    for output in [
        "{adapter: cat}",
        "{adapter: core_space}",
        "{adapter: knots, rank: 1}",
        "{adapter: svd, rank: 3}",
    ] {
        merged(&bench, output);
        let report = passes(&bench, &[]);
        assert_eq!(report["findings"], json!([]), "{output} {report:#}");
        let modules = report["details"]["tensors"].as_array().unwrap();
        assert!(modules.len() >= 3, "{report:#}");
        assert!(modules.iter().all(|module| module["outcome"] == "exact"));
        let inputs = report["details"]["inputs"].as_array().unwrap();
        assert!(inputs.len() >= 3, "{report:#}");
        // The recipe may be given too.
        passes(&bench, &["--recipe", "recipe.yml"]);
    }
    let lock = read_json(&bench.path(LOCK));
    assert_eq!(lock["command"], "merge");
    let models: Vec<&str> = lock["inputs"]
        .as_array()
        .unwrap()
        .iter()
        .map(|input| input["model"].as_str().unwrap())
        .collect();
    assert_eq!(models, ["base", "base+x", "base+y"]);
    assert!(lock["inputs"][1]["tensors"].is_object(), "--hash-inputs");
}

#[test]
fn a_random_method_is_made_again_with_its_seed() {
    let bench = bench();
    let recipe = SUM.replace("task_arithmetic", "dare_linear");
    bench.recipe(&format!(
        "{recipe}parameters: {{density: 0.5}}\noutput: {{adapter: core_space}}\n"
    ));
    let outcome = bench.weld(&["merge", "recipe.yml", "out", "--seed", "7"]);
    assert_eq!(outcome.code, Some(0), "{}", outcome.stderr);
    passes(&bench, &[]);
    let card = fs::read_to_string(bench.path("out/README.md")).unwrap();
    assert!(card.contains("--seed 7"), "{card}");
    edit(&bench, LOCK, |lock| lock["options"]["seed"] = 8.into());
    fails(&bench, &[], &["verify.differs"]);
}

#[test]
fn extractions_are_made_again_and_are_equal() {
    let bench = Bench::new();
    bench.llama("base", 1, Dtype::F32);
    bench.llama("tuned", 2, Dtype::F32);
    let base = bench.path("base").display().to_string();
    for (base, options) in [
        ("base", &["--rank", "2"][..]),
        (
            "base",
            &["--energy", "0.9", "--max-rank", "4", "--dtype", "bfloat16"],
        ),
        (
            "base",
            &["--rank", "3", "--module", "mlp.*", "--save", "lm_head"],
        ),
        (&base, &["--rank", "2", "--exclude", "lm_head"]),
    ] {
        let mut words = vec!["extract-lora", base, "tuned", "out", "--force"];
        words.extend(options);
        let outcome = bench.weld(&words);
        assert_eq!(outcome.code, Some(0), "{}", outcome.stderr);
        let named = format!("base={}", bench.path("base").display());
        let named = ["--inputs", &named];
        let report = passes(&bench, if base == "base" { &[] } else { &named });
        assert_eq!(report["findings"], json!([]), "{options:?} {report:#}");
        let lock = read_json(&bench.path(LOCK));
        assert_eq!(lock["command"], "extract-lora");
        let recipe = lock["recipe"].as_str().unwrap();
        assert!(
            !recipe.contains(&*bench.path("").to_string_lossy()),
            "{recipe}"
        );
    }
    let card = fs::read_to_string(bench.path("out/README.md")).unwrap();
    for expected in [
        "library_name: peft",
        "- lora",
        "# out",
        "- `base` (base)",
        "- `tuned`",
        "\"rank\": 2",
    ] {
        assert!(card.contains(expected), "no {expected} in {card}");
    }
}

#[test]
fn what_was_changed_is_found_though_the_lock_was_changed_too() {
    let bench = bench();
    merged(&bench, "{adapter: core_space}");
    let good = files(&bench.path("out"));
    let back = || {
        for (name, bytes) in &good {
            fs::write(bench.path(&format!("out/{name}")), bytes).unwrap();
        }
    };
    let first = format!("base_model.model.{}.lora_B.weight", UP.0);
    let one = |name: &str, values: &mut Vec<f64>| {
        if name == first {
            values[0] += 1e-3;
        }
    };
    change(&bench, one);
    let report = fails(&bench, &[], &["verify.differs", "verify.lock-output"]);
    let place = finding(&report, "verify.differs");
    assert!(place.to_string().contains(UP.0), "{place}");
    forge(&bench);
    fails(&bench, &[], &["verify.differs"]);
    // Scaled by PEFT, not in the weights.
    back();
    edit(&bench, "out/adapter_config.json", |config| {
        config["lora_alpha"] = 64.into();
    });
    forge(&bench);
    let report = fails(&bench, &[], &["verify.config"]);
    let field = finding(&report, "verify.config");
    assert!(field.to_string().contains("lora_alpha"), "{field}");
    // A file that PEFT's readers would take instead.
    back();
    bench.file("out/adapter_model.bin", "x");
    fails(&bench, &[], &["verify.foreign-file"]);
    fs::remove_file(bench.path("out/adapter_model.bin")).unwrap();
    // Factors that say the same in other words: within the bound, and no proof.
    back();
    change(&bench, |_, values| {
        values.iter_mut().for_each(|value| *value = -*value)
    });
    forge(&bench);
    let report = fails(&bench, &[], &["verify.rounding"]);
    assert!(
        report["details"]["tensors"]
            .to_string()
            .contains("within a step")
    );
    assert_eq!(verify(&bench, &["--allow", "step"]).0, Some(0));
    // A tensor that is gone.
    back();
    let tensors = by_name(&bench.path("out"));
    let kept = tensors.iter().filter(|(name, _)| **name != first);
    let specs: Vec<_> = kept
        .map(|(name, tensor)| floats(name, tensor.dtype, &tensor.shape, tensor.values()))
        .collect();
    bench.tensors(WEIGHTS, &specs);
    fails(
        &bench,
        &[],
        &["verify.lock-output", "verify.missing-tensor"],
    );
    back();
    passes(&bench, &[]);
}

#[test]
fn inputs_and_recipes_that_are_others_are_found() {
    let bench = bench();
    merged(&bench, "{adapter: cat}");
    adapter(&bench, "y", 9, &[DOWN, Q], json!({}));
    fails(&bench, &[], &["verify.differs"]);
    adapter(&bench, "y", 9, &[DOWN], json!({}));
    let (_, report) = verify(&bench, &[]);
    assert!(
        errors(&report).contains(&"verify.input-changed".to_owned()),
        "{report:#}"
    );
    adapter(&bench, "y", 4, &[DOWN, Q], json!({}));
    passes(&bench, &[]);
    let other = SUM.replace("0.6", "0.5");
    bench.recipe(&format!("{other}output: {{adapter: cat}}\n"));
    fails(
        &bench,
        &["--recipe", "recipe.yml"],
        &["verify.differs", "verify.lock-recipe"],
    );
    fs::remove_dir_all(bench.path("x")).unwrap();
    let (code, report) = verify(&bench, &[]);
    assert_eq!(code, Some(3), "{report:#}");
}

#[test]
fn a_recipe_of_another_kind_is_no_verdict() {
    let bench = bench();
    merged(&bench, "{adapter: cat}");
    bench.recipe(SUM);
    let outcome = bench.weld(&["verify", "out", "--recipe", "recipe.yml"]);
    assert_eq!(outcome.code, Some(2));
    assert!(
        outcome.stderr.contains("`out` is an adapter"),
        "{}",
        outcome.stderr
    );
    let outcome = bench.weld(&["merge", "recipe.yml", "model"]);
    assert_eq!(outcome.code, Some(0), "{}", outcome.stderr);
    bench.recipe(&format!("{SUM}output: {{adapter: cat}}\n"));
    let outcome = bench.weld(&["verify", "model", "--recipe", "recipe.yml"]);
    assert_eq!(outcome.code, Some(2));
    assert!(
        outcome.stderr.contains("`model` is a model"),
        "{}",
        outcome.stderr
    );
    // PEFT's own adapters have no lock, and no recipe.
    let outcome = bench.weld(&["verify", "x"]);
    assert_eq!(outcome.code, Some(2));
    assert!(
        outcome.stderr.contains("model+adapter"),
        "{}",
        outcome.stderr
    );
    for text in [
        "{}",
        "[",
        "{\"base\": \"a\", \"finetune\": \"b\", \"dtype\": \"int8\", \"rank\": 0}",
    ] {
        edit(&bench, LOCK, |lock| {
            lock["command"] = "extract-lora".into();
            lock["recipe"] = text.into();
        });
        let outcome = bench.weld(&["verify", "out"]);
        assert_ne!(outcome.code, Some(0), "{text}");
        assert!(!outcome.stderr.contains("panicked"), "{}", outcome.stderr);
    }
}

#[test]
fn a_file_for_llama_cpp_is_of_models_only() {
    let bench = bench();
    bench.recipe(&format!("{SUM}output: {{adapter: cat}}\n"));
    let outcome = bench.weld(&["merge", "recipe.yml", "out", "--gguf", "out.gguf"]);
    assert_eq!(outcome.code, Some(1), "{}", outcome.stderr);
    assert!(outcome.stderr.contains("--gguf"), "{}", outcome.stderr);
    assert!(!bench.path("out").exists());
}
