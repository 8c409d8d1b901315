//! What a merge writes passes `weld check`, as far as no value is needed, or nothing is written.

use std::fs;
use std::path::Path;

use serde_json::{Value, json};

use crate::fixtures::{Bench, Outcome, read_json};

const LINEAR: &str =
    "merge_method: linear\nmodels: [{model: base}, {model: sort}]\nparameters: {weight: 0.5}\n";

/// Two sound models, copied from the repository's.
fn bench() -> Bench {
    let bench = Bench::new();
    for name in ["base", "sort"] {
        let from = Path::new(env!("CARGO_MANIFEST_DIR"))
            .join("recipes/family")
            .join(name);
        for file in fs::read_dir(from).unwrap() {
            let file = file.unwrap();
            let to = format!("{name}/{}", file.file_name().to_string_lossy());
            bench.file(&to, fs::read(file.path()).unwrap());
        }
    }
    bench
}

fn merge(bench: &Bench, recipe: &str, more: &[&str]) -> Outcome {
    bench.recipe(recipe);
    bench.checked(&[&["merge", "recipe.yml", "out", "-q"], more].concat())
}

fn edit(bench: &Bench, file: &str, key: &str, value: Value) {
    let mut json = read_json(&bench.path(file));
    json[key] = value;
    bench.file(file, json.to_string());
}

/// The merge is refused with this finding, leaves nothing, and can be insisted on.
fn refused(bench: &Bench, recipe: &str, finding: &[&str]) -> String {
    let outcome = merge(bench, recipe, &[]);
    assert_eq!(outcome.code, Some(1), "{}", outcome.stderr);
    for part in finding.iter().copied().chain(["--no-check"]) {
        assert!(outcome.stderr.contains(part), "{part}: {}", outcome.stderr);
    }
    let left = fs::read_dir(bench.path("")).unwrap();
    let left = left.map(|entry| entry.unwrap().file_name().into_string().unwrap());
    assert!(
        !left
            .into_iter()
            .any(|name| name == "out" || name.contains("weld-"))
    );
    let outcome_without = merge(bench, recipe, &["--no-check"]);
    assert_eq!(outcome_without.code, Some(0), "{}", outcome_without.stderr);
    fs::remove_dir_all(bench.path("out")).unwrap();
    outcome.stderr
}

#[test]
fn what_is_sound_is_written_and_passes() {
    let bench = bench();
    // Neither notes nor warnings fail a merge.
    let unknown = r#"{"mask_token": "<of no vocabulary>"}"#;
    bench.file("base/special_tokens_map.json", unknown);
    let outcome = merge(&bench, LINEAR, &[]);
    assert_eq!(outcome.code, Some(0), "{}", outcome.stderr);
    let report = bench.checked(&["check", "out", "-q"]);
    assert_eq!(report.code, Some(0));
    assert!(
        report.stdout.contains("tokenizer.unknown-special-token"),
        "{}",
        report.stdout
    );
}

#[test]
fn an_error_of_an_input_is_not_carried_along() {
    let cases: [(&str, &str, Value, &[&str]); 5] = [
        (
            "config.json",
            "vocab_size",
            json!(4096),
            &[
                "structure.vocab-size",
                "`base` and `sort` have the same error",
            ],
        ),
        (
            "config.json",
            "num_hidden_layers",
            json!(9),
            &[
                "structure.layer-count",
                "`base` and `sort` have the same error",
            ],
        ),
        (
            "config.json",
            "intermediate_size",
            json!(7),
            &["structure.shape", "and 1", "`base` and `sort` have"],
        ),
        (
            "config.json",
            "eos_token_id",
            json!(99_999),
            &["tokenizer.special-id", "`base` has the same error"],
        ),
        (
            "generation_config.json",
            "bos_token_id",
            json!(99_999),
            &["tokenizer.special-id", "`base` has the same error"],
        ),
    ];
    for (file, key, value, finding) in cases {
        let bench = bench();
        // Sizes must be the same in both; the files of the first are taken.
        let models = if key.ends_with("_id") { 1 } else { 2 };
        for model in ["base", "sort"].into_iter().take(models) {
            let path = format!("{model}/{file}");
            if !bench.path(&path).exists() {
                bench.file(&path, "{}");
            }
            edit(&bench, &path, key, value.clone());
        }
        refused(&bench, LINEAR, finding);
    }
}

#[test]
fn malformed_files_are_not_carried_along() {
    for (file, id) in [
        ("generation_config.json", "tokenizer.malformed"),
        ("special_tokens_map.json", "tokenizer.malformed"),
        ("vocab-src.json", "tokenizer.malformed"),
        ("preprocessor_config.json", "config.malformed"),
    ] {
        let bench = bench();
        bench.file(&format!("base/{file}"), "{\"a\": ");
        let message = refused(&bench, LINEAR, &[id, file, "`base` has the same error"]);
        // The folder that is being written has a name that nobody knows.
        assert!(!message.contains("staging"), "{message}");
    }
}

#[test]
fn an_error_that_no_input_has_is_the_outputs_own() {
    let bench = bench();
    let recipe = format!("{LINEAR}except: [{{tensors: \"*.mlp.up_proj.weight\", action: drop}}]\n");
    let message = refused(&bench, &recipe, &["structure.missing-tensor", "up_proj"]);
    assert!(!message.contains("same error"), "{message}");
}

#[test]
fn the_error_is_found_before_anything_is_computed() {
    let bench = bench();
    edit(&bench, "base/config.json", "eos_token_id", json!(99_999));
    bench.recipe(LINEAR);
    let outcome = bench.checked(&["merge", "recipe.yml", "out"]);
    assert_eq!(outcome.code, Some(1));
    // The line of progress comes with the first bytes that are read.
    assert!(!outcome.stderr.contains("merging"), "{}", outcome.stderr);
}
