//! Inputs that look damaged are named in notes of a merge, which reads every byte.

use safetensors::Dtype;

use crate::fixtures::{Bench, Spec, by_name, floats, llama, llama_config, noise};

const LINEAR: &str =
    "merge_method: linear\nmodels: [{model: a}, {model: b}]\nparameters: {weight: 0.5}\n";

/// The tensors of a model with larger matrices: 64 x 64 in each of four layers.
fn specs(seed: u64, dtype: Dtype) -> Vec<Spec> {
    let mut specs = llama(seed, 4, dtype);
    for layer in 0..4 {
        let name = format!("model.layers.{layer}.mlp.wide_proj.weight");
        specs.push(floats(
            &name,
            dtype,
            &[64, 64],
            noise(seed + layer, 64 * 64),
        ));
    }
    specs
}

fn set(specs: &mut [Spec], layer: usize, range: std::ops::Range<usize>, value: f64) {
    let name = format!("model.layers.{layer}.mlp.wide_proj.weight");
    let spec = specs.iter_mut().find(|spec| spec.name == name).unwrap();
    let format = weldment::numeric::FloatType::from_dtype(spec.dtype).unwrap();
    let mut values = vec![0.0; spec.bytes.len() / format.size()];
    format.decode(&spec.bytes, &mut values);
    values[range].fill(value);
    *spec = floats(&name, spec.dtype, &spec.shape.clone(), values);
}

/// The notes of a merge of two models, the first of them changed.
fn notes(recipe: &str, change: impl Fn(&mut Vec<Spec>, &mut Vec<Spec>)) -> Vec<String> {
    let bench = Bench::new();
    let (mut a, mut b) = (specs(1, Dtype::BF16), specs(50, Dtype::BF16));
    change(&mut a, &mut b);
    bench.model("a", &llama_config(4), &a);
    bench.model("b", &llama_config(4), &b);
    bench.recipe(recipe);
    let outcome = bench.weld(&["merge", "recipe.yml", "out"]);
    assert_eq!(outcome.code, Some(0), "{}", outcome.stderr);
    assert_eq!(by_name(&bench.path("out")).len(), a.len());
    let lines = outcome
        .stderr
        .lines()
        .filter(|line| line.contains("weld check"));
    lines.map(str::to_owned).collect()
}

#[test]
fn zeros_where_weights_should_be_are_noted_with_model_and_tensor() {
    for recipe in [
        LINEAR,
        "merge_method: ties\nbase_model: b\nmodels: [{model: a}]\nparameters: {weight: 1, density: 0.5}\n",
        "merge_method: passthrough\nmodels: [{model: a}]\n",
    ] {
        let found = notes(recipe, |a, _| set(a, 2, 1000..3000, 0.0));
        assert_eq!(found.len(), 1, "{recipe} {found:?}");
        assert!(found[0].contains("`a` has runs of zeros"), "{found:?}");
        assert!(
            found[0].contains("`model.layers.2.mlp.wide_proj.weight`"),
            "{found:?}"
        );
    }
    // The last tenth of a file that never arrived: whole tensors of zeros, where the other model has weights.
    let found = notes(LINEAR, |a, _| set(a, 3, 0..4096, 0.0));
    assert_eq!(found.len(), 1, "{found:?}");
    assert!(
        found[0].contains("`model.layers.3.mlp.wide_proj.weight`"),
        "{found:?}"
    );
}

#[test]
fn values_that_no_weight_has_are_noted() {
    let found = notes(LINEAR, |_, b| set(b, 1, 77..78, 2.4e35));
    assert_eq!(found.len(), 1, "{found:?}");
    assert!(
        found[0].contains("`b` has values far beyond those of any weight"),
        "{found:?}"
    );
    assert!(
        found[0].contains("`model.layers.1.mlp.wide_proj.weight`"),
        "{found:?}"
    );
}

#[test]
fn zeros_that_are_meant_are_not_noted() {
    assert_eq!(notes(LINEAR, |_, _| {}), [] as [String; 0]);
    // Padded or pruned alike in all layers.
    let all = |specs: &mut Vec<Spec>| (0..4).for_each(|layer| set(specs, layer, 2048..4096, 0.0));
    assert_eq!(notes(LINEAR, |a, b| (all(a), all(b)).0), [] as [String; 0]);
    // A matrix that is zeros in every model was never trained.
    let never = |specs: &mut Vec<Spec>| set(specs, 1, 0..4096, 0.0);
    assert_eq!(
        notes(LINEAR, |a, b| (never(a), never(b)).0),
        [] as [String; 0]
    );
}
