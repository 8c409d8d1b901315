//! Quantised checkpoints, as every command sees them. Which storages there are is tried where they are decoded.

use safetensors::Dtype;
use serde_json::{Value, json};

use crate::fixtures::{Bench, Spec, config_with, floats, llama, read_json};
use crate::sources::quantised;

fn fp8() -> Value {
    config_with(
        2,
        json!({"quantization_config": {"quant_method": "fp8", "weight_block_size": [3, 5]}}),
    )
}

/// A model in FP8, `codes`; the same in F32, `plain`; and another, `b`.
fn bench(change: impl FnOnce(&mut Vec<Spec>)) -> Bench {
    let bench = Bench::new();
    let (mut codes, plain) = quantised(llama(1, 2, Dtype::BF16));
    change(&mut codes);
    bench.model("codes", &fp8(), &codes);
    bench.model("plain", &config_with(2, json!({})), &plain);
    bench.llama("b", 2, Dtype::BF16);
    bench
}

const TIES: &str = "merge_method: ties\nbase_model: b\nparameters: {weight: 0.7, density: 0.5}\nmodels: [{model: codes}]\n";

#[test]
fn a_merge_is_proven_and_its_output_is_plain() {
    let bench = bench(|_| {});
    let out = bench.merge(TIES, &["--hash-inputs"]);
    assert_eq!(
        read_json(&out.join("config.json")).get("quantization_config"),
        None
    );
    bench.passes(&["verify", "out", "--recipe", "recipe.yml", "--full"]);
    // Digests are of what is stored.
    let lock = read_json(&out.join("weldment.lock.json"));
    let inputs = lock["inputs"].as_array().unwrap().iter();
    let digests = inputs.filter_map(|input| input["tensors"].as_object());
    let scale = "model.layers.1.mlp.up_proj.weight_scale_inv";
    assert_eq!(
        digests
            .filter(|tensors| tensors.contains_key(scale))
            .count(),
        1
    );
    // Another scale is another merge, and the tensor that changed is named.
    let (codes, _) = quantised(llama(1, 2, Dtype::BF16));
    let changed = codes.into_iter().map(|spec| match spec.name == scale {
        true => floats(
            scale,
            Dtype::F32,
            &spec.shape.clone(),
            vec![0.5; spec.shape.iter().product()],
        ),
        false => spec,
    });
    bench.model("codes", &fp8(), &changed.collect::<Vec<_>>());
    let verified = bench.weld(&["verify", "out", "--recipe", "recipe.yml", "--full"]);
    assert_eq!(verified.code, Some(1), "{}", verified.stdout);
    assert!(verified.stdout.contains(scale), "{}", verified.stdout);
}

#[test]
fn it_is_compared_and_checked_by_its_values() {
    let bench = bench(|_| {});
    // The plain model has the same values, each rounded to float32.
    let diff = bench.weld(&["diff", "codes", "plain"]).stdout;
    assert!(diff.contains("cosine     1.00000000"), "{diff}");
    let listed = bench.weld(&["inspect", "codes"]);
    assert!(listed.stdout.contains("3 x 5 values"), "{}", listed.stdout);
    // The small model lacks tensors of the architecture; those that are there have the shapes of plain ones.
    let checked = bench.weld(&["check", "codes"]).stdout;
    assert!(checked.contains("config.quantised"), "{checked}");
    assert!(
        !checked.contains("up_proj") && !checked.contains("lm_head"),
        "{checked}"
    );
}

#[test]
fn equal_layers_are_found_behind_their_codes() {
    let bench = bench(|specs| {
        let first: Vec<Spec> = (specs.iter())
            .filter(|spec| spec.name.contains("layers.0."))
            .map(|spec| Spec {
                name: spec.name.replace("layers.0.", "layers.1."),
                dtype: spec.dtype,
                shape: spec.shape.clone(),
                bytes: spec.bytes.clone(),
            })
            .collect();
        specs.retain(|spec| !spec.name.contains("layers.1."));
        specs.extend(first);
    });
    let checked = bench.weld(&["check", "codes"]);
    assert!(
        checked.stdout.contains("values.identical-layers"),
        "{}",
        checked.stdout
    );
}

#[test]
fn scales_that_do_not_fit_are_findings() {
    let bench = bench(|specs| {
        for spec in specs
            .iter_mut()
            .filter(|spec| spec.name.contains("up_proj.weight_scale_inv"))
        {
            let count: usize = spec.shape.iter().product();
            spec.shape = vec![count];
        }
    });
    let checked = bench.weld(&["check", "codes"]);
    assert_eq!(checked.code, Some(1), "{}", checked.stdout);
    assert_eq!(
        checked
            .stdout
            .matches("expected a scale for each 3 x 5 values")
            .count(),
        2,
        "{}",
        checked.stdout
    );
    assert!(
        checked.stdout.contains("container.codes"),
        "{}",
        checked.stdout
    );
    let refused = bench.refused(TIES, &[]);
    assert!(refused.contains("up_proj.weight_scale_inv"), "{refused}");
}
