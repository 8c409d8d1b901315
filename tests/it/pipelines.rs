//! Pipelines of diffusers: several models in the folders that `model_index.json` names, merged component by component.

use std::fs;

use safetensors::Dtype;
use serde_json::{Value, json};

use crate::fixtures::{Bench, Spec, by_name, floats, noise, read_json};

const MEAN: &str =
    "merge_method: linear\nparameters: {weight: 0.5}\nmodels: [{model: a}, {model: b}]\n";

/// The tensors of a component: some that other components have by the same names too.
fn weights(seed: u64) -> Vec<Spec> {
    let one = |name: &str, seed: u64| floats(name, Dtype::F32, &[4, 8], noise(seed, 32));
    vec![
        one("conv_in.weight", seed),
        one("mid_block.weight", seed + 1),
        one("conv_out.weight", seed + 2),
    ]
}

fn unet_config() -> Value {
    json!({"_class_name": "UNet2DConditionModel", "_diffusers_version": "0.35.0", "in_channels": 4})
}

fn text_config() -> Value {
    json!({
        "architectures": ["CLIPTextModel"],
        "model_type": "clip_text_model",
        "num_hidden_layers": 2,
        "torch_dtype": "float32",
        "dtype": "float32",
    })
}

/// A tiny pipeline: two models of diffusers, one of transformers, a scheduler, a tokenizer, and no safety checker.
fn pipeline(bench: &Bench, name: &str, seed: u64) {
    let index = json!({
        "_class_name": "StableDiffusionPipeline",
        "_diffusers_version": "0.35.0",
        "requires_safety_checker": false,
        "safety_checker": [null, null],
        "scheduler": ["diffusers", "PNDMScheduler"],
        "text_encoder": ["transformers", "CLIPTextModel"],
        "tokenizer": ["transformers", "CLIPTokenizer"],
        "unet": ["diffusers", "UNet2DConditionModel"],
        "vae": ["diffusers", "AutoencoderKL"],
    });
    let file = |path: &str, text: String| {
        bench.file(&format!("{name}/{path}"), text + "\n");
    };
    file("model_index.json", format!("{index:#}"));
    file(
        "scheduler/scheduler_config.json",
        r#"{"prediction_type": "epsilon"}"#.into(),
    );
    file("tokenizer/vocab.json", r#"{"a": 0, "b": 1}"#.into());
    file("tokenizer/merges.txt", "a b".into());
    file("unet/config.json", unet_config().to_string());
    let vae = json!({"_class_name": "AutoencoderKL", "latent_channels": 4});
    file("vae/config.json", vae.to_string());
    file("text_encoder/config.json", text_config().to_string());
    let component = |path: &str, specs: &[Spec]| {
        bench.tensors(&format!("{name}/{path}.safetensors"), specs);
    };
    component("unet/diffusion_pytorch_model", &weights(seed));
    component("vae/diffusion_pytorch_model", &weights(seed + 10));
    let mut text = Vec::new();
    for layer in 0..2 {
        let name = format!("text_model.encoder.layers.{layer}.mlp.fc1.weight");
        text.push(floats(
            &name,
            Dtype::F32,
            &[4, 4],
            noise(seed + 20 + layer, 16),
        ));
    }
    component("text_encoder/model", &text);
}

const WEIGHTS: [&str; 3] = [
    "text_encoder/model.safetensors",
    "unet/diffusion_pytorch_model.safetensors",
    "vae/diffusion_pytorch_model.safetensors",
];

/// Whether each tensor of a file is that share of `b`, and else of `a`.
#[track_caller]
fn is_mixed(bench: &Bench, file: &str, share: f64) {
    let [a, b, out] = ["a", "b", "out"].map(|model| by_name(&bench.path(model).join(file)));
    assert!(out.keys().eq(a.keys()), "{file}: {:?}", out.keys());
    for (name, out) in out {
        let sources = a[&name].values().into_iter().zip(b[&name].values());
        for ((a, b), out) in sources.zip(out.values()) {
            let expected = a + share * (b - a);
            assert!(
                (expected - out).abs() < 1e-8,
                "{file}, {name}: {expected}, {out}"
            );
        }
    }
}

/// The files below a folder, by their paths in it.
fn tree(folder: &std::path::Path) -> Vec<String> {
    let mut names = Vec::new();
    let mut waiting = vec![folder.to_owned()];
    while let Some(next) = waiting.pop() {
        for entry in fs::read_dir(next).unwrap() {
            let path = entry.unwrap().path();
            match path.is_dir() {
                true => waiting.push(path),
                false => names.push(path.strip_prefix(folder).unwrap().display().to_string()),
            }
        }
    }
    names.sort();
    names
}

#[test]
fn a_pipeline_is_merged_component_by_component() {
    let bench = Bench::new();
    pipeline(&bench, "a", 100);
    pipeline(&bench, "b", 200);
    let out = bench.merge(MEAN, &["--hash-inputs"]);
    for file in WEIGHTS {
        is_mixed(&bench, file, 0.5);
    }
    let mut expected = tree(&bench.path("a"));
    expected.extend(["README.md", "weldment.lock.json"].map(str::to_owned));
    expected.sort();
    assert_eq!(tree(&out), expected);
    for file in expected
        .iter()
        .filter(|file| file.ends_with(".json") && !file.contains("lock"))
    {
        let read = |model: &str| fs::read_to_string(bench.path(model).join(file)).unwrap();
        assert_eq!(read("out"), read("a"), "{file}");
    }
    let card = fs::read_to_string(out.join("README.md")).unwrap();
    assert!(card.contains("library_name: diffusers"), "{card}");
    bench.passes(&["verify", "out"]);
    let plan = bench.weld(&["plan", "recipe.yml", "--all"]).stdout;
    for says in [
        "<- b: unet/conv_in.weight",
        "vae/diffusion_pytorch_model.safetensors",
    ] {
        assert!(plan.contains(says), "{plan}");
    }
    assert!(!plan.contains("note"), "{plan}");
    let report = bench.weld(&["check", "out"]);
    assert_eq!(report.code, Some(0), "{}", report.stdout);
    assert!(
        report.stdout.contains("0 errors, 0 warnings"),
        "{}",
        report.stdout
    );
    assert_eq!(bench.weld(&["diff", "out", "out"]).code, Some(0));
    let report = bench.weld(&["diff", "out", "a"]);
    assert!(
        report.stdout.contains("vae/conv_in.weight"),
        "{}",
        report.stdout
    );
}

#[test]
fn shards_of_one_component_hold_none_of_another() {
    let bench = Bench::new();
    pipeline(&bench, "a", 100);
    pipeline(&bench, "b", 200);
    let out = bench.merge(MEAN, &["--shard-size", "300"]);
    let names = tree(&out);
    for component in ["unet", "vae"] {
        let stem = format!("{component}/diffusion_pytorch_model");
        let index = read_json(&out.join(format!("{stem}.safetensors.index.json")));
        let expected = json!({
            "conv_in.weight": "diffusion_pytorch_model-00001-of-00002.safetensors",
            "conv_out.weight": "diffusion_pytorch_model-00001-of-00002.safetensors",
            "mid_block.weight": "diffusion_pytorch_model-00002-of-00002.safetensors",
        });
        assert_eq!(index["weight_map"], expected);
        assert_eq!(index["metadata"]["total_size"], json!(384));
        for shard in 1..=2 {
            let shard = format!("{stem}-0000{shard}-of-00002.safetensors");
            assert!(names.contains(&shard), "{names:?}");
        }
    }
    is_mixed(&bench, "text_encoder/model.safetensors", 0.5);
    bench.passes(&["verify", "out"]);
    assert_eq!(bench.weld(&["check", "out"]).code, Some(0));
    // What was cut so merges again.
    fs::rename(&out, bench.path("c")).unwrap();
    bench.merge("merge_method: passthrough\nmodels: [{model: c}]\n", &[]);
    is_mixed(&bench, "unet/diffusion_pytorch_model.safetensors", 0.5);
}

#[test]
fn rules_for_a_component_name_its_folder() {
    let bench = Bench::new();
    pipeline(&bench, "a", 100);
    pipeline(&bench, "b", 200);
    let recipe = "
merge_method: linear
models:
- {model: a, parameters: {weight: [{filter: unet/, value: 3}, {value: 1}]}}
- {model: b, parameters: {weight: 1}}
except: [{tensors: 'vae/*', action: copy}]
";
    bench.merge(recipe, &[]);
    for (file, share) in WEIGHTS.into_iter().zip([0.5, 0.25, 0.0]) {
        is_mixed(&bench, file, share);
    }
    // The same as modules, each of which has models of its own.
    let recipe = "
merge_method: linear
parameters: {weight: 1}
modules:
  unet: {models: [{model: a, parameters: {weight: 3}}, {model: b}]}
  vae: {models: [{model: a}]}
  default: {models: [{model: a}, {model: b}]}
";
    bench.merge(recipe, &[]);
    for (file, share) in WEIGHTS.into_iter().zip([0.5, 0.25, 0.0]) {
        is_mixed(&bench, file, share);
    }
}

/// Tensors of one name in two components get draws of their own.
#[test]
fn components_have_draws_of_their_own() {
    let bench = Bench::new();
    pipeline(&bench, "base", 100);
    pipeline(&bench, "b", 200);
    for model in ["base", "b"] {
        let folder = bench.path(model);
        let file = "diffusion_pytorch_model.safetensors";
        fs::copy(
            folder.join("unet").join(file),
            folder.join("vae").join(file),
        )
        .unwrap();
    }
    let recipe = "merge_method: dare_linear\nbase_model: base\nparameters: {weight: 1, density: 0.5}\nmodels: [{model: b}]\n";
    let out = bench.merge(recipe, &["--seed", "7"]);
    let [unet, vae] = ["unet", "vae"].map(|component| by_name(&out.join(component)));
    assert_ne!(unet["conv_in.weight"], vae["conv_in.weight"]);
    bench.passes(&["verify", "out"]);
}

#[test]
fn a_component_has_its_own_config_and_format() {
    let bench = Bench::new();
    pipeline(&bench, "a", 100);
    pipeline(&bench, "b", 200);
    let recipe = MEAN.to_owned() + "dtype: bfloat16\n";
    let out = bench.merge(&recipe, &[]);
    let text = read_json(&out.join("text_encoder/config.json"));
    assert_eq!(text["torch_dtype"], json!("bfloat16"));
    assert_eq!(read_json(&out.join("unet/config.json")), unet_config());
    bench.passes(&["verify", "out"]);
    // A config that makes the same weights mean something else.
    let mut config = text_config();
    config["hidden_act"] = json!("gelu");
    bench.file("b/text_encoder/config.json", config.to_string());
    config["hidden_act"] = json!("quick_gelu");
    bench.file("a/text_encoder/config.json", config.to_string());
    fs::remove_dir_all(out).unwrap();
    let message = bench.refused(MEAN, &[]);
    assert!(
        message.contains("`a/text_encoder` and `b/text_encoder` do not mean the same"),
        "{message}"
    );
}

/// What a component means may stand in a folder without weights.
#[test]
fn schedulers_and_tokenizers_say_what_weights_mean() {
    let bench = Bench::new();
    pipeline(&bench, "a", 100);
    pipeline(&bench, "b", 200);
    let velocity = r#"{"prediction_type": "v_prediction"}"#;
    bench.file("b/scheduler/scheduler_config.json", velocity);
    let message = bench.refused(MEAN, &[]);
    let says = "`unet` predicts `epsilon` in `a` and `v_prediction` in `b`";
    assert!(message.contains(says), "{message}");
    let report = bench.weld(&["diff", "a", "b"]).stdout;
    assert!(
        report.contains("scheduler/scheduler_config.json: prediction_type"),
        "{report}"
    );
    for more in [
        "allow_config_differences: [prediction_type]\n",
        "except: [{tensors: 'unet/*', action: copy}]\n",
    ] {
        bench.merge(&(MEAN.to_owned() + more), &[]);
    }
    bench.file("b/scheduler/scheduler_config.json", "{");
    let report = bench.weld(&["check", "b"]);
    assert!(
        report
            .stdout
            .contains("scheduler/scheduler_config.json: expected JSON"),
        "{}",
        report.stdout
    );
    bench.file("b/scheduler/scheduler_config.json", "{}");
    fs::remove_dir_all(bench.path("out")).unwrap();
    for (model, tokens) in [("a", ["x", "y"]), ("b", ["y", "x"])] {
        let tokenizer = json!({
            "model": {"type": "BPE", "vocab": {tokens[0]: 0, tokens[1]: 1}, "merges": []},
            "added_tokens": [],
        });
        bench.file(
            &format!("{model}/tokenizer/tokenizer.json"),
            tokenizer.to_string(),
        );
    }
    let message = bench.refused(MEAN, &[]);
    assert!(
        message.contains("the vocabularies of `a/tokenizer` and `b/tokenizer` differ"),
        "{message}"
    );
    let keeps = "except: [{tensors: 'text_encoder/*', action: copy}]\n";
    bench.merge(&(MEAN.to_owned() + keeps), &[]);
}

#[test]
fn components_that_not_all_have_are_copied_and_named() {
    let bench = Bench::new();
    pipeline(&bench, "a", 100);
    pipeline(&bench, "b", 200);
    let mut index = read_json(&bench.path("b/model_index.json"));
    index["vae"] = json!([null, null]);
    bench.file("b/model_index.json", index.to_string());
    bench.merge(MEAN, &[]);
    is_mixed(&bench, WEIGHTS[1], 0.5);
    is_mixed(&bench, WEIGHTS[2], 0.0);
    let plan = bench.weld(&["plan", "recipe.yml"]).stdout;
    let note = "copied from `a`, not merged, as `b` has no such part: `vae`";
    assert!(plan.contains(note), "{plan}");
    bench.passes(&["verify", "out"]);
    // A component that the pipeline needs and that is not there is an error, in words that say which.
    fs::remove_dir_all(bench.path("a/vae")).unwrap();
    fs::remove_dir_all(bench.path("out")).unwrap();
    let message = bench.refused(MEAN, &[]);
    assert!(message.contains("a/vae is not there"), "{message}");
    let report = bench.weld(&["check", "a"]);
    assert_eq!(report.code, Some(1));
    assert!(
        report.stdout.contains("config.named-file-missing") && report.stdout.contains("vae"),
        "{}",
        report.stdout
    );
    // So is one in a format that is not read.
    bench.file("a/vae/config.json", "{}");
    bench.file("a/vae/model.onnx", "x");
    let message = bench.refused(MEAN, &[]);
    assert!(
        message.contains("a/vae") && message.contains("model.onnx"),
        "{message}"
    );
    assert_eq!(bench.weld(&["check", "a"]).code, Some(1));
}

#[test]
fn what_is_for_one_model_is_refused_for_a_pipeline() {
    let bench = Bench::new();
    pipeline(&bench, "a", 100);
    pipeline(&bench, "b", 200);
    let tensor = floats("conv_in.weight", Dtype::F32, &[1], [1.0]);
    bench.model("c", &unet_config(), &[tensor]);
    let slices =
        "merge_method: passthrough\nslices: [{sources: [{model: a, layer_range: [0, 1]}]}]\n";
    for (recipe, more, says) in [
        (
            MEAN.to_owned() + "tokenizer: {source: union}\n",
            &[][..],
            "`tokenizer` is for one model",
        ),
        (
            MEAN.to_owned() + "chat_template: auto\n",
            &[],
            "`chat_template` is for one model",
        ),
        (
            MEAN.to_owned(),
            &["--tokenizer-from", "b"],
            "`--tokenizer-from` is for one model",
        ),
        (
            slices.to_owned(),
            &[],
            "slices cut the layers of the model itself",
        ),
        (
            MEAN.replace("model: b", "model: c"),
            &[],
            "`c` has no such part",
        ),
        (
            MEAN.replace("model: a", "model: c"),
            &[],
            "`b` has no such part",
        ),
        (
            MEAN.replace("model: a", "model: a+c"),
            &[],
            "this is a pipeline of several",
        ),
    ] {
        let message = bench.refused(&recipe, more);
        assert!(message.contains(says), "{recipe}: {message}");
    }
    let moe = "base_model: a\ngate_mode: random\nexperts: [{source_model: a}, {source_model: b}]\n";
    let recipe = bench.recipe(moe);
    let outcome = bench.weld(&["moe", recipe.to_str().unwrap(), "out"]);
    assert_eq!(outcome.code, Some(1), "{}", outcome.stderr);
    assert!(
        outcome.stderr.contains("is a pipeline"),
        "{}",
        outcome.stderr
    );
}

#[test]
#[cfg(unix)]
fn components_stay_in_the_pipelines_folder() {
    for case in ["../b/unet", "link", "file", "{", "[]"] {
        let bench = Bench::new();
        pipeline(&bench, "a", 100);
        pipeline(&bench, "b", 200);
        let link = |target: &str, name: &str| {
            std::os::unix::fs::symlink(bench.path(target), bench.path(name)).unwrap();
        };
        let says = match case {
            "link" => {
                fs::remove_dir_all(bench.path("a/unet")).unwrap();
                link("b/unet", "a/unet");
                "a link out of the model's folder"
            }
            "file" => {
                fs::remove_file(bench.path("a").join(WEIGHTS[1])).unwrap();
                link(&format!("b/{}", WEIGHTS[1]), &format!("a/{}", WEIGHTS[1]));
                "a link out of the model's folder"
            }
            "{" | "[]" => {
                bench.file("a/model_index.json", case);
                "model_index.json"
            }
            name => {
                let mut index = read_json(&bench.path("a/model_index.json"));
                index[name] = json!(["diffusers", "UNet2DConditionModel"]);
                bench.file("a/model_index.json", index.to_string());
                "expected a folder of the model"
            }
        };
        let message = bench.refused(MEAN, &[]);
        assert!(message.contains(says), "{case}: {message}");
        let report = bench.weld(&["check", "a"]);
        assert_eq!(
            report.code,
            Some(1),
            "{case}: {}{}",
            report.stdout,
            report.stderr
        );
    }
}

/// Repositories of image models often hold single-file checkpoints and variants beside the pipeline.
#[test]
fn other_forms_of_the_weights_are_left_aside() {
    let bench = Bench::new();
    pipeline(&bench, "a", 100);
    pipeline(&bench, "b", 200);
    bench.tensors("a/v1-5-pruned.safetensors", &weights(1));
    bench.tensors(
        "a/unet/diffusion_pytorch_model.fp16.safetensors",
        &weights(2),
    );
    bench.tensors("a/text_encoder/model.fp16.safetensors", &weights(2));
    bench.file("a/vae/diffusion_pytorch_model.bin", "x");
    let out = bench.merge(MEAN, &[]);
    for file in WEIGHTS {
        is_mixed(&bench, file, 0.5);
    }
    let names = tree(&out);
    assert!(
        names.iter().all(|name| !name.contains("fp16")
            && !name.ends_with(".bin")
            && !name.contains("v1-5")),
        "{names:?}"
    );
    let plan = bench.weld(&["plan", "recipe.yml"]).stdout;
    for file in [
        "v1-5-pruned",
        "model.fp16",
        "diffusion_pytorch_model.fp16",
        "diffusion_pytorch_model.bin",
    ] {
        assert!(plan.contains(file), "{file}: {plan}");
    }
}

/// The result of a document may be a pipeline, which others are made from.
#[test]
fn documents_may_make_pipelines_of_pipelines() {
    let bench = Bench::new();
    pipeline(&bench, "a", 100);
    pipeline(&bench, "b", 200);
    let recipe = "
name: half
merge_method: linear
parameters: {weight: 0.5}
models: [{model: a}, {model: b}]
---
merge_method: linear
parameters: {weight: 0.5}
models: [{model: half}, {model: b}]
";
    let out = bench.merge(recipe, &[]);
    for file in WEIGHTS {
        is_mixed(&bench, file, 0.75);
    }
    assert!(out.join("scheduler/scheduler_config.json").exists());
    assert_eq!(
        read_json(&out.join("text_encoder/config.json")),
        text_config()
    );
    bench.passes(&["verify", "out"]);
}

#[test]
fn renames_keep_tensors_in_their_component() {
    let bench = Bench::new();
    pipeline(&bench, "a", 100);
    pipeline(&bench, "b", 200);
    let mut other = weights(200);
    other[0].name = "conv_first.weight".into();
    bench.tensors("b/unet/diffusion_pytorch_model.safetensors", &other);
    let rename = |to: &str| {
        let rule = format!("rename: [{{model: b, from: unet/conv_first.weight, to: {to}}}]\n");
        MEAN.to_owned() + &rule
    };
    bench.merge(&rename("unet/conv_in.weight"), &[]);
    bench.tensors("b/unet/diffusion_pytorch_model.safetensors", &weights(200));
    is_mixed(&bench, WEIGHTS[1], 0.5);
    bench.tensors("b/unet/diffusion_pytorch_model.safetensors", &other);
    fs::remove_dir_all(bench.path("out")).unwrap();
    let message = bench.refused(&rename("vae/conv_first.weight"), &[]);
    assert!(message.contains("to another folder of it"), "{message}");
}

/// The folder of a component is as much an input as the pipeline's.
#[test]
fn a_component_of_an_input_is_no_place_for_the_output() {
    let bench = Bench::new();
    pipeline(&bench, "a", 1);
    pipeline(&bench, "b", 100);
    bench.file("recipe.yml", MEAN);
    let before = tree(&bench.path("a"));
    for out in ["a/unet", "a/text_encoder", "b/vae", "a"] {
        let outcome = bench.weld(&["merge", "recipe.yml", out, "--force"]);
        assert_ne!(outcome.code, Some(0), "{out}");
        assert!(
            outcome.stderr.contains("is or holds the input"),
            "{}",
            outcome.stderr
        );
    }
    assert_eq!(tree(&bench.path("a")), before);
}

#[test]
fn a_misspelt_component_of_a_recipe_is_refused() {
    let bench = Bench::new();
    pipeline(&bench, "a", 1);
    pipeline(&bench, "b", 2);
    let recipe = |names: &[&str]| {
        let module = |name: &&str| {
            format!(
                " {name}: {{models: [{{model: a}}, {{model: b}}], parameters: {{weight: 0.5}}}}\n"
            )
        };
        let modules: String = names.iter().map(module).collect();
        format!("merge_method: linear\nmodules:\n{modules}")
    };
    let said = bench.refused(&recipe(&["unett", "default"]), &[]);
    for part in [
        "`a` has no part `unett`",
        "did you mean `unet`?",
        "text_encoder",
        "recipe.yml:3:",
    ] {
        assert!(said.contains(part), "{part}: {said}");
    }
    // Of two names for the rest, one counts.
    let said = bench.refused(&recipe(&["unet", "default", "decoder"]), &[]);
    assert!(said.contains("`a` has no part `decoder`"), "{said}");
    bench.merge(&recipe(&["unet", "default"]), &[]);
    is_mixed(&bench, "unet/diffusion_pytorch_model.safetensors", 0.5);
}

#[test]
fn the_weights_that_the_components_library_reads_count() {
    let other = weights(70);
    let (of_diffusers, of_transformers) =
        ("diffusion_pytorch_model.safetensors", "model.safetensors");
    for (folder, own, stray) in [
        ("unet", of_diffusers, of_transformers),
        ("text_encoder", of_transformers, of_diffusers),
    ] {
        let bench = Bench::new();
        pipeline(&bench, "a", 1);
        pipeline(&bench, "b", 2);
        bench.tensors(&format!("a/{folder}/{stray}"), &other);
        bench.recipe(MEAN);
        let outcome = bench.weld(&["merge", "recipe.yml", "out"]);
        assert_eq!(outcome.code, Some(0), "{}", outcome.stderr);
        let note = format!("a/{folder}/{stray} was not read");
        assert!(outcome.stderr.contains(&note), "{}", outcome.stderr);
        is_mixed(&bench, &format!("{folder}/{own}"), 0.5);
        bench.passes(&["verify", "out", "--full"]);
        let checked = bench.weld(&["check", "a"]);
        assert!(
            checked.stdout.contains("index.orphan-file"),
            "{}",
            checked.stdout
        );
        fs::remove_dir_all(bench.path("out")).unwrap();
        // A config that does not say whose it is decides nothing.
        for config in ["{}", r#"{"_class_name": "X", "model_type": "x"}"#] {
            bench.file(&format!("a/{folder}/config.json"), config);
            let said = bench.refused(MEAN, &[]);
            assert!(
                said.contains(of_diffusers) && said.contains(of_transformers),
                "{said}"
            );
            assert!(said.contains("`model_type` or `_class_name`"), "{said}");
        }
    }
}

#[test]
fn weights_by_a_name_that_no_loader_looks_for_do_not_verify() {
    for (from, to) in [
        (
            "unet/diffusion_pytorch_model.safetensors",
            "unet/model.safetensors",
        ),
        (
            "text_encoder/model.safetensors",
            "text_encoder/weights.safetensors",
        ),
    ] {
        for lock in [true, false] {
            let bench = Bench::new();
            pipeline(&bench, "a", 1);
            pipeline(&bench, "b", 2);
            bench.merge(MEAN, &[]);
            let args = match lock {
                true => vec!["verify", "out", "--format", "json"],
                false => vec![
                    "verify",
                    "out",
                    "--recipe",
                    "recipe.yml",
                    "--format",
                    "json",
                ],
            };
            if !lock {
                fs::remove_file(bench.path("out/weldment.lock.json")).unwrap();
            }
            bench.passes(&args);
            fs::rename(
                bench.path(&format!("out/{from}")),
                bench.path(&format!("out/{to}")),
            )
            .unwrap();
            let outcome = bench.weld(&args);
            assert_eq!(outcome.code, Some(1), "{from} {lock} {}", outcome.stderr);
            let report: Value = serde_json::from_str(&outcome.stdout).unwrap();
            let findings = report["findings"].as_array().unwrap();
            let found = findings.iter().find(|finding| finding["file"] == from);
            assert_eq!(found.unwrap()["check"], "verify.file", "{findings:?}");
        }
    }
}
