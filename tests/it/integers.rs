//! Tensors that have no mean: counters, maps between vocabularies, observers; and one number in two shapes.

use safetensors::Dtype;

use crate::fixtures::{Bench, Spec, by_name, floats, integers, llama, llama_config, noise, with};

const LINEAR: &str =
    "merge_method: linear\nmodels: [{model: a}, {model: b}]\nparameters: {weight: 0.5}\n";

/// Two models, each with one more tensor.
fn bench(a: Spec, b: Spec) -> Bench {
    let bench = Bench::new();
    for (seed, (name, more)) in (1..).zip([("a", a), ("b", b)]) {
        bench.model(
            name,
            &llama_config(2),
            &with(llama(seed, 2, Dtype::F32), more),
        );
    }
    bench
}

#[test]
fn counters_of_batches_are_the_donors() {
    let name = "backbone.bn1.num_batches_tracked";
    let bench = bench(integers(name, &[1000]), integers(name, &[2500]));
    bench.recipe(LINEAR);
    let outcome = bench.weld(&["merge", "recipe.yml", "out"]);
    assert_eq!(outcome.code, Some(0), "{}", outcome.stderr);
    assert!(
        outcome
            .stderr
            .contains("counters of batches are those of `a`"),
        "{}",
        outcome.stderr
    );
    assert_eq!(
        by_name(&bench.path("out"))[name].bytes,
        1000i64.to_le_bytes()
    );
    assert_eq!(bench.weld(&["verify", "out", "--full"]).code, Some(0));
}

#[test]
fn integers_that_differ_are_refused_in_the_plan_with_the_reason() {
    for (name, reason) in [
        ("d2t", "maps the draft's vocabulary to the target's"),
        ("model.t2d", "maps the draft's vocabulary to the target's"),
        (
            "model.token_types",
            "holds integers or bools that differ between `a` and `b`",
        ),
    ] {
        let bench = bench(integers(name, &[1, 2, 3]), integers(name, &[1, 2, 4]));
        bench.recipe(LINEAR);
        let outcome = bench.weld(&["plan", "recipe.yml"]);
        assert_eq!(outcome.code, Some(1));
        for part in [name, reason, "action: copy"] {
            assert!(outcome.stderr.contains(part), "{part}: {}", outcome.stderr);
        }
        // The remedy works.
        let recipe = format!("{LINEAR}except: [{{tensors: \"{name}\", action: copy}}]\n");
        let out = bench.merge(&recipe, &[]);
        assert_eq!(by_name(&out)[name].bytes[..8], 1i64.to_le_bytes());
    }
}

/// Quantisation-aware training leaves the range of an observer infinite until it has seen a value.
#[test]
fn the_range_of_an_observer_is_not_called_damaged() {
    let name = "model.fc.activation_post_process.min_val";
    let range = || floats(name, Dtype::F32, &[], [f64::INFINITY]);
    let bench = bench(range(), floats(name, Dtype::F32, &[], [1.0]));
    let message = bench.refused(LINEAR, &[]);
    assert!(
        message.contains("an observer that has seen no value"),
        "{message}"
    );
    assert!(!message.contains("damaged"), "{message}");
    for (more, options) in [
        (
            "except: [{tensors: ['*.min_val', '*.max_val'], action: drop}]\n",
            [].as_slice(),
        ),
        ("", &["--allow-nonfinite"]),
    ] {
        bench.merge(&format!("{LINEAR}{more}"), options);
    }
    let report = bench.weld(&["check", "a", "-q"]).stdout;
    let line = report
        .lines()
        .find(|line| line.contains("values.infinite"))
        .unwrap();
    assert!(line.contains("note"), "{line}");
}

/// No bound, and nothing to be seen: infinite in every input alike.
#[test]
fn bounds_and_masks_that_are_infinite_in_every_input_are_copied() {
    let dare = "merge_method: dare_ties\nbase_model: a\nmodels: [{model: b}]\nparameters: {weight: 0.5, density: 0.5}\n";
    for (name, values) in [
        ("model.layers.0.mlp.input_max", vec![f64::INFINITY]),
        ("model.layers.0.mlp.output_min", vec![f64::NEG_INFINITY]),
        ("model.attn_mask", vec![0.0, f64::NEG_INFINITY, 0.0, 0.0]),
    ] {
        let bound = || floats(name, Dtype::F32, &[values.len()], values.clone());
        let bench = bench(bound(), bound());
        for recipe in [LINEAR, dare] {
            let out = bench.merge(recipe, &[]);
            assert_eq!(by_name(&out)[name].values(), values, "{recipe}");
            let report = bench.weld(&["check", "out", "-q"]).stdout;
            let mut lines = report
                .lines()
                .filter(|line| line.contains("values.infinite"));
            assert!(lines.all(|line| line.contains("note")), "{report}");
        }
    }
    // Damage is refused as before: infinity in a weight, NaN in a bound.
    for (name, value) in [
        ("model.layers.0.mlp.scale", f64::INFINITY),
        ("model.layers.0.mlp.input_max", f64::NAN),
    ] {
        let damaged = || floats(name, Dtype::F32, &[1], [value]);
        let message = bench(damaged(), damaged()).refused(LINEAR, &[]);
        assert!(message.contains(name), "{message}");
    }
}

#[test]
fn shapes_that_differ_by_dimensions_of_one_are_the_donors() {
    for (of_a, of_b) in [
        (vec![], vec![1]),
        (vec![1], vec![]),
        (vec![6, 4, 1, 1], vec![6, 4]),
    ] {
        let spec = |shape: &[usize], seed| {
            let count = shape.iter().product();
            floats("model.logit_scale", Dtype::F32, shape, noise(seed, count))
        };
        let bench = bench(spec(&of_a, 1), spec(&of_b, 2));
        let out = bench.merge(LINEAR, &[]);
        let merged = &by_name(&out)["model.logit_scale"];
        assert_eq!(merged.shape, of_a);
        let [a, b] =
            ["a", "b"].map(|model| by_name(&bench.path(model))["model.logit_scale"].values());
        for (at, value) in merged.values().into_iter().enumerate() {
            assert!((value - (a[at] + b[at]) / 2.0).abs() < 1e-7);
        }
        let plan = bench.weld(&["plan", "recipe.yml"]);
        assert!(
            plan.stdout.contains("differ by dimensions of one alone"),
            "{}",
            plan.stdout
        );
    }
    // Another order of the values is another shape.
    let spec = |shape: &[usize]| floats("model.x", Dtype::F32, shape, noise(1, 24));
    let bench = bench(spec(&[6, 4]), spec(&[4, 6]));
    assert!(bench.refused(LINEAR, &[]).contains("has shape [6, 4]"));
}
