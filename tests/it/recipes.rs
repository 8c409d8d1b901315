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
        let bench = Bench::of_shipped();
        let outcome = bench.weld(&["merge", recipe.to_str().unwrap(), "out"]);
        assert_eq!(
            outcome.code,
            Some(0),
            "{}: {}",
            recipe.display(),
            outcome.stderr
        );
        // Fisher information from elsewhere does not say of which model it is.
        let expected = recipe.ends_with("fisher.yml");
        assert_eq!(
            outcome.stderr.contains("note:"),
            expected,
            "{}",
            outcome.stderr
        );
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

/// What a plan notes of values, and that it says nothing where there is nothing to say.
#[test]
fn values_that_tend_to_harm_are_noted() {
    let bench = Bench::new();
    for (seed, name) in [(1, "base"), (2, "a"), (3, "b")] {
        bench.llama(name, seed, safetensors::Dtype::BF16);
    }
    let of = |method: &str, params: &str| {
        bench.recipe(&format!(
            "merge_method: {method}\nbase_model: base\nmodels: [{{model: a}}, {{model: b}}]\nparameters: {params}\n"
        ));
        let plan = bench.weld(&["plan", "recipe.yml"]);
        assert_eq!(plan.code, Some(0), "{}", plan.stderr);
        // Long lines are wrapped.
        let all = plan.stdout + &plan.stderr;
        let words: Vec<&str> = all.split_whitespace().collect();
        words.join(" ")
    };
    let heavy = "the weights of task vectors, times lambda, add up to 1.8 at `";
    assert!(of("task_arithmetic", "{weight: 0.9}").contains(heavy));
    assert!(of("dare_linear", "{weight: 0.6, lambda: 1.5, density: 0.5}").contains(heavy));
    let gradient = "{weight: [{filter: q_proj, value: 0.9}, {value: 0.2}]}";
    let noted = of("task_arithmetic", gradient);
    assert!(
        noted.contains("q_proj.weight`, and nothing divides them"),
        "{noted}"
    );
    for (method, params) in [
        ("task_arithmetic", "{weight: 0.7}"),
        ("task_arithmetic", "{weight: 0.9, normalize: true}"),
        ("task_arithmetic", "{weight: 0.9, lambda: 0.5}"),
        ("ties", "{weight: 1, density: 0.5}"),
        ("tsvm", "{weight: 1}"),
        ("magmax", "{weight: 1}"),
    ] {
        let plan = of(method, params);
        assert!(
            !plan.contains("add up to") && !plan.contains("are usual"),
            "{plan}"
        );
    }
    assert!(of("tsvm", "{lambda: 7}").contains("`lambda` is 7 at `"));
    let sparse = of("dare_ties", "{weight: 0.5, density: 0.001}");
    assert!(
        sparse.contains("values from 0.01 to 1 are usual"),
        "{sparse}"
    );
}
