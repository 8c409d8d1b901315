//! `weld new`: the recipe that it writes says what was found, and can be planned.

use std::fs;
use std::os::unix::fs::symlink;
use std::path::Path;

use safetensors::Dtype;
use serde_json::json;

use crate::fixtures::{Bench, floats, llama, llama_config, noise};

/// A bench with the family of this repository in `family`.
fn family() -> Bench {
    let bench = Bench::new();
    let root = Path::new(env!("CARGO_MANIFEST_DIR"));
    symlink(root.join("recipes/family"), bench.path("family")).unwrap();
    bench
}

/// The recipe that `weld new` prints, which must be one that can be planned.
fn new(bench: &Bench, words: &[&str]) -> String {
    let outcome = bench.weld(&[&["new", "--out", "-"], words].concat());
    assert_eq!(outcome.code, Some(0), "{words:?}: {}", outcome.stderr);
    bench.file("new.yml", &outcome.stdout);
    let plan = bench.weld(&["plan", "new.yml"]);
    assert_eq!(
        plan.code,
        Some(0),
        "{words:?}: {}\n{}",
        plan.stderr,
        outcome.stdout
    );
    outcome.stdout
}

fn has(text: &str, parts: &[&str]) {
    for part in parts {
        assert!(text.contains(part), "{part}: {text}");
    }
}

#[test]
fn the_base_is_recognised_among_its_fine_tunes() {
    let bench = family();
    let models = ["family/sort", "family/add", "family/base", "family/cipher"];
    let text = new(&bench, &models);
    has(
        &text,
        &[
            "# family/base was taken for the base",
            "merge_method: task_arithmetic",
            "\nbase_model: family/base\n",
            "  - model: family/sort\n    parameters:\n      weight: 0.3\n",
            "\ndtype: bfloat16",
        ],
    );
    assert!(!text.contains("- model: family/base"), "{text}");
    // A mixture of what has nothing in common has no base.
    for (name, seed) in [("x", 1), ("y", 2), ("z", 3)] {
        bench.llama(name, seed, Dtype::F32);
    }
    let text = new(&bench, &["x", "y", "z"]);
    has(
        &text,
        &[
            "merge_method: linear",
            "No base is known",
            "\ndtype: float32",
        ],
    );
    assert!(!text.contains("base_model"), "{text}");
    // Two models alone do not tell which is the base, and the user may.
    let text = new(&bench, &["family/sort", "family/add"]);
    has(
        &text,
        &["merge_method: slerp", "base_model: family/sort", "  t: 0.5"],
    );
    let text = new(
        &bench,
        &["family/sort", "--base", "family/base", "--dtype", "float16"],
    );
    has(&text, &["base_model: family/base", "dtype: float16"]);
}

/// Each method gets a recipe from some number of models, and what it cannot take is refused before anything is written.
#[test]
fn every_method_has_a_recipe() {
    let bench = family();
    let choices: [&[&str]; 5] = [
        &[
            "family/sort",
            "family/add",
            "family/cipher",
            "--base",
            "family/base",
        ],
        &["family/sort", "family/add", "--base", "family/base"],
        &["family/sort", "--base", "family/base"],
        &["family/sort", "family/add"],
        &["family/sort"],
    ];
    for method in weldment::methods::all() {
        let name = method.info().name;
        let mut made = 0;
        for models in choices {
            let words = [models, &["--method", name]].concat();
            let outcome = bench.weld(&[&["new", "--out", "-"], &words[..]].concat());
            if outcome.code == Some(0) {
                let text = new(&bench, &words);
                has(&text, &[&format!("merge_method: {name} ")]);
                made += 1;
            } else {
                assert_eq!(outcome.code, Some(1), "{words:?}: {}", outcome.stderr);
                assert_eq!(outcome.stdout, "");
                has(&outcome.stderr, &["error: ", "hint: "]);
            }
        }
        // What calibrates a merge cannot tell which of the models that is; files of statistics nobody can guess.
        let fits = name != "svc" && method.info().statistics.is_none();
        assert_eq!(made > 0, fits, "{name}");
    }
}

#[test]
fn a_recipe_that_is_there_stays_unless_it_may_go() {
    let bench = family();
    let words = ["new", "family/sort", "family/add"];
    let first = bench.weld(&words);
    assert_eq!(first.code, Some(0), "{}", first.stderr);
    has(&first.stderr, &["wrote recipe.yml", "weld plan recipe.yml"]);
    let merged = bench.weld(&["merge", "recipe.yml", "out"]);
    assert_eq!(merged.code, Some(0), "{}", merged.stderr);
    bench.file("recipe.yml", "mine");
    let again = bench.weld(&words);
    assert_eq!(again.code, Some(1));
    has(&again.stderr, &["recipe.yml is there already", "--force"]);
    assert_eq!(
        fs::read_to_string(bench.path("recipe.yml")).unwrap(),
        "mine"
    );
    assert_eq!(
        bench.weld(&[&words[..], &["--force"]].concat()).code,
        Some(0)
    );
}

#[test]
fn adapters_go_onto_their_models() {
    let bench = Bench::new();
    bench.llama("base", 1, Dtype::F32);
    let name =
        |part: &str| format!("base_model.model.model.layers.0.self_attn.q_proj.lora_{part}.weight");
    for (folder, of) in [("lora", "base"), ("lost", "someone/else")] {
        let config = json!({"peft_type": "LORA", "r": 1, "lora_alpha": 1, "target_modules": ["q_proj"],
            "base_model_name_or_path": of});
        bench.file(&format!("{folder}/adapter_config.json"), config.to_string());
        bench.tensors(
            &format!("{folder}/adapter_model.safetensors"),
            &[
                floats(&name("A"), Dtype::F32, &[1, 8], noise(1, 8)),
                floats(&name("B"), Dtype::F32, &[8, 1], noise(2, 8)),
            ],
        );
    }
    let text = new(&bench, &["lora"]);
    has(
        &text,
        &[
            "# lora is a LoRA adapter: its config names the model.",
            "merge_method: passthrough",
            "- model: base+lora",
        ],
    );
    let text = new(&bench, &["lora", "lost", "--base", "base"]);
    has(
        &text,
        &[
            "base_model: base\n",
            "- model: base+lora",
            "- model: base+lost",
        ],
    );
    let lost = bench.weld(&["new", "lost"]);
    assert_eq!(lost.code, Some(1));
    has(
        &lost.stderr,
        &["`lost` is a LoRA adapter of `someone/else`", "--base MODEL"],
    );
}

#[test]
fn models_that_do_not_fit_are_told_and_nothing_is_written() {
    let bench = family();
    bench.llama("llama", 1, Dtype::F32);
    let mut config = llama_config(2);
    config["model_type"] = "qwen2".into();
    bench.model("qwen", &config, &llama(2, 2, Dtype::F32));
    for (words, parts) in [
        (
            &["new", "llama", "qwen"] as &[&str],
            &["`llama` is of the type llama", "`qwen` of the type qwen2"],
        ),
        (&["new", "llama", "family/sort"], &["recipe", "hint"]),
        (&["new", "llama", "llama"], &["named twice", "`llama`"]),
        (
            &["new", "llama", "--base", "llama"],
            &["no model to merge", "--base"],
        ),
        (
            &["new", "lama"],
            &["`lama` not found", "did you mean `llama`?"],
        ),
        (
            &["new", "family/sort", "family/add", "--method", "tise"],
            &["--method", "did you mean `ties`?"],
        ),
        (
            &["new", "family/sort", "--dtype", "int4"],
            &["--dtype", "bfloat16"],
        ),
        // There is no terminal to ask at.
        (&["new"], &["no models are named", "weld new MODEL MODEL"]),
    ] {
        let outcome = bench.weld(words);
        assert!(
            matches!(outcome.code, Some(1 | 2)),
            "{words:?}: {}",
            outcome.stderr
        );
        has(&outcome.stderr, parts);
        assert!(!bench.path("recipe.yml").exists(), "{words:?}");
    }
}

#[test]
fn names_are_written_so_that_yaml_reads_them_back() {
    let bench = Bench::new();
    let names = [
        "yes", "1e5", "a: b", "it's", "#x y", "null", "-q", "café", "base",
    ];
    for (seed, name) in names.iter().enumerate() {
        bench.llama(name, seed as u64, Dtype::F32);
    }
    for name in names {
        let path = format!("./{name}");
        let text = new(&bench, &[&path, "base/../base", "--method", "linear"]);
        has(&text, &["merge_method: linear"]);
        if !name.starts_with('-') {
            let text = new(&bench, &[name, "./base", "--method", "linear"]);
            has(&text, &[name]);
        }
    }
}
