//! What is read: formats, shards, single files, names of many kinds, the Hub's cache.

use std::fs;
use std::os::unix::fs::symlink;

use safetensors::Dtype;
use serde_json::json;

use crate::fixtures::{Bench, Loaded, Spec, floats, llama, llama_config, load, noise};

fn linear(a: &str, b: &str) -> String {
    format!(
        "merge_method: linear\nmodels:\n- {{model: {a}, parameters: {{weight: 1}}}}\n- {{model: {b}, parameters: {{weight: 3}}}}\n"
    )
}

fn tensor<'a>(tensors: &'a [(String, Loaded)], name: &str) -> &'a Loaded {
    &tensors.iter().find(|(found, _)| found == name).unwrap().1
}

#[test]
fn every_float_dtype_is_decoded_and_promoted() {
    let dtypes = [
        Dtype::F64,
        Dtype::F32,
        Dtype::F16,
        Dtype::BF16,
        Dtype::F8_E4M3,
        Dtype::F8_E5M2,
    ];
    let promoted = |a: Dtype, b: Dtype| match (a, b) {
        (a, b) if a == b => a,
        (Dtype::F64, _) | (_, Dtype::F64) => Dtype::F64,
        (Dtype::F32, _)
        | (_, Dtype::F32)
        | (Dtype::F16, Dtype::BF16)
        | (Dtype::BF16, Dtype::F16) => Dtype::F32,
        (Dtype::F16, _) | (_, Dtype::F16) => Dtype::F16,
        (Dtype::BF16, _) | (_, Dtype::BF16) => Dtype::BF16,
        _ => Dtype::F16,
    };
    // Exact in every dtype, as are their means with weights 1 and 3.
    let (a, b) = ([1.0, -0.5, 0.0, 4.0], [2.0, 1.5, -4.0, 4.0]);
    let mean: Vec<f64> = a.iter().zip(b).map(|(a, b)| (a + 3.0 * b) / 4.0).collect();
    for first in dtypes {
        for second in dtypes {
            let bench = Bench::new();
            bench.tensors("a.safetensors", &[floats("w", first, &[4], a)]);
            bench.tensors("b.safetensors", &[floats("w", second, &[4], b)]);
            let merged = load(&bench.merge(&linear("a.safetensors", "b.safetensors"), &[]));
            assert_eq!(
                merged[0].1.dtype,
                promoted(first, second),
                "{first:?} {second:?}"
            );
            let wide = load(&bench.merge(
                &(linear("a.safetensors", "b.safetensors") + "dtype: float32\n"),
                &[],
            ));
            assert_eq!(
                (wide[0].1.dtype, wide[0].1.values()),
                (Dtype::F32, mean.clone())
            );
        }
    }
}

#[test]
fn shards_merge_as_one_file_does() {
    let bench = Bench::new();
    let whole = linear("a", "b");
    bench.llama("a", 1, Dtype::BF16);
    bench.llama("b", 2, Dtype::BF16);
    let expected = load(&bench.merge(&whole, &[]));
    let mut specs = llama(2, 2, Dtype::BF16);
    let rest = specs.split_off(4);
    fs::remove_file(bench.path("b/model.safetensors")).unwrap();
    let mut map = serde_json::Map::new();
    for (file, specs) in [
        ("model-00001-of-00002.safetensors", &specs),
        ("model-00002-of-00002.safetensors", &rest),
    ] {
        bench.tensors(&format!("b/{file}"), specs);
        map.extend(specs.iter().map(|spec| (spec.name.clone(), file.into())));
    }
    bench.file(
        "b/model.safetensors.index.json",
        json!({"weight_map": map}).to_string(),
    );
    assert!(load(&bench.merge(&whole, &[])) == expected);
}

#[test]
fn a_tied_head_is_the_embedding_of_its_model() {
    // The first model has a head of its own, the second ties it: the embedding takes its place.
    let bench = Bench::new();
    bench.llama("a", 1, Dtype::F32);
    let mut specs = llama(2, 2, Dtype::F32);
    specs.retain(|spec| spec.name != "lm_head.weight");
    let mut config = llama_config(2);
    config["tie_word_embeddings"] = json!(true);
    bench.model("b", &config, &specs);
    let merged = load(&bench.merge(&linear("a", "b"), &[]));
    let head = tensor(&load(&bench.path("a")), "lm_head.weight").values();
    let embedding = tensor(&load(&bench.path("b")), "model.embed_tokens.weight").values();
    for (found, (head, embedding)) in tensor(&merged, "lm_head.weight")
        .values()
        .iter()
        .zip(head.iter().zip(embedding))
    {
        assert!((found - (head + 3.0 * embedding) / 4.0).abs() < 1e-8);
    }

    // The other way about, a stored copy of the embedding is left out, as the output ties it.
    let mut specs = llama(1, 2, Dtype::F32);
    let copy = specs
        .iter()
        .find(|spec| spec.name == "model.embed_tokens.weight")
        .unwrap()
        .bytes
        .clone();
    specs
        .iter_mut()
        .find(|spec| spec.name == "lm_head.weight")
        .unwrap()
        .bytes = copy;
    bench.model("a", &config, &specs);
    let merged = load(&bench.merge(&linear("b", "a"), &[]));
    assert!(merged.iter().all(|(name, _)| name != "lm_head.weight"));
    let plan = bench.weld(&["plan", "recipe.yml"]).stdout;
    assert!(
        plan.contains("1  of a left out: the tied copy of an embedding"),
        "{plan}"
    );
}

#[test]
fn a_prefix_that_one_model_lacks_is_found_and_reported() {
    let bench = Bench::new();
    bench.llama("a", 1, Dtype::F32);
    bench.llama("b", 2, Dtype::F32);
    let expected = load(&bench.merge(&linear("a", "b"), &[]));
    let renamed: Vec<Spec> = llama(2, 2, Dtype::F32)
        .into_iter()
        .map(|spec| Spec {
            name: spec
                .name
                .strip_prefix("model.")
                .unwrap_or(&spec.name)
                .to_owned(),
            ..spec
        })
        .collect();
    bench.model("b", &llama_config(2), &renamed);
    assert!(load(&bench.merge(&linear("a", "b"), &[])) == expected);
    let plan = bench.weld(&["plan", "recipe.yml"]).stdout;
    assert!(
        plan.contains("names of `b` lack the prefix `model.` that `a` has"),
        "{plan}"
    );
}

#[test]
fn buffers_that_are_computed_from_the_config_need_not_be_everywhere() {
    let bench = Bench::new();
    bench.llama("a", 1, Dtype::F32);
    let mut specs = llama(2, 2, Dtype::F32);
    specs.push(floats(
        "model.layers.0.self_attn.rotary_emb.inv_freq",
        Dtype::F32,
        &[2],
        [1.0, 0.1],
    ));
    bench.model("b", &llama_config(2), &specs);
    assert_eq!(load(&bench.merge(&linear("a", "b"), &[])).len(), 11);
    let merged = load(&bench.merge(&linear("b", "a"), &[]));
    assert_eq!(
        tensor(&merged, "model.layers.0.self_attn.rotary_emb.inv_freq").values()[0],
        1.0
    );
}

#[test]
fn gradients_run_over_the_layers_of_any_naming() {
    for prefix in [
        "model.layers",
        "bert.encoder.layer",
        "gpt_neox.layers",
        "transformer.h",
        "backbone.blocks",
    ] {
        let bench = Bench::new();
        for (name, value) in [("a", 0.0), ("b", 1.0)] {
            let mut specs: Vec<Spec> = (0..5)
                .map(|layer| {
                    floats(
                        &format!("{prefix}.{layer}.mlp.w"),
                        Dtype::F32,
                        &[2],
                        [value; 2],
                    )
                })
                .collect();
            specs.push(floats("final.norm", Dtype::F32, &[1], [value]));
            bench.tensors(&format!("{name}.safetensors"), &specs);
        }
        let recipe = "merge_method: slerp\nbase_model: a.safetensors\nmodels: [{model: a.safetensors}, {model: b.safetensors}]\n\
                      parameters: {t: [0.2, 0.4, 1.0]}\n";
        bench.recipe(recipe);
        let plan = bench.weld(&["plan", "recipe.yml", "--format", "json"]);
        let plan: serde_json::Value = serde_json::from_str(&plan.stdout).unwrap();
        let t: Vec<f64> = (0..5)
            .map(|layer| {
                let name = format!("{prefix}.{layer}.mlp.w");
                let tensors = plan["tensors"].as_array().unwrap();
                let tensor = tensors
                    .iter()
                    .find(|tensor| tensor["name"] == name.as_str())
                    .unwrap();
                tensor["parameters"]["t"].as_f64().unwrap()
            })
            .collect();
        // By hand: depths 0, 1/4, 2/4, 3/4, 1 on the line through 0.2, 0.4, 1.0.
        for (found, expected) in t.iter().zip([0.2, 0.3, 0.4, 0.7, 1.0]) {
            assert!((found - expected).abs() < 1e-12, "{prefix}: {t:?}");
        }
        // Outside the layers a gradient has its first value.
        let norm = plan["tensors"]
            .as_array()
            .unwrap()
            .iter()
            .find(|tensor| tensor["name"] == "final.norm")
            .unwrap();
        assert_eq!(norm["parameters"]["t"], 0.2);
    }
}

#[test]
fn scalars_and_empty_tensors_merge() {
    let bench = Bench::new();
    for (name, value) in [("a", 1.0), ("b", 2.0)] {
        let specs = [
            floats("scalar", Dtype::F32, &[], [value]),
            floats("none", Dtype::F32, &[0, 7], []),
        ];
        bench.tensors(&format!("{name}.safetensors"), &specs);
    }
    for method in ["ties", "dare_ties", "task_arithmetic"] {
        let recipe = format!(
            "merge_method: {method}\nbase_model: a.safetensors\nmodels: [{{model: b.safetensors}}]\nparameters: {{weight: 1}}\n"
        );
        let merged = load(&bench.merge(&recipe, &[]));
        assert_eq!(tensor(&merged, "scalar").values(), [2.0], "{method}");
        assert_eq!(tensor(&merged, "none").shape, [0, 7]);
    }
}

#[test]
fn models_are_found_in_the_hub_cache() {
    let bench = Bench::new();
    let commit = "0123456789abcdef0123456789abcdef01234567";
    let repo = "hub/models--org--tuned";
    // As huggingface_hub lays it out: blobs, and snapshots of links to them.
    bench.llama("made", 3, Dtype::BF16);
    fs::create_dir_all(bench.path(&format!("{repo}/blobs"))).unwrap();
    let snapshot = bench.path(&format!("{repo}/snapshots/{commit}"));
    fs::create_dir_all(&snapshot).unwrap();
    for file in ["config.json", "model.safetensors"] {
        fs::rename(
            bench.path(&format!("made/{file}")),
            bench.path(&format!("{repo}/blobs/{file}-hash")),
        )
        .unwrap();
        symlink(format!("../../blobs/{file}-hash"), snapshot.join(file)).unwrap();
    }
    bench.file(&format!("{repo}/refs/main"), commit);
    bench.file(&format!("{repo}/refs/refs/pr/1"), commit);
    for model in [
        "org/tuned".to_owned(),
        "org/tuned@main".into(),
        "org/tuned@refs/pr/1".into(),
        format!("org/tuned@{commit}"),
    ] {
        bench.recipe(&format!(
            "merge_method: passthrough\nmodels: [{{model: {model}}}]\n"
        ));
        for (variable, value) in [("HF_HUB_CACHE", "hub"), ("HF_HOME", ".")] {
            let mut command = bench.command();
            let done = command
                .env(variable, bench.path(value))
                .args(["merge", "-q", "--force", "recipe.yml", "out"])
                .output()
                .unwrap();
            assert!(
                done.status.success(),
                "{model}: {}",
                String::from_utf8_lossy(&done.stderr)
            );
            assert!(load(&bench.path("out")) == load(&snapshot));
        }
        let card = fs::read_to_string(bench.path("out/README.md")).unwrap();
        assert!(
            card.starts_with("---\nbase_model:\n- \"org/tuned\"\nbase_model_relation: merge\n"),
            "{card}"
        );
    }
    let unknown = bench.refused_with_cache(
        "merge_method: passthrough\nmodels: [{model: org/tuned@v2}]\n",
        "hub",
    );
    assert!(unknown.contains("org/tuned@v2"), "{unknown}");
    let escaping = bench.refused_with_cache(
        "merge_method: passthrough\nmodels: [{model: org/tuned@../../x}]\n",
        "hub",
    );
    assert!(escaping.contains("is not a revision"), "{escaping}");
}

#[test]
fn paths_are_looked_for_from_the_working_folder_then_from_the_recipes() {
    let bench = Bench::new();
    bench.llama("models/a", 1, Dtype::F32);
    bench.llama("recipes/models/a", 2, Dtype::F32);
    bench.llama("recipes/models/b", 3, Dtype::F32);
    let recipe =
        |model: &str| format!("merge_method: passthrough\nmodels: [{{model: models/{model}}}]\n");
    for (model, found) in [("a", "models/a"), ("b", "recipes/models/b")] {
        bench.file("recipes/r.yml", recipe(model));
        let outcome = bench.weld(&["merge", "-q", "--force", "recipes/r.yml", "out"]);
        assert_eq!(outcome.code, Some(0), "{}", outcome.stderr);
        assert!(
            load(&bench.path("out")) == load(&bench.path(found)),
            "{model}"
        );
    }
}

#[test]
fn unaligned_and_padded_headers_are_read() {
    // A header of any length is sound: data then starts at an odd byte.
    let bench = Bench::new();
    let values: Vec<f64> = noise(5, 40_000).collect();
    let spec = floats("w", Dtype::F16, &[40_000], values);
    let header = format!(
        "{{\"w\":{{\"dtype\":\"F16\",\"shape\":[40000],\"data_offsets\":[0,{}]}}}}",
        spec.bytes.len()
    );
    for padding in 0..3 {
        let header = format!("{header}{}", " ".repeat(padding));
        let mut bytes = (header.len() as u64).to_le_bytes().to_vec();
        bytes.extend(header.as_bytes());
        bytes.extend(&spec.bytes);
        bench.file("odd.safetensors", bytes);
        let merged = load(&bench.merge("merge_method: passthrough\nmodels: [{model: odd.safetensors, parameters: {scale: 2}}]\n", &[]));
        let expected: Vec<f64> = Loaded {
            dtype: Dtype::F16,
            shape: vec![],
            bytes: spec.bytes.clone(),
        }
        .values()
        .iter()
        .map(|v| v * 2.0)
        .collect();
        assert!(merged[0].1.values() == expected);
    }
}
