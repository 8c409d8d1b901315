//! Recipes built like the examples that mergekit ships, on stand-ins with as many layers and the same names.

use std::collections::BTreeMap;

use safetensors::Dtype;

use crate::fixtures::{Bench, Loaded, by_name, llama, llama_config, read_json};

/// Stand-ins of so many layers, each with its own weights.
fn bench(models: &[&str], layers: usize) -> Bench {
    let bench = Bench::new();
    for (model, seed) in models.iter().zip(1..) {
        bench.model(
            model,
            &llama_config(layers),
            &llama(seed, layers, Dtype::F16),
        );
    }
    bench
}

/// Plans and merges a recipe; the plan has no note that a user should look into.
fn merged(bench: &Bench, recipe: &str) -> BTreeMap<String, Loaded> {
    bench.recipe(recipe);
    let outcome = bench.weld(&["plan", "recipe.yml"]);
    assert_eq!(outcome.code, Some(0), "{}", outcome.stderr);
    by_name(&bench.merge(recipe, &[]))
}

/// orcamini-platy-44layer: two models of 40 layers, of which one is on top of the other.
#[test]
fn a_frankenmerge_of_44_layers() {
    let bench = bench(&["orca", "platypus"], 40);
    let out = merged(
        &bench,
        "
slices:
  - sources:
    - model: orca
      layer_range: [0, 24]
  - sources:
    - model: platypus
      layer_range: [20, 40]
merge_method: passthrough
dtype: float16
",
    );
    let config = read_json(&bench.path("out/config.json"));
    assert_eq!(config["num_hidden_layers"], 44);
    assert_eq!(config["dtype"], "float16");
    let (orca, platypus) = (
        by_name(&bench.path("orca")),
        by_name(&bench.path("platypus")),
    );
    assert_eq!(out.len(), orca.len() + 4 * 4);
    let mlp = |layer: usize| format!("model.layers.{layer}.mlp.up_proj.weight");
    for layer in 0..44 {
        let expected = if layer < 24 {
            &orca[&mlp(layer)]
        } else {
            &platypus[&mlp(layer - 4)]
        };
        assert_eq!(&out[&mlp(layer)], expected, "layer {layer}");
    }
    let (embedding, head) = ("model.embed_tokens.weight", "lm_head.weight");
    assert_eq!(out[embedding], orca[embedding]);
    assert_eq!(out[head], platypus[head]);
}

/// gradient-slerp: attention goes from one model to the other over the layers, the MLP the other way.
#[test]
fn a_slerp_whose_t_is_a_gradient_for_each_kind_of_tensor() {
    let bench = bench(&["orca", "platypus"], 40);
    let out = merged(
        &bench,
        "
slices:
  - sources:
      - model: orca
        layer_range: [0, 40]
      - model: platypus
        layer_range: [0, 40]
merge_method: slerp
base_model: orca
parameters:
  t:
    - filter: self_attn
      value: [0, 0.5, 0.3, 0.7, 1]
    - filter: mlp
      value: [1, 0.5, 0.7, 0.3, 0]
    - value: 0.5 # for the rest
dtype: float16
",
    );
    let (orca, platypus) = (
        by_name(&bench.path("orca")),
        by_name(&bench.path("platypus")),
    );
    let attention = |layer: usize| format!("model.layers.{layer}.self_attn.q_proj.weight");
    let mlp = |layer: usize| format!("model.layers.{layer}.mlp.down_proj.weight");
    assert_eq!(out[&attention(0)], orca[&attention(0)]);
    assert_eq!(out[&attention(39)], platypus[&attention(39)]);
    assert_eq!(out[&mlp(0)], platypus[&mlp(0)]);
    assert_eq!(out[&mlp(39)], orca[&mlp(39)]);
    // A third of the way, between 0.5 and 0.3.
    bench.recipe(
        "merge_method: slerp\nbase_model: orca\nmodels: [{model: orca}, {model: platypus}]\nparameters: {t: 0.43333333333333333}\ndtype: float16\n",
    );
    let outcome = bench.weld(&["merge", "recipe.yml", "third", "-q"]);
    assert_eq!(outcome.code, Some(0), "{}", outcome.stderr);
    let third = by_name(&bench.path("third"));
    assert_eq!(out[&attention(13)], third[&attention(13)]);
}

/// bio-merge: TIES of two fine-tunes, the base not among the models, not normalised.
#[test]
fn a_ties_merge_of_two_models_and_a_base_that_is_not_listed() {
    let bench = bench(&["mistral", "instruct", "bio"], 32);
    let out = merged(
        &bench,
        "
models:
  - model: instruct
    parameters:
      density: 0.5
      weight: 0.5
  - model: bio
    parameters:
      density: 0.5
      weight: 0.5
merge_method: ties
base_model: mistral
parameters:
  normalize: false
  int8_mask: true
dtype: float16
",
    );
    let inputs: Vec<_> = ["mistral", "instruct", "bio"]
        .map(|model| by_name(&bench.path(model)))
        .into();
    assert!(out.keys().eq(inputs[0].keys()));
    let name = "model.layers.31.mlp.up_proj.weight";
    let base = inputs[0][name].values();
    let half = base.len() / 2;
    let deltas: Vec<Vec<f64>> = inputs[1..]
        .iter()
        .map(|model| {
            let tuned = model[name].values();
            let delta: Vec<f64> = tuned.iter().zip(&base).map(|(x, b)| x - b).collect();
            let mut largest: Vec<f64> = delta.iter().map(|x| x.abs()).collect();
            largest.sort_by(|a, b| b.total_cmp(a));
            let threshold = largest[half - 1];
            delta
                .into_iter()
                .map(|x| if x.abs() >= threshold { x } else { 0.0 })
                .collect()
        })
        .collect();
    for (index, merged) in out[name].values().into_iter().enumerate() {
        let (x, y) = (deltas[0][index] / 2.0, deltas[1][index] / 2.0);
        let sign = if x + y >= 0.0 { 1.0 } else { -1.0 };
        let sum: f64 = [x, y].iter().filter(|u| **u * sign > 0.0).sum();
        let expected = half::f16::from_f64(base[index] + sum).to_f64();
        assert_eq!(merged, expected, "{index}");
    }
}

/// ties: gradients of density and weight, a weight for the MLP alone.
#[test]
fn a_ties_merge_with_gradients_and_a_filter() {
    let bench = bench(&["llama", "orca", "platypus", "math"], 40);
    let out = merged(
        &bench,
        "
models:
  - model: orca
    parameters:
      density: [1, 0.7, 0.1] # over the layers
      weight: 1.0
  - model: platypus
    parameters:
      density: 0.5
      weight: [0, 0.3, 0.7, 1]
  - model: math
    parameters:
      density: 0.33
      weight:
        - filter: mlp
          value: 0.5
        - value: 0
merge_method: ties
base_model: llama
parameters:
  normalize: true
  int8_mask: true
dtype: float16
",
    );
    // In the first layer `platypus` weighs nothing, outside of the MLP `math` neither: `orca`, of density 1, is left.
    let orca = by_name(&bench.path("orca"));
    for (name, tensor) in &out {
        let first = name.starts_with("model.layers.0.") || !name.starts_with("model.layers.");
        let alone = first && !name.contains(".mlp.");
        assert_eq!(*tensor == orca[name], alone, "{name}");
    }
}

/// linear: three models whose weights do not sum to one.
#[test]
fn a_linear_merge_of_three_models() {
    let bench = bench(&["orca", "wizard", "platypus"], 40);
    let out = merged(
        &bench,
        "
models:
  - model: orca
    parameters:
      weight: 1.0
  - model: wizard
    parameters:
      weight: 0.3
  - model: platypus
    parameters:
      weight: 0.5
merge_method: linear
dtype: float16
",
    );
    let inputs = ["orca", "wizard", "platypus"].map(|model| by_name(&bench.path(model)));
    for (name, tensor) in &out {
        let values = inputs.each_ref().map(|model| model[name].values());
        for (index, merged) in tensor.values().into_iter().enumerate() {
            let sum = values[0][index] + 0.3 * values[1][index] + 0.5 * values[2][index];
            let expected = sum / 1.8;
            assert!(
                (merged - expected).abs() <= (expected.abs() * 2f64.powi(-10)).max(2f64.powi(-24)),
                "{name}: {merged}, not {expected}"
            );
        }
    }
}

/// A file of mergekit-multi: a mean, a slerp from it to another model, DARE of that and one more.
#[test]
fn three_merges_of_which_each_uses_the_one_before() {
    let bench = bench(&["mistral", "bio", "hermes", "openhermes"], 32);
    let file = "
name: first-merge
merge_method: linear
models:
  - model: mistral
  - model: bio
parameters:
  weight: 0.5
---
name: second-merge
merge_method: slerp
base_model: first-merge # the result of the first
models:
  - model: hermes
parameters:
  t: 0.5
---
# The last one has no name.
merge_method: dare_ties
base_model: mistral
models:
  - model: second-merge
    parameters:
      density: 0.6
      weight: 0.5
  - model: openhermes
    parameters:
      density: 0.8
      weight: 0.5
";
    let out = merged(&bench, file);
    let mut steps = file.split("---\n");
    for name in ["first-merge", "second-merge"] {
        let step = steps.next().unwrap();
        let recipe = step.replace(&format!("name: {name}\n"), "");
        bench.recipe(&recipe);
        let outcome = bench.weld(&["merge", "recipe.yml", name, "-q"]);
        assert_eq!(outcome.code, Some(0), "{}", outcome.stderr);
    }
    assert!(merged(&bench, steps.next().unwrap()) == out);
}

/// arcee_fusion: the base is one of the two models.
#[test]
fn a_fusion_of_two_models_of_which_one_is_the_base() {
    let bench = bench(&["one", "other"], 24);
    let out = merged(
        &bench,
        "
models:
  - model: one
  - model: other
merge_method: arcee_fusion
base_model: one
dtype: bfloat16
",
    );
    let inputs = ["one", "other"].map(|model| by_name(&bench.path(model)));
    let mut chosen = [0, 0];
    for (name, tensor) in &out {
        assert_eq!(tensor.dtype, Dtype::BF16, "{name}");
        let values = inputs.each_ref().map(|model| model[name].values());
        for (index, merged) in tensor.values().into_iter().enumerate() {
            let of = values
                .iter()
                .position(|model| half::bf16::from_f64(model[index]).to_f64() == merged);
            chosen[of.unwrap_or_else(|| panic!("{name}: {merged} is of neither"))] += 1;
        }
    }
    // The important changes are few: those beyond the median and one and a half interquartile ranges.
    assert!(chosen[1] > 0 && chosen[1] * 2 < chosen[0], "{chosen:?}");
}
