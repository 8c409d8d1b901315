//! `modules:`: models of several towers, each merged from inputs of its own. And modules behind a model, whose weights lie
//! in folders and files of their own.

use std::fs;
use std::path::Path;

use safetensors::Dtype;
use serde_json::{Value, json};

use weldment::checkpoint::{Checkpoint, Location, WrittenAs, single_file_layout};

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
fn more_modules_than_any_model_has_are_refused_before_they_are_looked_for() {
    let bench = Bench::new();
    for model in ["a", "b"] {
        bench.model(
            model,
            &json!({"model_type": "bert"}),
            &crate::fixtures::llama(1, 1, Dtype::F32),
        );
    }
    let module = |at: usize| json!({"idx": at, "path": format!("{at}_Dense"), "type": "sentence_transformers.models.Dense"});
    let modules: Vec<_> = (0..200_000).map(module).collect();
    bench.file("a/modules.json", json!(modules).to_string());
    let checked = bench.weld(&["check", "a"]);
    assert_eq!(checked.code, Some(1));
    assert!(
        checked.stdout.contains("number of folders that it names"),
        "{}",
        checked.stdout
    );
    assert!(!checked.stdout.contains("1_Dense"));
    let index: serde_json::Map<String, serde_json::Value> = (0..200_000)
        .map(|at| (format!("part{at}"), json!(["diffusers", "X"])))
        .collect();
    bench.file(
        "b/model_index.json",
        serde_json::Value::Object(index).to_string(),
    );
    let checked = bench.weld(&["check", "b"]);
    assert!(
        checked.stdout.contains("number of folders that it names"),
        "{}",
        checked.stdout
    );
    assert!(!checked.stdout.contains("part1"));
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

const MEAN: &str =
    "merge_method: linear\nparameters: {weight: 0.5}\nmodels: [{model: a}, {model: b}]\n";

/// A tiny Llama with a pooling and a Dense module behind it, as sentence-transformers saves it.
fn embedder(bench: &Bench, name: &str, seed: u64) {
    bench.llama(name, seed, Dtype::F32);
    let module = |number: usize, path: &str, kind: &str| {
        let kind = format!("sentence_transformers.models.{kind}");
        json!({"idx": number, "name": number.to_string(), "path": path, "type": kind})
    };
    let modules = json!([
        module(0, "", "Transformer"),
        module(1, "1_Pooling", "Pooling"),
        module(2, "2_Dense", "Dense"),
    ]);
    bench.file(&format!("{name}/modules.json"), modules.to_string());
    bench.file(&format!("{name}/1_Pooling/config.json"), "{}");
    let settings = r#"{"in_features": 8, "out_features": 2}"#;
    bench.file(&format!("{name}/2_Dense/config.json"), settings);
    dense(bench, name, seed);
}

fn dense(bench: &Bench, name: &str, seed: u64) {
    let values = noise(seed + 500, 16);
    let weight = floats("linear.weight", Dtype::F32, &[2, 8], values);
    bench.tensors(&format!("{name}/2_Dense/model.safetensors"), &[weight]);
}

/// The only tensor of a file.
fn only(path: &Path) -> Vec<f64> {
    let tensors = by_name(path);
    assert_eq!(tensors.len(), 1, "{}", path.display());
    tensors.into_values().next().unwrap().values()
}

/// Whether a file has the mean of those of `a` and `b`.
#[track_caller]
fn is_mean(bench: &Bench, file: &str) {
    let [a, b, out] = ["a", "b", "out"].map(|model| only(&bench.path(model).join(file)));
    for ((a, b), out) in a.iter().zip(&b).zip(&out) {
        assert!(
            ((a + b) / 2.0 - out).abs() < 1e-8,
            "{file}: {a}, {b}, {out}"
        );
    }
}

#[test]
fn modules_behind_a_model_are_merged_as_the_model_is() {
    let bench = Bench::new();
    embedder(&bench, "a", 1);
    embedder(&bench, "b", 2);
    bench.merge(MEAN, &["--hash-inputs"]);
    is_mean(&bench, "2_Dense/model.safetensors");
    let settings = |model: &str| fs::read(bench.path(model).join("2_Dense/config.json")).unwrap();
    assert_eq!(settings("out"), settings("a"));
    let plan = bench.weld(&["plan", "recipe.yml", "--all"]).stdout;
    assert!(plan.contains("<- b: 2_Dense/linear.weight"), "{plan}");
    assert!(plan.contains("2_Dense/model.safetensors"), "{plan}");
    bench.passes(&["verify", "out"]);
    let lock = read_json(&bench.path("out/weldment.lock.json"));
    assert!(lock["outputs"]["tensors"]["2_Dense/linear.weight"].is_string());
    for input in lock["inputs"].as_array().unwrap() {
        assert!(
            input["files"]["2_Dense/model.safetensors"].is_object(),
            "{input}"
        );
    }
    // What verify and diff say of the module names it.
    dense(&bench, "out", 7);
    for command in [&["verify", "out"][..], &["diff", "out", "a"]] {
        let outcome = bench.weld(command);
        assert_eq!(outcome.code, Some(1), "{}", outcome.stdout);
        assert!(
            outcome.stdout.contains("2_Dense/linear.weight"),
            "{}",
            outcome.stdout
        );
    }
}

#[test]
fn rules_for_a_module_name_its_folder() {
    let bench = Bench::new();
    embedder(&bench, "a", 1);
    embedder(&bench, "b", 2);
    let recipe = "
merge_method: linear
parameters: {weight: 0.5}
models:
- {model: a, parameters: {weight: [{filter: 2_Dense/, value: 0}, {value: 1}]}}
- {model: b, parameters: {weight: 1}}
except: [{tensors: 'model.norm.*', action: copy}]
";
    bench.merge(recipe, &[]);
    let file = |model: &str| only(&bench.path(model).join("2_Dense/model.safetensors"));
    assert_eq!(file("out"), file("b"));
    let norm = |model: &str| {
        let tensors = by_name(&bench.path(model).join("model.safetensors"));
        tensors["model.norm.weight"].values()
    };
    assert_eq!(norm("out"), norm("a"));
    fs::remove_dir_all(bench.path("out")).unwrap();
    let recipe = MEAN.to_owned() + "except: [{tensors: '2_Dense/*', action: copy}]\n";
    bench.merge(&recipe, &[]);
    assert_eq!(file("out"), file("a"));
}

#[test]
fn modules_that_not_all_models_have_are_copied_and_named() {
    let bench = Bench::new();
    embedder(&bench, "a", 1);
    bench.llama("b", 2, Dtype::F32);
    let out = bench.merge(MEAN, &[]);
    assert_eq!(
        only(&out.join("2_Dense/model.safetensors")),
        only(&bench.path("a/2_Dense/model.safetensors"))
    );
    let plan = bench.weld(&["plan", "recipe.yml"]).stdout;
    let note = "copied from `a`, not merged, as `b` has no such part: `2_Dense`";
    assert!(plan.contains(note), "{plan}");
    bench.passes(&["verify", "out"]);
    // The other way round there is nothing to copy, and no place for it.
    fs::remove_dir_all(&out).unwrap();
    let recipe = MEAN.replace("{model: a}, {model: b}", "{model: b}, {model: a}");
    let out = bench.merge(&recipe, &[]);
    assert!(!out.join("2_Dense").exists());
    let plan = bench.weld(&["plan", "recipe.yml"]).stdout;
    let note = "`a` has 1 part that `b` lacks, which the output does not get: `2_Dense`";
    assert!(plan.contains(note), "{plan}");
}

#[test]
fn slices_cut_the_model_and_leave_its_modules() {
    let bench = Bench::new();
    embedder(&bench, "a", 1);
    embedder(&bench, "b", 2);
    let recipe = "
merge_method: passthrough
slices:
- sources: [{model: a, layer_range: [0, 2]}]
- sources: [{model: b, layer_range: [1, 2]}]
";
    let out = bench.merge(recipe, &[]);
    assert_eq!(config(&bench)["num_hidden_layers"], json!(3));
    assert_eq!(
        only(&out.join("2_Dense/model.safetensors")),
        only(&bench.path("a/2_Dense/model.safetensors"))
    );
    let plan = bench.weld(&["plan", "recipe.yml"]).stdout;
    assert!(
        plan.contains("as slices cut the layers of the model itself: `2_Dense`"),
        "{plan}"
    );
}

#[test]
fn a_head_beside_the_weights_is_merged_in_a_file_of_its_own() {
    let bench = Bench::new();
    for (model, seed) in [("a", 1), ("b", 2)] {
        bench.llama(model, seed, Dtype::F32);
        let head = floats("v_head.summary.weight", Dtype::F32, &[1, 8], noise(seed, 8));
        bench.tensors(&format!("{model}/value_head.safetensors"), &[head]);
    }
    let out = bench.merge(MEAN, &["--shard-size", "1KB"]);
    is_mean(&bench, "value_head.safetensors");
    assert!(out.join("model.safetensors.index.json").exists());
    bench.passes(&["verify", "out"]);
}

/// What `weld check` calls dangerous is not carried into an output.
#[test]
fn a_head_that_would_run_code_is_refused() {
    let bench = Bench::new();
    for (model, seed) in [("a", 1), ("b", 2)] {
        bench.llama(model, seed, Dtype::F32);
        bench.file(
            &format!("{model}/colbert_linear.pt"),
            b"\x80\x04\x8c\x05posix\x8c\x06system\x93\x8c\x02id\x85R.",
        );
    }
    bench.file("recipe.yml", MEAN);
    let outcome = bench.checked(&["merge", "recipe.yml", "out"]);
    assert_ne!(outcome.code, Some(0));
    for told in [
        "colbert_linear.pt",
        "safety.dangerous-pickle",
        "posix.system",
    ] {
        assert!(outcome.stderr.contains(told), "{}", outcome.stderr);
    }
    assert!(!bench.path("out").exists());
}

/// Heads of BGE-M3: FlagEmbedding looks for files of torch.save.
#[test]
fn heads_of_torch_are_merged_and_stay_files_of_torch() {
    let bench = Bench::new();
    let tensors = [
        ("weight".to_owned(), Dtype::F32, vec![2, 8]),
        ("bias".to_owned(), Dtype::F32, vec![2]),
    ];
    let layout = single_file_layout(&tensors, "colbert_linear", WrittenAs::Torch).unwrap();
    let begin = layout.header.len();
    for (model, value) in [("a", 1f32), ("b", 2.0)] {
        bench.llama(model, 1, Dtype::F32);
        let mut file = layout.header.clone();
        (0..18).for_each(|at| file.extend((value * at as f32).to_le_bytes()));
        bench.file(&format!("{model}/colbert_linear.pt"), &file);
        // What is no file of tensors is carried as it is.
        bench.file(
            &format!("{model}/sparse_linear.pt"),
            format!("head of {model}"),
        );
    }
    let out = bench.merge(MEAN, &[]);
    let merged = fs::read(out.join("colbert_linear.pt")).unwrap();
    assert_eq!(merged[..begin], layout.header);
    let values = merged[begin..]
        .chunks_exact(4)
        .map(|value| f32::from_le_bytes(value.try_into().unwrap()));
    assert!(values.eq((0..18).map(|at| 1.5 * at as f32)));
    assert_eq!(
        fs::read(out.join("sparse_linear.pt")).unwrap(),
        b"head of a"
    );
    bench.passes(&["verify", "out"]);
    let plan = bench.weld(&["plan", "recipe.yml"]).stdout;
    assert!(
        plan.contains("sparse_linear.pt is carried as it is and not merged"),
        "{plan}"
    );
    assert!(
        plan.contains("copied from `a`, not merged: `sparse_linear.pt`"),
        "{plan}"
    );
    let recipe = MEAN.to_owned() + "dtype: bfloat16\n";
    let out = bench.merge(&recipe, &[]);
    let read = by_name_of(&out.join("colbert_linear.pt"));
    assert_eq!(
        read,
        [
            ("weight".to_owned(), Dtype::BF16),
            ("bias".to_owned(), Dtype::BF16)
        ]
    );
    bench.passes(&["verify", "out"]);
}

/// Names and dtypes of a file, in order.
fn by_name_of(path: &Path) -> Vec<(String, Dtype)> {
    let model = Checkpoint::open("m", &Location::local(path)).unwrap();
    let entries = model.tensors().iter();
    entries
        .map(|entry| (entry.name.clone(), entry.dtype))
        .collect()
}

#[test]
fn shards_of_a_module_have_an_index_of_their_own() {
    let bench = Bench::new();
    for (model, seed) in [("a", 1), ("b", 2)] {
        embedder(&bench, model, seed);
        let one = |name: &str, seed: u64| floats(name, Dtype::F32, &[16, 8], noise(seed, 128));
        let weights = [one("linear.weight", seed), one("linear2.weight", seed + 1)];
        bench.tensors(&format!("{model}/2_Dense/model.safetensors"), &weights);
    }
    let out = bench.merge(MEAN, &["--shard-size", "520"]);
    let index = read_json(&out.join("2_Dense/model.safetensors.index.json"));
    let expected = json!({
        "linear.weight": "model-00001-of-00002.safetensors",
        "linear2.weight": "model-00002-of-00002.safetensors",
    });
    assert_eq!(index["weight_map"], expected);
    let index = read_json(&out.join("model.safetensors.index.json"));
    let names = index["weight_map"].as_object().unwrap();
    assert!(names.keys().all(|name| !name.contains("linear")), "{index}");
    bench.passes(&["verify", "out"]);
    let names: Vec<String> = bench
        .weld(&["inspect", "out"])
        .stdout
        .lines()
        .map(str::to_owned)
        .collect();
    assert!(
        names
            .iter()
            .any(|line| line.contains("2_Dense/linear2.weight")),
        "{names:?}"
    );
}

/// Nothing outside of the model's folder is read as a part of it, whatever a file or a link says.
#[test]
#[cfg(unix)]
fn modules_stay_in_the_folder() {
    for (named, link) in [
        ("../elsewhere", None),
        ("/etc", None),
        ("2_Dense", Some("folder")),
        ("2_Dense", Some("file")),
    ] {
        let bench = Bench::new();
        embedder(&bench, "a", 1);
        embedder(&bench, "b", 2);
        dense(&bench, "elsewhere", 3);
        fs::rename(bench.path("elsewhere/2_Dense"), bench.path("elsewhere/x")).unwrap();
        let (folder, file) = (
            bench.path("a/2_Dense"),
            bench.path("a/2_Dense/model.safetensors"),
        );
        match link {
            Some("folder") => {
                fs::remove_dir_all(&folder).unwrap();
                std::os::unix::fs::symlink(bench.path("elsewhere/x"), &folder).unwrap();
            }
            Some(_) => {
                fs::remove_file(&file).unwrap();
                let target = bench.path("elsewhere/x/model.safetensors");
                std::os::unix::fs::symlink(target, &file).unwrap();
            }
            None => {
                let modules =
                    json!([{"path": named, "type": "sentence_transformers.models.Dense"}]);
                bench.file("a/modules.json", modules.to_string());
            }
        }
        let message = bench.refused(MEAN, &[]);
        let says = match link {
            Some(_) => "a link out of the model's folder",
            None => "expected a folder of the model",
        };
        assert!(message.contains(says), "{message}");
        let report = bench.weld(&["check", "a"]);
        assert_eq!(report.code, Some(1), "{}", report.stdout);
        let id = match link {
            Some(_) => "safety.link-outside",
            None => "config.named-file-missing",
        };
        assert!(report.stdout.contains(id), "{}", report.stdout);
    }
}

/// Old models of sentence-transformers have no weights beside `modules.json`, but in the folder of their first module.
#[test]
fn a_model_may_be_a_module_among_others() {
    let bench = Bench::new();
    for (model, seed) in [("a", 1), ("b", 2)] {
        embedder(&bench, model, seed);
        let transformer = bench.path(model).join("0_Transformer");
        fs::create_dir(&transformer).unwrap();
        for file in ["config.json", "model.safetensors"] {
            fs::rename(bench.path(model).join(file), transformer.join(file)).unwrap();
        }
        let modules = read_json(&bench.path(model).join("modules.json"));
        let text = modules
            .to_string()
            .replace(r#""path":"""#, r#""path":"0_Transformer""#);
        bench.file(&format!("{model}/modules.json"), text);
    }
    let out = bench.merge(&(MEAN.to_owned() + "dtype: bfloat16\n"), &[]);
    let merged = by_name(&out.join("0_Transformer/model.safetensors"));
    assert_eq!(merged["lm_head.weight"].dtype, Dtype::BF16);
    let config = read_json(&out.join("0_Transformer/config.json"));
    assert_eq!(config["torch_dtype"], json!("bfloat16"));
    assert!(
        out.join("2_Dense/model.safetensors").exists() && !out.join("model.safetensors").exists()
    );
    bench.passes(&["verify", "out"]);
}

/// An assembly knows no module: what lies behind the base is carried along, and judged as the file that it is.
#[test]
fn modules_behind_the_base_of_a_mixture_are_carried() {
    let bench = Bench::new();
    for (model, seed) in [("a", 1), ("b", 2)] {
        let (config, specs) = crate::moe::dense("llama", seed);
        bench.model(model, &config, &specs);
        bench.file(&format!("{model}/modules.json"), "[]");
        bench.file(&format!("{model}/2_Dense/config.json"), "{}");
        dense(&bench, model, seed);
    }
    bench.recipe(
        "base_model: a\ngate_mode: random\nexperts: [{source_model: a}, {source_model: b}]\n",
    );
    bench.passes(&["moe", "recipe.yml", "out", "-q"]);
    let file = |model: &str| only(&bench.path(model).join("2_Dense/model.safetensors"));
    assert_eq!(file("out"), file("a"));
    bench.passes(&["verify", "out"]);
    let report = bench.weld(&["check", "out"]);
    assert_eq!(report.code, Some(0), "{}", report.stdout);
    dense(&bench, "out", 7);
    for command in ["verify", "check"] {
        let report = bench.weld(&[command, "out"]);
        assert!(
            report.stdout.contains("2_Dense/model.safetensors"),
            "{}",
            report.stdout
        );
    }
    assert_eq!(bench.weld(&["verify", "out"]).code, Some(1));
}

/// A folder is a module only where `modules.json` says that there are modules.
#[test]
fn other_folders_with_weights_are_no_modules() {
    let bench = Bench::new();
    for (model, seed) in [("a", 1), ("b", 2)] {
        bench.llama(model, seed, Dtype::F32);
        bench.model(
            &format!("{model}/2024_backup"),
            &json!({}),
            &crate::fixtures::llama(9, 2, Dtype::F32),
        );
    }
    let out = bench.merge(MEAN, &[]);
    let lock = read_json(&out.join("weldment.lock.json"));
    let tensors = lock["outputs"]["tensors"].as_object().unwrap();
    assert!(
        tensors.keys().all(|name| !name.contains('/')),
        "{tensors:?}"
    );
}

/// The result of a document has the modules of what it is made from.
#[test]
fn documents_pass_modules_on() {
    let bench = Bench::new();
    embedder(&bench, "a", 1);
    embedder(&bench, "b", 2);
    let recipe = "
name: half
merge_method: linear
parameters: {weight: 0.5}
models: [{model: a}, {model: b}]
---
merge_method: passthrough
models: [{model: half}]
";
    bench.merge(recipe, &[]);
    is_mean(&bench, "2_Dense/model.safetensors");
    bench.passes(&["verify", "out"]);
}

/// A name that the folder's own weights and a module would both have.
#[test]
fn two_tensors_of_one_name_are_refused() {
    let bench = Bench::new();
    embedder(&bench, "a", 1);
    embedder(&bench, "b", 2);
    let mut specs = crate::fixtures::llama(1, 2, Dtype::F32);
    specs.push(floats(
        "2_Dense/linear.weight",
        Dtype::F32,
        &[2, 8],
        noise(9, 16),
    ));
    bench.tensors("a/model.safetensors", &specs);
    let message = bench.refused(MEAN, &[]);
    assert!(
        message.contains("2_Dense/linear.weight") && message.contains("2_Dense/model.safetensors"),
        "{message}"
    );
    let report = bench.weld(&["check", "a"]).stdout;
    assert!(report.contains("index.duplicate-tensor"), "{report}");
    // Another name is as good as any.
    specs.pop();
    specs.push(floats("2_Dense/other", Dtype::F32, &[2], [1.0, 2.0]));
    for model in ["a", "b"] {
        bench.tensors(&format!("{model}/model.safetensors"), &specs);
    }
    bench.merge(MEAN, &[]);
    bench.passes(&["verify", "out"]);
    assert!(by_name(&bench.path("out/model.safetensors")).contains_key("2_Dense/other"));
    is_mean(&bench, "2_Dense/model.safetensors");
}

/// What is wrong with a module's weights is said of the module's file, and nothing is written.
#[test]
fn damaged_weights_of_a_module_are_an_error() {
    let bench = Bench::new();
    embedder(&bench, "a", 1);
    embedder(&bench, "b", 2);
    let file = bench.path("b/2_Dense/model.safetensors");
    let bytes = fs::read(&file).unwrap();
    fs::write(&file, &bytes[..bytes.len() - 1]).unwrap();
    let message = bench.refused(MEAN, &[]);
    assert!(message.contains("b/2_Dense/model.safetensors"), "{message}");
    let report = bench.weld(&["check", "b"]).stdout;
    assert!(
        report.contains("container.truncated") && report.contains("2_Dense/model.safetensors"),
        "{report}"
    );
    // Other shapes are named with the rule that takes one model's.
    bench.tensors(
        "b/2_Dense/model.safetensors",
        &[floats("linear.weight", Dtype::F32, &[1, 8], noise(1, 8))],
    );
    let message = bench.refused(MEAN, &[]);
    assert!(message.contains("in `b/2_Dense`"), "{message}");
    assert!(
        message.contains("except: [{tensors: '2_Dense/linear.weight', action: copy}]"),
        "{message}"
    );
}
