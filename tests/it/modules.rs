//! `modules:`: models of several towers, each merged from inputs of its own.

use safetensors::Dtype;
use serde_json::{Value, json};

use crate::fixtures::{Bench, Spec, by_name, floats, noise, read_json};

fn stack(specs: &mut Vec<Spec>, prefix: &str, layers: usize, suffix: &str, seed: u64) {
    for layer in 0..layers {
        let name = format!("{prefix}{layer}.{suffix}");
        specs.push(floats(
            &name,
            Dtype::F32,
            &[4, 4],
            noise(seed + layer as u64, 16),
        ));
    }
}

/// A tiny Qwen2-VL: a text decoder, a vision tower and the merger between them.
fn vision_language(bench: &Bench, name: &str, seed: u64, text: usize, vision: usize) {
    let seed = seed * 1000;
    let one = |name: &str, seed: u64| floats(name, Dtype::F32, &[6, 4], noise(seed, 24));
    let mut specs = vec![one("model.embed_tokens.weight", seed + 1)];
    stack(
        &mut specs,
        "model.layers.",
        text,
        "mlp.up_proj.weight",
        seed + 10,
    );
    specs.push(one("model.norm.weight", seed + 2));
    specs.push(one("lm_head.weight", seed + 3));
    specs.push(one("visual.patch_embed.proj.weight", seed + 4));
    stack(
        &mut specs,
        "visual.blocks.",
        vision,
        "attn.proj.weight",
        seed + 20,
    );
    specs.push(one("visual.merger.mlp.0.weight", seed + 5));
    let config = json!({
        "architectures": ["Qwen2VLForConditionalGeneration"],
        "model_type": "qwen2_vl",
        "tie_word_embeddings": false,
        "text_config": {"num_hidden_layers": text, "vocab_size": 6},
        "vision_config": {"depth": vision},
    });
    bench.model(name, &config, &specs);
}

fn config(bench: &Bench) -> Value {
    read_json(&bench.path("out/config.json"))
}

#[test]
fn each_tower_is_merged_from_its_own_inputs() {
    let bench = Bench::new();
    vision_language(&bench, "a", 1, 3, 4);
    vision_language(&bench, "b", 2, 3, 4);
    let recipe = "
merge_method: linear
modules:
  text_decoder:
    models: [{model: a, parameters: {weight: 1}}, {model: b, parameters: {weight: 3}}]
  vision_tower:
    slices:
    - sources: [{model: a, layer_range: [0, 2]}]
    - sources: [{model: b, layer_range: [1, 4]}]
    parameters: {weight: 1}
  multi_modal_projector:
    models: [{model: b}]
    parameters: {weight: 1}
";
    let out = by_name(&bench.merge(recipe, &[]));
    let (a, b) = (by_name(&bench.path("a")), by_name(&bench.path("b")));
    assert_eq!(
        out["visual.merger.mlp.0.weight"],
        b["visual.merger.mlp.0.weight"]
    );
    assert_eq!(
        out["visual.blocks.4.attn.proj.weight"],
        b["visual.blocks.3.attn.proj.weight"]
    );
    assert_eq!(
        out["visual.blocks.1.attn.proj.weight"],
        a["visual.blocks.1.attn.proj.weight"]
    );
    let name = "model.layers.2.mlp.up_proj.weight";
    let (x, y) = (a[name].values(), b[name].values());
    for (index, value) in out[name].values().into_iter().enumerate() {
        assert!((value - (x[index] + 3.0 * y[index]) / 4.0).abs() < 1e-8);
    }
    let config = config(&bench);
    assert_eq!(config["vision_config"]["depth"], json!(5));
    assert_eq!(config["text_config"]["num_hidden_layers"], json!(3));
}

#[test]
fn towers_of_other_depths_are_cut_by_themselves() {
    let bench = Bench::new();
    vision_language(&bench, "a", 1, 4, 4);
    let recipe = "
merge_method: passthrough
modules:
  text_decoder: {slices: [{sources: [{model: a, layer_range: [0, 4]}]}, {sources: [{model: a, layer_range: [2, 4]}]}]}
  visual: {models: [{model: a}]}
";
    let out = by_name(&bench.merge(recipe, &[]));
    assert_eq!(
        out["model.layers.5.mlp.up_proj.weight"],
        by_name(&bench.path("a"))["model.layers.3.mlp.up_proj.weight"]
    );
    assert_eq!(config(&bench)["text_config"]["num_hidden_layers"], json!(6));
    assert_eq!(config(&bench)["vision_config"]["depth"], json!(4));
    // Both stacks have as many layers: without modules nobody knows which is meant.
    std::fs::remove_dir_all(bench.path("out")).unwrap();
    let message = bench.refused(
        "merge_method: passthrough\nslices: [{sources: [{model: a, layer_range: [0, 4]}]}]\n",
        &[],
    );
    assert!(message.contains("`modules:`"), "{message}");
}

#[test]
fn encoder_and_decoder_count_their_own_layers() {
    for (fields, encoder, decoder) in [
        (
            json!({"num_layers": 2, "model_type": "t5"}),
            "num_layers",
            "num_decoder_layers",
        ),
        (
            json!({"encoder_layers": 2, "decoder_layers": 2, "num_hidden_layers": 2}),
            "encoder_layers",
            "decoder_layers",
        ),
    ] {
        let bench = Bench::new();
        let mut specs = vec![floats("shared.weight", Dtype::F32, &[6, 4], noise(1, 24))];
        stack(&mut specs, "encoder.block.", 2, "layer.0.weight", 10);
        stack(&mut specs, "decoder.block.", 2, "layer.0.weight", 20);
        bench.model("a", &fields, &specs);
        let recipe = "
merge_method: passthrough
modules:
  shared: {models: [{model: a}]}
  encoder: {slices: [{sources: [{model: a, layer_range: [0, 2]}]}, {sources: [{model: a, layer_range: [0, 1]}]}]}
  decoder: {models: [{model: a}]}
";
        bench.merge(recipe, &[]);
        let config = config(&bench);
        assert_eq!(
            (&config[encoder], &config[decoder]),
            (&json!(3), &json!(2)),
            "{config}"
        );
    }
}

#[test]
fn a_cut_tower_excuses_no_extra_tensor_of_another() {
    let bench = Bench::new();
    vision_language(&bench, "a", 1, 3, 2);
    vision_language(&bench, "b", 2, 3, 4);
    // Two layers of the vision tower that only `b` has would be lost.
    let recipe = "
merge_method: linear
parameters: {weight: 1}
modules:
  text_decoder:
    slices:
    - sources: [{model: a, layer_range: [0, 2]}, {model: b, layer_range: [0, 2]}]
  visual: {models: [{model: a}, {model: b}]}
";
    let message = bench.refused(recipe, &[]);
    assert!(
        message.contains("`b` has 2 tensors that `a` lacks"),
        "{message}"
    );
    assert!(
        message.contains("visual.blocks.2.attn.proj.weight"),
        "{message}"
    );
}

#[test]
fn every_tensor_has_a_module_and_every_module_tensors() {
    let bench = Bench::new();
    vision_language(&bench, "a", 1, 2, 3);
    let message = bench.refused(
        "merge_method: passthrough\nmodules:\n  vision_tower: {models: [{model: a}]}\n",
        &[],
    );
    insta::assert_snapshot!(message, @"
    error: 5 tensors of `a` are in none of the modules: `lm_head.weight`, `model.embed_tokens.weight`, `model.layers.0.mlp.up_proj.weight`, `model.layers.1.mlp.up_proj.weight` and 1 more
     --> recipe.yml:3:3
      |
    3 |   vision_tower: {models: [{model: a}]}
      |   ^^^^^^^^^^^^
      |
      = hint: a module is a part of tensor names between dots, and `text_decoder` takes what no other does: add one for these
    ");
    let message = bench.refused(
        "merge_method: passthrough\nmodules:\n  text_decoder: {models: [{model: a}]}\n  audio_tower: {models: [{model: a}]}\n",
        &[],
    );
    insta::assert_snapshot!(message, @"
    error: `a` has no tensors in the module `audio_tower`
     --> recipe.yml:4:3
      |
    4 |   audio_tower: {models: [{model: a}]}
      |   ^^^^^^^^^^^
      |
      = hint: a module is a part of tensor names between dots; these begin with `lm_head`, `model`, `visual`
    ");
}

#[test]
fn a_module_without_a_model_leaves_its_tensors_alone() {
    let bench = Bench::new();
    vision_language(&bench, "a", 1, 2, 3);
    vision_language(&bench, "b", 2, 2, 3);
    let recipe = "
merge_method: linear
parameters: {weight: 1}
modules:
  text_decoder: {models: [{model: a}, {model: b}]}
  visual: {models: [{model: a}]}
";
    let out = by_name(&bench.merge(recipe, &[]));
    assert_eq!(
        out["visual.blocks.0.attn.proj.weight"],
        by_name(&bench.path("a"))["visual.blocks.0.attn.proj.weight"]
    );
}
