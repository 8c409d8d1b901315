//! The recipes that ship: one for each method, and each runs.

use std::path::Path;

use crate::fixtures::{Bench, load, recipes};

#[test]
fn every_method_has_a_recipe_of_its_name() {
    let names: Vec<String> = recipes()
        .iter()
        .map(|path| path.file_stem().unwrap().to_string_lossy().into_owned())
        .collect();
    for method in weldment::methods::all() {
        let name = method.info().name;
        assert!(
            names.iter().any(|recipe| recipe == name),
            "no recipes/{name}.yml"
        );
    }
}

#[test]
fn every_recipe_merges_the_family() {
    let family = Path::new(env!("CARGO_MANIFEST_DIR")).join("recipes/family");
    let inputs: Vec<_> = ["base", "sort", "reverse", "add", "cipher"]
        .map(|name| load(&family.join(name)))
        .into();
    for recipe in recipes() {
        let bench = Bench::new();
        let outcome = bench.weld(&["merge", recipe.to_str().unwrap(), "out"]);
        assert_eq!(
            outcome.code,
            Some(0),
            "{}: {}",
            recipe.display(),
            outcome.stderr
        );
        assert!(!outcome.stderr.contains("note:"), "{}", outcome.stderr);
        let merged = load(&bench.path("out"));
        assert!(
            !inputs.contains(&merged),
            "{} gives an input back",
            recipe.display()
        );
        // Every value is finite, and no tensor is all zeros.
        for (name, tensor) in &merged {
            let values = tensor.values();
            assert!(values.iter().all(|value| value.is_finite()), "{name}");
            assert!(values.iter().any(|value| *value != 0.0), "{name}");
        }
        let slices = recipe.ends_with("passthrough.yml");
        assert_eq!(merged.len(), if slices { 47 } else { 38 });
        for file in [
            "config.json",
            "tokenizer.json",
            "tokenizer_config.json",
            "generation_config.json",
            "README.md",
        ] {
            assert!(bench.path("out").join(file).exists(), "{file}");
        }
    }
}
