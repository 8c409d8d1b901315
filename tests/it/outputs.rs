//! What is written: shards, configs, side files, cards, slices; and the plan that says so beforehand.

use std::fs;

use safetensors::{Dtype, SafeTensors};
use serde_json::{Value, json};

use crate::fixtures::{Bench, llama, llama_config, load};

const PASS: &str = "merge_method: passthrough\nmodels: [{model: a}]\n";

fn json_of(bench: &Bench, name: &str) -> Value {
    serde_json::from_slice(&fs::read(bench.path(name)).unwrap()).unwrap()
}

#[test]
fn one_file_or_shards_with_an_index() {
    let bench = Bench::new();
    bench.llama("a", 1, Dtype::BF16);
    let order: Vec<String> = load(&bench.path("a"))
        .into_iter()
        .map(|(name, _)| name)
        .collect();
    let out = bench.merge(PASS, &[]);
    assert!(!out.join("model.safetensors.index.json").exists());
    let bytes = fs::read(out.join("model.safetensors")).unwrap();
    let (length, header) = SafeTensors::read_metadata(&bytes).unwrap();
    assert_eq!(header.metadata().as_ref().unwrap()["format"], "pt");
    assert_eq!((8 + length) % 8, 0, "tensors begin aligned");
    assert_eq!(header.offset_keys(), order, "the input's order is kept");

    let out = bench.merge(PASS, &["--shard-size", "500B"]);
    assert!(!out.join("model.safetensors").exists());
    let index = json_of(&bench, "out/model.safetensors.index.json");
    let mut total = 0;
    for (name, tensor) in load(&out) {
        total += tensor.bytes.len();
        let file = out.join(index["weight_map"][&name].as_str().unwrap());
        let bytes = fs::read(file).unwrap();
        assert!(
            SafeTensors::deserialize(&bytes)
                .unwrap()
                .tensor(&name)
                .is_ok(),
            "{name}"
        );
    }
    assert_eq!(index["metadata"]["total_size"], total);
    assert_eq!(index["weight_map"].as_object().unwrap().len(), order.len());
    let mut files: Vec<String> = fs::read_dir(&out)
        .unwrap()
        .map(|entry| entry.unwrap().file_name().to_string_lossy().into_owned())
        .filter(|name| name.ends_with(".safetensors"))
        .collect();
    files.sort();
    assert!(files.len() > 2);
    for (number, file) in files.iter().enumerate() {
        assert_eq!(
            *file,
            format!("model-{:05}-of-{:05}.safetensors", number + 1, files.len())
        );
    }
    assert!(load(&out).len() == order.len());
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
    let config = json_of(&bench, "out/config.json");
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
    let plan = bench.weld(&["plan", "recipe.yml"]).stdout;
    assert!(
        plan.contains("speaks of layers by number in `max_window_layers`"),
        "{plan}"
    );
    // Embeddings come from the first slice, the norm and the head from the last.
    let [a, b] = ["a", "b"].map(|name| {
        let recipe =
            format!("merge_method: passthrough\ndtype: float16\nmodels: [{{model: {name}}}]\n");
        load(&bench.merge(&recipe, &[]))
    });
    let find = |tensors: &[(String, crate::fixtures::Loaded)], name: &str| {
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

#[test]
fn nested_configs_are_edited_where_their_layers_are() {
    let bench = Bench::new();
    let nested = json!({
        "architectures": ["XForConditionalGeneration"],
        "model_type": "x",
        "torch_dtype": "float32",
        "text_config": {"num_hidden_layers": 2, "vocab_size": 16, "torch_dtype": "float32", "tie_word_embeddings": false}
    });
    bench.model("a", &nested, &llama(1, 2, Dtype::F32));
    bench.merge(
        "merge_method: passthrough\ndtype: bfloat16\nslices:\n- sources: [{model: a, layer_range: [0, 1]}]\n",
        &[],
    );
    let config = json_of(&bench, "out/config.json");
    assert_eq!(config["text_config"]["num_hidden_layers"], 1);
    assert_eq!(config["text_config"]["torch_dtype"], "bfloat16");
    assert!(config.get("num_hidden_layers").is_none());
}

#[test]
fn side_files_come_from_a_named_donor() {
    let bench = Bench::new();
    for (seed, name) in ["base", "a"].into_iter().enumerate() {
        bench.llama(name, seed as u64 + 1, Dtype::BF16);
        for file in [
            "tokenizer.json",
            "tokenizer_config.json",
            "chat_template.jinja",
            "generation_config.json",
            "preprocessor_config.json",
            "LICENSE",
        ] {
            let text = if file == "tokenizer.json" {
                "{}".to_owned()
            } else {
                format!("{name}'s {file}")
            };
            bench.file(&format!("{name}/{file}"), text);
        }
        for file in ["optimizer.pt", "README.md", "training_args.bin", "x.py"] {
            bench.file(&format!("{name}/{file}"), "not carried over");
        }
    }
    let recipe = "merge_method: task_arithmetic\nbase_model: base\nmodels: [{model: a}]\nparameters: {weight: 0.5}\n";
    bench.merge(recipe, &[]);
    let text = |name: &str| fs::read_to_string(bench.path(&format!("out/{name}"))).unwrap();
    assert_eq!(text("chat_template.jinja"), "base's chat_template.jinja");
    assert_eq!(
        text("generation_config.json"),
        "base's generation_config.json"
    );
    assert_eq!(text("LICENSE"), "base's LICENSE");
    for file in ["optimizer.pt", "training_args.bin", "x.py"] {
        assert!(!bench.path("out").join(file).exists(), "{file}");
    }
    bench.merge(recipe, &["--tokenizer-from", "a"]);
    assert_eq!(text("chat_template.jinja"), "a's chat_template.jinja");
    assert_eq!(text("tokenizer_config.json"), "a's tokenizer_config.json");
    assert_eq!(
        text("generation_config.json"),
        "base's generation_config.json"
    );
    // The card names local models as the recipe does, and no folder of this machine.
    let card = text("README.md");
    assert!(
        card.starts_with(
            "---\nlibrary_name: transformers\ntags:\n- merge\n- weldment\n---\n# out\n"
        ),
        "{card}"
    );
    assert!(
        card.contains("`base` (base)") && card.contains(recipe.trim()),
        "{card}"
    );
    assert!(!card.contains(bench.path("").to_str().unwrap()), "{card}");
}

#[test]
fn the_plan_is_what_the_merge_does() {
    let bench = Bench::new();
    for (seed, name) in ["base", "a", "b"].into_iter().enumerate() {
        bench.llama(name, seed as u64 + 1, Dtype::BF16);
    }
    let recipe = "merge_method: ties\nbase_model: base\nmodels:\n- {model: a, parameters: {weight: 0.3, density: 0.5}}\n\
                  - {model: b, parameters: {weight: [0, 1]}}\n";
    bench.recipe(recipe);
    let plan = bench.weld(&["plan", "recipe.yml", "--format", "json"]);
    assert_eq!((plan.code, plan.stderr.as_str()), (Some(0), ""));
    let plan: Value = serde_json::from_str(&plan.stdout).unwrap();
    assert!(!bench.path("out").exists(), "a plan writes nothing");
    let merged = load(&bench.merge(recipe, &["--format", "json"]));
    let planned: Vec<&str> = plan["tensors"]
        .as_array()
        .unwrap()
        .iter()
        .map(|tensor| tensor["name"].as_str().unwrap())
        .collect();
    let names: Vec<&str> = merged.iter().map(|(name, _)| name.as_str()).collect();
    assert_eq!(planned, names);
    let written: u64 = fs::read_dir(bench.path("out"))
        .unwrap()
        .map(|entry| entry.unwrap().path())
        .filter(|path| {
            path.extension()
                .is_some_and(|extension| extension == "safetensors")
        })
        .map(|path| path.metadata().unwrap().len())
        .sum();
    assert_eq!(plan["bytes_written"], written);
    // Every tensor of every input has a fate.
    for model in plan["models"].as_array().unwrap() {
        assert_eq!(model["tensors"].as_object().unwrap().len(), names.len());
        assert!(
            model["tensors"]
                .as_object()
                .unwrap()
                .values()
                .all(|fate| fate == &json!({"used": 1}))
        );
    }
    let last = plan["tensors"]
        .as_array()
        .unwrap()
        .iter()
        .find(|tensor| tensor["name"] == "model.layers.1.mlp.up_proj.weight")
        .unwrap();
    assert_eq!(
        last["sources"][0]["parameters"],
        json!({"weight": 0.3, "density": 0.5})
    );
    assert_eq!(
        last["sources"][1]["parameters"],
        json!({"weight": 1.0, "density": 1.0})
    );
    assert_eq!(last["sources"][2]["base"], true);
    let all = bench.weld(&["plan", "recipe.yml", "--all"]).stdout;
    assert!(
        all.contains("    <- b: model.layers.1.mlp.up_proj.weight (weight=1 density=1)"),
        "{all}"
    );
    assert!(
        all.contains("base: model.layers.1.mlp.up_proj.weight (base)"),
        "{all}"
    );
}
