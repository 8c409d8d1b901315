//! What a merge writes: shards and index, config, sidecar files, card; and that the plan says it beforehand.

use std::collections::BTreeSet;
use std::fs;
use std::path::Path;

use safetensors::{Dtype, SafeTensors};
use serde_json::{Value, json};

use crate::fixtures::{
    Bench, Loaded, by_name, config_with, files, floats, llama, llama_config, load, noise,
    read_json, with,
};

const LINEAR: &str =
    "merge_method: linear\nmodels:\n- model: a\n- model: b\nparameters: {weight: 0.5}\n";

fn bench() -> Bench {
    let bench = Bench::new();
    bench.llama("a", 1, Dtype::BF16);
    bench.llama("b", 2, Dtype::BF16);
    bench
}

fn file_names(path: &Path) -> BTreeSet<String> {
    files_below(path, "")
}

fn files_below(path: &Path, prefix: &str) -> BTreeSet<String> {
    let mut found = BTreeSet::new();
    for entry in fs::read_dir(path).unwrap() {
        let entry = entry.unwrap();
        let name = format!("{prefix}{}", entry.file_name().to_string_lossy());
        if entry.path().is_dir() {
            found.extend(files_below(&entry.path(), &format!("{name}/")));
        } else {
            found.insert(name);
        }
    }
    found
}

/// The bytes of all weight files.
fn weight_bytes(path: &Path) -> u64 {
    fs::read_dir(path)
        .unwrap()
        .map(|entry| entry.unwrap().path())
        .filter(|path| path.extension().is_some_and(|end| end == "safetensors"))
        .map(|path| path.metadata().unwrap().len())
        .sum()
}

fn plan_json(bench: &Bench, more: &[&str]) -> Value {
    let mut arguments = vec!["plan", "recipe.yml", "--format", "json"];
    arguments.extend(more);
    let outcome = bench.weld(&arguments);
    assert_eq!(outcome.code, Some(0), "{}", outcome.stderr);
    serde_json::from_str(&outcome.stdout).unwrap()
}

#[test]
fn one_file_keeps_the_order_of_the_inputs_and_says_format_pt() {
    // Neither by name nor by size.
    let bench = Bench::new();
    let order = [
        "z",
        "model.layers.1.w",
        "b",
        "model.layers.0.w",
        "a.10",
        "a.9",
    ];
    for (model, value) in [("a", 1.0), ("b", 2.0)] {
        let specs: Vec<_> = order
            .iter()
            .enumerate()
            .map(|(index, name)| {
                floats(
                    name,
                    Dtype::F32,
                    &[(index * 3) % 5 + 1],
                    vec![value; (index * 3) % 5 + 1],
                )
            })
            .collect();
        // The library sorts by dtype and name: write the file by hand.
        let mut header = serde_json::Map::new();
        let mut data: Vec<u8> = Vec::new();
        for spec in &specs {
            let end = data.len() + spec.bytes.len();
            header.insert(
                spec.name.clone(),
                json!({"dtype": "F32", "shape": spec.shape, "data_offsets": [data.len(), end]}),
            );
            data.extend(&spec.bytes);
        }
        let header = Value::from(header).to_string();
        let mut file = (header.len() as u64).to_le_bytes().to_vec();
        file.extend(header.as_bytes());
        file.extend(data);
        bench.file(&format!("{model}/model.safetensors"), file);
    }
    let out = bench.merge(LINEAR, &[]);
    let found: Vec<String> = load(&out).into_iter().map(|(name, _)| name).collect();
    assert_eq!(found, order);
    let bytes = fs::read(out.join("model.safetensors")).unwrap();
    let (_, header) = SafeTensors::read_metadata(&bytes).unwrap();
    let metadata = header.metadata().clone().unwrap();
    assert_eq!(metadata.len(), 1);
    assert_eq!(metadata["format"], "pt");
    let length = u64::from_le_bytes(bytes[..8].try_into().unwrap());
    assert_eq!(length % 8, 0, "data starts aligned");
}

#[test]
fn shards_hold_no_more_than_asked_and_the_index_knows_them() {
    let bench = bench();
    let whole = by_name(&bench.merge(LINEAR, &[]));
    assert_eq!(
        file_names(&bench.path("out")),
        [
            "README.md",
            "config.json",
            "model.safetensors",
            "weldment.lock.json"
        ]
        .map(String::from)
        .into()
    );
    let limit = 500;
    let out = bench.merge(LINEAR, &["--shard-size", "500"]);
    assert!(by_name(&out) == whole);
    let index = read_json(&out.join("model.safetensors.index.json"));
    let weight_map = index["weight_map"].as_object().unwrap();
    let shards: BTreeSet<&str> = weight_map
        .values()
        .map(|file| file.as_str().unwrap())
        .collect();
    let count = shards.len();
    assert!(count > 2);
    let mut total = 0;
    let mut in_order = Vec::new();
    for (number, shard) in shards.iter().enumerate() {
        assert_eq!(
            *shard,
            format!("model-{:05}-of-{count:05}.safetensors", number + 1)
        );
        let tensors = load(&out.join(shard));
        let bytes: usize = tensors.iter().map(|(_, tensor)| tensor.bytes.len()).sum();
        assert!(bytes <= limit, "{shard} holds {bytes} bytes");
        total += bytes;
        for (name, _) in tensors {
            assert_eq!(weight_map[&name], *shard, "{name}");
            in_order.push(name);
        }
        let file = fs::read(out.join(shard)).unwrap();
        let (_, header) = SafeTensors::read_metadata(&file).unwrap();
        assert_eq!(header.metadata().clone().unwrap()["format"], "pt");
    }
    assert_eq!(index["metadata"]["total_size"], total);
    assert_eq!(weight_map.len(), in_order.len());
    let inputs: Vec<String> = load(&bench.path("a"))
        .into_iter()
        .map(|(name, _)| name)
        .collect();
    assert_eq!(in_order, inputs);
    // A folder that had one file before has none of it now.
    assert!(!out.join("model.safetensors").exists());
}

#[test]
fn a_tensor_larger_than_a_shard_gets_one_of_its_own() {
    let bench = bench();
    let out = bench.merge(LINEAR, &["--shard-size", "1"]);
    let tensors = load(&out).len();
    let weights = file_names(&out)
        .into_iter()
        .filter(|name| name.ends_with(".safetensors"))
        .count();
    assert_eq!(weights, tensors);
}

#[test]
fn the_config_is_the_donors_with_the_dtype_that_is_written() {
    let bench = bench();
    let config = config_with(
        2,
        json!({"rope_theta": 1e4, "nested": {"kept": [1, null, "x"]}, "torch_dtype": "float16"}),
    );
    bench.file("a/config.json", config.to_string());
    let out = read_json(&bench.merge(LINEAR, &[]).join("config.json"));
    let mut expected = config;
    expected["torch_dtype"] = json!("bfloat16");
    expected["dtype"] = json!("bfloat16");
    assert_eq!(out, expected);
    let keys: Vec<&String> = out.as_object().unwrap().keys().collect();
    assert_eq!(keys[..3], ["architectures", "model_type", "hidden_size"]);

    // A base gives the config, wherever it stands.
    bench.model(
        "base",
        &config_with(2, json!({"of": "base"})),
        &llama(3, 2, Dtype::BF16),
    );
    let ties = "merge_method: ties\nbase_model: base\nmodels: [{model: a}, {model: b}]\nparameters: {weight: 1}\n";
    let out = read_json(&bench.merge(ties, &[]).join("config.json"));
    assert_eq!(out["of"], "base");
}

#[test]
fn a_nested_config_is_edited_where_its_language_model_is() {
    let bench = Bench::new();
    let text = json!({
        "num_hidden_layers": 3,
        "layer_types": ["full", "sliding", "linear"],
        "torch_dtype": "bfloat16",
        "vocab_size": 16
    });
    let config = json!({
        "architectures": ["XForConditionalGeneration"],
        "model_type": "x",
        "text_config": text,
        "vision_config": {"num_hidden_layers": 7, "torch_dtype": "bfloat16"},
        "torch_dtype": "bfloat16"
    });
    bench.model("a", &config, &llama(1, 3, Dtype::BF16));
    let recipe = "merge_method: passthrough\ndtype: float32\nslices:\n\
                  - sources: [{model: a, layer_range: [0, 2]}]\n- sources: [{model: a, layer_range: [1, 3]}]\n";
    let out = read_json(&bench.merge(recipe, &[]).join("config.json"));
    assert_eq!(out["dtype"], "float32");
    assert_eq!(out["torch_dtype"], "float32");
    assert_eq!(out["text_config"]["num_hidden_layers"], 4);
    assert_eq!(
        out["text_config"]["layer_types"],
        json!(["full", "sliding", "sliding", "linear"])
    );
    assert_eq!(out["text_config"]["torch_dtype"], "float32");
    assert_eq!(out["vision_config"]["num_hidden_layers"], 7);
    assert!(out.get("num_hidden_layers").is_none());
}

#[test]
fn stacked_slices_copy_layers_and_restack_the_config() {
    let bench = Bench::new();
    let config = |tag: &str| {
        let types: Vec<String> = (0..3).map(|layer| format!("{tag}{layer}")).collect();
        config_with(
            3,
            json!({"layer_types": types, "max_window_layers": 2, "quant_layers": [1, 2]}),
        )
    };
    bench.model("a", &config("a"), &llama(1, 3, Dtype::BF16));
    bench.model("b", &config("b"), &llama(2, 3, Dtype::BF16));
    let recipe = "merge_method: passthrough\nslices:\n\
                  - sources: [{model: a, layer_range: [0, 2]}]\n\
                  - sources: [{model: b, layer_range: [1, 3]}]\n\
                  - sources: [{model: a, layer_range: [2, 3]}]\n";
    let out = bench.merge(recipe, &[]);
    let (a, b, merged) = (
        by_name(&bench.path("a")),
        by_name(&bench.path("b")),
        by_name(&out),
    );
    assert_eq!(merged.len(), 3 + 5 * 4);
    for (layer, (from, source)) in [(&a, 0), (&a, 1), (&b, 1), (&b, 2), (&a, 2)]
        .iter()
        .enumerate()
    {
        for suffix in [
            "input_layernorm",
            "mlp.down_proj",
            "mlp.up_proj",
            "self_attn.q_proj",
        ] {
            assert!(
                merged[&format!("model.layers.{layer}.{suffix}.weight")]
                    == from[&format!("model.layers.{source}.{suffix}.weight")],
                "layer {layer}: {suffix}"
            );
        }
    }
    assert!(merged["model.embed_tokens.weight"] == a["model.embed_tokens.weight"]);
    assert!(merged["model.norm.weight"] == a["model.norm.weight"]);
    assert!(merged["lm_head.weight"] == a["lm_head.weight"]);
    let config = read_json(&out.join("config.json"));
    assert_eq!(config["num_hidden_layers"], 5);
    assert_eq!(config["layer_types"], json!(["a0", "a1", "a1", "a2", "a2"]));
    assert_eq!(config["max_window_layers"], 3);
    let plan = bench.weld(&["plan", "recipe.yml"]).stdout;
    assert!(
        plan.contains("left out: no slice or module asks for it"),
        "{plan}"
    );
    // The layers of the output follow each other, as they do in the inputs.
    let order: Vec<String> = load(&out)
        .into_iter()
        .map(|(name, _)| name)
        .filter(|name| name.contains("q_proj"))
        .collect();
    let expected: Vec<String> = (0..5)
        .map(|layer| format!("model.layers.{layer}.self_attn.q_proj.weight"))
        .collect();
    assert_eq!(order, expected);
}

#[test]
fn a_gradient_over_slices_runs_within_each() {
    let bench = Bench::new();
    bench.model("a", &llama_config(4), &llama(1, 4, Dtype::F32));
    bench.model("b", &llama_config(4), &llama(2, 4, Dtype::F32));
    let recipe = "merge_method: slerp\nbase_model: a\nslices:\n\
                  - sources: [{model: a, layer_range: [0, 2]}, {model: b, layer_range: [0, 2]}]\n\
                  - sources: [{model: a, layer_range: [2, 4]}, {model: b, layer_range: [2, 4]}]\n\
                  parameters:\n  t:\n  - {filter: mlp, value: [1, 0]}\n  - value: [0, 1]\n";
    let merged = by_name(&bench.merge(recipe, &[]));
    let (a, b) = (by_name(&bench.path("a")), by_name(&bench.path("b")));
    // t is 0 or 1 everywhere: each tensor is one of the two.
    for (name, tensor) in &merged {
        let second = ["layers.1.", "layers.3."]
            .iter()
            .any(|layer| name.contains(layer));
        let from = match (second, name.contains("mlp")) {
            (true, false) | (false, true) => &b,
            _ => &a,
        };
        assert_eq!(tensor.values(), from[name].values(), "{name}");
    }
    assert_eq!(merged.len(), a.len());
}

#[test]
fn files_beside_the_weights_are_carried_over_from_the_donor() {
    let bench = bench();
    let carried = [
        "tokenizer.json",
        "tokenizer_config.json",
        "special_tokens_map.json",
        "chat_template.jinja",
        "additional_chat_templates/tools.jinja",
        "generation_config.json",
        "preprocessor_config.json",
        "LICENSE",
        "notes.txt",
    ];
    for model in ["a", "b"] {
        for name in carried {
            let vocabulary = json!({"model": {"vocab": {"x": 0}}, "of": model});
            bench.file(&format!("{model}/{name}"), vocabulary.to_string());
        }
        for name in ["README.md", "training_args.bin", "optimizer.pt"] {
            bench.file(&format!("{model}/{name}"), "not of the checkpoint");
        }
    }
    let mut expected: BTreeSet<String> = carried.map(String::from).into();
    expected.extend(
        [
            "README.md",
            "config.json",
            "model.safetensors",
            "weldment.lock.json",
        ]
        .map(String::from),
    );
    let check = |from_b: &[&str], more: &[&str]| {
        let out = bench.merge(LINEAR, more);
        assert_eq!(file_names(&out), expected);
        for name in carried {
            let model = if from_b.contains(&name) { "b" } else { "a" };
            assert_eq!(
                fs::read(out.join(name)).unwrap(),
                fs::read(bench.path(&format!("{model}/{name}"))).unwrap(),
                "{name}"
            );
        }
        assert!(
            !fs::read_to_string(out.join("README.md"))
                .unwrap()
                .contains("not of the")
        );
    };
    check(&[], &[]);
    // The donor of the tokenizer gives all that speaks of tokens, and nothing else.
    check(&carried[..5], &["--tokenizer-from", "b"]);
}

#[test]
fn the_tokenizers_donor_need_not_be_merged() {
    let bench = bench();
    bench.llama("c", 3, Dtype::BF16);
    for (model, text) in [("a", "old"), ("c", "new")] {
        bench.file(&format!("{model}/chat_template.jinja"), text);
        bench.file(
            &format!("{model}/generation_config.json"),
            json!({"of": model}).to_string(),
        );
    }
    let plain = by_name(&bench.merge(LINEAR, &[]));
    let out = bench.merge(LINEAR, &["--tokenizer-from", "c"]);
    assert!(
        by_name(&out) == plain,
        "the donor of the tokenizer changed the weights"
    );
    assert_eq!(
        fs::read_to_string(out.join("chat_template.jinja")).unwrap(),
        "new"
    );
    assert_eq!(read_json(&out.join("generation_config.json"))["of"], "a");
}

#[test]
fn the_card_has_the_hubs_metadata_and_no_path_of_this_machine() {
    const COMMIT: &str = "0123456789abcdef0123456789abcdef01234567";
    let bench = bench();
    bench.hub_model("org/one", "main", COMMIT, &llama(3, 2, Dtype::BF16));
    bench.hub_model("org/two", "main", COMMIT, &llama(4, 2, Dtype::BF16));
    let front = |recipe: &str| -> (Value, String) {
        let out = bench.merge(recipe, &[]);
        let card = fs::read_to_string(out.join("README.md")).unwrap();
        assert!(!card.contains(&*bench.path("").to_string_lossy()), "{card}");
        let (front, text) = card
            .strip_prefix("---\n")
            .unwrap()
            .split_once("\n---\n")
            .unwrap();
        assert!(
            text.contains(recipe.trim_end()),
            "the recipe is in the card:\n{card}"
        );
        (serde_saphyr::from_str(front).unwrap(), text.to_owned())
    };
    let (local, text) = front(LINEAR);
    assert_eq!(
        local,
        json!({"library_name": "transformers", "tags": ["merge", "weldment"]}),
        "local models are none of the Hub's"
    );
    assert!(text.contains("`linear`"), "{text}");
    let hub = "merge_method: task_arithmetic\nbase_model: org/one\nmodels: [{model: org/two@main}, {model: a}]\n\
               parameters: {weight: 0.5}\n";
    let (hub, text) = front(hub);
    let mut based: Vec<&str> = hub["base_model"]
        .as_array()
        .unwrap()
        .iter()
        .map(|name| name.as_str().unwrap())
        .collect();
    based.sort_unstable();
    assert_eq!(based, ["org/one", "org/two"]);
    assert_eq!(hub["base_model_relation"], "merge");
    assert_eq!(hub["tags"], json!(["merge", "weldment"]));
    assert!(text.contains("`org/one` (base)"), "{text}");
}

#[test]
fn the_seed_of_a_random_merge_is_in_its_card() {
    let bench = bench();
    let recipe = "merge_method: dare_linear\nbase_model: a\nmodels: [{model: b}]\nparameters: {weight: 1, density: 0.5}\n";
    let out = bench.merge(recipe, &["--seed", "17"]);
    let card = fs::read_to_string(out.join("README.md")).unwrap();
    assert!(card.contains("`--seed 17`"), "{card}");
    bench.merge(LINEAR, &["--seed", "17"]);
    let card = fs::read_to_string(out.join("README.md")).unwrap();
    assert!(!card.contains("seed"), "{card}");
}

#[test]
fn the_plan_as_json_is_what_the_merge_does() {
    let bench = bench();
    bench.llama("base", 3, Dtype::BF16);
    bench.file("base/tokenizer.json", "{}");
    let slices = "merge_method: ties\nbase_model: base\nslices:\n\
                  - sources: [{model: base, layer_range: [0, 1]}, {model: a, layer_range: [1, 2]}]\n\
                  parameters: {weight: 1, density: 0.5}\n";
    let ties = "merge_method: ties\nbase_model: base\nmodels: [{model: a}, {model: b}]\nparameters: {weight: 1}\n";
    for (recipe, more) in [
        (LINEAR, &["--shard-size", "600"][..]),
        (ties, &[]),
        (slices, &["--threads", "1"]),
    ] {
        let out = bench.merge(recipe, more);
        let plan = plan_json(&bench, more);
        let written = load(&out);
        let mut names: Vec<&str> = Vec::new();
        for tensor in plan["tensors"].as_array().unwrap() {
            let name = tensor["name"].as_str().unwrap();
            names.push(name);
            let (_, found) = written.iter().find(|(found, _)| found == name).unwrap();
            assert_eq!(tensor["dtype"], format!("{:?}", found.dtype), "{name}");
            assert_eq!(tensor["shape"], json!(found.shape), "{name}");
            assert!(!tensor["sources"].as_array().unwrap().is_empty(), "{name}");
        }
        assert_eq!(names.len(), written.len());
        assert_eq!(plan["bytes_written"], weight_bytes(&out));
        for shard in plan["shards"].as_array().unwrap() {
            let file = out.join(shard["file"].as_str().unwrap());
            assert_eq!(shard["bytes"], file.metadata().unwrap().len());
        }
        for model in plan["models"].as_array().unwrap() {
            let label = model["model"].as_str().unwrap();
            let usages = model["tensors"].as_object().unwrap();
            let mut found: Vec<String> = usages.keys().cloned().collect();
            let mut has: Vec<String> = load(&bench.path(label))
                .into_iter()
                .map(|(name, _)| name)
                .collect();
            found.sort();
            has.sort();
            assert_eq!(found, has, "every tensor of {label} has a usage");
            assert!(usages.values().all(|usage| !usage.is_null()), "{usages:?}");
        }
    }
    // Of the last recipe: what no slice asks for is said.
    let plan = plan_json(&bench, &[]);
    let base = plan["models"]
        .as_array()
        .unwrap()
        .iter()
        .find(|model| model["model"] == "base")
        .unwrap();
    assert_eq!(base["base"], true);
    assert_eq!(
        base["tensors"]["model.layers.1.mlp.up_proj.weight"],
        "outside slices"
    );
    assert_eq!(
        base["tensors"]["model.layers.0.mlp.up_proj.weight"],
        json!({"used": 1})
    );
    assert_eq!(
        plan["files"],
        json!([{"file": "tokenizer.json", "from": "base"}])
    );
}

#[test]
fn the_plan_shows_effective_values_and_writes_nothing() {
    let bench = bench();
    bench.llama("base", 3, Dtype::BF16);
    bench.recipe(
        "merge_method: ties\nbase_model: base\nmodels:\n- model: a\n  parameters: {weight: [0, 1]}\n- model: b\n\
         parameters:\n  weight: 0.25\n  density: [{filter: mlp, value: 0.5}, {value: 0.75}]\n",
    );
    let before = file_names(&bench.path(""));
    let summary = bench.weld(&["plan", "recipe.yml"]);
    let all = bench.weld(&["plan", "recipe.yml", "--all"]);
    assert_eq!(file_names(&bench.path("")), before);
    assert_eq!((summary.code, all.code), (Some(0), Some(0)));
    assert_eq!(summary.stderr, "");
    for part in [
        "method   ties",
        "base  11 tensors",
        "(base; gives names, config and files)",
        "weight=0 density=0.5",
        "weight=1 density=0.75",
        "output   11 tensors (11 BF16) in model.safetensors",
        "cost     reads ",
    ] {
        assert!(summary.stdout.contains(part), "{part}\n{}", summary.stdout);
    }
    for (tensor, values) in [
        (
            "model.layers.0.mlp.up_proj.weight",
            "a: model.layers.0.mlp.up_proj.weight (weight=0 density=0.5)",
        ),
        (
            "model.layers.1.mlp.up_proj.weight",
            "a: model.layers.1.mlp.up_proj.weight (weight=1 density=0.5)",
        ),
        (
            "model.layers.1.self_attn.q_proj.weight",
            "a: model.layers.1.self_attn.q_proj.weight (weight=1 density=0.75)",
        ),
        (
            "lm_head.weight",
            "b: lm_head.weight (weight=0.25 density=0.75)",
        ),
    ] {
        assert!(
            all.stdout.contains(&format!("\n{tensor}  BF16 [")),
            "{tensor}\n{}",
            all.stdout
        );
        assert!(
            all.stdout.contains(&format!("    <- {values}")),
            "{values}\n{}",
            all.stdout
        );
    }
}

#[test]
fn the_summary_of_a_merge_counts_what_was_done() {
    let bench = bench();
    bench.recipe(&format!("{LINEAR}dtype: float32\n"));
    let outcome = bench.weld(&["merge", "recipe.yml", "out", "--format", "json"]);
    assert_eq!(outcome.code, Some(0), "{}", outcome.stderr);
    let summary: Value = serde_json::from_str(&outcome.stdout).unwrap();
    let tensors = |path: &str| -> u64 {
        load(&bench.path(path))
            .iter()
            .map(|(_, tensor)| tensor.bytes.len() as u64)
            .sum()
    };
    assert_eq!(summary["out"], "out");
    assert_eq!(summary["tensors"], 11);
    assert_eq!(summary["bytes_read"], tensors("a") + tensors("b"));
    assert_eq!(summary["bytes_written"], tensors("out"));
    assert_eq!(summary["saturated"], 0);
    assert!(summary["seconds"].as_f64().unwrap() > 0.0);
    assert!(
        outcome
            .stderr
            .contains("merging 11 tensors of 2 models by linear")
    );

    let text = bench.weld(&["merge", "recipe.yml", "out", "--force"]);
    assert_eq!(text.stdout, "");
    assert!(
        text.stderr.contains("out: 11 tensors by linear, "),
        "{}",
        text.stderr
    );
    let quiet = bench.weld(&["merge", "recipe.yml", "out", "--force", "--quiet"]);
    assert_eq!((quiet.stdout.as_str(), quiet.stderr.as_str()), ("", ""));
}

#[test]
fn clamped_values_are_counted_in_the_summary() {
    let bench = Bench::new();
    let spec = floats("w", Dtype::F32, &[3], [1e6, -1e6, 1.0]);
    bench.tensors("a.safetensors", &[spec]);
    bench.recipe("merge_method: passthrough\nmodels: [{model: a.safetensors}]\ndtype: float16\n");
    let run = |format: &str| {
        bench.weld(&[
            "merge",
            "recipe.yml",
            "out",
            "--force",
            "--saturate",
            "--format",
            format,
        ])
    };
    let json: Value = serde_json::from_str(&run("json").stdout).unwrap();
    assert_eq!(json["saturated"], 2);
    let text = run("text").stderr;
    assert!(
        text.contains("2 values were too large and were clamped"),
        "{text}"
    );
}

#[test]
fn a_merge_goes_into_another() {
    // Output is input again: shards, index and config as they are written.
    let bench = bench();
    bench.file("a/tokenizer.json", "{}");
    let whole = bench.merge(LINEAR, &["--shard-size", "500"]);
    fs::rename(&whole, bench.path("merged")).unwrap();
    let merged = by_name(&bench.path("merged"));
    let again = bench.merge(
        "merge_method: passthrough\nmodels: [{model: merged}]\n",
        &[],
    );
    assert!(by_name(&again) == merged);
    let plan = bench.weld(&["plan", "recipe.yml"]).stdout;
    assert!(!plan.contains("note "), "nothing about it is odd:\n{plan}");
}

#[test]
fn a_parent_folder_that_is_not_there_is_made() {
    let bench = bench();
    bench.recipe(LINEAR);
    let outcome = bench.weld(&["merge", "recipe.yml", "new/deep/out", "-q"]);
    assert_eq!(outcome.code, Some(0), "{}", outcome.stderr);
    assert_eq!(load(&bench.path("new/deep/out")).len(), 11);
    assert_eq!(files(&bench.path("new/deep/out")).len(), 4);
    let left: Vec<_> = fs::read_dir(bench.path("new/deep")).unwrap().collect();
    assert_eq!(left.len(), 1);
}

#[test]
fn a_link_at_the_output_is_followed_not_replaced() {
    let bench = bench();
    fs::create_dir(bench.path("disk")).unwrap();
    std::os::unix::fs::symlink("disk", bench.path("out")).unwrap();
    let out = bench.merge(LINEAR, &[]);
    assert!(fs::symlink_metadata(&out).unwrap().is_symlink());
    assert_eq!(load(&bench.path("disk")).len(), 11);
}

#[test]
fn a_tensor_that_one_source_of_a_slice_has_alone_is_an_error_not_a_loss() {
    let bench = Bench::new();
    bench.llama("a", 1, Dtype::BF16);
    let extra = floats("model.layers.1.extra.weight", Dtype::BF16, &[1], [1.0]);
    bench.model(
        "b",
        &llama_config(2),
        &with(llama(2, 2, Dtype::BF16), extra),
    );
    let message = bench.refused(
        "merge_method: linear\nparameters: {weight: 1}\nslices:\n\
         - sources: [{model: a, layer_range: [0, 2]}, {model: b, layer_range: [0, 2]}]\n",
        &[],
    );
    assert!(
        message.contains("layer 1 of `b` has tensors that layer 1 of `a` lacks: `extra.weight`"),
        "{message}"
    );
}

#[test]
fn stacked_layers_take_their_config_along() {
    let bench = Bench::new();
    for (seed, name) in ["a", "b"].into_iter().enumerate() {
        let mut config = llama_config(4);
        config["layer_types"] = json!(["w", "x", "y", "z"]);
        config["eos_token_id"] = json!([1, 2, 3, 4]);
        config["max_window_layers"] = json!(3);
        bench.model(name, &config, &llama(seed as u64 + 1, 4, Dtype::F32));
    }
    let recipe = "merge_method: passthrough\ndtype: float16\nslices:\n\
                  - sources: [{model: a, layer_range: [0, 3]}]\n\
                  - sources: [{model: b, layer_range: [1, 4]}]\n";
    let merged = load(&bench.merge(recipe, &[]));
    let config = read_json(&bench.path("out/config.json"));
    assert_eq!(config["num_hidden_layers"], 6);
    assert_eq!(config["layer_types"], json!(["w", "x", "y", "x", "y", "z"]));
    assert_eq!(
        config["eos_token_id"],
        json!([1, 2, 3, 4]),
        "not a list of layers"
    );
    assert_eq!(
        (&config["dtype"], &config["torch_dtype"]),
        (&json!("float16"), &json!("float16"))
    );
    assert_eq!(config["max_window_layers"], 5);
    // Embeddings come from the first slice, the norm and the head from the last.
    let [a, b] = ["a", "b"].map(|name| {
        let recipe =
            format!("merge_method: passthrough\ndtype: float16\nmodels: [{{model: {name}}}]\n");
        load(&bench.merge(&recipe, &[]))
    });
    let find = |tensors: &[(String, Loaded)], name: &str| {
        tensors
            .iter()
            .find(|(found, _)| found == name)
            .unwrap()
            .1
            .clone()
    };
    for (name, from, origin) in [
        ("model.embed_tokens.weight", &a, "model.embed_tokens.weight"),
        ("model.norm.weight", &b, "model.norm.weight"),
        ("lm_head.weight", &b, "lm_head.weight"),
        (
            "model.layers.2.mlp.up_proj.weight",
            &a,
            "model.layers.2.mlp.up_proj.weight",
        ),
        (
            "model.layers.3.mlp.up_proj.weight",
            &b,
            "model.layers.1.mlp.up_proj.weight",
        ),
        (
            "model.layers.5.mlp.up_proj.weight",
            &b,
            "model.layers.3.mlp.up_proj.weight",
        ),
    ] {
        assert!(find(&merged, name) == find(from, origin), "{name}");
    }
}

#[test]
fn an_empty_first_slice_gives_the_embeddings() {
    let bench = Bench::new();
    bench.llama("a", 1, Dtype::F32);
    bench.llama("b", 2, Dtype::F32);
    let recipe = "merge_method: passthrough\nslices:\n\
                  - sources: [{model: b, layer_range: [0, 0]}]\n\
                  - sources: [{model: a, layer_range: [0, 2]}]\n";
    let merged = load(&bench.merge(recipe, &[]));
    let (a, b) = (load(&bench.path("a")), load(&bench.path("b")));
    assert_eq!(merged.len(), a.len());
    for (name, tensor) in &merged {
        let from = if name.contains("embed") { &b } else { &a };
        assert!(
            from.iter()
                .any(|(found, theirs)| found == name && theirs == tensor),
            "{name}"
        );
    }
}

/// transformers writes and reads `Infinity` and `NaN`; and no number of a config may change because it was read.
#[test]
fn configs_keep_what_nobody_changes() {
    let bench = Bench::new();
    for (model, seed) in [("a", 1), ("b", 2)] {
        bench.llama(model, seed, Dtype::F32);
        let config = llama_config(2).to_string();
        let config = config.strip_suffix('}').unwrap();
        bench.file(
            &format!("{model}/config.json"),
            format!("{config}, \"time_step_limit\": [0.0, Infinity], \"embedding_multiplier\": 22.627416997969522, \"eps\": 1e-05, \"none\": NaN}}"),
        );
        bench.file(
            &format!("{model}/generation_config.json"),
            "{\"top_p\": -Infinity}",
        );
    }
    let mean = "merge_method: linear\nparameters: {weight: 0.5}\nmodels: [{model: a}, {model: b}]\ndtype: bfloat16\n";
    let out = bench.merge(mean, &[]);
    let text = fs::read_to_string(out.join("config.json")).unwrap();
    for part in [
        "\"time_step_limit\": [0.0, Infinity]",
        "\"embedding_multiplier\": 22.627416997969522",
        "\"eps\": 1e-05",
        "\"none\": NaN",
        "\"dtype\": \"bfloat16\"",
    ] {
        assert!(text.contains(part), "{part}\n{text}");
    }
    let generation = fs::read_to_string(out.join("generation_config.json")).unwrap();
    assert_eq!(generation, "{\"top_p\": -Infinity}");
    let checked = bench.weld(&["check", "out"]);
    assert!(!checked.stdout.contains("malformed"), "{}", checked.stdout);
    // The text of an input is not believed to be JSON for that.
    bench.file("a/config.json", "{\"eps\": Infinit}");
    std::fs::remove_dir_all(&out).unwrap();
    assert!(
        bench
            .refused(mean, &[])
            .contains("config.json is malformed")
    );
}

#[test]
fn pointers_of_git_lfs_are_no_files() {
    let pointer = "version https://git-lfs.github.com/spec/v1\noid sha256:00\nsize 7\n";
    let mean =
        "merge_method: linear\nparameters: {weight: 0.5}\nmodels: [{model: a}, {model: b}]\n";
    for file in [
        "tokenizer.model",
        "vocab.txt",
        "preprocessor_config.json",
        "tokenizer.json",
        "config.json",
    ] {
        let bench = Bench::new();
        bench.llama("a", 1, Dtype::F32);
        bench.llama("b", 2, Dtype::F32);
        bench.file(&format!("a/{file}"), pointer);
        let message = bench.refused(mean, &[]);
        assert!(
            message.contains("a Git LFS pointer, not the file"),
            "{file}: {message}"
        );
        assert!(message.contains("run `git lfs pull`"), "{file}: {message}");
    }
}

/// Old pickles and FSDP store a tied embedding twice, under any names: a random mask may not part the two.
#[test]
fn copies_stay_copies_under_random_methods() {
    let bench = Bench::new();
    for (model, seed) in [("base", 1), ("a", 2), ("b", 3)] {
        let shared = |name: &str| floats(name, Dtype::F32, &[16, 8], noise(seed, 128));
        let specs = [
            shared("shared.weight"),
            shared("encoder.first_lookup.weight"),
            floats("other.weight", Dtype::F32, &[16, 8], noise(seed + 10, 128)),
        ];
        bench.tensors(&format!("{model}.safetensors"), &specs);
    }
    for method in ["dare_linear", "dare_ties", "della", "della_linear"] {
        let out = by_name(&bench.merge(
            &format!(
                "merge_method: {method}\nbase_model: base.safetensors\nmodels: [{{model: a.safetensors}}, {{model: b.safetensors}}]\n\
                 parameters: {{weight: 0.5, density: 0.5}}\n"
            ),
            &["--seed", "7"],
        ));
        assert_eq!(
            out["shared.weight"], out["encoder.first_lookup.weight"],
            "{method}"
        );
    }
    let plan = bench.weld(&["plan", "recipe.yml"]).stdout;
    assert!(
        plan.contains("get its random draws, and stay copies: `"),
        "{plan}"
    );
    // Equal in one model alone is no copy.
    let specs = [
        "shared.weight",
        "encoder.first_lookup.weight",
        "other.weight",
    ];
    let specs: Vec<_> = (40..)
        .zip(specs)
        .map(|(seed, name)| floats(name, Dtype::F32, &[16, 8], noise(seed, 128)))
        .collect();
    bench.tensors("b.safetensors", &specs);
    let plan = bench.weld(&["plan", "recipe.yml"]).stdout;
    assert!(!plan.contains("stay copies"), "{plan}");
    // Nor are tensors that are equal but for their last element.
    let values: Vec<f64> = noise(9, 128).collect();
    let mut other = values.clone();
    other[127] += 0.01;
    let specs = [
        floats("shared.weight", Dtype::F32, &[16, 8], values),
        floats("encoder.first_lookup.weight", Dtype::F32, &[16, 8], other),
        floats("other.weight", Dtype::F32, &[16, 8], noise(10, 128)),
    ];
    bench.tensors("b.safetensors", &specs);
    let plan = bench.weld(&["plan", "recipe.yml"]).stdout;
    assert!(!plan.contains("stay copies"), "{plan}");
}

#[test]
fn a_fine_tune_that_is_its_base_is_noted() {
    let bench = Bench::new();
    for (model, seed) in [("base", 1), ("a", 1), ("b", 2)] {
        bench.llama(model, seed, Dtype::BF16);
    }
    bench.merge(
        "merge_method: task_arithmetic\nbase_model: base\nmodels: [{model: a}, {model: b}]\nparameters: {weight: 0.5}\n",
        &[],
    );
    let plan = bench.weld(&["plan", "recipe.yml"]).stdout;
    assert!(plan.contains("`a` has the bytes of `base`"), "{plan}");
    assert!(!plan.contains("`b` has the bytes"), "{plan}");
}

/// Jamba and Llama 4: what a config says of layers by a period or by their numbers is of the new layers, or the merge
/// is refused.
#[test]
fn a_config_that_speaks_of_layers_by_number_is_of_the_new_ones_or_refused() {
    let bench = Bench::new();
    let config = |more: Value| {
        let mut config = llama_config(4);
        for (key, value) in more.as_object().unwrap() {
            config[key] = value.clone();
        }
        config
    };
    let more = json!({"attn_layer_period": 2, "attn_layer_offset": 1, "moe_layers": [0, 1, 2, 3]});
    bench.model("a", &config(more), &llama(1, 4, Dtype::F32));
    let slices = |ranges: &[[usize; 2]]| {
        let slice = |range: &[usize; 2]| {
            format!(
                "- sources: [{{model: a, layer_range: [{}, {}]}}]\n",
                range[0], range[1]
            )
        };
        let slices: String = ranges.iter().map(slice).collect();
        format!("merge_method: passthrough\nslices:\n{slices}")
    };
    let message = bench.refused(&slices(&[[0, 2], [1, 4]]), &[]);
    let expected = "the config of `a` says `attn_layer_period`: 2, which cannot say of the 5 output layers of \
                    `model.layers.`";
    assert!(message.contains(expected), "{message}");
    bench.merge(&slices(&[[1, 4], [2, 4]]), &[]);
    let out = read_json(&bench.path("out/config.json"));
    assert_eq!(out["num_hidden_layers"], 5);
    assert_eq!(
        (&out["attn_layer_period"], &out["attn_layer_offset"]),
        (&json!(2), &json!(0))
    );
    assert_eq!(out["moe_layers"], json!([0, 1, 2, 3, 4]));
}
